"""A model's past, for plots: the rows of the series on a grid of times.

Each point covers the `step` seconds up to its `t`. A row that covers several points is spread over them; several rows
in one point are added up. A point without a row is null: the service was not running, or nothing happened.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from core.logistic import Floats
from service import errors
from service.learning.model import Model
from service.storage import series
from service.storage.log import LogReader
from service.storage.series import BUCKET_SECONDS, COARSER, KEPT_SECONDS, Mark, Row

POINTS = 720
STEPS = (5, 10, 15, 20, 30, 60, 120, 180, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200, 86_400)
LATEST = 4_102_444_800.0
"""The year 2100. A larger number is not in seconds."""

_GAUGES = {
    **{name: name for name in ("loss_total", "loss_window", "accuracy_window")},
    "base_rate_loss_window": "entropy",
    **{name: name for name in ("waiting", "commit_p50_ms", "commit_p99_ms")},
}
"""Names in the reply, and their columns in the rows."""


class Past:
    """Reads the series of a data folder in a connection of its own, one request at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._turn = asyncio.Lock()

    async def series(self, model: Model, from_: str | None, to: str | None, step: str | None) -> bytes:
        """The reply of `GET /models/{model}/series`, as JSON."""
        now = time.time()
        grid = asked_for(now, from_, to, step)

        def read() -> bytes:
            with closing(LogReader(self._folder)) as log:
                rows, marks = series.read(log.db, model.stored.key, grid.start, grid.end)
            return msgspec.json.encode({"model": model.name, **on_grid(grid, rows, marks, now)}) + b"\n"

        async with self._turn:
            return await asyncio.to_thread(read)


class Grid(NamedTuple):
    """Points every `step` seconds after `start`, up to `end`."""

    start: int
    end: int
    step: int

    @property
    def points(self) -> int:
        return (self.end - self.start) // self.step


def asked_for(now: float, from_: str | None, to: str | None, step: str | None) -> Grid:
    """The grid that a request asks for.

    By default it is the last hour, in the shortest step that the rows have and that gives at most `POINTS` points.
    Raises InvalidParameter for a grid that makes no sense.
    """
    end = now if to is None else _number("to", to)
    start = end - 3_600 if from_ is None else _number("from", from_)
    if not start < end:
        raise errors.InvalidParameter(field="from", reason="must be before `to`")
    if end - start > 2 * KEPT_SECONDS:
        raise errors.InvalidParameter(field="from", reason=f"must be at most {2 * KEPT_SECONDS} s before `to`")
    if step is not None:
        wide = math.ceil(_number("step", step))
        grid = _covering(start, end, max(wide, 1))
        if wide < 1 or grid.points > POINTS:
            reason = f"must be at least {max(1, math.ceil((end - start) / (POINTS - 1)))}, for at most {POINTS} points"
            raise errors.InvalidParameter(field="step", reason=reason)
        return grid
    shortest = max((seconds for seconds, age in COARSER if start < now - age - seconds), default=BUCKET_SECONDS)
    grids = (_covering(start, end, step) for step in STEPS if step >= shortest)
    return next(grid for grid in grids if grid.points <= POINTS)


def _covering(start: float, end: float, step: int) -> Grid:
    """The grid of whole steps around a period. It drops the first, partial step where that would exceed `POINTS`."""
    first, last = int(start // step) * step, math.ceil(end / step) * step
    return Grid(first + step if last - first == (POINTS + 1) * step else first, last, step)


def _number(field: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= LATEST:
        raise errors.InvalidParameter(field=field, reason="must be a number of seconds; times are seconds since 1970")
    return number


def on_grid(grid: Grid, rows: Sequence[Row], marks: Sequence[Mark], now: float) -> dict[str, Any]:
    """The reply for rows in order of time, and marks."""
    columns = dict(zip(Row._fields, zip(*rows, strict=True), strict=True)) if rows else {}

    def column(name: str) -> Floats:
        return np.array(columns.get(name, ()), np.float64)  # None is NaN

    edges = grid.start + grid.step * np.arange(grid.points + 1)
    ends = column("t")
    starts = ends - column("seconds")
    starts[1:] = np.maximum(starts[1:], ends[:-1])  # rows overlap if the clock was set back

    def added(values: Floats) -> Floats:
        """The sum in each point: the difference of the running sum, which grows evenly within a row."""
        if not rows:
            return np.zeros(grid.points)
        sums = np.concatenate(([0.0], np.cumsum(values)))
        running = np.interp(edges, np.stack((starts, ends), 1).ravel(), np.stack((sums[:-1], sums[1:]), 1).ravel())
        return np.diff(running)

    covered = added(ends - starts) > 0
    newest = np.searchsorted(starts, edges[1:]) - 1  # the last row that begins before the point's end

    def gauge(values: Floats) -> Floats:
        return np.where(covered, values[newest], np.nan) if rows else np.full(grid.points, np.nan)

    def mean(total: str, count: str) -> Floats:
        counts = added(column(count))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(covered & (counts > 1e-9), added(column(total)) / counts, np.nan)

    elapsed = np.clip(now - edges[:-1], 1.0, grid.step)  # the newest point has not ended yet
    plotted: dict[str, Floats | list[Any]] = {
        **{name: whole(gauge(column(name))) for name in ("seq", "features")},
        **{name: np.where(covered, added(column(name)) / elapsed, np.nan) for name in ("learned", "predicted")},
        "loss": mean("loss", "scored"),
        **{told: gauge(column(name)) for told, name in _GAUGES.items()},
        "served_loss": mean("served_loss", "served"),
        "delay_s": mean("delay", "delays"),
    }
    shares = [json.loads(row.shares) if row.shares else {} for row in rows]
    names = sorted({name for weights in shares for name in weights})
    weights = {name: gauge(np.array([weights.get(name, 0.0) for weights in shares])) for name in names}
    return {
        "from": grid.start,
        "to": grid.end,
        "step": grid.step,
        "t": edges[1:].tolist(),
        **{name: values if isinstance(values, list) else values.tolist() for name, values in plotted.items()},
        **({"shares": {name: values.tolist() for name, values in weights.items()}} if weights else {}),
        "marks": [{"t": mark.t, "kind": mark.kind, "seq": mark.seq or None} for mark in marks],
    }


def whole(values: npt.NDArray[np.float64]) -> list[int | None]:
    """Whole numbers; None for NaN."""
    return [None if math.isnan(value) else int(value) for value in values.tolist()]
