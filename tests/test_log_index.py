"""The index of the log follows it, and whatever it has, the rows of each model are found in order."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from effort import examples
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from moving_ids import commit
from processes import running_engine

from service import failures
from service.commands.inspect import examine
from service.events import Event
from service.learning.recovery import recover
from service.settings import Settings
from service.storage import indexing, log_index, trimming
from service.storage.log import LogReader, StoredModel
from service.storage.store import Store


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some rows are enough for every kind of step."""
    monkeypatch.setattr(indexing, "INDEXED_ROWS", 6)
    monkeypatch.setattr(indexing, "STEPS", 2)
    monkeypatch.setattr(log_index, "FIRST_ASKED", 1)
    monkeypatch.setattr(log_index, "MOST_ASKED", 2)
    monkeypatch.setattr(trimming, "PURGE_ROWS", 3)


def rows_in(log: LogReader, model: int) -> list[tuple[int, int]]:
    """The first and last seq of each row of a model."""
    ends = [log.gone(model), *(row.last_seq for row in log.rows_after(model, 0, 1_000))]
    return [(before + 1, last) for before, last in pairwise(ends)]


class Log(RuleBasedStateMachine):
    """A log of some models beside lists of their rows."""

    models: dict[int, list[tuple[int, int]]]
    folder: Path

    @initialize()
    def open(self) -> None:
        self.models, self.store, self.stored = {}, Store(self.folder), dict[int, StoredModel]()
        self.learned = dict[int, int]()

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()

    @rule()
    def a_model_comes(self) -> None:
        if len(self.models) < 4:
            model = self.store.create_model(f"m{len(self.stored)}", {})
            self.models[model.key], self.stored[model.key], self.learned[model.key] = [], model, 0

    @rule(which=st.integers(0, 3), count=st.integers(1, 3))
    def a_model_learns(self, which: int, count: int) -> None:
        if which < len(self.models):
            model = list(self.models)[which]
            last = self.learned[model]
            assert commit(self.store, model, last + 1, count)
            self.models[model].append((last + 1, last + count))
            self.learned[model] = last + count

    @rule()
    def it_is_indexed_a_little(self) -> None:
        if self.store.indexing.due:
            self.store.indexing.step()

    @rule(which=st.integers(0, 3), rows=st.integers(1, 4))
    def its_oldest_events_are_dropped(self, which: int, rows: int) -> None:
        if which < len(self.models):
            model = list(self.models)[which]
            old = self.models[model][:rows][: trimming.PURGE_ROWS]
            if old and self.store.trimming.drop_events(model, old[-1][1], float("inf"), 0.0):
                del self.models[model][: len(old)]

    @rule(which=st.integers(0, 3))
    def a_model_goes(self, which: int) -> None:
        if which < len(self.models):
            model = list(self.models)[which]
            self.store.delete_model(self.stored[model])
            del self.models[model]

    @rule()
    def what_is_left_of_models_is_removed_a_little(self) -> None:
        self.store.trimming.purge()

    @rule()
    def it_is_closed_and_opened(self) -> None:
        self.store.close()
        self.store = Store(self.folder)

    @invariant()
    def each_row_is_found(self) -> None:
        if not hasattr(self, "store"):
            return
        with closing(LogReader(self.folder)) as another:
            assert self.store.log.index.new_rows == self.store.commits.new_rows == another.index.refresh().new_rows
            for log in (self.store.log, another):
                log.check_models()
                assert log.index.wrong() == []
                for model, rows in self.models.items():
                    assert rows_in(log, model) == rows
                    assert log.last_seq(model) == (rows[-1][1] if rows else 0)
                    for first, last in rows[:: max(1, len(rows) - 1)]:
                        assert log.event(model, first) is not None
                        assert log.event(model, last) is not None
                        assert [len(batch) for batch in log.batches(model, first - 1, last)] == [last - first + 1]
                    assert log.event(model, self.learned[model] + 1) is None


@pytest.mark.usefixtures("small")
def test_a_log_finds_what_lists_have(tmp_path_factory: pytest.TempPathFactory) -> None:
    class Fresh(Log):
        def __init__(self) -> None:
            super().__init__()
            self.folder = tmp_path_factory.mktemp("data")

    settings = examples(40)
    run_state_machine_as_test(Fresh, settings=settings)


