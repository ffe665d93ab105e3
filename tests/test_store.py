"""The store alone: what a commit wrote reads back, and damage of every kind is refused and named."""

from __future__ import annotations

import errno
import gc
import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from examples import flip
from processes import copied, events_of

from core import Spec
from core.batch import Batch, fingerprints
from core.builder import BatchBuilder
from core.features import Features
from service import errors, failures
from service.storage import codec, schema, store, trimming, wal
from service.storage.codec import pack
from service.storage.folder import FolderLock
from service.storage.id_pieces import EventIds
from service.storage.ids import IdKind
from service.storage.log import LogReader, StoredModel
from service.storage.schema import PAGE_BYTES
from service.storage.store import ModelBatch, Store
from service.storage.waiting import KnownId

SPEC = Spec().as_dict()
Event = tuple[Mapping[str, float], int]


class Writer:
    """Writes events to one model of a store, as the engine does, and remembers them."""

    def __init__(self, store: Store, name: str = "default", spec: Mapping[str, Any] = SPEC) -> None:
        self.store = store
        self.model: StoredModel = store.create_model(name, dict(spec))
        self.features = Features()
        self.batches: list[Batch] = []
        self.seq = 0

    def draft(self, *events: Event, ids: Sequence[str] = ()) -> ModelBatch:
        """The next batch, with an id for each of its first events; not yet written."""
        builder = BatchBuilder(self.features)
        for x, y in events:
            builder.add(x, y)
        batch, first = builder.build(), self.seq + 1
        marks = fingerprints(batch).tolist()
        new_ids = EventIds.of((id_, first + i, marks[i], 0) for i, id_ in enumerate(ids)) if ids else None
        return ModelBatch(self.model.key, first, batch, builder.first_feature, builder.new_names(), new_ids)

    def written(self, part: ModelBatch) -> None:
        self.batches.append(part.batch)
        self.seq += len(part.batch)

    def commit(self, *events: Event, ids: Sequence[str] = ()) -> None:
        part = self.draft(*events, ids=ids)
        self.store.commit([part])
        self.written(part)

    def take_back(self, part: ModelBatch) -> None:
        self.features.truncate(part.first_column)

    def commit_rows(self, rows: int) -> None:
        """So many commits of two events each; every tenth brings a feature."""
        for i in range(rows):
            self.commit(({"age": float(self.seq), f"f{i // 10}": 1.0}, i % 2), ({"age": 0.5}, 1 - i % 2))


def opened(folder: Path) -> Store:
    folder.mkdir(exist_ok=True)
    return Store(folder)


@contextmanager
def writing(folder: Path, name: str = "default") -> Iterator[Writer]:
    """A new store with one model, open."""
    with closing(opened(folder)) as store:
        yield Writer(store, name)


def events_in(folder: Path, model: int, after: int = 0, up_to: int | None = None) -> list[Any]:
    with closing(LogReader(folder)) as log:
        names = log.names(model)
        return [event for batch in log.batches(model, after, up_to) for event in events_of(batch, names)]


def events_of_all(batches: Sequence[Batch], names: Sequence[str]) -> list[Any]:
    return [event for batch in batches for event in events_of(batch, names)]


def state_of(size: int, value: float = 0.5) -> dict[str, Any]:
    return {"learner": {"seq": 3, "weights": np.full(size, value)}, "scores": {"sums": np.arange(3.0)}}


def write_snapshot(store: Store, model: int, seq: int, size: int = 10, value: float = 0.5) -> None:
    for _ in store.write_snapshot(model, seq, state_of(size, value)):
        pass


