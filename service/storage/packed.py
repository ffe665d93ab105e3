"""Batches <-> bytes in the log, little-endian.

A batch of n events with m feature values:

    n, m            2 x uint32
    parts           uint8, the sum of: 1 if a sample weight is not 1; 2 if an event has a served prediction; 4 if all
                    events have the same features in the same order; 8 if features were left out, for lack of room
    counts          n x uint32: features of each event; only without 4
    columns         m x uint32; with 4, only one event's, m / n
    values          m x float64
    labels          n x uint8
    weights         n x float64: sample weights; only with 1
    kinds           n x uint8: how the label came (core/batch.py); this and the next two only with 2
    scores          n x float64: the served score
    delays          n x float64: seconds from the prediction to the label
    left_out        n x uint32: number of features left out; this and the next only with 8
    marks           n x uint64: a hash of these features (core/fingerprints.py)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from core.batch import LATE, Batch, LeftOut, Served
from core.compiled import compiled
from core.logistic import Floats, Ints, Offsets

_HEADER = struct.Struct("<IIB")
WEIGHTED, SERVED, ALIKE, LEFT_OUT = 1, 2, 4, 8

Bytes = npt.NDArray[np.uint8]
Lengths = npt.NDArray[np.int64]


@compiled("int64(int64[::1], int32[::1], float64[::1])")
def _parts(offsets: Offsets, columns: Ints, weights: Floats) -> int:
    """WEIGHTED if a weight is not 1, plus ALIKE if all events have the same columns."""
    parts, n = 0, len(weights)
    if n == 0:
        return parts
    for i in range(n):
        if weights[i] != 1.0:
            parts = WEIGHTED
            break
    size = len(columns) // n
    for i in range(n):
        if offsets[i + 1] != (i + 1) * size:
            return parts
    for j in range(size, len(columns)):
        if columns[j] != columns[j - size]:
            return parts
    return parts | ALIKE


def pack(batch: Batch) -> bytes:
    """The bytes of a batch."""
    n, m = len(batch), len(batch.columns)
    parts = _parts(batch.offsets, batch.columns, batch.weights) + SERVED * (batch.served is not None)
    parts += LEFT_OUT * (batch.left_out is not None)
    packed: list[Any] = [_HEADER.pack(n, m, parts)]
    if not parts & ALIKE:
        packed.append((batch.offsets[1:] - batch.offsets[:-1]).astype("<u4"))
    packed.append((batch.columns[: m // n] if parts & ALIKE else batch.columns).astype("<i4", copy=False))
    packed.append(batch.values.astype("<f8", copy=False))
    packed.append(batch.labels)
    if parts & WEIGHTED:
        packed.append(batch.weights.astype("<f8", copy=False))
    if batch.served is not None:
        packed.append(batch.served.kinds)
        packed += [column.astype("<f8", copy=False) for column in (batch.served.scores, batch.served.delays)]
    if batch.left_out is not None:
        packed += [batch.left_out.counts.astype("<u4", copy=False), batch.left_out.marks.astype("<u8", copy=False)]
    return b"".join(packed)  # joins the arrays themselves: new memory is slow


def _header(packed: bytes) -> tuple[int, int, int]:
    """Numbers of events and feature values, and the parts. Raises ValueError if the bytes have the wrong length."""
    if len(packed) < _HEADER.size:
        raise ValueError("it is cut short")
    n, m, parts = _HEADER.unpack_from(packed)
    an_event = 1 + 8 * bool(parts & WEIGHTED) + 17 * bool(parts & SERVED) + 12 * bool(parts & LEFT_OUT)
    alike = bool(parts & ALIKE)
    named = 4 * (m // n if alike and n else n + m)  # bytes of counts and columns
    whole = not alike or (n > 0 and m % n == 0)
    length = _HEADER.size + n * an_event + m * 8 + named
    if parts > WEIGHTED + SERVED + ALIKE + LEFT_OUT or not whole or len(packed) != length:
        raise ValueError("its length does not fit its header")
    return n, m, parts


def unpack(packed: Sequence[bytes]) -> Batch:
    """All packed batches as one, in order. Raises ValueError if the bytes are not batches.

    It unpacks all at once. One by one, a log of single events took 20 times longer to unpack than to learn.

    >>> one = Batch(np.array([0, 1]), np.array([7], np.int32), np.ones(1), np.ones(1, np.uint8), np.ones(1))
    >>> unpack([pack(one), pack(one)]).columns.tolist()
    [7, 7]
    """
    headers = np.array([_header(one) for one in packed], np.int64).reshape(-1, 3)
    ns, ms = np.ascontiguousarray(headers[:, 0]), np.ascontiguousarray(headers[:, 1])
    starts = np.zeros(len(packed), np.int64)
    np.cumsum([len(one) for one in packed[:-1]], out=starts[1:])
    n, m = int(ns.sum()), int(ms.sum())
    served = Served(np.zeros(n, np.uint8), np.zeros(n), np.zeros(n)) if (headers[:, 2] & SERVED).any() else None
    rooms = served or Served(np.zeros(0, np.uint8), np.zeros(0), np.zeros(0))
    left_out = LeftOut.none(n) if (headers[:, 2] & LEFT_OUT).any() else None
    left_rooms = left_out or LeftOut.none(0)
    events = (np.zeros(n + 1, np.int64), np.zeros(m, np.int32), np.zeros(m), np.zeros(n, np.uint8), np.ones(n))
    batch = Batch(*events, served, left_out)
    places: list[npt.NDArray[Any]] = [batch.columns, batch.values, batch.labels, batch.weights]
    places += [rooms.kinds, rooms.scores, rooms.delays, left_rooms.counts, left_rooms.marks]
    data = np.frombuffer(bytearray().join(packed), np.uint8)
    if not _unpack(data, starts, ns, ms, batch.offsets, *(place.view(np.uint8) for place in places)):
        raise ValueError("its counts do not add up, or it has a label or a kind that does not exist")
    return batch


@compiled("int64(uint8[::1], int64, int64[::1])")
def _add_counts(counts: Bytes, value: int, ends: Lengths) -> int:
    """Fill `ends` with where each event's values end, from their `counts`; the first begins at `value`."""
    for i in range(len(ends)):
        at = 4 * i
        value += counts[at] | counts[at + 1] << 8 | counts[at + 2] << 16 | counts[at + 3] << 24
        ends[i] = value
    return value


