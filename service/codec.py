"""Batches and learner states <-> the bytes that stand on disk. Arrays and JSON, never pickle; little-endian.

A batch of n events with m feature values:

    n, m            2 x uint32
    weighted        uint8: whether sample weights follow (they are left out where all are 1)
    counts          n x uint32: features of each event
    columns         m x uint32
    values          m x float64
    labels          n x uint8
    weights         n x float64, where weighted

A state is one line of JSON, in which an array stands as {"array": [offset, length]}, then the arrays' float64.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from core.features import Batch

_HEADER = struct.Struct("<IIB")


def encode_batch(batch: Batch) -> bytes:
    """The bytes of a batch."""
    weighted = bool((batch.weights != 1.0).any())
    parts = [
        _HEADER.pack(len(batch), len(batch.columns), weighted),
        np.diff(batch.offsets).astype("<u4").tobytes(),
        batch.columns.astype("<u4").tobytes(),
        batch.values.astype("<f8", copy=False).tobytes(),
        batch.labels.tobytes(),
    ]
    if weighted:
        parts.append(batch.weights.astype("<f8", copy=False).tobytes())
    return b"".join(parts)


def decode_batch(data: bytes) -> Batch:
    """The batch of these bytes; ValueError if they are none."""
    if len(data) < _HEADER.size:
        raise ValueError("it is cut short")
    n, m, weighted = _HEADER.unpack_from(data)
    if len(data) != _HEADER.size + n * (5 + 8 * weighted) + m * 12:
        raise ValueError("its length does not fit its header")
    counts = np.frombuffer(data, "<u4", n, at := _HEADER.size)
    columns = np.frombuffer(data, "<u4", m, at := at + 4 * n)
    values = np.frombuffer(data, "<f8", m, at := at + 4 * m)
    labels = np.frombuffer(data, np.uint8, n, at := at + 8 * m)
    weights = np.frombuffer(data, "<f8", n, at + n) if weighted else np.ones(n)
    offsets = np.zeros(n + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    if offsets[-1] != m:
        raise ValueError("its counts do not add up")
    # Copies: the kernels take aligned arrays that can be written, and these lie anywhere in read-only bytes.
    return Batch(
        offsets, columns.astype(np.int32), values.astype(np.float64), labels.copy(), weights.astype(np.float64)
    )


def encode_state(state: dict[str, Any]) -> bytes:
    """The bytes of a state: nested dicts of JSON types and float64 arrays."""
    arrays: list[bytes] = []

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        if isinstance(value, np.ndarray):
            offset = sum(map(len, arrays))
            arrays.append(value.astype("<f8", copy=False).tobytes())
            return {"array": [offset, len(value)]}
        return value

    header = json.dumps(plain(state), separators=(",", ":")).encode()
    return b"".join([header, b"\n", *arrays])


def decode_state(data: bytes) -> dict[str, Any]:
    """The state of these bytes; ValueError if they are none."""
    header, _, arrays = data.partition(b"\n")

    def rich(value: Any) -> Any:
        if isinstance(value, dict):
            if value.keys() == {"array"}:
                offset, length = value["array"]
                return np.frombuffer(arrays, "<f8", length, offset).astype(np.float64)
            return {key: rich(inner) for key, inner in value.items()}
        return value

    try:
        state = rich(json.loads(header))
    except (TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"it is not a state: {error}") from None
    if not isinstance(state, dict):
        raise ValueError("it is not a state")  # noqa: TRY004  # damaged data, not a caller's mistake
    return state
