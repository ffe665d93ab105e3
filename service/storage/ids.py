"""What each id of a model stands for, in one of two tables, and a checksum over all ids.

An event that comes whole has its id in `event_ids` for good (event_ids.py). An id that stands or stood for a waiting
prediction is in `ids`, because what it stands for changes. An id is never in both.

SQLite does not checksum its pages. No query finds an id with a flipped bit, so its event would be learned twice. So
`log_end` has a checksum over both tables, and each commit updates it. A reader of all ids can check it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntEnum
from itertools import chain, repeat
from operator import itemgetter
from typing import Any, NamedTuple
from zlib import crc32

import msgspec

from service.storage import id_pieces
from service.storage.database import Database
from service.storage.event_ids import Runs
from service.storage.forgotten import NOTHING, Forgotten
from service.storage.id_pieces import MODULUS, EventIds, Piece


class IdKind(IntEnum):
    """What an id stands for, as it is on disk. An event's id has the kind of the event (core/batch.py)."""

    LEARNED = 0
    JOINED = 1
    """A label was joined to the waiting prediction."""
    EXPIRED = 2
    """No label came in time, and the event was learned as 0."""
    LATE = 3
    """A label came later still and corrected that 0."""
    WAITING = 4
    """A prediction waits for its label; there is no event."""
    DROPPED = 5
    """It waited too long and was dropped; there is no event."""
    FORGOTTEN = 6
    """It stood for an event, and stands for nothing now (forgotten.py). Never on disk."""


EVENT_KINDS = (IdKind.LEARNED, IdKind.JOINED, IdKind.EXPIRED, IdKind.LATE)
KINDS = {kind.value: kind for kind in IdKind if kind is not IdKind.FORGOTTEN}
OF_AN_EVENT = f"kind IN ({', '.join(str(kind.value) for kind in EVENT_KINDS)})"
"""A condition for the ids of events."""

AT_ONCE = 250
_INSERT_SOME = "INSERT INTO ids VALUES " + ", ".join(["(?1, ?, ?, ?, ?, ?)"] * AT_ONCE)  # noqa: S608  # of constants
_INSERT = """
INSERT INTO ids SELECT ?1, value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4 FROM json_each(?2)
"""
# An event's id never changes, except when a late label corrects an event that was learned as 0, or it is forgotten.
_CHANGE = f"""{_INSERT} WHERE true
ON CONFLICT (model, id) DO UPDATE SET
    seq = excluded.seq, fingerprint = excluded.fingerprint, kind = excluded.kind, label = excluded.label
WHERE kind IN ({IdKind.WAITING}, {IdKind.DROPPED}) OR (kind = {IdKind.EXPIRED} AND excluded.kind = {IdKind.LATE})
OR ({OF_AN_EVENT} AND ids.seq <= ?3)
"""
_NUMBERS = ", ".join(f"CAST({column} AS INTEGER)" for column in ("seq", "fingerprint", "kind", "label"))
# The casts let the rows of a damaged page have a checksum too.
CHECKSUM = f"SELECT ifnull(ids_checksum(model, CAST(id AS BLOB), {_NUMBERS}), 0) FROM ids"  # noqa: S608  # of constants
"""A query for the checksum over all rows of `ids`."""


class NewId(NamedTuple):
    """An id and what it stands for from now on.

    For an event: its seq, fingerprint (`core.batch.fingerprints`), kind, and the fingerprint of its label alone. For
    a waiting prediction: its number, as `seq`. For a dropped one: only the kind.
    """

    id: str
    seq: int
    fingerprint: int = 0
    kind: int = IdKind.LEARNED
    label: int | None = None


IdRow = tuple[str, int, int, int, int | None]
"""NewId as a plain tuple: making a NewId takes three times as long."""


class Rows(NamedTuple):
    """The rows of the table that match an SQL condition."""

    condition: str
    values: tuple[Any, ...] = ()


def rows_of(model: int, ids: Sequence[str]) -> Rows:
    """The rows of these ids of a model."""
    return Rows("model = ? AND id IN (SELECT value FROM json_each(?))", (model, msgspec.json.encode(ids).decode()))


def event_ids(db: Database, model: int, forgotten: int) -> Iterator[Piece]:
    """The ids of a model's events, in pieces and in no order, but for those up to the seq `forgotten`. LogDamaged if a
    row cannot be read."""
    pieces = f"SELECT ids, payload FROM ({id_pieces.PIECES}) WHERE model = ?"  # noqa: S608  # of constants
    for ids, payload in db.rows(pieces, model):
        piece = Piece.decode(ids, payload)
        if piece is None:
            raise db.damaged("a row with ids of events cannot be read")
        yield piece.where(piece.seqs > forgotten)


def other_ids(db: Database, model: int, forgotten: int) -> Iterator[IdRow]:
    """The same for the ids of a model's predictions that no longer wait, and what each stands for."""
    columns = "SELECT id, seq, fingerprint, kind, label FROM ids"
    query = f"{columns} WHERE model = ? AND kind <> ? AND NOT ({OF_AN_EVENT} AND seq <= ?) ORDER BY id"  # of ours
    yield from db.rows(query, model, IdKind.WAITING.value, forgotten)


class IdsTakenError(Exception):
    """An id that was expected to be new is in the table. Nothing was written."""


