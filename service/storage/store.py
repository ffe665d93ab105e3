"""The log and the snapshots: one SQLite file, `log.db`, in the data folder.

What is promised: when `commit` returns, the events are on disk and synced. A commit is one transaction: one row for
each model in it, however many events, because an event a row costs three times as much.

    models           name and spec of each model
    names            feature names by column, in rows of as many as a commit brought, each name ended by a zero byte
    batches          the log: n events (core/packed.py) from `first_seq` on; rows of a model join without a gap
    log_starts       up to which seq the events of a model are gone because they need not be kept; without a row all are
                     there: so a log that lost its first rows is told from one that was to be shortened
    ids              id -> kind, seq and fingerprint of its event: what makes an event with an id learned once; for a
                     prediction that waits its number, for one that was dropped its kind alone
    waiting          predictions that wait for their labels, by number; a row goes when its label comes, or too late
    resumes          at which seq, and when, a model that had stopped learning (core/breaker.py) was let to learn again
    drops            how many predictions were dropped, and after which seq
    snapshots        learner state at a seq, whole once this row is there; the bytes are in snapshot_chunks
    purges           models deleted whose rows are not all gone yet
    series, marks    how each model did, for plots (series.py); nothing depends on them
    log_end          one row: the number of the last commit, a checksum over all commits so far, and one over `ids`

What is on disk after two events, {"age": 31, "country": "FR"} with label 1 and {"age": 40} with label 0, each row with
its checksum at the end:

    models      1 | default | {"rule":"sgd","learning_rate":0.01,...}
    names       1 | 0 | 2 | age\\0country=FR\\0
    batches     1 | 1 | 2 | 1767225600.0 | counts 2 1, columns 0 1 0, values 31.0 1.0 40.0, labels 1 0
    log_end     2

SQLite checks no pages, so every row that matters carries a CRC-32 of its contents, and a damaged one is refused, never
learned. The ids, of which there are too many for that, have one checksum for all (ids.py).

SQLite ends its write-ahead log at the first frame that is damaged and says nothing: one flipped bit can lose hundreds
of acknowledged commits. So after each sync and before the reply the commit's number and checksum are written (not
synced) to the file `last-commit` beside the database. A log that ends before it refuses to open.

One connection writes and checkpoints, this one. All others are read-only: SQLite before 3.51.3 has a rare race that
needs a second writer or checkpointer.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sqlite3
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from core.features import LATE, Batch
from core.packed import pack
from service import errors
from service.storage import codec, series
from service.storage.ids import DROPPED, WAITING, IdRow, Ids, NewId, Rows, add_checksum, rows_of
from service.storage.log import (
    LogReader,
    Snapshot,
    StoredModel,
    Waiting,
    batch_crc,
    crc,
    encode_mark,
    read_mark,
    waiting_crc,
)
from service.storage.schema import APPLICATION_ID, FORMAT, GUARDS, PAGE_BYTES, SCHEMA

logger = logging.getLogger("logstep")

SNAPSHOT_CHUNK = 1 << 20
KEPT_SNAPSHOTS = 2
PURGE_ROWS = 200
DROPPED_BYTES = 1 << 20
"""Of events that are dropped in one short commit, about."""
SCANNED_IDS = 2_000
"""Ids that are looked at in one step, whether they are to be dropped."""
CACHE_BYTES = 16 << 20
"""Of pages in memory, if there are as many. Random ids go to pages all over their table: with SQLite's own 2 MB, a
commit of 8,000 to a table of 100,000 took half as long again."""
CHECKPOINT_BYTES = 4 << 20
"""Size of the write-ahead log at which its pages are copied to the database, and it begins anew."""
FREE_BYTES = 16 << 20
"""Free room that is left for what comes, or a quarter of the file if that is more. More is given back."""
RETURNED_BYTES = 2 << 20
"""What is given back in one short commit."""

_ALL_IDS = Rows("true")
_PURGED = {
    "batches": "rowid",
    "names": "rowid",
    "snapshots": "rowid",
    "snapshot_chunks": "rowid",
    "drops": "rowid",
    "log_starts": "rowid",
    "resumes": "rowid",
    "waiting": "number",
    "series": "t",
    "marks": "t",
}
"""Tables with rows of a model, but for the ids, and what tells those rows apart."""

IDS_AT_ONCE = 8_192
"""Ids that are looked up in one query, and PAYLOAD_BYTES: SQLite makes no text of a gigabyte."""
PAYLOAD_BYTES = 16_384
"""A payload that is longer is read by itself."""
OLDEST_BYTES = 4 << 20
"""Payloads of predictions that time out in one commit, about."""
_PAYLOAD = f"CASE WHEN length(payload) <= {PAYLOAD_BYTES} THEN hex(payload) END"
_FIND = f"""
SELECT json_group_array(json_array(
    ids.id, kind, ids.seq, fingerprint, label, kept_at, waiting.seq, {_PAYLOAD}, waiting.checksum))
