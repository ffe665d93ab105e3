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
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from core import logistic
from core.auto import MAX_SCORE, Auto, Terms
from core.batch import as_arrays
from core.features import X
from core.learner import Encoded, Learner, NoWeights
from core.logistic import Floats

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
    unknown: the names of those that it did not know; they add nothing. method: in words.

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


# -- the path from no features to all. a: the position on it; the first axis of arrays is that of a, the second of banks

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_STRIDE = 2.0
"""Most that any z moves in one piece of the path. The score has no singularity within |Im z| < pi / 2, so 16 nodes on
a piece of 2 integrate it to within about (pi/2 + sqrt(1 + pi²/4))^-32 = 1e-17."""


def aumann_shapley(terms: Terms) -> Floats:
    """Each feature's contribution to the mixture's score: (n,) float64.

    The path is cut where a clamp begins or ends, and then into short pieces. Each piece is integrated by
    Gauss-Legendre quadrature.
    """
    cuts = _cuts(terms)
    middles, halves = (cuts[1:] + cuts[:-1]) / 2, np.diff(cuts) / 2
    a = (middles[:, None] + halves[:, None] * _NODES).ravel()
    weights = (halves[:, None] * _WEIGHTS).ravel()
    # Within a piece, a clamp holds everywhere or nowhere.
    z, stacked = (np.repeat(z, len(_NODES), axis=0) for z in _unclamped(terms, middles))
    dz = _score_gradient(np.concatenate(_clamped(terms, a), axis=2), terms.shares)  # dF/dz of learners and stackers
    learners = terms.biases.shape[1]
    of_stackers = dz[:, :, learners:] * (abs(stacked) < MAX_SCORE)
    hears = abs(z[:, :, None, :]) < terms.heard[:, None]
    through = np.einsum("abs,bsk,absk->abk", of_stackers, terms.stack[:, :, :learners], hears)
    integral = np.einsum("a,abk->bk", weights, dz[:, :, :learners] * (abs(z) < MAX_SCORE) + through)
    result: Floats = np.einsum("nbk,bk->n", terms.products, integral)
    return result


def mixture_score(z: Floats, terms: Terms) -> float:
    """The mixture's score where the learners' scores (B, K) are z before they are clamped."""
    everyone = np.concatenate(_clamped(replace(terms, biases=z, products=terms.products[:0]), np.zeros(1)), axis=2)
    p, q = _sides(everyone, terms.shares)
    return float(np.log(p).item() - np.log(q).item())


def _unclamped(terms: Terms, a: Floats) -> tuple[Floats, Floats]:
    """Unclamped scores of learners (a, B, K), and of stackers (a, B, S) over what they hear."""
    z = terms.biases + a[:, None, None] * terms.products.sum(axis=0)  # b_k + a sum of c_ki
    heard = np.clip(z[:, :, None, :], -terms.heard[:, None], terms.heard[:, None])
    return z, np.einsum("absk,bsk->abs", heard, terms.stack[:, :, :-1]) + terms.stack[:, :, -1]


def _clamped(terms: Terms, a: Floats) -> tuple[Floats, Floats]:
    z, stacked = _unclamped(terms, a)
    return z.clip(-MAX_SCORE, MAX_SCORE), stacked.clip(-MAX_SCORE, MAX_SCORE)


def _sides(z: Floats, shares: Floats) -> tuple[Floats, Floats]:
    """p and 1 - p of the mixture, computed apart as in core/auto/mixture.py."""
    e = np.exp(-abs(z))
    high, low = 1 / (1 + e), e / (1 + e)
    p = (shares * np.where(z < 0, low, high)).sum(axis=(1, 2), keepdims=True)
    q = (shares * np.where(z < 0, high, low)).sum(axis=(1, 2), keepdims=True)
    return p, q


def _score_gradient(z: Floats, shares: Floats) -> Floats:
    """dF/dz_k = share_k s'(z_k) (1/p + 1/(1 - p)): (a, B, K + S)."""
    e = np.exp(-abs(z))
    p, q = _sides(z, shares)
    gradient: Floats = shares * (e / (1 + e) / (1 + e)) * (1 / p + 1 / q)
    return gradient


def _cuts(terms: Terms) -> Floats:
    """Rising cuts from 0 to 1. Between two cuts every score is a straight line and moves at most `_STRIDE`."""
    ends = np.array([0.0, 1.0])
    cuts = ends
    for bound in sorted({MAX_SCORE, *terms.heard.tolist()}):
        cuts = _with_crossings(cuts, _unclamped(terms, cuts)[0], bound)
    cuts = _with_crossings(cuts, _unclamped(terms, cuts)[1], MAX_SCORE)
    moved = abs(np.diff(np.concatenate(_clamped(terms, cuts), axis=2), axis=0)).max(axis=(1, 2))
    pieces = np.maximum(np.ceil(moved / _STRIDE), 1).astype(int)
    spans = zip(cuts[:-1], cuts[1:], pieces, strict=True)
    return np.concatenate([*(np.linspace(start, stop, n, endpoint=False) for start, stop, n in spans), ends[1:]])


def _with_crossings(cuts: Floats, z: Floats, bound: float) -> Floats:
    """The cuts, plus the points where a score crosses ± bound; scores are z at the cuts and linear between."""
    start, run = cuts[:-1, None, None], np.diff(cuts)[:, None, None]
    rise = np.diff(z, axis=0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # no rise, no crossing
        at = np.stack([(end - z[:-1]) / rise for end in (-bound, bound)])
        return np.union1d(cuts, (start + at * run)[(at > 0) & (at < 1)])
