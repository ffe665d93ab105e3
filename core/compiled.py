"""Compiles the kernels with numba: without the GIL, without fast-math, and cached on disk if possible.

fast-math would let the compiler reorder and fuse operations, and the weights would no longer equal river's.

A bad cache (read-only, damaged, or from another processor) costs compile time, but never stops the start.

numba's own cache has three faults, so there is a locator below:

- It does not read a folder that it cannot write to.
- It sees a changed function only in its own file, not in kernels of other files that inlined it.
- It writes beside the source. An uninstaller leaves those files, and the empty package `core` that remains hides the
  next installation's.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import os
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
from numba.extending import register_jitable

CORE = Path(__file__).resolve().parent
ELSE = "CORE_KERNELS_ELSE"
"""The environment variable with the folder for kernels if the user's cache folder cannot be used. Set it before this
package is imported."""
KEPT_VERSIONS = 16
F = TypeVar("F", bound=Callable[..., Any])


class Cache(NamedTuple):
    """The folder with the kernels of this version, and whether it can be written to."""

    folder: Path
    writable: bool


@functools.cache
def cache() -> Cache | None:
    """The folder for kernels: `NUMBA_CACHE_DIR` if set, else the user's cache folder (`XDG_CACHE_HOME`, or
    `~/.cache`), else the folder in `CORE_KERNELS_ELSE`. None if no folder can be used.

    The folder contains code, so whoever can write to it decides what runs. Every folder but `NUMBA_CACHE_DIR` must
    belong to the user, and nobody else may write to it.
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
    """Make the folder if it is missing. Returns whether this user owns it and nobody else may write to it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return False
    others = stat.S_IWGRP | stat.S_IWOTH
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & others


def _can_be_kept_in(folder: Path) -> bool:
    """Make a folder for this version's kernels. Returns whether it can be written to."""
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
    """Remove the kernels of all but the newest KEPT_VERSIONS versions."""
    made = {}
    for version in folder.glob("[0-9a-f]" * 16):
        with contextlib.suppress(OSError):  # another process has removed it
            made[version] = version.stat().st_mtime
    for version in sorted(made, key=made.__getitem__)[:-KEPT_VERSIONS]:
        shutil.rmtree(version, ignore_errors=True)


@functools.cache
def _version() -> str:
    """A hash of this package's files and of the versions of numba and Python. If one changes, all kernels are stale."""
    digest = hashlib.sha256(f"{numba.__version__} {sys.version}".encode())
    for path in sorted(CORE.rglob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


_files: set[str] = set()
"""The files whose functions `compiled` compiles."""


class CacheLocator(InTreeCacheLocator):  # type: ignore[misc]  # numba's types are left out, see pyproject.toml
    """Tells numba where the compiled kernels are."""

    def get_cache_path(self) -> str:
        found = cache()
        return str(found.folder) if found else os.devnull  # without a folder, `compiled` turns the cache off

    def ensure_cache_path(self) -> None:
        """Nothing to do: `cache` has made the folder."""

    def get_source_stamp(self) -> str:
        """What the kernels of a file are made of: a file outside this package calls kernels of this one and its own."""
        file = Path(self._py_file).resolve()
        return _version() + ("" if file.is_relative_to(CORE) else hashlib.sha256(file.read_bytes()).hexdigest()[:16])

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> CacheLocator | None:
        return cls(py_func, py_file) if py_file in _files else None  # None: numba tries the next


if not config.CACHE_LOCATOR_CLASSES:
    config.CACHE_LOCATOR_CLASSES = (
        "core.compiled.CacheLocator,UserProvidedCacheLocator,InTreeCacheLocator,UserWideCacheLocator"
    )


# A division by zero gives infinity or NaN, as in numpy, and the learner then undoes the step. A check in each loop
# would keep the compiler from vectorising it.
#
# Kernels make no arrays and count no references: the caller owns the arrays and passes working space. Atomic reference
# counts, at each call from one kernel to another, took longer than the kernels. Without them, reading NDJSON lines and
# Adam steps take half the time.
_OPTIONS = {"_nrt": False, "error_model": "numpy", "no_cfunc_wrapper": True}


def compiled(signature: Any, nogil: bool = True) -> Callable[[F], F]:
    """Compile a function that Python calls for `signature` (text or numba types) now, or load it from the cache. nogil:
    whether it runs without the GIL; to give that away and take it back costs 40 ns a call."""

    options = _OPTIONS | {"nogil": nogil}

    def compile_now(function: F) -> F:
        _files.add(inspect.getfile(function))
        try:
            kernel: F = numba.njit(signature, cache=cache() is not None, **options)(function)
        except Exception:
            # If the cache is at fault (no folder, a full disk, a damaged file), compiling without it succeeds. If the
            # function is at fault, the error is raised again here.
            kernel = numba.njit(signature, **options)(function)
        return kernel

    return compile_now


part_of_kernels: Callable[[F], F] = register_jitable(no_cfunc_wrapper=True, _nrt=False, error_model="numpy")
"""For a function that only kernels call: it is compiled when the first kernel that calls it is, once for all of them,
and without what Python needs to call it, which takes as long to compile again. Python calls the plain function."""
