"""A model's weights as they stood at one moment, and the SHA-256 that tells one state of a model from another.

A model may have a million of them, and what is made of so many takes long. So it is made in pieces, and whoever makes
them, on an event loop or in a thread, lets others go in between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from core.logistic import Floats, Offsets

PIECE = 4_096
"""Names or weights to deal with in one go: a millisecond at most."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a model as they stood at one moment, which later steps leave alone.

    seq
        Events that the model had learned.
    bias, values
        b, and the weights in column order: a float, and (n,) float64.
    names
        The names of the features in column order; the first n belong to `values`, those that came since stand after
        them.
    """

    seq: int
    bias: float
    values: Floats
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.values)

    def sha256(self) -> str:
        """Of names, weights and bias, as `Learner.sha256` has it."""
        return sha256(self.names, len(self), (self.values, np.array([self.bias])))

    def largest(self, count: int) -> Offsets:
        """The places of the `count` weights of the largest magnitude, the largest first, of equals the first; all of
        them where there are no more."""
        order: Offsets = np.argsort(-abs(self.values), kind="stable")
        return order[:count]

    def by_name(self, places: Offsets | None = None) -> Iterator[dict[str, float]]:
        """Feature name -> weight, in column order or in that of the places, in pieces; one at
        least.

        >>> list(Weights(1, 0.0, np.array([0.5, -2.0]), ["age", "vip", "new"]).by_name())
        [{'age': 0.5, 'vip': -2.0}]
        """
        for start in range(0, max(1, len(self) if places is None else len(places)), PIECE):
            if places is None:
                names, values = self.names[start : start + PIECE], self.values[start : start + PIECE]
            else:
                piece = places[start : start + PIECE]
                names, values = [self.names[place] for place in piece.tolist()], self.values[piece]
            yield dict(zip(names, values.tolist(), strict=False))  # the last piece of names may have newer ones


def sha256(names: Sequence[str], count: int, arrays: Iterable[Floats]) -> str:
    """Of the first `count` names as UTF-8, each ended by a zero byte, then of the arrays as little-endian float64."""
    digest = hashlib.sha256()
    for start in range(0, count, PIECE):
        digest.update("".join([name + "\0" for name in names[start : min(start + PIECE, count)]]).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array, "<f8").data)
    return digest.hexdigest()