def sql(folder: Path, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """Run a statement on a closed log, as someone who meddles with it would."""
    with closing(sqlite3.connect(folder / "log.db", isolation_level=None)) as db:
        return db.execute(statement, values).fetchall()


def flip_in_database(folder: Path, contents: bytes, place: int) -> None:
    """Flip one bit of these contents where they stand in the database's pages."""
    data = (folder / "log.db").read_bytes()
    assert data.count(contents) == 1
    flip(folder / "log.db", data.index(contents) + place, bit=3)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but SQLite's index of the write-ahead log, which is made anew at each start.

    An empty write-ahead log is as good as none: a read-only connection leaves one.
    """
    found = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.endswith("-shm")}
    return {name: data for name, data in found.items() if data or name != "log.db-wal"}


def refusal(folder: Path) -> errors.LogstepError:
    """Why a store does not open; and the refusal changed nothing on disk, also when all is closed and collected."""
    before = contents(folder)
    try:
        Store(folder).close()
    except errors.LogstepError as error:
        found = error.with_traceback(None)
        found.__context__ = None
    else:
        pytest.fail("the store opened")
    gc.collect()
    after = contents(folder)
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name]] == []
    return found


# -- what a commit wrote reads back


def test_a_new_folder_has_no_models_no_commits_and_is_whole(tmp_path: Path) -> None:
    with closing(opened(tmp_path / "new")) as store:
        assert store.log.models() == []
        assert store.log.db.log_end() == (0, 0)
        assert store.log.db.integrity() == []


def test_events_read_back_equal_in_every_bit(tmp_path: Path) -> None:
    with writing(tmp_path) as writer:
        writer.commit(({"age": 31, "country=FR": 1.0}, 1), ({"age": 40}, 0))
        writer.commit(({}, 1))
        writer.commit(({"b": -0.0, "age": 5e-324}, 0))
    with closing(Store(tmp_path)) as store:
        (batch,) = store.log.batches(writer.model.key)
        expected = Batch.concatenate(writer.batches)
        for field in ("offsets", "columns", "values", "labels", "weights"):
            assert getattr(batch, field).tobytes() == getattr(expected, field).tobytes()
        assert store.log.last_seq(writer.model.key) == 4


def test_what_a_commit_wrote_is_there_for_other_connections_when_it_returns(tmp_path: Path) -> None:
    with writing(tmp_path) as writer:
        for i in range(5):
            writer.commit(({"a": float(i)}, 1))
            assert len(events_in(tmp_path, writer.model.key)) == i + 1
            assert wal.read_mark(tmp_path) == writer.store.log.db.log_end()


def test_every_commit_is_synced_before_it_returns(tmp_path: Path) -> None:
    with writing(tmp_path) as writer:
        assert writer.store.log.db.connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert writer.store.log.db.connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_weights_of_events_read_back(tmp_path: Path) -> None:
    with writing(tmp_path) as writer:
        builder = BatchBuilder(Features())
        builder.add({"a": 1.0}, 1, 2.5)
        builder.add({"a": 1.0}, 0)
        writer.store.commit([ModelBatch(writer.model.key, 1, builder.build(), 0, ["a"], None)])
    assert events_in(tmp_path, writer.model.key) == [({"a": 1.0}, 1, 2.5), ({"a": 1.0}, 0, 1.0)]


def test_feature_names_read_back_in_column_order(tmp_path: Path) -> None:
    with writing(tmp_path) as writer:
        writer.commit(({"z": 1, "a": 2}, 1))
        writer.commit(({"a": 1}, 1))
        writer.commit(({"naïve=æøå 🦆": 1, "m": 2, "z": 3}, 0))
        assert writer.store.log.names(writer.model.key) == ["z", "a", "naïve=æøå 🦆", "m"]
    with closing(Store(tmp_path)) as store:
        assert store.log.names(writer.model.key) == ["z", "a", "naïve=æøå 🦆", "m"]


def test_models_read_back_in_order_of_creation_with_their_specs(tmp_path: Path) -> None:
    specs = [SPEC, Spec(learning_rate=0.1 + 0.2, l1=1e-9).as_dict(), Spec(hash_bits=4).as_dict()]
    with closing(opened(tmp_path)) as store:
        made = [store.create_model(name, spec) for name, spec in zip("cab", specs, strict=True)]
        assert store.log.models() == made
    with closing(Store(tmp_path)) as store:
        assert store.log.models() == made
        assert [model.spec for model in store.log.models()] == specs


def test_models_in_one_commit_keep_their_events_names_and_ids_apart(tmp_path: Path) -> None:
    with writing(tmp_path, "one") as one:
        two = Writer(one.store, "two")
        number, _ = one.store.log.db.log_end()
        parts = [one.draft(({"a": 1.0}, 1), ids=["x"]), two.draft(({"b": 2.0}, 0), ({"c": 3.0}, 1), ids=["x", "y"])]
        one.store.commit(parts)
        assert one.store.log.db.log_end()[0] == number + 1
        assert one.store.log.names(one.model.key) == ["a"]
        assert one.store.log.names(two.model.key) == ["b", "c"]
        marks = [fingerprints(part.batch).tolist() for part in parts]
        keys = {one.model.key: ["x", "y"], two.model.key: ["x", "y"]}
        assert one.store.find_ids(keys) == {
            (one.model.key, "x"): KnownId(IdKind.LEARNED, 1, marks[0][0], 0, None),
            (two.model.key, "x"): KnownId(IdKind.LEARNED, 1, marks[1][0], 0, None),
            (two.model.key, "y"): KnownId(IdKind.LEARNED, 2, marks[1][1], 0, None),
        }
    assert events_in(tmp_path, one.model.key) == [({"a": 1.0}, 1, 1.0)]
    assert events_in(tmp_path, two.model.key) == [({"b": 2.0}, 0, 1.0), ({"c": 3.0}, 1, 1.0)]


@pytest.mark.parametrize(
    "id_", ["1", "1.0", "true", "null", "", " a ", "'; DROP TABLE ids; --", '"', "\\", "é🦆", "x" * 256]
)
def test_an_id_reads_back_whatever_it_looks_like(tmp_path: Path, id_: str) -> None:
    with writing(tmp_path) as writer:
        writer.commit(({"a": 1.0}, 1), ids=[id_])
        assert list(writer.store.find_ids({writer.model.key: [id_, id_ + "?"]})) == [(writer.model.key, id_)]


@pytest.mark.parametrize("fingerprint", [0, -1, 2**63 - 1, -(2**63), 2**53 + 1])
def test_a_fingerprint_reads_back_to_the_last_bit(tmp_path: Path, fingerprint: int) -> None:
    with writing(tmp_path) as writer:
        part = writer.draft(({"a": 1.0}, 1))
        ids = EventIds.of([("x", 1, fingerprint, 0)])
        writer.store.commit([ModelBatch(part.model, 1, part.batch, 0, part.names, ids)])
        assert writer.store.find_ids({part.model: ["x"]}) == {
            (part.model, "x"): KnownId(IdKind.LEARNED, 1, fingerprint, 0, None)
        }


def test_a_snapshot_reads_back_equal_also_when_it_takes_several_chunks(tmp_path: Path) -> None:
    with writing(tmp_path) as writer:
        size = 3 * store.SNAPSHOT_CHUNK // 8
        write_snapshot(writer.store, writer.model.key, 7, size, 0.1 + 0.2)
        chunks = writer.store.log.db.connection.execute("SELECT count(*) FROM snapshot_chunks").fetchone()
        assert chunks == (4,)
        found = writer.store.log.snapshots.state(writer.model.key, 7)
        assert b"".join(codec.encode_state(found)) == b"".join(codec.encode_state(state_of(size, 0.1 + 0.2)))


def test_the_last_two_snapshots_are_kept_and_no_chunk_of_the_others(tmp_path: Path) -> None:
    with writing(tmp_path) as writer:
        other = Writer(writer.store, "other")
        write_snapshot(writer.store, other.model.key, 1)
        for seq in (3, 5, 9, 20):
            write_snapshot(writer.store, writer.model.key, seq)
        assert writer.store.log.snapshots.seqs(writer.model.key) == [20, 9]
        assert writer.store.log.snapshots.seqs(other.model.key) == [1]
        chunks = writer.store.log.db.connection.execute(
            "SELECT model, seq FROM snapshot_chunks ORDER BY model, seq"
        ).fetchall()
        assert chunks == [(writer.model.key, 9), (writer.model.key, 20), (other.model.key, 1)]


def test_a_snapshot_is_written_in_short_commits_and_is_there_only_after_the_last(tmp_path: Path) -> None:
    with writing(tmp_path) as writer:
        pieces = writer.store.write_snapshot(writer.model.key, 4, state_of(2 * store.SNAPSHOT_CHUNK // 8))
        for _ in pieces:
            assert writer.store.log.snapshots.seqs(writer.model.key) == []
            writer.commit(({"a": 1.0}, 1))  # a commit between two of its pieces
        assert writer.store.log.snapshots.seqs(writer.model.key) == [4]
        assert writer.seq == 2


def test_a_small_snapshot_is_one_commit(tmp_path: Path) -> None:
    with writing(tmp_path) as writer:
        before = writer.store.log.db.log_end()
        write_snapshot(writer.store, writer.model.key, 4)
        after = writer.store.log.db.log_end()
        assert after[0] - before[0] == 1
        assert writer.store.log.snapshots.seqs(writer.model.key) == [4]


def test_what_a_crash_left_of_a_snapshot_is_not_one_and_does_not_hinder_the_next(tmp_path: Path) -> None:
    with writing(tmp_path / "a") as writer:
        pieces = writer.store.write_snapshot(writer.model.key, 4, state_of(3 * store.SNAPSHOT_CHUNK // 8))
        for _ in range(3):  # there is one more
            next(pieces)
        left = copied(tmp_path / "a", tmp_path / "b")
    with closing(Store(left)) as reopened:
        assert reopened.log.snapshots.seqs(writer.model.key) == []
        write_snapshot(reopened, writer.model.key, 4, size=5)
        assert b"".join(codec.encode_state(reopened.log.snapshots.state(writer.model.key, 4))) == b"".join(
            codec.encode_state(state_of(5))
        )


@pytest.mark.parametrize("rows_in_a_batch", [1, 7, 10_000])
def test_batches_joins_rows_and_leaves_none_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_in_a_batch: int
) -> None:
    monkeypatch.setattr("service.storage.log.JOINED_EVENTS", rows_in_a_batch)
    with writing(tmp_path) as writer:
        writer.commit_rows(25)
        batches = list(writer.store.log.batches(writer.model.key))
        names = writer.store.log.names(writer.model.key)
        assert events_of_all(batches, names) == events_of_all(writer.batches, names)
        assert len(batches) == {1: 25, 7: 7, 10_000: 1}[rows_in_a_batch]


@pytest.mark.parametrize(("after", "up_to"), [(0, 0), (0, 2), (2, None), (2, 6), (48, None), (50, None), (50, 50)])
def test_batches_gives_the_events_after_one_seq_up_to_another(tmp_path: Path, after: int, up_to: int | None) -> None:
    with writing(tmp_path) as writer:
        writer.commit_rows(25)
        everything = events_of_all(writer.batches, writer.store.log.names(writer.model.key))
        assert events_in(tmp_path, writer.model.key, after, up_to) == everything[after:up_to]


def test_batches_stops_at_up_to_also_inside_a_row(tmp_path: Path) -> None:
    with writing(tmp_path) as writer:
        writer.commit(*[({"a": float(i)}, 1) for i in range(5)])
        writer.commit(*[({"a": float(i)}, 0) for i in range(5)])
        assert [len(events_in(tmp_path, writer.model.key, 0, up_to)) for up_to in (3, 5, 8)] == [3, 5, 8]


def test_reading_the_log_does_not_keep_a_transaction_open_between_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that stayed open would keep SQLite from reusing its write-ahead log."""
    monkeypatch.setattr("service.storage.log.JOINED_EVENTS", 4)
    with writing(tmp_path) as writer:
        writer.commit_rows(10)
        with closing(LogReader(tmp_path)) as reader:
            batches = reader.batches(writer.model.key)
            next(batches)
            assert (
                writer.store.log.db.connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0] == 0
            )  # not busy


