"""The write-ahead log (sqlite.org/fileformat2.html, section 4) and the file `last-commit`, which tells its end."""

from __future__ import annotations

import itertools
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from service import errors

_WAL_HEADER = struct.Struct(">16x8s8s")
_FRAME = struct.Struct(">4xI8s8x")
INDEX = struct.Struct("=16xI28x")


@dataclass(frozen=True, slots=True)
class Tail:
    """What the write-ahead log has after its last whole commit, from byte `start` on.

    pages: pages of a commit that was cut short or is being written now. lost: damaged commits. They had been synced,
    because after each of them another commit began.
    """

    start: int = 0
    pages: int = 0
    lost: int = 0


def tail_of(wal: BinaryIO, whole: int, page_size: int) -> Tail:
    """What comes after the first `whole` frames. It skips frames with another salt: they are of an older write-ahead
    log."""
    header = wal.read(_WAL_HEADER.size)
    if len(header) < _WAL_HEADER.size:
        return Tail(0, len(header) > 0)
    salt, checksum = _WAL_HEADER.unpack(header)
    header_whole = checksum == _wal_checksum(header)
    start = _WAL_HEADER.size + whole * (_FRAME.size + page_size)
    pages = commits = 0
    for place in itertools.count(start, _FRAME.size + page_size):
        wal.seek(place)
        frame = wal.read(_FRAME.size)
        if len(frame) < _FRAME.size:
            break
        size_after_commit, frame_salt = _FRAME.unpack(frame)
        if not header_whole and place == start:
            salt = frame_salt
        pages += frame_salt == salt
        commits += frame_salt == salt and size_after_commit > 0
    # SQLite syncs the header before it writes the first frame, and each commit before the next.
    return Tail(start, pages + (len(frame) > 0), max(0, commits - header_whole))


def _wal_checksum(header: bytes) -> bytes:
    """The checksum that a whole header ends with."""
    one = two = 0
    words = struct.unpack(">6I" if header[3] & 1 else "<6I", header[:24])
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return struct.pack(">II", one, two)


# -- the file last-commit

_MARK = struct.Struct("<QI")


def encode_mark(number: int, checksum: int) -> bytes:
    """The bytes of `last-commit`: the number and checksum of a commit, then a checksum of both."""
    body = _MARK.pack(number, checksum)
    return body + struct.pack("<I", zlib.crc32(body))


def read_mark(folder: Path) -> tuple[int, int] | None:
    """Number and checksum of the last acknowledged commit. None if the file is missing or damaged."""
    path = folder / "last-commit"
    if path.exists() and not path.is_file():  # a pipe would be waited for, for ever
        raise errors.NotADataFolder(path=str(folder), reason="its last-commit is not a file")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(data) != _MARK.size + 4 or data[_MARK.size :] != struct.pack("<I", zlib.crc32(data[: _MARK.size])):
        return None
    number, checksum = _MARK.unpack_from(data)
    return number, checksum
