"""How long work shares the event loop with other requests: in slices on the loop, or in a thread that lets it go first.

One thread serves everybody, so no request may occupy it for long. Work with many parts rests between them. A single
long part goes to a thread, in calls that release the GIL now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

SLICE_SECONDS = 0.005
_UNITS = 1_024
"""Features between two looks at the clock. A look for each event would take as long as decoding it."""
_EVENT = 8
"""Fixed cost of an event, in features."""
WIDE = 4_096
"""Events with at least so many features are handled in a thread."""


class Slices:
    """Work that rests after every SLICE_SECONDS: `if slices.spent(len(x)): await slices.rest()`."""

    __slots__ = ("_left", "_until")

    def __init__(self) -> None:
        self._left = _UNITS
        self._until = time.perf_counter() + SLICE_SECONDS

    def spent(self, features: int) -> bool:
        """Whether it is time to rest, after another event of so many features or of four times as many bytes."""
        self._left -= _EVENT + features
        if self._left > 0:
            return False
        self._left = _UNITS
        return time.perf_counter() >= self._until

    async def rest(self) -> None:
        """Let the loop serve others."""
        await asyncio.sleep(0)
        self._until = time.perf_counter() + SLICE_SECONDS


async def worked(long: bool, work: Callable[..., T], *args: Any) -> T:
    """The result of `work`. If it takes long, it runs in a thread."""
    return await asyncio.to_thread(work, *args) if long else work(*args)


NICE = 10
_left: SimpleQueue[Any] = SimpleQueue()
_frees = threading.Lock()


def let_go(thing: Any) -> None:
    """Free a large object in a thread: freeing a million names takes 30 ms. The caller must hold its last reference."""
    if sys.is_finalizing():
        return  # Python frees everything now
    _start()
    _left.put(thing)


def let_go_all(items: list[Any]) -> None:
    """Empty a list, and free its items in a thread. Others may still refer to the list, as an error's traceback
    does."""
    if sys.is_finalizing():
        return
    _start()
    rest = [items.copy()]
    items.clear()
    _left.put(rest.pop())  # else this frame could hold the last reference


class Collecting:
    """Turns the garbage collector on again when it is freed. `let_go` it after the objects that the collector should
    not scan."""

    def __del__(self) -> None:
        gc.enable()


def _start() -> None:
    if _frees.acquire(blocking=False):  # the thread keeps it for ever, so there is only one
        threading.Thread(target=_free, name="logstep-free", daemon=True).start()


def _free() -> None:
    _stand_back()
    while True:
        _left.get()


def background(name: str) -> ThreadPoolExecutor:
    """Threads that run when the event loop does not need the processor. They read bodies and make long replies, which
    can wait a moment; a prediction cannot."""
    return ThreadPoolExecutor(thread_name_prefix=name, initializer=_stand_back)


def _stand_back() -> None:
    if sys.platform == "linux":  # elsewhere this would slow the whole process
        with contextlib.suppress(OSError):  # a sandbox may forbid it; all works without
            os.nice(NICE)
