"""What this node asks of the topic: requests go out as records, and wait until the node has applied them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from confluent_kafka import KafkaException

from service import errors
from service.fairness import WIDE, worked
from service.learning.model import Model
from service.learning.models import Models
from service.learning.queue import Queue
from service.learning.request import Items, Outcome, Refused, Request, Result, Stream, refusal_of
from service.learning.state import Lifecycle
from service.replica.link import Link
from service.replica.records import Do, encode, partition_of
from service.replica.topic import LARGEST_RECORD
from service.table import Table

SURE_SECONDS = 30.0
"""How long a caller waits for its record to come back."""


HEADERS = 1_024
"""Bytes of a record beside its value, at most."""

Part = tuple[asyncio.Future[Result], int]
"""The answer to a record, and how many items it has."""


class Asked(NamedTuple):
    """Who waits for a record to be applied. items: how many it has. at: when it was asked (monotonic)."""

    answer: asyncio.Future[Any]
    items: int
    at: float


class Outbox(Queue):
    """The queue of a node: what is let in goes to the topic, and what comes from there is put in for the writer.

    Its limit holds for what has gone out and is not applied yet.
    """

    link: Link | None = None
    """None until the node follows its topic."""

    def __init__(
        self,
        limit: int,
        models: Models,
        lifecycle: Lifecycle,
        round_trip: Callable[[float], None],
        model: Callable[[str], Model],
    ) -> None:
        """model: gives a model that is there; raises why there is none."""
        super().__init__(limit, models, lifecycle)
        self._round_trip = round_trip
        self._model = model
        self.node = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self._asked: dict[bytes, Asked] = {}
        self.asked_events = 0
        self.why_closed = "recovering: it does not follow its topic yet"
        """Why nothing can be written, while `link` is None."""

    # -- out

    def enqueue(self, model: str, items: Items, stream: Stream | None = None) -> asyncio.Future[Result]:
        """Write items to the topic. Returns their future result."""
        self._check(model, len(items))
        return self.ask(model, *encode(items, stream is not None), len(items), stream)

    def enqueue_for(self, model: str, items: Items, tell: Callable[[Result], None]) -> None:
        self.enqueue(model, items).add_done_callback(lambda done: tell(done.result()))

    async def submit(self, model: str, items: Items, stream: Stream) -> asyncio.Future[Result]:
        """The same for items of a stream. Waits for room; what is too large for a record becomes several."""
        self._model(model)
        await self._wait_for_room(len(items))
        self._lifecycle.check_streams()
        self._check(model, len(items))
        parts = await self._written(model, items, stream)
        return parts[0][0] if len(parts) == 1 else asyncio.ensure_future(_joined(parts))

    async def _written(self, model: str, items: Items, stream: Stream) -> list[Part]:
        """Write items of a stream as one record, or as several in order."""
        do, value = await worked(_is_wide(items), encode, items, True)
        if len(value) < LARGEST_RECORD - HEADERS or len(items) < 2:
            return [(self.ask(model, do, value, len(items), stream), len(items))]
        half = len(items) // 2
        first = await self._written(model, part(items, 0, half), stream)
        return first + await self._written(model, part(items, half, len(items)), stream)

    async def learn(self, model: str, items: Items) -> Result:
        self._check(model, len(items))
        do, value = await worked(_is_wide(items), encode, items, False)
        result: Result = await self.ask(model, do, value, len(items))
        return result

    def ask(
        self, model: str, do: Do, value: bytes = b"", count: int = 0, stream: Stream | None = None
    ) -> asyncio.Future[Any]:
        """Write a record. Returns what the node makes of it when it has applied it."""
        link = self._open_link()
        re = f"{self.node}-{next(self._numbers):x}".encode()
        if stream is not None and not stream.name:
            stream.name = re.decode()
        try:
            link.write(do, model, value, re, b"" if stream is None else stream.name.encode())
        except BufferError:
            raise self._full() from None
        except KafkaException as error:
            raise _refused(error, len(value)) from None
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[re] = Asked(answer, count, time.monotonic())
        self.asked_events += count
        return answer

    def partition_of(self, model: str) -> int:
        """The partition of a model's records; -1 before the topic is followed."""
        return -1 if self.link is None else partition_of(model.encode(), self.link.partitions)

    def announce(self, do: Do, model: str, value: bytes = b"") -> None:
        """Write a record that nobody waits for, if that can be done now. Any thread may call it."""
        if self.link is not None:
            with contextlib.suppress(BufferError, KafkaException):
                self.link.write(do, model, value)

    def _check(self, model: str, count: int) -> None:
        self._lifecycle.check_accepts()
        self._model(model)
        self._open_link()
        if not self.has_room(count):
            raise self._full()

    def _open_link(self) -> Link:
        if self.link is None:
            raise errors.NotReady(state=self.why_closed)
        return self.link

    def has_room(self, count: int) -> bool:
        coming = self.asked_events + self._announced
        return not coming or coming + count <= self._limit

    def _full(self) -> errors.QueueFull:
        return errors.QueueFull(waiting=self.asked_events + self._announced, limit=self._limit)

    # -- and back

    def claim(self, re: bytes) -> asyncio.Future[Any] | None:
        """Who waits for a record that has come back, if this node asked."""
        if (asked := self._asked.pop(re, None)) is None:
            return None
        self._round_trip(time.monotonic() - asked.at)
        self.asked_events -= asked.items
        self._room.set()
        return asked.answer

    def give_up(self, re: bytes) -> None:
        """It is not known whether that record is in the topic."""
        items = (asked := self._asked.get(re)) is not None and asked.items > 0
        answer = self.claim(re)
        if answer is None or answer.done():
            return
        if items:
            answer.set_result([Refused(errors.NotSure())])
        else:
            answer.set_exception(errors.NotSure())

    def give_up_old(self) -> None:
        """Give up what takes too long."""
        until = time.monotonic() - SURE_SECONDS
        for re in [re for re, asked in self._asked.items() if asked.at < until]:
            self.give_up(re)

    def give_up_all(self) -> None:
        for re in list(self._asked):
            self.give_up(re)

    def refuse_all(self, failure: errors.LogstepError) -> None:
        super().refuse_all(failure)
        self.give_up_all()

    def put(self, request: Request) -> None:
        """Put a request that comes from the topic in, for the writer."""
        self._requests.append(request)
        self.events += len(request.items)
        self.work.set()

    def drop_all(self) -> None:
        """Drop what waits for the writer: it is in the topic."""
        self._requests.clear()
        self.events = 0
        self.wake_all()

    async def wait_for_fewer(self, events: int) -> None:
        """Wait until at most so many events wait for the writer."""
        while self.events > events and not self._lifecycle.state.over:
            self._room.clear()
            await self._room.wait()


async def _joined(parts: list[Part]) -> Result:
    """What became of items that went out in several records. An error's index counts from the first of them."""
    joined, before = list[Outcome](), 0
    for answer, count in parts:
        result = await answer
        joined += result
        if (refused := refusal_of(result)) is not None:
            if refused.error.index is not None:
                refused.error.index += before
            break
        before += count
    return joined


def _is_wide(items: Items) -> bool:
    return items.values.size > WIDE if isinstance(items, Table) else len(items) > WIDE


def part(items: Items, start: int, stop: int) -> Items:
    return items.part(start, stop) if isinstance(items, Table) else items[start:stop]


def _refused(error: KafkaException, size: int) -> errors.LogstepError:
    code = error.args[0]
    if size > LARGEST_RECORD // 2:
        return errors.RecordTooLarge(size=size, limit=LARGEST_RECORD)
    return errors.NotReady(state=f"the brokers refuse: {code.str()}")
