"""Decodes an Arrow IPC stream into tables of rows, as it arrives.

pyarrow takes up to a fifth of a second to import, so the first stream imports it. It is the largest package but one,
and an extra: where it is missing, that stream is refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute  # the arrays' methods would import it, on the event loop
import pyarrow.ipc

from core.batch import Mask
from core.builder import NO_LABEL
from core.logistic import Floats, Labels
from service import errors
from service.decode import columns
from service.decode.arrow_messages import DICTIONARY, RECORD_BATCH, SCHEMA, Message, check_size, messages
from service.decode.columnar import index_of
from service.decode.columns import Array
from service.events import NO_ID, NO_WEIGHT, is_id
from service.fairness import Slices, worked
from service.table import Table
from service.texts import Texts

MAX_ROWS = 8_192
"""Most rows of a table; a larger record batch becomes several tables."""
MAX_CELLS = 131_072
"""Approximate limit of values in a table: making one of a few columns takes the loop less than a millisecond."""
MIN_ROWS = 16
"""Least rows of a table, if the batch has them, so that rows share the cost of many columns."""
HERE_BYTES = 2**18
HERE_SCHEMA = 2**15
HERE_COLUMNS = 256
"""Anything larger is read in a thread: the event loop should not wait that long."""
TEXT_COLUMNS = 7
"""A column of text takes as long to read as a column of numbers and this many more."""


async def read_tables(
    chunks: AsyncIterator[bytes], *, learn: bool, max_batch_bytes: int, max_rows: int = MAX_ROWS
) -> AsyncGenerator[Table]:
    """The rows of a stream that arrives in chunks of any size; with labels if they are to `learn`.

    Nothing is read ahead: the next record batch is read once the tables of the last are taken. A batch of more than
    `max_batch_bytes` is refused before it is read. So memory is bounded by about three times that.

    An error of a row is raised after the rows before it. Errors of `chunks` pass through.
    """
    reader: _Reader | None = None
    row = 1
    slices = Slices()
    async for message in messages(chunks, max_batch_bytes):
        if slices.spent(len(message)):  # there may be many small messages
            await slices.rest()
        if reader is None:
            reader = await worked(len(message) > HERE_SCHEMA, _Reader, message, learn, max_batch_bytes)
        elif message.kind == RECORD_BATCH:
            # Each batch and each table reads the dictionaries, so their size counts too.
            batch = await worked(max(len(message), reader.held) > HERE_BYTES, reader.read, message)
            tables = reader.layout.tables(batch, row, max_rows)
            is_long = reader.layout.takes_long or reader.held > HERE_BYTES
            while (table := await worked(is_long, next, tables, None)) is not None:
                yield table
            row += message.rows
            del batch, tables, message  # else two batches stay in memory while the next is read
        else:
            reader.keep(message)
    if reader is None:
        raise errors.MalformedArrow(reason="it is empty; a stream begins with its schema")


# -- messages to record batches


class _Feed:
    """The file that pyarrow reads: the messages given to it so far."""

    closed = False

    def __init__(self) -> None:
        self._parts: deque[bytes] = deque()

    def give(self, message: Message) -> None:
        self._parts += message.parts

    def read(self, count: int) -> bytes:
        taken = []
        while count and self._parts:
            part = self._parts.popleft()
            if len(part) > count:
                self._parts.appendleft(part[count:])
            taken.append(part[:count])
            count -= len(taken[-1])
        return b"".join(taken)  # a single whole part, such as a body, is not copied

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        pass


class _Reader:
    """Turns messages into record batches; the first message is the schema."""

    def __init__(self, schema: Message, learn: bool, limit: int) -> None:
        if schema.kind != SCHEMA:
            raise errors.MalformedArrow(reason="it does not begin with its schema")
        self._limit = limit
        self._feed = _Feed()
        self._feed.give(schema)
        self._unread = 0
        self._held: dict[int, int] = {}
        self._all_held = 0
        options = pa.ipc.IpcReadOptions(use_threads=False)
        self._stream = _sound(lambda: pa.ipc.open_stream(self._feed, options=options))
        self.layout = _sound(lambda: _Layout.of(self._stream.schema, learn))

    def keep(self, message: Message) -> None:
        """Take a dictionary for later batches. All dictionaries together are bounded too."""
        if message.kind != DICTIONARY:
            raise errors.MalformedArrow(reason="it has a second schema")
        size = len(message)
        self._unread += size
        before = self._held.get(message.id, 0)
        self._held[message.id] = size + (before if message.is_delta else 0)
        self._all_held += self._held[message.id] - before
        check_size("its dictionaries together", self.held, self._limit)
        self._feed.give(message)

    @property
    def held(self) -> int:
        """Bytes of all dictionaries, including those that pyarrow has not read yet."""
        return max(self._unread, self._all_held)

    def read(self, message: Message) -> Any:
        """The record batch of a message."""
        self._feed.give(message)
        self._unread = 0
        batch = _sound(self._stream.read_next_batch)
        _sound(lambda: batch.validate(full=True))  # else offsets outside the batch would read foreign memory
        return batch


def _sound(read: Callable[[], Any]) -> Any:
    """Return `read()`; raise MalformedArrow if pyarrow finds the bytes invalid."""
    try:
        return read()
    except (pa.ArrowException, OSError, ValueError, StopIteration) as error:
        raise errors.MalformedArrow(reason=(str(error).splitlines() or ["it ends early"])[0][:200]) from None


# -- record batches to tables

_FINITE = "must be a finite number, or null or NaN if there is no value"

_GOOD: dict[str, tuple[set[columns.Kind], str]] = {
    "y": ({"number", "truth", "whole"}, "must be 0 and 1, or true and false"),
    "weight": ({"number", "whole", "null"}, "must be numbers"),
    "id": ({"text", "uuid", "whole", "null"}, "must be text, whole numbers or UUIDs"),
    "": ({"number", "truth", "whole", "text", "uuid", "null"}, "must be numbers, true and false, or text"),
}
"""For each special column, and for features (""): the allowed kinds, and the message for others."""
_A_TIME = "; a date or time is not a number: send what matters in it, such as the hour"
_ADVICE: dict[tuple[str, columns.Kind], str] = {
    ("y", "text"): " (with pyarrow: pyarrow.compute.equal(column, 'yes'))",
    ("id", "number"): " (with pyarrow: column.cast('int64'))",
    ("id", "truth"): " (with pyarrow: column.cast('string'))",
    ("id", "date"): " (with pyarrow: column.cast('string'))",
    ("id", "time"): " (with pyarrow: column.cast('string'))",
    ("id", "bytes"): " (with pyarrow: column.cast('string'))",
    ("weight", "truth"): " (with pyarrow: column.cast('float64'))",
    ("weight", "text"): " (with pyarrow: column.cast('float64'))",
    ("", "bytes"): " (with pyarrow: column.cast('string'))",
    ("", "date"): f"{_A_TIME} (with pyarrow: column.cast('timestamp[s]').cast('int64') is seconds since 1970)",
    ("", "time"): f"{_A_TIME} (with pyarrow: pyarrow.compute.hour(column)), or a count (column.cast('int64'))",
    ("", "nested"): "; send each of its parts as a column",
}

Wrong = tuple[int, str, str]
"""A row of a table, from 0; its wrong field; the reason."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """The roles of columns; None for a role without a column."""

    features: list[str]
    y: str | None
    weight: str | None
    id: str | None
    kinds: dict[str, columns.Kind]

    @classmethod
    def of(cls, schema: Any, learn: bool) -> _Layout:
        """The layout of a schema; raises InvalidEvent for a missing, duplicate or useless column."""
        kinds: dict[str, columns.Kind] = {}
        special = ("y", "weight", "id") if learn else ("id",)
        index = index_of(schema)
        for column in schema:
            name = column.name
            if name in kinds:
                raise errors.InvalidEvent(field=_path(name), reason="two columns have this name; rename one")
            if name in special or name not in index:
                kinds[name] = columns.kind_of(column)
                if name in ("y", "weight") and not learn:
                    raise errors.InvalidEvent(field=name, reason="a prediction does not use it; leave this column out")
                _check_kind(name if name in special else "", column, kinds[name])
        if learn and "y" not in kinds:
            raise errors.InvalidEvent(field="y", reason="is missing: events to learn need a column y with their labels")
        y, weight, id_ = (name if name in special and name in kinds else None for name in ("y", "weight", "id"))
        return cls([name for name in kinds if name not in special], y, weight, id_, kinds)

    @property
    def takes_long(self) -> bool:
        """Whether reading the columns takes longer than the event loop should wait."""
        kinds = list(self.kinds.values())
        return len(kinds) + TEXT_COLUMNS * kinds.count("text") > HERE_COLUMNS or "uuid" in kinds

    def tables(self, batch: Any, first_row: int, max_rows: int) -> Iterator[Table]:
        """The rows of a record batch. At a wrong row it yields the rows before it, then raises InvalidEvent."""
        rows = min(max_rows, max(MIN_ROWS, MAX_CELLS // max(1, len(self.features))))
        for start in range(0, batch.num_rows, rows):
            table, wrong = self._table(batch.slice(start, rows), first_row + start)
            if wrong is None:
                yield table
                continue
            row, field, reason = wrong
            if row:
                yield table.part(0, row)
            raise table.invalid(row, field, reason)

    def _table(self, batch: Any, first_row: int) -> tuple[Table, Wrong | None]:
        """A table of all rows, and the first wrong row, if any."""
        # Column by column: batch.columns is a single long call if there are a hundred thousand.
        at = {name: j for j, name in enumerate(batch.schema.names)}
        wrong: list[Wrong] = []
        labels = None if self.y is None else _labels(batch.column(at[self.y]), wrong)
        weights = None if self.weight is None else _weights(batch.column(at[self.weight]), wrong)
        ids = None if self.id is None else _ids(batch.column(at[self.id]), wrong)
        features = [batch.column(at[name]) for name in self.features]
        values, texts = _features(features, [self.kinds[name] for name in self.features], batch.num_rows)
        present: Mask | None = None
        finite = np.isfinite(values)
        if not finite.all():
            absent = np.isnan(values)
            finite |= absent
            if not finite.all():
                row, j = divmod(int(finite.argmin()), len(features))
                wrong.append((row, _path(self.features[j]), _FINITE))
            if absent.any():
                present = ~absent
                values[absent] = 0.0
        table = Table(first_row, self.features, values, present, labels, weights, ids, texts)
        return table, min(wrong, key=lambda one: one[0], default=None)


def _path(name: str) -> str:
    return f"x.{name[:64]}"


def _check_kind(special: str, column: Any, kind: columns.Kind) -> None:
    """Raise InvalidEvent unless this kind suits a feature, or the `special` column y, weight or id."""
    good, reason = _GOOD[special]
    if kind not in good:
        told = f"this column is of type {str(column.type)[:100]}; it {reason}{_ADVICE.get((special, kind), '')}"
        raise errors.InvalidEvent(field=special or _path(column.name), reason=told)


def _features(found: list[Array], kinds: list[columns.Kind], rows: int) -> tuple[Floats, dict[int, columns.Words]]:
    """A Table's values (NaN for missing) and its text columns."""
    values, texts = np.empty((rows, len(found))), dict[int, columns.Words]()
    for j, (column, kind) in enumerate(zip(found, kinds, strict=True)):
        if kind in ("text", "uuid"):
            texts[j] = columns.Words(pa.array(columns.strings(column), pa.string()) if kind == "uuid" else column)
            values[:, j] = np.where(columns.there(column), 1.0, np.nan)
        else:
            values[:, j] = columns.numbers(column)
    return values, texts


