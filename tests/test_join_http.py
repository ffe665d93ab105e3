"""Labels that come late, over HTTP: predictions kept under an id, joined to their labels, timed out."""

from __future__ import annotations

import itertools
import json
import math
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from effort import from_checks_on
from harness import Model, NewModel, Reply, Service, Start, assert_problem, ndjson
from patience import eventually
from river import metrics

from core import Learner, Spec
from core.progressive import DELAYS

Json = dict[str, Any]
X: Json = {"age": 4.0, "country": "FR", "vip": True}


def question(id_: str | None = None, x: Any = None) -> Json:
    return {"x": X if x is None else x, **({} if id_ is None else {"id": id_})}


def label(id_: str, y: Any = 1, **more: Any) -> Json:
    return {"id": id_, "y": y, **more}


def kept(model: Model, id_: str, x: Any = None) -> Json:
    """Keep a prediction: its reply."""
    response = model.predict(question(id_, x))
    assert response.status_code == 200, response.text
    reply: Json = response.json()
    assert reply["kept"] is True
    return reply


def learned(model: Model, event: Any) -> Any:
    response = model.learn(event)
    assert response.status_code == 200, response.text
    return response.json()


def counts(model: Model) -> Json:
    """What `GET /models/{model}` says under `join`, without the histogram."""
    join = model.state()["join"]
    return {name: count for name, count in join.items() if name != "delay_s"}


def none_waits(model: Model) -> Json:
    """Wait until every prediction has been joined or timed out; the counts then."""
    eventually(lambda: counts(model)["waiting"] == 0, "the predictions to time out")
    return counts(model)


def expected(**changed: int) -> Json:
    return {"waiting": 0, "joined": 0, "expired": 0, "dropped": 0, "late": 0, "not_kept": 0, **changed}


def log_loss(p: float, y: int) -> float:
    return -math.log(p if y else 1 - p)


def sha256(events: Sequence[tuple[Any, int, float]], **spec: Any) -> str:
    """Of the learner that was given these events, in this order, without a service."""
    learner = Learner(Spec(**spec))
    for x, y, weight in events:
        learner.learn_one(x, y, weight)
    return learner.sha256()


def assert_conflict(response: httpx.Response | Reply, id_: str, *details: str) -> None:
    problem = assert_problem(response, 409, repr(id_), *details)
    assert problem["title"] == "Id conflict"
    assert problem["type"] == "urn:logstep:id-conflict"


def assert_not_found(response: httpx.Response | Reply, title: str, id_: str, *details: str) -> Json:
    problem = assert_problem(response, 404, repr(id_), *details)
    assert problem["title"] == title
    assert problem["type"] == f"urn:logstep:{title.lower().replace(' ', '-')}"
    return problem


def told_to_all(responses: Sequence[Reply]) -> list[Json]:
    assert {response.status for response in responses} == {200}, {response.text for response in responses}
    return [response.json() for response in responses]


# -- kept and joined


def test_a_prediction_with_an_id_is_kept_and_its_label_alone_is_learned(model: Model) -> None:
    model.learn({"x": {"age": 1.0}, "y": 1})
    plain = model.predict(question()).json()
    assert plain.keys() == {"model", "p", "y", "seq", "unknown"}
    reply = model.predict(question("imp-7")).json()
    assert reply == {**plain, "kept": True, "duplicate": False}
    assert counts(model) == expected(waiting=1)
    model.learn({"x": {"age": 2.0}, "y": 0})
    now = model.predict(question()).json()["p"]
    joined = learned(model, label("imp-7"))
    assert list(joined) == [
        "model", "seq", "p", "loss", "duplicate", "served_p", "served_loss", "delay_s", "late"
    ]  # fmt: skip
    assert (joined["model"], joined["seq"], joined["duplicate"], joined["late"]) == (model.name, 3, False, False)
    assert (joined["p"], joined["served_p"]) == (now, reply["p"])
    assert joined["p"] != joined["served_p"]
    assert joined["loss"] == pytest.approx(log_loss(now, 1), rel=1e-12)
    assert joined["served_loss"] == pytest.approx(log_loss(reply["p"], 1), rel=1e-12)
    assert 0 < joined["delay_s"] < 60
    assert counts(model) == expected(joined=1)
    assert model.state()["sha256"] == sha256([({"age": 1.0}, 1, 1.0), ({"age": 2.0}, 0, 1.0), (X, 1, 1.0)])


def test_the_delay_is_how_long_the_label_took(model: Model) -> None:
    before = time.monotonic()
    kept(model, "a")
    after = time.monotonic()
    time.sleep(0.15)
    sent = time.monotonic()
    delay = learned(model, label("a"))["delay_s"]
    done = time.monotonic()
    assert sent - after - 0.01 <= delay <= done - before + 0.01


def test_a_weight_comes_with_the_label(model: Model) -> None:
    kept(model, "a")
    learned(model, label("a", weight=2.5))
    assert model.state()["sha256"] == sha256([(X, 1, 2.5)])


def test_keeping_a_prediction_changes_neither_seq_features_nor_weights(model: Model) -> None:
    learned(model, {"x": {"age": 1.0}, "y": 1})
    before = model.mark()
    kept(model, "a", {"age": 1.0, "other": 2.0})
    assert model.mark() == before


def test_labels_are_learned_in_the_order_in_which_they_come(model: Model) -> None:
    numbers = random.Random(5)
    xs: list[Json] = [{f"f{i % 7}": numbers.gauss(0, 1), "b": float(i % 3)} for i in range(60)]
    for i, x in enumerate(xs):
        kept(model, f"p{i}", x)
    order = numbers.sample(range(60), 60)
    for seq, i in enumerate(order, 1):
        assert learned(model, label(f"p{i}", i % 2))["seq"] == seq
    assert model.state()["sha256"] == sha256([(xs[i], i % 2, 1.0) for i in order])


