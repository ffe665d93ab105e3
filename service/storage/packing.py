"""The bytes of a piece: its ids and numbers by columns, each without what all its values share.

Ids of one source are alike: those of a file's rows begin the same, and UUIDs have their dashes at the same places. A
piece of UUIDs takes 27 to 29 bytes an id so, not 62, and an id is written three times or more until it is in the
largest run. An id alone takes more: a UUID 79 bytes. In order, all numbers little-endian:

    fingerprints    n x int64
    seqs, lengths   least int64, width uint8 (0, 1, 2, 4 or 8), and n numbers of that width: above the least
    labels          count uint8, then the different ones, int64, and for each id which one, uint8 where there are two or
                    more; count 0, then n x int64, where there are more than FEW
    start           length of the shortest id, uint16; so many bytes, the first id's; and a bit for each, the first in
                    the lowest bit: whether all ids have it
    rest            all other bytes, id by id: count uint8, then the different ones, and which one each is, two to a
                    byte, the first in the low bits; count 0, then the bytes, where there are more than FEW

They are written and read by kernels, in a tenth of a microsecond an id.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from core.compiled import compiled, part_of_kernels
from service.events import MAX_ID
from service.texts import Bytes, Numbers, Texts

MOST = 4 * MAX_ID
"""Most bytes of an id. Else damaged bytes could stand for gigabytes."""
FEW = 16
"""Most different labels, or bytes, that are written once each."""
_ROOM = 256 + 2 * MOST
"""Bytes of a payload, at most, besides its ids and 33 for each."""
WRONG = -1
"""What a kernel returns if the bytes are not those of a piece."""


# -- writing


@part_of_kernels
def _put(number: Any, width: int, out: Bytes, at: int) -> int:
    """Write the lowest bytes of a number. Returns where they end."""
    for k in range(width):
        out[at + k] = number >> 8 * k & 255
    return at + width


@part_of_kernels
def _put_column(values: Numbers, out: Bytes, at: int) -> int:
    least = most = values[0]
    for value in values:
        least, most = min(least, value), max(most, value)
    spread, width = np.uint64(most) - np.uint64(least), 0
    while width < 8 and spread >> np.uint64(8 * width) != 0:
        width = max(1, 2 * width)
    at = _put(width, 1, out, _put(least, 8, out, at))
    for value in values:
        at = _put(value - least, width, out, at)
    return at


@part_of_kernels
def _put_labels(labels: Numbers, different: Numbers, out: Bytes, at: int) -> int:
    count = 0
    for label in labels:
        code = _place_of(label, different, count)
        if code == FEW:
            at = _put(0, 1, out, at)
            for each in labels:
                at = _put(each, 8, out, at)
            return at
        if code == count:
            different[count] = label
            count += 1
    at = _put(count, 1, out, at)
    for label in different[:count]:
        at = _put(label, 8, out, at)
    if count > 1:
        for label in labels:
            at = _put(_place_of(label, different, count), 1, out, at)
    return at


@part_of_kernels
def _place_of(value: int, different: Numbers, count: int) -> int:
    """The place of a value among the first `count` different ones; `count` if it is not there."""
    place = 0
    while place < count and different[place] != value:
        place += 1
    return place


@part_of_kernels
def _bytes_of(bits: int) -> int:
    return (bits + 7) // 8


@part_of_kernels
def _bit(data: Bytes, k: int) -> Any:
    return data[k // 8] >> k % 8 & 1


@part_of_kernels
def _put_start(text: Bytes, lengths: Numbers, places: Numbers, out: Bytes, at: int) -> tuple[int, int]:
    """Fill in the places, up to the shortest id's end, at which not all ids have the same byte. Returns how many."""
    shortest = same = len(places)
    at = _put(shortest, 2, out, at)
    for k in range(shortest):
        out[at + k], places[k] = text[k], k
    start = 0
    for length in lengths:
        k = 0
        while k < same:
            place = places[k]
            if text[start + place] == text[place]:
                k += 1
            else:
                same -= 1
                places[k] = places[same]
        start += length
    shared, end = out[at + shortest :], at + shortest + _bytes_of(shortest)
    for k in range(_bytes_of(shortest)):
        shared[k] = 0
    for place in places[:same]:
        shared[place // 8] |= 1 << place % 8
    count = 0
    for k in range(shortest):
        if not _bit(shared, k):
            places[count] = k
            count += 1
    return count, end


@part_of_kernels
def _sizes(lengths: Numbers) -> tuple[int, int]:
    """The shortest length, and the sum of all."""
    shortest, size = lengths[0], 0
    for length in lengths:
        shortest = min(shortest, length)
        size += length
    return shortest, size


@part_of_kernels
def _gather_rest(text: Bytes, lengths: Numbers, shortest: int, places: Numbers, rest: Bytes) -> Any:
    """Copy what `_put_start` has not written of the ids. Returns how many bytes these are."""
    start = n = np.uint64(0)
    for length in lengths:
        for k in range(len(places)):
            rest[n + np.uint64(k)] = text[start + np.uint64(places[k])]
        n += np.uint64(len(places))
        for k in range(length - shortest):
            rest[n + np.uint64(k)] = text[start + np.uint64(shortest + k)]
        n += np.uint64(length - shortest)
        start += np.uint64(length)
    return np.int64(n)


@part_of_kernels
def _put_rest(rest: Bytes, places: Numbers, out: Bytes, at: int) -> int:
    """places: space for that of each byte among the different ones."""
    places[:] = -1
    for byte in rest:
        places[byte] = 0
    few = 256 + places.sum()
    if few > FEW:
        at = _put(0, 1, out, at)
        for k in range(len(rest)):
            out[at + k] = rest[k]
        return at + len(rest)
    at = _put(few, 1, out, at)
    few = 0
    for byte in range(256):
        if places[byte] == 0:
            out[at + few], places[byte] = byte, few
            few += 1
    at += few
    for k in range(0, len(rest) - 1, 2):
        out[at + k // 2] = places[rest[k]] | places[rest[k + 1]] << 4
    if len(rest) & 1:
        out[at + len(rest) // 2] = places[rest[len(rest) - 1]]
    return at + (len(rest) + 1) // 2


@compiled("void(int64[:, ::1], uint8[::1], int64[::1], int64[::1], int64[::1], int64[::1], uint8[::1], uint8[::1])")
def _pack(
    numbers: Numbers, text: Bytes, lengths: Numbers, cuts: Numbers, ends: Numbers, space: Numbers, rest: Bytes,
    out: Bytes,
) -> None:  # fmt: skip
    """Write the pieces between the cuts, and where each ends. space, rest: working space."""
    at = start = 0
    for piece in range(len(ends)):
        first, last = cuts[piece], cuts[piece + 1]
        these = lengths[first:last]
        shortest, size = _sizes(these)
        of_these = text[start : start + size]
        for fingerprint in numbers[2, first:last]:
            at = _put(fingerprint, 8, out, at)
        at = _put_column(numbers[1, first:last], out, at)
        at = _put_column(these, out, at)
        at = _put_labels(numbers[3, first:last], space, out, at)
        places = space[:shortest]
        count, at = _put_start(of_these, these, places, out, at)
        n = _gather_rest(of_these, these, shortest, places[:count], rest)
        ends[piece] = at = _put_rest(rest[:n], space[:256], out, at)
        start += size


def pack(numbers: Numbers, ids: Texts, cuts: Sequence[int]) -> list[bytes]:
    """The bytes of each piece of some ids, and of their numbers, (4, n): those of `Piece`, whose hashes are left out.
    cuts: where the pieces begin, and where the last ends. None may be empty."""
    bounds, ends = np.array(cuts, np.int64), np.empty(len(cuts) - 1, np.int64)
    out = np.empty(_ROOM * len(ends) + 33 * len(ids) + len(ids.text), np.uint8)
    rest, space = np.empty(len(ids.text), np.uint8), np.empty(MOST, np.int64)
    _pack(numbers, ids.text, ids.lengths, bounds, ends, space, rest, out)
    data = out[: ends[-1]].tobytes()
    return [data[start:end] for start, end in pairwise([0, *ends.tolist()])]


# -- reading


@part_of_kernels
def _get(data: Bytes, at: int, width: int) -> Any:
    number = np.int64(0)
    for k in range(width):
        number |= np.int64(data[at + k]) << 8 * k
    return number


@part_of_kernels
def _get_column(data: Bytes, at: int, values: Numbers) -> int:
    if at < 0 or at + 9 > len(data):
        return WRONG
    least, width, at = _get(data, at, 8), _get(data, at + 8, 1), at + 9
    if width not in (0, 1, 2, 4, 8) or at + width * len(values) > len(data):
        return WRONG
    for i in range(len(values)):
        values[i] = least + _get(data, at + i * width, width)
    end: int = at + width * len(values)
    return end


@part_of_kernels
def _get_labels(data: Bytes, at: int, labels: Numbers) -> int:
    if at < 0 or at >= len(data):
        return WRONG
    few, at, n = _get(data, at, 1), at + 1, len(labels)
    codes = at + 8 * (few if few else n)
    end: int = codes + (n if few > 1 else 0)
    if few > FEW or end > len(data):
        return WRONG
    for i in range(n):
        place = i if not few else _get(data, codes + i, 1) if few > 1 else 0
        if few and place >= few:
            return WRONG
        labels[i] = _get(data, at + 8 * place, 8)
    return end


@compiled("int64(uint8[::1], int64[:, ::1], int64[::1])", nogil=False)
def _unpack_numbers(data: Bytes, numbers: Numbers, lengths: Numbers) -> int:
    """Read all but the texts. Returns where they begin, or WRONG."""
    n = len(lengths)
    for i in range(n):
        numbers[2, i] = _get(data, 8 * i, 8)
    at = _get_column(data, 8 * n, numbers[1])
    at = _get_column(data, at, lengths)
    for length in lengths:
        if not 0 <= length <= MOST:
            return WRONG
    return _get_labels(data, at, numbers[3])


@part_of_kernels
def _get_rest(data: Bytes, at: int, rest: Bytes) -> int:
    if at >= len(data):
        return WRONG
    few, at, n = _get(data, at, 1), at + 1, len(rest)
    end: int = at + few + ((n + 1) // 2 if few else n)
    if few > FEW or end > len(data):
        return WRONG
    if not few:
        for k in range(n):
            rest[k] = data[at + k]
        return end
    different, codes = data[at : at + few], data[at + few : end]
    for code in codes:
        if max(code & 15, code >> 4) >= few:
            return WRONG
    if n & 1 and codes[n // 2] >> 4:
        return WRONG
    for k in range(n // 2):
        rest[2 * k], rest[2 * k + 1] = different[codes[k] & 15], different[codes[k] >> 4]
    if n & 1:
        rest[n - 1] = different[codes[n // 2]]
    return end


@part_of_kernels
def _put_ids(first: Bytes, lengths: Numbers, places: Numbers, rest: Bytes, text: Bytes) -> None:
    """The ids, each from what is shared and from the rest."""
    shortest, start, n = len(first), np.uint64(0), np.uint64(0)
    for length in lengths:
        for k in range(shortest):
            text[start + np.uint64(k)] = first[k]
        for k in range(len(places)):
            text[start + np.uint64(places[k])] = rest[n + np.uint64(k)]
        n += np.uint64(len(places))
        for k in range(length - shortest):
            text[start + np.uint64(shortest + k)] = rest[n + np.uint64(k)]
        n += np.uint64(length - shortest)
        start += np.uint64(length)


@compiled("int64(uint8[::1], int64, int64[::1], int64[::1], uint8[::1], uint8[::1])", nogil=False)
def _unpack_text(data: Bytes, at: int, lengths: Numbers, places: Numbers, rest: Bytes, text: Bytes) -> int:
    """Read the texts. Returns where they end, or WRONG. places, rest: working space."""
    if at + 2 > len(data):
        return WRONG
    shortest, first = _get(data, at, 2), at + 2
    at = first + shortest + _bytes_of(shortest)
    for length in lengths:
        if length < shortest:
            return WRONG
    if at > len(data) or (shortest % 8 and data[at - 1] >> shortest % 8):
        return WRONG
    shared, count = data[first + shortest : at], 0
    for k in range(shortest):
        if not _bit(shared, k):
            places[count] = k
            count += 1
    end = _get_rest(data, at, rest[: len(text) - (shortest - count) * len(lengths)])
    _put_ids(data[first : first + shortest], lengths, places[:count], rest, text)
    return end


def unpack(count: int, payload: bytes) -> tuple[Texts, Numbers] | None:
    """The ids and their numbers, (4, n) without the hashes, which these bytes are; None if they are none."""
    if not count <= len(payload) // 8 or (count == 0) != (not payload):
        return None
    numbers, lengths = np.empty((4, count), np.int64), np.empty(count, np.int64)
    if not count:
        return Texts(np.empty(0, np.uint8), lengths), numbers
    data = np.frombuffer(bytearray(payload), np.uint8)  # writable, as kernels ask for
    at = _unpack_numbers(data, numbers, lengths)
    if at == WRONG:
        return None
    text, rest = np.empty((2, lengths.sum()), np.uint8)
    places = np.empty(MOST, np.int64)
    end = _unpack_text(data, at, lengths, places, rest, text)
    return (Texts(text, lengths), numbers) if end == len(data) else None
