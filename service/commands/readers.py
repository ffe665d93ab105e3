"""Turns a file's lines into events, with a reader for each kind of file: flat objects, JSON events, libsvm; tables are
in table_reader.py.

A reader turns lines into records, looks at the first, then makes an event of each. `columns` is the result of looking,
and `missing` counts values left out.
"""

from __future__ import annotations

import itertools
import math
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec

from service import errors
from service.commands.cells import is_missing, to_number
from service.commands.columns import (
    MIXED,
    ONLY_ONE,
    Column,
    Kept,
    agreed,
    kind_of_values,
    not_a_number,
)
from service.commands.labels import Labels
from service.commands.terminal import WrongRow, say
from service.decode import event_json
from service.events import Event, Named

SLOW_SECONDS = 2.0
"""After waiting this long for first rows, a message says what is missing."""
MOST_CELLS = 2_000_000
"""Most cells of the first rows: they are all in memory, at 75 bytes each."""
SHOWN_NAMES = 20
_BLANK = b" \t\xef\xbb\xbf"


class Looked:
    """The first rows of a source: for each the line where it begins, and the record.

    look: how many rows; if `bounded`, with at most MOST_CELLS cells together. regular: whether the source is a file,
    whose rows can be read at no cost. Rows of a pipe are only waited for if they are needed.
    """

    def __init__(self, look: int, regular: bool, bounded: bool = False) -> None:
        self.rows: list[tuple[int, Any]] = []
        self.lines: list[bytes] = []
        """Lines that were read before their format was known."""
        self.done = False
        """Whether all first rows were read."""
        self._needed = False
        self._look = look
        self._regular = regular
        self._cells_left = MOST_CELLS if bounded else math.inf

    def read_lines(self, lines: Iterator[bytes]) -> list[bytes]:
        """The first two lines that are not blank, or one if it is JSON. Keeps all that was read."""
        found: list[bytes] = []
        for line in lines:
            self.lines.append(line)
            if line.strip():
                found.append(line)
            if len(found) == 2 or (found[:1] == [line] and line.lstrip(_BLANK).startswith(b"{")):
                break
        return found

    def read_first(self, records: Iterator[tuple[int, Any]]) -> None:
        """Read the first row, needed or not."""
        self.rows.extend(itertools.islice(records, 1))

    def read_rows(self, records: Iterator[tuple[int, Any]], needed: bool) -> None:
        """Read all first rows, if they are `needed` or free to read."""
        self._needed = needed
        if not needed and not self._regular:
            return
        self._cells_left -= sum(_cells(record) for _, record in self.rows)
        while len(self.rows) < self._look and self._cells_left > 0 and (record := next(records, None)):
            self.rows.append(record)
            self._cells_left -= _cells(record[1])
        self.done = True

    def drained(self) -> Iterator[tuple[int, Any]]:
        """The rows; frees each one."""
        self.rows.reverse()
        while self.rows:
            yield self.rows.pop()

    @contextmanager
    def told_of(self) -> Iterator[None]:
        """Say what is being waited for, if it takes long."""
        over = threading.Event()
        threading.Thread(target=self._tell, args=[over], daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def _tell(self, over: threading.Event) -> None:
        if over.wait(SLOW_SECONDS):
            return
        if not self.rows:
            say("waiting for the first row")
        while not self.rows:
            if over.wait(SLOW_SECONDS):
                return
        if self._needed and not self.done:
            fewer = next((few for few in (100, 10) if few < self._look), 1)
            say(f"have read {len(self.rows):,} rows, waiting for {self._look:,}; --look {fewer}")


def _cells(record: Any) -> int:
    """How many cells a row has, or would have."""
    return len(record) // 8 if isinstance(record, bytes) else len(record)


class Reader(Protocol):
    """Reads one kind of file."""

    columns: list[Column]
    missing: int

    def look(self, lines: Iterator[bytes], looked: Looked) -> Iterator[tuple[int, Any]]:
        """Look at the first records, which go into `looked`; return the others."""

    def event(self, record: Any) -> Event | None:
        """The event of a record; None if it has no label."""


class ObjectReader:
    """NDJSON of flat objects. Flags and the model decide a value's kind, else JSON does."""

    def __init__(self, file: str, label: str, asked: Mapping[str, str], kept: Kept, labels: Labels) -> None:
        self.columns: list[Column] = []
        self.missing = 0
        self._file = file
        self._label = label
        self._known = agreed(asked, kept)
        self._labels = labels
        self._kinds: dict[str, str] = {}

    def look(self, lines: Iterator[bytes], looked: Looked) -> Iterator[tuple[int, Any]]:
        records = self._objects(lines)
        looked.read_rows(records, needed=True)
        values: dict[str, list[Any]] = {name: [] for name in self._known}
        for _, row in looked.rows:
            for name, value in row.items():
                if value is not None:
                    values.setdefault(name, []).append(value)
        values.pop(self._label, None)
        for name, there in values.items():
            kind, why = self._known[name] if name in self._known else kind_of_values(name, there)
            example = _text(there[0]) if there else ""
            self.columns.append(Column(name, 0, kind, why, example, len(looked.rows) - len(there)))
        self._kinds = {column.name: column.kind for column in self.columns if column.kind != MIXED}
        return records

    def _objects(self, lines: Iterator[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
        for line, data in numbered(lines):
            try:
                found = msgspec.json.decode(data)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise WrongRow(f"it is not JSON: {error}{_about_json(data)}", line) from None
            if not isinstance(found, dict):
                raise WrongRow("it is not a JSON object", line)
            yield line, found

    def event(self, record: dict[str, Any]) -> Event | None:
        if self._label not in record:
            raise WrongRow(f"it has no {self._label!r}")
        y = self._labels.read(record[self._label])
        if y is None:
            return None
        event = Event({}, y)
        for name, kind in self._kinds.items():
            if kind in ONLY_ONE and record.get(name) is None:
                raise WrongRow(f"it has no {kind}")
        for name, value in record.items():
            if name != self._label:
                self._add(event, name, value)
        return event

    def _add(self, event: Event, name: str, value: Any) -> None:
        """Add a value to the event, by its kind."""
        kind = self._kinds.get(name)
        if kind == "ignore":
            return
        if kind == "id":
            event.id = id_of(_text(value))
        elif kind == "weight":
            event.weight = weight_of(_text(value))
        elif value is None or (kind == "number" and isinstance(value, str) and is_missing(value)):
            self.missing += 1
        elif not isinstance(value, float | int | str):
            raise WrongRow(f"{name}: must be a number, a string, true, false or null{self._advice(name)}")
        else:
            event.x[name] = self._as_kind(kind, name, value)  # type: ignore[call-overload]  # it is a dict

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

    def look(self, lines: Iterator[bytes], looked: Looked) -> Iterator[tuple[int, Any]]:
        records = numbered(lines)
        looked.read_rows(records, needed=False)
        return records


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


def numbered(lines: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, from 1, without blank ones and a byte order mark."""
    for number, line in enumerate(lines, 1):
        content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if content.strip():
            yield number, content


def _about_json(data: bytes) -> str:
    """Advice for a line that is not JSON."""
    if re.search(rb"[:\[,]\s*-?(NaN|Infinity)\b", data):
        return "; JSON has no NaN or Infinity: write null if there is no number"
    return "; each line must be one object: `jq -c . OLD > NEW` joins objects that span lines"


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
    if value is None or value <= 0:
        raise WrongRow(f"its weight {cell!r} is not a number above 0")
    return value


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(name or "(no name)" for name in names[:SHOWN_NAMES]) + more
