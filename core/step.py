"""One step: what all rules share. Scaling, learning rates, penalties, and how events are learned one by one.

For an event with features x, label y and sample weight, after n events (t = n + 1):

    scale      x <- scaled x, if the model scales; the scaler learns x first; text features are not scaled
    score      z = w·x + b
    gradient   g = clip((p - y) · class weight · sample weight);  g_i = x_i g + l2 w_i
    bias       b <- b - rate(n) g
    rule       w_i <- ... g_i ..., only for the event's features
    l1         the cumulative penalty, last

An event's cost depends only on its own features, not on the model's size. Operations have river's order and grouping.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from numba import types

from core.compiled import compiled, part_of_kernels
from core.logistic import Floats, Ints, Labels, Offsets, residual, score

from core.rules import (  # isort: skip
    BIAS, BIAS_RATE, BIAS_RATE_SHAPE, BIAS_SCHEDULE, CLIP, CODES, COLUMNS, FLOATS, INVERSE_SCALING, KEPT, L1, L1_TOTAL,
    L2, NESTEROV, OPTIMAL, PENALTY, RATE, RATE_SHAPE, RHO, ROOT, RULE, SCALE, SCHEDULE, STANDARD, STATE, TABLE,
    UNSCALED, WEIGHT_0, WEIGHT_1, Codes, State, Table, update,
)  # fmt: skip

MAX_SCALED = 1e200
"""Largest magnitude of a value scaled by maxabs. A value may be far above all learned so far (5 after 1e-308). River's
scaled value is then infinite; a score of it would be, too, and no such event would ever be learned."""
AS_IS = (-1.0, 0.0, 1.0)
"""The scaler's row for a feature that is not scaled; `maxabs` uses only the first number. The mean 0 and the variance
1, or the magnitude |-1|, leave a value unchanged. A negative first number tells the scaler not to learn."""


@part_of_kernels
def learn_scale(scale: int, c: Ints, x: Floats, scaler: Table) -> None:
    """The scaler learns the event's values.

    Standard (river's `StandardScaler`): count, mean and population variance of each feature, by Welford's method.
    Maxabs (river's `MaxAbsScaler`): the largest magnitude of each feature.
    A feature whose row is `AS_IS` keeps it.
    """
    for k, i in enumerate(c):
        if scaler[i, 0] < 0.0:
            continue
        if scale == STANDARD:
            old_mean = scaler[i, 1]
            scaler[i, 0] += 1.0
            scaler[i, 1] += (x[k] - old_mean) / scaler[i, 0]
            scaler[i, 2] += ((x[k] - old_mean) * (x[k] - scaler[i, 1]) - scaler[i, 2]) / scaler[i, 0]
        else:
            scaler[i, 0] = max(scaler[i, 0], abs(x[k]))


@part_of_kernels
def scale_into(scale: int, c: Ints, x: Floats, scaler: Table, root: float, scaled: Floats) -> None:
    """`scaled` <- (x - mean) / sqrt(variance), or x / largest magnitude; 0 if the divisor is 0, or the feature is
    unknown (its column is negative or past the end). `root` is 1/2."""
    for k, i in enumerate(c):
        if not 0 <= i < len(scaler):
            scaled[k] = 0.0
        elif scale == STANDARD:
            variance = scaler[i, 2]
            scaled[k] = (x[k] - scaler[i, 1]) / math.pow(variance, root) if variance != 0.0 else 0.0
        elif scaler[i, 0] > 0.0:
            scaled[k] = max(min(x[k] / scaler[i, 0], MAX_SCALED), -MAX_SCALED)
        else:
            scaled[k] = x[k] if scaler[i, 0] < 0.0 else 0.0


@compiled("float64(int64, float64, float64, float64)")
def scheduled(schedule: int, rate: float, shape: float, n: float) -> float:
    """The learning rate after n events: rate; rate / (n + 1)^shape; or 1 / (rate (shape + n)), where rate is alpha."""
    if schedule == INVERSE_SCALING:
        return rate / math.pow(n + 1.0, shape)
    if schedule == OPTIMAL:
        return 1.0 / (rate * (shape + n))
    return rate


@part_of_kernels
def shrink(c: Ints, w: Floats, paid: Floats, owed: float) -> None:
    """The cumulative L1 penalty (Tsuruoka, Tsujii and Ananiadou 2009, river's `l1`): each weight of the event moves
    towards 0 by the total penalty `owed` so far minus what it has `paid`, but never past 0."""
    for i in c:
        before = w[i]
        if before > 0.0:
            w[i] = max(0.0, before - (owed + paid[i]))
        elif before < 0.0:
            w[i] = min(0.0, before + (owed - paid[i]))
        paid[i] += w[i] - before


@part_of_kernels
def step(
    c: Ints, x: Floats, y: int, sample_weight: float, n: float, state: State, codes: Codes, q: Floats, g: Floats
) -> None:
    """One gradient step for an event with (scaled) values x, after n events. `g` is space for its gradient."""
    w, s, scalars = state.w, state.s, state.scalars
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
        shrink(c, w, state.paid, scalars[L1_TOTAL])


# Copies of what a step may change, so that the step can be undone. A row for each feature: its weight, the rule's
# numbers, up to 3 of the scaler, and the L1 penalty paid. The last row has the scalars.
_SCALER = 1 + KEPT
_PAID = _SCALER + 3
SAVED = _PAID + 1


@part_of_kernels
def save(c: Ints, state: State, saved: Table) -> None:
    """Copy all that a step for these columns may change."""
    for k, i in enumerate(c):
        saved[k, 0] = state.w[i]
        for j in range(state.s.shape[1]):
            saved[k, 1 + j] = state.s[i, j]
        for j in range(state.scaler.shape[1]):
            saved[k, _SCALER + j] = state.scaler[i, j]
        if len(state.paid) > 0:
            saved[k, _PAID] = state.paid[i]
    for j in range(len(state.scalars)):
        saved[-1, j] = state.scalars[j]


@part_of_kernels
def restore(c: Ints, state: State, saved: Table) -> None:
    """Restore what `save` copied."""
    for k, i in enumerate(c):
        state.w[i] = saved[k, 0]
        for j in range(state.s.shape[1]):
            state.s[i, j] = saved[k, 1 + j]
        for j in range(state.scaler.shape[1]):
            state.scaler[i, j] = saved[k, _SCALER + j]
        if len(state.paid) > 0:
            state.paid[i] = saved[k, _PAID]
    for j in range(len(state.scalars)):
        state.scalars[j] = saved[-1, j]


@part_of_kernels
def all_finite(c: Ints, state: State) -> bool:
    """Whether every number that a step for these columns may have changed is finite."""
    zero = 0.0  # 0 * x is 0 for a finite x, else NaN
    for j in range(len(state.scalars)):
        zero += 0.0 * state.scalars[j]
    for i in c:
        zero += 0.0 * state.w[i]
        for j in range(state.s.shape[1]):
            zero += 0.0 * state.s[i, j]
        for j in range(state.scaler.shape[1]):
            zero += 0.0 * state.scaler[i, j]
    return zero == 0.0


@compiled(types.float64(COLUMNS, FLOATS, *STATE, CODES, FLOATS, FLOATS))
def predict_score(
    c: Ints, x: Floats, w: Floats, s: Table, scaler: Table, paid: Floats, scalars: Floats, codes: Codes, q: Floats,
    scaled: Floats,
) -> float:  # fmt: skip
    """z = w·x + b, with x scaled by the present state; changes nothing. `scaled` is space for the values of x."""
    if codes[SCALE] == UNSCALED:
        return score(c, x, w, scalars[BIAS])
    scale_into(codes[SCALE], c, x, scaler, q[ROOT], scaled)
    return score(c, scaled[: len(c)], w, scalars[BIAS])


@compiled(types.void(COLUMNS, FLOATS, types.int64, *STATE, CODES, FLOATS, FLOATS))
def serve_into(
    c: Ints, x: Floats, features: int, w: Floats, s: Table, scaler: Table, paid: Floats, scalars: Floats, codes: Codes,
    q: Floats, numbers: Floats,
) -> None:  # fmt: skip
    """`numbers` <- the parts of z = w·x + b: z, b, the w_i and, if the model scales, the scaled x_i. A w_i is NaN,
    which no weight ever is, if the column is not among the model's first `features`."""
    n = len(c)
    numbers[0] = predict_score(c, x, w, s, scaler, paid, scalars, codes, q, numbers[2 + n :])
    numbers[1] = scalars[BIAS]
    for k in range(n):
        numbers[2 + k] = w[c[k]] if 0 <= c[k] < features else math.nan


_BATCH = (types.int64[::1], COLUMNS, FLOATS, types.uint8[::1], FLOATS)


@compiled(types.int64(*_BATCH, types.float64, *STATE, CODES, FLOATS, FLOATS, types.boolean[::1], FLOATS, FLOATS, TABLE))
def learn_many(
    offsets: Offsets, columns: Ints, values: Floats, labels: Labels, sample_weights: Floats, taken: float,
    w: Floats, s: Table, scaler: Table, paid: Floats, scalars: Floats, codes: Codes, q: Floats,
    scores: Floats, learned: npt.NDArray[np.bool_], g: Floats, scaled: Floats, saved: Table,
) -> int:  # fmt: skip
    """n events, n steps, in order, after `taken` steps. Returns how many steps were not taken.

    Event i has the features `columns[offsets[i]:offsets[i + 1]]`, with the values at the same positions. Fills
    `scores[i]` with the score before the step, and `learned[i]` with whether the step was taken. It is not taken if the
    score, or a number that the step would leave, is not finite. `g`, `scaled` and `saved` are working space for the
    longest event; `saved` has a row of SAVED numbers for each of its features, and one more.
    """
    state, not_taken = State(w, s, scaler, paid, scalars), 0
    for i in range(len(labels)):
        c = columns[offsets[i] : offsets[i + 1]]
        x = values[offsets[i] : offsets[i + 1]]
        scores[i] = predict_score(c, x, w, s, scaler, paid, scalars, codes, q, scaled)
        learned[i] = math.isfinite(scores[i])
        if not learned[i]:
            not_taken += 1
            continue
        save(c, state, saved)
        if codes[SCALE] != UNSCALED:
            learn_scale(codes[SCALE], c, x, scaler)
            scale_into(codes[SCALE], c, x, scaler, q[ROOT], scaled)
            x = scaled[: len(c)]
        step(c, x, labels[i], sample_weights[i], taken, state, codes, q, g)
        if all_finite(c, state):
            taken += 1.0
        else:
            learned[i] = False
            not_taken += 1
            restore(c, state, saved)
    return not_taken


@compiled(types.int64(types.int64[::1], types.uint32[::1], *_BATCH[2:], *[FLOATS] * 4, types.boolean[::1], FLOATS))
def learn_many_sgd(
    offsets: Offsets, columns: npt.NDArray[np.uint32], values: Floats, labels: Labels, sample_weights: Floats,
    w: Floats, scalars: Floats, q: Floats, scores: Floats, learned: npt.NDArray[np.bool_], before: Floats,
) -> int:  # fmt: skip
    """`learn_many` for plain SGD: constant rates, no scaler, no penalty. Gives the same numbers to the last bit.

    Most models are plain SGD, and an event of 10 features takes 28 ns here instead of 100. Unsigned columns save a
    fifth, because numba checks whether a signed index counts from the end. `before` is space for the weights of the
    longest event.
    """
    b, rate, bias_rate, clip = scalars[BIAS], q[RATE], q[BIAS_RATE], q[CLIP]
    not_taken = 0
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
            not_taken += 1
            for k in range(n):
                w[columns[start + k]] = before[k]
    scalars[BIAS] = b
    return not_taken


def grown(array: Table, rows: int) -> Table:
    """A copy of the array, extended with zeros to `rows` rows."""
    larger = np.zeros((rows, *array.shape[1:]))
    larger[: len(array)] = array
    return larger
