"""The cross-check: learns the same events with river's `LogisticRegression` and reports the largest difference.

River is the oracle. It is slow, but it is right. Equal means equal in every bit of every weight.
"""

from __future__ import annotations

import importlib.metadata
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from river import base, linear_model, optim, preprocessing
from river.utils import VectorDict

from core import rules
from core.batch import Batch
from core.builder import BatchBuilder
from core.features import X, is_text
from core.learner import Learner
from core.logistic import Floats
from core.rules import RULES
from core.spec import InverseScaling, Optimal, Rate, Spec


class Report(NamedTuple):
    """The result of a cross-check.

    events: learned by both sides. from_seq: the seq of the state that both began with, or 0. not_taken: events that
    neither side learned, because the step would have left a number that is not finite. features: weights compared.
    max_abs_diff, max_ulp: the largest difference of a weight or the bias, absolute and in units in the last place.
    feature: the one with the largest difference, None if all weights are equal. bias_ulp: the bias's difference. river:
    its version.
    """

    events: int
    from_seq: int
    not_taken: int
    features: int
    max_abs_diff: float
    max_ulp: int
    feature: str | None
    bias_ulp: int
    equal: bool
    river: str


class NoTwin(ValueError):
    """River has no model that does what the spec says."""


def river_twin(spec: Spec) -> tuple[base.Transformer | None, linear_model.LogisticRegression]:
    """River's scaler (or None) and model that do what `spec` says. Raises NoTwin if river has none. The scaler is only
    for numbers: see `scaled_one`."""
    if spec.rule == "auto":
        raise NoTwin("auto mixes many models, and river has nothing like it")
    if RULES[spec.rule].river is None:
        raise NoTwin(f"river has no rule like {spec.rule}")
    if spec.rule == "ftrl" and not spec.lag:
        raise NoTwin("river's ftrl computes its weights with a lag, but this model's spec says lag: false")
    loss = optim.losses.Log(weight_pos=spec.class_weights["1"], weight_neg=spec.class_weights["0"])
    model = linear_model.LogisticRegression(
        optimizer=_optimizer(spec, loss),
        loss=loss,
        l2=0.0 if spec.rule == "ftrl" else spec.l2,
        l1=0.0 if spec.rule == "ftrl" else spec.l1,
        intercept_lr=_rate(spec.bias_learning_rate, loss),
        clip_gradient=spec.clip,
    )
    scalers = {"standard": preprocessing.StandardScaler, "maxabs": preprocessing.MaxAbsScaler}
    return (scalers[spec.scale]() if spec.scale in scalers else None), model


def scaled_one(scaler: base.Transformer, x: dict[Hashable, float]) -> dict[Hashable, float]:
    """An event's values, in its own order, as a river twin learns them. The scaler learns the numbers and scales them;
    text features are not scaled.

    >>> scaled_one(preprocessing.MaxAbsScaler(), {"b": 4.0, "colour=red": 1.0, "a": -2.0})
    {'b': 1.0, 'colour=red': 1.0, 'a': -1.0}
    """
    numbers: dict[Hashable, float] = {name: value for name, value in x.items() if not is_text(str(name))}
    scaler.learn_one(numbers)
    return x | scaler.transform_one(numbers)


def _rate(rate: Rate | None, loss: optim.losses.Log) -> Any:
    if isinstance(rate, InverseScaling):
        return optim.schedulers.InverseScaling(rate.learning_rate, rate.power)
    if isinstance(rate, Optimal):
        return optim.schedulers.Optimal(loss, rate.alpha)
    return rate


def _optimizer(spec: Spec, loss: optim.losses.Log) -> optim.base.Optimizer:
    own = {name: getattr(spec, name) for name in RULES[spec.rule].defaults if not name.endswith("learning_rate")}
    own.pop("lag", None)
    rate = _rate(spec.learning_rate, loss)
    if rate is not None:
        own["alpha" if spec.rule == "ftrl" else "lr"] = rate
    optimizer: optim.base.Optimizer = getattr(optim, str(RULES[spec.rule].river))(**own)
    return optimizer


def give_state(state: dict[str, Any], scaler: base.Transformer | None, model: linear_model.LogisticRegression) -> None:
    """Load a result of `Learner.state()` into a new river twin, to the last bit."""
    spec, names, arrays = Spec.from_dict(state["spec"]), state["names"], state["arrays"]
    scalars, optimizer = arrays["scalars"].tolist(), model.optimizer
    model._weights = VectorDict(_by_name(names, arrays["weights"])[0])  # noqa: SLF001  # river has no other way
    model.intercept = scalars[rules.BIAS]
    optimizer.n_iterations = state["seq"] - state["not_taken"]
    keeps = RULES[spec.rule].keeps
    for attribute, numbers in zip(keeps, _by_name(names, arrays["kept"], len(keeps)), strict=True):
        kept_as: Any = VectorDict if getattr(optimizer, attribute) is None else partial(defaultdict, float)
        setattr(optimizer, attribute, kept_as(numbers))  # river makes VectorDicts when it steps
    if spec.rule == "adabound":
        optimizer.final_lr = scalars[rules.FINAL_LR]
    if model.l1:
        model.max_cum_l1 = scalars[rules.L1_TOTAL]
        model.cum_l1 = VectorDict(_by_name(names, arrays["paid"])[0], optim.initializers.Zeros())
    if isinstance(scaler, preprocessing.StandardScaler):
        parts = (scaler.counts, scaler.means, scaler.vars)
        for part, numbers in zip(parts, _by_name(names, arrays["scaler"], 3), strict=True):
            part.update(numbers)
    elif isinstance(scaler, preprocessing.MaxAbsScaler):
        for name, largest in _by_name(names, arrays["scaler"])[0].items():
            scaler.abs_max[name].update(largest)


