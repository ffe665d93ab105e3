"""Logistic regression by stochastic gradient descent: the mathematics, and the step.

Weights w (vector), bias b, input x (vector), label y in {0, 1}, learning rate a:

    z = w·x + b                          score
    p = s(z) = 1 / (1 + exp(-z))         prediction
    L = -y log p - (1 - y) log(1 - p)    log loss

    dL/dp = (1 - y)/(1 - p) - y/p        dp/dz = p (1 - p)        dz/dw = x        dz/db = 1
    dL/dw = (p - y) x                    dL/db = (p - y)

One event is one step: w <- w - a (p - y) x and b <- b - a (p - y).

Every operation stands in the order in which river's `LogisticRegression` does it, so that the weights equal river's to
the last bit: the score is summed in the event's own order from 0.0 and the bias is added last (a BLAS dot product
would round differently), and the products are grouped as `a * (x_i * g)`.
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

# Positions in the array of a model's scalars.
BIAS, L1_TOTAL = 0, 1
SCALARS = 2


@compiled("float64(int32[::1], float64[::1], float64[::1], float64)")
def score(columns: Ints, values: Floats, weights: Floats, bias: float) -> float:
    """z = w·x + b.

    `columns` and `values` (same length) are the event's features in its own order. A column without a weight, negative
    or past the end, is a feature the model has not learned yet and adds nothing.
    """
    z = 0.0
    for i in range(len(columns)):
        column = columns[i]
        if 0 <= column < len(weights):
            z += weights[column] * values[i]  # z = sum of w_i x_i ...
    return z + bias  # ... + b


@compiled("float64(float64)")
def sigmoid(z: float) -> float:
    """p = 1 / (1 + exp(-z)); exactly 0 or 1 beyond |z| = 30, as river has it.

    A score that is not a number (infinities that cancelled) says nothing about the label: 0.5.
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

    With m = z for y = 1 and m = -z for y = 0 it is log(1 + exp(-m)). A rounded p would turn large losses into
    infinity and small ones into zero.
    """
    m = z if y else -z
    if m > 0.0:
        return math.log1p(math.exp(-m))
    return math.log1p(math.exp(m)) - m


@compiled("float64(float64, uint8)")
def residual(z: float, y: int) -> float:
    """dL/dz = p - y, without cancellation: with m = z for y = 1 and m = -z for y = 0 it is -+1 / (exp(m) + 1).

    The two outer branches are river's (`optim.losses.Log.gradient`): they avoid the overflow of exp.
    """
    sign = 1.0 if y else -1.0
    m = z * sign
    if m > 18.0:
        return math.exp(-m) * -sign
    if m < -18.0:
        return -sign
    return -sign / (math.exp(m) + 1.0)


@compiled("boolean(int32[::1], float64[::1], float64, float64[::1], float64, float64, float64)")
def _stays_finite(
    columns: Ints, values: Floats, g: float, weights: Floats, bias: float, learning_rate: float, l2: float
) -> bool:
    """Whether the step would leave every weight it touches, and the bias, a finite number."""
    if not math.isfinite(bias):
        return False
    for i in range(len(columns)):
        w = weights[columns[i]]
        if not math.isfinite(w - learning_rate * (values[i] * g + l2 * w)):
            return False
    return True


@compiled("void(int32[::1], float64[::1], float64[::1], float64)")
def _shrink(columns: Ints, weights: Floats, paid: Floats, owed: float) -> None:
    """The cumulative L1 penalty (Tsuruoka, Tsujii and Ananiadou 2009, river's `l1`).

    Each weight of the event is moved towards 0 by what every weight owes so far less what this one has `paid`, and
    never past 0.
    """
    for i in range(len(columns)):
        c = columns[i]
        w = weights[c]
        if w > 0.0:
            weights[c] = max(0.0, w - (owed + paid[c]))
        elif w < 0.0:
            weights[c] = min(0.0, w + (owed - paid[c]))
        paid[c] = paid[c] + (weights[c] - w)


@compiled(
    "boolean(int32[::1], float64[::1], uint8, float64, float64, float64[::1], float64[::1], float64[::1], "
    "float64, float64, float64, float64, float64)"
)
def step(
    columns: Ints,
    values: Floats,
    y: int,
    z: float,
    sample_weight: float,
    weights: Floats,
    paid: Floats,
    scalars: Floats,
    learning_rate: float,
    bias_learning_rate: float,
    l1: float,
    l2: float,
    clip: float,
) -> bool:
    """Move `weights` and `scalars` by one gradient step for the event whose score is `z`; whether it was taken.

    A step that would leave a number that is not finite is not taken, nor is one from a score that is not finite.
    `paid` is the L1 penalty each weight has paid; it is not touched where `l1` is 0 and may then be empty.
    """
    if not math.isfinite(z):
        return False
    g = residual(z, y) * sample_weight  # dL/dz = p - y
    g = max(min(g, clip), -clip)
    bias = scalars[BIAS] - bias_learning_rate * g  # b <- b - a (p - y)
    if not _stays_finite(columns, values, g, weights, bias, learning_rate, l2):
        return False
    scalars[BIAS] = bias
    for i in range(len(columns)):
        c = columns[i]
        gradient = values[i] * g  # dL/dw_i = (p - y) x_i
        if l2 != 0.0:
            gradient += l2 * weights[c]  # d/dw_i of l2/2 |w|²
        weights[c] -= learning_rate * gradient  # w_i <- w_i - a (p - y) x_i
    if l1 != 0.0:
        scalars[L1_TOTAL] += l1 * learning_rate
        _shrink(columns, weights, paid, scalars[L1_TOTAL])
    return True


@compiled(
    "void(int64[::1], int32[::1], float64[::1], uint8[::1], float64[::1], float64[::1], float64[::1], float64[::1], "
    "float64, float64, float64, float64, float64, float64[::1], boolean[::1])"
)
def learn_many(
    offsets: Offsets,
    columns: Ints,
    values: Floats,
    labels: Labels,
    sample_weights: Floats,
    weights: Floats,
    paid: Floats,
    scalars: Floats,
    learning_rate: float,
    bias_learning_rate: float,
    l1: float,
    l2: float,
    clip: float,
    scores: Floats,
    learned: npt.NDArray[np.bool_],
) -> None:
    """n events, n steps, in order.

    Event i has the features `columns[offsets[i]:offsets[i + 1]]` with the values at the same places. Fills `scores[i]`
    with the score *before* the step and `learned[i]` with whether the step was taken.
    """
    for i in range(len(labels)):
        x_columns = columns[offsets[i] : offsets[i + 1]]
        x_values = values[offsets[i] : offsets[i + 1]]
        z = score(x_columns, x_values, weights, scalars[BIAS])
        scores[i] = z
        learned[i] = step(
            x_columns,
            x_values,
            labels[i],
            z,
            sample_weights[i],
            weights,
            paid,
            scalars,
            learning_rate,
            bias_learning_rate,
            l1,
            l2,
            clip,
        )


@compiled("void(float64[::1], uint8[::1], float64[::1], float64[::1])")
def assess(scores: Floats, labels: Labels, probabilities: Floats, losses: Floats) -> None:
    """Fill `probabilities` and `losses` from `scores` and `labels`, all of the same length."""
    for i in range(len(scores)):
        probabilities[i] = sigmoid(scores[i])
        losses[i] = log_loss(scores[i], labels[i])
