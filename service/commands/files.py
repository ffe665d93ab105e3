"""Reads events from a file or standard input, in the formats of service/rows/formats.py.

Before the first event it looks at the first rows, to decide the columns' kinds and check the labels (service/rows). The
number of these rows never depends on time or on how the bytes arrive. So the same file always gives the same events.

An error in a file raises WrongUsage with the line. A file is identified by its name and its first lines: both are in
the ids of its events. So a file that grows, moves or is compressed keeps its ids, and another day's file of the same
name gets other ids.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from core.spec import MAX_COLUMNS
from service.commands.rows import PIECE_CELLS, Block, Row
from service.commands.terminal import WrongUsage, say, show
from service.events import MAX_ID, Event
from service.rows import formats
from service.rows.columns import (
    ALL_NUMBERS,
    EACH,
    MIXED,
    NO_NUMBERS,
    NOTHING_KEPT,
    ROWS_BELOW,
    Column,
    Kept,
    cut,
)
from service.rows.readers import BOM, Looked, Reader
from service.rows.reading import LOOK, How, check_events
from service.rows.tables import TableReader
from service.rows.wrong import WrongOption, WrongRow

SLOW_SECONDS = 2.0
"""After waiting this long for first rows, a message says what is missing."""
FEW = 100
"""This many of the first rows show the labels; the others are read in blocks."""
WORDS = {"ignore": "left out"}
"""Words shown to people in place of a kind."""
MOST_SHOWN = 100
"""Rows of the table of columns. Beyond it, unremarkable columns are only counted."""
LONGEST_SHOWN_NAME = 64
LONGEST_NAME = 200
"""Characters of a file's name in an id. A longer name is cut and ends with its hash."""
LONGEST_PREFIX = MAX_ID - 20
"""Characters before the row in an id, which takes a colon and up to 19 digits."""
_SEPARATOR_LINE = re.compile(rb'"?sep=.')
"""Some spreadsheets write this line before the header."""


@dataclass(frozen=True, slots=True)
class Source(How):
    """A file of events, or "-" for standard input, and how to read it. format: one of FORMATS, by default from its name
    or content."""

    file: str
    format: str | None = None

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
        with _as_usage():
            if (self.format or formats.by_name(self.file)) in ("csv", "tsv"):
                self.check_label(self.name)
            self.labels(self.name, say)

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
            status = os.fstat(file.fileno())
            yield OpenSource(self, file, status.st_size if stat.S_ISREG(status.st_mode) else None)


