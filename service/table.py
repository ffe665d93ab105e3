"""Rows of a stream as arrays: about a thousand events with the same features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Any

import numpy.typing as npt

from core.batch import Mask
from core.builder import Words
from core.logistic import Floats, Labels
from service import errors
from service.events import Event, Label, Question
from service.problem import path_of
from service.texts import Texts

WORTH_A_TABLE = 200
"""Least lines of one shape that become a table. With fewer, a mixed stream would fall into tiny pieces."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of a stream, checked except for what depends on the model."""

    first_row: int
    """The number of the first row in its stream; rows count from 1."""
    names: list[str]
    """The m features in column order, which is also their order in every event."""
    values: Floats
    """(n, m) float64, row-major; 0 where there is no value, 1 in text columns."""
    present: Mask | None = None
    """(n, m) bool: where there is a value. None means everywhere."""
    labels: Labels | None = None
    """(n,) uint8, 0 or 1. None in rows to predict."""
    weights: Floats | None = None
    """(n,) float64, above 0. None means all are 1."""
    ids: Texts | list[str | None] | None = None
    """n ids; a list where a row may have none. None means that no row has one."""
    texts: dict[int, Any] = field(default_factory=dict)
    """The text columns, by position: Words, or what can be sliced, and whose `tolist` gives the strings of its rows."""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def is_plain(self) -> bool:
        """Whether the arrays can be learned as they are: text as Words, and either no ids or every id and value."""
        whole = self.present is None and bool(self.names)  # a row with an id and no features is a late label
        coded = all(isinstance(text, Words) for text in self.texts.values())
        return coded and (self.ids is None or (whole and isinstance(self.ids, Texts)))

    def arrays(self) -> tuple[list[str], Floats, Mask | None, Labels, Floats | None, dict[int, Words]]:
        """The arguments of `BatchBuilder.add_table`, for a plain table of events."""
        if self.labels is None:
            raise TypeError("these rows have no labels")
        return self.names, self.values, self.present, self.labels, self.weights, self.texts

    def part(self, start: int, stop: int) -> Table:
        """The rows `start` to `stop` (excluded), counted from 0 in this table. Copies no arrays."""

        optional: list[Any] = [self.present, self.labels, self.weights, self.ids]
        columns = (None if column is None else column[start:stop] for column in optional)
        present, labels, weights, ids = columns
        texts = {j: text[start:stop] for j, text in self.texts.items()}
        values, first = self.values[start:stop], self.first_row + start
        return Table(first, self.names, values, present, labels, weights, ids, texts)

    def coded(self) -> Table:
        """The same, with text as Words."""
        return replace(self, texts={j: Words.of(text.tolist()) for j, text in self.texts.items()})

    def invalid(self, i: int, field: str, reason: str) -> errors.InvalidEvent:
        """The error for a field of this table's row i."""
        row = self.first_row + i
        return errors.InvalidEvent(field=path_of(f"row {row}", field), reason=reason, row=row)

    def events(self, start: int, stop: int) -> list[Event | Label]:
        """Rows to learn, as objects. A thousand at a time is faster than all at once."""
        if self.labels is None:
            raise TypeError("these are rows to predict from; they have no labels")
        xs = self._xs(start, stop)
        labels = self.labels[start:stop].tolist()
        weights = [1.0] * len(xs) if self.weights is None else self.weights[start:stop].tolist()
        return [
            Label(id_, y, weight) if id_ is not None and not x else Event(x, y, id_, weight)
            for x, y, id_, weight in zip(xs, labels, self._ids(start, stop), weights, strict=True)
        ]

    def questions(self, start: int, stop: int) -> list[Question]:
        """Rows to predict from, as objects."""
        return [Question(*row) for row in zip(self._xs(start, stop), self._ids(start, stop), strict=True)]

    def _ids(self, start: int, stop: int) -> Sequence[str | None]:
        return [None] * len(self.values[start:stop]) if self.ids is None else self.ids[start:stop]

    def _xs(self, start: int, stop: int) -> list[dict[str, Any]]:
        """The features of each row."""
        cells: npt.NDArray[Any] = self.values[start:stop]
        if self.texts:
            cells = cells.astype(object)
            for j, text in self.texts.items():
                cells[:, j] = text[start:stop].tolist()
        pairs = (zip(self.names, row, strict=True) for row in cells.tolist())
        if self.present is None:
            return [dict(row) for row in pairs]
        return [dict(compress(row, has)) for row, has in zip(pairs, self.present[start:stop].tolist(), strict=True)]
