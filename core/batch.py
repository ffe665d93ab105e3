"""Events as arrays, how each got its label, and the hashes that tell an event from another under the same id."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from core.compiled import compiled, part_of_kernels
from core.logistic import Floats, Ints, Labels, Offsets

Bits = npt.NDArray[np.uint64]
# numpy looks up the dtype of a type each time, which takes as long as to make the array.
INT32, INT64, UINT8, BOOL = np.dtype(np.int32), np.dtype(np.int64), np.dtype(np.uint8), np.dtype(np.bool_)
Mask = npt.NDArray[np.bool_]

ORDINARY, JOINED, EXPIRED, LATE = range(4)
"""How an event got its label. ORDINARY: together with its features. JOINED: by id, after a prediction. EXPIRED: no
label came in time, so it is 0. LATE: by id, after that."""


class Served(NamedTuple):
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


class LeftOut(NamedTuple):
    """The features left out of each of n events, because the model had no room: how many (`counts`, uint32), and a hash
    of their names and values in any order (`marks`, uint64; 0 without any)."""

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
            last_value = min(self.offsets[start] + values, len(self.values))
            within = int(np.searchsorted(self.offsets, last_value, "right")) - 1
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
        left_out = None
        if any(batch.left_out is not None for batch in batches):
            parts = [batch.left_out or LeftOut.none(len(batch)) for batch in batches]
            left_out = LeftOut(*map(np.concatenate, zip(*parts, strict=True)))
        arrays = zip(*((batch.columns, batch.values, batch.labels, batch.weights) for batch in batches), strict=True)
        columns, values, labels, weights = map(np.concatenate, arrays)
        return cls(np.concatenate(offsets), columns, values, labels, weights, left_out=left_out)


Admitted: TypeAlias = "tuple[array[int], array[float], LeftOut | None]"
"""The columns and values of an event to learn, in its own order; and the features left out, or None."""


def as_arrays(columns: array[int], values: array[float]) -> tuple[Ints, Floats]:
    """The same memory as numpy arrays."""
    if not values:  # `frombuffer` refuses an empty buffer
        return np.zeros(0, np.int32), np.zeros(0)
    return np.frombuffer(columns, INT32), np.frombuffer(values)


@part_of_kernels
def _mixed(bits: np.uint64) -> np.uint64:
    """A 64-bit number with its bits mixed by MurmurHash3's finaliser."""
    bits ^= bits >> np.uint64(33)
    bits *= np.uint64(0xFF51AFD7ED558CCD)
    bits ^= bits >> np.uint64(33)
    bits *= np.uint64(0xC4CEB9FE1A85EC53)
    return bits ^ (bits >> np.uint64(33))


@compiled("void(uint64[:, ::1], uint64[:, ::1], boolean[:, ::1], uint32[::1], uint64[::1])")
def _left_out(names: Bits, values: Bits, present: Mask, counts: npt.NDArray[np.uint32], marks: Bits) -> None:
    """Count the present features of each row, and sum their marks, each made of name hash and value."""
    for i in range(len(counts)):
        for j in range(names.shape[1]):
            if present[i, j]:
                counts[i] += 1
                marks[i] += _mixed(_mixed(names[i, j]) ^ values[i, j])


@compiled("void(int64[::1], int32[::1], uint64[::1], uint8[::1], uint64[::1], uint64[::1], uint64[::1])")
def _fingerprints(
    offsets: Offsets, columns: Ints, values: Bits, labels: Labels, weights: Bits, left_out: Bits, fingerprints: Bits
) -> None:
    for i in range(len(labels)):
        mixed = _mixed(_mixed(weights[i]) + np.uint64(labels[i])) + left_out[i]
        for j in range(offsets[i], offsets[i + 1]):
            # A sum does not depend on the features' order.
            mixed += _mixed(_mixed(np.uint64(columns[j]) + np.uint64(1)) ^ values[j])
        fingerprints[i] = mixed


def fingerprints(batch: Batch) -> npt.NDArray[np.int64]:
    """A 64-bit fingerprint (n,) of each event in a batch, equal for equal events in any order of features.

    Features left out of an event count, too. Two different events of one model have the same fingerprint once in 2^64.
    It does not withstand an attacker, who could only deceive himself.

    >>> from core.builder import BatchBuilder
    >>> from core.features import Features
    >>> builder = BatchBuilder(Features())
    >>> builder.add({"a": 1.0, "b": 2.0}, 1)
    >>> builder.add({"b": 2.0, "a": 1.0}, 1)
    >>> builder.add({"b": 1.0, "a": 2.0}, 1)
    >>> first, same, other = fingerprints(builder.build())
    >>> bool(first == same), bool(first == other)
    (True, False)
    """
    result = np.empty(len(batch), np.uint64)
    values = batch.values + 0.0  # -0.0 is 0.0
    bits = (values.view(np.uint64), batch.labels, batch.weights.view(np.uint64))
    _fingerprints(batch.offsets, batch.columns, *bits, (batch.left_out or LeftOut.none(len(batch))).marks, result)
    return result.view(np.int64)


def label_fingerprints(labels: Labels, weights: Floats) -> npt.NDArray[np.int64]:
    """A 64-bit fingerprint (n,) of each pair of a label and a sample weight, equal for equal pairs.

    >>> same = label_fingerprints(np.array([1, 1, 0], np.uint8), np.array([2.0, 2.0, 2.0]))
    >>> bool(same[0] == same[1]), bool(same[1] == same[2])
    (True, False)
    """
    none = np.zeros(0)
    return fingerprints(Batch(np.zeros(len(labels) + 1, np.int64), np.zeros(0, np.int32), none, labels, weights))


def name_hashes(names: Sequence[str]) -> Bits:
    """A 64-bit hash of each name."""
    digests = (blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.array([int.from_bytes(digest, "little") for digest in digests], np.uint64)


def left_out_of(names: Bits, values: Floats, present: Mask) -> LeftOut:
    """What n events leave out: features with the name hashes `names` (n, m) and `values` (n, m), where `present`
    (n, m)."""
    found = LeftOut.none(len(values))
    bits = np.ascontiguousarray(values + 0.0).view(np.uint64)  # + 0.0: -0.0 is 0.0
    _left_out(np.ascontiguousarray(names), bits, np.ascontiguousarray(present), found.counts, found.marks)
    return found
