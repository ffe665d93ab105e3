"""Nodes of a topic: what any of them is asked, all of them learn, to the bit, whatever is killed."""

from __future__ import annotations

import json
import math
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import msgspec
from broker import Cluster
from confluent_kafka import Producer
from golden.make import WITHOUT_FMA
from harness import NDJSON, Service, Start, assert_problem, ndjson
from patience import PATIENCE, eventually
from replicas import Nodes, agree, make_topic, seen, state
from test_arithmetic import on_glibc

from core import Learner
from service.replica import topic
from service.replica.records import partition_of


def event(i: int, **more: Any) -> dict[str, Any]:
    return {"x": {"a": i % 7, "b": 1.0, f"c{i % 3}": i % 2 == 0}, "y": i % 2, "id": f"e{i}", **more}


def learn(node: Service, body: Any, model: str = "default") -> Any:
    reply = node.http.post(f"/models/{model}/learn", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_what_any_node_is_asked_all_learn(nodes: Nodes) -> None:
    one, two = nodes.start(), nodes.start()
    for i in range(10):
        assert learn((one, two)[i % 2], event(i))["seq"] == i + 1
    assert learn(one, event(3))["duplicate"]
    assert learn(two, event(4))["duplicate"]
    conflict = two.http.post("/learn", json=event(4, y=1))
    assert (conflict.status_code, conflict.json()["seq"]) == (409, 5)
    assert [reply["seq"] for reply in learn(two, [event(i) for i in range(10, 20)])] == [*range(11, 21)]
    assert state(one, seen=seen(two)) == state(two) == nodes.learned()
    late = nodes.start()
    assert state(late) == state(one)
    # A node that never heard of these events answers for them as the others do.
    assert learn(late, event(3))["duplicate"]


def test_models_are_made_and_deleted_on_all(nodes: Nodes) -> None:
    one, two = nodes.start(), nodes.start()
    made = one.http.put("/models/ads", json={"rule": "adagrad"})
    assert made.status_code == 201
    there = {"x-logstep-offset": made.headers["x-logstep-offset"]}
    assert two.http.get("/models/ads", headers=there).json()["spec"]["rule"] == "adagrad"
    assert two.http.put("/models/ads", json={"rule": "adagrad"}).status_code == 200
    assert two.http.put("/models/ads", json={"rule": "ftrl"}).status_code == 409
    learn(two, [{"x": [1.0, float(i)], "y": i % 2} for i in range(5)], "ads")
    assert state(one, "ads", seen(two, "ads")) == state(two, "ads")
    gone = one.http.delete("/models/ads")
    assert gone.status_code in (200, 204)
    eventually(lambda: two.http.get("/models/ads").status_code == 404, "the other to forget it")
    assert one.http.delete("/models/ads").status_code == 404
    assert one.http.delete("/models/default").status_code in (200, 204)
    assert agree([one, two])[0] == 0


def test_streams_go_in_pieces_and_nothing_is_learned_after_a_refused_event(nodes: Nodes) -> None:
    one, two = nodes.start("--stream-events", "100"), nodes.start("--stream-events", "100")
    rows: list[dict[str, Any]] = [{"x": {"n": i % 9, "t": "ab"[i % 2]}, "y": i % 2} for i in range(1_000)]
    reply = one.http.post("/learn", content=ndjson(rows), headers=NDJSON)
    assert (reply.status_code, reply.json()["learned"]) == (200, 1_000)
    learner = Learner()
    for row in rows:
        learner.learn_one(row["x"], row["y"])
    assert state(two, seen=seen(one)) == (1_000, learner.sha256())
    learn(two, event(1))
    mixed = [event(i) for i in range(200, 700)]
    mixed[250] = event(1, y=0)  # its id was learned with another label
    reply = one.http.post("/learn", content=ndjson(mixed), headers=NDJSON)
    assert (reply.status_code, reply.json()["learned"], reply.json()["line"]) == (409, 250, 251)
    assert state(two, seen=seen(one))[0] == 1_251
    two.kill()
    again = nodes.start("--stream-events", "100", folder=two.folder)
    late = nodes.start()
    assert state(again) == state(late) == state(one)


def test_a_killed_node_goes_on_where_it_was_and_learns_nothing_twice(nodes: Nodes) -> None:
    one, two = nodes.start(), nodes.start()
    for i in range(50):  # without ids, so that only positions keep it from learning twice
        learn(one, {"x": {"a": i}, "y": i % 2})
    two.kill()
    for i in range(50):
        learn(one, {"x": {"a": i}, "y": i % 2})
    two = nodes.start(folder=two.folder)
    assert state(two) == state(one) == nodes.learned()
    one.kill()
    two.kill()
    one, two = nodes.start(folder=one.folder), nodes.start(folder=two.folder)
    assert state(one) == state(two) == nodes.learned()


def test_a_prediction_that_waits_times_out_on_all_nodes_at_the_same_place(nodes: Nodes) -> None:
    one, two = nodes.start(), nodes.start()
    spec = {"learning_rate": 0.5, "join": {"keep": "2s", "on_timeout": "negative"}}
    one.http.put("/models/ads", json=spec)
    for i in range(4):
        reply = one.http.post("/models/ads/predict", json={"x": {"a": i}, "id": f"p{i}"})
        assert reply.json()["kept"]
    kept = {"x-logstep-offset": reply.headers["x-logstep-offset"]}
    label = two.http.post("/models/ads/learn", json={"id": "p1", "y": 1}, headers=kept)
    assert (label.status_code, label.json()["seq"]) == (200, 1)
    eventually(lambda: state(one, "ads")[0] == 4, "the others to time out, since nothing else comes")
    assert agree([one, two], "ads")[0] == 4
    late = two.http.post("/models/ads/learn", json={"id": "p2", "y": 1})
    assert late.status_code == 404
    assert state(nodes.start(), "ads") == state(one, "ads")
    ticks = [headers for headers, _ in nodes.records("ads") if headers["do"] == b"tick"]
    assert ticks


def test_a_reply_says_what_it_saw_and_another_node_waits_for_that(nodes: Nodes) -> None:
    one, two = nodes.start(), nodes.start("--max-lag", "2")
    seq = learn(one, event(1))["seq"]
    place = seen(one)
    with two.paused():
        learn(one, event(2))
        place = seen(one)
    reply = two.http.post("/predict", json={"x": {"a": 1}}, headers={"x-logstep-offset": place})
    assert reply.json()["seq"] == seq + 1
    partition, _, record = place.partition(":")
    ahead = two.http.get("/models/default", headers={"x-logstep-offset": f"{partition}:{int(record) + 5}"})
    assert (ahead.status_code, ahead.json()["type"]) == (503, "urn:logstep:behind")
    for wrong in ("no", "64:1", f"{partition}:{10**19}"):
        told = two.http.get("/models/default", headers={"x-logstep-offset": wrong})
        assert_problem(told, 422, "must be PARTITION:OFFSET")


def test_min_seq_waits_for_an_event(nodes: Nodes) -> None:
    one, two = nodes.start(), nodes.start("--max-lag", "1")
    learn(one, [event(i) for i in range(5)])
    assert two.http.get("/models/default?min_seq=5").json()["seq"] == 5
    for path in ("/predict?min_seq=5", "/models/default/predict?min_seq=5"):
        assert two.http.post(path, json={"x": {"a": 1}}).json()["seq"] == 5
    assert_problem(two.http.get("/models/default?min_seq=6"), 503, "the event with seq 6 of the model 'default'")
    assert_problem(two.http.get("/models/default?min_seq=-6"), 422, "must be one whole number, a seq")
    with two.paused():
        assert one.http.put("/models/ads", json={}).status_code == 201
        learn(one, event(1), "ads")
    told = two.http.get("/models/ads?min_seq=1")
    assert told.json()["seq"] == 1, "a model that this node did not know yet"
    assert_problem(two.http.get("/models/none?min_seq=1"), 503, "the event with seq 1 of the model 'none'")


def test_a_stream_of_wide_events_is_several_records(nodes: Nodes) -> None:
    node = nodes.start()
    wide = {f"feature number {i}, with a long name so that it takes room": 1.5 for i in range(300)}
    rows = [{"x": {f"{name} {i % 7}": value for name, value in wide.items()}, "y": i % 2} for i in range(1_000)]
    reply = node.http.post("/learn", content=ndjson(rows), headers=NDJSON)
    assert (reply.status_code, reply.json()["learned"]) == (200, 1_000), reply.text
    parts = [headers for headers, _ in nodes.records() if headers["do"] in (b"part", b"table")]
    assert len(parts) > 1
    assert state(nodes.start()) == state(node)


def test_the_metrics_say_how_far_it_is(nodes: Nodes) -> None:
    node = nodes.start()
    learn(node, event(1))
    assert node.http.post("/learn", json=event(1, y=0)).status_code == 409
    told = node.http.get("/metrics").text
    assert "logstep_topic_lag_records 0.0" in told
    assert re.search(r"logstep_topic_lag_seconds 0\.\d+", told), told
    assert "logstep_topic_applied_total 2.0" in told or "logstep_topic_applied_total 3.0" in told  # one may be `begin`
    assert 'logstep_topic_refused_total{reason="id-conflict"} 1.0' in told
    assert "logstep_topic_round_trip_seconds_count 2.0" in told
    assert "logstep_ready 1.0" in told


def test_without_brokers_predictions_go_on_and_learning_says_why_it_does_not(nodes: Nodes, cluster: Cluster) -> None:
    node = nodes.start("--max-lag", "1")
    learn(node, event(1))
    for number in (1, 2, 3):
        cluster.pause(number)
    eventually(lambda: node.http.get("/readyz").status_code == 503, "it to be unready")
    assert "brokers" in node.http.get("/readyz").json()["detail"]
    assert node.http.post("/predict", json={"x": {"a": 1}}).status_code == 200
    refused = node.http.post("/learn", json=event(2), timeout=PATIENCE)
    assert (refused.status_code, refused.json()["type"]) == (503, "urn:logstep:not-sure")
    cluster.mend()
    eventually(lambda: node.http.get("/readyz").status_code == 200, "it to be ready again")
    assert learn(node, event(2))["seq"] == 2
    assert state(node) == nodes.learned()
    eventually(lambda: "ready: it is up to date" in node.log, "the log to say so")
    assert re.search(r"unready: \d+ s behind its topic, or the brokers do not answer", node.log), node.log


def test_a_node_starts_without_brokers_and_follows_when_they_come(nodes: Nodes, cluster: Cluster) -> None:
    node = nodes.start()
    learn(node, event(1))
    node.kill()
    for number in (1, 2, 3):
        cluster.pause(number)
    node = nodes.start(folder=node.folder, ready=False).wait_for_port()
    eventually(lambda: node.http.get("/readyz").json().get("detail", "").count("waiting for the brokers"), "the reason")
    assert node.http.post("/predict", json={"x": {"a": 1}}).json()["seq"] == 1
    assert node.http.post("/learn", json=event(2)).status_code == 503
    cluster.mend()
    node.wait_until_ready()
    assert learn(node, event(2))["seq"] == 2


def refusal(node: Service) -> str:
    """Why a node did not serve."""
    assert node.wait(60) == 1
    return node.log


def test_a_topic_that_is_not_the_one_is_refused(nodes: Nodes, cluster: Cluster, start: Start) -> None:
    node = nodes.start()
    learn(node, event(1))
    assert node.stop() == 0
    another = f"{nodes.topic}-b"
    make_topic(cluster, another)
    said = refusal(Nodes(cluster, another, start).start(folder=node.folder, ready=False))
    assert f"this folder follows the topic '{nodes.topic}'" in said
    cluster.delete(nodes.topic)
    eventually(lambda: not cluster.has(nodes.topic), "the topic to go")
    make_topic(cluster, nodes.topic)
    assert "this folder follows the topic" in refusal(nodes.start(folder=node.folder, ready=False))


def test_a_topic_that_has_lost_what_a_node_needs_is_refused(nodes: Nodes, cluster: Cluster) -> None:
    node, ahead = nodes.start(), nodes.start()
    learn(node, event(1))
    node.stop()
    for i in range(2, 8):
        learn(ahead, event(i))
    cluster.drop_records(nodes.topic, {partition_of(b"default", topic.PARTITIONS): 5})
    assert "which is gone" in refusal(nodes.start(folder=node.folder, ready=False))
    assert "what was before is gone" in refusal(nodes.start(ready=False))
    ahead.stop()
    again = nodes.start(folder=ahead.folder)
    assert state(again)[0] == 7
    again.stop()
    # All that is there is older than retention, and the node has all of it.
    ends = {message.partition(): message.offset() + 1 for message in nodes.messages()}
    cluster.drop_records(nodes.topic, ends)
    last = nodes.start(folder=ahead.folder)
    assert state(last)[0] == 7
    assert learn(last, event(8))["seq"] == 8
    last.kill()
    assert state(nodes.start(folder=ahead.folder))[0] == 8


def test_a_node_with_other_rules_is_refused(nodes: Nodes) -> None:
    nodes.start().stop()
    said = refusal(nodes.start("--max-event-features", "10", ready=False))
    assert "--max-event-features is 100000 in the topic and 10 here" in said
    assert "--keep-ids is all in the topic and 1d here" in refusal(nodes.start("--keep-ids", "1d", ready=False))


@on_glibc
def test_a_node_that_computes_otherwise_is_refused(nodes: Nodes, cluster: Cluster, tmp_path: Path) -> None:
    one = nodes.start()
    learn(one, event(1))
    one.stop()
    env = ["env", *(f"{name}={value}" for name, value in WITHOUT_FMA.items())]
    flags = ("--kafka", cluster.address, "--topic", nodes.topic)
    for folder in (tmp_path / "other", one.folder):
        with Service(folder, *flags, told=env) as node:
            assert "how the processor and the C library compute exp, log and pow (a digest) is" in refusal(node)
    assert state(nodes.start(folder=one.folder))[0] == 1


def test_a_log_of_its_own_is_no_node(nodes: Nodes, start: Start) -> None:
    alone = start()
    learn(alone, event(1))
    alone.stop()
    assert "has a log of its own" in refusal(nodes.start(folder=alone.folder, ready=False))


def test_a_nodes_folder_serves_alone_and_is_no_node_after_that(nodes: Nodes, start: Start) -> None:
    node = nodes.start()
    learn(node, event(1))
    before = state(node)
    node.stop()
    alone = start(folder=node.folder)
    assert state(alone) == before
    assert "follows it no more" in alone.log
    learn(alone, event(2))
    alone.stop()
    assert "has a log of its own" in refusal(nodes.start(folder=node.folder, ready=False))


def test_records_that_say_nothing_are_left_out_on_every_node(nodes: Nodes, cluster: Cluster) -> None:
    one = nodes.start()
    learn(one, event(1))
    producer = Producer({"bootstrap.servers": cluster.address})
    there = partition_of(b"default", topic.PARTITIONS)
    good = json.dumps(event(2)).encode()
    deep, score = b"[" * 20_000, struct.pack("<d", 0.5)
    deep_x = b"\x91\x97\xa1a" + b"\x91" * 20_000 + b"\xc0" + msgspec.msgpack.encode(0)

    def kept(x: float, seq: int) -> bytes:
        return msgspec.msgpack.encode([["p", {"a": x}, seq, score, 0, "", True]])

    nothing = (
        (b"default", b"learn", b"{", there),
        (b"default", b"learn", None, there),
        (b"default", b"learn", b'{"x": 3, "y": 1}', there),
        (b"default", b"learn", deep, there),
        (b"default", b"put", deep, there),
        (b"default", b"tick", b"[0,0,0,false," + deep, there),
        (b"default", b"tick", b"[999999999,0,999999999,false]", there),
        (b"default", b"keep", deep_x, there),
        (b"default", b"keep", kept(1.0, 2**63), there),
        (b"default", b"keep", kept(math.nan, 0), there),
        (b"default", b"dance", good, there),
        (b"default", b"table", b"\x90", there),
        (b"default", b"keep", b"\xff", there),
        (b"default", b"put", b'{"rule": "none"}', there),
        (b"default", b"tick", b"{}", there),
        (b"default", b"learn", good, there + 1),
        (b"a name with spaces", b"learn", good, there),
        (None, b"begin", b"{}", there),
    )
    for key, do, value, partition in nothing:
        producer.produce(nodes.topic, value, key, partition, headers=[("do", do)])
    producer.produce(nodes.topic, good, b"default", there)  # no header at all
    producer.produce(nodes.topic, good, b"default", there, headers=[("do", b"learn")])  # as good as one of a node
    assert producer.flush(PATIENCE) == 0
    eventually(lambda: state(one)[0] == 2, "the good one to be learned")
    counted = f'logstep_topic_refused_total{{reason="poison"}} {len(nothing) + 1}.0'
    eventually(lambda: counted in one.http.get("/metrics").text, "the others to be counted")
    assert learn(one, event(3))["seq"] == 3
    two = nodes.start()
    assert state(two) == state(one)
    assert "is left out" in one.log
    one.kill()
    assert state(nodes.start(folder=one.folder)) == state(two)


def test_a_backup_of_a_running_node_is_the_start_of_another(nodes: Nodes, tmp_path: Path) -> None:
    from service.commands import cli

    one = nodes.start()
    for i in range(20):
        learn(one, event(i))
    assert cli.main(["backup", str(one.folder), str(tmp_path / "copy")]) == 0
    for i in range(20, 40):
        learn(one, event(i))
    shutil.copytree(tmp_path / "copy", tmp_path / "two")
    two = nodes.start(folder=tmp_path / "two")
    assert state(two) == state(one) == nodes.learned()
    assert learn(two, event(5))["duplicate"]


def test_a_topic_that_acknowledges_what_one_machine_has_is_refused(cluster: Cluster, start: Start) -> None:
    cluster.create("weak", topic.PARTITIONS, 3, **{
        "message_timestamp_type": "LogAppendTime", "max_message_bytes": str(topic.LARGEST_RECORD),
        "min_insync_replicas": "1",
    })  # fmt: skip
    assert "min.insync.replicas=1" in refusal(Nodes(cluster, "weak", start).start(ready=False))