def test_an_array_of_questions_is_answered_in_order_with_and_without_ids(model: Model) -> None:
    replies = model.predict([question(), question("a"), question("b", {"z": 1.0}), question()]).json()
    assert [reply.get("kept") for reply in replies] == [None, True, True, None]
    assert [reply.get("duplicate") for reply in replies] == [None, False, False, None]
    assert counts(model) == expected(waiting=2)


def test_an_array_of_labels_and_events_is_learned_in_order(model: Model) -> None:
    served = [kept(model, f"p{i}", {"a": float(i)})["p"] for i in range(3)]
    event = {"x": {"a": 9.0}, "y": 0, "id": "whole"}
    replies = learned(model, [label("p2"), event, label("p0", 0, weight=2.0), {"x": {}, "y": 1}, label("p1")])
    assert [reply["seq"] for reply in replies] == [1, 2, 3, 4, 5]
    assert [reply.get("served_p") for reply in replies] == [served[2], None, served[0], None, served[1]]
    assert ["served_p" in reply for reply in replies] == [True, False, True, False, True]
    assert model.state()["sha256"] == sha256(
        [({"a": 2.0}, 1, 1.0), ({"a": 9.0}, 0, 1.0), ({"a": 0.0}, 0, 2.0), ({}, 1, 1.0), ({"a": 1.0}, 1, 1.0)]
    )


@pytest.mark.parametrize("wrong", [label("nobody"), label("p1", 0.5), label("p1", weight=-1), {"x": {"": 1}, "y": 1}])
def test_an_array_with_one_wrong_label_learns_nothing_and_the_others_go_on_waiting(model: Model, wrong: Json) -> None:
    for i in range(3):
        kept(model, f"p{i}")
    before = model.mark()
    response = model.learn([label("p0"), {"x": {"new": 1.0}, "y": 1, "id": "e"}, wrong, label("p2")])
    assert response.status_code in (404, 422)
    assert "[2]." in response.json()["detail"]
    assert response.json()["field"].startswith("[2].")
    assert model.mark() == before
    assert counts(model) == expected(waiting=3)
    assert [reply["seq"] for reply in learned(model, [label(f"p{i}") for i in range(3)])] == [1, 2, 3]
    assert learned(model, {"x": {"new": 1.0}, "y": 1, "id": "e"})["duplicate"] is False


def test_an_array_with_one_wrong_question_keeps_nothing(model: Model) -> None:
    kept(model, "old", {"a": 1.0})
    response = model.predict([question("new"), question(), question("old", {"a": 2.0}), question("other")])
    assert_conflict(response, "old", "[2].id", "another x")
    response = model.predict([question("new"), question(), question("other", {"a": 1e200})])
    assert_problem(response, 422, "[2].x.a", "±1e+100")
    assert counts(model) == expected(waiting=1)
    assert_not_found(model.learn(label("new")), "Unknown id", "new")


def test_a_stream_of_questions_is_answered_line_by_line(model: Model) -> None:
    lines = [question(f"p{i}" if i % 3 else None, {"a": float(i)}) for i in range(2_500)]
    response = model.predict_lines(ndjson(lines))
    assert response.status_code == 200
    replies = [json.loads(line) for line in response.text.splitlines()]
    assert [reply.get("kept") for reply in replies] == [True if i % 3 else None for i in range(2_500)]
    assert counts(model) == expected(waiting=sum(i % 3 > 0 for i in range(2_500)))


def test_a_stream_of_labels_and_events_tells_what_was_joined(model: Model) -> None:
    served = [kept(model, f"p{i}", {"a": float(i % 5)})["p"] for i in range(100)]
    lines: list[Json] = []
    for i in range(100):
        lines += [label(f"p{i}", i % 2), {"x": {"b": float(i)}, "y": 1}]
    reply = model.learn_lines(ndjson([*lines, label("p3")])).json()
    assert list(reply) == [
        "model", "learned", "duplicates", "first_seq", "last_seq", "loss", "joined", "late", "served_loss"
    ]  # fmt: skip
    assert (reply["learned"], reply["duplicates"], reply["first_seq"], reply["last_seq"]) == (200, 1, 1, 200)
    assert (reply["joined"], reply["late"]) == (100, 0)
    mean = sum(log_loss(p, i % 2) for i, p in enumerate(served)) / 100
    assert reply["served_loss"] == pytest.approx(mean, rel=1e-12)
    events: list[tuple[Any, int, float]] = []
    for i in range(100):
        events += [({"a": float(i % 5)}, i % 2, 1.0), ({"b": float(i)}, 1, 1.0)]
    assert model.state()["sha256"] == sha256(events)
    again = model.learn_lines(ndjson([label("p4", 0)])).json()
    assert (again["learned"], again["duplicates"], again["joined"], again["served_loss"]) == (0, 1, 0, None)
    plain = model.learn_lines(ndjson([{"x": {"b": 1.0}, "y": 1}])).json()
    assert list(plain) == ["model", "learned", "duplicates", "first_seq", "last_seq", "loss"]


def test_a_stream_stops_at_a_label_that_cannot_be_joined_and_what_came_before_is_learned(model: Model) -> None:
    kept(model, "a")
    kept(model, "b")
    response = model.learn_lines(ndjson([label("a"), {"x": {"b": 1.0}, "y": 0}, label("nobody"), label("b")]))
    problem = assert_not_found(response, "Unknown id", "nobody", "line 3: id")
    assert (problem["line"], problem["learned"], problem["last_seq"]) == (3, 2, 2)
    assert counts(model) == expected(waiting=1, joined=1)
    reply = model.learn_lines(ndjson([label("a"), label("b")])).json()
    assert (reply["learned"], reply["duplicates"], reply["joined"]) == (1, 1, 1)


def test_a_stream_of_questions_stops_at_a_wrong_line_and_can_be_sent_again(model: Model) -> None:
    kept(model, "old", {"a": 1.0})
    lines = [question("new"), question(), question("old", {"a": 2.0}), question("last")]
    response = model.predict_lines(ndjson(lines))
    assert_conflict(response, "old", "line 3: id")
    assert response.json()["line"] == 3
    lines[2] = question("old", {"a": 1.0})
    replies = [json.loads(line) for line in model.predict_lines(ndjson(lines)).text.splitlines()]
    assert [reply.get("duplicate") for reply in replies] == [True, None, True, False]
    assert counts(model) == expected(waiting=3)


