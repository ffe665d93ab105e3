"""The end of the log: SQLite's write-ahead log (sqlite.org/fileformat2.html, section 4) and the file `last-commit`.

SQLite silently ends its write-ahead log at the first damaged frame, so one flipped bit can lose hundreds of
acknowledged commits. Two things tell. `last-commit` has the number and checksum of each commit, written after the sync
and before the reply; a log that ends before that commit does not open. It is not synced, so after a power cut it may
be behind the log. Then the frames that follow the log's end tell.
"""

from __future__ import annotations

import itertools
import logging
import struct
import zlib
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, NamedTuple

from service import failures
from service.storage.database import Database, connect_to_read

logger = logging.getLogger("logstep")

_HEADER = struct.Struct(">16x8s8s")
_FRAME = struct.Struct(">4xI8s8x")
_INDEX = struct.Struct("=16xI28x")
_MARK = struct.Struct("<QI")


def check_end(folder: Path) -> bool:
    """Whether the last commit was cut short. Refuses a folder whose log has lost commits.

    It uses a read-only connection. A writing one would throw away the damaged write-ahead log when it closes, and with
    it what could still be saved.
    """
    with closing(Database(folder, connect_to_read(folder))) as db:
        number, checksum = db.log_end()
        tail = read_tail(db)
    marked = read_mark(folder)
    if marked is None and number > 0:
        raise failures.LogDamaged(folder=str(folder), reason="its file last-commit is missing or unreadable")
    if marked is not None and marked[0] > number:
        raise failures.LogEndsEarly(folder=str(folder), log=number, mark=marked[0])
    if marked is not None and marked[0] == number and marked[1] != checksum:
        raise failures.LogDamaged(folder=str(folder), reason="its last commit is not the one that was acknowledged")
    if tail.lost:
        raise failures.LogHasAHole(folder=str(folder), log=number, lost=tail.lost)
    if tail.pages:
        logger.warning(
            "commit %d was cut short and never acknowledged: dropping its %d page(s)", number + 1, tail.pages
        )
    return tail.pages > 0


# -- the file last-commit


def encode_mark(number: int, checksum: int) -> bytes:
    """The bytes of `last-commit`: the number and checksum of a commit, then a checksum of both."""
    body = _MARK.pack(number, checksum)
    return body + struct.pack("<I", zlib.crc32(body))


def read_mark(folder: Path) -> tuple[int, int] | None:
    """Number and checksum of the last acknowledged commit. None if the file is missing or damaged."""
    path = folder / "last-commit"
    if path.exists() and not path.is_file():  # a pipe would be waited for, for ever
        raise failures.NotADataFolder(path=str(folder), reason="its last-commit is not a file")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    mark = _MARK.unpack_from(data) if len(data) == _MARK.size + 4 else None
    return mark if mark and data == encode_mark(*mark) else None


# -- the write-ahead log


class Tail(NamedTuple):
    """What the write-ahead log has after its last whole commit, from byte `start` on.

    pages: pages of a commit that was cut short or is being written now. lost: damaged commits. They had been synced,
    because after each of them another commit began.
    """

    start: int = 0
    pages: int = 0
    lost: int = 0


def read_tail(db: Database) -> Tail:
    """What the write-ahead log has after the commits that SQLite reads from it."""
    path = db.folder / "log.db-wal"
    whole = _whole_frames(db)
    if whole is None or not path.is_file():
        return Tail()
    with path.open("rb") as wal:
        found = _tail(wal, whole, db.page_bytes())
    # Checked again: a service may have committed meanwhile, or restarted its write-ahead log.
    return found if _whole_frames(db) == whole else Tail()


def _whole_frames(db: Database) -> int | None:
    """How many frames of the write-ahead log SQLite reads, by the log's index (sqlite.org/walformat.html). None if
    there is no index."""
    next(db.rows("SELECT 1 FROM log_end"), None)  # the first query makes the index
    try:
        with (db.folder / "log.db-shm").open("rb") as index:
            header, copy = index.read(_INDEX.size), index.read(_INDEX.size)
    except FileNotFoundError:
        return None
    return int(_INDEX.unpack(header)[0]) if header and header == copy else None


def _tail(wal: BinaryIO, whole: int, page_size: int) -> Tail:
    """What comes after the first `whole` frames. It skips frames with another salt: they are of an older write-ahead
    log."""
    header = wal.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return Tail(0, len(header) > 0)
    salt, checksum = _HEADER.unpack(header)
    header_whole = checksum == _checksum(header)
    start = _HEADER.size + whole * (_FRAME.size + page_size)
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


def _checksum(header: bytes) -> bytes:
    """The checksum that a whole header ends with."""
    one = two = 0
    words = struct.unpack(">6I" if header[3] & 1 else "<6I", header[:24])
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return struct.pack(">II", one, two)
