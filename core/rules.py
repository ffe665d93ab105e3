"""The rules: how the gradient of one event moves the weights, and the code that all rules share.

For an event with features x, label y and sample weight, after n events (t = n + 1):

    scale      x <- scaled x, if the model scales; the scaler learns x first; text features are not scaled
    score      z = w·x + b
    gradient   g = clip((p - y) · class weight · sample weight);  g_i = x_i g + l2 w_i
    bias       b <- b - rate(n) g
    rule       w_i <- ... g_i ..., only for the event's features
    l1         the cumulative penalty, last

An event's cost depends only on its own features, not on the model's size.

A rule is one function, a branch in `update` and a line in the table `RULES`. Operations have river's order and
grouping, so the weights equal river's to the last bit. `pow(a, b)` is the C library's, as in river. With a constant
exponent, numba would replace it by a multiplication or a square root, which rounds one value in a thousand differently,
and on unscaled data the weights would then drift far apart. So the exponents 2, 1/2 and -1 are arguments, in the array
of parameters `q`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from core.compiled import compiled
from core.logistic import Floats, Ints, Labels, Offsets, residual, score

Table = npt.NDArray[np.float64]
"""(features, k) float64: k numbers for each feature."""

# Positions in the array of a model's scalars.
BIAS, L1_TOTAL, FINAL_LR = 0, 1, 2
SCALARS = 3

# Positions in the array of a model's parameters, `q`.
(
    SQUARE, ROOT, INVERSE,  # the exponents 2, 1/2 and -1
    L1, L2, CLIP, WEIGHT_0, WEIGHT_1,
    RATE, RATE_SHAPE, BIAS_RATE, BIAS_RATE_SHAPE, FIRST_RATE,
    RHO, EPS, BETA_1, BETA_2, GAMMA, BETA, LAG, CORRECT_BIAS,
) = range(21)  # fmt: skip
PARAMETERS = 21

# Positions in the array of a model's choices, `codes`.
RULE, SCALE, SCHEDULE, BIAS_SCHEDULE, PENALTY = 0, 1, 2, 3, 4
UNSCALED, STANDARD, MAXABS = 0, 1, 2
CONSTANT, INVERSE_SCALING, OPTIMAL = 0, 1, 2

_UPDATE = "void(int32[::1], float64[::1], float64[::1], float64[:, ::1], float64, float64, float64[::1], float64[::1])"


# -- the rules. c: the columns of the event's features; g: their gradients g_i; w: the weights; s: the rule's numbers
# for each feature, at first 0; rate: the learning rate; t: the number of this event, from 1; q: the parameters;
# scalars: the model's scalars


@compiled(_UPDATE)
def sgd(c: Ints, g: Floats, w: Floats, s: Table, rate: float, t: float, q: Floats, scalars: Floats) -> None:
    """Stochastic gradient descent (Robbins and Monro 1951): w <- w - rate g."""
    for k in range(len(c)):
        i = c[k]
        w[i] -= rate * g[k]


@compiled(_UPDATE)
def momentum(c: Ints, g: Floats, w: Floats, s: Table, rate: float, t: float, q: Floats, scalars: Floats) -> None:
    """s <- rho s + rate g;  w <- w - s."""
    for k in range(len(c)):
        i = c[k]
        s[i, 0] = q[RHO] * s[i, 0] + rate * g[k]
        w[i] -= s[i, 0]


@compiled(_UPDATE)
def nesterov(c: Ints, g: Floats, w: Floats, s: Table, rate: float, t: float, q: Floats, scalars: Floats) -> None:
    """Momentum with the gradient taken ahead, at w - rho s. This first undoes the move to that point."""
    for k in range(len(c)):
        i = c[k]
        w[i] += q[RHO] * s[i, 0]
        s[i, 0] = q[RHO] * s[i, 0] + rate * g[k]
        w[i] -= s[i, 0]


@compiled(_UPDATE)
def adagrad(c: Ints, g: Floats, w: Floats, s: Table, rate: float, t: float, q: Floats, scalars: Floats) -> None:
    """Duchi, Hazan and Singer 2011: G <- G + g²;  w <- w - rate / sqrt(G + eps) g."""
    for k in range(len(c)):
        i = c[k]
        s[i, 0] += math.pow(g[k], q[SQUARE])
        w[i] -= rate / math.pow(s[i, 0] + q[EPS], q[ROOT]) * g[k]


@compiled(_UPDATE)
def rmsprop(c: Ints, g: Floats, w: Floats, s: Table, rate: float, t: float, q: Floats, scalars: Floats) -> None:
    """Tieleman and Hinton 2012: G <- rho G + (1 - rho) g²;  w <- w - rate / sqrt(G + eps) g."""
    for k in range(len(c)):
        i = c[k]
        s[i, 0] = q[RHO] * s[i, 0] + (1.0 - q[RHO]) * (g[k] * g[k])
        w[i] -= rate / math.pow(s[i, 0] + q[EPS], q[ROOT]) * g[k]


@compiled(_UPDATE)
def adadelta(c: Ints, g: Floats, w: Floats, s: Table, rate: float, t: float, q: Floats, scalars: Floats) -> None:
    """Zeiler 2012: G <- rho G + (1 - rho) g²;  d = -sqrt(D + eps) / sqrt(G + eps) g;  D likewise of d;  w <- w + d."""
    for k in range(len(c)):
        i = c[k]
        s[i, 0] = q[RHO] * s[i, 0] + (1.0 - q[RHO]) * math.pow(g[k], q[SQUARE])
        d = -math.pow(s[i, 1] + q[EPS], q[ROOT]) / math.pow(s[i, 0] + q[EPS], q[ROOT]) * g[k]
        s[i, 1] = q[RHO] * s[i, 1] + (1.0 - q[RHO]) * math.pow(d, q[SQUARE])
        w[i] += d


@compiled(_UPDATE)
def adam(c: Ints, g: Floats, w: Floats, s: Table, rate: float, t: float, q: Floats, scalars: Floats) -> None:
    """Kingma and Ba 2015: means m of g and v of g², both corrected for their start;  w <- w - rate m / sqrt(v)."""
    rate = rate * math.pow(1.0 - math.pow(q[BETA_2], t), q[ROOT]) / (1.0 - math.pow(q[BETA_1], t))
    for k in range(len(c)):
        i = c[k]
        s[i, 0] = q[BETA_1] * s[i, 0] + (1.0 - q[BETA_1]) * g[k]
        s[i, 1] = q[BETA_2] * s[i, 1] + (1.0 - q[BETA_2]) * (g[k] * g[k])
        w[i] -= rate * s[i, 0] / (math.pow(s[i, 1], q[ROOT]) + q[EPS])


@compiled(_UPDATE)
def amsgrad(c: Ints, g: Floats, w: Floats, s: Table, rate: float, t: float, q: Floats, scalars: Floats) -> None:
    """Reddi, Kale and Kumar 2018: Adam with the largest v so far."""
    if q[CORRECT_BIAS]:
        rate = rate * math.pow(1.0 - math.pow(q[BETA_2], t), q[ROOT]) / (1.0 - math.pow(q[BETA_1], t))
    for k in range(len(c)):
        i = c[k]
        s[i, 0] = q[BETA_1] * s[i, 0] + (1.0 - q[BETA_1]) * g[k]
        s[i, 1] = q[BETA_2] * s[i, 1] + (1.0 - q[BETA_2]) * math.pow(g[k], q[SQUARE])
        s[i, 2] = max(s[i, 2], s[i, 1])
        w[i] -= rate * s[i, 0] / (math.pow(s[i, 2], q[ROOT]) + q[EPS])


@compiled(_UPDATE)
def nadam(c: Ints, g: Floats, w: Floats, s: Table, rate: float, t: float, q: Floats, scalars: Floats) -> None:
    """Dozat 2016: Adam with Nesterov's look ahead."""
    start_1, start_2 = 1.0 - math.pow(q[BETA_1], t), 1.0 - math.pow(q[BETA_2], t)
    for k in range(len(c)):
        i = c[k]
        s[i, 0] = q[BETA_1] * s[i, 0] + (1.0 - q[BETA_1]) * g[k]
        s[i, 1] = q[BETA_2] * s[i, 1] + (1.0 - q[BETA_2]) * math.pow(g[k], q[SQUARE])
        m = q[BETA_1] * (s[i, 0] / start_1) + (1.0 - q[BETA_1]) * g[k] / start_1
        w[i] -= rate * m / (math.pow(s[i, 1] / start_2, q[ROOT]) + q[EPS])


