"""Decodes streams of any length piece by piece: the lines of NDJSON, the rows of Arrow. At the end, also at an error,
the chunks are closed: they may hold a file and a child process that reads it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from service import errors
from service.decode import event_json
from service.decode.lines import Shape
from service.decode.text import Chunks, Text, texts_of
from service.events import Event, Label, Question
from service.fairness import WIDE, Slices, worked
from service.problem import path_of
from service.settings import Settings
from service.table import WORTH_A_TABLE, Table

Items_co = TypeVar("Items_co", covariant=True)
Item = TypeVar("Item")

PIECE_CELLS = 2**15
"""Approximate values in a piece of rows: turning them into objects takes the loop a few milliseconds."""
TRIED_LINES = 32
"""Most lines in which a line without null is looked for."""
HERE_TEXTS = 16
"""Rows with more text columns are made in a thread: a thousand cells of one column take a millisecond."""


@dataclass(frozen=True, slots=True)
class Piece(Generic[Items_co]):
    """Consecutive items of a stream. unit: what an item is in the body, "line" or "row". numbers: each item's number,
    from 1. wrong: the error of the next item, which ends the stream."""

    items: Items_co
    unit: str
    numbers: Sequence[int]
    wrong: errors.LogstepError | None = None

    def place(self, i: int) -> str:
        """The place of item i, for a message: "line 7"."""
        return f"{self.unit} {self.numbers[i]}"

    def parts(self, size: int) -> Iterator[Piece[Any]]:
        """The same in pieces of at most `size` items."""
        items: Any = self.items
        for start in range(0, max(1, len(items)), size):
            stop = min(start + size, len(items))
            part = items.part(start, stop) if isinstance(items, Table) else items[start:stop]
            yield Piece(part, self.unit, self.numbers[start:stop], self.wrong if stop == len(items) else None)

    def located(self, error: errors.LogstepError, i: int) -> errors.LogstepError:
        """An error of item i, with its place in the body."""
        number = self.numbers[i]
        field = None if error.field is None else path_of(f"{self.unit} {number}", error.field)
        return replace(error, field=field, **{self.unit: number})


async def cut(arriving: AsyncGenerator[Piece[Any]], size: int) -> AsyncGenerator[Piece[Any]]:
    """The same items in pieces of at most `size`."""
    async with aclosing(arriving):
        async for piece in arriving:
            for part in piece.parts(size):
                yield part


async def lines_of(
    chunks: Chunks, decode: Callable[[bytes, str], Item], settings: Settings
) -> AsyncGenerator[Piece[list[Item]]]:
    """The lines of NDJSON, decoded."""
    async with aclosing(texts_of(chunks, settings)) as texts:
        async for text in texts:
            yield await _decoded(text, decode, settings.max_line_bytes)


async def _decoded(text: Text, decode: Callable[[bytes, str], Item], longest: int) -> Piece[list[Item]]:
    items: list[Item] = []
    lines = text.lines()
    slices = Slices()
    wrong: errors.LogstepError | None = None
    try:
        for number, line in lines:
            if len(line) > longest:
                raise errors.LineTooLong(line=number, limit=longest)
            place = f"line {number}"
            if len(line) > event_json.WIDE_BYTES:
                items.append(await asyncio.to_thread(decode, line, place))
            else:
                items.append(decode(line, place))
            if slices.spent(len(line) // 4):
                await slices.rest()
    except errors.LogstepError as error:
        wrong = error
        wrong.line = lines[len(items)][0]
    return Piece(items, "line", [number for number, _ in lines], wrong)


async def events_of_lines(chunks: Chunks, settings: Settings) -> AsyncGenerator[Piece[Sequence[Event | Label] | Table]]:
    """The lines of NDJSON to learn; runs of one shape as tables."""
    shape: Shape | None = None
    async with aclosing(texts_of(chunks, settings)) as texts:
        async for text in texts:
            rest = text
            while rest.data:
                # In a thread: the kernel releases the GIL, so the loop predicts and learns earlier lines meanwhile.
                shape, table, end = await asyncio.to_thread(_table, rest.data, shape, settings.max_line_bytes)
                if table is None:
                    yield await _decoded(rest, event_json.decode_learn, settings.max_line_bytes)
                    break
                yield Piece(table, "line", range(rest.number, rest.number + len(table)))
                rest = rest.after(len(table), end)


def _table(data: bytearray, shape: Shape | None, longest: int) -> tuple[Shape | None, Table | None, int]:
    """The first lines as a table, their shape, and where they end. There is a table only if enough lines share the
    previous shape, or the shape of the first line."""
    for form in _forms(shape, data):
        table, end = form.read(data, longest)
        if len(table) >= WORTH_A_TABLE or end == len(data):
            return form, table, end
    return shape, None, 0


def _forms(shape: Shape | None, data: bytearray) -> Iterator[Shape]:
    """The shapes to try: the previous one, then that of the first line without null, which says each feature's type."""
    if shape is not None:
        yield shape
    at = 0
    for _ in range(TRIED_LINES):
        end = data.find(b"\n", at)
        if end < 0:
            return
        if data.find(b"null", at, end) < 0:
            first = Shape.of(bytes(data[at:end]))
            if first is not None:
                yield first
            return
        at = end + 1


