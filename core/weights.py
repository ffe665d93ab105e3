"""A model's weights at one moment, the largest of them, and the SHA-256 that identifies a model's state.

A model may have a million weights. So they are handled in pieces, and an event loop or a thread can do other work in
between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from core.compiled import compiled
from core.logistic import Floats, Ints, Offsets

PIECE = 4_096
"""Names or weights in one piece, which takes a millisecond at most."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a model at one moment; later steps do not change them.

    seq: events that the model had learned. bias: b. values: the weights in column order, (n,) float64. names: in column
    order; the first n belong to `values`, and newer features may follow.
    """

    seq: int
    bias: float
    values: Floats
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.values)

    def sha256(self) -> str:
        """The hash of names, weights and bias, as in `Learner.sha256`."""
        return sha256(self.names, len(self), (self.values, np.array([self.bias])))

    def largest(self, count: int) -> Offsets:
        """The columns of the `count` weights of largest magnitude, largest first; equal weights keep their order."""
        order: Offsets = np.argsort(-abs(self.values), kind="stable")
        return order[:count]

    def by_name(self, places: Offsets | None = None) -> Iterator[dict[str, float]]:
        """Yields dicts of feature name -> weight, one for each piece and at least one.

        The order is that of `places`, or column order without them.

        >>> list(Weights(1, 0.0, np.array([0.5, -2.0]), ["age", "vip", "new"]).by_name())
        [{'age': 0.5, 'vip': -2.0}]
        """
        for start in range(0, max(1, len(self) if places is None else len(places)), PIECE):
            if places is None:
                names, values = self.names[start : start + PIECE], self.values[start : start + PIECE]
            else:
                piece = places[start : start + PIECE]
                names, values = [self.names[place] for place in piece.tolist()], self.values[piece]
            yield dict(zip(names, values.tolist(), strict=False))  # the last names may be newer than the weights


def sha256(names: Sequence[str], count: int, arrays: Iterable[Floats]) -> str:
    """The hash of the first `count` names (UTF-8, a zero byte after each) and the arrays (little-endian float64)."""
    digest = hashlib.sha256()
    for start in range(0, count, PIECE):
        digest.update("".join([name + "\0" for name in names[start : min(start + PIECE, count)]]).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array, "<f8").data)
    return digest.hexdigest()


@compiled("int64(float64[::1], float64[::1], int32[::1], float64[::1])")
def _find(values: Floats, before: Floats, places: Ints, sizes: Floats) -> int:
    """Put the indexes of the largest |value - before| into `places`, largest first, and return their number. A value
    without a `before` was 0. Values that did not move are left out. Equal values keep their order."""
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
    """The indexes of the `count` values of largest magnitude, largest first; zeros are left out. It takes a millisecond
    for a million.

    With `before`, the values that moved most instead. A value past the end of `before` was 0.

    >>> largest(np.array([0.5, 0.0, -2.0]), 5)
    [2, 0]
    >>> largest(np.array([0.5, 1.0, -2.0]), 1, before=np.array([0.5, 0.5]))
    [2]
    """
    places, sizes = np.empty(count, np.int32), np.empty(count)
    found = _find(values, np.empty(0) if before is None else before, places, sizes)
    return [int(place) for place in places[:found]]