@compiled(_UPDATE)
def adamax(c: Ints, g: Floats, w: Floats, s: Table, rate: float, t: float, q: Floats, scalars: Floats) -> None:
    """Kingma and Ba 2015: Adam with the largest |g|, decaying, in place of the root of v."""
    rate = rate / (1.0 - math.pow(q[BETA_1], t))
    for k in range(len(c)):
        i = c[k]
        s[i, 0] = q[BETA_1] * s[i, 0] + (1.0 - q[BETA_1]) * g[k]
        s[i, 1] = max(q[BETA_2] * s[i, 1], abs(g[k]))
        w[i] -= rate * s[i, 0] / (s[i, 1] + q[EPS])


@compiled(_UPDATE)
def adabound(c: Ints, g: Floats, w: Floats, s: Table, rate: float, t: float, q: Floats, scalars: Floats) -> None:
    """Luo et al. 2019: Adam with rates clipped to bounds that close in on `final_lr`."""
    start_1, start_2 = 1.0 - math.pow(q[BETA_1], t), 1.0 - math.pow(q[BETA_2], t)
    step = rate * math.sqrt(start_2) / start_1
    scalars[FINAL_LR] *= rate / q[FIRST_RATE]
    low = scalars[FINAL_LR] * (1.0 - 1.0 / (q[GAMMA] * t + 1.0))
    high = scalars[FINAL_LR] * (1.0 + 1.0 / (q[GAMMA] * t))
    for k in range(len(c)):
        i = c[k]
        s[i, 0] = q[BETA_1] * s[i, 0] + (1.0 - q[BETA_1]) * g[k]
        s[i, 1] = q[BETA_2] * s[i, 1] + (1.0 - q[BETA_2]) * math.pow(g[k], q[SQUARE])
        bounded = max(min(step / (math.sqrt(s[i, 1]) + q[EPS]), high), low)
        w[i] -= bounded * s[i, 0]


