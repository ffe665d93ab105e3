"""`Learner`, the main interface: made from a spec, it learns events and gives predictions and its state."""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from core import logistic, one
from core.batch import BOOL, Batch, as_arrays
from core.builder import BatchBuilder, check_label
from core.copying import Copy
from core.features import Features, X, last_column
from core.linear import Linear
from core.logistic import Floats, Labels
from core.spec import Spec
from core.weights import Weights, sha256

if TYPE_CHECKING:
    from core.auto import Auto

Encoded = tuple["array[int]", "array[float]"]
"""Columns and values of an event's features, in its own order; the column is below 0 if the model does not know it."""
LARGE = 2**21
"""Bytes of a state that takes milliseconds to copy."""
MANY = 4_096
"""Making room for more features than this takes long."""


@dataclass(slots=True)
class Outcome:
    """The predictions of `learn_batch` for n events, each made *before* the event's step.

    `scores` (float64): the log odds. `learned` (bool): whether the step was taken. A step that would leave a number
    that is not finite is not taken, and the event's loss then means nothing. `assessed`: probabilities and losses, if
    known already. Otherwise they are computed on first use, because they cost a third of the step.
    """

    scores: Floats
    labels: Labels
    learned: npt.NDArray[np.bool_]
    assessed: tuple[Floats, Floats] | None = None

    @property
    def probabilities(self) -> Floats:
        """The probabilities of label 1."""
        return self.assess()[0]

    @property
    def losses(self) -> Floats:
        """The log losses, in nats."""
        return self.assess()[1]

    def assess(self) -> tuple[Floats, Floats]:
        """Both: who wants both for one event saves a third of the time."""
        if self.assessed is None:
            n = len(self.scores)
            self.assessed = np.empty(n), np.empty(n)
            logistic.assess(self.scores, self.labels, *self.assessed)
        return self.assessed

    @classmethod
    def joined(cls, outcomes: Sequence[Outcome]) -> Outcome:
        """Several outcomes as one, in order."""
        if len(outcomes) == 1:
            return outcomes[0]
        if not outcomes:
            return cls(np.zeros(0), np.zeros(0, np.uint8), np.zeros(0, np.bool_))
        arrays = [(one.scores, one.labels, one.learned, one.probabilities, one.losses) for one in outcomes]
        scores, labels, learned, probabilities, losses = map(np.concatenate, zip(*arrays, strict=True))
        return cls(scores, labels, learned, (probabilities, losses))


class NoWeights(AttributeError):
    """`auto` mixes many models, so it has no weights of its own and no twin in river."""

    def __init__(self) -> None:
        super().__init__("a model with the rule auto has no weights of its own")


