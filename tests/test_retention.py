"""Old events and ids that need not be kept: what goes, what stays, and that nothing learned is lost with them."""

from __future__ import annotations

import asyncio
import collections
import itertools
import math
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import processes
import pytest
from effort import EFFORT, amount, examples, from_checks_on
from harness import Service, exchange
from hypothesis import given
from hypothesis import strategies as st
from patience import eventually
from processes import Clock, copied, ids_in, logged_events, replayed_elsewhere, running_engine, started, told
from pydantic import ValidationError

from core import Spec
from core.batch import Batch
from core.builder import BatchBuilder
from service import errors, failures
from service.commands import cli
from service.commands.inspect import examine
from service.events import Event, Label
from service.learning import chores, crosscheck, retention
from service.learning.engine import Engine
from service.learning.model import Model, Prediction
from service.learning.request import Duplicate
from service.learning.retention import Keep, Retention
from service.replica import own_log
from service.settings import Settings
from service.storage import store, trimming
from service.storage.id_pieces import EventIds
from service.storage.log import LogReader, StoredModel
from service.storage.store import ModelBatch, Store

YEAR = 365 * 86_400.0


def events(count: int, start: int = 0) -> list[Event]:
    """Events with an id each; features come up late."""
    return [
        Event({"age": (i % 17) / 10, f"c{i % 7}": 1.0, f"late-{i // 200}": 1.0}, int(i % 17 > 8), f"e{i}")
        for i in range(start, start + count)
    ]


def as_json(event: Event) -> dict[str, Any]:
    return {"x": event.x, "y": event.y, "id": event.id}


def gone(folder: Path, model: str = "default") -> int:
    """Up to which seq the log has no events."""
    with closing(LogReader(folder)) as log:
        return log.gone(next(stored.key for stored in log.models() if stored.name == model))


def snapshots(folder: Path) -> list[int]:
    with closing(LogReader(folder)) as log:
        return log.snapshots.seqs(log.models()[0].key)


def ids(folder: Path) -> set[str]:
    return {id_ for _, id_ in ids_in(folder)}