@compiled("float64(float64, float64, float64, float64[::1])")
def _ftrl_weight(z: float, n: float, rate: float, q: Floats) -> float:
    """w = -(z - sign(z) l1) / ((beta + sqrt(n)) / rate + l2), the minimiser of the regularised sum of gradients."""
    sign = 1.0 if z > 0.0 else -1.0
    weight: float = -math.pow((q[BETA] + math.pow(n, q[ROOT])) / rate + q[L2], q[INVERSE]) * (z - sign * q[L1])
    return weight


@compiled(_UPDATE)
def ftrl(c: Ints, g: Floats, w: Floats, s: Table, rate: float, t: float, q: Floats, scalars: Floats) -> None:
    """Follow the regularised leader, proximal (McMahan et al. 2013): z <- z + g - sigma w;  n <- n + g².

    River computes a weight from z and n when its feature is next seen (`lag`), and leaves it unchanged if |z| <= l1.
    Without lag, the weight is computed at once and is 0 if |z| <= l1, as in the paper.
    """
    for k in range(len(c)):
        i = c[k]
        if q[LAG] and abs(s[i, 0]) > q[L1]:
            w[i] = _ftrl_weight(s[i, 0], s[i, 1], rate, q)
        square = math.pow(g[k], q[SQUARE])
        sigma = (math.pow(s[i, 1] + square, q[ROOT]) - math.pow(s[i, 1], q[ROOT])) / rate
        s[i, 0] += g[k] - sigma * w[i]
        s[i, 1] += square
        if not q[LAG]:
            w[i] = _ftrl_weight(s[i, 0], s[i, 1], rate, q) if abs(s[i, 0]) > q[L1] else 0.0


(
    SGD, MOMENTUM, NESTEROV, ADAGRAD, RMSPROP, ADADELTA,
    ADAM, AMSGRAD, NADAM, ADAMAX, ADABOUND, FTRL,
) = range(12)  # fmt: skip


