"""`Learner`: what a caller holds. A spec in, events in, predictions and state out."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from core import logistic
from core.auto import Auto
from core.features import Batch, BatchBuilder, Features, X, as_arrays, check_label, last_column
from core.linear import Linear
from core.logistic import Floats, Labels
from core.spec import Spec
from core.weights import Weights, sha256

Encoded = tuple["array[int]", "array[float]"]
"""Columns and values of an event's features, in its own order; -1 for those that the model does not know."""
MANY = 4_096
"""Features from which on it takes a while to make room for them."""


@dataclass(slots=True)
class Outcome:
    """What `learn_batch` found for each of n events *before* its step.

    `scores` (float64): the log odds. `learned` (bool): whether the step was taken; a step that would leave a number
    that is not finite is not, and its loss says nothing. `assessed`: probabilities and losses, where they are known
    already; else they are made when they are first asked for, because they take a third of the time of the step.
    """

    scores: Floats
    labels: Labels
    learned: npt.NDArray[np.bool_]
    assessed: tuple[Floats, Floats] | None = None

    @property
    def probabilities(self) -> Floats:
        """Of the label 1."""
        return self._assess()[0]

    @property
    def losses(self) -> Floats:
        """The log losses, in nats."""
        return self._assess()[1]

    def _assess(self) -> tuple[Floats, Floats]:
        if self.assessed is None:
            n = len(self.scores)
            self.assessed = np.empty(n), np.empty(n)
            logistic.assess(self.scores, self.labels, *self.assessed)
        return self.assessed

    @classmethod
    def joined(cls, outcomes: Sequence[Outcome]) -> Outcome:
        """One outcome of the events of several, in order."""
        if len(outcomes) == 1:
            return outcomes[0]
        if not outcomes:
            return cls(np.zeros(0), np.zeros(0, np.uint8), np.zeros(0, np.bool_))
        return cls(
            np.concatenate([outcome.scores for outcome in outcomes]),
            np.concatenate([outcome.labels for outcome in outcomes]),
            np.concatenate([outcome.learned for outcome in outcomes]),
            (
                np.concatenate([outcome.probabilities for outcome in outcomes]),
                np.concatenate([outcome.losses for outcome in outcomes]),
            ),
        )