def sql(folder: Path, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(folder / "log.db", isolation_level=None)) as db:
        return db.execute(statement, values).fetchall()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine looks at once for what need not be kept, again and again."""
    monkeypatch.setattr(chores, "DROP_PAUSE_SECONDS", 0.005)
    monkeypatch.setattr(retention, "LOOK_AGAIN_SECONDS", 0.0)


async def until(condition: Callable[[], Any], what: str) -> None:
    for _ in range(1_000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"waited in vain for {what}")


async def looked(times: int = 5) -> None:
    """Wait until an engine has looked so often for what need not be kept, with time for a snapshot between."""
    pieces, looks = Retention.pieces, 0

    def counted(retention: Retention, store: Store, models: list[Model]) -> Iterator[None]:
        nonlocal looks
        yield from pieces(retention, store, models)
        looks += 1

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Retention, "pieces", counted)
        await until(lambda: looks >= times, "looks")


async def learn(engine: Engine, count: int, start: int = 0, piece: int = 20) -> None:
    """Learn events a few at a time, with a pause after each for the writer to tidy up."""
    for first in range(start, start + count, piece):
        await engine.learn("default", events(min(piece, start + count - first), first))
        await asyncio.sleep(0)


async def settled(engine: Engine) -> None:
    """Wait until an engine has looked at what it learned, and has the snapshots that it wants for a shorter log."""
    await looked(2)
    await until(lambda: engine.snapshots.due() == math.inf, "its snapshots")


def mark(engine: Engine) -> tuple[int, str]:
    learner = engine.model("default").learner
    return learner.seq, learner.sha256()


def shortened(folder: Path, count: int = 1_000, **settings: Any) -> tuple[int, str]:
    """A folder of so many events, of which the log has 300 or some more; seq and sha256 of the model."""

    async def run() -> tuple[int, str]:
        async with running_engine(folder, keep_events="300", keep_min=10, **settings) as engine:
            for start in range(0, count, 50):
                await learn(engine, 50, start)
                await settled(engine)  # were snapshots made late, they could stand so that less goes
            await until(lambda: gone(folder) > count - 500, "a shorter log")
            return mark(engine)

    return asyncio.run(run())


# -- what is kept of the log


@pytest.mark.usefixtures("quick")
def test_the_last_events_stay_in_the_log_and_the_weights_are_those_of_all(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    seq, sha256 = shortened(folder)
    assert seq == 1_000
    assert 500 < gone(folder) <= 700
    assert gone(folder) <= min(snapshots(folder))
    kept = [(event.x, event.y, 1.0) for event in events(1_000)]
    assert logged_events(folder) == kept[gone(folder) :]
    assert replayed_elsewhere(folder)["default"] == {"seq": 1_000, "sha256": sha256}

    async def without_limit() -> tuple[int, str]:
        async with running_engine(tmp_path / "all") as engine:
            await learn(engine, 1_000)
            return mark(engine)

    assert asyncio.run(without_limit()) == (1_000, sha256)


@pytest.mark.usefixtures("quick")
def test_a_start_from_a_shortened_log_gives_the_same_and_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    before = shortened(folder)

    async def run() -> None:
        for flags in ({}, {"keep_events": "300", "keep_min": 10}):
            async with running_engine(copied(folder, tmp_path / f"copy-{len(flags)}"), **flags) as engine:
                assert mark(engine) == before
                again = await engine.learn("default", events(1_000))
                assert set(told(again).duplicate) == {True}
                assert told(again).seq == list(range(1, 1_001))
                await learn(engine, 500, 1_000)
                if flags:
                    await until(lambda: gone(tmp_path / "copy-2") > gone(folder), "a shorter log")
                ends.append(mark(engine))

    ends: list[tuple[int, str]] = []
    asyncio.run(run())
    assert gone(tmp_path / "copy-0") == gone(folder)  # without a limit nothing more goes
    assert ends[0] == ends[1]


def test_a_model_that_has_not_changed_is_not_looked_at_again_at_once(tmp_path: Path) -> None:
    with rig(tmp_path / "data", "10") as log:
        log.commit(100)
        assert len(list(log.retention.pieces(log.store, [log.model]))) == 1
        assert list(log.retention.pieces(log.store, [log.model])) == []
        log.commit(1)
        assert len(list(log.retention.pieces(log.store, [log.model]))) == 1
        log.model.snapshot_seq = 101
        assert len(list(log.retention.pieces(log.store, [log.model]))) == 1
        assert list(log.retention.pieces(log.store, [log.model])) == []
        log.elapsed += retention.LOOK_AGAIN_SECONDS
        assert len(list(log.retention.pieces(log.store, [log.model]))) == 1


@pytest.mark.usefixtures("quick")
def test_while_a_log_is_read_back_no_event_is_dropped_and_no_snapshot_begun(tmp_path: Path) -> None:
    with rig(tmp_path / "data", "10") as log:
        for _ in range(10):
            log.commit(10)
        log.snapshot()
        with log.model.hold():
            assert (log.look(), log.store.log.gone(log.key)) == (0, 0)
        assert (log.look(), log.store.log.gone(log.key)) == (1, 90)

    async def run() -> None:
        # Retention wants a snapshot, and it is due too.
        async with running_engine(tmp_path / "engine", keep_events="10", keep_min=1, snapshot_seconds=1e-6) as engine:
            with engine.model("default").hold():
                await learn(engine, 100)
                await looked()
                assert snapshots(tmp_path / "engine") == []
            await learn(engine, 100, 100)
            await until(lambda: snapshots(tmp_path / "engine"), "a snapshot")

    asyncio.run(run())


def test_nothing_is_dropped_unless_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Retention("all", "all", 1).drops
    look = Mock()
    monkeypatch.setattr(Retention, "pieces", look)

    async def run() -> None:
        async with running_engine(tmp_path / "data", snapshot_seconds=1e-6) as engine:
            await learn(engine, 500)

    asyncio.run(run())
    assert not look.called
    assert len(logged_events(tmp_path / "data")) == 500


@pytest.mark.usefixtures("quick")
def test_a_model_that_learned_in_one_go_is_shortened_behind_its_only_snapshot(tmp_path: Path) -> None:
    folder = tmp_path / "data"

    async def run() -> None:
        async with running_engine(folder, keep_events="100", keep_min=10) as engine:
            engine.chores.rest(math.inf)
            await learn(engine, 1_000)
            engine.chores.rest(0)
            engine.queue.work.set()
            await until(lambda: gone(folder) == 900, "a shorter log")

    asyncio.run(run())
    assert snapshots(folder) == [1_000]
    assert len(logged_events(folder)) == 100


@pytest.mark.usefixtures("quick")
def test_a_time_is_kept_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, clock = tmp_path / "data", Clock(monkeypatch, store, trimming)

    async def run() -> None:
        async with running_engine(folder, keep_events="1h", keep_min=50) as engine:
            for start in range(0, 1_200, 200):
                await learn(engine, 200, start)
                clock.advance(1_190)  # less than 20 minutes
                await looked()

    asyncio.run(run())
    assert gone(folder) == 600  # what came in the last hour stays


@pytest.mark.usefixtures("quick")
def test_a_clock_that_jumps_years_ahead_and_back_leaves_the_last_events_and_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, clock = tmp_path / "data", Clock(monkeypatch, store, trimming)

    async def run() -> None:
        async with running_engine(folder, keep_events="30d", keep_ids="30d", keep_min=400) as engine:
            for start in range(0, 2_000, 200):
                await learn(engine, 200, start)
                clock.advance(10 * YEAR)
                await looked()
                assert gone(folder) <= max(0, start + 200 - 400)
                assert len(ids(folder)) >= min(400, start + 200)
            assert gone(folder) >= 1_000
            assert len(ids(folder)) <= 800
            clock.advance(-200 * YEAR)
            await learn(engine, 100, 2_000)
            await looked()

    asyncio.run(run())
    assert logged_events(folder)[-400:] == [(event.x, event.y, 1.0) for event in events(400, 1_700)]
    assert replayed_elsewhere(folder)["default"]["seq"] == 2_100


# -- the rules, on a store alone


class Rig:
    """A store with one model, and retention over it; snapshots are written when the test says so."""

    def __init__(self, store: Store, keep_events: str, keep_ids: str, least: int) -> None:
        self.store, self.elapsed = store, 0.0
        clock = processes.CLOCK._replace(steady=lambda: self.elapsed)
        self.retention = Retention(keep_events, keep_ids, least, clock)
        self.model = Model(store.create_model("default", Spec().as_dict()), 10)
        self.features = self.model.learner.features
        self.ends = [0]

    @property
    def key(self) -> int:
        return self.model.stored.key

    def seqs(self) -> list[int]:
        """The seqs of the events whose ids are there."""
        return sorted(seq for seq, *_ in ids_in(self.store.log.db.folder).values())

    def commit(self, count: int, features: int = 1) -> None:
        """One row of the log."""
        builder, first = BatchBuilder(self.features), self.ends[-1] + 1
        for i in range(count):
            builder.add({f"f{j}": float(i) for j in range(features)}, i % 2)
        new = EventIds.of((f"id-{first + i:06}", first + i, 0, 0) for i in range(count))
        batch = builder.build()
        part = ModelBatch(self.key, first, batch, builder.first_feature, builder.new_names(), new)
        self.store.commit([part])
        self.model.learner.learn_batch(batch)
        self.ends.append(self.ends[-1] + count)

    def snapshot(self) -> None:
        for _ in self.store.write_snapshot(self.key, self.ends[-1], {"learner": {}}):
            pass

    def look(self) -> int:
        """One look, when it is time for one; how many commits it made."""
        before = self.store.log.db.log_end()[0]
        self.elapsed += retention.LOOK_AGAIN_SECONDS
        for _ in self.retention.pieces(self.store, [self.model]):
            pass
        return self.store.log.db.log_end()[0] - before


@contextmanager
def rig(folder: Path, keep_events: str = "all", keep_ids: str = "all", least: int = 1) -> Iterator[Rig]:
    folder.mkdir(exist_ok=True)
    with closing(Store(folder)) as opened:
        yield Rig(opened, keep_events, keep_ids, least)


STEPS = st.lists(st.one_of(st.integers(1, 30), st.just("snapshot"), st.just("look")), max_size=60)


@examples(40)
@given(steps=STEPS, keep=st.integers(0, 60), least=st.integers(1, 40))
def test_what_is_dropped_is_whole_rows_behind_the_oldest_snapshot_and_enough_stays(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int | str], keep: int, least: int
) -> None:
    with rig(tmp_path_factory.mktemp("rig") / "data", str(keep), least=least) as log:
        for step in [*steps, "look"]:
            if step == "snapshot":
                log.snapshot()
            elif step == "look":
                before = log.store.log.gone(log.key)
                log.look()
                gone, last = log.store.log.gone(log.key), log.ends[-1]
                kept = log.store.log.snapshots.seqs(log.key)
                assert gone >= before
                # As much as may go: the last whole row that is behind the snapshot, and not among what stays.
                allowed = min(kept[-1], last - max(keep, least)) if kept else 0
                assert gone == max(before, *(end for end in log.ends if end <= max(allowed, 0)))
                assert log.store.log.last_seq(log.key) == last
                assert sum(map(len, log.store.log.batches(log.key, after=gone))) == last - gone
            else:
                assert isinstance(step, int)
                log.commit(step)
        assert examine(log.store.log.db.folder).damage == []


def test_dropping_goes_in_short_pieces(tmp_path: Path) -> None:
    with rig(tmp_path / "data", "10") as log:
        for _ in range(1_000):
            log.commit(1)
        for _ in range(30):
            log.commit(1_000, features=10)
        log.commit(10)
        log.snapshot()
        rows = [log.store.log.rows_after(log.key, 0, 10_000)]
        for _ in log.retention.pieces(log.store, [log.model]):
            rows.append(log.store.log.rows_after(log.key, 0, 10_000))
    assert len(rows[-1]) == 1
    pieces = [before[: len(before) - len(after)] for before, after in itertools.pairwise(rows)]
    assert max(len(piece) for piece in pieces) == trimming.PURGE_ROWS
    bytes_ = max(sum(row.size for row in piece) for piece in pieces)
    assert trimming.DROPPED_BYTES <= bytes_ < trimming.DROPPED_BYTES + max(row.size for row in rows[0])


def test_no_row_is_dropped_behind_a_snapshot_that_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with rig(tmp_path / "data", "10") as log:
        for _ in range(10):
            log.commit(10)
        log.snapshot()
        log.store.log.db.connection.execute("UPDATE snapshot_chunks SET data = x'00'")
        assert log.look() == 0
        assert log.store.log.gone(log.key) == 0
        assert (
            "model 'default': retention drops nothing, because the snapshot at seq 100 has a wrong checksum"
            in caplog.text
        )
        log.commit(10)
        log.snapshot()
        assert log.look() == 0  # the damaged one is the older of the two
        log.commit(10)
        log.snapshot()
        assert log.look() == 1
        assert log.store.log.gone(log.key) == 110


def test_a_snapshot_is_wanted_for_each_half_of_what_is_kept(tmp_path: Path) -> None:
    with rig(tmp_path / "data", "100") as log:
        made = []
        for _ in range(100):
            log.commit(10)
            log.look()
            if log.retention.wanted:
                log.snapshot()
                made.append(log.ends[-1])
            assert log.ends[-1] - log.store.log.gone(log.key) <= 150
        assert made == list(range(60, 1_001, 60))


def test_a_model_with_many_features_has_no_snapshot_for_few_events(tmp_path: Path) -> None:
    with rig(tmp_path / "data", "100") as log:
        log.commit(1, features=5_000)
        for _ in range(49):
            log.commit(10)
            log.look()
            assert not log.retention.wanted
        log.commit(20)
        log.look()
        assert log.retention.wanted


def test_a_model_that_was_deleted_meanwhile_leaves_nothing(tmp_path: Path) -> None:
    with rig(tmp_path / "data", "10") as log:
        for _ in range(300):
            log.commit(1)
        log.snapshot()
        pieces = log.retention.pieces(log.store, [log.model])
        next(pieces)
        next(pieces)
        assert log.store.log.gone(log.key) > 0
        log.store.delete_model(log.model.stored)
        for _ in pieces:
            pass
        while log.store.trimming.purge():
            pass
        tables = ("batches", "log_starts", "ids", "snapshots", "snapshot_chunks", "names")
        assert [
            log.store.log.db.connection.execute(f"SELECT count(*) FROM {table}").fetchone() for table in tables
        ] == [(0,)] * 6


@pytest.mark.usefixtures("quick")
def test_a_kill_between_any_two_pieces_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "data"

    async def recovered(folder: Path, count: int = 0) -> tuple[int, str]:
        async with running_engine(folder, snapshot_seconds=0.001) as engine:
            await learn(engine, count, piece=1)
            return mark(engine)

    before = asyncio.run(recovered(folder, 1_500))
    seen = []
    with closing(Store(folder)) as opened:
        model = Model(opened.log.models()[0], 10)
        for number, _ in enumerate(Retention("100", "200", 1).pieces(opened, [model])):
            copy = copied(folder, tmp_path / f"copy-{number}")
            assert examine(copy).wrong == []
            assert asyncio.run(recovered(copy)) == before
            seen.append(gone(copy))
    assert len(set(seen)) > 3
    assert seen == sorted(seen)


# -- ids


def test_the_ids_of_the_last_events_stay(tmp_path: Path) -> None:
    with rig(tmp_path / "data", keep_ids="3000") as log:
        for _ in range(10):
            log.commit(1_000)
        assert log.look() == 4  # commits: the ids to a run of 20 pieces; these, 8 at a time
        assert log.seqs() == list(range(7_001, 10_001))
        log.commit(1_000)
        assert log.look() == 0  # not worth a look at all of them
        log.commit(1_000)
        assert log.look() > 0
        assert log.seqs() == list(range(9_001, 12_001))
        assert log.store.log.gone(log.key) == 0


def test_ids_of_a_time_stay_though_their_events_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log keeps an hour, ids ten: it stays known which events were written when."""
    clock = Clock(monkeypatch, store, trimming)
    with rig(tmp_path / "data", "1h", "10h") as log:
        for _ in range(300):
            log.commit(1)
            log.snapshot()
            clock.advance(600)
            log.look()
            first = log.seqs()[0]
            assert log.ends[-1] - log.store.log.gone(log.key) <= 7
            assert first <= max(1, log.ends[-1] - 58)  # younger than ten hours, each ten minutes
        assert log.ends[-1] - first <= 100
        assert log.store.log.db.connection.execute("SELECT count(*) FROM log_starts").fetchone()[0] <= 70
    assert examine(tmp_path / "data").wrong == []


