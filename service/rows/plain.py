"""Reads the plain rows of a table at once: lines of CSV -> arrays.

A row is plain if it has a cell for each column, quotes only around whole cells, and in number columns numbers as JSON
writes them, or nothing. A kernel reads such rows, at about a nanosecond a byte, and each different text of a column is
decoded once. The kernel stops at the first row that is not plain. That row is read cell by cell, in records.py and
tables.py, which also name its errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from core.builder import Words
from core.compiled import compiled
from core.features import is_name
from core.logistic import Floats
from service.decode.lines import Places, read_number, words_of
from service.decode.text import lines_in
from service.events import is_id
from service.rows.cells import SPACES, is_missing, read_text
from service.rows.columns import Column
from service.rows.records import DELIMITERS, Dialect
from service.table import Table
from service.texts import Bytes, Texts

ROW_END = 0
"""Index of a row's end in `places`. Start and end of each cell follow."""
_IGNORED = -2
_TEXT = -1
"""What a column is in the kernel: ignored, text, or the index of its number."""
_DIGITS = 15
"""Most digits before the point of a number; with more, the cell is a code."""
_LONGEST_WORD = 4


def _packed(word: str) -> int:
    return int.from_bytes(word.encode(), "big")


_MISSING = np.array([_packed(word) for word in ("", "na", "n/a", "nan", "null", "?", "\\n")], np.int64)
"""cells.MISSING, each as one number."""


@compiled("boolean(uint8[::1], int64, int64, int64[::1])")
def _is_missing(text: Bytes, at: int, end: int, missing: Places) -> bool:
    """Whether a cell is one of the `missing` words, in any case."""
    if end - at > _LONGEST_WORD:
        return False
    word = np.int64(0)
    for k in range(at, end):
        byte = np.int64(text[k])
        word = word << 8 | (byte + 32 if 65 <= byte <= 90 else byte)
    found = False
    for known in missing:
        found |= word == known
    return found


@compiled("Tuple((int64, int64, int64))(uint8[::1], int64, int64, uint8, boolean)")
def _cell(text: Bytes, at: int, size: int, delimiter: np.uint8, quoted: bool) -> tuple[int, int, int]:
    """Start and end of the cell at `at`, without spaces and quotes around it, and the position of what ends it; -1
    unless that is a delimiter or the end of a line."""
    while at < size and text[at] == 32:
        at += 1
    if quoted and at < size and text[at] == 34:
        start = at = at + 1
        while at < size and text[at] != 34 and text[at] != 10 and text[at] != 13:
            at += 1
        end = at
        if at == size or text[at] != 34:
            return 0, 0, -1
        at += 1
        while at < size and text[at] == 32:
            at += 1
        while start < end and text[start] == 32:
            start += 1
    else:
        start = at
        while at < size and text[at] != delimiter and text[at] != 10 and text[at] != 13 and text[at] != 34:
            at += 1
        end = at
    while end > start and text[end - 1] == 32:
        end -= 1
    good = at < size and (text[at] == delimiter or text[at] == 10 or text[at] == 13)
    return start, end, at if good else -1


@compiled("float64(uint8[::1], int64, int64, int64[::1])")
def _number(text: Bytes, at: int, end: int, missing: Places) -> float:
    """The number in a cell, NaN if it is missing, infinity if it is not plain."""
    value, last = read_number(text, at, end)
    if np.isfinite(value) and last == end:
        point = at + 1 if text[at] == 45 else at
        while point < end and text[point] != 46 and text[point] != 101 and text[point] != 69:
            point += 1
        return value if point - at <= _DIGITS else np.inf
    return np.nan if _is_missing(text, at, end, missing) else np.inf


@compiled("int64(uint8[::1], uint8, boolean, int64[::1], int64[::1], float64[:, ::1], int64[:, ::1])")
def _read_rows(
    text: Bytes, delimiter: np.uint8, quoted: bool, kinds: Places, missing: Places, values: Floats, places: Places
) -> int:
    """Read the first rows of a text while they are plain. Returns how many.

    kinds: for each column the index of its number in a row of `values`, or _TEXT or _IGNORED. values, places: filled
    in, one row per line. `places`: the position after the line feed, then start and end of each cell.
    """
    at, size, last = 0, len(text), len(kinds) - 1
    for row in range(len(values)):
        for column in range(len(kinds)):
            start, end, at = _cell(text, at, size, delimiter, quoted)
            if at < 0 or (text[at] == delimiter) == (column == last):
                return row
            places[row, 1 + 2 * column], places[row, 2 + 2 * column] = start, end
            if kinds[column] >= 0:
                value = _number(text, start, end, missing)
                if np.isinf(value):
                    return row
                values[row, kinds[column]] = value
            at += column < last
        at += text[at] == 13
        if at == size or text[at] != 10:
            return row
        at = places[row, ROW_END] = at + 1
    return len(values)


