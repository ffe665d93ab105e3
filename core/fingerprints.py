"""What tells an event from another under the same id: hashes of features, values, labels and weights."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from core.batch import Batch, Bits, LeftOut, Mask
from core.compiled import compiled
from core.logistic import Floats, Ints, Labels, Offsets


@compiled("uint64(uint64)")
def _mixed(bits: np.uint64) -> np.uint64:
    """A 64-bit number with its bits mixed by MurmurHash3's finaliser."""
    bits ^= bits >> np.uint64(33)
    bits *= np.uint64(0xFF51AFD7ED558CCD)
    bits ^= bits >> np.uint64(33)
    bits *= np.uint64(0xC4CEB9FE1A85EC53)
    return bits ^ (bits >> np.uint64(33))


@compiled("void(uint64[::1], uint64[:, ::1], boolean[:, ::1], uint32[::1], uint64[::1])")
def _left_out(names: Bits, values: Bits, present: Mask, counts: npt.NDArray[np.uint32], marks: Bits) -> None:
    """Count the present features of each row, and sum their marks, each made of name hash and value."""
    for i in range(len(counts)):
        for j in range(len(names)):
            if present[i, j]:
                counts[i] += 1
                marks[i] += _mixed(_mixed(names[j]) ^ values[i, j])


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
    values, weights = batch.values + 0.0, batch.weights  # + 0.0: -0.0 is 0.0
    bits = (values.view(np.uint64), batch.labels, weights.view(np.uint64))
    marks = np.zeros(len(batch), np.uint64) if batch.left_out is None else batch.left_out.marks
    _fingerprints(batch.offsets, batch.columns, *bits, marks, result)
    return result.view(np.int64)


def label_fingerprints(labels: Labels, weights: Floats) -> npt.NDArray[np.int64]:
    """A 64-bit fingerprint (n,) of each pair of a label and a sample weight, equal for equal pairs.

    >>> same = label_fingerprints(np.array([1, 1, 0], np.uint8), np.array([2.0, 2.0, 2.0]))
    >>> bool(same[0] == same[1]), bool(same[1] == same[2])
    (True, False)
    """
    none = np.zeros(0)
    return fingerprints(Batch(np.zeros(len(labels) + 1, np.int64), np.zeros(0, np.int32), none, labels, weights))


def left_out_of(names: Sequence[str], values: Floats, present: Mask) -> LeftOut:
    """What n events leave out: the features `names` (m) with the values `values` (n, m), where `present` (n, m)."""
    hashes = [int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little") for name in names]
    found = LeftOut.none(len(values))
    bits = np.ascontiguousarray(values + 0.0).view(np.uint64)  # + 0.0: -0.0 is 0.0
    _left_out(np.array(hashes, np.uint64), bits, np.ascontiguousarray(present), found.counts, found.marks)
    return found
