"""Guessing is always saying the share of label 1. Which models are worse is said wherever a log loss is shown."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
from harness import NewModel, Service, Start
from hypothesis import given
from hypothesis import strategies as st

from core.progressive import Brief
from core.spec import Spec
from service.commands import cli
from service.learning.model import worse_than_guessing


def brief(
    events: int, loss: float, guessing: float, last: int = 1000, loss_window: float = 0.3, guessing_window: float = 0.6
) -> Brief:
    """Scores of so many events: log losses over all of them, and over the last."""
    if events <= last:
        loss_window, guessing_window = loss, guessing
    return Brief(events, loss * events, guessing, 0.5, min(events, last), loss_window, guessing_window, 0.5)


SCALING = 'Learn the same events into a new model with {"rule": "auto"}, or with "scale": "standard"'
LOOKING = "--label and --positive of replay; and whether ids are among the columns"


@pytest.mark.parametrize(
    ("spec", "step", "other"),
    [
        (Spec(), SCALING, LOOKING),
        (Spec(rule="adam", scale="maxabs"), SCALING, LOOKING),
        (Spec(rule="auto"), LOOKING, SCALING),
        (Spec(rule="adam", scale="standard"), LOOKING, SCALING),
    ],
)
def test_a_model_that_is_worse_is_told_what_to_try_next(spec: Spec, step: str, other: str) -> None:
    for scores in (brief(201, 0.7, 0.6), brief(5000, 0.2, 0.6, loss_window=0.7), brief(5000, 7.0, 0.6)):
        found = worse_than_guessing(spec, scores)
        assert found is not None
        assert found["advice"].startswith("Worse than guessing over ")
        assert step in found["advice"]
        assert other not in found["advice"]


@pytest.mark.parametrize(
    ("scores", "over", "said"),
    [
        (brief(201, 0.7, 0.6), "window", "over all 201 events: log loss 0.7000, guessing 0.6000"),
        (brief(5000, 0.2, 0.6, loss_window=0.7), "window", "over the last 1,000 events: log loss 0.7000"),
        (
            brief(5000, 7.0, 0.6),
            "total",
            "over all 5,000 events: log loss 7.0000, guessing 0.6000; over the last 1,000",
        ),
        (brief(5000, 1.6e35, 0.6), "total", "log loss 1.60e+35"),
        (brief(300, 0.01, 0.0), "window", "All 300 labels so far are the same"),
        (brief(5000, 0.01, 0.0, guessing_window=0.0), "total", "All 5,000 labels so far are the same"),
        (brief(201, 0.7, 0.6, last=100), "total", "over all 201 events"),
    ],
)
def test_it_is_said_over_which_events(scores: Brief, over: str, said: str) -> None:
    found = worse_than_guessing(Spec(), scores)
    assert found is not None
    assert found["over"] == over
    assert said in found["advice"]


@pytest.mark.parametrize(
    "scores",
    [
        Brief(0, 0.0, None, None, 0, None, None, None),
        brief(200, 7.0, 0.6),  # a model has to begin
        brief(201, 0.6, 0.6),
        brief(5000, 0.2, 0.6, loss_window=0.3),
        brief(5000, 0.2, 0.6, loss_window=0.605),  # as good as guessing: now above, now below
        brief(5000, 0.001, 0.01, loss_window=0.0001, guessing_window=0.0),  # no fraud for a while
        brief(5000, 0.2, 0.6, last=100, loss_window=0.9),
    ],
)
def test_others_are_not_told_of(scores: Brief) -> None:
    assert worse_than_guessing(Spec(), scores) is None


@given(st.floats(0.0, 100.0), st.floats(1e-6, 0.69), st.integers(201, 1000))
def test_up_to_a_window_it_is_all_events_that_count(loss: float, guessing: float, events: int) -> None:
    told = worse_than_guessing(Spec(), brief(events, loss, guessing))
    assert (told is not None) == (loss * events / events > guessing)


# -- where it is said


def raw(path: Path, rows: int = 500) -> Path:
    """A file on which plain SGD is far worse than guessing: its numbers are large, and it has a useful column."""
    numbers = random.Random(3)
    lines = ["income,flag,y"]
    for _ in range(rows):
        y = int(numbers.random() < 0.3)
        lines.append(f"{numbers.lognormvariate(9, 1):.0f},{int(numbers.random() < (0.8 if y else 0.2))},{y}")
    path.write_text("\n".join(lines) + "\n")
    return path


def entropy(labels: list[int]) -> float:
    p = sum(labels) / len(labels)
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def labels_of(path: Path) -> list[int]:
    return [int(line.rsplit(",", 1)[1]) for line in path.read_text().splitlines()[1:]]


def test_the_commands_show_guessing_and_say_which_model_is_worse(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service = start()
    at = f"--url=http://127.0.0.1:{service.port}"
    path = raw(tmp_path / "orders.csv")
    guessing = f"{entropy(labels_of(path)):.4f}"

    def call(*arguments: str) -> tuple[str, str]:
        assert cli.main([*arguments, at]) == 0
        captured = capsys.readouterr()
        return captured.out, captured.err

    output, error = call("replay", str(path), "--label", "y")
    assert f"guessing has          {guessing}\n" in output
    assert "Worse than guessing" not in error, "auto is not"
    output, error = call("replay", str(path), "--label", "y", "--model", "default")
    assert f"guessing has          {guessing}\n" in output
    worse = "logstep: model default: Worse than guessing over all 500 events: log loss "
    assert worse in error
    assert 'Learn the same events into a new model with {"rule": "auto"}' in error
    output, error = call("models", "list")
    rows = {line.split()[0]: line.split()[4:] for line in output.splitlines()[1:]}
    assert rows == {
        "model": ["loss", "guessing"],
        "default": [guessing, *["worse", "than", "guessing"]],
        "orders": [guessing],
    }
    assert worse in error
    output, error = call("models", "show", "default")
    assert re.search(rf"base_rate_log_loss +{guessing} +{guessing}\n", output)
    assert worse in error
    output, _ = call("models", "show", "orders")
    assert "Learners that carry the weight" in output


def test_models_side_by_side_are_shown_beside_guessing(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service = start()
    path = raw(tmp_path / "orders.csv")
    guessing = f"{entropy(labels_of(path)):.4f}"
    command = ["replay", str(path), "--label", "y", f"--url=http://127.0.0.1:{service.port}"]
    assert cli.main([*command, "--spec", "{}", "--spec", '{"rule": "auto"}', "--predict-first"]) == 0
    output, error = capsys.readouterr()
    (row,) = [line for line in output.splitlines() if line.startswith("  guessing")]
    assert row.count(guessing) == 3, "in total, in the window, and as served"
    assert "model orders-sgd: Worse than guessing" in error
    assert "model orders-auto: Worse" not in error
    other = tmp_path / "others.csv"
    other.write_text("income,y\n1,1\n2,1\n")
    assert cli.main([command[0], str(other), *command[2:], "--spec", "{}", "--model", "orders-sgd"]) == 0
    capsys.readouterr()
    assert cli.main([*command, "--spec", "{}", "--spec", '{"rule": "auto"}']) == 0
    output, _ = capsys.readouterr()
    rows = [line.split()[:2] for line in output.splitlines() if line.startswith("  guessing")]
    assert rows == [["guessing,", "orders-sgd"], ["guessing,", "orders-auto"]], "they have learned other events"


def test_over_http_it_is_the_same_everywhere(shared: Service, new_model: NewModel) -> None:
    model = new_model()
    events: list[Any] = [{"x": {"a": 1e6}, "y": i % 3 == 0} for i in range(300)]
    assert model.learn(events[:200]).status_code == 200
    assert model.state()["worse_than_guessing"] is None, "it may begin"
    model.learn(events[200:-1])
    with shared.http.stream("GET", "/stream") as stream:
        told = (json.loads(text[6:])["models"] for text in stream.iter_lines() if text.startswith("data: "))
        next(told)  # of many models it shows those that learn while somebody looks
        model.learn(events[-1:])
        row = next(row for rows in told for row in rows if (row["model"], row["seq"]) == (model.name, len(events)))
    state = model.state()
    guessing = entropy([int(event["y"]) for event in events])
    assert state["progressive"]["total"]["base_rate_log_loss"] == pytest.approx(guessing)
    assert state["worse_than_guessing"]["over"] == "window"
    (line,) = [line for line in shared.get("/models")["models"] if line["model"] == model.name]
    assert line["log_loss"] == state["progressive"]["total"]["log_loss"]
    assert line["base_rate_log_loss"] == state["progressive"]["total"]["base_rate_log_loss"]
    assert line["worse_than_guessing"] == state["worse_than_guessing"]
    assert row["worse_than_guessing"] == state["worse_than_guessing"]
    assert row["base_rate_loss"] == row["base_rate_loss_window"] == line["base_rate_log_loss"]
    metrics = shared.http.get("/metrics").text
    for name in ("base_rate_log_loss", "window_base_rate_log_loss"):
        assert f'logstep_model_{name}{{model="{model.name}"}} {guessing!r}'[:50] in metrics
