"""What a log.db must be to be opened: of the one format there is, with its tables and nothing else."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from examples import opened
from forked import Logstep, clean_environment
from golden.make import HERE
from harness import START_SECONDS
from processes import copied

from service import failures
from service.commands import cli
from service.storage.log import LogReader
from service.storage.schema import UNRELEASED_ID
from service.storage.store import Store

OPENING = ["serve", "inspect", "backup", "restore", "repair", "crosscheck"]


def arguments(command: str, folder: Path) -> list[str]:
    """A command that opens a folder."""
    elsewhere = str(folder.parent / "elsewhere")
    return {
        "serve": ["serve", "--port", "0", "--data", str(folder)],
        "inspect": ["inspect", str(folder)],
        "backup": ["backup", str(folder), elsewhere],
        "restore": ["restore", str(folder), elsewhere],
        "repair": ["repair", str(folder), "--yes"],
        "crosscheck": ["crosscheck", "--data", str(folder), "--model", "sgd"],
    }[command]


def refused(command: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """What a command says that opens a folder and refuses it, by which nothing was changed and nothing made."""
    before = contents(folder)
    if command == "serve":
        process = Logstep(*arguments(command, folder), log=folder.parent / "said", env=clean_environment())
        code, said = process.wait(START_SECONDS), (folder.parent / "said").read_text()
    else:
        code, said = cli.main(arguments(command, folder)), "".join(capfd.readouterr())
    assert code != 0
    assert contents(folder) == before
    assert not (folder.parent / "elsewhere").exists()
    return said


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, but the lock and SQLite's index of the write-ahead log, which each start makes anew."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {name: data for name, data in files.items() if name not in ("lock", "log.db-shm") and data}


def sql(folder: Path, statements: str) -> None:
    with closing(sqlite3.connect(folder / "log.db", isolation_level=None)) as db:
        db.executescript(statements)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copied(HERE / "data", tmp_path / "data")


# -- formats of before the first release


@pytest.mark.parametrize("command", OPENING)
def test_a_folder_from_before_the_first_release_is_refused_and_left_alone(
    command: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sql(folder, f"PRAGMA application_id = {UNRELEASED_ID}; PRAGMA user_version = 5")
    said = refused(command, folder, capfd)
    assert f"{folder} was written before the first release of logstep" in said
    assert "Start with an empty folder" in said
    assert "logstep replay FILE" in said


@pytest.mark.parametrize("number", range(1, 5))
def test_so_is_one_of_each_format_that_there_was(
    number: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    sql(tmp_path / "data", f"CREATE TABLE models (model); PRAGMA application_id = {UNRELEASED_ID}")
    sql(tmp_path / "data", f"PRAGMA user_version = {number}")
    assert "before the first release" in refused("inspect", tmp_path / "data", capfd)


# -- a schema that somebody changed: what stands in it would run, or hide rows

SPY = """
CREATE TABLE copies (payload);
CREATE TRIGGER spy AFTER INSERT ON batches BEGIN INSERT INTO copies VALUES (new.payload); END;
CREATE TRIGGER slow AFTER INSERT ON ids BEGIN
    INSERT INTO copies WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1e8) SELECT i FROM n;
