"""Named models over HTTP: made with a spec, shown, checked against river, removed."""

from __future__ import annotations

import hashlib
import itertools
import json
import sqlite3
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from effort import from_checks_on
from harness import JSON, Model, NewModel, Service, Start, assert_problem, ndjson
from patience import eventually

from core import Learner, Spec

DEFAULTS = {
    "rule": "sgd",
    "learning_rate": 0.01,
    "bias_learning_rate": 0.01,
    "l1": 0.0,
    "l2": 0.0,
    "clip": 1e12,
    "max_features": 1_000_000,
    "overflow": "ignore",
    "hash_bits": None,
    "max_value": 1e100,
}
_numbers = itertools.count(1)


NOTHING_LEARNED = {"log_loss": None, "base_rate_log_loss": None, "worse_than_guessing": None}


@pytest.fixture
def absent(shared: Service) -> Model:
    """A model that there is not."""
    return shared.model(f"absent-{next(_numbers)}")


# -- making one


def test_a_new_model_is_201_and_begins_at_nothing(absent: Model) -> None:
    response = absent.create({"learning_rate": 0.05})
    assert response.status_code == 201
    nothing = {"events": 0, "log_loss": None, "base_rate_log_loss": None, "accuracy": None, "roc_auc": None}
    state = absent.state()
    assert response.json() == {"model": absent.name, "spec": state["spec"], "seq": 0, "created": True}
    assert (
        DEFAULTS.items() - {"learning_rate": 0}.items()
        <= {
            **state["spec"],
            "learning_rate": 0.01,
            "bias_learning_rate": 0.01,
        }.items()
    )
    assert (state["spec"]["learning_rate"], state["spec"]["bias_learning_rate"]) == (0.05, 0.05)
    assert (state["model"], state["seq"], state["features"], state["not_taken"]) == (absent.name, 0, 0, 0)
    calibration = state["progressive"]["calibration"]
    assert all(bucket["count"] == 0 and bucket["p"] is None for part in calibration.values() for bucket in part)
    assert state["progressive"] == {"total": nothing, "window": nothing, "calibration": calibration}
    assert state["sha256"] == Learner().sha256()


def test_models_are_listed_in_order_of_creation(shared: Service, new_model: NewModel) -> None:
    first, second = new_model(), new_model()
    second.learn({"x": {}, "y": 1})
    listed = shared.get("/models")["models"]
    assert listed[0]["model"] == "default"
    assert listed[-2:] == [
        {"model": first.name, "rule": "sgd", "seq": 0, **NOTHING_LEARNED},
        {
            "model": second.name,
            "rule": "sgd",
            "seq": 1,
            "log_loss": pytest.approx(0.6931, abs=1e-4),
            "base_rate_log_loss": 0.0,
            "worse_than_guessing": None,
        },
    ]


@pytest.mark.parametrize(
    "again",
    [
        '{"learning_rate": 1}',
        '{"learning_rate": 1.0}',
        '{"learning_rate": 1e0, "bias_learning_rate": 1}',
        '{"l2": 0, "l1": 0.0, "learning_rate": 1, "bias_learning_rate": null, "hash_bits": null}',
        '{"rule": "sgd", "learning_rate": 1, "clip": 1000000000000, "max_features": 1000000, "max_value": 1e100}',
    ],
)
def test_the_same_spec_again_is_200_however_it_is_written(absent: Model, again: str) -> None:
    assert absent.create({"learning_rate": 1}).status_code == 201
    absent.learn({"x": {"a": 1}, "y": 1})
    response = absent.service.http.put(absent.path, content=again, headers=JSON)
    assert response.status_code == 200
    assert response.json() == {"model": absent.name, "spec": absent.state()["spec"], "seq": 1, "created": False}