# -- the same prediction again


@pytest.mark.parametrize(
    "same",
    [
        {"age": 4, "country": "FR", "vip": True},
        {"vip": 1, "country": "FR", "age": 4.0},
        {"country=FR": 1, "vip": 1.0, "age": 40e-1},
        {"country": "FR", "age": 4, "vip": 1},
    ],
    ids=json.dumps,
)
def test_the_same_prediction_again_is_answered_with_what_was_served(model: Model, same: Json) -> None:
    first = kept(model, "a")
    learned(model, {"x": X, "y": 1})
    assert model.predict(question("a", same)).json() == {**first, "duplicate": True}
    assert counts(model) == expected(waiting=1)
    assert learned(model, label("a"))["served_p"] == first["p"]


def test_an_array_and_an_object_that_name_the_same_features_are_the_same(model: Model) -> None:
    first = kept(model, "a", [1.5, True, -0.0])
    assert model.predict(question("a", {"2": 0.0, "0": 1.5, "1": 1})).json() == {**first, "duplicate": True}


@pytest.mark.parametrize(
    "other",
    [{**X, "age": 5}, {**X, "more": 1}, {"age": 4.0}, {}, {**X, "more": 0}, {**X, "country": "DE"}, [4.0, 1.0]],
    ids=json.dumps,
)
def test_another_x_under_an_id_that_waits_is_a_conflict(model: Model, other: Any) -> None:
    first = kept(model, "a")
    assert_conflict(model.predict(question("a", other)), "a", "waits for its label", "another x")
    assert kept(model, "a") == {**first, "duplicate": True}
    assert learned(model, label("a"))["seq"] == 1
    assert model.state()["sha256"] == sha256([(X, 1, 1.0)])


def test_the_same_id_twice_in_an_array_is_kept_once(model: Model) -> None:
    first, again = model.predict([question("a"), question("a")]).json()
    assert again == {**first, "duplicate": True}
    assert counts(model) == expected(waiting=1)
    assert_conflict(model.predict([question("b"), question("b", {"z": 1.0})]), "b", "[1].id", "another x")
    assert counts(model) == expected(waiting=1)


@pytest.mark.parametrize("how", ["an event", "a label"])
def test_a_prediction_under_the_id_of_something_learned_is_a_conflict(model: Model, how: str) -> None:
    if how == "an event":
        learned(model, {"x": X, "y": 1, "id": "a"})
    else:
        kept(model, "a")
        learned(model, label("a"))
    assert_conflict(model.predict(question("a")), "a", "was learned before, at seq 1", "a prediction needs a new id")
    assert_conflict(model.predict([question(), question("a")]), "a", "[1].id", "at seq 1")
    assert counts(model)["waiting"] == 0


def test_ids_belong_to_their_model(new_model: NewModel) -> None:
    one, two = new_model(), new_model()
    kept(one, "a", {"a": 1.0})
    kept(two, "a", {"b": 2.0})
    learned(one, label("a"))
    assert counts(two) == expected(waiting=1)
    learned(two, label("a", 0))
    assert one.state()["sha256"] == sha256([({"a": 1.0}, 1, 1.0)])
    assert two.state()["sha256"] == sha256([({"b": 2.0}, 0, 1.0)])


@pytest.mark.parametrize("id_", ["x", "y", "1", "null", " a ", "'; DROP TABLE ids; --", '"x"', "\\", "é🦆", "x" * 256])
def test_an_id_may_be_any_text(model: Model, id_: str) -> None:
    kept(model, id_)
    assert kept(model, id_)["duplicate"] is True
    assert learned(model, label(id_))["served_p"] == 0.5
    assert learned(model, label(id_))["duplicate"] is True


@pytest.mark.parametrize("id_", ["", "a" * 257, "a\0b", 7.5, True, [], {}])
def test_what_cannot_be_an_id_is_refused(model: Model, id_: Any) -> None:
    for response in (model.predict({"x": X, "id": id_}), model.learn({"id": id_, "y": 1})):
        problem = assert_problem(response, 422, "id: must", "1 to 256 characters")
        assert problem["field"] == "id"


# -- labels that are wrong


def test_a_label_under_an_unknown_id_is_not_found(model: Model) -> None:
    for response in (model.learn(label("nobody")), model.learn([label("nobody")])):
        assert_not_found(
            response, "Unknown id", "nobody", "no prediction waits", "Only a label for a prediction made with that id"
        )
    assert model.mark()[0] == 0


def test_the_same_label_again_is_a_duplicate(model: Model) -> None:
    kept(model, "a")
    first = learned(model, label("a", weight=2.0))
    learned(model, {"x": {}, "y": 1})
    nothing = {"p": None, "loss": None, "served_p": None, "served_loss": None, "delay_s": None}
    for y in (1, True, 1.0):
        again = learned(model, label("a", y, weight=2))
        assert again == {"model": model.name, "seq": first["seq"], "duplicate": True, "late": False, **nothing}
    assert [reply["duplicate"] for reply in learned(model, [label("a", weight=2.0)] * 3)] == [True] * 3
    assert counts(model) == expected(joined=1)
    assert model.mark()[0] == 2


def test_the_same_label_twice_in_an_array_is_learned_once(model: Model) -> None:
    kept(model, "a")
    one, two, whole = learned(model, [label("a"), label("a"), {"x": X, "y": 1, "id": "a"}])
    assert (one["seq"], one["duplicate"]) == (1, False)
    assert (two["seq"], two["duplicate"], two["served_p"]) == (1, True, None)
    assert (whole["seq"], whole["duplicate"]) == (1, True)
    kept(model, "b")
    assert_conflict(
        model.learn([label("b"), label("b", 0)]), "b", "[1].id", "earlier in the same body", "another y or weight"
    )
    assert counts(model) == expected(waiting=1, joined=1)


