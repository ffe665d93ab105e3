"""The engine alone, without HTTP: group commit, failures, duplicates, snapshots, recovery."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import math
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import accumulate, count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import processes
import pytest
from effort import examples, from_checks_on
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE
from processes import Told, copied, ids_in, logged_events, new_engine, replay, running_engine, started, told

from core import Learner, Spec
from core.auto import Auto
from core.rules import RULES
from core.spec import InverseScaling, Optimal
from service import errors, failures
from service.clock import Clock
from service.events import Event, Label
from service.fairness import WIDE
from service.learning import chores
from service.learning import writer as writer_module
from service.learning.engine import Engine
from service.learning.model import Model
from service.learning.queue import IN_LINE
from service.learning.recovery import Recovery
from service.learning.request import Outcome, Stream
from service.storage.log import LogReader
from service.storage.store import ModelBatch, Store
from service.storage.waiting import WaitingReader


def run(story: Coroutine[Any, Any, None]) -> None:
    """Run a test's story on an event loop of its own."""
    asyncio.run(asyncio.wait_for(story, PATIENCE))


def event(value: float, y: int = 1, id_: str | None = None, feature: str = "a", weight: float = 1.0) -> Event:
    return Event({feature: value}, y, id_, weight)


def some_events(count: int, start: int = 0) -> list[Event]:
    """Events that teach something, on a handful of features."""
    return [
        Event({"age": (i % 17) / 10, f"f{i % 7}": 1.0, "vip": i % 3 == 0}, int(i % 17 > 8), weight=1.0 + (i % 5) / 4)
        for i in range(start, start + count)
    ]


def rows(folder: Path, query: str) -> list[tuple[Any, ...]]:
    """What a query finds in the log, read beside the engine."""
    with closing(sqlite3.connect(f"file:{folder / 'log.db'}?mode=ro", uri=True)) as db:
        return db.execute(query).fetchall()


def commits(engine: Engine) -> int:
    return engine.disk.store.log.db.log_end()[0]


def whole_state(model: Model) -> dict[str, Any]:
    """All that a model is, for comparing: the learner to the last bit, its scores, its names."""
    state: dict[str, Any] = plain(model.learner.state())
    return {**state, "sha256": model.learner.sha256(), "scores": model.scores.summary()}


def plain(value: Any) -> Any:
    """A state with its arrays as bytes."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return value.tobytes() if isinstance(value, np.ndarray) else value


class Gate:
    """Holds the writer in its commits, from the `first` held on, until it is opened; then that one may fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, first: int = 1, error: Exception | None = None) -> None:
        self.opened = threading.Event()
        self.entered = threading.Event()
        commit, numbers = Store.commit, count(1)

        def held(store: Store, batches: Sequence[ModelBatch], *more: Any) -> bool:
            number = next(numbers)
            if number >= first:
                self.entered.set()
                assert self.opened.wait(PATIENCE)
            if number == first and error is not None:
                raise error
            return commit(store, batches, *more)

        monkeypatch.setattr(Store, "commit", held)

    async def wait_until_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, PATIENCE)


@pytest.fixture(autouse=True)
def _still(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of day stands still: a commit of the series could come between those that a test counts."""
    now = time.time()
    monkeypatch.setattr(processes, "CLOCK", Clock(lambda: now))


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.opened.set()


@contextmanager
def failing_commits(error: Exception, times: int = 1) -> Iterator[list[int]]:
    """The store's next `times` commits raise `error`; the list that is given counts the calls."""
    calls: list[int] = []
    commit = Store.commit

    def failing(store: Store, batches: Sequence[ModelBatch], *more: Any) -> bool:
        calls.append(sum(len(part.batch) for part in batches))
        if len(calls) <= times:
            raise error
        return commit(store, batches, *more)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Store, "commit", failing)
        yield calls


async def gathered(*tasks: Coroutine[Any, Any, list[Outcome]]) -> list[Any]:
    """What became of each, errors too; in the order in which they were begun."""
    results = await asyncio.gather(*tasks, return_exceptions=True)
    return [told(result) if isinstance(result, list) else result for result in results]


async def as_a_kill_would_leave_it(engine: Engine, to: Path) -> Path:
    """A copy of the folder of a running engine, made between two of its commits."""
    return await engine.disk.run(lambda store: copied(store.log.db.folder, to))


async def reopened(folder: Path, **settings: Any) -> dict[str, dict[str, Any]]:
    """Every model after a start on this folder."""
    async with running_engine(folder, **settings) as engine:
        return {model.name: whole_state(model) for model in engine.models}


def test_the_garbage_collector_does_not_read_the_names_of_a_large_model(tmp_path: Path) -> None:
    """Else a full collection, which holds up everybody, takes 8 ms more for each million names."""

    def read(engine: Engine) -> bool:
        names = engine.model("m").learner.features.names
        return any(one is names for one in gc.get_objects())

    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            await engine.create("m", Spec())
            assert read(engine)
            await engine.learn("m", [Event({f"f{i}": 1.0 for i in range(5_000)}, 1)])
            assert not read(engine)
        async with running_engine(tmp_path) as engine:
            assert not read(engine)

    asyncio.run(story())


@pytest.mark.parametrize("features", [1, 5_000])
def test_a_process_can_have_one_engine_after_another_and_keeps_none(tmp_path: Path, features: int) -> None:
    async def story() -> list[weakref.ref[Engine]]:
        stopped = []
        for _ in range(3):
            async with running_engine(tmp_path) as engine:
                await engine.learn("default", [Event({f"f{i}": 1.0 for i in range(features)}, 1)])
                stopped.append(weakref.ref(engine))
        return stopped

    stopped = asyncio.run(story())
    gc.collect()
    assert [engine() for engine in stopped] == [None] * 3


# -- group commit and order


