"""What makes a file a log of this service: its format, and its tables, in one text.

There is one format, the first; none was released before it, and a folder of an earlier one is refused.

What stands in a database's schema runs whenever its tables are used: a trigger that somebody added to a backup would
copy each event elsewhere. So the schema is compared with this text before anything else is read or written.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from functools import cache

APPLICATION_ID = 0x0E57E902
UNRELEASED_ID = 0x0E57E901
"""Of the files that were written before the first release, in formats that no version reads."""
FORMAT = 1
PAGE_BYTES = 8_192
"""Of a file's pages. A stream of arrays is written in a sixth less time than with SQLite's own 4,096."""

SCHEMA = """
CREATE TABLE log_end (
    one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL, checksum INTEGER NOT NULL,
    ids_checksum INTEGER NOT NULL
) STRICT;
INSERT INTO log_end VALUES (1, 0, 0, 0);
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
CREATE TABLE log_starts (
    model INTEGER NOT NULL, seq INTEGER NOT NULL, written_at REAL NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (model, seq)
) STRICT;
CREATE TABLE ids (
    model INTEGER NOT NULL, id TEXT NOT NULL, seq INTEGER NOT NULL, fingerprint INTEGER NOT NULL,
    kind INTEGER NOT NULL, label INTEGER, PRIMARY KEY (model, id)
) STRICT, WITHOUT ROWID;
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
CREATE TABLE snapshots (
    model INTEGER NOT NULL, seq INTEGER NOT NULL, chunks INTEGER NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (model, seq)
) STRICT;
CREATE TABLE snapshot_chunks (
    model INTEGER NOT NULL, seq INTEGER NOT NULL, chunk INTEGER NOT NULL, data BLOB NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (model, seq, chunk)
) STRICT;
CREATE TABLE purges (model INTEGER PRIMARY KEY) STRICT;
CREATE TABLE series (
    model INTEGER NOT NULL, t INTEGER NOT NULL, seconds INTEGER NOT NULL, seq INTEGER NOT NULL,
    features INTEGER NOT NULL, learned INTEGER NOT NULL, predicted INTEGER NOT NULL, scored INTEGER NOT NULL,
    loss REAL NOT NULL, loss_total REAL, loss_window REAL, accuracy_window REAL, entropy REAL,
    served INTEGER NOT NULL, served_loss REAL NOT NULL, waiting INTEGER NOT NULL, delays INTEGER NOT NULL,
    delay REAL NOT NULL, commit_p50_ms REAL, commit_p99_ms REAL, learners TEXT, PRIMARY KEY (model, t)
) STRICT, WITHOUT ROWID;
CREATE TABLE marks (
    model INTEGER NOT NULL, t INTEGER NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL, PRIMARY KEY (model, t, seq)
) STRICT, WITHOUT ROWID;
"""

GUARDS = "PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON;"
"""For each connection, beside the comparison: what a schema may call is limited, and pages are checked as they are
read. Extensions are not loaded: the sqlite3 module does not unless it is told to."""

Entry = tuple[str, str, str, str | None]
"""Type, name, table and text of an entry of a schema; an index that comes with a table has no text."""


def entries(db: sqlite3.Connection) -> list[Entry]:
    """The schema of a database. In a damaged one anything can stand in the place of a text."""
    return db.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema").fetchall()


@cache
def _made() -> list[Entry]:
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(SCHEMA)
        return entries(db)


def differences(found: Sequence[Entry]) -> list[str]:
    """What a schema has otherwise than this one, in words; empty where it is the same.

    >>> differences([*_made(), ("trigger", "spy", "batches", "CREATE TRIGGER spy ...")])
    ["the trigger 'spy' on 'batches' was added"]
    """
    # Counted: SQLite goes by the text, so an entry that only calls itself a table of ours may be a trigger.
    more, fewer = Counter(found) - Counter(_made()), Counter(_made()) - Counter(found)
    made, there = {entry[:3] for entry in _made()}, {entry[:3] for entry in found}
    changed = [f"{_named(entry)} {'was changed' if entry[:3] in made else 'was added'}" for entry in more]
    return changed + [f"{_named(entry)} is missing" for entry in fewer if entry[:3] not in there]


def _named(entry: Entry) -> str:
    type_, name, table = (repr(part)[:60] for part in entry[:3])  # whoever changed the schema chose the names
    return f"the {type_[1:-1]} {name}" + (f" on {table}" if table != name else "")
