"""Builds a batch of events: checks each, finds its columns and copies its values."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from core.batch import INT64, UINT8, Batch, LeftOut, Mask, as_arrays, left_out_of, name_hashes
from core.compiled import compiled
from core.features import MAX_FLOAT, MAX_NAME, EventError, Features, Value, X, first_beyond, is_name
from core.logistic import Floats, Ints, Labels, Offsets

NO_LABEL = "must be 0, 1, true or false; map other labels to these before you send them"


def check_label(y: float, weight: float) -> None:
    """Raise EventError unless `y` is a label and `weight` a sample weight."""
    if y not in (0, 1):
        raise EventError("y", NO_LABEL)
    if not 0.0 < weight < math.inf or weight > MAX_FLOAT:
        raise EventError("weight", "must be a number above 0")


@compiled("boolean(float64[:, ::1], boolean[:, ::1], int32[:, ::1], float64, int64[::1], int32[::1], float64[::1])")
def _gather(
    table: Floats, present: Mask, wanted: Ints, limit: float, offsets: Offsets, columns: Ints, values: Floats
) -> bool:
    """Copy the values that are present and have a `wanted` column, row by row, to `columns` and `values`. Returns False
    if a present value is not within ±limit."""
    at = 0
    for i in range(table.shape[0]):
        for j in range(table.shape[1]):
            if present[i, j]:
                if not abs(table[i, j]) <= limit:
                    return False
                if wanted[i, j] >= 0:
                    columns[at] = wanted[i, j]
                    values[at] = table[i, j]
                    at += 1
        offsets[i + 1] = at
    return True


@dataclass(frozen=True, slots=True)
class Words:
    """A column of text in n rows. `codes` (n,) int32: the place of each row's text among the `words`; -1 for none.

    >>> words = Words(np.array([0, 1, 0, -1], np.int32), ["red", "blue"])
    >>> words.tolist(), words[1:3].tolist()
    (['red', 'blue', 'red', None], ['blue', 'red'])
    """

    codes: Ints
    words: list[str]

    @classmethod
    def of(cls, texts: Sequence[str | None]) -> Words:
        """The column with these texts.

        >>> Words.of(["red", None, "red"]).codes.tolist()
        [0, -1, 0]
        """
        there: dict[str | None, int] = {None: -1}
        codes = [there.setdefault(text, len(there) - 1) for text in texts]
        return cls(np.array(codes, np.int32), [text for text in there if text is not None])

    def __getitem__(self, rows: slice) -> Words:
        return Words(self.codes[rows], self.words)

    def tolist(self) -> list[str | None]:
        """The text of each row."""
        texts: list[str | None] = [*self.words, None]  # -1 is the last
        return [texts[code] for code in self.codes.tolist()]


class BatchBuilder:
    """Gathers events for one model into a `Batch`. It refuses events that are not valid, and they change nothing.

    >>> builder = BatchBuilder(Features())
    >>> builder.add({"a": 2.0}, 1)
    >>> builder.add({"b": True, "a": 1.0}, 0, weight=0.5)
    >>> batch = builder.build()
    >>> batch.columns.tolist(), batch.values.tolist(), batch.offsets.tolist()
    ([0, 1, 0], [2.0, 1.0, 1.0], [0, 1, 3])
    """

    def __init__(self, features: Features) -> None:
        self.features = features
        self.first_feature = len(features)
        # Single events go to the open part; each table is a part of its own.
        self._closed: list[Batch] = []
        self._in_closed = 0
        self._open()

    def _open(self) -> None:
        self._columns = array("i")
        self._values = array("d")
        self._ends = array("q", [0])
        self._labels = bytearray()
        self._weights = array("d")
        self._left_out: dict[int, LeftOut] = {}  # by position, for events with features left out

    def __len__(self) -> int:
        return self._in_closed + len(self._labels)

    def add(self, x: X, y: float, weight: float = 1.0) -> None:
        """Add one event. Raises EventError if it is not valid; then nothing changes."""
        check_label(y, weight)
        self._append(*self.features.admit(x), y, weight)

    def add_again(self, event: Batch, y: float, weight: float = 1.0) -> None:
        """Add an event that was learned before, with another label."""
        check_label(y, weight)
        self._append(event.columns.tolist(), event.values.tolist(), event.left_out, y, weight)

    def _append(
        self, columns: Iterable[int], values: Iterable[float], left_out: LeftOut | None, y: float, weight: float
    ) -> None:
        if left_out is not None:
            self._left_out[len(self._labels)] = left_out
        self._columns.extend(columns)
        self._values.extend(values)
        self._ends.append(len(self._columns))
        self._labels.append(int(y))
        self._weights.append(weight)

    def add_table(
        self,
        names: Sequence[str],
        values: Floats,
        present: Mask | None,
        labels: Labels,
        weights: Floats | None = None,
        texts: Mapping[int, Words] | None = None,
    ) -> None:
        """Add n events at once: same as `add` for each row, in a fiftieth of the time.

        Row i has the features `names` (m) in this order, with the values `values[i]` (n, m), where `present[i]` (n, m;
        None: all present). `labels` and `weights` have n entries (no weights: all 1). `texts`: the columns of text, by
        position; their values are 1. The arrays are used, not copied.

        Raises EventError if a row is not valid, with its `row` from 0; then nothing changes. Raises ValueError if the
        shapes do not fit.

        >>> builder = BatchBuilder(Features())
        >>> builder.add_table(["a", "b"], np.array([[1.0, 2.0], [3.0, 4.0]]), None, np.array([0, 1], np.uint8))
        >>> builder.build().columns.tolist()
        [0, 1, 0, 1]
        """
        shape = (len(labels), len(names))
        if values.shape != shape or (present is not None and present.shape != shape):
            raise ValueError(f"{len(labels)} labels and {len(names)} names make a table of shape {shape}")
        weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
        texts = {} if texts is None else texts
        part = None
        good = ((labels == 0) | (labels == 1)).all() and ((weights > 0.0) & (weights <= MAX_FLOAT)).all()
        if good and not self.features.hashed and len(set(names)) == len(names) <= self.features.max_event:
            part = self._encode_table(names, np.ascontiguousarray(values, np.float64), present, labels, weights, texts)
        if part is None:
            self._add_rows(names, values, present, labels, weights, texts)
            return
        if self._labels:
            self._closed.append(self._open_part())
            self._open()
        self._closed.append(part)
        self._in_closed = sum(map(len, self._closed))

    def _encode_table(
        self,
        names: Sequence[str],
        table: Floats,
        present: Mask | None,
        labels: Labels,
        weights: Floats,
        texts: Mapping[int, Words],
    ) -> Batch | None:
        """The rows as a batch, with their new names added. None if a row may not be valid; then nothing changes."""
        n, m = table.shape
        if texts and not _is_plain_text(names, texts):
            return None
        flat = {j: [f"{names[j]}={word}" for word in text.words] for j, text in texts.items()}
        wanted, new = self._wanted(names, flat, present, texts, n)
        limit = self.features.max_value
        over = sorted({j for j, _ in new[max(0, self.features.max_features - len(self.features)) :]})
        if over and present is None:
            present = np.ones(table.shape, np.bool_)
        if present is None:
            if first_beyond(table.reshape(-1), limit) >= 0:
                return None
            offsets, columns, values = np.arange(n + 1, dtype=np.int64) * m, wanted.reshape(-1), table.reshape(-1)
        else:
            count = np.count_nonzero(present)
            offsets, columns, values = np.zeros(n + 1, np.int64), np.empty(count, np.int32), np.empty(count)
            if not _gather(table, np.ascontiguousarray(present), wanted, limit, offsets, columns, values):
                return None
            columns, values = columns[: offsets[-1]], values[: offsets[-1]]
        try:
            self.features.columns_of([flat[j][code] if j in texts else names[j] for j, code in new], add=True)
        except EventError:
            return None
        left_out = None
        if over and present is not None:
            hashes = np.tile(name_hashes([names[j] for j in over]), (n, 1))
            for k, j in enumerate(over):
                if j in texts:
                    hashes[:, k] = name_hashes(flat[j])[texts[j].codes]
            left_out = left_out_of(hashes, table[:, over], present[:, over] & (wanted[:, over] < 0))
        return Batch(offsets, columns, values, np.asarray(labels, np.uint8), weights, left_out=left_out)

    def _wanted(
        self,
        names: Sequence[str],
        flat: Mapping[int, list[str]],
        present: Mask | None,
        texts: Mapping[int, Words],
        n: int,
    ) -> tuple[Ints, list[tuple[int, int]]]:
        """The model's column for each cell of n rows, -1 where it has no room, and the new features; see
        `_by_appearance`. Changes nothing."""
        of_names = np.array(self.features.known(names), np.int32)
        of_words = {j: np.array(self.features.known(words), np.int32) for j, words in flat.items()}
        new = _by_appearance(of_names, of_words, present, texts) if n else []
        room = max(0, self.features.max_features - len(self.features))
        for column, (j, code) in enumerate(new[:room], len(self.features)):
            if j in texts:
                of_words[j][code] = column
            else:
                of_names[j] = column
        wanted = np.tile(of_names, (n, 1))
        for j, of_word in of_words.items():
            if len(of_word):
                wanted[:, j] = of_word[texts[j].codes]
        return wanted, new

    def _add_rows(
        self,
        names: Sequence[str],
        values: Floats,
        present: Mask | None,
        labels: Labels,
        weights: Floats,
        texts: Mapping[int, Words],
    ) -> None:
        """`add_table` row by row: for hashed names, and to find which row is wrong and why."""
        mark = self.mark()
        there = [[True] * len(names)] * len(labels) if present is None else present.tolist()
        words = {j: text.tolist() for j, text in texts.items()}
        rows = zip(values.tolist(), there, labels.tolist(), weights.tolist(), strict=True)
        for i, (row, has, label, weight) in enumerate(rows):
            x: dict[str, Value | None] = {names[j]: value for j, value in enumerate(row) if has[j]}
            x.update((names[j], of_rows[i]) for j, of_rows in words.items() if has[j])
            try:
                self.add(x, label, weight)
            except EventError as error:
                self.take_back(mark)
                error.row = i
                raise

    def event(self, place: int) -> Batch:
        """The event at `place`, which was added after the last table."""
        i = place - self._in_closed
        of_event = slice(self._ends[i], self._ends[i + 1])
        admitted = (self._columns[of_event], self._values[of_event], self._left_out.get(i))
        return Batch.of_one(admitted, self._labels[i], self._weights[i])

    def mark(self) -> tuple[int, int]:
        """The present position, for `take_back`."""
        return len(self), len(self.features)

    def take_back(self, mark: tuple[int, int]) -> None:
        """Remove every event and every new name since `mark`."""
        events, features = mark
        while events < self._in_closed:
            self._open()
            part = self._closed.pop()
            self._in_closed -= len(part)
            if events > self._in_closed:
                self._closed.append(part.first(events - self._in_closed))
                self._in_closed = events
        kept = events - self._in_closed
        end = self._ends[kept]
        del self._columns[end:], self._values[end:], self._ends[kept + 1 :]
        del self._labels[kept:], self._weights[kept:]
        while self._left_out and next(reversed(self._left_out)) >= kept:
            self._left_out.popitem()
        self.features.truncate(features)

    def new_names(self) -> list[str]:
        """The names that these events brought."""
        return self.features.names[self.first_feature :]

    def _open_part(self) -> Batch:
        """The events of the open part. They share its memory, so it cannot grow any more."""
        left_out = None
        if self._left_out:
            left_out, places = LeftOut.none(len(self._labels)), list(self._left_out)
            left_out.counts[places] = [one.counts[0] for one in self._left_out.values()]
            left_out.marks[places] = [one.marks[0] for one in self._left_out.values()]
        offsets, labels = np.frombuffer(self._ends, INT64), np.frombuffer(self._labels, UINT8)
        arrays = as_arrays(self._columns, self._values)
        return Batch(offsets, *arrays, labels, np.frombuffer(self._weights), left_out=left_out)

    def build(self) -> Batch:
        """The events as arrays. No event can be added afterwards."""
        parts = [*self._closed, self._open_part()] if self._labels else self._closed
        if not parts:
            return Batch(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0), np.zeros(0, np.uint8), np.zeros(0))
        return Batch.concatenate(parts)


def _is_plain_text(names: Sequence[str], texts: Mapping[int, Words]) -> bool:
    """Whether no two features of a row can have the same name, and no text is too long."""
    if any("=" in name for name in names):
        return False
    if not all(is_name(names[j]) for j in texts):
        return False
    return all(len(word) <= MAX_NAME for text in texts.values() for word in text.words)


def _by_appearance(
    of_names: Ints, of_words: Mapping[int, Ints], present: Mask | None, texts: Mapping[int, Words]
) -> list[tuple[int, int]]:
    """The new features, which have no column yet, in the order of their first appearance, row by row: each as the
    table's column and, for a text, its place among the words."""
    first: list[tuple[int, int, int]] = []  # row, column, place
    numbers = [j for j in np.flatnonzero(of_names < 0).tolist() if j not in texts]
    if present is None or not numbers:
        first += [(0, j, 0) for j in numbers]
    else:
        there = present[:, numbers]
        rows = there.argmax(axis=0).tolist()
        first += [(rows[k], j, 0) for k, j in enumerate(numbers) if there[rows[k], k]]
    for j, columns in of_words.items():
        if (columns < 0).any():
            codes, firsts = np.unique(texts[j].codes, return_index=True)
            pairs = zip(firsts.tolist(), codes.tolist(), strict=True)
            first += [(row, j, code) for row, code in pairs if code >= 0 and columns[code] < 0]
    return [(j, code) for _, j, code in sorted(first)]
