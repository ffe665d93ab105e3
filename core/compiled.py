"""How the kernels are compiled: numba, without the GIL, without fast-math, kept on disk where that is possible.

fast-math would let the compiler reorder and fuse operations, and the weights would no longer equal river's.

A cache that cannot be written (a read-only container), was made by another processor or is damaged costs compile time
and never the start. numba's own cache refuses a folder it cannot write to, even to read from, and notices a changed
function only in the file where that function stands, not in the kernels of other files that inlined it: hence the
locator below.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import config
from numba.core.caching import InTreeCacheLocator

CORE = Path(__file__).resolve().parent
F = TypeVar("F", bound=Callable[..., Any])


@functools.cache
def _sources() -> str:
    """SHA-256 of every file of this package: a change in one makes the kernels of all of them stale."""
    digest = hashlib.sha256()
    for path in sorted(CORE.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


class CacheLocator(InTreeCacheLocator):  # type: ignore[misc]  # numba's types are left out, see pyproject.toml
    """The compiled kernels' folder: `NUMBA_CACHE_DIR` if set, else `__pycache__` beside the source."""

    def get_cache_path(self) -> str:
        return os.path.join(config.CACHE_DIR, "onestep") if config.CACHE_DIR else str(CORE / "__pycache__")

    def ensure_cache_path(self) -> None:
        try:
            super().ensure_cache_path()
        except OSError:
            if not os.path.isdir(self.get_cache_path()):
                raise  # there is nothing to read either

    def get_source_stamp(self) -> str:
        return _sources()

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> CacheLocator | None:
        if Path(py_file).resolve().parent != CORE:
            return None  # not ours: the next locator's
        locator: CacheLocator | None = super().from_function(py_func, py_file)
        return locator


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
            kernel: F = numba.njit(signature, cache=True, **_OPTIONS)(function)
        except Exception:
            # Whatever is wrong with the cache (no folder, a full disk, a damaged file), the kernel can be had without
            # it; what is wrong with the function itself is raised again here.
            kernel = numba.njit(signature, **_OPTIONS)(function)
        return kernel

    return compile_now
