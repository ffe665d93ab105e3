"""`Learner`: what a caller holds. A spec in, events in, predictions and state out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from core import logistic, rules
from core.features import Batch, BatchBuilder, Features, X
from core.logistic import Floats, Labels
from core.spec import InverseScaling, Optimal, Rate, Spec

MIN_CAPACITY = 64
"""Weights to make room for at first; the room doubles when it is used up."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `learn_batch` found for each of n events *before* its step.

    `probabilities`, `losses` (float64, nats): of the prediction before the step. `learned` (bool): whether the step was
    taken; a step that would leave a number that is not finite is not, and its loss says nothing.
    """

    probabilities: Floats
    losses: Floats
    labels: Labels
    learned: npt.NDArray[np.bool_]


class Learner:
    """Logistic regression, one gradient step an event.

    `predict_proba_one`, `learn_one` and `learn_many` mean what they mean in river, except that `learn_many` is n steps.

    >>> learner = Learner(Spec(learning_rate=0.5))
    >>> learner.learn_one({"x": 2.0}, 1)
    >>> learner.weights_by_name(), learner.bias
    ({'x': 0.5}, 0.25)
    >>> learner.predict_proba_one({"x": 0.0})
    {False: 0.43782349911420193, True: 0.5621765008857981}
    """

    def __init__(self, spec: Spec | None = None) -> None:
        self.spec = Spec() if spec is None else spec
        self.features = Features(self.spec.max_features, self.spec.hash_bits, self.spec.max_value)
        self.seq = 0
        """Events so far, whether their step was taken or not."""
        self.not_taken = 0
        """Events whose step would have left a number that is not finite, and was not taken."""
        self._n_features = 0
        self._codes, self._q = _codes(self.spec), _parameters(self.spec)
        keeps = rules.RULES[self.spec.rule].keeps
        pays = self.spec.l1 > 0 and self.spec.rule != "ftrl"
        # A row for each feature: its weight, what the rule keeps, what the scaler keeps, the L1 penalty it has paid.
        self._weights = np.zeros(MIN_CAPACITY)
        self._kept = np.zeros((MIN_CAPACITY, keeps))
        self._scaler = np.zeros((MIN_CAPACITY, _SCALER_KEEPS[self.spec.scale]))
        self._paid = np.zeros(MIN_CAPACITY if pays else 0)
        self._scalars = np.zeros(rules.SCALARS)
        self._scalars[rules.FINAL_LR] = self.spec.final_lr or 0.0

    @property
    def bias(self) -> float:
        return float(self._scalars[rules.BIAS])

    @property
    def n_features(self) -> int:
        """How many features the events so far had. `features` may know more: those of a batch not yet learned."""
        return self._n_features

    @property
    def names(self) -> list[str]:
        """The features' names in column order."""
        return self.features.names[: self._n_features]

    @property
    def weights(self) -> Floats:
        """The weights in column order, (n_features,) float64: a view, not a copy."""
        return self._weights[: self._n_features]

    def weights_by_name(self) -> dict[str, float]:
        """Feature name -> weight."""
        return dict(zip(self.names, self.weights.tolist(), strict=True))

    def sha256(self) -> str:
        """Of the UTF-8 names in column order, each ended by a zero byte, then the weights in that order and the bias
        as little-endian float64."""
        names = "".join(name + "\0" for name in self.names)
        digest = hashlib.sha256(names.encode())
        digest.update(self.weights.astype("<f8").tobytes())
        digest.update(np.array([self.bias], "<f8").tobytes())
        return digest.hexdigest()

    # -- predicting

    def score(self, x: X) -> float:
        """w·x + b. Changes nothing; features that the model does not know add nothing."""
        columns, values = self.features.encode(x)
        return rules.predict_score(
            np.array(columns, np.int32),
            np.array(values),
            self._weights,
            self._scaler,
            self._scalars,
            self._codes,
            self._q,
            np.empty(len(columns)),
        )

    def predict_proba_one(self, x: X) -> dict[bool, float]:
        """The probability of each label for x."""
        p = logistic.sigmoid(self.score(x))
        return {False: 1.0 - p, True: p}

    # -- learning

    def learn_one(self, x: X, y: int, w: float = 1.0) -> None:
        """One step for one event with label `y` (0 or 1) and sample weight `w` (above 0). Raises EventError."""
        self.learn_many([x], [y], [w])

    def learn_many(self, xs: Iterable[X], ys: Iterable[int], ws: Iterable[float] | None = None) -> Outcome:
        """n events, n steps, in order. All or nothing: EventError for one of them, and nothing is learned."""
        builder = BatchBuilder(self.features)
        start = builder.mark()
        try:
            if ws is None:
                for x, y in zip(xs, ys, strict=True):
                    builder.add(x, y)
            else:
                for x, y, w in zip(xs, ys, ws, strict=True):
                    builder.add(x, y, w)
        except BaseException:
            builder.take_back(start)
            raise
        return self.learn_batch(builder.build())

    def learn_batch(self, batch: Batch) -> Outcome:
        """`learn_many` for events that are arrays already, with columns of `features`."""
        n = len(batch)
        scores, learned = np.empty(n), np.empty(n, np.bool_)
        if len(batch.columns):
            self._n_features = max(self._n_features, int(batch.columns.max()) + 1)
        self._make_room(self._n_features)
        rules.learn_many(
            batch.offsets,
            batch.columns,
            batch.values,
            batch.labels,
            batch.weights,
            float(self.seq - self.not_taken),
            self._weights,
            self._kept,
            self._scaler,
            self._paid,
            self._scalars,
            self._codes,
            self._q,
            scores,
            learned,
        )
        self.seq += n
        self.not_taken += n - int(np.count_nonzero(learned))
        probabilities, losses = np.empty(n), np.empty(n)
        logistic.assess(scores, batch.labels, probabilities, losses)
        return Outcome(probabilities, losses, batch.labels, learned)

    def _make_room(self, features: int) -> None:
        """Room for `features` columns; what is new is 0."""
        if features <= len(self._weights):
            return
        room = max(features, 2 * len(self._weights))
        self._weights = _grown(self._weights, room)
        self._kept = _grown(self._kept, room)
        self._scaler = _grown(self._scaler, room)
        if len(self._paid):
            self._paid = _grown(self._paid, room)

    # -- state

    def state(self, names: bool = True) -> dict[str, Any]:
        """Everything that the learner is, as JSON types and arrays of float64: copies, which later steps leave alone.

        Without `names` the caller keeps the features' names itself, as the service does, and gives them back to
        `from_state`.
        """
        state = {
            "spec": self.spec.as_dict(),
            "seq": self.seq,
            "not_taken": self.not_taken,
            "weights": self.weights.copy(),
            "kept": self._kept[: self._n_features].ravel(),
            "scaler": self._scaler[: self._n_features].ravel(),
            "paid": self._paid[: self._n_features].copy(),
            "scalars": self._scalars.copy(),
        }
        if names:
            state["names"] = self.names
        return state

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Learner:
        """The learner that `state()` described, to the last bit."""
        learner = cls(Spec.from_dict(state["spec"]))
        learner.features.extend(state["names"])
        learner.seq, learner.not_taken = state["seq"], state["not_taken"]
        learner._n_features = len(state["weights"])
        learner._make_room(learner._n_features)
        count = learner._n_features
        learner._weights[:count] = state["weights"]
        learner._kept[:count] = state["kept"].reshape(count, -1) if count else 0.0
        learner._scaler[:count] = state["scaler"].reshape(count, -1) if count else 0.0
        learner._paid[: len(state["paid"])] = state["paid"]
        learner._scalars[:] = state["scalars"]
        return learner


