"""Logistic regression: the mathematics.

Weights w (vector), bias b, input x (vector), label y in {0, 1}, learning rate a:

    z = w·x + b                          score
    p = s(z) = 1 / (1 + exp(-z))         prediction
    L = -y log p - (1 - y) log(1 - p)    log loss

    dL/dp = (1 - y)/(1 - p) - y/p        dp/dz = p (1 - p)        dz/dw = x        dz/db = 1
    dL/dw = (p - y) x                    dL/db = (p - y)

One event is one step: w <- w - a (p - y) x and b <- b - a (p - y). step.py takes it; rules.py has the other rules.

Every operation follows the order of river's `LogisticRegression`, so the weights equal river's to the last bit. The
score is summed from 0.0 in the event's own order, and the bias is added last; a BLAS dot product would round
differently. Products are grouped as `a * (x_i * g)`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from core.compiled import compiled

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]
Offsets = npt.NDArray[np.int64]
Labels = npt.NDArray[np.uint8]


@compiled("float64(int32[::1], float64[::1], float64[::1], float64)")
def score(columns: Ints, values: Floats, weights: Floats, bias: float) -> float:
    """z = w·x + b.

    `columns` and `values` (same length) are the event's features in its own order. A column that is negative or past
    the end is a feature that the model has not learned; it adds nothing.
    """
    z = 0.0
    for i in range(len(columns)):
        column = columns[i]
        if 0 <= column < len(weights):
            z += weights[column] * values[i]  # z = sum of w_i x_i ...
    return z + bias  # ... + b


@compiled("float64(float64)")
def sigmoid(z: float) -> float:
    """p = 1 / (1 + exp(-z)); exactly 0 or 1 beyond |z| = 30, as in river.

    A NaN score (infinities that cancelled) gives 0.5, because it says nothing about the label.
    """
    if z > 30.0:
        return 1.0
    if z < -30.0:
        return 0.0
    if math.isnan(z):
        return 0.5
    return 1.0 / (1.0 + math.exp(-z))


@compiled("float64(float64, uint8)")
def log_loss(z: float, y: int) -> float:
    """L = -y log p - (1 - y) log(1 - p), in nats, from the score.

    With m = z for y = 1 and m = -z for y = 0, L = log(1 + exp(-m)) = log(1 + e) - min(m, 0), where e = exp(-|m|) cannot
    overflow. A rounded p would turn large losses into infinity and small ones into zero. The second term restores what
    rounding 1 + e lost, to first order: as exact as log1p(e), in 4 ns instead of 11. There is no branch on m, because
    the processor cannot predict its sign.
    """
    m = z if y else -z
    e = math.exp(-abs(m))
    u = 1.0 + e
    return math.log(u) + (e - (u - 1.0)) / u - min(m, 0.0)


@compiled("float64(float64, uint8, float64)")
def residual(z: float, y: int, class_weight: float) -> float:
    """dL/dz = p - y times the class weight, without cancellation.

    With m = z for y = 1 and m = -z for y = 0 it is -+1 / (exp(m) + 1). The outer branches and the grouping are river's
    (`optim.losses.Log.gradient`). The branches keep exp from overflowing.
    """
    sign = 1.0 if y else -1.0
    m = z * sign
    if m > 18.0:
        return class_weight * math.exp(-m) * -sign
    if m < -18.0:
        return class_weight * -sign
    return class_weight * -sign / (math.exp(m) + 1.0)


@compiled("void(float64[::1], uint8[::1], float64[::1], float64[::1])")
def assess(scores: Floats, labels: Labels, probabilities: Floats, losses: Floats) -> None:
    """Fill `probabilities` and `losses` from `scores` and `labels`, all of the same length."""
    for i in range(len(scores)):
        probabilities[i] = sigmoid(scores[i])
        losses[i] = log_loss(scores[i], labels[i])
