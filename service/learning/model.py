"""A named model in the service: what is stored of it, its learner, its progressive scores."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from core import logistic
from core.breaker import Watch
from core.explain import Explanation, explain_served
from core.features import Batch, X
from core.joins import Joins
from core.learner import Encoded, Learner, Outcome
from core.logistic import Floats
from core.progressive import Progressive
from core.spec import Spec
from service.fairness import WIDE
from service.learning.guessing import worse_than_guessing
from service.storage.log import StoredModel, Waiting
from service.threads import let_go

# What replaying costs, measured by tests/benchmarks/recovery.py: decides when a snapshot is due, nothing else.
REPLAY_SECONDS_PER_ROW = 3e-6
REPLAY_SECONDS_PER_EVENT = 0.1e-6
REPLAY_SECONDS_PER_VALUE = 0.02e-6


# A step of a million features takes 9 ms of plain SGD. Where values are scaled, or the rule keeps numbers of its own
# for each feature, it takes 40 times as long, and of auto more; it is one call, during which nobody is served.
AUTO_FEATURES = 20_000
"""Features that an event may have where the rule is auto, at most."""
SLOW_FEATURES = 40_000
"""The same of all other models but those of plain SGD."""


class Prediction(NamedTuple):
    """A prediction that is to be kept until its label comes. served: float64 that say what was served, the score first
    (core/explain.py). seq: the model's when it was made. unknown: how many of x's features the model did not know.
    owner: the id of the token that asked, empty where none was asked for."""

    id: str
    x: X
    seq: int
    served: Floats
    unknown: int
    owner: str


class Model:
    """A named model: what is stored of it, its learner, its progressive scores, and what waits for labels."""

    def __init__(self, stored: StoredModel, window: int) -> None:
        self.stored = stored
        self.learner = Learner(Spec.from_dict(stored.spec))
        self.scores = Progressive(window)
        self.joins = Joins(window)
        breaker = self.learner.spec.breaker
        self.watch = None if breaker is None else Watch(breaker)
        self.last_seq = 0
        """Of the last event in the log. The learner is at this one too, or its steps are about to be taken."""
        self.waiting = 0
        """Predictions that wait for their labels."""
        self.next_number = 1
        """The number of the next one."""
        self.due = math.inf
        """When the oldest of them times out, or sooner: seconds since 1970."""
        self.dropped = 0
        """Predictions whose labels did not come in time, and that were dropped."""
        self.learned = self.predicted = self.duplicates = 0
        """Events learned, predictions made, and items that were learned or kept before, since the start."""
        self.predicted_unknown = 0
        """Predictions since the start of an x of which the model knew no feature's name, though it had some."""
        self.not_kept = 0
        """Predictions with an id that were served and not kept since the start, because too many waited."""
        self.snapshot_seq = 0
        self.snapshot_wanted = False
        """Whether one is wanted so that the log before it need not be kept."""
        self.held = False
        """Whether its log is being read back from the snapshots that are there: then none is replaced, and no event is
        dropped."""
        self.replay_seconds = 0.0
        """What replaying the log after the last snapshot would cost, about."""

    def __del__(self) -> None:
        learner = vars(self).get("learner")  # without one where its spec was none
        if learner is not None and learner.n_features > WIDE:
            let_go(learner)  # whoever was the last to hold the model goes on at once

    @property
    def name(self) -> str:
        return self.stored.name

    def limit(self, features: int, characters: int) -> None:
        """How many features an event may have from now on, and how long a name may be: events from others have limits
        of their own, what is in the log was within those of its time."""
        known = self.learner.features
        known.max_event, known.max_name = features, characters
        for most, where, here in (
            (AUTO_FEATURES, " where the rule is auto", self.learner.auto is not None),
            (SLOW_FEATURES, ", but where the model is plain SGD", not self.learner.plain),
        ):
            if here and most < known.max_event:
                known.max_event, known.where = most, where

    def in_short(self) -> dict[str, Any]:
        """A line of it: what `GET /models` says of each."""
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
        """How it does: what `GET /models/{model}` and its stream both say."""
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

    def learn(self, batch: Batch) -> Outcome:
        """Step for each event; what was found before each step."""
        before = self.learner.seq
        outcome = self.learner.learn_batch(batch)
        self.scores.add(outcome)
        self.joins.add(batch)
        if self.watch is not None:
            self.watch.add(outcome, before)
        return outcome

    @property
    def stopped(self) -> bool:
        """Whether its breaker has stopped it: it predicts and learns nothing."""
        return self.watch is not None and self.watch.stopped_at is not None

    @property
    def next_timeout(self) -> float:
        """When there is something to do about predictions that wait: not while it learns nothing."""
        return math.inf if self.stopped else self.due

    def count_replay(self, batch: Batch) -> float:
        """Remember what replaying one more row of the log would cost, in seconds, about."""
        seconds = (
            REPLAY_SECONDS_PER_ROW
            + REPLAY_SECONDS_PER_EVENT * len(batch)
            + REPLAY_SECONDS_PER_VALUE * len(batch.values)
        )
        self.replay_seconds += seconds
        return seconds

    def predict(self, x: X, encoded: Encoded | None = None) -> tuple[float, int]:
        """The probability of label 1, and how many of x's features the model does not know. Changes nothing but the
        counts. `encoded`: what the learner's `encoded` gave for x, where it is at hand."""
        columns, values = self.learner.features.encode(x) if encoded is None else encoded
        return logistic.sigmoid(self.learner.score_of(columns, values)), self._count(columns)

    def _count(self, columns: array[int]) -> int:
        """Count a prediction; how many of its features are unknown."""
        self.predicted += 1
        unknown = self.learner.features.unknown(columns)
        if unknown and unknown == len(columns):
            self.predicted_unknown += 1
        return unknown

    def explaining_waiting(self, waiting: Waiting) -> Callable[[], Explanation] | None:
        """What makes the explanation of a prediction that waits, as it was served; None for `auto`, which is too many
        learners to keep."""
        if self.learner.auto is not None:
            return None
        return partial(explain_served, self.learner, waiting.x, waiting.served, waiting.seq)

    def predict_to_keep(self, id_: str, x: X, owner: str = "", encoded: Encoded | None = None) -> Prediction:
        """A prediction to be kept until its label comes, for the token with the id `owner`. Changes nothing but the
        counts. `encoded`: as for `predict`."""
        columns, values = self.learner.features.encode(x) if encoded is None else encoded
        served = self.learner.served_of(columns, values)
        return Prediction(id_, x, self.learner.seq, served, self._count(columns), owner)
