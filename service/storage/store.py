"""The log and the snapshots: one SQLite file, `log.db`, in the data folder. docs/format.md describes the tables.

The promise: when `commit` returns, the events are on disk and synced. A commit is one transaction. It writes one row
for each model, however many events there are, because a row for each event costs three times as much.

What is on disk after two events, {"age": 31, "country": "FR"} with label 1 and {"age": 40} with label 0. Each row ends
with its checksum, left out here:

    models      1 | default | {"rule":"sgd","learning_rate":0.01,...}
    names       1 | 0 | 2 | age\\0country=FR\\0
    batches     2097152 | 1 | 1 | 2 | 1767225600.0 | counts 2 1, columns 0 1 0, values 31.0 1.0 40.0, labels 1 0
    log_end     2

Only one connection writes and checkpoints. All others are read-only, because SQLite before 3.51.3 has a rare race that
needs a second writer or checkpointer.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.arithmetic import arithmetic
from core.batch import Batch
from service.storage import codec, positions, schema, series
from service.storage.codec import pack
from service.storage.commits import Commits
from service.storage.database import connect_to_write, crc
from service.storage.id_pieces import MODULUS, EventIds
from service.storage.ids import OF_AN_EVENT, IdKind, IdRow, IdsTakenError, NewId, Rows, rows_of
from service.storage.indexing import Indexing
from service.storage.log import LogReader, StoredModel, batch_crc
from service.storage.merging import Merging
from service.storage.positions import NOWHERE, Reached
from service.storage.trimming import Trimming
from service.storage.waiting import KnownId, Reading, Waiting, waiting_crc
from service.storage.wal import check_end

logger = logging.getLogger("logstep")

SNAPSHOT_CHUNK = 1 << 20
KEPT_SNAPSHOTS = 2
ROW_BITS = 20
"""The number of a row is the number of its commit, and in so many bits its place in that: so none is used twice. A
commit has far fewer rows than that."""


@dataclass(slots=True)  # not frozen: that takes a microsecond to make, this a third
class ModelBatch:
    """What one commit changes in one model.

    batch: events from `first_seq` on. names: new feature names, from `first_column` on. ids: new ids of the events.
    changed_ids: ids of the events that stood for something before. kept: predictions that wait from now on; their ids
    are new unless `known` has them. done: numbers of predictions that no longer wait because they are events now.
    dropped: numbers and ids of dropped predictions.
    """

    model: int
    first_seq: int
    batch: Batch
    first_column: int
    names: Sequence[str]
    ids: EventIds | None
    changed_ids: Sequence[IdRow] = ()
    kept: Sequence[Waiting] = ()
    done: Sequence[int] = ()
    dropped: Sequence[tuple[int, str | None]] = ()
    known: Container[str] = ()

    @property
    def has_more(self) -> bool:
        """Whether it has more than events without ids."""
        return self.ids is not None or bool(self.changed_ids or self.kept or self.done or self.dropped)

    def old_ids(self) -> list[str]:
        """All ids here that stood for something before."""
        return [
            *(id_ for id_, *_ in self.changed_ids),
            *(new.id for new in self.kept if new.id in self.known),
            *(id_ for _, id_ in self.dropped if id_ is not None),
        ]


class _SeriesDamagedError(Exception):
    """A page of the series is damaged."""


class Store:
    """The one writer of a data folder. One thread at a time may call its methods.

    log: reads what is there. merging: moves ids of events. trimming: removes what need not stay. commits: when the last
    commit was synced, and how long it took.

    Raises DiskFull if there is no room. Then nothing was written. Raises StorageFailed if writing or syncing fails.
    Then the service must stop: nobody knows what a failed sync left on disk, and a second sync would not tell.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "log.db").exists():
            schema.create(folder)
        self.log = LogReader(folder, connect_to_write(folder, unfinished=check_end(folder)))
        try:
            self.commits = Commits(self.log)
        except BaseException:
            self.log.close()
            raise
        self.merging = Merging(self.commits)
        self.indexing = Indexing(self.commits, self.log.index)
        self.trimming = Trimming(self.log, self.commits, self.merging)
        self._series_whole = True

    def close(self) -> None:
        self.commits.close()

    def commit(
        self, batches: Sequence[ModelBatch], written_at: float | None = None, reached: Reached = NOWHERE
    ) -> bool:
        """Write and sync what one turn of the writer gathered. False, and nothing is written, if an id that should be
        new stands for something. written_at: seconds since 1970, now if None. reached: how far the topic is applied
        with it."""
        written_at = time.time() if written_at is None else written_at
        more = [part for part in batches if part.has_more]
        old_ids = [rows_of(part.model, ids) for part in more if (ids := part.old_ids())]
        try:
            with self.commits.transaction(*old_ids) as db:
                rows = self._write_events(batches, written_at)
                for part in more:
                    self._write(db, part, written_at)
                positions.write(db, self.commits, reached)
        except IdsTakenError:
            return False
        for number, model, first_seq, *_, payload in rows:
            self.log.index.add(number, model, first_seq, len(payload))
        return True

    def reach(self, reached: Reached) -> None:
        """Record how far the topic is applied, where nothing else is written."""
        with self.commits.transaction() as db:
            positions.write(db, self.commits, reached)

    def find_ids(self, wanted: dict[int, list[str]], reading: Reading | None = None) -> dict[tuple[int, str], KnownId]:
        """(model, id) -> what it stands for. Wanted ids that stand for nothing are left out. reading: bounds what is
        read, in the order of the ids."""
        found: dict[tuple[int, str], KnownId] = {}
        rest: dict[int, list[str]] = {}
        for model, ids in wanted.items():
            of_events = self.commits.ids.runs.find(model, [id_ for id_ in ids if id_ is not None])
            found.update(((model, id_), KnownId(IdKind.LEARNED, *of, None)) for id_, of in of_events.items())
            rest[model] = ids if not of_events else [id_ for id_ in ids if id_ not in of_events]
        found.update(self.log.waiting.find_ids(rest, self.log.forgotten, reading))
        return found

    def _write_events(self, batches: Sequence[ModelBatch], written_at: float) -> list[tuple[Any, ...]]:
        """The events of all models, and their new names: each table's rows at once. Returns the rows of the events."""
        names = [
            (part.model, part.first_column, len(part.names), "".join(name + "\0" for name in part.names).encode())
            for part in batches
            if part.names
        ]
        first = self.commits.number << ROW_BITS
        events = [
            (number, part.model, part.first_seq, count, written_at, pack(part.batch))
            for number, part in enumerate(batches, first)
            if (count := len(part.batch))
        ]
        self.commits.insert_all("names", names, [crc(*row) for row in names])
        self.commits.insert_all("batches", events, [batch_crc(*row[1:]) for row in events])
        self.commits.new_rows += len(events)
        return events

    def _write(self, db: sqlite3.Connection, part: ModelBatch, written_at: float) -> None:
        """All else that a commit changes in one model."""
        model, insert, ids = part.model, self.commits.insert, self.commits.ids
        if part.ids is not None:
            ids.learn(model, part.ids)
        ids.change(model, part.changed_ids)
        if part.kept:
            self._insert_waiting(db, model, part.kept, part.known)
        if part.dropped:  # one row for all
            dropped_at, count = int(written_at * 1e6), len(part.dropped)
            insert("drops", model, part.dropped[-1][0], part.first_seq - 1, dropped_at, count)
            ids.change(model, [NewId(id_, 0, kind=IdKind.DROPPED) for _, id_ in part.dropped if id_ is not None])
        if part.done or part.dropped:
            numbers = json.dumps([*part.done, *(number for number, _ in part.dropped)])
            query = "DELETE FROM waiting WHERE model = ? AND number IN (SELECT value FROM json_each(?))"
            db.execute(query, (model, numbers))

    def _insert_waiting(
        self, db: sqlite3.Connection, model: int, kept: Sequence[Waiting], known: Container[str]
    ) -> None:
        """Insert waiting predictions in one statement. It gets their bytes as one value, and each one's place in it."""
        payloads = [codec.encode_prediction(new.served, new.x, new.unknown, new.owner) for new in kept]
        rows: list[list[Any]] = []
        checksums: list[int] = []
        at = 1  # SQLite counts bytes from 1
        for new, payload in zip(kept, payloads, strict=True):
            checksums.append(waiting_crc(model, new.number, new.id.encode(), new.kept_at, new.seq, payload))
            rows.append([new.number, new.id, new.kept_at, new.seq, at, len(payload), checksums[-1]])
            at += len(payload)
        db.execute(
            "INSERT INTO waiting SELECT ?1, value ->> 0, value ->> 1, value ->> 2, value ->> 3, "
            "substr(?2, value ->> 4, value ->> 5), value ->> 6 FROM json_each(?3)",
            (model, b"".join(payloads), json.dumps(rows)),
        )
        self.commits.count(crc(*checksums))
        ids = [NewId(new.id, new.number, kind=IdKind.WAITING) for new in kept]
        self.commits.ids.insert(model, [new for new in ids if new.id not in known])
        self.commits.ids.change(model, [new for new in ids if new.id in known])

    def create_model(self, name: str, spec: dict[str, Any]) -> StoredModel:
        """Store a new model."""
        with self.commits.transaction() as db:
            return self._insert_model(db, name, spec)

    def _insert_model(self, db: sqlite3.Connection, name: str, spec: dict[str, Any]) -> StoredModel:
        text = json.dumps(spec, separators=(",", ":"))
        insert = "INSERT INTO models (name, spec, checksum) VALUES (?, ?, 0) RETURNING model"
        ((key,),) = db.execute(insert, (name, text)).fetchall()
        checksum = crc(key, name, text)
        db.execute("UPDATE models SET checksum = ? WHERE model = ?", (checksum, key))
        self.commits.count(checksum)
        self._insert_arithmetic(key, 0)
        return StoredModel(key, name, spec)

    def _insert_arithmetic(self, model: int, seq: int) -> None:
        self.commits.insert("arithmetic", model, seq, time.time_ns() // 1_000, arithmetic())

    def note_arithmetic(self, after: Mapping[int, int]) -> None:
        """Record that models learn on this machine from now on: their key, and the seq of the last event that they have
        not learned here."""
        with self.commits.transaction() as db:
            for model, seq in after.items():
                db.execute("DELETE FROM arithmetic WHERE model = ? AND seq >= ?", (model, seq))
                self._insert_arithmetic(model, seq)

    def delete_model(self, model: StoredModel, successor: dict[str, Any] | None = None) -> StoredModel | None:
        """Remove a model. `purge` removes its rows later. With a spec as `successor`, a new model takes its name."""
        with self.commits.transaction() as db:
            db.execute("DELETE FROM models WHERE model = ?", (model.key,))
            db.execute("INSERT INTO purges VALUES (?)", (model.key,))
            return None if successor is None else self._insert_model(db, model.name, successor)

    def resume(self, model: int, seq: int) -> None:
        """Record that a stopped model resumed learning at a seq."""
        with self.commits.transaction():
            self.commits.insert("resumes", model, seq, time.time_ns() // 1_000)

    def write_snapshot(self, model: int, seq: int, state: dict[str, Any]) -> Iterator[None]:
        """Write a snapshot in chunks, one short commit for each step of the iterator. The last step makes it valid and
        removes all but the newest `KEPT_SNAPSHOTS`. A small state takes one step: there may be thousands of models."""
        key, chunks = (model, seq), 0
        parts = codec.encode_state(state, SNAPSHOT_CHUNK)
        part, following = next(parts), next(parts, None)
        while following is not None:
            with self.commits.transaction() as db:
                self._write_chunk(db, *key, chunks, part)
            part, following, chunks = following, next(parts, None), chunks + 1
            yield
        with self.commits.transaction() as db:
            self._write_chunk(db, *key, chunks, part)
            db.execute("DELETE FROM snapshots WHERE model = ? AND seq = ?", key)
            self.commits.insert("snapshots", *key, chunks + 1)
            newest = self.log.snapshots.seqs(model)[:KEPT_SNAPSHOTS]
            db.execute("DELETE FROM snapshots WHERE model = ? AND seq < ?", (model, newest[-1]))
            db.execute("DELETE FROM snapshot_chunks WHERE model = ? AND seq < ?", (model, newest[-1]))

    def _write_chunk(self, db: sqlite3.Connection, model: int, seq: int, chunk: int, part: bytes) -> None:
        if not chunk:  # a crash may have left some of this snapshot
            db.execute("DELETE FROM snapshot_chunks WHERE model = ? AND seq = ?", (model, seq))
        self.commits.insert("snapshot_chunks", model, seq, chunk, part)

    def write_series(self, piece: series.Piece) -> None:
        """Write some rows of the series in one short commit. After damage to them it writes no more: the log does not
        need them."""
        if not self._series_whole:
            return
        try:
            with self.commits.transaction() as db:
                try:
                    series.write(db, piece)
                except sqlite3.Error as error:
                    if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
                        raise  # the disk fails, not only the series
                    raise _SeriesDamagedError(str(error)) from error
        except _SeriesDamagedError as damage:
            self._series_whole = False
            logger.warning("the plot series are damaged (%s) and no longer written; the log is not affected", damage)

    def accept_ids(self) -> None:
        """Accept the ids as they are on disk. Removes those of events and models that the log does not have."""
        ids, last_seqs = self.commits.ids, {model.key: self.log.last_seq(model.key) for model in self.log.models()}
        with self.commits.transaction():
            for key, seq in last_seqs.items():
                ids.delete(Rows(f"model = ? AND {OF_AN_EVENT} AND seq > ?", (key, seq)))
            ids.delete(Rows("model NOT IN (SELECT model FROM models UNION SELECT model FROM purges)"))
        found = (ids.sum(Rows("true")) + self.merging.accept(last_seqs)) % MODULUS
        with self.commits.transaction():
            ids.checksum = found
