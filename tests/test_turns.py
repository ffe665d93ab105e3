"""Turns of the writer that follow one another: the steps of one are taken while the next commits."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from patience import PATIENCE
from processes import ids_in, logged_events, running_engine, started, told, write_snapshots
from test_engine import Gate, event, failing_commits, run, whole_state

from core import Learner, Spec
from core.batch import Batch
from core.learner import Outcome
from core.spec import Breaker
from service import errors
from service.events import Event, Label
from service.learning import writer as writer_module
from service.learning.chores import Chores
from service.learning.disk import Disk
from service.learning.engine import Engine
from service.learning.model import Model
from service.learning.request import Kept, Learned, Refused, Result, Run, Stream
from service.learning.writer import Writer
from service.storage.store import ModelBatch, Store
from service.table import Table
from service.texts import Texts


@pytest.fixture(autouse=True)
def _overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little is much here, and turns may follow one another for long."""
    monkeypatch.setattr(writer_module, "MUCH", 1)
    monkeypatch.setattr(writer_module, "ROW_SECONDS", PATIENCE)


def test_the_steps_of_a_turn_are_taken_and_answered_while_the_next_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = Gate(monkeypatch, 2)

    async def story() -> None:
        async with running_engine(tmp_path, commit_events=1) as engine:
            model = engine.model("default")
            answers = [engine.queue.enqueue("default", [event(float(i))]) for i in range(3)]
            await second.wait_until_entered()
            assert told(await answers[0]).seq == [1]
            assert model.learner.seq == 1
            assert not answers[1].done()
            second.opened.set()
            assert [told(await answer).seq for answer in answers] == [[1], [2], [3]]
            assert model.learner.seq == model.last_seq == 3

    run(story())


def test_what_is_not_much_is_learned_before_the_next_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "MUCH", 1_000)
    seen: list[int] = []
    commit = Store.commit

    async def story() -> None:
        async with running_engine(tmp_path, commit_events=1) as engine:
            model = engine.model("default")

            def looked_at(store: Store, batches: Sequence[ModelBatch], *more: Any) -> bool:
                seen.append(model.learner.seq)
                return commit(store, batches, *more)

            monkeypatch.setattr(Store, "commit", looked_at)
            await asyncio.gather(*(engine.queue.enqueue("default", [event(float(i))]) for i in range(4)))

    run(story())
    assert seen == [0, 1, 2, 3]


def stories(seed: int) -> list[tuple[list[Event], bool]]:
    """Requests, and whether each is the next of one stream: new names, ids that come again, the same and other."""
    rng = random.Random(seed)
    return [
        (
            [
                Event(
                    {rng.choice("abcdefgh"): rng.choice((1.0, 2.0)), "n": float(rng.randrange(3))},
                    rng.randrange(2),
                    rng.choice((None, None, f"id {rng.randrange(12)}")),
                )
                for _ in range(rng.randint(1, 3))
            ],
            rng.random() < 0.3,
        )
        for _ in range(40)
    ]


@pytest.mark.parametrize("seed", range(8))
def test_turns_that_overlap_learn_and_answer_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    def lived(folder: Path, much: int) -> Any:
        monkeypatch.setattr(writer_module, "MUCH", much)
        lives: list[Any] = []

        async def story() -> None:
            async with running_engine(folder, commit_events=3) as engine:
                stream = Stream()
                answers = [
                    engine.queue.enqueue("default", events, stream if streamed else None)
                    for events, streamed in stories(seed)
                ]
                results = await asyncio.gather(*answers, return_exceptions=True)
                model = engine.model("default")
                lives.append((repr(results), whole_state(model), model.duplicates))

        run(story())
        return lives[0], logged_events(folder)

    assert lived(tmp_path / "overlap", 1) == lived(tmp_path / "apart", 10_000)


FULL = Spec(max_features=4, learning_rate=0.3)


def named_apart(seed: int) -> list[list[Event]]:
    """The same requests, an id for half of their events, and none of them twice: so that none is put off."""
    return [
        [Event(one.x, one.y, f"{i}-{j}" if (i + j) % 2 else None) for j, one in enumerate(events)]
        for i, (events, _) in enumerate(stories(seed))
    ]


