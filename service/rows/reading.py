"""How rows are to be read: which column is what, and which reader that takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from core.features import EventError, check_flat_name, flatten
from service.events import Event
from service.rows.cells import LARGEST
from service.rows.columns import FLAGS, Column, Kept
from service.rows.formats import Format
from service.rows.labels import Labels
from service.rows.readers import EventReader, LibsvmReader, ObjectReader, Reader
from service.rows.tables import TableReader
from service.rows.wrong import WrongOption, WrongRow

LOOK = 10_000
"""Default number of first rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How rows are to be read.

    label: column or key of the label. positive, negative: see Labels. asked: kinds of columns by name, as in a spec's
    `columns`. look: first rows to look at; None is LOOK, fewer if they are wide (Looked). header: whether the first
    line is a header; by default it is, and must not look like a row. quoted, delimiter: see formats.of_lines.
    """

    label: str | None = None
    positive: Sequence[str] = ()
    negative: Sequence[str] = ()
    asked: Mapping[str, str] = field(default_factory=dict)
    look: int | None = None
    header: bool | None = None
    quoted: bool | None = None
    delimiter: str | None = None

    def labels(self, name: str, notice: Callable[[str], None]) -> Labels:
        """What reads the labels. Raises WrongOption if a label is named for both sides."""
        return Labels(name, self.positive, self.negative, self.look or LOOK, notice)

    def check_label(self, name: str) -> None:
        """Raise WrongOption unless the label's column is named. name: what has the column."""
        if self.label is None:
            raise WrongOption(f"--label COLUMN says which column of {name} is the label")

    def reader(
        self,
        found: Format,
        kept: Kept,
        labels: Labels,
        notice: Callable[[str], None],
        learn: bool = True,
        learned: Callable[[str], str | None] = lambda _: None,
        index: Sequence[str] = (),
    ) -> Reader:
        """The reader for a format. Raises WrongOption for options that do not suit it. See TableReader, and for `index`
        ObjectReader."""
        if found.dialect is not None:
            if learn:
                self.check_label(labels.name)
            how = self.label, learn, self.header, self.asked
            return TableReader(*how, kept, labels, found.dialect, found.skip, notice, learned)
        if found.name == "ndjson" and (self.label is not None or not learn):
            return ObjectReader(self.label, self.asked, kept, labels, index)
        if self.asked:
            flag = FLAGS[next(iter(self.asked.values()))]
            raise WrongOption(f"{flag} needs CSV, or NDJSON of flat objects with --label")
        if found.name == "ndjson":
            if self.positive or self.negative:
                raise WrongOption('--positive and --negative need --label KEY; in {"x": ..., "y": ...} y is 0 or 1')
            return EventReader(labels)
        if self.label is not None:
            raise WrongOption(f"{labels.name} is libsvm, where the label comes first: leave out --label")
        return LibsvmReader(labels)


def check_events(events: Iterable[Event], columns: Sequence[Column]) -> None:
    """Raise WrongRow for an event that no model can learn."""
    known: set[str] = set()
    for event in events:
        try:
            names, values = flatten(event.x)
            for name in () if known.issuperset(names) else names:
                check_flat_name(name)
            known.update(names)
            if not sum(map(abs, values)) <= LARGEST:  # else a look at each, which takes twice as long
                for name, value in zip(names, values, strict=True):
                    if not abs(value) <= LARGEST:
                        raise EventError(f"x.{name}", "must be within 1e100")
        except EventError as error:
            column = error.field.removeprefix("x.")
            hint = f"; --ignore {column} leaves it out" if any(column == there.name for there in columns) else ""
            raise WrongRow(f"{error}{hint}") from None
