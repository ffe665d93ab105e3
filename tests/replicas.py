"""Nodes of one topic, and what the topic itself says that they must have learned."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from broker import Broker
from confluent_kafka import Consumer, TopicPartition
from harness import Service, Start
from patience import PATIENCE, eventually

from core import Learner
from service.brokers import Brokers
from service.replica import topic
from service.replica.records import partition_of

AGAIN = (httpx.TransportError,)


class Nodes:
    """The nodes of a topic, and where their folders are."""

    def __init__(self, brokers: Broker, name: str, start: Start) -> None:
        self.brokers, self.topic, self._start = brokers, name, start

    def start(self, *flags: str, folder: Path | None = None, ready: bool = True, brokers: str = "") -> Service:
        """A node, by default on an empty folder."""
        kafka = ("--kafka", brokers or self.brokers.address, "--topic", self.topic)
        return self._start(*kafka, *flags, folder=folder, ready=ready)

    def records(self, model: str = "default") -> Iterator[tuple[dict[str, bytes], bytes]]:
        """Headers and value of the records of a model's partition, in order, as another program reads them."""
        consumer = Consumer(
            {"bootstrap.servers": self.brokers.address, "group.id": "oracle", "isolation.level": "read_committed"}
        )
        place = TopicPartition(self.topic, partition_of(model.encode(), topic.PARTITIONS), 0)
        consumer.assign([place])
        try:
            _, end = consumer.get_watermark_offsets(place, PATIENCE)
            offset = -1
            while offset < end - 1:
                message = consumer.poll(PATIENCE)
                assert message is not None
                assert message.error() is None
                offset = message.offset()
                if (message.key() or b"").decode() == model:
                    yield dict(message.headers()), message.value()
        finally:
            consumer.close()

    def learned(self, model: str = "default") -> tuple[int, str]:
        """seq and SHA-256 of a plain learner that has taken the model's events from the topic, each id once. Only for
        events that come one by one or in arrays, whole or none."""
        learner, ids = Learner(), set[str]()
        for headers, value in self.records(model):
            if headers["do"] != b"learn":
                continue
            events = json.loads(value)
            for event in events if isinstance(events, list) else [events]:
                if event["id"] is None or event["id"] not in ids:
                    ids.add(event["id"])
                    learner.learn_one(event["x"], int(event["y"]), w=event["weight"])
        return learner.seq, learner.sha256()


def make_topic(brokers: Broker, name: str, copies: int = 3) -> None:
    topic.create(Brokers(brokers.address, {}), name, copies)


def state(node: Service, model: str = "default", seen: str = "") -> tuple[int, str]:
    """seq and SHA-256 of a model, once a node has applied what a reply of another node saw."""
    headers = {"x-logstep-offset": seen} if seen else {}
    reply = node.http.get(f"/models/{model}", headers=headers)
    assert reply.status_code == 200, reply.text
    told = reply.json()
    return told["seq"], told["sha256"]


def seen(node: Service, model: str = "default") -> str:
    """What a reply of a node says that it has applied."""
    return str(node.http.get(f"/models/{model}").headers["x-logstep-offset"])


def insist(ask: Callable[[], httpx.Response], seconds: float = 60.0) -> httpx.Response:
    """Ask until somebody answers with something else than 503."""
    until = time.monotonic() + seconds
    while True:
        try:
            reply = ask()
            if reply.status_code != 503:
                return reply
            why: Any = reply.text
        except AGAIN as error:
            why = error
        assert time.monotonic() < until, why
        time.sleep(0.05)


def agree(nodes: list[Service], model: str = "default") -> tuple[int, str]:
    """Wait until all nodes have the same model, and return seq and SHA-256."""

    def same() -> tuple[int, str] | None:
        found = {state(node, model) for node in nodes}
        return found.pop() if len(found) == 1 else None

    result: tuple[int, str] = eventually(same, "all nodes to agree")
    return result
