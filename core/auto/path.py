"""The path from no features to all, along which `core.explain` integrates the mixture's score.

a: the position on the path, from 0 to 1. The first axis of arrays is that of a, the second that of banks.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from core.auto.rules import MAX_SCORE
from core.auto.terms import Terms
from core.logistic import Floats

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
