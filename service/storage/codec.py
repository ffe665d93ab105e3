"""Batches of events, learner states and waiting predictions <-> bytes, little-endian. Never pickle.

docs/format.md describes the bytes of a batch.

A state is one line of JSON, then the arrays as float64. The JSON names an array as {"array": [offset, length]}.

A waiting prediction is a count (uint32), that many float64 that describe what was served, and a MessagePack array: its
x as sent, how many of its features were unknown, and the id of the caller's token. x has names, not columns, because a
prediction that never gets its label must not add columns to the model.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from core.batch import LATE, Batch, LeftOut, Served
from core.compiled import compiled
from core.features import X
from core.logistic import Floats, Ints, Offsets

_COUNT = struct.Struct("<I")
_to_asked = msgspec.msgpack.Decoder(tuple[dict[str, float | bool | str | None] | list[float | bool | None], int, str])
_from_asked = msgspec.msgpack.Encoder()


def encode_state(state: dict[str, Any], size: int = 1 << 20) -> Iterator[bytes]:
    """The bytes of a state (nested dicts of JSON types and float64 arrays) in pieces of `size` bytes. The last may be
    shorter."""
    arrays: list[Floats] = []

    def place(array: Floats) -> dict[str, list[int]]:
        offset = sum(before.nbytes for before in arrays)
        arrays.append(array.astype("<f8", copy=False))
        return {"array": [offset, len(array)]}

    piece = bytearray(json.dumps(state, separators=(",", ":"), default=place).encode() + b"\n")
    for array in arrays:
        data = np.ascontiguousarray(array).view(np.uint8).data
        while len(piece) + len(data) > size:  # in pieces, because a large state has gigabytes
            taken = max(0, size - len(piece))
            yield bytes(piece) + data[:taken]
            piece.clear()
            data = data[taken:]
        piece += data
    yield bytes(piece)


def decode_state(data: bytes) -> dict[str, Any]:
    """The state that these bytes encode; ValueError if they encode none."""
    header, _, arrays = data.partition(b"\n")
    left = len(arrays)

    def rich(found: dict[str, Any]) -> Any:
        nonlocal left
        if found.keys() != {"array"}:
            return found
        offset, length = found["array"]
        if not 0 <= 8 * length <= left:  # else a short header could use the same bytes a thousand times
            raise ValueError("its arrays are longer than its data")
        left -= 8 * length
        return np.frombuffer(arrays, "<f8", length, offset).astype(np.float64)

    try:
        state = json.loads(header, object_hook=rich)
    except (TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"it is not a state: {error}") from None
    if not isinstance(state, dict):
        raise ValueError("it is not a state")  # noqa: TRY004  # damaged data, not a caller's mistake
    return state


def encode_prediction(served: Floats, x: X, unknown: int = 0, owner: str = "") -> bytes:
    """The bytes of a waiting prediction: the numbers that describe what was served, its x, how many of its features
    were unknown, and the id of the caller's token."""
    asked = _from_asked.encode((x, unknown, owner))
    return b"".join([_COUNT.pack(len(served)), served.astype("<f8", copy=False).tobytes(), asked])


def decode_prediction(data: bytes) -> tuple[Floats, X, int, str]:
    """The arguments of `encode_prediction`; ValueError if these bytes encode no prediction.

    >>> decode_prediction(encode_prediction(np.array([0.5]), {"age": 31.0, "country": "FR"}, 1, "3f9a2c71"))
    (array([0.5]), {'age': 31.0, 'country': 'FR'}, 1, '3f9a2c71')
    """
    if len(data) < _COUNT.size:
        raise ValueError("it is cut short")
    (count,) = _COUNT.unpack_from(data)
    end = _COUNT.size + 8 * count
    if not count or end >= len(data):
        raise ValueError("its length does not match its header")
    try:
        x, unknown, owner = _to_asked.decode(memoryview(data)[end:])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"it is not a prediction: {error}") from None
    return np.frombuffer(data, "<f8", count, _COUNT.size).astype(np.float64), x, unknown, owner


# -- batches

