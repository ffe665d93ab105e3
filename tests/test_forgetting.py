"""Old ids and events on nodes: a record says what is forgotten, and all nodes forget the same at the same place."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broker import Mock
from patience import PATIENCE
from test_outbox import node

from core.spec import Spec
from service import errors
from service.commands.inspect import examine
from service.events import Event, Label
from service.learning import chores, retention
from service.learning.model import Prediction
from service.learning.request import Duplicate, Outcome
from service.replica import topic
from service.replica.records import Do
from service.replica.replica import Replica
from service.storage.forgotten import NOTHING, Forgotten
from service.storage.ids import IdKind

KEEP: dict[str, Any] = {"keep_ids": "100", "keep_events": "50", "keep_min": 10}
LATE = Spec.from_dict({"join": {"keep": "1s", "on_timeout": "negative", "late": "learn"}})
_names = itertools.count(1)


@pytest.fixture
def name(mock_cluster: Mock) -> str:
    made = f"forgetting-{next(_names)}"
    mock_cluster.create(made, topic.PARTITIONS)
    return made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An engine looks at once for what need not be kept, again and again."""
    for folder in ("one", "two", "new"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(chores, "DROP_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(retention, "LOOK_AGAIN_SECONDS", 0.0)


def event(i: int) -> Event:
    return Event({"a": float(i % 7), "b": 1.0}, i % 2, f"e{i}")


def prediction(id_: str) -> Prediction:
    return Prediction(id_, {"a": 2.0}, 0, np.array([0.25]), 0, "")


def forgotten(engine: Replica) -> Forgotten:
    return engine.disk.store.log.forgotten.get(engine.model("m").stored.key, NOTHING)


def gone(engine: Replica) -> int:
    return engine.disk.store.log.gone(engine.model("m").stored.key)


def mark(engine: Replica) -> tuple[int, str]:
    learner = engine.model("m").learner
    return learner.seq, learner.sha256()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.01)


async def kind(engine: Replica, id_: str) -> IdKind | None:
    found = await engine.find_id("m", id_)
    return None if found is None else found.kind


def seq_of(outcome: Outcome) -> int:
    assert not isinstance(outcome, Duplicate)
    seq = getattr(outcome, "seq", 0)
    assert isinstance(seq, int)
    return seq


def test_nodes_forget_the_same_though_one_has_not_removed_it_yet(mock_cluster: Mock, name: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with node(mock_cluster, tmp_path / "one", name, **KEEP) as one:
            await one.create("m", Spec())
            async with node(mock_cluster, tmp_path / "two", name, **KEEP) as two:
                two.chores.rest(math.inf)
                await goes_on(one, two)
            ends.append(mark(one))
        for folder in ("one", "two", "new"):
            async with node(mock_cluster, tmp_path / folder, name, **KEEP) as again:
                await until(lambda again=again: mark(again) == ends[0])  # type: ignore[misc]  # mypy knows no type
                (told,) = await again.learn("m", [event(5)])
                assert isinstance(told, Duplicate)

    async def goes_on(one: Replica, two: Replica) -> None:
        await one.learn("m", [prediction("p1"), prediction("p2"), prediction("p3")])
        await one.learn("m", [Label("p1", 1), Label("p2", 0), Label("p3", 1)])
        for i in range(0, 300, 20):
            await one.learn("m", [event(j) for j in range(i, i + 20)])
        await until(lambda: forgotten(one).ids > 150)
        await until(lambda: gone(one) > 200)
        await until(lambda: forgotten(two) == forgotten(one))
        assert gone(two) == 0
        known = await two.find_id("m", "p1")
        assert known is not None
        assert known.kind is IdKind.FORGOTTEN
        assert await kind(one, "e5") is await kind(two, "e5") is None
        for engine in (one, two):
            for id_ in ("p3", "e7"):
                with pytest.raises(errors.UnknownId):
                    await engine.learn("m", [Label(id_, 1)])
            (told,) = await engine.learn("m", [event(299)])
            assert isinstance(told, Duplicate)
        assert [seq_of(told) for told in await two.learn("m", [event(5), Event({"a": 2.0}, 1, "p1")])] == [304, 305]
        await two.learn("m", [prediction("p2"), prediction("e6")])
        assert [seq_of(told) for told in await one.learn("m", [Label("p2", 1), Label("e6", 1)])] == [306, 307]
        for engine in (one, two):
            again = await engine.learn("m", [event(5), Event({"a": 2.0}, 1, "p1"), Label("p2", 1), Label("e6", 1)])
            assert [told.seq for told in again if isinstance(told, Duplicate)] == [304, 305, 306, 307]
        await until(lambda: mark(one) == mark(two))
        two.chores.rest(0)
        two.queue.work.set()
        await until(lambda: gone(two) > 200)

    ends: list[tuple[int, str]] = []
    asyncio.run(story())
    for folder in ("one", "two", "new"):
        assert examine(tmp_path / folder).wrong == []


def test_an_event_that_is_forgotten_is_not_corrected_though_it_is_still_there(
    mock_cluster: Mock, name: str, tmp_path: Path
) -> None:
    async def story() -> None:
        async with node(mock_cluster, tmp_path / "one", name, **KEEP | {"keep_ids": "all"}) as engine:
            await engine.create("m", LATE)
            await engine.learn("m", [prediction("first"), prediction("second")])
            await until(lambda: engine.model("m").learner.seq == 2)  # both learned as 0
            engine.chores.rest(math.inf)
            for i in range(0, 40, 20):
                await engine.learn("m", [event(j) for j in range(i, i + 20)])
            (told,) = await engine.learn("m", [Label("first", 1)])
            assert seq_of(told) == 43
            engine._ask_to_forget("m", Forgotten(events=2))  # noqa: SLF001  # as retention does
            await until(lambda: forgotten(engine).events == 2)
            assert gone(engine) == 0
            with pytest.raises(errors.EventGone):
                await engine.learn("m", [Label("second", 1)])

    asyncio.run(story())


def test_a_record_that_forgets_what_is_not_there_is_left_out(mock_cluster: Mock, name: str, tmp_path: Path) -> None:
    async def story() -> None:
        async with node(mock_cluster, tmp_path / "one", name) as engine:
            await engine.create("m", Spec())
            await engine.learn("m", [event(1)])
            for value in (b"[2,0]", b"[0,2]", b"[-1,0]", b'{"ids":1}', b"", b"[1,1,1]", b'["1",0]'):
                engine.queue.announce(Do.FORGET, "m", value)
            engine.queue.announce(Do.FORGET, "unknown", b"[1,1]")
            await engine.learn("m", [event(2)])
            assert forgotten(engine) == NOTHING
            engine.queue.announce(Do.FORGET, "m", b"[1,0]")
            (told,) = await engine.learn("m", [event(1)])
            assert seq_of(told) == 3
            (told,) = await engine.learn("m", [event(2)])
            assert isinstance(told, Duplicate)

    asyncio.run(story())
