"""Labels that come late, in the engine alone: held to a small model of what they mean, and replayed."""

from __future__ import annotations

import asyncio
import copy
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import processes
import pytest
from effort import examples
from hypothesis import example, given
from hypothesis import strategies as st
from processes import Clock, copied, replay, running_engine, told

import service.clock
from core import Learner, Spec
from service import errors
from service.events import Event, Label
from service.learning import draft as draft_module
from service.learning.chores import FULL_PAUSE_SECONDS, Chores
from service.learning.engine import Engine
from service.learning.model import Model
from service.learning.recovery import Recovery
from service.learning.request import Outcome, Stream
from service.replies import PredictedKept
from service.settings import Settings
from service.storage import store as store_module
from service.storage.store import ModelBatch, Store
from service.storage.waiting import Reading, WaitingReader

PATIENCE = 120.0
DAY = 24 * 3600


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, PATIENCE))


async def until(condition: Callable[[], Any], what: str) -> None:
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    pytest.fail(f"waited in vain for {what}")


async def kept(engine: Engine, *questions: tuple[str, dict[str, Any]], model: str = "default") -> list[PredictedKept]:
    found = engine.model(model)
    outcomes = await engine.learn(model, [found.predict_to_keep(id_, x) for id_, x in questions])
    return told(outcomes).predicted


async def learned(engine: Engine, *items: Event | Label, model: str = "default") -> list[Outcome]:
    return await engine.learn(model, items)


def described(model: Model) -> dict[str, Any]:
    """All that is told of a model and of the labels that came late."""
    return {
        "seq": model.learner.seq,
        "names": list(model.learner.features.names),
        "sha256": model.learner.sha256(),
        "waiting": model.waiting,
        "dropped": model.dropped,
        "counts": model.joins.counts(),
        "delays": model.joins.delays(),
        "served": model.joins.scores.summary(),
        "progressive": model.scores.summary(),
    }


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch, store_module)


async def timed_out(engine: Engine, clock: Clock, seconds: float) -> None:
    """Set the clock forward, and wait until all that is due has timed out."""
    clock.advance(seconds, engine)
    await until(
        lambda: engine.lifecycle.failure or all(model.next_timeout > clock.time() for model in engine.models),
        "the timeouts",
    )
    assert engine.lifecycle.failure is None


@contextmanager
def full_disk() -> Iterator[list[int]]:
    """Every commit finds no room; the list that is given counts them."""
    calls: list[int] = []

    def failing(store: Store, batches: Sequence[ModelBatch], *more: Any) -> bool:
        calls.append(len(batches))
        raise errors.DiskFull

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Store, "commit", failing)
        yield calls


NEGATIVE = Spec.from_dict({"join": {"on_timeout": "negative", "late": "learn"}})


# -- what a replay makes of it


def test_a_restart_at_any_point_tells_and_weighs_the_same(tmp_path: Path, clock: Clock) -> None:
    async def story() -> None:
        states: list[tuple[Path, float, dict[str, Any]]] = []
        async with running_engine(tmp_path / "live", window=10) as engine:
            await engine.create("m", NEGATIVE)
            model = engine.model("m")
            for i in range(12):
                await kept(engine, *[(f"p{i}-{j}", {"a": i / 10, f"f{j}": 1.0}) for j in range(4)], model="m")
                states.append((tmp_path / f"a{i}", clock.ahead, described(model)))
                await engine.disk.run(lambda _: copied(tmp_path / "live", states[-1][0]))
                clock.advance(0.37 * i)
                await learned(
                    engine, Label(f"p{i}-1", i % 2), Event({"b": 1.0 * i}, 1), Label(f"p{i}-0", 1, 2.0), model="m"
                )
                if i % 3 == 2:
                    await timed_out(engine, clock, DAY + 1)
                    await learned(engine, Label(f"p{i}-2", 1), Label(f"p{i}-3", 0), model="m")
                states.append((tmp_path / f"b{i}", clock.ahead, described(model)))
                await engine.disk.run(lambda _: copied(tmp_path / "live", states[-1][0]))
            assert model.joins.counts() == {"joined": 24, "expired": 24, "late": 4}
        for folder, ahead, state in states:
            clock.ahead = ahead
            async with running_engine(folder, window=10) as engine:
                assert described(engine.model("m")) == state
            assert replay(folder)["m"] == {"seq": state["seq"], "sha256": state["sha256"]}

    run(story())


