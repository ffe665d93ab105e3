"""A copy of the state of a large model, made a slice at a time while the model goes on learning.

The copy is of the moment when it was begun. Before a step, the rows that it may change are put aside (copy-on-write).
When all slices are there, these rows are put in their place. So no step waits for the whole copy, and none tears it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from core.logistic import Floats, Ints

SLICE_BYTES = 2**21
"""Bytes of a slice. In new memory, which is slow, it takes 3 ms."""


class Copy:
    """The copy of the first `features` rows of some arrays, which have a row for each feature.

    rows: gives the arrays as they are now, by name; they may be replaced while they grow. arrays: the copy, flat, once
    `go_on` has said that it is whole. `save` comes before each step, and never while `go_on` runs.

    >>> weights = np.array([1.0, 2.0, 3.0])
    >>> copy = Copy(lambda: {"weights": weights}, 3)
    >>> copy.save(np.array([1, 1], np.int32))
    >>> weights[1] = 5.0
    >>> copy.go_on(), copy.go_on(), copy.arrays["weights"].tolist()
    (True, False, [1.0, 2.0, 3.0])
    """

    def __init__(self, rows: Callable[[], Mapping[str, Floats]], features: int) -> None:
        self._rows, self._features = rows, features
        self._copied = {name: np.empty((features, *array.shape[1:])) for name, array in rows().items()}
        self.arrays = {name: array.reshape(-1) for name, array in self._copied.items()}
        self._next = 0
        """The first row that is in no slice yet."""
        self._saved = np.full(features, False)  # written now: in new memory, a step would wait for it
        self._aside: list[tuple[Ints, dict[str, Floats]]] = []
        bytes_of_row = sum(array[:1].nbytes for array in self._copied.values())
        self._slice = max(1, SLICE_BYTES // max(1, bytes_of_row))

    def save(self, columns: Ints) -> None:
        """Put aside the rows of these columns, unless they were copied or put aside before."""
        rows = columns[(columns >= self._next) & (columns < self._features)]
        rows = rows[~self._saved[rows]]
        if len(rows):
            self._saved[rows] = True
            self._aside.append((rows, {name: array[rows] for name, array in self._rows().items()}))

    def go_on(self) -> bool:
        """Copy the next slice, or put some rows in their place. Whether there is more to do."""
        if self._next < self._features:
            stop = min(self._next + self._slice, self._features)
            for name, array in self._rows().items():
                self._copied[name][self._next : stop] = array[self._next : stop]
            self._next = stop
        elif self._aside:
            rows, values = self._aside.pop()
            for name, array in values.items():
                self._copied[name][rows] = array
        return self._next < self._features or bool(self._aside)