class Cells(NamedTuple):
    """Plain rows: as a table, and where their cells are in the text.

    labels: the labels as they are written. data: the text. places: where each row ends, then start and end of each of
    its cells. features, weight: the columns of the table's features, and that of the weight, -1 for none.
    """

    table: Table
    labels: Words
    data: bytearray
    places: Places
    features: list[int]
    weight: int

    @property
    def end(self) -> int:
        """Where the rows end in the text."""
        return int(self.places[-1, ROW_END]) if len(self.places) else 0


@dataclass(frozen=True, slots=True)
class Plain:
    """How the plain rows of a table are read."""

    dialect: Dialect
    columns: Sequence[Column]
    labels: Callable[[Words], npt.NDArray[np.uint8]]
    """The first labels of a column of text; see Labels.known."""

    @classmethod
    def of(
        cls, dialect: Dialect, columns: Sequence[Column], labels: Callable[[Words], npt.NDArray[np.uint8]]
    ) -> Plain | None:
        """None if rows with these columns must be read one by one."""
        good = len(columns) > 1 and dialect.delimiter in DELIMITERS and any(c.kind == "label" for c in columns)
        named = all(is_name(column.name) for column in columns if column.kind in ("number", "text"))
        return cls(dialect, columns, labels) if good and named else None

    def _places(self, *kinds: str) -> list[int]:
        return [place for place, column in enumerate(self.columns) if column.kind in kinds]

    def read(self, data: bytearray) -> Cells:
        """The leading plain rows of whole lines."""
        features, weight, id_ = self._places("number", "text"), self._places("weight"), self._places("id")
        texts = {j: place for j, place in enumerate(features) if self.columns[place].kind == "text"}
        kinds = np.full(len(self.columns), _IGNORED)
        kinds[features + weight] = np.arange(len(features + weight))
        kinds[[*texts.values(), *id_, *self._places("label")]] = _TEXT
        rows = min(lines_in(data), len(data) // len(self.columns))  # a row has a byte for each column, at least
        values, places = np.empty((rows, len(features + weight))), np.empty((rows, 1 + 2 * len(kinds)), np.int64)
        values[:, list(texts)] = 1.0
        delimiter = np.uint8(ord(self.dialect.delimiter or ","))
        text = np.frombuffer(data, np.uint8)
        rows = _read_rows(text, delimiter, self.dialect.quoted, kinds, _MISSING, values, places)
        rows = _that_are_text(data, places[:rows])
        words: dict[int, Words] = {}
        for j, place in texts.items():
            words[j], rows = words_of(data, places[:rows], 1 + 2 * place, _clean)
            values[:rows, j] = np.where(words[j].codes < 0, np.nan, 1.0)
        rows = _with_features(values[:rows, : len(features)])
        if weight:
            rows = _leading(values[:rows, -1] > 0)
        ids: Texts | None = None
        if id_:
            ids = Texts.of(_ids(data, places[:rows, 1 + 2 * id_[0] : 3 + 2 * id_[0]]))
            rows = len(ids)
        (label,) = self._places("label")
        of_label, _ = words_of(data, places[:rows], 1 + 2 * label, _stripped)
        labels = self.labels(of_label)
        rows = len(labels)
        numbers, present = np.ascontiguousarray(values[:rows, : len(features)]), None
        if np.isnan(numbers).any():
            present = ~np.isnan(numbers)
            numbers[~present] = 0.0
        table = Table(
            1,
            [self.columns[place].name for place in features],
            numbers,
            present,
            labels,
            np.ascontiguousarray(values[:rows, -1]) if weight else None,
            None if ids is None else ids[:rows],
            {j: text[:rows] for j, text in words.items()},
        )
        return Cells(table, of_label[:rows], data, places[:rows], features, weight[0] if weight else -1)


def _leading(good: Any) -> int:
    """How many come before the first that is not good."""
    return len(good) if good.all() else int(good.argmin())


def _with_features(values: Floats) -> int:
    """How many rows come before the first without any feature."""
    absent = np.isnan(values)
    return len(values) if not absent.any() else _leading(~absent.all(axis=1))


def _that_are_text(data: bytearray, places: Places) -> int:
    """How many of the rows come before the first that is not UTF-8."""
    end = int(places[-1, ROW_END]) if len(places) else 0
    try:
        data[:end].decode()
    except UnicodeDecodeError as error:
        return int(np.searchsorted(places[:, ROW_END], error.start, "right"))
    return len(places)


def _ids(data: bytearray, places: Places) -> list[str]:
    """The ids before the first that is not valid."""
    ids: list[str] = []
    for start, end in places.tolist():
        id_ = data[start:end].decode().strip(SPACES)
        if not is_id(id_) or is_missing(id_):
            break
        ids.append(id_)
    return ids


def _stripped(cell: str) -> str:
    return cell.strip(SPACES)


def _clean(cell: str) -> str | None:
    return read_text(cell.strip(SPACES))
