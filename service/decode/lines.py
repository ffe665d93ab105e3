"""Reads NDJSON lines of one shape at once: lines -> arrays.

Most events of a stream have the same features in the same order, so their lines differ only in numbers and in the text
of categories. The first line gives the shape. A kernel reads the lines after it, at about a nanosecond a byte: it
compares the text between the values and parses the values. That takes 0.3 us for an event of 10 features, while the
general decoder takes 1.2 us, and its objects 2 us more. Each different text of a column is decoded once.

The kernel stops at the first line of another shape, or with a number that it may not read exactly, or a text with an
escape. That line goes to the general decoder, which also names its errors. Every number is the float64 nearest to its
decimal digits, as Python's `float` gives it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from core.builder import Words
from core.compiled import compiled
from core.features import is_name
from core.logistic import Floats, Ints
from service.decode.text import lines_in
from service.events import MAX_ID
from service.table import Table
from service.texts import Bytes, Texts

Places = npt.NDArray[np.int64]

LABEL, WEIGHT = -2, -1
"""Places of label and weight among a line's values, after its features."""

_TOKEN = re.compile(rb'"[^"\\]*"\s*:|("[^"\\]*")|(-?[0-9][-+.0-9eE]*|true|false)')
"""A name, a string, or a number."""

ID = -1
"""Marks a hole that is an id, not a feature. A feature of text has its column, counted down from FIRST_TEXT."""
FIRST_TEXT = -2
LINE_END = 2
"""Index of a line's end in `places`, after the start and end of its id. Those of its texts follow."""

_POWERS = np.array([float(10**k) for k in range(23)])
"""The powers of ten that are exact in float64: 5**22 < 2**53."""
_SPLITTER = 134217729.0
"""2**27 + 1: splits a float64 into two halves whose products are exact (Dekker 1971)."""


@compiled("float64(float64, float64, float64)")
def _product_error(a: float, b: float, product: float) -> float:
    """a * b - product, exactly, where `product` is a * b rounded (Dekker 1971)."""
    t = _SPLITTER * a
    a_high = t - (t - a)
    a_low = a - a_high
    t = _SPLITTER * b
    b_high = t - (t - b)
    b_low = b - b_high
    return a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low)


@compiled("float64(uint64, int64)")
def scaled(digits: np.uint64, exponent: int) -> float:
    """The float64 nearest to digits * 10**exponent, for digits below 10**19; NaN if that is not certain.

    The quotient or product has twice the precision: a rounded value and its correction. The remaining error matters
    only near a tie of two float64. The answer there is NaN, and the general decoder decides.

    >>> scaled(15, -1), scaled(17976931348623157, 3)
    (1.5, 1.7976931348623157e+19)
    """
    if exponent < -22 or exponent > 22:
        return np.nan
    high = np.float64(digits)
    low = np.float64(np.int64(digits - np.uint64(high)))  # below 2048 in magnitude: exact
    power = _POWERS[abs(exponent)]
    if exponent < 0:
        value = high / power
        product = value * power
        rest = (high - product) - _product_error(value, power, product)  # of a division: exact
        correction = (rest + low) / power
        doubt = abs(correction)
    else:
        value = high * power
        error = _product_error(high, power, value)
        correction = error + low * power
        doubt = abs(error) + abs(low * power)
    doubt *= 2.0**-48
    nearest = value + (correction - doubt)
    return nearest if nearest == value + (correction + doubt) else np.nan


@compiled("uint64(uint8[::1], int64)")
def _eight(text: Bytes, at: int) -> Any:
    """The eight bytes from `at` on as one little-endian number. The compiler makes a single load of it."""
    i, word = np.uint64(at), np.uint64(0)
    for k in range(8):
        word |= np.uint64(text[i + np.uint64(k)]) << np.uint64(8 * k)
    return word


@compiled("boolean(uint64)")
def _are_digits(eight: Any) -> bool:
    """Whether eight bytes are decimal digits: each high half is 3, and stays 3 when 6 is added to the byte."""
    high = np.uint64(0xF0F0F0F0F0F0F0F0)
    carried = ((eight + np.uint64(0x0606060606060606)) & high) >> np.uint64(4)
    found: bool = (eight & high) | carried == np.uint64(0x3333333333333333)
    return found


