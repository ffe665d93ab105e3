"""Explains a score: how much each feature of an event contributes to it.

The score of a logistic regression is a sum, and its terms are the explanation:

    z = sum of c_i + b,  c_i = w_i x_i              x_i scaled, if the model scales

The score of `auto` is not a sum. Learner k of a bank has z_k = clamp(b_k + sum over i of c_ki), where c_ki is its
weight times the value in its view. A stacker is a clamped sum of the z_k. The mixture's score is
F = log p - log(1 - p) with p = sum of share_k s(z_k). Its explanation is Aumann and Shapley's (1974; "integrated
gradients", Sundararajan, Taly and Yan 2017): all c_ki grow together from 0 to their size, as a c_ki with a from 0 to 1,
and feature i gets the part of the score's movement that it causes,

    c_i = integral over a from 0 to 1 of  sum over k of  dF/dz_k(a) c_ki

The c_i add up to F(1) - F(0), whatever the path's curve. A feature that no learner uses gets 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from core import logistic
from core.batch import as_arrays
from core.features import X
from core.learner import Encoded, Learner, NoWeights
from core.logistic import Floats

if TYPE_CHECKING:
    from core.auto import Auto

_ADDED = "The contributions, added in order, plus the bias give the score."
_METHODS = {
    "none": f"A feature contributes its weight times its value. {_ADDED}",
    "standard": "A feature contributes its weight times its scaled value: the value minus the running mean, divided "
    f"by the running standard deviation. Text features are not scaled. {_ADDED}",
    "maxabs": "A feature contributes its weight times its scaled value: the value divided by the largest magnitude so "
    f"far. Text features are not scaled. {_ADDED}",
}
_AUTO_METHOD = (
    "A feature contributes its Aumann-Shapley share of the mixture's score (integrated gradients): all features grow "
    "together from zero to full size, and each gets the part of the score's movement that it causes. The bias is the "
    "score without features. Bias and contributions add up to the score, within rounding."
)


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one feature adds to a score. `seen` is the value after the model's scaling. `seen` and `weight` are None for
    `auto`, because each of its learners has its own."""

    name: str
    value: float
    seen: float | None
    weight: float | None
    contribution: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """The parts of a score.

    seq: events that the model had learned. score, p: the log odds of label 1, and its probability. bias: the score
    without features; for a model with weights, b. features: those that the model knew, in the event's own order.
    unknown: the names of those that it did not know; they have no part. method: in words.

    Add the contributions one by one from 0.0, then the bias, and you get the score. For a model with weights it is
    exact to the last bit; use a loop, since Python's `sum` rounds differently from 3.12 on. For `auto` the difference
    is within 1e-9 of the largest among 1 and the magnitudes of score and contributions.
    """

    seq: int
    score: float
    p: float
    bias: float
    features: list[Contribution]
    unknown: list[str]
    method: str


def explain(learner: Learner, x: X) -> Explanation:
    """Explain the score of x. Changes nothing. Raises EventError if x is not valid.

    >>> from core import Spec
    >>> learner = Learner(Spec(learning_rate=0.5))
    >>> learner.learn_one({"age": 2.0, "vip": True}, 1)
    >>> explanation = explain(learner, {"age": 3, "city": "Rome", "vip": True})
    >>> [(feature.name, feature.contribution) for feature in explanation.features], explanation.bias
    ([('age', 1.5), ('vip', 0.25)], 0.25)
    >>> explanation.score, explanation.unknown
    (2.0, ['city=Rome'])
    """
    return explaining(learner, x, learner.encoded(x))()


def explaining(learner: Learner, x: X, encoded: Encoded) -> Callable[[], Explanation]:
    """A function that explains x for the learner's present state. It may be called later and in a thread, while the
    learner learns. `encoded`: the result of `learner.encoded(x)`."""
    if learner.auto is not None:
        return _explaining_auto(learner, learner.auto, x, encoded)
    return partial(explain_served, learner, x, learner.served_of(*encoded), learner.seq)


def explain_served(learner: Learner, x: X, numbers: Floats, seq: int) -> Explanation:
    """Explain a score as it was served, whatever the learner has learned since.

    `numbers` (float64) is what `learner.served_of` returned at that time, and `seq` was `learner.seq`. Of the present
    learner only the spec is used. Raises ValueError if `numbers` has the wrong length for x.

    Raises NoWeights for `auto`, which stores only the score; `explain` explains x by its present state instead.

    >>> learner = Learner()
    >>> learner.learn_one({"age": 2.0}, 1)
    >>> numbers, seq = learner.served_of(*learner.encoded({"age": 3.0})), learner.seq
    >>> then = explain(learner, {"age": 3.0})
    >>> learner.learn_one({"age": 30.0}, 0)
    >>> explain_served(learner, {"age": 3.0}, numbers, seq) == then
    True
    """
    if learner.auto is not None:
        raise NoWeights
    scale = learner.spec.scale
    flat, values = learner.features.flat(x)
    names = list(flat)
    n = len(names)
    if len(numbers) != 2 + (n if scale == "none" else 2 * n):
        raise ValueError(f"{len(numbers)} numbers do not fit a score of {n} features with scale {scale}")
    score, bias, *kept = numbers.tolist()
    weights, seen = kept[:n], list(values) if scale == "none" else kept[n:]
    features, unknown = [], []
    for name, value, x_i, w_i in zip(names, values, seen, weights, strict=True):
        if math.isnan(w_i):
            unknown.append(name)
        else:
            features.append(Contribution(name, value, x_i, w_i, w_i * x_i))  # c_i = w_i x_i
    return Explanation(seq, score, logistic.sigmoid(score), bias, features, unknown, _METHODS[scale])


def _explaining_auto(learner: Learner, auto: Auto, x: X, encoded: Encoded) -> Callable[[], Explanation]:
    from core.auto.path import aumann_shapley, mixture_score

    columns, values = as_arrays(*encoded)
    seq, score, terms = learner.seq, auto.score(columns, values), auto.terms(columns, values)

    def explanation() -> Explanation:
        names, _ = learner.features.flat(x)
        features, unknown = [], []
        for name, value, column, added in zip(names, values.tolist(), columns, aumann_shapley(terms), strict=True):
            if column >= 0:
                features.append(Contribution(learner.features.names[column], value, None, None, float(added)))
            else:
                unknown.append(name)
        bias = mixture_score(terms.biases, terms)
        return Explanation(seq, score, logistic.sigmoid(score), bias, features, unknown, _AUTO_METHOD)

    return explanation
