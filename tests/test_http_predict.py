"""Predicting over HTTP: one question, an array, a stream; and that it changes nothing."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from effort import from_checks_on
from harness import JSON, Model, NewModel, Service, Start, assert_problem, ndjson

from core import Learner, Spec
from core.features import X

EVENTS: list[dict[str, Any]] = [
    {"x": {"age": 31, "country": "FR", "vip": True}, "y": 1},
    {"x": {"age": 64, "country": "DE", "vip": False}, "y": 0},
    {"x": {"country": "FR", "price": -0.125}, "y": 1},
    {"x": [0.5, 2], "y": 0},
]
QUESTIONS: list[dict[str, Any]] = [
    {"x": {"age": 31, "country": "FR", "vip": True}},
    {"x": {"price": 1e3, "country": "DE"}},
    {"x": {}},
    {"x": []},
    {"x": [1, -1, 7]},
    {"x": {"nobody": 5, "country": "XX", "age": 2}},
]


def taught() -> Learner:
    """The learner that was given the events without a service."""
    learner = Learner(Spec(learning_rate=0.1))
    learner.learn_many([event["x"] for event in EVENTS], [event["y"] for event in EVENTS])
    return learner


@pytest.fixture
def learned(new_model: NewModel) -> Model:
    """A model that has learned the events."""
    model = new_model(learning_rate=0.1)
    assert model.learn(EVENTS).status_code == 200
    return model


def expected(model: Model, question: dict[str, Any]) -> dict[str, Any]:
    p = taught().predict_proba_one(question["x"])[True]
    unknown = unknown_in(question["x"])
    return {"model": model.name, "p": p, "y": p > 0.5, "seq": len(EVENTS), **({"unknown": unknown} if unknown else {})}


def features(x: Any) -> set[str]:
    """What the names of an x mean, said in another way than core says it."""
    pairs = x.items() if isinstance(x, dict) else ((str(i), value) for i, value in enumerate(x))
    return {f"{name}={value}" if isinstance(value, str) else name for name, value in pairs}


def unknown_in(x: Any) -> int:
    return len(features(x) - set().union(*(features(event["x"]) for event in EVENTS)))


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("question", QUESTIONS, ids=json.dumps)
def test_a_prediction_equals_that_of_a_learner_given_the_same_events(learned: Model, question: dict[str, Any]) -> None:
    assert learned.predict(question).json() == expected(learned, question)


def test_an_array_is_answered_with_an_array(learned: Model) -> None:
    response = learned.predict(QUESTIONS)
    assert response.headers["content-type"] == "application/json"
    assert response.json() == [expected(learned, question) for question in QUESTIONS]
    assert learned.predict([]).json() == []


def test_a_stream_is_answered_with_a_stream(learned: Model) -> None:
    response = learned.predict_lines(ndjson(QUESTIONS))
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.text.endswith("\n")
    assert lines_of(response.text) == [expected(learned, question) for question in QUESTIONS]


def test_a_stream_may_come_in_chunks_with_blank_lines_and_without_a_last_newline(learned: Model) -> None:
    def chunks() -> Iterator[bytes]:
        for byte in ndjson(QUESTIONS).replace(b"\n", b"\r\n\n").rstrip():
            yield bytes([byte])

    replies = lines_of(learned.predict_lines(chunks()).text)
    assert replies == [expected(learned, question) for question in QUESTIONS]


def test_an_empty_stream_is_answered_with_an_empty_stream(learned: Model) -> None:
    response = learned.predict_lines(b"\n")
    assert (response.status_code, response.text) == (200, "")


def test_a_model_that_has_learned_nothing_predicts_one_half(model: Model) -> None:
    reply = {"model": model.name, "p": 0.5, "y": False, "seq": 0}
    assert model.predict({"x": {"a": 1}}).json() == {**reply, "unknown": 1}
    assert model.predict({"x": {}}).json() == reply


def test_predict_without_a_model_is_predict_of_the_default_model(shared: Service) -> None:
    body = json.dumps(QUESTIONS[0])
    assert shared.http.post("/predict", content=body, headers=JSON).json() == shared.model().predict(
        QUESTIONS[0]
    ).json() | {"model": "default"}


def test_predicting_changes_nothing(learned: Model) -> None:
    before = learned.state()
    learned.predict({"x": {"new": 1, "country": "new"}})
    learned.predict([{"x": {f"new{i}": i}} for i in range(100)])
    learned.predict_lines(ndjson({"x": [i] * i} for i in range(100)))
    assert learned.state() == before
    assert learned.service.get(f"{learned.path}/weights")["sha256"] == before["sha256"]


def test_features_that_the_model_does_not_know_add_nothing(learned: Model) -> None:
    x = {"age": 31, "country": "FR"}
    known = learned.predict({"x": x}).json()
    reply = learned.predict({"x": {"unknown": 1e6, **x, "country2": "FR", "no": True}}).json()
    assert reply == {**known, "unknown": 3}


STRANGE: dict[str, Any] = {"Age": 31, "COUNTRY": "FR", "VIP": True}


def test_a_prediction_of_which_no_name_is_known_says_so_in_every_kind_of_body(learned: Model) -> None:
    def column(name: str) -> pa.Array:
        return pa.array([STRANGE[name]])

    def counted() -> list[float]:
        metrics = learned.service.http.get("/metrics").text
        of_model = re.search(rf'^logstep_model_predicted_unknown_total{{model="{learned.name}"}} (.*)$', metrics, re.M)
        in_all = re.search(r"^logstep_predicted_unknown_total (.*)$", metrics, re.M)
        assert of_model is not None
        assert in_all is not None
        return [float(of_model[1]), float(in_all[1])]

    before, ids = counted(), itertools.count()
    sink = pa.BufferOutputStream()
    table = pa.table({name: column(name) for name in STRANGE})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    arrow = {"content-type": "application/vnd.apache.arrow.stream"}
    for kept in (False, True):
        question = {"x": STRANGE, **({"id": f"strange-{next(ids)}"} if kept else {})}
        other = {"x": STRANGE, **({"id": f"strange-{next(ids)}"} if kept else {})}
        replies = [learned.predict(question).json(), *learned.predict([other]).json()]
        again = [{**reply, "duplicate": True} if kept else reply for reply in replies]
        assert lines_of(learned.predict_lines(ndjson([question, other])).text) == again
        assert [reply["unknown"] for reply in replies] == [3, 3]
    by_arrow = learned.service.http.post(f"{learned.path}/predict", content=sink.getvalue().to_pybytes(), headers=arrow)
    assert by_arrow.json()["unknown"] == 3
    learned.predict({"x": {**STRANGE, "age": 1}})  # one is known
    learned.predict({"x": {}})  # none is asked
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [9, 9]


def test_what_was_unknown_when_it_was_served_is_said_again_after_a_restart_and_when_it_is_known(start: Start) -> None:
    """A prediction that is sent again is answered with what was served."""
    service = start()
    for spec in ({}, {"rule": "auto"}, {"hash_bits": 20}):
        name = f"m-{'-'.join(spec) or 'plain'}"
        assert service.model(name).create(spec).status_code == 201
        first = service.model(name).predict({"x": STRANGE, "id": "a"}).json()
        assert first["unknown"] == 3
        service.model(name).learn({"x": STRANGE, "y": 1})
        assert "unknown" not in service.model(name).predict({"x": STRANGE}).json()
    service.kill()
    again = start(folder=service.folder)
    for name in ("m-plain", "m-rule", "m-hash_bits"):
        told = again.model(name).predict({"x": STRANGE, "id": "a"}).json()
        assert (told["unknown"], told["duplicate"]) == (3, True)


def test_a_feature_whose_event_was_refused_is_not_known(learned: Model) -> None:
    assert learned.learn([{"x": {"refused": 1}, "y": 1}, {"x": {}, "y": 2}]).status_code == 422
    told = learned.predict({"x": {"refused": 1e6}}).json()
    assert told == {**learned.predict({"x": {}}).json(), "unknown": 1}


def test_beyond_a_score_of_30_a_prediction_is_exactly_0_or_1(new_model: NewModel) -> None:
    model = new_model(learning_rate=1.0)
    model.learn({"x": {"a": 100.0}, "y": 1})
    assert model.predict({"x": {"a": 1e100}}).json()["p"] == 1.0
    low = model.predict({"x": {"a": -1e100}})
    assert (low.json()["p"], low.json()["y"]) == (0.0, False)


def test_hashed_names_are_hashed_for_a_prediction_too(new_model: NewModel) -> None:
    model, learner = new_model(hash_bits=1), Learner(Spec(hash_bits=1))
    x: X = {"a": 1, "b": 2, "c": "text", "d": True}
    model.learn({"x": x, "y": 1})
    learner.learn_one(x, 1)
    assert (
        model.predict({"x": {"c": "text", "a": 3}}).json()["p"]
        == (learner.predict_proba_one({"c": "text", "a": 3})[True])
    )


# -- what cannot be predicted


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"x": {"age": [1]}}, "x.age"),
        ({"x": {"age": 1e101}}, "x.age"),
        ({"x": {"": 1}}, "x"),
        ({"x": [1, "a"]}, "x[1]"),
        ({"x": None}, "x"),
        ({"x": {}, "y": 1}, "y"),
        ({}, "x"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_told_with_its_place(learned: Model, bad: Any, field: str) -> None:
    assert assert_problem(learned.predict(bad), 422, field)["field"] == field
    array = assert_problem(learned.predict([QUESTIONS[0], bad, QUESTIONS[0]]), 422, field)
    assert array["field"] == f"[1].{field}"
    stream = assert_problem(learned.predict_lines(ndjson([QUESTIONS[0], bad, QUESTIONS[0]])), 422, field)
    assert (stream["field"], stream["line"]) == (f"line 2: {field}", 2)


def test_a_stream_with_a_line_that_is_no_json_is_refused_with_the_line(learned: Model) -> None:
    problem = assert_problem(learned.predict_lines(b'{"x": {}}\n\n{"x": {}\n{"x": {}}\n'), 400, "line 3")
    assert problem["line"] == 3


def test_a_stream_with_a_bad_line_far_in_is_refused_whole(learned: Model) -> None:
    lines = [b'{"x":{}}'] * 3_000
    lines[2_500] = b'{"x":5}'
    assert assert_problem(learned.predict_lines(b"\n".join(lines)), 422)["line"] == 2_501


def test_a_line_that_is_too_long_is_refused(small: Service) -> None:
    problem = assert_problem(small.model().predict_lines(b'{"x":{}}\n{"x":{}}' + b" " * 2_048), 413, "Line 2")
    assert problem["line"] == 2


def test_an_array_that_is_too_large_is_refused(small: Service) -> None:
    assert_problem(small.model().predict([{"x": {}}] * 1_000), 413, "4096 bytes")


# -- long streams


@from_checks_on
def test_a_client_may_send_the_whole_of_a_long_stream_before_it_reads(shared: Service, learned: Model) -> None:
    count = 150_000
    line = b'{"x":{"country":"FR"}}' + b" " * 40 + b"\n"
    body = line * count
    with shared.connect() as connection:
        connection.send_head(f"{learned.path}/predict", content_type="application/x-ndjson", content_length=len(body))
        connection.send(body)
        reply = connection.reply()
    assert reply.status == 200
    assert len(reply.text) > 8 * 2**20
    one = json.dumps(expected(learned, {"x": {"country": "FR"}}), separators=(",", ":"))
    assert reply.text == f"{one}\n" * count


def test_others_are_served_while_a_long_stream_arrives(shared: Service, learned: Model) -> None:
    with shared.connect() as connection:
        connection.send_head(
            f"{learned.path}/predict", content_type="application/x-ndjson", transfer_encoding="chunked"
        )
        connection.send_chunk(b'{"x":{}}\n' * 1_500)
        assert learned.predict(QUESTIONS[0]).json() == expected(learned, QUESTIONS[0])
        assert learned.learn({"x": {}, "y": 1}).json()["seq"] == len(EVENTS) + 1
        connection.send_chunk(b'{"x":{}}\n')
        connection.send_chunk(b"")
        replies = lines_of(connection.reply().text)
    assert len(replies) == 1_501
    assert replies[-1] == learned.predict({"x": {}}).json()  # made from the model as it stood then