@compiled(
    "void(int64, int32[::1], float64[::1], float64[::1], float64[:, ::1], float64, float64, float64[::1], float64[::1])"
)
def update(  # noqa: C901  # the compiler makes a switch of it; numba has no table of functions
    rule: int, c: Ints, g: Floats, w: Floats, s: Table, rate: float, t: float, q: Floats, scalars: Floats
) -> None:
    """Call the rule's function."""
    if rule == SGD:
        sgd(c, g, w, s, rate, t, q, scalars)
    elif rule == MOMENTUM:
        momentum(c, g, w, s, rate, t, q, scalars)
    elif rule == NESTEROV:
        nesterov(c, g, w, s, rate, t, q, scalars)
    elif rule == ADAGRAD:
        adagrad(c, g, w, s, rate, t, q, scalars)
    elif rule == RMSPROP:
        rmsprop(c, g, w, s, rate, t, q, scalars)
    elif rule == ADADELTA:
        adadelta(c, g, w, s, rate, t, q, scalars)
    elif rule == ADAM:
        adam(c, g, w, s, rate, t, q, scalars)
    elif rule == AMSGRAD:
        amsgrad(c, g, w, s, rate, t, q, scalars)
    elif rule == NADAM:
        nadam(c, g, w, s, rate, t, q, scalars)
    elif rule == ADAMAX:
        adamax(c, g, w, s, rate, t, q, scalars)
    elif rule == ADABOUND:
        adabound(c, g, w, s, rate, t, q, scalars)
    elif rule == FTRL:
        ftrl(c, g, w, s, rate, t, q, scalars)


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule: its code in `update`, how many numbers it keeps per feature, its parameters with river's defaults."""

    code: int
    keeps: int
    defaults: dict[str, Any]


_ADAM = {"learning_rate": 0.1, "beta_1": 0.9, "beta_2": 0.999, "eps": 1e-8}

RULES: dict[str, Rule] = {
    "sgd": Rule(SGD, 0, {"learning_rate": 0.01}),
    "momentum": Rule(MOMENTUM, 1, {"learning_rate": 0.1, "rho": 0.9}),
    "nesterov": Rule(NESTEROV, 1, {"learning_rate": 0.1, "rho": 0.9}),
    "adagrad": Rule(ADAGRAD, 1, {"learning_rate": 0.1, "eps": 1e-8}),
    "rmsprop": Rule(RMSPROP, 1, {"learning_rate": 0.1, "rho": 0.9, "eps": 1e-8}),
    "adadelta": Rule(ADADELTA, 2, {"bias_learning_rate": 0.01, "rho": 0.95, "eps": 1e-8}),
    "adam": Rule(ADAM, 2, _ADAM),
    "amsgrad": Rule(AMSGRAD, 3, {**_ADAM, "correct_bias": True}),
    "nadam": Rule(NADAM, 2, _ADAM),
    "adamax": Rule(ADAMAX, 2, _ADAM),
    "adabound": Rule(ADABOUND, 2, {**_ADAM, "learning_rate": 1e-3, "gamma": 1e-3, "final_lr": 0.1}),
    "ftrl": Rule(FTRL, 2, {"learning_rate": 0.05, "beta": 1.0, "l1": 0.0, "l2": 1.0, "lag": True}),
}


# -- code that all rules share


AS_IS = (-1.0, 0.0, 1.0)
"""The scaler's row for a feature that is not scaled; `maxabs` uses only the first number. The mean 0 and the variance
1, or the magnitude |-1|, leave a value unchanged. A negative first number tells the scaler not to learn."""


@compiled("void(int64, int32[::1], float64[::1], float64[:, ::1])")
def learn_scale(scale: int, c: Ints, x: Floats, scaler: Table) -> None:
    """The scaler learns the event's values.

    Standard (river's `StandardScaler`): count, mean and population variance of each feature, by Welford's method.
    Maxabs (river's `MaxAbsScaler`): the largest magnitude of each feature.
    A feature whose row is `AS_IS` keeps it.
    """
    for k in range(len(c)):
        i = c[k]
        if scaler[i, 0] < 0.0:
            continue
        if scale == STANDARD:
            old_mean = scaler[i, 1]
            scaler[i, 0] += 1.0
            scaler[i, 1] += (x[k] - old_mean) / scaler[i, 0]
            scaler[i, 2] += ((x[k] - old_mean) * (x[k] - scaler[i, 1]) - scaler[i, 2]) / scaler[i, 0]
        else:
            scaler[i, 0] = max(scaler[i, 0], abs(x[k]))


