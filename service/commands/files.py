"""Reads events from a file or standard input: CSV, TSV, NDJSON and libsvm, plain or gzipped.

Before the first event it looks at the first rows, to decide the columns' kinds (columns.py) and check the labels
(labels.py). The number of these rows never depends on time or on how the bytes arrive. So the same file always gives
the same events.

An error in a file raises WrongUsage with the line.
"""

from __future__ import annotations

import gzip
import itertools
import os
import stat
import sys
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from core.features import EventError, check_flat_name, flatten
from core.spec import MAX_COLUMNS
from service.commands import formats
from service.commands.cells import LARGEST
from service.commands.columns import FLAGS, MIXED, NOTHING_KEPT, ROWS_BELOW, Column, Kept, show_columns
from service.commands.formats import Format
from service.commands.identity import Lines
from service.commands.labels import Labels
from service.commands.readers import EventReader, LibsvmReader, Looked, ObjectReader, Reader
from service.commands.table_reader import TableReader
from service.commands.terminal import WrongRow, WrongUsage, say
from service.events import Event

LOOK = 10_000
"""Default number of first rows."""


class Row(NamedTuple):
    """An event of a file: its number among the rows, from 1, and the line where it begins, from 1."""

    number: int
    line: int
    event: Event


@dataclass(frozen=True, slots=True)
class Source:
    """A file of events, or "-" for standard input, and how to read it.

    format: one of FORMATS, by default from its name or content. label: column or key of the label. positive, negative:
    see Labels. asked: kinds of columns by name, as in a spec's `columns`. look: first rows to look at; None is 10,000,
    fewer if they are wide (readers.MOST_CELLS). header: whether the first line is a header; by default it is, and must
    not look like a row. quoted, delimiter: see formats.of_lines.
    """

    file: str
    format: str | None = None
    label: str | None = None
    positive: Sequence[str] = ()
    negative: Sequence[str] = ()
    asked: Mapping[str, str] = field(default_factory=dict)
    look: int | None = None
    header: bool | None = None
    quoted: bool | None = None
    delimiter: str | None = None

    @property
    def name(self) -> str:
        """The file's name without its folder: "elec.csv"."""
        return Path(self.file).name if self.has_name else "stdin"

    @property
    def has_name(self) -> bool:
        """Whether the file has a lasting name; one that a shell opens (/dev/fd/63) has none."""
        return self.file != "-" and Path(self.file).parts[:2] not in (("/", "dev"), ("/", "proc"))

    def check(self) -> None:
        """Raise WrongUsage if the arguments are wrong whatever the file contains."""
        if (self.format or formats.by_name(self.file)) in ("csv", "tsv"):
            self._check_label()
        Labels(self.name, self.positive, self.negative, self.look or LOOK, say)

    def check_columns(self, kept: Kept) -> None:
        """Raise WrongUsage if a table's first rows do not fit the columns that a model keeps. A pipe is left alone."""
        if Path(self.file).is_file():
            with self.open() as opened:
                opened.read_first(kept, Looked(ROWS_BELOW, regular=True))

    @contextmanager
    def open(self) -> Iterator[OpenSource]:
        """The file, open for reading."""
        self.check()
        if self.file == "-":
            yield OpenSource(self, sys.stdin.buffer, None)
            return
        try:
            file = Path(self.file).open("rb")  # noqa: SIM115  # a caller's error must not look like one of opening
        except OSError as error:
            raise WrongUsage(f"cannot read {self.file}: {error.strerror}") from None
        with file:
            yield OpenSource(self, file, _size(file))

    def reader(self, found: Format, kept: Kept, labels: Labels) -> Reader:
        """The reader for a format. Raises WrongUsage for arguments that do not suit it."""
        if found.dialect is not None:
            label = self._check_label()
            return TableReader(self.name, label, self.header, self.asked, kept, labels, found.dialect, found.skip)
        if found.name == "ndjson" and self.label is not None:
            return ObjectReader(self.name, self.label, self.asked, kept, labels)
        if self.asked:
            flag = FLAGS[next(iter(self.asked.values()))]
            raise WrongUsage(f"{flag} needs CSV, or NDJSON of flat objects with --label")
        if found.name == "ndjson":
            if self.positive or self.negative:
                raise WrongUsage('--positive and --negative need --label KEY; in {"x": ..., "y": ...} y is 0 or 1')
            return EventReader(labels)
        if self.label is not None:
            raise WrongUsage(f"{self.name} is libsvm, where the label comes first: leave out --label")
        return LibsvmReader(labels)

    def _check_label(self) -> str:
        if self.label is None:
            raise WrongUsage(f"--label COLUMN says which column of {self.name} is the label")
        return self.label


