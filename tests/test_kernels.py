"""What a service says of compiled kernels, and where it keeps them: never in its package."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from effort import from_checks_on
from forked import clean_environment, serve
from harness import LOGSTEP, running
from patience import eventually

from core import compiled
from service.commands import kernels

LEFT_OUT = "logistic.sigmoid-*"
"""A kernel that is compiled in a moment."""


@pytest.fixture
def kept() -> Path:
    """The folder with the kernels of these tests, all of them."""
    import core.auto  # noqa: F401

    cache = compiled.cache()
    assert cache is not None
    return cache.folder


def starts(data: Path, **environment: str) -> str:
    """What a service says that starts with an environment, until it listens."""
    log = data.parent / "said"
    environment = clean_environment() | environment
    with log.open("wb") as file, running([LOGSTEP, *serve(data)], stderr=file, env=environment) as service:
        eventually(lambda: b"logstep serves" in log.read_bytes() or service.poll() is not None, "the service to listen")
    return log.read_text()


@from_checks_on
def test_a_service_whose_user_has_no_folder_keeps_kernels_in_its_data_folder_and_says_so(
    kept: Path, tmp_path: Path
) -> None:
    nowhere = {"HOME": "/dev/null", "XDG_CACHE_HOME": ""}
    mine = tmp_path / "data" / "kernels" / kept.name
    shutil.copytree(kept, mine, ignore=shutil.ignore_patterns(LEFT_OUT))
    said = starts(tmp_path / "data", **nowhere)
    assert f"compiling, which may take a minute; {mine} keeps the result for the next start\n" in said
    assert len(list(mine.glob(LEFT_OUT))) == 2
    assert "compiling" not in starts(tmp_path / "data", **nowhere)


def test_what_cannot_be_kept_is_said_with_the_setting_that_helps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for cache, where in (
        (None, "no folder is writable"),
        (compiled.Cache(Path("/read-only"), writable=False), "/read-only is not writable"),
    ):
        monkeypatch.setattr(compiled, "cache", lambda cache=cache: cache)
        compiling = kernels.Compiling()
        compiling.on_start(None)
        compiling.on_start(None)
        assert capsys.readouterr().err == (
            f"logstep: compiling, which may take a minute at each start: {where}, so the result "
            "cannot be kept. Set NUMBA_CACHE_DIR to a writable folder\n"
        )
