"""The small chart of learning curves that `logstep replay` ends with on a terminal."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import pytest

from service.commands.sketch import HEIGHT, WIDEST, draw, sketch


def curve(losses: Sequence[float | None], guessing: float | None = 0.69, model: str = "m") -> dict[str, Any]:
    seq = [i + 1 for i in range(len(losses))]
    guesses = [guessing] * len(losses)
    return {"model": model, "window": 1_000, "seq": seq, "loss_window": losses, "base_rate_loss_window": guesses}


def heights(lines: list[str]) -> list[int]:
    """The height of each bar of a chart, in eighths of a line."""
    rows = [line[11:].ljust(WIDEST) for line in lines[1:]]
    return [sum(max(0, " ▁▂▃▄▅▆▇█".find(cell)) for cell in column) for column in zip(*rows, strict=True)]


def test_bars_are_as_high_as_the_losses_and_guessing_is_above_those_that_are_lower() -> None:
    lines = sketch([curve([0.9, 0.7, 0.5, 0.1])], columns=80)
    assert lines == [
        "log loss of the last 1,000, event 1 to 4; ┄ guessing",
        "    0.9000 █",
        "           █▄┄┄",
        "           ██▁",
        "           ███",
        "           ███",
        "    0.1000 ███▁",
    ]
    assert heights(lines)[:4] == [48, 36, 25, 1]


@pytest.mark.parametrize("columns", [40, 80, 300])
@pytest.mark.parametrize("count", [2, 60, 511])
def test_it_is_no_wider_than_the_terminal_and_ends_with_the_newest_point(columns: int, count: int) -> None:
    lines = sketch([curve([1.0] * (count - 1) + [0.0])], columns)
    assert max(map(len, lines[1:])) <= min(columns, 11 + WIDEST)
    bars = [height for height in heights(lines) if height]
    assert len(bars) == min(count, columns - 12, WIDEST)
    assert bars[-1] == 1
    assert set(bars[:-1]) == {8 * HEIGHT}


def test_huge_losses_at_the_beginning_do_not_flatten_what_came_later() -> None:
    lines = sketch([curve([1e9, 5_000.0, 0.6, 0.5, 0.4], guessing=0.7)], columns=80)
    assert lines[1] == "  ≥ 1.4000 ██"
    assert heights(lines)[:5] == [48, 48, 10, 6, 1]


def test_losses_that_are_all_huge_are_drawn_as_they_are() -> None:
    assert heights(sketch([curve([9_000.0, 5_000.0], guessing=0.7)], columns=80))[:2] == [48, 27]


def test_several_models_have_a_line_each_and_one_scale() -> None:
    curves = [curve([0.7, 0.3, 0.1], model="one"), curve([0.7, 0.7, 0.7], model="guessing")]
    assert sketch(curves, columns=60) == [
        "log loss of the last 1,000, event 1 to 3",
        "  one       █▃▁  0.1000",
        "  guessing  ███  0.7000",
        "  guessing  ███  0.6900",
    ]


def test_where_no_step_was_taken_there_is_a_gap() -> None:
    assert heights(sketch([curve([None, 0.5, None, 0.1], guessing=None)], columns=80))[:4] == [0, 48, 0, 1]


@pytest.mark.parametrize(
    ("curves", "columns"), [([curve([])], 80), ([curve([0.5])], 80), ([curve([0.5, 0.4])], 20), ([], 80)]
)
def test_without_two_points_or_room_nothing_is_drawn(curves: list[dict[str, Any]], columns: int) -> None:
    assert sketch(curves, columns) == []


def test_equal_losses_and_losses_beyond_all_bounds_are_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    assert sketch([curve([0.5, 0.5], guessing=0.5)], columns=80)[-1] == "    0.5000 ▁▁"
    assert len(sketch([curve([1e300, -math.log(0.5)], guessing=0.0)], columns=80)) == HEIGHT + 1


def test_an_encoding_without_block_characters_gets_no_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding, lines in (("ascii", 0), ("utf-8", HEIGHT + 1)):
        written = io.BytesIO()
        output = io.TextIOWrapper(written, encoding=encoding)
        monkeypatch.setattr("sys.stdout", output)
        draw([curve([0.5, 0.4])])
        output.flush()
        assert written.getvalue().count(b"\n") == lines