@pytest.mark.parametrize("seed", range(4))
def test_a_full_model_is_the_same_however_requests_were_cut_into_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """What was left out, and how much, hangs on the order of the events alone; an event that comes again is known by
    what was left out of it too; and all is the same after a restart, with snapshots and without."""

    def lived(folder: Path, much: int, at_once: int) -> Any:
        monkeypatch.setattr(writer_module, "MUCH", much)
        lives: list[Any] = []

        async def story(snapshots: bool) -> None:
            async with running_engine(folder, commit_events=at_once) as engine:
                if not lives:
                    await engine.create("full", FULL)
                results = await asyncio.gather(*(engine.queue.enqueue("full", events) for events in named_apart(seed)))
                model = engine.model("full")
                lives.append((repr(results), whole_state(model)))
                if snapshots:
                    await write_snapshots(engine)

        async def look() -> None:
            async with running_engine(folder) as engine:
                lives.append(whole_state(engine.model("full")))

        run(story(snapshots=False))
        run(look())
        assert lives[-1] == lives[0][1]
        run(story(snapshots=True))  # all of it again: what has an id is known
        run(look())
        assert lives[-1] == lives[2][1]
        return lives, logged_events(folder, "full")

    one_by_one, at_once = lived(tmp_path / "one", 1, 1), lived(tmp_path / "at-once", 10_000, 10_000)
    assert one_by_one == at_once
    (_, first), _, (again, second), _ = one_by_one[0]
    assert again.count("Duplicate(") == sum(one.id is not None for events in named_apart(seed) for one in events)
    assert first["left_out"] > 0
    assert second["left_out"] > first["left_out"]  # of the events without an id
    learner = Learner(FULL)
    for x, y, w in one_by_one[1]:
        learner.learn_one(x, y, w)
    assert (learner.sha256(), learner.left_out) == (second["sha256"], 0)  # the log has the events as they were learned


@pytest.mark.parametrize("overflow", ["ignore", "refuse"])
def test_an_event_that_comes_again_is_told_from_one_of_which_something_else_is_left_out(
    tmp_path: Path, overflow: Any
) -> None:
    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            await engine.create("full", Spec(max_features=1, overflow=overflow))
            await engine.learn("full", [Event({"a": 1.0}, 1)])
            mine, other = Event({"a": 2.0, "user": "u1"}, 1, "id"), Event({"a": 2.0, "user": "u2"}, 1, "id")
            if overflow == "refuse":
                with pytest.raises(errors.InvalidEvent, match="overflow"):
                    await engine.learn("full", [mine])
                return
            together = told(await engine.learn("full", [mine, Event({"user": "u1", "a": 2.0}, 1, "id")]))
            assert (together.seq, together.duplicate) == ([2, 2], [False, True])
            assert told(await engine.learn("full", [mine])).duplicate == [True]
            twice = [Event(mine.x, 1, "new"), Event(other.x, 1, "new")]
            for conflict in ([other], [Event({"a": 2.0}, 1, "id")], twice):
                with pytest.raises(errors.IdConflict):
                    await engine.learn("full", conflict)
            assert (engine.model("full").learner.seq, engine.model("full").learner.left_out) == (2, 1)

    run(story())


def test_nothing_of_a_stream_is_learned_after_an_event_that_the_turn_before_refused(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path, commit_events=2) as engine:
            stream = Stream()
            pieces = [[event(1.0), event(2.0, y=2)], [event(3.0), event(4.0)], [event(5.0), event(6.0)]]
            answers = [engine.queue.enqueue("default", piece, stream) for piece in pieces]
            other = engine.queue.enqueue("default", [event(7.0)])
            first, *later = [told(await answer) for answer in answers]
            assert first.seq == [1]
            assert isinstance(first.error, errors.InvalidEvent)
            assert [result.seq for result in later] == [[], []]
            assert told(await other).seq == [2]
        assert [x["a"] for x, _, _ in logged_events(tmp_path)] == [1.0, 7.0]

    run(story())


