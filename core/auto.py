"""The learner that needs no tuning.

Many learners run side by side on every event: views of the data x rules x learning rates. A Bayesian mixture under log
loss combines their probabilities. The weight of learner k is proportional to exp(-its cumulative log loss). After each
event a small share is redistributed evenly, so the mixture follows a drifting stream (fixed share, Herbster and Warmuth
1998). For any learner k of the first bank, after n events and A alarms (below),

    log loss of the mixture <= log loss of k + (ln M + A ln 2) / n - ln(1 - share)

with M learners, for events of weight 1 or less. So no tuning is needed, and there is a proof.

Three of the M are stackers. Each learns, by AdaGrad, a weighted sum of the others' scores, which can beat every single
learner. Stackers are ordinary members of the mixture, so the bound holds even if they do not help.

An alarm: while predictions are calibrated, the mean log loss equals their entropy. If the excess over it adds up too
fast (a CUSUM, Page 1954), the stream has changed suddenly. Then a second bank of the same learners starts from zero,
with half of the weight. Slow old learners, whose rates have shrunk, now compete with fast new ones. The next alarm
restarts the second bank, never the first.

Views, each from running statistics of the feature's own values: raw; divided by the root mean square; minus the mean
and divided by the standard deviation; divided by the largest magnitude. The statistics include the value itself. A
prediction includes it in a copy, so it is the same with or without a label later.

An event costs about K numbers for each of its features; the model keeps about K for each feature it knows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from core.batch import Batch
from core.compiled import compiled
from core.logistic import Floats, Ints, Labels, Offsets
from core.rules import Table
from core.spec import Spec
from core.step import grown

Chances = npt.NDArray[np.float64]

VIEWS = ("raw", "rms", "standard", "maxabs")
RAW, RMS, STANDARD, MAXABS = range(4)

# The learners, by rule: (view, learning rate). They cover the rates that were best for a rule and view on any of the
# benchmark's streams, a factor of three to ten apart.
SGD = [
    (RAW, 0.01), (RAW, 0.1),
    (RMS, 0.03), (RMS, 0.3),
    (STANDARD, 0.01), (STANDARD, 0.1),
    (MAXABS, 0.1), (MAXABS, 1.0),
]  # fmt: skip
ADAGRAD = [
    (RAW, 0.1),
    (RMS, 0.03), (RMS, 0.1), (RMS, 0.3),
    (STANDARD, 0.03), (STANDARD, 0.1), (STANDARD, 0.3),
    (MAXABS, 0.3), (MAXABS, 3.0),
]  # fmt: skip
FTRL = [
    (RAW, 0.3),
    (RMS, 0.1), (RMS, 0.2), (RMS, 0.3), (RMS, 0.5), (RMS, 1.0),
    (STANDARD, 0.1), (STANDARD, 0.3), (STANDARD, 1.0),
]  # fmt: skip
STACKERS = [0.003, 0.02, 0.1]
"""The stackers' learning rates."""

MAX_CLIP = 1e12
"""Residuals are clipped to this, or to the spec's smaller `clip`. So their squares times squared values stay finite."""
SHARE = 3e-4
"""Part of the weight that is redistributed evenly after each event. It costs at most this much log loss per event."""
MAX_SCORE = 30.0
"""Scores of single learners are clamped to ± this, so no probability is 0 and no loss infinite."""
ALARM = 12.0
"""Nats of excess log loss that raise the alarm."""
ALARM_CAP = 5.0
"""Most nats that one event may add, because a single wrong label is no change of the stream."""
ALARM_SLACK = 0.1
"""Nats subtracted at each event."""

_LEARNERS = SGD + ADAGRAD + FTRL
K = len(_LEARNERS)
M = K + len(STACKERS)
_views = np.array([view for view, _ in _LEARNERS], np.int64)
_rates = np.array([rate for _, rate in _LEARNERS])
_stack_rates = np.array(STACKERS)
_A, _F = len(SGD), len(SGD) + len(ADAGRAD)  # the first AdaGrad learner, the first FTRL learner
_EPS = 1e-8
_MIN_ROWS = 64

# Columns of a feature's statistics: count, mean, variance, mean square, largest magnitude.
STATISTICS = 5


