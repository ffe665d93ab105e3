"""Who may look into a data folder: its owner alone, unless it was there and open before."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Service
from processes import copied

from service.commands import cli


@pytest.fixture(autouse=True)
def everything_is_open_by_default() -> Iterator[None]:
    """As a careless administrator has it, and some containers."""
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    """Each file's, and the folder's own under "."."""
    paths = [folder, *folder.rglob("*")]
    return {str(path.relative_to(folder)): f"{stat.S_IMODE(path.stat().st_mode):o}" for path in paths}


def closed(*names: str) -> dict[str, str]:
    return {".": "700", **dict.fromkeys(names, "600")}


def run(*arguments: str | Path) -> None:
    assert cli.main([*map(str, arguments)]) == 0


FILES = ("lock", "log.db", "log.db-wal", "log.db-shm", "last-commit")


def test_a_new_folder_and_all_that_is_made_in_it_are_its_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    with Service(folder, "--snapshot-seconds", "0.00001").wait_until_ready() as service:
        run("token", "create", folder, "--scope", "admin")
        assert modes(folder) == closed(*FILES, "tokens.json")
        service.kill()
    assert modes(folder) == closed(*FILES, "tokens.json")
    run("backup", folder, tmp_path / "backups" / "copy")
    assert modes(tmp_path / "backups" / "copy") == closed("log.db", "last-commit")
    run("restore", tmp_path / "backups" / "copy", tmp_path / "restored")
    assert modes(tmp_path / "restored") == closed("lock", "log.db", "last-commit")
    assert os.umask(0) == 0  # that of whoever called is as it was


def test_a_repaired_folder_and_the_copy_in_it_are_its_owners_alone(tmp_path: Path) -> None:
    with Service(tmp_path / "data").wait_until_ready() as service:
        service.learn([{"x": {"a": 1}, "y": 1}])
        service.kill()
    (tmp_path / "data" / "last-commit").unlink()
    run("repair", tmp_path / "data", "--yes")
    found = modes(tmp_path / "data")
    assert {mode for name, mode in found.items() if (tmp_path / "data" / name).is_file()} == {"600"}
    assert {mode for name, mode in found.items() if (tmp_path / "data" / name).is_dir()} == {"700"}


def test_a_folder_that_is_open_stays_so_and_the_log_says_how_to_close_it(tmp_path: Path) -> None:
    folder = tmp_path / "it's open"
    folder.mkdir(mode=0o755)
    with Service(folder).wait_until_ready() as service:
        assert modes(folder)["."] == "755"
        assert modes(folder)["log.db"] == "600"
        (command,) = [line.split("`")[1] for line in service.log.splitlines() if "its mode is 755" in line]
        (folder / "log.db").chmod(0o644)
        assert service.stop() == 0
    subprocess.run(json.loads(f'"{command}"'), shell=True, check=True)  # the log is of JSON
    assert modes(folder)["."] == "700"
    assert set(modes(folder).values()) == {"700", "600"}
    with Service(folder).wait_until_ready() as service:
        assert "its mode is" not in service.log


def test_a_restore_into_an_open_folder_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Service(tmp_path / "data").wait_until_ready() as service:
        service.kill()
    (tmp_path / "open").mkdir(mode=0o2770)
    run("restore", copied(tmp_path / "data", tmp_path / "copy"), tmp_path / "open")
    assert f"`chmod -R go= {tmp_path / 'open'}` stops that" in capsys.readouterr().err
    assert modes(tmp_path / "open")["log.db"] == "600"
