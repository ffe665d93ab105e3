"""A topic of Kafka, read as a member of a consumer group.

What has been read is committed when the caller says so. With each committed offset stands the topic's id. So a topic
that was deleted and made again is told from the one before, and is read from its beginning. librdkafka would read it
from the old offset on, and leave out what stands before that.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from service.brokers import DENIED, SAID, Brokers
from service.commands.terminal import Failed, say
from service.failures import BrokersRefuse

BEGINNING, END = "beginning", "end"
From = str | datetime
"""Where a group begins: BEGINNING, END, or the first record that is not older than a time."""

AGAIN_SECONDS = 1.0
"""Between two questions to brokers that do not answer."""
CLOSE_SECONDS = 10.0
"""The group notices a member that did not leave in this time after its session.timeout.ms."""
NOTICE_SECONDS = 30.0
"""Between two notices of the same trouble."""
WAITS_MS = 86_400_000
"""max.poll.interval.ms, its largest value: a member that waits for the service stays in the group. One that died is
noticed after session.timeout.ms, since librdkafka's own thread sends the heartbeats."""
SHOWN_PARTITIONS = 20

OURS = SAID | {
    "group.id": "--group says it",
    "auto.offset.reset": "--from says it",
    "enable.auto.commit": "an offset is committed when its record is learned",
    "auto.commit.enable": "an offset is committed when its record is learned",
    "enable.auto.offset.store": "an offset is committed when its record is learned",
    "enable.partition.eof": "the command needs it",
}
"""Properties that a file must not set."""
_END, _OUT_OF_RANGE = KafkaError._PARTITION_EOF, KafkaError._AUTO_OFFSET_RESET  # noqa: SLF001


class Record(NamedTuple):
    """A record; value: None for a tombstone."""

    partition: int
    offset: int
    value: bytes | None


