"""`logstep kafka import`: the nodes of a new topic begin with the models of a folder, and answer as it did."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from broker import Cluster
from confluent_kafka import Producer
from examples import flip, opened
from golden.make import HERE, WAITING, events_of, pinned
from harness import Service, Start, ndjson
from patience import PATIENCE, eventually
from processes import copied, ids_in
from replicas import Nodes, state

from core.batch import Batch, Served
from core.spec import Spec
from service.commands import cli, imports
from service.learning.model import Model
from service.replica import logged, topic
from service.replica.records import PoisonError, partition_of
from service.storage import codec
from service.storage.id_pieces import EventIds, Piece
from service.storage.log import LogReader, StoredModel
from service.storage.store import Store


@pytest.fixture
def small_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of so little that each kind of part takes several."""
    for name, most in (("NAMES", 3), ("EVENTS", 16), ("IDS", 10), ("WAITING_BYTES", 1)):
        monkeypatch.setattr(logged, name, most)


class Said:
    """What `logstep kafka import` printed, and its exit code."""

    def __init__(self, output: pytest.CaptureFixture[str], folder: Path, nodes: Nodes, *more: str) -> None:
        output.readouterr()
        where = ("--kafka", nodes.brokers.address, "--topic", nodes.topic)
        self.code = cli.main(["kafka", "import", str(folder), *where, *more])
        self.text = "".join(output.readouterr())

    @property
    def models(self) -> dict[str, tuple[int, str]]:
        """seq and SHA-256 of each model, as it was printed."""
        rows = re.findall(r"^ +(\S+) +([\d,]+) +([0-9a-f]{64})$", self.text, re.MULTILINE)
        return {name: (int(seq.replace(",", "")), sha256) for name, seq, sha256 in rows}


def wait_for(node: Service, models: dict[str, tuple[int, str]]) -> None:
    """Wait until a node has these models."""
    assert {name: state(node, name) for name in models} == models


def of_names(folder: Path) -> dict[tuple[str, str], tuple[int, ...]]:
    """(name of the model, id) -> what it stands for; of one that waits, only that."""
    log = LogReader(folder)
    try:
        names = {model.key: model.name for model in log.models()}
    finally:
        log.close()
    return {
        (names[key], id_): found[:3] if found[2] != 4 else (0, 0, 4) for (key, id_), found in ids_in(folder).items()
    }


def test_every_rule_goes_on_with_the_same_bits(
    nodes: Nodes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(HERE / "data", tmp_path / "golden")
    before = asyncio.run(opened(copied(folder, tmp_path / "opened")))
    said = Said(capsys, folder, nodes)
    assert said.code == 0, said.text
    assert said.models == before
    node = nodes.start()
    wait_for(node, said.models)
    for name, pin in pinned().items():
        first = events_of(name, pin["seed"])[0]
        (again,) = node.learn([first], name)
        assert (again["duplicate"], again["seq"]) == (True, 1)
        assert node.request("POST", f"/models/{name}/learn", {**first, "y": 1 - first["y"]})[0] == 409
    for place, id_ in enumerate(WAITING):
        assert node.learn([{"id": id_, "y": 1}], "joined")[0]["seq"] == 2 + place
    there = {name: state(node, name) for name in said.models}
    node.kill()
    assert of_names(node.folder).items() >= {k: v for k, v in of_names(folder).items() if v[2] != 4}.items()
    again = nodes.start(folder=node.folder)
    assert {name: state(again, name) for name in said.models} == there


# -- what else a model may have been through


def x(i: int, **more: Any) -> dict[str, Any]:
    return {"n": i % 7 - 3, "colour": ["red", "green", "blue"][i % 3], "sunny": i % 2 == 0, **more}


def events(first: int, count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"x": x(i, **more), "y": int(i % 5 < 2), "id": f"e{i}"} for i in range(first, first + count)]


def of_hashing(service: Service, name: str, spec: dict[str, Any]) -> list[tuple[str, Any]]:
    """A model whose names are hashed, with more names than buckets."""
    service.model(name).create({"hash_bits": 3, **spec})
    for i in range(5):
        service.learn(events(20 * i, 20, **{f"f{i}": 1.0, f"text{i}": "a"}), name)
    return [("learn", events(0, 1, f0=1.0, text0="a")[0]), ("predict", {"x": x(1, f3=2.0, new="b")})]