def _by_name(names: Sequence[str], flat: Floats, count: int = 1) -> list[dict[str, float]]:
    """Rows of `count` numbers for each feature -> for each of the numbers, feature -> number."""
    return [dict(zip(names, numbers, strict=True)) for numbers in flat.reshape(len(names), count).T.tolist()]


def ulp_distance(a: float, b: float) -> int:
    """The number of float64 between a and b, plus one; 0 if they are equal (0.0 and -0.0 are equal).

    >>> ulp_distance(1.0, 1.0 + 2**-52)
    1
    >>> ulp_distance(-5e-324, 5e-324)
    2
    """
    return abs(_ordinal(a) - _ordinal(b))


def _ordinal(value: float) -> int:
    """The position of a float64 among all in order; 0.0 and -0.0 share one position."""
    bits = int(np.float64(value).view(np.int64))
    return bits if bits >= 0 else -(bits & 0x7FFF_FFFF_FFFF_FFFF)


class CrossCheck:
    """Learns events in a `Learner` and in river, then compares given weights with river's.

    >>> check = CrossCheck(Spec(learning_rate=0.1))
    >>> check.learn_one({"a": 1.5, "colour": "red"}, 1)
    >>> check.compare(check.learner.weights_by_name(), check.learner.bias).max_ulp
    0
    """

    def __init__(self, spec: Spec) -> None:
        self.learner = Learner(spec)
        self._scaler, self._river = river_twin(spec)
        self._from_seq = self._not_taken_before = 0

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> CrossCheck:
        """Start both sides from a result of `Learner.state()`, for a log whose beginning is gone."""
        check = cls(Spec.from_dict(state["spec"]))
        check.learner = Learner.from_state(state)
        check._from_seq, check._not_taken_before = state["seq"], state["not_taken"]
        give_state(state, check._scaler, check._river)
        return check

    def learn_one(self, x: X, y: int, w: float = 1.0) -> None:
        """Learn one event on both sides."""
        builder = BatchBuilder(self.learner.features)
        builder.add(x, y, w)
        self.learn_batch(builder.build())

    def learn_batch(self, batch: Batch) -> None:
        """Learn events with the columns of `learner.features` on both sides. River skips events whose step is not
        taken, because they would leave NaN in it."""
        learned = self.learner.learn_batch(batch).learned.tolist()
        names, offsets = self.learner.features.names, batch.offsets.tolist()
        columns, values = batch.columns.tolist(), batch.values.tolist()
        for i, (y, w) in enumerate(zip(batch.labels.tolist(), batch.weights.tolist(), strict=True)):
            if learned[i]:
                event = slice(offsets[i], offsets[i + 1])
                x: dict[Hashable, float] = dict(zip([names[c] for c in columns[event]], values[event], strict=True))
                if self._scaler is not None:
                    x = scaled_one(self._scaler, x)
                self._river.learn_one(x, bool(y), w)

    def compare(self, weights: Mapping[str, float], bias: float) -> Report:
        """Compare `weights` and `bias` with river's after the events so far."""
        theirs = self._river.weights
        max_abs_diff, max_ulp, feature = 0.0, 0, None
        for name in sorted(weights.keys() | theirs.keys()):
            a, b = weights.get(name, 0.0), float(theirs.get(name, 0.0))
            max_abs_diff = max(max_abs_diff, abs(a - b))
            distance = ulp_distance(a, b)
            if distance > max_ulp:
                max_ulp, feature = distance, name
        river_bias = float(self._river.intercept)
        bias_ulp = ulp_distance(bias, river_bias)
        return Report(
            events=self.learner.seq - self._from_seq,
            from_seq=self._from_seq,
            not_taken=self.learner.not_taken - self._not_taken_before,
            features=len(weights),
            max_abs_diff=max(max_abs_diff, abs(bias - river_bias)),
            max_ulp=max(max_ulp, bias_ulp),
            feature=feature,
            bias_ulp=bias_ulp,
            equal=max_ulp == bias_ulp == 0,
            river=importlib.metadata.version("river"),
        )


def crosscheck(events: Iterable[tuple[X, int, float]], spec: Spec | None = None) -> Report:
    """Learn `events` (x, y, sample weight) here and in river, and compare every weight.

    >>> crosscheck([({"a": 1.5}, 1, 1.0), ({"a": -0.3, "b": 2.0}, 0, 0.5)]).equal
    True
    """
    check = CrossCheck(Spec() if spec is None else spec)
    for x, y, w in events:
        check.learn_one(x, y, w)
    return check.compare(check.learner.weights_by_name(), check.learner.bias)
