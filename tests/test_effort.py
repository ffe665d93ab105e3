"""The dial EFFORT: what quick, checks and long run of a file; and quick has an example of all that is promised."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from effort import from_checks_on

TESTS = Path(__file__).resolve().parent
TRIED = re.compile(r"\btest_\w+")

PROGRAM = """
from effort import amount, examples, few, from_checks_on, only_long
from hypothesis import given
from hypothesis import strategies as st
import pytest

@few(3)
@pytest.mark.parametrize("case", range(20))
def test_of_many_cases(case): pass

@from_checks_on
def test_that_takes_seconds(): pass

@only_long
def test_that_takes_minutes(): pass

tried = []

@examples(50)
@given(st.integers())
def test_examples(number): tried.append(number)

def test_amounts():
    assert amount(quick=1, checks=2, long=3) == AMOUNT
    assert len(tried) == EXAMPLES
"""


def outcome(folder: Path, effort: str, amount: int, examples: int) -> str:
    """The last line that pytest writes of the program above."""
    (folder / "test_program.py").write_text(f"AMOUNT, EXAMPLES = {amount}, {examples}\n{PROGRAM}")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "conftest",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(folder),
    ]
    options = ["-o", "markers=few(cases): see effort.py", "--strict-markers", "test_program.py"]
    env = {**os.environ, "EFFORT": effort, "PYTHONPATH": str(TESTS)}
    done = subprocess.run([*command, *options], cwd=folder, env=env, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip().rpartition("\n")[2]


@from_checks_on
def test_each_effort_runs_what_it_should(tmp_path: Path) -> None:
    assert outcome(tmp_path, "quick", 1, 5).startswith("5 passed, 2 skipped, 17 deselected")
    assert outcome(tmp_path, "checks", 2, 50).startswith("23 passed, 1 skipped")
    assert outcome(tmp_path, "long", 3, 500).startswith("24 passed")
    assert "EFFORT=fast: it can be quick, checks or long" in outcome(tmp_path, "fast", 0, 0)


def test_every_row_of_what_is_promised_has_an_example_that_runs(request: pytest.FixtureRequest) -> None:
    """Of each row, in one of the files that it names. Whether it is that very row's, only a reader can tell."""
    run, collected = set(), set()
    for item in request.session.items:
        collected.add(item.path.stem)
        marks = [*item.iter_markers("skipif")]
        if not any(mark.args[0] is True and str(mark.kwargs.get("reason", "")).startswith("EFFORT=") for mark in marks):
            run.add(item.path.stem)
    page = (TESTS.parent / "docs/guarantees.md").read_text()
    rows = [line.strip("| ").split("|") for line in page.splitlines() if line.startswith("|")]
    named = [set(TRIED.findall(cells[-1])) for cells in rows]
    promised = [files for files in named if files]
    assert len(promised) > 25
    if not set().union(*promised) <= collected:
        pytest.skip("some of the files were not collected")
    assert [files for files in promised if not files & run] == []