def indexed(folder: Path, rows: int, new_rows: int = 1) -> int:
    """A closed log of two models with so many rows each, all indexed, and some more that are not; the first model."""
    with closing(Store(folder)) as store:
        one, two = (store.create_model(name, {}).key for name in ("one", "two"))
        for row in range(rows + new_rows):
            if row == rows:
                index(store)
            for model in (one, two):
                assert commit(store, model, row + 1, 1)
        if not new_rows:
            index(store)
        assert store.log.index.new_rows == 2 * new_rows
    return one


def index(store: Store) -> None:
    while store.indexing.due:
        store.indexing.step()


def sql(folder: Path, statement: str) -> None:
    with closing(sqlite3.connect(folder / "log.db", isolation_level=None)) as db:
        assert db.execute(statement).rowcount == 1


@pytest.mark.usefixtures("small")
def test_a_row_that_the_index_lost_is_told_by_inspect_and_a_gap_refused(tmp_path: Path) -> None:
    model = indexed(tmp_path, 5)
    sql(tmp_path, f"DELETE FROM log_index WHERE model = {model} AND first_seq = 3")
    assert "1 row(s) of the log are missing in its index" in examine(tmp_path).damage
    with closing(LogReader(tmp_path)) as log, pytest.raises(failures.LogDamaged, match="from seq 3 to 3 are missing"):
        list(log.batches(model))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("row", [3, 5])
@pytest.mark.parametrize(
    "leads_to", ["(SELECT number FROM batches WHERE model != 1 AND first_seq = 3)", "number + (1 << 40)"]
)
def test_an_entry_that_leads_elsewhere_is_not_believed(tmp_path: Path, row: int, leads_to: str) -> None:
    model = indexed(tmp_path, 5, new_rows=0)
    sql(tmp_path, f"UPDATE log_index SET number = {leads_to} WHERE model = {model} AND first_seq = {row}")
    assert "1 row(s) of the log are missing in its index" in examine(tmp_path).damage
    with closing(LogReader(tmp_path)) as log, pytest.raises(failures.LogDamaged, match=f"number 1 at {row}"):
        list(log.batches(model))
    assert_start_refused(tmp_path)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("removed", ["by age", "with the model"])
def test_an_entry_that_leads_to_a_row_of_another_model_does_not_remove_that(tmp_path: Path, removed: str) -> None:
    model = indexed(tmp_path, 5)
    other = f"(SELECT number FROM batches WHERE model != {model} AND first_seq = 3)"
    sql(tmp_path, f"UPDATE log_index SET number = {other} WHERE model = {model} AND first_seq = 3")
    with closing(Store(tmp_path)) as store:
        one, two = store.log.models()
        if removed == "by age":
            with pytest.raises(failures.LogDamaged):
                store.trimming.drop_events(one.key, 5, float("inf"), 0.0)
        else:
            store.delete_model(one)
            while store.trimming.purge():
                pass
        assert len(rows_in(store.log, two.key)) == 6


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("model", [1, 2])
def test_a_row_that_is_not_indexed_and_lost_is_missed_at_the_start(tmp_path: Path, model: int) -> None:
    indexed(tmp_path, 5)
    sql(tmp_path, f"DELETE FROM batches WHERE model = {model} AND first_seq = 6")
    with closing(Store(tmp_path)) as store:
        store.create_model("another", {})  # a commit before the check does not hide it
    assert_start_refused(tmp_path)
    assert "the log has 1 rows that are not indexed, but should have 2" in examine(tmp_path).damage


@pytest.mark.usefixtures("small")
def test_how_far_the_log_is_indexed_is_checked(tmp_path: Path) -> None:
    indexed(tmp_path, 5)
    sql(tmp_path, "UPDATE indexed SET number = number + 1")
    assert_start_refused(tmp_path)
    sql(tmp_path, "DELETE FROM indexed")
    assert_start_refused(tmp_path)


def assert_start_refused(folder: Path) -> None:
    with pytest.raises(failures.LogDamaged), closing(Store(folder)) as store:
        recover(store, Settings(data=folder), lambda: False)


@pytest.mark.usefixtures("small")
def test_a_running_engine_indexes_and_goes_on_after_a_start(tmp_path: Path) -> None:
    async def run() -> None:
        async with running_engine(tmp_path) as engine:
            for i in range(20):
                await engine.learn("default", [Event({"a": float(i)}, i % 2)])
            before = engine.model("default").learner.sha256()
        with closing(LogReader(tmp_path)) as log:
            model = log.models()[0].key
            assert log.index.refresh().new_rows < 10
            assert len(rows_in(log, model)) == 20
        async with running_engine(tmp_path) as engine:
            assert engine.model("default").learner.sha256() == before

    asyncio.run(run())