@compiled("void(int64, int32[::1], float64[::1], float64[:, ::1], float64, float64[::1])")
def scale_into(scale: int, c: Ints, x: Floats, scaler: Table, root: float, scaled: Floats) -> None:
    """`scaled` <- (x - mean) / sqrt(variance), or x / largest magnitude; 0 if the divisor is 0.

    An unknown feature (a column that is negative or past the end) becomes 0. `root` is 1/2.
    """
    for k in range(len(c)):
        i = c[k]
        if not 0 <= i < len(scaler):
            scaled[k] = 0.0
        elif scale == STANDARD:
            variance = scaler[i, 2]
            scaled[k] = (x[k] - scaler[i, 1]) / math.pow(variance, root) if variance != 0.0 else 0.0
        else:
            scaled[k] = x[k] / abs(scaler[i, 0]) if scaler[i, 0] != 0.0 else 0.0


@compiled("float64(int64, float64, float64, float64)")
def scheduled(schedule: int, rate: float, shape: float, n: float) -> float:
    """The learning rate after n events: rate; rate / (n + 1)^shape; or 1 / (rate (shape + n)), where rate is alpha."""
    if schedule == INVERSE_SCALING:
        return rate / math.pow(n + 1.0, shape)
    if schedule == OPTIMAL:
        return 1.0 / (rate * (shape + n))
    return rate


@compiled("void(int32[::1], float64[::1], float64[::1], float64)")
def shrink(c: Ints, w: Floats, paid: Floats, owed: float) -> None:
    """The cumulative L1 penalty (Tsuruoka, Tsujii and Ananiadou 2009, river's `l1`).

    Each weight of the event moves towards 0 by the total penalty `owed` so far minus what it has `paid`, but never
    past 0.
    """
    for k in range(len(c)):
        i = c[k]
        before = w[i]
        if before > 0.0:
            w[i] = max(0.0, before - (owed + paid[i]))
        elif before < 0.0:
            w[i] = min(0.0, before + (owed - paid[i]))
        paid[i] += w[i] - before


@compiled(
    "void(int32[::1], float64[::1], uint8, float64, float64, float64[::1], float64[:, ::1], float64[::1], "
    "float64[::1], int64[::1], float64[::1], float64[::1])"
)
def step(
    c: Ints,
    x: Floats,
    y: int,
    sample_weight: float,
    n: float,
    w: Floats,
    s: Table,
    paid: Floats,
    scalars: Floats,
    codes: npt.NDArray[np.int64],
    q: Floats,
    g: Floats,
) -> None:
    """One gradient step for an event with (scaled) values x, after n events. `g` is space for its gradient."""
    if codes[RULE] == NESTEROV:
        for k in range(len(c)):
            w[c[k]] -= q[RHO] * s[c[k], 0]  # look ahead
    z = score(c, x, w, scalars[BIAS])
    dz = residual(z, y, q[WEIGHT_1] if y else q[WEIGHT_0]) * sample_weight  # dL/dz = p - y, weighted
    dz = max(min(dz, q[CLIP]), -q[CLIP])
    for k in range(len(c)):
        g[k] = x[k] * dz  # dL/dw_i = (p - y) x_i
        if codes[PENALTY] and q[L2] != 0.0:
            g[k] += q[L2] * w[c[k]]  # d/dw_i of l2/2 |w|²
    # b <- b - rate (p - y)
    scalars[BIAS] -= scheduled(codes[BIAS_SCHEDULE], q[BIAS_RATE], q[BIAS_RATE_SHAPE], n) * dz
    rate = scheduled(codes[SCHEDULE], q[RATE], q[RATE_SHAPE], n)
    update(codes[RULE], c, g[: len(c)], w, s, rate, n + 1.0, q, scalars)
    if codes[PENALTY] and q[L1] != 0.0:
        scalars[L1_TOTAL] += q[L1] * scheduled(codes[SCHEDULE], q[RATE], q[RATE_SHAPE], n + 1.0)
        shrink(c, w, paid, scalars[L1_TOTAL])


# Copies of what a step may change, so that the step can be undone.

