"""Power cuts: the page cache is lost. Whatever the disk may hold then, everything acknowledged is there, once.

The service is recorded while it learns, keeps predictions, writes snapshots and checkpoints, is killed between writing
a commit and syncing it, and starts again. The disks that a cut at any moment of it may leave are built and recovered.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from disk import HOW, Call, Disk, lay, needs_strace, recorded, tracing
from effort import amount, only_long
from harness import LOST, Service
from processes import logged_events, replay, replayed_elsewhere, started

from service.commands.inspect import examine
from service.storage.ids import IdKind

MODELS: dict[str, dict[str, Any]] = {
    "adam": {"rule": "adam", "scale": "standard"},
    "clicks": {"rule": "ftrl", "join": {"keep": "24h"}},
}


def seeded() -> random.Random:
    """Random numbers; the seed is printed, and CUT_SEED repeats a run's choices (the machine's timing it cannot)."""
    seed = int(os.environ.get("CUT_SEED", random.SystemRandom().randrange(2**32)))
    print(f"CUT_SEED={seed}")
    return random.Random(seed)


# -- the client, and what it was promised


@dataclass
class Promises:
    """What replies have promised: events by model and seq, told apart by their value; the ids of predictions kept."""

    models: set[str] = field(default_factory=set)
    events: dict[tuple[str, int], float] = field(default_factory=dict)
    ids: dict[tuple[str, str], int] = field(default_factory=dict)
    kept: set[tuple[str, str]] = field(default_factory=set)

    def with_more(self, more: Promises) -> Promises:
        """These and more."""
        ids, events = {**self.ids, **more.ids}, {**self.events, **more.events}
        return Promises(self.models | more.models, events, ids, self.kept | more.kept)


@dataclass
class Client:
    """Sends requests one after the other, and notes the bytes of each reply and what it promised."""

    numbers: random.Random
    value: int = 0
    sent: set[tuple[str, float]] = field(default_factory=set)
    replies: list[tuple[bytes, Promises]] = field(default_factory=list)
    unanswered: tuple[str, list[dict[str, Any]]] | None = None
    waiting: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def run(self, service: Service, requests: int) -> bool:
        """So many requests, of every kind; whether the service lived to answer them all."""
        connection = service.client()
        try:
            for name, spec in MODELS.items():
                self._exchange(connection, "PUT", f"/models/{name}", spec, Promises({name}))
            if self.unanswered is not None:
                self._learn(connection, *self.unanswered)
            for number in range(requests):
                self._one_of_each(connection, number)
        except LOST:
            return False
        finally:
            connection.close()
        return True

    def _one_of_each(self, connection: http.client.HTTPConnection, number: int) -> None:
        model = ("default", "adam", "clicks")[number % 3]
        if number % 10 == 4:
            self._predict(connection, "clicks")
        elif number % 10 == 8 and self.waiting:
            self._label(connection, *self.waiting.pop())
        elif number % 10 == 6:
            self._learn(connection, model, [self._event(200) for _ in range(8)])
        else:
            self._learn(connection, model, [self._event(3)])

    def _event(self, features: int) -> dict[str, Any]:
        self.value += 1
        x = {f"f{i}": self.numbers.random() for i in range(features)}
        return {"x": {"value": self.value / 2**20, **x}, "y": self.value % 2, "id": f"event-{self.value}"}

    def _learn(self, connection: http.client.HTTPConnection, model: str, events: list[dict[str, Any]]) -> None:
        self.unanswered = model, events
        self.sent.update((model, event["x"]["value"]) for event in events)
        promises = Promises()
        replies = self._exchange(connection, "POST", f"/models/{model}/learn", events, promises)
        for event, reply in zip(events, replies, strict=True):
            promises.events[model, reply["seq"]] = event["x"]["value"]
            promises.ids[model, event["id"]] = reply["seq"]
        self.unanswered = None

    def _predict(self, connection: http.client.HTTPConnection, model: str) -> None:
        event = self._event(3)
        question = {"x": event["x"], "id": event["id"]}
        promises = Promises()
        if self._exchange(connection, "POST", f"/models/{model}/predict", question, promises)["kept"]:
            promises.kept.add((model, event["id"]))
            self.waiting.append((model, event))

    def _label(self, connection: http.client.HTTPConnection, model: str, event: dict[str, Any]) -> None:
        self.sent.add((model, event["x"]["value"]))
        promises, label = Promises(), {"id": event["id"], "y": event["y"]}
        seq = self._exchange(connection, "POST", f"/models/{model}/learn", label, promises)["seq"]
        promises.events[model, seq] = event["x"]["value"]
        promises.ids[model, event["id"]] = seq

    def _exchange(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: Any, promises: Promises
    ) -> Any:
        connection.request(method, path, json.dumps(body), {"content-type": "application/json"})
        response = connection.getresponse()
        text = response.read()
        assert response.status in (200, 201), text
        self.replies.append((text, promises))
        return json.loads(text)


# -- the recording


@dataclass(frozen=True)
class Recording:
    """What the service did to its folder, and the client that it answered."""

    calls: list[Call]
    client: Client

    def promised(self, before: Promises) -> Iterator[Promises]:
        """For each call, what had been promised before it."""
        so_far, replies = before, iter(self.client.replies)
        text, promises = next(replies)
        for call in self.calls:
            yield so_far
            if call.what == "sent" and call.data.endswith(text):
                so_far = so_far.with_more(promises)
                text, promises = next(replies, (b"no more", Promises()))
        assert text == b"no more", "a reply was not recorded"

    def telling(self) -> list[int]:
        """The calls that are not one of the many that a commit makes: of starts, checkpoints and ends."""
        often = {("write", "log.db-wal"), ("sync", "log.db-wal"), ("write", "last-commit"), ("sent", "")}
        rare = [at for at, call in enumerate(self.calls) if (call.what, call.name) not in often]
        return sorted({near for at in rare for near in (at, at + 1, at + 2) if near < len(self.calls)})


def record(below: Path, numbers: random.Random) -> Recording:
    """Three lives of a service: killed in the middle of a commit, stopped, and killed at the end."""
    folder, client, calls = below / "data", Client(numbers), []
    kill = numbers.randint(230, 260)
    for life, (requests, kill_at) in enumerate([(1_000, kill), (40, None), (40, None)]):
        trace = below / f"trace-{life}"
        with Service(folder, "--snapshot-seconds", "0.0005", tracing=tracing(trace, kill_at)) as service:
            lived = client.run(service.wait_until_ready(), requests)
            assert lived == (life > 0)
            if life == 1:
                assert service.stop() == 0
            else:
                service.kill()
        calls += recorded(trace, folder)
        trace.unlink()
    return Recording(calls, client)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return record(tmp_path_factory.mktemp("recorded"), seeded())


# -- the oracle


def assert_nothing_is_lost(folder: Path, promised: Promises, sent: set[tuple[str, float]]) -> None:
    """The folder opens, has what was promised, nothing twice, and the weights that its log comes to."""
    assert not (folder / "log.db").exists() or examine(folder).wrong == []
    recovered = asyncio.run(recover(folder, promised))
    assert recovered.keys() >= promised.models
    assert replay(folder) == recovered
    for model in recovered:
        values = [x["value"] for x, _, _ in logged_events(folder, model)]
        assert len(values) == len(set(values)) == recovered[model]["seq"]
        assert {(model, value) for value in values} <= sent
        for (of, seq), value in promised.events.items():
            assert of != model or values[seq - 1] == value


async def recover(folder: Path, promised: Promises) -> dict[str, dict[str, Any]]:
    """Start an engine, look up every id that was promised, and stop it: seq and SHA-256 of each model."""
    engine = await started(folder)
    try:
        assert engine.lifecycle.state == "ready", engine.lifecycle.failure
        for (model, id_), seq in promised.ids.items():
            found = await engine.find_id(model, id_)
            assert found is not None
            assert (found.kind not in (IdKind.WAITING, IdKind.DROPPED), found.seq) == (True, seq)
        for model, id_ in promised.kept:
            found = await engine.find_id(model, id_)
            assert found is not None
            assert found.waiting is not None or found.kind not in (IdKind.WAITING, IdKind.DROPPED)
        return {m.name: {"seq": m.learner.seq, "sha256": m.learner.sha256()} for m in engine.models}
    finally:
        await engine.stop(seconds=0)


@dataclass
class Cuts:
    """Cuts of the power in a recording that began on a disk that held this, when these things had been promised."""

    recording: Recording
    below: Path
    numbers: random.Random
    disk: Disk = field(default_factory=Disk)
    before: Promises = field(default_factory=Promises)
    made: int = 0

    def states(self, cuts: Sequence[int], each: int = 1) -> Iterator[tuple[Path, Promises]]:
        """Folders as cuts before these calls may leave them, so many of each, and what had been promised."""
        wanted = Counter(cuts)
        promised = self.recording.promised(self.before)
        for at, (call, so_far) in enumerate(zip(self.recording.calls, promised, strict=True)):
            for _ in range(wanted[at] * each):
                how = HOW[self.made % len(HOW)]
                print(f"a cut before call {at} ({call.what} {call.name}) leaves of the unsynced: {how}")
                yield lay(self.disk.state(how, self.numbers), self.below / f"cut-{self.made}"), so_far
                self.made += 1
            self.disk.apply(call)

    def recover(self, cuts: Sequence[int], each: int = 1) -> int:
        """Recover all of these; how many there were."""
        for folder, promised in self.states(cuts, each):
            assert_nothing_is_lost(folder, promised, self.recording.client.sent)
            shutil.rmtree(folder)
        return self.made


@needs_strace()
def test_after_a_power_cut_everything_acknowledged_is_there_once(recording: Recording, tmp_path: Path) -> None:
    numbers, half = seeded(), amount(quick=8, checks=75, long=75)
    cuts = numbers.sample(range(len(recording.calls)), half) + numbers.sample(recording.telling(), half)
    assert Cuts(recording, tmp_path, numbers).recover(cuts) == 2 * half


def cut_twice(recording: Recording, below: Path, numbers: random.Random, cuts: int) -> None:
    """A cut; the service starts on what it left and goes on, recorded; and cuts in that."""
    ((folder, promised),) = Cuts(recording, below, numbers).states([numbers.choice(recording.telling())])
    disk, client = Disk.of(folder), Client(numbers, value=10_000, sent=set(recording.client.sent))
    with Service(folder, tracing=tracing(below / "trace")).wait_until_ready() as service:
        assert client.run(service, 30)
        replayed = replayed_elsewhere(folder)
        for model in service.get("/models")["models"]:
            shown = service.get(f"/models/{model['model']}")
            assert replayed[model["model"]] == {"seq": shown["seq"], "sha256": shown["sha256"]}
        service.kill()
    again = Recording(recorded(below / "trace", folder), client)
    (below / "again").mkdir()
    at = numbers.sample(range(len(again.calls)), cuts)
    assert Cuts(again, below / "again", numbers, disk, promised).recover(at) == cuts


@needs_strace()
def test_after_a_second_power_cut_everything_acknowledged_is_there_once(recording: Recording, tmp_path: Path) -> None:
    cut_twice(recording, tmp_path, seeded(), cuts=amount(quick=4, checks=20, long=20))


@needs_strace()
def test_last_commit_is_never_written_ahead_of_the_synced_log(recording: Recording) -> None:
    """Also at a start after a kill, which may have left a commit that was written and not synced."""
    unsynced, marks = set(), 0
    for call in recording.calls:
        if call.what == "sync":
            unsynced.discard(call.name)
        elif call.name == "last-commit" and call.what == "write":
            marks += 1
            assert "log.db-wal" not in unsynced
        elif call.what in ("write", "truncate"):
            unsynced.add(call.name)
    assert marks > 200


@only_long
@needs_strace()
@pytest.mark.parametrize("run", range(2))
def test_after_thousands_of_power_cuts_everything_acknowledged_is_there_once(tmp_path: Path, run: int) -> None:
    numbers = seeded()
    recording = record(tmp_path, numbers)
    cuts = Cuts(recording, tmp_path, numbers)
    print(f"{len(recording.calls)} calls, of which {len(recording.telling())} are telling")
    cuts.recover(recording.telling() + numbers.sample(range(len(recording.calls)), 200), each=len(HOW))
    assert cuts.made > 2_000


@only_long
@needs_strace()
def test_after_many_second_power_cuts_everything_acknowledged_is_there_once(
    recording: Recording, tmp_path: Path
) -> None:
    numbers = seeded()
    for run in range(10):
        (tmp_path / str(run)).mkdir()
        cut_twice(recording, tmp_path / str(run), numbers, cuts=100)
