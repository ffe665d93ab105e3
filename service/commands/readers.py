"""Turns a file's lines into events, with a reader for each kind of file: tables, flat objects, JSON events, libsvm.

A reader turns lines into records, looks at the first, then makes an event of each. `columns` is the result of looking,
and `missing` counts values left out.
"""

from __future__ import annotations

import itertools
import math
import operator
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec

from service import errors
from service.commands.cells import MISSING, is_missing, read_number, read_numbers, read_text, to_number
from service.commands.columns import (
    INDEX,
    MIXED,
    ONLY_ONE,
    Column,
    Kept,
    agreed,
    kind_of_values,
    looks_like_data,
    not_a_number,
    told,
    worked_out,
)
from service.commands.labels import Labels
from service.commands.tables import Dialect, Records
from service.commands.terminal import WrongRow, WrongUsage, say
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


class TableReader:
    """CSV, TSV and similar files. label: the column's name, or its number from 1. header: whether the first line is a
    header; None checks that it looks like one."""

    def __init__(
        self,
        file: str,
        label: str | int,
        header: bool | None,
        asked: Mapping[str, str],
        kept: Kept,
        labels: Labels,
        dialect: Dialect,
        skip: int,
    ) -> None:
        self.columns: list[Column] = []
        self.missing = 0
        self._file = file
        self._label = label
        self._header = header
        self._asked = asked
        self._kept = kept
        self._known = agreed(asked, kept)
        self._labels = labels
        self._dialect = dialect
        self._skip = skip
        self._names: list[str] = []
        """The header's cells, which are not a row; empty without a header."""
        self._width = 0
        self._label_place = 0
        self._id_place, self._weight_place = -1, -1
        self._features = self._numbers = self._texts = _Cells([])

    def look(self, lines: Iterator[bytes], looked: Looked) -> Iterator[tuple[int, Any]]:
        records: Iterator[tuple[int, list[str]]] = Records(lines, self._dialect, self._skip, self._notice)
        top = next(records, None)
        if top is None:
            raise WrongUsage(f"{self._file} is empty")
        names = top[1]
        if self._header is False:
            records = itertools.chain([top], records)
            names = [str(number) for number in range(1, len(names) + 1)]
        looked.read_first(records)
        places = [place for place, name in enumerate(names) if name and name not in self._known]
        looked.read_rows(records, needed=any(not self._is_label(place, names) for place in places))
        if self._header is None and looks_like_data(names, looked.rows, self._named_place(names)):
            shown = ", ".join(repr(name[:24]) for name in names[:5])
            raise WrongRow(
                f"looks like a row, not a header: {shown}. With --no-header it is the first row, the columns are 1, 2, "
                "..., and --label-column N gives the label. With --header it names the columns",
                top[0],
            )
        if not looked.rows:
            raise WrongUsage(f"{self._file} has a header but no rows")
        self._names = names if self._header is not False else []
        names, unnamed = self._widened(names, looked.rows)
        self._width = len(names)
        self._label_place = self._place_of_label(names)
        self._check_names(names, unnamed)
        self._check_known(names)
        for line, cells in looked.rows:
            self._check_row(cells, line)
        self._check_new(names, unnamed)
        self.columns = [self._column(name, place, unnamed, looked.rows) for place, name in enumerate(names)]
        self._set_places()
        return records

    def event(self, record: Sequence[str]) -> Event | None:
        if len(record) != self._width or record == self._names:
            self._check_row(record)
        y = self._labels.read(record[self._label_place])
        if y is None:
            return None
        id_ = None if self._id_place < 0 else _id(record[self._id_place])
        weight = 1.0 if self._weight_place < 0 else _weight(record[self._weight_place])
        # Most rows have no missing cells. Reading them at once takes half the time of reading cell by cell.
        numbers, texts = read_numbers(self._numbers.of(record)), self._texts.of(record)
        x: Named
        if numbers is None or not MISSING.isdisjoint(map(str.lower, texts)):
            x = dict(self._values(record))
            self.missing += len(self._features.names) - len(x)
        elif texts:
            x = dict(zip(self._features.names, self._features.of(record), strict=True))  # for the order of the columns
            x.update(zip(self._numbers.names, numbers, strict=True))
        else:
            x = dict(zip(self._numbers.names, numbers, strict=True))
        return Event(x, y, id_, weight)

    def _values(self, record: Sequence[str]) -> Iterator[tuple[str, float | str]]:
        """The names and values of a row's features, cell by cell, without missing ones."""
        for column in self.columns:
            if column.kind in ("number", "text"):
                cell = record[column.place]
                try:
                    value = read_number(cell) if column.kind == "number" else read_text(cell)
                except WrongRow:
                    why = self._known[column.name][1] if column.name in self._known else "so far"
                    raise WrongRow(not_a_number(column.name, cell, f"has numbers ({why})")) from None
                if value is not None:
                    yield column.name, value

    # -- the header

    def _notice(self, line: int, what: str) -> None:
        say(f"{self._file} line {line}: {what}")

    def _is_label(self, place: int, names: Sequence[str]) -> bool:
        return self._label in (place + 1, names[place])

    def _named_place(self, names: Sequence[str]) -> int | None:
        """The label's place, if it is given by name."""
        return names.index(self._label) if isinstance(self._label, str) and self._label in names else None

    def _widened(self, names: list[str], rows: Sequence[tuple[int, list[str]]]) -> tuple[list[str], dict[int, str]]:
        """The names of all columns, and why unnamed ones are left out."""
        unnamed: dict[int, str] = {}
        if rows and len(rows[0][1]) == len(names) + 1:
            firsts = [cells[0] for _, cells in rows]
            if all(not cells[-1] for _, cells in rows):
                names = [*names, ""]
            elif len(set(firsts)) == len(firsts):  # else they are not row names; perhaps numbers contain commas
                names = ["", *names]
                unnamed[0] = "row names without a header cell, as R writes them"
        for place in itertools.takewhile(lambda place: not names[place], range(len(names))):
            unnamed.setdefault(place, "an unnamed index, as pandas writes it")
        last = len(names) - 1
        if not names[last] and all(not cells[last] for _, cells in rows if len(cells) == len(names)):
            unnamed[last] = "it is empty and has no name"
        return names, unnamed

    def _place_of_label(self, names: Sequence[str]) -> int:
        if isinstance(self._label, int):
            if self._label > len(names):
                raise WrongUsage(
                    f"{self._file} has only {len(names)} columns: --label-column {self._label} is too large"
                )
            return self._label - 1
        return self._place(names, self._label)

    def _place(self, names: Sequence[str], column: str) -> int:
        if column not in names:
            hint = "; if its first line is a row, use --no-header and --label-column N" if self._header is None else ""
            raise WrongUsage(f"{self._file} has no column {column!r}; it has {_listed(names)}{hint}")
        return names.index(column)

    def _check_names(self, names: Sequence[str], unnamed: Mapping[int, str]) -> None:
        hint = "; if the first line is a row, use --no-header and --label-column N" if self._header is None else ""
        for place, name in enumerate(names):
            if not name and place not in unnamed:
                raise WrongUsage(f"{self._file}: column {place + 1} has no name in the header{hint}")
            if name and names.index(name) < place:
                raise WrongUsage(f"{self._file}: two columns have the name {name!r}: rename one of them{hint}")

    def _check_known(self, names: Sequence[str]) -> None:
        """Raise WrongUsage if columns that flags or the model name are missing or misused."""
        known, label = self._known, names[self._label_place]
        if label in known:
            kind, why = known[label]
            raise WrongUsage(f"{self._file}: column {label!r} is the label and cannot also be {kind!r} ({why})")
        for name, (kind, _) in known.items():
            if name in self._asked or kind in ONLY_ONE:
                self._place(names, name)
        gone = [name for name in known if name not in names]
        if gone:
            say(f"{self._file} lacks columns that {self._kept.whose} knows: {_listed(gone)}")

    def _check_new(self, names: Sequence[str], unnamed: Mapping[int, str]) -> None:
        """Raise WrongUsage for columns that are new to the model: their kinds might differ from file to file."""
        places = (place for place in range(len(names)) if place not in unnamed and place != self._label_place)
        new = [names[place] for place in places if names[place] not in self._known]
        if self._kept.kinds and new:
            raise WrongUsage(
                f"{self._file} has columns that {self._kept.whose} does not know: {_listed(new)}. --number {new[0]}, "
                f"--text {new[0]} or --ignore {new[0]} says what it is; do so for each"
            )

    def _check_row(self, cells: Sequence[str], line: int = 0) -> None:
        if cells == self._names:
            raise WrongRow(
                "it is the header again, perhaps because files were joined: remove this line, or give the files one by "
                "one",
                line,
            )
        if len(cells) != self._width:
            raise WrongRow(
                f"it has {len(cells)} cells, but the header has {self._width} ({self._dialect.words})"
                if self._header is not False
                else f"it has {len(cells)} cells, but the first row has {self._width} ({self._dialect.words})",
                line,
            )

    # -- the columns

    def _column(
        self, name: str, place: int, unnamed: Mapping[int, str], rows: Sequence[tuple[int, list[str]]]
    ) -> Column:
        if place == self._label_place:
            return told(name, place, rows, "label", self._labels.words)
        if place in unnamed:
            return told(name, place, rows, "ignore", unnamed[place])
        if name in self._known:
            return told(name, place, rows, *self._known[name])
        if name == INDEX:
            return told(name, place, rows, "ignore", f"pandas' name for an index; --number '{INDEX}' keeps it")
        return worked_out(name, place, rows)

    def _set_places(self) -> None:
        self._numbers = _Cells([column for column in self.columns if column.kind == "number"])
        self._texts = _Cells([column for column in self.columns if column.kind == "text"])
        self._features = _Cells([column for column in self.columns if column.kind in ("number", "text")])
        self._id_place = next((column.place for column in self.columns if column.kind == "id"), -1)
        self._weight_place = next((column.place for column in self.columns if column.kind == "weight"), -1)
        if not self._features.names:
            left = [column.name for column in self.columns if column.kind == "ignore" and column.name]
            keeps = f"; left out: {_listed(left)}. --text NAME or --number NAME keeps one" if left else ""
            raise WrongUsage(f"{self._file} has no column to learn from{keeps}")


