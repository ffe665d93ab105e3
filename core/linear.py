"""The state of a single logistic regression, as `Learner` keeps it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from core import logistic, rules, step
from core.batch import Batch
from core.copying import Copy
from core.features import is_text
from core.logistic import Floats, Ints
from core.rules import RULES, Codes, State
from core.spec import InverseScaling, Optimal, Rate, Spec

_MIN_ROWS = 64
_ARRAYS = ("weights", "kept", "scaler", "paid", "scalars")
"""What `arrays` calls the fields of State."""
_SCALES = {"none": (rules.UNSCALED, 0), "standard": (rules.STANDARD, 3), "maxabs": (rules.MAXABS, 1)}
"""For each `scale`, its code, and how many numbers the scaler keeps per feature."""


class Linear:
    """Weights, bias, and the numbers that rule, scaler and penalty keep for each feature."""

    def __init__(self, spec: Spec) -> None:
        pays = spec.l1 > 0 and spec.rule != "ftrl"
        self.state = State(
            w=np.zeros(_MIN_ROWS),
            s=np.zeros((_MIN_ROWS, len(RULES[spec.rule].keeps))),
            scaler=np.zeros((_MIN_ROWS, _SCALES[spec.scale][1])),
            paid=np.zeros(_MIN_ROWS if pays else 0),
            scalars=np.zeros(rules.SCALARS),
        )
        self._codes, self.q = _encoded(spec)
        self.state.scalars[rules.FINAL_LR] = spec.final_lr or 0.0
        self.scales = spec.scale != "none"
        constant = self._codes[rules.SCHEDULE] == self._codes[rules.BIAS_SCHEDULE] == rules.CONSTANT
        self.plain = spec.rule == "sgd" and constant and not (self.scales or spec.l1 or spec.l2)
        """Whether the model is plain SGD, which has its own kernel."""

    @property
    def bias(self) -> float:
        return float(self.state.scalars[rules.BIAS])

    def score(self, columns: Ints, values: Floats) -> float:
        """w·x + b for one event; changes nothing."""
        state = self.state
        if self.scales:
            return step.predict_score(columns, values, *state, self._codes, self.q, np.empty(len(columns)))
        return logistic.score(columns, values, state.w, state.scalars[rules.BIAS])

    def served(self, columns: Ints, values: Floats, features: int) -> Floats:
        """The score for one event and its parts, as in `Learner.served_of`; changes nothing. `features`: how many
        columns the model has learned."""
        n = len(columns)
        numbers = np.empty(2 + (2 * n if self.scales else n))
        step.serve_into(columns, values, features, *self.state, self._codes, self.q, numbers)
        return numbers

    def learn(self, batch: Batch, taken: int, scores: Floats, learned: npt.NDArray[np.bool_]) -> int:
        """n events, n steps, in order, after `taken` steps. Fills `scores` (before each step) and `learned`. Returns
        how many steps were not taken."""
        state = self.state
        if self.plain:
            before = np.empty(len(batch.columns))  # more than any event needs, but cheap to know
            columns = batch.columns.view(np.uint32)
            return step.learn_many_sgd(
                batch.offsets, columns, batch.values, batch.labels, batch.weights, state.w, state.scalars, self.q,
                scores, learned, before,
            )  # fmt: skip
        longest = batch.longest
        return step.learn_many(
            batch.offsets, batch.columns, batch.values, batch.labels, batch.weights, float(taken),
            *state, self._codes, self.q, scores, learned,
            np.empty(longest), np.empty(longest), np.empty((longest + 1, step.SAVED)),
        )  # fmt: skip

    @property
    def rows(self) -> int:
        """How many features the arrays have room for."""
        return len(self.state.w)

    def add(self, first: int, names: Sequence[str]) -> None:
        """Add features, all 0, at the columns from `first` on. Their names tell which are not scaled."""
        if first + len(names) > self.rows:
            rows, (*arrays, paid, scalars) = max(first + len(names), 2 * self.rows), self.state
            w, s, scaler = (step.grown(array, rows) for array in arrays)
            self.state = State(w, s, scaler, step.grown(paid, rows) if len(paid) else paid, scalars)
        if self.scales:
            as_is = [first + i for i, name in enumerate(names) if is_text(name)]
            self.state.scaler[as_is] = step.AS_IS[: self.state.scaler.shape[1]]

    def _used(self, features: int) -> dict[str, Floats]:
        """The arrays of the state, up to the first `features` columns."""
        *columns, scalars = self.state
        return dict(zip(_ARRAYS, (*(array[:features] for array in columns), scalars), strict=True))

    def size(self, features: int) -> int:
        """Bytes of what `arrays` returns."""
        return sum(array.nbytes for array in self._used(features).values())

    def arrays(self, features: int) -> dict[str, Floats]:
        """The whole state of the first `features` columns, as copies."""
        return {name: array.flatten() for name, array in self._used(features).items()}

    def copy(self, features: int) -> Copy:
        """A copy of the arrays with a row for each of the first `features` columns, made by slices. The scalars are
        there at once."""

        def rows() -> dict[str, Floats]:
            used = self._used(features)
            return {name: used[name] for name in _ARRAYS[:-1] if len(used[name]) == features}

        copy = Copy(rows, features)
        at_once = {name: array.flatten() for name, array in self._used(features).items() if name not in copy.arrays}
        copy.arrays = {name: (copy.arrays | at_once)[name] for name in _ARRAYS}
        return copy

    def load(self, arrays: dict[str, Floats], names: Sequence[str]) -> None:
        """Load what `arrays` returned; `names` are the features' names."""
        self.add(0, names)
        for name, array in self._used(len(names)).items():
            array[:] = arrays[name].reshape(array.shape)  # numpy would broadcast a single number


