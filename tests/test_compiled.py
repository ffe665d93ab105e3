"""The compile cache costs time, never the start. Each start is a process of its own, with a copy of `core`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import core
from core import Learner, Spec

EVENTS: list[tuple[dict[str, Any], int]] = [({"a": 1.5, "city": "Rome"}, 1), ({"b": -2.0, "a": 0.1}, 0)]

START = """
import json, sys
from pathlib import Path
from numba.core.registry import CPUDispatcher
import core, core.features, core.learner, core.logistic, core.progressive

learner = core.Learner(core.Spec(learning_rate=0.3, l1=0.01))
for x, y in json.loads(sys.argv[1]):
    learner.learn_one(x, y)
kernels = {}
for module in (core.features, core.logistic, core.progressive):
    for name, kernel in vars(module).items():
        if isinstance(kernel, CPUDispatcher) and kernel.__module__ == module.__name__:
            kernels[f"{module.__name__}.{name}"] = sum(kernel.stats.cache_hits.values())
where = str(Path(core.__file__).resolve().parent.parent)
print(json.dumps({"sha256": learner.sha256(), "kernels": kernels, "where": where}))
"""

READ_ONLY = """
import errno, tempfile

def refuse(*args, **kwargs):
    raise OSError(errno.EROFS, "Read-only file system")

tempfile.TemporaryFile = refuse  # what numba tries out a folder with; the one who runs the tests may write everywhere
"""


@dataclass(frozen=True)
class Installation:
    """A copy of the package in a folder of its own, and its cache."""

    root: Path

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def start(self, script: str = START, **environment: str) -> dict[str, int]:
        """Import the package, learn, and return each kernel's number of cache hits: 1 loaded, 0 compiled.

        Whatever became of the cache, the weights are the right ones and nothing is complained about.
        """
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA", "PYTHON"))}
        variables |= {
            "PYTHONPATH": str(self.root),
            "HOME": str(self.root / "home"),
            "XDG_CACHE_HOME": str(self.root / "home" / ".cache"),
            "NUMBA_CACHE_DIR": str(self.cache),
            **environment,
        }
        done = subprocess.run(
            [sys.executable, "-c", script, json.dumps(EVENTS)],
            env=variables,
            cwd=self.root,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert (done.returncode, done.stderr) == (0, "")
        result = json.loads(done.stdout)
        assert result["where"] == str(self.root.resolve())  # the copy was tested, not the package itself
        assert result["sha256"] == right_sha256()
        kernels: dict[str, int] = result["kernels"]
        return kernels

    def files(self, suffix: str) -> dict[Path, tuple[bytes, int]]:
        """Contents and time of change of every file of the cache that ends so."""
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in self.cache.rglob(f"*{suffix}")}


def right_sha256() -> str:
    learner = Learner(Spec(learning_rate=0.3, l1=0.01))
    for x, y in EVENTS:
        learner.learn_one(x, y)
    return learner.sha256()


def copy_package(root: Path) -> Installation:
    shutil.copytree(Path(core.__file__).parent, root / "core", ignore=shutil.ignore_patterns("__pycache__"))
    return Installation(root)


@pytest.fixture(scope="module")
def started_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Installation, Path]:
    """An installation whose kernels have been compiled into its cache, and a copy of it to return to."""
    folder = tmp_path_factory.mktemp("installation")
    installation = copy_package(folder / "root")
    assert set(installation.start().values()) == {0}
    shutil.copytree(installation.root, folder / "kept")
    return installation, folder / "kept"


@pytest.fixture
def installation(started_once: tuple[Installation, Path]) -> Installation:
    """The installation with its cache as the first start left it, at the same place each time."""
    installed, kept = started_once
    shutil.rmtree(installed.root)
    shutil.copytree(kept, installed.root)
    return installed


def test_a_second_start_with_a_good_cache_compiles_nothing(installation: Installation) -> None:
    before = installation.files(".nbc") | installation.files(".nbi")
    kernels = installation.start()
    assert set(kernels.values()) == {1}
    assert {name.rpartition(".")[0] for name in kernels} == {"core.features", "core.logistic", "core.progressive"}
    assert installation.files(".nbc") | installation.files(".nbi") == before
    assert len(before) == 2 * len(kernels)


def test_a_good_cache_is_used_where_it_cannot_be_written_to(installation: Installation) -> None:
    before = installation.files(".nbc") | installation.files(".nbi")
    assert set(installation.start(READ_ONLY + START).values()) == {1}
    assert installation.files(".nbc") | installation.files(".nbi") == before


def test_a_start_with_no_folder_to_keep_kernels_in_compiles_and_runs(tmp_path: Path) -> None:
    installation = copy_package(tmp_path)
    (tmp_path / "file").write_text("a regular file has no folders in it, not even for root")
    (tmp_path / "core" / "__pycache__").write_text("nor has this one")
    nowhere = str(tmp_path / "file" / "cache")
    kernels = installation.start(NUMBA_CACHE_DIR=nowhere, XDG_CACHE_HOME=nowhere, HOME=nowhere)
    assert set(kernels.values()) == {0}
    assert list(tmp_path.rglob("*.nb?")) == []


def test_a_start_with_a_damaged_cache_compiles_what_is_damaged_and_runs(installation: Installation) -> None:
    indexes = sorted(installation.files(".nbi"))
    damaged = 0
    # The damage of an index and of a kernel is found in different places: each kernel gets another one, the last none.
    for i, index in enumerate(indexes[:-1]):
        (kernel,) = index.parent.glob(f"{index.stem}.*.nbc")
        path = (index, kernel)[i % 2]
        content = path.read_bytes()
        path.write_bytes((content[: len(content) // 2], b"", b"\x80garbage" * 100, content[:-1])[i // 2 % 4])
        damaged += 1
    kernels = installation.start()
    assert damaged >= 8  # every damage of both
    assert sorted(kernels.values()) == [0] * damaged + [1]


def test_a_changed_line_in_one_file_makes_the_kernels_of_every_file_stale(installation: Installation) -> None:
    with (installation.root / "core" / "logistic.py").open("a") as file:
        file.write("# The kernels of other files may have this file's functions inlined.\n")
    assert set(installation.start().values()) == {0}
    assert set(installation.start().values()) == {1}  # and the new ones are kept
