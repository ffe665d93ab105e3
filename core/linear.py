"""The state of a single logistic regression, as `Learner` keeps it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from core import slots, step
from core.batch import Batch
from core.features import is_text
from core.logistic import Floats, Ints
from core.rules import RULES
from core.spec import InverseScaling, Optimal, Rate, Spec

_MIN_ROWS = 64
_SCALER_KEEPS = {"none": 0, "standard": 3, "maxabs": 1}


class Linear:
    """Weights, bias, and the numbers that rule, scaler and penalty keep for each feature."""

    def __init__(self, spec: Spec) -> None:
        self._codes, self._q = _codes(spec), _parameters(spec)
        pays = spec.l1 > 0 and spec.rule != "ftrl"
        # One row per feature: its weight, the rule's numbers, the scaler's numbers, the L1 penalty paid.
        self.weights = np.zeros(_MIN_ROWS)
        self._kept = np.zeros((_MIN_ROWS, RULES[spec.rule].keeps))
        self._scaler = np.zeros((_MIN_ROWS, _SCALER_KEEPS[spec.scale]))
        self._paid = np.zeros(_MIN_ROWS if pays else 0)
        self._scalars = np.zeros(slots.SCALARS)
        self._scalars[slots.FINAL_LR] = spec.final_lr or 0.0
        self._scales = spec.scale != "none"
        constant = self._codes[slots.SCHEDULE] == self._codes[slots.BIAS_SCHEDULE] == slots.CONSTANT
        self.plain = spec.rule == "sgd" and constant and not (self._scales or spec.l1 or spec.l2)
        """Whether the model is plain SGD, which has its own kernel."""

    @property
    def bias(self) -> float:
        return float(self._scalars[slots.BIAS])

    def score(self, columns: Ints, values: Floats) -> float:
        """w·x + b for one event; changes nothing."""
        state = (self.weights, self._scaler, self._scalars, self._codes, self._q)
        score: float = step.predict_score(columns, values, *state, np.empty(len(columns)))
        return score

    def served(self, columns: Ints, values: Floats, features: int) -> Floats:
        """The score for one event and its parts, as in `Learner.served`; changes nothing.

        `features`: how many columns the model has learned.
        """
        n = len(columns)
        numbers = np.empty(2 + (2 * n if self._scales else n))
        state = (self.weights, self._scaler, self._scalars, self._codes, self._q)
        step.serve_into(columns, values, features, *state, numbers)
        return numbers

    def learn(self, batch: Batch, taken: int, scores: Floats, learned: npt.NDArray[np.bool_]) -> None:
        """n events, n steps, in order, after `taken` steps. Fills `scores` (before each step) and `learned`."""
        if self.plain:
            events = (batch.offsets, batch.columns.view(np.uint32), batch.values, batch.labels, batch.weights)
            room = np.empty(len(batch.columns))  # more than any event needs, but cheap to know
            step.learn_many_sgd(*events, self.weights, self._scalars, self._q, scores, learned, room)
            return
        longest = batch.longest
        step.learn_many(
            batch.offsets,
            batch.columns,
            batch.values,
            batch.labels,
            batch.weights,
            float(taken),
            self.weights,
            self._kept,
            self._scaler,
            self._paid,
            self._scalars,
            self._codes,
            self._q,
            scores,
            learned,
            np.empty(longest),
            np.empty(longest),
            np.empty((longest + 1, step.SAVED)),
        )

    @property
    def rows(self) -> int:
        """How many features the arrays have room for."""
        return len(self.weights)

    def add(self, first: int, names: Sequence[str]) -> None:
        """Add features, all 0, at the columns from `first` on. Their names tell which are not scaled."""
        self._make_room(first + len(names))
        if self._scales:
            as_is = [first + i for i, name in enumerate(names) if is_text(name)]
            self._scaler[as_is] = step.AS_IS[: self._scaler.shape[1]]

    def _make_room(self, features: int) -> None:
        if features <= len(self.weights):
            return
        rows = max(features, 2 * len(self.weights))
        self._kept = step.grown(self._kept, rows)
        self._scaler = step.grown(self._scaler, rows)
        if len(self._paid):
            self._paid = step.grown(self._paid, rows)
        self.weights = step.grown(self.weights, rows)

    def arrays(self, features: int) -> dict[str, Floats]:
        """The whole state of the first `features` columns, as copies."""
        return {
            "weights": self.weights[:features].copy(),
            "kept": self._kept[:features].flatten(),
            "scaler": self._scaler[:features].flatten(),
            "paid": self._paid[:features].copy(),
            "scalars": self._scalars.copy(),
        }

    def load(self, arrays: dict[str, Floats], names: Sequence[str]) -> None:
        """Load what `arrays` returned; `names` are the features' names."""
        features = len(names)
        if len(arrays["weights"]) != features:
            raise ValueError("a state must have a weight for each feature")  # numpy would broadcast one
        self._make_room(features)
        self.weights[:features] = arrays["weights"]
        self._kept[:features] = arrays["kept"].reshape(features, self._kept.shape[1])
        self._scaler[:features] = arrays["scaler"].reshape(features, self._scaler.shape[1])
        self._paid[: len(arrays["paid"])] = arrays["paid"]
        self._scalars[:] = arrays["scalars"]


