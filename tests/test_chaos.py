"""The chaos story of nodes of one topic: clients send what clients send, again until it is acknowledged, while nodes
and brokers are killed, stopped and lost, the topic forgets, and another program writes to it too. In the end all nodes
and a fresh one have what an oracle makes of the topic, to the bit, and all that was acknowledged is there once."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from broker import Cluster, Relay
from confluent_kafka import KafkaException, Producer
from effort import amount, from_checks_on
from forked import elsewhere
from golden.make import WITHOUT_FMA
from harness import HOST, LOST, NDJSON, Service, Start, ndjson
from patience import PATIENCE, eventually
from processes import ids_in
from replicas import NOTHING, Nodes, Oracle, State, flip_a_bit, lag, make_topic, ready, seen, state, unready
from test_arithmetic import ON_GLIBC

from service.commands import cli
from service.replica import topic
from service.replica.records import partition_of
from service.storage.ids import IdKind

INTERRUPTIONS = amount(quick=0, checks=6, long=300)
CLIENTS = 4
ANSWER_SECONDS = 4.0
"""How long a client waits for a reply before it asks another node."""
MAX_LAG = 3.0
FLAGS = ("--max-lag", str(MAX_LAG), "--stream-events", "100", "--snapshot-seconds", "0.01")
SPECS: dict[str, dict[str, Any]] = {
    "ads": {"rule": "adam", "scale": "standard", "join": {"keep": "2s", "on_timeout": "negative", "late": "learn"}},
    "late": {"rule": "adagrad", "join": {"keep": "1d"}},
    "guarded": {
        "learning_rate": 0.1,
        "scale": "standard",
        "breaker": {"events": 30, "log_loss": 0.75},
        "join": {"keep": "2s", "on_timeout": "negative", "late": "learn"},
    },
    "brief": {"rule": "ftrl"},
}
"""The models besides `default`. `brief` is deleted and made again. In `ads` and `guarded` predictions time out. The
breaker of `guarded` stops it now and then."""
KEPT = ("ads", "late", "guarded")
CAN_BE_CUT_OFF = 1
"""The node whose way to the brokers can be cut."""


def digest_often() -> None:
    """What a node does first, so that digests are compared in a story of two minutes."""
    from service.replica import digests

    digests.EVERY_SECONDS = 1.0


def flip_and_digest() -> None:
    digest_often()
    flip_a_bit("default")


@dataclass
class Acknowledged:
    """What a client was told of an event. seq: None if it was told of a whole stream. p: None of a duplicate."""

    model: str
    id: str
    seq: int | None = None
    p: float | None = None


class Story:
    """The nodes, the clients, and what goes wrong."""

    def __init__(self, cluster: Cluster, way: Relay, start: Start, below: Path, seed: int) -> None:
        self.cluster, self.way, self.below, self.seed = cluster, way, below, seed
        self.random = random.Random(seed)
        self.topic = f"chaos-{seed}"
        make_topic(cluster, self.topic)
        self._nodes = Nodes(cluster, self.topic, start)
        self.oracle = Oracle(self._nodes)
        self.services: list[Service] = []
        self.forgets = False
        """Whether the topic has dropped records, so that a node must begin with a backup."""
        self.over = threading.Event()
        self.wrong: list[str] = []
        self.told: Counter[str] = Counter()
        self._copies = itertools.count(1)

    def start(
        self,
        folder: Path | None = None,
        ready: bool = True,
        first: Callable[[], None] = digest_often,
        brokers: str = "",
    ) -> Service:
        return self._nodes.start(*FLAGS, folder=folder, ready=ready, first=first, brokers=brokers)

    def again(self, number: int, folder: Path | None = None) -> None:
        """Start a node again that has ended. Clients find it at its new port."""
        brokers = self.way.address if number == CAN_BE_CUT_OFF else ""
        self.services[number] = self.start(folder or self.services[number].folder, ready=False, brokers=brokers)
        self.services[number].wait_for_port()

    def backup(self, node: Service) -> Path:
        """A backup of a node that runs: a folder for another."""
        copy, folder = (self.below / f"{what}-{next(self._copies)}" for what in ("copy", "restored"))
        assert elsewhere(cli.main, ["backup", str(node.folder), str(copy)]) == 0
        shutil.move(copy, folder)
        return folder

    def start_fresh(self, ready: bool) -> Service:
        """A node that has nothing, or where the topic has dropped records, the backup of another."""
        return self.start(self.backup(self.services[self.any_node()]) if self.forgets else None, ready)

    def leader(self) -> int:
        return self.cluster.leader(self.topic, partition_of(b"default", topic.PARTITIONS))

    # -- what goes wrong

    def pause(self, least: float, most: float) -> None:
        time.sleep(self.random.uniform(least, most))

    def any_node(self) -> int:
        return self.random.randrange(len(self.services))

    def kill_node(self) -> None:
        number = self.any_node()
        self.services[number].kill()
        self.pause(0.0, 2.0)
        self.again(number)

    def stop_node(self) -> None:
        number = self.any_node()
        code = self.services[number].stop()
        if code:
            self.wrong.append(f"a clean stop gave {code}: {self.services[number].log[-2000:]}")
        self.again(number)

    def freeze_node(self) -> None:
        with self.services[self.any_node()].paused():
            self.pause(0.5, 2 * MAX_LAG)

    def cut_off_node(self) -> None:
        """From all brokers, as when a cable is pulled. It predicts all the same."""
        self.way.cut()
        self.pause(0.5, 2 * MAX_LAG)
        status, reply = self.services[CAN_BE_CUT_OFF].request("POST", "/predict", {"x": {"a": 1.0}})
        if status != 200:
            self.wrong.append(f"a node that is cut off: {status} {reply}")
        self.way.mend()

    def kill_leader(self) -> None:
        number = self.leader()
        self.cluster.kill(number)
        self.pause(0.0, 3.0)
        self.cluster.start(number)

    def freeze_leader(self) -> None:
        number = self.leader()
        self.cluster.pause(number)
        self.pause(1.0, 6.0)
        self.cluster.resume(number)

    def restart_brokers(self) -> None:
        """One after the other, each when the one before has all again."""
        for number in (1, 2, 3):
            eventually(lambda: self.cluster.in_sync(self.topic), "all copies to be in sync", PATIENCE)
            self.cluster.terminate(number)
            self.cluster.start(number)

    def lose_two_brokers(self) -> None:
        """Nothing can be written: `min.insync.replicas` is 2."""
        two = self.random.sample((1, 2, 3), 2)
        how = self.random.choice((self.cluster.kill, self.cluster.pause))
        for number in two:
            how(number)
        self.pause(1.0, 4.0)
        self.cluster.mend()

    def copy_a_node(self) -> None:
        """A backup of a node that is behind is the start of another, which takes its place."""
        number = self.any_node()
        old = self.services[number]
        with old.paused():
            self.pause(1.0, 2.0)
        folder = self.backup(old)
        old.kill()
        shutil.rmtree(old.folder)
        self.again(number, folder)

    def overtake_node(self) -> None:
        """The topic drops what a node that is away has not applied. It says so, and the backup of another takes its
        place."""
        number, other = self.random.sample(range(len(self.services)), 2)
        away = self.services[number]
        others = [service for service in self.services if service is not away]
        away.kill()
        place = partition_of(b"default", topic.PARTITIONS)
        at = positions_in(away.folder).get(place, 0)

        def applied() -> dict[int, int]:
            found = [positions_in(one.folder) for one in others]
            return {partition: min(one.get(partition, 0) for one in found) for partition in found[0]}

        eventually(lambda: applied().get(place, 0) > at + 1, "the others to be further", PATIENCE)
        gone = applied()
        self.oracle.read()
        self.cluster.drop_records(self.topic, gone)
        self.forgets = True
        refused = self.start(away.folder, ready=False)
        if refused.wait(PATIENCE) != 1 or "which is gone" not in refused.log:
            self.wrong.append(f"a node that was overtaken: {refused.log[-2000:]}")
        shutil.rmtree(away.folder)
        self.again(number, self.backup(self.services[other]))

    def flip_bit(self) -> None:
        """In the memory of a node that nobody asks. It finds that it differs, and ends."""
        differs = self.start(self.backup(self.services[self.any_node()]), False, flip_and_digest)
        if differs.wait(PATIENCE) != 1 or "are not those that its log gives" not in differs.log:
            self.wrong.append(f"a node with a flipped bit: {differs.log[-2000:]}")

    def other_library(self) -> None:
        """A node goes on where exp, log or pow give other bits: it is refused, and goes on where it was."""
        number = self.any_node()
        node = self.services[number]
        node.kill()
        env = ["env", *(f"{name}={value}" for name, value in WITHOUT_FMA.items())]
        with Service(node.folder, "--kafka", self.cluster.address, "--topic", self.topic, *FLAGS, told=env) as other:
            if other.wait(PATIENCE) != 1 or "how the processor and the C library compute" not in other.log:
                self.wrong.append(f"a node with another C library: {other.log[-2000:]}")
        self.again(number)

    def interruptions(self) -> Iterator[Callable[[], None]]:
        """Each kind before any comes again."""
        kinds = [
            self.kill_node, self.stop_node, self.freeze_node, self.cut_off_node, self.kill_leader,
            self.freeze_leader, self.restart_brokers, self.lose_two_brokers, self.copy_a_node, self.overtake_node,
            self.flip_bit, *([self.other_library] if ON_GLIBC else ()),
        ]  # fmt: skip
        while True:
            self.random.shuffle(kinds)
            yield from kinds

    def wait_until_all_are_ready(self, after: str) -> None:
        until = time.monotonic() + PATIENCE
        for service in self.services:
            while (unready := readiness(service)) is not None:
                assert time.monotonic() < until, f"after {after}: {unready} (seed {self.seed})"
                time.sleep(0.1)


def readiness(service: Service) -> Any:
    """Why a node is not ready, None if it is."""
    code = service.process.poll()
    assert code is None, f"a node ended with {code}\n{service.log[-3000:]}"
    try:
        status, reply = service.request("GET", "/readyz")
    except LOST as error:
        return error
    return None if status == 200 else reply


class Client(threading.Thread):
    """Sends what clients send, to any node, and again until somebody answers."""

    def __init__(self, story: Story, number: int) -> None:
        super().__init__(daemon=True)
        self.story, self.number = story, number
        self.random = random.Random(story.seed * 100 + number)
        self.acknowledged: list[Acknowledged] = []
        self._events: dict[str, tuple[str, dict[str, Any]]] = {}
        """Acknowledged events by id: model and event."""
        self._kept: list[tuple[str, str]] = []
        """Predictions that wait: model and id."""
        self._ids = (f"{number}-{i}" for i in itertools.count(1))
        self._connections: dict[int, HTTPConnection] = {}

    def run(self) -> None:
        does: dict[Callable[[], None], int] = {
            self.event: 40, self.array: 10, self.stream: 4, self.prediction: 16, self.label: 12, self.same: 6,
            self.other: 6, self.model: 2, self.resume: 1,
        }  # fmt: skip
        try:
            while not self.story.over.is_set():
                self.random.choices(list(does), list(does.values()))[0]()
        except Exception as error:
            self.story.wrong.append(f"client {self.number}: {error!r}")
        finally:
            for connection in self._connections.values():
                connection.close()

    # -- asking

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, str]:
        """Status, reply, and how far the node was; asked until a node answers."""
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json", **headers} if data is not None else headers
        until = time.monotonic() + 120
        while True:
            port = self.random.choice(self.story.services).port
            try:
                if port not in self._connections:
                    self._connections[port] = HTTPConnection(HOST, port, timeout=ANSWER_SECONDS)
                connection = self._connections[port]
                connection.request(method, path, data, headers)
                response = connection.getresponse()
                text = response.read()
                if response.status != 503:
                    self.story.told[f"{method} {response.status}"] += 1
                    return response.status, json.loads(text) if text else None, response.headers["x-logstep-offset"]
                why = text.decode()
            except LOST as error:
                self._connections.pop(port).close()
                why = repr(error)
            self.story.told["again"] += 1
            assert time.monotonic() < until, f"nobody answers: {why}"
            time.sleep(0.05)

    def some_model(self) -> str:
        return self.random.choice(("default", "default", "ads", "late", "guarded", "brief"))

    def new_event(self) -> dict[str, Any]:
        pick = self.random
        x: dict[str, Any] = {"a": pick.choice((0.5, 1.0, -2.0)), f"b{pick.randrange(40)}": 1.0}
        if pick.random() < 0.5:
            x["word"] = pick.choice(("red", "green", "blue"))
        if pick.random() < 0.3:
            x["vip"] = pick.random() < 0.5
        event = {"x": x, "y": pick.randrange(2), "id": next(self._ids)}
        return event | ({"weight": 0.5} if pick.random() < 0.1 else {})

    def learned(self, model: str, event: dict[str, Any], reply: dict[str, Any]) -> None:
        self.acknowledged.append(Acknowledged(model, event["id"], reply["seq"], reply["p"]))
        self._events[event["id"]] = model, event

    def expect(self, holds: bool, what: str) -> None:
        assert holds, what

    def learns_no_more(self, model: str, status: int, reply: Any) -> bool:
        """Whether a model is not there now, or its breaker has stopped it."""
        stopped = model == "guarded" and status == 409 and reply["type"] == "urn:logstep:learning-stopped"
        self.story.told["stopped"] += stopped
        return stopped or (status, model) == (404, "brief")

    # -- what clients send

    def event(self) -> None:
        model, event = self.some_model(), self.new_event()
        status, reply, place = self.ask("POST", f"/models/{model}/learn", event)
        if self.learns_no_more(model, status, reply):
            return
        self.expect(status == 200, f"{event} of {model}: {status} {reply}")
        self.learned(model, event, reply)
        if model != "brief" and self.random.random() < 0.2:  # reads see writes, on any node
            _, told, _ = self.ask("POST", f"/models/{model}/predict", {"x": event["x"]}, **{"x-logstep-offset": place})
            self.expect(told["seq"] >= reply["seq"], f"{event} of {model} was {reply}, and then {told}")

    def array(self) -> None:
        model, events = self.some_model(), [self.new_event() for _ in range(self.random.randint(2, 20))]
        status, reply, _ = self.ask("POST", f"/models/{model}/learn", events)
        if self.learns_no_more(model, status, reply):
            return
        self.expect(status == 200, f"an array of {model}: {status} {reply}")
        for event, told in zip(events, reply, strict=True):
            self.learned(model, event, told)

    def stream(self) -> None:
        """Lines; those of one shape travel as a table."""
        model, events = self.some_model(), [self.new_event() for _ in range(self.random.randint(20, 700))]
        if self.random.random() < 0.6:
            for i, event in enumerate(events):
                event["x"] = {"a": float(i % 5), "word": self.random.choice("xyz"), "n": i}
                event.pop("weight", None)
        status, reply, _ = self.ask("POST", f"/models/{model}/learn", ndjson(events), **NDJSON)
        if self.learns_no_more(model, status, reply):
            self.acknowledged += [Acknowledged(model, event["id"]) for event in events[: reply.get("line", 1) - 1]]
            return
        ok = status == 200 and reply["learned"] + reply["duplicates"] == len(events)
        self.expect(ok, f"{len(events)} lines of {model}: {status} {reply}")
        self.acknowledged += [Acknowledged(model, event["id"]) for event in events]

    def prediction(self) -> None:
        model, asked = self.random.choice(KEPT), self.new_event()
        question = {"x": asked["x"], "id": asked["id"]}
        status, reply, _ = self.ask("POST", f"/models/{model}/predict", question)
        if status == 409 and model != "late":  # it was kept, and timed out before it was asked again
            return
        self.expect(status == 200 and reply["kept"], f"a prediction of {model}: {status} {reply}")
        self._kept.append((model, asked["id"]))

    def label(self) -> None:
        """Soon or late."""
        if not self._kept:
            return
        model, id_ = self._kept.pop(self.random.randrange(len(self._kept)))
        status, reply, _ = self.ask("POST", f"/models/{model}/learn", {"id": id_, "y": self.random.randrange(2)})
        if self.learns_no_more(model, status, reply):
            self._kept.append((model, id_))
            return
        self.expect(status == 200, f"a label of {model}: {status} {reply}")
        self.acknowledged.append(Acknowledged(model, id_, reply["seq"], reply["p"]))

    def same(self) -> None:
        """What was acknowledged, once more."""
        if not self._events:
            return
        model, event = self._events[self.random.choice(list(self._events))]
        status, reply, _ = self.ask("POST", f"/models/{model}/learn", event)
        if model != "brief":
            self.expect(status == 200 and reply["duplicate"], f"{event} of {model} again: {status} {reply}")

    def other(self) -> None:
        """Its id with another label, alone or in the middle of an array or a stream."""
        if not self._events:
            return
        model, event = self._events[self.random.choice(list(self._events))]
        if model == "brief":
            return
        conflict = {**event, "y": 1 - event["y"]}
        before, after = self.new_event(), self.new_event()
        how = self.random.randrange(3)
        if how == 0:
            status, reply, _ = self.ask("POST", f"/models/{model}/learn", conflict)
        elif how == 1:
            status, reply, _ = self.ask("POST", f"/models/{model}/learn", [before, conflict, after])
        else:
            body = ndjson([before, conflict, after])
            status, reply, _ = self.ask("POST", f"/models/{model}/learn", body, **NDJSON)
            if self.learns_no_more(model, status, reply):
                return
            self.expect(reply.get("line") == 2, f"{reply}")
            self.acknowledged.append(Acknowledged(model, before["id"]))
        self.expect(status == 409, f"{conflict} of {model} again: {status} {reply}")

    def model(self) -> None:
        if self.random.random() < 0.5:
            self.ask("DELETE", "/models/brief")
        status, reply, _ = self.ask("PUT", "/models/brief", SPECS["brief"])
        self.expect(status in (200, 201), f"a new model: {status} {reply}")

    def resume(self) -> None:
        status, reply, _ = self.ask("POST", "/models/guarded/resume")
        self.expect(status == 200, f"to resume: {status} {reply}")


class Stranger(threading.Thread):
    """Another program that writes to the topic: the same twice, as a producer does that tries again; transactions that
    it commits, aborts, or leaves when a broker is lost; and what says nothing."""

    def __init__(self, story: Story) -> None:
        super().__init__(daemon=True)
        self.story = story
        self.random = random.Random(story.seed)
        self._settings = {"bootstrap.servers": story.cluster.address, "log_level": "0", "message.timeout.ms": 5_000}
        self._producer = Producer(self._settings)
        self._of_transactions: Any = None
        self._ids = (f"stranger-{i}" for i in itertools.count(1))

    def run(self) -> None:
        try:
            while not self.story.over.wait(self.random.uniform(0.1, 0.5)):
                self.random.choice((self.twice, self.transaction, self.nonsense))()
            eventually(self.begin_anew, "what it has left to be aborted")
        except Exception as error:
            self.story.wrong.append(f"the stranger: {error!r}")

    def write(self, producer: Any, value: bytes, model: str, **headers: str) -> None:
        where = partition_of(model.encode(), topic.PARTITIONS)
        named = [(name, text.encode()) for name, text in headers.items()]
        with suppress(BufferError):  # no broker has answered for long
            producer.produce(self.story.topic, value, model, where, headers=named)

    def events(self) -> bytes:
        pick = self.random
        items = [
            {"x": {"a": pick.random()}, "y": pick.randrange(2), "weight": 1.0, "id": id_} for id_ in self.some_ids()
        ]
        return json.dumps(items).encode()

    def some_ids(self) -> list[str]:
        return list(itertools.islice(self._ids, self.random.randint(1, 5)))

    def twice(self) -> None:
        value, model = self.events(), self.random.choice(("default", *KEPT))
        stream = {} if self.random.random() < 0.5 else {"stream": next(self._ids)}
        for _ in range(2):
            self.write(self._producer, value, model, do="part" if stream else "learn", **stream)
        self._producer.flush(1.0)

    def nonsense(self) -> None:
        how = self.random.randrange(3)
        self.write(self._producer, NOTHING, "default", **({"do": "learn"}, {"do": "dance"}, {})[how])
        self._producer.flush(1.0)

    def transaction(self) -> None:
        if self._of_transactions is None and not self.begin_anew():
            return
        producer = self._of_transactions
        try:
            producer.begin_transaction()
            for model in self.random.sample(("default", *KEPT), 2):
                self.write(producer, self.events(), model, do="learn")
            producer.flush(1.0)
            self.random.choice((producer.commit_transaction, producer.abort_transaction))(5.0)
        except KafkaException:
            self._of_transactions = None

    def begin_anew(self) -> bool:
        """Abort what an earlier producer of the same name has left."""
        self._of_transactions = producer = Producer(
            {**self._settings, "transactional.id": self.story.topic, "transaction.timeout.ms": 5_000}
        )
        try:
            producer.init_transactions(5.0)
        except KafkaException:
            self._of_transactions = None
        return self._of_transactions is not None


def positions_in(folder: Path) -> dict[int, int]:
    """The newest record of each partition that is applied, as it is on disk."""
    with closing(sqlite3.connect(f"file:{folder}/log.db?mode=ro", uri=True)) as db:
        return dict(db.execute("SELECT partition, record FROM positions"))


def ids_of(folder: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Model -> id -> kind and seq (0 of what has none), as they are on disk. None may be there twice."""
    with closing(sqlite3.connect(f"file:{folder}/log.db?mode=ro", uri=True)) as db:
        names = dict(db.execute("SELECT model, name FROM models"))
    found: dict[str, dict[str, tuple[int, int]]] = {name: {} for name in names.values()}
    for (model, id_), (seq, _, kind, _) in ids_in(folder).items():
        if model in names:
            found[names[model]][id_] = kind, seq if kind not in (IdKind.WAITING, IdKind.DROPPED) else 0
    return found