@compiled("void(float64, float64[::1], float64[::1], int64[::1], float64[::1], float64[::1])")
def look(x: float, before: Floats, after: Floats, views: npt.NDArray[np.int64], four: Floats, seen: Floats) -> None:
    """`after` <- the statistics `before` plus the value x; `seen[k]` <- x in learner k's view of them.

    `four` is working space for the four views. Mean and population variance are updated by Welford's method.
    """
    count = before[0] + 1.0
    mean = before[1] + (x - before[1]) / count
    variance = before[2] + ((x - before[1]) * (x - mean) - before[2]) / count
    square = before[3] + (x * x - before[3]) / count
    largest = max(before[4], abs(x))
    after[0], after[1], after[2], after[3], after[4] = count, mean, variance, square, largest
    four[RAW] = x
    four[RMS] = x / math.sqrt(square) if square > 0.0 else 0.0
    four[STANDARD] = (x - mean) / math.sqrt(variance) if variance > 0.0 else 0.0
    four[MAXABS] = x / largest if largest > 0.0 else 0.0
    for k in range(K):
        seen[k] = four[views[k]]


@compiled("void(int32[::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[::1])")
def bank_scores(c: Ints, seen: Table, w: Table, stack: Table, z: Floats) -> None:
    """`z` <- the scores of a bank's K learners, then of its stackers.

    Row 0 of `w` has the biases, row i + 1 the weights of column i. `stack[s]` has stacker s's weight for each learner,
    and its bias.
    """
    learners = seen.shape[1]  # equals K; the compiler would unroll a loop to a constant and not vectorise it
    for k in range(learners):
        z[k] = w[0, k]
    for j in range(len(c)):
        i = c[j] + 1
        if 0 < i < len(w):
            for k in range(learners):
                z[k] += w[i, k] * seen[j, k]
    for k in range(learners):
        z[k] = min(max(z[k], -MAX_SCORE), MAX_SCORE)
    for s in range(len(stack)):
        total = stack[s, K]
        for k in range(K):
            total += stack[s, k] * z[k]
        z[K + s] = min(max(total, -MAX_SCORE), MAX_SCORE)


@compiled("void(float64[::1], float64[::1], float64[:, ::1], float64[::1])")
def mixed(z: Floats, shares: Floats, chances: Table, sides: Floats) -> None:
    """`chances[y, k]` <- learner k's probability of label y; adds the mixture's to `sides[y]`.

    Each label's probability is computed by itself. One minus the other would lose a small one in rounding.
    """
    for k in range(len(z)):
        e = math.exp(-abs(z[k]))
        low, high = e / (1.0 + e), 1.0 / (1.0 + e)
        chances[0, k] = low if z[k] >= 0.0 else high
        chances[1, k] = high if z[k] >= 0.0 else low
        sides[0] += shares[k] * chances[0, k]
        sides[1] += shares[k] * chances[1, k]


@compiled("void(int64, float64[::1], float64[::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[::1])")
def move(i: int, g: Floats, x: Floats, w: Table, squares: Table, sums: Table, rates: Floats) -> None:
    """One step of each learner for row i of its weights: g[k] = p_k - y, and x[k] is the value in learner k's view."""
    for k in range(_A):  # SGD: w <- w - rate g x
        w[i, k] -= rates[k] * (g[k] * x[k])
    for k in range(_A, _F):  # AdaGrad: n <- n + (g x)²;  w <- w - rate g x / sqrt(n)
        gradient = g[k] * x[k]
        squares[i, k - _A] += gradient * gradient
        w[i, k] -= rates[k] * gradient / math.sqrt(squares[i, k - _A] + _EPS)
    for k in range(_F, K):  # FTRL-proximal (McMahan 2013), beta 1, no penalties: w = -z rate / (1 + sqrt(n))
        gradient = g[k] * x[k]
        root = squares[i, k - _A]  # sqrt(n), stored to save a square root
        new_root = math.sqrt(root * root + gradient * gradient)
        squares[i, k - _A] = new_root
        sums[i, k - _F] += gradient - (new_root - root) / rates[k] * w[i, k]
        w[i, k] = -sums[i, k - _F] * rates[k] / (1.0 + new_root)


@compiled(
    "void(int32[::1], float64[:, ::1], float64[::1], float64[:, ::1], uint8, float64, float64, float64[:, ::1], "
    "float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[::1], float64[::1], float64[::1], "
    "float64[::1])"
)
def bank_learn(
    c: Ints, seen: Table, z: Floats, chances: Table, y: int, weight: float, clip: float,
    w: Table, squares: Table, sums: Table, stack: Table, stack_squares: Table,
    rates: Floats, stack_rates: Floats, ones: Floats, g: Floats,
) -> None:  # fmt: skip
    """One step of each learner and stacker of a bank, for an event with scores z. `g` is space for their p - y."""
    for k in range(len(z)):
        g[k] = (-chances[0, k] if y else chances[1, k]) * weight  # dL/dz = p - y
        g[k] = max(min(g[k], clip), -clip)
    for s in range(len(stack)):
        for k in range(K + 1):
            gradient = g[K + s] * (z[k] if k < K else 1.0)
            stack_squares[s, k] += gradient * gradient
            stack[s, k] -= stack_rates[s] * gradient / math.sqrt(stack_squares[s, k] + _EPS)
    move(0, g, ones, w, squares, sums, rates)
    for j in range(len(c)):
        move(c[j] + 1, g, seen[j], w, squares, sums, rates)