FROM ids LEFT JOIN waiting ON kind = ?3 AND waiting.model = ids.model AND waiting.number = ids.seq
WHERE ids.model = ?1 AND ids.id IN (SELECT value FROM json_each(?2))
"""  # noqa: S608  # a number of ours
_OLDEST = f"""
SELECT json_group_array(json_array(
    number, hex(id), kept_at, seq, {_PAYLOAD}, checksum,
    EXISTS (SELECT 1 FROM ids WHERE model = ?1 AND ids.id = oldest.id AND kind = ?3 AND ids.seq = number)))
FROM (SELECT * FROM waiting WHERE model = ?1 ORDER BY number LIMIT ?2) AS oldest
"""  # noqa: S608  # the same


@dataclass(frozen=True, slots=True)
class KnownId:
    """What an id stands for, as in NewId. waiting: the prediction, None too where it is damaged."""

    kind: int
    seq: int
    fingerprint: int
    label: int | None
    waiting: Waiting | None


@dataclass(slots=True)  # frozen, to make one would take a microsecond, not a third of it
class ModelBatch:
    """What one commit changes of one model.

    Events from `first_seq` on, the feature names that they bring, their `ids` where those are new, and their
    `changed_ids`, which stood for something before; predictions that wait from now on, under ids that are new, or
    `known`; and the numbers of those that wait no more: `done`, being among the events now, or `dropped`, with their
    ids.
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
        """The ids that stood for something before."""
        return [
            *(id_ for id_, *_ in self.changed_ids),
            *(new.id for new in self.kept if new.id in self.known),
            *(id_ for _, id_ in self.dropped if id_ is not None),
        ]


class LogRow(NamedTuple):
    """A row of the log: the seq of its last event, when it was written (seconds since 1970), and its bytes."""

    last_seq: int
    written_at: float
    size: int


@dataclass(frozen=True, slots=True)
class OldWaiting:
    """A prediction that may have waited too long.

    waiting: all of it, None where it is damaged on disk. id: the one that leads to it, None where none does.
    """

    number: int
    id: str | None
    kept_at: int
    waiting: Waiting | None


class _SeriesDamagedError(Exception):
    """A page of the series is damaged."""


