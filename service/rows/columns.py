"""Decides the kind of each column of a file from its first rows, and shows the table of kinds.

A column has one kind from its first row to its last. If each cell were typed alone, the id `05db9164` would be text,
but the next id, `19772693`, a number that moves a weight by millions.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from service.rows.cells import LARGEST, UNKNOWN, is_code, is_missing, read_numbers, to_number, what_to_write
from service.rows.wrong import WrongOption, WrongRow

Record = tuple[int, Sequence[str]]
"""A row: the line where it begins, and its cells."""

FLAGS = {"number": "--number", "text": "--text", "ignore": "--ignore", "weight": "--weight-column", "id": "--id-column"}
ONLY_ONE = ("weight", "id")
"""Kinds that at most one column of a file has."""
MIXED = "mixed"
"""A name in objects whose values have several kinds. Each value is read as it is; the model keeps no kind."""
LARGEST_WHOLE = 10**15
FEWEST = 10
"""With fewer cells nobody can tell whether a text is an id."""
ALL_NUMBERS, NO_NUMBERS = "each cell is one", "no cell is a number"
EACH = "each is one"
LONGEST_EXAMPLE = 24
ROWS_BELOW = 1_000
"""Rows compared with the header."""
NEW = "new"
"""What a model has learned of a column: nothing, though it has learned others."""
INDEX = "Unnamed: 0"
"""pandas' name, when reading, for an index that was written without a name."""


class Column(NamedTuple):
    """A column: its place and kind (a key of FLAGS, or "label"); for people a reason, an example and missing cells.
    tell: whether the reason may surprise, so that whoever sent the column should be told."""

    name: str
    place: int
    kind: str
    why: str = ""
    example: str = ""
    missing: int = 0
    tell: bool = False


class Kept(NamedTuple):
    """The column kinds that a model keeps, by name. whose: "model 'clicks'"."""

    whose: str
    kinds: Mapping[str, str]


NOTHING_KEPT = Kept("", {})


def agreed(asked: Mapping[str, str], kept: Kept) -> dict[str, tuple[str, str]]:
    """The kinds known before any row, each with the reason. Raises WrongOption if flags and the model differ.

    >>> agreed({"zip": "text"}, Kept("model 'm'", {"zip": "text", "age": "number"}))
    {'zip': ('text', '--text'), 'age': ('number', "as model 'm' keeps it")}
    """
    for name, kind in asked.items():
        for other, of_model in kept.kinds.items():
            if (other == name and of_model != kind) or (other != name and of_model == kind and kind in ONLY_ONE):
                raise WrongOption(
                    f"{FLAGS[kind]} {name}, but {kept.whose} keeps column {other!r} as {of_model!r}: leave out "
                    f"{FLAGS[kind]} {name}, or learn into a new model (--model NAME)"
                )
    known = {name: (kind, FLAGS[kind]) for name, kind in asked.items()}
    return known | {name: (kind, f"as {kept.whose} keeps it") for name, kind in kept.kinds.items() if name not in known}


def told(name: str, place: int, rows: Sequence[Record], kind: str, why: str) -> Column:
    """A column of known kind, with an example and its count of missing cells."""
    cells = [cells[place] for _, cells in rows]
    there = next((cell for cell in cells if not is_missing(cell)), "")
    return Column(name, place, kind, why, there, sum(map(is_missing, cells)))


def worked_out(name: str, place: int, rows: Sequence[Record], new: bool = False) -> Column:
    """A column whose kind its first cells decide. new: as in `of_few`.

    If nine in ten are numbers, or all others are nearly numbers or words for an unknown number, the others may be
    mistakes. Then this raises WrongRow with the line. A code among whole numbers is none: then all may be codes. But
    codes have no sign and no decimal point.
    """
    texts = [cells[place] for _, cells in rows]
    numbers = read_numbers(texts) if texts else None
    if numbers is not None and max(map(abs, numbers)) <= LARGEST:
        return Column(name, place, "number", _about_numbers(name, texts), texts[0])
    # Each different cell is looked at once, in order of appearance; most columns of texts have few.
    counts = {cell: count for cell, count in Counter(texts).items() if not is_missing(cell)}
    total = sum(counts.values())
    missing = len(rows) - total
    if not counts:
        return Column(name, place, "ignore", f"empty so far; {_keep(name)}", "", missing)
    example = next(iter(counts))
    others = [cell for cell in counts if to_number(cell) is None]
    if not others:
        present = [cell for cell in texts if cell in counts]
        return Column(name, place, "number", _about_numbers(name, present), example, missing)
    odd = others[0]
    line = next(line for line, cells in rows if cells[place] == odd)
    not_numbers = sum(counts[cell] for cell in others)
    advice = {what_to_write(cell) for cell in others}
    nearly = None not in advice and (not_numbers < total or advice != {UNKNOWN})
    codes, mostly = any(map(is_code, others)), 10 * not_numbers <= total
    if (mostly and any(map(_is_no_code, counts))) if codes else (mostly or nearly):
        raise WrongRow(
            not_a_number(name, odd, f"looks like numbers ({total - not_numbers:,} of {total:,} cells are)"), line
        )
    if total >= FEWEST and 10 * len(counts) > 9 * total:
        why = f"{len(counts):,} different values in {total:,}: an id or free text; --text {name} keeps it"
        return Column(name, place, "ignore", why, example, missing)
    why = NO_NUMBERS if not_numbers == total else f"line {line}: {cut(odd)!r} {_is_no_number(odd)}"
    kind, why, few = of_few(name, "text", why, total, len(counts), new)
    return Column(name, place, kind, why, example, missing, few)