SAVED = 8
"""Most numbers of a feature that a step may change: its weight, 3 of the rule, 3 of the scaler, and the L1 penalty
paid."""

_SAVE = "void(int32[::1], float64[::1], float64[:, ::1], float64[:, ::1], float64[::1], float64[::1], float64[:, ::1])"


@compiled(_SAVE)
def save(c: Ints, w: Floats, s: Table, scaler: Table, paid: Floats, scalars: Floats, saved: Table) -> None:
    """Copy all that a step for these columns may change: one row per feature, the scalars in the last row."""
    for k in range(len(c)):
        i = c[k]
        saved[k, 0] = w[i]
        for j in range(s.shape[1]):
            saved[k, 1 + j] = s[i, j]
        for j in range(scaler.shape[1]):
            saved[k, 4 + j] = scaler[i, j]
        if len(paid) > 0:
            saved[k, 7] = paid[i]
    for j in range(len(scalars)):
        saved[-1, j] = scalars[j]


@compiled(_SAVE)
def restore(c: Ints, w: Floats, s: Table, scaler: Table, paid: Floats, scalars: Floats, saved: Table) -> None:
    """Restore what `save` copied."""
    for k in range(len(c)):
        i = c[k]
        w[i] = saved[k, 0]
        for j in range(s.shape[1]):
            s[i, j] = saved[k, 1 + j]
        for j in range(scaler.shape[1]):
            scaler[i, j] = saved[k, 4 + j]
        if len(paid) > 0:
            paid[i] = saved[k, 7]
    for j in range(len(scalars)):
        scalars[j] = saved[-1, j]


@compiled("boolean(int32[::1], float64[::1], float64[:, ::1], float64[:, ::1], float64[::1])")
def all_finite(c: Ints, w: Floats, s: Table, scaler: Table, scalars: Floats) -> bool:
    """Whether every number that a step for these columns may have changed is finite."""
    zero = 0.0  # 0 * x is 0 for a finite x, else NaN
    for j in range(len(scalars)):
        zero += 0.0 * scalars[j]
    for k in range(len(c)):
        i = c[k]
        zero += 0.0 * w[i]
        for j in range(s.shape[1]):
            zero += 0.0 * s[i, j]
        for j in range(scaler.shape[1]):
            zero += 0.0 * scaler[i, j]
    return zero == 0.0


@compiled(
    "float64(int32[::1], float64[::1], float64[::1], float64[:, ::1], float64[::1], int64[::1], float64[::1], "
    "float64[::1])"
)
def predict_score(
    c: Ints,
    x: Floats,
    w: Floats,
    scaler: Table,
    scalars: Floats,
    codes: npt.NDArray[np.int64],
    q: Floats,
    scaled: Floats,
) -> float:
    """z = w·x + b, with x scaled by the present state; changes nothing. `scaled` is space for the values of x."""
    if codes[SCALE] == UNSCALED:
        return score(c, x, w, scalars[BIAS])
    scale_into(codes[SCALE], c, x, scaler, q[ROOT], scaled)
    return score(c, scaled[: len(c)], w, scalars[BIAS])


@compiled(
    "void(int32[::1], float64[::1], int64, float64[::1], float64[:, ::1], float64[::1], int64[::1], float64[::1], "
    "float64[::1])"
)
def serve_into(
    c: Ints,
    x: Floats,
    features: int,
    w: Floats,
    scaler: Table,
    scalars: Floats,
    codes: npt.NDArray[np.int64],
    q: Floats,
    numbers: Floats,
) -> None:
    """`numbers` <- the parts of z = w·x + b: z, b, the w_i and, if the model scales, the scaled x_i.

    w_i is NaN, which no weight ever is, if the column is not among the model's first `features`.
    """
    n = len(c)
    numbers[0] = predict_score(c, x, w, scaler, scalars, codes, q, numbers[2 + n :])
    numbers[1] = scalars[BIAS]
    for k in range(n):
        numbers[2 + k] = w[c[k]] if 0 <= c[k] < features else math.nan


