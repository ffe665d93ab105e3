"""Makes commits: one transaction, one sync, one mark (wal.py). Everything that writes to the log does it here."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress

from service import errors
from service.storage.database import CHECKPOINT_BYTES, connect_to_read, crc
from service.storage.folder import failure_of, sync_file, sync_folder
from service.storage.ids import Ids, Rows
from service.storage.log import LogReader
from service.storage.wal import encode_mark


class Commits:
    """The transactions of a log, one at a time. ids: what ids stand for. new_rows: how many rows of the log are not in
    its index; who adds or removes such a row counts it, in the same transaction. synced_at: `time.perf_counter` when
    the last commit was synced. sync_seconds: how long SQLite's COMMIT of it took."""

    def __init__(self, log: LogReader) -> None:
        self._db = log.db.connection
        self._folder = log.db.folder
        self._wal, self._largest_wal = self._folder / "log.db-wal", 2 * CHECKPOINT_BYTES
        self._number, self._checksum = log.db.log_end()
        self._checksums: list[int] = []
        self._failed = False
        self.ids = Ids(log.db, log.db.of_last_commit("ids_checksum"), log.forgotten)
        log.index.refresh()
        self.new_rows = log.db.of_last_commit("new_rows")
        self.synced_at = self.sync_seconds = 0.0
        self._mark = self._open_mark()

    def _open_mark(self) -> int:
        """Open `last-commit` for the next commits."""
        fd = os.open(self._folder / "last-commit", os.O_RDWR | os.O_CREAT, 0o600)
        # First sync the log: a kill may have left a written commit unsynced, and from now on it counts.
        if self._wal.exists():
            sync_file(self._wal)
        sync_folder(self._folder)
        os.pwrite(fd, encode_mark(self._number, self._checksum), 0)
        os.fsync(fd)
        return fd

    @property
    def number(self) -> int:
        """The number of the commit that is being made."""
        return self._number + 1

    @contextmanager
    def transaction(self, *old_ids: Rows) -> Iterator[sqlite3.Connection]:
        """One commit: begin, the body's statements, `log_end`, sync, mark. Of the rows of the table `ids`, the body may
        remove or change only `old_ids`."""
        before = self.ids.checksum, self.new_rows
        self._checksums = []
        try:
            for rows in old_ids:
                self.ids.leave_out(rows)
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db
            number, checksum = self.number, crc(self._checksum, *self._checksums)
            end = (number, checksum, self.ids.checksum, self.new_rows)
            self._db.execute("UPDATE log_end SET number = ?, checksum = ?, ids_checksum = ?, new_rows = ?", end)
            started = time.perf_counter()
            self._db.execute("COMMIT")
            self.synced_at = time.perf_counter()
            self.sync_seconds = self.synced_at - started
        except (sqlite3.Error, OSError) as error:
            failure = failure_of(error)
            if isinstance(failure, errors.DiskFull):
                self._roll_back(*before)
            else:
                self._failed = True
            raise failure from error
        except BaseException:
            self._roll_back(*before)
            raise
        self._number, self._checksum = number, checksum
        self.ids.runs.settle(committed=True)
        self._write_mark()
        self._see_that_checkpoints_work()

    def insert(self, table: str, *row: bytes | int | str | float) -> None:
        """Insert a row, and its checksum as the last column."""
        self.insert_all(table, [row], [crc(*row)])

    def insert_all(
        self, table: str, rows: Sequence[tuple[bytes | int | str | float, ...]], checksums: Sequence[int]
    ) -> None:
        """Insert rows, each with its checksum as the last column."""
        if rows:
            places = "?, " * len(rows[0])
            whole = [(*row, checksum) for row, checksum in zip(rows, checksums, strict=True)]
            self._db.executemany(f"INSERT INTO {table} VALUES ({places}?)", whole)  # noqa: S608  # a table of ours
            self._checksums += checksums

    def replace(self, table: str, *row: int | str) -> None:
        """The same, in place of the row with that key."""
        checksum, places = crc(*row), "?, " * len(row)
        query = f"INSERT OR REPLACE INTO {table} VALUES ({places}?)"  # noqa: S608  # a table of ours
        self._db.execute(query, (*row, checksum))
        self.count(checksum)

    def count(self, checksum: int) -> None:
        """Add the checksum of what the body wrote to the commit's."""
        self._checksums.append(checksum)

    def _roll_back(self, ids_checksum: int, new_rows: int) -> None:
        self.ids.checksum, self.new_rows = ids_checksum, new_rows
        self.ids.runs.settle(committed=False)
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _write_mark(self) -> None:
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

    def close(self) -> None:
        """Close the connection and the mark. After a failure, without SQLite's last checkpoint.

        That checkpoint would repeat the failed sync, and the system would report success. SQLite makes it when the last
        connection closes, so a second, read-only connection stays open meanwhile.
        """
        with closing(connect_to_read(self._folder)) if self._failed else nullcontext() as other:
            with suppress(sqlite3.Error):  # the disk may fail here too; close anyway
                if other is not None:
                    other.execute("SELECT number FROM log_end").fetchall()
            self._db.close()
        os.close(self._mark)