def mixed_items(rng: random.Random, model: Model, numbers: Sequence[int]) -> Any:
    """What one request asks: events, a table, predictions to keep, or labels. Each event has a number, feature "n"."""
    kind = rng.choice(("events", "table", "table", "keep", "labels"))
    if kind == "table":
        names = ["n", *rng.sample("abcdefgh", 2)]
        values = np.array([[float(n), rng.random(), 1.0] for n in numbers])
        labels = np.array([rng.randrange(2) for _ in numbers], np.uint8)
        # Mostly ids that are not on the disk yet: else the turn is taken again, with all ids looked up.
        ids = [f"t{n}" if rng.random() < 0.7 else f"s{n // 24}-{rng.randrange(4)}" for n in numbers]
        if rng.random() < 0.1:
            ids[0] = f"{rng.choice('ip')}{rng.randrange(30)}"
        return Table(1, names, values, None, labels, None, rng.choice((None, Texts.of(ids))))
    if kind == "keep":
        return [model.predict_to_keep(f"p{rng.randrange(30)}", {"n": float(n)}) for n in numbers]
    if kind == "labels":
        return [Label(f"p{rng.randrange(30)}", rng.randrange(2)) for _ in numbers]
    return [
        Event(
            {"n": float(n), rng.choice("abcdefgh"): 1.0},
            rng.randrange(2) if rng.random() < 0.95 else 2,
            rng.choice((None, f"i{rng.randrange(9)}", f"e{n}")),
        )
        for n in numbers
    ]


def rows(*ids: str) -> Table:
    """Events of a stream, which differ."""
    return Table(
        1, ["a"], np.arange(1.0, len(ids) + 1.0).reshape(-1, 1), None, np.ones(len(ids), np.uint8), ids=Texts.of(ids)
    )


AGAIN: dict[str, tuple[list[Any], dict[str, int]]] = {
    "in two tables": (
        [rows("a", "b"), rows("a", "c"), [Event({"a": 9.0}, 1, "z")]],
        {"a": 1, "b": 2, "c": 3, "z": 4},
    ),
    "twice in a table": ([rows("a", "b", "a"), [Event({"a": 9.0}, 1, "z")]], {"z": 1}),
    "of an event": (
        [[Event({"a": 1.0}, 1, "a")], rows("a", "b"), [Event({"a": 9.0}, 1, "z")]],
        {"a": 1, "b": 2, "z": 3},
    ),
    "of a label": ([[Label("p", 1)], rows("q", "p")], {"p": 1}),
    "of a label, before another event": (
        [[Label("p", 1)], rows("q", "p"), [Event({"a": 9.0}, 1, "z")]],
        {"p": 1, "z": 2},
    ),
    "of a label that comes after it": ([rows("p", "q"), [Label("p", 1)]], {"p": 1, "q": 2}),
}


@pytest.mark.parametrize(("asked", "seqs"), AGAIN.values(), ids=AGAIN)
def test_an_id_of_a_table_that_comes_again_in_the_turn_is_learned_once(
    tmp_path: Path, asked: list[Any], seqs: dict[str, int]
) -> None:
    """`p` is the id of a prediction that waits with the x of a table's first row."""

    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            model = engine.model("default")
            await engine.queue.enqueue("default", [model.predict_to_keep("p", {"a": 1.0})])
            await asyncio.wait([engine.queue.enqueue("default", items) for items in asked])
            assert engine.lifecycle.failure is None
            assert model.learner.seq == len(seqs)

    run(story())
    assert {id_: seq for (_, id_), (seq, *_) in ids_in(tmp_path).items() if seq and id_ != "p"} == {
        id_: seq for id_, seq in seqs.items() if id_ != "p"
    }
    assert len(logged_events(tmp_path)) == len(seqs)


