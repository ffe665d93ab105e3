"""The learning curve by events: log loss, accuracy and the share of label 1, along a model's whole life.

A curve is sums over stretches of `stride` events, at most POINTS of them. When all are full and one more event comes,
each two stretches become one and the stride doubles. So the last event of stretch k is always seq (k + 1) * stride, and
the sums are a function of the events alone: not of how these came in batches, nor of snapshots and restarts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from core.compiled import compiled
from core.learner import Outcome
from core.logistic import Floats, Labels

POINTS = 512
"""Most stretches; even. A model of more events has from half as many up to so many."""

# Positions in the sums of a stretch. Sums of losses, not differences of a running total: after a loss of 1e30 those of
# the events that follow would all be 0.
SCORED, LOSS, CORRECT, ONES = 0, 1, 2, 3
SUMS = 4

Stretches = npt.NDArray[np.float64]


@compiled("int64(float64[::1], float64[::1], uint8[::1], boolean[::1], float64[:, ::1], int64, int64)")
def _add(
    probabilities: Floats,
    losses: Floats,
    labels: Labels,
    learned: npt.NDArray[np.bool_],
    stretches: Stretches,
    seq: int,
    stride: int,
) -> int:
    """Add the events after `seq`; there is room for their stretches, or for POINTS. Returns the stride from then on."""
    i = 0
    while i < len(labels):
        k = (seq + i) // stride
        if k == POINTS:
            half = k // 2
            for j in range(half):
                for part in range(SUMS):
                    stretches[j, part] = stretches[2 * j, part] + stretches[2 * j + 1, part]
            stretches[half:] = 0.0
            stride, k = 2 * stride, half
        end = min(len(labels), (k + 1) * stride - seq)
        scored = correct = ones = 0
        loss = stretches[k, LOSS]  # goes on from here, so that the sum does not depend on how events came
        while i < end:
            if learned[i]:
                scored += 1
                loss += losses[i]
                correct += (probabilities[i] > 0.5) == (labels[i] == 1)
                ones += labels[i]
            i += 1
        stretches[k, SCORED] += scored
        stretches[k, LOSS] = loss
        stretches[k, CORRECT] += correct
        stretches[k, ONES] += ones
    return stride


class Points(NamedTuple):
    """Points of a curve. Arrays of shape (n,); NaN where no event was scored.

    `seq`: the last event of each. `loss_total`: the mean log loss of all events up to it, in nats. The others are of a
    window, the last events up to it: `loss_window`, `accuracy_window` (p > 0.5 means 1), and `base_rate_loss_window`,
    the log loss of always predicting the share of label 1 among them, which is its entropy.
    """

    seq: npt.NDArray[np.int64]
    loss_total: Floats
    loss_window: Floats
    base_rate_loss_window: Floats
    accuracy_window: Floats


class Curve:
    """The learning curve of one model. An event whose step was not taken has a seq and is not scored.

    >>> from core.learner import Learner
    >>> curve = Curve()
    >>> curve.add(Learner().learn_many([{"a": 1.0}] * 3, [1, 1, 1]))
    >>> curve.points(window=2).loss_window.round(4).tolist()
    [0.6931, 0.6907, 0.6857]
    """

    def __init__(self) -> None:
        self.seq = 0
        self.stride = 1
        """Events of a stretch: a power of 2."""
        self._stretches = np.zeros((0, SUMS))
        """Grows up to POINTS of them: thousands of models of few events need little."""

    def add(self, outcome: Outcome) -> None:
        """Add the events of one `learn_batch`, which come after those before."""
        seq = self.seq + len(outcome.labels)
        if (needed := min(POINTS, -(-seq // self.stride))) > len(self._stretches):
            self._stretches = np.concatenate((self._begun(), np.zeros((_room(needed) - len(self._begun()), SUMS))))
        scored = (*outcome.assess(), outcome.labels, outcome.learned)
        self.stride = _add(*scored, self._stretches, self.seq, self.stride)
        self.seq = seq

    def _begun(self) -> Stretches:
        """The stretches with events; the last may not be full yet."""
        return self._stretches[: -(-self.seq // self.stride)]

    def window(self, least: int) -> int:
        """How many events the windows of `points(least)` cover: whole stretches, and one of them at least."""
        return max(1, -(-least // self.stride)) * self.stride

    def points(self, window: int, most: int = POINTS) -> Points:
        """The points of the curve, evenly spaced and at most so many, the last one at the model's seq. Their windows
        are those of `window`; the last point's also has the stretch that is not full yet."""
        sums = self._begun()
        n, step, width = len(sums), max(1, -(-len(sums) // most)), self.window(window) // self.stride
        places = np.arange((n - 1) % step, n, step)
        with np.errstate(over="ignore", invalid="ignore"):
            totals = windows = sums.cumsum(axis=0)[places]
            if width < n:
                padded = np.concatenate((np.zeros((width, SUMS)), sums))
                windows = np.lib.stride_tricks.sliding_window_view(padded, width, 0)[1:][places].sum(axis=-1)
                if self.seq % self.stride:
                    windows[-1] += sums[-1 - width]
            return Points(
                np.minimum((places + 1) * self.stride, self.seq),
                _mean(totals, LOSS),
                _mean(windows, LOSS),
                _entropy(_mean(windows, ONES)),
                _mean(windows, CORRECT),
            )

    def state(self) -> dict[str, Any]:
        """The whole state, as JSON types and arrays; arrays are copies."""
        return {"seq": self.seq, "stride": self.stride, "stretches": self._begun().flatten()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Curve:
        """The curve that `state()` described."""
        curve = cls()
        curve.seq, curve.stride = state["seq"], state["stride"]
        curve._stretches = state["stretches"].reshape(-1, SUMS).copy()
        if len(curve._stretches) != min(POINTS, -(-curve.seq // curve.stride)):
            raise ValueError("the curve has other stretches than its seq and stride say")
        return curve


def _room(stretches: int) -> int:
    """How many stretches to make room for if so many are needed: a power of two, from 16 to POINTS."""
    return max(16, 1 << (stretches - 1).bit_length())


def _mean(sums: Stretches, part: int) -> Floats:
    """A sum for each scored event; NaN where there is none."""
    found: Floats = sums[:, part] / np.where(sums[:, SCORED] > 0, sums[:, SCORED], np.nan)
    return found


def _entropy(share: Floats) -> Floats:
    """The entropy of labels of which `share` are 1, in nats; NaN stays NaN."""
    ones, zeros = (part * np.log(np.where(part == 0.0, 1.0, part)) for part in (share, 1.0 - share))
    return 0.0 - (ones + zeros)
