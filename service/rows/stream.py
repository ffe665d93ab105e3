"""Reads the rows of a body as they arrive, as `logstep replay` reads those of a file.

The first rows wait for each other where the kinds of columns or the labels depend on them. Later rows become events
piece by piece. Rows are read in threads, because a thousand take milliseconds.
"""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager
from dataclasses import replace
from typing import Any

from service import errors
from service.decode.pieces import Piece
from service.decode.text import Chunks, texts_of
from service.events import NO_ID, Event, Question, is_id
from service.rows import formats
from service.rows.columns import Column, Kept
from service.rows.readers import MOST_BYTES, Looked, Reader, Records
from service.rows.reading import LOOK, How, check_events
from service.rows.records import LONGEST_CELL
from service.rows.tables import TableReader
from service.rows.wrong import WrongOption, WrongRow
from service.settings import Settings
from service.texts import Texts

_SPARE, _SPARE_BYTES = 100, 2**16
"""What is gathered beyond the first rows, since some of it may turn out to be no row: the header, white space."""
_FLAG = re.compile(r"--(no-)?([a-z-]+)(?: (?!(?:names|and|needs?|together)\b)('[^']*'|[^\s,;:.)]+))?")
_OF_COMMANDS = re.compile(r" \(if the model exists already[^)]*\)| \(--model NAME\)")

Data = bytes | bytearray


