"""A whole reply and its bytes: a result, or an error as a problem document (RFC 9457)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, NamedTuple

from starlette.types import Message, Send

from service import errors, events
from service.replies import encode

JSON = events.JSON.encode()
NO_SNIFFING = (b"x-content-type-options", b"nosniff")
_NO_REFERRER = (b"referrer-policy", b"no-referrer")
CLOSE = (b"connection", b"close")
KEEP = (b"connection", b"keep-alive")
"""HTTP/1.0 needs this header to keep a connection. Later versions keep it unless they get `close`."""
PROBLEM = b"application/problem+json"
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


class Reply(NamedTuple):
    """A whole reply."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    async def send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body})

    def as_http(self) -> bytes:
        """Its bytes, head and body."""
        head = [b"%b: %b\r\n" % header for header in self.headers]
        return b"".join((_STATUS_LINES[self.status], *head, b"\r\n", self.body))


def json_reply(content: Any) -> Reply:
    """A result. Floats are the shortest text that reads back to the same float64."""
    body = encode(content)
    return Reply(200, _headers(JSON, body), body)


def problem(error: errors.LogstepError, request_id: str) -> Reply:
    body = encode(error.problem(request_id))
    headers = _headers(PROBLEM, body) + [(name.encode(), value.encode()) for name, value in error.headers]
    return Reply(error.status, headers, body)


def _headers(content_type: bytes, body: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), NO_SNIFFING]


def with_headers(send: Send) -> Send:
    """A `send` that adds these headers, unless the route has set its own."""

    async def hardened(message: Message) -> None:
        if message["type"] == "http.response.start":
            there = {name for name, _ in message["headers"]}
            added = [header for header in (NO_SNIFFING, _NO_REFERRER) if header[0] not in there]
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return hardened
