"""The breaker: learning stops where it says, stays stopped through kills and restarts, and a replay is exact."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from effort import from_checks_on
from harness import Model, NewModel, Service, Start, assert_problem, ndjson
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE, eventually
from processes import Clock, copied, replayed_elsewhere, running_engine

from core.breaker import Watch
from core.learner import Learner, Outcome
from core.spec import Breaker, Spec, SpecError
from service.commands import cli
from service.events import Event
from service.learning.engine import Engine
from service.storage import store

BREAKER: dict[str, Any] = {"events": 20, "log_loss": 0.5}
SPEC = {"learning_rate": 0.3, "breaker": BREAKER}


def events(count: int, y: int, first: int = 1, ids: str | None = None) -> list[dict[str, Any]]:
    """Events that a model learns in no time, and is surprised by when y changes."""
    return [
        {"x": {"a": 1.0, "b": i % 3}, "y": y, **({} if ids is None else {"id": f"{ids}-{i}"})}
        for i in range(first, first + count)
    ]


def stopped_at(stream: list[dict[str, Any]], spec: dict[str, Any]) -> int | None:
    """The oracle: the last event before the model stops, event by event, in plain Python: N after the mean of the last
    N losses passes the limit."""
    learner, losses = Learner(Spec.from_dict({**spec, "breaker": None})), []
    for seq, event in enumerate(stream, 1):
        losses.append(float(learner.learn_many([event["x"]], [event["y"]]).losses[0]))
        last = losses[-spec["breaker"]["events"] :]
        if len(last) == spec["breaker"]["events"] and sum(last) / len(last) > spec["breaker"]["log_loss"]:
            return seq + int(spec["breaker"]["events"])
    return None


def of(service: Service, name: str = "m") -> tuple[int, str, dict[str, Any]]:
    model = service.get(f"/models/{name}")
    return model["seq"], model["sha256"], model["breaker"]


def poison(model: Model) -> Model:
    """A new model that learns 100 good events, and then some bad ones, until it stops."""
    assert model.create(SPEC).status_code == 201
    assert model.learn(events(100, 1, ids="good")).status_code == 200
    refusal = model.learn_lines(ndjson(events(500, 0, ids="bad")))
    problem = assert_problem(refusal, 409, f"Model '{model.name}' has stopped learning", f"POST {model.path}/resume")
    assert problem["title"] == "Learning stopped"
    assert problem["learned"] == problem["last_seq"] - 100 == problem["line"] - 1
    return model


@pytest.fixture
def poisoned(start: Start) -> Service:
    """A service of the test's own, whose model `m` has stopped."""
    return poison(start("--snapshot-seconds", "1000").model("m")).service


@pytest.fixture
def stopped(new_model: NewModel, shared: Service) -> Model:
    """A model on the shared service that has stopped."""
    model = shared.model(f"stopped-{new_model().name}")
    return poison(model)


@from_checks_on
def test_learning_stops_n_events_after_the_mean_of_the_last_losses_passes_the_limit(stopped: Model) -> None:
    stream = events(100, 1) + events(500, 0)
    seq, _, breaker = of(stopped.service, stopped.name)
    assert seq == breaker["stopped_at"] == stopped_at(stream, SPEC)
    assert f"Model '{stopped.name}' has stopped learning" in stopped.service.log


@pytest.mark.parametrize("form", ["event", "array", "ndjson", "ndjson of other shapes", "label"])
def test_a_stopped_model_learns_nothing_and_predicts(stopped: Model, form: str) -> None:
    model = stopped
    before = of(model.service, model.name)
    assert model.predict({"x": {"a": 1.0}}).status_code == 200
    kept = model.predict({"x": {"a": 1.0}, "id": "waits"})
    assert kept.json()["kept"] is True
    fresh = events(3, 1)
    reply = {
        "event": lambda: model.learn(fresh[0]),
        "array": lambda: model.learn(fresh),
        "ndjson": lambda: model.learn_lines(ndjson(events(300, 1))),
        "ndjson of other shapes": lambda: model.learn_lines(ndjson([{"x": {f"n{i}": "t"}, "y": 1} for i in range(9)])),
        "label": lambda: model.learn({"id": "waits", "y": 1}),
    }[form]()
    problem = assert_problem(reply, 409, "has stopped learning")
    assert problem.get("learned", 0) == 0
    assert of(model.service, model.name) == before
    assert model.learn([]).json() == []


