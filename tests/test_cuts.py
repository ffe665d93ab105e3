"""What is learned and answered does not depend on how the queue was cut into turns."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
from effort import examples
from hypothesis import Phase, given
from hypothesis import strategies as st
from processes import running_engine
from test_engine import plain, whole_state

from core import Spec
from service import clock, errors
from service.events import Event, Label
from service.learning.engine import Engine
from service.learning.model import Prediction
from service.learning.request import Learned, Refused, Result, Run, Stream
from service.table import Table

SPECS: dict[str, dict[str, Any]] = {
    "plain": {"join": {"max_waiting": 5}},
    "watched": {"learning_rate": 5.0, "breaker": {"events": 3, "log_loss": 0.8}},
    "full": {"rule": "adagrad", "max_features": 4, "breaker": {"events": 8, "log_loss": 1.5}},
}
Asked = tuple[str, Any, int | None]
"""The model, the items, and the number of the stream that they are the next piece of."""


def items_of(rng: random.Random, number: int) -> Any:
    """What one request asks: few ids, so that many come again; some events that are refused."""
    kind, size = rng.choice(("events", "events", "events", "table", "keep", "labels")), rng.choice((1, 1, 1, 2, 5))
    id_ = rng.choice((f"p{rng.randrange(4)}", f"e{rng.randrange(4)}"))
    if kind == "keep":
        x = {"a": float(rng.randrange(2))}
        return [Prediction(f"p{rng.randrange(4)}", x, 0, np.array([0.25]), 0, "") for _ in range(size)]
    if kind == "labels":
        return [Label(f"p{rng.randrange(4)}", rng.randrange(2)) for _ in range(size)]
    if kind == "table":
        values = np.array([[rng.choice((1.0, 1.0, 1e301 if rng.random() < 0.1 else 2.0)), number] for _ in range(size)])
        ids: Any = rng.choice((None, [f"t{number}-{i}" if rng.random() < 0.8 else id_ for i in range(size)]))
        return Table(1, ["a", rng.choice("bcdefgh")], values, None, np.arange(size, dtype=np.uint8) % 2, None, ids)
    return [
        Event(
            {"a": float(rng.randrange(2)), rng.choice("bcdefgh"): 1.0},
            2 if rng.random() < 0.05 else rng.randrange(2),
            rng.choice((None, None, f"n{number}-{i}", id_)),
        )
        for i in range(size)
    ]


def requests_of(seed: int, count: int) -> list[Asked]:
    rng = random.Random(seed)
    asked: list[Asked] = []
    for number in range(count):
        stream = rng.randrange(6)
        model = list(SPECS)[stream % 3] if stream < 3 else rng.choice(list(SPECS))
        asked.append((model, items_of(rng, number), stream if stream < 3 else None))
    return asked


def said(items: Any, result: Result) -> Any:
    """What can be compared of a result. That of a table lacks p where the table is learned by column."""
    if result and isinstance(run := result[0], Run):
        losses = zip(run.losses.tolist(), run.taken.tolist(), strict=True)
        outcomes = [(run.first_seq + i, loss if taken else None) for i, (loss, taken) in enumerate(losses)]
        return outcomes + [refused_of(outcome) for outcome in result if isinstance(outcome, Refused)]
    return [
        refused_of(outcome)
        if isinstance(outcome, Refused)
        else (outcome.seq, outcome.loss)
        if isinstance(items, Table) and isinstance(outcome, Learned)
        else repr(outcome)
        for outcome in result
    ]


def refused_of(refused: Refused) -> tuple[str, int | None]:
    return repr(refused.error) + str(refused.error), refused.error.index


def state_of(engine: Engine) -> Any:
    return {
        model.name: (
            whole_state(model),
            (plain(model.joins.state()), plain(model.curve.state())),
            model.waiting,
            None if model.watch is None else plain(model.watch.state()),
            model.stopped,
        )
        for model in engine.models
    }


async def lived(asked: Sequence[Asked], turns: Sequence[int], commit_events: int) -> tuple[Any, Any, int]:
    """The answers and the state if so many requests wait at a time, the state after a restart, and the commits."""
    streams: dict[int, Stream] = {}
    answers: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        async with running_engine(Path(folder), commit_events=commit_events) as engine:
            for name, spec in SPECS.items():
                await engine.create(name, Spec.from_dict(spec))
            before = engine.disk.store.log.db.log_end()[0]
            at = 0
            for count in [*turns, len(asked)]:
                waiting = []
                for model, items, stream in asked[at : at + count]:
                    shared = None if stream is None else streams.setdefault(stream, Stream())
                    waiting.append((items, engine.queue.enqueue(model, items, shared)))
                answers += [said(items, await answer) for items, answer in waiting]
                at += count
            state, commits = state_of(engine), engine.disk.store.log.db.log_end()[0] - before
        async with running_engine(Path(folder)) as engine:
            assert state_of(engine) == state, "a replay gives something else"
    return answers, state, commits


@pytest.fixture(autouse=True)
def _time_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "CLOCK", clock.Clock(lambda: 1e9, time.monotonic))


cuts = st.lists(st.integers(1, 20), max_size=20)


@examples(8, phases=[Phase.explicit, Phase.generate])
@given(seed=st.integers(0, 2**32), count=st.integers(1, 40), turns=cuts, commit_events=st.sampled_from([1, 7, 10_000]))
def test_however_requests_are_cut_into_turns_they_are_learned_and_answered_the_same(
    seed: int, count: int, turns: list[int], commit_events: int
) -> None:
    asked = requests_of(seed, count)
    one_by_one = asyncio.run(lived(asked, [1] * count, 10_000))
    assert asyncio.run(lived(asked, turns, commit_events))[:2] == one_by_one[:2]


def test_an_event_does_not_overtake_a_request_that_was_put_off() -> None:
    asked: list[Asked] = [
        ("plain", [Event({"a": 1.0}, 1, "1")], None),
        ("plain", [Event({"a": 1.0}, 1, "1"), Event({"a": 3.0}, 0, "3")], None),
        ("plain", [Event({"a": 2.0}, 1, "2")], None),
    ]
    assert asyncio.run(lived(asked, [1] * 3, 10_000))[:2] == asyncio.run(lived(asked, [3], 10_000))[:2]


def test_commits_are_as_large_where_no_id_comes_again_and_no_breaker_looks() -> None:
    asked: list[Asked] = [("plain", [Event({"a": 1.0}, i % 2, f"{i}")], None) for i in range(200)]
    assert asyncio.run(lived(asked, [200], 10_000))[2] == 1


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("turns", [[1] * 100, [100], [7] * 20])
def test_a_breaker_stops_the_model_at_the_same_event_in_every_cut(turns: list[int], streamed: bool) -> None:
    asked: list[Asked] = [
        ("watched", [Event({"a": float(i % 5 + 1)}, i % 2)], 0 if streamed else None) for i in range(12)
    ]
    answers, state, _ = asyncio.run(lived(asked, turns, 10_000))
    (_, _, _, watch, stopped) = state["watched"]
    passed = watch["passed_at"]
    assert stopped
    assert state["watched"][0]["seq"] == passed + 3
    told = [answer[0] for answer in answers if answer]
    assert [isinstance(one, str) for one in told[: passed + 3]] == [True] * (passed + 3)
    assert type(told[passed + 3]) is tuple
    assert errors.LearningStopped.__name__ in told[passed + 3][0]


def test_a_stream_longer_than_a_breaker_follows_is_learned_in_pieces_up_to_the_same_event() -> None:
    events = [Event({"a": float(i % 5 + 1)}, i % 2) for i in range(12)]
    whole = asyncio.run(lived([("watched", events, 0)], [1], 10_000))
    apart = asyncio.run(lived([("watched", [event], 0) for event in events], [1] * 12, 10_000))
    assert whole[1] == apart[1]
    learned, (refused, index) = whole[0][0][:-1], whole[0][0][-1]
    assert learned == [answer[0] for answer in apart[0][: len(learned)]]
    assert index == len(learned)
    assert refused == apart[0][len(learned)][0][0]
