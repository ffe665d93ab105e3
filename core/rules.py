"""The twelve rules: how the gradient of one event moves the weights, one function each, and their table.

A rule is a line in the table `RULES`, its number, its function, and a branch in `update`, which step.py calls. Before
the rules comes where each number stands in the arrays of a model.

Operations have river's order and grouping, so the weights equal river's to the last bit. `pow(a, b)` is the C
library's, as in river. With a constant exponent, numba would replace it by a multiplication or a square root, which
rounds one value in a thousand differently, and on unscaled data the weights would then drift far apart. So the
exponents 2, 1/2 and -1 are arguments, in the array of parameters `q`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import types

from core.compiled import part_of_kernels
from core.logistic import Floats, Ints

Table = npt.NDArray[np.float64]
"""(features, k) float64: k numbers for each feature."""
Codes = npt.NDArray[np.int64]

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
OF_RULES = {
    "rho": RHO, "eps": EPS, "beta_1": BETA_1, "beta_2": BETA_2, "gamma": GAMMA, "beta": BETA, "lag": LAG,
    "correct_bias": CORRECT_BIAS,
}  # fmt: skip
"""Where the parameters stand that only some rules have, by their names in a spec. `final_lr` moves: it is a scalar."""

# Positions in the array of a model's choices, `codes`.
RULE, SCALE, SCHEDULE, BIAS_SCHEDULE, PENALTY = 0, 1, 2, 3, 4
UNSCALED, STANDARD, MAXABS = 0, 1, 2
CONSTANT, INVERSE_SCALING, OPTIMAL = 0, 1, 2


class State(NamedTuple):
    """What a step may change, for a model that is one logistic regression; a row for each feature in all but the last.

    Kernels pass it to each other. Python passes the arrays one by one: numba needs 4 us more for a call with a tuple.
    """

    w: Floats
    """The weights."""
    s: Table
    """The rule's numbers."""
    scaler: Table
    """The scaler's numbers."""
    paid: Floats
    """The L1 penalty paid; empty without one."""
    scalars: Floats


FLOATS, TABLE = types.float64[::1], types.float64[:, ::1]
COLUMNS, CODES = types.int32[::1], types.int64[::1]
STATE = types.NamedTuple([FLOATS, TABLE, TABLE, FLOATS, FLOATS], State)


class Rule(NamedTuple):
    """A rule: its class in `river.optim`, river's names for the numbers kept per feature, and river's defaults."""

    river: str | None
    keeps: tuple[str, ...]
    defaults: dict[str, Any]


_ADAM = {"learning_rate": 0.1, "beta_1": 0.9, "beta_2": 0.999, "eps": 1e-8}

RULES: dict[str, Rule] = {
    "sgd": Rule("SGD", (), {"learning_rate": 0.01}),
    "momentum": Rule("Momentum", ("s",), {"learning_rate": 0.1, "rho": 0.9}),
    "nesterov": Rule("NesterovMomentum", ("s",), {"learning_rate": 0.1, "rho": 0.9}),
    "adagrad": Rule("AdaGrad", ("g2",), {"learning_rate": 0.1, "eps": 1e-8}),
    "rmsprop": Rule("RMSProp", ("g2",), {"learning_rate": 0.1, "rho": 0.9, "eps": 1e-8}),
    "adadelta": Rule("AdaDelta", ("g2", "s2"), {"bias_learning_rate": 0.01, "rho": 0.95, "eps": 1e-8}),
    "adam": Rule("Adam", ("m", "v"), _ADAM),
    "amsgrad": Rule("AMSGrad", ("m", "v", "v_hat"), {**_ADAM, "correct_bias": True}),
    "nadam": Rule("Nadam", ("m", "v"), _ADAM),
    "adamax": Rule("AdaMax", ("m", "u"), _ADAM),
    "adabound": Rule("AdaBound", ("m", "v"), {**_ADAM, "learning_rate": 1e-3, "gamma": 1e-3, "final_lr": 0.1}),
    "ftrl": Rule("FTRLProximal", ("z", "n"), {"learning_rate": 0.05, "beta": 1.0, "l1": 0.0, "l2": 1.0, "lag": True}),
}
(
    SGD, MOMENTUM, NESTEROV, ADAGRAD, RMSPROP, ADADELTA, ADAM, AMSGRAD, NADAM, ADAMAX, ADABOUND, FTRL,
) = range(len(RULES))  # fmt: skip
"""Each rule's number: its place in the table."""
KEPT = max(len(rule.keeps) for rule in RULES.values())
"""Most numbers that a rule keeps per feature."""


# c: the columns of the event's features; g: their gradients g_i; w: the weights; s: the rule's numbers for each
# feature, at first 0; rate: the learning rate; t: the number of this event, from 1; q: the parameters; scalars: the
# model's scalars