def _size(file: IO[bytes]) -> int | None:
    status = os.fstat(file.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None


class OpenSource:
    """A source that is being read. `size`: its bytes; None if unknown."""

    def __init__(self, source: Source, file: IO[bytes], size: int | None) -> None:
        self.size = size
        self.labels = Labels(source.name, source.positive, source.negative, source.look or LOOK, say)
        self._source = source
        self._file = file
        self._line = 0
        self._input: formats.Input | None = None
        self._lines = Lines((), header=False)
        self._reader: Reader | None = None
        self._rows: Iterator[Row] | None = None

    @property
    def name(self) -> str:
        return self._source.name

    def position(self) -> int:
        """Bytes read so far."""
        return self._file.tell() if self.size is not None else 0

    def pauses(self) -> bool:
        """Whether the next row of a pipe has not come yet, so that the rows so far should be learned."""
        return self.size is None and self._input is not None and self._input.pauses()

    def id_prefix(self) -> str:
        """The part of the events' ids before the row, known after `look`; see identity.py."""
        return self._lines.id_prefix(self._source.name)

    @property
    def columns(self) -> list[Column]:
        """The columns, known after `look`; none if the format has no columns."""
        return [] if self._reader is None else self._reader.columns

    @property
    def missing(self) -> int:
        """Missing cells, and missing values of objects, so far."""
        return 0 if self._reader is None else self._reader.missing

    def kinds(self) -> dict[str, str] | None:
        """The column kinds that a model keeps; None if there are none or too many."""
        kinds = {
            column.name: column.kind for column in self.columns if column.name and column.kind not in ("label", MIXED)
        }
        if len(kinds) > MAX_COLUMNS:
            say(f"{len(kinds):,} columns are more than a model keeps: give the same flags with each file")
        return kinds if 0 < len(kinds) <= MAX_COLUMNS else None

    def look(self, kept: Kept = NOTHING_KEPT) -> None:
        """Look at the first rows, and print the columns. kept: the kinds that a model keeps.

        Raises WrongUsage for errors in these rows. After two seconds of waiting it says what it waits for.
        """
        asked = self._source.look
        looked = Looked(asked or LOOK, regular=self.size is not None, bounded=asked is None)
        with looked.told_of():
            rest = self.read_first(kept, looked)
        with self._placed():
            numbers = itertools.count(1)
            rows = deque(self._row(next(numbers), *record) for record in looked.drained())
            self._check(row for row in rows if row is not None)
            if looked.done:
                self.labels.looked()
        if self.columns:
            show_columns(self._source.name, self.columns, len(rows))
        self._rows = self._with_rest(rows, numbers, rest)

    def read_first(self, kept: Kept, looked: Looked) -> Iterator[tuple[int, Any]]:
        """Read the first rows into `looked`, and find the columns. Returns the other rows."""
        with self._placed():
            self._input = lines = formats.Input(self._file)
            first = looked.read_lines(lines)
            told = self._source.format or formats.by_name(self._source.file)
            found = formats.of_lines(first, told, self._source.delimiter, self._source.quoted)
            self._lines = self._remembered(found, itertools.chain(looked.lines, lines))
            self._reader = self._source.reader(found, kept, self.labels)
            return self._reader.look(iter(self._lines), looked)

    def _check(self, rows: Iterable[Row]) -> None:
        """Raise WrongRow for an event that cannot be learned, before a model is made for it."""
        known: set[str] = set()
        for row in rows:
            self._line = row.line
            try:
                names, values = flatten(row.event.x)
                for name, value in zip(names, values, strict=True):
                    if name not in known:
                        check_flat_name(name)
                        known.add(name)
                    if not abs(value) <= LARGEST:
                        raise EventError(f"x.{name}", "must be within 1e100")
            except EventError as error:
                column = error.field.removeprefix("x.")
                hint = (
                    f"; --ignore {column} leaves it out" if any(column == there.name for there in self.columns) else ""
                )
                raise WrongRow(f"{error}{hint}") from None

    def tell_what_was_left_out(self) -> None:
        """Say how many rows had no label, and how many cells were missing."""
        if self.labels.missing:
            say(f"{self.labels.missing:,} row(s) of {self._source.name} had no label and were left out")
        if self.missing:
            say(f"{self.missing:,} cell(s) of {self._source.name} were missing (such as NA) and left out")

    def check_labels(self) -> int:
        """The exit code: 1 if a label of a flag never came. Warns of that, and of labels that are all the same."""
        never = self.labels.never_came()
        if told := never or self.labels.only_one():
            say(told)
        return int(bool(never))

    def rows(self) -> Iterator[Row]:
        """The events in order, without rows that have no label. Calls `look` first if necessary."""
        if self._rows is None:
            self.look()
        assert self._rows is not None  # noqa: S101  # look sets it
        with self._placed():
            yield from self._rows

    def _remembered(self, found: Format, lines: Iterator[bytes]) -> Lines:
        """The lines, the first of which identify the file, without comments."""
        if found.name == "libsvm":
            lines = (line.partition(b"#")[0] for line in lines)
        return Lines(lines, header=found.dialect is not None and self._source.header is not False)

    def _with_rest(
        self, rows: deque[Row | None], numbers: Iterator[int], rest: Iterator[tuple[int, Any]]
    ) -> Iterator[Row]:
        while rows:  # free each row at once: rows may be wide
            if (row := rows.popleft()) is not None:
                yield row
        for line, record in rest:
            if (row := self._row(next(numbers), line, record)) is not None:
                yield row
        self.labels.looked()

    def _row(self, number: int, line: int, record: Any) -> Row | None:
        self._line = line
        assert self._reader is not None  # noqa: S101  # a record came from it
        event = self._reader.event(record)
        return None if event is None else Row(number, line, event)

    @contextmanager
    def _placed(self) -> Iterator[None]:
        """Add the file's name and the line to errors."""
        name = self._source.name
        try:
            yield
        except WrongRow as error:
            line = error.line or self._line
            raise WrongUsage(f"{name} line {line}: {error}" if line else f"{name} {error}") from None
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise WrongUsage(f"{name}, after line {self._line}: its compression is broken: {error}") from None