@pytest.mark.parametrize(
    "other",
    [{}, {"learning_rate": 2}, {"learning_rate": 1, "bias_learning_rate": 0.01}, {"learning_rate": 1, "hash_bits": 8}],
    ids=json.dumps,
)
def test_another_spec_for_a_model_that_is_there_is_409(absent: Model, other: dict[str, Any]) -> None:
    absent.create({"learning_rate": 1})
    absent.learn({"x": {"a": 1}, "y": 1})
    before = absent.state()
    assert_problem(absent.create(other), 409, absent.name, "another spec")
    assert absent.state() == before


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ('{"learning_rates": 1}', "learning_rates"),
        ('{"learning_rate": 0}', "learning_rate"),
        ('{"learning_rate": -1}', "learning_rate"),
        ('{"learning_rate": "a"}', "learning_rate"),
        ('{"clip": null}', "clip"),
        ('{"learning_rate": true}', "learning_rate"),
        ('{"learning_rate": [1]}', "learning_rate"),
        ('{"learning_rate": 1e999}', "learning_rate"),
        ('{"bias_learning_rate": -1}', "bias_learning_rate"),
        ('{"l1": -1}', "l1"),
        ('{"l1": 0.1, "l2": 0.1}', "l2"),
        ('{"clip": 0}', "clip"),
        ('{"hash_bits": 0}', "hash_bits"),
        ('{"hash_bits": 31}', "hash_bits"),
        ('{"hash_bits": 1.5}', "hash_bits"),
        ('{"hash_bits": "8"}', "hash_bits"),
        ('{"max_features": 0}', "max_features"),
        ('{"max_features": 99999999999999999999}', "max_features"),
        ('{"max_value": 1e301}', "max_value"),
        ('{"max_value": 0}', "max_value"),
        ('{"rule": "unknown"}', "rule"),
        ('{"rule": null}', "rule"),
        ("[]", "body"),
        ("null", "body"),
        ('"sgd"', "body"),
    ],
)
def test_a_spec_that_makes_no_sense_is_422_and_names_the_field(absent: Model, spec: str, field: str) -> None:
    problem = assert_problem(absent.service.http.put(absent.path, content=spec, headers=JSON), 422, field)
    assert problem["field"] == field
    assert_problem(absent.service.http.get(absent.path), 404)


@pytest.mark.parametrize(
    "spec",
    [
        b"",
        b"{",
        b"{}{}",
        b'{"learning_rate": NaN}',
        b'{"learning_rate": Infinity}',
        b'{"a\xff": 1}',
        b'{"rule": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    ],
    ids=lambda spec: repr(spec[:20]),
)
def test_a_spec_that_is_no_json_is_400(absent: Model, spec: bytes) -> None:
    assert_problem(absent.service.http.put(absent.path, content=spec, headers=JSON), 400, "not valid JSON")
    assert_problem(absent.service.http.get(absent.path), 404)


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-ndjson"])
def test_a_spec_of_another_content_type_is_415(absent: Model, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    assert_problem(absent.service.http.put(absent.path, content="{}", headers=headers), 415, "application/json")


@pytest.mark.parametrize("name", ["a", "7", "A.b_c-9", "n" * 64, "con", "a.."])
def test_a_name_that_is_in_order(shared: Service, name: str) -> None:
    model = shared.model(name)
    assert model.create({}).status_code == 201
    assert model.learn({"x": {}, "y": 1}).json()["model"] == name
    assert model.delete().status_code == 204


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("..", 422),
        ("%2e%2e", 422),
        ("%2E", 422),
        (".hidden", 422),
        ("_a", 422),
        ("-a", 422),
        ("n" * 65, 422),
        ("a%20b", 422),
        ("a%00", 422),
        ("a%0a", 422),
        ("%C3%A9", 422),
        ("%ff", 422),
        ("%F0%9F%99%82", 422),
        ("a%27;--", 422),
        ("", 404),
        ("../a", 404),
        ("..%2fa", 404),
        ("%2e%2e%2f%2e%2e%2fetc%2fpasswd", 404),
        ("a%2Fb", 404),
    ],
)
def test_a_name_that_is_not_in_order_makes_no_model(shared: Service, name: str, status: int) -> None:
    before = shared.get("/models")
    with shared.connect() as connection:
        connection.send_head(f"/models/{name}", "PUT", content_type="application/json", content_length=2)
        connection.send(b"{}")
        assert_problem(connection.reply(), status)
    assert shared.get("/models") == before
    with shared.connect() as connection:
        connection.send_head(f"/models/{name}/learn", content_type="application/json", content_length=2)
        connection.send(b"{}")
        assert_problem(connection.reply(), 404)