def test_a_reader_changes_nothing_while_a_service_writes_and_after_it_has_gone(tmp_path: Path) -> None:
    with writing(tmp_path / "a") as writer:
        writer.commit_rows(5)
        left = copied(tmp_path / "a", tmp_path / "b")
        for folder in (tmp_path / "a", left):
            before = contents(folder)
            assert len(events_in(folder, writer.model.key)) == 10
            assert contents(folder) == before
    at_rest = (tmp_path / "a" / "log.db").read_bytes()
    assert len(events_in(tmp_path / "a", writer.model.key)) == 10
    assert (tmp_path / "a" / "log.db").read_bytes() == at_rest


# -- models that go


def test_a_deleted_model_is_gone_at_once_and_its_rows_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trimming, "PURGE_ROWS", 4)
    with writing(tmp_path, "gone") as gone:
        kept = Writer(gone.store, "kept")
        for writer in (gone, kept):
            writer.commit_rows(10)
            writer.commit(({"a": 1.0}, 1), ids=["x"])
            write_snapshot(writer.store, writer.model.key, 5)
        assert gone.store.delete_model(gone.model) is None
        assert [model.name for model in gone.store.log.models()] == ["kept"]
        turns = 0
        while gone.store.trimming.purge():
            turns += 1
        assert turns > 5
        for table in ("batches", "names", "new_ids", "snapshots", "snapshot_chunks"):
            assert gone.store.log.db.connection.execute(f"SELECT DISTINCT model FROM {table}").fetchall() == [
                (kept.model.key,)
            ]
        assert gone.store.log.db.connection.execute("SELECT count(*) FROM purges").fetchone() == (0,)
        assert kept.store.log.last_seq(kept.model.key) == 21


