"""How the kernels are compiled: numba, without the GIL, without fast-math, kept on disk where that is possible.

fast-math would let the compiler reorder and fuse operations, and the weights would no longer equal river's.

A cache that cannot be written (a read-only container), was made by another processor or is damaged costs compile time
and never the start. numba's own cache refuses a folder it cannot write to, even to read from, and notices a changed
function only in the file where that function stands, not in the kernels of other files that inlined it. And it keeps
what it compiled beside the source, where an uninstaller leaves it: a folder `core` with nothing in it that hides the
package of the next installation. Hence the locator below.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numba
from numba.core import config
from numba.core.caching import InTreeCacheLocator

CORE = Path(__file__).resolve().parent
ELSE = "CORE_KERNELS_ELSE"
"""The environment's name for a folder to keep kernels in where the user has none that can be used. To be set before
this package is imported."""
KEPT_VERSIONS = 16
F = TypeVar("F", bound=Callable[..., Any])


class Cache(NamedTuple):
    """The folder that has the kernels of this version, and whether others can be kept in it."""

    folder: Path
    writable: bool


@functools.cache
def cache() -> Cache | None:
    """Where the kernels are kept: `NUMBA_CACHE_DIR` if it is set, else the user's cache folder (`XDG_CACHE_HOME`, or
    `~/.cache`), else the folder that `CORE_KERNELS_ELSE` names. None: nowhere.

    What is kept is code, and who can write to the folder decides what runs. One that was not named for this is used
    only if it is the user's own and nobody else may write to it.
    """
    readable = None
    for folder in _folders():
        kernels = folder / _version()
        if _can_be_kept_in(folder):
            return Cache(kernels, writable=True)
        if kernels.is_dir():
            readable = readable or Cache(kernels, writable=False)
    return readable


def _folders() -> Iterator[Path]:
    if config.CACHE_DIR:
        yield Path(config.CACHE_DIR, "logstep")
        return
    named = os.environ.get("XDG_CACHE_HOME", "")
    users = named if os.path.isabs(named) else os.path.expanduser("~/.cache")
    for folder in (os.path.join(users, "logstep"), os.environ.get(ELSE, "")):
        if os.path.isabs(folder) and _is_own(Path(folder)):
            yield Path(folder)


def _is_own(folder: Path) -> bool:
    """Make a folder where there is none; whether it is this user's, and no other's to write to."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return False
    others = stat.S_IWGRP | stat.S_IWOTH
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & others


def _can_be_kept_in(folder: Path) -> bool:
    """Make a folder for the kernels of this version; whether it can be written to."""
    kernels = folder / _version()
    try:
        if not kernels.is_dir():
            kernels.mkdir(parents=True, exist_ok=True)
            _remove_old(folder)
        tempfile.TemporaryFile(dir=kernels).close()
    except OSError:
        return False
    return True


def _remove_old(folder: Path) -> None:
    """Remove the kernels of versions that were made long ago."""
    made = {}
    for version in folder.iterdir():
        with contextlib.suppress(OSError):  # another process has removed it
            if re.fullmatch("[0-9a-f]{16}", version.name):
                made[version] = version.stat().st_mtime
    for version in sorted(made, key=made.__getitem__)[:-KEPT_VERSIONS]:
        shutil.rmtree(version, ignore_errors=True)


@functools.cache
def _version() -> str:
    """Of every file of this package, of numba and of Python: a change in one makes the kernels of all of them stale."""
    digest = hashlib.sha256(f"{numba.__version__} {sys.version}".encode())
    for path in sorted(CORE.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


class CacheLocator(InTreeCacheLocator):  # type: ignore[misc]  # numba's types are left out, see pyproject.toml
    """The compiled kernels' folder, for numba."""

    def get_cache_path(self) -> str:
        found = cache()
        return str(found.folder) if found else os.devnull  # the second is not asked for: see `compiled`

    def ensure_cache_path(self) -> None:
        """It is there."""

    def get_source_stamp(self) -> str:
        return _version()

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> CacheLocator | None:
        return cls(py_func, py_file) if Path(py_file).resolve().parent == CORE else None  # else the next locator's


if not config.CACHE_LOCATOR_CLASSES:
    config.CACHE_LOCATOR_CLASSES = (
        "core.compiled.CacheLocator,UserProvidedCacheLocator,InTreeCacheLocator,UserWideCacheLocator"
    )


# A division by zero gives infinity or NaN, as everywhere in numpy, and a step that leaves such a number is not taken. A
# check for it in each loop would keep the compiler from making vector instructions of the loop.
#
# No kernel makes an array, and none counts references: whoever calls one holds its arrays. Counting is atomic, and at
# each call from one kernel to another took more time than the kernel: lines of NDJSON are read in half the time
# without, and Adam steps in half. A kernel that needs room is given it.
_OPTIONS = {"_nrt": False, "nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}


def compiled(signature: str) -> Callable[[F], F]:
    """Compile a function for `signature` now, or load it from the cache.

    The plain Python function stays reachable as `.py_func`.
    """

    def compile_now(function: F) -> F:
        try:
            kernel: F = numba.njit(signature, cache=cache() is not None, **_OPTIONS)(function)
        except Exception:
            # Whatever is wrong with the cache (no folder, a full disk, a damaged file), the kernel can be had without
            # it; what is wrong with the function itself is raised again here.
            kernel = numba.njit(signature, **_OPTIONS)(function)
        return kernel

    return compile_now