class OpenSource:
    """A source that is being read. `size`: its bytes; None if unknown."""

    def __init__(self, source: Source, file: IO[bytes], size: int | None) -> None:
        self.name = source.name
        self.size = size
        self._source = source
        self._file = file
        self._line = 0
        self._input: formats.Input | None = None
        self._lines = Lines((), header=False)
        self._rest: Iterator[bytes] = iter(())
        """The lines after those that were looked at."""
        self._reader: Reader | None = None
        self._first: deque[Row | Block | None] = deque()
        """The rows that were looked at."""
        self._number = 0
        """The number of the last row."""
        with _as_usage():
            self.labels = source.labels(source.name, say)

    @property
    def unit(self) -> str:
        """What a row is in the file: a line, an element or a row."""
        return "line" if self._input is None else self._input.unit

    def position(self) -> int:
        """Bytes read so far."""
        return self._file.tell() if self.size is not None else 0

    def pauses(self) -> bool:
        """Whether the next row of a pipe has not come yet, so that the rows so far should be learned."""
        return self.size is None and self._input is not None and self._input.pauses()

    def id_prefix(self) -> str:
        """The part of the events' ids before the row, known after `look`; see Lines."""
        return self._lines.id_prefix(self.name)

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
        return kinds_to_keep(self.columns)

    def look(self, kept: Kept = NOTHING_KEPT, size: int = 0) -> None:
        """Look at the first rows, and print the columns. kept: the kinds that a model keeps. size: as for `blocks`.

        Raises WrongUsage for errors in these rows. After two seconds of waiting it says what it waits for.
        """
        asked = self._source.look
        looked = Looked(asked or LOOK, regular=self.size is not None, bounded=asked is None)
        with _waiting_told(looked):
            reader, lines = self.read_first(kept, looked)
        count = len(looked.rows)
        with self._placed():
            self._first = deque(self._again(reader, looked, size))
            check_events(self._followed(self._first), reader.columns)
            if looked.done:
                self.labels.looked()
        if reader.columns:
            show_columns(self.name, reader.columns, count)
        self._rest = lines

    def _again(self, reader: Reader, looked: Looked, size: int) -> Iterator[Row | Block | None]:
        """The rows that were looked at, now that it is known how to read them: in blocks too, once the first of them
        have shown the labels."""
        left = deque(looked.lines)
        if not size or self.size is None or not isinstance(reader, TableReader):
            for record in looked.drained():
                yield self._row(*record)
            return
        before = reader.line - len(left)
        for record in looked.rows[:1]:
            if record[0] <= before:  # the first line of the file, which is no header
                yield self._row(*record)
        looked.rows.clear()
        reader.again(len(left))
        for record in itertools.islice(reader.records(_drained(left)), FEW):
            yield self._row(*record)

        def take(count: int) -> list[bytes]:
            return [left.popleft() for _ in range(min(count, len(left)))]

        yield from self._in_blocks(reader, take, _drained(left), size)

    def read_first(self, kept: Kept, looked: Looked) -> tuple[Reader, Iterator[bytes]]:
        """Read the first rows into `looked`, and find the columns. Returns the reader and the other lines."""
        with self._placed():
            told = self._source.format or formats.by_name(self._source.file)
            self._input = lines = formats.Input(self._file, told)
            if lines.has_columns:
                self._source.check_label(self.name)
                told = "ndjson"
            before, first = formats.first_lines(lines)
            found = formats.of_lines(first, told, self._source.delimiter, self._source.quoted)
            self._lines = self._remembered(found, itertools.chain(before, lines))
            self._reader = self._source.reader(
                found, kept, self.labels, lambda what: say(f"{self.name} {what}"), index=lines.index
            )
            rest = iter(self._lines)
            self._reader.begin(rest)
            self._reader.look(rest, looked)
            return self._reader, rest

    def tell_what_was_left_out(self) -> None:
        """Say how many rows had no label, and how many cells were missing."""
        if self.labels.missing:
            say(f"{self.labels.missing:,} row(s) of {self.name} had no label and were left out")
        if self.missing:
            say(f"{self.missing:,} cell(s) of {self.name} were missing (such as NA) and left out")

    def check_labels(self) -> int:
        """The exit code: 1 if a label of a flag never came. Warns of that, and of labels that are all the same."""
        never = self.labels.never_came()
        if told := never or self.labels.only_one():
            say(told)
        return int(bool(never))

    def rows(self) -> Iterator[Row]:
        """The events in order, without rows that have no label. Calls `look` first if necessary."""
        for item in self.blocks(0):
            yield from [item] if isinstance(item, Row) else item

    def blocks(self, size: int) -> Iterator[Row | Block]:
        """The same, where rows of a file that can be read at once come in blocks of at most `size`."""
        if self._reader is None:
            self.look(size=size)
        with self._placed():
            while self._first:  # free each row at once: rows may be wide
                if (item := self._first.popleft()) is not None:
                    yield item
            source, reader, lines = self._input, self._reader, self._rest
            assert reader is not None and source is not None  # noqa: S101, PT018  # `look` has made them
            if size and self.size is not None and isinstance(reader, TableReader):
                yield from (item for item in self._in_blocks(reader, source.take, lines, size) if item is not None)
            for record in reader.records(lines):
                if (row := self._row(*record)) is not None:
                    yield row
            self.labels.looked()

    def _remembered(self, found: formats.Format, lines: Iterator[bytes]) -> Lines:
        """The lines, the first of which identify the file, without comments."""
        if found.name == "libsvm":
            lines = (line.partition(b"#")[0] for line in lines)
        return Lines(lines, header=found.dialect is not None and self._source.header is not False)

    def _in_blocks(
        self, reader: TableReader, take: Callable[[int], list[bytes]], lines: Iterator[bytes], size: int
    ) -> Iterator[Row | Block | None]:
        """The rows of the lines that one can take, which are also the next of `lines`."""
        size = min(size, max(1, PIECE_CELLS // max(1, len(self.columns))))
        while taken := take(size):
            line = reader.line + 1
            cells = reader.plain(bytearray().join(taken))
            if cells is not None:
                yield Block(cells, self._number + 1, line)
                self._number += len(cells.table)
                del taken[: len(cells.table)]
            left = deque(taken)
            for record in reader.records(itertools.chain(_drained(left), lines)) if left else ():
                yield self._row(*record)
                if not left:  # the last row of these may have gone on in later lines
                    break

    def _row(self, line: int, record: Any) -> Row | None:
        self._line = line
        self._number += 1
        assert self._reader is not None  # noqa: S101  # a record came from it
        event = self._reader.event(record)
        return None if event is None else Row(self._number, line, event)

    def _followed(self, items: Iterable[Row | Block | None]) -> Iterator[Event]:
        """The events that a model might refuse. An error is about the last of them."""
        for item in items:
            if isinstance(item, Block) and not item.may_be_refused():
                continue
            for row in item if isinstance(item, Block) else [item]:
                if row is not None:
                    self._line = row.line
                    yield row.event

    @contextmanager
    def _placed(self) -> Iterator[None]:
        """Add the file's name and the line to errors."""
        try:
            with _as_usage():
                yield
        except WrongRow as error:
            line = error.line or self._line
            place = f"{self.name} {self.unit} {line}:" if line else self.name
            raise WrongUsage(f"{place} {error}") from None
        except formats.BROKEN as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise WrongUsage(
                f"{self.name}, after {self.unit} {self._line}: its compression is broken: {error}"
            ) from None


@contextmanager
def _as_usage() -> Iterator[None]:
    """Wrong options of rows are wrong usage of a command."""
    try:
        yield
    except WrongOption as error:
        raise WrongUsage(str(error)) from None


def _drained(lines: deque[bytes]) -> Iterator[bytes]:
    while lines:
        yield lines.popleft()


class Lines:
    """The decompressed lines of a file; remembers the first.

    header: whether the first line is a header; then the first two lines identify the file. Blank lines, line ends and a
    byte order mark do not count.
    """

    def __init__(self, lines: Iterable[bytes], header: bool) -> None:
        self._lines = iter(lines)
        self._wanted = 2 if header else 1
        self._first: list[bytes] = []

    def __iter__(self) -> Iterator[bytes]:
        for line in self._lines:
            content = line.removeprefix(BOM).rstrip(b"\r\n")
            if content.strip() and not _SEPARATOR_LINE.match(content):
                self._first.append(content)
            yield line
            if len(self._first) == self._wanted:
                break
        yield from self._lines

    def id_prefix(self, name: str) -> str:
        """The part of an event's id before the row: "elec.csv:9c56cc51b374c3ba". Known once the first event was read.

        name: the file's name without its folder. The ending of a compression does not count.
        """
        name = formats.uncompressed(name)
        name = name.encode(errors="replace").decode()  # a name may have bytes that are not text
        short = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 17]}-{_hash(name.encode())}"
        return f"{short}:" + _hash(b"\n".join(self._first))