_HEADER = struct.Struct("<IIB")
_HEADERS = np.dtype([("n", "<u4"), ("m", "<u4"), ("parts", "u1")])
_COLUMNS, _VALUES = np.dtype("<i4"), np.dtype("<f8")
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
    if n == 1:  # most rows
        parts = ALIKE if batch.weights.item(0) == 1.0 else ALIKE + WEIGHTED
    else:
        parts = _parts(batch.offsets, batch.columns, batch.weights)
    parts += SERVED * (batch.served is not None)
    parts += LEFT_OUT * (batch.left_out is not None)
    packed: list[Any] = [_HEADER.pack(n, m, parts)]
    if not parts & ALIKE:
        packed.append((batch.offsets[1:] - batch.offsets[:-1]).astype("<u4"))
    columns, values = batch.columns[: m // n] if parts & ALIKE and n > 1 else batch.columns, batch.values
    # `astype` would give the same array, but takes as long as all else here for one event, and many rows have one.
    packed.append(columns if columns.dtype is _COLUMNS else columns.astype(_COLUMNS))
    packed.append(values if values.dtype is _VALUES else values.astype(_VALUES))
    packed.append(batch.labels)
    if parts & WEIGHTED:
        packed.append(batch.weights.astype("<f8", copy=False))
    if batch.served is not None:
        packed += [batch.served.kinds, *(column.astype("<f8", copy=False) for column in batch.served[1:])]
    if batch.left_out is not None:
        packed += [batch.left_out.counts.astype("<u4", copy=False), batch.left_out.marks.astype("<u8", copy=False)]
    return b"".join(packed)  # joins the arrays themselves: new memory is slow


def unpack(packed: Sequence[bytes]) -> Batch:
    """All packed batches as one, in order. Raises ValueError if the bytes are not batches.

    It unpacks all at once. One by one, a log of single events took 20 times longer to unpack than to learn.

    >>> one = Batch(np.array([0, 1]), np.array([7], np.int32), np.ones(1), np.ones(1, np.uint8), np.ones(1))
    >>> unpack([pack(one), pack(one)]).columns.tolist()
    [7, 7]
    """
    lengths = np.array([len(one) for one in packed], np.int64)
    if (lengths < _HEADER.size).any():
        raise ValueError("it is cut short")
    headers = np.frombuffer(b"".join([one[: _HEADER.size] for one in packed]), _HEADERS)
    ns, ms, parts = headers["n"].astype(np.int64), headers["m"].astype(np.int64), headers["parts"]
    weighted, served_, alike, left = (parts & part > 0 for part in (WEIGHTED, SERVED, ALIKE, LEFT_OUT))
    an_event, size = 1 + 8 * weighted + 17 * served_ + 12 * left, ms // np.maximum(ns, 1)
    expected = _HEADER.size + ns * an_event + 8 * ms + 4 * np.where(alike, size, ns + ms)
    if (parts >= 2 * LEFT_OUT).any() or (alike & ((ns == 0) | (size * ns != ms)) | (lengths != expected)).any():
        raise ValueError("its length does not fit its header")
    starts, n, m = np.cumsum(lengths) - lengths, int(ns.sum()), int(ms.sum())
    served = Served(np.zeros(n, np.uint8), np.zeros(n), np.zeros(n)) if served_.any() else None
    rooms = served or Served(np.zeros(0, np.uint8), np.zeros(0), np.zeros(0))
    left_out = LeftOut.none(n) if left.any() else None
    left_rooms = left_out or LeftOut.none(0)
    events = (np.zeros(n + 1, np.int64), np.zeros(m, np.int32), np.zeros(m), np.zeros(n, np.uint8), np.ones(n))
    batch = Batch(*events, served, left_out)
    places = (batch.columns, batch.values, batch.labels, batch.weights, *rooms, *left_rooms)
    into = tuple(place.view(np.uint8) for place in places)
    data = np.frombuffer(bytearray().join(packed), np.uint8)
    whole = _unpack(data, starts, ns, ms, batch.offsets, into)
    if not whole or batch.labels.max(initial=0) > 1 or rooms.kinds.max(initial=0) > LATE:
        raise ValueError("its counts do not add up, or it has a label or a kind that does not exist")
    return batch


@compiled("int64(uint8[::1], int64, int64, uint8[::1], int64)")
def _copy(data: Bytes, at: int, size: int, target: Bytes, to: int) -> int:
    """Copy `size` bytes. Returns where they end in `data`. A slice assignment would first make a copy, in case they
    overlap."""
    source, place = data[at : at + size], target[to : to + size]
    for i in range(len(place)):
        place[i] = source[i]
    return at + size


@compiled("boolean(uint8[::1], int64[::1], int64[::1], int64[::1], int64[::1], UniTuple(uint8[::1], 9))")
def _unpack(
    data: Bytes, starts: Lengths, ns: Lengths, ms: Lengths, offsets: Lengths, parts_of_batch: tuple[Bytes, ...]
) -> bool:
    """Copy each batch's parts to their places. Returns False if counts do not add up."""
    columns, values, labels, weights, kinds, scores, delays, left_out, marks = parts_of_batch
    event = value = 0
    for row in range(len(starts)):
        n, m, at = ns[row], ms[row], starts[row]
        parts = data[at + 8]
        at += 9
        end = value
        if parts & ALIKE:
            size = m // n
            for i in range(n):
                _copy(data, at, 4 * size, columns, 4 * end)
                end += size
                offsets[event + i + 1] = end
            at += 4 * size
        else:
            for i in range(at, at + 4 * n, 4):
                end += data[i] | data[i + 1] << 8 | data[i + 2] << 16 | data[i + 3] << 24
                offsets[event + (i - at) // 4 + 1] = end
            if end != value + m:
                return False
            at = _copy(data, at + 4 * n, 4 * m, columns, 4 * value)
        at = _copy(data, at, 8 * m, values, 8 * value)
        at = _copy(data, at, n, labels, event)
        if parts & WEIGHTED:
            at = _copy(data, at, 8 * n, weights, 8 * event)
        if parts & SERVED:
            at = _copy(data, at, n, kinds, event)
            at = _copy(data, at, 8 * n, scores, 8 * event)
            at = _copy(data, at, 8 * n, delays, 8 * event)
        if parts & LEFT_OUT:
            at = _copy(data, at, 4 * n, left_out, 4 * event)
            _copy(data, at, 8 * n, marks, 8 * event)
        event, value = event + n, end
    return True
