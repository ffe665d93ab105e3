"""Applies the records of a topic in order: items go to the writer's queue, all else is done when what came before it is
applied."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec

from core.spec import SpecError
from service import errors, failures
from service.events import MODEL_NAME
from service.fairness import worked
from service.learning.progress import Progress
from service.learning.request import Place, Refused, Request, Stream, refusal_of, settle
from service.replica.changes import Changes
from service.replica.link import Link
from service.replica.outbox import Outbox, part
from service.replica.records import OF_ITEMS, OF_STREAMS, Do, PoisonError, Record, decode, partition_of
from service.storage.positions import Position

logger = logging.getLogger("logstep")

AHEAD = 8_192
"""Events that wait for the writer, and records that wait to be decoded. The rest waits at the brokers."""
AHEAD_BYTES = 64 << 20
"""Bytes of records that wait to be decoded."""
WIDE_BYTES = 1 << 16
"""Length from which a record is decoded in a thread."""
ITEMS_AT_ONCE = 256
"""Items to put in the queue before the loop may serve others."""
STREAMS = 65_536
"""Streams that are remembered; of broken ones, all."""
POISON = "poison"
"""The reason for which records are counted that say nothing a node could do."""
NO_RECORD = (
    PoisonError,
    SpecError,
    errors.InvalidEvent,
    errors.MalformedJson,
    msgspec.MsgspecError,
    UnicodeDecodeError,
    RecursionError,  # it is nested too deeply
)
"""What is wrong with a record itself."""


class Feed:
    """Where the records of a node go. positions: what was applied before the start. broken: streams of which nothing
    more is learned."""

    def __init__(
        self,
        outbox: Outbox,
        progress: Progress,
        changes: Changes,
        positions: Mapping[int, Position],
        broken: Mapping[str, int],
    ) -> None:
        self._outbox = outbox
        self._progress = progress
        self._changes = changes
        self._link: Link | None = None
        self._before = dict(positions)
        """Positions whose records must come first, to be looked at."""
        self._times = {partition: position.at for partition, position in positions.items()}
        self._last = {partition: position.record for partition, position in positions.items()}
        self._newest: dict[int, int] = {}
        """The newest record of each partition that was read."""
        self._ends: dict[int, int] = {}
        """Up to which offset each partition was read, where its end was met."""
        self._streams = {name: Stream(broken=True, name=name) for name in broken}
        self._records: deque[Record] = deque()
        self._bytes = 0
        self._arrived = asyncio.Event()
        self.stopping = False
        self.applied = 0
        self.refused: Counter[str] = Counter()
        """Records and requests that were refused after they were in the log, by the error."""

    def begin(self, link: Link, places: Mapping[int, int]) -> None:
        """places: where each partition is read from. A position whose record retention has dropped is not looked at."""
        self._link = link
        self._before = {p: position for p, position in self._before.items() if position.record >= places[p]}

    def take(self, records: list[Record], ends: Mapping[int, int]) -> None:
        """Records that were read, and the ends that were met after them."""
        self._records.extend(records)
        self._newest.update((record.partition, record.offset) for record in records)
        self._ends.update(ends)
        self._bytes += sum(len(record.value) for record in records)
        if (len(self._records) > AHEAD or self._bytes > AHEAD_BYTES) and self._link is not None:
            self._link.hold()
        self._arrived.set()

    def stop(self) -> None:
        """Apply no more."""
        self.stopping = True
        self._arrived.set()

    def applied_to(self, partition: int) -> int:
        """The offset up to which a partition is applied. Between the last record and the end stand the marks of
        transactions, which nobody sees."""
        position = self._progress.stepped.get(partition)
        applied = -1 if position is None else position.whole
        all_applied = self._newest.get(partition, -1) <= applied
        return max(applied + 1, self._ends.get(partition, 0) if all_applied else 0)

    async def run(self) -> None:
        """Apply records until `stop`."""
        items = 0
        while not self.stopping:
            while self._records and not self.stopping:
                record = self._records.popleft()
                self._bytes -= len(record.value)
                items += await self._apply(record)
                if items >= ITEMS_AT_ONCE:
                    items = 0
                    await asyncio.sleep(0)
                    await self._outbox.wait_for_fewer(AHEAD)
            if self._link is not None:
                self._link.go_on()
            self._arrived.clear()
            if not self._records and not self.stopping:
                await self._arrived.wait()

    async def _apply(self, record: Record) -> int:
        """Apply a record, or put it in the queue. Returns how much it is, in items, about."""
        partition = record.partition
        skipped = 0
        if (before := self._before.pop(partition, None)) is not None:
            self._check_first(record, before)
            if not before.items:
                return 1
            skipped = before.items
        at = self._times[partition] = max(record.at, self._times.get(partition, 0))  # never back
        place = Place(partition, record.offset, at, record.mark, skipped)
        answer = self._outbox.claim(record.re) if record.re else None
        if answer is None:
            answer = asyncio.get_running_loop().create_future()
        answer.add_done_callback(self._count)
        previous, self._last[partition] = self._last.get(partition, -1), record.offset
        self.applied += 1
        try:
            do, model = self._read(record)
            if do in OF_ITEMS:
                items = await worked(len(record.value) > WIDE_BYTES, decode, do, record.value)
                stream = self._stream(record.stream.decode()) if do in OF_STREAMS and record.stream else None
                if do in OF_STREAMS and stream is None:
                    raise PoisonError("a piece of a stream has no header `stream`")
                rest = part(items, skipped, len(items)) if skipped else items
                self._outbox.put(Request(model, rest, stream, partial(settle, answer), place))
                return 1 + len(items)
        except NO_RECORD as error:
            self._poison(record, answer, place, error)
            return 1
        if previous >= 0:
            await self._progress.wait_for(partition, previous)
        await self._do(do, model, record, answer, place)
        return ITEMS_AT_ONCE

    def _count(self, answer: asyncio.Future[Any]) -> None:
        """Count what is refused. It also looks at an answer that nobody waits for."""
        if answer.cancelled():
            return
        error = answer.exception()
        if error is None and isinstance(result := answer.result(), list) and (refused := refusal_of(result)):
            error = refused.error
        if error is not None:
            self.refused[error.slug() if isinstance(error, errors.LogstepError) else POISON] += 1

    def _check_first(self, record: Record, before: Position) -> None:
        if (record.offset, record.mark) != (before.record, before.mark):
            raise failures.WrongTopic(
                reason=f"record {before.record} of partition {record.partition} is not the one that this folder "
                "applied: the topic was made again, or is another"
            )

    def _read(self, record: Record) -> tuple[Do, str]:
        """What a record is for, and the model."""
        try:
            do = Do(record.do)
        except ValueError:
            raise PoisonError(f"its header `do` is {record.do!r}") from None
        if do is Do.BEGIN:
            if (record.partition, record.key) != (0, b""):
                raise PoisonError("it begins a log, but is not the first record of partition 0")
            return do, ""
        model = record.key.decode()
        if not MODEL_NAME.fullmatch(model):
            raise PoisonError("its key is no name of a model")
        assert self._link is not None  # noqa: S101  # records come from it
        if record.partition != partition_of(record.key, self._link.partitions):
            raise PoisonError(f"it is in partition {record.partition}, but its model belongs in another")
        return do, model

    def _stream(self, name: str) -> Stream:
        stream = self._streams.get(name)
        if stream is None:
            stream = self._streams[name] = Stream(name=name)
            if len(self._streams) > STREAMS:
                newest = list(self._streams.items())[-STREAMS // 2 :]
                self._streams = {n: s for n, s in self._streams.items() if s.broken} | dict(newest)
        return stream

    @staticmethod
    def _tell_of(place: Place, error: Exception) -> None:
        logger.warning("the record at offset %d of partition %d is left out: %s", place.record, place.partition, error)

    def _poison(self, record: Record, answer: asyncio.Future[Any], place: Place, error: Exception) -> None:
        """Refuse a record. It goes through the queue, so that the position passes it in order."""
        self._tell_of(place, error)
        answer.remove_done_callback(self._count)  # it counts requests, by why they are refused
        self.refused[POISON] += 1
        if not isinstance(error, errors.LogstepError):
            error = errors.InvalidEvent(field="body", reason=str(error))
        if not answer.done():
            answer.set_result([Refused(error)])
        self._outbox.put(Request("", [], None, partial(settle, answer), place))

    async def _do(self, do: Do, model: str, record: Record, answer: asyncio.Future[Any], place: Place) -> None:
        try:
            result = await self._changes.apply(do, model, record.value, place)
        except (errors.LogstepError, *NO_RECORD) as error:
            if isinstance(error, errors.StorageFailed | errors.NotReady | failures.NodesDiffer):
                raise  # it is not the record that is refused
            if not isinstance(error, errors.LogstepError):
                self._tell_of(place, error)
            result = error
        await self._changes.reach(place)
        if not answer.done():
            if isinstance(result, Exception):
                answer.set_exception(result)
            else:
                answer.set_result(result)