END;
"""


def rewritten(old: str, new: str, table: str) -> str:
    """Change the text of a table as it stands in the schema."""
    return (
        "PRAGMA writable_schema = ON;"
        f"UPDATE sqlite_schema SET sql = replace(sql, '{old}', '{new}') WHERE name = '{table}';"
    )


CHANGES = {
    "triggers": (SPY, ["the trigger 'spy' on 'batches' was added", "the table 'copies' was added"]),
    "a view": ("CREATE VIEW all_ids AS SELECT id FROM ids", ["the view 'all_ids' was added"]),
    "an index": ("CREATE INDEX fast ON batches (written_at)", ["the index 'fast' on 'batches' was added"]),
    "a unique index": (
        "CREATE UNIQUE INDEX one ON batches (model, first_seq)",
        ["the index 'one' on 'batches' was added"],
    ),
    "a table": ("CREATE TABLE notes (text)", ["the table 'notes' was added"]),
    "a virtual table": ("CREATE VIRTUAL TABLE words USING fts5 (word)", ["the table 'words' was added"]),
    "a column": ("ALTER TABLE models ADD COLUMN owner TEXT", ["the table 'models' was changed"]),
    "a column that is generated": (
        "ALTER TABLE models ADD COLUMN loud TEXT AS (upper(name))",
        ["the table 'models' was changed"],
    ),
    "a column that is gone": ("ALTER TABLE ids DROP COLUMN label", ["the table 'ids' was changed"]),
    "another default": (
        rewritten("label INTEGER,", "label INTEGER DEFAULT 1,", "ids"),
        ["the table 'ids' was changed"],
    ),
    "another check": (rewritten("one = 1", "one > random()", "log_end"), ["the table 'log_end' was changed"]),
    "a table that is no longer strict": (rewritten("STRICT", "", "drops"), ["the table 'drops' was changed"]),
    "a table that is gone": ("DROP TABLE resumes", ["the table 'resumes' is missing"]),
    "statistics": ("ANALYZE", ["the table 'sqlite_stat1' was added"]),
    "a trigger that is called a table": (
        "CREATE TABLE copies (payload); PRAGMA writable_schema = ON;"
        "INSERT INTO sqlite_schema VALUES ('table', 'batches', 'batches', 0, 'CREATE TRIGGER spy AFTER INSERT ON "
        "batches BEGIN INSERT INTO copies VALUES (new.payload); END')",
        ["malformed database schema"],  # which SQLite sees by itself
    ),
    "a name that would write to the terminal": (
        "CREATE TABLE '\x1b[2J' (text)",
        ["the table '\\x1b[2J' was added"],
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_schema_is_refused_by_name_before_anything_is_written(
    change: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    statements, differences = CHANGES[change]
    sql(folder, statements)
    for command in ("inspect", "backup", "restore", "repair", "crosscheck"):
        said = refused(command, folder, capfd)
        for difference in differences:
            assert difference in said
    before = contents(folder)
    refusal = asyncio.run(opened(folder))
    assert isinstance(refusal, failures.LogDamaged)
    assert differences[0] in str(refusal)
    assert contents(folder) == before


def test_a_service_does_not_start_on_a_changed_schema(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sql(folder, SPY)
    assert "the trigger 'spy' on 'batches' was added" in refused("serve", folder, capfd)


def test_of_a_schema_with_many_changes_some_are_named_and_the_rest_counted(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sql(folder, "".join(f"CREATE TABLE more_{i} (x);" for i in range(100)))
    assert "the table 'more_4' was added; and 95 more" in refused("inspect", folder, capfd)


def test_a_trigger_in_the_write_ahead_log_alone_is_found(folder: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(folder / "log.db", isolation_level=None)) as db:
        db.executescript(SPY)
        left = copied(folder, tmp_path / "left")
    assert (left / "log.db-wal").stat().st_size > 0
    with pytest.raises(failures.LogDamaged, match="the trigger 'spy' on 'batches' was added"):
        LogReader(left)


def test_the_connections_trust_no_schema_and_load_no_extensions(folder: Path) -> None:
    with closing(LogReader(folder)) as reader, closing(Store(folder)) as store:
        for db in (reader.db.connection, store.log.db.connection):
            assert db.execute("PRAGMA trusted_schema").fetchone() == (0,)
            assert db.execute("PRAGMA cell_size_check").fetchone() == (1,)
            with pytest.raises(sqlite3.OperationalError, match="not authorized"):
                db.execute("SELECT load_extension('anything')")


def test_a_vacuumed_log_is_the_same(folder: Path) -> None:
    sql(folder, "VACUUM")
    LogReader(folder).close()
