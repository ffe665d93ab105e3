"""The ids of events, in sorted runs: a log-structured merge tree of tables in SQLite.

An event's id stands for the event for good, so its row is written once and never changed. (Ids of predictions change,
and have a table of their own: ids.py.) As rows of a B-tree, random ids touch most of its pages in each commit: with
1,000,000 ids there, an event with an id took 20 times as long as one without, and wrote 14 KB. So:

    a commit      appends one row for each model, with all its new ids, to `new_ids`
    a flush       moves the new ids of a model to a run, in `event_ids`, when there are 64,000
    a merge       moves eight runs of about the same size to one, a slice at a time

A row is a piece: some ids with what they stand for, sorted by a 64-bit hash of the id; the full id decides. The pieces
of a run are sorted too: `place` is a lower bound of a piece's hashes, and the next piece's place an upper one. On disk,
for a model 1 with two commits that are not flushed, and one run:

    new_ids     number | model | ids | payload
                7      | 1     | 3   | see packing.py
                8      | 1     | 1   | ...
    event_ids   model | run | place                | ids | payload
                1     | 4   | -9187343239835811000 | 500 | ...
                1     | 4   | -9168123000120045671 | 501 | ...

Each step of a flush or a merge is one commit: it removes ids where they were and writes them where they will be. So at
each moment every id is in exactly one place, and the checksum over all ids is the same before and after. A step that a
kill or a power cut ends was not taken. No note of a merge that is under way is on disk, since none is needed.

In memory are the new ids, and a filter that says of nearly every id that nobody sent before, without a look at the
disk, that it is not there. After a start the filter is read from the runs, by and by. Until then, each id is looked up.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np

from service import failures
from service.storage.database import Database
from service.storage.folder import failure_of
from service.storage.forgotten import NOTHING, Forgotten
from service.storage.id_filter import Filter
from service.storage.id_pieces import END, PIECE, EventIds, Piece
from service.texts import Texts

spared = logging.getLogger("logstep.damage")

FILTERED = 32
"""Pieces that one step reads into the filter."""
LARGE = 500
"""Ids of a row that is not flushed, from which it is searched by itself. The ids of smaller ones, of which there may be
thousands, are in a dict."""

# In a damaged row a number can be anything.
_ALL_NEW = "SELECT number, model, ids, payload FROM new_ids WHERE typeof(model) = 'integer'"
_ALL_RUNS = """
SELECT model, run, count(*) FROM event_ids WHERE typeof(model) = 'integer' AND typeof(run) = 'integer'
GROUP BY model, run
"""
_NEXT_PIECES = """
SELECT rowid, model, ids, payload FROM event_ids WHERE rowid > ? AND typeof(model) = 'integer' ORDER BY rowid LIMIT ?
"""


class Found(NamedTuple):
    """What an event's id stands for."""

    seq: int
    fingerprint: int
    label: int


class Bounds(NamedTuple):
    """Which hashes a piece may have: from its place to below the next piece's. A damaged id may have another. Where it
    is nobody finds it, but moved by its hash it would hide others."""

    place: int
    end: int


@dataclass(slots=True)
class OfModel:
    """The ids of a model. new: the pieces that are not flushed, sorted, by the number of their row. runs: how many
    pieces each run has, about."""

    new: dict[int, Piece] = field(default_factory=dict)
    runs: dict[int, int] = field(default_factory=dict)
    _large: list[int] = field(default_factory=list)
    _rows: dict[str, int] = field(default_factory=dict)

    def next_run(self) -> int:
        return max(self.runs, default=0) + 1

    def add(self, number: int, piece: Piece) -> None:
        """Add a row that is not flushed."""
        self.new[number] = piece
        if len(piece) < LARGE:
            self._rows.update(dict.fromkeys(piece.ids, number))
        else:
            self._large.append(number)

    def parts(self, wanted: Piece) -> Iterator[tuple[Piece, Piece]]:
        """The pieces that may have some of these ids, each with these."""
        yield from ((self.new[number], wanted) for number in self._large)
        found: dict[int, list[int]] = {}
        for i, id_ in enumerate(wanted.ids if self._rows else ()):
            if (number := self._rows.get(id_)) is not None:
                found.setdefault(number, []).append(i)
        yield from ((self.new[number], wanted.take(np.array(places))) for number, places in found.items())

    def forget_new(self) -> None:
        """All are flushed."""
        self.new, self._large, self._rows = {}, [], {}


