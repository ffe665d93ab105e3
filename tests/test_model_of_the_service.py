"""The real service beside a small model of it: whatever is asked, in whatever order, both say and hold the same.

Weights are compared by their SHA-256 after every step, with those of `core` fed one event at a time.
"""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from effort import amount
from forked import elsewhere
from harness import Service, ahead_by
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from patience import eventually
from processes import replayed_elsewhere
from river import linear_model

from core import Learner, Spec
from service.commands import cli

SPECS: dict[str, dict[str, Any]] = {
    "default": {},
    "adam": {
        "rule": "adam",
        "scale": "standard",
        "join": {"max_waiting": 2, "on_timeout": "negative", "late": "learn"},
    },
}
Event = dict[str, Any]


class Refused(Exception):
    """What is asked cannot be had: the reply's status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass
class Twin:
    """What a model of the service must hold: every id with what it stands for, and the learner."""

    spec: dict[str, Any]
    learner: Learner
    seq: int = 0
    events: list[tuple[dict[str, float], int, float]] = field(default_factory=list)
    learned: dict[str, tuple[int, Event]] = field(default_factory=dict)
    waiting: dict[str, tuple[dict[str, float], float, int]] = field(default_factory=dict)
    expired: set[str] = field(default_factory=set)
    joined: int = 0
    late: int = 0
    learned_as_0: int = 0
    dropped: int = 0
    not_kept: int = 0

    def p(self, x: dict[str, float]) -> float:
        return self.learner.predict_proba_one(x)[True]

    def learn(self, event: Event) -> Event:
        """An event, or a label alone: the reply's seq, p and duplicate."""
        id_, plain = event.get("id"), {"y": event["y"], "weight": event.get("weight", 1.0)}
        if id_ in self.expired:
            seq, before = self.learned[id_]
            x = before["x"]
            if event.get("x", x) != x:
                raise Refused(409)
            if not event["y"]:
                return {"seq": seq, "p": None, "duplicate": True}
            self.expired.discard(id_)
            self.late += 1
        elif id_ in self.learned:
            seq, before = self.learned[id_]
            if "x" in event:
                plain["x"] = event["x"]
            if any(before[key] != value for key, value in plain.items()):
                raise Refused(409)
            return {"seq": seq, "p": None, "duplicate": True}
        elif id_ in self.waiting:
            x, _, _ = self.waiting[id_]
            if event.get("x", x) != x:
                raise Refused(409)
            del self.waiting[id_]
            self.joined += 1
        elif "x" not in event:
            raise Refused(404)
        else:
            x = event["x"]
        p = self.p(x)
        self.step(id_, x, plain["y"], plain["weight"])
        return {"seq": self.seq, "p": p, "duplicate": False}

    def step(self, id_: str | None, x: dict[str, float], y: int, weight: float) -> None:
        self.learner.learn_one(x, y, weight)
        self.events.append((x, y, weight))
        self.seq += 1
        if id_ is not None:
            self.learned[id_] = self.seq, {"x": x, "y": y, "weight": weight}

    def time_out(self) -> None:
        """No label came for what waits: it is learned as 0, or dropped, the oldest first."""
        for id_, (x, _, _) in self.waiting.items():
            if self.spec.get("join", {}).get("on_timeout") == "negative":
                self.step(id_, x, 0, 1.0)
                self.expired.add(id_)
                self.learned_as_0 += 1
            else:
                self.dropped += 1
        self.waiting.clear()

    def predict(self, x: dict[str, float], id_: str) -> Event:
        """A prediction that is to be kept."""
        if id_ in self.learned:
            raise Refused(409)
        if id_ in self.waiting:
            before, p, seq = self.waiting[id_]
            if before != x:
                raise Refused(409)
            return {"p": p, "seq": seq, "kept": True, "duplicate": True}
        kept = len(self.waiting) < self.spec.get("join", {}).get("max_waiting", 1_000_000)
        if kept:
            self.waiting[id_] = x, self.p(x), self.seq
        self.not_kept += not kept
        return {"p": self.p(x), "seq": self.seq, "kept": kept, "duplicate": False}


xs = st.dictionaries(st.sampled_from("abcd"), st.sampled_from([-1.5, 0.0, 0.25, 3.0]), max_size=3)
ids = st.sampled_from(["i", "j", "k", "l"])
events = st.fixed_dictionaries(
    {"x": xs, "y": st.integers(0, 1)}, optional={"id": ids, "weight": st.sampled_from([1.0, 0.5])}
)
labels = st.fixed_dictionaries({"id": ids, "y": st.integers(0, 1)})
names = st.sampled_from(sorted(SPECS))


