"""Learning over HTTP: one event, an array, a stream; and events with ids, learned exactly once."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from harness import JSON, Model, NewModel, Service, Start, assert_problem, ndjson
from patience import eventually

from core import Learner, Spec
from core.learner import Outcome

Event = dict[str, Any]


def made_up_events(count: int, seed: int = 3) -> list[Event]:
    """Events with numbers, strings and booleans, of different features in different orders, some weighted."""
    numbers = random.Random(seed)
    events = []
    for i in range(count):
        x: dict[str, Any] = {
            "age": numbers.randint(18, 90),
            "price": numbers.uniform(-3, 3),
            "country": numbers.choice(["FR", "DE", "日本", ""]),
            "vip": numbers.random() < 0.5,
            f"f{i % 70}": numbers.gauss(0, 1),
        }
        kept = numbers.sample(list(x), numbers.randint(0, len(x)))
        event = {"x": {name: x[name] for name in kept}, "y": numbers.choice([0, 1, True, False])}
        if numbers.random() < 0.3:
            event["weight"] = numbers.uniform(0.1, 4)
        events.append(event)
    return events


def with_ids(events: list[Event]) -> list[Event]:
    return [{**event, "id": f"event-{i}"} for i, event in enumerate(events)]


def oracle(events: list[Event], **spec: Any) -> tuple[Learner, Outcome]:
    """The learner that was given these events, without a service, and what it found before each step."""
    learner = Learner(Spec(**spec))
    ys, ws = [int(event["y"]) for event in events], [event.get("weight", 1.0) for event in events]
    return learner, learner.learn_many([event["x"] for event in events], ys, ws)


def assert_same_as(learner: Learner, model: Model) -> None:
    """That the model is the learner's equal in every bit."""
    served = model.weights()
    assert list(served["weights"].items()) == list(learner.weights_by_name().items())
    assert (served["seq"], served["bias"], served["sha256"]) == (learner.seq, learner.bias, learner.sha256())


# -- one event


def test_the_reply_has_the_seq_and_the_prediction_made_before_the_step(model: Model) -> None:
    event = {"x": {"age": 2.0}, "y": 1}
    assert model.learn(event).json() == {
        "model": model.name,
        "seq": 1,
        "p": 0.5,
        "loss": math.log(2),
        "duplicate": False,
    }
    _, outcome = oracle([event, event])
    second = model.learn(event).json()
    assert (second["seq"], second["p"], second["loss"]) == (2, outcome.probabilities[1], outcome.losses[1])


def test_the_loss_is_of_the_score_not_of_a_rounded_p(new_model: NewModel) -> None:
    model = new_model(learning_rate=1.0)
    model.learn({"x": {"a": 100.0}, "y": 1})  # w = 50, b = 0.5
    reply = model.learn({"x": {"a": 100.0}, "y": 0}).json()
    assert reply["p"] == 1.0
    assert reply["loss"] == 5000.5


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"learning_rate": 0.1, "l2": 0.01},
        {"learning_rate": 0.05, "l1": 0.001},
        {"learning_rate": 0.3, "bias_learning_rate": 0.0, "clip": 0.4},
        {"hash_bits": 4},
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("form", ["one by one", "array", "stream"])
def test_the_weights_equal_a_learner_given_the_same_events(
    new_model: NewModel, spec: dict[str, Any], form: str
) -> None:
    model, events = new_model(**spec), made_up_events(100)
    learner, outcome = oracle(events, **spec)
    if form == "stream":
        reply = model.learn_lines(ndjson(events)).json()
        assert reply["loss"] == pytest.approx(outcome.losses.mean(), rel=1e-12)
    else:
        replies = model.learn(events).json() if form == "array" else [model.learn(event).json() for event in events]
        assert [reply["p"] for reply in replies] == outcome.probabilities.tolist()
        assert [reply["loss"] for reply in replies] == outcome.losses.tolist()
        assert [reply["seq"] for reply in replies] == list(range(1, 101))
    assert_same_as(learner, model)


def test_text_is_a_feature_of_value_1_and_true_is_1(model: Model) -> None:
    model.learn({"x": {"country": "FR", "vip": True, "new": False}, "y": 1})
    assert model.weights()["weights"] == {"country=FR": 0.005, "vip": 0.005, "new": 0.0}


