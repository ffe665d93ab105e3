"""Cuts an Arrow IPC stream into messages as it arrives, and bounds what each takes before pyarrow reads it.

So neither pyarrow nor a thread waits for the network.

    message     ffffffff, length of the metadata (int32), metadata (a flatbuffer), body
    stream      schema message, then dictionary and record batch messages, optionally ffffffff 00000000
    metadata    kind of the message, length of the body, number of rows, place of each column's buffers in the body
    buffer      if compressed: its uncompressed length (int64; -1: not compressed), then the compressed bytes
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service import errors

FREE_ROWS = 2**18
ROWS_A_BYTE = 64
"""A batch of more than FREE_ROWS rows needs a byte for every ROWS_A_BYTE rows. Otherwise a few hundred bytes could hold
endless rows of one value. Honest data needs more: uncompressed truth values have 8 rows a byte, and even a compressed
column of numbers that are nearly all 0 takes more room than the limit asks."""

SCHEMA, DICTIONARY, RECORD_BATCH = 1, 2, 3
_CONTINUES = b"\xff\xff\xff\xff"


@dataclass(frozen=True, slots=True)
class Message:
    """A message. takes: its bytes when decompressed. id, is_delta: of a dictionary; a delta extends the one before."""

    parts: tuple[bytes, bytes, bytes]
    kind: int
    rows: int = 0
    takes: int = 0
    id: int = 0
    is_delta: bool = False

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @property
    def size(self) -> int:
        """Bytes that it takes, compressed or decompressed, whichever is more."""
        return max(len(self), self.takes)


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
    """The messages of a stream, up to its end."""
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
        head = _Flat.root(metadata)
        kind = head.number(1, "<B")
        batches += kind == RECORD_BATCH
        what = {SCHEMA: "the schema", DICTIONARY: "a dictionary"}.get(kind, f"record batch {batches}")
        yield await _message(arriving, what, (start, metadata), head, limit)


async def _message(arriving: _Arriving, what: str, begun: tuple[bytes, bytes], head: _Flat, limit: int) -> Message:
    """The message with this head, and its body. One that is too large is refused, if possible before it is read."""
    kind, body_length = head.number(1, "<B"), head.number(3, "<q")
    if not SCHEMA <= kind <= RECORD_BATCH or body_length < 0:
        raise errors.MalformedArrow(reason=f"it has a message of kind {kind}, {body_length} bytes long")
    check_size(what, len(begun[1]) + body_length, limit)
    message = _described(kind, head.table(2), (*begun, await arriving.take_all(body_length)))
    check_size(what, message.takes, limit)
    # A row takes at least a bit; otherwise a short stream could claim endless rows.
    if not 0 <= message.rows <= 8 * message.takes:
        raise errors.MalformedArrow(reason=f"{what} claims {message.rows} rows but has no data for them")
    if message.rows > max(FREE_ROWS, ROWS_A_BYTE * len(message)):
        told = {"rows": message.rows, "size": len(message), "free": FREE_ROWS, "ratio": ROWS_A_BYTE}
        raise errors.TooManyRows(what=what, **told)
    return message


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


def _described(kind: int, header: _Flat, parts: tuple[bytes, bytes, bytes]) -> Message:
    """The message with the numbers in its header."""
    body = parts[2]
    if kind == RECORD_BATCH:
        return Message(parts, kind, header.number(0, "<q"), _takes(header, body))
    if kind == DICTIONARY:
        is_delta = header.number(2, "<B") != 0
        return Message(parts, kind, takes=_takes(header.table(1), body), id=header.number(0, "<q"), is_delta=is_delta)
    return Message(parts, kind)


def _takes(batch: _Flat, body: bytes) -> int:
    """The bytes of a batch when decompressed."""
    if not batch.has(3):
        return len(body)
    at, lengths = batch.pairs(2)
    at, lengths = at[lengths > 0], lengths[lengths > 0]
    if not ((at >= 0) & (at <= len(body) - 8)).all():
        raise errors.MalformedArrow(reason=_OUTSIDE)
    whole = np.frombuffer(body, np.uint8)[at[:, None] + np.arange(8)].view("<i8").reshape(-1)
    return int(np.where(whole < 0, lengths, whole).sum(dtype=np.float64))  # float64 does not wrap around


_OUTSIDE = "a message points outside itself"


def _unpack(data: bytes, form: str, at: int) -> int:
    if not 0 <= at <= len(data) - struct.calcsize(form):
        raise errors.MalformedArrow(reason=_OUTSIDE)
    number: int = struct.unpack_from(form, data, at)[0]
    return number


class _Flat:
    """A flatbuffer table, just enough to find a message's size. pyarrow verifies all of it later."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at
        self._fields = at - _unpack(data, "<i", at)
        self._size = _unpack(data, "<H", self._fields)

    @classmethod
    def root(cls, data: bytes) -> _Flat:
        return cls(data, _unpack(data, "<I", 0))

    def _place(self, field: int) -> int | None:
        slot = 4 + 2 * field
        offset = _unpack(self._data, "<H", self._fields + slot) if slot < self._size else 0
        return self._at + offset if offset else None

    def has(self, field: int) -> bool:
        return self._place(field) is not None

    def number(self, field: int, form: str) -> int:
        """A number, 0 if it is left out."""
        place = self._place(field)
        return 0 if place is None else _unpack(self._data, form, place)

    def _pointed(self, field: int) -> int:
        place = self._place(field)
        if place is None:
            raise errors.MalformedArrow(reason="a message lacks a part")
        return place + _unpack(self._data, "<I", place)

    def table(self, field: int) -> _Flat:
        return _Flat(self._data, self._pointed(field))

    def pairs(self, field: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """A vector of pairs of 64-bit numbers, as two arrays."""
        at = self._pointed(field)
        count = _unpack(self._data, "<I", at)
        if at + 4 + 16 * count > len(self._data):
            raise errors.MalformedArrow(reason=_OUTSIDE)
        pairs = np.frombuffer(self._data, "<i8", 2 * count, at + 4).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]