@compiled("uint64(uint64)")
def _eight_digits(eight: Any) -> Any:
    """The number that eight decimal digits form: digits combine to pairs, pairs to fours, fours to the eight."""
    pairs = (eight & np.uint64(0x0F0F0F0F0F0F0F0F)) * np.uint64(10 * 2**8 + 1) >> np.uint64(8)
    fours = (pairs & np.uint64(0x00FF00FF00FF00FF)) * np.uint64(100 * 2**16 + 1) >> np.uint64(16)
    return (fours & np.uint64(0x0000FFFF0000FFFF)) * np.uint64(10_000 * 2**32 + 1) >> np.uint64(32)


@compiled("Tuple((uint64, int64))(uint8[::1], int64, int64, uint64)")
def _read_digits(text: Bytes, at: int, end: int, before: Any) -> tuple[Any, int]:
    """The number that `before` and the digits from `at` on form, and where they end. It wraps above 19 digits."""
    digits = before
    while at + 8 <= end:
        eight = _eight(text, at)
        if not _are_digits(eight):
            break
        digits = digits * np.uint64(10**8) + _eight_digits(eight)
        at += 8
    while at < end:
        digit = np.uint64(text[np.uint64(at)]) ^ np.uint64(48)  # 0 to 9 for "0" to "9", more for all others
        if digit > np.uint64(9):
            break
        digits = digits * np.uint64(10) + digit
        at += 1
    return digits, at


@compiled("Tuple((float64, int64))(uint8[::1], int64, int64)")
def _read_truth(text: Bytes, at: int, end: int) -> tuple[float, int]:
    """1 for true or 0 for false, and where it ends; NaN for anything else."""
    if end - at >= 4 and text[at] == 116 and text[at + 1] == 114 and text[at + 2] == 117 and text[at + 3] == 101:
        return 1.0, at + 4
    if end - at >= 5 and text[at] == 102 and text[at + 1] == 97 and text[at + 2] == 108 and text[at + 3] == 115:
        return (0.0, at + 5) if text[at + 4] == 101 else (np.nan, at)
    return np.nan, at


@compiled("boolean(uint8[::1], int64, int64)")
def _overflows(text: Bytes, at: int, count: int) -> bool:
    """Whether the `count` digits from `at` on are more than 19 without leading zeros."""
    while count > 19 and (text[at] == 48 or text[at] == 46):  # 0 or .
        count -= text[at] == 48
        at += 1
    return count > 19


@compiled("Tuple((int64, int64))(uint8[::1], int64, int64)")
def _read_exponent(text: Bytes, at: int, end: int) -> tuple[Any, int]:
    """The exponent at `at`, or 0 without one, and where it ends; -1 as the end if it is malformed."""
    if at == end or (text[at] != 101 and text[at] != 69):
        return 0, at
    at += 1
    down = at < end and text[at] == 45
    if at < end and (text[at] == 43 or text[at] == 45):
        at += 1
    power, last = _read_digits(text, at, end, np.uint64(0))
    if last == at or last > at + 4:
        return 0, -1
    return (-np.int64(power) if down else np.int64(power)), last


@compiled("Tuple((float64, int64))(uint8[::1], int64, int64)")
def read_number(text: Bytes, at: int, end: int) -> tuple[float, int]:
    """The JSON number, true (1) or false (0) at `at`, and where it ends; NaN if it is invalid or not certain."""
    if at < end and text[at] > 57:  # no digit, and no sign
        return _read_truth(text, at, end)
    negative = at < end and text[at] == 45  # -
    start = at + 1 if negative else at
    digits, at = _read_digits(text, start, end, np.uint64(0))
    if at == start or (text[start] == 48 and at > start + 1):  # no digit, or a leading zero
        return np.nan, at
    count, fraction, whole = at - start, 0, at
    if at < end and text[at] == 46:  # .
        point = at + 1
        digits, at = _read_digits(text, point, end, digits)
        fraction = at - point
        if fraction == 0:
            return np.nan, at
    exponent, last = _read_exponent(text, at, end)
    # -0 is an integer, and integers have no negative zero: the general decoder decides.
    if last < 0 or _overflows(text, start, count + fraction) or (negative and digits == 0 and last == whole):
        return np.nan, at
    value = scaled(digits, exponent - fraction) if digits else 0.0
    return (-value if negative else value), last


