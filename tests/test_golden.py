"""A data folder as the format has it, with models whose weights never change (tests/golden/make.py)."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from effort import from_checks_on
from examples import opened
from golden import make
from golden.make import HERE, SPECS, WAITING, WITHOUT_FMA, events, events_of, pinned
from harness import Service
from processes import copied, replayed_elsewhere

from core.rules import RULES
from service.commands.inspect import examine
from service.storage.schema import FORMAT

EVENTS = len(events(0, scaled=False))

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc",
    reason="the weights are pinned for the C library glibc on x86-64: another may round pow and exp otherwise",
)


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    return copied(HERE / "data", tmp_path / "data")


def weights() -> dict[str, tuple[int, str]]:
    """seq and SHA-256 of the models that are pinned."""
    return {name: (EVENTS, pin["sha256"]) for name, pin in pinned().items()}


def run_sql(folder: Path, statement: str) -> None:
    with closing(sqlite3.connect(folder / "log.db", isolation_level=None)) as db:
        db.execute(statement)


def test_every_rule_is_pinned() -> None:
    assert pinned().keys() == SPECS.keys()
    assert SPECS.keys() >= RULES.keys()


def test_it_opens_with_the_weights_that_are_pinned(golden: Path) -> None:
    found = asyncio.run(opened(golden))
    assert isinstance(found, dict)
    assert found.items() >= weights().items()
    assert found.keys() == weights().keys() | {"default", "auto", "joined"}
    assert examine(golden).wrong == []


def test_its_log_alone_gives_the_same_weights(golden: Path) -> None:
    snapshots = {model.name: model.snapshots for model in examine(golden).models}
    assert all(snapshots[name] for name in (*SPECS, "auto"))
    with_snapshots = asyncio.run(opened(golden))
    run_sql(golden, "DELETE FROM snapshots")
    assert asyncio.run(opened(golden)) == with_snapshots
    replayed = {name: (model["seq"], model["sha256"]) for name, model in replayed_elsewhere(golden).items()}
    assert replayed == with_snapshots


@from_checks_on
def test_the_weights_are_the_same_on_a_processor_without_fused_multiplication(tmp_path: Path) -> None:
    """Of these events; of others one in some hundred is not, as with river."""
    command = [sys.executable, str(HERE / "make.py"), "--pinned"]
    told = subprocess.run(command, env={**os.environ, **WITHOUT_FMA}, check=True, stdout=subprocess.PIPE).stdout
    assert json.loads(told) == {name: pin["sha256"] for name, pin in pinned().items()}


def test_it_is_served_and_goes_on(golden: Path) -> None:
    with Service(golden).wait_until_ready() as service:
        for name, pin in pinned().items():
            first = events_of(name, pin["seed"])[0]
            again, new = service.learn([first, {**first, "id": "new"}], name)
            assert (again["duplicate"], again["seq"]) == (True, 1)  # ids have come along
            assert (new["duplicate"], new["seq"]) == (False, EVENTS + 1)
        for place, id_ in enumerate(WAITING):
            assert service.learn([{"id": id_, "y": 1}], "joined")[0]["seq"] == 2 + place
        state = service.get("/models/sgd")
    assert replayed_elsewhere(golden)["sgd"] == {"seq": state["seq"], "sha256": state["sha256"]}


def test_a_format_of_the_future_is_refused_and_left_alone(golden: Path) -> None:
    run_sql(golden, f"PRAGMA user_version = {FORMAT + 1}")
    before = (golden / "log.db").read_bytes()
    refusal = asyncio.run(opened(golden))
    assert f"was written by a newer logstep (format {FORMAT + 1}; this one reads {FORMAT})" in str(refusal)
    assert (golden / "log.db").read_bytes() == before


def test_a_folder_with_other_weights_is_not_put_in_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nor are they pinned."""
    here = copied(HERE, tmp_path / "golden")
    monkeypatch.setattr(make, "HERE", here)
    monkeypatch.setattr(make, "PINNED", here / "pinned.json")
    found = {name: pin["sha256"] for name, pin in pinned().items()} | {"adam": "0" * 64}
    monkeypatch.setattr(make, "write", lambda folder, pins: found)
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match="the weights of adam differ from the pinned ones; nothing was written"):
        make.make()
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before
