"""The link to the topic: writes records, and reads those of all partitions from given places on.

One thread polls the consumer and the producer. What it has read goes to the event loop in batches; while much waits
there, it reads no further. Another thread asks now and then where the partitions end, which shows whether the brokers
are there.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from typing import Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import OffsetSpec

from service.brokers import SAID, Brokers
from service.replica.records import Do, Record, partition_of
from service.replica.topic import LARGEST_RECORD

AT_ONCE = 1_000
"""Records that go to the event loop at once, at most."""
POLL_SECONDS = 0.1
SURE_SECONDS = 10.0
"""How long the producer tries to write a record."""
LINGER_MS = 1
"""How long a record waits for others of its batch. At 0, librdkafka polls without a rest while five batches are under
way: 32 connections learned 1,400 events a second instead of 2,300. A single one waits 5.7 ms instead of 5.0."""
IMPATIENT = {
    "socket_timeout_ms": 5_000,
    "socket_connection_setup_timeout_ms": 5_000,
    "reconnect_backoff_max_ms": 1_000,
}
"""A broker that keeps its connections and does not answer, as when its cable is pulled, is left after so long for the
one that leads in its place. librdkafka waits for a minute, in which nothing would be learned."""
ASK_AGAIN_SECONDS = 0.5
"""How often the brokers are asked where the partitions end. It shows that they are there."""
ASK_SECONDS = 2.0
LOOK_AGAIN = 10
"""How many times the ends are asked until the topic's id is looked at."""

Read = Callable[[list[Record], dict[int, int]], None]

FIXED = SAID | dict.fromkeys(
    ("group.id", "auto.offset.reset", "enable.auto.commit", "enable.idempotence", "acks", "isolation.level",
     "partitioner", "delivery.report.only.error", "enable.partition.eof"),
    "logstep sets it, because its promises hang on it",
)  # fmt: skip
"""Properties that a file must not set, and why."""