@pytest.mark.usefixtures("quick")
def test_an_event_whose_id_is_gone_is_learned_again_and_predictions_that_wait_stay(tmp_path: Path) -> None:
    folder = tmp_path / "data"

    async def run() -> None:
        async with running_engine(folder, keep_ids="200", keep_min=10) as engine:
            await engine.learn("default", [prediction(engine, f"waits-{i}") for i in range(5)])
            await learn(engine, 1_000)
            await until(lambda: len(ids(folder)) <= 300 + 5, "fewer ids")
            again = await engine.learn("default", [events(1)[0], events(1, 999)[0]])
            assert (told(again).duplicate, told(again).seq) == ([False, True], [1_001, 1_000])
            assert told(await engine.learn("default", [Label("waits-0", 1)])).seq == [1_002]

    asyncio.run(run())


def prediction(engine: Engine, id_: str) -> Prediction:
    return engine.model("default").predict_to_keep(id_, {"age": 1.0})


# -- late labels


@pytest.mark.usefixtures("quick")
def test_a_late_label_whose_event_is_gone_is_refused_and_said_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, clock = tmp_path / "data", Clock(monkeypatch, store, trimming)

    async def run() -> None:
        async with running_engine(folder, keep_events="300", keep_min=10) as served:
            spec = Spec.from_dict({"join": {"keep": "60s", "on_timeout": "negative", "late": "learn"}})
            await served.create("late", spec)
            for id_ in ("early", "recent"):
                await served.learn("late", [served.model("late").predict_to_keep(id_, {"age": 1.0})])
                clock.advance(61, served)
                await until(lambda: served.model("late").waiting == 0, "a timeout")
                if id_ == "early":
                    for start in range(0, 1_000, 20):
                        await served.learn("late", events(20, start))
            await until(lambda: gone(folder, "late") > 0, "a shorter log")
            seq = served.model("late").learner.seq
            reason = r"learned as y = 0 at seq 1\. That event is no longer in the log \(LOGSTEP_KEEP_EVENTS\)"
            with pytest.raises(errors.EventGone, match=reason):
                await served.learn("late", [Label("early", 1)])
            same = await served.learn("late", [Label("early", 0)])
            assert same == [Duplicate(1)]
            assert told(await served.learn("late", [Label("recent", 1)])).seq == [seq + 1]

    asyncio.run(run())


