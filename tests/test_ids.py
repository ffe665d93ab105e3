"""The table of ids has one checksum: it goes along with whatever is written, and tells of whatever else changed it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from effort import examples, from_checks_on
from examples import Example, flip, make_example, opened
from harness import Service
from hypothesis import given
from hypothesis import strategies as st
from processes import copied, ids_in, replayed_elsewhere

from core import Spec
from core.batch import JOINED, Batch
from core.builder import BatchBuilder
from core.features import Features
from service import errors, failures
from service.commands import cli
from service.commands.inspect import examine
from service.storage import ids as ids_module
from service.storage import merging
from service.storage.id_pieces import EventIds, Piece
from service.storage.ids import AT_ONCE, NewId, checksum
from service.storage.log import LogReader
from service.storage.store import ModelBatch, Store
from service.storage.waiting import Waiting
from service.texts import Texts

numbers = st.integers(-(2**63), 2**63 - 1)
rows = st.tuples(
    st.integers(1, 2**40), st.binary(min_size=1, max_size=40), numbers, numbers, st.integers(0, 5), st.none() | numbers
)


def of(*of_rows: tuple[Any, ...]) -> int:
    return checksum(*zip(*of_rows, strict=True))


# -- the checksum


@given(rows, st.lists(rows, min_size=1, max_size=5), st.data())
def test_a_flipped_bit_of_any_of_its_parts_changes_a_checksum(
    row: tuple[Any, ...], others: list[tuple[Any, ...]], data: st.DataObject
) -> None:
    place = data.draw(st.sampled_from([0, 1, 2, 3, 4, *([5] if row[5] is not None else [])]))
    flipped = list(row)
    if place == 1:
        text, bit = bytearray(row[1]), data.draw(st.integers(0, 8 * len(row[1]) - 1))
        text[bit // 8] ^= 1 << bit % 8
        flipped[1] = bytes(text)
    else:
        flipped[place] = int(np.int64(row[place]) ^ np.uint64(1 << data.draw(st.integers(0, 63))).astype(np.int64))
    assert of(row, *others) != of(tuple(flipped), *others)


@given(st.lists(rows, min_size=1, max_size=8), st.randoms())
def test_the_order_in_which_ids_come_does_not_matter(some: list[tuple[Any, ...]], random: Any) -> None:
    shuffled = list(some)
    random.shuffle(shuffled)
    assert of(*some) == of(*shuffled)


@given(st.lists(rows, min_size=1, max_size=3 * AT_ONCE))
def test_sqlite_adds_up_the_same(some: list[tuple[Any, ...]]) -> None:
    with closing(sqlite3.connect(":memory:")) as db:
        ids_module.add_checksum(db)
        db.execute("CREATE TABLE ids (model, id, seq, fingerprint, kind, label)")
        db.executemany("INSERT INTO ids VALUES (?, ?, ?, ?, ?, ?)", some)
        assert db.execute(ids_module.CHECKSUM).fetchall() == [(of(*some),)]


# -- along with whatever is written


class Model:
    """A model of a store: ids of events, predictions that wait, are joined or dropped, as the engine writes them."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name, self.stored = store, name, store.create_model(name, Spec().as_dict())
        self.features = Features()
        self.seq, self.numbers = 0, itertools.count(1)
        self.waiting: list[Waiting] = []

    def commit(self, events: int, **more: Any) -> bool:
        builder = BatchBuilder(self.features)
        for i in range(events):
            builder.add({f"f{i % 3}": 1.0}, i % 2)
        written = self.write(builder.build(), builder, **more)
        self.seq += events
        return written

    def write(self, batch: Batch, builder: BatchBuilder, ids: EventIds | None = None, **more: Any) -> bool:
        names = builder.new_names()
        first = builder.first_feature
        return self.store.commit([ModelBatch(self.stored.key, self.seq + 1, batch, first, names, ids, **more)])

    def learn(self, count: int) -> None:
        seqs = range(self.seq + 1, self.seq + count + 1)
        self.commit(count, ids=EventIds.of((f"e{seq}", seq, seq * 7**17, seq * 5**20) for seq in seqs))

    def learn_again(self, count: int) -> None:
        before = self.seq
        assert not self.commit(
            count, ids=EventIds.of((id_, 1, 0, 0) for id_ in ("e1", *(f"no-{i}" for i in range(count))))
        )
        self.seq = before

    def keep(self, count: int) -> None:
        seqs = itertools.islice(self.numbers, count)
        new = [Waiting(number, f"p{number}", 7, 0, np.array([0.5]), {"a": 1.0}) for number in seqs]
        self.commit(0, kept=new)
        self.waiting += new

    def join(self, count: int) -> None:
        done, self.waiting = self.waiting[:count], self.waiting[count:]
        ids = [NewId(w.id, self.seq + i, 1, JOINED, 9) for i, w in enumerate(done, 1)]
        self.commit(len(done), changed_ids=ids, done=[w.number for w in done])

    def drop(self, count: int) -> None:
        gone, self.waiting = self.waiting[:count], self.waiting[count:]
        if gone:
            self.commit(0, dropped=[(w.number, w.id) for w in gone])

    def remember(self, count: int) -> None:
        """Ids in the table `ids`, as of predictions that were joined."""
        with self.store.commits.transaction():
            self.store.commits.ids.insert(self.stored.key, [NewId(f"e{i}", i, i) for i in range(1, count + 1)])

    def flush(self, _: int) -> None:
        self.store.merging.flush()

    def merge(self, count: int) -> None:
        for _ in range(count):
            self.store.merging.merge()

    def forget(self, count: int) -> None:
        for _ in self.store.merging.drop(self.stored.key, count):
            pass
        id_: str | None = ""
        while id_ is not None:
            id_ = self.store.trimming.drop_ids(self.stored.key, count, id_)

    def delete(self, _: int) -> None:
        self.store.delete_model(self.stored)
        self.store.trimming.purge()  # a part
        self.__init__(self.store, self.name)  # type: ignore[misc]  # it begins anew, as its model does

    def reopen(self, _: int) -> None:
        self.store.close()
        self.store.__init__(self.store.log.db.folder)  # type: ignore[misc]  # others have this store too


