"""Rows of a file as events: one by one, or a block of them that was read at once.

A block becomes NDJSON without an object for each row, which would take ten times as long. Its numbers are sent as they
are written in the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, overload

import msgspec
import numpy as np

from core.compiled import compiled
from service.decode.lines import Bytes, Places
from service.events import Event
from service.rows.plain import Cells

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
        self._ids: list[str] | None = None
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
        item.id = None if self._ids is None else self._ids[i]
        return Row(self._number + i, self._line + i, item)

    def identify(self, prefix: str | None) -> None:
        """Give the rows their own ids, or the prefix, a colon and their numbers. None: no ids."""
        own = self._cells.table.ids
        numbers = range(self._number, self._number + len(self))
        self._ids = None if prefix is None else [f"{prefix}:{n}" for n in numbers] if own is None else [*map(str, own)]
        self.lines = self._written()

    def _written(self) -> bytes:
        table, places, found = self._cells.table, self._cells.places, _Holes(bytes(self._cells.data))
        null = found.add([b"null"])
        for j, (name, place) in enumerate(zip(table.names, self._cells.features, strict=True)):
            before = b'{"x":{%b:' if j == 0 else b",%b:"
            if (text := table.texts.get(j)) is not None:
                bounds, codes = found.add(map(_json, text.words)), text.codes
                spans = np.column_stack([bounds[codes], bounds[codes + 1]])
            else:
                spans = places[:, 1 + 2 * place : 3 + 2 * place].copy()
            if table.present is not None:
                spans[~table.present[:, j]] = null
            found.put(before % _json(name), spans)
        label = found.add([b"0", b"1"])
        found.put(b'},"y":', np.column_stack([label[table.labels], label[table.labels] + 1]))
        if self._cells.weight >= 0:
            found.put(b',"weight":', places[:, 1 + 2 * self._cells.weight : 3 + 2 * self._cells.weight])
        if self._ids is not None:
            ids = found.add(map(_json, self._ids))
            found.put(b',"id":', np.column_stack([ids[:-1], ids[1:]]))
        return found.filled(b"}\n")


_json = msgspec.json.encode


class _Holes:
    """A line as literals with holes between them, and the texts that fill them in each row."""

    def __init__(self, source: bytes) -> None:
        self._sources = [source]
        self._size = len(source)
        self._literals: list[bytes] = []
        self._spans: list[Places] = []

    def add(self, texts: Iterable[bytes]) -> Places:
        """Add texts to the source. Returns where each starts, and at last where the last ends."""
        added = [*texts]
        bounds = self._size + np.cumsum([0, *map(len, added)], dtype=np.int64)
        self._sources += added
        self._size = int(bounds[-1])
        return bounds

    def put(self, literal: bytes, spans: Places) -> None:
        """Put a literal, and after it a text of the source: start and end for each row."""
        self._literals.append(literal)
        self._spans.append(spans)

    def filled(self, end: bytes) -> bytes:
        """The lines, each with this end."""
        spans = np.stack(self._spans, axis=1)
        literals = [*self._literals, end]
        size = len(spans) * sum(map(len, literals)) + int((spans[:, :, 1] - spans[:, :, 0]).sum())
        lines = np.empty(size, np.uint8)
        source, joined = (np.frombuffer(bytearray().join(parts), np.uint8) for parts in (self._sources, literals))
        _fill(source, joined, np.cumsum([*map(len, literals)], dtype=np.int64), spans, lines)
        return lines.tobytes()


@compiled("void(uint8[::1], uint8[::1], int64[::1], int64[:, :, ::1], uint8[::1])")
def _fill(source: Bytes, literals: Bytes, ends: Places, spans: Places, lines: Bytes) -> None:
    """Write a line for each row: each literal and the text after it, then the last literal."""
    at = np.uint64(0)
    for i in range(len(spans)):
        literal = 0
        for hole in range(len(ends)):
            for k in range(literal, ends[hole]):
                lines[at] = literals[np.uint64(k)]
                at += np.uint64(1)
            literal = ends[hole]
            if hole < spans.shape[1]:
                for k in range(spans[i, hole, 0], spans[i, hole, 1]):
                    lines[at] = source[np.uint64(k)]
                    at += np.uint64(1)
