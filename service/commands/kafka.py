"""A topic of Kafka, read as a member of a consumer group. Only this file knows confluent_kafka.

What has been read is committed when the caller says so. With each committed offset stands the topic's id. So a topic
that was deleted and made again is told from the one before, and is read from its beginning. librdkafka would read it
from the old offset on, and leave out what stands before that.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from service.commands.terminal import Failed, WrongUsage, say

try:
    from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
    from confluent_kafka.admin import AdminClient
except ImportError:
    raise Failed(
        "reading a topic needs confluent-kafka, which is not installed beside logstep. Install the extra: "
        "pip install 'logstep[kafka]'"
    ) from None

BEGINNING, END = "beginning", "end"
From = str | datetime
"""Where a group begins: BEGINNING, END, or the first record that is not older than a time."""

ASK_SECONDS = 10.0
"""Patience with the brokers at the start."""
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

OURS = {
    "bootstrap.servers": "--kafka says it",
    "metadata.broker.list": "--kafka says it",
    "group.id": "--group says it",
    "auto.offset.reset": "--from says it",
    "enable.auto.commit": "an offset is committed when its record is learned",
    "auto.commit.enable": "an offset is committed when its record is learned",
    "enable.auto.offset.store": "an offset is committed when its record is learned",
    "enable.partition.eof": "the command needs it",
}
"""Properties that a file must not set."""
_HARMLESS = ("security.protocol", "sasl.mechanism", "sasl.mechanisms")
"""Properties whose value an error may show. Any other may be a secret."""
_DENIED = (
    KafkaError._AUTHENTICATION,  # noqa: SLF001  # librdkafka's own errors are named like this
    KafkaError._SSL,  # noqa: SLF001
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
)
"""Errors that asking again does not mend."""
_GONE = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)  # noqa: SLF001
_END, _OUT_OF_RANGE = KafkaError._PARTITION_EOF, KafkaError._AUTO_OFFSET_RESET  # noqa: SLF001


class Record(NamedTuple):
    """A record; value: None for a tombstone."""

    partition: int
    offset: int
    value: bytes | None


def properties(file: Path | None) -> dict[str, str]:
    """The properties of librdkafka in a file: lines `name=value`, and comments. Errors show no value."""
    found: dict[str, str] = {}
    try:
        lines = [] if file is None else file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WrongUsage(f"cannot read {file}: {getattr(error, 'strerror', None) or 'it is not text'}") from None
    for number, line in enumerate(lines, 1):
        name, equals, value = map(str.strip, line.partition("="))
        if not name or name.startswith("#"):
            continue
        if not equals:
            raise WrongUsage(f"{file} line {number}: it is not NAME=VALUE, as librdkafka's properties are written")
        if name in OURS:
            raise WrongUsage(f"{file} line {number}: leave out {name}: {OURS[name]}")
        found[name] = value
    return found


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
        self._brokers, self._given, self._begin, self._stopping = brokers, dict(given), begin, stopping
        self._refusal = ""
        """The last error of librdkafka that names no partition."""
        self._denied = ""
        """Such an error that does not pass."""
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
        common = {"bootstrap.servers": brokers, "client.id": "logstep", **self._given}
        if "debug" not in self._given:
            common.setdefault("log_level", "0")  # its errors come to `_error`
        self._settings: dict[str, Any] = {
            "max.poll.interval.ms": WAITS_MS,
            "queued.max.messages.kbytes": 16_384,
            **common,
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "error_cb": self._error,
            "on_commit": self._on_commit,
        }
        try:
            self._admin = AdminClient({**common, "error_cb": self._error})
            self._consumer = Consumer(self._settings)
        except (KafkaException, TypeError, ValueError) as error:
            raise WrongUsage(f"librdkafka refuses the properties: {self._without_secrets(error)}") from None
        self._find()
        self._subscribe()

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
            raise Failed(f"Kafka at {self._brokers}: {failure.args[0].str()}") from None
        if self._denied:
            raise Failed(f"Kafka at {self._brokers} refuses: {self._denied}")
        if self._is_another():
            say(f"the topic {self.name} was deleted and made again; it is read from its beginning, with new ids")
            self._closed()
            self._consumer = Consumer(self._settings)
            self._next, self._was_made_again = {}, True
            self._forget()
            self._subscribe()
            return [], {}
        records, ends = [], {}
        for message in messages:
            partition, offset, error = message.partition(), message.offset(), message.error()
            if error is not None and error.code() not in (_END, _OUT_OF_RANGE):
                self._error(error)
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
        try:
            found = self._consumer.list_topics(self.name, ASK_SECONDS).topics[self.name]
        except KafkaException as error:
            self._consumer.poll(0)  # brings the reason
            reason = self._denied or self._refusal or error.args[0].str()
            raise Failed(f"no Kafka broker answers at {self._brokers} ({reason})") from None
        if found.error is not None:
            advice = "create it, or mend the name" if found.error.code() in _GONE else found.error.str()
            raise Failed(f"there is no topic {self.name!r} at {self._brokers}: {advice}")
        self._partitions, self._refusal = set(found.partitions), ""
        try:
            self.id = self._asked_id()
        except KafkaException:
            say(f"{self._brokers} does not tell an id of the topic {self.name}")

    def _asked_id(self) -> str:
        description = self._admin.describe_topics(TopicCollection([self.name]), request_timeout=ASK_SECONDS)
        told = description[self.name].result().topic_id
        is_none = told is None or not (told.get_most_significant_bits() or told.get_least_significant_bits())
        return "" if is_none else str(told).replace("+", "-").replace("/", "_")  # as Kafka's own tools write it

    def _is_another(self) -> bool:
        """Whether the topic was made again since its id was asked. An id that is the same after records were read tells
        that they are of this topic."""
        if not self.id:
            return False
        told = self._patiently(self._asked_id)
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
        strategy = self._given.get("partition.assignment.strategy", "")
        return "cooperative" in strategy or self._given.get("group.protocol") == "consumer"

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
        read = [place for place in self._consumer.committed(places, ASK_SECONDS) if place.offset >= 0]
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
            chosen = {one.partition: one.offset for one in self._consumer.offsets_for_times(wanted, ASK_SECONDS)}
        for place in places:
            if chosen.get(place.partition, -1) < 0:  # nothing is so new
                chosen[place.partition] = self._consumer.get_watermark_offsets(place, ASK_SECONDS)[1]
        return chosen

    def _places(self, offsets: Mapping[int, int]) -> list[Any]:
        return [TopicPartition(self.name, partition, offset, self.id) for partition, offset in offsets.items()]

    def _go_on_in_range(self, partition: int) -> None:
        """Go on where the topic is, when the next record is no longer, or not yet, in it."""
        place, wanted = TopicPartition(self.name, partition), self._next.get(partition, 0)
        bounds = self._patiently(lambda: self._consumer.get_watermark_offsets(place, ASK_SECONDS))
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
                if error.args[0].code() in _DENIED:
                    self._denied = error.args[0].str()
                    return None
                self._notice(error.args[0])
                time.sleep(AGAIN_SECONDS)
        return None

    def _error(self, error: Any) -> None:
        """An error that names no partition, or is none of those above."""
        self._refusal = error.str()
        if error.code() in _DENIED or error.fatal():
            self._denied = self._refusal
        elif self._partitions:  # before, `_find` tells it
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

    def _without_secrets(self, error: Exception) -> str:
        found = error.args[0].str() if isinstance(error, KafkaException) else str(error)
        for name, value in self._given.items():
            if value and name not in _HARMLESS:
                found = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", "...", found)
        return found


def _where(offset: int) -> str:
    return "its beginning" if offset < 0 else f"offset {offset:,}"