def test_an_array_names_its_features_by_position(model: Model) -> None:
    model.learn({"x": [2.0, 0, True], "y": 1})
    assert model.weights()["weights"] == {"0": 0.01, "1": 0.0, "2": 0.005}


@pytest.mark.parametrize("x", [{}, []])
def test_an_event_without_features_moves_the_bias_alone(model: Model, x: Any) -> None:
    model.learn({"x": {"a": 1.0}, "y": 1})
    before = model.weights()
    assert model.learn({"x": x, "y": 1}).json()["seq"] == 2
    after = model.weights()
    assert after["weights"] == before["weights"]
    assert after["bias"] > before["bias"]


def test_of_a_name_that_stands_twice_the_last_counts(shared: Service, model: Model) -> None:
    body = '{"x": {"a": 5.0, "a": 1.0}, "y": 1}'
    assert shared.http.post(f"{model.path}/learn", content=body, headers=JSON).status_code == 200
    assert model.weights()["weights"] == {"a": 0.005}


@pytest.mark.parametrize("y", [0, 1, True, False, 1.0, 0.0])
def test_a_label_may_be_a_number_or_a_boolean(model: Model, y: Any) -> None:
    model.learn({"x": {"a": 1.0}, "y": y})
    assert model.weights()["weights"] == {"a": 0.005 if y else -0.005}


def test_a_weight_of_2_makes_the_step_twice_as_large(model: Model) -> None:
    model.learn({"x": {"a": 1.0}, "y": 1, "weight": 2})
    assert model.weights()["weights"] == {"a": 0.01}


def test_learn_without_a_model_is_learn_of_the_default_model(shared: Service) -> None:
    default = shared.model()
    before = default.state()["seq"]
    reply = shared.http.post("/learn", content='{"x": {"a": 1}, "y": 1}', headers=JSON).json()
    assert (reply["model"], reply["seq"]) == ("default", before + 1)
    assert default.learn({"x": {"a": 1}, "y": 1}).json()["seq"] == before + 2


def test_the_p_of_a_learn_is_what_predict_said_just_before(model: Model) -> None:
    for event in made_up_events(50):
        predicted = model.predict({"x": event["x"]}).json()
        learned = model.learn(event).json()
        assert learned["p"] == predicted["p"]
        assert learned["seq"] == predicted["seq"] + 1


def test_a_prediction_after_the_reply_is_made_with_that_event_learned(shared: Service, model: Model) -> None:
    learner = Learner()
    with shared.another_client() as elsewhere:
        for event in made_up_events(50):
            model.learn(event)
            learner.learn_one(event["x"], int(event["y"]), event.get("weight", 1.0))
            body = json.dumps({"x": event["x"]})
            seen = elsewhere.post(f"{model.path}/predict", content=body, headers=JSON).json()
            assert (seen["seq"], seen["p"]) == (learner.seq, learner.predict_proba_one(event["x"])[True])


def test_a_step_that_would_not_stay_finite_is_logged_and_not_taken(new_model: NewModel) -> None:
    model = new_model(learning_rate=1e300)
    before = model.mark()
    reply = model.learn({"x": {"a": 1e100}, "y": 1}).json()
    assert (reply["seq"], reply["p"], reply["loss"]) == (1, 0.5, None)
    state = model.state()
    assert (state["seq"], state["not_taken"], state["progressive"]["total"]["events"]) == (1, 1, 0)
    assert model.weights()["weights"] == {"a": 0.0}
    assert before[0] == 0


def test_events_of_many_clients_are_learned_one_after_the_other(shared: Service, model: Model) -> None:
    clients, each = 8, 40
    events = [with_ids(made_up_events(each, seed=client)) for client in range(clients)]

    def send(client: int) -> list[tuple[int, Event]]:
        with shared.another_client() as http:
            replies = [
                http.post(
                    f"{model.path}/learn", content=json.dumps({**e, "id": f"{client}-{e['id']}"}), headers=JSON
                ).json()
                for e in events[client]
            ]
        return [(reply["seq"], event) for reply, event in zip(replies, events[client], strict=True)]

    with ThreadPoolExecutor(clients) as pool:
        learned = sorted(itertools.chain.from_iterable(pool.map(send, range(clients))), key=lambda item: item[0])
    assert [seq for seq, _ in learned] == list(range(1, clients * each + 1))
    assert_same_as(oracle([event for _, event in learned])[0], model)