def test_what_was_learned_before_is_a_duplicate_all_the_same(stopped: Model) -> None:
    model = stopped
    good = events(100, 1, ids="good")
    one = model.learn(good[0]).json()
    assert (one["seq"], one["duplicate"]) == (1, True)
    assert all(reply["duplicate"] for reply in model.learn(good).json())
    assert model.learn_lines(ndjson(good)).json()["duplicates"] == 100
    assert model.learn(events(1, 1, ids="good") + events(1, 1, ids="new")).status_code == 409
    half = assert_problem(model.learn_lines(ndjson(good[:30] + events(5, 1, ids="new"))), 409)
    assert (half["duplicates"], half["learned"], half["line"]) == (30, 0, 31)


@from_checks_on
def test_it_stays_stopped_through_a_kill_and_a_stop_and_a_replay_gives_the_same_bits(
    poisoned: Service, start: Start
) -> None:
    before = of(poisoned)
    poisoned.kill()
    again = start(folder=poisoned.folder)  # from the log alone
    assert of(again) == before
    assert_problem(again.model("m").learn(events(1, 1)[0]), 409, f"at seq {before[2]['passed_at']}")
    check = again.model("m").crosscheck().json()
    assert (check["max_ulp"], check["replay_equal"], check["equal"]) == (0, True, True)
    assert again.stop() == 0
    third = start("--snapshot-seconds", "0.000001", folder=poisoned.folder)
    assert of(third) == before
    eventually(lambda: third.get("/models/m")["snapshot_seq"] == before[0], "a snapshot")
    third.kill()
    fourth = start(folder=poisoned.folder)  # from the snapshot alone
    assert of(fourth) == before
    fourth.kill()
    assert replayed_elsewhere(poisoned.folder)["m"] == {"seq": before[0], "sha256": before[1]}


@from_checks_on
def test_resumed_it_learns_and_looks_at_what_comes_from_then_on(poisoned: Service, start: Start) -> None:
    model = poisoned.model("m")
    stopped = of(poisoned)
    resumed = poisoned.http.post("/models/m/resume")
    assert resumed.status_code == 200
    nothing = {"log_loss": None, "passed_at": None, "stopped_at": None, "resumed_at": stopped[0]}
    assert resumed.json() == {"model": "m", "seq": poisoned.model("m").state()["seq"], "breaker": nothing}
    assert poisoned.http.post("/models/m/resume").json() == resumed.json()  # once more changes nothing
    assert model.learn(events(BREAKER["events"] - 1, 1)).status_code == 200  # as wrong as may be: it needs N events
    assert of(poisoned)[2]["stopped_at"] is None
    before = of(poisoned)
    poisoned.kill()
    again = start(folder=poisoned.folder)
    assert of(again) == before
    assert of(again)[2]["resumed_at"] == stopped[0]
    assert again.model("m").learn_lines(ndjson(events(300, 0))).status_code == 409
    twice = of(again)
    assert twice[2]["stopped_at"] > stopped[0]
    again.kill()
    assert of(start(folder=poisoned.folder)) == twice
    assert replayed_elsewhere(poisoned.folder)["m"] == {"seq": twice[0], "sha256": twice[1]}


def test_timeouts_wait_until_it_learns_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, store)
    spec = Spec.from_dict({**SPEC, "join": {"keep": "1h", "on_timeout": "negative"}})

    async def learn(engine: Engine, count: int, y: int, model: str = "m") -> None:
        await engine.learn(model, [Event(event["x"], y) for event in events(count, y)])

    async def tidied(engine: Engine) -> None:
        """Two turns of another model: between them, and after them, what is due is done."""
        for _ in range(2):
            await learn(engine, 1, 1, "default")
            await asyncio.sleep(0.01)

    async def story() -> None:
        async with running_engine(tmp_path / "data") as engine:
            model, _ = await engine.create("m", spec)
            await learn(engine, 100, 1)
            await engine.learn("m", [model.predict_to_keep("waits", {"a": 1.0})])
            await learn(engine, 60, 0)  # an array is learned whole
            assert model.stopped
            clock.advance(3_601, engine)
            await tidied(engine)
            assert model.waiting == 1
            copied(tmp_path / "data", tmp_path / "killed")
        async with running_engine(tmp_path / "killed") as engine:
            await tidied(engine)
            model = engine.model("m")
            assert model.waiting == 1
            await engine.resume("m")
            for _ in range(500):
                await tidied(engine)
                if model.joins.counts()["expired"]:
                    break
            assert (model.waiting, model.joins.counts()["expired"]) == (0, 1)

    asyncio.run(story())


