"""A named model in the service: its stored row, its learner, its progressive scores."""

from __future__ import annotations

import contextlib
import math
import time
from array import array
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from core import logistic
from core.batch import Batch
from core.breaker import Watch
from core.copying import Copy
from core.curve import POINTS, Curve, Points
from core.explain import Explanation, explain_served
from core.features import X
from core.learner import Encoded, Learner, Outcome
from core.logistic import Floats
from core.progressive import Brief, Joins, Progressive
from core.spec import Spec
from service.fairness import WIDE, let_go
from service.learning.digest import Digest
from service.storage.log import StoredModel
from service.storage.waiting import Waiting

NOT_A_STATE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What making a learner or scores from an invalid state raises."""

# The cost of replay, measured by tests/benchmarks/recovery.py. It only decides when a snapshot is due.
REPLAY_SECONDS_PER_ROW = 3e-6
REPLAY_SECONDS_PER_EVENT = 0.1e-6
REPLAY_SECONDS_PER_VALUE = 0.02e-6


# A step of a million features takes 9 ms with plain SGD. It takes 40 times as long if values are scaled or the rule
# keeps numbers for each feature, and longer with auto. A step is one call: meanwhile the service serves nobody.
AUTO_FEATURES = 8_000
"""Most features of an event if the rule is auto."""
SLOW_FEATURES = 40_000
"""The same for all other models except plain SGD."""

# Guessing predicts the base rate, the share of label 1, for every event. A useful model has a lower log loss.
LEAST_EVENTS = 200
"""Up to this many events there is no verdict, because a model needs some to begin."""
NOISE = 1.02
"""Margin for the last events: over few events, a model as good as guessing is at times a little worse."""


class Prediction(NamedTuple):
    """A prediction to keep until its label comes. served: float64 that describe what was served, the score first
    (core/explain.py). seq: the model's seq at the prediction. unknown: how many of x's features the model did not know.
    owner: the id of the caller's token, empty if the service asks for none. sees_all: whether that token may see what
    others asked."""

    id: str
    x: X
    seq: int
    served: Floats
    unknown: int
    owner: str
    sees_all: bool = False

    def may_see(self, waiting: Waiting) -> bool:
        """Whether the caller may learn what waits under an id: it is the caller's own, or the caller may see all."""
        return self.sees_all or self.owner == waiting.owner


