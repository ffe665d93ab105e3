"""A request on a connection and its reply, as ASGI has them: uvicorn's, with what it leaves out.

A client that ends its side of the connection in the middle of a body is told so in the reply: to uvicorn it would be
gone. And HTTP/1.0 keeps its connections where the client asks for that, and knows no chunks: a reply that does not tell
its length ends with the connection.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.http.reply import CLOSE, KEEP

Message = Any
_WITHOUT_BODY = (204, 304)


class Cycle(RequestResponseCycle):
    """One request and its reply."""

    scope: dict[str, Any]  # type: ignore[assignment]
    ends_early = False
    """Whether no more comes of a body that has not ended."""
    _until_the_end = False
    """Whether the connection's end is the reply's."""

    def end_early(self) -> None:
        """Nothing more comes of the body: whoever reads it is told, and may still reply."""
        self.ends_early, self.keep_alive = True, False
        self.message_event.set()

    def vanish(self) -> None:
        """The client is gone: nothing is read or written any more."""
        if not self.response_complete:
            self.disconnected = True
        self.message_event.set()

    async def receive(self) -> Message:
        """The next piece of the body, or that there is none."""
        if self.ends_early and not self.body:
            return {"type": "http.disconnect"}
        return await super().receive()

    async def send(self, message: Message) -> None:
        """Write a piece of the reply."""
        if self.scope["http_version"] != "1.1":
            message = self._without_chunks(message)
        await super().send(message)

    def _without_chunks(self, message: Message) -> Message:
        """The same message for a client that knows no chunks."""
        if message["type"] == "http.response.body":
            if self._until_the_end:
                self.expected_content_length = len(message.get("body", b""))  # what uvicorn compares it with
            return message
        names = [name.lower() for name, _ in message["headers"]]
        empty = self.scope["method"] == "HEAD" or message["status"] in _WITHOUT_BODY
        if not (empty or b"content-length" in names):
            self._until_the_end, self.keep_alive, self.chunked_encoding = True, False, False
        if self.keep_alive and CLOSE not in message["headers"]:
            return {**message, "headers": [*message["headers"], KEEP]}
        return message