def _hash(data: bytes) -> str:
    """64 bits, in hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


@contextmanager
def _waiting_told(looked: Looked) -> Iterator[None]:
    """Say what is being waited for, if it takes long."""

    def tell() -> None:
        if over.wait(SLOW_SECONDS):
            return
        if not looked.rows:
            say("waiting for the first row")
        while not looked.rows:
            if over.wait(SLOW_SECONDS):
                return
        if looked.needed and not looked.done:
            fewer = next((few for few in (100, 10) if few < looked.look), 1)
            say(f"have read {len(looked.rows):,} rows, waiting for {looked.look:,}; --look {fewer}")

    over = threading.Event()
    threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def kinds_to_keep(columns: Sequence[Column]) -> dict[str, str] | None:
    """The kinds of these columns that a model keeps; None if there are none or too many."""
    kinds = {column.name: column.kind for column in columns if column.name and column.kind not in ("label", MIXED)}
    if len(kinds) > MAX_COLUMNS:
        say(f"{len(kinds):,} columns are more than a model keeps: give the same flags with each file")
    return kinds if 0 < len(kinds) <= MAX_COLUMNS else None


def show_columns(file: str, columns: Sequence[Column], rows: int) -> None:
    """Print how each column is read."""
    shown = list(columns)
    if len(shown) > MOST_SHOWN:
        shown = [column for column in columns if column.why not in (ALL_NUMBERS, NO_NUMBERS, EACH)][:MOST_SHOWN]
    table = [
        (cut(name, LONGEST_SHOWN_NAME) or "(no name)", WORDS.get(kind, kind), cut(example), missing, why)
        for name, _, kind, why, example, missing, _ in shown
    ]
    show(f"Columns of {file}, by its first {rows:,} row(s)", table, ("column", "type", "example", "missing", "why"))
    if len(shown) < len(columns):
        rest = [column.kind for column in columns if column not in shown]
        counts = ", ".join(f"{rest.count(kind):,} {WORDS.get(kind, kind)}" for kind in dict.fromkeys(rest))
        print(f"  and {len(rest):,} more: {counts}")
