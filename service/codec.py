"""Learner states <-> the bytes of a snapshot. Arrays and JSON, never pickle; little-endian.

A state is one line of JSON, in which an array stands as {"array": [offset, length]}, then the arrays' float64.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np


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