def of_left_out_features(service: Service, name: str) -> list[tuple[str, Any]]:
    """A model that is full, and left features out of events."""
    service.model(name).create({"max_features": 4})
    service.learn(events(0, 30, late=2.0), name)
    return [("learn", events(8, 1, late=2.0)[0]), ("learn", events(8, 1, late=3.0)[0])]


def of_late_labels(service: Service, name: str) -> list[tuple[str, Any]]:
    """A model with every kind of id: joined, expired, corrected, waiting, and learned whole."""
    join = {"keep": "1s", "on_timeout": "negative", "late": "learn"}
    service.model(name).create({"learning_rate": 0.5, "join": join})
    for id_ in ("joined", "expired", "also expired", "late"):
        service.model(name).predict({"x": x(len(id_)), "id": id_})
    service.learn([{"id": "joined", "y": 1}], name)
    eventually(lambda: service.get(f"/models/{name}")["seq"] == 4, "the others to time out")
    service.learn([{"id": "late", "y": 1}, *events(0, 3)], name)
    return [
        ("learn", {"id": "joined", "y": 1}),
        ("learn", {"id": "joined", "y": 0}),
        ("learn", {"id": "expired", "y": 0}),
        ("learn", {"id": "late", "y": 1}),
        ("learn", {"id": "late", "y": 0}),
        ("learn", {"id": "e1", "y": 0}),
        ("learn", {"id": "unknown", "y": 0}),
        ("learn", {"id": "also expired", "y": 1}),
    ]


def of_dropped_predictions(service: Service, name: str) -> list[tuple[str, Any]]:
    """A model that dropped one prediction; another waits for longer."""
    service.model(name).create({"join": {"keep": "1s", "on_timeout": "drop"}})
    service.model(name).predict({"x": x(1), "id": "dropped"})
    eventually(lambda: service.get(f"/models/{name}")["join"]["dropped"] == 1, "it to be dropped")
    return [("learn", {"id": "dropped", "y": 1}), ("learn", {"x": x(1), "y": 1, "id": "dropped"})]


def of_waiting_predictions(service: Service, name: str) -> list[tuple[str, Any]]:
    service.model(name).create({"join": {"keep": "30d"}})
    service.learn(events(0, 5), name)
    for i in range(4):
        service.model(name).predict({"x": x(i, new="c"), "id": f"p{i}"})
    return [
        ("predict", {"x": x(2, new="c"), "id": "p2"}),
        ("predict", {"x": x(3), "id": "p2"}),
        ("explain", {"id": "p3"}),
        ("learn", {"id": "p1", "y": 1}),
        ("learn", {"x": x(0, new="c"), "y": 0, "id": "p0"}),
    ]


def of_a_breaker(service: Service, name: str) -> list[tuple[str, Any]]:
    """A model that stopped, by a stream and by an array beyond its last event, and was resumed each time but once."""
    service.model(name).create({"learning_rate": 0.3, "breaker": {"events": 20, "log_loss": 0.5}})
    for i in range(2):
        service.model(name).learn_lines(ndjson({"x": {"a": 1.0}, "y": 1} for _ in range(100)))
        service.model(name).learn_lines(ndjson({"x": {"a": 1.0}, "y": 0} for _ in range(100)))
        assert service.get(f"/models/{name}")["breaker"]["stopped_at"]
        assert service.request("POST", f"/models/{name}/resume")[0] == 200
        service.learn([{"x": {"a": 1.0}, "y": i} for _ in range(7)], name)
    for _ in range(5):
        service.request("POST", f"/models/{name}/learn", [{"x": {"a": 1.0}, "y": 0}] * 30)
        service.request("POST", f"/models/{name}/learn", [{"x": {"a": 1.0}, "y": 1}] * 30)
    return [("learn", {"x": {"a": 1.0}, "y": 1})]


