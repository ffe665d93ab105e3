"""Moves the ids of events to larger runs, and removes those that need not stay. event_ids.py describes the runs.

Each call, and each step of an iterator, is at most one short commit, so that learning goes on between them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping

from service import failures
from service.storage.commits import Commits
from service.storage.event_ids import Bounds
from service.storage.id_pieces import END, Piece

logger = logging.getLogger("logstep")

FLUSHED_IDS = 64_000
"""New ids, of all models, from which they are flushed. One takes 80 bytes of memory in a row of thousands, 200 in one
of hundreds, 1.1 KB alone."""
FLUSHED_ROWS = 4_000
"""Rows of new ids from which they are flushed: commits may have one id each."""
MOVED_IDS = 8_000
"""Ids that a flush moves at least, of several models if one has fewer."""
FAN_IN = 8
"""Runs that are merged to one. With more, ids are written less often, but a look-up has more runs to ask."""
READ = 8
"""Pieces of each run that a step of a merge reads."""
SWEPT = 8
"""Pieces that a step of `drop` reads."""
PURGED = 32
"""Pieces that a step of `purge` removes."""


class Merging:
    """Moves and removes ids through the one writer."""

    def __init__(self, commits: Commits) -> None:
        self._commits = commits
        self._runs = commits.ids.runs
        self._unchecked = set(self._runs.models)
        """Models that may have runs to merge."""
        self._under_way: tuple[int, list[int], int] | None = None
        """A model, the runs of it that are merged, and the new run."""
        self._damaged = False

    # -- flushes

    @property
    def flush_due(self) -> bool:
        return self._runs.new_ids >= FLUSHED_IDS or self._runs.new_rows >= FLUSHED_ROWS

    def flush(self) -> None:
        """Move the new ids of some models, those that have most, to new runs."""
        sizes = {model: sum(map(len, has.new.values())) for model, has in self._runs.models.items() if has.new}
        some, ids = list[int](), 0
        for model in sorted(sizes, key=sizes.__getitem__, reverse=True):
            if ids < MOVED_IDS:
                some.append(model)
                ids += sizes[model]
        self._flush(some)

    def _flush(self, models: Iterable[int]) -> None:
        written = dict[int, int]()
        with self._commits.transaction():
            for model in models:
                has = self._runs.models[model]
                written[model] = self._write(model, has.next_run(), list(has.new.values()))
                self._runs.remove_new(model)
        for model, pieces in written.items():
            self._runs.forget_new(model)
            if pieces:
                has = self._runs.models[model]
                has.runs[has.next_run()] = pieces
                self._unchecked.add(model)

    def _write(self, model: int, run: int, pieces: list[Piece]) -> int:
        """Write the ids of some pieces to a run, without what is forgotten. Returns in how many pieces. In a
        transaction."""
        if not pieces:
            return 0
        all_ = Piece.joined(pieces)
        left = all_.where(all_.seqs > self._runs.forgotten(model))
        if len(left) < len(all_):
            self._commits.ids.count(left.checksum(model) - all_.checksum(model))
        return self._runs.write(model, run, left.sorted()) if len(left) else 0

    # -- merges, and the filter

    @property
    def merge_due(self) -> bool:
        """Whether `merge` has something to do. After damage it has not: look-ups go on without it."""
        while not self._damaged and self._under_way is None and self._unchecked:
            self._under_way = self._next_merge(self._unchecked.pop())
        return not self._damaged and (self._under_way is not None or self._runs.filter_due)

    def _next_merge(self, model: int) -> tuple[int, list[int], int] | None:
        """FAN_IN runs of a model whose sizes are within a factor of FAN_IN."""
        has = self._runs.models.get(model)
        if has is None or len(has.runs) < FAN_IN:
            return None
        tiers: dict[int, list[int]] = {}
        for run, pieces in has.runs.items():
            tiers.setdefault(len(f"{pieces:o}"), []).append(run)
        runs = next((runs for _, runs in sorted(tiers.items()) if len(runs) >= FAN_IN), None)
        if runs is None:
            return None
        new_run = has.next_run()
        has.runs[new_run] = 0
        return model, runs[:FAN_IN], new_run

    def merge(self) -> None:
        """Take one step of a merge, or read some pieces into the filter. After damage, neither any more."""
        try:
            if self._runs.filter_due:
                self._runs.read_filter()
            elif self.merge_due:
                self._merge()
        except failures.LogDamaged as damage:
            self._damaged = True
            reason = damage.reason
            logger.warning("ids of events are damaged (%s) and no longer merged; the log is not affected", reason)

    def _merge(self) -> None:
        """Move the next slice of the hashes: all below the first piece that was not read of any run."""
        assert self._under_way is not None  # noqa: S101  # it is due
        model, runs, new_run = self._under_way
        if model not in self._runs.models:  # it was deleted
            self._under_way = None
            return
        read = {run: self._runs.read(model, run, None, READ) for run in runs}
        end = min((bounds.end for pieces in read.values() for bounds, _ in pieces[-1:]), default=END)
        moved, left = list[Piece](), list[tuple[int, int, Piece]]()
        for run, pieces in read.items():
            for bounds, piece in pieces:
                if bounds.place < end:
                    moved.append(piece.within(bounds.place, min(bounds.end, end)))
                    left.append((run, bounds.place, piece.within(max(bounds.place, end), bounds.end)))
        with self._commits.transaction():
            # Before the others go: so their rowids are the largest, and `read_filter` finds them.
            written = self._write(model, new_run, moved)
            for run, place, rest in left:
                self._runs.replace(model, run, place, rest)
        sizes = self._runs.models[model].runs
        sizes[new_run] += written
        for run, _, rest in left:
            sizes[run] -= not len(rest)
        if end == END:  # nothing is left of the runs
            for run in runs:
                del sizes[run]
            self._under_way = None
            self._unchecked.add(model)

    # -- what need not stay

    def drop(self, model: int, up_to: int) -> Iterator[None]:
        """Remove a model's ids of events up to a seq."""
        has = self._runs.models.get(model)
        if has is None:
            return
        if has.new:
            self._flush([model])
            yield
        run = 0
        while run := min((other for other in has.runs if other > run), default=0):
            after: int | None = None
            while pieces := self._runs.read(model, run, after, SWEPT):
                after = pieces[-1][0].place
                if self._drop_some(model, run, pieces, up_to):
                    yield

    def _drop_some(self, model: int, run: int, pieces: list[tuple[Bounds, Piece]], up_to: int) -> bool:
        """Remove the ids of events up to a seq from these pieces. Whether they had any."""
        left, dropped = list[tuple[int, Piece]](), 0
        for bounds, piece in pieces:
            rest = piece.where(piece.seqs > up_to)
            if len(rest) < len(piece):
                left.append((bounds.place, rest))
                dropped += piece.checksum(model) - rest.checksum(model)
        if left:
            with self._commits.transaction():
                self._commits.ids.count(-dropped)
                for place, rest in left:
                    self._runs.replace(model, run, place, rest)
        return bool(left)

    def purge(self, model: int) -> bool:
        """Remove some ids of a deleted model. Whether it had any."""
        has = self._runs.models.get(model)
        if has is not None:
            with self._commits.transaction():
                self._commits.ids.count(-sum(piece.checksum(model) for piece in has.new.values()))
                self._runs.remove_new(model)
            self._runs.forget_new(model)
            del self._runs.models[model]
        rows, checksum = self._runs.some(model, PURGED)
        if rows:
            with self._commits.transaction():
                self._commits.ids.count(-checksum)
                self._runs.remove_rows(rows)
        return has is not None or bool(rows)

    def accept(self, last_seqs: Mapping[int, int]) -> int:
        """Accept the ids as they are on disk, for each model up to a seq; remove those of other models, and what cannot
        be read. Returns their checksum."""
        checksum = 0
        for model in list(self._runs.models):
            if self._runs.models[model].new:
                self._flush([model])
        with self._commits.transaction():
            self._runs.remove_unreadable()
            for model, has in self._runs.models.items():
                for run in has.runs:
                    after: int | None = None
                    while pieces := self._runs.read(model, run, after, SWEPT):
                        for (place, end), piece in pieces:
                            rest = piece.within(place, end)
                            rest = rest.where(rest.seqs <= last_seqs.get(model, 0))
                            self._runs.replace(model, run, place, rest)
                            checksum += rest.checksum(model)
                            after = place
        return checksum
