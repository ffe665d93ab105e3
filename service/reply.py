"""A whole reply, and the bytes of it: a result, or what is wrong as a problem document (RFC 9457)."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any, NamedTuple

from service import errors, wire
from service.headers import NO_SNIFFING

logger = logging.getLogger("onestep")

JSON = b"application/json"
_PROBLEM = b"application/problem+json"
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


class Reply(NamedTuple):
    """A whole reply."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def as_http(self, *, keep_alive: bool) -> bytes:
        """The bytes of it, head and body."""
        lines = [name + b": " + value + b"\r\n" for name, value in self.headers]
        if not keep_alive and (b"connection", b"close") not in self.headers:
            lines.append(b"connection: close\r\n")
        return b"".join((_STATUS_LINES[self.status], *lines, b"\r\n", self.body))


def json_reply(content: Any) -> Reply:
    """A result; floats as the shortest text that reads back to the same float64."""
    body = wire.encode(content)
    return Reply(200, _headers(JSON, body), body)


def problem(error: BaseException) -> Reply:
    """What is wrong. An error that is not a caller's is logged, and told as an internal one."""
    if not isinstance(error, errors.OnestepError):
        logger.error("a mistake in onestep itself", exc_info=error)
        error = errors.OnestepError()
    body = wire.encode(error.problem())
    headers = _headers(_PROBLEM, body) + [(name.encode(), value.encode()) for name, value in error.headers]
    return Reply(error.status, headers, body)


def _headers(content_type: bytes, body: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), NO_SNIFFING]