LIVES: dict[str, Callable[[Service, str], list[tuple[str, Any]]]] = {
    "hashed": lambda service, name: of_hashing(service, name, {}),
    "hashed-scaled": lambda service, name: of_hashing(service, name, {"scale": "standard", "learning_rate": 0.1}),
    "hashed-auto": lambda service, name: of_hashing(service, name, {"rule": "auto"}),
    "full": of_left_out_features,
    "late": of_late_labels,
    "dropping": of_dropped_predictions,
    "waiting": of_waiting_predictions,
    "stopped": of_a_breaker,
}
"""What a model has been through, and what to ask it afterwards."""


def test_a_node_answers_as_the_folder_did(
    nodes: Nodes, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str], small_records: None
) -> None:
    alone = start()
    asked = {name: live(alone, name) for name, live in LIVES.items()}
    alone.model("gone").create({})
    assert alone.model("gone").delete().status_code in (200, 204)
    alone.learn([{"x": {"a": 1.0}, "y": 1, "weight": 0.25}])
    assert alone.stop() == 0
    said = Said(capsys, alone.folder, nodes)
    assert said.code == 0, said.text
    assert said.models.keys() == {*LIVES, "default"}
    node = nodes.start()
    wait_for(node, said.models)
    alone = start(folder=copied(alone.folder, tmp_path / "copy"))
    assert {name: shown(node, name) for name in said.models} == {name: shown(alone, name) for name in said.models}
    for name, questions in asked.items():
        for verb, body in questions:
            there, here = (told(service, f"/models/{name}/{verb}", body) for service in (node, alone))
            assert there == here, (name, verb, body)
    assert {name: state(node, name) for name in said.models} == {name: state(alone, name) for name in said.models}
    assert alone.stop() == node.stop() == 0
    assert of_names(node.folder) == of_names(alone.folder)


def shown(service: Service, name: str) -> dict[str, Any]:
    """What is shown of a model, but for what counts from the start of a service, and the count of what was dropped."""
    model = service.get(f"/models/{name}")
    del model["snapshot_seq"], model["join"]["dropped"], model["join"]["not_kept"]
    return {key: value for key, value in model.items() if key not in ("duplicates", "learned", "predicted")}


def told(service: Service, path: str, body: Any) -> tuple[int, Any]:
    status, reply = service.request("POST", path, body)
    reply.get("served", {}).pop("delay_s", None)
    return status, {key: value for key, value in reply.items() if key not in ("request_id", "delay_s")}


# -- what is refused