def _encoded(spec: Spec) -> tuple[Codes, Floats]:
    """A spec's choices and numbers, in the kernels' order."""
    codes, q = np.zeros(5, np.int64), np.zeros(rules.PARAMETERS)
    codes[rules.RULE] = list(RULES).index(spec.rule)
    codes[rules.SCALE], _ = _SCALES[spec.scale]
    codes[rules.PENALTY] = spec.rule != "ftrl"  # ftrl applies l1 and l2 itself
    q[[rules.SQUARE, rules.ROOT, rules.INVERSE]] = 2.0, 0.5, -1.0
    q[[rules.L1, rules.L2, rules.CLIP]] = spec.l1, spec.l2 or 0.0, spec.clip
    q[[rules.WEIGHT_0, rules.WEIGHT_1]] = spec.class_weights["0"], spec.class_weights["1"]
    codes[rules.SCHEDULE], q[rules.RATE], q[rules.RATE_SHAPE] = _schedule(spec.learning_rate)
    codes[rules.BIAS_SCHEDULE], q[rules.BIAS_RATE], q[rules.BIAS_RATE_SHAPE] = _schedule(spec.bias_learning_rate)
    q[rules.FIRST_RATE] = step.scheduled(codes[rules.SCHEDULE], q[rules.RATE], q[rules.RATE_SHAPE], 0.0)
    for name, place in rules.OF_RULES.items():
        q[place] = float(getattr(spec, name) or 0.0)
    return codes, q


def _schedule(rate: Rate | None) -> tuple[int, float, float]:
    """A learning rate's code, and the two numbers for `step.scheduled`."""
    if isinstance(rate, InverseScaling):
        return rules.INVERSE_SCALING, rate.learning_rate, rate.power
    if isinstance(rate, Optimal):
        first = math.sqrt(1.0 / math.sqrt(rate.alpha))  # Bottou's eta_0: the size of a typical weight
        return rules.OPTIMAL, rate.alpha, 1.0 / (first * rate.alpha)
    return rules.CONSTANT, rate or 0.0, 0.0