def test_there_are_no_more_models_than_the_limit(small: Service) -> None:
    first, second, third = (small.model(name) for name in ("first", "second", "third"))
    assert [first.create({}).status_code, second.create({}).status_code] == [201, 201]
    assert_problem(third.create({}), 409, "3 models", "LOGSTEP_MAX_MODELS")
    assert first.create({}).status_code == 200  # it is there already
    assert first.delete().status_code == 204
    assert third.create({}).status_code == 201
    for model in (second, third):
        assert model.delete().status_code == 204


def test_a_model_asked_for_by_many_at_once_is_made_once(absent: Model) -> None:
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: absent.create({}).status_code, range(8)))
    assert sorted(statuses) == [200] * 7 + [201]


# -- what a spec does


def test_hashing_keeps_the_number_of_features_and_sums_those_that_meet(new_model: NewModel) -> None:
    model, learner = new_model(hash_bits=2), Learner(Spec(hash_bits=2))
    for i in range(20):
        x = {f"name-{i}-{j}": float(j) for j in range(10)}
        model.learn({"x": x, "y": i % 2})
        learner.learn_one(x, i % 2)
    assert model.weights()["weights"] == learner.weights_by_name()
    assert set(model.weights()["weights"]) == {"#0", "#1", "#2", "#3"}
    assert model.state()["sha256"] == learner.sha256()


def test_a_full_model_leaves_new_features_out_and_says_how_many(new_model: NewModel) -> None:
    model = new_model(max_features=2)
    learner = Learner(Spec(max_features=2))
    events: list[Any] = [{"x": {"a": i / 3, "user": f"u{i}"}, "y": i % 2, "id": f"e{i}"} for i in range(12)]
    for event in events:
        learner.learn_one(event["x"], event["y"])
    assert model.learn(events[0]).json()["seq"] == 1
    assert [reply["seq"] for reply in model.learn(events[1:6]).json()] == [2, 3, 4, 5, 6]
    assert model.learn_lines(ndjson(events[6:])).json()["learned"] == 6
    state = model.state()
    assert (state["seq"], state["features"], state["left_out"]) == (12, 2, 11)
    assert (state["sha256"], state["spec"]["overflow"]) == (learner.sha256(), "ignore")
    assert model.learn_lines(ndjson(events)).json()["duplicates"] == 12
    assert model.learn({"x": {"user": "nobody"}, "y": 1}).json()["seq"] == 13  # a step of the bias
    assert model.weights()["bias"] != learner.bias
    assert model.state()["left_out"] == 12
    metric = f'logstep_model_left_out{{model="{model.name}"}} 12.0'
    assert metric in model.service.http.get("/metrics").text
    assert model.predict({"x": {"a": 1.0, "user": "u11"}}).json()["p"] == model.predict({"x": {"a": 1.0}}).json()["p"]
    model.assert_equal_to_river()
    explained = model.service.http.post(f"{model.path}/explain", json={"x": {"a": 1.0, "user": "u11"}}).json()
    assert ([feature["name"] for feature in explained["features"]], explained["unknown"]) == (["a"], ["user=u11"])