@compiled("void(float64[:, :, ::1], float64[:, ::1], uint8, float64, int64, float64)")
def reweigh(chances: Chances, shares: Table, y: int, weight: float, banks: int, share: float) -> None:
    """share_k <- share_k exp(-weight loss_k) = share_k P_k(y)^weight, normalised. Then redistributes `share` evenly.

    Probabilities are divided by the largest, so that a heavy event does not turn every share into 0.
    """
    largest = 0.0
    for bank in range(banks):
        for k in range(M):
            largest = max(largest, chances[bank, y, k])
    total = 0.0
    for bank in range(banks):
        for k in range(M):
            ratio = chances[bank, y, k] / largest
            shares[bank, k] *= ratio if weight == 1.0 else math.pow(ratio, weight)
            total += shares[bank, k]
    for bank in range(banks):
        for k in range(M):
            shares[bank, k] = (1.0 - share) * (shares[bank, k] / total) + share / (banks * M)


# Positions in the array of scalars.
EXCESS, ALARMS = 0, 1
SCALARS = 2

_BANK = "float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[:, ::1]"


@compiled(
    "float64(int32[::1], float64[::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], "
    "float64[:, ::1], float64[:, ::1], int64, int64[::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], "
    "float64[:, :, ::1], float64[::1])"
)
def event_score(
    c: Ints, x: Floats, statistics: Table, first_w: Table, first_stack: Table, second_w: Table, second_stack: Table,
    shares: Table, banks: int, views: npt.NDArray[np.int64],
    fresh: Table, seen: Table, z: Table, chances: Chances, small: Floats,
) -> float:  # fmt: skip
    """The mixture's score for an event, log p / (1 - p).

    Changes only its working space (`_room`): `fresh`, the statistics with the event included; `seen`, its values in
    each learner's view; `z` and `chances`, the scores and probabilities of each bank's learners; `small`, temporary
    values.
    """
    unknown, four, sides = small[:STATISTICS], small[STATISTICS:-2], small[-2:]
    unknown[:], sides[:] = 0.0, 0.0
    for j in range(len(c)):
        known = 0 <= c[j] < len(statistics)
        look(x[j], statistics[c[j]] if known else unknown, fresh[j], views, four, seen[j])
    bank_scores(c, seen, first_w, first_stack, z[0])
    mixed(z[0], shares[0], chances[0], sides)
    if banks == 2:
        bank_scores(c, seen, second_w, second_stack, z[1])
        mixed(z[1], shares[1], chances[1], sides)
    return math.log(sides[1]) - math.log(sides[0])


@compiled("float64(float64, uint8, float64)")
def excess_loss(z: float, y: int, so_far: float) -> float:
    """CUSUM of log loss minus the loss that the prediction expects, its entropy; never below 0."""
    a = abs(z)
    e = math.exp(-a)
    entropy = math.log1p(e) + a * e / (1.0 + e)  # -p log p - (1-p) log(1-p)
    loss = math.log1p(e) + (0.0 if (z > 0.0) == (y == 1) else a)
    return max(0.0, so_far + min(loss - entropy, ALARM_CAP) - ALARM_SLACK)


