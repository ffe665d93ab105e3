"""A log that goes from one machine to another whose C library rounds exp, log or pow otherwise.

The other machine is this one without fused multiply-add, which glibc may be told to leave out.
"""

from __future__ import annotations

import asyncio
import os
import platform
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from effort import from_checks_on
from golden.make import WITHOUT_FMA
from processes import running_engine, write_snapshots

from core import Spec
from core.arithmetic import arithmetic
from service.commands import cli
from service.commands.crosscheck import verdict
from service.events import Event
from service.learning import crosscheck, recovery
from service.storage import log, store
from service.storage.log import LogReader

MANY = 6_000
NAME = "clicks"

ON_GLIBC = platform.machine() == "x86_64" and platform.libc_ver()[0] == "glibc"
on_glibc = pytest.mark.skipif(
    not ON_GLIBC,
    reason="only glibc on x86-64 can be told to compute without fused multiply-add",
)


def without_fma(folder: Path) -> tuple[str, str, str]:
    """Learn on a folder on the other machine: its arithmetic, the SHA-256 of the model, and what was logged."""
    path = os.pathsep.join((str(Path(__file__).parent), str(Path(__file__).parent.parent)))
    env = {**os.environ, **WITHOUT_FMA, "PYTHONPATH": path}
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    digest, sha256 = done.stdout.split()
    return digest, sha256, done.stderr


async def learn(folder: Path, count: int, *, snapshot: bool = True) -> str:
    """Learn so many events more on a folder, and stop. Returns the SHA-256 of the model."""
    async with running_engine(folder) as engine:
        model, _ = await engine.create(NAME, Spec(rule="ftrl"))
        drawn = random.Random(model.learner.seq)
        for _ in range(count // 500):
            drawn_rows: list[dict[str, Any]] = [{"a": drawn.gauss(0, 1), "b": drawn.uniform(-3, 3)} for _ in range(500)]
            await engine.learn(NAME, [Event(x, int(x["a"] + x["b"] > 0)) for x in drawn_rows])
        if snapshot:
            await write_snapshots(engine)
        return model.learner.sha256()


def rows(folder: Path) -> list[tuple[int, str]]:
    """After which seq the model was learned with which arithmetic."""
    reader = LogReader(folder)
    try:
        (key,) = [model.key for model in reader.models() if model.name == NAME]
        return [(row.seq, row.digest) for row in reader.arithmetic(key)]
    finally:
        reader.close()


def inspected(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What `logstep inspect` prints of a whole folder."""
    assert cli.main(["inspect", str(folder)]) == 0
    return "".join(capsys.readouterr())


@pytest.fixture
def on_another_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have what follows run where the arithmetic has another digest."""

    def move(digest: str) -> None:
        for module in (store, recovery, log):
            monkeypatch.setattr(module, "arithmetic", lambda: digest)

    return move


def test_the_digest_is_made_at_once_and_is_always_the_same() -> None:
    first = arithmetic()
    arithmetic.cache_clear()
    began = time.process_time()
    assert arithmetic() == first
    assert time.process_time() - began < 0.02


def test_a_start_on_the_same_machine_notes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(learn(tmp_path, 500))
    asyncio.run(learn(tmp_path, 500))
    assert rows(tmp_path) == [(0, arithmetic())]
    assert "rounds" not in caplog.text
    assert crosscheck.check(tmp_path, NAME)["bits_may_differ_from"] is None


def test_what_each_machine_learned_is_told(
    tmp_path: Path,
    on_another_machine: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asyncio.run(learn(tmp_path, 500))
    here = arithmetic()
    on_another_machine("there")
    asyncio.run(learn(tmp_path, 500))
    assert "clicks from seq 501 on" in caplog.text
    assert "default" not in caplog.text.partition("before: ")[2], "it has learned nothing elsewhere"
    assert rows(tmp_path) == [(0, here), (500, "there")]
    assert crosscheck.check(tmp_path, NAME)["bits_may_differ_from"] == 1
    assert "clicks: events 1 to 500 were learned on a machine" in inspected(tmp_path, capsys)
    on_another_machine(here)
    assert crosscheck.check(tmp_path, NAME)["bits_may_differ_from"] == 501
    assert crosscheck.check(tmp_path, NAME, seq=500)["bits_may_differ_from"] is None
    asyncio.run(learn(tmp_path, 500))
    assert rows(tmp_path) == [(0, here), (500, "there"), (1_000, here)]
    assert "clicks: events 501 to 1,000 were learned on a machine" in inspected(tmp_path, capsys)


def test_events_after_the_last_snapshot_are_learned_anew_on_the_new_machine(
    tmp_path: Path, on_another_machine: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    asyncio.run(learn(tmp_path, 500))
    asyncio.run(learn(tmp_path, 500, snapshot=False))
    on_another_machine("there")
    asyncio.run(learn(tmp_path, 500, snapshot=False))
    assert "clicks from seq 501 on" in caplog.text
    assert [seq for seq, _ in rows(tmp_path)] == [0, 500]
    on_another_machine("a third one")
    asyncio.run(learn(tmp_path, 500))
    assert [digest for _, digest in rows(tmp_path)] == [arithmetic(), "a third one"]


def test_a_deleted_model_leaves_nothing_of_it(tmp_path: Path) -> None:
    async def deleted() -> None:
        async with running_engine(tmp_path) as engine:
            await engine.create(NAME, Spec())
            await engine.delete(NAME)
            while engine.disk.store.trimming.purge():
                pass

    asyncio.run(deleted())
    with closing(sqlite3.connect(tmp_path / "log.db")) as db:
        assert db.execute("SELECT count(*) FROM arithmetic").fetchone() == (1,), "that of the model default"


@pytest.mark.parametrize("equal", [True, False])
def test_a_cross_check_that_differs_says_that_nothing_need_be_damaged(equal: bool, tmp_path: Path) -> None:
    asyncio.run(learn(tmp_path, 500))
    report = crosscheck.check(tmp_path, NAME) | {"bits_may_differ_from": 301, "replay_equal": equal}
    told = verdict(report)
    assert ("from seq 301 on were learned on a machine" in told) is not equal
    assert ("NOT EQUAL" in told) is not equal


@on_glibc
@from_checks_on
def test_a_machine_without_fused_multiply_add_is_another_one(tmp_path: Path) -> None:
    """With enough events its models have other last bits, which is why all this is told."""
    asyncio.run(learn(tmp_path / "one", MANY))
    here, sha256 = arithmetic(), asyncio.run(learn(tmp_path / "whole", MANY))
    there, elsewhere, _ = without_fma(tmp_path / "whole elsewhere")
    if there == here:
        pytest.skip("this processor has no fused multiply-add, or this glibc cannot be told to leave it out")
    assert elsewhere != sha256
    _, _, logged = without_fma(tmp_path / "one")
    assert f"clicks from seq {MANY + 1} on" in logged
    assert rows(tmp_path / "one") == [(0, here), (MANY, there)]
    assert crosscheck.check(tmp_path / "one", NAME)["bits_may_differ_from"] == MANY + 1


if __name__ == "__main__":
    print(arithmetic(), asyncio.run(learn(Path(sys.argv[1]), MANY)))
