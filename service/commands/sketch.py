"""A small chart of learning curves for the terminal, of block characters: one model large, several with a line each."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import Any

from service.commands.terminal import number

HEIGHT = 6
"""Lines of the chart of one model."""
LONGEST_NUMBER = 10
ABOVE = 2.0
"""Losses of more than so many times guessing are drawn no higher, if others are below."""
WIDEST, NARROWEST = 72, 16
"""Columns of the chart itself."""
EIGHTHS = " ▁▂▃▄▅▆▇█"
GUESSING = "┄"

Losses = Sequence[float | None]


def draw(curves: Sequence[dict[str, Any]]) -> None:
    """Draw the replies of GET /models/{model}/curve on a terminal, if it can show block characters."""
    try:
        f"{EIGHTHS}{GUESSING}≥".encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return
    for line in sketch(curves, shutil.get_terminal_size().columns):
        print(line)


def sketch(curves: Sequence[dict[str, Any]], columns: int) -> list[str]:
    """The lines of the chart; none if there is nothing to draw or no room.

    >>> one = {"model": "m", "window": 1000, "seq": [1, 2, 3], "loss_window": [0.7, 0.6, 0.2],
    ...     "base_rate_loss_window": [0.69, 0.69, 0.69]}
    >>> for line in sketch([one, {**one, "model": "other", "loss_window": [0.7, 0.7, 0.5]}], columns=40):
    ...     print(line)
    log loss of the last 1,000, event 1 to 3
      m         █▇▁  0.2000
      other     ██▅  0.5000
      guessing  ███  0.6900
    """
    drawn = [curve for curve in curves if len(curve["seq"]) > 1]
    if not drawn:
        return []
    first, alone = drawn[0], len(curves) == 1
    names = [*(curve["model"] for curve in drawn), "guessing"]
    longest = LONGEST_NUMBER if alone else max(map(len, names))
    wide = min(WIDEST, columns - longest - (2 if alone else 16))
    if wide < NARROWEST:
        return []
    lines = [_sampled(values, wide) for values in (*(c["loss_window"] for c in drawn), first["base_rate_loss_window"])]
    low, high, above = _scale(lines)
    title = f"log loss of the last {first['window']:,}, event {first['seq'][0]:,} to {first['seq'][-1]:,}"
    if alone:
        labels = [above + number(high), *[""] * (HEIGHT - 2), number(low)]
        bars = _bars(lines[0], lines[1], HEIGHT, low, high)
        rows = [f"{label:>{longest}} {bar}".rstrip() for label, bar in zip(labels, bars, strict=True)]
        return [f"{title}; {GUESSING} guessing", *rows]
    bars = [_bars(line, (), 1, low, high)[0] for line in lines]
    most = max(map(len, bars))
    said = zip(names, bars, lines, strict=True)
    return [title, *(f"  {name:<{longest}}  {bar:<{most}}  {number(line[-1])}" for name, bar, line in said)]


def _scale(lines: Sequence[Losses]) -> tuple[float, float, str]:
    """The lowest and the highest value of the chart, and what stands before the highest.

    The last of the lines is guessing. Without a limit, huge losses at the beginning, as on values that are not scaled,
    would flatten all that came later.
    """
    *losses, guessing = ([value for value in line if value is not None] for line in lines)
    there = [value for line in losses for value in line] or [0.0]
    low, high, most = min(there + guessing), max(there + guessing), ABOVE * max(guessing, default=0.0)
    return (low, most, "≥ ") if min(there) < most < high else (low, high, "")


def _sampled(values: Losses, wide: int) -> Losses:
    """At most so many of the values, evenly spaced, the last one included."""
    count = min(wide, len(values))
    return [values[(i + 1) * len(values) // count - 1] for i in range(count)]


def _bars(values: Losses, guessing: Losses, height: int, low: float, high: float) -> list[str]:
    """Bars of eighths of a line, from the top line down, and above them where guessing is."""

    def eighths(value: float | None) -> int:
        if value is None:
            return 0
        return 1 + round((8 * height - 1) * (min(value, high) - low) / ((high - low) or 1.0))

    bars = [eighths(value) for value in values]
    marks = [(eighths(value) - 1) // 8 for value in guessing] or [-1] * len(bars)
    return [
        "".join(
            GUESSING if bar <= 8 * line and mark == line else EIGHTHS[min(8, max(0, bar - 8 * line))]
            for bar, mark in zip(bars, marks, strict=True)
        )
        for line in reversed(range(height))
    ]
