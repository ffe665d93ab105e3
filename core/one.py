"""The short way of one event of numbers, for `predict_proba_one` and `learn_one`.

A kernel takes 0.04 us for ten features, and as long again for each array that Python passes to it. So an event is one
array: the space of its names, which has their columns already.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Callable

import numpy as np
from numba import types

from core.compiled import compiled, part_of_kernels
from core.logistic import Floats, Ints, score, sigmoid
from core.rules import BIAS, FLOATS
from core.step import learn_many_sgd

# Positions in a space: the batch of one event. From VALUES on: its n values, room for n weights, and its n columns.
OFFSETS, LABEL, LEARNED, WEIGHT, SCORE = slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 5), slice(5, 6)
VALUES = 6

AT = 8 * VALUES
"""The byte of a space at which its values start."""
Lent = tuple[list[Floats], Callable[..., None]]
"""The space of some names, in a list out of which a caller takes it for as long as it needs, so that no two threads
have it; and what writes so many numbers into it, or raises struct.error if one is not a number."""


def lent(columns: array[int]) -> Lent:
    """The space for events with these columns."""
    n = len(columns)
    space = np.zeros(VALUES + 3 * n)
    space[OFFSETS].view(np.int64)[1] = n
    space[VALUES + 2 * n :].view(np.int32)[:n] = columns
    return [space], struct.Struct(f"{n}d").pack_into


@part_of_kernels
def _event(space: Floats) -> tuple[Ints, Floats]:
    """The columns and values in a space."""
    n = space[OFFSETS].view(np.int64)[1]
    return space[VALUES + 2 * n :].view(np.int32)[:n], space[VALUES : VALUES + n]


@compiled(types.float64(FLOATS, types.float64, FLOATS, FLOATS), nogil=False)
def predict(space: Floats, limit: float, w: Floats, scalars: Floats) -> float:
    """p = s(w·x + b); NaN if a value is not within ±limit."""
    columns, values = _event(space)
    for k in range(len(values)):
        if not abs(values[k]) <= limit:
            return math.nan
    return sigmoid(score(columns, values, w, scalars[BIAS]))


@compiled(types.int64(FLOATS, types.uint8, types.float64, types.float64, types.int64, *[FLOATS] * 3), nogil=False)
def learn(
    space: Floats, y: int, weight: float, limit: float, features: int, w: Floats, scalars: Floats, q: Floats
) -> int:
    """`learn_many_sgd` for one event: 1 if the step was taken, 0 if it was not, and -1, with nothing changed, for a
    value that is not within ±limit or a column that is not among the first `features`."""
    columns, values = _event(space)
    for k in range(len(columns)):
        if columns[k] >= features or not abs(values[k]) <= limit:
            return -1
    labels, learned = space[LABEL].view(np.uint8)[:1], space[LEARNED].view(np.bool_)[:1]
    labels[0], space[WEIGHT][0] = y, weight
    before = space[VALUES + len(values) : VALUES + 2 * len(values)]
    learn_many_sgd(
        space[OFFSETS].view(np.int64), columns.view(np.uint32), values, labels, space[WEIGHT], w, scalars, q,
        space[SCORE], learned, before,
    )  # fmt: skip
    return int(learned[0])