def checksum(
    models: Iterable[int],
    ids: Iterable[bytes],
    seqs: Iterable[int],
    fingerprints: Iterable[int],
    kinds: Iterable[int],
    labels: Iterable[int | None],
) -> int:
    """The checksum over some rows, given by columns: the sum of all their numbers and of the CRC-32 of each id.

    It is a sum so that rows can be added and removed in any order. It always changes when one bit of a number flips, or
    up to 32 neighbouring bits of an id.

    >>> one, other = checksum([1], [b"a"], [7], [0], [0], [None]), checksum([1], [b"b"], [8], [0], [0], [None])
    >>> checksum([1, 1], [b"b", b"a"], [8, 7], [0, 0], [0, 0], [None, None]) == one + other
    True
    """
    known = [label for label in labels if label is not None]
    numbers = sum(models) + sum(seqs) + sum(fingerprints) + sum(kinds) + sum(known) + len(known)
    return (sum(map(crc32, ids)) + numbers) % MODULUS


class _Checksum:
    """`checksum` for SQLite. Damaged rows, which may lack a number, get a wrong checksum instead of an error."""

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
            self._total, self._rows = int(self._total + added) % MODULUS, []


def add_checksum(db: sqlite3.Connection) -> None:
    """Let queries of a connection use CHECKSUM, also that of id_pieces.py."""
    db.create_aggregate("ids_checksum", 6, _Checksum)
    id_pieces.add_checksum(db)


class Ids:
    """Writes both tables. The caller begins and ends the transactions. checksum: the checksum over all ids. runs: the
    ids of events."""

    def __init__(self, db: Database, checksum: int, forgotten: Mapping[int, Forgotten]) -> None:
        self._db = db.connection
        self.checksum = checksum
        self._forgotten = forgotten
        self.runs = Runs(db, forgotten)
        self._changing = db.models_in("ids")
        """Models that have rows in `ids`, or had some."""

    def learn(self, model: int, new: EventIds) -> None:
        """Insert new ids of events; IdsTakenError if one of them stands for something."""
        if not new.ids:
            return
        if model in self._changing:
            rows = rows_of(model, new.ids.tolist())
            query = f"SELECT 1 FROM ids WHERE {rows.condition} LIMIT 1"  # noqa: S608  # of ours
            if self._db.execute(query, rows.values).fetchall():
                raise IdsTakenError
        added = self.runs.insert(model, new)
        if added is None:
            raise IdsTakenError
        self.count(added)

    def insert(self, model: int, ids: Sequence[IdRow]) -> None:
        """Insert new ids of waiting predictions; IdsTakenError if one of them stands for something."""
        if not ids:
            return
        if self.runs.find(model, [id_ for id_, *_ in ids]):
            raise IdsTakenError
        self._changing.add(model)
        # Sorted, because random ids then share pages of the tree (measured, 8,000 at once: 3.1 us an id, unsorted 4.6).
        ids = sorted(ids, key=itemgetter(0))
        rest = len(ids) % AT_ONCE
        try:
            # Few statements, because each gives up the GIL and must win it back. An id takes 0.4 us as values. As JSON,
            # one statement for any number of ids, it takes 1.2 us.
            for start in range(rest, len(ids), AT_ONCE):
                some = chain.from_iterable(ids[start : start + AT_ONCE])
                self._db.execute(_INSERT_SOME, (model, *some))
            if rest:
                self._db.execute(_INSERT, (model, _as_json(ids[:rest])))
        except sqlite3.IntegrityError:
            raise IdsTakenError from None
        self.count(_checksum(model, ids))

    def change(self, model: int, ids: Sequence[IdRow]) -> None:
        """Change what ids stand for. The caller has taken their old rows out of the checksum (`leave_out`)."""
        if ids:
            self._changing.add(model)
            forgotten = self._forgotten.get(model, NOTHING).ids
            changed = self._db.execute(_CHANGE, (model, _as_json(ids), forgotten)).rowcount
            if changed != len(ids):
                raise sqlite3.IntegrityError(f"{len(ids) - changed} id(s) already stand for events")
            self.count(_checksum(model, ids))

    def delete(self, rows: Rows) -> int:
        """Delete rows of `ids`, which the caller has taken out of the checksum. How many there were."""
        return self._db.execute(f"DELETE FROM ids WHERE {rows.condition}", rows.values).rowcount  # noqa: S608  # of ours

    def leave_out(self, rows: Rows) -> None:
        """Take rows of `ids` out of the checksum. Call it before the transaction that removes or changes them: one that
        has met an unreadable row can write nothing more in SQLite."""
        self.count(-self.sum(rows))

    def sum(self, rows: Rows) -> int:
        """The checksum over some rows of `ids`. On a damaged page it is wrong, not an error, so nothing else fails."""
        try:
            ((found,),) = self._db.execute(f"{CHECKSUM} WHERE {rows.condition}", rows.values).fetchall()
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CORRUPT:
                raise
            return 0
        return int(found)

    def count(self, checksum: int) -> None:
        """Add to the checksum what was written."""
        self.checksum = (self.checksum + checksum) % MODULUS


def _checksum(model: int, rows: Sequence[IdRow]) -> int:
    ids, seqs, fingerprints, kinds, labels = zip(*rows, strict=True)
    return checksum(repeat(model, len(ids)), map(str.encode, ids), seqs, fingerprints, kinds, labels)


def _as_json(ids: Sequence[IdRow]) -> str:
    return msgspec.json.encode(ids).decode()
