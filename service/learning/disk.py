"""The one thread that accesses the disk, and the store that it has open."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from service import errors
from service.storage.store import Store

T = TypeVar("T")
P = ParamSpec("P")
_END = object()

GIVE_WAY_SECONDS = 0.001
"""How long the event loop gives way to a commit at most. A short one takes a third of that on a good disk."""
MOST_PASSED = 8
"""Most commits in a row that the loop does not give way to, after it has done so in vain."""


class Begun(Generic[T]):
    """Work for the thread, and what came of it."""

    __slots__ = ("_error", "_result", "_running", "_waits", "_work")

    def __init__(self, work: Callable[[], T]) -> None:
        self._work: Callable[[], T] | None = work
        self._running = threading.Lock()
        """Held until the work is over."""
        self._running.acquire()
        self._waits: asyncio.Future[None] | None = None
        """What the loop waits for, if it does."""
        self._result: T
        self._error: BaseException | None = None

    def do(self) -> None:
        """Do it, in the thread."""
        work, self._work = self._work, None  # what it refers to is not kept for longer
        assert work is not None  # noqa: S101  # it is done once
        try:
            self._result = work()
        except BaseException as error:
            self._error = error
        del work
        # First the lock is freed, then `_waits` is looked at. `outcome` sets `_waits` first, and then looks at the
        # lock. So one of them sees the other.
        self._running.release()
        if self._waits is not None:
            self._waits.get_loop().call_soon_threadsafe(_wake, self._waits)

    def give_way(self, seconds: float) -> bool:
        """Block the loop until it is over, at most so long. Whether it is over."""
        over = self._running.acquire(timeout=seconds)
        if over:
            self._running.release()
        return over

    async def outcome(self) -> T:
        """What came of it, when it is over."""
        if self._running.locked():
            self._waits = asyncio.get_running_loop().create_future()
            if self._running.locked():
                await self._waits
        if self._error is not None:
            raise self._error
        return self._result


def _wake(waits: asyncio.Future[None]) -> None:
    if not waits.done():  # who waited may have been cancelled
        waits.set_result(None)


class Disk:
    """Runs functions of the store in its thread, one at a time. `failed` learns of the first StorageFailed."""

    def __init__(self, failed: Callable[[errors.LogstepError], None]) -> None:
        self._failed = failed
        self._store: Store | None = None
        self._work: SimpleQueue[Begun[Any] | None] = SimpleQueue()
        # At the priority of the event loop: behind it, learning starves beside predictions and other processes.
        self._thread = threading.Thread(target=self._run, name="logstep-store", daemon=True)
        self._in_vain = self._passes = 0

    def _run(self) -> None:
        while (begun := self._work.get()) is not None:
            begun.do()

    @property
    def store(self) -> Store:
        """The open store. Raises NotReady before `open`."""
        if self._store is None:
            raise errors.NotReady(state="starting")
        return self._store

    async def open(self, folder: Path) -> None:
        self._thread.start()
        self._store = await self.end(self.begin(partial(Store, folder)))

    async def run(self, function: Callable[Concatenate[Store, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a function that takes the store first."""
        return await self.end(self.begin(partial(function, self.store, *args, **kwargs)))

    async def step(self, pieces: Iterator[Any]) -> bool:
        """Do the next piece of some work. Whether there was one."""
        return await self.end(self.begin(partial(next, pieces, _END))) is not _END

    def begin(self, work: Callable[[], T]) -> Begun[T]:
        """Begin what `end` waits for."""
        begun = Begun(work)
        self._work.put(begun)
        return begun

    def give_way(self, begun: Begun[Any]) -> None:
        """Let the thread have the GIL for a short commit: block the loop until it is over, for GIVE_WAY_SECONDS at
        most.

        A commit takes the GIL several times, after each wait for the disk. While the loop is busy, it never gets it in
        time. The loop frees the GIL between two callbacks, but takes it again before the thread has woken up. And
        Python only makes a thread hand the GIL over if it has not freed it for 5 ms, or however long
        `sys.setswitchinterval` says: so a shorter interval does not help. Beside 8 connections that predict as fast as
        they can, learning fell to a tenth of its rate.

        On a slow disk this would be in vain, and the loop would rest for nothing. So after each time in vain it passes
        more commits by, up to MOST_PASSED.
        """
        if self._passes:
            self._passes -= 1
        elif begun.give_way(GIVE_WAY_SECONDS):
            self._in_vain = 0
        else:
            self._in_vain = min(2 * self._in_vain + 1, MOST_PASSED)
            self._passes = self._in_vain

    async def end(self, begun: Begun[T]) -> T:
        try:
            return await begun.outcome()
        except errors.StorageFailed as failure:
            self._failed(failure)
            raise

    async def close(self) -> None:
        """Close the store and end the thread."""
        if self._store is not None:
            await self.run(Store.close)
        if self._thread.is_alive():
            self._work.put(None)
            self._thread.join()
