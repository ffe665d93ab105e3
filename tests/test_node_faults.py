"""What becomes of one node of several: stopped, cut off, full, or with other bits than the others; and of records that
no node has written."""

from __future__ import annotations

import itertools
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from broker import Mock
from confluent_kafka import Producer
from disk import fill, small_disk
from harness import NDJSON, Service, Start, ndjson
from patience import PATIENCE, eventually
from replicas import Nodes, flip_a_bit, ready, seen, state, unready

from service.replica import topic
from service.replica.records import partition_of

_names = itertools.count(1)
EVENTS = 1_100
"""Enough for a digest."""


@pytest.fixture
def nodes(mock_cluster: Mock, start: Start) -> Nodes:
    """Nodes on brokers that are librdkafka's own: what they need of brokers is read and written records."""
    name = f"log-{next(_names)}"
    mock_cluster.create(name, topic.PARTITIONS)
    return Nodes(mock_cluster, name, start)


def learn(node: Service, events: Any, model: str = "default") -> None:
    reply = node.http.post(f"/models/{model}/learn", json=events)
    assert reply.status_code == 200, reply.text


def learn_lines(node: Service, count: int, model: str = "default") -> None:
    lines = ndjson({"x": {"a": i % 7, f"b{i % 5}": 1.0}, "y": i % 2} for i in range(count))
    reply = node.http.post(f"/models/{model}/learn", content=lines, headers=NDJSON)
    assert (reply.status_code, reply.json()["learned"]) == (200, count)


def write(nodes: Nodes, do: str, value: bytes) -> None:
    """Write a record of the model `default` as anybody may."""
    producer = Producer({"bootstrap.servers": nodes.brokers.address, "log_level": "0"})
    there = partition_of(b"default", topic.PARTITIONS)
    producer.produce(nodes.topic, value, b"default", there, headers=[("do", do.encode())])
    assert producer.flush(PATIENCE) == 0


def test_a_node_that_was_stopped_for_longer_than_it_may_lag_is_unready_when_it_goes_on(nodes: Nodes) -> None:
    one, two = nodes.start(), nodes.start("--max-lag", "1")
    learn(one, {"x": {"a": 1}, "y": 1})
    with two.connect() as connection:
        with two.paused():
            learn(one, {"x": {"a": 2}, "y": 0})
            connection.send_head("/readyz", "GET")  # it finds this when it goes on
            time.sleep(1.5)
        assert connection.reply().status == 503
    eventually(partial(ready, two), "it to be ready again")
    assert state(two) == state(one)


def test_a_record_that_is_there_twice_is_learned_once(nodes: Nodes) -> None:
    one, two = nodes.start(), nodes.start()
    event = json.dumps({"x": {"a": 1}, "y": 1, "id": "e", "weight": 1.0}).encode()
    for _ in range(3):
        write(nodes, "learn", event)
    learn(one, {"x": {"a": 2}, "y": 0, "id": "f"})
    assert state(two, seen=seen(one)) == state(one) == nodes.learned()
    assert state(one)[0] == 2


def test_a_full_disk_stops_one_node_until_there_is_room(nodes: Nodes, tmp_path: Path) -> None:
    one = nodes.start()
    with small_disk(tmp_path / "disk", "4m") as disk:
        two = nodes.start(folder=disk / "data")

        def is_full() -> bool:
            learn(one, {"x": {"a": 1}, "y": 1})
            return "waiting for room on its disk" in unready(two)

        for ends in (False, True):
            fill(disk / "filler")
            eventually(is_full, "it to stop applying")
            seq = state(two)[0]
            learn_lines(one, 300)
            one.http.put("/models/ads", json={"rule": "ftrl"})
            one.http.delete("/models/ads")
            assert state(two)[0] == seq < state(one)[0]
            assert two.http.post("/predict", json={"x": {"a": 1}}).status_code == 200
            if ends:
                assert two.stop() == 0
            (disk / "filler").unlink()
            if ends:
                two = nodes.start(folder=disk / "data")
            eventually(partial(ready, two), "it to go on")
            assert state(two, seen=seen(one)) == state(one)
        learn(two, {"x": {"a": 1}, "y": 1})
        two.kill()


def tell_digests(seconds: float) -> None:
    from service.replica import digests

    digests.EVERY_SECONDS = seconds


def flip_and_tell(seconds: float) -> None:
    tell_digests(seconds)
    flip_a_bit("default", EVENTS)


def test_of_two_nodes_the_one_with_a_flipped_bit_in_memory_stops(nodes: Nodes) -> None:
    # The wrong one tells first.
    right, wrong = nodes.start(first=partial(tell_digests, 1e9)), nodes.start(first=partial(flip_and_tell, 0.5))
    learn_lines(right, EVENTS)
    assert state(wrong, seen=seen(right))[0] == EVENTS
    learn_lines(right, EVENTS)
    assert wrong.wait(PATIENCE) == 1
    assert "up to seq 2048 are not those that its log gives, so its memory or processor made a mistake" in wrong.log
    learn_lines(right, EVENTS)
    again = nodes.start(folder=wrong.folder)  # its log has no such bit
    assert state(again) == state(right)
    assert right.http.get("/readyz").status_code == 200
    assert "this node is right up to seq 2048" in right.log


def learn_one_otherwise() -> None:
    """What a node does first: it reads one event of the topic otherwise than it was written."""
    from service.events import Event
    from service.replica import feed

    tell_digests(0.5)
    decode = vars(feed)["decode"]

    def read_otherwise(do: Any, value: bytes) -> Any:
        vars(feed)["decode"] = decode
        return [Event({"a": 2.0}, 1)]

    vars(feed)["decode"] = read_otherwise


def test_nodes_whose_logs_differ_both_stop(nodes: Nodes) -> None:
    one, two = nodes.start(first=partial(tell_digests, 0.5)), nodes.start(first=learn_one_otherwise)
    learn(one, {"x": {"a": 1}, "y": 1})
    learn_lines(one, 2 * EVENTS)
    for node in (one, two):
        assert node.wait(PATIENCE) == 1
        assert "they learned other events of the model 'default' up to seq 2048" in node.log


def test_a_digest_of_a_model_that_was_deleted_since_stops_no_node(nodes: Nodes) -> None:
    one = nodes.start()
    learn_lines(one, EVENTS)
    record = seen(one).partition(":")[2]
    one.http.delete("/models/default")
    learn_lines(one, EVENTS)
    write(nodes, "tick", b"[1024,1,%s]" % record.encode())
    learn(one, {"x": {"a": 1}, "y": 1})
    one.kill()
    again = nodes.start(folder=one.folder)  # it does not know what was deleted before
    write(nodes, "tick", b"[1024,1,%s]" % record.encode())
    write(nodes, "tick", b"[5000,1,%s]" % record.encode())
    learn(again, {"x": {"a": 1}, "y": 1})
    assert state(again)[0] == EVENTS + 2
    now = seen(again).partition(":")[2].encode()
    write(nodes, "tick", b"[5000,1,%s]" % now)  # the same of the model as it is now
    assert again.wait(PATIENCE) == 1
    assert "and another node 5000" in again.log
