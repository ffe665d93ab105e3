"""Adds the rows of the log to its index, many at a time. log_index.py describes it."""

from __future__ import annotations

from bisect import bisect_right
from itertools import repeat
from typing import NamedTuple

from service.storage.commits import Commits
from service.storage.log_index import LogIndex

INDEXED_ROWS = 64_000
"""New rows from which they are indexed. With more, fewer pages are written a row, and a start has more to read."""
INDEXED_BYTES = 64 << 20
"""The same by their size: a start reads their beginnings, and few rows of thousands of events fill many pages."""
STEPS = 32
"""Steps of an indexing, about. So a portion grows with the rows that wait: thousands of models may add as many in each
turn."""


class _UnderWay(NamedTuple):
    """An indexing of all rows up to a number. models: those with entries to add, the next one last. after: the number
    up to which the rows of that one are added."""

    up_to: int
    models: list[int]
    after: int = 0


class Indexing:
    """Adds entries through the one writer, a portion at a time, so that learning goes on between them."""

    def __init__(self, commits: Commits, index: LogIndex) -> None:
        self._commits = commits
        self._index = index
        self._under_way: _UnderWay | None = None

    @property
    def due(self) -> bool:
        enough = self._index.new_rows >= INDEXED_ROWS or self._index.new_bytes >= INDEXED_BYTES
        return enough or self._under_way is not None

    def step(self) -> None:
        """Add the next entries, in the order of the index, so that each page of it is changed once."""
        under_way = self._under_way or _UnderWay(self._index.seen, sorted(self._index.new, reverse=True))
        up_to, models, after = under_way
        entries, portion = list[tuple[int, int, int]](), -(-self._index.new_rows // STEPS)
        left = models.copy()
        while left and len(entries) < portion:
            first_seqs, numbers = self._index.new_of(left[-1])
            start, end = bisect_right(numbers, after), bisect_right(numbers, up_to)
            stop = min(end, start + portion - len(entries))
            entries += zip(repeat(left[-1]), first_seqs[start:stop], numbers[start:stop], strict=False)
            after = numbers[stop - 1] if stop < end else 0
            if stop == end:
                left.pop()
        with self._commits.transaction() as db:
            db.executemany("INSERT OR REPLACE INTO log_index VALUES (?, ?, ?)", entries)
            if not left:
                self._commits.replace("indexed", 1, up_to)
                later = db.execute("SELECT count(*) FROM batches WHERE number > ?", (up_to,))
                ((self._commits.new_rows,),) = later.fetchall()
        self._under_way = _UnderWay(up_to, left, after) if left else None
        if not left:
            self._index.refresh()
