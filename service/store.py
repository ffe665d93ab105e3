"""The log and the snapshots: one SQLite file, `log.db`, in the data folder.

What is promised: when `commit` returns, the events are on disk and synced. A commit is one transaction: one row for
each model in it, however many events, because an event a row costs three times as much.

    models           name and spec of each model
    names            feature names by column, in rows of as many as a commit brought, each name ended by a zero byte
    batches          the log: n events (core/packed.py) from `first_seq` on; rows of a model join without a gap
    ids              event id -> seq and fingerprint: what makes an event with an id learned once
    snapshots        learner state at a seq, whole once this row is there; the bytes are in snapshot_chunks
    purges           models deleted whose rows are not all gone yet
    log_end          one row: the number of the last commit, and a checksum over all commits so far

What is on disk after two events, {"age": 31, "country": "FR"} with label 1 and {"age": 40} with label 0, each row with
its checksum at the end:

    models      1 | default | {"rule":"sgd","learning_rate":0.01,...}
    names       1 | 0 | 2 | age\\0country=FR\\0
    batches     1 | 1 | 2 | 1767225600.0 | counts 2 1, columns 0 1 0, values 31.0 1.0 40.0, labels 1 0
    log_end     2

SQLite checks no pages, so every row that matters carries a CRC-32 of its contents, and a damaged one is refused, never
learned.

SQLite ends its write-ahead log at the first frame that is damaged and says nothing: one flipped bit can lose hundreds
of acknowledged commits. So after each sync and before the reply the commit's number and checksum are written (not
synced) to the file `last-commit` beside the database. A log that ends before it refuses to open.

One connection writes and checkpoints, this one. All others are read-only: SQLite before 3.51.3 has a rare race that
needs a second writer or checkpointer.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.features import Batch
from core.packed import pack
from service import codec, errors
from service.log import APPLICATION_ID, FORMAT, LogReader, Snapshot, StoredModel, batch_crc, crc, encode_mark, read_mark

SNAPSHOT_CHUNK = 1 << 20
KEPT_SNAPSHOTS = 2
PURGE_ROWS = 200

_SCHEMA = """
CREATE TABLE log_end (
    one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL, checksum INTEGER NOT NULL
) STRICT;
INSERT INTO log_end VALUES (1, 0, 0);
CREATE TABLE models (
    model INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, spec TEXT NOT NULL, checksum INTEGER NOT NULL
) STRICT;
CREATE TABLE names (
    model INTEGER NOT NULL, first_column INTEGER NOT NULL, count INTEGER NOT NULL, names BLOB NOT NULL,
    checksum INTEGER NOT NULL, PRIMARY KEY (model, first_column)
) STRICT;
CREATE TABLE batches (
    model INTEGER NOT NULL, first_seq INTEGER NOT NULL, events INTEGER NOT NULL, written_at REAL NOT NULL,
    payload BLOB NOT NULL, checksum INTEGER NOT NULL, PRIMARY KEY (model, first_seq)
) STRICT;
CREATE TABLE ids (
    model INTEGER NOT NULL, id TEXT NOT NULL, seq INTEGER NOT NULL, fingerprint INTEGER NOT NULL,
    PRIMARY KEY (model, id)
) STRICT, WITHOUT ROWID;
CREATE TABLE snapshots (
    model INTEGER NOT NULL, seq INTEGER NOT NULL, chunks INTEGER NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (model, seq)
) STRICT;
CREATE TABLE snapshot_chunks (
    model INTEGER NOT NULL, seq INTEGER NOT NULL, chunk INTEGER NOT NULL, data BLOB NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (model, seq, chunk)
) STRICT;
CREATE TABLE purges (model INTEGER PRIMARY KEY) STRICT;
"""

_PURGED = {"batches": "rowid", "names": "rowid", "snapshots": "rowid", "snapshot_chunks": "rowid", "ids": "id"}
"""Tables with rows of a model, and what tells those rows apart."""


@dataclass(frozen=True, slots=True)
class NewId:
    """The id of an event, the seq that it gets, and its fingerprint (`core.features.fingerprints`)."""

    id: str
    seq: int
    fingerprint: int


@dataclass(frozen=True, slots=True)
class ModelBatch:
    """What one commit adds to one model: events from `first_seq` on, the feature names that they bring, their ids."""

    model: int
    first_seq: int
    batch: Batch
    first_column: int
    names: Sequence[str]
    ids: Sequence[NewId]


class Store(LogReader):
    """The one writer of a data folder. Its methods are called by one thread at a time.

    Raises DiskFull where there is no room, and then nothing was written; StorageFailed where writing or syncing failed,
    and then the service must stop: what a failed sync left on disk is not known, and trying again would not tell.
    """

    def __init__(self, folder: Path) -> None:
        path, self._mark_path = folder / "log.db", folder / "last-commit"
        if not path.exists():
            self._create(path)
        self._check(folder)
        super().__init__(folder)
        self._number, self._checksum = self.log_end()
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
                f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT}; PRAGMA synchronous = FULL;"
                f"BEGIN; {_SCHEMA} COMMIT;"
            )
        except sqlite3.Error as error:
            raise _failure(error) from error
        finally:
            db.close()
        new.rename(path)
        sync_folder(path.parent)

    @staticmethod
    def _check(folder: Path) -> None:
        """Refuse a folder whose log has become shorter, by reading alone: a connection that may write would throw away
        the damaged write-ahead log when it is closed, and with it what could still be saved."""
        log = LogReader(folder)
        try:
            number, checksum = log.log_end()
        finally:
            log.close()
        marked = read_mark(folder)
        if marked is None and number > 0:
            raise errors.LogDamaged(folder=str(folder), reason="its file last-commit is missing or unreadable")
        if marked is not None and marked[0] > number:
            raise errors.LogEndsEarly(folder=str(folder), log=number, mark=marked[0])
        if marked is not None and marked[0] == number and marked[1] != checksum:
            raise errors.LogDamaged(folder=str(folder), reason="its last commit is not the one that was acknowledged")

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self._mark_path.with_name("log.db"), isolation_level=None, check_same_thread=False, cached_statements=64
        )
        try:
            # FULL: a commit is synced before it returns.
            db.executescript(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA journal_size_limit = 67108864;"
            )
        except sqlite3.Error as error:
            db.close()
            raise _failure(error) from error
        return db

    def _open_mark(self) -> int:
        """Open the file that remembers how far the log went, for the commits to come."""
        fd = os.open(self._mark_path, os.O_RDWR | os.O_CREAT, 0o644)
        os.pwrite(fd, encode_mark(self._number, self._checksum), 0)
        os.fsync(fd)
        sync_folder(self.folder)
        return fd

    # -- writing

    @contextmanager
    def _transaction(self) -> Iterator[list[int]]:
        """One commit: begin, the body's statements, the log's end, sync, mark. The body appends its rows' checksums."""
        checksums: list[int] = []
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield checksums
            number, checksum = self._number + 1, crc(self._checksum, *checksums)
            self._db.execute("UPDATE log_end SET number = ?, checksum = ?", (number, checksum))
            self._db.execute("COMMIT")
            # Unsynced: it is there after a kill, and after a power cut it may be behind the log, never ahead of it.
            os.pwrite(self._mark, encode_mark(number, checksum), 0)
        except (sqlite3.Error, OSError) as error:
            failure = _failure(error)
            if isinstance(failure, errors.DiskFull):
                self._roll_back()
            raise failure from error
        except BaseException:
            self._roll_back()
            raise
        self._number, self._checksum = number, checksum

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def commit(self, batches: Sequence[ModelBatch]) -> None:
        """Write what one turn of the writer gathered, and sync it."""
        written_at = time.time()
        with self._transaction() as checksums:
            for part in batches:
                if part.names:
                    checksums.append(self._insert_names(part.model, part.first_column, part.names))
                payload = pack(part.batch)
                checksum = batch_crc(part.model, part.first_seq, len(part.batch), written_at, payload)
                row = (part.model, part.first_seq, len(part.batch), written_at, payload, checksum)
                self._db.execute("INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?)", row)
                checksums.append(checksum)
                if part.ids:
                    self._insert_ids(part.model, part.ids)

    def _insert_names(self, model: int, first_column: int, names: Sequence[str]) -> int:
        data = "".join(name + "\0" for name in names).encode()
        checksum = crc(model, first_column, len(names), data)
        self._db.execute("INSERT INTO names VALUES (?, ?, ?, ?, ?)", (model, first_column, len(names), data, checksum))
        return checksum

    def _insert_ids(self, model: int, ids: Sequence[NewId]) -> None:
        # One statement for all: each statement gives up the GIL and must win it back.
        rows = json.dumps([[new.id, new.seq, new.fingerprint] for new in ids])
        self._db.execute(
            "INSERT INTO ids SELECT ?, value ->> 0, value ->> 1, value ->> 2 FROM json_each(?)", (model, rows)
        )

    def find_ids(self, wanted: dict[int, list[str]]) -> dict[tuple[int, str], tuple[int, int]]:
        """(model, id) -> (seq, fingerprint) for those of the wanted ids that were learned."""
        query = "SELECT id, seq, fingerprint FROM ids WHERE model = ? AND id IN (SELECT value FROM json_each(?))"
        try:
            return {
                (model, found): (seq, fingerprint)
                for model, ids in wanted.items()
                for found, seq, fingerprint in self._db.execute(query, (model, json.dumps(ids)))
            }
        except sqlite3.Error as error:
            raise errors.StorageFailed(reason=str(error)) from error

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

    def purge(self) -> bool:
        """Remove some rows of deleted models, in one short commit; whether there may be more."""
        doomed = [key for (key,) in self._rows("SELECT model FROM purges LIMIT 1")]
        if not doomed:
            return False
        with self._transaction():
            for table, key in _PURGED.items():
                # The table and key are ours, not a caller's.
                some = f"SELECT {key} FROM {table} WHERE model = ?1 LIMIT {PURGE_ROWS}"  # noqa: S608
                gone = self._db.execute(f"DELETE FROM {table} WHERE model = ?1 AND {key} IN ({some})", doomed)  # noqa: S608
                if gone.rowcount:
                    return True
            self._db.execute("DELETE FROM purges WHERE model = ?", doomed)
        return True

    def write_snapshot(self, model: int, snapshot: Snapshot) -> Iterator[None]:
        """Write a snapshot in chunks, one short commit for each step of the iterator.

        The last step makes it valid, and removes those before the last `KEPT_SNAPSHOTS`.
        """
        data = codec.encode_state(snapshot.state)
        key = (model, snapshot.seq)
        with self._transaction():  # what a crash left of the same one
            self._db.execute("DELETE FROM snapshot_chunks WHERE model = ? AND seq = ?", key)
        yield
        chunks = range(0, len(data), SNAPSHOT_CHUNK)
        for chunk, start in enumerate(chunks):
            part = data[start : start + SNAPSHOT_CHUNK]
            with self._transaction() as checksums:
                checksums.append(crc(*key, chunk, part))
                self._db.execute(
                    "INSERT INTO snapshot_chunks VALUES (?, ?, ?, ?, ?)", (*key, chunk, part, checksums[0])
                )
            yield
        with self._transaction() as checksums:
            checksums.append(crc(*key, len(chunks)))
            self._db.execute("INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?)", (*key, len(chunks), checksums[0]))
            older = self.snapshot_seqs(model)[KEPT_SNAPSHOTS:]
            for seq in older:
                self._db.execute("DELETE FROM snapshots WHERE model = ? AND seq = ?", (model, seq))
            oldest = self.snapshot_seqs(model)[-1]
            self._db.execute("DELETE FROM snapshot_chunks WHERE model = ? AND seq < ?", (model, oldest))

    def close(self) -> None:
        super().close()
        os.close(self._mark)


def _failure(error: sqlite3.Error | OSError) -> errors.OnestepError:
    """What a caller is told: that there was no room, or that nothing more can be trusted to be written."""
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL or getattr(error, "errno", None) == errno.ENOSPC:
        return errors.DiskFull()
    return errors.StorageFailed(reason=str(error))


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries: without it, a file that was made or renamed may be gone after a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