_SCALER_KEEPS = {"none": 0, "standard": 3, "maxabs": 1}


def _grown(array: Floats, room: int) -> Floats:
    """The array with zeros after it, so that it has `room` rows."""
    grown = np.zeros((room, *array.shape[1:]))
    grown[: len(array)] = array
    return grown


def _codes(spec: Spec) -> npt.NDArray[np.int64]:
    """A spec's choices, as the kernels take them."""
    codes = np.zeros(5, np.int64)
    codes[rules.RULE] = rules.RULES[spec.rule].code
    codes[rules.SCALE] = {"none": rules.UNSCALED, "standard": rules.STANDARD, "maxabs": rules.MAXABS}[spec.scale]
    codes[rules.SCHEDULE] = _schedule(spec.rate)[0]
    codes[rules.BIAS_SCHEDULE] = _schedule(spec.bias_rate)[0]
    codes[rules.PENALTY] = spec.rule != "ftrl"  # its l1 and l2 are its own
    return codes


def _parameters(spec: Spec) -> Floats:
    """A spec's numbers, as the kernels take them."""
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
    """A learning rate as its code and the two numbers that `rules.scheduled` takes."""
    if isinstance(rate, InverseScaling):
        return rules.INVERSE_SCALING, rate.learning_rate, rate.power
    if isinstance(rate, Optimal):
        first = math.sqrt(1.0 / math.sqrt(rate.alpha))  # Bottou's eta_0: the size of a typical weight
        return rules.OPTIMAL, rate.alpha, 1.0 / (first * rate.alpha)
    return rules.CONSTANT, rate or 0.0, 0.0
