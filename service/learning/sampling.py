"""Samples the series: at the end of each bucket, a row for each model that changed."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from service.learning.model import Model
from service.learning.telemetry import Telemetry
from service.storage.series import BUCKET_SECONDS, Mark, Piece, Row

if TYPE_CHECKING:
    from core.auto import Auto

PIECE = 100
"""Models sampled and written at once; takes a millisecond."""
MOST_IN_A_BUCKET = 1_000
"""Models written per bucket. If more have changed, they take turns, and their rows cover several buckets."""
TIDIED = 10
"""Models whose old rows are merged per bucket."""
TIDY_SECONDS = 60
"""Least time between two rounds of merging over all models."""


class _Counts(NamedTuple):
    """A model's counts so far; rows store the differences."""

    learned: int = 0
    predicted: int = 0
    waiting: int = 0
    scored: int = 0
    loss: float = 0.0
    served: int = 0
    served_loss: float = 0.0
    delays: int = 0
    delay: float = 0.0

    def differs(self, model: Model) -> bool:
        """Whether the model has changed since."""
        return model.learned != self.learned or model.predicted != self.predicted or model.waiting != self.waiting


class Sampler:
    """Samples the models and returns the rows to write.

    `now` is in seconds since 1970. Setting the clock makes a bucket shorter or longer.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._bucket = -1
        self._ended = 0.0
        """The end of the previous bucket."""
        self._left = 0
        """Models that may still be written for this bucket."""
        self._known: dict[Model, _Counts] = {}
        self._pending: dict[Model, float] = {}
        """Models that changed, and the time from which their next row counts."""
        self._marks: list[Mark] = []
        self._untidied: list[int] = []
        self._tidied_at = 0.0
        self._models = 0

    def begin(self, now: float, models: Collection[Model]) -> None:
        """Start sampling: the service has started with these models."""
        self._bucket, self._ended = int(now // BUCKET_SECONDS), now
        self._known = {model: _counts(model) for model in models}
        self._marks.append(Mark(0, int(now), 0, "start"))

    def mark_snapshot(self, now: float, model: Model) -> None:
        """Mark a model's new snapshot; the next piece carries the mark."""
        self._marks.append(Mark(model.stored.key, int(now), model.snapshot_seq, "snapshot"))
        self._telemetry.snapshot_at = time.monotonic()

    def due_in(self, now: float) -> float:
        """Seconds until the bucket ends; 0 if it has ended and not all of it is written."""
        if now // BUCKET_SECONDS != self._bucket or (self._pending and self._left):
            return 0.0
        return BUCKET_SECONDS - now % BUCKET_SECONDS

    def piece(self, now: float, models: Collection[Model]) -> Piece | None:
        """What to write now; None if there is nothing before the bucket ends."""
        bucket = int(now // BUCKET_SECONDS)
        if bucket != self._bucket:
            self._bucket = bucket
            self._end_bucket(bucket * BUCKET_SECONDS, models)
        return self._next_piece() if self._pending and self._left else None

    def last_piece(self, now: float, models: Collection[Model]) -> Piece | None:
        """The rows of the unfinished bucket, when the service stops."""
        self._end_bucket(math.ceil(now), models)
        return self._next_piece() if self._pending else None

    def _end_bucket(self, end: float, models: Collection[Model]) -> None:
        """Find the models that changed."""
        began, self._ended = self._ended, end
        self._left = MOST_IN_A_BUCKET
        known, pending, none = self._known, self._pending, _Counts()
        self._pending = {model: pending.get(model, began) for model in models if known.get(model, none).differs(model)}
        self._models = len(models)
        if not self._untidied and end - self._tidied_at >= TIDY_SECONDS:
            self._untidied, self._tidied_at = [model.stored.key for model in models], end
            self._known = {model: known[model] for model in models if model in known}  # the rest were deleted

    def _next_piece(self) -> Piece:
        count = min(PIECE, self._left, len(self._pending))
        taken = [(model, self._pending.pop(model)) for model in list(self._pending)[:count]]
        self._left -= count
        p50, p99 = self._telemetry.commit_ms(0.5, 0.99, last_seconds=BUCKET_SECONDS)
        rows = [self._row(model, since, p50, p99) for model, since in taken]
        marks, self._marks = self._marks, []
        tidied: list[int] = []
        if not self._pending or not self._left:  # the bucket's last
            tidied, self._untidied = self._untidied[:TIDIED], self._untidied[TIDIED:]
        return Piece(int(self._ended), rows, marks, tidied, self._models)

    def _row(self, model: Model, since: float, p50: float | None, p99: float | None) -> Row:
        before, after = self._known.get(model, _Counts()), _counts(model)
        self._known[model] = after
        scores = model.scores.brief()
        return Row(
            model.stored.key,
            t=int(self._ended),
            seconds=max(1, round(self._ended - since)),
            seq=model.learner.seq,
            features=model.learner.n_features,
            learned=after.learned - before.learned,
            predicted=after.predicted - before.predicted,
            scored=after.scored - before.scored,
            loss=after.loss - before.loss,
            loss_total=scores.log_loss,
            loss_window=scores.loss_window,
            accuracy_window=scores.accuracy_window,
            entropy=scores.base_rate_loss_window,
            served=after.served - before.served,
            served_loss=after.served_loss - before.served_loss,
            waiting=after.waiting,
            delays=after.delays - before.delays,
            delay=after.delay - before.delay,
            commit_p50_ms=p50,
            commit_p99_ms=p99,
            shares=None if model.learner.auto is None else _shares(model.learner.auto),
        )


def _counts(model: Model) -> _Counts:
    scored, loss = model.scores.totals()
    served, served_loss = model.joins.scores.totals()
    return _Counts(
        model.learned, model.predicted, model.waiting, scored, loss, served, served_loss, *model.joins.delay()
    )


def _shares(auto: Auto) -> str:
    """The weight of each group of learners, as JSON. A group of the second bank is named `... again`."""
    shares: dict[str, float] = {}
    for learner in auto.learners():
        group = learner["group"] + (" again" if learner["bank"] > 1 else "")
        shares[group] = shares.get(group, 0.0) + learner["weight"]
    return msgspec.json.encode({group: round(share, 4) for group, share in shares.items()}).decode()