class Rows:
    """The rows of one body, to learn or to predict from.

    how: how they are to be read. format: "csv", "tsv", or "ndjson" of flat objects. kept: the kinds of columns that the
    model keeps. hold: counts the bytes of first rows that wait. large: makes first rows of so many bytes wait for a
    place in memory. id_prefix: rows without an id get this, a colon and their number. learned: see TableReader.

    When the rows have been read, `notices` has what their sender should know, `unlabelled` counts rows that were left
    out because they have no label, and `columns` says how each column was read.
    """

    def __init__(
        self,
        how: How,
        format_: str,
        kept: Kept,
        settings: Settings,
        *,
        learn: bool,
        hold: Callable[[int], None],
        large: Callable[[int], AbstractAsyncContextManager[None]],
        id_prefix: str | None = None,
        learned: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        self.notices: list[str] = []
        self._line = 0
        """The line that is being read."""
        self._how, self._format, self._kept, self._learn, self._settings = how, format_, kept, learn, settings
        self._hold, self._large, self._id_prefix, self._learned = hold, large, id_prefix, learned
        with self._refusing():
            if learn and format_ != "ndjson":
                how.check_label("the body")
            self._labels = how.labels("the body", self._notice)
        self._index: list[str] = []
        self._found: formats.Format | None = None
        self._reader: Reader | None = None
        self._look = min(how.look or LOOK, LOOK)
        self._needed = bool(how.positive or how.negative)
        """Whether the first rows must be there before one of them is learned."""
        self._first: list[bytes] = []
        """The lines of the first rows. `_unread` goes through them."""
        self._unread = iter(self._first)
        self._open: list[bytes] = []
        """Lines of a row that has not ended, or all lines while the format is unknown."""
        self._rows = 0
        self._number = 0
        """The number of the last row."""

    @property
    def columns(self) -> list[Column]:
        return [] if self._reader is None else self._reader.columns

    def index(self, names: list[str]) -> None:
        """Say, before the rows come, which columns were a data frame's index."""
        self._index = names

    @property
    def unlabelled(self) -> int:
        return self._labels.missing

    @property
    def missing(self) -> int:
        """Cells that were missing, and left out."""
        return 0 if self._reader is None else self._reader.missing

    async def pieces(self, chunks: Chunks) -> AsyncGenerator[Piece[list[Any]]]:
        """The rows as events or questions. An error in the first rows is raised before any; a later one ends a
        piece."""
        size, ended = 0, True
        async with aclosing(texts_of(chunks, self._settings)) as texts:
            async for text in texts:
                size += len(text.data)
                self._hold(len(text.data))
                if await asyncio.to_thread(self._is_enough, text.data) or size > MOST_BYTES + _SPARE_BYTES:
                    ended = False
                    break
            async with self._large(size):
                piece = await asyncio.to_thread(self._looked, ended)
                self._hold(-size)
                for part in piece.parts(self._settings.stream_events):
                    yield part
                del piece, part
            yield await asyncio.to_thread(self._later, b"")
            if not ended:
                async for text in texts:
                    data = text.data
                    while (plain := await asyncio.to_thread(self._plain, data)) is not None:
                        piece, end = plain
                        yield piece
                        data = data[end:]
                    yield await asyncio.to_thread(self._later, data)
            yield await asyncio.to_thread(self._last)

    # -- in threads

    def _is_enough(self, data: Data) -> bool:
        """Whether the first rows have come, with these lines. Finds the format and reads the header on the way."""
        if self._found is None:
            self._open += io.BytesIO(data).readlines()
            if not self._find(2):
                return False
            data = b""
        self._first += self._taken(data)
        if self._reader is None and (self._rows < 2 or not self._begin()):
            return False
        return self._rows > (self._look + _SPARE if self._needed else 1)

    def _find(self, lines: int) -> bool:
        """Find the format by the first lines, if so many are there."""
        _, first = formats.first_lines(iter(self._open))
        if len(first) < lines and self._format != "ndjson":
            return False
        with self._refusing():
            self._found = formats.of_lines(first, self._format, self._how.delimiter, self._how.quoted)
        return True

    def _taken(self, data: Data) -> list[bytes]:
        """The lines of whole rows, with those that were open. Each quoted cell has two quotes, or more pairs."""
        lines = self._open + io.BytesIO(data).readlines()
        if self._found is None or self._found.dialect is None or not self._found.dialect.quoted:
            self._rows += sum(not line.isspace() for line in lines)
            self._open = []
            return lines
        end, is_open = 0, False
        for i, line in enumerate(lines, 1):
            is_open ^= line.count(b'"') % 2 == 1
            if not is_open or i - end > LONGEST_CELL:  # longer: it is no row, and the reader says so
                self._rows += not line.isspace()
                end = i
        self._open = lines[end:]
        return lines[:end]

    def _begin(self) -> bool:
        assert self._found is not None  # noqa: S101  # by the caller
        with self._refusing():
            told = self._kept, self._labels, lambda what: self._notice(f"the body {what}"), self._learn, self._learned
            reader = self._how.reader(self._found, *told, self._index)
            self._needed = reader.begin(self._unread) or self._needed
            self._reader = reader
        return True

    def _looked(self, ended: bool) -> Piece[list[Any]]:
        """The first rows, which decide how the others are read."""
        if ended:
            if self._found is None:
                self._find(0)
            self._first += self._open
            self._open = []
        if self._reader is None:
            self._begin()
        assert self._reader is not None  # noqa: S101  # `_begin` has made it
        looked = Looked(self._look, regular=self._needed, bounded=True)
        with self._refusing():
            self._reader.look(self._unread, looked)
            for name, _, kind, why, *_, tell in self._reader.columns if self._learn else ():
                if tell:
                    self._notice(f"column {name!r} is {'left out' if kind == 'ignore' else 'text'}: {why}")
            piece = self._read(looked.drained())
            if piece.wrong is not None:
                raise piece.wrong
            if self._learn:
                check_events(self._followed(piece), self._reader.columns)
            if looked.done:
                self._labels.looked()
        return piece

    def _plain(self, data: bytearray) -> tuple[Piece[Any], int] | None:
        """The leading rows that can be read at once, and where they end; None unless they are enough."""
        if not isinstance(self._reader, TableReader) or self._open:
            return None
        first = self._reader.line + 1
        cells = self._reader.plain(data)
        if cells is None:
            return None
        table, number = cells.table, self._number
        self._number += len(table)
        if table.ids is None and self._id_prefix:
            ids = [f"{self._id_prefix}:{i}" for i in range(number + 1, self._number + 1)]
            table = replace(table, ids=Texts.of(ids))
        return Piece(table, "line", range(first, first + len(table))), cells.end

    def _later(self, data: Data) -> Piece[list[Any]]:
        """Rows after the first, up to a wrong one."""
        lines = [*self._unread, *self._taken(data)]
        self._first, self._unread = [], iter([])
        return self._records(lines)

    def _records(self, lines: list[bytes]) -> Piece[list[Any]]:
        assert self._reader is not None  # noqa: S101  # the first have been read
        return self._read(self._reader.records(iter(lines)))

    def _last(self) -> Piece[list[Any]]:
        piece = self._records(self._open)
        if piece.wrong is None:
            with self._refusing():
                self._labels.looked()
            if told := self._labels.never_came() or self._labels.only_one():
                self._notice(told)
        return piece

    def _read(self, records: Records) -> Piece[list[Any]]:
        assert self._reader is not None  # noqa: S101  # records come from it
        items: list[Any] = []
        lines: list[int] = []
        made: Callable[[Any], Event | Question | None] = self._reader.event if self._learn else self._reader.question
        try:
            with self._refusing():
                for self._line, record in records:
                    self._number += 1
                    item = made(record)
                    if item is None:
                        continue
                    if item.id is None and self._id_prefix:
                        item.id = f"{self._id_prefix}:{self._number}"
                    if item.id is not None and not is_id(item.id):
                        raise WrongRow(f"its id {NO_ID}")
                    items.append(item)
                    lines.append(self._line)
        except errors.LogstepError as error:
            return Piece(items, "line", lines, error)
        return Piece(items, "line", lines)

    def _followed(self, piece: Piece[list[Any]]) -> Iterator[Event]:
        """The events of a piece. An error is about the last of them."""
        for self._line, event in zip(piece.numbers, piece.items, strict=True):
            yield event

    def _notice(self, told: str) -> None:
        self.notices.append(_as_parameters(told))

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """What is wrong with the rows, as callers get it."""
        try:
            yield
        except WrongOption as error:
            raise errors.InvalidParameter(field="query", reason=_as_parameters(str(error))) from None
        except WrongRow as error:
            reason, line = _as_parameters(str(error)), error.line or self._line
            if not line:
                raise errors.InvalidRows(reason=reason) from None
            raise errors.InvalidEvent(field=f"line {line}", reason=reason, line=line) from None


def _as_parameters(text: str) -> str:
    """A message of the readers, with parameters of a query in place of flags.

    >>> _as_parameters("use --no-header and --label N; --text 'my zip' reads it as text, and --id-column names the id")
    "use ?header=false and ?label=N; ?text='my zip' reads it as text, and ?id names the id"
    """

    def parameter(found: re.Match[str]) -> str:
        no, name, value = found.groups()
        if name in ("header", "quoted"):
            return f"?{name}={'false' if no else 'true'}" + (f" {value}" if value else "")
        return f"?{name.removesuffix('-column')}" + (f"={value}" if value else "")

    return _FLAG.sub(parameter, _OF_COMMANDS.sub("", text))
