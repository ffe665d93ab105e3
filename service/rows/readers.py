"""Turns the lines of a file or body into events, with a reader for each format: flat objects, JSON events, libsvm;
tables are in tables.py.

A reader turns lines into records, looks at the first, then makes an event of each.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from service import errors
from service.decode import event_json
from service.events import Event, Named, Question
from service.rows.cells import is_missing, to_number
from service.rows.columns import MIXED, ONLY_ONE, Column, Kept, agreed, kind_of_values, not_a_number, of_few
from service.rows.labels import Labels
from service.rows.wrong import WrongRow

MOST_CELLS = 2_000_000
"""Most cells of the first rows: they are all in memory, at 75 bytes each."""
MOST_BYTES = 2**24
"""Most bytes of their text."""
SHOWN_NAMES = 20
_INDEX = "the index of a data frame; --number {0} or --text {0} keeps it"

Records = Iterator[tuple[int, Any]]
"""Rows, each with the line where it begins."""


class Looked:
    """The first rows of a source.

    look: how many rows; if `bounded`, with at most MOST_CELLS and MOST_BYTES together. regular: whether the source is a
    file, whose rows can be read at no cost. Rows of a pipe are only waited for if they are needed.
    """

    def __init__(self, look: int, regular: bool, bounded: bool = False) -> None:
        self.look = look
        self.rows: list[tuple[int, Any]] = []
        self.lines: list[bytes] = []
        """The lines that were read for them, if the source is a file."""
        self.needed = False
        """Whether the kinds of columns depend on them."""
        self.done = False
        """Whether all were read."""
        self._regular = regular
        self._cells_left = MOST_CELLS if bounded else math.inf
        self._bytes_left = MOST_BYTES if bounded else math.inf

    def counted(self, lines: Iterator[bytes]) -> Iterator[bytes]:
        """The lines, while their bytes are counted."""
        for line in lines:
            self._bytes_left -= len(line)
            if self._regular:
                self.lines.append(line)
            yield line

    def read_first(self, records: Records) -> None:
        """Read the first row, needed or not."""
        for line, record in itertools.islice(records, 1):
            self._add(line, record)

    def read_rows(self, records: Records, needed: bool) -> None:
        """Read all first rows, if they are `needed` or free to read."""
        self.needed = needed
        if not needed and not self._regular:
            return
        while len(self.rows) < self.look and min(self._cells_left, self._bytes_left) > 0:
            found = next(records, None)
            if found is None:
                break
            self._add(*found)
        self.done = True

    def _add(self, line: int, record: Any) -> None:
        self.rows.append((line, record))
        self._cells_left -= len(record) // 8 if isinstance(record, bytes) else len(record)

    def drained(self) -> Records:
        """The rows; frees each one."""
        self.rows.reverse()
        while self.rows:
            yield self.rows.pop()


class Reader(Protocol):
    """Reads one format. columns: the result of looking. missing: values left out so far."""

    columns: list[Column]
    missing: int

    def begin(self, lines: Iterator[bytes]) -> bool:
        """Read what comes before the first record. Returns whether the kinds of columns depend on records."""

    def look(self, lines: Iterator[bytes], looked: Looked) -> None:
        """Look at the first records, which go into `looked`."""

    def records(self, lines: Iterator[bytes]) -> Records:
        """The records in the next lines."""

    def event(self, record: Any) -> Event | None:
        """The event of a record; None if it has no label."""

    def question(self, record: Any) -> Question:
        """What to predict from a record. Only records with columns are questions."""


class ObjectReader:
    """NDJSON of flat objects. Flags and the model decide a value's kind, else JSON does. label: None to predict from
    objects without one. index: the names that were a data frame's index; left out unless flags or the model name them.
    """

    def __init__(
        self, label: str | None, asked: Mapping[str, str], kept: Kept, labels: Labels, index: Sequence[str] = ()
    ) -> None:
        self.columns: list[Column] = []
        self.missing = 0
        self._label = label
        self._known = agreed(asked, kept)
        self._index = [name for name in index if name not in self._known]
        self._labels = labels
        self._kinds: dict[str, str] = {}
        self._read = 0

    def begin(self, lines: Iterator[bytes]) -> bool:
        return True

    def look(self, lines: Iterator[bytes], looked: Looked) -> None:
        looked.read_rows(self.records(looked.counted(lines)), needed=True)
        self._known |= {name: ("ignore", _INDEX.format(name)) for name in self._index}
        values: dict[str, list[Any]] = {name: [] for name in self._known}
        for _, row in looked.rows:
            for name, value in row.items():
                if value is not None:
                    values.setdefault(name, []).append(value)
        values.pop(self._label or "", None)
        for name, there in values.items():
            kind, why = self._known[name] if name in self._known else kind_of_values(name, there)
            tell = name in self._index
            if kind == "text" and name not in self._known:
                # A name that is new to the model may be one that objects often lack.
                kind, why, tell = of_few(name, kind, why, len(there), len(set(map(_text, there))), new=False)
            example = _text(there[0]) if there else ""
            self.columns.append(Column(name, 0, kind, why, example, len(looked.rows) - len(there), tell))
        self._kinds = {column.name: column.kind for column in self.columns if column.kind != MIXED}

    def records(self, lines: Iterator[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
        for data in lines:
            self._read += 1
            if not data.strip():
                continue
            try:
                found = msgspec.json.decode(data.removeprefix(BOM) if self._read == 1 else data)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise WrongRow(f"it is not JSON: {error}{_about_json(data)}", self._read) from None
            if not isinstance(found, dict):
                raise WrongRow("it is not a JSON object", self._read)
            yield self._read, found

    def event(self, record: dict[str, Any]) -> Event | None:
        if self._label not in record:
            raise WrongRow(f"it has no {self._label!r}")
        y = self._labels.read(record[self._label])
        if y is None:
            return None
        for name, kind in self._kinds.items():
            if kind in ONLY_ONE and record.get(name) is None:
                raise WrongRow(f"it has no {kind}")
        event = Event({}, y)
        event.id, event.weight = self._read_into(event.x, record)  # type: ignore[arg-type]  # it is a dict
        return event

    def question(self, record: dict[str, Any]) -> Question:
        x: Named = {}
        id_, _ = self._read_into(x, record)
        return Question(x, id_)

    def _read_into(self, x: Named, record: dict[str, Any]) -> tuple[str | None, float]:
        """Add a record's features to x; returns its id and weight."""
        id_, weight = None, 1.0
        for name, value in record.items():
            kind = self._kinds.get(name)
            if name == self._label or kind == "ignore":
                continue
            if kind == "id":
                if isinstance(value, bool | float):
                    raise WrongRow(f"its id {_text(value)} is neither text nor a whole number")
                if not (id_ := _text(value)):
                    raise WrongRow("it has no id")
            elif kind == "weight":
                weight = weight_of(_text(value))
            elif value is None or (kind == "number" and isinstance(value, str) and is_missing(value)):
                self.missing += 1
            elif not isinstance(value, float | int | str):
                raise WrongRow(f"{name}: must be a number, a string, true, false or null{self._advice(name)}")
            else:
                x[name] = self._as_kind(kind, name, value)
        return id_, weight

    def _advice(self, name: str) -> str:
        """Advice for an object or list inside an object."""
        if name == "x" and self._label == "y":
            return '; {"x": ..., "y": ...} is already an event: leave out --label'
        return f"; --ignore {name} leaves it out, or jq can flatten nested objects"

    def _as_kind(self, kind: str | None, name: str, value: float | bool | str) -> float | bool | str:
        if kind == "text":
            return _text(value)
        if kind == "number" and isinstance(value, str):
            number = to_number(value.strip())
            if number is None:
                why = self._known[name][1] if name in self._known else "so far"
                raise WrongRow(not_a_number(name, value, f"has numbers ({why})"))
            return number
        return value