@compiled("void(uint8[::1], uint8[::1])")
def _copy(source: Bytes, target: Bytes) -> None:
    """`target` <- `source`, of the same length. A slice assignment would first make a copy, in case they overlap."""
    for i in range(len(target)):
        target[i] = source[i]


@compiled("boolean(uint8, uint8[::1], uint8[::1])")
def _copy_up_to(most: int, source: Bytes, target: Bytes) -> bool:
    """`target` <- `source`. Returns False if a byte is above `most`."""
    good = True
    for i in range(len(target)):
        good &= source[i] <= most
        target[i] = source[i]
    return good


@compiled("void(uint8[::1], int64, int64[::1], uint8[::1])")
def _repeat(an_event: Bytes, value: int, ends: Lengths, columns: Bytes) -> None:
    """Fill in the same columns for each event, and where its values end; the first begins at `value`."""
    size = len(an_event)
    for i in range(len(ends)):
        start = 4 * value + i * size
        _copy(an_event, columns[start : start + size])
        ends[i] = value + (i + 1) * (size // 4)


@compiled(
    "boolean(uint8[::1], int64[::1], int64[::1], int64[::1], int64[::1], uint8[::1], uint8[::1], uint8[::1], "
    "uint8[::1], uint8[::1], uint8[::1], uint8[::1], uint8[::1], uint8[::1])"
)
def _unpack(
    data: Bytes,
    starts: Lengths,
    ns: Lengths,
    ms: Lengths,
    offsets: Lengths,
    columns: Bytes,
    values: Bytes,
    labels: Bytes,
    weights: Bytes,
    kinds: Bytes,
    scores: Bytes,
    delays: Bytes,
    left_out: Bytes,
    marks: Bytes,
) -> bool:
    """Copy each batch's parts to their places. Returns False if counts do not add up, or a label or kind is wrong."""
    event, value, good = 0, 0, True
    for row in range(len(starts)):
        n, m, at = ns[row], ms[row], starts[row]
        parts = data[at + 8]
        at += 9
        if parts & ALIKE:
            last = value + m
            _repeat(data[at : at + 4 * (m // n)], value, offsets[event + 1 : event + n + 1], columns)
            at += 4 * (m // n)
        else:
            last = _add_counts(data[at : at + 4 * n], value, offsets[event + 1 : event + n + 1])
            at += 4 * n
            if last != value + m:
                return False
            _copy(data[at : at + 4 * m], columns[4 * value : 4 * last])
            at += 4 * m
        _copy(data[at : at + 8 * m], values[8 * value : 8 * last])
        at += 8 * m
        good &= _copy_up_to(1, data[at : at + n], labels[event : event + n])
        at += n
        if parts & WEIGHTED:
            _copy(data[at : at + 8 * n], weights[8 * event : 8 * (event + n)])
            at += 8 * n
        if parts & SERVED:
            good &= _copy_up_to(LATE, data[at : at + n], kinds[event : event + n])
            at += n
            _copy(data[at : at + 8 * n], scores[8 * event : 8 * (event + n)])
            at += 8 * n
            _copy(data[at : at + 8 * n], delays[8 * event : 8 * (event + n)])
            at += 8 * n
        if parts & LEFT_OUT:
            _copy(data[at : at + 4 * n], left_out[4 * event : 4 * (event + n)])
            at += 4 * n
            _copy(data[at : at + 8 * n], marks[8 * event : 8 * (event + n)])
        event, value = event + n, last
    return good