def test_only_a_new_topic_gets_a_log_and_a_failed_import_leaves_nothing(
    nodes: Nodes, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(HERE / "data", tmp_path / "golden")
    whole, seen = logged.records_of, list[Service]()

    def interrupted(log: LogReader, model: StoredModel) -> Iterator[logged.Written]:
        yield from whole(log, model)
        if model.name == "joined":
            waits = nodes.start(ready=False)
            eventually(lambda: "an import may be under way" in waits.log, "a node to see that the log is not there")
            seen.append(waits)
            raise KeyboardInterrupt

    monkeypatch.setattr(imports, "records_of", interrupted)
    said = Said(capsys, folder, nodes)
    assert said.code == 130
    assert "nothing was imported" in said.text
    monkeypatch.undo()
    said = Said(capsys, folder, nodes)
    assert said.code == 1
    assert "is not new: it has" in said.text
    assert "Make another with `logstep kafka create-topic`" in said.text
    (node,) = seen
    node.wait_until_ready()
    assert state(node)[0] == 0
    assert [model["model"] for model in node.get("/models")["models"]] == ["default"]


def shortened(folder: Path) -> Path:
    """A folder of which a model has lost its first events (--keep-events)."""
    store = Store(copied(HERE / "data", folder))
    key = next(model.key for model in store.log.models() if model.name == "adam")
    assert store.trimming.drop_events(key, 20, math.inf, 0.0)
    store.close()
    return folder


def test_a_folder_that_nodes_could_not_learn_from_is_refused_before_anything_is_written(
    nodes: Nodes, start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = copied(HERE / "data", tmp_path / "golden")

    def refusal(folder: Path, *more: str, code: int = 1) -> str:
        said = Said(capsys, folder, nodes, *more)
        assert said.code == code, said.text
        return said.text

    assert "is not a data folder of logstep" in refusal(tmp_path)
    assert "is in use by process" in refusal(start().folder)
    said = refusal(shortened(tmp_path / "short"))
    assert "has no events of the model 'adam' up to seq 20 (--keep-events)" in said
    assert "logstep replay" in said
    (tmp_path / "other").mkdir()
    store = Store(tmp_path / "other")
    store.create_model("default", Spec(learning_rate=0.5).as_dict())
    store.close()
    assert "'default'" in refusal(tmp_path / "other")
    damaged = copied(HERE / "data", tmp_path / "damaged")
    flip(damaged / "log.db-wal", 900_000)
    assert "is damaged, and nothing was written" in refusal(damaged)
    properties = tmp_path / "properties"
    properties.write_text("transactional.id=mine\n")
    assert "leave out transactional.id" in refusal(golden, "--kafka-config", str(properties), code=2)
    assert "--max-event-features" in refusal(golden, "--max-event-features", "none", code=2)
    nodes.brokers.create(other := f"{nodes.topic}-b", partitions=3)
    wrong = Said(capsys, golden, Nodes(nodes.brokers, other, start))
    assert wrong.code == 1
    assert "cannot be a log: 3 partitions" in wrong.text
    assert "There is no topic" in Said(capsys, golden, Nodes(nodes.brokers, "none", start)).text
    said = refusal(golden, "--max-event-features", "50", code=0)  # nothing was written so far: it is still new
    assert "imported 25 model(s)" in said
    node = nodes.start(ready=False)
    assert node.wait(60) == 1
    assert "--max-event-features is 50 in the topic and 100000 here" in node.log
    assert state(nodes.start("--max-event-features", "50"), "adam")[0] == 70


# -- records that are not those of an import


def a_model(**spec: Any) -> Model:
    model = Model(StoredModel(1, "m", Spec(**spec).as_dict()), window=10)
    model.learner.features.extend(["a", "b"])
    model.last_seq = 5
    return model


def packed(columns: Any = (0, 1), values: Any = (1.0, 2.0), weight: float = 1.0, served: Served | None = None) -> bytes:
    one = np.array([0, len(values)]), np.array(columns, np.int32), np.array(values, np.float64)
    return codec.pack(Batch(*one, np.array([1], np.uint8), np.array([weight]), served))


def piece(*ids: tuple[str, int]) -> bytes:
    return Piece.of(EventIds.of((id_, seq, 0, 0) for id_, seq in ids)).encode()


WAITS = codec.encode_prediction(np.zeros(1), {"a": 1.0})
GOOD: dict[str, list[Any]] = {
    "nothing": [0],
    "an event": [6, packed()],
    "an event with a new name": [6, packed((2, 0)), ["c"]],
    "ids of events": [0, b"", [], 2, piece(("x", 1), ("y", 5))],
    "ids of predictions": [0, b"", [], 0, b"", [["x", 5, -1, 1, 3], ["y", 0, 0, 5, None]]],
    "predictions that wait": [0, b"", [], 0, b"", [], [["x", 1, 2, WAITS]]],
}
NAN = Served(np.zeros(1, np.uint8), np.array([np.nan]), np.zeros(1))
BAD: dict[str, Any] = {
    "no list": {"a": 1},
    "no number": ["6"],
    "events that are none": [6, b"x"],
    "a seq that is not the next": [7, packed()],
    "a column without a name": [6, packed((0, 2))],
    "a column below 0": [6, packed((0, -1))],
    "a value that is no number": [6, packed(values=(1.0, np.nan))],
    "a value without end": [6, packed(values=(1.0, np.inf))],
    "a weight of 0": [6, packed(weight=0.0)],
    "a weight below 0": [6, packed(weight=-1.0)],
    "a served score that is no number": [6, packed(served=NAN)],
    "a known name": [0, b"", ["a"]],
    "a name twice": [0, b"", ["c", "c"]],
    "an empty name": [0, b"", [""]],
    "a name with a zero byte": [0, b"", ["c\0d"]],
    "too many names": [0, b"", ["c", "d", "e"]],
    "ids that are none": [0, b"", [], 2, b"x"],
    "an id of an event that is not there": [0, b"", [], 1, piece(("x", 6))],
    "an id of no event": [0, b"", [], 1, piece(("x", 0))],
    "an empty id": [0, b"", [], 1, piece(("", 1))],
    "an id of an event twice": [0, b"", [], 2, piece(("x", 1), ("x", 2))],
    "an id without a kind": [0, b"", [], 0, b"", [["x", 1, 0, 9, None]]],
    "an id that waits for nothing": [0, b"", [], 0, b"", [["x", 1, 0, 4, None]]],
    "an id beyond the events": [0, b"", [], 0, b"", [["x", 6, 0, 1, 3]]],
    "an id twice": [0, b"", [], 0, b"", [["x", 1, 0, 1, 3], ["x", 1, 0, 1, 3]]],
    "a number too large": [0, b"", [], 0, b"", [["x", 1, 2**63, 1, 3]]],
    "a prediction that is none": [0, b"", [], 0, b"", [], [["x", 1, 2, b""]]],
    "a prediction without an id": [0, b"", [], 0, b"", [], [["", 1, 2, WAITS]]],
    "a prediction from before time": [0, b"", [], 0, b"", [], [["x", -1, 2, WAITS]]],
}


@pytest.mark.parametrize("record", GOOD.values(), ids=GOOD)
def test_a_part_of_a_log_is_taken(record: list[Any]) -> None:
    part = logged.part_of(msgspec.msgpack.encode(record), a_model(max_features=4))
    assert (part.first_seq, part.first_column) == (6, 2)


@pytest.mark.parametrize("record", BAD.values(), ids=BAD)
def test_what_is_no_part_of_a_log_is_refused(record: Any) -> None:
    with pytest.raises(PoisonError):
        logged.part_of(msgspec.msgpack.encode(record), a_model(max_features=4))


def test_names_of_a_model_that_hashes_are_hashed() -> None:
    for auto in (False, True):
        model = Model(StoredModel(1, "m", Spec(rule="auto" if auto else "sgd", hash_bits=8).as_dict()), window=10)
        good = ["age#3f", "colour=#a0"] if auto else ["#3f", "#a0"]
        assert logged.part_of(msgspec.msgpack.encode([0, b"", good]), model).names == tuple(good)
        with pytest.raises(PoisonError):
            logged.part_of(msgspec.msgpack.encode([0, b"", ["age"]]), model)


def test_a_node_leaves_out_ids_that_stand_for_something(nodes: Nodes, cluster: Cluster) -> None:
    node = nodes.start()
    node.learn(events(0, 3))
    node.model().predict({"x": {"a": 1.0}, "id": "waits"})
    there, producer = partition_of(b"default", topic.PARTITIONS), Producer({"bootstrap.servers": cluster.address})
    for parts in (
        [0, b"", [], 1, piece(("e1", 1))],
        [0, b"", [], 1, piece(("waits", 1))],
        [0, b"", [], 0, b"", [["e1", 1, 0, 1, 3]]],
        [0, b"", [], 0, b"", [["waits", 1, 0, 1, 3]]],
        [0, b"", [], 0, b"", [], [["e1", 1, 2, WAITS]]],
        [0, b"", [], 0, b"", [], [["waits", 1, 2, WAITS]]],
    ):
        producer.produce(nodes.topic, msgspec.msgpack.encode(parts), b"default", there, headers=[("do", b"logged")])
    producer.produce(nodes.topic, b"\x90", b"unknown", partition_of(b"unknown", 64), headers=[("do", b"logged")])
    assert producer.flush(PATIENCE) == 0
    assert node.learn(events(1, 1))[0]["duplicate"]
    assert node.learn([{"id": "waits", "y": 1}])[0]["seq"] == 4
    assert node.log.count("stands for something already") == 6
    before = of_names(node.folder)
    node.kill()
    node = nodes.start(folder=node.folder)
    assert state(node)[0] == 4
    assert of_names(node.folder) == before
