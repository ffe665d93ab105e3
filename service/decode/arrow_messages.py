"""Cuts an Arrow IPC stream into messages as it arrives, and bounds what each takes before pyarrow reads it.

So neither pyarrow nor a thread waits for the network. Compressed batches are refused: otherwise a few bytes could
become gigabytes.

    message     ffffffff, length of the metadata (int32), metadata (a flatbuffer), body
    stream      schema message, then dictionary and record batch messages, optionally ffffffff 00000000
    metadata    kind of the message, length of the body, number of rows, whether the body is compressed
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass

from service import errors

MAX_SCHEMA_BYTES = 2**23
"""Enough for 100,000 columns. Reading a schema holds the GIL: 20 MB of them would stop all others for a second."""
FREE_ROWS = 2**18
ROWS_A_BYTE = 8
"""A batch of more than FREE_ROWS rows needs a byte for every ROWS_A_BYTE rows, as truth values take. Otherwise a few
hundred bytes could hold endless rows: nulls, or runs of one value."""

SCHEMA, DICTIONARY, RECORD_BATCH = 1, 2, 3
_CONTINUES = b"\xff\xff\xff\xff"


@dataclass(frozen=True, slots=True)
class Message:
    """A message. id, is_delta: of a dictionary; a delta extends the one before."""

    parts: tuple[bytes, bytes, bytes]
    kind: int
    rows: int = 0
    id: int = 0
    is_delta: bool = False

    def __len__(self) -> int:
        return sum(map(len, self.parts))


class _Arriving:
    """The bytes of a body, taken in any lengths."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._waiting = bytearray()

    async def take(self, count: int) -> bytes:
        """The next `count` bytes, fewer if the body ends."""
        while len(self._waiting) < count:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                break
            self._waiting += chunk
        taken = bytes(memoryview(self._waiting)[:count])
        del self._waiting[:count]
        return taken

    async def take_all(self, count: int) -> bytes:
        """The next `count` bytes; raises MalformedArrow if the body ends before."""
        taken = await self.take(count)
        if len(taken) < count:
            raise errors.MalformedArrow(reason="it ends in the middle of a message")
        return taken


async def messages(chunks: AsyncIterator[bytes], limit: int) -> AsyncIterator[Message]:
    """The messages of a stream, up to its end. One of more than `limit` bytes is refused before its body is read."""
    arriving = _Arriving(chunks)
    batches = 0
    while start := await arriving.take(8):
        length = _metadata_length(start)
        if length == 0:
            if await arriving.take(1):
                raise errors.MalformedArrow(reason="bytes follow its end; send each stream in a request of its own")
            return
        check_size("a message", length, limit)
        metadata = await arriving.take_all(length)
        head = _Flat(metadata, _unpack(metadata, "<I", 0))
        kind, body_length = head.number(1, "<B"), head.number(3, "<q")
        if not SCHEMA <= kind <= RECORD_BATCH or body_length < 0:
            raise errors.MalformedArrow(reason=f"it has a message of kind {kind}, {body_length} bytes long")
        if kind == SCHEMA and length > MAX_SCHEMA_BYTES:
            raise errors.ArrowSchemaTooLarge(size=length, limit=MAX_SCHEMA_BYTES)
        batches += kind == RECORD_BATCH
        what = {SCHEMA: "the schema", DICTIONARY: "a dictionary"}.get(kind, f"record batch {batches}")
        check_size(what, length + body_length, limit)
        described = _described(kind, head.table(2), what)
        message = Message((start, metadata, await arriving.take_all(body_length)), kind, *described)
        _check_rows(message, what)
        yield message


def _described(kind: int, header: _Flat, what: str) -> tuple[int, int, bool]:
    """The rows, id and is_delta of a message. Raises CompressedArrow if its body is compressed."""
    if kind == SCHEMA:
        return 0, 0, False
    batch = header if kind == RECORD_BATCH else header.table(1)
    if batch.place(3):
        raise errors.CompressedArrow(what=what)
    rows = batch.number(0, "<q")
    return (rows, 0, False) if kind == RECORD_BATCH else (rows, header.number(0, "<q"), header.number(2, "<B") != 0)


def _check_rows(message: Message, what: str) -> None:
    has_data = message.kind != RECORD_BATCH or message.parts[2]
    if message.rows < 0 or (message.rows and not has_data):
        raise errors.MalformedArrow(reason=f"{what} claims {message.rows} rows but has no data for them")
    if message.rows > max(FREE_ROWS, ROWS_A_BYTE * len(message)):
        size = len(message)
        raise errors.TooManyRows(what=what, rows=message.rows, size=size, free=FREE_ROWS, ratio=ROWS_A_BYTE)


def _metadata_length(start: bytes) -> int:
    if start.startswith((b"ARROW1", b"FEA1")):
        reason = "it is an Arrow file; send a stream (with pyarrow: pyarrow.ipc.new_stream)"
        raise errors.MalformedArrow(reason=reason)
    if len(start) < 8 and _CONTINUES.startswith(start[:4]):
        raise errors.MalformedArrow(reason="it ends in the middle of a message")
    length = int.from_bytes(start[4:], "little", signed=True)
    if start[:4] != _CONTINUES or length < 0:
        raise errors.MalformedArrow(reason="a message must begin with ffffffff and its length (Arrow 0.15 or newer)")
    return length


def check_size(what: str, size: int, limit: int) -> None:
    if size > limit:
        raise errors.ArrowTooLarge(what=what, size=size, limit=limit)


def _unpack(data: bytes, form: str, at: int) -> int:
    if not 0 <= at <= len(data) - struct.calcsize(form):
        raise errors.MalformedArrow(reason="a message points outside itself")
    number: int = struct.unpack_from(form, data, at)[0]
    return number


class _Flat:
    """A flatbuffer table, just enough to bound a message. pyarrow verifies all of it later."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at
        self._fields = at - _unpack(data, "<i", at)
        self._size = _unpack(data, "<H", self._fields)

    def place(self, field: int) -> int:
        """Where a field stands; 0 if it is left out."""
        slot = 4 + 2 * field
        offset = _unpack(self._data, "<H", self._fields + slot) if slot < self._size else 0
        return self._at + offset if offset else 0

    def number(self, field: int, form: str) -> int:
        """A number, 0 if it is left out."""
        place = self.place(field)
        return _unpack(self._data, form, place) if place else 0

    def table(self, field: int) -> _Flat:
        place = self.place(field)
        if not place:
            raise errors.MalformedArrow(reason="a message lacks a part")
        return _Flat(self._data, place + _unpack(self._data, "<I", place))
