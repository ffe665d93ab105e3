"""The topic that is a log: what must hold of it, how it is made, and what is wrong with one.

The table RULES has all settings of Kafka that matter. Partitions, copies and copies in sync depend on each other, so
they have functions of their own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from enum import Enum
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import ConfigResource, NewTopic

from service.brokers import DENIED, Brokers
from service.failures import BrokersRefuse, NoBroker, NoTopic, TopicExists

PARTITIONS = 64
"""For ever: a model's partition follows from its name and this number."""
COPIES = 3
LARGEST_RECORD = 17 * 2**20
"""Bytes. The largest JSON body (16 MiB), and what a record has beside it."""
IN_SYNC = "min.insync.replicas"
AGAIN_SECONDS = 0.05
SHOWN_PARTITIONS = 8
NEW_TOPIC = "Make a new topic: `logstep kafka create-topic`"
MORE_COPIES = f"Give it {COPIES} copies, with kafka-reassign-partitions.sh"


class Verdict(Enum):
    """What a node makes of a setting of the topic."""

    RIGHT = "right"
    WEAK = "weak"
    """It serves, and says it."""
    WRONG = "WRONG"
    """It refuses to serve."""


class Finding(NamedTuple):
    """What is right or wrong with one setting of a topic."""

    verdict: Verdict
    what: str
    """The setting and its value."""
    why: str = ""
    """What goes wrong otherwise."""
    advice: str = ""
    """What to do."""

    def __str__(self) -> str:
        return ". ".join(text for text in (f"{self.what}: {self.why}" if self.why else self.what, self.advice) if text)


class Rule(NamedTuple):
    """What a setting of Kafka must be."""

    name: str
    made: str
    """As `create` makes it."""
    holds: Callable[[str], bool]
    otherwise: Verdict
    why: str
    comes_late: bool = False
    """Whether mending it leaves the records as they are that the topic has already."""


RULES = (
    Rule(
        "message.timestamp.type", "LogAppendTime", lambda value: value == "LogAppendTime", Verdict.WRONG,
        "the time of a record is what a client says, and one from the year 3000 would expire every prediction that "
        "waits", comes_late=True,
    ),
    Rule(
        "cleanup.policy", "delete", lambda value: "compact" not in value, Verdict.WRONG,
        "compaction removes all events of a model but the last", comes_late=True,
    ),
    Rule(
        "max.message.bytes", str(LARGEST_RECORD), lambda value: int(value) >= LARGEST_RECORD, Verdict.WRONG,
        f"a JSON array is one record, and one that the service accepts may have {LARGEST_RECORD:,} bytes",
    ),
    Rule(
        "unclean.leader.election.enable", "false", lambda value: value == "false", Verdict.WRONG,
        "a broker that lacks acknowledged events may become the leader, and then they are lost",
    ),
    Rule(
        "retention.ms", "-1", lambda value: value == "-1", Verdict.WEAK,
        "a node that is away for longer cannot catch up; it must begin with a backup that is newer",
    ),
    Rule(
        "retention.bytes", "-1", lambda value: value == "-1", Verdict.WEAK,
        "a node that is further behind in a partition cannot catch up; it must begin with a backup that is newer",
    ),
)  # fmt: skip


def findings(brokers: Brokers, topic: str, copies: int = 1) -> list[Finding]:
    """What is right and what is wrong with a topic. Raises NoBroker, NoTopic, BrokersRefuse.

    copies: fewer are WRONG; fewer than COPIES are WEAK at least.
    """
    partitions = list(brokers.topic(topic).partitions.values())
    settings = _settings(brokers, topic)
    least, in_sync = min(len(partition.replicas) for partition in partitions), settings.get(IN_SYNC)
    where = f"--bootstrap-server {brokers.address} --entity-type topics --entity-name {topic}"
    return [
        _of_number(len(partitions)),
        _of_copies(least, copies),
        _not_told(IN_SYNC) if in_sync is None else _of_copies_in_sync(least, int(in_sync), where),
        *(_of_rule(rule, settings.get(rule.name), where) for rule in RULES),
        *_of_brokers_that_are_away(partitions, int(in_sync or 1)),
    ]


def faults(brokers: Brokers, topic: str) -> list[Finding]:
    """What is wrong with a topic, and what is weak. Raises as `findings` does."""
    return [found for found in findings(brokers, topic) if found.verdict is not Verdict.RIGHT]


def create(brokers: Brokers, topic: str, copies: int = COPIES) -> list[Finding]:
    """Make the topic of a log, and look at it. Raises NoBroker, TopicExists, BrokersRefuse."""
    settings = {rule.name: rule.made for rule in RULES} | {IN_SYNC: str(_in_sync(copies))}
    new = NewTopic(topic, PARTITIONS, copies, config=settings)
    try:
        brokers.admin.create_topics([new], request_timeout=brokers.patience)[topic].result()
    except KafkaException as failure:
        if failure.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
            raise TopicExists(topic=topic, brokers=brokers.address) from None
        raise _refusal(brokers, failure, f"Create and DescribeConfigs of the topic {topic}") from None
    _wait_until_known(brokers, topic)
    return findings(brokers, topic, copies)


