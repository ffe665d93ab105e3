"""Turns the rows of a table (CSV, TSV and similar files) into events, by its header and the kinds of its columns."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from service.events import Event, Named, Question
from service.rows.cells import MISSING, read_number, read_numbers, read_text
from service.rows.columns import (
    INDEX,
    NEW,
    ONLY_ONE,
    Column,
    Kept,
    agreed,
    looks_like_data,
    not_a_number,
    told,
    worked_out,
)
from service.rows.labels import Labels
from service.rows.plain import Cells, Plain
from service.rows.readers import Looked, id_of, listed, weight_of
from service.rows.records import Dialect, Records
from service.rows.wrong import WrongRow
from service.table import WORTH_A_TABLE


class TableReader:
    """CSV, TSV and similar files. label: the column's name. learn: whether each row needs its label; else a column of
    this name is left out. header: whether the first line is a header; None checks that it looks like one. notice: gets
    what people should know, after the name of the file."""

    def __init__(
        self,
        label: str | None,
        learn: bool,
        header: bool | None,
        asked: Mapping[str, str],
        kept: Kept,
        labels: Labels,
        dialect: Dialect,
        skip: int,
        notice: Callable[[str], None],
        learned: Callable[[str], str | None] = lambda _: None,
    ) -> None:
        self.columns: list[Column] = []
        self.missing = 0
        self._label = label
        self._learn = learn
        self._header = header
        self._asked = asked
        self._kept = kept
        self._known = agreed(asked, kept)
        self._labels = labels
        self._dialect = dialect
        self._notice = notice
        self._learned = learned
        self._records = Records(dialect, skip, lambda line, what: notice(f"line {line}: {what}"))
        self._top: tuple[int, list[str]] | None = None
        """The first row, which may be the header."""
        self._names: list[str] = []
        """The header's cells, which are not a row; empty without a header, once it has been looked."""
        self._needs = False
        self._width = 0
        self._label_place = -1
        self._id_place, self._weight_place = -1, -1
        self._features = self._numbers = self._texts = _Cells([])
        self._plain: Plain | None = None

    def records(self, lines: Iterator[bytes]) -> Iterator[tuple[int, list[str]]]:
        if self._header is False and self._top is not None:
            top, self._top = self._top, None
            yield top
        yield from self._records.of(lines)

    def begin(self, lines: Iterator[bytes]) -> bool:
        top = self._top = next(self._records.of(lines), None)
        if top is None:
            raise WrongRow("is empty")
        self._names = [str(number) for number in range(1, len(top[1]) + 1)] if self._header is False else top[1]
        self._needs = any(name and name not in self._known and name != self._label for name in self._names)
        return self._needs

    def look(self, lines: Iterator[bytes], looked: Looked) -> None:
        assert self._top is not None  # noqa: S101  # `begin` has read it
        at, names = self._top[0], self._names
        records = self.records(looked.counted(lines))
        looked.read_first(records)
        looked.read_rows(records, self._needs)
        if self._header is None and looks_like_data(names, looked.rows, self._label or ""):
            shown = ", ".join(repr(name[:24]) for name in names[:5])
            raise WrongRow(
                f"looks like a row, not a header: {shown}. With --no-header it is the first row, the columns are 1, 2, "
                "..., and --label N gives the label. With --header it names the columns",
                at,
            )
        if not looked.rows:
            raise WrongRow("has a header but no rows")
        if self._header is False:
            self._names = []
        names, unnamed = self._widened(names, looked.rows)
        self._width = len(names)
        if self._label is not None and (self._learn or self._label in names):
            self._label_place = self._place(names, self._label)
        self._check_names(names, unnamed)
        self._check_known(names)
        for line, cells in looked.rows:
            self._check_row(cells, line)
        self._check_new(names, unnamed)
        self.columns = [self._column(name, place, unnamed, looked.rows) for place, name in enumerate(names)]
        self._set_places()

    @property
    def line(self) -> int:
        """How many lines have been read."""
        return self._records.read

    def again(self, lines: int) -> None:
        """Read the last lines again: they come next."""
        self._records.read -= lines

    def plain(self, data: bytearray) -> Cells | None:
        """The leading rows of whole lines, if enough of them can be read at once. They then count as read."""
        if self._plain is None or not data:
            return None
        cells = self._plain.read(data)
        if len(cells.table) < WORTH_A_TABLE and cells.end < len(data):
            return None
        if cells.table.present is not None:
            self.missing += cells.table.present.size - int(np.count_nonzero(cells.table.present))
        self._labels.count(cells.labels)
        self._records.read += len(cells.table)
        return cells

    def event(self, record: Sequence[str]) -> Event | None:
        if len(record) != self._width or record == self._names:
            self._check_row(record)
        y = self._labels.read(record[self._label_place])
        if y is None:
            return None
        weight = 1.0 if self._weight_place < 0 else weight_of(record[self._weight_place])
        return Event(self._x(record), y, self._id(record), weight)

    def question(self, record: Sequence[str]) -> Question:
        if len(record) != self._width or record == self._names:
            self._check_row(record)
        return Question(self._x(record), self._id(record))

    def _id(self, record: Sequence[str]) -> str | None:
        return None if self._id_place < 0 else id_of(record[self._id_place])

    def _x(self, record: Sequence[str]) -> Named:
        """A row's features."""
        # Most rows have no missing cells. Reading them at once takes half the time of reading cell by cell.
        numbers = read_numbers(self._numbers.of(record))
        texts = self._texts.of(record) if self._texts.names else ()
        x: Named
        if numbers is None or not MISSING.isdisjoint(map(str.lower, texts)):
            x = dict(self._values(record))
            self.missing += len(self._features.names) - len(x)
        elif texts:
            x = dict(zip(self._features.names, self._features.of(record), strict=True))  # for the order of the columns
            x.update(zip(self._numbers.names, numbers, strict=True))
        else:
            x = dict(zip(self._numbers.names, numbers, strict=True))
        return x

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

    def _place(self, names: Sequence[str], column: str) -> int:
        if column not in names:
            raise WrongRow(f"has no column {column!r}; it has {listed(names)}{self._or_a_row()}")
        return names.index(column)

    def _or_a_row(self) -> str:
        return "; if its first line is a row, use --no-header and --label N" if self._header is None else ""

    def _check_names(self, names: Sequence[str], unnamed: Mapping[int, str]) -> None:
        for place, name in enumerate(names):
            if not name and place not in unnamed:
                raise WrongRow(f"has no name for column {place + 1} in its header{self._or_a_row()}")
            if name and names.index(name) < place:
                raise WrongRow(f"has two columns with the name {name!r}: rename one of them{self._or_a_row()}")

    def _check_known(self, names: Sequence[str]) -> None:
        """Raise WrongRow if columns that flags or the model name are missing or misused."""
        known = self._known
        if self._label in known:
            kind, why = known[self._label]
            raise WrongRow(f"has the label in column {self._label!r}, which cannot also be {kind!r} ({why})")
        for name, (kind, _) in known.items():
            if name in self._asked or (kind in ONLY_ONE and self._learn):
                self._place(names, name)
        gone = [name for name in known if name not in names]
        if gone:
            self._notice(f"lacks columns that {self._kept.whose} knows: {listed(gone)}")

    def _check_new(self, names: Sequence[str], unnamed: Mapping[int, str]) -> None:
        """Raise WrongRow for columns that are new to the model: their kinds might differ from file to file."""
        places = (place for place in range(len(names)) if place not in unnamed and place != self._label_place)
        new = [names[place] for place in places if names[place] not in self._known]
        if self._kept.kinds and new:
            raise WrongRow(
                f"has columns that {self._kept.whose} does not know: {listed(new)}. --number {new[0]}, "
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
        kind = self._learned(name)
        if kind not in (None, NEW):
            self._known[name] = kind, "as the model has learned it"
            return told(name, place, rows, *self._known[name])
        return worked_out(name, place, rows, new=kind == NEW and self._learn)

    def _set_places(self) -> None:
        self._numbers = _Cells([column for column in self.columns if column.kind == "number"])
        self._texts = _Cells([column for column in self.columns if column.kind == "text"])
        self._features = _Cells([column for column in self.columns if column.kind in ("number", "text")])
        self._id_place = next((column.place for column in self.columns if column.kind == "id"), -1)
        self._weight_place = next((column.place for column in self.columns if column.kind == "weight"), -1)
        if not self._features.names:
            left = [column.name for column in self.columns if column.kind == "ignore" and column.name]
            keeps = f"; left out: {listed(left)}. --text NAME or --number NAME keeps one" if left else ""
            raise WrongRow(f"has no column to learn from{keeps}")
        header = self._label if self._names else None
        labels = partial(self._labels.known, header=header)
        self._plain = Plain.of(self._dialect, self.columns, labels) if self._learn else None


class _Cells:
    """Columns of a table: their names, and their cells `of` a row."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.names = [column.name for column in columns]
        places = [column.place for column in columns]
        self.of: Callable[[Sequence[str]], Sequence[str]] = (
            operator.itemgetter(*places) if len(places) > 1 else lambda cells: [cells[place] for place in places]
        )