def waiting_in(folder: Path) -> list[Any]:
    """The predictions that wait on disk, of each model."""
    with closing(sqlite3.connect(f"file:{folder}/log.db?mode=ro", uri=True)) as db:
        query = "SELECT name, id, kept_at, seq, payload FROM waiting JOIN models USING (model) ORDER BY name, number"
        return db.execute(query).fetchall()


def states(service: Service) -> dict[str, State]:
    """The state of each model."""
    told = (service.get(f"/models/{name['model']}") for name in service.get("/models")["models"])
    return {
        one["model"]: State(
            one["seq"], one["sha256"], one["join"]["waiting"], one["breaker"] and one["breaker"]["stopped_at"]
        )
        for one in told
    }


def same_everywhere(services: list[Service]) -> dict[str, State] | None:
    """What all have, once nothing is due and all have it."""
    found = [states(service) for service in services]
    nothing_due = not found[0]["ads"].waiting and (not found[0]["guarded"].waiting or found[0]["guarded"].stopped)
    return found[0] if nothing_due and all(one == found[0] for one in found) else None


@from_checks_on
@pytest.mark.timeout(600)
def test_nothing_is_lost_or_learned_twice_whatever_is_killed(cluster: Cluster, start: Start, tmp_path: Path) -> None:
    seed = amount(quick=0, checks=407, long=random.randrange(10**6))
    with cluster.relay() as way:
        tell(Story(cluster, way, start, tmp_path, seed))


