"""HTTP/1.1 from bytes: uvicorn's protocol with a limit on how long a request's head may be, which it has not."""

from __future__ import annotations

from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service import errors
from service.hot import Receive, Scope, Send, send_problem

_FIELD_BYTES = len(b": \r\n")


class Protocol(HttpToolsProtocol):
    """A connection. `limit`: bytes of a request line and its headers; past them the request is refused with 431 and the
    connection closed, however slowly they come."""

    limit = 32_768
    _in_head = True
    _arrived = 0
    """Bytes since the head began, and what came with it: a body may have."""
    _last = 0

    def data_received(self, data: bytes) -> None:
        self._last = len(data)
        self._arrived += self._last
        super().data_received(data)
        if self._in_head and self._arrived > self.limit and not self.transport.is_closing():
            self._end()

    def on_message_begin(self) -> None:
        self._in_head, self._arrived = True, self._last
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        app = self.app
        if self._arrived > self.limit and self._head_bytes() > self.limit:
            self.app = self._refuse  # an ASGI application too
        super().on_headers_complete()
        self.app = app

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + _FIELD_BYTES for name, value in self.headers)

    async def _refuse(self, _: Scope, __: Receive, send: Send) -> None:
        await send_problem(send, errors.HeadTooLarge(limit=self.limit))

    def _end(self) -> None:
        """Refuse a head that has not ended: there is no request yet that could be answered."""
        if self.cycle is None or self.cycle.response_complete:  # else another's reply is under way
            body = msgspec.json.encode(errors.HeadTooLarge(limit=self.limit).problem())
            head = f"content-type: application/problem+json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(b"HTTP/1.1 431 Request Header Fields Too Large\r\n" + head.encode() + body)
        self.transport.close()


def protocol(limit: int) -> type[Protocol]:
    """The protocol with a limit, for uvicorn, which makes one for each connection."""
    made: Any = type("Protocol", (Protocol,), {"limit": limit})
    return made  # type: ignore[no-any-return]