@compiled(
    "void(int64[::1], int32[::1], float64[::1], uint8[::1], float64[::1], float64, float64[::1], float64[:, ::1], "
    "float64[:, ::1], float64[::1], float64[::1], int64[::1], float64[::1], float64[::1], boolean[::1], float64[::1], "
    "float64[::1], float64[:, ::1])"
)
def learn_many(
    offsets: Offsets,
    columns: Ints,
    values: Floats,
    labels: Labels,
    sample_weights: Floats,
    taken: float,
    w: Floats,
    s: Table,
    scaler: Table,
    paid: Floats,
    scalars: Floats,
    codes: npt.NDArray[np.int64],
    q: Floats,
    scores: Floats,
    learned: npt.NDArray[np.bool_],
    g: Floats,
    scaled: Floats,
    saved: Table,
) -> None:
    """n events, n steps, in order, after `taken` steps.

    Event i has the features `columns[offsets[i]:offsets[i + 1]]`, with the values at the same positions. Fills
    `scores[i]` with the score before the step, and `learned[i]` with whether the step was taken. It is not taken if the
    score, or a number that the step would leave, is not finite. `g`, `scaled` and `saved` are working space for the
    longest event; `saved` has a row of SAVED numbers for each of its features, and one more.
    """
    for i in range(len(labels)):
        c = columns[offsets[i] : offsets[i + 1]]
        x = values[offsets[i] : offsets[i + 1]]
        scores[i] = predict_score(c, x, w, scaler, scalars, codes, q, scaled)
        learned[i] = math.isfinite(scores[i])
        if not learned[i]:
            continue
        save(c, w, s, scaler, paid, scalars, saved)
        if codes[SCALE] != UNSCALED:
            learn_scale(codes[SCALE], c, x, scaler)
            scale_into(codes[SCALE], c, x, scaler, q[ROOT], scaled)
            x = scaled[: len(c)]
        step(c, x, labels[i], sample_weights[i], taken, w, s, paid, scalars, codes, q, g)
        if all_finite(c, w, s, scaler, scalars):
            taken += 1.0
        else:
            learned[i] = False
            restore(c, w, s, scaler, paid, scalars, saved)


@compiled(
    "void(int64[::1], uint32[::1], float64[::1], uint8[::1], float64[::1], float64[::1], float64[::1], float64[::1], "
    "float64[::1], boolean[::1], float64[::1])"
)
def learn_many_sgd(
    offsets: Offsets,
    columns: npt.NDArray[np.uint32],
    values: Floats,
    labels: Labels,
    sample_weights: Floats,
    w: Floats,
    scalars: Floats,
    q: Floats,
    scores: Floats,
    learned: npt.NDArray[np.bool_],
    before: Floats,
) -> None:
    """`learn_many` for plain SGD: constant rates, no scaler, no penalty. Gives the same numbers to the last bit.

    Most models are plain SGD, and an event of 10 features takes 28 ns here instead of 100. Unsigned columns save a
    fifth, because numba checks whether a signed index counts from the end. `before` is space for the weights of the
    longest event.
    """
    b, rate, bias_rate, clip = scalars[BIAS], q[RATE], q[BIAS_RATE], q[CLIP]
    for i in range(len(labels)):
        start, n = offsets[i], offsets[i + 1] - offsets[i]
        z = 0.0
        for k in range(n):
            before[k] = w[columns[start + k]]
            z += before[k] * values[start + k]
        z += b  # z = w·x + b
        dz = residual(z, labels[i], q[WEIGHT_1] if labels[i] else q[WEIGHT_0]) * sample_weights[i]  # p - y, weighted
        dz = max(min(dz, clip), -clip)
        b_after = b - bias_rate * dz  # b <- b - rate (p - y)
        zero = 0.0 * z + 0.0 * b_after  # 0 * x is 0 for a finite x, else NaN
        for k in range(n):
            after = before[k] - rate * (values[start + k] * dz)  # w_i <- w_i - rate (p - y) x_i
            w[columns[start + k]] = after
            zero += 0.0 * after
        scores[i] = z
        learned[i] = zero == 0.0
        if learned[i]:
            b = b_after
        else:
            for k in range(n):
                w[columns[start + k]] = before[k]
    scalars[BIAS] = b


def grown(array: Table, rows: int) -> Table:
    """A copy of the array, extended with zeros to `rows` rows."""
    larger = np.zeros((rows, *array.shape[1:]))
    larger[: len(array)] = array
    return larger
