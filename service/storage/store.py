"""The log and the snapshots: one SQLite file, `log.db`, in the data folder.

The promise: when `commit` returns, the events are on disk and synced. A commit is one transaction. It writes one row
for each model, however many events there are, because a row for each event costs three times as much.

    models           name and spec of each model
    names            feature names by column; a row has the names of one commit, each ended by a zero byte
    batches          the log: n events (packed.py) from `first_seq` on; a model's rows follow without a gap
    log_starts       the seq up to which retention has dropped a model's events; without a row, none are dropped: this
                     tells a shortened log from one that lost its first rows
    ids              id -> kind, seq and fingerprint of its event, so that an event with an id is learned once; for a
                     waiting prediction the kind and its number, for a dropped one only the kind
    waiting          predictions that wait for their labels, by number; a row goes when its label comes or it times out
    resumes          at which seq, and when, a model stopped by its breaker (core/breaker.py) resumed learning
    drops            how many predictions were dropped, and after which seq
    snapshots        learner state at a seq; this row comes last and makes it valid; the bytes are in snapshot_chunks
    purges           deleted models that still have rows
    series, marks    history of each model, for plots (series.py); nothing depends on them
    log_end          one row: the number of the last commit, a checksum over all commits so far, and one over `ids`

What is on disk after two events, {"age": 31, "country": "FR"} with label 1 and {"age": 40} with label 0. Each row ends
with its checksum, left out here:

    models      1 | default | {"rule":"sgd","learning_rate":0.01,...}
    names       1 | 0 | 2 | age\\0country=FR\\0
    batches     1 | 1 | 2 | 1767225600.0 | counts 2 1, columns 0 1 0, values 31.0 1.0 40.0, labels 1 0
    log_end     2

SQLite does not checksum its pages. So every row that matters has a CRC-32 of its contents, and a damaged row is never
learned. The ids are too many for that: they share one checksum (ids.py).

SQLite silently ends its write-ahead log at the first damaged frame, so one flipped bit can lose hundreds of
acknowledged commits. So after each sync and before the reply, the store writes (without a sync) the commit's number and
checksum to the file `last-commit` beside the database. A log that ends before that commit does not open.

Only this connection writes and checkpoints. All others are read-only, because SQLite before 3.51.3 has a rare race
that needs a second writer or checkpointer.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from core.batch import LATE, Batch
from service import errors
from service.storage import codec, schema, series, trimming, waiting
from service.storage.ids import DROPPED, WAITING, IdRow, Ids, NewId, Rows, add_checksum, rows_of
from service.storage.log import LogReader, Snapshot, StoredModel, batch_crc, crc
from service.storage.packed import pack
from service.storage.sync import failure_of, sync_file, sync_folder
from service.storage.trimming import LogRow
from service.storage.waiting import KnownId, OldWaiting, Reading, Waiting, text_of, waiting_crc
from service.storage.wal import encode_mark, read_mark

logger = logging.getLogger("logstep")
spared = logging.getLogger("logstep.damage")
"""For what a caller can cause as often as it likes: at most one line a second, see service/logs.py."""

SNAPSHOT_CHUNK = 1 << 20
KEPT_SNAPSHOTS = 2
CACHE_BYTES = 16 << 20
"""Page cache, at most. Random ids go to pages all over their table: with SQLite's default of 2 MB, a commit of 8,000
ids to a table of 100,000 took half as long again."""
CHECKPOINT_BYTES = 4 << 20
"""Size of the write-ahead log at which SQLite copies its pages to the database and restarts it."""
_ALL_IDS = Rows("true")


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
    ids: Sequence[IdRow]
    changed_ids: Sequence[IdRow] = ()
    kept: Sequence[Waiting] = ()
    done: Sequence[int] = ()
    dropped: Sequence[tuple[int, str | None]] = ()
    known: Container[str] = ()

    def old_ids(self) -> list[str]:
        """All ids here that stood for something before."""
        return [
            *(id_ for id_, *_ in self.changed_ids),
            *(new.id for new in self.kept if new.id in self.known),
            *(id_ for _, id_ in self.dropped if id_ is not None),
        ]


class _SeriesDamagedError(Exception):
    """A page of the series is damaged."""


class Store(LogReader):
    """The one writer of a data folder. One thread at a time may call its methods.

    Raises DiskFull if there is no room. Then nothing was written. Raises StorageFailed if writing or syncing fails.
    Then the service must stop: nobody knows what a failed sync left on disk, and a second sync would not tell.
    """

    def __init__(self, folder: Path) -> None:
        path, self._mark_path = folder / "log.db", folder / "last-commit"
        self._wal, self._largest_wal = folder / "log.db-wal", 2 * CHECKPOINT_BYTES
        if not path.exists():
            schema.create(path)
        unfinished = self._check(folder)
        super().__init__(folder)
        if unfinished:
            self._drop_unfinished()
        self._number, self._checksum = self.log_end()
        self._ids = Ids(self._db, self.ids_checksum())
        self._failed = False
        self._series_whole = True
        self.synced_at = 0.0
        """`time.perf_counter` when the last commit was synced."""
        self.sync_seconds = 0.0
        """How long SQLite's COMMIT of the last commit took."""
        self._mark = self._open_mark()

    @staticmethod
    def _check(folder: Path) -> bool:
        """Whether the last commit was cut short. Refuses a folder whose log has lost commits.

        It uses a read-only connection. A writing one would throw away the damaged write-ahead log when it closes, and
        with it what could still be saved.
        """
        log = LogReader(folder)
        try:
            number, checksum = log.log_end()
            tail = log.tail()
        finally:
            log.close()
        marked = read_mark(folder)
        if marked is None and number > 0:
            raise errors.LogDamaged(folder=str(folder), reason="its file last-commit is missing or unreadable")
        if marked is not None and marked[0] > number:
            raise errors.LogEndsEarly(folder=str(folder), log=number, mark=marked[0])
        if marked is not None and marked[0] == number and marked[1] != checksum:
            raise errors.LogDamaged(folder=str(folder), reason="its last commit is not the one that was acknowledged")
        if tail.lost:
            raise errors.LogHasAHole(folder=str(folder), log=number, lost=tail.lost)
        if tail.pages:
            logger.warning(
                "commit %d was cut short and never acknowledged: dropping its %d page(s)", number + 1, tail.pages
            )
        return tail.pages > 0

    def _drop_unfinished(self) -> None:
        """Restart the write-ahead log. Otherwise the next commit may overwrite only a part of the unfinished one. If it
        is cut short too, the rest looks like a lost commit."""
        try:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            self._db.close()
            raise failure_of(error) from error

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self._mark_path.with_name("log.db"), isolation_level=None, check_same_thread=False, cached_statements=64
        )
        add_checksum(db)
        try:
            # FULL: a commit is synced before it returns.
            db.executescript(
                f"{schema.GUARDS} PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
                f"PRAGMA journal_size_limit = 67108864; PRAGMA cache_size = -{CACHE_BYTES >> 10};"
            )
            ((page,),) = db.execute("PRAGMA page_size").fetchall()
            db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_BYTES // page}").fetchall()
        except sqlite3.Error as error:
            db.close()
            raise failure_of(error) from error
        return db

    def _open_mark(self) -> int:
        """Open `last-commit` for the next commits."""
        fd = os.open(self._mark_path, os.O_RDWR | os.O_CREAT, 0o600)
        # First sync the log: a kill may have left a written commit unsynced, and from now on it counts.
        if self._wal.exists():
            sync_file(self._wal)
        sync_folder(self.folder)
        os.pwrite(fd, encode_mark(self._number, self._checksum), 0)
        os.fsync(fd)
        return fd

    # -- writing

    @contextmanager
    def _transaction(self, *old_ids: Rows) -> Iterator[list[int]]:
        """One commit: begin, the body's statements, `log_end`, sync, mark. The body appends the checksums of its rows.
        Of the rows of `ids`, it may remove or change only `old_ids`."""
        checksums: list[int] = []
        ids_checksum = self._ids.checksum
        try:
            for rows in old_ids:
                self._ids.leave_out(rows)
            self._db.execute("BEGIN IMMEDIATE")
            yield checksums
            number, checksum = self._number + 1, crc(self._checksum, *checksums)
            end = (number, checksum, self._ids.checksum)
            self._db.execute("UPDATE log_end SET number = ?, checksum = ?, ids_checksum = ?", end)
            started = time.perf_counter()
            self._db.execute("COMMIT")
            self.synced_at = time.perf_counter()
            self.sync_seconds = self.synced_at - started
        except (sqlite3.Error, OSError) as error:
            failure = failure_of(error)
            if isinstance(failure, errors.DiskFull):
                self._roll_back(ids_checksum)
            else:
                self._failed = True
            raise failure from error
        except BaseException:
            self._roll_back(ids_checksum)
            raise
        self._number, self._checksum = number, checksum
        self._remember_the_end()
        self._see_that_checkpoints_work()

    def _remember_the_end(self) -> None:
        """Write `last-commit` without a sync. It survives a kill. After a power cut it may be behind the log, never
        ahead of it."""
        try:
            os.pwrite(self._mark, encode_mark(self._number, self._checksum), 0)
        except OSError as error:
            self._failed = True
            raise errors.StorageFailed(reason=str(error)) from error  # never DiskFull: the commit is in the log

    def _see_that_checkpoints_work(self) -> None:
        """Raise the error of a failed checkpoint. SQLite hides it after a commit: the write-ahead log is safe but grows
        without end, on a disk that nobody should trust. An explicit checkpoint reports it."""
        try:
            size = self._wal.stat().st_size
            if size > self._largest_wal:
                self._largest_wal = size
                self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except (sqlite3.Error, OSError) as error:
            failure = failure_of(error)
            if not isinstance(failure, errors.DiskFull):  # else the checkpoint waits for room; the commits are safe
                self._failed = True
                raise failure from error

    def _roll_back(self, ids_checksum: int) -> None:
        self._ids.checksum = ids_checksum
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def commit(self, batches: Sequence[ModelBatch]) -> None:
        """Write and sync what one turn of the writer gathered. After IdsTakenError, nothing was written."""
        written_at = time.time()
        old_ids = [rows_of(part.model, ids) for part in batches if (ids := part.old_ids())]
        with self._transaction(*old_ids) as checksums:
            for part in batches:
                if part.names:
                    checksums.append(self._insert_names(part.model, part.first_column, part.names))
                if len(part.batch):
                    checksums.append(self._insert_batch(part, written_at))
                self._ids.insert(part.model, part.ids)
                self._ids.change(part.model, part.changed_ids)
                if part.kept:
                    checksums.append(self._insert_waiting(part.model, part.kept, part.known))
                if part.dropped:
                    checksums.append(self._insert_drop(part, written_at))
                if part.done or part.dropped:
                    self._delete_waiting(part.model, [*part.done, *(number for number, _ in part.dropped)])

    def _insert_batch(self, part: ModelBatch, written_at: float) -> int:
        payload = pack(part.batch)
        checksum = batch_crc(part.model, part.first_seq, len(part.batch), written_at, payload)
        row = (part.model, part.first_seq, len(part.batch), written_at, payload, checksum)
        self._db.execute("INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?)", row)
        return checksum

    def _insert_names(self, model: int, first_column: int, names: Sequence[str]) -> int:
        data = "".join(name + "\0" for name in names).encode()
        checksum = crc(model, first_column, len(names), data)
        self._db.execute("INSERT INTO names VALUES (?, ?, ?, ?, ?)", (model, first_column, len(names), data, checksum))
        return checksum

    def _insert_waiting(self, model: int, kept: Sequence[Waiting], known: Container[str]) -> int:
        """Insert waiting predictions in one statement. It gets their bytes as one value, and each one's place in it."""
        payloads = [codec.encode_prediction(new.served, new.x, new.unknown, new.owner) for new in kept]
        rows: list[list[Any]] = []
        checksums: list[int] = []
        at = 1  # SQLite counts bytes from 1
        for new, payload in zip(kept, payloads, strict=True):
            checksums.append(waiting_crc(model, new.number, new.id.encode(), new.kept_at, new.seq, payload))
            rows.append([new.number, new.id, new.kept_at, new.seq, at, len(payload), checksums[-1]])
            at += len(payload)
        self._db.execute(
            "INSERT INTO waiting SELECT ?1, value ->> 0, value ->> 1, value ->> 2, value ->> 3, "
            "substr(?2, value ->> 4, value ->> 5), value ->> 6 FROM json_each(?3)",
            (model, b"".join(payloads), json.dumps(rows)),
        )
        ids = [NewId(new.id, new.number, kind=WAITING) for new in kept]
        self._ids.insert(model, [new for new in ids if new.id not in known])
        self._ids.change(model, [new for new in ids if new.id in known])
        return crc(*checksums)

    def _insert_drop(self, part: ModelBatch, written_at: float) -> int:
        """Insert one row for all predictions that this commit drops."""
        row = (part.model, part.dropped[-1][0], part.first_seq - 1, int(written_at * 1e6), len(part.dropped))
        checksum = crc(*row)
        self._db.execute("INSERT INTO drops VALUES (?, ?, ?, ?, ?, ?)", (*row, checksum))
        self._ids.change(part.model, [NewId(i, 0, kind=DROPPED) for _, i in part.dropped if i is not None])
        return checksum

    def _delete_waiting(self, model: int, numbers: Sequence[int]) -> None:
        self._db.execute(
            "DELETE FROM waiting WHERE model = ? AND number IN (SELECT value FROM json_each(?))",
            (model, json.dumps(numbers)),
        )

    def find_ids(self, wanted: dict[int, list[str]], reading: Reading | None = None) -> dict[tuple[int, str], KnownId]:
        """(model, id) -> what it stands for. Wanted ids that stand for nothing are left out.

        reading: bounds what is read, in the order of the ids.
        """
        found = {}
        reading = reading or Reading(1 << 62)
        some_of_them = (
            (model, ids[start : start + waiting.IDS_AT_ONCE])
            for model, ids in wanted.items()
            for start in range(0, len(ids), waiting.IDS_AT_ONCE)
        )
        for model, ids in some_of_them:
            if reading.left <= 0:
                reading.unread.update((model, id_) for id_ in ids)
                continue
            places = {id_: place for place, id_ in enumerate(ids)}
            # One row with everything, because each row gives up the GIL.
            rows = self._json_rows(waiting.FIND, model, json.dumps(ids), WAITING)
            for id_, kind, seq, fingerprint, label, size, kept_at, made_at, payload, checksum in sorted(
                rows, key=lambda row: places[row[0]]
            ):
                prediction = None
                if kind == WAITING and kept_at is not None:
                    if not reading.takes((model, id_), size):
                        continue
                    prediction = self._whole(model, seq, id_, kept_at, made_at, payload, checksum)
                found[model, id_] = KnownId(kind, seq, fingerprint, label, prediction)
        return found

    def oldest_waiting(self, model: int, count: int) -> list[OldWaiting]:
        """The oldest waiting predictions, at most `count`; fewer if they are large, but at least one."""
        oldest, size = [], 0
        query = "SELECT length(payload) FROM waiting WHERE model = ? ORDER BY number LIMIT ?"
        for before, (length,) in enumerate(self._rows(query, model, count)):
            size += length
            if before and size > waiting.OLDEST_BYTES:
                count = before
                break
        for number, id_hex, *rest, known in self._json_rows(waiting.OLDEST, model, count, WAITING):
            # An id that does not lead to this prediction is damaged: it may be another's.
            id_ = text_of(id_hex) if known else self._id_of(model, number)
            prediction = None if id_ is None else self._whole(model, number, id_, *rest)
            oldest.append(OldWaiting(number, id_, rest[0], prediction))
        return oldest

    def _id_of(self, model: int, number: int) -> str | None:
        """The id of the waiting prediction with this number. It searches all ids."""
        query = "SELECT hex(id) FROM ids WHERE model = ? AND kind = ? AND seq = ?"
        return next((text_of(id_hex) for (id_hex,) in self._rows(query, model, WAITING, number)), None)

    def _json_rows(self, query: str, *values: Any) -> list[list[Any]]:
        """The rows of a query that returns them as one JSON array."""
        try:
            ((rows,),) = self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise failure_of(error) from error
        try:
            decoded: list[list[Any]] = msgspec.json.decode(rows)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._damaged(f"an id cannot be read: {error}") from None
        return decoded

    def _whole(
        self, model: int, number: int, id_: str, kept_at: int, seq: int, in_hex: str | None, checksum: int
    ) -> Waiting | None:
        try:
            payload = self._payload(model, number) if in_hex is None else bytes.fromhex(in_hex)
            return self.waiting_row(model, number, id_, kept_at, seq, payload, checksum)
        except errors.LogDamaged as damage:
            spared.warning("%s", damage.members["reason"])
            return None

    def _payload(self, model: int, number: int) -> bytes:
        query = "SELECT payload FROM waiting WHERE model = ? AND number = ?"
        return next(bytes(payload) for (payload,) in self._rows(query, model, number))

    def last_number(self, model: int) -> int:
        """The largest number of a waiting or dropped prediction, 0 without one. Numbers above it may be used again."""
        query = (
            "SELECT max(ifnull((SELECT max(number) FROM waiting WHERE model = ?1), 0), "
            "ifnull((SELECT max(number) FROM drops WHERE model = ?1), 0))"
        )
        return next(int(number) for (number,) in self._rows(query, model))

    def give_back(self) -> bool:
        """Give a piece of the file's free room back to the file system, if there is much. Whether there is more."""
        try:
            ((free,),) = self._db.execute("PRAGMA freelist_count").fetchall()
            ((pages,),) = self._db.execute("PRAGMA page_count").fetchall()
            page = self._page_bytes()
            if free <= max(trimming.FREE_BYTES // page, pages // 4):
                return False
            self._db.execute(f"PRAGMA incremental_vacuum({trimming.RETURNED_BYTES // page})").fetchall()
            ((left,),) = self._db.execute("PRAGMA freelist_count").fetchall()
        except sqlite3.Error as error:
            raise failure_of(error) from error
        return bool(left < free)

    def create_model(self, name: str, spec: dict[str, Any]) -> StoredModel:
        """Store a new model."""
        with self._transaction() as checksums:
            return self._insert_model(name, spec, checksums)

    def _insert_model(self, name: str, spec: dict[str, Any], checksums: list[int]) -> StoredModel:
        text = json.dumps(spec, separators=(",", ":"))
        insert = "INSERT INTO models (name, spec, checksum) VALUES (?, ?, 0) RETURNING model"
        ((key,),) = self._db.execute(insert, (name, text)).fetchall()
        checksums.append(crc(key, name, text))
        self._db.execute("UPDATE models SET checksum = ? WHERE model = ?", (checksums[-1], key))
        return StoredModel(key, name, spec)

    def delete_model(self, model: StoredModel, successor: dict[str, Any] | None = None) -> StoredModel | None:
        """Remove a model. `purge` removes its rows later. With a spec as `successor`, a new model takes its name."""
        with self._transaction() as checksums:
            self._db.execute("DELETE FROM models WHERE model = ?", (model.key,))
            self._db.execute("INSERT INTO purges VALUES (?)", (model.key,))
            return None if successor is None else self._insert_model(model.name, successor, checksums)

    def resume(self, model: int, seq: int) -> None:
        """Record that a stopped model resumed learning at a seq."""
        row = (model, seq, time.time_ns() // 1_000)
        with self._transaction() as checksums:
            checksums.append(crc(*row))
            self._db.execute("INSERT INTO resumes VALUES (?, ?, ?, ?)", (*row, checksums[0]))

    def purge(self) -> bool:
        """Remove some rows of deleted models, in one short commit. Whether there may be more."""
        # Never of an existing model: then its number in `purges` is damage.
        query = "SELECT model FROM purges WHERE model NOT IN (SELECT model FROM models) LIMIT 1"
        doomed = [key for (key,) in self._rows(query)]
        if not doomed:
            return False
        some = "model = ?1 AND id IN (SELECT id FROM ids WHERE model = ?1 LIMIT ?2)"
        ids = Rows(some, (*doomed, trimming.PURGE_ROWS))
        with self._transaction(ids):
            if self._delete_ids(ids):
                return True
            for table, key in trimming.PURGED.items():
                # The table and key are ours, not a caller's.
                some = f"SELECT {key} FROM {table} WHERE model = ?1 LIMIT {trimming.PURGE_ROWS}"  # noqa: S608
                gone = self._db.execute(f"DELETE FROM {table} WHERE model = ?1 AND {key} IN ({some})", doomed)  # noqa: S608
                if gone.rowcount:
                    return True
            self._db.execute("DELETE FROM purges WHERE model = ?", doomed)
        return True

    def rows_after(self, model: int, seq: int, count: int) -> list[LogRow]:
        """The first rows of a model's log after a seq, at most `count`."""
        query = (
            "SELECT first_seq + events - 1, written_at, length(payload) FROM batches "
            "WHERE model = ? AND first_seq > ? ORDER BY first_seq LIMIT ?"
        )
        return [LogRow(*row) for row in self._rows(query, model, seq, count)]

    def drop_events(self, model: int, up_to: int, written_before: float, remember: float) -> bool:
        """Remove some of the oldest rows of a model's log, in one short commit. Whether there were any.

        It removes rows that end at or before `up_to` and were written before `written_before`. `remember`: for how many
        seconds the store remembers when dropped events were written.
        """
        gone, dropped = self.gone(model), 0
        end, last_written_at = gone, 0.0
        for row in self.rows_after(model, gone, trimming.PURGE_ROWS):
            if row.last_seq > up_to or row.written_at >= written_before or dropped >= trimming.DROPPED_BYTES:
                break
            end, last_written_at, dropped = row.last_seq, row.written_at, dropped + row.size
        deleted = not list(self._rows("SELECT 1 FROM models WHERE model = ?", model))
        if end == gone or deleted:
            return False
        with self._transaction() as checksums:
            self._db.execute("DELETE FROM batches WHERE model = ? AND first_seq <= ?", (model, end))
            checksums.append(self._insert_start(model, end, last_written_at, remember))
        return True

    def _insert_start(self, model: int, seq: int, written_at: float, remember: float) -> int:
        kept = [seq for seq, _ in trimming.thinned(self._starts(model), remember)]
        self._db.execute(
            "DELETE FROM log_starts WHERE model = ? AND seq NOT IN (SELECT value FROM json_each(?))",
            (model, json.dumps(kept)),
        )
        checksum = crc(model, seq, written_at)
        self._db.execute("INSERT INTO log_starts VALUES (?, ?, ?, ?)", (model, seq, written_at, checksum))
        return checksum

    def seq_written_before(self, model: int, time_: float) -> int:
        """The last seq whose event was written before a time, or an earlier seq. The clock may have been wrong."""
        found = max((seq for seq, written_at in self._starts(model) if written_at < time_), default=0)
        low, high = self.gone(model), self.last_seq(model)
        while low < high:
            middle = (low + high) // 2
            row = self.rows_after(model, middle, 1)
            if row and row[0].written_at < time_:
                low = found = row[0].last_seq
            else:
                high = middle
        return found

    def _delete_ids(self, rows: Rows) -> int:
        return self._db.execute(f"DELETE FROM ids WHERE {rows.condition}", rows.values).rowcount  # noqa: S608  # of ours

    def accept_ids(self) -> None:
        """Accept the ids as they are on disk. Removes those of events and models that the log does not have."""
        with self._transaction():
            for model in self.models():
                past_the_end = Rows(f"model = ? AND kind <= {LATE} AND seq > ?", (model.key, self.last_seq(model.key)))
                self._delete_ids(past_the_end)
            self._delete_ids(Rows("model NOT IN (SELECT model FROM models UNION SELECT model FROM purges)"))
        found = self._ids.sum(_ALL_IDS)
        with self._transaction():
            self._ids.checksum = found

    def drop_ids(self, model: int, up_to: int, after: str) -> str | None:
        """Look at some ids after `after`, in order, and remove those of events up to a seq, in one short commit.

        Returns the last id that it looked at, None at the end.
        """
        looked_at = "SELECT id, kind, seq FROM ids WHERE model = ? AND id > ? ORDER BY id LIMIT ?"
        query = f"SELECT max(id), sum(kind <= {LATE} AND seq <= ?) FROM ({looked_at})"  # noqa: S608  # a number of ours
        ((last, old),) = self._rows(query, up_to, model, after, trimming.SCANNED_IDS)
        if old:
            condition = f"model = ? AND id > ? AND id <= ? AND kind <= {LATE} AND seq <= ?"
            rows = Rows(condition, (model, after, last, up_to))
            with self._transaction(rows):
                self._delete_ids(rows)
        return None if last is None else str(last)

    def write_snapshot(self, model: int, snapshot: Snapshot) -> Iterator[None]:
        """Write a snapshot in chunks, one short commit for each step of the iterator.

        The last step makes it valid and removes all but the newest `KEPT_SNAPSHOTS`.
        """
        key, chunks = (model, snapshot.seq), 0
        with self._transaction():  # removes what a crash left of this snapshot
            self._db.execute("DELETE FROM snapshot_chunks WHERE model = ? AND seq = ?", key)
        yield
        for part in codec.encode_state(snapshot.state, SNAPSHOT_CHUNK):
            with self._transaction() as checksums:
                checksums.append(crc(*key, chunks, part))
                self._db.execute(
                    "INSERT INTO snapshot_chunks VALUES (?, ?, ?, ?, ?)", (*key, chunks, part, checksums[0])
                )
            chunks += 1
            yield
        with self._transaction() as checksums:
            checksums.append(crc(*key, chunks))
            self._db.execute("INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?)", (*key, chunks, checksums[0]))
            older = self.snapshot_seqs(model)[KEPT_SNAPSHOTS:]
            for seq in older:
                self._db.execute("DELETE FROM snapshots WHERE model = ? AND seq = ?", (model, seq))
            oldest = self.snapshot_seqs(model)[-1]
            self._db.execute("DELETE FROM snapshot_chunks WHERE model = ? AND seq < ?", (model, oldest))

    def write_series(self, piece: series.Piece) -> None:
        """Write some rows of the series in one short commit. After damage to them it writes no more: the log does not
        need them."""
        if not self._series_whole:
            return
        try:
            with self._transaction():
                try:
                    series.write(self._db, piece)
                except sqlite3.Error as error:
                    if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
                        raise  # the disk fails, not only the series
                    raise _SeriesDamagedError(str(error)) from error
        except _SeriesDamagedError as damage:
            self._series_whole = False
            logger.warning("the plot series are damaged (%s) and no longer written; the log is not affected", damage)

    def close(self) -> None:
        """Close the store. After a failure, it closes without SQLite's last checkpoint.

        That checkpoint would repeat the failed sync, and the system would report success. SQLite makes it when the last
        connection closes, so a second, read-only connection stays open meanwhile.
        """
        other = super()._connect() if self._failed else None
        if other is not None:
            with suppress(sqlite3.Error):  # the disk may fail here too; close anyway
                other.execute("SELECT number FROM log_end").fetchall()
        super().close()
        if other is not None:
            other.close()
        os.close(self._mark)