def _first_wrong(good: Mask, field: str, reason: str, wrong: list[Wrong]) -> None:
    if not good.all():
        wrong.append((int(good.argmin()), field, reason))


def _labels(column: Array, wrong: list[Wrong]) -> Labels:
    numbers = columns.numbers(column)
    is_one = numbers == 1
    _first_wrong((numbers == 0) | is_one, "y", NO_LABEL, wrong)
    labels: Labels = is_one.astype(np.uint8)
    return labels


def _weights(column: Array, wrong: list[Wrong]) -> Floats:
    numbers = columns.numbers(column).astype(np.float64)
    if np.isnan(numbers).any():
        numbers[~columns.there(column)] = 1.0
    _first_wrong((numbers >= 0) & np.isfinite(numbers), "weight", NO_WEIGHT, wrong)
    return numbers


def _ids(column: Array, wrong: list[Wrong]) -> Texts | list[str | None] | None:
    if not columns.there(column).any():
        return None
    ids = columns.strings(column)
    good = (id_ is None or is_id(id_) for id_ in ids)
    _first_wrong(np.fromiter(good, np.bool_, len(ids)), "id", NO_ID, wrong)
    all_ = [id_ for id_ in ids if id_ is not None]
    return Texts.of(all_) if len(all_) == len(ids) else ids