@compiled("int64(uint8[::1], int64, uint8[::1], int64, int64)")
def _skip(text: Bytes, at: int, literals: Bytes, start: int, end: int) -> int:
    """The position after `literals[start:end]` in the text; -1 if the text at `at` differs."""
    if at + end - start > len(text):
        return -1
    while start + 8 <= end:
        if _eight(text, at) != _eight(literals, start):
            return -1
        at += 8
        start += 8
    while start < end:
        if text[np.uint64(at)] != literals[np.uint64(start)]:
            return -1
        at += 1
        start += 1
    return at


@compiled("int64(uint8[::1], int64, int64, int64, int64[::1], int64)")
def _read_string(text: Bytes, at: int, end: int, beyond: int, row: Places, place: int) -> int:
    """Put start and end of the string at `at` into `row` from `place` on, and return where its closing quote ends; -1
    if there is none, or it has an escape, a control character, or a byte of `beyond` or more."""
    if at >= end or text[at] != 34:  # quote
        return -1
    start = at = at + 1
    while at < end and 32 <= text[np.uint64(at)] < beyond and text[np.uint64(at)] != 34 and text[np.uint64(at)] != 92:
        at += 1
    row[place], row[place + 1] = start, at
    return at + 1 if at < end and text[at] == 34 else -1


@compiled("boolean(uint8[::1], int64, int64)")
def _is_null(text: Bytes, at: int, end: int) -> bool:
    if end - at < 4 or text[at] != 110:
        return False
    return text[at + 1] == 117 and text[at + 2] == 108 and text[at + 3] == 108  # type: ignore[no-any-return]  # bytes


@compiled("int64(uint8[::1], int64, int64, int64, float64[::1], int64[::1], int64)")
def _read_hole(text: Bytes, at: int, end: int, hole: int, values: Floats, row: Places, place: int) -> int:
    """Read what stands in a hole into `values`, or into `row` from `place` on, and return where it ends; -1 if it is
    nothing for this hole."""
    if hole == ID:
        return _read_string(text, at, end, 127, row, 0)
    is_text = hole <= FIRST_TEXT
    feature = FIRST_TEXT - hole if is_text else hole
    if feature < len(values) - 2 and _is_null(text, at, end):
        values[feature] = np.nan
        if is_text:
            row[place], row[place + 1] = 0, -1
        return at + 4
    if is_text:
        values[feature] = 1.0
        return _read_string(text, at, end, 256, row, place)
    if feature == len(values) - 1 and at < end and text[at] > 57:  # a weight that is true or false
        return -1
    values[feature], at = read_number(text, at, end)
    return at if np.isfinite(values[feature]) else -1


@compiled("int64(uint8[::1], int64, uint8[::1], int64[::1], int64[::1], float64[::1], int64[::1])")
def _read_line(text: Bytes, at: int, literals: Bytes, ends: Places, holes: Places, values: Floats, row: Places) -> int:
    """Read the line at `at` into `values` and `row`, and return where it ends; -1 if it has another shape."""
    size, literal, place = len(text), 0, LINE_END + 1
    for hole in range(len(holes)):
        at = _skip(text, at, literals, literal, ends[hole])
        if at < 0:
            return -1
        literal = ends[hole]
        at = _read_hole(text, at, size, holes[hole], values, row, place)
        if at < 0:
            return -1
        if holes[hole] <= FIRST_TEXT:
            place += 2
    at = _skip(text, at, literals, literal, len(literals))
    return at if 0 <= at < size and text[at] == 10 else -1  # line feed