@pytest.mark.parametrize("other", [{"y": 0}, {"y": 1, "weight": 2.0}, {"y": 0, "weight": 2.0}])
@pytest.mark.parametrize("first", ["an event", "a label"])
def test_another_label_or_weight_for_something_learned_is_a_conflict(model: Model, first: str, other: Json) -> None:
    if first == "an event":
        learned(model, {"x": X, "y": 1, "id": "a"})
    else:
        kept(model, "a")
        learned(model, label("a"))
    before = model.mark()
    assert_conflict(model.learn({"id": "a", **other}), "a", "was learned before, at seq 1", "another y or weight")
    assert model.mark() == before


def test_a_label_alone_for_an_event_that_was_learned_is_its_duplicate(model: Model) -> None:
    learned(model, {"x": X, "y": 1, "id": "a", "weight": 3.0})
    again = learned(model, label("a", weight=3.0))
    assert (again["seq"], again["duplicate"], again["served_p"]) == (1, True, None)


@pytest.mark.parametrize("y", [0.5, 2, -1, "1", None])
def test_a_label_that_is_none_is_refused_and_its_prediction_goes_on_waiting(model: Model, y: Any) -> None:
    kept(model, "a")
    assert assert_problem(model.learn(label("a", y)), 422, "y: must be 0, 1, true or false")["field"] == "y"
    assert counts(model) == expected(waiting=1)


def test_a_label_with_a_field_too_many_or_too_few_says_so(model: Model) -> None:
    assert_problem(model.learn({"id": "a"}), 422, "y: is missing")
    assert_problem(model.learn({"y": 1}), 422, "x: is missing; only the label", "served with an id")
    assert_problem(model.learn({"id": "a", "y": 1, "z": 1}), 422, "z: is not a field; the fields are id, y, weight")
    assert_problem(model.learn({"id": "a", "y": 1, "weight": -1}), 422, "weight: must be a number, 0 or above")


def test_a_label_with_the_same_x_joins(model: Model) -> None:
    first = kept(model, "a")
    joined = learned(model, {"x": {"vip": 1, "country": "FR", "age": 4}, "y": 1, "id": "a"})
    assert (joined["served_p"], joined["duplicate"], joined["late"]) == (first["p"], False, False)
    assert counts(model) == expected(joined=1)
    assert model.state()["sha256"] == sha256([(X, 1, 1.0)])  # in the order in which the prediction summed them
    assert learned(model, label("a"))["duplicate"] is True
    assert learned(model, {"x": X, "y": 1, "id": "a"})["duplicate"] is True


def test_a_label_with_another_x_is_a_conflict_and_the_prediction_goes_on_waiting(model: Model) -> None:
    kept(model, "a")
    response = model.learn({"x": {**X, "age": 5.0}, "y": 1, "id": "a"})
    assert_conflict(response, "a", "waits for its label with another x", "send the label without x")
    assert counts(model) == expected(waiting=1)
    learned(model, label("a"))
    assert_conflict(model.learn({"x": {**X, "age": 5.0}, "y": 1, "id": "a"}), "a", "was learned before, at seq 1")


def test_a_label_whose_features_no_longer_fit_in_the_model_says_so(new_model: NewModel) -> None:
    model = new_model(max_features=2, overflow="refuse")
    kept(model, "a", {"c": 1.0, "d": 1.0})
    learned(model, {"x": {"a": 1.0, "b": 1.0}, "y": 1})
    assert_problem(model.learn(label("a")), 422, "x: has 2 new feature(s), but the model has 2 of at most 2")
    assert counts(model) == expected(waiting=1)


# -- at once, from many connections


def test_the_same_prediction_from_32_connections_at_once_is_kept_once(shared: Service, model: Model) -> None:
    body = json.dumps(question("a")).encode()
    replies = told_to_all(shared.post_at_once(f"{model.path}/predict", [body] * 32))
    assert sorted(reply.pop("duplicate") for reply in replies) == [False] + [True] * 31
    assert all(reply == replies[0] for reply in replies)
    assert counts(model) == expected(waiting=1)


def test_other_features_under_one_id_at_once_are_kept_once_and_refused_else(shared: Service, model: Model) -> None:
    bodies = [json.dumps(question("a", {"a": float(i % 4)})).encode() for i in range(32)]
    responses = shared.post_at_once(f"{model.path}/predict", bodies)
    assert sorted({response.status for response in responses}) == [200, 409]
    kept_ones = [response.json() for response in responses if response.status == 200]
    assert len(kept_ones) == 8
    assert sum(not reply["duplicate"] for reply in kept_ones) == 1
    for response in responses:
        if response.status == 409:
            assert_conflict(response, "a", "another x")


def test_the_same_label_from_32_connections_at_once_is_learned_once(shared: Service, model: Model) -> None:
    kept(model, "a")
    replies = told_to_all(shared.post_at_once(f"{model.path}/learn", [json.dumps(label("a")).encode()] * 32))
    assert sorted(reply["duplicate"] for reply in replies) == [False] + [True] * 31
    assert {reply["seq"] for reply in replies} == {1}
    assert [reply["served_p"] for reply in replies if not reply["duplicate"]] == [0.5]
    assert (model.mark()[0], counts(model)) == (1, expected(joined=1))


def test_both_labels_at_once_one_is_learned_and_the_other_a_conflict(shared: Service, model: Model) -> None:
    kept(model, "a")
    bodies = [json.dumps(label("a", i % 2)).encode() for i in range(32)]
    responses = shared.post_at_once(f"{model.path}/learn", bodies)
    assert sorted(response.status for response in responses) == [200] * 16 + [409] * 16
    assert sum(not r.json()["duplicate"] for r in responses if r.status == 200) == 1
    assert (model.mark()[0], counts(model)) == (1, expected(joined=1))


