"""The steps of five rules: SGD (in `learners.py`), AdaGrad, FTRL, a Kalman filter, and Vowpal Wabbit's."""

from __future__ import annotations

import math

from core.compiled import part_of_kernels
from core.logistic import Floats

MAX_SCORE = 30.0
"""Scores of single learners are clamped to ± this, so no probability is 0 and no loss infinite."""
EPS = 1e-8
TINY = 1e-20
MAX_WEIGHT = 1e6
"""Heavier events count as this much where a rule adds up weights."""
WEIGHT, CLIP, OF_LABELS = range(3)
"""Places in `limits`: the event's weight, with its label's; the most that the weighted |p - y| may be; each label's
weight."""


@part_of_kernels
def residual(z: float, y: int) -> float:
    """p - y for the score z within ±MAX_SCORE, without cancellation."""
    p = 1.0 / (1.0 + math.exp(-z if y == 0 else z))
    return p if y == 0 else -p


@part_of_kernels
def clipped(other: float, y: int, limits: Floats) -> float:
    """The weighted and clipped p - y, for the probability of the `other` label than y."""
    g: float = max(min((-other if y else other) * limits[WEIGHT], limits[CLIP]), -limits[CLIP])
    return g


@part_of_kernels
def adagrad(w: float, n: float, gradient: float, rate: float) -> tuple[float, float]:
    """n <- n + (g x)²;  w <- w - rate g x / sqrt(n)"""
    n += gradient * gradient
    return w - rate * gradient / math.sqrt(n + EPS), n


@part_of_kernels
def ftrl(w: float, root: float, s: float, gradient: float, rate: float) -> tuple[float, float, float]:
    """FTRL-proximal (McMahan 2013), beta 1, no penalties: w = -s rate / (1 + sqrt(n)). `root` is sqrt(n)."""
    new = math.sqrt(root * root + gradient * gradient)
    s += gradient - (new - root) * (1.0 / rate) * w
    return -s * rate / (1.0 + new), new, s


@part_of_kernels
def kalman(x: Floats, m: Floats, s: Floats, raw: float, v: float, y: int, limits: Floats) -> None:
    """An extended Kalman filter with a diagonal covariance: Bayesian logistic regression, one event at a time.

    With p at m·x, h = p (1 - p) and d = 1 + h v:  m <- m + s x (y - p) / d;  s <- s - s² x² h / d
    """
    g = residual(min(max(raw, -MAX_SCORE), MAX_SCORE), y)
    weight = min(limits[WEIGHT], limits[CLIP] / abs(g))
    h = abs(g) * (1.0 - abs(g)) * weight
    d = 1.0 + h * v
    up, down = g * weight / d, h / d
    for j in range(len(x)):
        sx = s[j] * x[j]
        m[j] -= sx * up
        s[j] = max(s[j] - sx * sx * down, 0.0)


@part_of_kernels
def lambert(x: float) -> float:
    """ln W(exp(x)), W being Lambert's function: Vowpal Wabbit's approximation, one step of Fritsch's iteration.

    As W + ln W = x, it is also x - W, which Vowpal Wabbit computes: for large x nothing would be left of that.
    """
    w = 0.86 * x + 0.01 if x >= 1.0 else math.exp(0.8 * x - 0.65)
    r = x - math.log(w) - w if x >= 1.0 else 0.2 * x + 0.65 - w
    t = 1.0 + w
    u = 2.0 * t * (t + 2.0 * r / 3.0)
    return math.log(w * (1.0 + r / t * (u - r) / (u - 2.0 * r)))


@part_of_kernels
def vw(
    x: Floats, w: Floats, n: Floats, b: Floats, rate: float, z: float, own: float, other: float, y: int,
    limits: Floats, norms: Floats, at: int, normal: Floats, step: Floats,
) -> None:  # fmt: skip
    """Vowpal Wabbit's rule: AdaGrad with steps normalised by the scale of each input, and invariant to weights
    (Ross, Mineiro, Langford 2013; Karampatziakis, Langford 2011). With b the largest |x| so far,

        n <- n + (g x)²;  r = 1 / (b sqrt(n)) for each input;  N <- N + sum of (x / b)²;  c = sqrt(events / N)
        w <- w + u x r c, where u moves the score to where gradient flow takes it for this rate and weight

    `own` and `other`: the probabilities at the score z of the label that came and of the other one, which is |p - y|.
    `norms`: the events so far, then each learner's N, this one's at the place `at`. `normal` and `step`: working space.
    """
    weight = min(limits[WEIGHT], limits[CLIP] / other, MAX_WEIGHT)
    squared = weight * other * other
    for j in range(len(x)):
        size = max(abs(x[j]), b[j])
        scale = 1.0 / size if size > 1e-100 else 0.0
        w[j] *= b[j] * scale
        n[j] += squared * (x[j] * x[j])
        b[j] = size
        normal[j] = x[j] * scale
        step[j] = scale / math.sqrt(n[j] + TINY) * x[j]  # x r
    moved, normals = 0.0, 0.0
    for j in range(len(x)):
        moved += x[j] * step[j]
        normals += normal[j] * normal[j]
    norms[at] += weight * normals
    c = math.sqrt(norms[0] / norms[at]) if norms[at] > 0.0 else 1.0
    moved *= c
    if moved > 1e-12:
        sign = 1.0 if y else -1.0
        flow = lambert(rate * weight * moved + sign * z + own / other)  # own / other is exp(sign z)
        u = (sign * flow - z) / moved * c
        for j in range(len(x)):
            w[j] += u * step[j]