def _wait_until_known(brokers: Brokers, topic: str) -> None:
    """Wait until each broker knows the topic: a client asks any of them, and each learns of it by itself."""
    deadline = time.monotonic() + brokers.patience
    for one in brokers.members():
        while time.monotonic() < deadline:
            with suppress(NoBroker, NoTopic):
                one.topic(topic)
                break
            time.sleep(AGAIN_SECONDS)


def _settings(brokers: Brokers, topic: str) -> dict[str, str]:
    """The settings of a topic that hold, whoever set them; none if the brokers cannot tell."""
    asked, deadline = ConfigResource(ConfigResource.Type.TOPIC, topic), time.monotonic() + brokers.patience
    while True:
        try:
            told = brokers.admin.describe_configs([asked], request_timeout=brokers.patience)[asked].result()
            return {name: entry.value for name, entry in told.items()}
        except KafkaException as failure:
            code = failure.args[0].code()
            if code == KafkaError._UNSUPPORTED_FEATURE:  # noqa: SLF001
                return {}
            # Another broker knows it already. This one may not have heard of it yet.
            if code != KafkaError.UNKNOWN_TOPIC_OR_PART or time.monotonic() > deadline:
                raise _refusal(brokers, failure, f"Describe and DescribeConfigs of the topic {topic}") from None
        time.sleep(AGAIN_SECONDS)


def _refusal(brokers: Brokers, failure: Any, rights: str) -> Exception:
    """rights: those that the user needs."""
    error = failure.args[0]
    if error.code() < 0:  # an error of librdkafka itself: nobody answered
        return brokers.no_answer(failure)
    reason = error.str()
    if error.code() == KafkaError.INVALID_REPLICATION_FACTOR:
        reason += " For development on one broker: --replication 1"
    if error.code() in DENIED:
        reason = f"{reason.rstrip('.')} (the user needs the rights {rights})"
    return BrokersRefuse(brokers=brokers.address, reason=reason.rstrip("."))


# -- one setting


def _of_number(number: int) -> Finding:
    if number == PARTITIONS:
        return Finding(Verdict.RIGHT, f"{number} partitions")
    why = f"it must have {PARTITIONS}, since a model's partition follows from that number"
    return Finding(Verdict.WRONG, f"{number} partitions", why, NEW_TOPIC)


def _of_copies(least: int, copies: int) -> Finding:
    what = f"{_copies(least)} of each partition"
    if least >= COPIES:
        return Finding(Verdict.RIGHT, what)
    why = (
        "an acknowledged event is on one machine alone, and is lost with it"
        if least == 1
        else "while one broker is away, nothing can be learned, or what is learned is on one machine alone"
    )
    return Finding(Verdict.WRONG if least < copies else Verdict.WEAK, what, why, MORE_COPIES)


def _of_copies_in_sync(least: int, in_sync: int, where: str) -> Finding:
    what, advice = f"{IN_SYNC}={in_sync}", _alter(where, IN_SYNC, str(_in_sync(least)))
    if in_sync > least:
        return Finding(Verdict.WRONG, what, f"with {_copies(least)} of a partition nothing can be written", advice)
    if in_sync < _in_sync(least):
        why = "an event may be acknowledged when it is on one machine alone, and is lost with it"
        return Finding(Verdict.WRONG, what, why, advice)
    if in_sync == least > 1:
        why = "while any broker is away, nothing can be learned"
        return Finding(Verdict.WEAK, what, why, MORE_COPIES if least < COPIES else advice)
    return Finding(Verdict.RIGHT, what)


def _of_rule(rule: Rule, value: str | None, where: str) -> Finding:
    if value is None:
        return _not_told(rule.name)
    what = f"{rule.name}={value}"
    if rule.holds(value):
        return Finding(Verdict.RIGHT, what)
    advice = _alter(where, rule.name, rule.made)
    if rule.comes_late:
        advice = f"{NEW_TOPIC}; only if nothing was written to this one yet: {advice}"
    return Finding(rule.otherwise, what, rule.why, advice)


def _of_brokers_that_are_away(partitions: Iterable[Any], needed: int) -> Iterator[Finding]:
    """What passes when they come back."""
    away = sorted(one.id for one in partitions if one.leader < 0 or len(one.isrs) < min(needed, len(one.replicas)))
    if away:
        named = ", ".join(map(str, away[:SHOWN_PARTITIONS])) + (", ..." if len(away) > SHOWN_PARTITIONS else "")
        what = f"{len(away)} partition(s) with too few copies in sync ({named})"
        yield Finding(Verdict.WEAK, what, "their models cannot learn now", "Start the brokers that are away")


def _not_told(name: str) -> Finding:
    return Finding(Verdict.WEAK, name, "these brokers do not tell it", "See in their own documentation what holds")


def _in_sync(copies: int) -> int:
    """How many copies must have an event before it is acknowledged."""
    return min(2, copies)


def _copies(number: int) -> str:
    return "1 copy" if number == 1 else f"{number} copies"


def _alter(where: str, name: str, value: str) -> str:
    return f"kafka-configs.sh {where} --alter --add-config {name}={value}"