def _codes(spec: Spec) -> npt.NDArray[np.int64]:
    """A spec's choices, encoded for the kernels."""
    codes = np.zeros(5, np.int64)
    codes[slots.RULE] = RULES[spec.rule].code
    codes[slots.SCALE] = {"none": slots.UNSCALED, "standard": slots.STANDARD, "maxabs": slots.MAXABS}[spec.scale]
    codes[slots.SCHEDULE] = _schedule(spec.rate)[0]
    codes[slots.BIAS_SCHEDULE] = _schedule(spec.bias_rate)[0]
    codes[slots.PENALTY] = spec.rule != "ftrl"  # ftrl applies l1 and l2 itself
    return codes


def _parameters(spec: Spec) -> Floats:
    """A spec's numbers, in the kernels' order."""
    q = np.zeros(slots.PARAMETERS)
    q[[slots.SQUARE, slots.ROOT, slots.INVERSE]] = 2.0, 0.5, -1.0
    q[[slots.L1, slots.L2, slots.CLIP]] = spec.l1, spec.l2 or 0.0, spec.clip
    q[[slots.WEIGHT_0, slots.WEIGHT_1]] = spec.class_weights["0"], spec.class_weights["1"]
    code, q[slots.RATE], q[slots.RATE_SHAPE] = _schedule(spec.rate)
    q[slots.FIRST_RATE] = step.scheduled(code, q[slots.RATE], q[slots.RATE_SHAPE], 0.0)
    _, q[slots.BIAS_RATE], q[slots.BIAS_RATE_SHAPE] = _schedule(spec.bias_rate)
    for place, value in (
        (slots.RHO, spec.rho),
        (slots.EPS, spec.eps),
        (slots.BETA_1, spec.beta_1),
        (slots.BETA_2, spec.beta_2),
        (slots.GAMMA, spec.gamma),
        (slots.BETA, spec.beta),
        (slots.LAG, spec.lag),
        (slots.CORRECT_BIAS, spec.correct_bias),
    ):
        q[place] = 0.0 if value is None else float(value)
    return q


def _schedule(rate: Rate | None) -> tuple[int, float, float]:
    """A learning rate's code, and the two numbers for `step.scheduled`."""
    if isinstance(rate, InverseScaling):
        return slots.INVERSE_SCALING, rate.learning_rate, rate.power
    if isinstance(rate, Optimal):
        first = math.sqrt(1.0 / math.sqrt(rate.alpha))  # Bottou's eta_0: the size of a typical weight
        return slots.OPTIMAL, rate.alpha, 1.0 / (first * rate.alpha)
    return slots.CONSTANT, rate or 0.0, 0.0
