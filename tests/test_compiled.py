"""The compile cache costs time, never the start. Each start is a process of its own, with a copy of some of `core`."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from effort import from_checks_on
from numba.core import config

import core
from core import compiled as core_compiled
from core import logistic

# A third file beside `compiled.py` and `logistic.py`: kernels that have those of another file inlined. All of `core`
# would compile for several times as long at each of these starts.
STEPS = """
from core.compiled import compiled
from core.logistic import residual, score, sigmoid


@compiled("void(int32[::1], float64[::1], uint8, float64[::1], float64)")
def learn(columns, values, y, weights, rate):
    g = residual(score(columns, values, weights, 0.0), y, 1.0)
    for i in range(len(columns)):
        weights[columns[i]] -= rate * (values[i] * g)


@compiled("float64(float64[::1])")
def largest(values):
    found = 0.0
    for value in values:
        found = max(found, sigmoid(value))
    return found


@compiled("float64(float64)")
def double(value):
    return 2.0 * value


@compiled("float64(float64)")
def half(value):
    return 0.5 * value
"""

START = """
import json, sys
from pathlib import Path
import numpy as np
from numba.core.registry import CPUDispatcher
import core, core.logistic, core.steps

columns, weights = np.arange(3, dtype=np.int32), np.zeros(3)
for y in (1, 0, 1):
    core.steps.learn(columns, np.array([1.5, -2.0, 0.1]), y, weights, core.steps.half(core.steps.double(0.3)))
kernels = {}
for module in (core.logistic, core.steps):
    for name, kernel in vars(module).items():
        if isinstance(kernel, CPUDispatcher) and kernel.__module__ == module.__name__:
            kernels[f"{module.__name__}.{name}"] = sum(kernel.stats.cache_hits.values())
where = str(Path(core.__file__).resolve().parent.parent)
result = [*weights.tolist(), core.steps.largest(weights)]
print(json.dumps({"result": result, "kernels": kernels, "where": where}))
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
        """Import the package, learn with it, and return each kernel's number of cache hits: 1 loaded, 0 compiled.

        Whatever became of the cache, the weights are the right ones and nothing is complained about.
        """
        variables = {n: value for n, value in os.environ.items() if not n.startswith(("NUMBA", "PYTHON", "CORE_"))}
        variables |= {
            "PYTHONPATH": str(self.root),
            "HOME": str(self.root / "home"),
            "XDG_CACHE_HOME": "",
            "NUMBA_CACHE_DIR": str(self.cache),
            **environment,
        }
        done = subprocess.run(
            [sys.executable, "-c", script],
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
        assert result["result"] == right_result()
        kernels: dict[str, int] = result["kernels"]
        return kernels

    def files(self, suffix: str) -> dict[Path, tuple[bytes, int]]:
        """Contents and time of change of every file of the cache that ends so."""
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in self.cache.rglob(f"*{suffix}")}


def kept(folder: Path) -> dict[Path, int]:
    """How many kernels are kept in each of the folders below one."""
    return Counter(path.parent for path in folder.rglob("*.nbc"))


def right_result() -> list[float]:
    """What `START` computes, from the kernels of the package itself."""
    columns, values, weights = np.arange(3, dtype=np.int32), np.array([1.5, -2.0, 0.1]), np.zeros(3)
    for y in (1, 0, 1):
        g = logistic.residual(logistic.score(columns, values, weights, 0.0), y, 1.0)
        for i in range(3):
            weights[i] -= 0.3 * (values[i] * g)
    return [*weights.tolist(), max(logistic.sigmoid(w) for w in weights)]


def copy_package(root: Path) -> Installation:
    package = root / "core"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for name in ("compiled.py", "logistic.py"):
        shutil.copy(Path(core.__file__).with_name(name), package)
    (package / "steps.py").write_text(STEPS)
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


@from_checks_on
def test_a_second_start_with_a_good_cache_compiles_nothing(installation: Installation) -> None:
    before = installation.files(".nbc") | installation.files(".nbi")
    kernels = installation.start()
    assert set(kernels.values()) == {1}
    assert {name.rpartition(".")[0] for name in kernels} == {"core.logistic", "core.steps"}
    assert installation.files(".nbc") | installation.files(".nbi") == before
    assert len(before) == 2 * len(kernels)


@from_checks_on
def test_a_good_cache_is_used_where_it_cannot_be_written_to(installation: Installation) -> None:
    before = installation.files(".nbc") | installation.files(".nbi")
    assert set(installation.start(READ_ONLY + START).values()) == {1}
    assert installation.files(".nbc") | installation.files(".nbi") == before


