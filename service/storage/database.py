"""One connection to `log.db`, and the checksums of its rows.

SQLite does not checksum its pages. So every row that matters ends with a CRC-32 of its other columns, and a damaged row
is never learned: reading it raises LogDamaged, which says what is damaged.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import zlib
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

from service import failures
from service.storage import schema
from service.storage.folder import failure_of

CACHE_BYTES = 16 << 20
"""Page cache, at most. Random ids go to pages all over their table: with SQLite's default of 2 MB, a commit of 8,000
ids to a table of 100,000 took half as long again."""
CHECKPOINT_BYTES = 4 << 20
"""Size of the write-ahead log at which SQLite copies its pages to the database and restarts it."""
COPIED_BYTES = 4 << 20
"""Bytes to copy before each sync. A longer sync would delay the commits of a service on the same disk."""


def crc(*parts: bytes | int | str | float) -> int:
    """CRC-32 of the parts. Numbers have a fixed width. Before each text or bytes comes its length."""
    checksum = 0
    for part in parts:
        if isinstance(part, str):
            part = part.encode()  # noqa: PLW2901
        if isinstance(part, bytes):
            checksum = zlib.crc32(part, zlib.crc32(struct.pack("<Q", len(part)), checksum))
        else:
            checksum = zlib.crc32(struct.pack("<d" if isinstance(part, float) else "<q", part), checksum)
    return checksum


def connect_to_read(folder: Path) -> sqlite3.Connection:
    """A connection that changes nothing in the folder."""
    path = folder / "log.db"
    if not path.is_file():
        raise failures.NotADataFolder(path=str(folder), reason="it has no log.db")
    db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=10)
    db.executescript(schema.GUARDS)
    return db


def connect_to_write(folder: Path, unfinished: bool) -> sqlite3.Connection:
    """The one connection that writes and checkpoints. Its thread may change. It drops an unfinished commit. Otherwise
    the next commit may overwrite only a part of it. If that is cut short too, the rest looks like a lost commit."""
    db = sqlite3.connect(folder / "log.db", isolation_level=None, check_same_thread=False, cached_statements=64)
    try:
        # FULL: a commit is synced before it returns.
        db.executescript(
            f"{schema.GUARDS} PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
            f"PRAGMA journal_size_limit = 67108864; PRAGMA cache_size = -{CACHE_BYTES >> 10};"
        )
        ((page,),) = db.execute("PRAGMA page_size").fetchall()
        db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_BYTES // page}").fetchall()
        if unfinished:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except sqlite3.Error as error:
        db.close()
        raise failure_of(error) from error
    return db


class Database:
    """The log.db of a data folder, over a connection. Refuses a file that is not a log of this format."""

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder = folder
        self.connection = connection
        try:
            schema.check(connection, folder)
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        self.connection.close()

    def damaged(self, reason: str) -> failures.LogDamaged:
        return failures.LogDamaged(folder=str(self.folder), reason=reason)

    def rows(self, query: str, *values: Any) -> Generator[tuple[Any, ...]]:
        """The rows of a query."""
        try:
            # Not `yield from`: it would close the cursor of an abandoned generator, perhaps after its connection.
            for row in self.connection.execute(query, values):  # noqa: UP028
                yield row
        except schema.UNREADABLE as error:
            raise self.damaged(str(error)) from None

    def whole(self, wrong: str, query: str, *key: Any) -> Generator[tuple[Any, ...]]:
        """The rows of a query whose last column is a checksum of `key` and the others, without it. LogDamaged if it
        does not fit. wrong: what the error says, a format of the row."""
        for *row, checksum in self.rows(query, *key):
            if checksum != crc(*key, *row):
                raise self.damaged(wrong.format(*row))
            yield tuple(row)

    def page_bytes(self) -> int:
        return next(int(size) for (size,) in self.rows("PRAGMA page_size"))

    def integrity(self) -> list[str]:
        """What SQLite's own check finds wrong. Empty if nothing is."""
        found = [str(row[0]) for row in self.rows("PRAGMA integrity_check")]
        return [] if found == ["ok"] else found

    def log_end(self) -> tuple[int, int]:
        """The number of the last commit, and the checksum over all commits."""
        for number, checksum in self.rows("SELECT number, checksum FROM log_end"):
            if not isinstance(number, int) or not isinstance(checksum, int) or not 0 <= checksum < 1 << 32:
                raise self.damaged("the row of its last commit cannot be read")
            return number, checksum
        raise self.damaged("the row of its last commit is missing")

    def of_last_commit(self, column: str) -> int:
        """A number of the row of the last commit."""
        ((number,),) = self.rows(f"SELECT {column} FROM log_end")  # noqa: S608  # a column of ours
        if not isinstance(number, int):
            raise self.damaged("the row of its last commit cannot be read")
        return number

    def models_in(self, table: str) -> set[int]:
        """The models with rows in a table whose key begins with the model. It takes one index seek for each."""
        after = f"SELECT min(model) FROM {table} WHERE model > found.model"  # noqa: S608  # a table of ours
        query = f"""
        WITH RECURSIVE found (model) AS (
            SELECT min(model) FROM {table} UNION ALL SELECT ({after}) FROM found WHERE found.model IS NOT NULL)
        SELECT model FROM found WHERE model IS NOT NULL
        """  # noqa: S608
        return {model for (model,) in self.rows(query)}

    def copy_to(self, path: Path) -> None:
        """Copy the database as it is now to a new file, and sync it.

        It copies in one read transaction, so a service can go on writing. The transaction keeps SQLite from reusing the
        write-ahead log, which grows until the copy is done.
        """
        with path.open("wb") as file, closing(sqlite3.connect(path, isolation_level=None)) as target:
            try:
                target.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")
                self.connection.execute("BEGIN")
                self.log_end()  # a read transaction begins with its first read
                pages = COPIED_BYTES // self.page_bytes()
                self.connection.backup(target, pages=pages, progress=lambda *_: os.fsync(file.fileno()))
                self.connection.execute("COMMIT")
            except sqlite3.Error as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                    raise self.damaged(str(error)) from None
                raise failures.CopyFailed(path=str(path), reason=str(error)) from error
            os.fsync(file.fileno())
