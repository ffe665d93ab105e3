"""Where in the log the rows of each model stand.

The log is in the order of the commits, whatever the model. A row of it that went into an index at once would change a
page for each model of the commit: with 1,000 models of 500 rows, a commit of 32 events wrote 540 KB instead of 40. So
the index follows, many rows at a time, in its own order (indexing.py). Where newer rows stand is in memory: 16 bytes a
row, and 400 a model that has some.

    log_index   model 1, first_seq 1 -> row 1048576; model 1, first_seq 3 -> row 2097152; model 2, ...
    indexed     1 | 2097152             every row up to this number is in the index
    log_end     ... | 17                how many rows come after that

Entries of later rows do not count: they are of an indexing that is not at its end, or that a crash has ended.

SQLite does not notice if damage hides a row or an entry. A row is missed by its entry, which then leads nowhere, or by
the count of later rows. An entry is missed by the gap that it leaves in a model's rows. A model's last entry leaves no
gap, so a start also reads the newest rows of the log, whatever the index says.
"""

from __future__ import annotations

import json
import struct
from array import array
from bisect import bisect_right
from collections.abc import Generator, Iterator
from typing import Any

from service.storage.database import Database

FIRST_ASKED, MOST_ASKED = 8, 500
"""New rows that a query reads: a few at first, because often one is enough."""
MOST = 2**63 - 1
_FOUND = (
    "batches.model IS found.model AND batches.first_seq IS found.first_seq FROM log_index AS found "
    "LEFT JOIN batches USING (number) WHERE found.model = ?"
)
"""A row and its entry are written and removed together, and a query sees one moment."""
_COUNTED = """
SELECT (SELECT new_rows FROM log_end),
    (SELECT count(*) FROM batches WHERE number > ifnull((SELECT number FROM indexed), 0))
"""
_LOST = """
SELECT count(*) FROM batches AS row WHERE number <= ? AND NOT EXISTS (
    SELECT 1 FROM log_index AS found WHERE found.model = row.model AND found.first_seq = row.first_seq
    AND found.number = row.number)
"""
_NONE = array("q"), array("q")


class LogIndex:
    """Finds the rows of a model. `refresh` sees what others have written since."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._begin(0)

    def _begin(self, indexed: int) -> None:
        self.indexed = indexed
        """Every row up to this number is in the index."""
        self.seen = indexed
        """The number of the newest row."""
        self.new: dict[int, tuple[array[int], array[int]]] = {}
        """Of the rows beyond `indexed`, by model: their first seqs and their numbers, in order."""
        self.new_rows = self.new_bytes = 0

    def refresh(self) -> LogIndex:
        """Read what was written since."""
        try:
            self._refresh()
        except (TypeError, ValueError, OverflowError, struct.error) as error:  # damage can make anything of a number
            raise self._db.damaged(f"a row of the log, or of its index, cannot be read: {error}") from None
        return self

    def _refresh(self) -> None:
        wrong = "the row that says how much of the log is indexed has a wrong checksum"
        rows = self._db.whole(wrong, "SELECT number, checksum FROM indexed WHERE one = ?", 1)
        (indexed,) = next(rows, (0,))  # a new log has none
        if indexed != self.indexed:
            self._begin(indexed)
        query = "SELECT number, model, first_seq, length(payload) FROM batches WHERE number > ? ORDER BY number"
        for row in self._db.rows(query, self.seen):
            self.add(*row)

    def add(self, number: int, model: int, first_seq: int, size: int) -> None:
        """A row of so many bytes was committed."""
        there = self.new.get(model)
        if there is None:
            there = self.new[model] = array("q"), array("q")
        there[0].append(first_seq)
        there[1].append(number)
        self.seen = number
        self.new_rows += 1
        self.new_bytes += size

    def forget(self, model: int, up_to: int) -> None:
        """The rows of a model that begin up to a seq are gone."""
        if model in self.new:
            first_seqs, numbers = self.new[model]
            count = bisect_right(first_seqs, up_to)
            del first_seqs[:count], numbers[:count]
            self.new_rows -= count
            if not numbers:
                del self.new[model]

    def new_of(self, model: int) -> tuple[array[int], array[int]]:
        """The new rows of a model: first seqs and numbers."""
        return self.new.get(model, _NONE)

    def models(self) -> set[int]:
        """The models with rows."""
        return self._db.models_in("log_index") | self.new.keys()

    def rows(self, columns: str, model: int, after: int) -> Generator[tuple[Any, ...]]:
        """The rows of a model that begin after a seq, in order. columns: SQL, each of the form `batches.events`."""
        first_seqs, numbers = self.new_of(model)
        end = first_seqs[0] if first_seqs else MOST
        in_order = "AND found.first_seq > ? AND found.first_seq < ? ORDER BY found.first_seq"
        yield from self._indexed(columns, model, in_order, after, end)
        start, count = bisect_right(first_seqs, after), FIRST_ASKED
        while start < len(numbers):
            yield from self._numbered(columns, numbers[start : start + count])
            start, count = start + count, min(8 * count, MOST_ASKED)

    def newest(self, columns: str, model: int, up_to: int = MOST) -> tuple[Any, ...] | None:
        """The newest row of a model, of those that begin up to a seq."""
        first_seqs, numbers = self.new_of(model)
        if (place := bisect_right(first_seqs, up_to)) > 0:
            return next(self._numbered(columns, numbers[place - 1 : place]), None)
        # Without a bound the entry is found by its model alone, so one whose seq is damaged is found too.
        bound, values = ("", ()) if up_to == MOST else ("AND found.first_seq <= ?", (up_to,))
        last_first = f"{bound} ORDER BY found.first_seq DESC LIMIT 1"
        return next(self._indexed(columns, model, last_first, *values), None)

    def _indexed(self, columns: str, model: int, which: str, *values: int) -> Iterator[tuple[Any, ...]]:
        """Rows of a model that the index leads to. which: SQL."""
        query = f"SELECT found.first_seq, {columns}, {_FOUND} {which}"
        for first_seq, *row, is_it in self._db.rows(query, model, *values):
            if not is_it:
                raise self._db.damaged(f"the index does not lead to the events of model number {model} at {first_seq}")
            yield tuple(row)

    def _numbered(self, columns: str, numbers: array[int]) -> Iterator[tuple[Any, ...]]:
        """The rows with these numbers, in this order."""
        query = f"SELECT {columns} FROM json_each(?) AS wanted CROSS JOIN batches ON number = wanted.value"  # noqa: S608
        return self._db.rows(query, json.dumps(numbers.tolist()))

    def check(self) -> None:
        """LogDamaged if rows that are not indexed are missing."""
        for expected, found in self._db.rows(_COUNTED):  # one query, so that both are from one moment
            if expected != found:
                raise self._db.damaged(f"the log has {found} rows that are not indexed, but should have {expected}")

    def wrong(self) -> list[str]:
        """What is wrong with the index. It reads all of it. Empty if nothing is."""
        self.refresh().check()
        ((lost,),) = self._db.rows(_LOST, self.indexed)
        return [f"{lost} row(s) of the log are missing in its index"] if lost else []
