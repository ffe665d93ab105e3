"""Data folders as each version of the format left them (tests/golden/write.py): later ones open them, to the bit."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from examples import opened
from golden.write import SPECS, events
from processes import Service, copied, replayed_elsewhere

from service.commands.inspect import examine
from service.storage.log import FORMAT

GOLDEN = sorted((Path(__file__).parent / "golden").glob("format-*"))


@pytest.fixture(params=GOLDEN, ids=lambda folder: folder.name)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A copy of a folder, and what it has."""
    return copied(request.param / "data", tmp_path / "data"), json.loads((request.param / "expected.json").read_text())


def states(expected: dict[str, Any]) -> dict[str, tuple[int, str]]:
    return {name: (model["seq"], model["sha256"]) for name, model in expected["models"].items()}


def version(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "log.db")) as db:
        found: int = db.execute("PRAGMA user_version").fetchone()[0]
    return found


def test_there_is_a_folder_of_every_format() -> None:
    assert [folder.name for folder in GOLDEN] == [f"format-{number}" for number in range(1, FORMAT + 1)]


def test_a_folder_opens_with_the_weights_that_its_version_had(golden: tuple[Path, dict[str, Any]]) -> None:
    folder, expected = golden
    assert asyncio.run(opened(folder)) == states(expected)
    assert version(folder) == FORMAT
    assert examine(folder).wrong == []


def test_its_log_alone_gives_the_same_weights(golden: tuple[Path, dict[str, Any]]) -> None:
    folder, expected = golden
    with closing(sqlite3.connect(folder / "log.db", isolation_level=None)) as db:
        assert db.execute("SELECT count(*) FROM snapshots").fetchone()[0] >= len(expected["models"])
        db.execute("DELETE FROM snapshots")
    assert replayed_elsewhere(folder) == expected["models"]
    assert asyncio.run(opened(folder)) == states(expected)


def test_it_is_served_and_goes_on(golden: tuple[Path, dict[str, Any]]) -> None:
    folder, expected = golden
    with Service(folder).wait_until_ready() as service:
        for name in ("default", *SPECS):
            again, new = service.learn(events(0, 1) + events(130, 1), name)
            assert (again["duplicate"], again["seq"]) == (True, 1)  # ids have come along
            assert (new["duplicate"], new["seq"]) == (False, 131)
        for place, id_ in enumerate(expected["waiting"]):
            assert service.learn([{"id": id_, "y": 1}], "joined")[0]["seq"] == 1 + place
        state = service.get("/models/default")
    assert replayed_elsewhere(folder)["default"] == {"seq": state["seq"], "sha256": state["sha256"]}


def test_a_format_of_the_future_is_refused_and_left_alone(golden: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = golden
    with closing(sqlite3.connect(folder / "log.db", isolation_level=None)) as db:
        db.execute(f"PRAGMA user_version = {FORMAT + 1}")
    refusal = asyncio.run(opened(folder))
    assert f"was written by a newer onestep (format {FORMAT + 1}, this one knows {FORMAT})" in str(refusal)
    assert version(folder) == FORMAT + 1
