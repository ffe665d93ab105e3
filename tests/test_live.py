"""Server-sent events of a real service: what they say, and that nobody who watches holds anything up."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from effort import from_checks_on
from harness import NewModel, Service, Start, assert_problem
from patience import eventually
from processes import running_engine
from starlette import types as asgi

from service.events import Event
from service.watching import live

Message = tuple[str, dict[str, Any]]


def messages(response: httpx.Response) -> Iterator[Message]:
    """The events of a stream, as a browser's EventSource takes them: their names and data."""
    name = ""
    for line in response.iter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


@contextmanager
def watching(service: Service, path: str) -> Iterator[Iterator[Message]]:
    with service.another_client() as client, client.stream("GET", path) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"] == "text/event-stream"
        yield messages(response)


def until_seq(stream: Iterator[Message], seq: int) -> dict[str, Any]:
    """The first message that has this seq."""
    for name, data in stream:
        assert name == "now"
        if data["seq"] >= seq:
            return data
    pytest.fail("the stream ended")


def events(count: int, seed: int = 1) -> list[dict[str, Any]]:
    numbers = random.Random(seed)
    return [
        {"x": {f"f{i}": numbers.gauss(0, 1) for i in range(30)}, "y": int(numbers.random() < 0.3)} for _ in range(count)
    ]


# -- what they say


def test_a_stream_says_what_the_model_says_when_it_is_asked(shared: Service, new_model: NewModel) -> None:
    model = new_model(learning_rate=0.1)
    with watching(shared, f"{model.path}/stream") as stream:
        assert until_seq(stream, 0)["seq"] == 0
        model.learn(events(200))
        model.predict({"x": {"f1": 1.0}})
        data = until_seq(stream, 200)
        while data["commit"]["p50_ms"] is None:  # it is looked for once a second
            data = next(stream)[1]
    state = model.state()
    calibration = state["progressive"].pop("calibration")
    assert data["calibration"] == calibration
    told = ("model", "seq", "features", "not_taken", "left_out", "snapshot_seq", "progressive", "served", "join")
    assert {name: data[name] for name in told} == {name: state[name] for name in told}
    assert (data["state"], data["rule"]) == ("ready", "sgd")
    assert data["learned_s"] > 0
    assert 0 < data["commit"]["p50_ms"] <= data["commit"]["p99_ms"]


def test_it_shows_the_largest_weights_and_those_that_moved(shared: Service, new_model: NewModel) -> None:
    model = new_model(learning_rate=0.1)
    model.learn(events(100))
    before = model.weights()["weights"]
    with watching(shared, f"{model.path}/stream") as stream:
        assert until_seq(stream, 100)["moved"] == []  # since it is watched
        model.learn(events(100, seed=2))
        after = model.weights()["weights"]
        data = eventually(lambda: (found := next(stream)[1])["moved"] and found, "weights that moved")
    largest = sorted(after, key=lambda name: -abs(after[name]))[: live.LARGEST]
    assert data["weights"] == [{"name": name, "weight": after[name]} for name in largest]
    moved = sorted(after, key=lambda name: -abs(after[name] - before[name]))[: live.MOVED]
    assert data["moved"] == [{"name": name, "weight": after[name], "before": before[name]} for name in moved]


def test_of_a_mixture_it_shows_the_learners(shared: Service, new_model: NewModel) -> None:
    model = new_model(rule="auto")
    model.learn(events(50))
    with watching(shared, f"{model.path}/stream") as stream:
        data = until_seq(stream, 50)
    assert (data["weights"], data["moved"]) == ([], [])
    assert sum(learner["weight"] for learner in data["learners"]) == pytest.approx(1)


def test_the_overview_has_every_model(start: Start) -> None:
    service = start()
    service.model("other").create({"rule": "adam"})
    with watching(service, "/stream") as stream:
        service.model("other").learn(events(40))
        for _, data in stream:
            rows = {row["model"]: row for row in data["models"]}
            if rows["other"]["seq"] == 40 and rows["other"]["learned_s"] > 0:
                break
    total = service.model("other").state()["progressive"]["total"]
    assert rows.keys() == {"default", "other"}
    assert (rows["other"]["loss"], rows["other"]["accuracy"]) == pytest.approx((total["log_loss"], total["accuracy"]))
    assert rows["other"]["spark"] == service.get("/models/other/curve")["loss_window"]
    assert (rows["default"]["loss"], rows["default"]["spark"]) == (None, [])
    assert "more" not in data