async def events_of_rows(chunks: Chunks, settings: Settings) -> AsyncGenerator[Piece[Sequence[Event | Label] | Table]]:
    """The rows of an Arrow stream to learn; numbers stay arrays."""
    async with aclosing(chunks), aclosing(await _tables(chunks, settings, learn=True)) as tables:
        async for table in tables:
            if table.is_plain and table.ids is None:
                yield Piece(table, "row", range(table.first_row, table.first_row + len(table)))
                continue
            for start, stop, rows in _cuts(table, settings.stream_events):
                part = table.part(start, stop)
                if part.texts:
                    part = await worked(len(part.texts) > HERE_TEXTS, part.coded)
                items = part if part.is_plain else await _each(part, part.events, 0, len(part))
                yield Piece(items, "row", rows)


async def questions_of_rows(chunks: Chunks, settings: Settings) -> AsyncGenerator[Piece[list[Question]]]:
    """The rows of an Arrow stream to predict from."""
    async with aclosing(chunks), aclosing(await _tables(chunks, settings, learn=False)) as tables:
        async for table in tables:
            for start, stop, rows in _cuts(table, settings.stream_events):
                yield Piece(await _each(table, table.questions, start, stop), "row", rows)


async def _tables(chunks: Chunks, settings: Settings, learn: bool) -> AsyncGenerator[Table]:
    def read_tables() -> Callable[..., AsyncGenerator[Table]]:
        from service.decode.arrow import read_tables

        return read_tables

    try:
        read = await asyncio.to_thread(read_tables)
    except ModuleNotFoundError:
        raise errors.ArrowNotInstalled from None
    return read(chunks, learn=learn, max_batch_bytes=settings.max_batch_bytes)


async def _each(table: Table, rows: Callable[[int, int], list[Item]], start: int, stop: int) -> list[Item]:
    """Rows of a table, as objects."""
    found: list[Item] = await worked(len(table.names) > WIDE or len(table.texts) > HERE_TEXTS, rows, start, stop)
    return found


def _cuts(table: Table, rows: int) -> list[tuple[int, int, range]]:
    """Cuts of a table into pieces of at most `rows` rows, fewer if it has many columns: start, end, row numbers."""
    rows = min(rows, max(1, PIECE_CELLS // max(1, len(table.names))))
    numbers, starts = range(table.first_row, table.first_row + len(table)), range(0, len(table), rows)
    return [(start, min(start + rows, len(table)), numbers[start : start + rows]) for start in starts]
