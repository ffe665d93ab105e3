"""How long work lets others be served meanwhile: in slices on the event loop, or in a thread.

Everybody is served by one thread, so nothing that is asked may keep it for long in one go. What is long because it has
many parts rests between them; what is long in itself goes to a thread, in calls that let go of the GIL now and then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

SLICE_SECONDS = 0.005
_UNITS = 1_024
"""Features after which the clock is looked at: for each event, that would take as long as to decode it."""
_EVENT = 8
"""What an event takes besides its features, in features."""
WIDE = 4_096
"""Features of an event from which on it is worked on in a thread."""


class Slices:
    """Work that rests after every SLICE_SECONDS: `if slices.spent(len(x)): await slices.rest()`."""

    __slots__ = ("_left", "_until")

    def __init__(self) -> None:
        self._left = _UNITS
        self._until = time.perf_counter() + SLICE_SECONDS

    def spent(self, features: int) -> bool:
        """Whether it is time to rest after another event of so many features, or of four times as many bytes."""
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
    """What `work` returns; in a thread where it takes long."""
    return await asyncio.to_thread(work, *args) if long else work(*args)
