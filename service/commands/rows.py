"""Rows of a file as events: one by one, or a block of them that was read at once.

A block becomes NDJSON without an object for each row, which would take ten times as long. Its numbers are sent as they
are written in the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, overload

import msgspec
import numpy as np
import numpy.typing as npt

from core.batch import Mask
from core.compiled import compiled, part_of_kernels
from core.features import MAX_NAME
from service.decode.lines import Places
from service.events import Event
from service.rows.cells import LARGEST
from service.rows.plain import Cells
from service.texts import Bytes

PIECE_CELLS = 2**18
"""Most cells that are sent at once, whatever the number of rows: wide rows would fill the memory."""


class Row(NamedTuple):
    """An event of a file: its number among the rows, from 1, and the line where it begins, from 1."""

    number: int
    line: int
    event: Event


class Block(Sequence[Row]):
    """Rows that follow each other; each is made when somebody looks at it. number, line: those of the first row."""

    def __init__(self, cells: Cells, number: int, line: int) -> None:
        self._cells, self._number, self._line = cells, number, line
        self._prefix: str | None = None
        self.lines = b""
        """The events as NDJSON, once they have been identified."""

    def __len__(self) -> int:
        return len(self._cells.table)

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> list[Row]: ...
    def __getitem__(self, place: int | slice) -> Row | list[Row]:
        if isinstance(place, slice):
            return [self[i] for i in range(len(self))[place]]
        i = range(len(self))[place]
        (item,) = self._cells.table.events(i, i + 1)
        assert isinstance(item, Event)  # noqa: S101  # a plain row has features
        own = self._cells.table.ids
        item.id = None if self._prefix is None else f"{self._prefix}:{self._number + i}" if own is None else own[i]
        return Row(self._number + i, self._line + i, item)

    def may_be_refused(self) -> bool:
        """Whether `check_events` might refuse a row."""
        table = self._cells.table
        words = (word for text in table.texts.values() for word in text.words)
        return (
            float(np.abs(table.values).max(initial=0.0)) > LARGEST
            or any("=" in name for name in table.names)  # `{"a=b": 1, "a": "b"}` has one feature twice
            or any(len(word) > MAX_NAME or "\0" in word for word in words)
        )

    def identify(self, prefix: str | None) -> None:
        """Give the rows their own ids, or the prefix, a colon and their numbers. None: no ids."""
        self._prefix = prefix
        self.lines = self._written()

    def _written(self) -> bytes:
        table, line = self._cells.table, _Line()
        assert table.labels is not None  # noqa: S101  # each row has one
        for j, (name, place) in enumerate(zip(table.names, self._cells.features, strict=True)):
            before = (b'{"x":{%b:' if j == 0 else b",%b:") % _json(name)
            if (text := table.texts.get(j)) is not None:
                line.put_words(before, map(_json, text.words), text.codes)
            else:
                line.put(before, place)
        line.put_words(b'},"y":', [b"0", b"1"], table.labels)
        if self._cells.weight >= 0:
            line.put(b',"weight":', self._cells.weight)
        if self._prefix is None:
            return line.filled(self._cells, 0, b"}\n")
        if table.ids is None:
            line.put(b',"id":%b:' % _json(self._prefix)[:-1], _NUMBER)
            return line.filled(self._cells, self._number, b'"}\n')
        line.put_words(b',"id":', map(_json, table.ids), np.arange(len(table)))
        return line.filled(self._cells, 0, b"}\n")


_json = msgspec.json.encode
_NUMBER = -1
"""What stands in a hole: the row's number; or a cell, by its column; or, below this, a word by the row's code."""
_NULL = 0
"""The word for a cell that is missing."""


class _Line:
    """A line as literals with a hole after each, and what stands there in each row."""

    def __init__(self) -> None:
        self._words: list[bytes] = [b"null"]
        self._codes: list[npt.NDArray[np.int64]] = []
        self._literals: list[bytes] = []
        self._holes: list[int] = []

    def put(self, literal: bytes, hole: int) -> None:
        """Put a literal and a hole."""
        self._literals.append(literal)
        self._holes.append(hole)

    def put_words(self, literal: bytes, words: Iterable[bytes], codes: npt.NDArray[Any]) -> None:
        """Put a literal and a hole for one of these words, by each row's code."""
        self._codes.append(codes.astype(np.int64) + len(self._words))
        self._words += words
        self.put(literal, _NUMBER - len(self._codes))

    def filled(self, cells: Cells, number: int, end: bytes) -> bytes:
        """The lines, each with this end; the first row has this number."""
        present = np.ones((0, 0), np.bool_) if cells.table.present is None else cells.table.present
        literals = [*self._literals, end]
        fixed = (
            np.frombuffer(cells.data, np.uint8), cells.places, np.ascontiguousarray(present),
            *_joined(self._words), *_joined(literals), np.array(self._holes, np.int64), np.stack(self._codes), number,
        )  # fmt: skip
        lines = np.empty(_fill(*fixed, np.empty(0, np.uint8)), np.uint8)
        _fill(*fixed, lines)
        return lines.tobytes()


def _joined(texts: Sequence[bytes]) -> tuple[Bytes, Places]:
    """Texts as one, and where each starts, and at last where the last ends."""
    return np.frombuffer(bytearray().join(texts), np.uint8), np.cumsum([0, *map(len, texts)], dtype=np.int64)


@part_of_kernels
def _write_text(text: Bytes, start: int, end: int, lines: Bytes, at: int) -> int:
    """Write a part of a text, if there is room for lines at all. Returns where it ends."""
    if len(lines) > 0:
        for k in range(end - start):
            lines[np.uint64(at + k)] = text[np.uint64(start + k)]
    return at + end - start


@part_of_kernels
def _write_number(number: int, lines: Bytes, at: int) -> int:
    """The same for a number of at least 0."""
    left, digits = number, 1
    while left >= 10:
        left //= 10
        digits += 1
    if len(lines) > 0:
        for k in range(digits):
            lines[np.uint64(at + digits - 1 - k)] = 48 + number % 10
            number //= 10
    return at + digits


@compiled(
    "int64(uint8[::1], int64[:, ::1], boolean[:, ::1], uint8[::1], int64[::1], uint8[::1], int64[::1], int64[::1], "
    "int64[:, ::1], int64, uint8[::1])"
)
def _fill(
    data: Bytes, places: Places, present: Mask, words: Bytes, of_words: Places, literals: Bytes, of_literals: Places,
    holes: Places, codes: Places, number: int, lines: Bytes,
) -> int:  # fmt: skip
    """Write a line for each row: each literal and what stands in the hole after it, then the last literal. Returns the
    size. Writes nothing if there is no room at all."""
    at, last = 0, len(holes)
    for i in range(len(places)):
        for hole in range(last):
            at = _write_text(literals, of_literals[hole], of_literals[hole + 1], lines, at)
            what = holes[hole]
            if len(present) > 0 and hole < present.shape[1] and not present[i, hole]:
                at = _write_text(words, of_words[_NULL], of_words[_NULL + 1], lines, at)
            elif what >= 0:
                at = _write_text(data, places[i, 1 + 2 * what], places[i, 2 + 2 * what], lines, at)
            elif what == _NUMBER:
                at = _write_number(number + i, lines, at)
            else:
                code = codes[_NUMBER - 1 - what, i]
                at = _write_text(words, of_words[code], of_words[code + 1], lines, at)
        at = _write_text(literals, of_literals[last], of_literals[last + 1], lines, at)
    return at
