"""Stackers: members of the mixture that learn a weighted sum of the other learners' scores.

The state of AdaGrad stackers has two rows for each: the weights, of the learners and a bias, and their squares. That of
the Kalman stacker has its weights, and their covariance. They start as the mean score.
"""

from __future__ import annotations

import math

from numba import types

from core.auto.rules import CLIP, EPS, MAX_SCORE, WEIGHT, residual
from core.compiled import compiled
from core.logistic import Floats
from core.rules import FLOATS, TABLE, Table

MAX_HEARD = 8.0
"""The Kalman stacker hears scores clamped to ± this, so one learner that is certain and wrong does not decide all."""
FORGETS = 0.9995
"""The Kalman stacker divides its covariance by this after each event, so it never stops learning ..."""
TRACE = 0.1
"""... while the covariance's trace is below this for each weight."""


@compiled(types.void(FLOATS, TABLE, TABLE, FLOATS))
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


@compiled(types.void(FLOATS, FLOATS, types.float64, types.uint8, FLOATS, FLOATS, TABLE))
def _kalman_step(x: Floats, px: Floats, z: float, y: int, limits: Floats, w: Floats, p: Table) -> None:
    """An extended Kalman filter with the full covariance P: with h = p (1 - p), v = x'Px and d = 1 + h v,

        w <- w + Px (y - p) / d;  P <- P - Px (Px)' h / d;  then P <- P / FORGETS while its trace is small

    Plain loops: a BLAS would sum in another order on another processor.
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
    g = residual(z, y)
    weight = min(limits[WEIGHT], limits[CLIP] / abs(g))
    h = max(abs(g) * (1.0 - abs(g)), 1e-4) * weight
    d = 1.0 + h * v
    trace = 0.0
    for i in range(n):
        w[i] -= px[i] * (g * weight) / d
        scaled = px[i] * h / d
        for k in range(n):
            p[i, k] -= scaled * px[k]
        trace += p[i, i]
    if trace < TRACE * n:
        for i in range(n):
            for k in range(n):
                p[i, k] *= 1.0 / FORGETS


@compiled(types.void(FLOATS, FLOATS, types.uint8, FLOATS, TABLE, FLOATS, TABLE, FLOATS))
def stack_step(
    z: Floats, scores: Floats, y: int, limits: Floats, adagrad: Table, rates: Floats, kalman: Table, room: Floats
) -> None:
    """One step of each stacker, for learners' scores z and stackers' `scores`. `room`: two places a weight."""
    weights = len(z) + 1
    for s in range(len(rates)):  # n <- n + (g z)²;  w <- w - rate g z / sqrt(n)
        w, n = adagrad[2 * s], adagrad[2 * s + 1]
        g = max(min(residual(scores[s], y) * limits[WEIGHT], limits[CLIP]), -limits[CLIP])
        for k in range(weights):
            gradient = g * (z[k] if k < weights - 1 else 1.0)
            n[k] += gradient * gradient
            w[k] -= rates[s] * gradient / math.sqrt(n[k] + EPS)
    if len(kalman) > 0:
        heard, px = room[:weights], room[weights:]
        for k in range(weights - 1):
            heard[k] = min(max(z[k], -MAX_HEARD), MAX_HEARD)
        heard[weights - 1] = 1.0
        _kalman_step(heard, px, scores[len(rates)], y, limits, kalman[0], kalman[1:])