class NoWeights(AttributeError):
    """`auto` is many models at once: it has no weights of its own, and no river twin."""

    def __init__(self) -> None:
        super().__init__("a model with the rule auto has no weights of its own")


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
        limits = (self.spec.max_features, self.spec.hash_bits, self.spec.max_value)
        self.features = Features(*limits, text_apart=self.spec.scale != "none", overflow=self.spec.overflow)
        self.seq = 0
        """Events so far, whether their step was taken or not."""
        self.not_taken = 0
        """Events whose step would have left a number that is not finite, and was not taken."""
        self.left_out = 0
        """Features that were left out of events, because the model had no room for them."""
        self._n_features = self._room = 0
        self._model = Auto(self.spec) if self.spec.rule == "auto" else Linear(self.spec)

    @property
    def n_features(self) -> int:
        """How many features the events so far had. `features` may know more: those of a batch not yet learned."""
        return self._n_features

    @property
    def names(self) -> list[str]:
        """The features' names in column order."""
        return self.features.names[: self._n_features]

    @property
    def linear(self) -> Linear:
        """The model where it is one logistic regression; NoWeights where it is not."""
        if isinstance(self._model, Auto):
            raise NoWeights
        return self._model

    @property
    def auto(self) -> Auto | None:
        """The model where its rule is `auto`."""
        return self._model if isinstance(self._model, Auto) else None

    @property
    def plain(self) -> bool:
        """Whether it is plain SGD: nothing scaled, no penalty, and one learning rate for all."""
        return isinstance(self._model, Linear) and self._model.plain

    @property
    def bias(self) -> float:
        """b; NoWeights for `auto`."""
        return self.linear.bias

    @property
    def weights(self) -> Floats:
        """The weights in column order, (n_features,) float64: a view, not a copy. NoWeights for `auto`."""
        return self.linear.weights[: self._n_features]

    def weights_by_name(self) -> dict[str, float]:
        """Feature name -> weight. NoWeights for `auto`."""
        return dict(zip(self.names, self.weights.tolist(), strict=True))

    def weights_now(self) -> Weights:
        """The weights as they stand, which later steps leave alone: a copy, but for the names. NoWeights for `auto`."""
        return Weights(self.seq, self.bias, self.weights.copy(), self.features.names)

    def sha256(self) -> str:
        """Of the UTF-8 names in column order, each ended by a zero byte, then the weights in that order and the bias
        as little-endian float64; for `auto`, all arrays of its state instead, in the order of their names."""
        if not isinstance(self._model, Auto):
            return Weights(self.seq, self.bias, self.weights, self.features.names).sha256()
        arrays = self._model.arrays(self._n_features)
        return sha256(self.features.names, self._n_features, (arrays[name] for name in sorted(arrays)))

    # -- predicting

    def score(self, x: X) -> float:
        """The log odds of label 1: w·x + b, or the mixture's for `auto`. Changes nothing.

        Features that the model does not know add nothing.
        """
        return self.score_of(*self.features.encode(x))

    def score_of(self, columns: array[int], values: array[float]) -> float:
        """`score` for an x that `features.encode` has looked up."""
        return self._model.score(*as_arrays(columns, values))

    def encoded(self, x: X) -> Encoded:
        """What `features.encode` gives, for `score_of` and `served_of`. With many features it takes time, and may be
        done in a thread while others learn and predict. Changes nothing; raises EventError."""
        known = self._n_features  # names that come meanwhile may be taken back, and others have their columns then
        columns, values = self.features.encode(x)
        if max(columns, default=-1) >= known:
            columns = array("i", [column if column < known else -1 for column in columns])
        return columns, values

    def served(self, x: X) -> Floats:
        """The score and, but for `auto`, what it is made of: kept with x, it lets `core.explain.explain_served` say how
        the score came about when the model has moved on. Changes nothing.

        float64: the score, the bias, the weight of each of x's n features in x's own order (NaN where the model has
        not learned the feature) and, where the model scales, their n scaled values. For `auto`, which is too many
        models to keep, the score alone.

        >>> learner = Learner(Spec(learning_rate=0.5))
        >>> learner.learn_one({"x": 2.0}, 1)
        >>> learner.served({"x": 3.0, "new": 1.0}).tolist()
        [1.75, 0.25, 0.5, nan]
        """
        return self.served_of(*self.features.encode(x))

    def served_of(self, columns: array[int], values: array[float]) -> Floats:
        """`served` for an x that `features.encode` has looked up."""
        return self._model.served(*as_arrays(columns, values), self._n_features)

    def predict_proba_one(self, x: X) -> dict[bool, float]:
        """The probability of each label for x."""
        p = logistic.sigmoid(self.score(x))
        return {False: 1.0 - p, True: p}

    # -- learning

    def learn_one(self, x: X, y: int, w: float = 1.0) -> None:
        """One step for one event with label `y` (0 or 1) and sample weight `w` (above 0). Raises EventError."""
        check_label(y, w)
        self._step(Batch.of_one(self.features.admit(x), y, w))

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
        scores, learned = self._step(batch)
        return Outcome(scores, batch.labels, learned)

    def _step(self, batch: Batch) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """A step for each event: the score before it, and whether it was taken."""
        n = len(batch)
        scores, learned = np.empty(n), np.empty(n, np.bool_)
        self._n_features = self.make_room(batch)
        self._model.learn(batch, self.seq - self.not_taken, scores, learned)
        self.seq += n
        self.not_taken += n - int(np.count_nonzero(learned))
        if batch.left_out is not None:
            self.left_out += int(batch.left_out.counts.sum())
        return scores, learned

    @property
    def takes_long_to_make_room(self) -> bool:
        """Whether `make_room` has many features to add, or much to copy, for the names that `features` has by now."""
        new = len(self.features) - self._n_features
        return new > MANY or (new > 0 and len(self.features) > self._model.rows > MANY)

    def make_room(self, batch: Batch) -> int:
        """Make room for the features that a batch brings, and return how many the learner will have with them.

        A step does it by itself. Where it takes long, it may be done before in a thread while others predict, but not
        while a step is taken.
        """
        features = max(self._n_features, last_column(batch.columns) + 1)
        if features > self._room:
            self._model.add(self._room, self.features.names[self._room : features])
            self._room = features
        return features

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
            "left_out": self.left_out,
            "n_features": self._n_features,
            "arrays": self._model.arrays(self._n_features),
        }
        if names:
            state["names"] = self.names
        return state

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Learner:
        """The learner that `state()` described, to the last bit. Where it describes none: ValueError, LookupError,
        TypeError, AttributeError or ArithmeticError."""
        if not 0 <= state["n_features"] <= len(state["names"]):
            raise ValueError("a state must have a name for each feature")  # and so it takes no more room than its names
        learner = cls(Spec.from_dict(state["spec"]))
        learner.features.extend(state["names"])
        learner.seq, learner.not_taken, learner.left_out = state["seq"], state["not_taken"], state["left_out"]
        learner._n_features = learner._room = state["n_features"]
        learner._model.load(state["arrays"], learner.names)
        return learner
