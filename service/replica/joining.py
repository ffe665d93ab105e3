"""Which topic a node follows, and whether its folder may follow it: not another topic, nor one made again, nor one that
lacks what the folder has or needs."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from service.brokers import Brokers
from service.failures import NoBroker, WrongTopic
from service.replica import rules, topic
from service.replica.link import Link
from service.replica.records import Do, Record
from service.settings import Settings
from service.storage.positions import Position, TopicName

logger = logging.getLogger("logstep")

HELD_BACK = "its first record is not there yet; an import may be under way"
BEGIN_AGAIN = "Begin with a backup of another node (`logstep backup`)"
IF_MADE_AGAIN = "If the topic was made again, no folder of before follows it: this one serves alone, without --kafka"


class Found(NamedTuple):
    """A topic as the brokers tell it. ranges: the first offset of each partition, and the one after its last."""

    topic: TopicName
    ranges: list[tuple[int, int]]


def find(brokers: Brokers, link: Link, settings: Settings) -> Found:
    """Look at the topic, and begin its log if it is empty. Waits for the brokers. WrongTopic if no node may serve it,
    or not one with these settings."""
    name = settings.topic
    for fault in topic.faults(brokers, name):
        if fault.verdict is topic.Verdict.WRONG:
            raise WrongTopic(reason=str(fault))
        logger.warning("topic %s: %s", name, fault)
    ours = rules.rules_of(settings)
    ranges = link.ranges(topic.PARTITIONS)
    if ranges[0][0] == 0:  # else retention has dropped it, and a folder that followed the topic before knows the rules
        first = link.first_record()
        if first is None:
            link.write_first(rules.encoded(ours).encode())  # of several that begin at once, the first counts
            first = link.first_record()
        if first is None:
            raise NoBroker(brokers=brokers.address, reason=HELD_BACK)
        check_rules(_rules_in(first, name), ours)
    return Found(TopicName(name, brokers.topic_id(name), rules.encoded(ours)), ranges)


def _rules_in(first: Record, name: str) -> dict[str, Any]:
    with suppress(ValueError):
        if first.do == Do.BEGIN.value and isinstance(found := json.loads(first.value), dict):
            return found
    raise WrongTopic(reason=f"the first record of the topic {name!r} does not begin a log of logstep")


def check_rules(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    if different := rules.differences(theirs, ours):
        raise WrongTopic(reason=f"its rules are not those of this node: {different}")


def check_new(found: Found, folder: Path, *, empty: bool) -> None:
    """Refuse what a folder that follows no topic may not begin with."""
    if not empty:
        raise WrongTopic(
            reason=f"{folder} has a log of its own, which is not in the topic. Begin with an empty folder or a node's "
            "backup, or make a topic of that log with `logstep kafka import`"
        )
    for partition, (low, _) in enumerate(found.ranges):
        if low > 0:
            reason = f"its partition {partition} begins at record {low}: what was before is gone. {BEGIN_AGAIN}"
            raise WrongTopic(reason=reason)


def check_followed(found: Found, followed: TopicName, reached: Mapping[int, Position]) -> None:
    """Refuse a topic that is not the one that a folder has followed so far."""
    check_rules(json.loads(followed.rules), json.loads(found.topic.rules))
    if followed != found.topic:
        before, now = (f"{one.name!r} with the id {one.id or 'unknown'}" for one in (followed, found.topic))
        reason = f"this folder follows the topic {before}, and this one is {now}. {IF_MADE_AGAIN}"
        raise WrongTopic(reason=reason)
    for partition, (low, high) in enumerate(found.ranges):
        position = reached.get(partition)
        if position is not None and position.record >= high:
            raise WrongTopic(
                reason=f"its partition {partition} ends at record {high - 1}, but this folder has applied record "
                f"{position.record}: the end of the topic is lost, or it is another topic"
            )
        needed = 0 if position is None else position.whole + 1
        if needed < low:
            raise WrongTopic(
                reason=f"its partition {partition} begins at record {low}, but this folder goes on at record {needed}, "
                f"which is gone. {BEGIN_AGAIN}"
            )
