"""The README and the tutorial, run from top to bottom as a newcomer would, in an empty folder."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from effort import from_checks_on
from forked import clean_environment
from harness import Service, Start
from patience import PATIENCE

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text()
SERVE = "python3 -m venv .venv && .venv/bin/pip install -q --no-compile . && .venv/bin/logstep serve"
TESTS = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[dev]' && .venv/bin/pytest -q"


@dataclass(frozen=True)
class Step:
    """A block of shell, and the block after it: what the page says that it prints."""

    shell: str
    prints: str


def steps(page: str) -> Iterator[Step]:
    """Each block of shell with what it prints, if the page says so right after it."""
    for found in re.finditer(r"```sh\n(.*?)```\n(?:```(?:json)?\n(.*?)```\n)?", page, re.DOTALL):
        yield Step(found[1], found[2] or "")


def matches(says: str, printed: str) -> bool:
    """Whether a page says what was printed. `...` stands for anything, on a line of its own for any lines."""
    pattern = re.escape(says.strip()).replace(r"\.\.\.", ".*")
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder as a newcomer has it after the first line: the docs, and this environment as `.venv`."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    shutil.copytree(ROOT / "docs", folder / "docs")
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def run(shell: str, service: Service, folder: Path) -> str:
    """What a block of shell prints, on both its outputs, against a service on a port of its own."""
    shell = shell.replace("localhost:8000", f"localhost:{service.port}")
    shell = shell.replace("logstep replay", f"logstep replay --url http://localhost:{service.port}")
    shell = shell.replace("shop.py", f"shop.py http://localhost:{service.port}")
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail\n{shell}"],
        cwd=folder,
        env=clean_environment() | {"PYTHONUNBUFFERED": "1"},  # or what goes to a pipe comes last
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, (shell, done.stdout)
    return done.stdout


@from_checks_on
def test_the_readme_run_from_top_to_bottom_prints_what_it_says(start: Start, checkout: Path) -> None:
    service: Service | None = None
    for step in steps(README):
        if step.shell.strip() == SERVE:
            service = start(folder=checkout / "data")
        elif not step.shell.startswith(TESTS):  # they are what runs
            assert service is not None, step.shell
            printed = run(step.shell, service, checkout)
            assert step.prints, step.shell
            assert matches(step.prints, printed), (step.prints, printed)


@from_checks_on
def test_the_tutorial_run_from_top_to_bottom_prints_what_it_says(start: Start, checkout: Path) -> None:
    service = start(folder=checkout / "data")
    for step in steps(TUTORIAL):
        if step.shell.strip() == SERVE:
            continue
        if step.shell.startswith("kill"):
            service.process.kill()
            service.process.wait(PATIENCE)
            service = start(folder=checkout / "data")
            continue
        printed = run(step.shell, service, checkout)
        if step.prints:
            assert matches(step.prints, printed), (step.prints, printed)
    check = json.loads(run("curl -s localhost:8000/models/clicks/crosscheck", service, checkout))
    assert (check["equal"], check["max_ulp"]) == (True, 0)
    assert check["events"] == 1_001


def test_a_page_that_says_something_else_is_noticed() -> None:
    assert matches('{"seq":1,"sha256":"..."}', '{"seq":1,"sha256":"d3cd"}\n')
    assert matches("first\n...\nlast", "first\nsecond\nthird\nlast")
    assert not matches('{"seq":1}', '{"seq":2}')
    assert not matches("first", "first\nsecond")


def test_it_is_two_screens_long() -> None:
    assert len(README.splitlines()) <= 150
    assert len(README.encode()) <= 10_000


def test_its_test_command_is_that_of_the_checks() -> None:
    (command,) = (line for line in README.splitlines() if line.startswith(TESTS))
    assert command.partition(".venv/bin/pytest")[2].strip() in (ROOT / ".ci" / "run").read_text()