@part_of_kernels
def sgd(c: Ints, g: Floats, w: Floats, s: Table, rate: float, t: float, q: Floats, scalars: Floats) -> None:
    """Stochastic gradient descent (Robbins and Monro 1951): w <- w - rate g."""
    for k, i in enumerate(c):
        w[i] -= rate * g[k]


@part_of_kernels
def momentum(c: Ints, g: Floats, w: Floats, s: Table, rate: float, t: float, q: Floats, scalars: Floats) -> None:
    """s <- rho s + rate g;  w <- w - s."""
    for k, i in enumerate(c):
        s[i, 0] = q[RHO] * s[i, 0] + rate * g[k]
        w[i] -= s[i, 0]


@part_of_kernels
def nesterov(c: Ints, g: Floats, w: Floats, s: Table, rate: float, t: float, q: Floats, scalars: Floats) -> None:
    """Momentum with the gradient taken ahead, at w - rho s. This first undoes the move to that point."""
    for k, i in enumerate(c):
        w[i] += q[RHO] * s[i, 0]
        s[i, 0] = q[RHO] * s[i, 0] + rate * g[k]
        w[i] -= s[i, 0]


@part_of_kernels
def adagrad(c: Ints, g: Floats, w: Floats, s: Table, rate: float, t: float, q: Floats, scalars: Floats) -> None:
    """Duchi, Hazan and Singer 2011: G <- G + g²;  w <- w - rate / sqrt(G + eps) g."""
    for k, i in enumerate(c):
        s[i, 0] += math.pow(g[k], q[SQUARE])
        w[i] -= rate / math.pow(s[i, 0] + q[EPS], q[ROOT]) * g[k]


@part_of_kernels
def rmsprop(c: Ints, g: Floats, w: Floats, s: Table, rate: float, t: float, q: Floats, scalars: Floats) -> None:
    """Tieleman and Hinton 2012: G <- rho G + (1 - rho) g²;  w <- w - rate / sqrt(G + eps) g."""
    for k, i in enumerate(c):
        s[i, 0] = q[RHO] * s[i, 0] + (1.0 - q[RHO]) * (g[k] * g[k])
        w[i] -= rate / math.pow(s[i, 0] + q[EPS], q[ROOT]) * g[k]


@part_of_kernels
def adadelta(c: Ints, g: Floats, w: Floats, s: Table, rate: float, t: float, q: Floats, scalars: Floats) -> None:
    """Zeiler 2012: G <- rho G + (1 - rho) g²;  d = -sqrt(D + eps) / sqrt(G + eps) g;  D likewise of d;  w <- w + d."""
    for k, i in enumerate(c):
        s[i, 0] = q[RHO] * s[i, 0] + (1.0 - q[RHO]) * math.pow(g[k], q[SQUARE])
        d = -math.pow(s[i, 1] + q[EPS], q[ROOT]) / math.pow(s[i, 0] + q[EPS], q[ROOT]) * g[k]
        s[i, 1] = q[RHO] * s[i, 1] + (1.0 - q[RHO]) * math.pow(d, q[SQUARE])
        w[i] += d


@part_of_kernels
def adam(c: Ints, g: Floats, w: Floats, s: Table, rate: float, t: float, q: Floats, scalars: Floats) -> None:
    """Kingma and Ba 2015: means m of g and v of g², both corrected for their start;  w <- w - rate m / sqrt(v)."""
    rate = rate * math.pow(1.0 - math.pow(q[BETA_2], t), q[ROOT]) / (1.0 - math.pow(q[BETA_1], t))
    for k, i in enumerate(c):
        s[i, 0] = q[BETA_1] * s[i, 0] + (1.0 - q[BETA_1]) * g[k]
        s[i, 1] = q[BETA_2] * s[i, 1] + (1.0 - q[BETA_2]) * (g[k] * g[k])
        w[i] -= rate * s[i, 0] / (math.pow(s[i, 1], q[ROOT]) + q[EPS])


@part_of_kernels
def amsgrad(c: Ints, g: Floats, w: Floats, s: Table, rate: float, t: float, q: Floats, scalars: Floats) -> None:
    """Reddi, Kale and Kumar 2018: Adam with the largest v so far."""
    if q[CORRECT_BIAS]:
        rate = rate * math.pow(1.0 - math.pow(q[BETA_2], t), q[ROOT]) / (1.0 - math.pow(q[BETA_1], t))
    for k, i in enumerate(c):
        s[i, 0] = q[BETA_1] * s[i, 0] + (1.0 - q[BETA_1]) * g[k]
        s[i, 1] = q[BETA_2] * s[i, 1] + (1.0 - q[BETA_2]) * math.pow(g[k], q[SQUARE])
        s[i, 2] = max(s[i, 2], s[i, 1])
        w[i] -= rate * s[i, 0] / (math.pow(s[i, 2], q[ROOT]) + q[EPS])