# -- damage


def failure(folder: Path) -> str:
    """Why an engine does not start on a folder."""

    async def run() -> str:
        engine = await started(folder)
        await engine.stop(0)
        assert engine.lifecycle.state == "failed"
        return str(engine.lifecycle.failure)

    return asyncio.run(run())


@pytest.mark.usefixtures("quick")
def test_without_a_whole_snapshot_a_shortened_log_refuses_to_start(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "data"
    shortened(folder)
    reason = f"its events up to seq {gone(folder)} are no longer in the log"
    sql(folder, "UPDATE snapshot_chunks SET data = x'00'")
    assert reason in failure(folder)
    assert "Restore a backup" in failure(folder)
    assert any("no snapshot is whole" in wrong for wrong in examine(folder).damage)
    for command in (("backup", folder, tmp_path / "out"), ("crosscheck", "--data", folder)):
        assert cli.main([*map(str, command)]) == 1
        assert "no snapshot is whole" in capsys.readouterr().err
    sql(folder, "DELETE FROM snapshots")
    assert reason in failure(folder)


@pytest.mark.usefixtures("quick")
def test_of_a_shortened_log_too_a_damaged_newest_snapshot_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    before = shortened(folder)
    newest, oldest = snapshots(folder)
    sql(folder, "UPDATE snapshots SET checksum = 0 WHERE seq = ?", newest)

    async def run() -> None:
        async with running_engine(folder) as engine:
            assert engine.model("default").snapshot_seq == oldest
            assert mark(engine) == before

    asyncio.run(run())
    assert examine(folder).damage == []


@pytest.mark.usefixtures("quick")
def test_a_log_that_lost_its_first_rows_is_told_from_one_that_was_shortened(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shortened(folder)
    first = gone(folder) + 1
    assert examine(folder).wrong == []
    lost = copied(folder, tmp_path / "lost")
    sql(lost, "DELETE FROM batches WHERE first_seq = (SELECT min(first_seq) FROM batches)")
    assert any(f"the events from seq {first} to {first + 19} are missing" in wrong for wrong in examine(lost).damage)
    forged = copied(folder, tmp_path / "forged")
    sql(forged, "UPDATE log_starts SET seq = seq + 20")
    message = f"the row that says the log begins after seq {first + 19} has a wrong checksum"
    assert any(message in wrong for wrong in examine(forged).damage)
    assert message in failure(forged)
    sql(folder, "DELETE FROM log_starts")
    assert any(f"the events from seq 1 to {first - 1} are missing" in wrong for wrong in examine(folder).damage)


# -- what shows a shortened log


@from_checks_on
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "spec", [{}, {"rule": "adam", "scale": "standard"}, {"rule": "ftrl", "hash_bits": 3}, {"l1": 0.001, "clip": 0.4}]
)
def test_the_cross_check_of_a_shortened_log_begins_with_the_oldest_snapshot_and_finds_the_same(
    tmp_path: Path, spec: dict[str, Any]
) -> None:
    async def run(folder: Path, **settings: Any) -> None:
        async with running_engine(folder, **settings) as engine:
            await engine.create("m", Spec.from_dict(spec))
            for start in range(0, 1_000, 50):
                await engine.learn("m", events(50, start))
                if settings:
                    await settled(engine)
            if settings:
                await until(lambda: gone(folder, "m") > 500, "a shorter log")

    asyncio.run(run(tmp_path / "all"))
    asyncio.run(run(tmp_path / "short", keep_events="300", keep_min=10))
    whole, short = crosscheck.check(tmp_path / "all", "m"), crosscheck.check(tmp_path / "short", "m")
    oldest = sql(tmp_path / "short", "SELECT min(seq) FROM snapshots JOIN models USING (model) WHERE name = 'm'")[0][0]
    assert (short["from_seq"], short["events"]) == (oldest, 1_000 - oldest)
    assert oldest >= gone(tmp_path / "short", "m")
    assert (whole["from_seq"], whole["events"]) == (0, 1_000)
    assert (short["equal"], short["replay_equal"], short["max_ulp"]) == (True, True, 0)
    assert short["sha256"] == whole["sha256"]


@from_checks_on
@pytest.mark.usefixtures("quick")
def test_what_a_model_predicted_is_replayed_from_the_oldest_snapshot_of_a_shortened_log(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shortened(folder, 2_100)
    with closing(LogReader(folder)) as log:
        (stored,) = log.models()
        assert log.gone(stored.key) > 1_024
        assert snapshots(folder)[-1] < 2_048
        assert own_log.replayed(log, stored, 2_048) == digest_of(events(2_100), 2_048)
        with pytest.raises(failures.EventsGone, match="no snapshot before seq 1024 is whole"):
            own_log.replayed(log, stored, 1_024)
        with pytest.raises(failures.LogDamaged, match="it ends at seq 2100"):
            own_log.replayed(log, stored, 3_072)


def digest_of(some: list[Event], seq: int) -> int | None:
    """The digest that a new model has at a seq of these events."""
    model = Model(StoredModel(1, "m", Spec().as_dict()), 10)
    builder = BatchBuilder(model.learner.features)
    for event in some:
        builder.add(event.x, event.y)
    model.learn(builder.build())
    return model.digest.at(seq)


@pytest.mark.usefixtures("quick")
def test_inspect_and_the_cross_check_say_where_a_log_begins(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "data"
    shortened(folder)
    assert cli.main(["inspect", str(folder)]) == 0
    output = capsys.readouterr().out
    (row,) = [line.split() for line in output.splitlines() if line.strip().startswith("default")]
    assert row[2:4] == [f"{gone(folder) + 1:,}", "1,000"]
    assert cli.main(["crosscheck", "--data", str(folder)]) == 0
    output = capsys.readouterr().out
    assert f"events after seq {snapshots(folder)[-1]:,}, where the log begins (--keep-events)" in output
    assert cli.main(["backup", str(folder), str(tmp_path / "out")]) == 0
    assert f"{1_000 - gone(folder):,} event(s)" in capsys.readouterr().out


@pytest.fixture
def shortening(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A folder with all of its 1,500 events, and what drops all but a few of them."""
    folder = tmp_path / "data"

    async def run() -> None:
        async with running_engine(folder, snapshot_seconds=0.001) as engine:
            await learn(engine, 1_500, piece=1)

    asyncio.run(run())
    with closing(Store(folder)) as opened:
        model = Model(opened.log.models()[0], 10)

        def drop() -> None:
            collections.deque(Retention("100", "all", 1).pieces(opened, [model]), maxlen=0)

        yield folder, drop


@from_checks_on
def test_a_cross_check_of_a_log_that_is_shortened_meanwhile_begins_again(
    shortening: tuple[Path, Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, shorten = shortening
    begun, batches = [], LogReader.batches

    def meanwhile(log: LogReader, model: int, after: int = 0, up_to: int | None = None) -> Iterator[Batch]:
        begun.append(after)
        shorten()
        return batches(log, model, after, up_to)

    monkeypatch.setattr(LogReader, "batches", meanwhile)
    report = crosscheck.check(folder, "default")
    assert begun == [0, report["from_seq"]]
    assert (report["equal"], report["seq"], report["from_seq"]) == (True, 1_500, snapshots(folder)[-1])


@from_checks_on
def test_a_log_that_is_shortened_while_it_is_inspected_is_whole(
    shortening: tuple[Path, Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, shorten = shortening
    batches = LogReader.batches

    def after_a_while(*arguments: Any, **named: Any) -> Any:
        shorten()
        return batches(*arguments, **named)

    monkeypatch.setattr(LogReader, "batches", after_a_while)
    findings = examine(folder)
    assert findings.wrong == []
    assert (findings.models[0].gone, findings.models[0].seq) == (gone(folder), 1_500)
    assert gone(folder) > 0


# -- settings


@pytest.mark.parametrize("keep", ["all", "1000000", "30d", "12h", "90s", "1.5h", "0"])
def test_what_is_kept_may_be_all_a_number_or_a_time(keep: str) -> None:
    assert Settings(keep_events=keep, keep_ids=keep).keep_events == keep


@pytest.mark.parametrize("keep", ["", "none", "-1", "1e6", "30 d", "30days", "d", "1_000"])
def test_what_is_kept_must_make_sense(keep: str) -> None:
    with pytest.raises(ValidationError, match="must be all, a number of events like 1000000, or a time like 30d"):
        Settings(keep_events=keep)


def test_more_events_than_the_least_are_kept_whatever_is_asked_for() -> None:
    assert Keep("10", 1_000).limit(5_000).seq == 4_000
    assert Keep("2000", 1_000).limit(5_000).seq == 3_000
    assert Keep("1h", 1_000).limit(5_000).seq == 4_000
    assert Keep("all", 1_000).limit(5_000).seq == 0


# -- the service as a process


class Learning(threading.Thread):
    """A client that sends events until the service is gone, and remembers how many were acknowledged."""

    def __init__(self, service: Service, first: int) -> None:
        super().__init__()
        self.service, self.acknowledged = service, first
        self.slowest = 0.0

    def run(self) -> None:
        connection = self.service.client()
        try:
            while True:
                batch = [as_json(event) for event in events(10, self.acknowledged)]
                begun = time.monotonic()
                status, reply = exchange(connection, "POST", "/learn", batch)
                assert status == 200, reply
                self.slowest = max(self.slowest, time.monotonic() - begun)
                self.acknowledged += 10
        except (OSError, ValueError, HTTPException):
            return


def killed_while_dropping(folder: Path, lives: int) -> None:
    numbers = random.Random(5)
    flags = ("--keep-events", "500", "--keep-min", "100", "--keep-ids", "2000", "--snapshot-seconds", "0.002")
    acknowledged = 0
    begins: list[int] = []
    for life in range(lives):
        with Service(folder, *flags).wait_until_ready() as service:
            assert acknowledged <= service.get("/models/default")["seq"]
            client = Learning(service, acknowledged)
            client.start()
            eventually(lambda: gone(folder) > max(begins, default=0), "a shorter log")  # called here
            time.sleep(numbers.uniform(0, 1))
            if life == lives - 1 and EFFORT != "quick":  # it takes three seconds
                report = service.get("/models/default/crosscheck")
                assert (report["equal"], report["replay_equal"]) == (True, True)
                assert report["from_seq"] > 0
            service.kill()
            client.join()
        acknowledged = client.acknowledged
        assert client.slowest < 2.0
        assert examine(folder).wrong == []
        begins.append(gone(folder))
    with Service(folder, *flags).wait_until_ready() as service:
        model = service.get("/models/default")
        assert model["seq"] >= acknowledged
        last = as_json(events(1, acknowledged - 1)[0])
        assert service.learn([last])[0]["duplicate"] is True
        service.kill()
    assert replayed_elsewhere(folder)["default"] == {"seq": model["seq"], "sha256": model["sha256"]}


def test_a_service_that_drops_is_killed_and_loses_nothing(tmp_path: Path) -> None:
    killed_while_dropping(tmp_path / "data", amount(quick=1, checks=1, long=20))
