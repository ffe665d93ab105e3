"""Nodes of one topic, and what the topic itself says that they must have learned."""

from __future__ import annotations

import json
import time
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import httpx
import msgspec
import numpy as np
from broker import Broker
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition
from harness import Service, Start
from patience import PATIENCE, eventually

from core import Learner, Spec
from service.brokers import Brokers
from service.failures import BrokersRefuse, NoBroker, NoTopic, TopicExists
from service.replica import topic
from service.replica.records import partition_of

AGAIN = (httpx.TransportError,)


class Nodes:
    """The nodes of a topic, and where their folders are."""

    def __init__(self, brokers: Broker, name: str, start: Start) -> None:
        self.brokers, self.topic, self._start = brokers, name, start

    def start(self, *flags: str, brokers: str = "", **how: Any) -> Service:
        """A node, by default on an empty folder; `how`: see Starter."""
        return self._start("--kafka", brokers or self.brokers.address, "--topic", self.topic, *flags, **how)

    def records(self, model: str = "default") -> Iterator[tuple[dict[str, bytes], bytes]]:
        """Headers and value of the records of a model's partition, in order, as another program reads them."""
        for message in self.messages([partition_of(model.encode(), topic.PARTITIONS)]):
            if (message.key() or b"").decode() == model:
                yield dict(message.headers()), message.value()

    def messages(
        self, partitions: Iterable[int] = range(topic.PARTITIONS), places: Mapping[int, int] | None = None
    ) -> Iterator[Any]:
        """All that some partitions have now, each in its order, and perhaps some of what others write meanwhile.
        places: from which offset on, the beginning by default."""
        settings = {"group.id": "oracle", "isolation.level": "read_committed", "enable.partition.eof": True}
        settings["auto.offset.reset"] = "error"  # it must miss nothing
        consumer = Consumer({"bootstrap.servers": self.brokers.address, "log_level": "0", **settings})
        left = set(partitions)
        consumer.assign([TopicPartition(self.topic, p, (places or {}).get(p, OFFSET_BEGINNING)) for p in left])
        until = time.monotonic() + 2 * PATIENCE
        try:
            # A consumer does not tell that it is at the end of a partition as long as others go on to write to it.
            ends = eventually(partial(_ends, consumer, self.topic, left), "where the partitions end")
            while left:
                message = consumer.poll(1.0)
                assert time.monotonic() < until, f"no end of partitions {left}"
                if message is None:
                    continue
                if message.error() is None:
                    yield message
                    if message.offset() + 1 >= ends[message.partition()]:
                        left.discard(message.partition())
                elif message.error().code() == KafkaError._PARTITION_EOF:  # noqa: SLF001
                    left.discard(message.partition())
                else:
                    assert message.error().code() != KafkaError._AUTO_OFFSET_RESET, message.error()  # noqa: SLF001
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


def _ends(consumer: Consumer, name: str, partitions: Iterable[int]) -> dict[int, int] | None:
    try:
        return {p: consumer.get_watermark_offsets(TopicPartition(name, p), PATIENCE)[1] for p in partitions}
    except KafkaException:  # another broker leads a partition now
        return None


def make_topic(brokers: Broker, name: str, copies: int = 3) -> None:
    """Make a topic. Brokers that have just come back may answer late, and are asked again."""
    asked = Brokers(brokers.address, {})

    def is_there() -> bool:
        with suppress(NoBroker, NoTopic, BrokersRefuse):
            try:
                topic.create(asked, name, copies)
            except TopicExists:  # an answer has not come
                for one in asked.members():
                    one.topic(name)
            return True
        return False

    eventually(is_there, f"the topic {name}")


def state(node: Service, model: str = "default", seen: str = "") -> tuple[int, str]:
    """seq and SHA-256 of a model, once a node has applied what a reply of another node saw."""
    headers = {"x-logstep-offset": seen} if seen else {}
    reply = node.http.get(f"/models/{model}", headers=headers)
    assert reply.status_code == 200, reply.text
    told = reply.json()
    return told["seq"], told["sha256"]


def unready(node: Service) -> str:
    """Why a node is not ready; "" if it is."""
    reply = node.http.get("/readyz")
    return "" if reply.status_code == 200 else str(reply.json()["detail"])


def ready(node: Service) -> bool:
    return not unready(node)


def lag(node: Service) -> float:
    """How many records are not applied, as the metrics tell."""
    told = next(
        line for line in node.http.get("/metrics").text.splitlines() if line.startswith("logstep_topic_lag_rec")
    )
    return float(told.split()[-1])


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