@part_of_kernels
def nadam(c: Ints, g: Floats, w: Floats, s: Table, rate: float, t: float, q: Floats, scalars: Floats) -> None:
    """Dozat 2016: Adam with Nesterov's look ahead."""
    start_1, start_2 = 1.0 - math.pow(q[BETA_1], t), 1.0 - math.pow(q[BETA_2], t)
    for k, i in enumerate(c):
        s[i, 0] = q[BETA_1] * s[i, 0] + (1.0 - q[BETA_1]) * g[k]
        s[i, 1] = q[BETA_2] * s[i, 1] + (1.0 - q[BETA_2]) * math.pow(g[k], q[SQUARE])
        m = q[BETA_1] * (s[i, 0] / start_1) + (1.0 - q[BETA_1]) * g[k] / start_1
        w[i] -= rate * m / (math.pow(s[i, 1] / start_2, q[ROOT]) + q[EPS])


@part_of_kernels
def adamax(c: Ints, g: Floats, w: Floats, s: Table, rate: float, t: float, q: Floats, scalars: Floats) -> None:
    """Kingma and Ba 2015: Adam with the largest |g|, decaying, in place of the root of v."""
    rate = rate / (1.0 - math.pow(q[BETA_1], t))
    for k, i in enumerate(c):
        s[i, 0] = q[BETA_1] * s[i, 0] + (1.0 - q[BETA_1]) * g[k]
        s[i, 1] = max(q[BETA_2] * s[i, 1], abs(g[k]))
        w[i] -= rate * s[i, 0] / (s[i, 1] + q[EPS])


@part_of_kernels
def adabound(c: Ints, g: Floats, w: Floats, s: Table, rate: float, t: float, q: Floats, scalars: Floats) -> None:
    """Luo et al. 2019: Adam with rates clipped to bounds that close in on `final_lr`."""
    start_1, start_2 = 1.0 - math.pow(q[BETA_1], t), 1.0 - math.pow(q[BETA_2], t)
    step = rate * math.sqrt(start_2) / start_1
    scalars[FINAL_LR] *= rate / q[FIRST_RATE]
    low = scalars[FINAL_LR] * (1.0 - 1.0 / (q[GAMMA] * t + 1.0))
    high = scalars[FINAL_LR] * (1.0 + 1.0 / (q[GAMMA] * t))
    for k, i in enumerate(c):
        s[i, 0] = q[BETA_1] * s[i, 0] + (1.0 - q[BETA_1]) * g[k]
        s[i, 1] = q[BETA_2] * s[i, 1] + (1.0 - q[BETA_2]) * math.pow(g[k], q[SQUARE])
        bounded = max(min(step / (math.sqrt(s[i, 1]) + q[EPS]), high), low)
        w[i] -= bounded * s[i, 0]


@part_of_kernels
def _ftrl_weight(z: float, n: float, rate: float, q: Floats) -> float:
    """w = -(z - sign(z) l1) / ((beta + sqrt(n)) / rate + l2), the minimiser of the regularised sum of gradients."""
    sign = 1.0 if z > 0.0 else -1.0
    weight: float = -math.pow((q[BETA] + math.pow(n, q[ROOT])) / rate + q[L2], q[INVERSE]) * (z - sign * q[L1])
    return weight


@part_of_kernels
def ftrl(c: Ints, g: Floats, w: Floats, s: Table, rate: float, t: float, q: Floats, scalars: Floats) -> None:
    """Follow the regularised leader, proximal (McMahan et al. 2013): z <- z + g - sigma w;  n <- n + g².

    River computes a weight from z and n when its feature is next seen (`lag`), and leaves it unchanged if |z| <= l1.
    Without lag, the weight is computed at once and is 0 if |z| <= l1, as in the paper.
    """
    for k, i in enumerate(c):
        if q[LAG] and abs(s[i, 0]) > q[L1]:
            w[i] = _ftrl_weight(s[i, 0], s[i, 1], rate, q)
        square = math.pow(g[k], q[SQUARE])
        sigma = (math.pow(s[i, 1] + square, q[ROOT]) - math.pow(s[i, 1], q[ROOT])) / rate
        s[i, 0] += g[k] - sigma * w[i]
        s[i, 1] += square
        if not q[LAG]:
            w[i] = _ftrl_weight(s[i, 0], s[i, 1], rate, q) if abs(s[i, 0]) > q[L1] else 0.0


@part_of_kernels
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
