"""Where in the log the rows of each model stand.

The log is in the order of the commits, whatever the model. A row of it that went into an index at once would change a
page for each model of the commit: with 1,000 models of 500 rows, a commit of 32 events wrote 540 KB instead of 40. So
the index follows, many rows at a time, in its own order. Where newer rows stand is in memory, 16 bytes a row.

    log_index   model 1, first_seq 1 -> row 1048576; model 1, first_seq 3 -> row 2097152; model 2, ...
    indexed     1 | 2097152             every row up to this number is in the index

Entries beyond `indexed` do not count: they are of an indexing that is not at its end, or that a crash has ended.
indexing.py writes it.
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_right
from collections.abc import Generator, Iterator
from typing import Any

from service.storage.database import Database

ASKED_ROWS = 500
"""New rows that one query reads."""
MOST = 2**63 - 1
_INDEXED = "log_index AS found JOIN batches USING (number) WHERE found.model = ? AND found.number <= ?"
_MODELS = """
WITH RECURSIVE found (model) AS (
    SELECT min(model) FROM log_index
    UNION ALL
    SELECT (SELECT min(model) FROM log_index WHERE model > found.model) FROM found WHERE found.model IS NOT NULL)
SELECT model FROM found WHERE model IS NOT NULL
"""
"""It takes one index seek for each model."""
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
        self.indexed = 0
        """Every row up to this number is in the index."""
        self.seen = 0
        """The number of the newest row."""
        self.new: dict[int, tuple[array[int], array[int]]] = {}
        """Of the rows beyond `indexed`, by model: their first seqs and their numbers, in order."""
        self.new_rows = 0

    def refresh(self) -> LogIndex:
        """Read what was written since."""
        wrong = "the row that says how much of the log is indexed has a wrong checksum"
        rows = self._db.whole(wrong, "SELECT number, checksum FROM indexed WHERE one = ?", 1)
        self.advance(*next(rows, (0,)))
        query = "SELECT number, model, first_seq FROM batches WHERE number > ? ORDER BY number"
        for row in self._db.rows(query, self.seen):
            self.add(*row)
        return self

    def add(self, number: int, model: int, first_seq: int) -> None:
        """A row was committed."""
        there = self.new.get(model)
        if there is None:
            there = self.new[model] = array("q"), array("q")
        there[0].append(first_seq)
        there[1].append(number)
        self.seen = number
        self.new_rows += 1

    def advance(self, indexed: int) -> None:
        """Every row up to a number is in the index now, and need not be in memory."""
        if indexed != self.indexed:
            self.indexed, self.seen = indexed, max(self.seen, indexed)
            for model, (_, numbers) in list(self.new.items()):
                self._remove(model, bisect_right(numbers, indexed))

    def forget(self, model: int, up_to: int) -> None:
        """The rows of a model that begin up to a seq are gone."""
        if model in self.new:
            self._remove(model, bisect_right(self.new[model][0], up_to))

    def _remove(self, model: int, count: int) -> None:
        """Remove the first new rows of a model."""
        first_seqs, numbers = self.new[model]
        del first_seqs[:count], numbers[:count]
        self.new_rows -= count
        if not numbers:
            del self.new[model]

    def new_of(self, model: int) -> tuple[array[int], array[int]]:
        """The new rows of a model: first seqs and numbers."""
        return self.new.get(model, _NONE)

    def models(self) -> set[int]:
        """The models with rows."""
        return {model for (model,) in self._db.rows(_MODELS)} | self.new.keys()

    def rows(self, columns: str, model: int, after: int) -> Generator[tuple[Any, ...]]:
        """The rows of a model that begin after a seq, in order. `columns`: SQL, of the table `batches`."""
        query = f"SELECT {columns} FROM {_INDEXED} AND found.first_seq > ? ORDER BY found.first_seq"  # noqa: S608
        yield from self._db.rows(query, model, self.indexed, after)
        first_seqs, numbers = self.new_of(model)
        for start in range(bisect_right(first_seqs, after), len(numbers), ASKED_ROWS):
            yield from self._numbered(columns, numbers[start : start + ASKED_ROWS])

    def newest(self, columns: str, model: int, up_to: int = MOST) -> tuple[Any, ...] | None:
        """The newest row of a model, of those that begin up to a seq."""
        first_seqs, numbers = self.new_of(model)
        if (place := bisect_right(first_seqs, up_to)) > 0:
            return next(self._numbered(columns, numbers[place - 1 : place]), None)
        query = f"SELECT {columns} FROM {_INDEXED} AND found.first_seq <= ? ORDER BY found.first_seq DESC LIMIT 1"  # noqa: S608
        return next(self._db.rows(query, model, self.indexed, up_to), None)

    def _numbered(self, columns: str, numbers: array[int]) -> Iterator[tuple[Any, ...]]:
        """The rows with these numbers, in this order."""
        query = f"SELECT {columns} FROM json_each(?) AS wanted CROSS JOIN batches ON number = wanted.value"  # noqa: S608
        return self._db.rows(query, json.dumps(numbers.tolist()))

    def wrong(self) -> list[str]:
        """What is wrong with the index. It reads all of it. Empty if nothing is."""
        self.refresh()
        ((lost,),) = self._db.rows(_LOST, self.indexed)
        return [f"{lost} row(s) of the log are missing in its index"] if lost else []
