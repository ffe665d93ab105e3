"""A request on a connection and its reply, as ASGI defines them: uvicorn's class, with three additions.

If a client ends its side of the connection in the middle of a body, it gets a reply that says so; uvicorn would treat
it as gone. A large reply is written as fast as the client reads it, and refused if too many wait already. HTTP/1.0
clients may keep their connections, and get no chunks: a reply of unknown length ends with the connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.http.reply import CLOSE, KEEP

if TYPE_CHECKING:
    from service.http.connection import Protocol

Message = Any
_WITHOUT_BODY = (204, 304)
_OF_EVERY_REPLY = (b"x-request-id", b"connection")


class Cycle(RequestResponseCycle):
    """One request and its reply."""

    scope: dict[str, Any]  # type: ignore[assignment]
    connection: Protocol
    ends_early = False
    """Whether the body ended early and no more of it will come."""
    writes = 0
    """Bytes of the reply that are stored while they are written."""
    _head: Message = None
    """The head of a reply that waits for its body."""
    _until_the_end = False
    """Whether the end of the connection marks the end of the reply."""

    def end_early(self) -> None:
        """No more of the body will come. Its reader learns so, and may still reply."""
        self.ends_early, self.keep_alive = True, False
        self.message_event.set()

    def vanish(self) -> None:
        """The client is gone: read and write nothing more."""
        if not self.response_complete:
            self.disconnected = True
        self.message_event.set()

    async def receive(self) -> Message:
        """The next piece of the body, or a message that there is none."""
        if self.ends_early and not self.body:
            return {"type": "http.disconnect"}
        return await super().receive()

    async def send(self, message: Message) -> None:
        """Write a piece of the reply. The head waits for the first piece of the body, which shows whether there is
        room."""
        if message["type"] == "http.response.start":
            self._head = message
            return
        body = b"" if self.scope["method"] == "HEAD" else message.get("body", b"")
        large = len(body) > HIGH_WATER_LIMIT
        if self._head is not None:
            head, self._head = self._head, None
            if large and not self.connection.has_room(len(body)):
                head, message = self._refused(head)
                large = False
            await super().send(self._of_this_connection(head))
        if not large:
            await self._write(message)
            return
        # In one write, all of it would stay in memory until its last byte is sent, and its size could not be counted.
        self.writes = len(body)
        for place in range(0, len(body), HIGH_WATER_LIMIT):
            await self._write({**message, "body": body[place : place + HIGH_WATER_LIMIT], "more_body": True})
        self.writes = 0
        await self._write({**message, "body": b""})

    def _refused(self, head: Message) -> tuple[Message, Message]:
        """Head and body of the reply instead of a body for which there is no room."""
        kept = [field for field in head["headers"] if field[0] in _OF_EVERY_REPLY]
        reply = self.connection.refuse_large(self.scope, dict(kept)[b"x-request-id"].decode())
        return {**head, "status": reply.status, "headers": reply.headers + kept}, {
            "type": "http.response.body",
            "body": reply.body,
        }

    async def _write(self, message: Message) -> None:
        if self._until_the_end:
            self.expected_content_length = len(message.get("body", b""))  # uvicorn compares the body's length with this
        await super().send(message)

    def _of_this_connection(self, head: Message) -> Message:
        """The same head, with the header Connection, and without chunks for clients that do not know them."""
        old = self.scope["http_version"] != "1.1"
        if old and not (self.scope["method"] == "HEAD" or head["status"] in _WITHOUT_BODY):
            names = [name.lower() for name, _ in head["headers"]]
            if b"content-length" not in names:
                self._until_the_end, self.keep_alive, self.chunked_encoding = True, False, False
        if (self.keep_alive and not old) or CLOSE in head["headers"]:
            return head
        return {**head, "headers": [*head["headers"], KEEP if self.keep_alive else CLOSE]}