class Machine(RuleBasedStateMachine):
    """One example: both begin empty."""

    below: Path
    service: Service
    hours = 0
    places = 0

    @initialize()
    def empty(self) -> None:
        self.twins = {}
        for name, spec in SPECS.items():
            self.ask("DELETE", f"/models/{name}")
            self.twins[name] = self.made(name, spec)

    @classmethod
    def start(cls, folder: Path) -> None:
        Machine.service = Service(folder, first=partial(ahead_by, cls.clock())).wait_until_ready()

    @classmethod
    def clock(cls) -> Path:
        return cls.below / "hours"

    def made(self, name: str, spec: dict[str, Any]) -> Twin:
        assert self.ask("PUT", f"/models/{name}", spec)[0] in (200, 201)
        return Twin(spec, Learner(Spec.from_dict(spec)))

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        return Machine.service.request(method, path, body)

    def changed(self, name: str, change: Callable[[Twin], Any]) -> Any:
        """What a change of a twin gives, all or nothing: the reply, or the status of its refusal."""
        after = copy.deepcopy(self.twins[name])
        try:
            reply = change(after)
        except Refused as refusal:
            return refusal.status
        self.twins[name] = after
        return reply

    def told(self, status: int, reply: Any, *, of: Any) -> Any:
        """The reply's parts that the twin knows, or the status of a refusal."""
        if status != 200:
            return status
        if isinstance(reply, list):
            return [{key: one[key] for key in part} for one, part in zip(reply, of, strict=True)]
        return {key: reply[key] for key in of}

    @rule(name=names, event=events | labels)
    def learn_one(self, name: str, event: Event) -> None:
        expected = self.changed(name, lambda twin: twin.learn(event))
        assert self.told(*self.ask("POST", f"/models/{name}/learn", event), of=expected) == expected

    @rule(name=names, array=st.lists(events | labels, min_size=1, max_size=5))
    def learn_array(self, name: str, array: list[Event]) -> None:
        expected = self.changed(name, lambda twin: [twin.learn(event) for event in array])
        assert self.told(*self.ask("POST", f"/models/{name}/learn", array), of=expected) == expected

    @rule(name=names, lines=st.lists(events | labels | st.just({"y": 2}), min_size=1, max_size=6))
    def learn_lines(self, name: str, lines: list[Event]) -> None:
        """What stands before the line that is wrong stays learned."""
        twin, expected, wrong = self.twins[name], [], 200
        for event in lines:
            try:
                if event["y"] == 2:
                    raise Refused(422)
                expected.append(twin.learn(event))
            except Refused as refusal:
                wrong = refusal.status
                break
        with contextlib.closing(Machine.service.client()) as connection:
            body = "".join(json.dumps(event) + "\n" for event in lines)
            connection.request("POST", f"/models/{name}/learn", body, {"content-type": "application/x-ndjson"})
            response = connection.getresponse()
            reply = json.loads(response.read())
        duplicates = sum(one["duplicate"] for one in expected)
        assert response.status == wrong, reply
        assert (reply["learned"], reply["duplicates"]) == (len(expected) - duplicates, duplicates)
        assert wrong == 200 or reply["line"] == len(expected) + 1

    @rule(name=names, x=xs)
    def predict(self, name: str, x: dict[str, float]) -> None:
        twin = self.twins[name]
        status, reply = self.ask("POST", f"/models/{name}/predict", {"x": x})
        assert (status, reply["p"], reply["seq"]) == (200, twin.p(x), twin.seq)
        status, told = self.ask("POST", f"/models/{name}/explain", {"x": x})
        assert (status, told["p"]) == (200, reply["p"])

    @rule(name=names, x=xs, id_=ids)
    def predict_and_keep(self, name: str, x: dict[str, float], id_: str) -> None:
        expected = self.changed(name, lambda twin: twin.predict(x, id_))
        assert self.told(*self.ask("POST", f"/models/{name}/predict", {"x": x, "id": id_}), of=expected) == expected
        waits = self.twins[name].waiting.get(id_)
        status, told = self.ask("POST", f"/models/{name}/explain", {"id": id_})
        assert status == (404 if waits is None and id_ not in self.twins[name].learned else status)
        if waits is not None:
            assert (status, told["served_p"], told["served_seq"]) == (200, waits[1], waits[2])

    @rule(name=names)
    def delete_and_create(self, name: str) -> None:
        assert self.ask("DELETE", f"/models/{name}")[0] == 204
        self.twins[name] = self.made(name, SPECS[name])

    @rule(how=st.sampled_from(["stop", "kill", "backup"]), rare=st.integers(0, 4))
    def start_again(self, how: str, rare: int) -> None:
        """After a graceful stop, a kill, or from a backup made while it ran. Not every time: a start takes a second."""
        if rare:
            return
        service = Machine.service
        folder = service.folder
        if how == "backup":
            Machine.places += 1
            copied, restored = (self.below / f"{what}-{Machine.places}" for what in ("copy", "data"))
            assert elsewhere(cli.main, ["backup", str(folder), str(copied)]) == 0
            service.kill()
            assert elsewhere(cli.main, ["restore", str(copied), str(restored)]) == 0
            shutil.rmtree(folder)
            shutil.rmtree(copied)
            folder = restored
        elif how == "kill":
            service.kill()
        else:
            assert service.stop() == 0
        Machine.start(folder)
        for twin in self.twins.values():
            twin.not_kept = 0  # it is counted since the start

    def none_waits(self, name: str) -> bool:
        return not self.ask("GET", f"/models/{name}")[1]["join"]["waiting"]

    @rule()
    def a_day_passes(self) -> None:
        """And an hour. It takes the service a moment to see it."""
        if not any(twin.waiting for twin in self.twins.values()):
            return
        Machine.hours += 25
        Machine.clock().write_text(str(Machine.hours))
        for name, twin in self.twins.items():
            twin.time_out()
            eventually(partial(self.none_waits, name), "what is late")

    @invariant()
    def both_hold_the_same(self) -> None:
        for name, twin in getattr(self, "twins", {}).items():
            status, found = self.ask("GET", f"/models/{name}")
            assert status == 200
            assert (found["seq"], found["sha256"]) == (twin.seq, twin.learner.sha256())
            join = found["join"]
            assert {key: join[key] for key in ("waiting", "joined", "expired", "late", "dropped", "not_kept")} == {
                "waiting": len(twin.waiting),
                "joined": twin.joined,
                "expired": twin.learned_as_0,
                "late": twin.late,
                "dropped": twin.dropped,
                "not_kept": twin.not_kept,
            }

    def teardown(self) -> None:
        """River, fed the same events, has the same weights."""
        theirs = linear_model.LogisticRegression()
        twin = getattr(self, "twins", {}).get("default")
        if twin is not None and all(weight == 1.0 for _, _, weight in twin.events):
            for x, y, _ in twin.events:
                theirs.learn_one(x, bool(y))
            assert self.ask("GET", "/models/default/weights")[1]["weights"] == dict(theirs.weights)


