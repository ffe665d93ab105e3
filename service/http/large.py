"""JSON replies too large to encode in one go: pieces, sent as fast as the client reads them.

A model of a million features has 40 MB of weights. Encoding them at once would block everybody for a tenth of a second.
Storing them until a slow client has read them would use too much memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Send

from service.events import JSON
from service.http.permit import Permit
from service.replies import encode


def pieces_of(before: dict[str, Any], name: str, members: Iterable[Any], after: dict[str, Any]) -> Iterator[bytes]:
    """A JSON object in pieces: the fields before `name`, the field `name`, and the fields after it.

    `members`: the value of `name`, cut into dicts or lists of some of its members; at least one.

    >>> b"".join(pieces_of({"n": 3}, "all", [[1, 2], [3]], {"sum": 6}))
    b'{"n":3,"all":[1,2,3],"sum":6}\\n'
    """
    yield b'%b,"%b":' % (msgspec.json.encode(before)[:-1], name.encode())
    last = b""
    for some in members:
        encoded = msgspec.json.encode(some)
        yield b"," + encoded[1:-1] if last else encoded[:-1]
        last = encoded[-1:]
    yield last + b"," + encode(after)[1:]


class Pieces(Response):
    """A reply made of these pieces, sent as fast as the client reads them, until its token is revoked or the service
    stops.

    `room`: counts the bytes that the pieces are made from, until they are sent.
    """

    def __init__(self, permit: Permit, pieces: Iterable[bytes], room: ExitStack) -> None:
        super().__init__(media_type=JSON)
        del self.headers["content-length"]  # not known yet
        self._permit = permit
        self._pieces = pieces
        self._room = room

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        with self._room:
            async with self._permit.while_it_may(scope):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                for piece in self._pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                    await asyncio.sleep(0)  # else a fast client would get all of them in one turn of the loop
                await send({"type": "http.response.body", "body": b""})
