"""Learner states and waiting predictions <-> bytes: arrays, JSON and MessagePack, little-endian. Never pickle.

A state is one line of JSON, then the arrays as float64. The JSON names an array as {"array": [offset, length]}.

A waiting prediction is a count (uint32), that many float64 that describe what was served, and a MessagePack array: its
x as sent, how many of its features were unknown, and the id of the caller's token. x has names, not columns, because a
prediction that never gets its label must not add columns to the model.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from core.features import X
from core.logistic import Floats

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