@compiled(
    "int64(int64, int64[::1], int32[::1], float64[::1], uint8[::1], float64[::1], float64, float64[::1], "
    f"float64[:, ::1], {_BANK}, {_BANK}, float64[:, ::1], int64, float64[::1], int64[::1], float64[::1], "
    "float64[::1], float64[::1], float64[:, ::1], float64[:, ::1], float64[:, ::1], float64[:, :, ::1], "
    "float64[::1], float64[::1], float64[::1])"
)
def learn_many(
    start: int, offsets: Offsets, columns: Ints, values: Floats, labels: Labels, sample_weights: Floats,
    clip: float, class_weights: Floats, statistics: Table,
    first_w: Table, first_squares: Table, first_sums: Table, first_stack: Table, first_stack_squares: Table,
    second_w: Table, second_squares: Table, second_sums: Table, second_stack: Table, second_stack_squares: Table,
    shares: Table, banks: int, scalars: Floats, views: npt.NDArray[np.int64], rates: Floats, stack_rates: Floats,
    scores: Floats, fresh: Table, seen: Table, z: Table, chances: Chances, small: Floats, g: Floats, ones: Floats,
) -> int:  # fmt: skip
    """Learn the events from `start` on, in order, and fill `scores` with the score before each.

    `fresh` to `small` are working space for `event_score`, `g` for a bank's gradients; `ones` is K ones.

    Returns the index after the last learned event. An alarm stops the loop after the event that raised it.
    """
    for i in range(start, len(labels)):
        c = columns[offsets[i] : offsets[i + 1]]
        x = values[offsets[i] : offsets[i + 1]]
        y = labels[i]
        scores[i] = event_score(
            c, x, statistics, first_w, first_stack, second_w, second_stack, shares, banks, views,
            fresh, seen, z, chances, small,
        )  # fmt: skip
        weight = sample_weights[i] * class_weights[y]
        bank_learn(
            c, seen, z[0], chances[0], y, weight, clip, first_w, first_squares, first_sums, first_stack,
            first_stack_squares, rates, stack_rates, ones, g,
        )  # fmt: skip
        if banks == 2:
            bank_learn(
                c, seen, z[1], chances[1], y, weight, clip, second_w, second_squares, second_sums, second_stack,
                second_stack_squares, rates, stack_rates, ones, g,
            )  # fmt: skip
        for j in range(len(c)):
            for s in range(STATISTICS):
                statistics[c[j], s] = fresh[j, s]
        reweigh(chances, shares, y, weight, banks, SHARE)
        scalars[EXCESS] = excess_loss(scores[i], y, scalars[EXCESS])
        if scalars[EXCESS] > ALARM:
            return i + 1
    return len(labels)


def _room(features: int) -> tuple[Table, Table, Table, Chances, Floats]:
    """The working space of `event_score` for at most so many features: fresh, seen, z, chances, small."""
    of_features = np.empty((features, STATISTICS)), np.empty((features, K))
    return *of_features, np.empty((2, M)), np.empty((2, 2, M)), np.empty(STATISTICS + len(VIEWS) + 2)


class _Bank:
    """K learners and their stackers, with `rows` rows: the bias, then the features."""

    def __init__(self, rows: int) -> None:
        self.w = np.zeros((rows, K))
        self.squares = np.zeros((rows, K - _A))
        self.sums = np.zeros((rows, K - _F))
        self.stack = np.full((len(STACKERS), K + 1), 1.0 / K)  # a stacker starts as the mean score
        self.stack[:, K] = 0.0
        self.stack_squares = np.zeros((len(STACKERS), K + 1))

    def arrays(self) -> tuple[Table, Table, Table, Table, Table]:
        return self.w, self.squares, self.sums, self.stack, self.stack_squares

    def used(self, rows: int) -> dict[str, Table]:
        """The arrays, up to the first `rows` rows."""
        by_row = {"w": self.w[:rows], "squares": self.squares[:rows], "sums": self.sums[:rows]}
        return {**by_row, "stack": self.stack, "stack_squares": self.stack_squares}

    def grow(self, rows: int) -> None:
        self.w, self.squares, self.sums = (grown(array, rows) for array in (self.w, self.squares, self.sums))


@dataclass(frozen=True, slots=True)
class Terms:
    """The parts of the score for an event of n features, for B banks.

    `biases` (B, K); `products` (n, B, K): each feature's weight times its value in the learner's view; `stack`
    (B, len(STACKERS), K + 1): a stacker's weight for each learner, and its bias; `shares` (B, M): the weights of
    learners and stackers in the mixture. All float64.
    """

    biases: Table
    products: Chances
    stack: Chances
    shares: Table


