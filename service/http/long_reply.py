"""Replies that may be long.

Those to streams and arrays are gathered until their length is known, then sent piece by piece. They wait in memory;
what exceeds MEMORY_BYTES goes to a file without a name. All replies together have a limit, and they leave at least as
much disk space free as they use, because the log is on the same disk.

Large objects, like a model's weights, are encoded in pieces, as fast as the client reads them. A model of a million
features has 40 MB of weights: encoding them at once would block everybody for a tenth of a second, and storing them
until a slow client has read them would use too much memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO, Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service import errors
from service.events import JSON
from service.http.access import Access
from service.http.reply import NO_SNIFFING
from service.replies import encode
from service.settings import Settings

MEMORY_BYTES = 2**18
SENT_BYTES = 2**16
"""Bytes sent at a time. A connection accepts no more before its client has read some."""


class LongReplies:
    """The bytes that all long replies use together."""

    def __init__(self, settings: Settings) -> None:
        self._limit = settings.max_replies_bytes
        self.folder = settings.data
        self._held = self.on_disk = 0

    @contextlib.contextmanager
    def gathered(self, content_type: bytes, promised: int = 0) -> Iterator[LongReply]:
        """An empty reply. It gives back its bytes at the end.

        promised: bytes that the reply gets whatever happens. Raises ReplyTooLarge or TooManyReplies now if there is no
        room for them.
        """
        reply = LongReply(self, content_type, promised)
        self.hold(promised, promised)
        try:
            yield reply
        finally:
            reply.close()

    @contextlib.contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Count so many bytes that a reply is made from, until the block ends. Raises ReplyTooLarge or
        TooManyReplies."""
        self.hold(size, size)
        try:
            yield
        finally:
            self.let_go(size, 0)

    def hold(self, size: int, of: int) -> None:
        """Take so many more bytes for a reply of `of` bytes."""
        if of > self._limit:
            raise errors.ReplyTooLarge(limit=self._limit)
        if self._held + size > self._limit:
            raise errors.TooManyReplies(limit=self._limit)
        self._held += size

    def let_go(self, held: int, on_disk: int) -> None:
        """Give back the bytes that a reply used."""
        self._held -= held
        self.on_disk -= on_disk


class LongReply:
    """One long reply."""

    def __init__(self, replies: LongReplies, content_type: bytes, promised: int) -> None:
        self._replies = replies
        self._content_type = content_type
        self._promised = promised
        self._size = 0
        self._memory = bytearray()
        self._file: IO[bytes] | None = None
        self._on_disk = 0
        self._no_room = False

    async def add(self, data: bytes) -> None:
        """Add data. Raises ReplyTooLarge, TooManyReplies or NoRoomForReply, but never for promised bytes."""
        more = max(0, self._size + len(data) - max(self._size, self._promised))
        self._replies.hold(more, self._size + len(data))
        self._size += len(data)
        self._memory += data
        if len(self._memory) > MEMORY_BYTES and not self._no_room:
            try:
                await self._put_on_disk()
            except (errors.NoRoomForReply, OSError) as error:
                if self._size > self._promised:
                    raise errors.NoRoomForReply() from error
                self._no_room = True  # the rest stays in memory

    async def _put_on_disk(self) -> None:
        size, folder = len(self._memory), self._replies.folder
        if self._replies.on_disk + size > shutil.disk_usage(folder).free:
            raise errors.NoRoomForReply()
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed with the reply
        await asyncio.to_thread(self._write, self._file, self._on_disk, self._memory)
        self._replies.on_disk += size
        self._on_disk += size
        self._memory = bytearray()

    @staticmethod
    def _write(file: IO[bytes], at: int, data: bytearray) -> None:
        file.seek(at)  # a failed write may have left a part
        file.write(data)
        file.flush()

    async def send(self, send: Send) -> None:
        length = (b"content-length", b"%d" % self._size)
        headers = [(b"content-type", self._content_type), length, NO_SNIFFING]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if self._file is not None:
            await asyncio.to_thread(self._file.seek, 0)
            for start in range(0, self._on_disk, SENT_BYTES):
                count = min(SENT_BYTES, self._on_disk - start)
                chunk = await asyncio.to_thread(self._file.read, count)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        for start in range(0, len(self._memory), SENT_BYTES):
            chunk = bytes(self._memory[start : start + SENT_BYTES])
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def close(self) -> None:
        """Give back its bytes, whether it was sent or not."""
        self._replies.let_go(max(self._size, self._promised), self._on_disk)
        if self._file is not None:
            self._file.close()


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

    def __init__(self, access: Access, pieces: Iterable[bytes], room: contextlib.ExitStack) -> None:
        super().__init__(media_type=JSON)
        del self.headers["content-length"]  # not known yet
        self._access = access
        self._pieces = pieces
        self._room = room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._room:
            async with self._access.while_it_may(scope):
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                for piece in self._pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                    await asyncio.sleep(0)  # else a fast client would get all of them in one turn of the loop
                await send({"type": "http.response.body", "body": b""})
