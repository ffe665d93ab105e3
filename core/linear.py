"""The state of a single logistic regression, as `Learner` keeps it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from core import rules
from core.features import Batch, is_text
from core.logistic import Floats, Ints
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
        self._kept = np.zeros((_MIN_ROWS, rules.RULES[spec.rule].keeps))
        self._scaler = np.zeros((_MIN_ROWS, _SCALER_KEEPS[spec.scale]))
        self._paid = np.zeros(_MIN_ROWS if pays else 0)
        self._scalars = np.zeros(rules.SCALARS)
        self._scalars[rules.FINAL_LR] = spec.final_lr or 0.0
        self._scales = spec.scale != "none"
        constant = self._codes[rules.SCHEDULE] == self._codes[rules.BIAS_SCHEDULE] == rules.CONSTANT
        self.plain = spec.rule == "sgd" and constant and not (self._scales or spec.l1 or spec.l2)
        """Whether the model is plain SGD, which has its own kernel."""

    @property
    def bias(self) -> float:
        return float(self._scalars[rules.BIAS])

    def score(self, columns: Ints, values: Floats) -> float:
        """w·x + b for one event; changes nothing."""
        state = (self.weights, self._scaler, self._scalars, self._codes, self._q)
        score: float = rules.predict_score(columns, values, *state, np.empty(len(columns)))
        return score

    def served(self, columns: Ints, values: Floats, features: int) -> Floats:
        """The score for one event and its parts, as in `Learner.served`; changes nothing.

        `features`: how many columns the model has learned.
        """
        n = len(columns)
        numbers = np.empty(2 + (2 * n if self._scales else n))
        state = (self.weights, self._scaler, self._scalars, self._codes, self._q)
        rules.serve_into(columns, values, features, *state, numbers)
        return numbers

    def learn(self, batch: Batch, taken: int, scores: Floats, learned: npt.NDArray[np.bool_]) -> None:
        """n events, n steps, in order, after `taken` steps. Fills `scores` (before each step) and `learned`."""
        if self.plain:
            events = (batch.offsets, batch.columns.view(np.uint32), batch.values, batch.labels, batch.weights)
            room = np.empty(len(batch.columns))  # more than any event needs, but cheap to know
            rules.learn_many_sgd(*events, self.weights, self._scalars, self._q, scores, learned, room)
            return
        longest = batch.longest
        rules.learn_many(
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
            np.empty((longest + 1, rules.SAVED)),
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
            self._scaler[as_is] = rules.AS_IS[: self._scaler.shape[1]]

    def _make_room(self, features: int) -> None:
        if features <= len(self.weights):
            return
        rows = max(features, 2 * len(self.weights))
        self._kept = rules.grown(self._kept, rows)
        self._scaler = rules.grown(self._scaler, rows)
        if len(self._paid):
            self._paid = rules.grown(self._paid, rows)
        self.weights = rules.grown(self.weights, rows)

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
    codes[rules.RULE] = rules.RULES[spec.rule].code
    codes[rules.SCALE] = {"none": rules.UNSCALED, "standard": rules.STANDARD, "maxabs": rules.MAXABS}[spec.scale]
    codes[rules.SCHEDULE] = _schedule(spec.rate)[0]
    codes[rules.BIAS_SCHEDULE] = _schedule(spec.bias_rate)[0]
    codes[rules.PENALTY] = spec.rule != "ftrl"  # ftrl applies l1 and l2 itself
    return codes


def _parameters(spec: Spec) -> Floats:
    """A spec's numbers, in the kernels' order."""
    q = np.zeros(rules.PARAMETERS)
    q[[rules.SQUARE, rules.ROOT, rules.INVERSE]] = 2.0, 0.5, -1.0
    q[[rules.L1, rules.L2, rules.CLIP]] = spec.l1, spec.l2 or 0.0, spec.clip
    q[[rules.WEIGHT_0, rules.WEIGHT_1]] = spec.class_weights["0"], spec.class_weights["1"]
    code, q[rules.RATE], q[rules.RATE_SHAPE] = _schedule(spec.rate)
    q[rules.FIRST_RATE] = rules.scheduled(code, q[rules.RATE], q[rules.RATE_SHAPE], 0.0)
    _, q[rules.BIAS_RATE], q[rules.BIAS_RATE_SHAPE] = _schedule(spec.bias_rate)
    for place, value in (
        (rules.RHO, spec.rho),
        (rules.EPS, spec.eps),
        (rules.BETA_1, spec.beta_1),
        (rules.BETA_2, spec.beta_2),
        (rules.GAMMA, spec.gamma),
        (rules.BETA, spec.beta),
        (rules.LAG, spec.lag),
        (rules.CORRECT_BIAS, spec.correct_bias),
    ):
        q[place] = 0.0 if value is None else float(value)
    return q


def _schedule(rate: Rate | None) -> tuple[int, float, float]:
    """A learning rate's code, and the two numbers for `rules.scheduled`."""
    if isinstance(rate, InverseScaling):
        return rules.INVERSE_SCALING, rate.learning_rate, rate.power
    if isinstance(rate, Optimal):
        first = math.sqrt(1.0 / math.sqrt(rate.alpha))  # Bottou's eta_0: the size of a typical weight
        return rules.OPTIMAL, rate.alpha, 1.0 / (first * rate.alpha)
    return rules.CONSTANT, rate or 0.0, 0.0
