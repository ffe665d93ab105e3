"""The one thread that accesses the disk, and the store that it has open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from service import errors
from service.storage.store import Store

T = TypeVar("T")
P = ParamSpec("P")
_END = object()


class Disk:
    """Runs functions of the store in its thread, one at a time. `failed` learns of the first StorageFailed."""

    def __init__(self, failed: Callable[[errors.LogstepError], None]) -> None:
        # At the priority of the event loop: behind it, learning starves beside predictions and other processes.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="logstep-store")
        self._failed = failed
        self._store: Store | None = None

    @property
    def store(self) -> Store:
        """The open store. Raises NotReady before `open`."""
        if self._store is None:
            raise errors.NotReady(state="starting")
        return self._store

    async def open(self, folder: Path) -> None:
        self._store = await self.end(self.begin(partial(Store, folder)))

    async def run(self, function: Callable[Concatenate[Store, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of a function that takes the store first."""
        return await self.end(self.begin(partial(function, self.store, *args, **kwargs)))

    async def step(self, pieces: Iterator[Any]) -> bool:
        """Do the next piece of some work. Whether there was one."""
        return await self.end(self.begin(partial(next, pieces, _END))) is not _END

    def begin(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Begin what `end` waits for."""
        return asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def end(self, begun: asyncio.Future[T]) -> T:
        try:
            return await begun
        except errors.StorageFailed as failure:
            self._failed(failure)
            raise

    async def close(self) -> None:
        """Close the store and end the thread."""
        if self._store is not None:
            await self.run(Store.close)
        self._thread.shutdown()