def tell(story: Story) -> None:
    """The story, and what must hold at its end."""
    seed = story.seed
    story.services += [story.start(), story.start(brokers=story.way.address)]
    for name, spec in SPECS.items():
        made = story.services[0].http.put(f"/models/{name}", json=spec)
        assert made.status_code == 201
        there = {"x-logstep-offset": made.headers["x-logstep-offset"]}
        assert story.services[1].http.get(f"/models/{name}", headers=there).status_code == 200
    clients = [Client(story, number) for number in range(CLIENTS)]
    stranger = Stranger(story)
    for thread in (*clients, stranger):
        thread.start()
    for number, interrupt in zip(range(INTERRUPTIONS), story.interruptions(), strict=False):
        if number == INTERRUPTIONS // 2:
            story.services.append(story.start_fresh(ready=False).wait_for_port())  # late, in the middle of everything
        began = time.monotonic()
        interrupt()
        ended = time.monotonic()
        story.wait_until_all_are_ready(interrupt.__name__)
        print(f"{interrupt.__name__}: {ended - began:.1f} s, all ready after {time.monotonic() - ended:.1f} s")
        assert not story.wrong, (seed, story.wrong)
    story.over.set()
    for thread in (*clients, stranger):
        thread.join(PATIENCE)
    assert not story.wrong, (seed, story.wrong)
    print(dict(story.told))
    learned = eventually(lambda: same_everywhere(story.services), f"all nodes to have the same (seed {seed})")
    story.services.append(story.start_fresh(ready=True))
    assert eventually(lambda: same_everywhere(story.services), "a fresh node to have the same") == learned
    oracle = story.oracle
    oracle.read()
    assert oracle.states == learned, seed
    for service in story.services:
        assert service.stop() == 0
    expected = {
        name: {id_: (KINDS[life.kind], life.seq) for id_, life in model.ids.items()}
        for name, model in oracle.models.items()
    }
    waiting = waiting_in(story.services[0].folder)
    for service in story.services:
        assert ids_of(service.folder) == expected, seed
        assert waiting_in(service.folder) == waiting, seed
    assert {name: [id_ for of, id_, *_ in waiting if of == name] for name in oracle.models} == {
        name: list(model.waiting) for name, model in oracle.models.items()
    }, seed  # a breaker that has stopped `guarded` leaves its predictions waiting
    missing = [told for client in clients for told in client.acknowledged if not is_there(oracle, told)]
    assert not missing, (seed, missing)