@from_checks_on
def test_a_prediction_and_its_label_in_flight_at_once_either_join_or_the_label_is_unknown(
    shared: Service, model: Model
) -> None:
    """Each connection sends a label that may overtake its prediction; sent again later it is always learned once."""

    def client(number: int) -> int:
        joined = 0
        with shared.another_client() as http, ThreadPoolExecutor(2) as pool:
            for i in range(8):
                id_ = f"{number}-{i}"
                asked = pool.submit(http.post, f"{model.path}/predict", json=question(id_, {"a": float(i)}))
                told = pool.submit(http.post, f"{model.path}/learn", json=label(id_, i % 2))
                assert asked.result().status_code == 200, asked.result().text
                assert asked.result().json()["kept"] is True
                if told.result().status_code == 200:
                    joined += 1
                else:
                    assert_not_found(told.result(), "Unknown id", id_)
                again = http.post(f"{model.path}/learn", json=label(id_, i % 2)).json()
                assert again["duplicate"] is (told.result().status_code == 200)
        return joined

    with ThreadPoolExecutor(8) as clients:
        overtaken = sum(clients.map(client, range(8)))
    assert 0 <= overtaken <= 64
    assert (model.mark()[0], counts(model)) == (64, expected(joined=64))
    model.assert_equal_to_river()


# -- timeouts


def test_a_prediction_whose_label_does_not_come_is_dropped(new_model: NewModel) -> None:
    model = new_model(join={"keep": "0.05s"})
    first = kept(model, "a")
    assert none_waits(model) == expected(dropped=1)
    assert model.mark()[0] == 0  # nothing was learned
    for response in (model.learn(label("a")), model.learn(label("a", 0))):
        assert_not_found(
            response, "Dropped id", "a", "waited longer than 0.05s", "join.keep", "Send the label with its x"
        )
    again = kept(model, "a", {"other": 1.0})  # anew, with other features
    assert again["duplicate"] is False
    assert (again["p"], first["p"]) == (0.5, 0.5)
    assert none_waits(model) == expected(dropped=2)


def test_what_a_dropped_id_is_told_to_do_works(new_model: NewModel) -> None:
    model = new_model(join={"keep": "0.05s"})
    kept(model, "a")
    none_waits(model)
    reply = learned(model, {"x": X, "y": 1, "id": "a"})
    assert (reply["seq"], reply["duplicate"]) == (1, False)
    assert "served_p" not in reply  # an ordinary event
    assert learned(model, label("a"))["duplicate"] is True
    assert_conflict(model.predict(question("a")), "a", "was learned before, at seq 1")
    assert counts(model) == expected(dropped=1)


def test_a_dropped_id_that_is_kept_anew_can_be_joined(new_model: NewModel) -> None:
    model = new_model(join={"keep": "0.3s"})
    kept(model, "a")
    none_waits(model)
    kept(model, "a", {"b": 1.0})
    assert learned(model, label("a"))["served_p"] == 0.5
    assert model.state()["sha256"] == sha256([({"b": 1.0}, 1, 1.0)])
    assert counts(model) == expected(joined=1, dropped=1)


def test_a_prediction_whose_label_does_not_come_is_learned_as_0(new_model: NewModel) -> None:
    model = new_model(join={"keep": "0.05s", "on_timeout": "negative"})
    for i in range(3):
        kept(model, f"p{i}", {"a": float(i)})
    assert none_waits(model) == expected(expired=3)
    assert model.state()["sha256"] == sha256([({"a": float(i)}, 0, 1.0) for i in range(3)])
    assert model.state()["served"]["total"]["log_loss"] == pytest.approx(math.log(2))
    for y in (0, 1):
        response = model.learn(label("p1", y))
        assert_not_found(response, "Expired id", "p1", "waited longer than 0.05s", "learned as y = 0, at seq 2")
        assert '"late": "learn"' in response.json()["detail"]
    assert_conflict(model.predict(question("p1", {"a": 1.0})), "p1", "was learned before, at seq 2")
    assert model.mark()[0] == 3
    model.assert_equal_to_river()


def test_a_timed_out_prediction_that_no_longer_fits_in_the_model_is_dropped(new_model: NewModel) -> None:
    model = new_model(max_features=1, overflow="refuse", join={"keep": "0.1s", "on_timeout": "negative"})
    learned(model, {"x": {"a": 1.0}, "y": 1})
    replies = model.predict([question("fits", {"a": 1.0}), question("does not", {"b": 1.0})]).json()
    assert [reply["kept"] for reply in replies] == [True, True]
    assert none_waits(model) == expected(expired=1, dropped=1)
    assert_not_found(model.learn(label("does not")), "Dropped id", "does not")


@pytest.mark.parametrize("label_comes", [True, False])
def test_a_prediction_whose_features_there_is_no_room_for_is_learned_without_them(
    new_model: NewModel, label_comes: bool
) -> None:
    x = {"a": 2.0, "user": "u1"}
    for seconds in (3_600,) if label_comes else (0.5, 5, 50):
        model = new_model(max_features=1, join={"keep": f"{seconds}s", "on_timeout": "negative", "late": "learn"})
        kept(model, "a", x)
        if learned(model, {"x": {"a": 1.0}, "y": 1})["seq"] == 1:
            break  # else it has timed out before: on a slow machine that takes longer
    if not label_comes:
        none_waits(model)
    late = learned(model, {"x": x, "y": 1, "id": "a"})
    steps = [({"a": 1.0}, 1, 1.0), ({"a": 2.0}, 1, 1.0)]
    if not label_comes:
        steps.insert(1, ({"a": 2.0}, 0, 1.0))
    assert (late["seq"], late["duplicate"], late["late"]) == (len(steps), False, not label_comes)
    assert (model.state()["sha256"], model.state()["left_out"]) == (sha256(steps), len(steps) - 1)
    assert learned(model, {"x": x, "y": 1, "id": "a"})["duplicate"] is True
    assert learned(model, label("a"))["duplicate"] is True
    assert_conflict(model.learn({"x": {"a": 2.0, "user": "u2"}, "y": 1, "id": "a"}), "a", "was learned before")
    assert_conflict(model.learn({"x": {"a": 2.0}, "y": 1, "id": "a"}), "a", "was learned before")