class Store(LogReader):
    """The one writer of a data folder. Its methods are called by one thread at a time.

    Raises DiskFull where there is no room, and then nothing was written; StorageFailed where writing or syncing failed,
    and then the service must stop: what a failed sync left on disk is not known, and trying again would not tell.
    """

    def __init__(self, folder: Path) -> None:
        path, self._mark_path = folder / "log.db", folder / "last-commit"
        self._wal, self._largest_wal = folder / "log.db-wal", 2 * CHECKPOINT_BYTES
        if not path.exists():
            self._create(path)
        unfinished = self._check(folder)
        super().__init__(folder)
        if unfinished:
            self._drop_unfinished()
        self._number, self._checksum = self.log_end()
        self._ids = Ids(self._db, self.ids_checksum())
        self._failed = False
        self._series_whole = True
        self.synced_at = 0.0
        """When the last commit was synced, as `time.perf_counter` tells it."""
        self.sync_seconds = 0.0
        """What writing and syncing the last commit took, once its rows were put together."""
        self._mark = self._open_mark()

    def _create(self, path: Path) -> None:
        """A new log, made under another name and renamed: a crash on the way leaves no half-made one."""
        for left in (self._mark_path, path.with_name("log.db-wal")):
            if left.exists():
                raise errors.LogDamaged(folder=str(path.parent), reason=f"log.db is missing, but {left.name} is there")
        new = path.with_name("log.db.new")
        new.unlink(missing_ok=True)
        db = sqlite3.connect(new, isolation_level=None)
        try:
            db.executescript(
                # First: SQLite passes over them once the file has a page.
                f"PRAGMA page_size = {PAGE_BYTES}; PRAGMA auto_vacuum = INCREMENTAL;"
                f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT}; PRAGMA synchronous = FULL;"
                f"BEGIN; {SCHEMA} COMMIT;"
                # Under this name: a power cut in the middle leaves a journal to roll back, which a reader may not do.
                "PRAGMA journal_mode = WAL;"
            )
        except sqlite3.Error as error:
            raise _failure(error) from error
        finally:
            db.close()
        new.rename(path)
        sync_folder(path.parent)

    @staticmethod
    def _check(folder: Path) -> bool:
        """Refuse a folder whose log has become shorter, by reading alone: a connection that may write would throw away
        the damaged write-ahead log when it is closed, and with it what could still be saved.

        Returns whether a commit was cut short.
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
                "commit %d was cut short and never acknowledged: %d page(s) of it are dropped", number + 1, tail.pages
            )
        return tail.pages > 0

    def _drop_unfinished(self) -> None:
        """Begin the write-ahead log anew: a commit that overwrote only a part of the one that was cut short would look
        as if more had been lost, were it cut short too."""
        try:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            self._db.close()
            raise _failure(error) from error

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self._mark_path.with_name("log.db"), isolation_level=None, check_same_thread=False, cached_statements=64
        )
        add_checksum(db)
        try:
            # FULL: a commit is synced before it returns.
            db.executescript(
                f"{GUARDS} PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
                f"PRAGMA journal_size_limit = 67108864; PRAGMA cache_size = -{CACHE_BYTES >> 10};"
            )
            ((page,),) = db.execute("PRAGMA page_size").fetchall()
            db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_BYTES // page}").fetchall()
        except sqlite3.Error as error:
            db.close()
            raise _failure(error) from error
        return db

    def _open_mark(self) -> int:
        """Open the file that remembers how far the log went, for the commits to come."""
        fd = os.open(self._mark_path, os.O_RDWR | os.O_CREAT, 0o600)
        # First the log: a kill may have left a commit in it that was written and not synced. From now on it counts.
        if self._wal.exists():
            sync_file(self._wal)
        sync_folder(self.folder)
        os.pwrite(fd, encode_mark(self._number, self._checksum), 0)
        os.fsync(fd)
        return fd

    # -- writing

    @contextmanager
    def _transaction(self, *old_ids: Rows) -> Iterator[list[int]]:
        """One commit: begin, the body's statements, the log's end, sync, mark. The body appends its rows' checksums. It
        may remove or change the `old_ids`, and no others."""
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
            failure = _failure(error)
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
        """Unsynced: it is there after a kill, and after a power cut it may be behind the log, never ahead of it."""
        try:
            os.pwrite(self._mark, encode_mark(self._number, self._checksum), 0)
        except OSError as error:
            self._failed = True
            raise errors.StorageFailed(reason=str(error)) from error  # whatever it was, the commit is in the log

    def _see_that_checkpoints_work(self) -> None:
        """SQLite does not say so when the checkpoint after a commit fails: the write-ahead log grows and grows, all in
        it is safe, and the disk is not to be trusted. A checkpoint that is asked for says so."""
        try:
            size = self._wal.stat().st_size
            if size > self._largest_wal:
                self._largest_wal = size
                self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except (sqlite3.Error, OSError) as error:
            failure = _failure(error)
            if not isinstance(failure, errors.DiskFull):  # then it waits for room: what was committed stays so
                self._failed = True
                raise failure from error

    def _roll_back(self, ids_checksum: int) -> None:
        self._ids.checksum = ids_checksum
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def commit(self, batches: Sequence[ModelBatch]) -> None:
        """Write what one turn of the writer gathered, and sync it. IdsTakenError: nothing was written."""
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
        """Insert predictions that wait, in one statement: their bytes in one piece, and where each one's are in it."""
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
        """One entry for all that were dropped at once."""
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

    def find_ids(self, wanted: dict[int, list[str]]) -> dict[tuple[int, str], KnownId]:
        """(model, id) -> what it stands for, for those of the wanted ids that stand for something."""
        found = {}
        some_of_them = (
            (model, ids[start : start + IDS_AT_ONCE])
            for model, ids in wanted.items()
            for start in range(0, len(ids), IDS_AT_ONCE)
        )
        for model, ids in some_of_them:
            # One row with all in it: each row gives up the GIL.
            for id_, kind, seq, fingerprint, label, kept_at, made_at, payload, checksum in self._json_rows(
                _FIND, model, json.dumps(ids), WAITING
            ):
                waiting = None
                if kind == WAITING and kept_at is not None:
                    waiting = self._whole(model, seq, id_, kept_at, made_at, payload, checksum)
                found[model, id_] = KnownId(kind, seq, fingerprint, label, waiting)
        return found

    def oldest_waiting(self, model: int, count: int) -> list[OldWaiting]:
        """The oldest predictions that wait, at most `count`; fewer where they are large, but not none."""
        oldest, size = [], 0
        query = "SELECT length(payload) FROM waiting WHERE model = ? ORDER BY number LIMIT ?"
        for before, (length,) in enumerate(self._rows(query, model, count)):
            size += length
            if before and size > OLDEST_BYTES:
                count = before
                break
        for number, id_hex, *rest, known in self._json_rows(_OLDEST, model, count, WAITING):
            # An id that does not lead here is damaged: it may be another's.
            id_ = _text(id_hex) if known else self._id_of(model, number)
            waiting = None if id_ is None else self._whole(model, number, id_, *rest)
            oldest.append(OldWaiting(number, id_, rest[0], waiting))
        return oldest

    def _id_of(self, model: int, number: int) -> str | None:
        """The id under which a prediction of this number waits; it looks at all ids."""
        query = "SELECT hex(id) FROM ids WHERE model = ? AND kind = ? AND seq = ?"
        return next((_text(id_hex) for (id_hex,) in self._rows(query, model, WAITING, number)), None)

    def _json_rows(self, query: str, *values: Any) -> list[list[Any]]:
        """The rows of a query that gives all of them as one JSON array."""
        try:
            ((rows,),) = self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise _failure(error) from error
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
            logger.warning("%s", damage.members["reason"])
            return None

    def _payload(self, model: int, number: int) -> bytes:
        query = "SELECT payload FROM waiting WHERE model = ? AND number = ?"
        return next(bytes(payload) for (payload,) in self._rows(query, model, number))

    def last_number(self, model: int) -> int:
        """The largest number of a prediction that waits or was dropped, 0 without one; others may come again."""
        query = (
            "SELECT max(ifnull((SELECT max(number) FROM waiting WHERE model = ?1), 0), "
            "ifnull((SELECT max(number) FROM drops WHERE model = ?1), 0))"
        )
        return next(int(number) for (number,) in self._rows(query, model))

    def give_back(self) -> bool:
        """Give a piece of the file's free room back to the file system, where there is much; whether there is more."""
        try:
            ((free,),) = self._db.execute("PRAGMA freelist_count").fetchall()
            ((pages,),) = self._db.execute("PRAGMA page_count").fetchall()
            page = self._page_bytes()
            if free <= max(FREE_BYTES // page, pages // 4):
                return False
            self._db.execute(f"PRAGMA incremental_vacuum({RETURNED_BYTES // page})").fetchall()
            ((left,),) = self._db.execute("PRAGMA freelist_count").fetchall()
        except sqlite3.Error as error:
            raise _failure(error) from error
        return bool(left < free)

    def create_model(self, name: str, spec: dict[str, Any]) -> StoredModel:
        """A new model."""
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
        """Remove a model. Its rows go later, with `purge`. With a spec as `successor`, a new model takes its name."""
        with self._transaction() as checksums:
            self._db.execute("DELETE FROM models WHERE model = ?", (model.key,))
            self._db.execute("INSERT INTO purges VALUES (?)", (model.key,))
            return None if successor is None else self._insert_model(model.name, successor, checksums)

    def resume(self, model: int, seq: int) -> None:
        """Remember that a model that had stopped learning was let to learn again at a seq."""
        row = (model, seq, time.time_ns() // 1_000)
        with self._transaction() as checksums:
            checksums.append(crc(*row))
            self._db.execute("INSERT INTO resumes VALUES (?, ?, ?, ?)", (*row, checksums[0]))

    def purge(self) -> bool:
        """Remove some rows of deleted models, in one short commit; whether there may be more."""
        # Not of a model that is there: its number in this table is damaged then.
        query = "SELECT model FROM purges WHERE model NOT IN (SELECT model FROM models) LIMIT 1"
        doomed = [key for (key,) in self._rows(query)]
        if not doomed:
            return False
        some = "model = ?1 AND id IN (SELECT id FROM ids WHERE model = ?1 LIMIT ?2)"
        ids = Rows(some, (*doomed, PURGE_ROWS))
        with self._transaction(ids):
            if self._delete_ids(ids):
                return True
            for table, key in _PURGED.items():
                # The table and key are ours, not a caller's.
                some = f"SELECT {key} FROM {table} WHERE model = ?1 LIMIT {PURGE_ROWS}"  # noqa: S608
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
        """Remove the oldest rows of a model's log that end at or before a seq and were written before a time, some in
        one short commit; whether there were any.

        `remember`: how many seconds back it stays known when the events were written that are gone.
        """
        gone, dropped = self.gone(model), 0
        end, last_written_at = gone, 0.0
        for row in self.rows_after(model, gone, PURGE_ROWS):
            if row.last_seq > up_to or row.written_at >= written_before or dropped >= DROPPED_BYTES:
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
        kept = [seq for seq, _ in _thinned(self._starts(model), remember)]
        self._db.execute(
            "DELETE FROM log_starts WHERE model = ? AND seq NOT IN (SELECT value FROM json_each(?))",
            (model, json.dumps(kept)),
        )
        checksum = crc(model, seq, written_at)
        self._db.execute("INSERT INTO log_starts VALUES (?, ?, ?, ?)", (model, seq, written_at, checksum))
        return checksum

    def seq_written_before(self, model: int, time_: float) -> int:
        """The last seq whose event was written before a time, or one before it, as far as the clock was right."""
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
        """Take the ids that are there for those that were written, but for those of events and models that never
        were."""
        with self._transaction():
            for model in self.models():
                past_the_end = Rows(f"model = ? AND kind <= {LATE} AND seq > ?", (model.key, self.last_seq(model.key)))
                self._delete_ids(past_the_end)
            self._delete_ids(Rows("model NOT IN (SELECT model FROM models UNION SELECT model FROM purges)"))
        found = self._ids.sum(_ALL_IDS)
        with self._transaction():
            self._ids.checksum = found

    def drop_ids(self, model: int, up_to: int, after: str) -> str | None:
        """Of some ids after one, in their own order, remove those of events up to a seq, in one short commit.

        The last of those looked at, None at the end.
        """
        looked_at = "SELECT id, kind, seq FROM ids WHERE model = ? AND id > ? ORDER BY id LIMIT ?"
        query = f"SELECT max(id), sum(kind <= {LATE} AND seq <= ?) FROM ({looked_at})"  # noqa: S608  # a number of ours
        ((last, old),) = self._rows(query, up_to, model, after, SCANNED_IDS)
        if old:
            condition = f"model = ? AND id > ? AND id <= ? AND kind <= {LATE} AND seq <= ?"
            rows = Rows(condition, (model, after, last, up_to))
            with self._transaction(rows):
                self._delete_ids(rows)
        return None if last is None else str(last)

    def write_snapshot(self, model: int, snapshot: Snapshot) -> Iterator[None]:
        """Write a snapshot in chunks, one short commit for each step of the iterator.

        The last step makes it valid, and removes those before the last `KEPT_SNAPSHOTS`.
        """
        key, chunks = (model, snapshot.seq), 0
        with self._transaction():  # what a crash left of the same one
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
        """Write some rows of the series in one short commit. Where they are damaged no more are written: the log can do
        without."""
        if not self._series_whole:
            return
        try:
            with self._transaction():
                try:
                    series.write(self._db, piece)
                except sqlite3.Error as error:
                    if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
                        raise  # nothing that is wrong with the series alone
                    raise _SeriesDamagedError(str(error)) from error
        except _SeriesDamagedError as damage:
            self._series_whole = False
            logger.warning("the series of the plots are damaged and not written any more (%s); the log is not", damage)

    def close(self) -> None:
        """Close it, after a failure without SQLite's last checkpoint.

        That would sync again what could not be synced, and be told that all is well. SQLite makes it when the last
        connection closes, so another one is open meanwhile, which may only read.
        """
        other = super()._connect() if self._failed else None
        if other is not None:
            with suppress(sqlite3.Error):  # the disk may fail here, too; then it closes as it can
                other.execute("SELECT number FROM log_end").fetchall()
        super().close()
        if other is not None:
            other.close()
        os.close(self._mark)


def _thinned(starts: Sequence[tuple[int, float]], seconds: float) -> list[tuple[int, float]]:
    """Of notes (seq, time) in order those that tell to within a 64th how far events of the last `seconds` went."""
    kept: list[tuple[int, float]] = []
    for start in starts:
        if seconds and (not kept or start[1] - kept[-1][1] >= seconds / 64):
            kept.append(start)
    long_ago = time.time() - seconds
    while len(kept) > 1 and kept[1][1] < long_ago:
        del kept[0]
    return kept


def _text(in_hex: str) -> str | None:
    """The text of these bytes, None where they are none."""
    try:
        return bytes.fromhex(in_hex).decode()
    except UnicodeDecodeError:
        return None


def _failure(error: sqlite3.Error | OSError) -> errors.LogstepError:
    """What a caller is told: that there was no room, or that nothing more can be trusted to be written."""
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL or getattr(error, "errno", None) == errno.ENOSPC:
        return errors.DiskFull()
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CORRUPT:
        return errors.StorageDamaged(reason=str(error))
    return errors.StorageFailed(reason=str(error))


def sync_file(path: Path) -> None:
    """Sync a file, whoever wrote it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries: without it, a file that was made or renamed may be gone after a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