class _LineReader:
    """A file with an event in each line, and no columns."""

    def __init__(self, labels: Labels) -> None:
        self.columns: list[Column] = []
        self.missing = 0
        self._labels = labels
        self._read = 0

    def begin(self, lines: Iterator[bytes]) -> bool:
        return False

    def look(self, lines: Iterator[bytes], looked: Looked) -> None:
        looked.read_rows(self.records(looked.counted(lines)), needed=False)

    def records(self, lines: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
        for line in lines:
            self._read += 1
            content = line.removeprefix(BOM) if self._read == 1 else line
            if content.strip():
                yield self._read, content

    def question(self, record: bytes) -> Question:
        raise TypeError("these records have no columns")


class EventReader(_LineReader):
    """NDJSON of events for `/learn`: {"x": {...}, "y": 1}."""

    def event(self, record: bytes) -> Event | None:
        try:
            return event_json.decode_event(record)
        except errors.LogstepError as error:
            if _has_no_label(record):
                self._labels.missing += 1
                return None
            hint = "; if the label is among the features, name it with --label"
            raise WrongRow(str(error).replace("The body is", "it is").rstrip(".") + hint) from None


class LibsvmReader(_LineReader):
    """libsvm without comments: the label, then index:value."""

    def event(self, record: bytes) -> Event | None:
        label, *features = record.decode().split()
        y = self._labels.read(label)
        if y is None:
            return None
        x: Named = {}
        for feature in features:
            index, _, text = feature.partition(":")
            value = to_number(text)
            if not (index.isascii() and index.isdecimal()) or (value is None and not is_missing(text)) or not text:
                raise WrongRow(f"{feature!r} is not index:value, as libsvm needs after the label")
            if index in x:
                raise WrongRow(f"it has the index {index} twice")
            if value is None:
                self.missing += 1
            else:
                x[index] = value
        return Event(x, y)


BOM = b"\xef\xbb\xbf"
ONE_OBJECT = "; each line must be one object: `jq -c . OLD > NEW` joins objects that span lines"
"""Advice for files."""


def _about_json(data: bytes) -> str:
    """Advice for a line that is not JSON."""
    if re.search(rb"[:\[,]\s*-?(NaN|Infinity)\b", data):
        return "; JSON has no NaN or Infinity: write null if there is no number"
    return ONE_OBJECT


def _has_no_label(record: bytes) -> bool:
    """Whether an event's only error is that its label is null."""
    try:
        found = msgspec.json.decode(record)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return isinstance(found, dict) and "y" in found and found["y"] is None and "x" in found


def _text(value: object) -> str:
    """A JSON value as text: true, 17, France; "" for null."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def id_of(cell: str) -> str:
    if is_missing(cell):
        raise WrongRow("it has no id")
    return cell


def weight_of(cell: str) -> float:
    value = to_number(cell.strip())
    if value is None or value < 0:
        raise WrongRow(f"its weight {cell!r} is not a number, 0 or more")
    return value


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(name or "(no name)" for name in names[:SHOWN_NAMES]) + more
