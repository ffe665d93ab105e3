"""Retention: drops old events of the log, and their ids.

It drops whole rows of the log, the oldest first. A recovery needs a snapshot and all events after it. So a row is
dropped only if it is older than the older of the model's two snapshots (or its only one), and only after that snapshot
has been verified. Then a recovery can start from either. The work is done in short pieces, between commits.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from core.spec import duration_seconds
from service import failures
from service.clock import SYSTEM, Clock
from service.learning.model import Model
from service.storage.log import LogRow
from service.storage.store import Store

logger = logging.getLogger("logstep")

FEATURES_PER_EVENT = 10
"""This many features take as many bytes in a snapshot as an event takes in the log, about."""
LOOK_AGAIN_SECONDS = 60.0
"""How often to check a model that has learned nothing since: its events still grow old."""


class Limit(NamedTuple):
    """Which events may be dropped: those up to `seq` that were also written before `written_before`."""

    seq: int
    written_before: float

    def passes(self, row: LogRow) -> bool:
        """Whether a whole row may be dropped."""
        return row.last_seq <= self.seq and row.written_at < self.written_before


class Keep:
    """How much to keep: "all", a number of events ("1000000"), or a time ("30d"); at least `least` events.

    >>> Keep("5000", 1000).limit(last_seq=12_000).seq
    7000
    """

    def __init__(self, text: str, least: int, wall: Callable[[], float] = time.time) -> None:
        timed = text[-1] in "smhd"
        self._wall = wall
        self.all = text == "all"
        self.seconds = duration_seconds(text) if timed else 0.0
        self._events = least if timed or self.all else max(least, int(text))

    def limit(self, last_seq: int, share: float = 1.0) -> Limit:
        """Which events of a log with that last seq may be dropped, if it kept only this `share` of the usual."""
        if self.all:
            return Limit(0, 0.0)
        written_before = self._wall() - share * self.seconds if self.seconds else math.inf
        return Limit(last_seq - int(share * self._events), written_before)


class Retention:
    """Drops old events and ids of the models of a store.

    wanted: keys of the models that need a snapshot, so that the log before it can go.
    """

    def __init__(self, keep_events: str, keep_ids: str, least: int, clock: Clock = SYSTEM) -> None:
        self._events = Keep(keep_events, least, clock.wall)
        self._ids = Keep(keep_ids, least, clock.wall)
        self._clock = clock
        self.wanted: set[int] = set()
        self._looked: dict[int, tuple[tuple[int, int], float]] = {}  # model -> its state at the last check, and when
        self._whole: dict[int, int] = {}  # model -> the seq of its verified snapshot
        self._swept: dict[int, int] = {}  # model -> the seq up to which its ids were dropped

    @property
    def drops(self) -> bool:
        """Whether anything is ever dropped."""
        return not (self._events.all and self._ids.all)

    def pieces(self, store: Store, models: list[Model]) -> Iterator[None]:
        """Check each model once, and drop what is too old: at most one short commit for each step."""
        self.wanted &= {model.stored.key for model in models}  # others were deleted
        for model in models:
            if not self._may_have_more(model):
                continue
            try:
                yield from self._drop_events(store, model)
                yield from self._drop_ids(store, model)
            except failures.LogDamaged as damage:
                logger.warning("model %r: retention drops nothing, because %s", model.name, damage.reason)
            yield

    def _may_have_more(self, model: Model) -> bool:
        """Whether to check a model again. Of many models, most have not changed."""
        state, now = (model.learner.seq, model.snapshot_seq), self._clock.steady()
        before, looked_at = self._looked.get(model.stored.key, (None, 0.0))
        if state == before and now - looked_at < LOOK_AGAIN_SECONDS:
            return False
        self._looked[model.stored.key] = state, now
        return True

    def _drop_events(self, store: Store, model: Model) -> Iterator[None]:
        key = model.stored.key
        last, snapshots = store.log.last_seq(key), store.log.snapshots.seqs(key)
        if self._wants_snapshot(store, model, last, snapshots):
            self.wanted.add(key)
        else:
            self.wanted.discard(key)
        if not snapshots or model.held:
            return
        limit = self.events_limit(store, model, last)
        limit = limit._replace(seq=min(limit.seq, snapshots[-1]))
        oldest = store.log.rows_after(key, store.log.gone(key), 1)
        if not oldest or not limit.passes(oldest[0]):
            return
        if self._whole.get(key) != snapshots[-1]:
            for _ in store.log.snapshots.chunks(key, snapshots[-1]):
                yield
            self._whole[key] = snapshots[-1]
        while not model.held and store.trimming.drop_events(key, *limit, remember=self._ids.seconds):
            yield

    def _wants_snapshot(self, store: Store, model: Model, last: int, snapshots: list[int]) -> bool:
        """Whether another snapshot would make the log shorter.

        A snapshot is due for each half of the events to keep. Then the older of two is never older than those events,
        and the log is as short as possible. A model with many features waits until the events take more room than a
        snapshot.
        """
        key, newest = model.stored.key, snapshots[0] if snapshots else 0
        after = store.log.rows_after(key, newest, 1)
        if not after or not self._events.limit(last, 0.5).passes(after[0]):
            return False
        if last - newest < model.learner.n_features / FEATURES_PER_EVENT:
            return False
        if len(snapshots) < 2:
            return True
        return self._events.limit(last).passes(store.log.rows_after(key, snapshots[-1], 1)[0])

    def events_limit(self, store: Store, model: Model, last: int) -> Limit:
        """Which events of a model may be dropped. last: the seq of the last one in the log."""
        return self._events.limit(last)

    def ids_limit(self, store: Store, model: Model, last: int) -> int:
        """The seq up to which a model's ids of events may be dropped."""
        return up_to(store, model, self._ids.limit(last))

    def _drop_ids(self, store: Store, model: Model) -> Iterator[None]:
        """Check every id of a model, but only if about a third of them could go."""
        key = model.stored.key
        last = store.log.last_seq(key)
        old = self.ids_limit(store, model, last)
        if old <= 0 or old - self._swept.get(key, 0) <= (last - old) / 2:
            return
        id_: str | None = ""
        while id_ is not None:
            id_ = store.trimming.drop_ids(key, old, id_)
            yield
        yield from store.merging.drop(key, old)
        self._swept[key] = old


def up_to(store: Store, model: Model, limit: Limit) -> int:
    """The seq of the last event that a limit lets go."""
    if limit.seq <= 0 or math.isinf(limit.written_before):
        return limit.seq
    return min(limit.seq, store.trimming.seq_written_before(model.stored.key, limit.written_before))