def after_a_day(machine: Machine) -> None:
    """A story that chance seldom tells: what waited is learned as 0 or dropped, and then the labels come."""
    machine.empty()
    for name in SPECS:
        for id_ in "ijk":  # of which adam keeps two
            machine.predict_and_keep(name, {"a": 1.0}, id_)
    machine.a_day_passes()
    for name in SPECS:
        for event in (
            {"id": "i", "y": 0}, {"id": "i", "y": 1}, {"id": "i", "y": 1}, {"id": "i", "y": 0},
            {"id": "j", "y": 0, "x": {"a": 1.0}}, {"id": "j", "y": 1, "x": {"a": 2.0}}, {"id": "k", "y": 1},
        ):  # fmt: skip
            machine.learn_one(name, event)
            machine.both_hold_the_same()
        machine.predict_and_keep(name, {"b": 1.0}, "j")
        machine.predict_and_keep(name, {"b": 1.0}, "k")
    for how in ("kill", "backup"):
        machine.start_again(how, rare=0)
        machine.learn_array("adam", [{"id": "j", "y": 1}, {"id": "j", "y": 1}, {"id": "k", "y": 0}])
        machine.both_hold_the_same()
    machine.a_day_passes()
    machine.both_hold_the_same()


def run(examples: int, steps: int) -> None:
    with TemporaryDirectory() as below:
        Machine.below = Path(below)
        Machine.hours = 0
        Machine.clock().write_text("0")
        Machine.start(Machine.below / "data")
        try:
            profile = settings(
                max_examples=examples, stateful_step_count=steps, suppress_health_check=list(HealthCheck)
            )
            after_a_day(Machine())
            run_state_machine_as_test(Machine, settings=profile)
            states = {name: Machine.service.request("GET", f"/models/{name}")[1] for name in SPECS}
            Machine.service.kill()
            replayed = replayed_elsewhere(Machine.service.folder)
            assert replayed == {n: {"seq": one["seq"], "sha256": one["sha256"]} for n, one in states.items()}
        finally:
            Machine.service.kill()


def test_the_service_does_what_its_model_does() -> None:
    run(amount(quick=3, checks=6, long=60), steps=amount(quick=25, checks=25, long=60))