def test_of_very_many_models_the_overview_has_those_that_learned_last(start: Start) -> None:
    service = start()
    for i in range(live.SHOWN_MODELS + 5):
        service.model(f"m{i}").create({})
    for i in range(live.SHOWN_MODELS + 5):
        if i != 3:
            service.model(f"m{i}").learn(events(1))
    with watching(service, "/stream") as stream:
        _, data = next(stream)
        shown = {row["model"] for row in data["models"]}
        assert shown == {f"m{i}" for i in range(5, 105)}  # those that learned before anybody looked, the last of them
        service.model("m3").learn(events(1))
        for _, data in stream:
            shown = {row["model"] for row in data["models"]}
            if "m3" in shown:
                break
    assert (len(data["models"]), data["more"]) == (live.SHOWN_MODELS, 6)
    assert "m104" in shown


@from_checks_on
def test_there_are_a_few_messages_a_second_however_many_events(shared: Service, new_model: NewModel) -> None:
    model = new_model()
    with watching(shared, f"{model.path}/stream") as stream:
        started = time.monotonic()
        for event in events(300):
            model.learn(event)
        seconds, received = time.monotonic() - started, 0
        for _, data in stream:
            received += 1
            if data["seq"] == 300:
                break
    assert 2 <= received <= seconds / live.TICK_SECONDS + 4


def test_all_who_watch_get_the_same_messages(shared: Service, new_model: NewModel) -> None:
    model, seen = new_model(), []
    with ExitStack() as stack:
        streams = [stack.enter_context(watching(shared, f"{model.path}/stream")) for _ in range(20)]
        for stream in streams:
            assert next(stream)[1]["seq"] == 0
        model.learn(events(50))
        seen = [until_seq(stream, 50) for stream in streams]
    assert all(data == seen[0] for data in seen)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand ticks a second."""
    monkeypatch.setattr(live, "TICK_SECONDS", 0.001)
    monkeypatch.setattr(live.Channel, "pause", 0.001)


@pytest.mark.usefixtures("fast")
def test_where_nothing_is_new_there_is_a_heartbeat_and_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "HEARTBEAT_SECONDS", 0.05)

    async def watch() -> list[bytes]:
        sent = []
        async with running_engine(tmp_path) as engine:
            with live.Live(engine, 1).watching("default") as channel:
                for number in range(4):
                    await channel.after(number)
                    sent.append(channel.newest)
        return sent

    first, *rest = asyncio.run(watch())
    assert first.startswith(b"event: now\ndata: {")
    assert all(beat.startswith(b":") and beat.endswith(b"\n\n") for beat in rest)


@pytest.mark.usefixtures("fast")
def test_a_slow_viewer_gets_the_newest_message_and_never_those_it_missed(tmp_path: Path) -> None:
    async def watch() -> list[int]:
        seqs: list[int] = []
        taking = asyncio.Event()

        async def never() -> asgi.Message:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: asgi.Message) -> None:
            """A connection that takes nothing until it is told to."""
            for line in message.get("body", b"").decode().splitlines():
                if line.startswith("data: "):
                    seqs.append(json.loads(line[6:])["seq"])
            await taking.wait()

        async with running_engine(tmp_path) as engine:
            viewers = live.Live(engine, 1)
            stream = live.EventStream(viewers, "default", lambda _: None)
            watching = asyncio.create_task(stream({"method": "GET"}, never, send))
            for i in range(50):
                await engine.learn("default", [Event({"age": float(i)}, 1)])
                await asyncio.sleep(0.002)
            taking.set()
            while not seqs or seqs[-1] < 50:  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(0.001)
            watching.cancel()
            await asyncio.wait([watching])
        return seqs

    seqs = asyncio.run(asyncio.wait_for(watch(), 20))
    assert len(seqs) <= 3
    assert seqs[-1] == 50


# -- who may watch, and for how long


def test_there_may_be_so_many_viewers_and_no_more(start: Start) -> None:
    service = start("--max-viewers", "2")
    with watching(service, "/stream") as one, watching(service, "/models/default/stream"):
        assert next(one)[0] == "now"
        refused = service.http.get("/stream")
        assert_problem(refused, 503, "There are 2 live streams already")
        assert int(refused.headers["retry-after"]) > 0
    with service.another_client() as client:
        eventually(lambda: reads_one(client), "room for another viewer")


def reads_one(client: httpx.Client) -> bool:
    with client.stream("GET", "/stream") as response:
        return response.status_code == 200 and next(messages(response))[0] == "now"


def test_a_stream_of_a_model_that_is_deleted_ends_and_says_so(shared: Service, new_model: NewModel) -> None:
    model = new_model()
    with watching(shared, f"{model.path}/stream") as stream:
        assert next(stream)[0] == "now"
        model.delete()
        assert list(stream) == [("gone", {"model": model.name})]
    assert_problem(shared.http.get(f"{model.path}/stream"), 404)


def test_a_stream_goes_on_with_the_default_model_that_reappears(start: Start) -> None:
    service = start()
    service.model().learn(events(3))
    with watching(service, "/models/default/stream") as stream:
        until_seq(stream, 3)
        service.model().delete()
        assert next(stream)[1]["seq"] == 0


def stalled(service: Service, path: str) -> socket.socket:
    """A viewer that asks and does not read, and has little room for what comes."""
    viewer = socket.socket()
    viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    viewer.connect(("127.0.0.1", service.port))
    viewer.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
    return viewer


def memory(service: Service) -> int:
    """Resident memory in KiB."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