class Model:
    """A named model: its stored row, its learner, its progressive scores, and its waiting predictions."""

    def __init__(self, stored: StoredModel, window: int) -> None:
        self.stored = stored
        self.learner = Learner(Spec.from_dict(stored.spec))
        self.scores = Progressive(window)
        self.joins = Joins(window)
        self.curve = Curve()
        self.digest = Digest()
        breaker = self.learner.spec.breaker
        self.watch = None if breaker is None else Watch(breaker)
        self.last_seq = 0
        """The seq of the last event in the log. The learner is at this seq too, or is about to step to it."""
        self.waiting = 0
        """How many predictions wait for their labels."""
        self.next_number = 1
        """The number of the next waiting prediction."""
        self.due = math.inf
        """When the oldest waiting prediction times out, or an earlier time: seconds since 1970."""
        self.dropped = 0
        """Predictions that were dropped because their labels did not come in time."""
        self.learned = self.predicted = self.duplicates = 0
        """Since the start: events learned, predictions made, and duplicates (items learned or kept before)."""
        self.learned_at = 0.0
        """When it last learned since the start (monotonic), 0 if it did not."""
        self.predicted_unknown = 0
        """Predictions since the start whose x had features, none of which the model knew."""
        self.not_kept = 0
        """Predictions with an id since the start that were served but not kept, because too many waited."""
        self.snapshot_seq = 0
        self.held = 0
        """How many read its log, as a cross-check does. Meanwhile no snapshot is replaced and no event dropped."""
        self.replay_seconds = 0.0
        """How long replaying the log after the last snapshot would take, about."""

    def __del__(self) -> None:
        learner = vars(self).get("learner")  # there is none if the spec was invalid
        if learner is not None and learner.n_features > WIDE:
            let_go(learner)  # so that the last owner of the model need not wait

    @property
    def name(self) -> str:
        return self.stored.name

    def limit(self, features: int, characters: int) -> None:
        """Limit the features of an event and the length of a name from now on. The log's own events are not limited:
        they kept the limits of their time."""
        known = self.learner.features
        known.max_event, known.max_name = features, characters
        for most, where, here in (
            (AUTO_FEATURES, " where the rule is auto", self.learner.auto is not None),
            (SLOW_FEATURES, ", unless the model is plain SGD", not self.learner.plain),
        ):
            if here and most < known.max_event:
                known.max_event, known.where = most, where

    def in_short(self) -> dict[str, Any]:
        """The model's entry in `GET /models`."""
        scores, spec = self.scores.brief(), self.learner.spec
        return {
            "model": self.name,
            "rule": spec.rule,
            "seq": self.learner.seq,
            "log_loss": scores.log_loss,
            "base_rate_log_loss": scores.base_rate_loss,
            "worse_than_guessing": worse_than_guessing(spec, scores),
        }

    def standing(self) -> dict[str, Any]:
        """How the model does: the part that `GET /models/{model}` and its stream share."""
        return {
            "features": self.learner.n_features,
            "not_taken": self.learner.not_taken,
            "left_out": self.learner.left_out,
            "snapshot_seq": self.snapshot_seq,
            "breaker": None if self.watch is None else self.watch.summary(),
            "progressive": self.scores.summary(),
            "worse_than_guessing": worse_than_guessing(self.learner.spec, self.scores.brief()),
            "served": self.joins.scores.summary(),
            "join": {
                "waiting": self.waiting,
                **self.joins.counts(),
                "dropped": self.dropped,
                "not_kept": self.not_kept,
                "delay_s": self.joins.delays(),
            },
        }

    def points(self, most: int = POINTS) -> Points:
        """The learning curve by events, at most so many points of it.

        The stretches that end at the last event may be some events more than the window. So the last point has the
        windowed scores themselves, as everything else that tells them has, unless a stretch is longer.
        """
        window = self.scores.window
        points = self.curve.points(window, most)
        if len(points.seq) > 0 and self.curve.stride <= window:
            now = self.scores.brief()
            points.loss_window[-1] = math.nan if now.loss_window is None else now.loss_window
            points.accuracy_window[-1] = math.nan if now.accuracy_window is None else now.accuracy_window
            guessing = now.base_rate_loss_window
            points.base_rate_loss_window[-1] = math.nan if guessing is None else guessing
        return points

    def drawn(self, most: int = POINTS) -> dict[str, Any]:
        """The same as JSON types."""
        about = {"model": self.name, "window": self.curve.window(self.scores.window)}
        return {**about, **{name: values.tolist() for name, values in self.points(most)._asdict().items()}}

    def learn(self, batch: Batch) -> Outcome:
        """Step for each event. Returns the predictions and losses before each step."""
        before = self.learner.seq
        outcome = self.learner.learn_batch(batch)
        self.scores.add(outcome)
        self.joins.add(batch)
        self.curve.add(outcome)
        self.digest.add(outcome, before)
        if self.watch is not None:
            self.watch.add(outcome, before)
        return outcome

    def state(self, copy: Copy | None = None) -> dict[str, Any]:
        """What a snapshot keeps: all but the names, which the log has. copy: see `Learner.state`."""
        state = {
            "learner": self.learner.state(names=False, copy=copy),
            "scores": self.scores.state(),
            "joins": self.joins.state(),
            "curve": self.curve.state(),
            "digest": self.digest.state(),
        }
        return state if self.watch is None else {**state, "watch": self.watch.state()}

    def load(self, seq: int, state: dict[str, Any], names: list[str], window: int) -> None:
        """Go on from a snapshot. Raises one of NOT_A_STATE, and changes nothing, if the state is not valid."""
        learner = Learner.from_state({**state["learner"], "names": names})
        scores = Progressive.from_state(state["scores"], window)
        joins = Joins.from_state(state["joins"], window)
        curve = Curve.from_state(state["curve"])
        digest = Digest.from_state(state["digest"])
        watch = None if self.watch is None else Watch.from_state(self.watch.breaker, state["watch"])
        self.learner, self.scores, self.joins, self.curve, self.watch = learner, scores, joins, curve, watch
        self.digest = digest
        self.snapshot_seq = seq

    def recovered(self, waiting: int, dropped: int, last_number: int) -> None:
        """The model is at the end of its log. So many predictions wait; so many were dropped; the last one's number."""
        self.last_seq, self.learned, self.learned_at = self.learner.seq, 0, 0.0
        self.waiting, self.dropped, self.next_number = waiting, dropped, last_number + 1
        if waiting:
            self.due = 0.0  # unknown until the first check

    def snapshot_written(self, seq: int, saved_seconds: float) -> None:
        """A snapshot at `seq` is on disk, and a replay takes so much less."""
        self.snapshot_seq = seq
        self.replay_seconds -= saved_seconds

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Inside, no snapshot is replaced and no event dropped."""
        self.held += 1
        try:
            yield
        finally:
            self.held -= 1

    @property
    def stops_at(self) -> int | None:
        """The seq of the last event that the model learns before its breaker stops it; None if it does not."""
        return None if self.watch is None else self.watch.stopped_at

    @property
    def stopped(self) -> bool:
        """Whether the breaker has stopped the model: it predicts but does not learn."""
        return self.stops_at is not None and self.last_seq >= self.stops_at

    @property
    def room(self) -> float:
        """How many events may be committed before their steps are taken, because of the breaker."""
        if self.watch is None:
            return math.inf
        seen = self.learner.seq + self.watch.breaker.events
        return (seen if self.stops_at is None else min(seen, self.stops_at)) - self.last_seq

    @property
    def next_timeout(self) -> float:
        """When a waiting prediction may time out. Never while the model is stopped."""
        return math.inf if self.stopped else self.due

    def committed(self, events: int, kept: int, done: int, dropped: int, kept_at: float) -> None:
        """A commit has added events to the model's log and kept predictions; of those that waited, `done` got their
        labels and `dropped` did not. kept_at: when the first was kept, in seconds since 1970."""
        self.last_seq += events
        self.waiting += kept - done - dropped
        self.next_number += kept
        self.dropped += dropped
        if kept:  # one may be the first to time out: none waited, or the clock was set back
            self.due = min(self.due, kept_at + self.learner.spec.join.keep_seconds)

    def first_due(self, due: float) -> None:
        """The oldest waiting prediction times out then."""
        self.due = due

    def count_known(self, *, duplicate: bool, kept: bool = True) -> None:
        """Count an item that was learned or kept before, or a prediction that was not kept."""
        self.duplicates += duplicate
        self.not_kept += not kept

    def stepped(self, batch: Batch) -> float:
        """Count a row of the log that was learned. Returns its replay time, in seconds, about."""
        self.learned += len(batch)
        self.learned_at = time.monotonic()
        seconds = (
            REPLAY_SECONDS_PER_ROW
            + REPLAY_SECONDS_PER_EVENT * len(batch)
            + REPLAY_SECONDS_PER_VALUE * len(batch.values)
        )
        self.replay_seconds += seconds
        return seconds

    def predict(self, x: X, encoded: Encoded | None = None) -> tuple[float, int]:
        """The probability of label 1, and how many of x's features the model does not know. Changes only the counts.
        `encoded`: the result of the learner's `encoded` for x, if the caller has it."""
        columns, values = self.learner.encode(x) if encoded is None else encoded
        return logistic.sigmoid(self.learner.score_of(columns, values)), self._count(columns)

    def _count(self, columns: array[int]) -> int:
        """Count a prediction. Returns how many of its features are unknown."""
        self.predicted += 1
        unknown = self.learner.features.unknown(columns)
        if unknown and unknown == len(columns):
            self.predicted_unknown += 1
        return unknown

    def predict_to_keep(
        self, id_: str, x: X, owner: str = "", encoded: Encoded | None = None, sees_all: bool = False
    ) -> Prediction:
        """A prediction to keep until its label comes, for the token with the id `owner`. Changes only the counts.
        `encoded`: as in `predict`."""
        columns, values = self.learner.encode(x) if encoded is None else encoded
        served = self.learner.served_of(columns, values)
        return Prediction(id_, x, self.learner.seq, served, self._count(columns), owner, sees_all)


