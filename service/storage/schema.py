"""The format of the log and the text of its schema.

Format 1 is the only one. No format was released before it, and the service refuses a folder in an earlier one.

SQLite runs what is in a schema whenever its tables are used: a trigger that somebody added to a backup could copy each
event elsewhere. So the service compares the schema with this text before it reads or writes anything else.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from functools import cache
from pathlib import Path

from service import failures
from service.storage.folder import failure_of, sync_folder

APPLICATION_ID = 0x0E57E902
UNRELEASED_ID = 0x0E57E901
"""The application id of files from before the first release. No version reads their formats."""
FORMAT = 1
PAGE_BYTES = 8_192
"""Page size. Writing a stream of arrays takes a sixth less time than with SQLite's default of 4,096."""

SHOWN = 5
"""Differences of a schema that a message lists, at most."""
UNREADABLE = (sqlite3.DatabaseError, UnicodeDecodeError)
"""What sqlite3 raises for damaged pages. UnicodeDecodeError comes if the message would contain a damaged text."""

SCHEMA = """
CREATE TABLE log_end (
    one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL, checksum INTEGER NOT NULL,
    ids_checksum INTEGER NOT NULL, new_rows INTEGER NOT NULL
) STRICT;
INSERT INTO log_end VALUES (1, 0, 0, 0, 0);
CREATE TABLE models (
    model INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, spec TEXT NOT NULL, checksum INTEGER NOT NULL
) STRICT;
CREATE TABLE names (
    model INTEGER NOT NULL, first_column INTEGER NOT NULL, count INTEGER NOT NULL, names BLOB NOT NULL,
    checksum INTEGER NOT NULL, PRIMARY KEY (model, first_column)
) STRICT;
CREATE TABLE batches (
    number INTEGER PRIMARY KEY, model INTEGER NOT NULL, first_seq INTEGER NOT NULL, events INTEGER NOT NULL,
    written_at REAL NOT NULL, payload BLOB NOT NULL, checksum INTEGER NOT NULL
) STRICT;
CREATE TABLE log_index (
    model INTEGER NOT NULL, first_seq INTEGER NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (model, first_seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE indexed (
    one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL, checksum INTEGER NOT NULL
) STRICT;
CREATE TABLE log_starts (
    model INTEGER NOT NULL, seq INTEGER NOT NULL, written_at REAL NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (model, seq)
) STRICT;
CREATE TABLE ids (
    model INTEGER NOT NULL, id TEXT NOT NULL, seq INTEGER NOT NULL, fingerprint INTEGER NOT NULL,
    kind INTEGER NOT NULL, label INTEGER, PRIMARY KEY (model, id)
) STRICT, WITHOUT ROWID;
CREATE TABLE new_ids (
    number INTEGER PRIMARY KEY, model INTEGER NOT NULL, ids INTEGER NOT NULL, payload BLOB NOT NULL
) STRICT;
CREATE TABLE event_ids (
    model INTEGER NOT NULL, run INTEGER NOT NULL, place INTEGER NOT NULL, ids INTEGER NOT NULL, payload BLOB NOT NULL,
    PRIMARY KEY (model, run, place)
) STRICT;
CREATE TABLE waiting (
    model INTEGER NOT NULL, number INTEGER NOT NULL, id TEXT NOT NULL, kept_at INTEGER NOT NULL, seq INTEGER NOT NULL,
    payload BLOB NOT NULL, checksum INTEGER NOT NULL, PRIMARY KEY (model, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE drops (
    model INTEGER NOT NULL, number INTEGER NOT NULL, seq INTEGER NOT NULL, dropped_at INTEGER NOT NULL,
    predictions INTEGER NOT NULL, checksum INTEGER NOT NULL, PRIMARY KEY (model, number)
) STRICT;
CREATE TABLE resumes (
    model INTEGER NOT NULL, seq INTEGER NOT NULL, resumed_at INTEGER NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (model, seq)
) STRICT;
CREATE TABLE arithmetic (
    model INTEGER NOT NULL, seq INTEGER NOT NULL, noted_at INTEGER NOT NULL, digest TEXT NOT NULL,
    checksum INTEGER NOT NULL, PRIMARY KEY (model, seq)
) STRICT;
CREATE TABLE snapshots (
    model INTEGER NOT NULL, seq INTEGER NOT NULL, chunks INTEGER NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (model, seq)
) STRICT;
CREATE TABLE snapshot_chunks (
    model INTEGER NOT NULL, seq INTEGER NOT NULL, chunk INTEGER NOT NULL, data BLOB NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (model, seq, chunk)
) STRICT;
CREATE TABLE purges (model INTEGER PRIMARY KEY) STRICT;
CREATE TABLE forgotten (
    model INTEGER PRIMARY KEY, ids INTEGER NOT NULL, events INTEGER NOT NULL, checksum INTEGER NOT NULL
) STRICT;
CREATE TABLE topic (
    one INTEGER PRIMARY KEY CHECK (one = 1), name TEXT NOT NULL, id TEXT NOT NULL, rules TEXT NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;
CREATE TABLE positions (
    partition INTEGER PRIMARY KEY, record INTEGER NOT NULL, items INTEGER NOT NULL, at INTEGER NOT NULL,
    mark INTEGER NOT NULL, checksum INTEGER NOT NULL
) STRICT;
CREATE TABLE broken_streams (
    stream TEXT PRIMARY KEY, at INTEGER NOT NULL, checksum INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE series (
    model INTEGER NOT NULL, t INTEGER NOT NULL, seconds INTEGER NOT NULL, seq INTEGER NOT NULL,
    features INTEGER NOT NULL, learned INTEGER NOT NULL, predicted INTEGER NOT NULL, scored INTEGER NOT NULL,
    loss REAL NOT NULL, loss_total REAL, loss_window REAL, accuracy_window REAL, entropy REAL,
    served INTEGER NOT NULL, served_loss REAL NOT NULL, waiting INTEGER NOT NULL, delays INTEGER NOT NULL,
    delay REAL NOT NULL, commit_p50_ms REAL, commit_p99_ms REAL, shares TEXT, PRIMARY KEY (model, t)
) STRICT, WITHOUT ROWID;
CREATE TABLE marks (
    model INTEGER NOT NULL, t INTEGER NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL, PRIMARY KEY (model, t, seq)
) STRICT, WITHOUT ROWID;
"""