@pytest.mark.parametrize("with_x", [False, True])
def test_a_label_1_after_the_timeout_is_one_more_step(new_model: NewModel, with_x: bool) -> None:
    spec = {"keep": "0.05s", "on_timeout": "negative", "late": "learn"}
    model = new_model(join=spec)
    first = kept(model, "a")
    none_waits(model)
    zero = learned(model, label("a", 0))
    assert (zero["seq"], zero["duplicate"], zero["late"]) == (1, True, False)  # 0, as it was taken to be
    event = {**label("a", weight=2.0), **({"x": X} if with_x else {})}
    late = learned(model, event)
    assert (late["seq"], late["duplicate"], late["late"]) == (2, False, True)
    assert late["served_p"] == first["p"]
    assert late["served_loss"] == pytest.approx(log_loss(first["p"], 1))
    assert 0.05 <= late["delay_s"] < 60
    assert counts(model) == expected(expired=1, late=1)
    assert model.state()["join"]["delay_s"]["count"] == 1
    again = learned(model, event)
    assert (again["seq"], again["duplicate"], again["p"]) == (2, True, None)
    assert_conflict(model.learn(label("a", 0)), "a", "was learned before, at seq 2", "another y or weight")
    assert model.state()["sha256"] == sha256([(X, 0, 1.0), (X, 1, 2.0)])
    model.assert_equal_to_river()


def test_a_label_1_after_the_timeout_with_another_x_is_a_conflict(new_model: NewModel) -> None:
    model = new_model(join={"keep": "0.05s", "on_timeout": "negative", "late": "learn"})
    kept(model, "a", {"a": 1.0})
    none_waits(model)
    assert_conflict(model.learn({"x": {"a": 2.0}, "y": 1, "id": "a"}), "a", "was learned before, at seq 1")
    assert_conflict(model.learn({"x": {"new": 2.0}, "y": 1, "id": "a"}), "a", "was learned before, at seq 1")
    assert counts(model) == expected(expired=1)


def test_labels_after_the_timeout_come_in_streams_too(new_model: NewModel) -> None:
    model = new_model(join={"keep": "0.3s", "on_timeout": "negative", "late": "learn"})
    model.predict([question(f"p{i}", {"a": float(i)}) for i in range(6)])
    none_waits(model)
    served = kept(model, "in time", {"b": 1.0})["p"]
    lines = [label("p1"), label("p2", 0), label("in time"), label("p3"), {"x": {}, "y": 0}]
    reply = model.learn_lines(ndjson(lines)).json()
    assert (reply["learned"], reply["duplicates"], reply["joined"], reply["late"]) == (4, 1, 1, 2)
    assert reply["served_loss"] == pytest.approx((2 * math.log(2) + log_loss(served, 1)) / 3)
    assert counts(model) == expected(joined=1, expired=6, late=2)


@pytest.mark.parametrize("ys", list(itertools.product([0, 1], repeat=3)), ids=str)
def test_labels_after_the_timeout_in_one_array_are_what_they_are_one_by_one(new_model: NewModel, ys: list[int]) -> None:
    """0 is a duplicate until a 1 has corrected it; then it is in conflict."""
    one, all_ = (new_model(join={"keep": "0.05s", "on_timeout": "negative", "late": "learn"}) for _ in range(2))
    for model in (one, all_):
        kept(model, "a")
    for model in (one, all_):
        none_waits(model)
    singly = [one.learn(label("a", y)) for y in ys]
    together = all_.learn([label("a", y) for y in ys])
    refused = [i for i, response in enumerate(singly) if response.status_code != 200]
    if refused:
        assert_conflict(together, "a", f"[{refused[0]}].id")
        assert counts(all_) == expected(expired=1)
    else:
        told = [(reply["seq"], reply["duplicate"], reply["late"]) for reply in together.json()]
        assert told == [(r["seq"], r["duplicate"], r["late"]) for r in (response.json() for response in singly)]


def test_a_late_label_and_its_whole_event_in_one_array_are_the_same(new_model: NewModel) -> None:
    model = new_model(join={"keep": "0.05s", "on_timeout": "negative", "late": "learn"}, hash_bits=4)
    kept(model, "a")
    none_waits(model)
    late, whole = learned(model, [label("a"), {"x": dict(reversed(X.items())), "y": 1, "id": "a"}])
    assert (late["seq"], late["late"]) == (2, True)
    assert (whole["seq"], whole["duplicate"]) == (2, True)


def test_more_predictions_than_time_out_at_once_all_time_out_in_order(new_model: NewModel) -> None:
    model = new_model(join={"keep": "0.2s", "on_timeout": "negative"})
    lines = [question(f"p{i}", {"a": i / 1000, f"f{i % 3}": 1.0}) for i in range(1_700)]
    assert model.predict_lines(ndjson(lines)).status_code == 200
    assert none_waits(model) == expected(expired=1_700)
    assert model.state()["sha256"] == sha256([(line["x"], 0, 1.0) for line in lines])


def test_a_timeout_of_one_model_leaves_the_others_alone(new_model: NewModel) -> None:
    short, long = new_model(join={"keep": "0.05s"}), new_model(join={"keep": "1h"})
    kept(long, "a")
    kept(short, "a")
    assert none_waits(short) == expected(dropped=1)
    assert counts(long) == expected(waiting=1)
    kept(short, "b")  # and it goes on timing out
    assert none_waits(short) == expected(dropped=2)


# -- how many may wait


