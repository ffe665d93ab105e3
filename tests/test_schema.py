"""What a log.db must be to be opened: of the one format there is, and no other."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from forked import Onestep, clean_environment
from golden.make import HERE
from processes import START_SECONDS, copied

from service.commands import cli
from service.storage.schema import UNRELEASED_ID

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
        process = Onestep(*arguments(command, folder), log=folder.parent / "said", env=clean_environment())
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
    assert f"{folder} is of a onestep from before its first release" in said
    assert "Begin with an empty folder" in said
    assert "onestep replay FILE" in said


@pytest.mark.parametrize("number", range(1, 5))
def test_so_is_one_of_each_format_that_there_was(
    number: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    sql(tmp_path / "data", f"CREATE TABLE models (model); PRAGMA application_id = {UNRELEASED_ID}")
    sql(tmp_path / "data", f"PRAGMA user_version = {number}")
    assert "before its first release" in refused("inspect", tmp_path / "data", capfd)