class _Cells:
    """Columns of a table: their names, and their cells `of` a row."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.names = [column.name for column in columns]
        places = [column.place for column in columns]
        self.of: Callable[[Sequence[str]], Sequence[str]] = (
            operator.itemgetter(*places) if len(places) > 1 else lambda cells: [cells[place] for place in places]
        )


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
            event.id = _id(_text(value))
        elif kind == "weight":
            event.weight = _weight(_text(value))
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


class EventReader:
    """NDJSON of events for `/learn`: {"x": {...}, "y": 1}."""

    def __init__(self, labels: Labels) -> None:
        self.columns: list[Column] = []
        self.missing = 0
        self._labels = labels

    def look(self, lines: Iterator[bytes], looked: Looked) -> Iterator[tuple[int, Any]]:
        records = numbered(lines)
        looked.read_rows(records, needed=False)
        return records

    def event(self, record: bytes) -> Event | None:
        try:
            return event_json.decode_event(record)
        except errors.LogstepError as error:
            if _has_no_label(record):
                self._labels.missing += 1
                return None
            hint = "; if the label is among the features, name it with --label"
            raise WrongRow(str(error).replace("The body is", "it is").rstrip(".") + hint) from None


class LibsvmReader:
    """libsvm without comments: the label, then index:value."""

    def __init__(self, labels: Labels) -> None:
        self.columns: list[Column] = []
        self.missing = 0
        self._labels = labels

    def look(self, lines: Iterator[bytes], looked: Looked) -> Iterator[tuple[int, Any]]:
        records = numbered(lines)
        looked.read_rows(records, needed=False)
        return records

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


def _id(cell: str) -> str:
    if is_missing(cell):
        raise WrongRow("it has no id")
    return cell


def _weight(cell: str) -> float:
    value = to_number(cell.strip())
    if value is None or value <= 0:
        raise WrongRow(f"its weight {cell!r} is not a number above 0")
    return value


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(name or "(no name)" for name in names[:SHOWN_NAMES]) + more