def of_few(name: str, kind: str, why: str, count: int, different: int, new: bool) -> tuple[str, str, bool]:
    """The kind of a text column and the reason, if its cells may be too few to tell whether they are ids; and whether
    they are. new: whether a model has learned other columns, and not this one. Perhaps it was left out then, as an id.

    >>> of_few("id", "text", "each is one", count=2, different=2, new=True)[0]
    'ignore'
    """
    few = different == count < FEWEST and (new or count > 1)
    if few and new:
        return "ignore", f"the model has not learned it, and too few rows to detect an id; --text {name} keeps it", True
    return kind, f"{why}; too few rows to detect an id" if few else why, few


def _is_no_code(cell: str) -> bool:
    """Whether a cell is a number with a sign or a decimal point."""
    return to_number(cell) is not None and (cell[0] in "+-" or "." in cell)


def not_a_number(name: str, cell: str, how: str) -> str:
    """The message for a cell of a number column that is not a number. how: why the column is one."""
    code = (
        f"a leading zero, more than 15 digits, or more than 1e100 makes it a code; {UNKNOWN}" if is_code(cell) else None
    )
    advice = what_to_write(cell) or code or UNKNOWN
    return (
        f"column {name!r} {how}, but {cut(cell)!r} is not one: {advice}. --text {name} reads the column as text; "
        f"--ignore {name} leaves it out (if the model exists already, use a new one: --model NAME)"
    )


def _is_no_number(cell: str) -> str:
    if is_code(cell):
        return "is not a number (a leading zero, more than 15 digits, or beyond 1e100)"
    return "is not a number"


def _about_numbers(name: str, cells: Sequence[str]) -> str:
    """The remark on a number column."""
    if all(cell.lower() in ("true", "false") for cell in cells):
        return "true is 1, false is 0"
    if len(cells) >= FEWEST:
        numbers = (to_number(cell) or 0.0 for cell in cells)
        if all(after - before == 1.0 for before, after in itertools.pairwise(numbers)):
            return f"numbers the rows; --ignore {name} leaves it out"
    return ALL_NUMBERS


def _keep(name: str) -> str:
    return f"--number {name} or --text {name} keeps it"


def kind_of_values(name: str, values: Sequence[Any]) -> tuple[str, str]:
    """The kind of the values (not null) under one name in objects, as JSON gives it, and the reason.

    Whole numbers of more than 15 digits are ids, as in a table: a 64-bit float does not keep them.

    >>> kind_of_values("a", [1, True]), kind_of_values("a", ["x", "y", "x"]), kind_of_values("a", [1, "1"])[0]
    (('number', 'each is one'), ('text', 'each is one'), 'mixed')
    """
    texts = [value for value in values if isinstance(value, str)]
    codes = [value for value in values if type(value) is int and abs(value) >= LARGEST_WHOLE]
    if len(texts) < len(values) and not codes:
        if texts:
            return (
                MIXED,
                f"texts and other values, each as in JSON; --text {name} or --number {name} makes them one kind",
            )
        return "number", EACH
    distinct = len(set(map(str, values)))
    if len(values) >= FEWEST and 10 * distinct > 9 * len(values):
        return "ignore", f"{distinct:,} different values in {len(values):,}: an id or free text; --text {name} keeps it"
    if codes:
        return "text", "whole numbers of more than 15 digits"
    if all(to_number(text) is not None for text in texts):
        return "text", f"each is a number in quotes, so a text; --number {name} reads the numbers"
    return "text", EACH


# -- the header


def looks_like_data(header: Sequence[str], rows: Sequence[Record], label: str) -> bool:
    """Whether the first line may be a row rather than a header: its cells are like those below it.

    A text above numbers means a header. So does the label's name above labels.
    """
    rows, alike = rows[:ROWS_BELOW], False
    for place, name in enumerate(header):
        below = [cells[place] for _, cells in rows if place < len(cells) and not is_missing(cells[place])]
        if not below or is_missing(name):
            continue
        if all(to_number(cell) is not None for cell in below):
            if to_number(name) is None:
                return False
            alike = True
        elif name in below:
            alike = True
        elif name == label:
            return False
    return alike


def cut(text: str, longest: int = LONGEST_EXAMPLE) -> str:
    text = re.sub(r"[\r\n\t]+", " ", text)
    return text if len(text) <= longest else text[: longest - 3] + "..."