@pytest.mark.parametrize("seed", range(12))
def test_ids_that_come_at_once_stand_for_what_they_stand_for_one_after_the_other(tmp_path: Path, seed: int) -> None:
    """In tables, events, labels and predictions of one turn. A table's ids are only looked at by the commit."""

    def lived(folder: Path, *, at_once: bool) -> Any:
        rng, lives = random.Random(seed), list[Any]()

        async def story() -> None:
            async with running_engine(folder) as engine:
                model, results = engine.model("default"), list[Any]()
                for first in range(0, 600, 24):
                    asked = []
                    for n in range(first, first + 24, 3):
                        asked.append(engine.queue.enqueue("default", mixed_items(rng, model, range(n, n + 3))))
                        if not at_once:
                            await asyncio.wait(asked)
                    await asyncio.wait(asked)
                    results += [plain_result(answer.result()) for answer in asked]
                lives.append((results, whole_state(model), model.waiting, model.duplicates))

        run(story())
        return lives[0], {id_: of[0] for id_, of in ids_in(folder).items()}

    one_by_one = lived(tmp_path / "apart", at_once=False)
    assert lived(tmp_path / "at once", at_once=True) == one_by_one


def plain_result(result: Result) -> list[Any]:
    """Without what depends on when it was asked: whether a table was learned as one, and what was predicted."""
    found: list[Any] = []
    for outcome in result:
        if isinstance(outcome, Run):
            found += [outcome.first_seq + i for i in range(len(outcome.losses))]
        elif isinstance(outcome, Learned):
            found.append(outcome.seq)
        elif isinstance(outcome, Kept):
            found.append((outcome.duplicate, outcome.kept))
        elif isinstance(outcome, Refused):
            found.append((outcome.error.slug(), outcome.error.index))
        else:
            found.append((type(outcome).__name__, getattr(outcome, "seq", None)))
    return found


def learned_by(items: Any, result: Result) -> Iterator[tuple[int, float | None, float | None]]:
    """The seq and the log loss of each event that was learned, and its number, if the request says it."""
    if result and isinstance(run := result[0], Run):
        for i, loss in enumerate(run.losses.tolist()):
            yield run.first_seq + i, loss, items.values[i, 0]
        return
    events = items.events(0, len(items)) if isinstance(items, Table) else items
    for item, outcome in zip(events, result, strict=False):
        if isinstance(outcome, Learned):
            yield outcome.seq, outcome.loss, None if isinstance(item, Label) else item.x["n"]


def told_of_waiting(model: Model) -> dict[str, Any]:
    joins = model.joins
    return {"joins": joins.counts(), "delays": joins.delays(), "served": joins.scores.summary(), "wait": model.waiting}


