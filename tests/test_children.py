"""Processes that others start: they end with them."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from effort import from_checks_on
from golden.make import EVENTS, HERE
from harness import running
from patience import PATIENCE
from processes import copied

from service.children import command
from service.storage.log import LogReader


@pytest.fixture
def question(tmp_path: Path) -> dict[str, Any]:
    """For a cross-check of a model as it stands in its log."""
    folder = copied(HERE / "data", tmp_path / "data")
    with closing(LogReader(folder)) as log:
        key = next(model.key for model in log.models() if model.name == "sgd")
    return {"folder": str(folder), "model": "sgd", "key": key, "seq": EVENTS, "bytes": 0}


@from_checks_on
@pytest.mark.parametrize("parent_lives", [True, False])
def test_a_cross_check_ends_when_nobody_waits_for_it(question: dict[str, Any], parent_lives: bool) -> None:
    ours, theirs = os.pipe()
    with running(command("service.learning.crosscheck"), stdin=ours, stdout=subprocess.PIPE) as child:
        os.close(ours)
        os.write(theirs, json.dumps(question).encode() + b"\n")
        if not parent_lives:
            os.close(theirs)  # as the end of the process that holds it does
        output = child.communicate(timeout=2 * PATIENCE)[0]
    if parent_lives:
        os.close(theirs)
        assert (child.returncode, json.loads(output)["equal"]) == (0, True)
    else:
        assert (child.returncode, output) == (1, b"")
