"""`Learner`: what a caller holds. A spec in, events in, predictions and state out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from core import logistic
from core.features import Batch, BatchBuilder, Features, X
from core.logistic import Floats, Labels

MIN_CAPACITY = 64
"""Weights to make room for at first; the room doubles when it is used up."""


class SpecError(ValueError):
    """A spec that makes no sense: `field` names the part of it, the message says why."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field} {message}")
        self.field = field
        self.message = message


_ABOVE_ZERO = ("learning_rate", "clip", "max_value")
_ZERO_OR_MORE = ("bias_learning_rate", "l1", "l2")


@dataclass(frozen=True, slots=True)
class Spec:
    """How a model learns. Names and meaning are those of river's `LogisticRegression`.

    rule
        How a gradient moves the weights. `sgd`: w <- w - learning_rate * gradient.
    learning_rate
        Step size for the weights, above 0. Default 0.01.
    bias_learning_rate
        Step size for the bias, 0 or more; 0 leaves it at 0. Default: `learning_rate` (river's `intercept_lr` is 0.01).
    l1
        Cumulative L1 penalty (Tsuruoka et al. 2009), 0 or more. Default 0.
    l2
        L2 penalty, 0 or more, on the weights of the event's own features; the bias is not penalised. Default 0.
        Not together with `l1`, as in river.
    clip
        The residual p - y times the sample weight is clipped to ±clip, above 0. Default 1e12.
    max_features
        How many features the model may have; past it an event with a new one is refused. Default 1,000,000.
    hash_bits
        With k, feature names are hashed to 2^k features, 1 to 30; `max_features` is then 2^k. Default None: no hashing.
    max_value
        Largest magnitude of a feature's value, above 0 and at most 1e300. Default 1e100.

    Raises SpecError, which names the field.

    >>> Spec(learning_rate=0.1).bias_learning_rate
    0.1
    >>> Spec(learning_rate=0)
    Traceback (most recent call last):
        ...
    core.learner.SpecError: learning_rate must be a number above 0
    """

    rule: Literal["sgd"] = "sgd"
    learning_rate: float = 0.01
    bias_learning_rate: float | None = None
    l1: float = 0.0
    l2: float = 0.0
    clip: float = 1e12
    max_features: int = 1_000_000
    hash_bits: int | None = None
    max_value: float = 1e100

    def __post_init__(self) -> None:
        if self.bias_learning_rate is None:
            object.__setattr__(self, "bias_learning_rate", self.learning_rate)
        for field in (*_ABOVE_ZERO, *_ZERO_OR_MORE):
            object.__setattr__(self, field, float(getattr(self, field)))  # 1 and 1.0 are the same spec
        for field, good, message in self._checks():
            if not good:
                raise SpecError(field, message)

    def _checks(self) -> Iterator[tuple[str, bool, str]]:
        yield "rule", self.rule == "sgd", "must be 'sgd'"
        for field in _ABOVE_ZERO:
            yield field, 0 < getattr(self, field) < math.inf, "must be a number above 0"
        for field in _ZERO_OR_MORE:
            yield field, 0 <= getattr(self, field) < math.inf, "must be a number, 0 or more"
        yield "l2", not (self.l1 and self.l2), "cannot be used together with l1"
        yield "max_value", self.max_value <= 1e300, "must be at most 1e300"
        yield "max_features", 1 <= self.max_features <= 2**30, "must be from 1 to 2^30"
        yield "hash_bits", self.hash_bits is None or 1 <= self.hash_bits <= 30, "must be from 1 to 30, or null"

    @property
    def bias_rate(self) -> float:
        """`bias_learning_rate`, which is `learning_rate` where it was not given."""
        return self.learning_rate if self.bias_learning_rate is None else self.bias_learning_rate

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Spec:
        """The spec that `asdict` wrote; SpecError for a field that does not exist."""
        known = {field.name for field in fields(cls)}
        for name in values:
            if name not in known:
                raise SpecError(name, "is not a field of a spec")
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """The spec as JSON types, every default written out."""
        return asdict(self)


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
        self._weights = np.zeros(MIN_CAPACITY)
        self._paid = np.zeros(MIN_CAPACITY if self.spec.l1 else 0)
        self._scalars = np.zeros(logistic.SCALARS)

    @property
    def bias(self) -> float:
        return float(self._scalars[logistic.BIAS])

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
        return logistic.score(np.array(columns, np.int32), np.array(values), self._weights, self.bias)

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
        logistic.learn_many(
            batch.offsets,
            batch.columns,
            batch.values,
            batch.labels,
            batch.weights,
            self._weights,
            self._paid,
            self._scalars,
            self.spec.learning_rate,
            self.spec.bias_rate,
            self.spec.l1,
            self.spec.l2,
            self.spec.clip,
            scores,
            learned,
        )
        self.seq += n
        self.not_taken += n - int(np.count_nonzero(learned))
        probabilities, losses = np.empty(n), np.empty(n)
        logistic.assess(scores, batch.labels, probabilities, losses)
        return Outcome(probabilities, losses, batch.labels, learned)

    def _make_room(self, features: int) -> None:
        """Room for the weights of `features` columns; new weights are 0."""
        if features <= len(self._weights):
            return
        room = max(features, 2 * len(self._weights))
        self._weights = np.concatenate([self._weights, np.zeros(room - len(self._weights))])
        if self.spec.l1:
            self._paid = np.concatenate([self._paid, np.zeros(room - len(self._paid))])

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
        learner._weights[: len(state["weights"])] = state["weights"]
        learner._paid[: len(state["paid"])] = state["paid"]
        learner._scalars[:] = state["scalars"]
        return learner