KINDS = {kind.name.lower(): kind.value for kind in IdKind}


def is_there(oracle: Oracle, told: Acknowledged) -> bool:
    """Whether an event that was acknowledged is in the log as it was told."""
    for model in oracle.lives[told.model]:
        life = model.ids.get(told.id)
        if life is not None and life.seq and told.seq in (None, life.seq):
            return told.p in (None, model.p[life.seq - 1])
    return False


# -- one thing at a time


def test_a_node_that_is_cut_off_predicts_is_unready_and_catches_up(cluster: Cluster, start: Start) -> None:
    make_topic(cluster, "cut")
    nodes = Nodes(cluster, "cut", start)
    with cluster.relay() as way:
        one, two = nodes.start(), nodes.start("--max-lag", "1", brokers=way.address)
        two.learn([{"x": {"a": 1}, "y": 1, "id": "before"}])
        way.cut()
        for i in range(20):
            one.learn([{"x": {"a": i}, "y": i % 2}])
        eventually(lambda: "brokers do not answer" in unready(two), "it to be unready")
        assert two.http.post("/predict", json={"x": {"a": 1}}).json()["seq"] == 1
        way.mend()
        eventually(partial(ready, two), "it to be ready again")
        assert state(two) == state(one) == nodes.learned()
        two.learn([{"x": {"a": 1}, "y": 1, "id": "after"}])
        assert state(one, seen=seen(two))[0] == 22