@pytest.mark.parametrize("seed", range(10))
def test_whatever_is_asked_for_at_once_while_the_disk_is_full_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Each event that was acknowledged is in the log at its seq, with the loss of a replay; nothing else changed."""
    monkeypatch.setattr(writer_module, "STEP_EVENTS", 2)
    rng, disk, commit = random.Random(seed), random.Random(seed), Store.commit
    acknowledged: list[tuple[int, float | None, float | None]] = []
    asked: list[asyncio.Future[Result]] = []
    states: list[Any] = []

    def note(items: Any, answer: asyncio.Future[Result]) -> None:
        acknowledged.extend(learned_by(items, answer.result()))

    def sometimes_full(store: Store, batches: Sequence[ModelBatch], *more: Any) -> bool:
        time.sleep(disk.random() / 1_000)
        if disk.random() < 0.2:
            raise errors.DiskFull
        return commit(store, batches, *more)

    async def client(engine: Engine, first: int) -> None:
        stream = Stream()
        for n in range(first, first + 120, 4):
            numbers = range(n, n + rng.randint(1, 4))
            items = mixed_items(rng, engine.model("default"), numbers)
            answer = engine.queue.enqueue("default", items, stream if rng.random() < 0.2 else None)
            answer.add_done_callback(partial(note, items))
            asked.append(answer)
            await (asyncio.sleep(rng.random() / 500) if rng.random() < 0.5 else asyncio.wait([answer]))

    async def story() -> None:
        async with running_engine(tmp_path, commit_events=5) as engine:
            with monkeypatch.context() as full:
                full.setattr(Store, "commit", sometimes_full)
                await asyncio.gather(*(client(engine, 1_000 * i) for i in range(5)))
                await asyncio.wait(asked)
            model = engine.model("default")
            assert model.learner.seq == model.last_seq
            states.append(whole_state(model) | told_of_waiting(model))
        async with running_engine(tmp_path) as again:
            model = again.model("default")
            states.append(whole_state(model) | told_of_waiting(model))

    run(story())
    assert states[0] == states[1]
    log = logged_events(tmp_path)
    replayed = Learner()
    outcome = replayed.learn_many(*(list(column) for column in zip(*log, strict=True)))
    assert replayed.sha256() == states[0]["sha256"]
    assert acknowledged
    assert len({seq for seq, _, _ in acknowledged}) == len(acknowledged)
    for seq, loss, number in acknowledged:
        assert outcome.losses[seq - 1] == loss
        assert number is None or log[seq - 1][0]["n"] == number


def test_a_breaker_sees_the_steps_before_so_many_more_events_are_committed(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path, commit_events=2) as engine:
            await engine.create("m", Spec(breaker=Breaker(log_loss=0.1, events=2)))
            answers = [engine.queue.enqueue("m", [event(1.0), event(1.0, y=0)]) for _ in range(5)]
            first, second, *later = map(told, await asyncio.gather(*answers))
            assert first.error is second.error is None, "the second event passes the limit, and two more are learned"
            assert all(isinstance(result.error, errors.LearningStopped) for result in later)
            assert engine.model("m").learner.seq == engine.model("m").last_seq == 4
        assert len(logged_events(tmp_path, "m")) == 4

    run(story())


def test_a_full_disk_refuses_its_own_turn_and_not_the_ones_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = Gate(monkeypatch, 2, errors.DiskFull())

    async def story() -> None:
        async with running_engine(tmp_path, commit_events=1) as engine:
            answers = [engine.queue.enqueue("default", [event(1.0, feature=name)]) for name in "abc"]
            await second.wait_until_entered()
            second.opened.set()
            first, full, third = map(told, await asyncio.gather(*answers))
            assert isinstance(full.error, errors.DiskFull)
            assert first.seq + third.seq == [1, 2]
            assert engine.model("default").learner.names == ["a", "c"]
            state = whole_state(engine.model("default"))
        async with running_engine(tmp_path) as again:
            assert whole_state(again.model("default")) == state

    run(story())


def test_a_failed_storage_does_not_take_back_what_was_committed_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = Gate(monkeypatch, 2, errors.StorageFailed(reason="the disk is gone"))

    async def story() -> None:
        engine = await started(tmp_path, commit_events=1)
        answers = [engine.queue.enqueue("default", [event(float(i))]) for i in range(3)]
        await second.wait_until_entered()
        second.opened.set()
        first, *later = map(told, await asyncio.gather(*answers))
        assert first.seq == [1]
        assert all(isinstance(result.error, errors.StorageFailed) for result in later)
        assert engine.model("default").learner.seq == 1
        await engine.stop(seconds=1)
        assert len(logged_events(tmp_path)) == 1

    run(story())


def test_a_mistake_in_a_step_leaves_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = Gate(monkeypatch, 2)

    def mistaken(model: Model, batch: Batch) -> Outcome:
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(Model, "learn", mistaken)

    async def story() -> None:
        engine = await started(tmp_path, commit_events=2)
        await engine.create("m", Spec())
        answers = [engine.queue.enqueue(name, [event(1.0)]) for name in ("default", "m", "default", "m", "default")]
        await second.wait_until_entered()
        second.opened.set()
        done, waiting = await asyncio.wait(answers, timeout=5)
        assert not waiting, "a waiter was never answered"
        assert all(isinstance(told(answer.result()).error, errors.StorageFailed) for answer in done)
        await engine.stop(seconds=1)

    run(story())


def test_a_model_is_deleted_between_rows_of_turns_and_all_are_answered(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path, commit_events=1) as engine:
            await engine.create("m", Spec())
            answers = [engine.queue.enqueue("m", [event(float(i))]) for i in range(20)]
            deleted = asyncio.create_task(engine.delete("m"))
            results = map(told, await asyncio.gather(*answers))
            await deleted
            assert all(result.seq or isinstance(result.error, errors.UnknownModel) for result in results)

    run(story())


def test_a_row_of_turns_ends_when_somebody_wants_to_change_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = Gate(monkeypatch, 2)

    async def story() -> None:
        async with running_engine(tmp_path, commit_events=1) as engine:
            answers = [engine.queue.enqueue("default", [event(float(i))]) for i in range(20)]
            await second.wait_until_entered()
            created = asyncio.create_task(engine.create("m", Spec()))
            await asyncio.sleep(0)
            second.opened.set()
            await created
            assert [answer.done() for answer in answers] == [True] * 2 + [False] * 18
            await asyncio.gather(*answers)

    run(story())


def test_what_is_to_be_tidied_has_a_turn_for_each_of_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with running_engine(tmp_path, commit_events=1) as engine:
            took: list[int | str] = []
            seen = asyncio.Event()
            take_turns = Writer.take_turns

            async def recorded(writer: Writer) -> int:
                took.append(await take_turns(writer))
                return int(took[-1])

            async def tidy(_: Chores) -> bool:
                took.append("a piece")
                if len(took) == 2:  # more to learn, before the rest is tidied
                    engine.queue.enqueue("default", [event(1.0)])
                if len(took) > 6:
                    seen.set()
                return not seen.is_set()

            monkeypatch.setattr(Writer, "take_turns", recorded)
            monkeypatch.setattr(Chores, "step", tidy)
            await asyncio.gather(*(engine.queue.enqueue("default", [event(float(i))]) for i in range(5)))
            await seen.wait()
            assert took[:7] == [5, *["a piece"] * 5, 1]

    run(story())


def test_a_storage_that_fails_beside_a_row_of_turns_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = Gate(monkeypatch, 2)

    async def story() -> None:
        engine = await started(tmp_path, commit_events=1)
        answers = [engine.queue.enqueue("default", [event(float(i))]) for i in range(5)]
        await second.wait_until_entered()
        # Another use of the disk fails; its thread, where that would happen, stands at the gate.
        engine._fail(errors.StorageFailed(reason="a look for an id failed"))  # noqa: SLF001
        second.opened.set()
        await asyncio.wait_for(asyncio.gather(*answers, return_exceptions=True), 5)
        assert [isinstance(told(answer.result()).error, errors.StorageFailed) for answer in answers] == [False] * 2 + [
            True
        ] * 3
        assert engine.queue.events == 0
        await engine.stop(seconds=1)
        assert len(logged_events(tmp_path)) == 2

    run(story())


def test_after_a_full_disk_a_stream_learns_nothing_more(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path, commit_events=1) as engine:
            stream = Stream()
            with failing_commits(errors.DiskFull()):
                answers = [engine.queue.enqueue("default", [event(float(i))], stream) for i in range(3)]
                first, *later = await asyncio.gather(*answers, return_exceptions=True)
            assert not isinstance(first, BaseException)
            assert isinstance(told(first).error, errors.DiskFull)
            assert later == [[], []]
            assert engine.model("default").learner.seq == 0

    run(story())


def test_a_mistake_in_what_tells_one_caller_harms_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told_to: list[Result] = []

    def mistaken(result: Result) -> None:
        told_to.append(result)
        raise ZeroDivisionError

    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            engine.queue.enqueue_for("default", [event(1.0)], mistaken)
            other = engine.queue.enqueue("default", [event(2.0)])
            assert told(await other).seq == [2]
            assert told(await engine.learn("default", [event(3.0)])).seq == [3]

    run(story())
    assert told(told_to[0]).seq == [1]
    assert len(told_to) == 1
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]


def test_while_many_callers_are_told_the_loop_serves_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "ANSWERS", 10)

    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            count, seen = 0, set[int]()

            def tell(_: Result) -> None:
                nonlocal count
                count += 1

            for i in range(100):
                engine.queue.enqueue_for("default", [event(float(i))], tell)
            while count < 100:
                await asyncio.sleep(0)
                seen.add(count)
            assert len(seen) >= 9

    run(story())


def test_the_loop_gives_way_to_a_commit_only_beside_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "MUCH", 1_000)
    engines: list[Engine] = []
    given: list[int] = []
    monkeypatch.setattr(Disk, "give_way", lambda _, __: given.append(engines[0].model("default").learner.seq))

    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            engines.append(engine)
            await engine.learn("default", [event(1.0)])
            engine.queue.passed_by += 10
            await engine.learn("default", [event(2.0)])
            await engine.learn("default", [event(3.0)])

    run(story())
    assert given == [1]