class Topic:
    """A topic, read as a member of a group. Raises Failed if the brokers refuse, or do not answer at the start.

    brokers: HOST:PORT, or several with commas. begin: where to read partitions of which the group has read nothing.
    stopping: whether to give up waiting for brokers.
    """

    def __init__(
        self,
        brokers: str,
        name: str,
        group: str,
        given: Mapping[str, str],
        *,
        begin: From = BEGINNING,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.name, self.group = name, group
        self.id = ""
        """The topic's UUID; "" if the brokers have none for it (Kafka before 2.8)."""
        self.is_new = False
        """Whether the group had read nothing of the topic."""
        self.caught_up = False
        """Whether everything has been read, once partitions have been assigned."""
        self._brokers, self._begin, self._stopping = Brokers(brokers, given, self._error), begin, stopping
        self._noticed: dict[str, float] = {}
        self._partitions: set[int] = set()
        """Those that are known, ours or not."""
        self._next: dict[int, int] = {}
        """For each partition that is ours, the offset of the next record to be read."""
        self._ends: set[int] = set()
        """Partitions that have been read to their end."""
        self._done: dict[int, int] = {}
        """The same for the next record to be sent."""
        self._committed: dict[int, int] = {}
        self._was_made_again = False
        self._find()
        self._consumer = self._member()
        self._subscribe()

    def _member(self) -> Any:
        fixed = {
            "group.id": self.group,
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "on_commit": self._on_commit,
        }
        return self._brokers.client(Consumer, fixed, max_poll_interval_ms=WAITS_MS, queued_max_messages_kbytes=16_384)

    def __enter__(self) -> Topic:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, most: int, seconds: float) -> tuple[list[Record], dict[int, int]]:
        """The next records, at most so many, and the partitions whose end comes after them, with its offset. Waits so
        long for the first."""
        try:
            first = self._consumer.poll(seconds)
            messages = [] if first is None else [first]
            if first is not None and most > 1:
                messages += self._consumer.consume(most - 1, 0)
        except KafkaException as failure:
            raise Failed(f"Kafka at {self._brokers.address}: {failure.args[0].str()}") from None
        if self._brokers.denied:
            raise BrokersRefuse(brokers=self._brokers.address, reason=self._brokers.denied)
        if self._is_another():
            say(f"the topic {self.name} was deleted and made again; it is read from its beginning, with new ids")
            self._closed()
            self._consumer = self._member()
            self._next, self._was_made_again = {}, True
            self._forget()
            self._subscribe()
            return [], {}
        records, ends = [], {}
        for message in messages:
            partition, offset, error = message.partition(), message.offset(), message.error()
            if error is not None and error.code() not in (_END, _OUT_OF_RANGE):
                self._brokers.heard(error)  # that it may not read the group comes as a message only
            elif partition not in self._next:
                continue  # it was taken away while these were read
            elif error is None:
                records.append(Record(partition, offset, message.value()))
                self._next[partition] = offset + 1
                self._ends.discard(partition)
            elif error.code() == _END:
                ends[partition] = self._next[partition] = offset
                self._ends.add(partition)
            else:
                self._go_on_in_range(partition)
        self.caught_up = bool(self._next) and self._ends.issuperset(self._next)
        return records, ends

    def commit(self, done: Mapping[int, int]) -> None:
        """Commit for each partition the offset of the next record. Does not wait for the brokers; `close` does."""
        self._done |= {partition: offset for partition, offset in done.items() if partition in self._next}
        new = {
            partition: offset for partition, offset in self._done.items() if self._committed.get(partition) != offset
        }
        if new:
            with suppress(KafkaException):  # the next commit has them too
                self._consumer.commit(offsets=self._places(new), asynchronous=True)
                self._committed |= new

    def lag(self) -> dict[int, int] | None:
        """For each partition that is ours, how many records come after those that are done; None if not known yet."""
        found = {}
        for partition, next_ in self._done.items():
            low, high = self._consumer.get_watermark_offsets(TopicPartition(self.name, partition), cached=True)
            if high < 0:
                return None
            found[partition] = max(0, high - max(low, next_))
        return found

    def close(self) -> None:
        """Leave the group when the offsets have been committed, or when the brokers do not answer for CLOSE_SECONDS."""
        if not self._closed():
            say("the brokers do not answer: the last offsets may not be committed, so the last records are sent again")

    def _closed(self) -> bool:
        closing = threading.Thread(target=self._consumer.close, daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)
        return not closing.is_alive()

    # -- the topic

    def _find(self) -> None:
        self._partitions = set(self._brokers.topic(self.name).partitions)
        try:
            self.id = self._brokers.topic_id(self.name)
        except KafkaException:
            say(f"{self._brokers.address} does not tell an id of the topic {self.name}")

    def _is_another(self) -> bool:
        """Whether the topic was made again since its id was asked. An id that is the same after records were read tells
        that they are of this topic."""
        if not self.id:
            return False
        told = self._patiently(partial(self._brokers.topic_id, self.name))
        if told is None or told == self.id:
            return False
        self.id = told
        return True

    # -- partitions

    def _subscribe(self) -> None:
        on_change = {"on_assign": self._assigned, "on_revoke": self._revoked, "on_lost": self._revoked}
        self._consumer.subscribe([self.name], **on_change)

    def _assigned(self, consumer: Any, partitions: list[Any]) -> None:
        self._partitions |= {one.partition for one in partitions}
        starts = self._patiently(self._starts) or {}
        places = [
            TopicPartition(self.name, one.partition, starts.get(one.partition, OFFSET_BEGINNING)) for one in partitions
        ]
        if self._is_cooperative:
            consumer.incremental_assign(places)
        else:
            self._next = {}
            consumer.assign(places)
        begun = {one.partition: max(0, one.offset) for one in places}
        self._next |= begun
        self._done |= begun
        self._committed |= begun
        self._ends &= self._next.keys()
        if not self._next:
            say(f"has no partition of {self.name}: other members of the group {self.group} have them all")
            return
        if not places:
            return
        told = [f"{one.partition} from {_where(one.offset)}" for one in places[:SHOWN_PARTITIONS]]
        more = f" and {len(places) - len(told)} more" if len(places) > len(told) else ""
        say(f"the group {self.group} reads {self.name}; here partition {', '.join(told)}{more}")

    @property
    def _is_cooperative(self) -> bool:
        """Whether partitions come and go one by one, as the properties say."""
        strategy = self._brokers.given.get("partition.assignment.strategy", "")
        return "cooperative" in strategy or self._brokers.given.get("group.protocol") == "consumer"

    def _revoked(self, _: Any, partitions: list[Any]) -> None:
        """Forget partitions. All that was read of them is settled, since records are only read when those before are.
        librdkafka waits for their commits."""
        for one in partitions:
            self._next.pop(one.partition, None)
        self._forget()

    def _forget(self) -> None:
        """Forget what is known of partitions that are not ours."""
        self._ends &= self._next.keys()
        for known in (self._done, self._committed):
            for partition in known.keys() - self._next.keys():
                del known[partition]

    def _starts(self) -> dict[int, int]:
        """Where the group goes on in each partition. A partition that is missing is read from its beginning.

        END and a time hold for all partitions at once, and are committed at once: a partition that is added later
        begins at its beginning, and a crash before the first record loses none.
        """
        # No list_topics here: called within a callback, it makes the next callback end the process.
        places = [TopicPartition(self.name, partition) for partition in self._partitions]
        read = [place for place in self._consumer.committed(places, self._brokers.patience) if place.offset >= 0]
        of_this = [place for place in read if not (self.id and place.metadata) or place.metadata == self.id]
        self.is_new = self.is_new or not of_this
        if of_this or self._begin == BEGINNING or self._was_made_again or read:
            if of_this and self._begin != BEGINNING:
                say(f"--from does not apply: the group {self.group} has read of {self.name} before, and goes on there")
            elif read and not of_this:
                say(f"the topic {self.name} was made again since the group {self.group} read it: it begins anew")
            return {place.partition: place.offset for place in of_this}
        starts = self._chosen(places)
        self._consumer.commit(offsets=self._places(starts), asynchronous=False)
        return starts

    def _chosen(self, places: list[Any]) -> dict[int, int]:
        """The offsets at the end, or at a time."""
        chosen = {}
        if isinstance(self._begin, datetime):
            at = int(self._begin.timestamp() * 1000)
            wanted = [TopicPartition(self.name, place.partition, at) for place in places]
            chosen = {
                one.partition: one.offset for one in self._consumer.offsets_for_times(wanted, self._brokers.patience)
            }
        for place in places:
            if chosen.get(place.partition, -1) < 0:  # nothing is so new
                chosen[place.partition] = self._consumer.get_watermark_offsets(place, self._brokers.patience)[1]
        return chosen

    def _places(self, offsets: Mapping[int, int]) -> list[Any]:
        return [TopicPartition(self.name, partition, offset, self.id) for partition, offset in offsets.items()]

    def _go_on_in_range(self, partition: int) -> None:
        """Go on where the topic is, when the next record is no longer, or not yet, in it."""
        place, wanted = TopicPartition(self.name, partition), self._next.get(partition, 0)
        bounds = self._patiently(lambda: self._consumer.get_watermark_offsets(place, self._brokers.patience))
        if bounds is None:
            return
        low, high = bounds
        place.offset = low if wanted < low else high
        what = (
            f"{low - wanted:,} record(s) from offset {wanted:,} on are gone: the topic kept them for a shorter time "
            "than this command was behind"
            if wanted < low
            else f"the topic ends at offset {high:,}, before {wanted:,}: brokers lost its end"
        )
        say(f"{self.name} partition {partition}: {what}; going on at offset {place.offset:,}")
        self._next[partition] = place.offset
        if self._is_cooperative:
            self._consumer.incremental_unassign([place])
            self._consumer.incremental_assign([place])
        else:
            self._consumer.assign([TopicPartition(self.name, *where) for where in self._next.items()])

    # -- brokers that do not answer

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        """What the brokers answer, when they do; None when it is time to stop."""
        while not self._stopping():
            try:
                return ask()
            except KafkaException as error:
                if error.args[0].code() in DENIED:
                    self._brokers.denied = error.args[0].str()
                    return None
                self._notice(error.args[0])
                time.sleep(AGAIN_SECONDS)
        return None

    def _error(self, error: Any) -> None:
        """An error that names no partition, or is none of those above."""
        if self._partitions and not self._brokers.denied:  # before, `_find` tells it
            self._notice(error)

    def _on_commit(self, error: Any, places: Sequence[Any]) -> None:
        """What became of a commit. One that failed is made with the next; if the partition is another member's now,
        that one sends its records again, and they are duplicates."""
        for place in places:
            if error is not None or place.error is not None:
                self._committed.pop(place.partition, None)

    def _notice(self, error: Any) -> None:
        kind, now = error.name(), time.monotonic()
        if now >= self._noticed.get(kind, 0.0):
            self._noticed[kind] = now + NOTICE_SECONDS
            say(f"Kafka: {error.str()}; waiting")


def _where(offset: int) -> str:
    return "its beginning" if offset < 0 else f"offset {offset:,}"