def flip_a_bit(model: str, after: int = 0) -> None:
    """What a node does first: once a model has learned so many events, one bit of its weights changes."""
    from service.learning.model import Model

    learn = Model.learn

    def learn_and_flip(self: Any, batch: Any) -> Any:
        outcome = learn(self, batch)
        if self.name == model and self.learner.seq >= after:
            Model.learn = learn  # type: ignore[method-assign]  # a fault
            self.learner._model.state.w.view("u1")[3] ^= 1  # noqa: SLF001
        return outcome

    Model.learn = learn_and_flip  # type: ignore[method-assign]  # a fault


# -- what must have been learned


class Life(NamedTuple):
    """What an id stands for: waiting, dropped, or an event: learned, joined, expired, late."""

    kind: str
    seq: int = 0
    x: Any = None
    y: int = 0
    weight: float = 1.0


class RefusedError(Exception):
    """An item is refused."""


class Plain:
    """A model that takes its records the plain way: one event after the other, each id in a dict."""

    def __init__(self, spec: Any = None) -> None:
        self.spec = Spec() if spec is None else Spec.from_dict(spec)
        self.learner = Learner(self.spec)
        self.losses: list[float] = []
        """Of the events since the breaker was last closed."""
        self.stops_at: int | None = None
        """The last event that the breaker lets the model learn."""
        self.ids: dict[str, Life] = {}
        self.waiting: dict[str, int] = {}
        """When each prediction was kept, in microseconds since 1970, the oldest first."""
        self.p: list[float] = []
        """What was predicted before each event."""

    def expire(self, at: int) -> None:
        """Time out what is due, but nothing while the model has stopped."""
        keep = self.spec.join.keep_seconds
        for id_ in [id_ for id_, kept_at in self.waiting.items() if kept_at / 1e6 + keep <= at / 1e6]:
            if self.stopped:
                return
            del self.waiting[id_]
            x = self.ids[id_].x
            if self.spec.join.on_timeout == "negative":
                self._step(x, 0, 1.0)
                self.ids[id_] = Life("expired", self.learner.seq, x)
            else:
                self.ids[id_] = Life("dropped")

    def take(self, items: Sequence[Any], at: int, *, whole: bool) -> bool:
        """Learn events and labels. Whether one is refused: then nothing is learned if all or none is, else what comes
        before it."""
        if not whole:
            return any(self.take([item], at, whole=True) for item in items)
        ids, steps, may_learn = ChainMap({}, self.ids), list[tuple[Any, int, float]](), not self.stopped
        for item in items:
            try:
                self._item(item, ids, steps)
            except RefusedError:
                return True
            if steps and not may_learn:
                return True
        self._became(ids.maps[0], at)
        for step in steps:
            self._step(*step)
        return False

    def keep(self, kept: Sequence[Any], at: int, *, whole: bool) -> bool:
        """The same for predictions."""
        ids, refused = ChainMap({}, self.ids), False
        for id_, x, *_ in kept:
            life = ids.get(id_, Life("dropped"))
            if life.kind == "dropped":
                ids[id_] = Life("waiting", x=x)
            elif life.kind != "waiting" or plain(life.x) != plain(x):
                refused = True
                break
        if not (refused and whole):
            self._became(ids.maps[0], at)
        return refused

    def _item(self, item: dict[str, Any], ids: ChainMap[str, Life], steps: list[tuple[Any, int, float]]) -> None:
        id_, y, weight = item.get("id"), int(item["y"]), item.get("weight", 1.0)
        x = item.get("x")
        life = Life("dropped") if id_ is None else ids.get(id_, Life("dropped"))
        kind = "learned"
        if life.kind == "dropped":
            if x is None:
                raise RefusedError
        elif x is not None and plain(x) != plain(life.x):
            raise RefusedError
        elif life.kind == "waiting":
            x, kind = life.x, "joined"
        elif life.kind == "expired":
            if self.spec.join.late == "refuse":
                raise RefusedError
            if not y:
                return
            x, kind = life.x, "late"
        elif (life.y, life.weight) != (y, weight):
            raise RefusedError
        else:
            return
        steps.append((x, y, weight))
        if id_ is not None:
            ids[id_] = Life(kind, self.learner.seq + len(steps), x, y, weight)

    def _became(self, ids: Mapping[str, Life], at: int) -> None:
        self.ids.update(ids)
        for id_, life in ids.items():
            self.waiting.pop(id_, None)
            if life.kind == "waiting":
                self.waiting[id_] = at

    def _step(self, x: Any, y: int, weight: float) -> None:
        outcome = self.learner.learn_many([x], [y], [weight])
        self.p.append(float(outcome.probabilities[0]))
        if (breaker := self.spec.breaker) is None or not outcome.learned[0]:
            return
        self.losses.append(float(outcome.losses[0]))
        last = self.losses[-breaker.events :]
        if self.stops_at is None and len(last) == breaker.events and sum(last) / len(last) > breaker.log_loss:
            self.stops_at = self.learner.seq + breaker.events

    @property
    def stopped(self) -> bool:
        """Whether its breaker keeps it from learning."""
        return self.stops_at is not None and self.learner.seq >= self.stops_at

    def resume(self) -> None:
        """Let it learn again, also if it has not come to where it stops."""
        if self.stops_at is not None:
            self.losses, self.stops_at = [], None

    @property
    def state(self) -> State:
        """What is compared."""
        return State(self.learner.seq, self.learner.sha256(), len(self.waiting), self.stops_at)


