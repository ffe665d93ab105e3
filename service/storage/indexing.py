"""Adds the rows of the log to its index, many at a time. log_index.py describes it."""

from __future__ import annotations

from bisect import bisect_right
from itertools import repeat
from typing import NamedTuple

from service.storage.commits import Commits
from service.storage.log_index import LogIndex

INDEXED_ROWS = 64_000
"""New rows from which they are indexed. With more, fewer pages are written a row, and a start has more to read."""
PORTION = 4_000
"""Entries that one short commit adds."""


class _UnderWay(NamedTuple):
    """An indexing of all rows up to a number. models: those with entries to add, in order. after: the number up to
    which the rows of the first one are added."""

    up_to: int
    models: list[int]
    after: int = 0


class Indexing:
    """Adds entries through the one writer. A step is one short commit, so that learning goes on between them."""

    def __init__(self, commits: Commits, index: LogIndex) -> None:
        self._commits = commits
        self._index = index
        self._under_way: _UnderWay | None = None

    @property
    def due(self) -> bool:
        return self._under_way is not None or self._index.new_rows >= INDEXED_ROWS

    def step(self) -> None:
        """Add the next entries, in the order of the index, so that each page of it is changed once."""
        under_way = self._under_way or _UnderWay(self._index.seen, sorted(self._index.new, reverse=True))
        up_to, models, after = under_way
        entries = list[tuple[int, int, int]]()
        left = models.copy()
        while left and len(entries) < PORTION:
            first_seqs, numbers = self._index.new_of(left[-1])
            start, end = bisect_right(numbers, after), bisect_right(numbers, up_to)
            stop = min(end, start + PORTION - len(entries))
            entries += zip(repeat(left[-1]), first_seqs[start:stop], numbers[start:stop], strict=False)
            after = numbers[stop - 1] if stop < end else 0
            if stop == end:
                left.pop()
        with self._commits.transaction() as db:
            db.executemany("INSERT OR REPLACE INTO log_index VALUES (?, ?, ?)", entries)
            if not left:
                self._commits.replace("indexed", 1, up_to)
        self._under_way = _UnderWay(up_to, left, after) if left else None
        if not left:
            self._index.advance(up_to)
