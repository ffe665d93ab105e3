"""`onestep top`: every model of a running service in the terminal, as it learns."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from service.client import Client, NoAnswer, Refused
from service.terminal import number, show

RETRY_SECONDS = 2.0
_BARS = "▁▂▃▄▅▆▇█"
COLUMNS = ("model", "rule", "seq", "learned/s", "predicted/s", "loss", "window", "accuracy", "window", "loss lately")
_SPARK = 30


def top(url: str) -> int:
    """Show the overview until Ctrl-C, or, where there is no terminal, once. The exit code."""
    with Client(url) as client:
        if sys.stdout.isatty():
            _watch(client)
        else:
            overview = next(client.overviews())
            show(_title(client, overview), _rows(overview), COLUMNS)
    return 0


def _watch(client: Client) -> None:
    from rich.live import Live

    with Live(auto_refresh=False, screen=False) as screen:
        for overview in _overviews(client):
            screen.update(overview if isinstance(overview, str) else _table(client, overview), refresh=True)


def _overviews(client: Client) -> Iterator[dict[str, Any] | str]:
    """Each overview, or what is wrong; a service that went away is waited for."""
    while True:
        try:
            yield from client.overviews()
        except (NoAnswer, Refused) as failure:
            if isinstance(failure, Refused) and failure.status != 503:
                raise
            yield f"{failure}; trying again"
        time.sleep(RETRY_SECONDS)


def _title(client: Client, overview: dict[str, Any]) -> str:
    more = f", and {overview['more']} models more" if "more" in overview else ""
    return f"{client.url}: {overview['state']}{more}"


def _rows(overview: dict[str, Any]) -> list[tuple[float | str | None, ...]]:
    return [
        (
            row["model"],
            row["rule"],
            row["seq"],
            round(row["learned_s"]),
            round(row["predicted_s"]),
            *(row[name] for name in ("loss", "loss_window", "accuracy", "accuracy_window")),
            sparkline(row["spark"][-_SPARK:]),
        )
        for row in overview["models"]
    ]


def sparkline(values: Sequence[float | None]) -> str:
    """Values as bars, the lowest to the highest; a gap where there is none.

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

    table = Table(box=box.SIMPLE, title=Text(_title(client, overview)), title_justify="left")
    for place, name in enumerate(COLUMNS):
        table.add_column(name, justify="right" if 1 < place < len(COLUMNS) - 1 else "left", no_wrap=True)
    for row in _rows(overview):
        table.add_row(*(Text(number(cell)) for cell in row))  # Text: a name with brackets is no markup
    return table