@from_checks_on
def test_a_start_with_no_folder_to_keep_kernels_in_compiles_and_runs(tmp_path: Path) -> None:
    installation = copy_package(tmp_path)
    (tmp_path / "file").write_text("a regular file has no folders in it, not even for root")
    nowhere = str(tmp_path / "file" / "cache")
    kernels = installation.start(NUMBA_CACHE_DIR=nowhere, XDG_CACHE_HOME=nowhere, HOME=nowhere)
    assert set(kernels.values()) == {0}
    assert kept(tmp_path) == {}


@from_checks_on
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


@from_checks_on
def test_a_changed_line_in_one_file_makes_the_kernels_of_every_file_stale(installation: Installation) -> None:
    with (installation.root / "core" / "logistic.py").open("a") as file:
        file.write("# The kernels of other files may have this file's functions inlined.\n")
    assert set(installation.start().values()) == {0}
    assert set(installation.start().values()) == {1}  # and the new ones are kept


# -- where they are kept


@from_checks_on
def test_kernels_are_kept_in_the_users_cache_folder_and_never_in_the_package(
    installation: Installation, tmp_path: Path
) -> None:
    shutil.rmtree(installation.cache)
    compiled = installation.start(NUMBA_CACHE_DIR="", HOME=str(tmp_path))
    folder = tmp_path / ".cache" / "logstep"
    assert kept(tmp_path) == {next(folder.iterdir()): len(compiled)}
    assert kept(installation.root) == {}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


class Folders:
    """The folders that may be asked for, none of which is there yet."""

    def __init__(self, folder: Path) -> None:
        self.named, self.user, self.other = folder / "named", folder / "user", folder / "other"

    def found(self) -> tuple[Path, bool] | None:
        """The one that is used, and whether kernels can be kept in it."""
        cache = core_compiled.cache.__wrapped__()
        return cache and (cache.folder.parent, cache.writable)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    folders = Folders(tmp_path)
    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folders.user))
    monkeypatch.setenv("CORE_KERNELS_ELSE", str(folders.other))
    return folders


def test_the_users_cache_folder_comes_before_another_and_one_that_is_named_before_both(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert folders.found() == (folders.user / "logstep", True)
    assert not folders.other.exists()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/folders/do/not/count")
    monkeypatch.setenv("HOME", str(folders.user / "home"))
    assert folders.found() == (folders.user / "home" / ".cache" / "logstep", True)
    monkeypatch.setattr(config, "CACHE_DIR", str(folders.named))
    assert folders.found() == (folders.named / "logstep", True)


def test_where_the_user_has_no_folder_the_other_is_used_and_without_that_none(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders.user.touch()  # a file has no folders in it, not even for root
    assert folders.found() == (folders.other, True)
    monkeypatch.delenv("CORE_KERNELS_ELSE")
    assert folders.found() is None


def test_a_cache_folder_that_others_may_write_to_is_not_used(folders: Folders) -> None:
    """Else they would say what code runs."""
    (folders.user / "logstep").mkdir(parents=True)
    for mode in (0o777, 0o770, 0o702):
        (folders.user / "logstep").chmod(mode)
        assert folders.found() == (folders.other, True)
    (folders.user / "logstep").chmod(0o755)
    assert folders.found() == (folders.user / "logstep", True)


def test_neither_is_one_that_is_a_link_or_another_users(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    folders.user.mkdir()
    folders.named.mkdir()
    (folders.user / "logstep").symlink_to(folders.named)
    assert folders.found() == (folders.other, True)
    (folders.user / "logstep").unlink()
    assert folders.found() == (folders.user / "logstep", True)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert folders.found() is None


def test_kernels_of_versions_made_long_ago_are_removed(folders: Folders) -> None:
    (folders.user / "logstep" / "somebody else's").mkdir(parents=True)
    old = [folders.user / "logstep" / f"{i:016x}" for i in range(20)]
    for age, folder in enumerate(old):
        folder.mkdir()
        os.utime(folder, (1e9 + age, 1e9 + age))
    folders.found()
    assert [folder.is_dir() for folder in old] == [False] * 5 + [True] * 15
    assert (folders.user / "logstep" / "somebody else's").is_dir()
    (old[0]).mkdir()
    folders.found()
    assert old[0].is_dir()  # this version is not new any more