# -- an array


def test_an_array_is_answered_in_its_order(model: Model) -> None:
    replies = model.learn([{"x": {"a": 1}, "y": 1}, {"x": {"a": 2}, "y": 0}, {"x": {"b": 1}, "y": 1}]).json()
    assert [reply["seq"] for reply in replies] == [1, 2, 3]
    assert replies[0]["p"] == 0.5
    assert replies[1]["p"] > 0.5


def test_an_empty_array_is_answered_with_an_empty_array(model: Model) -> None:
    before = model.mark()
    assert model.learn([]).json() == []
    assert model.mark() == before


def test_an_array_may_have_white_space_before_it(shared: Service, model: Model) -> None:
    body = b' \r\n\t[ {"x": {"a": 1}, "y": 1} ] \n'
    assert [r["seq"] for r in shared.http.post(f"{model.path}/learn", content=body, headers=JSON).json()] == [1]


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"x": {"age": [1]}, "y": 1}, "[3].x.age"),
        ({"x": {"age": 1}, "y": 2}, "[3].y"),
        ({"x": {"age": 1e101}, "y": 1}, "[3].x.age"),
        ({"x": {"age": 1}, "y": 1, "weight": -1}, "[3].weight"),
        ({"x": {"age": 1}, "y": 1, "id": ""}, "[3].id"),
        ({"y": 1}, "[3].x"),
        (5, "[3]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_bad_element_and_nothing_of_an_array_is_learned(model: Model, bad: Any, field: str) -> None:
    model.learn({"x": {"known": 1}, "y": 1})
    before = model.mark()
    good = [{"x": {"known": 1, f"new{i}": 1}, "y": 1, "id": f"id{i}"} for i in range(5)]
    problem = assert_problem(model.learn([*good[:3], bad, *good[3:]]), 422, field)
    assert problem["field"] == field
    assert model.mark() == before
    # Neither the names nor the ids of its good elements were kept.
    again = model.learn(good).json()
    assert [(reply["seq"], reply["duplicate"]) for reply in again] == [(seq, False) for seq in range(2, 7)]
    assert_same_as(oracle([{"x": {"known": 1}, "y": 1}, *good])[0], model)


def test_an_array_larger_than_a_commit_is_learned_whole(shared: Service, model: Model) -> None:
    body = "[" + ",".join(['{"x":[1],"y":1}'] * 20_000) + "]"
    replies = shared.http.post(f"{model.path}/learn", content=body, headers=JSON).json()
    assert [reply["seq"] for reply in replies] == list(range(1, 20_001))


# -- a stream


def in_pieces(body: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


@pytest.mark.parametrize("size", [1, 7, 1_000, 100_000])
def test_a_stream_may_arrive_in_pieces_of_any_size(model: Model, size: int) -> None:
    events = made_up_events(20)
    reply = model.learn_lines(in_pieces(ndjson(events), size)).json()
    learner, outcome = oracle(events)
    assert reply.pop("loss") == pytest.approx(outcome.losses.mean(), rel=1e-12)
    assert reply == {"model": model.name, "learned": 20, "duplicates": 0, "first_seq": 1, "last_seq": 20}
    assert_same_as(learner, model)


def test_a_stream_is_learned_while_it_arrives(shared: Service, model: Model) -> None:
    lines = ndjson([{"x": [1], "y": 1}] * 2_500)
    with shared.connect() as connection:
        connection.send_head(f"{model.path}/learn", **{**NDJSON_HEAD, "transfer_encoding": "chunked"})
        connection.send_chunk(lines)
        eventually(lambda: model.state()["seq"] >= 2_000, "two pieces to be learned")
        connection.send_chunk(b"")
        assert connection.reply().json()["learned"] == 2_500


NDJSON_HEAD = {"content_type": "application/x-ndjson"}


@pytest.mark.parametrize("content_type", ["application/x-ndjson", "application/x-ndjson; charset=utf-8"])
def test_parameters_of_the_content_type_do_not_matter(shared: Service, model: Model, content_type: str) -> None:
    body = ndjson([{"x": [1], "y": 1}])
    reply = shared.http.post(f"{model.path}/learn", content=body, headers={"content-type": content_type})
    assert reply.json()["learned"] == 1


def test_blank_lines_crlf_and_a_missing_last_newline_do_not_matter(model: Model) -> None:
    body = b'\r\n{"x":{"a":1},"y":1}\r\n\n   \n\t\r\n{"x":{"a":2},"y":0}\n\n{"x":{"b":1},"y":1}'
    assert model.learn_lines(body).json()["learned"] == 3
    assert_same_as(oracle([{"x": {"a": 1}, "y": 1}, {"x": {"a": 2}, "y": 0}, {"x": {"b": 1}, "y": 1}])[0], model)


@pytest.mark.parametrize("body", [b"", b"\n", b" \r\n\n"], ids=repr)
def test_an_empty_stream_learns_nothing(model: Model, body: bytes) -> None:
    before = model.mark()
    assert model.learn_lines(body).json() == {
        "model": model.name,
        "learned": 0,
        "duplicates": 0,
        "first_seq": None,
        "last_seq": None,
        "loss": None,
    }
    assert model.mark() == before


@pytest.mark.parametrize(
    ("bad", "status", "field"),
    [
        (b'{"x": {"age": [1]}, "y": 1}', 422, "x.age"),
        (b'{"x": {"age": 1}}', 422, "y"),
        (b'{"x": {"age": 1}, "y": 3}', 422, "y"),
        (b'{"x": {"age": 1e101}, "y": 1}', 422, "x.age"),
        (b'{"x": {"age": 1}, "y": 1, "colour": 1}', 422, "colour"),
        (b'{"x": {"other": 1}, "y": 1, "id": "first"}', 409, "id"),
        (b'[{"x": {"age": 1}, "y": 1}]', 422, None),
        (b'{"x": {"age": 1}, "y": 1', 400, None),
        (b'{"x": {"age": NaN}, "y": 1}', 400, None),
    ],
    ids=lambda value: value.decode() if isinstance(value, bytes) else "",
)
def test_a_stream_stops_at_a_bad_line(model: Model, bad: bytes, status: int, field: str | None) -> None:
    first, second = {"x": {"age": 1}, "y": 1, "id": "first"}, {"x": {"new": 1}, "y": 0}
    body = ndjson([first]) + b"\n" + ndjson([second]) + bad + b"\n" + ndjson([{"x": {"after": 1}, "y": 1}])
    problem = assert_problem(model.learn_lines(body), status, "line 4")
    assert (problem["line"], problem["learned"], problem["last_seq"]) == (4, 2, 2)
    if field is not None:
        assert problem["field"] == f"line 4: {field}"
    assert_same_as(oracle([first, second])[0], model)


def test_a_bad_first_line_learns_nothing(model: Model) -> None:
    before = model.mark()
    problem = assert_problem(model.learn_lines(b'{"y": 1}\n{"x": {}, "y": 1}\n'), 422, "line 1: x")
    assert (problem["line"], problem["learned"], problem["last_seq"]) == (1, 0, None)
    assert model.mark() == before


def test_the_line_is_told_right_far_into_a_stream(model: Model) -> None:
    lines = [b'{"x":[1],"y":1}'] * 3_210
    lines[2_345] = b'{"x":[1],"y":7}'
    problem = assert_problem(model.learn_lines(b"\n".join(lines)), 422, "line 2346: y")
    assert (problem["line"], problem["learned"], problem["last_seq"]) == (2_346, 2_345, 2_345)
    assert model.state()["seq"] == 2_345


def test_resending_a_corrected_stream_with_ids_learns_the_rest_once(model: Model) -> None:
    events = with_ids(made_up_events(2_500))
    broken = ndjson(events[:1_700]) + b'{"x": 1}\n' + ndjson(events[1_700:])
    assert assert_problem(model.learn_lines(broken), 422)["learned"] == 1_700
    reply = model.learn_lines(ndjson(events)).json()
    assert (reply["learned"], reply["duplicates"]) == (800, 1_700)
    assert (reply["first_seq"], reply["last_seq"]) == (1_701, 2_500)
    assert_same_as(oracle(events)[0], model)


def test_a_line_may_be_as_long_as_the_limit_and_no_longer(small: Service) -> None:
    model = small.model()
    before = model.state()["seq"]
    line = b'{"x":[1],"y":1}'
    fits = line + b" " * (2_048 - len(line))
    assert model.learn_lines(fits + b"\n" + fits).json()["learned"] == 2
    problem = assert_problem(model.learn_lines(line + b"\n" + fits + b" \n" + line), 413, "Line 2", "2048 bytes")
    assert (problem["line"], problem["learned"], problem["last_seq"]) == (2, 1, before + 3)
    assert model.state()["seq"] == before + 3


def test_a_line_without_an_end_is_refused_before_it_ends(small: Service) -> None:
    with small.connect() as connection:
        connection.send_head("/learn", **NDJSON_HEAD, transfer_encoding="chunked")
        connection.send_chunk(b" " * 3_000)
        assert_problem(connection.reply(), 413, "Line 1")


def test_a_stream_may_be_longer_than_the_largest_body(small: Service) -> None:
    model = small.model()
    body = ndjson([{"x": [1], "y": 1}] * 2_000)
    assert len(body) > 4_096
    assert model.learn_lines(body).json()["learned"] == 2_000
    assert model.learn_lines(in_pieces(body, 5_000)).json()["learned"] == 2_000


# -- ids: exactly once


def test_a_repeat_is_answered_with_the_first_seq_and_not_learned(model: Model) -> None:
    event = {"x": {"a": 1, "b": 2}, "y": 1, "id": "order-77"}
    model.learn({"x": {"a": 1}, "y": 0})
    assert model.learn(event).json()["seq"] == 2
    model.learn({"x": {"a": 1}, "y": 0})
    before = model.mark()
    repeat = model.learn(event).json()
    assert repeat == {"model": model.name, "seq": 2, "p": None, "loss": None, "duplicate": True}
    assert model.mark() == before


@pytest.mark.parametrize(
    "same",
    [
        '{"x": {"b": "t", "a": 1}, "y": 1, "id": "i", "weight": 2}',
        '{"id": "i", "weight": 2.0, "y": true, "x": {"a": 1.0, "b": "t"}}',
        '{"x": {"a": true, "b": "t"}, "y": 1.0, "id": "i", "weight": 2e0}',
    ],
)
def test_a_repeat_may_be_written_otherwise(shared: Service, model: Model, same: str) -> None:
    model.learn({"x": {"a": 1, "b": "t"}, "y": 1, "id": "i", "weight": 2})
    reply = shared.http.post(f"{model.path}/learn", content=same, headers=JSON).json()
    assert (reply["seq"], reply["duplicate"]) == (1, True)


@pytest.mark.parametrize(
    "other",
    [
        {"x": {"a": 1.5, "b": 2}},
        {"x": {"a": 1}},
        {"x": {"a": 2, "b": 1}},
        {"x": {"a": 1, "b": 2, "new": 0}},
        {"x": {"a": 1, "c": 2}},
        {"y": 0},
        {"weight": 2},
    ],
    ids=json.dumps,
)
def test_the_same_id_with_another_event_is_a_conflict(model: Model, other: Event) -> None:
    event = {"x": {"a": 1, "b": 2}, "y": 1, "id": "order-77"}
    model.learn(event)
    before = model.mark()
    problem = assert_problem(model.learn({**event, **other}), 409, "order-77", "seq 1")
    assert problem["field"] == "id"
    array = model.learn([{"x": {"fresh": 1}, "y": 1}, {**event, **other}])
    assert assert_problem(array, 409)["field"] == "[1].id"
    assert model.mark() == before


def test_the_same_event_twice_in_an_array_is_learned_once(model: Model) -> None:
    event = {"x": {"a": 1, "b": 2}, "y": 1, "id": "twice"}
    other = {"x": {"a": 1}, "y": 0, "id": "other"}
    turned = {**event, "x": {"b": 2, "a": 1}}
    replies = model.learn([other, event, turned, event]).json()
    assert [(reply["seq"], reply["duplicate"]) for reply in replies] == [(1, False), (2, False), (2, True), (2, True)]
    assert_same_as(oracle([other, event])[0], model)


def test_the_same_id_for_two_events_of_an_array_learns_nothing(model: Model) -> None:
    before = model.mark()
    event = {"x": {"a": 1}, "y": 1, "id": "twice"}
    problem = assert_problem(model.learn([event, {**event, "y": 0}]), 409, "twice", "[1].id")
    assert problem["field"] == "[1].id"
    assert model.mark() == before
    assert model.learn(event).json()["duplicate"] is False


def test_the_same_event_twice_in_a_stream_is_learned_once(model: Model) -> None:
    events = with_ids(made_up_events(1_500))
    reply = model.learn_lines(ndjson([*events, *events[:10], *events[-10:]])).json()
    assert (reply["learned"], reply["duplicates"], reply["last_seq"]) == (1_500, 20, 1_500)
    assert_same_as(oracle(events)[0], model)


def test_an_id_sent_on_64_connections_at_once_is_learned_once(shared: Service, model: Model) -> None:
    body = json.dumps({"x": {"a": 1}, "y": 1, "id": "at-once"}).encode()
    replies = [reply.json() for reply in shared.post_at_once(f"{model.path}/learn", [body] * 64)]
    assert {reply["seq"] for reply in replies} == {1}
    assert sorted(reply["duplicate"] for reply in replies) == [False] + [True] * 63
    assert model.mark()[0] == 1


def test_different_events_with_one_id_at_once_are_one_learned_and_the_rest_conflicts(
    shared: Service, model: Model
) -> None:
    bodies = [json.dumps({"x": {"a": i}, "y": 1, "id": "at-once"}).encode() for i in range(16)]
    replies = shared.post_at_once(f"{model.path}/learn", bodies)
    assert sorted(reply.status for reply in replies) == [200] + [409] * 15
    assert model.mark()[0] == 1


def test_a_duplicate_of_an_event_that_is_refused_is_tried_itself(shared: Service, model: Model) -> None:
    event = {"x": {"a": 1}, "y": 1, "id": "shared"}
    refused = [event, {"x": {"a": 1}, "y": 2}]
    replies = shared.post_at_once(f"{model.path}/learn", [json.dumps(body).encode() for body in (refused, event)] * 8)
    assert [reply.status for reply in replies] == [422, 200] * 8
    assert sorted(reply.json()["duplicate"] for reply in replies[1::2]) == [False] + [True] * 7
    assert model.mark()[0] == 1


def test_the_ids_and_names_of_refused_events_are_not_kept_when_others_are_learned(
    shared: Service, model: Model
) -> None:
    refused = [[{"x": {f"r{i}": 1}, "y": 1, "id": f"r{i}"}, {"x": {}, "y": 2}] for i in range(8)]
    good = [{"x": {"a": 1}, "y": 1, "id": f"g{i}"} for i in range(8)]
    bodies = itertools.chain.from_iterable(zip(refused, good, strict=True))
    replies = shared.post_at_once(f"{model.path}/learn", [json.dumps(body).encode() for body in bodies])
    assert [reply.status for reply in replies] == [422, 200] * 8
    assert model.mark()[:2] == (8, 1)
    again = model.learn([pair[0] for pair in refused]).json()
    assert [(reply["seq"], reply["duplicate"]) for reply in again] == [(seq, False) for seq in range(9, 17)]


def test_ids_are_each_models_own(new_model: NewModel) -> None:
    first, second = new_model(), new_model()
    assert first.learn({"x": {"a": 1}, "y": 1, "id": "same"}).json()["duplicate"] is False
    assert second.learn({"x": {"b": 1}, "y": 0, "id": "same"}).json()["duplicate"] is False


@pytest.mark.parametrize(
    "id_",
    [
        "🙂 émoji 日本",
        "quotes \" and '",
        "back\\slash \\u0041",
        "%s ? ?1 :a $.x",
        "[0]",
        "null",
        " ",
        "\x01\n\t",
        "i" * 256,
        "🙂" * 256,
    ],
    ids=lambda id_: ascii(id_[:20]),
)
def test_an_id_may_be_any_text(model: Model, id_: str) -> None:
    event = {"x": {"a": 1}, "y": 1, "id": id_}
    assert model.learn(event).json()["duplicate"] is False
    repeat = model.learn(event).json()
    assert (repeat["seq"], repeat["duplicate"]) == (1, True)
    assert model.learn({**event, "id": id_[:-1] + "¬"}).json()["duplicate"] is False
    assert_problem(model.learn({**event, "y": 0}), 409)


def test_null_is_no_id(model: Model) -> None:
    event = {"x": {"a": 1}, "y": 1, "id": None}
    assert [model.learn(event).json()["seq"] for _ in range(2)] == [1, 2]


def test_the_ids_of_a_deleted_model_are_free_again(new_model: NewModel) -> None:
    model = new_model()
    model.learn({"x": {"a": 1}, "y": 1, "id": "again"})
    assert model.delete().status_code == 204
    assert model.create({}).status_code == 201
    reply = model.learn({"x": {"b": 2}, "y": 0, "id": "again"}).json()
    assert (reply["seq"], reply["duplicate"], reply["p"]) == (1, False, 0.5)


def test_hashed_names_do_not_hide_a_repeat(new_model: NewModel) -> None:
    model = new_model(hash_bits=2)
    event: dict[str, Any] = {"x": {f"f{i}": i for i in range(10)}, "y": 1, "id": "hashed"}
    model.learn(event)
    assert model.learn(event).json()["duplicate"] is True
    assert_problem(model.learn({**event, "x": {**event["x"], "f3": 100}}), 409)


def test_ids_and_every_acknowledged_event_are_there_after_kill_9_in_full_flow(start: Start) -> None:
    service = start()
    event, array, lines = {"x": {"a": 1}, "y": 1, "id": "one"}, made_up_events(5, 1), made_up_events(1_200, 2)
    array = [{**event, "id": f"array-{i}"} for i, event in enumerate(array)]
    service.model().learn(event)
    service.model().learn(array)
    service.model().learn_lines(ndjson(with_ids(lines)))
    before = service.model().mark()
    service.model("flow").create({})
    acknowledged = send_until_killed(service, "/models/flow/learn")

    service = start(folder=service.folder)
    model = service.model()
    assert model.mark() == before
    assert model.learn(event).json() == {
        "model": "default",
        "seq": 1,
        "p": None,
        "loss": None,
        "duplicate": True,
    }
    assert [(reply["seq"], reply["duplicate"]) for reply in model.learn(array).json()] == [
        (seq, True) for seq in range(2, 7)
    ]
    reply = model.learn_lines(ndjson(with_ids(lines))).json()
    assert (reply["learned"], reply["duplicates"]) == (0, 1_200)
    assert_problem(model.learn({**event, "y": 0}), 409)
    assert model.mark() == before
    assert_same_as(oracle([event, *array, *lines])[0], model)

    again = [flow_event(id_) for id_ in acknowledged]
    replies = service.model("flow").learn(again).json()
    assert [(reply["seq"], reply["duplicate"]) for reply in replies] == [(seq, True) for seq in acknowledged.values()]


def flow_event(id_: str) -> Event:
    number = int(id_.rpartition("-")[2])
    return {"x": {"a": number}, "y": number % 2, "id": id_}


def send_until_killed(service: Service, path: str) -> dict[str, int]:
    """Send events on four connections, kill the service meanwhile: the ids that were acknowledged, with their seqs."""
    acknowledged: dict[str, int] = {}

    def send(client: int) -> None:
        with service.another_client() as http:
            for i in itertools.count():
                event = flow_event(f"{client}-{i}")
                try:
                    reply = http.post(path, content=json.dumps(event), headers=JSON)
                except httpx.TransportError:
                    return  # it was killed
                acknowledged[event["id"]] = reply.json()["seq"]

    with ThreadPoolExecutor(4) as pool:
        sending = [pool.submit(send, client) for client in range(4)]
        eventually(lambda: len(acknowledged) >= 200, "some events to be learned")
        service.kill()
        for done in sending:
            done.result()
    return acknowledged
