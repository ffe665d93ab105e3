"""How long work shares the event loop with other requests: in slices on the loop, or in a thread.

One thread serves everybody, so no request may occupy it for long. Work with many parts rests between them. A single
long part goes to a thread, in calls that release the GIL now and then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
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