def test_more_features_than_the_model_may_have_are_refused_and_nothing_changes(new_model: NewModel) -> None:
    model = new_model(max_features=3, overflow="refuse")
    model.learn({"x": {"a": 1, "b": 1}, "y": 1})
    before = model.mark()
    problem = assert_problem(model.learn({"x": {"a": 1, "c": 1, "d": 1}, "y": 1}), 422, "max_features", "hash_bits")
    assert problem["field"] == "x"
    assert_problem(model.learn([{"x": {"c": 1}, "y": 1}, {"x": {"d": 1}, "y": 1}]), 422)
    assert model.mark() == before
    assert model.learn({"x": {"b": 1, "c": 1}, "y": 1}).json()["seq"] == 2  # there is room for one
    assert_problem(model.learn({"x": {"d": 1}, "y": 1}), 422)
    assert model.learn({"x": {"a": 1, "b": 1, "c": 1}, "y": 0}).json()["seq"] == 3
    assert model.predict({"x": {"d": 1e9}}).json()["p"] == model.predict({"x": {}}).json()["p"]


def test_a_stream_keeps_what_it_learned_before_there_was_no_room(new_model: NewModel) -> None:
    model = new_model(max_features=10, overflow="refuse")
    problem = assert_problem(model.learn_lines(ndjson({"x": {f"f{i}": 1}, "y": 1} for i in range(15))), 422)
    assert (problem["line"], problem["learned"], problem["last_seq"]) == (11, 10, 10)
    assert model.mark()[:2] == (10, 10)


def test_the_largest_value_is_a_setting_of_the_model(new_model: NewModel) -> None:
    model = new_model(max_value=10)
    assert model.learn({"x": {"a": -10}, "y": 1}).status_code == 200
    assert assert_problem(model.learn({"x": {"b": 0, "a": 10.5}, "y": 1}), 422, "within ±10")["field"] == "x.a"
    assert_problem(model.predict({"x": {"a": -11}}), 422, "within ±10")


# -- looking at it


def test_the_scores_are_of_the_predictions_made_before_each_step(model: Model) -> None:
    replies = model.learn([{"x": {"a": i % 3}, "y": int(i % 3 == 1)} for i in range(50)]).json()
    total = model.state()["progressive"]["total"]
    assert total["events"] == 50
    assert total["log_loss"] == pytest.approx(sum(reply["loss"] for reply in replies) / 50)
    right = sum((reply["p"] > 0.5) == (i % 3 == 1) for i, reply in enumerate(replies))
    assert total["accuracy"] == right / 50


def test_the_sha256_is_what_the_description_says(model: Model) -> None:
    model.learn({"x": {"b": 1.5, "ä": "ö", "a": -1}, "y": 1})
    served = model.weights()
    assert list(served["weights"]) == ["b", "ä=ö", "a"]
    names = "".join(f"{name}\0" for name in served["weights"]).encode()
    numbers = struct.pack("<4d", *served["weights"].values(), served["bias"])
    assert served["sha256"] == hashlib.sha256(names + numbers).hexdigest() == model.state()["sha256"]


def test_the_largest_weights_alone(model: Model) -> None:
    model.learn({"x": {"a": 1, "b": -3, "c": 2, "d": 0}, "y": 1})
    everything = model.weights()
    weights = everything.pop("weights")
    for k, names in ((1, ["b"]), (2, ["b", "c"]), (9, ["b", "c", "a", "d"])):
        found = model.service.get(f"{model.path}/weights?top={k}")
        assert list(found.pop("weights").items()) == [(name, weights[name]) for name in names]
        assert found == everything


@pytest.mark.parametrize("top", ["0", "-1", "x", "", "1.5", "1e3", "9" * 30, "%C2%B2"])
def test_a_wrong_number_of_weights_is_422(model: Model, top: str) -> None:
    problem = assert_problem(model.service.http.get(f"{model.path}/weights?top={top}"), 422, "top")
    assert problem["field"] == "top"


# -- removing it


@contextmanager
def database(folder: Path) -> Iterator[sqlite3.Connection]:
    """The service's SQLite file, read-only."""
    uri = f"{(folder / 'log.db').as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as db:
        yield db