@compiled("int64(uint8[::1], uint8[::1], int64[::1], int64[::1], int64, float64[:, ::1], int64[:, ::1])")
def read_lines(
    text: Bytes, literals: Bytes, ends: Places, holes: Places, longest: int, values: Floats, places: Places
) -> int:
    """Read the first lines of a text while they have the given shape. Returns how many.

    text: lines, each ended by a line feed. literals, ends: the text before each hole and after the last one, joined;
    and where each of these pieces ends. holes: for each hole the index of its number in a row of `values`, ID, or the
    index of a text's column, counted down from FIRST_TEXT; the last index is the event's weight, which cannot be true
    or false. longest: most bytes of a line. values, places: filled in, one row per line; their length limits the lines
    read. `values`: the numbers, 1 for a text, NaN for null. `places`: start and end of the id, the position after the
    line feed, then start and end of each text in the line's order; a null ends before it starts.
    """
    at = 0
    for line in range(len(values)):
        end = _read_line(text, at, literals, ends, holes, values[line], places[line])
        if end < 0 or end - at > longest:
            return line
        at = places[line, LINE_END] = end + 1
    return len(values)


@compiled("int64(uint8[::1], int64[:, ::1], int64, uint64, int64[::1], int32[::1], int64[::1])")
def _code(text: Bytes, places: Places, start_of: int, seed: Any, slots: Places, codes: Ints, firsts: Places) -> int:
    """Number the different texts of a column by appearance. Returns how many there are.

    Row i has the text from `places[i, start_of]` to `places[i, start_of + 1]`; an end before the start is no text.
    codes: filled with each row's number, or -1. firsts: filled with the first row of each. slots: space for a hash
    table, a power of 2, all -1.
    """
    mask, count = np.uint64(len(slots) - 1), 0
    for i in range(len(codes)):
        start, size = places[i, start_of], places[i, start_of + 1] - places[i, start_of]
        if size < 0:
            codes[i] = -1
            continue
        mark = seed
        for k in range(start, start + size):
            mark = (mark ^ np.uint64(text[np.uint64(k)])) * np.uint64(0x100000001B3)  # FNV-1a
        slot = (mark ^ (mark >> np.uint64(32))) & mask
        while True:
            code = slots[slot]
            if code < 0:
                slots[slot] = codes[i] = count
                firsts[count] = i
                count += 1
                break
            other = firsts[code]
            before, k = places[other, start_of], 0
            if places[other, start_of + 1] - before == size:
                while k < size and text[np.uint64(start + k)] == text[np.uint64(before + k)]:
                    k += 1
                if k == size:
                    codes[i] = code
                    break
            slot = (slot + np.uint64(1)) & mask
    return count


_SEED = np.uint64(secrets.randbits(64))
"""So that nobody can send texts of the same hash, which take long."""


def words_of(
    data: bytearray, places: Places, start_of: int, clean: Callable[[str], str | None] = str
) -> tuple[Words, int]:
    """A column of text, whose places are those of `_code`, and how many of its rows are UTF-8. clean: what becomes of
    each different text; None: there is none."""
    rows = len(places)
    codes, firsts = np.empty(rows, np.int32), np.empty(rows, np.int64)
    slots = np.full(1 << (2 * rows).bit_length(), -1)
    count = _code(np.frombuffer(data, np.uint8), places, start_of, _SEED, slots, codes, firsts)
    there: dict[str, int] = {}
    numbers: list[int] = []
    first_of = firsts[:count]
    for row, (start, end) in zip(first_of.tolist(), places[first_of, start_of : start_of + 2].tolist(), strict=True):
        try:
            word = clean(data[start:end].decode())
        except UnicodeDecodeError:
            rows = row
            break
        numbers.append(-1 if word is None else there.setdefault(word, len(there)))
    return Words(np.array([*numbers, -1], np.int32)[codes[:rows]], list(there)), rows


