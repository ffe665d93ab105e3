"""Learner states and waiting predictions <-> bytes. Arrays, JSON and MessagePack, never pickle; little-endian.

A state is one line of JSON, in which an array stands as {"array": [offset, length]}, then the arrays' float64.

A waiting prediction is the number of float64 that say what was served (uint32), these, then in MessagePack an array of
its x as it was sent, how many of its features were unknown, and the id of the token that asked: of x names and not
columns, because what is never labelled must not give its features columns.
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
    """The bytes of a state, nested dicts of JSON types and float64 arrays, in pieces of so many; the last may be
    shorter."""
    arrays: list[Floats] = []

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        if isinstance(value, np.ndarray):
            offset = sum(array.nbytes for array in arrays)
            arrays.append(value.astype("<f8", copy=False))
            return {"array": [offset, len(value)]}
        return value

    piece = bytearray(json.dumps(plain(state), separators=(",", ":")).encode() + b"\n")
    for array in arrays:
        data = np.ascontiguousarray(array).view(np.uint8).data
        while len(piece) + len(data) > size:  # a large state has gigabytes
            taken = max(0, size - len(piece))
            yield bytes(piece) + data[:taken]
            piece.clear()
            data = data[taken:]
        piece += data
    yield bytes(piece)


def decode_state(data: bytes) -> dict[str, Any]:
    """The state of these bytes; ValueError if they are none."""
    header, _, arrays = data.partition(b"\n")
    left = len(arrays)

    def rich(value: Any) -> Any:
        nonlocal left
        if isinstance(value, dict):
            if value.keys() == {"array"}:
                offset, length = value["array"]
                left -= 8 * length
                if left < 0:  # else a short header could ask for the same bytes a thousand times
                    raise ValueError("its arrays are longer than it is")
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


def encode_prediction(served: Floats, x: X, unknown: int = 0, owner: str = "") -> bytes:
    """The bytes of a waiting prediction: the numbers that say what was served, the x that it was made from, how many of
    its features were unknown, and the id of the token that asked."""
    asked = _from_asked.encode((x, unknown, owner))
    return b"".join([_COUNT.pack(len(served)), served.astype("<f8", copy=False).tobytes(), asked])


def decode_prediction(data: bytes) -> tuple[Floats, X, int, str]:
    """What `encode_prediction` was given; ValueError if these bytes are none.

    >>> decode_prediction(encode_prediction(np.array([0.5]), {"age": 31.0, "country": "FR"}, 1, "3f9a2c71"))
    (array([0.5]), {'age': 31.0, 'country': 'FR'}, 1, '3f9a2c71')
    """
    if len(data) < _COUNT.size:
        raise ValueError("it is cut short")
    (count,) = _COUNT.unpack_from(data)
    end = _COUNT.size + 8 * count
    if not count or end >= len(data):
        raise ValueError("its length does not fit its header")
    try:
        x, unknown, owner = _to_asked.decode(memoryview(data)[end:])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"it is not a prediction: {error}") from None
    return np.frombuffer(data, "<f8", count, _COUNT.size).astype(np.float64), x, unknown, owner