class Learner:
    """Logistic regression, one gradient step per event.

    `predict_proba_one`, `predict_one`, `learn_one` and `learn_many` mean what they mean in river, except that
    `learn_many` is n steps.

    >>> learner = Learner(Spec(learning_rate=0.5))
    >>> learner.learn_one({"x": 2.0}, 1)
    >>> learner.weights_by_name(), learner.bias
    ({'x': 0.5}, 0.25)
    >>> learner.predict_proba_one({"x": 0.0})
    {False: 0.43782349911420193, True: 0.5621765008857981}
    """

    _supervised = True
    """river asks for it: `learn_one` wants a label."""

    def __init__(self, spec: Spec | None = None) -> None:
        self.spec = Spec() if spec is None else spec
        limits = (self.spec.max_features, self.spec.hash_bits, self.spec.max_value)
        auto = self.spec.rule == "auto"
        self.features = Features(
            *limits, text_apart=self.spec.scale != "none", overflow=self.spec.overflow, with_fields=auto
        )
        self.seq = 0
        """Number of events so far, with or without a step."""
        self.not_taken = 0
        """Number of events without a step, because it would have left a number that is not finite."""
        self.left_out = 0
        """Number of features left out of events, because the model had no room for them."""
        self.n_features = 0
        """Number of features in the events so far. `features` may know more, from a batch not yet learned."""
        self._room = 0
        self.auto: Auto | None = None
        """The model if its rule is `auto`."""
        if auto:
            from core.auto import Auto  # its kernels take a third of the time to load `core`

            self.auto = Auto(self.spec, self.features.max_features)
            self.features.kinds_of = self.auto.kinds_of
        self.encode = self.encoded if self.auto else self.features.encode
        """`encoded`, or a faster one that may name columns of events not yet learned, whose weights are 0."""
        self._model = self.auto or Linear(self.spec)
        self.plain = isinstance(self._model, Linear) and self._model.plain
        """Whether the model is plain SGD: no scaling, no penalty, constant learning rates."""
        self._unscaled = self._model if isinstance(self._model, Linear) and not self._model.scales else None
        self._plain = self._unscaled if self.plain else None
        self._copy: Copy | None = None

    @property
    def names(self) -> list[str]:
        """The features' names in column order."""
        return self.features.names[: self.n_features]

    @property
    def linear(self) -> Linear:
        """The model's single logistic regression. Raises NoWeights for `auto`."""
        if isinstance(self._model, Linear):
            return self._model
        raise NoWeights

    @property
    def bias(self) -> float:
        """b. Raises NoWeights for `auto`."""
        return self.linear.bias

    @property
    def weights(self) -> Floats:
        """The weights in column order, (n_features,) float64: a view, not a copy. Raises NoWeights for `auto`."""
        return self.linear.state.w[: self.n_features]

    def weights_by_name(self) -> dict[str, float]:
        """Feature name -> weight. Raises NoWeights for `auto`."""
        return dict(zip(self.names, self.weights.tolist(), strict=True))

    def weights_now(self) -> Weights:
        """A copy of the present weights (names are shared, not copied). Raises NoWeights for `auto`."""
        return Weights(self.seq, self.bias, self.weights.copy(), self.features.names)

    def sha256(self) -> str:
        """A hash of the model's state.

        It covers the names (UTF-8, in column order, each followed by a zero byte), then the weights in that order and
        the bias as little-endian float64. For `auto`, all arrays of its state, sorted by name, replace weights and
        bias.
        """
        return self.sha256_now()()

    def sha256_now(self) -> Callable[[], str]:
        """`sha256` of the present state, whatever the model learns until it is called. The state is copied."""
        if self.auto is None:
            return self.weights_now().sha256
        arrays = self.auto.arrays(self.n_features)
        return partial(sha256, self.features.names, self.n_features, [arrays[name] for name in sorted(arrays)])

    # -- predicting

    def score_of(self, columns: array[int], values: array[float]) -> float:
        """The log odds of label 1 for a result of `encoded`: w·x + b, or the mixture's for `auto`. Unknown features add
        nothing."""
        return self._model.score(*as_arrays(columns, values))

    def encoded(self, x: X) -> Encoded:
        """x encoded for `score_of` and `served_of`. With many features it takes long, so it may run in a thread while
        others learn and predict. Changes nothing. Raises EventError if x is not valid."""
        names, values = self.features.flat(x)
        names = tuple(names)
        # Newer names may be taken back, and other names then get their columns.
        return self.features.with_kinds(names, self.features.columns_of(names), self.n_features), values

    def served_of(self, columns: array[int], values: array[float]) -> Floats:
        """The score and its parts. Stored with x, they let `core.explain.explain_served` explain the score after the
        model has changed. Changes nothing. `columns` and `values`: the result of `encoded`.

        Returns float64: the score, the bias, the weight of each of the n features in the event's own order (NaN for
        unknown features) and, if the model scales, the n scaled values. For `auto` only the score, as its parts are
        too many.

        >>> learner = Learner(Spec(learning_rate=0.5))
        >>> learner.learn_one({"x": 2.0}, 1)
        >>> learner.served_of(*learner.encoded({"x": 3.0, "new": 1.0})).tolist()
        [1.75, 0.25, 0.5, nan]
        """
        return self._model.served(*as_arrays(columns, values), self.n_features)

    def predict_proba_one(self, x: X) -> dict[bool, float]:
        """The probability of each label for x. Raises EventError if x is not valid."""
        p = math.nan
        if self._unscaled is not None and type(x) is dict and (found := self.features.lent.get(tuple(x))) is not None:
            (spaces, write), state = found, self._unscaled.state
            try:
                space = spaces.pop()
                try:
                    write(space, one.AT, *x.values())
                    p = one.predict(space, self.features.max_value, state.w, state.scalars)
                finally:
                    spaces.append(space)
            except (struct.error, IndexError):  # some are not numbers; another thread has the space
                pass
        if p != p:  # noqa: PLR0124  # NaN: the long way, which also says what is wrong
            p = logistic.sigmoid(self.score_of(*self.encode(x)))
            if self._unscaled is not None:
                self.features.prepare(x)
        return {False: 1.0 - p, True: p}

    def predict_one(self, x: X) -> bool:
        """The more likely label for x. Raises EventError if x is not valid."""
        return self.predict_proba_one(x)[True] > 0.5

    # -- learning

    def learn_one(self, x: X, y: int, w: float = 1.0) -> None:
        """Take one step for an event with label `y` (0 or 1) and sample weight `w` (above 0).

        Raises EventError if the event is not valid; then nothing changes.
        """
        check_label(y, w)
        if not self._learn_short(x, y, w):
            self.learn_batch(Batch.of_one(self.features.admit(x), y, w))
            if self._unscaled is not None:
                self.features.prepare(x)

    def _learn_short(self, x: X, y: int, w: float) -> bool:
        """Learn one event without a batch. Returns False, with nothing changed, if that is not possible."""
        if self._plain is None or self._copy is not None:
            return False
        if type(x) is not dict or (found := self.features.lent.get(tuple(x))) is None:
            return False
        (spaces, write), limit = found, self.features.max_value
        (weights, *_, scalars), q = self._plain.state, self._plain.q
        try:
            space = spaces.pop()
            try:
                write(space, one.AT, *x.values())
                taken = one.learn(space, int(y), w, limit, self.n_features, weights, scalars, q)
            finally:
                spaces.append(space)
        except (struct.error, IndexError):
            return False
        if taken < 0:
            return False
        self.seq += 1
        self.not_taken += 1 - taken
        return True

    def learn_many(self, xs: Iterable[X], ys: Iterable[int], ws: Iterable[float] | None = None) -> Outcome:
        """Take n steps for n events, in order. Raises EventError if an event is not valid; then none is learned."""
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
        """`learn_many` for events as arrays, with the columns of `features`."""
        n = len(batch)
        scores, learned = np.empty(n), np.empty(n, BOOL)
        self.n_features = self.make_room(batch)
        if self._copy is not None:
            self._copy.save(batch.columns)
        not_taken = self._model.learn(batch, self.seq - self.not_taken, scores, learned)
        self.seq += n
        self.not_taken += not_taken
        if batch.left_out is not None:
            self.left_out += int(batch.left_out.counts.sum())
        return Outcome(scores, batch.labels, learned)

    @property
    def takes_long_to_make_room(self) -> bool:
        """Whether `make_room` would add many features, or copy much, for the names that `features` has now."""
        new = len(self.features) - self.n_features
        return new > MANY or (new > 0 and len(self.features) > self._model.rows > MANY)

    def make_room(self, batch: Batch) -> int:
        """Make room for a batch's new features. Returns how many the learner will have after the batch. A step calls
        this itself. If it takes long, call it before in a thread: others may predict meanwhile, but not learn."""
        features = max(self.n_features, last_column(batch.columns) + 1)
        if features > self._room:
            names = self.features.names[self._room : features]
            if self._room + len(names) < features:  # a kernel would write past the end of the weights
                raise ValueError("the batch has columns that `features` does not know")
            self._model.add(self._room, names)
            self._room = features
        return features

    # -- state

    @property
    def is_large(self) -> bool:
        """Whether to copy or to hash the whole state takes milliseconds."""
        return self._model.size(self.n_features) > LARGE

    def begin_copy(self) -> Copy:
        """Begin a copy of the arrays of the present state, for `state(copy=...)`. The learner may go on learning, and
        the caller calls the copy's `go_on` between steps, until it is whole. One at a time, until `end_copy`. Raises
        NoWeights for `auto`: which rows its steps will change is not known before them."""
        self._copy = self.linear.copy(self.n_features)
        return self._copy

    def end_copy(self) -> None:
        """The copy is whole, or nobody wants it any more."""
        self._copy = None

    def state(self, names: bool = True, copy: Copy | None = None) -> dict[str, Any]:
        """The whole state, as JSON types and float64 arrays; arrays are copies, or those of a `copy` that has just been
        begun.

        With `names=False` the caller stores the feature names itself, as the service does, and adds them to the state
        for `from_state`.
        """
        state = {
            "spec": self.spec.as_dict(),
            "seq": self.seq,
            "not_taken": self.not_taken,
            "left_out": self.left_out,
            "n_features": self.n_features,
            "arrays": self._model.arrays(self.n_features) if copy is None else copy.arrays,
        }
        if names:
            state["names"] = self.names
        return state

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Learner:
        """The learner that `state()` described, to the last bit. A damaged state raises ValueError, LookupError,
        TypeError, AttributeError or ArithmeticError."""
        if not 0 <= state["n_features"] <= len(state["names"]):
            raise ValueError("a state must have a name for each feature")  # limits the room that a state takes
        learner = cls(Spec.from_dict(state["spec"]))
        learner.features.extend(state["names"])
        learner.seq, learner.not_taken, learner.left_out = state["seq"], state["not_taken"], state["left_out"]
        learner.n_features = learner._room = state["n_features"]
        learner._model.load(state["arrays"], learner.names)
        return learner