async def some_of_everything(engine: Engine, clock: Clock) -> dict[str, Any]:
    """A model with joined, expired, late and dropped labels, where nothing waits; what it tells."""
    await engine.create("m", NEGATIVE)
    await engine.create("dropping", Spec())
    for model in ("m", "dropping"):
        await kept(engine, *[(f"p{i}", {"a": float(i), f"f{i}": 1.0}) for i in range(8)], model=model)
        await learned(engine, *[Label(f"p{i}", i % 2) for i in range(4)], model=model)
    await timed_out(engine, clock, DAY + 1)
    await learned(engine, Label("p5", 1), model="m")
    assert described(engine.model("m"))["counts"] == {"joined": 4, "expired": 4, "late": 1}
    assert described(engine.model("dropping"))["dropped"] == 4
    return {model.name: described(model) for model in engine.models}


@pytest.mark.parametrize("years", [-20, 0.001, 30])
def test_a_replay_years_later_or_earlier_gives_the_same(tmp_path: Path, clock: Clock, years: float) -> None:
    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            before = await some_of_everything(engine, clock)
        clock.ahead += years * 365 * DAY
        async with running_engine(tmp_path) as engine:
            assert {model.name: described(model) for model in engine.models} == before

    run(story())


def test_what_timed_out_while_the_service_was_down_times_out_when_it_starts(tmp_path: Path, clock: Clock) -> None:
    async def story() -> None:
        async with running_engine(tmp_path / "data") as engine:
            await engine.create("m", Spec.from_dict({"join": {"keep": "1h", "on_timeout": "negative"}}))
            await kept(engine, ("a", {"a": 1.0}), model="m")
            copied(tmp_path / "data", tmp_path / "killed")
        clock.advance(3_601)
        async with running_engine(tmp_path / "killed") as engine:
            await until(lambda: engine.model("m").joins.counts()["expired"] == 1, "the timeout")
            with pytest.raises(errors.ExpiredId):
                await learned(engine, Label("a", 1), model="m")

    run(story())