def test_a_model_made_anew_has_not_stopped(poisoned: Service, start: Start) -> None:
    assert poisoned.http.post("/models/m/resume").status_code == 200
    assert poisoned.model("m").delete().status_code == 204
    assert poisoned.model("m").create(SPEC).json()["created"]
    assert poisoned.model("m").state()["breaker"]["resumed_at"] == 0
    poisoned.kill()
    assert of(start(folder=poisoned.folder))[2] == {
        "log_loss": None,
        "passed_at": None,
        "stopped_at": None,
        "resumed_at": 0,
    }


def test_a_model_without_a_breaker_has_nothing_to_resume(shared: Service) -> None:
    assert_problem(shared.http.post("/models/default/resume"), 409, "has no breaker")
    assert_problem(shared.http.post("/models/nobody/resume"), 404)
    assert shared.get("/models/default")["breaker"] is None


def test_the_command_resumes_it(stopped: Model, capsys: pytest.CaptureFixture[str]) -> None:
    url = ["--url", str(stopped.service.http.base_url)]
    assert cli.main(["models", "show", stopped.name, *url]) == 0
    assert "stopped at" in capsys.readouterr().out
    assert cli.main(["models", "resume", stopped.name, *url]) == 0
    assert stopped.learn(events(1, 1)[0]).status_code == 200


@pytest.mark.parametrize(
    ("breaker", "field"),
    [
        ({"events": 0, "log_loss": 1}, "breaker.events"),
        ({"events": 1.5, "log_loss": 1}, "breaker.events"),
        ({"events": True, "log_loss": 1}, "breaker.events"),
        ({"events": 100_001, "log_loss": 1}, "breaker.events"),
        ({"events": 10, "log_loss": 0}, "breaker.log_loss"),
        ({"events": 10, "log_loss": float("inf")}, "breaker.log_loss"),
        ({"events": 10, "log_loss": "1"}, "breaker.log_loss"),
        ({"events": 10}, "breaker.log_loss"),
        ({"events": 10, "log_loss": 1, "more": 1}, "breaker.more"),
        (7, "breaker"),
    ],
)
def test_a_breaker_that_makes_no_sense_is_refused(shared: Service, breaker: Any, field: str) -> None:
    with pytest.raises(SpecError) as refusal:
        Spec.from_dict({"breaker": breaker})
    assert refusal.value.field == field
    if breaker != {"events": 10, "log_loss": float("inf")}:  # which JSON has no word for
        assert_problem(shared.model("nonsense").create({"breaker": breaker}), 422)


losses = st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=60)


@given(losses, st.lists(st.integers(0, 60), max_size=6), st.integers(1, 8), st.floats(0.1, 10))
def test_however_the_events_are_cut_into_batches_it_stops_at_the_same(
    stream: list[tuple[float, bool]], cuts: list[int], size: int, limit: float
) -> None:
    def watched(places: list[int]) -> Watch:
        watch = Watch(Breaker(size, limit))
        for start, stop in zip([0, *places], [*places, len(stream)], strict=True):
            part = stream[start:stop]
            found, learned = np.array([loss for loss, _ in part]), np.array([taken for _, taken in part], np.bool_)
            watch.add(Outcome(found, np.zeros(len(part), np.uint8), learned, (found, found)), start)
            watch = Watch.from_state(watch.breaker, watch.state())
        return watch

    whole, cut = watched([]), watched(sorted(min(place, len(stream)) for place in cuts))
    assert (cut.passed_at, cut.stopped_at) == (whole.passed_at, whole.stopped_at)
    assert cut.log_loss == whole.log_loss
    taken = [(seq, loss) for seq, (loss, learned) in enumerate(stream, 1) if learned]
    for i in range(size, len(taken) + 1):
        mean = sum(loss for _, loss in taken[i - size : i]) / size
        if whole.passed_at == taken[i - 1][0]:
            assert mean > limit - 1e-9
            break
        assert mean <= limit + 1e-9
    else:
        assert whole.passed_at is None


def test_a_folder_with_a_damaged_note_of_when_it_resumed_is_refused(poisoned: Service, start: Start) -> None:
    assert poisoned.http.post("/models/m/resume").status_code == 200
    poisoned.stop()
    db = sqlite3.connect(Path(poisoned.folder) / "log.db", isolation_level=None)
    db.execute("UPDATE resumes SET seq = seq + 1")
    db.close()
    again = start(folder=poisoned.folder, ready=False)
    assert again.wait(PATIENCE) == 1
    assert "learning resumed" in again.log