class Shape(NamedTuple):
    """What lines with the same features in the same order share. The arrays are those of `read_lines`."""

    names: list[str]
    literals: Bytes
    ends: Places
    holes: Places

    @classmethod
    def of(cls, line: bytes) -> Shape | None:
        """The shape of a line; None unless it is an event of numbers and text that its bytes identify."""
        if b"\\" in line or b"null" in line:
            return None
        literals: list[bytes] = []
        filled: list[bytes] = []  # the line, with each hole's number in its place
        end = 0
        for token in _TOKEN.finditer(line):
            start, stop = token.span(1) if token[1] is not None else token.span(2)
            if start >= 0:
                literals.append(line[end:start])
                if literals[-1].endswith(b"-"):
                    return None  # "--1" would pass as JSON once its second part is replaced by a number
                filled += [literals[-1], (b'"%d"' if token[1] is not None else b"%d") % (len(literals) - 1)]
                end = stop
        literals.append(line[end:])
        found = _holes(b"".join([*filled, literals[-1]]))
        if found is None or len(found[1]) != len(literals) - 1:
            return None
        names, at_hole = found
        holes = np.array([at_hole[i] for i in range(len(at_hole))], np.int64)
        ends = np.cumsum([len(literal) for literal in literals], dtype=np.int64)
        return cls(names, np.frombuffer(bytearray().join(literals), np.uint8), ends, holes)

    def read(self, data: bytearray, longest: int) -> tuple[Table, int]:
        """The leading whole lines of this shape, each at most `longest` bytes, and where they end."""
        text = np.frombuffer(data, np.uint8)
        shortest = int(self.ends[-1]) + len(self.holes)  # each hole has at least a byte
        lines = min(lines_in(data), len(data) // shortest)  # not blank lines: arrays for them could take gigabytes
        of_texts = [FIRST_TEXT - hole for hole in self.holes.tolist() if hole <= FIRST_TEXT]
        values, places = np.empty((lines, len(self.names) + 2)), np.empty((lines, 3 + 2 * len(of_texts)), np.int64)
        values[:, WEIGHT] = 1.0
        read = read_lines(text, self.literals, self.ends, self.holes, longest, values, places)
        read = _count_good(values[:read], places[:read] if ID in self.holes else None)
        texts: dict[int, Words] = {}
        for k, j in enumerate(of_texts):
            texts[j], read = words_of(data, places[:read], LINE_END + 1 + 2 * k)
        end = int(places[read - 1, LINE_END]) if read else 0
        ids: Texts | None = None
        if ID in self.holes:
            starts = places[:read, 0]
            ids = Texts.within(text, starts, places[:read, 1] - starts)
        labels, weights = values[:read, LABEL].astype(np.uint8), np.ascontiguousarray(values[:read, WEIGHT])
        numbers, present = np.ascontiguousarray(values[:read, :LABEL]), None
        if np.isnan(numbers).any():
            present = ~np.isnan(numbers)
            numbers[~present] = 0.0
        texts = {j: words[:read] for j, words in texts.items()}
        return Table(1, self.names, numbers, present, labels, weights, ids, texts), end


def _count_good(values: Floats, id_places: Places | None) -> int:
    """How many lines come before the first with an invalid label, weight or id, or without any feature."""
    labels, weights = values[:, LABEL], values[:, WEIGHT]
    good = ((labels == 0) | (labels == 1)) & (weights > 0)
    if np.isnan(values).any():
        good &= ~np.isnan(values[:, :LABEL]).all(axis=1)
    if id_places is not None:
        lengths = id_places[:, 1] - id_places[:, 0]
        good &= (lengths > 0) & (lengths <= MAX_ID)
    return len(good) if good.all() else int(good.argmin())


def _holes(filled: bytes) -> tuple[list[str], dict[int, int]] | None:
    """Features by column and the meaning of each hole, from a line with the holes' numbers; None if it is no event."""
    try:
        event: Any = msgspec.json.decode(filled)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(event, dict) or not {"x", "y"} <= event.keys() <= {"x", "y", "id", "weight"}:
        return None
    x, id_ = event["x"], event.get("id", "0")
    by_name = isinstance(x, dict)
    if isinstance(x, list):
        x = {str(i): hole for i, hole in enumerate(x)}
    if not x or not isinstance(x, dict) or not isinstance(id_, str) or not id_.isdecimal():
        return None
    if by_name and not all(map(is_name, x)):  # where it is null, nothing else checks its name
        return None
    pairs = [(event["y"], len(x))]
    for j, hole in enumerate(x.values()):
        pairs.append((int(hole), FIRST_TEXT - j) if by_name and isinstance(hole, str) and hole else (hole, j))
    if "id" in event:
        pairs.append((int(id_), ID))
    if "weight" in event:
        pairs.append((event["weight"], len(x) + 1))
    return (list(x), dict(pairs)) if all(type(hole) is int for hole, _ in pairs) else None
