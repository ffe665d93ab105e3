"""Finds the largest of many weights, or those that moved most, in one pass: a millisecond for a million."""

from __future__ import annotations

import numpy as np

from core.compiled import compiled
from core.logistic import Floats, Ints


@compiled("int64(float64[::1], float64[::1], int32[::1], float64[::1])")
def _find(values: Floats, before: Floats, places: Ints, sizes: Floats) -> int:
    """Put the indexes of the largest |value - before| into `places`, largest first, and return their number.

    A value without a `before` was 0. Values that did not move are left out. Equal values keep their order.
    """
    found = 0
    for i in range(len(values)):
        size = abs(values[i] - before[i]) if i < len(before) else abs(values[i])
        if size == 0.0 or (found == len(places) and size <= sizes[found - 1]):
            continue
        if found < len(places):
            found += 1
        at = found - 1
        while at > 0 and sizes[at - 1] < size:
            sizes[at], places[at] = sizes[at - 1], places[at - 1]
            at -= 1
        sizes[at], places[at] = size, i
    return found


def largest(values: Floats, count: int, before: Floats | None = None) -> list[int]:
    """The indexes of the `count` values of largest magnitude, largest first; zeros are left out.

    With `before`, the values that moved most instead. A value past the end of `before` was 0.

    >>> largest(np.array([0.5, 0.0, -2.0]), 5)
    [2, 0]
    >>> largest(np.array([0.5, 1.0, -2.0]), 1, before=np.array([0.5, 0.5]))
    [2]
    """
    places, sizes = np.empty(count, np.int32), np.empty(count)
    found = _find(values, np.empty(0) if before is None else before, places, sizes)
    return [int(place) for place in places[:found]]
