"""The commands' output (tables on a terminal, plain lines elsewhere) and their errors."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import Any

LARGE = 1e6
"""Larger numbers are shown with an exponent."""
LONGEST_NUMBER = 24
"""Characters. A column of numbers is right-aligned unless it has a longer text."""
TOLD = 5
"""Most models that are named as worse than guessing."""


class Failed(Exception):
    """A command failed; the text is the message."""

    exit_code = 1


class WrongUsage(Failed):
    """A command was called with arguments that make no sense."""

    exit_code = 2


class WrongRow(Exception):
    """An error in a row of a file; the message does not name the place. `line`: the line, if not the row's first."""

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


def number(value: float | str | None) -> str:
    """A number for people: 45,312 and 0.3321; "-" for None.

    >>> number(45312), number(0.33214), number(1.6e35), number(None)
    ('45,312', '0.3321', '1.60e+35', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4f}" if abs(value) < LARGE else f"{value:.2e}"


def size(count: float) -> str:
    """Bytes for people.

    >>> size(312), size(61440)
    ('312 bytes', '60.0 KiB')
    """
    if count < 1024:
        return f"{count:.0f} bytes"
    for unit in ("KiB", "MiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} GiB"


def show(title: str, rows: Sequence[Sequence[float | str | None]], columns: Sequence[str] = ()) -> None:
    """Print a table; without `columns` it has no header, and each row is a name and its value.

    Prints plain lines if there is no terminal, or if it is too narrow for the table.
    """
    cells = [[number(cell) for cell in row] for row in rows]
    lines = [list(columns), *cells] if columns else cells
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if sys.stdout.isatty() and sum(widths) + 3 * len(widths) + 1 <= shutil.get_terminal_size().columns:
        _show_table(title, cells, rows, columns)
        return
    print(title)
    for line in lines:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _show_table(
    title: str, cells: list[list[str]], rows: Sequence[Sequence[float | str | None]], columns: Sequence[str]
) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.ROUNDED, show_header=bool(columns), header_style="bold")
    for place in range(len(columns) or 2):
        numeric = any(isinstance(row[place], int | float) for row in rows)
        short = all(len(line[place]) <= LONGEST_NUMBER for line in cells)
        header = Text(columns[place]) if columns else ""
        table.add_column(header, justify="right" if numeric and short else "left", overflow="fold")
    for line in cells:
        table.add_row(*map(Text, line))  # Text: brackets in a name are not markup
    console = Console()
    console.print(Text(title, "bold"), soft_wrap=True)
    console.print(table)


def say(message: str) -> None:
    """Print a line for people, on standard error."""
    print(f"logstep: {message}", file=sys.stderr)


def confirm(question: str, yes: bool) -> bool:
    """Whether to go on: with `yes` without asking, else ask on the terminal."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise WrongUsage("there is no terminal to ask on; use --yes to confirm")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


# -- models that are worse than guessing (service/learning/model.py)


def mark_of(model: dict[str, Any]) -> str:
    """The mark of a model that is worse than guessing: over its window, or in total."""
    worse = model["worse_than_guessing"]
    return "" if worse is None else "worse than guessing" if worse["over"] == "window" else "worse in total"


def say_if_worse(models: Sequence[dict[str, Any]]) -> None:
    """Say which models are worse than guessing, with advice."""
    worse = [model for model in models if model["worse_than_guessing"] is not None]
    for model in worse[:TOLD]:
        say(f"model {model['model']}: {model['worse_than_guessing']['advice']}")
    if len(worse) > TOLD:
        say(f"{len(worse) - TOLD:,} more models are worse than guessing; `logstep models show NAME` says more")
