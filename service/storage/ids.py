"""The table `ids`: what each id of a model stands for, and a checksum over all that it has.

SQLite checks no pages, and an id with a flipped bit is one that nobody finds: its event would be learned twice. So the
log's end has a checksum over the table, which each commit moves on; whoever reads all of the table can hold it to that.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from operator import itemgetter
from typing import Any, NamedTuple
from zlib import crc32

import msgspec

from core.features import EXPIRED, LATE, ORDINARY

WAITING, DROPPED = LATE + 1, LATE + 2
"""What an id stands for that has no event: a prediction that waits, or one that waited too long. An event's id has the
kind of the event (core/features.py)."""

AT_ONCE = 250
_INSERT_SOME = "INSERT INTO ids VALUES " + ", ".join(["(?1, ?, ?, ?, ?, ?)"] * AT_ONCE)  # noqa: S608  # of constants
_INSERT = """
INSERT INTO ids SELECT ?1, value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4 FROM json_each(?2)
"""
# An id that stands for an event never changes, but for one that was taken to be 0 and is corrected.
_CHANGE = f"""{_INSERT} WHERE true
ON CONFLICT (model, id) DO UPDATE SET
    seq = excluded.seq, fingerprint = excluded.fingerprint, kind = excluded.kind, label = excluded.label
WHERE kind IN ({WAITING}, {DROPPED}) OR (kind = {EXPIRED} AND excluded.kind = {LATE})
"""
_NUMBERS = ", ".join(f"CAST({column} AS INTEGER)" for column in ("seq", "fingerprint", "kind", "label"))
# With casts: of the rows of a damaged page too there must be one.
CHECKSUM = f"SELECT ifnull(ids_checksum(model, CAST(id AS BLOB), {_NUMBERS}), 0) FROM ids"  # noqa: S608  # of constants
"""A query for the checksum over all rows."""
_MODULUS = (1 << 61) - 1  # a prime: no power of two, which is what a flipped bit adds, is 0 modulo it


class NewId(NamedTuple):
    """An id and what it stands for from now on: an event's seq, fingerprint (`core.features.fingerprints`), kind and
    the fingerprint of its label alone; or a prediction that waits, whose number is `seq`, or was dropped."""

    id: str
    seq: int
    fingerprint: int = 0
    kind: int = ORDINARY
    label: int | None = None


IdRow = tuple[str, int, int, int, int | None]
"""The same without names: of a NewId, to make one takes three times as long."""


class Rows(NamedTuple):
    """Those rows of the table of which a condition in SQL is true."""

    condition: str
    values: tuple[Any, ...] = ()


def rows_of(model: int, ids: Sequence[str]) -> Rows:
    """The rows of these ids of a model."""
    return Rows("model = ? AND id IN (SELECT value FROM json_each(?))", (model, msgspec.json.encode(ids).decode()))


class IdsTakenError(Exception):
    """An id that was taken to be new stands for something; nothing was written."""


def checksum(
    models: Iterable[int],
    ids: Iterable[bytes],
    seqs: Iterable[int],
    fingerprints: Iterable[int],
    kinds: Iterable[int],
    labels: Iterable[int | None],
) -> int:
    """The checksum over some rows, by columns: the sum of all numbers in them and of the CRC-32 of each id.

    A sum, so that rows can come and go in any order: that of rows which are added or removed is too. One flipped bit of
    a number, or any number of neighbouring ones up to 32 in an id, always changes it.

    >>> one, other = checksum([1], [b"a"], [7], [0], [0], [None]), checksum([1], [b"b"], [8], [0], [0], [None])
    >>> checksum([1, 1], [b"b", b"a"], [8, 7], [0, 0], [0, 0], [None, None]) == one + other
    True
    """
    known = [label for label in labels if label is not None]
    numbers = sum(models) + sum(seqs) + sum(fingerprints) + sum(kinds) + sum(known) + len(known)
    return (sum(map(crc32, ids)) + numbers) % _MODULUS


class _Checksum:
    """`checksum` for SQLite. Damaged rows, which may lack a number, have one too: a wrong one."""

    def __init__(self) -> None:
        self._rows: list[tuple[Any, ...]] = []
        self._total = 0

    def step(self, *row: Any) -> None:
        self._rows.append(row)
        if len(self._rows) == AT_ONCE:
            self._fold()

    def finalize(self) -> int:
        self._fold()
        return self._total

    def _fold(self) -> None:
        if self._rows:
            try:
                added = checksum(*zip(*self._rows, strict=True))
            except TypeError:
                added = crc32(repr(self._rows).encode())
            self._total, self._rows = int(self._total + added) % _MODULUS, []


def add_checksum(db: sqlite3.Connection) -> None:
    """Let queries of a connection use CHECKSUM."""
    db.create_aggregate("ids_checksum", 6, _Checksum)


class Ids:
    """Writes the table, in transactions that others begin and end.

    checksum: that over what the table has.
    """

    def __init__(self, db: sqlite3.Connection, checksum: int) -> None:
        self._db = db
        self.checksum = checksum

    def insert(self, model: int, ids: Sequence[IdRow]) -> None:
        """IdsTakenError if one of them stands for something."""
        if not ids:
            return
        # In order, because random ids then share the pages of the tree that they go to (measured, 8,000 at once: 3.1 us
        # an id, out of order 4.6).
        ids = sorted(ids, key=itemgetter(0))
        rest = len(ids) % AT_ONCE
        try:
            # Few statements: each gives up the GIL and must win it back. As values an id takes 0.4 us; as JSON, which
            # is one statement for any number, 1.2.
            for start in range(rest, len(ids), AT_ONCE):
                some = chain.from_iterable(ids[start : start + AT_ONCE])
                self._db.execute(_INSERT_SOME, (model, *some))
            if rest:
                self._db.execute(_INSERT, (model, _as_json(ids[:rest])))
        except sqlite3.IntegrityError:
            raise IdsTakenError from None
        self._count(_checksum(model, ids))

    def change(self, model: int, ids: Sequence[IdRow]) -> None:
        """What these stood for was not an event, or is corrected; it has been left out."""
        if ids:
            changed = self._db.execute(_CHANGE, (model, _as_json(ids))).rowcount
            if changed != len(ids):
                raise sqlite3.IntegrityError(f"{len(ids) - changed} id(s) stand for events already")
            self._count(_checksum(model, ids))

    def leave_out(self, rows: Rows) -> None:
        """Leave rows out of the checksum, before the transaction that removes or changes them: in one that met a row
        that cannot be read, SQLite would write nothing more."""
        self._count(-self.sum(rows))

    def sum(self, rows: Rows) -> int:
        """The checksum over some rows, a wrong one where a page is damaged: then nothing else fails for it."""
        try:
            ((found,),) = self._db.execute(f"{CHECKSUM} WHERE {rows.condition}", rows.values).fetchall()
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
                raise
            return 0
        return int(found)

    def _count(self, checksum: int) -> None:
        self.checksum = (self.checksum + checksum) % _MODULUS


def _checksum(model: int, rows: Sequence[IdRow]) -> int:
    ids, seqs, fingerprints, kinds, labels = zip(*rows, strict=True)
    return checksum(repeat(model, len(ids)), map(str.encode, ids), seqs, fingerprints, kinds, labels)


def _as_json(ids: Sequence[IdRow]) -> str:
    return msgspec.json.encode(ids).decode()