GUARDS = "PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON;"
"""Set on each connection, besides the comparison: they limit which functions a schema may call, and check pages as
they are read. The sqlite3 module loads no extensions by default."""


def create(folder: Path) -> None:
    """Create a log under another name and rename it, so that a crash leaves no half-made log."""
    for left in ("last-commit", "log.db-wal"):
        if (folder / left).exists():
            raise failures.LogDamaged(folder=str(folder), reason=f"log.db is missing, but {left} exists")
    new = folder / "log.db.new"
    new.unlink(missing_ok=True)
    db = sqlite3.connect(new, isolation_level=None)
    try:
        db.executescript(
            # First, because SQLite ignores them once the file has a page.
            f"PRAGMA page_size = {PAGE_BYTES}; PRAGMA auto_vacuum = INCREMENTAL;"
            f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {FORMAT}; PRAGMA synchronous = FULL;"
            f"BEGIN; {SCHEMA} COMMIT;"
            # Before the rename: a power cut here leaves a journal to roll back, and readers cannot do that.
            "PRAGMA journal_mode = WAL;"
        )
    except sqlite3.Error as error:
        raise failure_of(error) from error
    finally:
        db.close()
    new.rename(folder / "log.db")
    sync_folder(folder)


def check(db: sqlite3.Connection, folder: Path) -> None:
    """Refuse a database that is not a log of this format, or that has anything else in its schema."""
    try:
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (found,) = db.execute("PRAGMA user_version").fetchone()
        if application == UNRELEASED_ID:
            raise failures.UnreleasedFormat(path=str(folder))
        if application != APPLICATION_ID:
            raise failures.NotADataFolder(path=str(folder), reason="its log.db belongs to another program")
        if found > FORMAT:
            raise failures.NewerFormat(path=str(folder), found=found, known=FORMAT)
        if found < FORMAT:
            reason = f"its format is {found}, but the first format is {FORMAT}"
            raise failures.LogDamaged(folder=str(folder), reason=reason)
        different = differences(entries(db))
    except UNREADABLE as error:
        raise failures.LogDamaged(folder=str(folder), reason=str(error)) from None
    if different:
        more = f"; and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
        reason = f"its schema is not the one that logstep creates: {'; '.join(different[:SHOWN])}{more}"
        raise failures.LogDamaged(folder=str(folder), reason=reason)


Entry = tuple[str, str, str, str | None]
"""Type, name, table and text of a schema entry. An automatic index has no text."""


def entries(db: sqlite3.Connection) -> list[Entry]:
    """The schema of a database. In a damaged database, a text can be any value."""
    return db.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema").fetchall()


@cache
def _made() -> list[Entry]:
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(SCHEMA)
        return entries(db)


def differences(found: Sequence[Entry]) -> list[str]:
    """How a schema differs from this one, in words. Empty if it is the same.

    >>> differences([*_made(), ("trigger", "spy", "batches", "CREATE TRIGGER spy ...")])
    ["the trigger 'spy' on 'batches' was added"]
    """
    # Whole entries, counted: SQLite runs the text, so an entry with the name of one of our tables may be a trigger.
    more, fewer = Counter(found) - Counter(_made()), Counter(_made()) - Counter(found)
    made, there = {entry[:3] for entry in _made()}, {entry[:3] for entry in found}
    changed = [f"{_named(entry)} {'was changed' if entry[:3] in made else 'was added'}" for entry in more]
    return changed + [f"{_named(entry)} is missing" for entry in fewer if entry[:3] not in there]


def _named(entry: Entry) -> str:
    type_, name, table = (repr(part)[:60] for part in entry[:3])  # a stranger may have chosen the names
    return f"the {type_[1:-1]} {name}" + (f" on {table}" if table != name else "")
