"""Progressive validation: predict each event before learning it, and score all these predictions. And the same for
predictions that were served with an id, with how late their labels came.

Log loss, accuracy, ROC AUC and calibration, in total and over the last N events. An event costs tens of nanoseconds;
river's metrics take microseconds each. The tests compare them with `river.metrics`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from core.batch import EXPIRED, JOINED, LATE, ORDINARY, Batch
from core.compiled import compiled
from core.learner import Outcome
from core.logistic import Floats, Labels

THRESHOLDS = 10
"""Like river's `ROCAUC(n_thresholds=10)`."""

LEAST_ROOM = 32
"""Last events for which there is room at least, once one has come."""

BUCKETS = 10
"""Buckets of the calibration: probabilities up to 0.1, up to 0.2, ... up to 1."""

Counts = npt.NDArray[np.int64]
_thresholds = np.array([i / (THRESHOLDS - 1) for i in range(THRESHOLDS)])
_thresholds[0] -= 1e-7
_thresholds[-1] += 1e-7

# Positions in the arrays of sums.
EVENTS, LOSS, CORRECT = 0, 1, 2
# Positions in a bucket of the calibration: events, the sum of their probabilities, events with label 1.
COUNT, P, ONES = 0, 1, 2


@compiled(
    "void(float64[::1], float64[::1], uint8[::1], boolean[::1], float64[::1], float64[::1], int64[:, ::1], "
    "float64[:, ::1], float64[::1], float64[::1], uint8[::1])"
)
def _add(
    probabilities: Floats, losses: Floats, labels: Labels, learned: npt.NDArray[np.bool_], thresholds: Floats,
    sums: Floats, passed: Counts, calibration: Floats,
    last_probabilities: Floats, last_losses: Floats, last_labels: Labels,
) -> None:  # fmt: skip
    """Add events to `sums` (events, loss, correct), `passed`, `calibration` and the ring of the last events. `passed[y,
    k]` counts the events of label y whose p is above exactly the first k thresholds."""
    for i in range(len(labels)):
        if not learned[i]:
            continue
        p, y = probabilities[i], labels[i]
        if len(last_labels) > 0:
            place = int(sums[EVENTS]) % len(last_labels)
            last_probabilities[place], last_losses[place], last_labels[place] = p, losses[i], y
        k = 0
        while k < len(thresholds) and p > thresholds[k]:
            k += 1
        passed[y, k] += 1
        bucket = min(int(p * BUCKETS), BUCKETS - 1)
        calibration[bucket, COUNT] += 1.0
        calibration[bucket, P] += p
        calibration[bucket, ONES] += y
        sums[EVENTS] += 1.0
        sums[LOSS] += losses[i]
        if (p > 0.5) == (y == 1):
            sums[CORRECT] += 1.0


@compiled("UniTuple(float64, 3)(float64[::1], float64[::1], uint8[::1], int64, int64)")
def _recently(
    probabilities: Floats, losses: Floats, labels: Labels, start: int, end: int
) -> tuple[float, float, float]:
    """For the ring's events from `start` to before `end`: sum of losses, number correct, number with label 1."""
    loss, correct, ones = 0.0, 0.0, 0.0
    for i in range(start, end):
        place = i % len(labels)
        loss += losses[place]
        ones += labels[place]
        if (probabilities[place] > 0.5) == (labels[place] == 1):
            correct += 1.0
    return loss, correct, ones


