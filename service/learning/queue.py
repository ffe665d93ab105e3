"""The one queue of all models: what waits for the writer, and whether more is let in."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

from service import errors
from service.learning.models import Models
from service.learning.request import Items, Request, Result, Stream, settle
from service.learning.state import Lifecycle

IN_LINE = 8
"""Most arrays that wait for room in the queue."""
LINE_SECONDS = 2.0
"""How long they wait at most."""


class Queue:
    """Requests that wait, up to `limit` events and predictions."""

    def __init__(self, limit: int, models: Models, lifecycle: Lifecycle) -> None:
        self._limit = limit
        self._models = models
        self._lifecycle = lifecycle
        self._requests: deque[Request] = deque()
        self.events = 0
        """How many events and predictions wait."""
        self._announced = 0
        self._in_line = 0  # arrays that wait for room
        self._line = asyncio.Lock()  # held by the first in line, an array or a stream
        self._room = asyncio.Event()
        self.work = asyncio.Event()
        """Wakes the writer."""
        self.passed_by = 0
        """How many predictions were answered at once since the writer last committed."""

    def __len__(self) -> int:
        return len(self._requests)

    # -- letting in

    def enqueue(self, model: str, items: Items, stream: Stream | None = None) -> asyncio.Future[Result]:
        """Put items in the queue. Returns their future result. QueueFull if there is no room."""
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._let_in(model, items, stream, partial(settle, answer))
        return answer

    def enqueue_for(self, model: str, items: Items, tell: Callable[[Result], None]) -> None:
        """The same for who does not wait: `tell` gets the result, a turn of the loop sooner than a future's waiter."""
        self._let_in(model, items, None, tell)

    def _let_in(self, model: str, items: Items, stream: Stream | None, tell: Callable[[Result], None]) -> None:
        self._lifecycle.check_accepts()
        self._models.get(model)
        if not self.has_room(len(items)):
            raise self._full()
        self._requests.append(Request(model, items, stream, tell))
        self.events += len(items)
        self.work.set()

    async def learn(self, model: str, items: Items) -> Result:
        """Learn an array, all or none."""
        return await self.enqueue(model, items)

    async def submit(self, model: str, items: Items, stream: Stream) -> asyncio.Future[Result]:
        """Put items of a stream in the queue. Waits for room, because a stream can be read slowly."""
        self._models.get(model)
        await self._wait_for_room(len(items))
        self._lifecycle.check_streams()
        return self.enqueue(model, items, stream)

    def has_room(self, count: int) -> bool:
        """Whether `count` more events may wait. An empty queue takes any number."""
        coming = self.events + self._announced
        return not coming or coming + count <= self._limit

    def check_room(self) -> None:
        """Raise QueueFull if there is no room, or if others wait for it."""
        if self._in_line or not self.has_room(1):
            raise self._full()

    @contextlib.asynccontextmanager
    async def announced(self, count: int) -> AsyncIterator[None]:
        """Reserve room for `count` events while they are decoded. Otherwise, with room for one array, fifty would be
        decoded and one learned. Waits in line if there is no room. QueueFull after LINE_SECONDS, or if IN_LINE others
        wait.

        While some wait here, `check_room` refuses others before their bodies are read. That makes refusing cheap.
        """
        if self._in_line >= IN_LINE:
            raise self._full()
        self._in_line += 1
        try:
            async with asyncio.timeout(LINE_SECONDS):
                await self._wait_for_room(count)
        except TimeoutError:
            raise self._full() from None
        finally:
            self._in_line -= 1
        self._announced += count
        try:
            yield
        finally:
            self._announced -= count
            self._room.set()

    async def _wait_for_room(self, count: int) -> None:
        """Wait until there is room for `count` events and all earlier callers. Streams and arrays wait in one line:
        otherwise large ones would wait for ever behind small ones."""
        async with self._line:
            self._lifecycle.check_accepts()
            while not self.has_room(count):
                self._room.clear()
                await self._room.wait()
                self._lifecycle.check_accepts()

    def _full(self) -> errors.QueueFull:
        return errors.QueueFull(waiting=self.events + self._announced, limit=self._limit)

    # -- taking out

    def take(self, events: int) -> list[Request]:
        """Take requests that wait, with so many events at most; at least one."""
        taken: list[Request] = []
        count = 0
        while self._requests and (not taken or count + len(self._requests[0].items) <= events):
            taken.append(self._requests.popleft())
            count += len(taken[-1].items)
        self.events -= count
        self._room.set()
        return taken

    def put_back(self, requests: Sequence[Request]) -> None:
        """Put requests at the front again."""
        self._requests.extendleft(reversed(requests))
        self.events += sum(len(request.items) for request in requests)

    def refuse_all(self, failure: errors.LogstepError) -> None:
        """Refuse what waits, and whoever waits for room."""
        while self._requests:
            self._requests.popleft().refuse(failure)
        self.events = 0
        self.wake_all()

    def wake_all(self) -> None:
        """Wake the writer and who waits for room, because the state has changed."""
        self._room.set()
        self.work.set()