def rows_of(folder: Path, key: int) -> dict[str, int]:
    """How many rows each table has for the model with this key."""
    with database(folder) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        columns = {table: [row[1] for row in db.execute(f"PRAGMA table_info({table})")] for table in tables}
        return {
            table: db.execute(f"SELECT count(*) FROM {table} WHERE model = ?", [key]).fetchone()[0]
            for table in tables
            if "model" in columns[table]
        }


def key_of(folder: Path, name: str) -> int:
    with database(folder) as db:
        ((key,),) = db.execute("SELECT model FROM models WHERE name = ?", [name]).fetchall()
    return int(key)


def test_a_deleted_model_is_gone_and_its_name_is_free(new_model: NewModel) -> None:
    model = new_model(learning_rate=0.5)
    model.learn({"x": {"a": 1}, "y": 1, "id": "i"})
    response = model.delete()
    assert (response.status_code, response.content) == (204, b"")
    for gone in (
        model.service.http.get(model.path),
        model.service.http.get(f"{model.path}/weights"),
        model.learn({"x": {}, "y": 1}),
        model.predict({"x": {}}),
        model.delete(),
    ):
        assert_problem(gone, 404, model.name)
    assert model.create({"learning_rate": 0.25}).status_code == 201
    assert model.learn({"x": {"b": 1}, "y": 1}).json()["seq"] == 1
    assert model.weights()["weights"] == {"b": 0.125}


def test_the_default_model_is_there_from_the_start_and_back_empty_when_deleted(start: Start) -> None:
    service = start()
    model = service.model()
    assert service.get("/models") == {"models": [{"model": "default", "rule": "sgd", "seq": 0, **NOTHING_LEARNED}]}
    assert model.state()["spec"].items() >= DEFAULTS.items()
    model.learn({"x": {"a": 1}, "y": 1, "id": "i"})
    assert model.delete().status_code == 204
    assert model.mark() == (0, 0, Learner().sha256())
    assert model.learn({"x": {"b": 1}, "y": 1, "id": "i"}).json()["seq"] == 1


def test_a_deleted_model_leaves_no_row_behind(start: Start) -> None:
    service = start("--snapshot-seconds", "0.000001")
    model, other = service.model("doomed"), service.model()
    model.create({})
    other.learn({"x": {"kept": 1}, "y": 1, "id": "kept"})
    eventually(lambda: other.state()["snapshot_seq"] == 1, "the other's snapshot")
    for part in range(3):
        events = [{"x": {f"f{part}-{i}": 1}, "y": 1, "id": f"{part}-{i}"} for i in range(300)]
        model.learn_lines(ndjson(events))
    eventually(lambda: model.state()["snapshot_seq"] == 900, "a snapshot")
    key, other_key = key_of(service.folder, "doomed"), key_of(service.folder, "default")
    # The series is written every 5 s. Only after that do the rows of a model at rest stay as they are.
    eventually(lambda: rows_of(service.folder, key)["series"], "its series")
    eventually(lambda: rows_of(service.folder, other_key)["marks"], "the other's series")
    before, others = rows_of(service.folder, key), rows_of(service.folder, other_key)
    written = ("models", "names", "batches", "new_ids", "snapshots", "snapshot_chunks", "series")
    assert min(before[table] for table in written) > 0

    assert model.delete().status_code == 204
    eventually(lambda: not any(rows_of(service.folder, key).values()), "the rows to go")
    assert rows_of(service.folder, other_key) == others


