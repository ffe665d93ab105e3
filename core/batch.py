"""Events as arrays, and how each got its label."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from core.logistic import Floats, Ints, Labels, Offsets

Bits = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

ORDINARY, JOINED, EXPIRED, LATE = range(4)
"""How an event got its label. ORDINARY: together with its features. JOINED: by id, after a prediction. EXPIRED: no
label came in time, so it is 0. LATE: by id, after that."""


@dataclass(frozen=True, slots=True)
class Served:
    """The served predictions of n events.

    `kinds` (uint8): how each event got its label. For kinds other than ORDINARY: `scores` (float64), the served score;
    `delays` (float64), the seconds from the prediction to the label or the timeout.
    """

    kinds: Labels
    scores: Floats
    delays: Floats

    def part(self, start: int, stop: int) -> Served:
        """Those of the events from `start` to before `stop`."""
        return Served(self.kinds[start:stop], self.scores[start:stop], self.delays[start:stop])


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The features left out of each of n events, because the model had no room for them.

    `counts` (uint32): their number. `marks` (uint64): a hash of their names and values in any order; 0 without any.
    """

    counts: npt.NDArray[np.uint32]
    marks: Bits

    @classmethod
    def none(cls, events: int) -> LeftOut:
        """For events from which nothing was left out."""
        return cls(np.zeros(events, np.uint32), np.zeros(events, np.uint64))

    def part(self, start: int, stop: int) -> LeftOut:
        """Those of the events from `start` to before `stop`."""
        return LeftOut(self.counts[start:stop], self.marks[start:stop])


@dataclass(slots=True)  # not frozen: that takes 0.7 us to make, not 0.3
class Batch:
    """n events as arrays, in order.

    Event i has the features `columns[offsets[i]:offsets[i + 1]]` (int32), with their `values` (float64) at the same
    positions. `offsets` (int64) has n + 1 entries and starts at 0. `labels` (uint8, 0 or 1) and `weights` (float64,
    the sample weights) have n. `served` is None if all events are ordinary; `left_out` is None if nothing was left
    out.
    """

    offsets: Offsets
    columns: Ints
    values: Floats
    labels: Labels
    weights: Floats
    served: Served | None = None
    left_out: LeftOut | None = None

    @classmethod
    def of_one(cls, event: Admitted, y: float, weight: float = 1.0) -> Batch:
        """A batch of one event, from `Features.admit`."""
        columns, values, left_out = event
        return cls(
            np.array([0, len(columns)], np.int64),
            *as_arrays(columns, values),
            np.array([y], np.uint8),
            np.array([weight], np.float64),
            left_out=left_out,
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def longest(self) -> int:
        """The number of features of the longest event; 0 without events."""
        return int(np.diff(self.offsets).max(initial=0))

    def slices(self, events: int, values: int = 2**62) -> Iterator[Batch]:
        """The same events in pieces, without copying the features. A piece has at most `events` events, and at most
        `values` values unless a single event has more.

        >>> batch = Batch(np.array([0, 3, 4, 5]), np.zeros(5, np.int32), np.ones(5), np.ones(3, np.uint8), np.ones(3))
        >>> [len(piece) for piece in batch.slices(10, 2)], [len(piece) for piece in batch.slices(1, 10)]
        ([1, 2], [1, 1, 1])
        """
        if 0 < len(self) <= events and len(self.values) <= values:
            yield self
            return
        start = 0
        while start < len(self):
            within = (
                int(np.searchsorted(self.offsets, min(self.offsets[start] + values, len(self.values)), "right")) - 1
            )
            stop = min(start + events, max(within, start + 1))
            yield self.part(start, stop)
            start = stop

    def part(self, start: int, stop: int) -> Batch:
        """The events from `start` to before `stop`, without copying the features."""
        if start == 0 and stop == len(self):
            return self
        first, last = self.offsets[start], self.offsets[stop]
        return Batch(
            self.offsets[start : stop + 1] - first,
            self.columns[first:last],
            self.values[first:last],
            self.labels[start:stop],
            self.weights[start:stop],
            self.served and self.served.part(start, stop),
            self.left_out and self.left_out.part(start, stop),
        )

    def first(self, events: int) -> Batch:
        """The first `events` events, or all if there are fewer."""
        return self.part(0, min(events, len(self)))

    @classmethod
    def concatenate(cls, batches: Sequence[Batch]) -> Batch:
        """Several batches as one, in order."""
        if len(batches) == 1:
            return batches[0]
        starts = np.cumsum([0] + [len(batch.columns) for batch in batches])
        offsets = [np.zeros(1, np.int64)]
        offsets += [batch.offsets[1:] + start for batch, start in zip(batches, starts[:-1], strict=True)]
        return cls(
            np.concatenate(offsets),
            np.concatenate([batch.columns for batch in batches]),
            np.concatenate([batch.values for batch in batches]),
            np.concatenate([batch.labels for batch in batches]),
            np.concatenate([batch.weights for batch in batches]),
            left_out=_left_out_of_all(batches),
        )


def _left_out_of_all(batches: Sequence[Batch]) -> LeftOut | None:
    if all(batch.left_out is None for batch in batches):
        return None
    parts = [batch.left_out or LeftOut.none(len(batch)) for batch in batches]
    return LeftOut(np.concatenate([part.counts for part in parts]), np.concatenate([part.marks for part in parts]))


Admitted: TypeAlias = "tuple[array[int], array[float], LeftOut | None]"
"""The columns and values of an event to learn, in its own order; and the features left out, or None."""


def as_arrays(columns: array[int], values: array[float]) -> tuple[Ints, Floats]:
    """The same memory as numpy arrays."""
    if not values:  # `frombuffer` refuses an empty buffer
        return np.zeros(0, np.int32), np.zeros(0)
    return np.frombuffer(columns, np.int32), np.frombuffer(values)