def explaining_waiting(model: Model, waiting: Waiting) -> Callable[[], Explanation] | None:
    """A function that explains a waiting prediction as it was served. None for `auto`: it has too many learners to keep
    with each prediction."""
    if model.learner.auto is not None:
        return None
    return partial(explain_served, model.learner, waiting.x, waiting.served, waiting.seq)


# -- worse than guessing


def worse_than_guessing(spec: Spec, scores: Brief) -> dict[str, Any] | None:
    """None if the model is not worse. Else `over`, the events over which it is worse, the last ones (`window`) or all
    (`total`), and `advice`, a text for people: what is wrong and what to do.

    >>> worse_than_guessing(Spec(), Brief(1000, 7000.0, 0.69, 0.5, 300, 0.2, 0.69, 0.9))["over"]
    'total'
    """
    if not scores.events:
        return None
    of_all = f"all {scores.events:,} events"
    last, guessed = scores.loss_window, scores.base_rate_loss_window
    # If all labels are the same, guessing is perfect, and a rare label is no fault of the model.
    if scores.events_window > LEAST_EVENTS and last is not None and guessed and last > NOISE * guessed:
        of_last = f"the last {scores.events_window:,} events" if scores.events_window < scores.events else of_all
        said = _compared(of_last, last, guessed)
        return {"over": "window", "advice": f"{said}. {_next_step(spec)}"}
    loss = scores.loss / scores.events
    if scores.events <= LEAST_EVENTS or scores.base_rate_loss is None or loss <= scores.base_rate_loss:
        return None
    over = "total" if scores.events_window < scores.events else "window"
    if not scores.base_rate_loss:
        said = f"All {scores.events:,} labels so far are the same, so guessing is perfect"
        return {"over": over, "advice": f"{said}. {_LOOK}"}
    said = _compared(of_all, loss, scores.base_rate_loss)
    if over == "total" and last is not None:
        said += f"; over the last {scores.events_window:,} it is {_loss(last)} against {_loss(guessed)}"
    return {"over": over, "advice": f"{said}. {_next_step(spec)}"}


def _compared(events: str, loss: float | None, base_rate_loss: float | None) -> str:
    return f"Worse than guessing over {events}: log loss {_loss(loss)}, guessing {_loss(base_rate_loss)}"


def _loss(value: float | None) -> str:
    return "none" if value is None else f"{value:,.4f}" if value < 1e6 else f"{value:.2e}"


_LOOK = "Check which column is the label: --label and --positive of replay"
_IDS = "and whether ids are among the columns: each id is a feature that never repeats"


def _next_step(spec: Spec) -> str:
    if spec.rule != "auto" and spec.scale != "standard":
        return 'Learn the same events into a new model with {"rule": "auto"}, or with "scale": "standard" in its spec'
    return f"{_LOOK}; {_IDS}"