def test_models_survive_kill_9_and_deleted_ones_stay_deleted(start: Start) -> None:
    service = start()
    specs = {"one": {"learning_rate": 0.1, "l2": 0.01}, "two": {"l1": 0.001}, "three": {"hash_bits": 3}, "empty": {}}
    for i, (name, spec) in enumerate(specs.items()):
        service.model(name).create(spec)
        if name != "empty":
            events = [{"x": {f"f{j % 7}": j * 0.3, "t": "x"}, "y": j % 2, "id": str(j)} for j in range(50 + i)]
            service.model(name).learn(events)
    listed, states = service.get("/models"), {name: service.model(name).state() for name in specs}
    doomed = service.model("doomed")
    doomed.create({})
    doomed.learn_lines(ndjson({"x": {"a": i}, "y": 1, "id": str(i)} for i in range(5_000)))
    key = key_of(service.folder, "doomed")
    assert doomed.delete().status_code == 204
    service.kill()  # while it clears away what the deleted model has left

    service = start(folder=service.folder)
    assert service.get("/models") == listed
    eventually(lambda: not any(rows_of(service.folder, key).values()), "the rows to go")
    for name, spec in specs.items():
        model = service.model(name)
        assert model.state() == states[name]
        assert model.create(spec).status_code == 200
        assert model.learn({"x": {"new": 1}, "y": 1}).json()["seq"] == states[name]["seq"] + 1


# -- held to river


def learned(new_model: NewModel, **spec: Any) -> Model:
    model = new_model(**spec)
    events = [
        {"x": {"a": i * 0.37 - 3, "b": "even" if i % 2 else "odd", f"f{i % 5}": True}, "y": (i * 7) % 3 % 2}
        for i in range(300)
    ]
    assert model.learn(events).status_code == 200
    return model


def test_the_crosscheck_finds_the_weights_equal_to_rivers_while_others_are_served(
    shared: Service, new_model: NewModel
) -> None:
    model = learned(new_model, learning_rate=0.07, l2=0.001)
    asked = model.state()
    with shared.another_client() as elsewhere, ThreadPoolExecutor(1) as pool:
        crosscheck = pool.submit(elsewhere.get, f"{model.path}/crosscheck")
        eventually(shared.children, "the cross-check to begin")

        busy = model.crosscheck()
        assert_problem(busy, 429, "one runs at a time")
        assert int(busy.headers["retry-after"]) > 0
        assert model.predict({"x": {"a": 1}}).json()["seq"] == 300
        assert model.learn({"x": {"a": 1, "new": 1}, "y": 1}).json()["seq"] == 301
        assert not crosscheck.done(), "the cross-check ended too soon to tell"
    assert crosscheck.result().status_code == 200
    report = crosscheck.result().json()
    assert report.pop("river")[0].isdigit()
    assert report == {
        "model": model.name,
        "seq": 300,
        "events": 300,
        "from_seq": 0,
        "not_taken": 0,
        "features": asked["features"],
        "max_abs_diff": 0.0,
        "max_ulp": 0,
        "feature": None,
        "bias_ulp": 0,
        "equal": True,
        "replay_equal": True,
        "sha256": asked["sha256"],
        "bits_may_differ_from": None,
    }
    assert not shared.children()


@from_checks_on
def test_of_two_crosschecks_asked_for_at_once_one_runs(shared: Service, new_model: NewModel) -> None:
    model = learned(new_model, hash_bits=2, l1=0.0001)
    with shared.connect() as first, shared.connect() as second:
        for connection in (first, second):
            connection.send_head(f"{model.path}/crosscheck", "GET")
        replies = [first.reply(), second.reply()]
    assert sorted(reply.status for reply in replies) == [200, 429]
    (report,) = (reply.json() for reply in replies if reply.status == 200)
    assert (report["equal"], report["replay_equal"]) == (True, True)


@from_checks_on
def test_a_crosscheck_may_be_asked_for_while_a_large_array_is_being_learned(model: Model) -> None:
    body = "[" + ",".join(['{"x":[],"y":1}'] * 65_000) + "]"
    with model.service.another_client() as elsewhere, ThreadPoolExecutor(1) as pool:
        learning = pool.submit(elsewhere.post, f"{model.path}/learn", content=body, headers=JSON)
        eventually(lambda: model.state()["seq"] > 0, "the first of them to be learned")
        checked = model.crosscheck()
    assert learning.result().status_code == 200
    assert checked.status_code == 200, checked.text
    assert (checked.json()["equal"], checked.json()["replay_equal"]) == (True, True)