def test_a_replay_never_looks_at_a_clock(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            before = await some_of_everything(engine, clock)

        def looked() -> float:
            pytest.fail("it looked at the clock")

        with closing(Store(tmp_path)) as store, monkeypatch.context() as patched:
            for name in ("time", "time_ns", "monotonic", "perf_counter"):
                patched.setattr(clock, name, looked)
            patched.setattr(processes, "CLOCK", service.clock.Clock(looked, looked))
            replayed = Recovery(store.log, Settings(data=tmp_path), given_up=lambda: False).models()
        assert {name: described(model) for name, model in replayed.items()} == before

    run(story())


def test_a_clock_that_is_set_back_delays_no_timeout_and_gives_no_delay_below_zero(tmp_path: Path, clock: Clock) -> None:
    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            await engine.create("m", Spec.from_dict({"join": {"keep": "1h"}}))
            clock.advance(10 * DAY)
            await kept(engine, ("ahead", {"a": 1.0}), ("labelled", {"a": 1.0}), model="m")
            clock.advance(-10 * DAY)
            result = await learned(engine, Label("labelled", 1), model="m")
            assert told(result).late_labels[0].delay_s == 0.0
            await kept(engine, ("now", {"a": 1.0}), model="m")
            await timed_out(engine, clock, 3601)
            assert (engine.model("m").waiting, engine.model("m").dropped) == (1, 1)
            with pytest.raises(errors.DroppedId):
                await learned(engine, Label("now", 1), model="m")
            await timed_out(engine, clock, 10 * DAY)
            assert (engine.model("m").waiting, engine.model("m").dropped) == (0, 2)

    run(story())


# -- no room on the disk


def test_a_full_disk_keeps_and_joins_nothing_and_leaves_everything_as_it_was(tmp_path: Path, clock: Clock) -> None:
    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            await engine.create("m", Spec.from_dict({"join": {"max_waiting": 4}}))
            model = engine.model("m")
            await kept(engine, ("p0", {"a": 1.0}), ("p1", {"b": 1.0}), model="m")
            before = described(model)
            with full_disk() as calls:
                found = model.predict_to_keep
                refused = await asyncio.gather(
                    engine.learn("m", [found("p2", {"c": 1.0}), found("p3", {"c": 1.0}), found("p4", {"c": 1.0})]),
                    engine.learn("m", [Label("p0", 1), Event({"new": 1.0}, 1, "e")]),
                    engine.learn("m", [Label("p1", 1)], Stream()),
                    return_exceptions=True,
                )
                assert [type(one) for one in refused] == [errors.DiskFull] * 3
                assert len(calls) == 1
            assert described(model) == before
            assert (model.not_kept, model.next_number) == (0, 3)
            replies = await kept(engine, ("p2", {"c": 1.0}), ("p3", {"c": 1.0}), ("p4", {"c": 1.0}), model="m")
            assert [(reply.kept, reply.duplicate) for reply in replies] == [
                (True, False),
                (True, False),
                (False, False),
            ]
            result = await learned(engine, Label("p0", 1), Event({"new": 1.0}, 1, "e"), Label("p1", 1), model="m")
            assert (told(result).seq, told(result).duplicate) == ([1, 2, 3], [False] * 3)
            assert model.learner.features.names == ["a", "new", "b"]
            after = described(model)
        async with running_engine(tmp_path) as engine:
            assert described(engine.model("m")) == after

    run(story())


def test_timeouts_wait_for_room_on_the_disk_and_the_writer_rests(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = 0
    step = Chores.step

    async def counted(chores: Chores) -> bool:
        nonlocal turns
        turns += 1
        return await step(chores)

    monkeypatch.setattr(Chores, "step", counted)

    async def story() -> None:
        nonlocal turns
        async with running_engine(tmp_path) as engine:
            await engine.create("m", NEGATIVE)
            await kept(engine, ("p0", {"a": 1.0}), ("p1", {"b": 1.0}), model="m")
            before = described(engine.model("m"))
            with full_disk() as calls:
                clock.advance(DAY + 1, engine)
                await until(lambda: calls, "a try")
                turns = 0
                await asyncio.sleep(0.05)
                assert turns < 3
                assert described(engine.model("m")) == before
            assert told(await learned(engine, Event({"z": 1.0}, 1), model="m")).seq == [1]  # learning goes on at once
            assert engine.model("m").waiting == 2
            clock.let_pass(FULL_PAUSE_SECONDS, engine)
            await until(lambda: engine.model("m").waiting == 0, "room")
            assert engine.model("m").joins.counts()["expired"] == 2
            assert engine.model("m").learner.features.names == ["z", "a", "b"]
            assert engine.lifecycle.failure is None

    run(story())


def test_a_disk_that_is_really_full_refuses_a_prediction_and_then_goes_on(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            await kept(engine, ("p0", {"a": 1.0}))
            db = engine.disk.store.log.db.connection
            db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")
            with pytest.raises(errors.DiskFull, match="Predictions without an id still work"):
                await kept(engine, *[(f"big{i}", {"a": "v" * 200}) for i in range(200)])
            assert engine.model("default").waiting == 1
            db.execute("PRAGMA max_page_count = 1000000")
            assert all(reply.kept for reply in await kept(engine, *[(f"big{i}", {"a": 1.0}) for i in range(200)]))
            assert told(await learned(engine, Label("p0", 1), Label("big7", 0))).seq == [1, 2]

    run(story())


# -- what meets in one turn


class Gate:
    """Holds the writer in its commit until it is opened, so that what comes meanwhile meets in the next turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.entered = threading.Event(), threading.Event()
        commit = Store.commit

        def held(store: Store, batches: Sequence[ModelBatch], *more: Any) -> bool:
            self.entered.set()
            assert self.opened.wait(30)
            return commit(store, batches, *more)

        monkeypatch.setattr(Store, "commit", held)

    @contextmanager
    def closed(self) -> Iterator[None]:
        self.opened.clear()
        self.entered.clear()
        try:
            yield
        finally:
            self.opened.set()

    async def wait_until_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, 30)


async def in_one_turn(engine: Engine, gate: Gate, *requests: Coroutine[Any, Any, Any]) -> list[Any]:
    """What became of requests that wait for the same turn; errors too."""
    with gate.closed():
        first = asyncio.create_task(engine.learn("default", [Event({}, 1)]))
        await gate.wait_until_entered()
        tasks = [asyncio.create_task(request) for request in requests]
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in tasks)
    await first
    results = await asyncio.gather(*tasks, return_exceptions=True)
    return [told(result) if isinstance(result, list) else result for result in results]


def test_a_label_waits_for_its_prediction_in_the_same_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)

    async def story() -> None:
        gate.opened.set()
        async with running_engine(tmp_path) as engine:
            model = engine.model("default")
            predictions = [model.predict_to_keep(id_, {"a": 1.0}) for id_ in "ab"]
            replies, joined, again, whole, other = await in_one_turn(
                engine,
                gate,
                engine.learn("default", predictions),
                engine.learn("default", [Label("b", 1), Event({"z": 1.0}, 0)]),
                engine.learn("default", predictions[:1]),
                engine.learn("default", [Event({"a": 1}, 0, "a")]),
                engine.learn("default", [Label("b", 0)]),
            )
            assert [reply.kept for reply in replies.predicted] == [True, True]
            assert (joined.seq, joined.duplicate, joined.late_labels.keys()) == ([2, 3], [False, False], {0})
            assert [(reply.kept, reply.duplicate) for reply in again.predicted] == [(True, True)]
            assert (whole.seq, whole.duplicate) == ([4], [False])
            assert isinstance(other, errors.IdConflict)
            assert model.waiting == 0
            assert model.joins.counts()["joined"] == 2

    run(story())


def test_a_label_whose_prediction_in_the_same_turn_is_refused_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)

    async def story() -> None:
        gate.opened.set()
        async with running_engine(tmp_path) as engine:
            model = engine.model("default")
            await kept(engine, ("old", {"a": 1.0}))
            wrong = [model.predict_to_keep("new", {"a": 1.0}), model.predict_to_keep("old", {"a": 2.0})]
            refused, unknown, joined = await in_one_turn(
                engine,
                gate,
                engine.learn("default", wrong),
                engine.learn("default", [Label("new", 1)]),
                engine.learn("default", [Label("old", 1)]),
            )
            assert isinstance(refused, errors.IdConflict)
            assert refused.index == 1
            assert isinstance(unknown, errors.UnknownId)
            assert joined.seq == [2]

    run(story())


def test_a_prediction_in_the_turn_of_its_own_label_is_in_conflict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)

    async def story() -> None:
        gate.opened.set()
        async with running_engine(tmp_path) as engine:
            model = engine.model("default")
            await kept(engine, ("a", {"a": 1.0}))
            again = model.predict_to_keep("a", {"a": 1.0})
            joined, conflict = await in_one_turn(
                engine, gate, engine.learn("default", [Label("a", 1)]), engine.learn("default", [again])
            )
            assert joined.seq == [2]
            assert isinstance(conflict, errors.IdConflict)
            assert "at seq 2" in str(conflict)

    run(story())


def test_new_ids_are_not_looked_up_and_one_that_is_known_changes_nothing_for_the_others_of_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    looked_up: list[str] = []
    find_ids = Store.find_ids

    def counted(store: Store, wanted: dict[int, list[str]], reading: Reading | None = None) -> Any:
        for ids in wanted.values():
            looked_up.extend(ids)
        return find_ids(store, wanted, reading)

    monkeypatch.setattr(Store, "find_ids", counted)

    async def story() -> None:
        gate.opened.set()
        async with running_engine(tmp_path) as engine:
            model = engine.model("default")
            await learned(engine, Event({"a": 1.0}, 1, "known"))
            await kept(engine, ("waits", {"a": 1.0}))
            assert looked_up == []
            new, again, conflict, mixed, refused = await in_one_turn(
                engine,
                gate,
                engine.learn("default", [Event({"b": 1.0}, 0, "new")]),
                engine.learn("default", [Event({"a": 1.0}, 1, "known")]),
                engine.learn("default", [model.predict_to_keep("known", {"c": 1.0})]),
                engine.learn("default", [Event({"d": 1.0}, 1, "other"), Label("waits", 1)]),
                engine.learn("default", [Event({"e": 1.0}, 1, "known-not"), Event({"f": 1e301}, 1)]),
            )
            assert (new.seq, new.duplicate) == ([3], [False])  # 2 is the gate's
            assert (again.seq, again.duplicate) == ([1], [True])
            assert isinstance(conflict, errors.IdConflict)
            assert (mixed.seq, mixed.duplicate) == ([4, 5], [False, False])
            assert isinstance(refused, errors.InvalidEvent)
            assert list(model.learner.features.names)[-2:] == ["b", "d"]
            assert {"new", "known", "other", "waits"} <= set(looked_up)

    run(story())


# -- a small model of what labels that come late mean

ORDINARY, JOINED, EXPIRED, LATE, WAITING, DROPPED = "ordinary", "joined", "expired", "late", "waiting", "dropped"
LEARNED = (ORDINARY, JOINED, LATE)
KEEP = "100s"
TICK = 60.0
"""Seconds the clock goes forward: what is older than one tick has timed out at the second."""
MOST_WAITING, MOST_FEATURES = 3, 4


class Refused(Exception):
    def __init__(self, kind: type[errors.LogstepError]) -> None:
        self.kind = kind


@dataclass
class Entry:
    """What an id stands for."""

    kind: str
    x: dict[str, float]
    y: float = 0
    weight: float = 1.0
    seq: int = 0
    served_p: float = 0.5
    served_seq: int = 0
    tick: int = 0


@dataclass
class Draft:
    ids: dict[str, Entry]
    names: list[str]
    waiting: list[str]
    counts: dict[str, int]
    next_seq: int
    steps: list[tuple[dict[str, float], float, float]] = field(default_factory=list)
    here: set[str] = field(default_factory=set)


@dataclass
class Told:
    """A reply to one item; `step`: the place of the step among those of the request."""

    seq: int
    step: int | None = None
    served_p: float | None = None
    late: bool = False


class Meaning:
    """What the README says, as plain as can be: one dict of ids, one learner."""

    def __init__(self, negative: bool, late: bool) -> None:
        self.negative, self.late = negative, late
        self.learner = Learner(Spec(learning_rate=0.5))
        self.tick = 0
        self.draft = Draft({}, [], [], dict.fromkeys((JOINED, EXPIRED, LATE, DROPPED, "not kept"), 0), 1)

    def predict(self, x: dict[str, float]) -> tuple[float, int]:
        return self.learner.predict_proba_one(x)[True], self.learner.seq

    def request(
        self, items: Sequence[Any], atomic: bool, place: Callable[[Any], Any]
    ) -> tuple[list[Any], type[errors.LogstepError] | None, int]:
        """The replies, and what is wrong with which item."""
        before = copy.deepcopy(self.draft)
        replies: list[Any] = []
        self.draft.steps, self.draft.here = [], set()
        for item in items:
            try:
                replies.append(place(item))
            except Refused as refused:
                if atomic:
                    self.draft = before
                    return [], refused.kind, len(replies)
                return replies, refused.kind, len(replies)
        return replies, None, 0

    def step(self) -> tuple[list[float], list[float]]:
        """Take the steps; p and loss before each."""
        ps, losses = [], []
        for x, y, weight in self.draft.steps:
            outcome = self.learner.learn_many([x], [int(y)], [weight])
            ps += outcome.probabilities.tolist()
            losses += outcome.losses.tolist()
        self.draft.steps = []
        return ps, losses

    def add(self, x: dict[str, float], y: float, weight: float) -> int:
        if y not in (0, 1) or weight <= 0 or any(abs(value) > 1e100 for value in x.values()):
            raise Refused(errors.InvalidEvent)
        new = [name for name in x if name not in self.draft.names]
        if len(self.draft.names) + len(new) > MOST_FEATURES:
            raise Refused(errors.InvalidEvent)
        self.draft.names += new
        self.draft.steps.append((x, y, weight))
        self.draft.next_seq += 1
        return len(self.draft.steps) - 1

    def keep(self, question: tuple[str, dict[str, float], float, int]) -> tuple[float, int, bool, bool]:
        id_, x, p, seq = question
        known = self.draft.ids.get(id_)
        if known is not None and known.kind != DROPPED:
            if known.kind != WAITING or known.x != x:
                raise Refused(errors.IdConflict)
            return known.served_p, known.served_seq, True, True
        if len(self.draft.waiting) >= MOST_WAITING:
            self.draft.counts["not kept"] += 1
            return p, seq, False, False
        self.draft.ids[id_] = Entry(WAITING, x, served_p=p, served_seq=seq, tick=self.tick)
        self.draft.waiting.append(id_)
        return p, seq, True, False

    def learn(self, item: Event | Label) -> Told:
        x = dict(cast("dict[str, float]", item.x)) if isinstance(item, Event) else None
        if item.id is None:
            assert x is not None
            step = self.add(x, item.y, item.weight)
            return Told(self.draft.next_seq - 1, step)
        if item.y not in (0, 1) or item.weight <= 0:
            raise Refused(errors.InvalidEvent)
        known = self.draft.ids.get(item.id)
        if known is not None and known.kind in LEARNED:
            return self.again(item, x, known)
        if x is not None and (known is None or known.kind == DROPPED):
            return self.learned(item, Entry(ORDINARY, x), served=False)
        if known is None or known.kind == DROPPED:
            raise Refused(errors.UnknownId if known is None else errors.DroppedId)
        return self.join(item, x, known)

    def again(self, item: Event | Label, x: dict[str, float] | None, known: Entry) -> Told:
        same = (known.y, known.weight) == (item.y, item.weight)
        if not same and item.id in self.draft.here:
            raise Refused(errors.IdConflict)
        self.check_x(x)
        if not same or (x is not None and x != known.x):
            raise Refused(errors.IdConflict)
        return Told(known.seq)

    def join(self, item: Event | Label, x: dict[str, float] | None, known: Entry) -> Told:
        if known.kind == EXPIRED:
            self.check_x(x)
        if x is not None and x != known.x:
            raise Refused(errors.IdConflict)
        if known.kind == WAITING:
            told = self.learned(item, Entry(JOINED, known.x, served_p=known.served_p))
            assert item.id is not None
            self.draft.waiting.remove(item.id)
            return told
        if not self.late:
            raise Refused(errors.ExpiredId)
        if not item.y:
            return Told(known.seq)
        return self.learned(item, Entry(LATE, known.x, served_p=known.served_p))

    def check_x(self, x: dict[str, float] | None) -> None:
        if x is not None and any(abs(value) > 1e100 for value in x.values()):
            raise Refused(errors.InvalidEvent)

    def learned(self, item: Event | Label, entry: Entry, served: bool = True) -> Told:
        assert item.id is not None
        step = self.add(entry.x, item.y, item.weight)
        entry.y, entry.weight, entry.seq = item.y, item.weight, self.draft.next_seq - 1
        self.draft.ids[item.id] = entry
        self.draft.here.add(item.id)
        if served:
            self.draft.counts[entry.kind] += 1
        return Told(entry.seq, step, entry.served_p if served else None, entry.kind == LATE)

    def time_out(self) -> None:
        self.tick += 1
        for id_ in [id_ for id_ in self.draft.waiting if self.tick - self.draft.ids[id_].tick >= 2]:
            entry = self.draft.ids[id_]
            self.draft.waiting.remove(id_)
            entry.kind = DROPPED
            if self.negative:
                try:
                    self.add(entry.x, 0, 1.0)
                except Refused:
                    pass
                else:
                    entry.kind, entry.y, entry.weight, entry.seq = EXPIRED, 0, 1.0, self.draft.next_seq - 1
            self.draft.counts[entry.kind] += 1
        self.step()


xs = st.sampled_from([{}, {"a": 1.0}, {"a": 1.0, "b": -2.0}, {"b": -2.0, "a": 1.0}, {"c": 3.0}, {"d": 1.0, "e": 0.5}])
ids = st.sampled_from("pqrstu")
ys = st.sampled_from([0, 1, 1, True, 0.0])
weights = st.sampled_from([1.0, 1.0, 1.0, 2.0])
rarely_wrong = st.sampled_from([None] * 20 + ["y", "weight", "x"])
labels = st.builds(Label, ids, ys, weights)
events = st.builds(Event, xs, ys, st.none() | ids, weights)


def spoilt(item: Event | Label, how: str | None) -> Event | Label:
    """The item with something wrong in it, or as it is."""
    item = copy.deepcopy(item)
    if how == "y":
        item.y = 0.5
    elif how == "weight":
        item.weight = -1.0
    elif how == "x" and isinstance(item, Event):
        item.x = {"a": 1e200}
    return item


items = st.builds(spoilt, st.one_of(labels, labels, events), rarely_wrong)
keeping = st.tuples(st.just("keep"), st.lists(st.tuples(ids, xs), min_size=1, max_size=3), st.booleans())
learning = st.tuples(st.just("learn"), st.lists(items, min_size=1, max_size=4), st.booleans())
request = st.one_of(keeping, learning)
turns = st.tuples(st.just("together"), st.lists(request, min_size=1, max_size=2))
operations = st.lists(
    st.one_of(turns, turns, turns, st.tuples(st.just("tick")), st.tuples(st.just("restart"))), min_size=1, max_size=16
)
Operation = tuple[Any, ...]


CONFLICT_AND_NO_ROOM = [
    (
        "together",
        [
            ("keep", [("p", {})], False),
            (
                "learn",
                [Event({"a": 1.0, "b": -2.0}, 0), Event({"c": 3.0}, 0), Event({"d": 1.0, "e": 0.5}, 0, "p")],
                False,
            ),
        ],
    )
]
"""Of an event whose id waits with another x, and for whose features there is no room, the id is told."""


async def asked(engine: Engine, meaning: Meaning, requests: Sequence[Operation]) -> None:
    """Send requests at once, and hold every reply to what it means."""
    model = engine.model("m")
    questions: dict[int, list[tuple[str, dict[str, float], float, int]]] = {}
    sent: list[Any] = []
    for i, (kind, things, atomic) in enumerate(requests):
        if kind == "keep":
            questions[i] = [(id_, x, *meaning.predict(x)) for id_, x in things]
            predictions = [model.predict_to_keep(id_, x) for id_, x in things]
            sent.append(engine.learn("m", predictions, None if atomic else Stream()))
        else:
            sent.append(engine.learn("m", things, None if atomic else Stream()))
    answers = await asyncio.gather(*sent, return_exceptions=True)
    for i, ((kind, things, atomic), answer) in enumerate(zip(requests, answers, strict=True)):
        if kind == "keep":
            expected, wrong, index = meaning.request(questions[i], atomic, meaning.keep)
        else:
            expected, wrong, index = meaning.request(things, atomic, meaning.learn)
        ps, losses = meaning.step()
        if atomic and wrong is not None:
            assert isinstance(answer, errors.LogstepError)
            assert (type(answer), answer.index) == (wrong, index), (answer, wrong)
            continue
        assert not isinstance(answer, BaseException), (answer, expected)
        had = told(answer)
        error = had.error
        assert (type(error), error.index) == (wrong, index) if error else wrong is None
        if kind == "keep":
            assert [(reply.p, reply.seq, reply.kept, reply.duplicate) for reply in had.predicted] == expected
            continue
        assert had.seq == [one.seq for one in expected]
        assert had.duplicate == [one.step is None for one in expected]
        assert had.p == [None if one.step is None else ps[one.step] for one in expected]
        assert had.loss == [None if one.step is None else losses[one.step] for one in expected]
        late = {place: (label.served_p, label.late) for place, label in had.late_labels.items()}
        assert late == {
            place: (one.served_p, one.late) for place, one in enumerate(expected) if one.served_p is not None
        }


def assert_means(model: Model, meaning: Meaning) -> None:
    draft = meaning.draft
    assert model.waiting == len(draft.waiting)
    assert {**model.joins.counts(), DROPPED: model.dropped} == {
        name: count for name, count in draft.counts.items() if name != "not kept"
    }
    assert model.learner.features.names == draft.names
    assert (model.learner.seq, model.learner.sha256()) == (meaning.learner.seq, meaning.learner.sha256())


async def live(folder: Path, story: Sequence[Operation], negative: bool, late: bool, clock: Clock) -> None:
    meaning = Meaning(negative, late)
    join = {
        "keep": KEEP,
        "on_timeout": "negative" if negative else "drop",
        "late": "learn" if late else "refuse",
        "max_waiting": MOST_WAITING,
    }
    spec = Spec.from_dict({"learning_rate": 0.5, "max_features": MOST_FEATURES, "overflow": "refuse", "join": join})
    chapters: list[list[Operation]] = [[]]
    for operation in story:
        if operation[0] == "restart":
            chapters.append([])
        else:
            chapters[-1].append(operation)
    for number, chapter in enumerate(chapters):
        async with running_engine(folder, commit_events=8) as engine:
            if number == 0:
                await engine.create("m", spec)
            assert_means(engine.model("m"), meaning)
            for operation in chapter:
                if operation[0] == "tick":
                    meaning.time_out()
                    await timed_out(engine, clock, TICK)
                else:
                    await asked(engine, meaning, operation[1])
                assert_means(engine.model("m"), meaning)
            last = described(engine.model("m"))
    async with running_engine(folder) as engine:
        assert described(engine.model("m")) == last
    assert replay(folder)["m"] == {"seq": meaning.learner.seq, "sha256": meaning.learner.sha256()}


def lived(story: Sequence[Operation], negative: bool, late: bool) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        clock = Clock(patched, store_module)
        run(live(Path(folder), story, negative, late and negative, clock))


TWICE_LATE = [
    ("together", [("keep", [("p", {"a": 1.0})], True)]),
    ("tick",),
    ("tick",),
    ("together", [("learn", [Label("p", 0), Label("p", 1), Label("p", 1), Event({"a": 1.0}, 1, "p")], True)]),
]


@examples(60, long=3_000)
@given(operations, st.booleans(), st.booleans())
@example(CONFLICT_AND_NO_ROOM, False, False)
@example(TWICE_LATE, True, True)
def test_every_reply_and_count_is_what_it_means(story: list[Operation], negative: bool, late: bool) -> None:
    lived(story, negative, late)


# -- labels of large predictions


@pytest.mark.parametrize("late", [False, True])
def test_labels_that_lead_to_more_than_a_turn_may_read_are_refused_in_an_array_and_cut_in_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock, late: bool
) -> None:
    """However many they are, what they lead to is not in memory at once."""
    monkeypatch.setattr(draft_module, "JOINED_BYTES", 5_000)
    x = {f"feature-{i}": float(i) for i in range(200)}
    ids = [f"wide-{i}" for i in range(12)]
    labels = [Label(id_, i % 2) for i, id_ in enumerate(ids)]
    read: list[int] = []
    find_ids = WaitingReader.find_ids

    def counted(reader: WaitingReader, wanted: dict[int, list[str]], *more: Any) -> Any:
        found = find_ids(reader, wanted, *more)
        read.append(sum(known.waiting is not None for known in found.values()))
        return found

    monkeypatch.setattr(WaitingReader, "find_ids", counted)
    spec = Spec.from_dict({"join": {"on_timeout": "negative", "late": "learn", "keep": "1h"} if late else {}})

    async def story() -> None:
        async with running_engine(tmp_path) as engine:
            await engine.create("m", spec)
            for id_ in (*ids, "small"):
                await kept(engine, (id_, x if id_ in ids else {"a": 1.0}), model="m")
            if late:
                await timed_out(engine, clock, 2 * 3600)
                labels[:] = [Label(id_, 1) for id_ in ids]
            before = engine.model("m").last_seq
            with pytest.raises(errors.IdsTooLarge):
                await learned(engine, *labels, model="m")
            assert engine.model("m").last_seq == before
            results = await asyncio.gather(
                engine.learn("m", [*labels[:7], Label("nobody", 1), *labels[7:]], Stream()),
                learned(engine, Label("small", 1), model="m"),
            )
            stream, array = map(told, results)
            assert stream.error is not None
            assert stream.error.index == 7
            assert len(stream.seq) == len(stream.p) == len(stream.loss) == len(stream.duplicate) == 7
            assert sorted([*stream.seq, *array.seq]) == list(range(before + 1, before + 9))
            assert list(stream.late_labels) == list(range(7))
            whole = told(await engine.learn("m", labels, Stream()))
            assert (whole.duplicate, whole.error) == ([True] * 7 + [False] * 5, None)
            assert whole.seq[:7] == stream.seq
            assert list(whole.late_labels) == list(range(7, 12))
            assert max(read) <= 3
            described_then = described(engine.model("m"))
        async with running_engine(tmp_path) as engine:
            assert described(engine.model("m")) == described_then

    run(story())