def test_learns_that_wait_together_share_commits(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            before = commits(engine)
            results = await gathered(*[engine.learn("default", [event(i / 100)]) for i in range(500)])
            assert [told(result).seq for result in results] == [[i + 1] for i in range(500)]
            assert 1 <= commits(engine) - before <= 5
            assert len(rows(tmp_path, "SELECT 1 FROM batches")) == commits(engine) - before

    run(story())


def test_a_commit_has_no_more_events_than_commit_events_unless_one_request_has(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path, commit_events=40) as engine:
            requests = [some_events(size) for size in (15, 15, 15, 100, 1, 39, 1)]
            await gathered(*[engine.learn("default", events) for events in requests])
            sizes = [size for (size,) in rows(tmp_path, "SELECT events FROM batches ORDER BY first_seq")]
            assert sizes == [30, 15, 100, 40, 1]

    run(story())


def test_one_commit_has_a_row_for_each_model_in_it(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            for name in "abc":
                await engine.create(name, Spec())
            before = commits(engine)
            results = await gathered(*[engine.learn("abc"[i % 3], [event(i)]) for i in range(9)])
            assert [told(result).seq for result in results] == [[1], [1], [1], [2], [2], [2], [3], [3], [3]]
            assert commits(engine) == before + 1
            assert rows(tmp_path, "SELECT events FROM batches") == [(3,), (3,), (3,)]

    run(story())


def test_seq_is_the_order_of_the_queue(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path, commit_events=7) as engine:
            values = [i / 1000 for i in range(200)]
            results = await gathered(*[engine.learn("default", [event(value)]) for value in values])
            assert [told(result).seq[0] for result in results] == list(range(1, 201))
        assert [x["a"] for x, _, _ in logged_events(tmp_path)] == values

    run(story())


def test_what_is_learned_together_is_what_is_learned_one_by_one(tmp_path: Path) -> None:
    async def story() -> None:
        events = some_events(300)
        plain = Learner()
        expected = [plain.learn_many([e.x], [int(e.y)], [e.weight]) for e in events]
        async with running_engine(tmp_path) as engine:
            results = await gathered(*[engine.learn("default", [e]) for e in events])
            assert [told(result).p for result in results] == [outcome.probabilities.tolist() for outcome in expected]
            assert [told(result).loss for result in results] == [outcome.losses.tolist() for outcome in expected]
            assert engine.model("default").learner.sha256() == plain.sha256()

    run(story())


def test_a_batch_longer_than_a_piece_of_steps_is_learned_whole_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "STEP_EVENTS", 7)
    monkeypatch.setattr(writer_module, "DRAFT_WORK", 3)

    async def story() -> None:
        events = some_events(100)
        plain = Learner()
        outcome = plain.learn_many([e.x for e in events], [int(e.y) for e in events], [e.weight for e in events])
        async with running_engine(tmp_path) as engine:
            one, two = await gathered(engine.learn("default", events[:60]), engine.learn("default", events[60:]))
            assert one.p + two.p == outcome.probabilities.tolist()
            assert one.seq + two.seq == list(range(1, 101))
            assert engine.model("default").learner.sha256() == plain.sha256()

    run(story())


def test_the_answer_comes_after_the_commit_and_a_prediction_then_sees_the_event(tmp_path: Path, gate: Gate) -> None:
    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            learning = asyncio.create_task(engine.learn("default", [event(1.0)]))
            await gate.wait_until_entered()
            model = engine.model("default")
            assert not learning.done()
            assert model.learner.seq == 0
            assert model.predict({"a": 1.0})[0] == 0.5  # nobody sees what is not on disk
            gate.opened.set()
            await learning
            assert model.learner.seq == 1
            assert model.predict({"a": 1.0})[0] > 0.5

    run(story())


def test_a_request_without_events_is_answered_and_writes_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            before = commits(engine)
            assert await engine.learn("default", []) == []
            assert commits(engine) == before

    run(story())


def test_a_waiter_that_gave_up_does_not_disturb_the_others(tmp_path: Path, gate: Gate) -> None:
    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            first = asyncio.create_task(engine.learn("default", [event(1.0)]))
            second = asyncio.create_task(engine.learn("default", [event(2.0)]))
            await gate.wait_until_entered()
            first.cancel()
            gate.opened.set()
            assert told(await second).seq == [2]
            assert told(await engine.learn("default", [event(3.0)])).seq == [3]

    run(story())


# -- commits that fail


def test_a_full_disk_is_told_to_all_who_wait_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path / "a") as engine:
            await engine.learn("default", some_events(20))
            before = whole_state(engine.model("default"))
            with failing_commits(errors.DiskFull()) as calls:
                waiting = [engine.learn("default", [event(1.0, feature=f"new-{i}", id_=f"id-{i}")]) for i in range(5)]
                results = await gathered(*waiting)
            assert calls == [5]
            assert [type(result) for result in results] == [errors.DiskFull] * 5
            assert whole_state(engine.model("default")) == before
            assert engine.model("default").learner.features.names == before["names"]
            assert engine.lifecycle.state == "ready"
            assert engine.lifecycle.failure is None
            result = await engine.learn("default", [event(1.0, feature="new-4", id_="id-4"), event(2.0)])
            assert told(result).seq == [21, 22]
            assert told(result).duplicate == [False, False]
            after = whole_state(engine.model("default"))
            left = await as_a_kill_would_leave_it(engine, tmp_path / "b")
        assert (await reopened(left))["default"] == after
        assert after["names"] == [*before["names"], "new-4", "a"]
        assert replay(left)["default"]["sha256"] == after["sha256"]

    run(story())


def test_a_disk_that_is_really_full_refuses_and_then_goes_on(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path / "a") as engine:
            await engine.learn("default", some_events(20))
            db = engine.disk.store.log.db.connection
            db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")
            with pytest.raises(errors.DiskFull):
                await engine.learn("default", [event(1.0, feature=f"new-{i}") for i in range(3000)])
            assert engine.model("default").learner.seq == 20
            db.execute("PRAGMA max_page_count = 1000000")
            await engine.learn("default", [event(1.0, feature="other")])
            after = whole_state(engine.model("default"))
            left = await as_a_kill_would_leave_it(engine, tmp_path / "b")
        assert (await reopened(left))["default"] == after

    run(story())