class Auto:
    """The state of an `auto` model, as `Learner` keeps it."""

    def __init__(self, spec: Spec) -> None:
        self._clip = min(spec.clip, MAX_CLIP)
        self._class_weights = np.array([spec.class_weights["0"], spec.class_weights["1"]])
        self._rows = _MIN_ROWS
        self._statistics = np.zeros((self._rows, STATISTICS))
        self._first, self._second = _Bank(self._rows), _Bank(1)
        self._banks = 1
        self._shares = np.zeros((2, M))
        self._shares[0] = 1.0 / M
        self._scalars = np.zeros(SCALARS)

    def score(self, columns: Ints, values: Floats) -> float:
        """The mixture's score for one event; changes nothing."""
        return self._score_and_seen(columns, values)[0]

    def _score_and_seen(self, columns: Ints, values: Floats) -> tuple[float, Table]:
        """The score, and the values in each learner's view, (n, K)."""
        room = _room(len(columns))
        banks = (self._first.w, self._first.stack, self._second.w, self._second.stack)
        score = event_score(columns, values, self._statistics, *banks, self._shares, self._banks, _views, *room)
        return score, room[1]

    def served(self, columns: Ints, values: Floats, features: int) -> Floats:
        """The score for one event, as in `Learner.served`."""
        return np.array([self.score(columns, values)])

    def terms(self, columns: Ints, values: Floats) -> Terms:
        """The parts of the score for one event, for n known features; copies."""
        _, seen = self._score_and_seen(columns, values)
        banks = (self._first, self._second)[: self._banks]
        return Terms(
            np.stack([bank.w[0] for bank in banks]),
            np.stack([bank.w[columns + 1] * seen for bank in banks], axis=1),
            np.stack([bank.stack for bank in banks]),
            self._shares[: self._banks].copy(),
        )

    def learn(self, batch: Batch, taken: int, scores: Floats, learned: npt.NDArray[np.bool_]) -> None:
        """Learn n events in order. Every step is taken: scores and values are bounded, so all numbers stay finite."""
        learned[:] = True
        room = *_room(batch.longest), np.empty(M), np.ones(K)
        at = 0
        while at < len(batch):
            at = learn_many(
                at, batch.offsets, batch.columns, batch.values, batch.labels, batch.weights,
                self._clip, self._class_weights, self._statistics, *self._first.arrays(), *self._second.arrays(),
                self._shares, self._banks, self._scalars, _views, _rates, _stack_rates, scores, *room,
            )  # fmt: skip
            if self._scalars[EXCESS] > ALARM:
                self._restart_second()

    def _restart_second(self) -> None:
        """Start the second bank from zero with half of the weight. The first bank's learners share the rest."""
        self._scalars[EXCESS] = 0.0
        self._scalars[ALARMS] += 1.0
        self._second = _Bank(self._rows)
        self._banks = 2
        self._shares[0] *= 0.5 / self._shares[0].sum()
        self._shares[1] = 0.5 / M

    @property
    def rows(self) -> int:
        """How many features the arrays have room for."""
        return self._rows - 1

    def add(self, first: int, names: Sequence[str]) -> None:
        """Add features, all 0, at the columns from `first` on."""
        features = first + len(names)
        if features + 1 <= self._rows:
            return
        rows = max(features + 1, 2 * self._rows)
        self._statistics = grown(self._statistics, rows)
        self._first.grow(rows)
        if self._banks == 2:
            self._second.grow(rows)
        self._rows = rows

    def learners(self) -> list[dict[str, Any]]:
        """Every learner with its present weight in the mixture, heaviest first."""
        rules = ["sgd"] * len(SGD) + ["adagrad"] * len(ADAGRAD) + ["ftrl"] * len(FTRL)
        named = [(VIEWS[view], rule, rate) for (view, rate), rule in zip(_LEARNERS, rules, strict=True)]
        named += [("all", "stack", rate) for rate in STACKERS]
        weights: list[dict[str, Any]] = [
            {"bank": bank, "view": view, "rule": rule, "learning_rate": rate, "weight": share}
            for bank, shares in enumerate(self._shares[: self._banks].tolist(), 1)
            for (view, rule, rate), share in zip(named, shares, strict=True)
        ]
        return sorted(weights, key=lambda learner: -learner["weight"])

    @property
    def alarms(self) -> int:
        """How often the second bank was started or restarted."""
        return int(self._scalars[ALARMS])

    def arrays(self, features: int) -> dict[str, Table]:
        """The whole state of the bias and the first `features` columns, as copies."""
        arrays = {
            "banks": np.array([float(self._banks)]),
            "statistics": self._statistics[:features].flatten(),
            "shares": self._shares.flatten(),
            "scalars": self._scalars.copy(),
        }
        for name, bank in (("first", self._first), ("second", self._second))[: self._banks]:
            arrays |= {f"{name}_{part}": array.flatten() for part, array in bank.used(features + 1).items()}
        return arrays

    def load(self, arrays: dict[str, Table], names: Sequence[str]) -> None:
        """Load what `arrays` returned; `names` are the features' names."""
        features = len(names)
        self.add(0, names)
        self._banks = int(arrays["banks"][0])
        self._statistics[:features] = arrays["statistics"].reshape(features, STATISTICS)
        self._shares[:] = arrays["shares"].reshape(self._shares.shape)
        self._scalars[:] = arrays["scalars"]
        if self._banks == 2:
            self._second = _Bank(self._rows)
        for name, bank in (("first", self._first), ("second", self._second))[: self._banks]:
            for part, array in bank.used(features + 1).items():
                array[:] = arrays[f"{name}_{part}"].reshape(array.shape)