def test_transactions_count_once_they_are_committed(cluster: Cluster, start: Start) -> None:
    make_topic(cluster, "transactions")
    nodes = Nodes(cluster, "transactions", start)
    node = nodes.start()
    producer = Producer({"bootstrap.servers": cluster.address, "transactional.id": "shop", "log_level": "0"})
    producer.init_transactions(PATIENCE)
    there = partition_of(b"default", topic.PARTITIONS)
    for i, commits in enumerate((False, True, True, False)):
        producer.begin_transaction()
        value = json.dumps({"x": {"a": i}, "y": 1, "id": f"t{i}", "weight": 1.0})
        producer.produce("transactions", value, b"default", there, headers=[("do", b"learn")])
        producer.flush(PATIENCE)
        (producer.commit_transaction if commits else producer.abort_transaction)(PATIENCE)
    for each in (node, nodes.start()):  # the topic ends with a mark that no node sees
        eventually(partial(at_the_end, each), "it to be at the end")
        assert state(each) == nodes.learned()
    node.stop()
    again = nodes.start(folder=node.folder)
    again.learn([{"x": {"a": 9}, "y": 0, "id": "t0"}])  # the id of one that was aborted
    assert state(again)[0] == 3


def at_the_end(node: Service) -> bool:
    return state(node)[0] == 2 and lag(node) == 0 and ready(node)


def test_a_topic_that_is_made_again_ends_the_nodes_that_followed_the_old_one(cluster: Cluster, start: Start) -> None:
    make_topic(cluster, "again")
    nodes = Nodes(cluster, "again", start)
    node = nodes.start()
    for i in range(5):
        node.learn([{"x": {"a": i}, "y": 1, "id": f"e{i}"}])
    cluster.delete("again")
    eventually(lambda: not cluster.has("again"), "the topic to go")
    make_topic(cluster, "again")
    other = Nodes(cluster, "again", start).start()
    other.learn([{"x": {"a": i}, "y": 0, "id": f"f{i}"} for i in range(9)])
    for i in range(9):  # so that there are records where the old topic had some
        other.learn([{"x": {"a": i}, "y": 0, "id": f"g{i}"}])
    assert node.wait(PATIENCE) == 1
    assert "topic" in node.log.splitlines()[-2] + node.log.splitlines()[-1]
    assert state(other)[0] == 18
