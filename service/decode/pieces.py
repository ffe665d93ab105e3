"""Bodies of any length, in pieces as they arrive: the lines of NDJSON, the rows of an Arrow stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from service import errors
from service.decode import arrow, wire
from service.decode.shape import Shape
from service.decode.table import Table
from service.settings import Settings

Items = TypeVar("Items")
Item = TypeVar("Item")
Chunks = AsyncIterator[bytes]
Lines = list[tuple[int, bytes]]
PIECE_BYTES = 2 * 2**20
"""Bytes of lines in a piece, about: many pieces wait at a time, and lines may be long."""
WORTH_A_TABLE = 200
"""Lines of one shape that are learned as a table; fewer, and the pieces of a mixed stream would be too small."""


@dataclass(frozen=True, slots=True)
class Piece(Generic[Items]):
    """Some items of a stream, in order.

    unit: what they are in the body, "line" or "row". numbers: that of each, from 1. wrong: what is wrong with the one
    after them, which ends the stream.
    """

    items: Items
    unit: str
    numbers: Sequence[int]
    wrong: errors.OnestepError | None = None

    def places(self) -> list[str]:
        """Where each stands, for a message: "line 7"."""
        return [f"{self.unit} {number}" for number in self.numbers]

    def parts(self, size: int) -> Iterator[Piece[Any]]:
        """The same in pieces of at most `size` items."""
        items: Any = self.items
        for start in range(0, max(1, len(items)), size):
            stop = min(start + size, len(items))
            part = items.part(start, stop) if isinstance(items, Table) else items[start:stop]
            yield Piece(part, self.unit, self.numbers[start:stop], self.wrong if stop == len(items) else None)

    def located(self, error: errors.OnestepError, i: int) -> errors.OnestepError:
        """What is wrong with item i, told with its place in the body."""
        number = self.numbers[i]
        field = error.members.get("field")
        told = {} if field is None else {"field": wire.path(f"{self.unit} {number}", field)}
        return type(error)(**{**error.members, **told, self.unit: number})


async def cut(arriving: AsyncIterator[Piece[Any]], size: int) -> AsyncIterator[Piece[Any]]:
    """The same items in pieces of at most `size`."""
    async for piece in arriving:
        for part in piece.parts(size):
            yield part


async def lines_of(
    chunks: Chunks, decode: Callable[[bytes, str], Item], settings: Settings
) -> AsyncIterator[Piece[list[Item]]]:
    """The lines of NDJSON, decoded."""
    async for lines in _batched(wire.split_lines(chunks, settings.max_line_bytes), settings.stream_events):
        yield _decoded(lines, decode)


def _decoded(lines: Lines, decode: Callable[[bytes, str], Item]) -> Piece[list[Item]]:
    items: list[Item] = []
    wrong: errors.OnestepError | None = None
    try:
        for number, line in lines:
            items.append(decode(line, f"line {number}"))
    except errors.OnestepError as error:
        wrong = error
        wrong.members["line"] = lines[len(items)][0]
    return Piece(items, "line", [number for number, _ in lines], wrong)


async def events_of_lines(
    chunks: Chunks, settings: Settings
) -> AsyncIterator[Piece[Sequence[wire.Event | wire.Label] | Table]]:
    """The lines of NDJSON to learn; those of one shape as tables."""
    shape: Shape | None = None
    arriving = _batched(wire.split_lines(chunks, settings.max_line_bytes), settings.stream_events)
    async for lines in _ahead(arriving):
        rest = lines
        while rest:
            # In a thread, as the kernel needs no GIL: meanwhile the loop predicts, and steps for the pieces before.
            shape, table = await asyncio.to_thread(_table, rest, shape, settings.max_line_bytes)
            if table is None:
                piece = _decoded(rest, wire.decode_learn)
                yield Piece(piece.items, piece.unit, piece.numbers, piece.wrong)
                break
            yield Piece(table, "line", [number for number, _ in rest[: len(table)]])
            rest = rest[len(table) :]


async def _ahead(arriving: AsyncIterator[Lines]) -> AsyncIterator[Lines]:
    """The same lines; while some are read, the next are received and split."""
    queue: asyncio.Queue[Lines | Exception | None] = asyncio.Queue(1)

    async def fill() -> None:
        try:
            async for lines in arriving:
                await queue.put(lines)
        except Exception as error:  # raised again where the lines are taken
            await queue.put(error)
        else:
            await queue.put(None)

    filling = asyncio.create_task(fill())
    try:
        while (found := await queue.get()) is not None:
            if isinstance(found, Exception):
                raise found
            yield found
    finally:
        filling.cancel()


def _table(lines: Lines, shape: Shape | None, longest: int) -> tuple[Shape | None, Table | None]:
    """The first lines as a table, if they have the shape of those before them or of the first, and are enough."""
    text = [line for _, line in lines]
    for form in (shape, Shape.of(text[0])):
        if form is not None:
            table = form.read(text, longest)
            if len(table) >= min(WORTH_A_TABLE, len(lines)):
                return form, table
    return shape, None


async def events_of_rows(
    chunks: Chunks, settings: Settings
) -> AsyncIterator[Piece[Sequence[wire.Event | wire.Label] | Table]]:
    """The rows of an Arrow stream to learn; numbers as they are, arrays."""
    async for table in arrow.read_tables(chunks, learn=True, max_batch_bytes=settings.max_batch_bytes):
        if table.is_plain and table.ids is None:
            yield Piece(table, "row", range(table.first_row, table.first_row + len(table)))
            continue
        for start, stop, rows in _cuts(table, settings.stream_events):
            yield Piece(table.part(start, stop) if table.is_plain else table.events(start, stop), "row", rows)


async def questions_of_rows(chunks: Chunks, settings: Settings) -> AsyncIterator[Piece[list[wire.Question]]]:
    """The rows of an Arrow stream to predict from."""
    async for table in arrow.read_tables(chunks, learn=False, max_batch_bytes=settings.max_batch_bytes):
        for start, stop, rows in _cuts(table, settings.stream_events):
            yield Piece(table.questions(start, stop), "row", rows)


def _cuts(table: Table, rows: int) -> list[tuple[int, int, range]]:
    """From where to where a table is cut into pieces of so many rows, and their numbers in the stream."""
    starts = range(0, len(table), rows)
    ends = [min(start + rows, len(table)) for start in starts]
    first = table.first_row
    return [(start, end, range(first + start, first + end)) for start, end in zip(starts, ends, strict=True)]


async def _batched(arriving: AsyncIterator[Lines], size: int) -> AsyncIterator[Lines]:
    """Lines in pieces of `size`; the last is smaller, and so are those of long lines, or before an error."""
    gathered: Lines = []
    held = 0
    try:
        async for lines in arriving:
            gathered += lines
            held += sum(len(line) for _, line in lines)
            while len(gathered) >= size or held > PIECE_BYTES:
                yield gathered[:size]
                del gathered[:size]
                held = sum(len(line) for _, line in gathered)
    except errors.OnestepError:
        if gathered:
            yield gathered
        raise
    if gathered:
        yield gathered