def test_a_model_that_takes_the_name_of_a_deleted_one_has_nothing_of_it(tmp_path: Path) -> None:
    with writing(tmp_path) as old:
        old.commit(({"a": 1.0}, 1), ids=["x"])
        new = old.store.delete_model(old.model, successor=SPEC)
        assert new is not None
        assert new.key != old.model.key
        assert old.store.log.models() == [new]
        assert old.store.log.names(new.key) == []
        assert old.store.log.last_seq(new.key) == 0
        assert old.store.find_ids({new.key: ["x"]}) == {}


def test_a_purge_that_a_kill_interrupted_goes_on_after_the_start(tmp_path: Path) -> None:
    with writing(tmp_path / "a") as gone:
        gone.commit_rows(3)
        gone.store.delete_model(gone.model)
        left = copied(tmp_path / "a", tmp_path / "b")
    with closing(Store(left)) as reopened:
        while reopened.trimming.purge():
            pass
        assert reopened.log.db.connection.execute("SELECT count(*) FROM batches").fetchone() == (0,)


# -- damage: one test for each way


def log_of_batches(folder: Path) -> Writer:
    """A closed folder with a log of four rows: events 1 to 8, three of them with features of their own."""
    with writing(folder) as writer:
        for i in range(4):
            writer.commit(({"age": 20.0 + i, f"colour-{i}": 1.0}, 1), ({"age": 30.0 + i}, 0), ids=[f"id-{i}"])
    return writer


def reading_fails(folder: Path, model: int) -> failures.LogDamaged:
    with pytest.raises(failures.LogDamaged) as found:
        events_in(folder, model)
    return found.value


def test_a_flipped_bit_in_a_batch_is_refused_and_its_seqs_named(tmp_path: Path) -> None:
    writer = log_of_batches(tmp_path)
    payload = pack(writer.batches[1])
    flip_in_database(tmp_path, payload, len(payload) - 5)
    assert "from seq 3 to 4 have a wrong checksum" in str(reading_fails(tmp_path, writer.model.key))


@pytest.mark.parametrize("column", ["first_seq", "events", "written_at", "checksum"])
def test_a_changed_number_beside_a_batch_is_refused(tmp_path: Path, column: str) -> None:
    writer = log_of_batches(tmp_path)
    sql(tmp_path, f"UPDATE batches SET {column} = {column} + 1 WHERE first_seq = 7")
    assert reading_fails(tmp_path, writer.model.key)


def test_a_batch_moved_to_another_model_is_refused(tmp_path: Path) -> None:
    with writing(tmp_path) as one:
        two = Writer(one.store, "two")
        one.commit(({"a": 1.0}, 1))
        two.commit(({"a": 2.0}, 1))
    sql(tmp_path, "UPDATE batches SET model = model + 10")
    sql(tmp_path, "UPDATE batches SET model = CASE model WHEN 11 THEN 2 ELSE 1 END")
    assert "wrong checksum" in str(reading_fails(tmp_path, one.model.key))


def test_a_flipped_bit_in_a_feature_name_is_refused(tmp_path: Path) -> None:
    writer = log_of_batches(tmp_path)
    flip_in_database(tmp_path, b"colour-2\0", 2)
    assert "names from column 3 on have a wrong checksum" in str(reading_fails(tmp_path, writer.model.key))


def test_a_flipped_bit_in_a_models_spec_is_refused(tmp_path: Path) -> None:
    log_of_batches(tmp_path)
    flip_in_database(tmp_path, b'"learning_rate":0.01,"bias', 17)
    with (
        closing(Store(tmp_path)) as reopened,
        pytest.raises(failures.LogDamaged, match="'default' has a wrong checksum"),
    ):
        reopened.log.models()


def test_a_flipped_bit_in_a_snapshot_is_refused(tmp_path: Path) -> None:
    with writing(tmp_path) as writer:
        write_snapshot(writer.store, writer.model.key, 3, value=0.123)
        write_snapshot(writer.store, writer.model.key, 5, value=0.456)
    flip_in_database(tmp_path, np.full(10, 0.456).tobytes(), 40)
    with closing(LogReader(tmp_path)) as log:
        with pytest.raises(failures.LogDamaged, match="snapshot at seq 5 has a wrong checksum"):
            log.snapshots.state(writer.model.key, 5)
        assert log.snapshots.state(writer.model.key, 3)["learner"]["weights"][0] == 0.123