def _auc(passed: Counts) -> float | None:
    """Area under the ROC curve through the thresholds, by trapezoids; None unless both labels have come. `above[y, k]`:
    the events of label y with p above threshold k, which are those that passed more than k thresholds."""
    above = passed[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
    negatives, positives = int(passed[0].sum()), int(passed[1].sum())
    if not (negatives and positives):
        return None
    return float(np.trapezoid(above[1, ::-1] / positives, above[0, ::-1] / negatives))


def _base_rate_loss(zeros: int, ones: int) -> float | None:
    """The log loss of always predicting the base rate (the share of ones), which is its entropy; None if no events."""
    n = zeros + ones
    return sum(count / n * math.log(n / count) for count in (zeros, ones) if count) if n else None


class _Scores:
    """Sums over some events, and the scores from them."""

    def __init__(self) -> None:
        self.sums = np.zeros(3)
        self.passed = np.zeros((2, THRESHOLDS + 1), np.int64)
        self.calibration = np.zeros((BUCKETS, 3))

    def add(self, outcome: Outcome, last: tuple[Floats, Floats, Labels]) -> None:
        scored = (*outcome.assess(), outcome.labels, outcome.learned)
        _add(*scored, _thresholds, self.sums, self.passed, self.calibration, *last)

    def summary(self) -> dict[str, float | int | None]:
        events = int(self.sums[EVENTS])
        return {
            "events": events,
            "log_loss": float(self.sums[LOSS] / events) if events else None,
            "base_rate_log_loss": self.base_rate_loss(),
            "accuracy": float(self.sums[CORRECT] / events) if events else None,
            "roc_auc": _auc(self.passed),
        }

    def base_rate_loss(self) -> float | None:
        return _base_rate_loss(*self.passed.sum(axis=1).tolist())

    def buckets(self) -> list[dict[str, float | int | None]]:
        """Predicted probabilities beside the share of ones, by bucket."""
        return [
            {"up_to": (i + 1) / BUCKETS, "count": int(n), "p": p / n if n else None, "ones": ones / n if n else None}
            for i, (n, p, ones) in enumerate(self.calibration.tolist())
        ]


class Brief(NamedTuple):
    """The most used scores, of all events and of the window, computed in a few microseconds. `loss`: the sum over all
    events. `base_rate_loss`: the log loss of always predicting the share of ones."""

    events: int
    loss: float
    base_rate_loss: float | None
    accuracy: float | None
    events_window: int
    loss_window: float | None
    base_rate_loss_window: float | None
    accuracy_window: float | None

    @property
    def log_loss(self) -> float | None:
        """The mean loss of all events; None without events."""
        return self.loss / self.events if self.events else None


class Progressive:
    """The scores of a stream's predictions, each made before its event was learned; events without a step are not
    scored. window: how many of the last events the windowed scores cover.

    >>> from core.learner import Learner
    >>> scores = Progressive()
    >>> scores.add(Learner().learn_many([{"a": 1.0}, {"a": 1.0}], [1, 1]))
    >>> scores.summary()["total"]
    {'events': 2, 'log_loss': 0.6906534305339038, 'base_rate_log_loss': 0.0, 'accuracy': 0.5, 'roc_auc': None}
    """

    def __init__(self, window: int = 1_000) -> None:
        self.window = window
        self._forgotten = 0
        """Events that a smaller window had dropped before the state was saved."""
        self._total = _Scores()
        self._last = np.zeros(0), np.zeros(0), np.zeros(0, np.uint8)
        """The ring of the last events. It grows up to the window: thousands of models of few events need little."""

    def add(self, outcome: Outcome) -> None:
        """Score the events of one `learn_batch`."""
        if len(self._last[0]) < self.window:
            self._make_room(self._events + len(outcome.labels))
        self._total.add(outcome, self._last)

    def _make_room(self, events: int) -> None:
        """Make room for so many events, or the whole window. Until then the ring is no ring: event i is at place i."""
        there = len(self._last[0])
        if there < (needed := min(self.window, events)):
            room = min(self.window, max(needed, 2 * there, LEAST_ROOM))
            probabilities, losses, labels = (
                np.concatenate((last, np.zeros(room - there, last.dtype))) for last in self._last
            )
            self._last = probabilities, losses, labels

    def summary(self) -> dict[str, Any]:
        """All scores, as JSON types.

        `total` and `window`: `events`, `log_loss` (nats), `base_rate_log_loss` (of always predicting the share of ones
        among the same events), `accuracy` (p > 0.5 means 1) and `roc_auc`. A score is None if it is not known yet.
        Sample weights do not count.

        `calibration`, for both: for each tenth of the probabilities, the `count` of predictions, their mean `p`, and
        the share of `ones` among their labels.
        """
        recent = _Scores()
        probabilities, losses, labels = self._recent()
        taken, none = np.ones(len(labels), np.bool_), np.zeros(0)
        recent.add(Outcome(none, labels, taken, (probabilities, losses)), (none, none, labels[:0]))
        return {
            "total": self._total.summary(),
            "window": recent.summary(),
            "calibration": {"total": self._total.buckets(), "window": recent.buckets()},
        }

    def totals(self) -> tuple[int, float]:
        """The number of events, and the sum of their losses."""
        return self._events, float(self._total.sums[LOSS])

    @property
    def _events(self) -> int:
        return int(self._total.sums[EVENTS])

    @property
    def _in_window(self) -> int:
        return min(self._events - self._forgotten, self.window)

    def brief(self) -> Brief:
        """The main scores of `summary`, fast enough for thousands of models."""
        events, (_, loss, correct) = self._events, self._total.sums.tolist()
        total = loss, self._total.base_rate_loss(), correct / events if events else None
        n = self._in_window
        if not n:
            return Brief(events, *total, 0, None, None, None)
        loss_window, correct_window, ones = _recently(*self._last, events - n, events)
        return Brief(events, *total, n, loss_window / n, _base_rate_loss(n - int(ones), int(ones)), correct_window / n)

    def _recent(self) -> tuple[Floats, Floats, Labels]:
        """The last events, oldest first."""
        places = np.arange(self._events - self._in_window, self._events) % self.window
        probabilities, losses, labels = self._last
        return probabilities[places], losses[places], labels[places]

    def state(self) -> dict[str, Any]:
        """The whole state, as JSON types and arrays; arrays are copies."""
        probabilities, losses, labels = self._recent()
        return {
            "sums": self._total.sums.copy(),
            "passed": self._total.passed.astype(np.float64).ravel(),
            "calibration": self._total.calibration.flatten(),
            "last_probabilities": probabilities,
            "last_losses": losses,
            "last_labels": labels.astype(np.float64),
        }

    @classmethod
    @np.errstate(invalid="raise")  # NaN is neither a count nor a label
    def from_state(cls, state: dict[str, Any], window: int = 1_000) -> Progressive:
        """The scores that `state()` described. A window larger than before fills up with new events."""
        scores = cls(window)
        scores._total.sums[:] = state["sums"]
        scores._total.passed[:] = state["passed"].reshape(scores._total.passed.shape)
        scores._total.calibration[:] = state["calibration"].reshape(BUCKETS, 3)
        start = max(0, len(state["last_labels"]) - window)
        scores._forgotten = scores._events - (len(state["last_labels"]) - start)
        scores._make_room(scores._events)
        places = np.arange(scores._forgotten, scores._events) % window
        last: dict[str, npt.NDArray[Any]] = dict(zip(("probabilities", "losses", "labels"), scores._last, strict=True))
        for name, ring in last.items():
            ring[places] = state[f"last_{name}"][start:]
        return scores


DELAYS = (0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 21600.0, 86400.0, 604800.0, 2592000.0)
"""Upper bounds of the delay histogram, in seconds: from 0.1 s to 30 days."""


class Joins:
    """Counts events by how their labels came, scores the predictions as served (`window` as in Progressive), and
    records the labels' delays. Everything is computed from the events, so a replay of the log gives the same."""

    def __init__(self, window: int = 1_000) -> None:
        self.scores = Progressive(window)
        self._counts = np.zeros(LATE + 1)
        self._delays = np.zeros(len(DELAYS) + 1)
        self._delay_sum = np.zeros(1)

    def add(self, batch: Batch) -> None:
        """Add the events of a batch."""
        if batch.served is None:
            return
        kinds, scores, delays = batch.served.kinds, batch.served.scores, batch.served.delays
        # Of ordinary events none, because a batch without others is not looked at: batches may be cut in any way.
        self._counts[JOINED:] += np.bincount(kinds, minlength=LATE + 1)[JOINED:]
        self.scores.add(Outcome(scores, batch.labels, kinds != ORDINARY))
        told = delays[(kinds == JOINED) | (kinds == LATE)]
        self._delays += np.bincount(np.searchsorted(DELAYS, told), minlength=len(DELAYS) + 1)
        for delay in told.tolist():  # one by one: then a replay's sum is the same to the last bit
            self._delay_sum += delay

    def counts(self) -> dict[str, int]:
        """Events `joined` with a label, `expired` (learned as 0 without one), and `late` corrections."""
        joined, expired, late = self._counts[[JOINED, EXPIRED, LATE]].astype(int).tolist()
        return {"joined": joined, "expired": expired, "late": late}

    def delays(self) -> dict[str, Any]:
        """Seconds from a prediction to its label: `count`, `mean`, and a count for each bucket.

        >>> Joins().delays()["count"]
        0
        """
        counts, (count, total) = self._delays.astype(int).tolist(), self.delay()
        buckets = [{"up_to": bound, "count": n} for bound, n in zip((*DELAYS, None), counts, strict=True)]
        return {"count": count, "mean": total / count if count else None, "buckets": buckets}

    def delay(self) -> tuple[int, float]:
        """How many labels came after their predictions, and the sum of their delays in seconds."""
        return int(self._delays.sum()), float(self._delay_sum[0])

    def state(self) -> dict[str, Any]:
        """The whole state, as JSON types and arrays; arrays are copies."""
        arrays = {"counts": self._counts, "delays": self._delays, "delay_sum": self._delay_sum}
        return {"scores": self.scores.state(), **{name: array.copy() for name, array in arrays.items()}}

    @classmethod
    def from_state(cls, state: dict[str, Any], window: int = 1_000) -> Joins:
        """The joins that `state()` described."""
        joins = cls(window)
        joins.scores = Progressive.from_state(state["scores"], window)
        joins._counts[:], joins._delays[:], joins._delay_sum[:] = state["counts"], state["delays"], state["delay_sum"]
        return joins