def test_past_max_waiting_a_prediction_is_served_but_not_kept_until_there_is_room(new_model: NewModel) -> None:
    model = new_model(join={"max_waiting": 2})
    replies = model.predict([question("a"), question("b"), question("c"), question()]).json()
    assert [reply.get("kept") for reply in replies] == [True, True, False, None]
    assert {reply["p"] for reply in replies} == {0.5}
    assert replies[2]["duplicate"] is False
    assert counts(model) == expected(waiting=2, not_kept=1)
    assert_not_found(model.learn(label("c")), "Unknown id", "c")
    assert kept(model, "a")["duplicate"] is True  # which takes no room
    learned(model, label("a"))
    assert kept(model, "c")["duplicate"] is False
    assert model.predict(question("d")).json()["kept"] is False
    assert counts(model) == expected(waiting=2, joined=1, not_kept=2)


def test_where_none_may_wait_none_is_kept(new_model: NewModel) -> None:
    model = new_model(join={"max_waiting": 0})
    assert model.predict(question("a")).json()["kept"] is False
    assert learned(model, {"x": X, "y": 1, "id": "a"})["seq"] == 1
    assert_conflict(model.predict(question("a")), "a", "was learned before, at seq 1")


def test_there_is_room_again_after_a_timeout(new_model: NewModel) -> None:
    model = new_model(join={"max_waiting": 1, "keep": "0.05s"})
    kept(model, "a")
    none_waits(model)
    kept(model, "b")


def test_no_more_than_max_waiting_are_kept_of_many_at_once(shared: Service, new_model: NewModel) -> None:
    model = new_model(join={"max_waiting": 10})
    bodies = [json.dumps(question(f"p{i}")).encode() for i in range(32)]
    replies = told_to_all(shared.post_at_once(f"{model.path}/predict", bodies))
    assert sum(reply["kept"] for reply in replies) == 10
    assert counts(model) == expected(waiting=10, not_kept=22)


# -- what GET /models/{model} says


def test_a_new_model_has_counts_of_zero_and_no_scores(model: Model) -> None:
    state = model.state()
    buckets = [{"up_to": bound, "count": 0} for bound in [*DELAYS, None]]
    assert state["join"] == {**expected(), "delay_s": {"count": 0, "mean": None, "buckets": buckets}}
    assert state["served"].keys() == state["progressive"].keys() == {"total", "window", "calibration"}
    assert state["served"]["total"].keys() == state["progressive"]["total"].keys()
    assert state["served"]["total"]["events"] == 0
    assert state["served"]["total"]["log_loss"] is None


def test_the_scores_of_what_was_served_are_rivers(model: Model) -> None:
    numbers = random.Random(8)
    log_loss_, accuracy, auc = metrics.LogLoss(), metrics.Accuracy(), metrics.ROCAUC(n_thresholds=10)
    served: list[tuple[float, int]] = []
    for i in range(120):
        x = {"a": numbers.gauss(0, 3), "b": numbers.gauss(0, 3)}
        y = int(x["a"] + x["b"] > 0)
        if i % 3 == 0:
            learned(model, {"x": x, "y": y})  # ordinary: not among the served ones
            continue
        p = kept(model, f"p{i}", x)["p"]
        if i % 3 == 1:
            kept(model, f"never-{i}", x)
        learned(model, label(f"p{i}", y))
        served.append((p, y))
    for p, y in served:
        log_loss_.update(bool(y), p)
        accuracy.update(bool(y), p > 0.5)
        auc.update(bool(y), p)
    total = model.state()["served"]["total"]
    assert total["events"] == len(served) == 80
    assert total["log_loss"] == pytest.approx(log_loss_.get(), rel=1e-12)
    assert total["accuracy"] == accuracy.get()
    assert total["roc_auc"] == pytest.approx(auc.get(), rel=1e-12)
    assert model.state()["served"]["window"] == total  # of 1,000 events
    assert model.state()["progressive"]["total"]["events"] == 120


def test_the_histogram_counts_each_delay_once_where_it_belongs(model: Model) -> None:
    delays = []
    for i, pause in enumerate([0, 0, 0.12, 0]):
        kept(model, f"p{i}")
        time.sleep(pause)
        delays.append(learned(model, label(f"p{i}"))["delay_s"])
    found = model.state()["join"]["delay_s"]
    assert found["count"] == 4
    assert found["mean"] == pytest.approx(sum(delays) / 4, rel=1e-12)
    bounds = [*DELAYS, math.inf]
    places = [next(k for k, bound in enumerate(bounds) if delay <= bound) for delay in delays]
    assert [bucket["count"] for bucket in found["buckets"]] == [places.count(k) for k in range(len(bounds))]
    assert found["buckets"][-1]["up_to"] is None


# -- models


def test_a_model_that_is_made_again_has_nothing_waiting(model: Model) -> None:
    kept(model, "a")
    kept(model, "b")
    learned(model, label("b"))
    assert model.delete().status_code == 204
    assert_problem(model.learn(label("a")), 404, "no model")
    assert model.create({}).status_code == 201
    assert counts(model) == expected()
    assert_not_found(model.learn(label("a")), "Unknown id", "a")
    assert kept(model, "a", {"z": 2.0})["duplicate"] is False
    assert learned(model, label("a"))["seq"] == 1
    assert kept(model, "b")["duplicate"] is False


def test_a_model_deleted_with_waiting_predictions_times_nothing_out(new_model: NewModel) -> None:
    doomed, other = new_model(join={"keep": "0.3s"}), new_model(join={"keep": "0.4s"})
    kept(doomed, "a")
    kept(other, "b")
    assert doomed.delete().status_code == 204
    assert none_waits(other) == expected(dropped=1)


def test_predictions_wait_over_a_restart(start: Start) -> None:
    service = start()
    model = service.model()
    learned(model, {"x": X, "y": 1})
    first = kept(model, "a")
    kept(model, "b")
    learned(model, label("b", 0))
    state = model.state()
    assert service.stop() == 0
    model = start(folder=service.folder).model()
    assert {**model.state(), "snapshot_seq": state["snapshot_seq"]} == state
    assert kept(model, "a") == {**first, "duplicate": True}
    assert learned(model, label("b", 0))["duplicate"] is True
    joined = learned(model, label("a"))
    assert (joined["seq"], joined["served_p"]) == (3, first["p"])
    assert joined["delay_s"] > 0.1