@pytest.mark.parametrize("chunk", [0, 1, 3])
def test_a_snapshot_without_one_of_its_chunks_is_not_whole(tmp_path: Path, chunk: int) -> None:
    with writing(tmp_path) as writer:
        write_snapshot(writer.store, writer.model.key, 3, size=3 * store.SNAPSHOT_CHUNK // 8)
    sql(tmp_path, "DELETE FROM snapshot_chunks WHERE chunk = ?", chunk)
    with closing(LogReader(tmp_path)) as log, pytest.raises(failures.LogDamaged, match="seq 3 is incomplete"):
        log.snapshots.state(writer.model.key, 3)


def test_a_snapshot_row_that_counts_fewer_chunks_is_not_whole(tmp_path: Path) -> None:
    with writing(tmp_path) as writer:
        write_snapshot(writer.store, writer.model.key, 3, size=store.SNAPSHOT_CHUNK // 8)
    sql(tmp_path, "DELETE FROM snapshot_chunks WHERE chunk = 1")
    sql(tmp_path, "UPDATE snapshots SET chunks = 1")
    with closing(LogReader(tmp_path)) as log, pytest.raises(failures.LogDamaged, match="seq 3 is incomplete"):
        log.snapshots.state(writer.model.key, 3)


def test_a_snapshot_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with writing(tmp_path) as writer, pytest.raises(failures.LogDamaged, match="seq 3 is missing"):
        writer.store.log.snapshots.state(writer.model.key, 3)


def test_a_missing_batch_is_a_gap_and_refused(tmp_path: Path) -> None:
    writer = log_of_batches(tmp_path)
    sql(tmp_path, "DELETE FROM batches WHERE first_seq = 5")
    assert "from seq 5 to 6 are missing" in str(reading_fails(tmp_path, writer.model.key))


def test_a_missing_first_batch_is_refused(tmp_path: Path) -> None:
    writer = log_of_batches(tmp_path)
    sql(tmp_path, "DELETE FROM batches WHERE first_seq = 1")
    assert "from seq 1 to 2 are missing" in str(reading_fails(tmp_path, writer.model.key))


def test_a_gap_where_two_joined_batches_meet_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.storage.log.JOINED_EVENTS", 4)
    writer = log_of_batches(tmp_path)
    sql(tmp_path, "DELETE FROM batches WHERE first_seq = 5")
    assert "from seq 5 to 6 are missing" in str(reading_fails(tmp_path, writer.model.key))


def test_a_batch_written_past_the_end_of_the_log_is_a_gap_and_refused(tmp_path: Path) -> None:
    with writing(tmp_path) as writer:
        writer.commit(({"a": 1.0}, 1))
        part = writer.draft(({"a": 2.0}, 1))
        writer.store.commit([ModelBatch(part.model, 4, part.batch, 1, [], None)])
    assert "from seq 2 to 3 are missing" in str(reading_fails(tmp_path, writer.model.key))


def test_a_batch_written_over_events_that_are_there_is_refused(tmp_path: Path) -> None:
    with writing(tmp_path) as writer:
        writer.commit(({"a": 1.0}, 1), ({"a": 1.0}, 0), ({"a": 1.0}, 0))
        part = writer.draft(({"a": 2.0}, 1))
        writer.store.commit([ModelBatch(part.model, 3, part.batch, 1, [], None)])
    assert reading_fails(tmp_path, writer.model.key)


def test_deleted_feature_names_are_refused(tmp_path: Path) -> None:
    writer = log_of_batches(tmp_path)
    sql(tmp_path, "DELETE FROM names WHERE first_column = 2")
    assert "names of columns 2 to 2 are missing" in str(reading_fails(tmp_path, writer.model.key))


def test_a_deleted_row_of_the_last_commit_is_refused(tmp_path: Path) -> None:
    log_of_batches(tmp_path)
    sql(tmp_path, "DELETE FROM log_end")
    assert "row of its last commit is missing" in str(refusal(tmp_path))


def test_a_database_cut_in_the_middle_is_refused(tmp_path: Path) -> None:
    with writing(tmp_path) as writer:
        writer.commit_rows(300)
    data = (tmp_path / "log.db").read_bytes()
    (tmp_path / "log.db").write_bytes(data[: len(data) // 2])
    with pytest.raises(failures.LogDamaged), closing(Store(tmp_path)) as reopened:
        list(reopened.log.batches(writer.model.key))


# -- damage to the write-ahead log

FRAME = 24 + PAGE_BYTES
WAL_HEADER = 32


def left_by_a_kill(tmp_path: Path) -> tuple[Path, int]:
    """The folder of a service that was killed after 50 commits, all still in the write-ahead log; their number."""
    with writing(tmp_path / "running") as writer:
        writer.commit_rows(50)
        left = copied(tmp_path / "running", tmp_path / "left")
        number, _ = writer.store.log.db.log_end()
    assert (left / "log.db-wal").stat().st_size > 100 * FRAME
    return left, number


def assert_ends_early(folder: Path, number: int) -> None:
    error = refusal(folder)
    assert isinstance(error, failures.LogEndsEarly)
    assert error.mark == number
    assert error.log < number
    assert f"`logstep repair {folder}`" in str(error)


def test_the_folder_that_a_kill_left_opens_with_all_that_was_acknowledged(tmp_path: Path) -> None:
    left, number = left_by_a_kill(tmp_path)
    with closing(Store(left)) as reopened:
        assert reopened.log.db.log_end()[0] == number
        assert reopened.log.last_seq(1) == 100


@pytest.mark.parametrize("length", [0, 10, WAL_HEADER, WAL_HEADER + 100, WAL_HEADER + FRAME])
def test_a_write_ahead_log_cut_at_its_first_frame_is_refused(tmp_path: Path, length: int) -> None:
    left, number = left_by_a_kill(tmp_path)
    os.truncate(left / "log.db-wal", length)
    assert_ends_early(left, number)


def test_a_write_ahead_log_that_is_missing_is_refused(tmp_path: Path) -> None:
    left, number = left_by_a_kill(tmp_path)
    (left / "log.db-wal").unlink()
    assert_ends_early(left, number)


@pytest.mark.parametrize("into_the_frame", [0, 10, 24, 2000])
def test_a_write_ahead_log_cut_in_the_middle_is_refused(tmp_path: Path, into_the_frame: int) -> None:
    left, number = left_by_a_kill(tmp_path)
    frames = ((left / "log.db-wal").stat().st_size - WAL_HEADER) // FRAME
    os.truncate(left / "log.db-wal", WAL_HEADER + frames // 2 * FRAME + into_the_frame)
    assert_ends_early(left, number)


def test_a_write_ahead_log_without_its_last_byte_is_refused(tmp_path: Path) -> None:
    left, number = left_by_a_kill(tmp_path)
    os.truncate(left / "log.db-wal", (left / "log.db-wal").stat().st_size - 1)
    assert_ends_early(left, number)


@pytest.mark.parametrize("into_the_frame", [0, 5, 12, 20, 24, 3000])
def test_a_flipped_bit_in_an_early_frame_of_the_write_ahead_log_is_refused(tmp_path: Path, into_the_frame: int) -> None:
    left, number = left_by_a_kill(tmp_path)
    flip(left / "log.db-wal", WAL_HEADER + 6 * FRAME + into_the_frame)
    assert_ends_early(left, number)


def test_a_flipped_bit_in_the_header_of_the_write_ahead_log_is_refused(tmp_path: Path) -> None:
    left, number = left_by_a_kill(tmp_path)
    flip(left / "log.db-wal", 17)
    assert_ends_early(left, number)


def test_a_write_ahead_log_damaged_after_a_checkpoint_is_refused(tmp_path: Path) -> None:
    """The database has newer pages then than the frames before the damage: a mixture, never to be learned from."""
    with writing(tmp_path / "running") as writer:
        writer.commit_rows(50)
        assert writer.store.log.db.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[0] == 0
        with closing(LogReader(tmp_path / "running")) as reader:  # keeps the log from starting over
            reader.db.connection.execute("BEGIN")
            reader.db.connection.execute("SELECT count(*) FROM models").fetchone()
            writer.commit_rows(20)
            left = copied(tmp_path / "running", tmp_path / "left")
        number, _ = writer.store.log.db.log_end()
    flip(left / "log.db-wal", WAL_HEADER + 20 * FRAME + 100)
    error = refusal(left)
    assert isinstance(error, failures.LogEndsEarly | failures.LogDamaged)
    assert number


# -- damage to the file beside the log


def test_a_missing_last_commit_is_refused(tmp_path: Path) -> None:
    log_of_batches(tmp_path)
    (tmp_path / "last-commit").unlink()
    assert "last-commit is missing or unreadable" in str(refusal(tmp_path))


@pytest.mark.parametrize("length", [0, 1, 8, 15])
def test_a_truncated_last_commit_is_refused(tmp_path: Path, length: int) -> None:
    log_of_batches(tmp_path)
    os.truncate(tmp_path / "last-commit", length)
    assert "last-commit is missing or unreadable" in str(refusal(tmp_path))


@pytest.mark.parametrize("place", range(16))
def test_a_flipped_bit_in_last_commit_is_refused(tmp_path: Path, place: int) -> None:
    log_of_batches(tmp_path)
    flip(tmp_path / "last-commit", place, bit=place % 8)
    assert "last-commit is missing or unreadable" in str(refusal(tmp_path))


def test_a_last_commit_with_more_after_it_is_refused(tmp_path: Path) -> None:
    log_of_batches(tmp_path)
    with (tmp_path / "last-commit").open("ab") as mark:
        mark.write(b"\0")
    assert "last-commit is missing or unreadable" in str(refusal(tmp_path))


def test_a_last_commit_ahead_of_the_log_is_refused_because_the_log_has_lost_commits(tmp_path: Path) -> None:
    log_of_batches(tmp_path)
    number, checksum = wal.read_mark(tmp_path) or (0, 0)
    (tmp_path / "last-commit").write_bytes(wal.encode_mark(number + 1, checksum))
    assert_ends_early(tmp_path, number + 1)


def test_a_last_commit_behind_the_log_by_one_opens(tmp_path: Path) -> None:
    """A kill between the sync and the mark: the commit is there, nobody was told, and it stays."""
    with writing(tmp_path / "a") as writer:
        writer.commit(({"a": 1.0}, 1))
        before = (tmp_path / "a" / "last-commit").read_bytes()
        writer.commit(({"b": 1.0}, 0))
        number = writer.store.log.db.log_end()
        left = copied(tmp_path / "a", tmp_path / "b")
    (left / "last-commit").write_bytes(before)
    with closing(Store(left)) as reopened:
        assert reopened.log.db.log_end() == number
        assert reopened.log.last_seq(writer.model.key) == 2
        assert wal.read_mark(left) == number


def test_a_log_whose_last_commit_is_another_one_is_refused(tmp_path: Path) -> None:
    """As many commits but not the same: an older copy of the database that went on by itself."""
    log_of_batches(tmp_path)
    number, checksum = wal.read_mark(tmp_path) or (0, 0)
    (tmp_path / "last-commit").write_bytes(wal.encode_mark(number, checksum ^ 1))
    assert "is not the one that was acknowledged" in str(refusal(tmp_path))


def test_an_older_database_beside_a_newer_last_commit_is_refused(tmp_path: Path) -> None:
    with writing(tmp_path / "a") as writer:
        writer.commit_rows(3)
    old = copied(tmp_path / "a", tmp_path / "old")
    with closing(Store(tmp_path / "a")) as reopened:
        part = writer.draft(({"a": 1.0}, 1))
        reopened.commit([part])
        number, _ = reopened.log.db.log_end()
    shutil.copy(tmp_path / "a" / "last-commit", old)
    assert_ends_early(old, number)


def test_a_missing_log_whose_last_commit_is_there_is_refused_and_none_is_made(tmp_path: Path) -> None:
    log_of_batches(tmp_path)
    (tmp_path / "log.db").unlink()
    assert "log.db is missing, but last-commit exists" in str(refusal(tmp_path))


def test_a_missing_log_whose_write_ahead_log_is_there_is_refused_and_none_is_made(tmp_path: Path) -> None:
    """A new log.db would take the old write-ahead log for its own."""
    left, _ = left_by_a_kill(tmp_path)
    (left / "log.db").unlink()
    (left / "last-commit").unlink()
    refusal(left)


# -- files that are no log


def test_another_programs_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    sql(tmp_path, "CREATE TABLE notes (text TEXT)")
    error = refusal(tmp_path)
    assert isinstance(error, failures.NotADataFolder)
    assert "belongs to another program" in str(error)


def test_a_text_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "log.db").write_text("2026-01-01 something happened\n" * 100)
    assert isinstance(refusal(tmp_path), failures.LogDamaged | failures.NotADataFolder)


def test_an_empty_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "log.db").touch()
    assert isinstance(refusal(tmp_path), failures.LogDamaged | failures.NotADataFolder)


def test_a_newer_format_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    log_of_batches(tmp_path)
    sql(tmp_path, f"PRAGMA user_version = {schema.FORMAT + 1}")
    error = refusal(tmp_path)
    assert isinstance(error, failures.NewerFormat)
    assert f"format {schema.FORMAT + 1}; this one reads {schema.FORMAT}" in str(error)


def test_a_newer_format_in_another_journal_mode_is_left_in_it(tmp_path: Path) -> None:
    log_of_batches(tmp_path)
    sql(tmp_path, "PRAGMA journal_mode = DELETE")
    sql(tmp_path, f"PRAGMA user_version = {schema.FORMAT + 1}")
    assert isinstance(refusal(tmp_path), failures.NewerFormat)


def test_a_reader_refuses_what_is_no_log_and_a_folder_without_one(tmp_path: Path) -> None:
    with pytest.raises(failures.NotADataFolder, match=r"it has no log\.db"):
        LogReader(tmp_path)
    sql(tmp_path, "CREATE TABLE notes (text TEXT)")
    with pytest.raises(failures.NotADataFolder, match="belongs to another program"):
        LogReader(tmp_path)
    (tmp_path / "log.db").write_text("no database, but long enough to look like one\n" * 100)
    with pytest.raises(failures.LogDamaged):
        LogReader(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["log.db"]


def test_a_log_that_was_never_finished_being_made_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "log.db.new").write_bytes(b"half")
    with writing(tmp_path) as writer:
        writer.commit(({"a": 1.0}, 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last-commit", "log.db"]


# -- disks that are full or broken


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 4 MiB."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("only root may mount a small file system")
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        gc.collect()
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all the room there is."""
    filler = folder / "filler"
    filler.write_bytes(b"\0" * shutil.disk_usage(folder).free)
    assert shutil.disk_usage(folder).free == 0
    return filler


def test_a_disk_without_room_refuses_the_commit_and_takes_the_next_when_there_is_some(small_disk: Path) -> None:
    with writing(small_disk) as writer:
        writer.commit(({"a": 1.0}, 1), ids=["first"])
        end, mark = writer.store.log.db.log_end(), wal.read_mark(small_disk)
        filler = fill(small_disk)
        part = writer.draft(*[({f"f{i}": 1.0}, 1) for i in range(5000)], ids=["second"])
        for _ in range(3):
            with pytest.raises(errors.DiskFull):
                writer.store.commit([part])
        assert writer.store.log.db.log_end() == end
        assert wal.read_mark(small_disk) == mark
        assert writer.store.log.names(writer.model.key) == ["a"]
        assert writer.store.log.last_seq(writer.model.key) == 1
        assert list(writer.store.find_ids({writer.model.key: ["first", "second"]})) == [(writer.model.key, "first")]
        filler.unlink()
        writer.store.commit([part])
        assert writer.store.log.last_seq(writer.model.key) == 5001
    with closing(Store(small_disk)) as reopened:
        assert reopened.log.last_seq(writer.model.key) == 5001
        assert reopened.log.db.integrity() == []


def test_a_disk_that_fills_up_commit_by_commit_loses_no_commit_that_returned(small_disk: Path) -> None:
    """Small commits go on into the last bytes of the disk: the checkpoint fails first, then the log cannot grow."""
    with writing(small_disk) as writer:
        filler = small_disk / "filler"
        filler.write_bytes(b"\0" * 2_000_000)
        refused = 0
        for i in range(1_000):
            part = writer.draft(({"age": float(i), f"f{i // 10}": 1.0}, 1), ids=[f"id-{i}"])
            try:
                writer.store.commit([part])
                writer.written(part)
            except errors.DiskFull:
                writer.take_back(part)
                refused += 1
            if refused == 20:
                filler.unlink(missing_ok=True)
        assert refused >= 20
        assert writer.seq > 100
        names = writer.store.log.names(writer.model.key)
        assert names == writer.features.names
        found = [event for batch in writer.store.log.batches(writer.model.key) for event in events_of(batch, names)]
        assert found == events_of_all(writer.batches, names)


def test_a_limit_on_the_databases_pages_is_a_full_disk(tmp_path: Path) -> None:
    with writing(tmp_path) as writer:
        writer.commit(({"a": 1.0}, 1))
        end = writer.store.log.db.log_end()
        pages = writer.store.log.db.connection.execute("PRAGMA page_count").fetchone()[0]
        writer.store.log.db.connection.execute(f"PRAGMA max_page_count = {pages}")
        part = writer.draft(*[({f"f{i}": 1.0}, 1) for i in range(2000)], ids=["x"])
        with pytest.raises(errors.DiskFull):
            writer.store.commit([part])
        with pytest.raises(errors.DiskFull):
            write_snapshot(writer.store, writer.model.key, 1, size=100_000)
        with pytest.raises(errors.DiskFull):
            writer.store.create_model("other", {"padding": "x" * 20_000})
        assert [model.name for model in writer.store.log.models()] == ["default"]
        assert writer.store.log.snapshots.seqs(writer.model.key) == []
        assert not writer.store.log.db.connection.in_transaction
        assert writer.store.log.names(writer.model.key) == ["a"]
        writer.store.log.db.connection.execute("PRAGMA max_page_count = 1000000")
        writer.store.commit([part])
        assert writer.store.log.last_seq(writer.model.key) == 2001
        assert writer.store.log.db.log_end()[0] > end[0]


def test_a_new_folder_on_a_disk_without_room_says_so(small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises(errors.LogstepError):
        Store(small_disk)


def test_a_mark_that_cannot_be_written_is_a_failed_storage_and_the_commit_is_there_after_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(fd: int, data: bytes, offset: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with writing(tmp_path / "a") as writer:
        writer.commit(({"a": 1.0}, 1))
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", broken)
            with pytest.raises(errors.StorageFailed, match="Input/output error"):
                writer.store.commit([writer.draft(({"a": 2.0}, 1))])
        left = copied(tmp_path / "a", tmp_path / "b")
    with closing(Store(left)) as reopened:
        assert reopened.log.last_seq(writer.model.key) == 2  # it was synced: not acknowledged, and not lost


@pytest.mark.parametrize(("code", "raised"), [(errno.ENOSPC, None), (errno.EIO, errors.StorageFailed)])
def test_a_commit_whose_checkpoint_finds_no_room_is_a_commit_and_one_whose_disk_fails_is_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, raised: type[Exception] | None
) -> None:
    stat = Path.stat

    def unreadable(path: Path, **options: Any) -> os.stat_result:
        if path.name == "log.db-wal":
            raise OSError(code, os.strerror(code))
        return stat(path, **options)

    with writing(tmp_path / "a") as writer:
        part = writer.draft(({"a": 2.0}, 1))
        with monkeypatch.context() as patched, nullcontext() if raised is None else pytest.raises(raised):
            patched.setattr(Path, "stat", unreadable)
            writer.store.commit([part])
        assert writer.store.log.last_seq(writer.model.key) == 1


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """Writing beyond this place of any file fails, as on a broken disk (and not as on a full one)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_is_a_failed_storage_and_nothing_of_it_is_there_after_the_start(tmp_path: Path) -> None:
    with writing(tmp_path / "a") as writer:
        writer.commit_rows(10)
        length = (tmp_path / "a" / "log.db-wal").stat().st_size
        with no_file_longer_than(length + 1000), pytest.raises(errors.StorageFailed):
            writer.store.commit([writer.draft(({"new": 2.0}, 1), ids=["x"])])
        left = copied(tmp_path / "a", tmp_path / "b")
    with closing(Store(left)) as reopened:
        assert reopened.log.last_seq(writer.model.key) == 20
        assert reopened.log.names(writer.model.key) == ["age", "f0"]
        assert reopened.find_ids({writer.model.key: ["x"]}) == {}


def test_a_body_that_fails_for_another_reason_leaves_nothing_behind(tmp_path: Path) -> None:
    with writing(tmp_path) as writer:
        end = writer.store.log.db.log_end()
        no_batch: Any = "no batch"
        good, bad = writer.draft(({"a": 1.0}, 1)), ModelBatch(1, 2, no_batch, 1, [], None)
        with pytest.raises((TypeError, AttributeError)):
            writer.store.commit([good, bad])
        assert writer.store.log.db.log_end() == end
        assert writer.store.log.last_seq(writer.model.key) == 0
        writer.store.commit([good])
        assert writer.store.log.last_seq(writer.model.key) == 1


# -- the lock

HOLD = """
import sys
from pathlib import Path
from service.storage.folder import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_that_another_process_holds_names_it_and_is_free_when_that_is_killed(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(failures.FolderInUse, match=f"process {holder.pid} on ") as found:
                FolderLock(tmp_path)
            assert str(tmp_path) in str(found.value)
        finally:
            holder.kill()
    FolderLock(tmp_path).release()


def test_a_released_lock_can_be_taken_again_and_names_its_new_holder(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("process 1 on a machine with a very long name indeed, started long ago\n")
    first = FolderLock(tmp_path)
    with pytest.raises(failures.FolderInUse, match=f"process {os.getpid()} on "):
        FolderLock(tmp_path)
    first.release()
    FolderLock(tmp_path).release()
    assert (tmp_path / "lock").read_text().count("process") == 1


def test_a_lock_makes_the_folder_that_it_locks(tmp_path: Path) -> None:
    FolderLock(tmp_path / "a" / "b").release()
    assert (tmp_path / "a" / "b" / "lock").is_file()


# -- what stands on disk


def test_the_file_tells_what_it_is(tmp_path: Path) -> None:
    log_of_batches(tmp_path)
    data = (tmp_path / "log.db").read_bytes()
    assert data[:16] == b"SQLite format 3\0"
    assert int.from_bytes(data[68:72], "big") == schema.APPLICATION_ID
    assert int.from_bytes(data[60:64], "big") == schema.FORMAT


def test_every_table_is_strict(tmp_path: Path) -> None:
    log_of_batches(tmp_path)
    tables = sql(tmp_path, "SELECT name, strict FROM pragma_table_list WHERE name NOT LIKE 'sqlite%'")
    assert len(tables) == 23
    assert all(strict for _, strict in tables)


def test_a_spec_is_stored_as_json_that_reads_back_to_the_same_floats(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as store:
        store.create_model("m", Spec(learning_rate=0.1 + 0.2).as_dict())
    ((text,),) = sql(tmp_path, "SELECT spec FROM models")
    assert json.loads(text)["learning_rate"] == 0.1 + 0.2