@from_checks_on
def test_who_does_not_read_misses_messages_and_costs_neither_learning_nor_memory(start: Start) -> None:
    service = start()
    wide = [{"x": {f"{'wide' * 60}-{i}-{j}": 1.0 for j in range(30)}, "y": 1} for i in range(5)]
    service.model("wide").create({})
    model = service.model("wide")
    model.learn(wide)  # a message has the names of 20 weights: 10 kB
    model.learn(events(50))
    with watching(service, f"{model.path}/stream") as stream, ExitStack() as stack:
        viewers = [stack.enter_context(stalled(service, f"{model.path}/stream")) for _ in range(20)]
        seqs: list[int] = []
        reader = threading.Thread(target=lambda: seqs.extend(data["seq"] for name, data in stream if name == "now"))
        reader.start()
        eventually(lambda: seqs, "a message")
        before, learned = memory(service), model.state()["seq"]
        until = time.monotonic() + 4
        while time.monotonic() < until:
            assert model.learn(wide[0]).json()["seq"] == (learned := learned + 1)
        grown = memory(service) - before
        model.delete()
        reader.join()
        kept = [ever_received(viewer) for viewer in viewers]
    assert len(seqs) > 8
    assert grown < 20_000, f"{grown} KiB"
    for text in kept:
        told = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
        assert told[-1] == {"model": "wide"}
        assert [data["seq"] for data in told[:-1]] == sorted(data["seq"] for data in told[:-1])


def ever_received(viewer: socket.socket) -> str:
    """All that a viewer has been sent, its chunks joined."""
    viewer.settimeout(10)
    received = b""
    while not received.endswith(b"\r\n0\r\n\r\n"):
        received += viewer.recv(65536)
    _, _, body = received.partition(b"\r\n\r\n")
    text = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        text, body = text + body[: int(size, 16)], body[int(size, 16) + 2 :]
    return text.decode()


@from_checks_on
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_the_streams_and_waits_for_nobody_who_does_not_read(start: Start, number: signal.Signals) -> None:
    service = start()
    wide = {"x": {f"{'wide' * 60}-{j}": 1.0 for j in range(30)}, "y": 1}
    service.model().learn(wide)
    with ExitStack() as stack:
        streams = [stack.enter_context(watching(service, path)) for path in ("/stream", "/models/default/stream") * 5]
        for _ in range(5):
            stack.enter_context(stalled(service, "/models/default/stream"))
        for stream in streams:
            assert next(stream)[0] == "now"
        until = time.monotonic() + 3
        while time.monotonic() < until:  # until what the stalled are sent fills up
            service.model().learn(wide)
        started = time.monotonic()
        service.signal(number)
        for stream in streams:
            assert all(name == "now" for name, _ in stream)  # to a proper end
        assert service.wait() == 0
        assert time.monotonic() - started < 3