def test_a_full_disk_takes_back_the_names_of_every_model_in_the_commit(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            await engine.create("other", Spec())
            with failing_commits(errors.DiskFull()):
                await gathered(
                    engine.learn("default", [event(1.0, feature="x")]), engine.learn("other", [event(1.0, feature="y")])
                )
            assert [len(model.learner.features) for model in engine.models] == [0, 0]
            await gathered(
                engine.learn("default", [event(1.0, feature="p")]), engine.learn("other", [event(1.0, feature="q")])
            )
            assert [model.learner.names for model in engine.models] == [["p"], ["q"]]

    run(story())


def test_a_failed_storage_is_told_to_all_who_wait_and_ends_learning_but_not_predicting(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(store: Store, batches: Sequence[ModelBatch], *more: Any) -> bool:
        gate.entered.set()
        assert gate.opened.wait(PATIENCE)
        raise errors.StorageFailed(reason="the disk is gone")

    monkeypatch.setattr(Store, "commit", broken)

    async def story() -> None:
        engine = await started(tmp_path)
        told: list[str] = []
        engine.on_failure = lambda: told.append(engine.lifecycle.state)
        writing = asyncio.create_task(engine.learn("default", [event(1.0)]))
        await gate.wait_until_entered()
        queued = [asyncio.create_task(engine.learn("default", [event(i)])) for i in range(3)]
        await asyncio.sleep(0)
        gate.opened.set()
        for task in (writing, *queued):
            with pytest.raises(errors.StorageFailed, match="the disk is gone"):
                await task
        assert isinstance(engine.lifecycle.failure, errors.StorageFailed)
        assert engine.lifecycle.state == "failed"
        assert told == ["failed"]  # once
        for attempt in (
            engine.learn("default", [event(1.0)]),
            engine.learn("default", [event(1.0)], Stream()),
            engine.create("other", Spec()),
            engine.delete("default"),
        ):
            with pytest.raises(errors.StorageFailed):
                await attempt
        assert engine.model("default").predict({"a": 1.0})[0] == 0.5
        assert engine.model("default").learner.seq == 0
        await engine.stop(seconds=1)

    run(story())


def test_a_stream_that_waits_for_room_is_told_that_the_storage_failed(
    tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(store: Store, batches: Sequence[ModelBatch], *more: Any) -> bool:
        gate.entered.set()
        assert gate.opened.wait(PATIENCE)
        raise errors.StorageFailed(reason="the disk is gone")

    monkeypatch.setattr(Store, "commit", broken)

    async def story() -> None:
        engine = await started(tmp_path, queue_events=2)
        first = asyncio.create_task(engine.learn("default", [event(1.0)]))
        await gate.wait_until_entered()
        waiting = asyncio.create_task(engine.learn("default", some_events(2), Stream()))
        without_room = asyncio.create_task(engine.learn("default", some_events(2), Stream()))
        await asyncio.sleep(0.01)
        gate.opened.set()
        for task in (first, waiting, without_room):
            with pytest.raises(errors.StorageFailed):
                await task
        await engine.stop(seconds=1)

    run(story())


def test_a_failed_look_for_ids_is_a_failed_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        engine = await started(tmp_path)

        def broken(*_: Any) -> Any:
            raise errors.StorageFailed(reason="cannot read")

        monkeypatch.setattr(WaitingReader, "find_ids", broken)
        with pytest.raises(errors.StorageFailed, match="cannot read"):
            await engine.learn("default", [Label("x", 1)])
        assert engine.lifecycle.state == "failed"
        await engine.stop(seconds=1)

    run(story())


@pytest.mark.parametrize("change", ["create", "delete"])
def test_a_storage_that_fails_while_models_change_ends_the_engine_and_it_can_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    def broken(*_: Any) -> None:
        raise errors.StorageFailed(reason="the disk is gone")

    async def story() -> None:
        engine = await started(tmp_path)
        await engine.create("m", Spec())
        monkeypatch.setattr(Store, f"{change}_model", broken)
        with pytest.raises(errors.StorageFailed):
            await (engine.create("n", Spec()) if change == "create" else engine.delete("m"))
        assert engine.lifecycle.state == "failed"
        with pytest.raises(errors.StorageFailed):
            await engine.learn("default", [event(1.0)])
        stopping = asyncio.create_task(engine.stop(seconds=1))
        done, _ = await asyncio.wait([stopping], timeout=5)
        assert done, "an engine that failed could not be stopped"

    run(story())


def test_a_mistake_in_the_writer_leaves_nobody_waiting(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        engine = await started(tmp_path)
        with failing_commits(ZeroDivisionError("a mistake")):
            first = asyncio.create_task(engine.learn("default", [event(1.0)]))
            second = asyncio.create_task(engine.learn("default", [event(2.0, id_="x")]))
            done, waiting = await asyncio.wait([first, second], timeout=2)
        for task in waiting:
            task.cancel()
        assert len(done) == 2, "a waiter was never answered"
        for task in done:
            assert isinstance(task.exception(), errors.LogstepError)
        assert isinstance(engine.lifecycle.failure, errors.StorageFailed)
        await engine.stop(seconds=1)

    run(story())


# -- the queue


def test_a_full_queue_refuses_requests_and_lets_streams_wait(tmp_path: Path, gate: Gate) -> None:
    async def story() -> None:
        async with running_engine(tmp_path, queue_events=10) as engine:
            writing = asyncio.create_task(engine.learn("default", [event(0.0)]))
            await gate.wait_until_entered()
            queued = asyncio.create_task(engine.learn("default", some_events(8)))
            await asyncio.sleep(0)
            with pytest.raises(errors.QueueFull, match="8 events wait for the writer; the limit is 10"):
                await engine.learn("default", some_events(3))
            fits = asyncio.create_task(engine.learn("default", some_events(2)))
            await asyncio.sleep(0)
            stream = asyncio.create_task(engine.learn("default", some_events(3), Stream()))
            await asyncio.sleep(0.01)
            assert not stream.done()
            gate.opened.set()
            results = [await task for task in (writing, queued, fits, stream)]
            assert [told(result).seq for result in results] == [[1], [*range(2, 10)], [10, 11], [12, 13, 14]]

    run(story())


def test_room_is_kept_for_what_is_being_decoded(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path, queue_events=10) as engine:
            async with engine.queue.announced(8):
                with pytest.raises(errors.QueueFull):
                    await engine.learn("default", some_events(3))
                assert engine.queue.has_room(2)
            assert told(await engine.learn("default", some_events(10))).seq[-1] == 10
            async with engine.queue.announced(50):  # larger than the queue, and alone
                assert not engine.queue.has_room(1)
                stream = asyncio.create_task(engine.learn("default", some_events(3), Stream()))
                await asyncio.sleep(0.01)
                assert not stream.done()
            assert told(await stream).seq == [11, 12, 13]  # what is not learned after all makes room too
            assert engine.queue.has_room(10)

    run(story())


async def announce(engine: Engine, count: int, entered: list[int], leave: asyncio.Event) -> None:
    """Keep room for so many events until it is let go."""
    async with engine.queue.announced(count):
        entered.append(count)
        await leave.wait()


def test_arrays_without_room_wait_in_line_and_others_are_refused_meanwhile(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path, queue_events=10) as engine:
            entered: list[int] = []
            leave = [asyncio.Event() for _ in range(3)]
            engine.queue.check_room()
            tasks = []
            for count, event in zip((9, 5, 1), leave, strict=True):
                tasks.append(asyncio.create_task(announce(engine, count, entered, event)))
                await asyncio.sleep(0.01)
            assert entered == [9]  # there is room for one more, but another was there before it
            with pytest.raises(errors.QueueFull):
                engine.queue.check_room()
            leave[0].set()
            await asyncio.sleep(0.01)
            assert entered == [9, 5, 1]
            engine.queue.check_room()
            for event in leave:
                event.set()
            await asyncio.gather(*tasks)
            assert engine.queue.has_room(10)

    run(story())


def test_a_stream_waits_behind_the_array_that_was_there_before_it(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path, queue_events=10) as engine:
            entered: list[int] = []
            leave = [asyncio.Event() for _ in range(2)]
            first = asyncio.create_task(announce(engine, 6, entered, leave[0]))
            await asyncio.sleep(0.01)
            large = asyncio.create_task(announce(engine, 10, entered, leave[1]))
            await asyncio.sleep(0.01)
            stream = asyncio.create_task(engine.learn("default", some_events(2), Stream()))
            await asyncio.sleep(0.01)
            assert not stream.done()  # there would be room for it
            leave[0].set()
            await asyncio.sleep(0.01)
            assert entered == [6, 10]
            leave[1].set()
            assert told(await stream).seq == [1, 2]
            await asyncio.gather(first, large)

    run(story())


def test_nobody_waits_in_line_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.learning.queue.LINE_SECONDS", 0.05)

    async def story() -> None:
        async with running_engine(tmp_path, queue_events=10) as engine:
            leave = asyncio.Event()
            first = asyncio.create_task(announce(engine, 10, [], leave))
            await asyncio.sleep(0.01)
            with pytest.raises(errors.QueueFull):
                await announce(engine, 1, [], leave)
            leave.set()
            await first
            engine.queue.check_room()

    run(story())


def test_the_line_has_an_end(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path, queue_events=10) as engine:
            entered: list[int] = []
            leave = asyncio.Event()
            tasks = [asyncio.create_task(announce(engine, 10, entered, leave)) for _ in range(1 + IN_LINE)]
            await asyncio.sleep(0.01)
            with pytest.raises(errors.QueueFull, match="10 events wait"):
                await announce(engine, 1, entered, leave)
            tasks[3].cancel()  # whose connection was lost
            await asyncio.sleep(0.01)
            last = asyncio.create_task(announce(engine, 7, entered, leave))
            leave.set()
            await asyncio.gather(*tasks[:3], *tasks[4:], last)
            assert entered == [10] * IN_LINE + [7]

    run(story())


def test_who_waits_in_line_is_told_when_the_service_stops(tmp_path: Path) -> None:
    async def story() -> None:
        engine = await started(tmp_path, queue_events=10)
        leave = asyncio.Event()
        first = asyncio.create_task(announce(engine, 10, [], leave))
        waiting = [asyncio.create_task(announce(engine, 10, [], leave)) for _ in range(2)]
        await asyncio.sleep(0.01)
        await engine.stop(seconds=1)
        for task in waiting:
            with pytest.raises(errors.NotReady):
                await task
        leave.set()
        await first

    run(story())


def test_a_request_larger_than_the_queue_is_taken_when_nothing_waits(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path, queue_events=10) as engine:
            assert told(await engine.learn("default", some_events(50))).seq[-1] == 50

    run(story())


def test_the_queue_has_room_again_after_requests_were_refused_or_put_off(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path, queue_events=10) as engine:
            for i in range(5):
                await gathered(
                    engine.learn("default", [event(1.0, id_=f"x{i}")] * 2),
                    engine.learn("default", [event(1.0, id_=f"x{i}")]),
                    engine.learn("default", [event(1.0, y=7)]),
                    engine.learn("nowhere", [event(1.0)]),
                )
            assert engine.queue.events == 0
            assert told(await engine.learn("default", some_events(10))).seq[-1] == 15

    run(story())


# -- ids


def test_an_id_is_learned_once_and_its_duplicates_have_its_seq(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            await engine.learn("default", [event(1.0)])
            first = told(await engine.learn("default", [event(2.0, id_="x")]))
            again = await engine.learn("default", [event(2.0, id_="x"), event(3.0), event(2.0, id_="x")])
            assert (first.seq, first.duplicate) == ([2], [False])
            assert (told(again).seq, told(again).duplicate) == ([2, 3, 2], [True, False, True])
            assert told(again).p[0] is told(again).loss[0] is told(again).p[2] is None
            assert told(again).p[1] is not None
        async with running_engine(tmp_path) as engine:
            again = await engine.learn("default", [event(2.0, id_="x")])
            assert (told(again).seq, told(again).duplicate) == ([2], [True])

    run(story())


def test_an_id_with_another_x_y_or_weight_is_a_conflict(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            await engine.learn("default", [Event({"a": 1.0, "b": 2.0}, 1, "x", 3.0)])
            assert told(await engine.learn("default", [Event({"b": 2.0, "a": 1.0}, True, "x", 3.0)])).duplicate == [
                True
            ]
            for other in (
                Event({"a": 1.0, "b": 2.5}, 1, "x", 3.0),
                Event({"a": 2.0, "b": 1.0}, 1, "x", 3.0),
                Event({"a": 1.0}, 1, "x", 3.0),
                Event({"a": 1.0, "b": 2.0, "c": 0.0}, 1, "x", 3.0),
                Event({"a": 1.0, "b": 2.0}, 0, "x", 3.0),
                Event({"a": 1.0, "b": 2.0}, 1, "x", 3.5),
            ):
                with pytest.raises(errors.IdConflict):
                    await engine.learn("default", [other])
            assert engine.model("default").learner.seq == 1
            assert len(engine.model("default").learner.features) == 2

    run(story())


def test_a_duplicate_of_an_event_in_flight_waits_for_it(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            results = await gathered(*[engine.learn("default", [event(1.0, id_="x")]) for _ in range(10)])
            assert [told(result).seq for result in results] == [[1]] * 10
            assert sorted(told(result).duplicate[0] for result in results) == [False] + [True] * 9
            conflict, other = await gathered(
                engine.learn("default", [event(1.0, id_="y")]), engine.learn("default", [event(2.0, id_="y")])
            )
            assert told(conflict).seq == [2]
            assert isinstance(other, errors.IdConflict)

    run(story())


def test_a_duplicate_of_an_event_whose_commit_failed_is_tried_itself(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            with failing_commits(errors.DiskFull()):
                first, second = await gathered(
                    engine.learn("default", [event(1.0, id_="x")]), engine.learn("default", [event(1.0, id_="x")])
                )
            assert isinstance(first, errors.DiskFull)
            assert isinstance(second, Told), f"the second was told {second!r}, and the log has {commits(engine)}"
            assert (second.seq, second.duplicate) == ([1], [False])
            assert engine.model("default").learner.seq == 1

    run(story())


def test_an_event_that_was_refused_is_not_learned_afterwards(tmp_path: Path) -> None:
    """Whoever is told that the disk is full must find that his event was not learned."""

    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            with failing_commits(errors.DiskFull()):
                results = await gathered(
                    engine.learn("default", [event(1.0, id_="x")]),
                    engine.learn("default", [event(1.0, id_="x"), event(5.0, id_="y")]),
                )
            await engine.learn("default", [event(9.0)])
            answered = sum(len(result.seq) for result in results if isinstance(result, Told))
            assert engine.model("default").learner.seq == answered + 1

    run(story())


def test_a_duplicate_of_an_event_that_was_refused_is_tried_itself(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            refused, learned = await gathered(
                engine.learn("default", [event(1.0, id_="x"), event(1.0, y=5)]),
                engine.learn("default", [event(1.0, id_="x")]),
            )
            assert isinstance(refused, errors.InvalidEvent)
            assert (learned.seq, learned.duplicate) == ([1], [False])

    run(story())


def test_requests_that_were_put_off_keep_their_order(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            await gathered(
                engine.learn("default", [event(0.0, id_="x")]),
                engine.learn("default", [event(0.0, id_="x"), event(1.0)]),
                engine.learn("default", [event(0.0, id_="x"), event(2.0)]),
                engine.learn("default", [event(0.0, id_="x"), event(3.0)]),
            )
        assert [x["a"] for x, _, _ in logged_events(tmp_path)] == [0.0, 1.0, 2.0, 3.0]

    run(story())


def test_ids_of_one_model_are_not_those_of_another(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            await engine.create("other", Spec())
            results = await gathered(*[engine.learn(name, [event(1.0, id_="x")]) for name in ("default", "other")])
            assert [(told(result).seq, told(result).duplicate) for result in results] == [([1], [False])] * 2

    run(story())


# -- all or nothing, or all before the first that is wrong


@pytest.mark.parametrize("wrong", [event(1.0, y=2), event(1e101), event(1.0, weight=-1.0), event(1.0, feature="")])
def test_one_event_that_cannot_be_learned_refuses_an_atomic_request(tmp_path: Path, wrong: Event) -> None:
    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            before = commits(engine)
            with pytest.raises(errors.InvalidEvent) as found:
                await engine.learn("default", [event(1.0, id_="x"), event(2.0, feature="new"), wrong, event(3.0)])
            assert found.value.index == 2
            assert commits(engine) == before
            assert engine.model("default").learner.features.names == []
            assert told(await engine.learn("default", [event(1.0, id_="x")])).duplicate == [False]

    run(story())


def test_a_refused_request_takes_nothing_from_the_others_in_its_commit(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            one, refused, two = await gathered(
                engine.learn("default", [event(1.0, id_="x", feature="one")]),
                engine.learn("default", [event(2.0, id_="y", feature="refused"), event(1.0, y=2)]),
                engine.learn("default", [event(3.0, id_="z", feature="two")]),
            )
            assert (one.seq, two.seq) == ([1], [2])
            assert isinstance(refused, errors.InvalidEvent)
            assert engine.model("default").learner.names == ["one", "two"]
            again = await engine.learn("default", [event(3.0, id_="z", feature="two"), event(2.0, id_="y")])
            assert (told(again).seq, told(again).duplicate) == ([2, 3], [True, False])
        assert [x for x, _, _ in logged_events(tmp_path)] == [{"one": 1.0}, {"two": 3.0}, {"a": 2.0}]

    run(story())


def test_a_request_that_is_not_atomic_keeps_the_events_before_the_one_that_is_refused(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            events = [event(1.0, id_="x"), event(2.0), event(1.0, id_="x"), event(3.0, y=2), event(4.0)]
            result = await engine.learn("default", events, Stream())
            assert (told(result).seq, told(result).duplicate) == ([1, 2, 1], [False, False, True])
            error = told(result).error
            assert isinstance(error, errors.InvalidEvent)
            assert error.index == 3
            conflict = told(await engine.learn("default", [event(5.0), event(9.0, id_="x")], Stream()))
            assert conflict.seq == [3]
            assert isinstance(conflict.error, errors.IdConflict)
        assert [x["a"] for x, _, _ in logged_events(tmp_path)] == [1.0, 2.0, 5.0]

    run(story())


def test_a_step_that_would_not_stay_finite_is_logged_and_not_taken_on_replay_either(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path / "a") as engine:
            await engine.create("steep", Spec(learning_rate=1e250))
            result = await engine.learn("steep", [event(1.0), event(1e99, y=0), event(1e-300)])
            assert [loss is None for loss in told(result).loss] == [False, True, False]
            assert engine.model("steep").learner.not_taken == 1
            after = whole_state(engine.model("steep"))
            left = await as_a_kill_would_leave_it(engine, tmp_path / "b")
        assert (await reopened(left))["steep"] == after

    run(story())


# -- models


def test_learns_that_wait_for_a_model_that_is_deleted_are_told_that_there_is_none(tmp_path: Path, gate: Gate) -> None:
    async def story() -> None:
        gate.opened.set()
        async with running_engine(tmp_path) as engine:
            await engine.create("m", Spec())
            gate.opened.clear()
            gate.entered.clear()
            written = asyncio.create_task(engine.learn("m", [event(1.0, id_="x")]))
            await gate.wait_until_entered()
            deleting = asyncio.create_task(engine.delete("m"))
            await asyncio.sleep(0)
            waiting = asyncio.create_task(engine.learn("m", [event(2.0)]))
            await asyncio.sleep(0)
            gate.opened.set()
            assert told(await written).seq == [1]  # it was committed before the model went
            await deleting
            with pytest.raises(errors.UnknownModel):
                await waiting
            await engine.create("m", Spec())
            again = await engine.learn("m", [event(1.0, id_="x")])
            assert (told(again).seq, told(again).duplicate) == ([1], [False])

    run(story())


def test_learns_that_wait_for_default_when_it_is_deleted_are_learned_by_the_new_one(tmp_path: Path, gate: Gate) -> None:
    async def story() -> None:
        async with running_engine(tmp_path / "a") as engine:
            written = asyncio.create_task(engine.learn("default", [event(1.0, feature="old")]))
            await gate.wait_until_entered()
            deleting = asyncio.create_task(engine.delete("default"))
            await asyncio.sleep(0)
            waiting = asyncio.create_task(engine.learn("default", [event(2.0, feature="new")]))
            await asyncio.sleep(0)
            gate.opened.set()
            assert told(await written).seq == [1]
            await deleting
            assert told(await waiting).seq == [1]
            assert engine.model("default").learner.weights_by_name().keys() == {"new"}
            after = whole_state(engine.model("default"))
            left = await as_a_kill_would_leave_it(engine, tmp_path / "b")
        assert (await reopened(left))["default"] == after

    run(story())


async def until(condition: Callable[[], Any]) -> None:
    """Wait for what the writer does in its own time."""
    while not condition():  # noqa: ASYNC110  # there is nothing that would tell
        await asyncio.sleep(0.005)


def test_the_rows_of_a_deleted_model_go_while_the_engine_runs_or_after_its_next_start(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path / "a") as engine:
            await engine.create("m", Spec())
            await engine.learn("m", [event(1.0, id_="x")])
            await engine.learn("default", [event(1.0)])
            await engine.delete("m")
            left = await as_a_kill_would_leave_it(engine, tmp_path / "b")
            await until(lambda: rows(tmp_path / "a", "SELECT * FROM purges") == [])
            assert rows(tmp_path / "a", "SELECT model FROM batches") == [(1,)]
            assert {model for model, _ in ids_in(tmp_path / "a")} == set()
        async with running_engine(left) as engine:
            assert [model.name for model in engine.models] == ["default"]
            await until(lambda: rows(left, "SELECT * FROM purges") == [])
            assert rows(left, "SELECT model FROM batches") == [(1,)]

    run(story())


def test_a_model_that_is_being_snapshot_can_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.storage.store.SNAPSHOT_CHUNK", 64)

    def begun() -> list[Any]:
        """The chunks of snapshots that are not whole yet."""
        return rows(tmp_path, "SELECT seq FROM snapshot_chunks EXCEPT SELECT seq FROM snapshots")

    async def story() -> None:
        async with running_engine(tmp_path, snapshot_seconds=1e-9) as engine:
            await engine.create("m", Spec())
            for i in range(20):
                await engine.learn("m", [event(1.0, feature=f"f{i}-{j}") for j in range(20)])
                if begun() and i > 3:
                    break
            assert begun()
            await engine.delete("m")
            await engine.create("m", Spec())
            await engine.learn("m", [event(1.0)])
            await until(lambda: rows(tmp_path, "SELECT * FROM purges") == [])
            keys = {model.stored.key for model in engine.models}
            for table in ("snapshots", "snapshot_chunks", "batches", "names"):
                assert {key for (key,) in rows(tmp_path, f"SELECT model FROM {table}")} <= keys
        assert (await reopened(tmp_path))["m"]["seq"] == 1

    run(story())


def test_the_same_spec_again_finds_the_model_and_another_is_a_conflict(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path, max_models=2) as engine:
            model, new = await engine.create("m", Spec(learning_rate=0.5))
            assert new
            assert await engine.create("m", Spec(learning_rate=0.5)) == (model, False)
            with pytest.raises(errors.SpecConflict):
                await engine.create("m", Spec(learning_rate=0.25))
            with pytest.raises(errors.TooManyModels, match="There are 2 models"):
                await engine.create("n", Spec())

    run(story())


def test_models_created_at_once_are_created_once(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            created = await asyncio.gather(*[engine.create("m", Spec()) for _ in range(5)])
            assert sorted(new for _, new in created) == [False] * 4 + [True]
            assert len({id(model) for model, _ in created}) == 1

    run(story())


def test_a_model_created_while_the_engine_recovers_is_refused_or_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, replaying = threading.Event(), threading.Event()
    replay_log = Recovery.models

    def slow(recovery: Recovery) -> dict[str, Model]:
        replaying.set()
        assert release.wait(PATIENCE)
        return replay_log(recovery)

    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            await engine.create("m", Spec())
        monkeypatch.setattr(Recovery, "models", slow)
        engine = new_engine(tmp_path)
        engine.start()
        assert await asyncio.to_thread(replaying.wait, PATIENCE)
        creating = asyncio.create_task(engine.create("m", Spec()))
        await asyncio.sleep(0.01)
        release.set()
        (result,) = await asyncio.gather(creating, return_exceptions=True)
        await until(lambda: engine.lifecycle.state not in ("starting", "recovering"))
        assert engine.lifecycle.failure is None
        assert engine.lifecycle.state == "ready"
        await engine.stop(seconds=1)
        if isinstance(result, BaseException):
            assert isinstance(result, errors.NotReady)
        else:
            assert result[1] is False

    run(story())


def test_nothing_is_learned_or_shown_before_the_log_is_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    replay_log = Recovery.models

    def slow(recovery: Recovery) -> dict[str, Model]:
        assert release.wait(PATIENCE)
        return replay_log(recovery)

    monkeypatch.setattr(Recovery, "models", slow)

    async def story() -> None:
        engine = new_engine(tmp_path)
        engine.start()
        await asyncio.sleep(0.05)
        for attempt in (engine.learn("default", [event(1.0)]), engine.delete("default")):
            with pytest.raises(errors.NotReady):
                await attempt
        with pytest.raises(errors.NotReady):
            engine.model("default")
        release.set()
        await until(lambda: engine.lifecycle.state == "ready")
        await engine.learn("default", [event(1.0)])
        await engine.stop(seconds=1)

    run(story())


def test_a_stop_during_recovery_ends_in_stopped_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = LogReader.batches
    replaying, release = threading.Event(), threading.Event()

    def slow(log: LogReader, *args: Any, **kwargs: Any) -> Iterator[Any]:
        for batch in batches(log, *args, **kwargs):
            replaying.set()
            assert release.wait(PATIENCE)
            yield batch

    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            await engine.learn("default", some_events(10))
            await engine.learn("default", some_events(10, start=10))
        with monkeypatch.context() as patched:
            patched.setattr(LogReader, "batches", slow)
            engine = new_engine(tmp_path)
            engine.start()
            assert await asyncio.to_thread(replaying.wait, PATIENCE)
            stopping = asyncio.create_task(engine.stop(seconds=1))
            await asyncio.sleep(0)
            assert (engine.lifecycle.state, engine.lifecycle.state.stopping) == ("stopped", True)
            release.set()
            await stopping
        assert (engine.lifecycle.state, engine.lifecycle.failure, list(engine.models)) == ("stopped", None, [])
        for attempt in (engine.learn("default", [event(1.0)]), engine.create("m", Spec()), engine.delete("default")):
            with pytest.raises(errors.NotReady, match="stopping"):
                await attempt
        with pytest.raises(errors.NotReady, match="stopping"):  # and not that there is no such model
            engine.model("default")
        assert (await reopened(tmp_path))["default"]["seq"] == 20

    run(story())


# -- snapshots and recovery

SPECS = {
    **{f"rule-{rule}": Spec(rule=rule) for rule in (*RULES, "auto")},
    "l1": Spec(learning_rate=0.1, l1=0.001),
    "l2": Spec(learning_rate=0.1, l2=0.01, bias_learning_rate=0.0),
    "hashed": Spec(learning_rate=0.1, hash_bits=3),
    "hashed-l1": Spec(learning_rate=0.1, hash_bits=3, l1=0.001),
    "hashed-auto": Spec(rule="auto", hash_bits=4),
    "clipped": Spec(learning_rate=0.5, clip=0.2),
    "steep": Spec(learning_rate=1e250),
    "standard": Spec(rule="adam", scale="standard", class_weights={"0": 1.0, "1": 3.0}),
    "maxabs": Spec(rule="ftrl", scale="maxabs", l1=0.1),
    "slower": Spec(learning_rate=InverseScaling("inverse_scaling", 0.5)),
    "optimal": Spec(learning_rate=Optimal("optimal", 0.01)),
}


async def learn_a_lot(engine: Engine, rounds: int = 30) -> None:
    """Teach every model, with features that come later and, where the rate is steep, steps that are not taken."""
    for i in range(rounds):
        late, huge = event(0.5, feature=f"late-{i // 4}", id_=f"id-{i}"), event(1e99, y=i % 2, feature="huge")
        events = [*some_events(40, start=40 * i), late, huge]
        await gathered(*[engine.learn(model.name, events) for model in engine.models])


def without_snapshots(folder: Path, to: Path) -> Path:
    """A copy of a folder whose models have the log alone."""
    copy = copied(folder, to)
    with closing(sqlite3.connect(copy / "log.db", isolation_level=None)) as db:
        db.execute("DELETE FROM snapshots")
        db.execute("DELETE FROM snapshot_chunks")
    return copy


def test_recovery_from_a_snapshot_and_the_events_after_it_equals_recovery_from_the_log_alone(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path / "a", snapshot_seconds=1e-9, window=50) as engine:
            for name, spec in SPECS.items():
                await engine.create(name, spec)
            await learn_a_lot(engine)
            await until(lambda: all(model.snapshot_seq > 1000 for model in engine.models))
            engine.chores.rest(math.inf)
            assert engine.model("steep").learner.not_taken > 0
            await gathered(*[engine.learn(model.name, some_events(3)) for model in engine.models])
            running = {model.name: whole_state(model) for model in engine.models}
            left = await as_a_kill_would_leave_it(engine, tmp_path / "b")
        alone = without_snapshots(left, tmp_path / "c")
        async with running_engine(left, window=50, snapshot_seconds=1000) as engine:
            assert all(0 < model.snapshot_seq < model.learner.seq for model in engine.models)
            assert {model.name: whole_state(model) for model in engine.models} == running
            await learn_a_lot(engine, rounds=2)
            further = {model.name: whole_state(model) for model in engine.models}
        async with running_engine(alone, window=50, snapshot_seconds=1000) as engine:
            assert all(model.snapshot_seq == 0 for model in engine.models)
            assert {model.name: whole_state(model) for model in engine.models} == running
            await learn_a_lot(engine, rounds=2)
            assert {model.name: whole_state(model) for model in engine.models} == further

    run(story())


def test_a_snapshot_is_due_when_replaying_would_take_long_and_not_before(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path, snapshot_seconds=0.005) as engine:
            await engine.learn("default", some_events(100))
            await asyncio.sleep(0.05)
            assert rows(tmp_path, "SELECT * FROM snapshots") == []
            model = engine.model("default")
            while model.snapshot_seq == 0:
                await engine.learn("default", some_events(2000))
            assert model.learner.seq > 10_000
            assert model.replay_seconds < 0.005

    run(story())


def test_only_two_snapshots_are_kept(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path, snapshot_seconds=0.0001) as engine:
            model, seen = engine.model("default"), set[int]()
            while len(seen) < 5:
                await engine.learn("default", some_events(20))
                await asyncio.sleep(0.002)
                seen.add(model.snapshot_seq)
            await until(lambda: engine.snapshots.due() == math.inf)
            kept = rows(tmp_path, "SELECT seq FROM snapshots ORDER BY seq DESC")
            assert len(kept) == 2
            assert kept[0] == (model.snapshot_seq,)
            assert {seq for (seq,) in rows(tmp_path, "SELECT seq FROM snapshot_chunks")} == {seq for (seq,) in kept}

    run(story())


@from_checks_on
@pytest.mark.parametrize("pieces", ["service.storage.store.SNAPSHOT_CHUNK", "core.copying.SLICE_BYTES"])
def test_learning_goes_on_while_a_snapshot_is_copied_and_written_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: str
) -> None:
    monkeypatch.setattr("core.learner.LARGE", 0)
    monkeypatch.setattr(pieces, 64)

    async def story() -> None:
        async with running_engine(tmp_path / "a", snapshot_seconds=0.0005) as engine:
            model, other = engine.model("default"), (await engine.create("other", Spec()))[0]
            await engine.learn("default", [event(1.0, feature=f"f{i}") for i in range(3000)])
            while model.snapshot_seq == 0:
                await engine.learn("default", [event(2.0, feature="f2999")])
                await engine.learn("other", some_events(1))
            assert model.learner.seq > 3010  # many learns fitted between the pieces
            assert other.learner.seq > 10
            after = whole_state(model)
            left = await as_a_kill_would_leave_it(engine, tmp_path / "b")
        async with running_engine(left, snapshot_seconds=1000) as engine:
            assert 3000 <= engine.model("default").snapshot_seq < after["seq"]
            assert whole_state(engine.model("default")) == after

    run(story())


def test_the_large_state_of_an_auto_with_few_features_is_not_copied_on_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.learner.LARGE", 0)
    threads, arrays = list[threading.Thread](), Auto.arrays

    def seen(auto: Auto, features: int) -> dict[str, Any]:
        threads.append(threading.current_thread())
        return arrays(auto, features)

    monkeypatch.setattr(Auto, "arrays", seen)

    async def story() -> None:
        async with running_engine(tmp_path, snapshot_seconds=1e-9) as engine:
            await engine.create("m", Spec(rule="auto"))
            await engine.learn("m", some_events(1))
            await until(lambda: bool(threads))
            assert threading.main_thread() not in threads

    run(story())


@from_checks_on
@pytest.mark.parametrize("name", ["rule-sgd", "standard", "rule-auto"])
@examples(6)
@given(sizes=st.lists(st.integers(1, 40), min_size=20, max_size=60), first=st.integers(0, 1_000))
def test_each_snapshot_taken_while_learning_goes_on_is_the_replay_to_its_seq(
    name: str, sizes: list[int], first: int
) -> None:
    """To the bit. A model is copied in slices or, one of auto, in a thread. The replay takes one event at a time."""
    taken: list[tuple[int, dict[str, Any]]] = []
    write = Store.write_snapshot

    def seen(store: Store, key: int, seq: int, state: dict[str, Any]) -> Iterator[None]:
        taken.append((seq, plain(state["learner"])))  # when it begins to be written
        yield from write(store, key, seq, state)

    async def story(folder: Path) -> None:
        async with running_engine(folder, snapshot_seconds=1e-9) as engine:
            await engine.create("m", SPECS[name])
            await engine.learn("m", [Event({f"wide-{i}": i / 7 for i in range(WIDE + 1)}, 1)])
            requests = [some_events(n, at) for n, at in zip(sizes, accumulate(sizes, initial=first), strict=False)]

            async def client(mine: list[list[Event]]) -> None:
                for events in mine:
                    await engine.learn("m", events)

            await asyncio.gather(*[client(requests[i::3]) for i in range(3)])
            await until(lambda: bool(taken) and taken[-1][0] == 1 + sum(sizes))

    with TemporaryDirectory() as below, pytest.MonkeyPatch.context() as patched:
        patched.setattr(Store, "write_snapshot", seen)
        patched.setattr("core.learner.LARGE", 2**15)
        patched.setattr("core.copying.SLICE_BYTES", 2**12)
        folder = Path(below) / "data"
        run(story(folder))
        events = logged_events(folder, "m")
    learner = Learner(SPECS[name])
    for seq, state in taken:
        for x, y, weight in events[learner.seq : seq]:
            learner.learn_one(x, y, weight)
        assert state == plain(learner.state(names=False)), seq


@pytest.mark.parametrize(("before", "after"), [(100, 100), (100, 10), (10, 100), (1, 1000)])
def test_the_window_of_the_scores_may_change_between_starts(tmp_path: Path, before: int, after: int) -> None:
    async def story() -> None:
        async with running_engine(tmp_path / "a", window=before, snapshot_seconds=1e-9) as engine:
            await engine.learn("default", some_events(200))
            await until(lambda: engine.model("default").snapshot_seq == 200)
            total = engine.model("default").scores.summary()["total"]
            left = await as_a_kill_would_leave_it(engine, tmp_path / "b")
        async with running_engine(left, window=after, snapshot_seconds=1000) as engine:
            scores = engine.model("default").scores.summary()
            assert scores["total"] == total
            assert scores["window"]["events"] == min(before, after)
            await engine.learn("default", some_events(1000))
            after_more = engine.model("default").scores.summary()
        async with running_engine(without_snapshots(left, tmp_path / "c"), window=after) as engine:
            assert engine.model("default").scores.summary() == after_more

    run(story())


def snapshot_twice(folder: Path) -> Coroutine[Any, Any, dict[str, Any]]:
    """Make a folder with two snapshots and a tail; its state."""

    async def story() -> dict[str, Any]:
        async with running_engine(folder, snapshot_seconds=1e-9) as engine:
            model = engine.model("default")
            for seq in (50, 100):
                await engine.learn("default", some_events(50, start=seq))
                await until(functools.partial(lambda seq: model.snapshot_seq == seq, seq))
            engine.chores.rest(math.inf)
            await engine.learn("default", some_events(7))
            return whole_state(model)

    return story()


def damage_snapshot(folder: Path, seq: int) -> None:
    """Flip a bit of a snapshot's bytes."""
    with closing(sqlite3.connect(folder / "log.db", isolation_level=None)) as db:
        ((data,),) = db.execute("SELECT data FROM snapshot_chunks WHERE seq = ?", (seq,)).fetchall()
        flipped = data[:-10] + bytes([data[-10] ^ 4]) + data[-9:]
        db.execute("UPDATE snapshot_chunks SET data = ? WHERE seq = ?", (flipped, seq))


def test_a_damaged_snapshot_is_told_and_the_one_before_it_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        expected = await snapshot_twice(tmp_path)
        damage_snapshot(tmp_path, 100)
        caplog.clear()
        async with running_engine(tmp_path, snapshot_seconds=1000) as engine:
            assert engine.model("default").snapshot_seq == 50
            assert whole_state(engine.model("default")) == expected
        (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert "'default': the snapshot at seq 100 has a wrong checksum" in warning.getMessage()

    run(story())


def test_two_damaged_snapshots_are_told_and_the_log_replayed_from_its_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        expected = await snapshot_twice(tmp_path)
        damage_snapshot(tmp_path, 100)
        damage_snapshot(tmp_path, 50)
        caplog.clear()
        async with running_engine(tmp_path, snapshot_seconds=1000) as engine:
            assert engine.model("default").snapshot_seq == 0
            assert whole_state(engine.model("default")) == expected
        warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert [("seq 100" in warning, "seq 50" in warning) for warning in warnings] == [(True, False), (False, True)]

    run(story())


def test_a_snapshot_without_its_chunks_is_told_and_the_one_before_it_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        expected = await snapshot_twice(tmp_path)
        with closing(sqlite3.connect(tmp_path / "log.db", isolation_level=None)) as db:
            db.execute("DELETE FROM snapshot_chunks WHERE seq = 100")
        async with running_engine(tmp_path, snapshot_seconds=1000) as engine:
            assert engine.model("default").snapshot_seq == 50
            assert whole_state(engine.model("default")) == expected
        assert "the snapshot at seq 100 is incomplete" in caplog.text

    run(story())


def test_a_new_snapshot_takes_the_place_of_a_damaged_one(tmp_path: Path) -> None:
    async def story() -> None:
        expected = await snapshot_twice(tmp_path)
        damage_snapshot(tmp_path, 100)
        async with running_engine(tmp_path, snapshot_seconds=1e-9) as engine:
            await until(lambda: engine.model("default").snapshot_seq == 107)
        async with running_engine(tmp_path, snapshot_seconds=1000) as engine:
            assert engine.model("default").snapshot_seq == 107
            assert whole_state(engine.model("default")) == expected

    run(story())


def test_a_snapshot_for_which_there_was_no_room_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_snapshot = Store.write_snapshot
    tries: list[int] = []

    def full_at_first(store: Store, model: int, seq: int, state: dict[str, Any]) -> Iterator[None]:
        tries.append(seq)
        if len(tries) == 1:
            raise errors.DiskFull
        yield from write_snapshot(store, model, seq, state)

    monkeypatch.setattr(Store, "write_snapshot", full_at_first)

    async def story() -> None:
        async with running_engine(tmp_path, snapshot_seconds=0.005) as engine:
            while not tries:
                await engine.learn("default", some_events(1000))
                await asyncio.sleep(0)
            assert told(await engine.learn("default", [event(1.0)])).seq == [engine.model("default").learner.seq]
            assert engine.lifecycle.state == "ready"
            engine.chores.rest(0)  # the pause is over
            await engine.learn("default", [event(1.0)])
            await until(lambda: engine.model("default").snapshot_seq)  # it is not forgotten
            assert tries[1:] == [engine.model("default").snapshot_seq]

    run(story())


# -- start and stop


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("DELETE FROM batches WHERE first_seq = 3", "from seq 3 to 4 are missing"),
        ("UPDATE batches SET checksum = checksum + 1 WHERE first_seq = 3", "from seq 3 to 4 have a wrong checksum"),
        ("DELETE FROM names WHERE first_column = 1", "feature names of columns 1 to 1 are missing"),
        ("DELETE FROM names WHERE first_column = 2", "has a feature without a name"),
        ("UPDATE names SET checksum = checksum + 1", "feature names from column 0 on have a wrong checksum"),
        ("UPDATE models SET spec = replace(spec, '0.01', '0.02')", "row of model 'default' has a wrong checksum"),
        ("DELETE FROM log_end", "row of its last commit is missing"),
    ],
)
def test_a_damaged_log_is_not_started_from(tmp_path: Path, statement: str, reason: str) -> None:
    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            for i in range(3):
                await engine.learn("default", [event(1.0, feature=f"f{i}"), event(2.0, feature=f"f{i}", id_=f"id-{i}")])
        with closing(sqlite3.connect(tmp_path / "log.db", isolation_level=None)) as db:
            db.execute(statement)
        told: list[str] = []
        engine = new_engine(tmp_path)
        engine.on_failure = lambda: told.append(engine.lifecycle.state)
        engine.start()
        await until(lambda: engine.lifecycle.state not in ("starting", "recovering"))
        await engine.stop(seconds=1)
        assert isinstance(engine.lifecycle.failure, failures.LogDamaged)
        assert reason in str(engine.lifecycle.failure)
        assert told == ["failed"]

    run(story())


def test_a_log_that_ends_before_its_last_snapshot_is_not_started_from(tmp_path: Path) -> None:
    async def story() -> None:
        await snapshot_twice(tmp_path)
        with closing(sqlite3.connect(tmp_path / "log.db", isolation_level=None)) as db:
            db.execute("DELETE FROM batches WHERE first_seq > 50")
        engine = await started(tmp_path)
        await engine.stop(seconds=1)
        assert isinstance(engine.lifecycle.failure, failures.LogDamaged)

    run(story())


def test_stopping_learns_what_still_waits(tmp_path: Path, gate: Gate) -> None:
    async def story() -> None:
        engine = await started(tmp_path)
        waiting = [asyncio.create_task(engine.learn("default", [event(float(i))])) for i in range(5)]
        await gate.wait_until_entered()
        waiting += [asyncio.create_task(engine.learn("default", [event(float(i))])) for i in range(5, 9)]
        await asyncio.sleep(0)
        stopping = asyncio.create_task(engine.stop(seconds=1))
        await asyncio.sleep(0.01)
        with pytest.raises(errors.NotReady):
            await engine.learn("default", [event(99.0)])
        gate.opened.set()
        await stopping
        assert [told(await task).seq for task in waiting] == [[i + 1] for i in range(9)]
        assert len(logged_events(tmp_path)) == 9

    run(story())


def test_stopping_writes_the_snapshots_that_save_the_next_start_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chores, "LAST_SNAPSHOT_SECONDS", 0.001)

    async def story() -> None:
        engine = await started(tmp_path)
        await engine.learn("default", some_events(10_000))
        await engine.stop(seconds=PATIENCE)
        with closing(LogReader(tmp_path)) as log:
            assert log.snapshots.seqs(1) == [10_000]

    run(story())


def test_a_stop_without_time_writes_no_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chores, "LAST_SNAPSHOT_SECONDS", 0.001)

    async def story() -> None:
        engine = await started(tmp_path)
        await engine.learn("default", some_events(10_000))
        await engine.stop(seconds=0)
        with closing(LogReader(tmp_path)) as log:
            assert log.snapshots.seqs(1) == []
            assert log.last_seq(1) == 10_000

    run(story())


def test_starting_and_stopping_changes_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            await engine.create("m", Spec(learning_rate=0.3))
            await engine.learn("m", some_events(100))
        first = await reopened(tmp_path)
        for _ in range(3):
            assert await reopened(tmp_path) == first

    run(story())
