"""Stackers: members of the mixture that learn a weighted sum of the other learners' scores.

The state of AdaGrad stackers has two rows for each: the weights, of the learners and a bias, and their squares. That of
the Kalman stacker has its weights, and their covariance. They start as the mean score.
"""

from __future__ import annotations

import math

from core.auto.rules import CLIP, EPS, MAX_SCORE, WEIGHT, clipped
from core.compiled import part_of_kernels
from core.logistic import Floats
from core.rules import Table

MAX_HEARD = 8.0
"""The Kalman stacker hears scores clamped to ± this, so one learner that is certain and wrong does not decide all."""
FORGETS = 0.9995
"""The Kalman stacker divides its covariance by this after each event, so it never stops learning ..."""
TRACE = 0.1
"""... while the covariance's trace is below this for each weight."""


@part_of_kernels
def stack_scores(z: Floats, adagrad: Table, kalman: Table, out: Floats) -> None:
    """`out` <- the stackers' scores over the learners' scores z: AdaGrad's, then Kalman's."""
    learners, stackers = len(z), len(adagrad) // 2
    for s in range(stackers):
        total = adagrad[2 * s, learners]
        for k in range(learners):
            total += adagrad[2 * s, k] * z[k]
        out[s] = min(max(total, -MAX_SCORE), MAX_SCORE)
    if len(kalman) > 0:
        total = kalman[0, learners]
        for k in range(learners):
            total += kalman[0, k] * min(max(z[k], -MAX_HEARD), MAX_HEARD)
        out[stackers] = min(max(total, -MAX_SCORE), MAX_SCORE)


@part_of_kernels
def _kalman_step(x: Floats, px: Floats, other: float, y: int, limits: Floats, w: Floats, p: Table) -> None:
    """An extended Kalman filter with the full covariance P: with h = p (1 - p), v = x'Px and d = 1 + h v,

        w <- w + Px (y - p) / d;  P <- P - Px (Px)' h / d;  then P <- P / FORGETS while its trace is small

    `other` is |p - y|. Plain loops: a BLAS would sum in another order on another processor.
    """
    n = len(x)
    for k in range(n):
        px[k] = 0.0
    for i in range(n):  # as P is symmetric; row by row, since sums by column take a step in many places at once
        for k in range(n):
            px[k] += p[i, k] * x[i]
    v = 0.0
    for i in range(n):
        v += x[i] * px[i]
    weight = min(limits[WEIGHT], limits[CLIP] / other)
    h = max(other * (1.0 - other), 1e-4) * weight
    d = 1.0 + h * v
    step, shrink, trace = (other if y else -other) * weight / d, h / d, 0.0
    for i in range(n):
        trace += p[i, i] - px[i] * shrink * px[i]
    scale = 1.0 / FORGETS if trace < TRACE * n else 1.0
    for i in range(n):
        w[i] += px[i] * step
        scaled = px[i] * shrink
        for k in range(n):
            p[i, k] = (p[i, k] - scaled * px[k]) * scale


@part_of_kernels
def stack_step(
    z: Floats, other: Floats, y: int, limits: Floats, adagrad: Table, rates: Floats, kalman: Table, room: Floats
) -> None:
    """One step of each stacker, for learners' scores z; `other`: each stacker's probability of the label that did not
    come, |p - y|. `room`: two places a weight."""
    weights = len(z) + 1
    x, px = room[:weights], room[weights:]
    for k in range(len(z)):
        x[k] = z[k]
    x[len(z)] = 1.0
    for s in range(len(rates)):  # n <- n + (g z)²;  w <- w - rate g z / sqrt(n)
        w, n = adagrad[2 * s], adagrad[2 * s + 1]
        g = clipped(other[s], y, limits)
        for k in range(weights):
            gradient = g * x[k]
            n[k] += gradient * gradient
            w[k] -= rates[s] * gradient / math.sqrt(n[k] + EPS)
    if len(kalman) > 0:
        for k in range(len(z)):
            x[k] = min(max(z[k], -MAX_HEARD), MAX_HEARD)
        _kalman_step(x, px, other[len(rates)], y, limits, kalman[0], kalman[1:])