@pytest.mark.parametrize(
    "x",
    [{"country": "FR", "city": "Paris", "n": 2}, [0.5, 2, True], {}, [], {"é🦆": "日本", "a=b": 2, "a": "c"}],
    ids=json.dumps,
)
@pytest.mark.parametrize(
    "spec", [{}, {"hash_bits": 3}, {"scale": "standard", "rule": "adam"}, {"rule": "ftrl"}], ids=json.dumps
)
def test_what_is_joined_is_what_would_have_been_learned_with_its_features(
    new_model: NewModel, spec: Json, x: Any
) -> None:
    whole, joined = new_model(**spec), new_model(**spec)
    for i, y in enumerate([1, 0, 1]):
        kept(joined, f"p{i}", x)
        learned(joined, label(f"p{i}", y))
        learned(whole, {"x": x, "y": y, "id": f"p{i}"})
    assert joined.mark() == whole.mark()
    assert joined.weights()["weights"] == whole.weights()["weights"]


def test_predictions_of_an_auto_model_are_kept_and_joined(new_model: NewModel) -> None:
    whole, joined = new_model(rule="auto"), new_model(rule="auto")
    numbers = random.Random(4)
    for i in range(40):
        x: dict[str, Any] = {"a": numbers.gauss(0, 1), "b": numbers.choice(["u", "v"])}
        y = int(x["a"] > 0)
        served = kept(joined, f"p{i}", x)["p"]
        reply = learned(joined, label(f"p{i}", y))
        event = learned(whole, {"x": x, "y": y})
        assert (reply["p"], reply["served_p"], reply["loss"]) == (event["p"], served, event["loss"])
        assert reply["p"] == pytest.approx(served, abs=1e-12)
    assert joined.state()["sha256"] == whole.state()["sha256"]
    assert counts(joined) == expected(joined=40)


# -- specs


DEFAULT_JOIN = {"keep": "24h", "on_timeout": "drop", "max_waiting": 1_000_000, "late": "refuse"}


def test_a_spec_has_every_default_of_join_written_out(model: Model) -> None:
    assert model.state()["spec"]["join"] == DEFAULT_JOIN


@pytest.mark.parametrize(
    "same",
    [
        {},
        {"join": {}},
        {"join": {"keep": "1d"}},
        {"join": {"keep": "1440m"}},
        {"join": {"keep": "24.0h"}},
        {"join": {"keep": "86400s"}},
        {"join": DEFAULT_JOIN},
    ],
    ids=json.dumps,
)
def test_the_same_join_said_differently_is_the_same_spec(model: Model, same: Json) -> None:
    assert model.create(same).status_code == 200


@pytest.mark.parametrize("other", [{"keep": "25h"}, {"on_timeout": "negative"}, {"max_waiting": 5}])
def test_another_join_is_another_spec(model: Model, other: Json) -> None:
    assert_problem(model.create({"join": other}), 409, "exists with another spec", "DELETE")


@pytest.mark.parametrize(
    ("keep", "shown"),
    [("90s", "90s"), ("0.5s", "0.5s"), ("15m", "15m"), ("90m", "90m"), ("7d", "168h"), ("1.5d", "36h")],
)
def test_a_time_is_shown_in_the_largest_unit_that_fits(new_model: NewModel, keep: str, shown: str) -> None:
    assert new_model(join={"keep": keep}).state()["spec"]["join"]["keep"] == shown


NO_TIMES: list[Any] = [
    *("24", "", "h", "-1h", "1e3s", "24 h", "24H", "0s", "0.0d", "inf", "1w", "3651d"),
    *(24, None, []),
]


@pytest.mark.parametrize(
    ("join", "field", "message"),
    [
        ({"keep": keep}, "join.keep", '"90s", "24h" or "7d", above 0 and at most 3650d')
        for keep in NO_TIMES
    ]
    + [
        ({"on_timeout": "forget"}, "join.on_timeout", "'drop' or 'negative'"),
        ({"on_timeout": None}, "join.on_timeout", "'drop' or 'negative'"),
        ({"max_waiting": -1}, "join.max_waiting", "from 0 to 2^40"),
        ({"max_waiting": 2**40 + 1}, "join.max_waiting", "from 0 to 2^40"),
        ({"max_waiting": 1.5}, "join.max_waiting", "a whole number"),
        ({"max_waiting": True}, "join.max_waiting", "a whole number"),
        ({"max_waiting": "5"}, "join.max_waiting", "a whole number"),
        ({"ack": "disk"}, "join.ack", "the fields are keep, on_timeout, max_waiting, late"),
        ({"late": "maybe"}, "join.late", "'refuse' or 'learn'"),
        ({"late": "learn"}, "join.late", "only if on_timeout is 'negative'"),
        ({"late": "learn", "on_timeout": "drop"}, "join.late", "only if on_timeout is 'negative'"),
        ({"hold": "24h"}, "join.hold", "the fields are keep, on_timeout, max_waiting, late"),
        ([], "join", 'an object like {"keep": "24h"}'),
        ("24h", "join", 'an object like {"keep": "24h"}'),
        (None, "join", 'an object like {"keep": "24h"}'),
    ],
)  # fmt: skip
def test_a_join_that_makes_no_sense_is_refused_and_says_where(
    shared: Service, join: Any, field: str, message: str
) -> None:
    problem = assert_problem(shared.model("never-made").create({"join": join}), 422, message)
    assert problem["field"] == field


def test_an_explanation_of_a_waiting_prediction_is_of_what_was_served(model: Model) -> None:
    learned(model, {"x": X, "y": 1})
    first = kept(model, "a")
    learned(model, {"x": X, "y": 1})
    reply = model.service.http.post(f"{model.path}/explain", json={"id": "a"}).json()
    assert (reply["served_p"], reply["served_seq"]) == (first["p"], first["seq"])
    learned(model, label("a"))
    response = model.service.http.post(f"{model.path}/explain", json={"id": "a"})
    assert_not_found(response, "Unknown id", "a", "its label or its timeout came", "send its x")