ACTIONS = ["learn", "keep", "join", "drop", "flush", "merge", "forget", "delete", "reopen"]


@examples(20)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(ACTIONS), st.integers(1, 2 * AT_ONCE)), max_size=30))
def test_the_checksum_is_that_of_what_is_there_whatever_was_written(steps: list[tuple[str, str, int]]) -> None:
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory() as folder,
        closing(Store(Path(folder))) as store,
    ):
        patch.setattr(merging, "FAN_IN", 2)
        models = {name: Model(store, name) for name in "ab"}
        for name, action, count in [("a", "learn", 5), ("b", "keep", 5), *steps]:
            getattr(models[name], action)(count)
            store.log.check_ids()
        while store.trimming.purge():
            store.log.check_ids()


def test_what_is_not_written_does_not_count(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        model = Model(store, "m")
        model.learn(300)
        model.learn_again(300)
        store.log.check_ids()
        model.learn(1)
        store.log.check_ids()


# -- damage


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return asyncio.run(make_example(tmp_path_factory.mktemp("example")))


def sql(folder: Path, statement: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(folder / "log.db", isolation_level=None)) as db:
        return db.execute(statement).fetchall()


def change(folder: Path, statement: str) -> None:
    with closing(sqlite3.connect(folder / "log.db", isolation_level=None)) as db:
        assert db.execute(statement).rowcount == 1


def change_id(folder: Path, before: str, after: str) -> None:
    """Change an id of an event, in the one row that has it."""
    for table, key in (("new_ids", "number"), ("event_ids", "rowid")):
        for place, count, payload in sql(folder, f"SELECT {key}, ids, payload FROM {table}"):
            piece = Piece.decode(count, payload)
            assert piece is not None
            ids = piece.ids.tolist()
            if before in ids:
                changed = replace(piece, ids=Texts.of([after if id_ == before else id_ for id_ in ids])).encode()
                change(folder, f"UPDATE {table} SET payload = x'{changed.hex()}' WHERE {key} = {place}")
                return
    raise AssertionError(before)


DAMAGE = {
    "an id is another one": "UPDATE ids SET id = 'p4?' WHERE id = 'p45' AND model = 4",
    "an id is gone": "DELETE FROM ids WHERE id = 'p45' AND model = 4",
    "there is one more": "INSERT INTO ids VALUES (1, 'never', 5, 0, 0, 0)",
    "it is another model's": "UPDATE ids SET model = 2 WHERE id = 'p45' AND model = 4",
    "it is of a model that never was": "UPDATE ids SET model = 77 WHERE id = 'p45' AND model = 4",
    "it stands for another event": "UPDATE ids SET seq = seq - 64 WHERE id = 'p45' AND model = 4",
    "it stands for one that never was": "UPDATE ids SET seq = seq + 4096 WHERE id = 'p45' AND model = 4",
    "its event has other features": "UPDATE ids SET fingerprint = fingerprint - 1 WHERE id = 'p45' AND model = 4",
    "it is of another kind": "UPDATE ids SET kind = 2 WHERE id = 'p45' AND model = 4",
    "its label is another one": "UPDATE ids SET label = label - 1 WHERE id = 'p45' AND model = 4",
    "its label is gone": "UPDATE ids SET label = NULL WHERE id = 'p45' AND model = 4",
    "the checksum is another one": "UPDATE log_end SET ids_checksum = ids_checksum - 1",
}
REASON = "the table of ids has a wrong checksum"


@from_checks_on
@pytest.mark.parametrize("statement", DAMAGE.values(), ids=DAMAGE)
def test_damaged_ids_are_told_copied_and_accepted_and_cost_no_event(
    example: Example, tmp_path: Path, capsys: Any, statement: str
) -> None:
    folder = copied(example.closed, tmp_path / "data")
    change(folder, statement)
    assert cli.main(["inspect", str(folder)]) == 1
    output = capsys.readouterr().out
    assert f"DAMAGED: {REASON}" in output
    assert f"`logstep repair {folder}`" in output
    assert asyncio.run(opened(copied(folder, tmp_path / "opened"))) == example.state

    assert cli.main(["backup", str(folder), str(tmp_path / "backup")]) == 1
    assert f"DAMAGED, but copied unchanged: {REASON}" in capsys.readouterr().err
    assert examine(tmp_path / "backup").wrong == [REASON]  # the copy is not the better for it

    assert cli.main(["repair", str(folder), "--yes"]) == 0
    output = capsys.readouterr().out
    assert f"In {folder} {REASON}." in output
    (copy,) = folder.glob("before-repair-*")
    assert examine(copy).wrong == [REASON]
    assert examine(folder).wrong == []
    assert asyncio.run(opened(folder)) == example.state
    assert examine(folder).wrong == []
    assert sql(folder, "SELECT count(*) FROM ids WHERE model NOT IN (SELECT model FROM models)") == [(0,)]


DAMAGED_PIECES = {
    "a row is gone": "DELETE FROM {table} WHERE rowid = {row}",
    "it has fewer ids": "UPDATE {table} SET ids = ids - 1 WHERE rowid = {row}",
    "it has more": "UPDATE {table} SET ids = ids + 4096 WHERE rowid = {row}",
    "it is another model's": "UPDATE {table} SET model = 4 WHERE rowid = {row}",
    "it is of a model that never was": "UPDATE {table} SET model = 77 WHERE rowid = {row}",
    "it is cut short": "UPDATE {table} SET payload = substr(payload, 1, 60) WHERE rowid = {row}",
    "it is empty": "UPDATE {table} SET payload = x'' WHERE rowid = {row}",
    "it is of a run that is another": "UPDATE {table} SET run = -1, ids = 0 WHERE rowid = {row}",
}


@from_checks_on
@pytest.mark.parametrize("table", ["new_ids", "event_ids"])
@pytest.mark.parametrize("statement", DAMAGED_PIECES.values(), ids=DAMAGED_PIECES)
def test_damaged_rows_with_ids_are_told_and_accepted_and_cost_no_event(
    example: Example, tmp_path: Path, table: str, statement: str
) -> None:
    if "run" in statement and table == "new_ids":
        statement = DAMAGED_PIECES["a row is gone"]
    folder = copied(example.closed, tmp_path / "data")
    if table == "event_ids":
        with closing(Store(folder)) as store:
            store.merging.flush()
    before = len(ids_in(folder))
    ((row,),) = sql(folder, f"SELECT rowid FROM {table} WHERE model = 1 LIMIT 1")
    change(folder, statement.format(table=table, row=row))
    assert examine(folder).wrong == [REASON]
    assert asyncio.run(opened(copied(folder, tmp_path / "opened"))) == example.state
    with closing(Store(folder)) as store:
        store.merging.flush()
        store.accept_ids()
    assert examine(folder).wrong == []
    assert asyncio.run(opened(folder)) == example.state
    lost = before - len(ids_in(folder))
    assert ("model = 4" not in statement) <= lost <= 250  # of seqs that model 4 has, ids count for it


def test_ids_and_the_end_of_a_log_are_repaired_at_once(example: Example, tmp_path: Path, capsys: Any) -> None:
    folder = copied(example.closed, tmp_path / "data")
    change(folder, DAMAGE["an id is gone"])
    (folder / "last-commit").unlink()
    assert cli.main(["repair", str(folder), "--yes"]) == 0
    output = capsys.readouterr().out
    assert REASON in output
    assert "last-commit is missing" in output
    assert examine(folder).wrong == []
    assert asyncio.run(opened(folder)) == example.state


def test_an_event_whose_id_was_damaged_can_be_sent_again_after_a_repair(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    events = [{"x": {"a": i}, "y": i % 2, "id": f"event-{i}"} for i in range(100)]
    with Service(folder).wait_until_ready() as service:
        service.learn(events)
        assert service.stop() == 0
    change_id(folder, "event-99", "event-9?")
    assert cli.main(["repair", str(folder), "--yes"]) == 0
    with Service(folder).wait_until_ready() as service:
        replies = service.learn(events)
        assert [reply["duplicate"] for reply in replies] == [True] * 99 + [False]
        state = service.get("/models/default")
    assert replayed_elsewhere(folder)["default"] == {"seq": 101, "sha256": state["sha256"]}


def make_unreadable(folder: Path, id_: str) -> None:
    """Let the head of an id's row say that its last number is shorter: SQLite finds the row, and cannot read that."""
    data = (folder / "log.db").read_bytes()
    place = data.index(id_.encode())
    assert data.count(id_.encode()) == 1
    flip(folder / "log.db", place - 1, 2)  # the last byte of the head: 2 bytes instead of 8
    with pytest.raises(sqlite3.DatabaseError, match="malformed"):
        sql(folder, f"SELECT label FROM ids WHERE id = '{id_}'")


def no_text(folder: Path, id_: str) -> None:
    assert sql(folder, f"UPDATE ids SET id = CAST(x'ff' AS TEXT) WHERE id = '{id_}' RETURNING 1")


@pytest.mark.parametrize("damage", [no_text, make_unreadable])
def test_damaged_ids_of_a_deleted_model_are_removed_like_others(tmp_path: Path, damage: Any) -> None:
    with closing(Store(tmp_path)) as store:
        model = Model(store, "m")
        model.remember(10)
        store.delete_model(model.stored)
    damage(tmp_path, "e3")
    with closing(Store(tmp_path)) as store:
        while store.trimming.purge():
            pass
        assert store.log.ids(model.stored.key) == (0, 0)
        with pytest.raises(failures.LogDamaged, match=REASON):
            store.log.check_ids()
        store.accept_ids()
        store.log.check_ids()


def test_damaged_ids_that_need_not_be_kept_go_like_others(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        model = Model(store, "m")
        model.remember(10)
    make_unreadable(tmp_path, "e3")
    with closing(Store(tmp_path)) as store:
        model.store = store
        model.forget(10)
        assert store.log.ids(model.stored.key) == (0, 0)


@from_checks_on
def test_a_flipped_bit_in_the_row_of_the_last_commit_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with closing(Store(tmp_path / "data")) as store:
        Model(store, "m").learn(10)
        checksum, page = store.log.db.of_last_commit("ids_checksum"), store.log.db.page_bytes()
    ((root,),) = sql(tmp_path / "data", "SELECT rootpage FROM sqlite_master WHERE name = 'log_end'")
    for place, bit in itertools.product(range(root * page - 24, root * page), range(8)):
        damaged = copied(tmp_path / "data", tmp_path / "damaged")
        flip(damaged / "log.db", place, bit)
        told = examine(damaged).wrong
        with contextlib.suppress(errors.LogstepError), closing(Store(damaged)) as store:
            assert told or store.log.db.of_last_commit("ids_checksum") == checksum, (place, bit)
        shutil.rmtree(damaged)


def test_what_is_committed_and_cannot_be_marked_counts_and_ends_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where there was no room for the mark: nothing was written is what a caller takes from that."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with closing(Store(tmp_path)) as store:
        model = Model(store, "m")
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(errors.StorageFailed):
                model.learn(10)
    with closing(Store(tmp_path)) as store:
        assert (store.log.last_seq(model.stored.key), store.log.ids(model.stored.key)) == (10, (10, 10))
        store.log.check_ids()


def test_ids_are_looked_at_while_others_are_written(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store, closing(LogReader(tmp_path)) as reader:
        model = Model(store, "m")
        for _ in range(20):
            model.learn(50)
            reader.check_ids()