class State(NamedTuple):
    """What is compared of a model. stops_at: the last event before its breaker stops it."""

    seq: int
    sha256: str
    waiting: int
    stops_at: int | None

    @property
    def stopped(self) -> bool:
        return self.stops_at is not None and self.seq >= self.stops_at


NOTHING = b"{"
"""What is no record."""


class Oracle:
    """What the records of a topic say, applied the plain way, by nothing of the service."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self.models = {"default": Plain()}
        self.lives: dict[str, list[Plain]] = {"default": [self.models["default"]]}
        """Each model, and those of its name that were deleted before."""
        self.places: dict[int, int] = {}
        """The offset in each partition up to which it has read."""
        self._times: dict[int, int] = {}
        self._broken: set[bytes] = set()

    def read(self) -> None:
        """Read on to the end of the topic."""
        for message in self._nodes.messages(places=self.places):
            partition = message.partition()
            self.places[partition] = message.offset() + 1
            at = self._times[partition] = max(message.timestamp()[1] * 1_000, self._times.get(partition, 0))
            self._apply((message.key() or b"").decode(), dict(message.headers() or ()), message.value(), at)

    def _apply(self, name: str, headers: dict[str, bytes], value: bytes, at: int) -> None:
        do, model = headers.get("do", b"").decode(), self.models.get(name)
        if do == "put" and model is None:
            self._begin(name, Plain(json.loads(value)))
        if model is None:
            self._broken.add(headers.get("stream", b""))
            return
        model.expire(at)
        stream = headers.get("stream")
        if do == "resume":
            model.resume()
        elif do == "delete":
            del self.models[name]
            if name == "default":
                self._begin(name, Plain())
        elif do in ("learn", "part", "table", "keep", "kept"):
            if stream in self._broken:
                return
            if value == NOTHING:
                return
            if do.startswith("ke"):
                refused = model.keep(msgspec.msgpack.decode(value), at, whole=stream is None)
            else:
                refused = model.take(rows(value) if do == "table" else events(value), at, whole=stream is None)
            if refused and stream is not None:
                self._broken.add(stream)

    def _begin(self, name: str, model: Plain) -> None:
        self.models[name] = model
        self.lives.setdefault(name, []).append(model)

    @property
    def states(self) -> dict[str, State]:
        return {name: model.state for name, model in self.models.items()}


def plain(x: Any) -> dict[str, Any]:
    """Features by name, each a number or a text."""
    named = {str(i): value for i, value in enumerate(x)} if isinstance(x, list) else x
    return {name: value if isinstance(value, str) else float(value) for name, value in named.items()}


def events(value: bytes) -> list[dict[str, Any]]:
    """The items of a record in JSON. The service writes every member of an event, and of a label no x."""
    items = json.loads(value)
    return items if isinstance(items, list) else [items]


def rows(value: bytes) -> list[dict[str, Any]]:
    """The events of a record in columns."""
    count, names, values, present, labels, weights, ids, texts = msgspec.msgpack.decode(value, strict=False)
    table = np.frombuffer(values).reshape(count, len(names))
    there = np.ones_like(table, bool) if present is None else np.frombuffer(present, bool).reshape(table.shape)
    words = {int(j): [told[code] for code in np.frombuffer(codes, np.int32)] for j, (codes, told) in texts.items()}
    heavy = [1.0] * count if weights is None else np.frombuffer(weights).tolist()
    return [
        {
            "x": {n: words[j][i] if j in words else table[i, j] for j, n in enumerate(names) if there[i, j]},
            "y": labels[i],
            "weight": heavy[i],
            "id": None if ids is None else ids[i],
        }
        for i in range(count)
    ]