class Link:
    """A topic, once `follow` was called. The callbacks run on the event loop.

    read: gets records in the order of their partitions, and for partitions that were read to the end the offset after
    it, which is behind the marks of transactions. unsure: gets what `write` was given as `re`, if it is not known
    whether the record is in the topic.
    """

    def __init__(self, brokers: Brokers, topic: str, read: Read, unsure: Callable[[bytes], None]) -> None:
        self._brokers, self.topic, self._on_read, self._on_unsure = brokers, topic, read, unsure
        self._loop = asyncio.get_running_loop()
        self._producer = self._new_producer()
        self.partitions, self._topic_id = 0, ""
        self._may_read = threading.Event()
        self._may_read.set()
        self._stops = threading.Event()
        self._consumer: Any = None
        self._threads: list[threading.Thread] = []

    def _new_producer(self) -> Any:
        fixed = {"acks": "all", "enable.idempotence": True, "delivery.report.only.error": True}
        timeout_ms = int(SURE_SECONDS * 1e3)
        defaults = {"linger_ms": LINGER_MS, "delivery_timeout_ms": timeout_ms, "message_max_bytes": LARGEST_RECORD}
        return self._brokers.client(Producer, fixed, **defaults, **IMPATIENT)

    # -- before it is followed; these wait for the brokers, in a thread of the caller

    def ranges(self, partitions: int) -> list[tuple[int, int]]:
        """The first offset of each partition, and the one after its last."""
        asked = range(partitions)
        return list(zip(self._ends(asked, OffsetSpec.earliest()), self._ends(asked), strict=True))

    def first_record(self) -> Record | None:
        """The first record of partition 0, None if it has none."""
        with self._asking() as consumer:
            consumer.assign([TopicPartition(self.topic, 0, OFFSET_BEGINNING)])
            until = time.monotonic() + self._brokers.patience
            while time.monotonic() < until:
                message = consumer.poll(POLL_SECONDS)
                if message is None:
                    continue
                if message.error() is None:
                    return _record_of(message)
                if message.error().code() == KafkaError._PARTITION_EOF:  # noqa: SLF001
                    return None
        raise self._brokers.no_answer(KafkaException(KafkaError(KafkaError._TIMED_OUT)))  # noqa: SLF001

    def write_first(self, value: bytes) -> None:
        """Write a record to partition 0, and wait until it is there."""
        self._produce(self.topic, value, b"", 0, headers=[("do", Do.BEGIN.value)])
        if self._producer.flush(SURE_SECONDS):
            raise self._brokers.no_answer(KafkaException(KafkaError(KafkaError._TIMED_OUT)))  # noqa: SLF001

    def _asking(self) -> Any:
        return closing(self._new_consumer())

    def _new_consumer(self) -> Any:
        fixed = {
            "group.id": "logstep",  # the client wants one; nothing is written under it
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
        }
        return self._brokers.client(
            Consumer, fixed, fetch_wait_max_ms=100, queued_max_messages_kbytes=65_536, **IMPATIENT
        )

    # -- while it is followed

    def follow(self, places: Mapping[int, int], partitions: int, topic_id: str) -> None:
        """Read each partition from an offset on, its beginning if it is not named."""
        self.partitions, self._topic_id = partitions, topic_id
        self._consumer = self._new_consumer()
        self._consumer.assign([TopicPartition(self.topic, p, places.get(p, 0)) for p in range(partitions)])
        for work in (self._read_on, self._ask_for_ends):
            self._threads.append(threading.Thread(target=self._run, args=[work], name="logstep-topic", daemon=True))
            self._threads[-1].start()

    def write(self, do: Do, model: str, value: bytes, re: bytes = b"", stream: bytes = b"") -> None:
        """Write a record. Raises BufferError if too many are under way, KafkaException if it is too large."""
        key = model.encode()
        headers = [("do", do.value), *((name, text) for name, text in (("re", re), ("stream", stream)) if text)]

        def failed(error: Any, _: Any) -> None:
            if error is not None and re:
                self._loop.call_soon_threadsafe(self._on_unsure, re)

        self._produce(self.topic, value, key, partition_of(key, self.partitions), headers=headers, on_delivery=failed)

    def _produce(self, *record: Any, **more: Any) -> None:
        try:
            self._producer.produce(*record, **more)
        except KafkaException as error:
            if not error.args[0].fatal():
                raise
            self._producer = self._new_producer()  # the old one may write no more
            self._producer.produce(*record, **more)

    def hold(self) -> None:
        """Read no further until `go_on`."""
        self._may_read.clear()

    def go_on(self) -> None:
        self._may_read.set()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # without this thread the node would stand still, and nobody would know why
            self._loop.call_soon_threadsafe(self.on_mistake, error)

    def _read_on(self) -> None:
        while not self._stops.is_set():
            first = self._consumer.poll(POLL_SECONDS)
            with suppress(KafkaException):  # the producer may write no more, which it says once; see `_produce`
                self._producer.poll(0)
            if first is None:
                continue
            records: list[Record] = []
            ends: dict[int, int] = {}
            for message in (first, *self._consumer.consume(AT_ONCE - 1, 0)):
                error = message.error()
                if error is None:
                    records.append(_record_of(message))
                elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001
                    ends[message.partition()] = message.offset()
                elif error.code() == KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001
                    self._loop.call_soon_threadsafe(self.on_overtaken, message.partition(), error.str())
            if records:
                self._may_read.wait()
            self._loop.call_soon_threadsafe(self._on_read, records, ends)

    on_overtaken: Callable[[int, str], None]
    """Called if the next record of a partition is no longer in the topic."""
    on_ends: Callable[[float, list[int]], None]
    """Called now and then with a time (monotonic) and the offsets after the newest records then."""

    on_mistake: Callable[[Exception], None]
    """Called if a thread ends before it should."""

    on_another: Callable[[str], None]
    """Called if the topic of that name has another id now: it was deleted and made again."""

    def _ask_for_ends(self) -> None:
        for asked in itertools.count():
            if self._stops.wait(ASK_AGAIN_SECONDS):
                return
            if asked % LOOK_AGAIN == 0:
                self._look_at_topic()
            asked_at = time.monotonic()
            try:
                ends = self._ends(range(self.partitions))
            except KafkaException:
                # The client asks the leaders that it knows, and learns of others only if it is made to look.
                with suppress(KafkaException):
                    self._brokers.admin.list_topics(self.topic, ASK_SECONDS)
                continue
            self._loop.call_soon_threadsafe(self.on_ends, asked_at, ends)

    def _look_at_topic(self) -> None:
        with suppress(KafkaException):
            if (found := self._brokers.topic_id(self.topic)) != self._topic_id:
                self._loop.call_soon_threadsafe(self.on_another, found)

    def _ends(self, partitions: Iterable[int], which: Any = OffsetSpec.latest()) -> list[int]:  # noqa: B008  # it is one
        committed = IsolationLevel.READ_COMMITTED
        return self._brokers.offsets(self.topic, partitions, which, ASK_SECONDS, isolation_level=committed)

    def close(self) -> None:
        """Wait for what is being written, and end the thread."""
        self._stops.set()
        self._may_read.set()
        for thread in self._threads:
            thread.join()
        with suppress(KafkaException):
            self._producer.flush(1.0)
        if self._consumer is not None:
            self._consumer.close()


def _record_of(message: Any) -> Record:
    headers = dict(message.headers() or ())
    do, re, stream = (headers.get(name) or b"" for name in ("do", "re", "stream"))
    at = message.timestamp()[1] * 1_000
    return Record(
        message.partition(), message.offset(), at, message.key() or b"", do, re, stream, message.value() or b""
    )