class Runs:
    """The tables `new_ids` and `event_ids`. The caller begins and ends the transactions. models: what each model has.
    new_ids, new_rows: how many ids and rows are not flushed, of all models."""

    def __init__(self, db: Database, forgotten: Mapping[int, Forgotten]) -> None:
        self._database = db
        self._forgotten = forgotten
        self._db = db.connection
        self.models: dict[int, OfModel] = {}
        self.new_ids = self.new_rows = 0
        self._filter: Filter | None = None
        self._next_filter: Filter | None = None
        self._filtered = 0
        """The rowid up to which the next filter has what is on disk."""
        self._written: list[tuple[int, int, Piece]] = []
        """The model, the number of the row and its piece: what was inserted in this transaction."""
        self._load()

    def _load(self) -> None:
        rows = self._database.rows
        for model, run, pieces in rows(_ALL_RUNS):
            self.models.setdefault(model, OfModel()).runs[run] = pieces
        for number, model, ids, payload in rows(_ALL_NEW):
            self._remember(model, number, self._decoded(ids, payload).sorted())
        self._next_filter = self._with_new_ids()

    @property
    def _stored(self) -> int:
        """How many ids there are, about."""
        return PIECE * sum(sum(has.runs.values()) for has in self.models.values()) + self.new_ids

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise failure_of(error) from error

    def read(self, model: int, run: int, after: int | None, count: int) -> list[tuple[Bounds, Piece]]:
        """The first pieces of a run behind a place, at most `count`, and which hashes each may have. LogDamaged if they
        cannot be read."""
        query = (
            "SELECT place, ids, payload FROM event_ids WHERE model = ? AND run = ? AND place >= ? "
            "ORDER BY place LIMIT ?"
        )
        first = -END if after is None else after + 1
        rows = list(self._database.rows(query, model, run, first, count + 1)) if first < END else []
        ends = [place for place, _, _ in rows[1:]] + [END]
        return [
            (Bounds(place, end), self._decoded(ids, payload).sorted())
            for (place, ids, payload), end in zip(rows[:count], ends, strict=False)
        ]

    def _decoded(self, ids: int, payload: bytes) -> Piece:
        """The piece of a row; an empty one if the row is damaged. The checksum over all ids then tells of it."""
        piece = Piece.decode(ids, payload)
        if piece is None:
            spared.warning("a row with ids of events cannot be read; events with these ids can be learned again")
            return Piece(np.empty((4, 0), np.int64), Texts.of([]))
        return piece

    # -- looking up

    def find(self, model: int, ids: Sequence[str]) -> dict[str, Found]:
        """What these ids of a model stand for; without those that are not here."""
        if model not in self.models or not ids:
            return {}
        nothing = np.zeros(len(ids), np.int64)
        return self._find(model, Piece.of(EventIds(Texts.of(ids), nothing, nothing, nothing)))

    def _find(self, model: int, piece: Piece) -> dict[str, Found]:
        has, found = self.models.get(model), dict[str, Found]()
        if has is None:
            return found
        if self._filter is not None:
            piece = piece.where(self._filter.may_know(model, piece))
        if not len(piece):
            return found
        wanted = piece.sorted()
        for part, some in has.parts(wanted):
            self._note(model, found, part, some)
        if found:
            wanted = wanted.where(np.array([id_ not in found for id_ in wanted.ids]))
        for run in has.runs:
            self._find_in_run(model, run, wanted, found)
        return found

    def _find_in_run(self, model: int, run: int, wanted: Piece, found: dict[str, Found]) -> None:
        query = (
            "SELECT ids, payload, (SELECT min(place) FROM event_ids WHERE model = ?1 AND run = ?2 AND place > ?3) "
            "FROM event_ids WHERE model = ?1 AND run = ?2 AND place <= ?3 ORDER BY place DESC LIMIT 1"
        )
        first = 0
        while first < len(wanted):
            rows = self._rows(query, model, run, int(wanted.hashes[first]))
            if not rows:  # it is below the first piece
                first += 1
                continue
            ((count, payload, end),) = rows
            stop = len(wanted) if end is None else max(first + 1, int(np.searchsorted(wanted.hashes, end)))
            self._note(model, found, self._decoded(count, payload).sorted(), wanted.part(first, stop))
            first = stop

    def _note(self, model: int, found: dict[str, Found], piece: Piece, wanted: Piece) -> None:
        places, forgotten = piece.find(wanted), self.forgotten(model)
        here = np.flatnonzero(places >= 0)
        if len(here):
            of_these = zip(wanted.ids.take(here), *piece.numbers[1:, places[here]].tolist(), strict=True)
            found.update((id_, Found(seq, *marks)) for id_, seq, *marks in of_these if seq > forgotten)

    def forgotten(self, model: int) -> int:
        """The seq up to which a model's ids are forgotten. Such an id may be in a second run anew, so ids that are
        moved to one piece lose it."""
        return self._forgotten.get(model, NOTHING).ids

    # -- writing

    def insert(self, model: int, new: EventIds) -> int | None:
        """Write new ids, and return what they add to the checksum. None, and nothing is written, if one is here, or
        comes twice."""
        piece = Piece.of(new).sorted()
        if piece.repeats() or self._find(model, piece):
            return None
        for filter_ in (self._filter, self._next_filter):
            if filter_ is not None:
                filter_.add(model, piece)
        row = (model, len(piece), piece.encode())
        number = self._db.execute("INSERT INTO new_ids (model, ids, payload) VALUES (?, ?, ?)", row).lastrowid
        assert number is not None  # noqa: S101  # a row was inserted
        self._written.append((model, number, piece))
        return piece.checksum(model)

    def settle(self, *, committed: bool) -> None:
        """Keep in mind what was inserted, or not, after the end of a transaction."""
        if committed:
            for written in self._written:
                self._remember(*written)
        self._written.clear()

    def _remember(self, model: int, number: int, piece: Piece) -> None:
        self.models.setdefault(model, OfModel()).add(number, piece)
        self.new_ids += len(piece)
        self.new_rows += 1

    def write(self, model: int, run: int, ids: Piece) -> int:
        """Write ids to a run, sorted. Returns in how many pieces."""
        cuts = ids.cuts()
        places, sizes = ids.hashes[cuts[:-1]].tolist(), np.diff(cuts).tolist()
        rows = zip(repeat(model), repeat(run), places, sizes, ids.encode_cut(cuts), strict=False)
        self._db.executemany("INSERT INTO event_ids VALUES (?, ?, ?, ?, ?)", rows)
        return len(sizes)

    def replace(self, model: int, run: int, place: int, piece: Piece) -> None:
        """Write a piece anew, in its place; remove it if it is empty."""
        if not len(piece):
            self._db.execute("DELETE FROM event_ids WHERE model = ? AND run = ? AND place = ?", (model, run, place))
            return
        update = "UPDATE event_ids SET ids = ?, payload = ? WHERE model = ? AND run = ? AND place = ?"
        self._db.execute(update, (len(piece), piece.encode(), model, run, place))

    def remove_new(self, model: int) -> None:
        """Remove a model's new ids; `forget_new` when that is committed."""
        numbers = self.models[model].new
        self._db.executemany("DELETE FROM new_ids WHERE number = ?", [(number,) for number in numbers])

    def forget_new(self, model: int) -> None:
        """A model's new ids are not in memory any more."""
        has = self.models[model]
        self.new_ids -= sum(map(len, has.new.values()))
        self.new_rows -= len(has.new)
        has.forget_new()

    def some(self, model: int, count: int) -> tuple[list[int], int]:
        """The rowids of some pieces of a model's runs, at most `count`, and what they add to the checksum. Damaged ones
        count wrong instead of an error, so that they can be removed."""
        where, checksum = "FROM event_ids WHERE model = ? LIMIT ?", 0
        try:
            for _, ids, payload in self._database.rows(f"SELECT rowid, ids, payload {where}", model, count):
                checksum += self._decoded(ids, payload).checksum(model)
        except failures.LogDamaged:
            checksum = 0
        return [rowid for (rowid,) in self._database.rows(f"SELECT rowid {where}", model, count)], checksum

    def remove_rows(self, rowids: Sequence[int]) -> None:
        self._db.executemany("DELETE FROM event_ids WHERE rowid = ?", [(rowid,) for rowid in rowids])

    def remove_unreadable(self) -> None:
        """Remove what `_load` has not read."""
        self._db.execute("DELETE FROM event_ids WHERE typeof(model) <> 'integer' OR typeof(run) <> 'integer'")
        self._db.execute("DELETE FROM new_ids WHERE typeof(model) <> 'integer'")

    # -- the filter

    def _with_new_ids(self) -> Filter:
        """A filter with the ids that are not flushed."""
        filter_ = Filter.for_ids(self._stored)
        for model, has in self.models.items():
            for piece in has.new.values():
                filter_.add(model, piece)
        return filter_

    @property
    def filter_due(self) -> bool:
        """Whether `read_filter` has something to do."""
        if self._next_filter is not None:
            return True
        return self._filter is not None and self._filter.full and self._filter.needs_another(self._stored)

    def read_filter(self) -> None:
        """Read some pieces into the next filter; use it when it has all. Ids may move meanwhile: to a row behind all
        others (`Merging`), so it misses none. LogDamaged if they cannot be read."""
        if self._next_filter is None:
            self._next_filter = self._with_new_ids()
            self._filtered = 0
        rows = list(self._database.rows(_NEXT_PIECES, self._filtered, FILTERED))
        for rowid, model, ids, payload in rows:
            self._next_filter.add(model, self._decoded(ids, payload))
            self._filtered = rowid
        if len(rows) < FILTERED:
            self._filter, self._next_filter = self._next_filter, None
