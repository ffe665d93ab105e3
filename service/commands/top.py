"""`logstep top`: shows the models of a running service in the terminal, as they learn."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from service.commands.client import Client, NoAnswer, Refused
from service.commands.terminal import number, show
from service.commands.worse import say_if_worse, worse_lines

RETRY_SECONDS = 2.0
_BARS = "▁▂▃▄▅▆▇█"
COLUMNS = (
    *("model", "rule", "seq", "learn/s", "predict/s"),
    *("loss", "guessing", "in window", "guessing there", "accuracy", "lately"),
)
SCORES = ("loss", "base_rate_loss", "loss_window", "base_rate_loss_window", "accuracy_window")
_OTHERS = 94
"""Approximate width of the other columns. The bars get the rest of a line, but at least:"""
_FEWEST_BARS = 10


def top(client: Client) -> int:
    """Show the overview until Ctrl-C, or once if there is no terminal. Returns the exit code."""
    with client:
        if sys.stdout.isatty():
            _watch(client)
        else:
            overview = next(client.overviews())
            show(_title(client, overview), _rows(overview, _bars()), COLUMNS)
            say_if_worse(overview["models"])
    return 0


def _watch(client: Client) -> None:
    from rich.live import Live

    with Live(auto_refresh=False, screen=False) as screen:
        for overview in _overviews(client):
            screen.update(overview if isinstance(overview, str) else _screen(client, overview), refresh=True)


def _screen(client: Client, overview: dict[str, Any]) -> Any:
    """The table, and below it warnings."""
    from rich.console import Group
    from rich.text import Text

    return Group(_table(client, overview), *map(Text, worse_lines(overview["models"])))


def _overviews(client: Client) -> Iterator[dict[str, Any] | str]:
    """Each overview, or an error; waits for a service that went away."""
    while True:
        try:
            yield from client.overviews()
        except (NoAnswer, Refused) as failure:
            if isinstance(failure, Refused) and failure.status != 503:
                raise
            yield f"{failure}; trying again"
        time.sleep(RETRY_SECONDS)


def _title(client: Client, overview: dict[str, Any]) -> str:
    more = f", and {overview['more']} more models" if "more" in overview else ""
    return f"{client.url}: {overview['state']}{more}"


def _rows(overview: dict[str, Any], bars: int) -> list[tuple[float | str | None, ...]]:
    return [
        (
            row["model"],
            row["rule"],
            row["seq"],
            round(row["learned_s"]),
            round(row["predicted_s"]),
            *(row[name] for name in SCORES),
            sparkline(row["spark"][-bars:]),
        )
        for row in overview["models"]
    ]


def _bars() -> int:
    return max(_FEWEST_BARS, shutil.get_terminal_size().columns - _OTHERS)


def sparkline(values: Sequence[float | None]) -> str:
    """Values as bars, scaled from lowest to highest; a space for None.

    >>> sparkline([0.1, 0.2, None, 0.45])
    '▁▃ █'
    """
    known = [value for value in values if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    steps = (high - low) / (len(_BARS) - 1) or 1.0
    return "".join(" " if value is None else _BARS[round((value - low) / steps)] for value in values)


def _table(client: Client, overview: dict[str, Any]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), title=Text(_title(client, overview)), title_justify="left")
    rows = [[number(cell) for cell in row] for row in _rows(overview, _bars())]
    last = len(COLUMNS) - 1
    for place, name in enumerate(COLUMNS):
        width = 0 if place == last else max(len(line[place]) for line in (COLUMNS, *rows))
        table.add_column(name, justify="right" if 1 < place < last else "left", no_wrap=True, min_width=width)
    for cells in rows:
        table.add_row(*map(Text, cells))  # Text: brackets in a name are not markup
    return table
