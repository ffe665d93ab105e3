"""More than it can take: what is too much is refused, the rest goes on, memory is bounded, and it is back at once.

Each client is a connection that sends its next request when it has the reply to the last. How fast the service answers
is measured against itself, in the long form; the quick form looks at what is answered, and what is left.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, takewhile
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from effort import amount, few, from_checks_on, only_long
from harness import HOST, Service
from processes import replayed_elsewhere

ARRAY = 2_000
"""Events of a request of the overload: a queue is filled with few connections, and what is sent can be made."""
MIB = 2**20


@dataclass
class Tally:
    """What clients got: how often each status, when the good replies came, how long they took, and how many replies of
    another kind had no Retry-After."""

    statuses: Counter[int] = field(default_factory=Counter)
    good_at: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    without_retry_after: int = 0

    @property
    def p99(self) -> float:
        return sorted(self.seconds)[int(0.99 * len(self.seconds))]

    def goodput(self, since: float, until: float) -> float:
        """Good replies a second."""
        return sum(since <= at < until for at in self.good_at) / (until - since)


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes, tally: Tally) -> None:
    """One request and its reply."""
    started = time.monotonic()
    writer.write(request)
    await writer.drain()
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
    await reader.readexactly(length)
    status, now = int(head[9:12]), time.monotonic()
    tally.statuses[status] += 1
    if status < 300:
        tally.good_at.append(now)
        tally.seconds.append(now - started)
    elif b"\r\nretry-after:" not in head:
        tally.without_retry_after += 1


async def client(port: int, requests: Iterable[bytes], tally: Tally, slots: Iterator[float] | None) -> None:
    """Requests one after the other on a connection, each not before its time."""
    reader, writer = await asyncio.open_connection(HOST, port, limit=MIB)
    try:
        for request in requests:
            if slots is not None:
                await asyncio.sleep(next(slots) - time.monotonic())
            await ask(reader, writer, request, tally)
    finally:
        writer.close()


def run(service: Service, requests: Iterable[bytes], connections: int, rate: float | None = None) -> Tally:
    """Requests over so many connections, until there are no more, `rate` a second in all (as fast as they go)."""
    tally = Tally()
    slots = None if rate is None else count(time.monotonic(), 1 / rate)

    async def all_of_them() -> None:
        shared = iter(requests)
        await asyncio.gather(*(client(service.port, shared, tally, slots) for _ in range(connections)))

    asyncio.run(all_of_them())
    return tally


def run_clients(
    service: Service, request: Callable[[], bytes], connections: int, seconds: float, rate: float | None = None
) -> Tally:
    """So many clients for so long."""
    until = time.monotonic() + seconds
    return run(service, takewhile(lambda _: time.monotonic() < until, iter(request, None)), connections, rate)


def post(path: str, content: Any) -> bytes:
    body = json.dumps(content).encode()
    return (
        f"POST {path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body


def event(i: int) -> dict[str, Any]:
    return {"x": {f"f{j}": (i * 7 + j) % 13 / 13 for j in range(10)}, "y": i % 2}


def resident(service: Service) -> int:
    """Bytes of memory of the service."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024


# -- ten times as much


@dataclass(frozen=True)
class Overload:
    """What came of it. Peaks are of another service that nobody overloads, before and after: the rate of the machine
    itself changes by a third within minutes."""

    peak: float
    many: float
    afterwards: float
    peak_after: float
    offered: float
    grown: int
    """Bytes of memory, at most."""

    @property
    def share(self) -> float:
        return 2 * self.many / (self.peak + self.peak_after)


def arrays_a_second(service: Service, array: bytes, seconds: float) -> float:
    """What two clients get, who send one array after the other."""
    began = time.monotonic()
    tally = run_clients(service, lambda: array, 2, seconds)
    assert set(tally.statuses) == {200}
    return tally.goodput(began, began + seconds)


@contextmanager
def meanwhile(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Work in a thread, which is asked to stop at the end."""
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def largest_memory(service: Service) -> Iterator[list[int]]:
    """The most memory that it has meanwhile, looked at ten times a second."""
    seen = [resident(service)]

    def look(stop: threading.Event) -> None:
        while not stop.wait(0.1):
            seen[0] = max(seen[0], resident(service))

    with meanwhile(look):
        yield seen


def overload(folder: Path, seconds: float, settle: float) -> Overload:
    """At ten times the rate that two clients get, over so many connections that the queue is always full."""
    array, queue = post("/learn", [event(i) for i in range(ARRAY)]), ("--queue-events", "8000")
    with (
        Service(folder, *queue).wait_until_ready() as service,
        Service(folder.with_name("other"), *queue).wait_until_ready() as other,
    ):
        for one in (service, other):
            arrays_a_second(one, array, 1.0)  # what is compiled and made at first is not to count
        before = resident(service)
        peak = arrays_a_second(other, array, settle)
        began = time.monotonic()
        with largest_memory(service) as largest:
            many = run_clients(service, lambda: array, 160, seconds, rate=10 * peak)
        afterwards = arrays_a_second(service, array, settle)
        peak_after = arrays_a_second(other, array, settle)
        assert service.request("GET", "/readyz")[0] == 200
        assert set(many.statuses) == {200, 503}
        assert many.without_retry_after == 0
        state = service.get("/models/default")
        assert ARRAY * many.statuses[200] <= state["seq"]
    assert replayed_elsewhere(folder)["default"] == {"seq": state["seq"], "sha256": state["sha256"]}
    goodput, offered = many.goodput(began, began + seconds), many.statuses.total() / seconds
    return Overload(peak, goodput, afterwards, peak_after, offered, largest[0] - before)


@from_checks_on
def test_more_than_the_queue_takes_is_refused_and_the_rest_learned(tmp_path: Path) -> None:
    assert overload(tmp_path / "data", seconds=1.5, settle=0.5).grown < 200 * MIB


@only_long
def test_at_ten_times_the_rate_goodput_stays_and_is_back_at_once(tmp_path: Path) -> None:
    """Three services, one after the other."""
    found = [overload(tmp_path / f"data-{i}", seconds=60.0, settle=5.0) for i in range(3)]
    print(*found, sep="\n")
    assert min(overloaded.offered / overloaded.peak for overloaded in found) >= 9.5
    assert median(overloaded.share for overloaded in found) >= 0.8
    assert median(overloaded.afterwards / overloaded.peak_after for overloaded in found) >= 0.8
    assert max(overloaded.grown for overloaded in found) < 200 * MIB


# -- slow clients


@contextmanager
def slow_clients(service: Service, number: int) -> Iterator[Sequence[socket.socket]]:
    """Clients that send their requests a byte a second."""
    request = post("/learn", event(1))
    sockets = [socket.create_connection((HOST, service.port)) for _ in range(number)]

    def trickle(stop: threading.Event) -> None:
        for place in range(len(request)):
            for one in sockets:
                try:
                    one.send(request[place : place + 1])
                except OSError:
                    continue  # it was ended
            if stop.wait(1.0):
                return

    try:
        with meanwhile(trickle):
            yield sockets
    finally:
        for one in sockets:
            one.close()


def test_slow_clients_are_ended_and_nobody_waits_for_them(tmp_path: Path) -> None:
    predict = post("/predict", {"x": event(1)["x"]})
    with Service(tmp_path / "data", "--request-seconds", "2").wait_until_ready() as service:
        with slow_clients(service, 1_000) as sockets:
            others = run_clients(service, lambda: predict, 4, 4.0)
            for one in sockets:
                one.settimeout(10)
                assert one.recv(12) == b"HTTP/1.1 408"
        assert set(others.statuses) == {200}
        assert service.get("/models/default")["seq"] == 0


@only_long
def test_a_thousand_slow_clients_leave_the_p99_of_others_within_twice(tmp_path: Path) -> None:
    learn = post("/learn", event(1))
    with Service(tmp_path / "data", "--request-seconds", "300").wait_until_ready() as service:
        run_clients(service, lambda: learn, 8, 2.0)
        alone, beside = [], []
        for _ in range(5):
            alone.append(run_clients(service, lambda: learn, 8, 5.0).p99)
            with slow_clients(service, 1_000):
                beside.append(run_clients(service, lambda: learn, 8, 5.0).p99)
        print(f"p99 alone {median(alone) * 1e3:.2f} ms, beside 1,000 slow clients {median(beside) * 1e3:.2f} ms")
        assert median(beside) <= 2 * median(alone)


# -- large bodies


@few(1)
@pytest.mark.parametrize("told", [True, False], ids=["length told", "length not told"])
def test_200_bodies_over_the_limit_at_once_are_refused_and_take_little_memory(tmp_path: Path, told: bool) -> None:
    """The first mebibyte of each is sent, and then the next of each, until the service has had enough of it."""
    with Service(tmp_path / "data", "--max-bodies-bytes", str(64 * MIB)).wait_until_ready() as service:
        before, largest = resident(service), 0
        head = "content-length: 20000000" if told else "transfer-encoding: chunked"
        sockets = [socket.create_connection((HOST, service.port), timeout=10) for _ in range(200)]
        piece = b" " * MIB if told else b"%x\r\n" % MIB + b" " * MIB + b"\r\n"
        statuses: Counter[bytes] = Counter()
        try:
            for one in sockets:
                one.sendall(
                    f"POST /learn HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\n{head}\r\n\r\n".encode()
                )
            open_ = list(sockets)
            for _ in range(20):
                for one in list(open_):
                    one.setblocking(False)
                    try:
                        status = one.recv(12)
                    except BlockingIOError:
                        one.settimeout(10)
                        one.sendall(piece)
                    else:
                        statuses[status[9:]] += 1
                        open_.remove(one)
                largest = max(largest, resident(service) - before)
                assert service.request("POST", "/predict", {"x": {"a": 1}})[0] == 200
            for one in open_:
                one.settimeout(10)
                statuses[one.recv(12)[9:]] += 1
        finally:
            for one in sockets:
                one.close()
        assert statuses.total() == 200
        assert set(statuses) <= ({b"413"} if told else {b"413", b"503"})
        assert largest < 300 * MIB
        assert service.get("/models/default")["seq"] == 0


@from_checks_on
def test_large_arrays_at_once_are_learned_one_after_the_other(tmp_path: Path) -> None:
    array = post("/learn", [event(i) for i in range(12_000)])
    assert len(array) > MIB
    with Service(tmp_path / "data", "--queue-events", "400000").wait_until_ready() as service:
        run(service, [array], 1)
        before = resident(service)
        assert run(service, [array] * 12, 12).statuses == {200: 12}
        assert resident(service) - before < 150 * MIB
        assert service.get("/models/default")["seq"] == 13 * 12_000


# -- many models, many features, a long time


def many_models(folder: Path, models: int) -> None:
    with Service(folder, "--max-models", str(models + 1)).wait_until_ready() as service:  # one more: "default"
        create = post_of("PUT", [f"/models/m{i}" for i in range(models)], {})
        assert run(service, create, 32).statuses == {201: models}
        learn = [post(f"/models/m{i % models}/learn", event(i)) for i in range(2 * models)]
        assert run(service, learn, 32).statuses == {200: 2 * models}
        assert len(service.get("/models")["models"]) == models + 1
        status, problem = service.request("PUT", "/models/one-more", {})
        assert (status, problem["title"]) == (409, "Too many models")
    replayed = replayed_elsewhere(folder)
    with Service(folder).wait_until_ready() as service:
        for i in range(0, models, max(1, models // 50)):
            model = service.get(f"/models/m{i}")
            assert {"seq": model["seq"], "sha256": model["sha256"]} == replayed[f"m{i}"]
            assert model["seq"] == 2


def post_of(method: str, paths: Sequence[str], content: Any) -> list[bytes]:
    return [post(path, content).replace(b"POST", method.encode(), 1) for path in paths]


def test_thousands_of_models(tmp_path: Path) -> None:
    many_models(tmp_path / "data", amount(quick=100, checks=1_000, long=10_000))


def many_features(folder: Path, features: int) -> None:
    """Ten in an event, each new; then one more than there may be."""
    with Service(folder, "--max-line-bytes", str(MIB)).wait_until_ready() as service:
        status, _ = service.request("PUT", "/models/wide", {"max_features": features, "overflow": "refuse"})
        assert status == 201
        connection = service.client()
        lines = (
            json.dumps({"x": {f"feature-{10 * i + j}": 1.0 + j for j in range(10)}, "y": i % 2}).encode() + b"\n"
            for i in range(features // 10)
        )
        connection.request("POST", "/models/wide/learn", lines, {"content-type": "application/x-ndjson"})
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())["learned"]) == (200, features // 10)
        connection.close()
        status, problem = service.request("POST", "/models/wide/learn", {"x": {"one more": 1}, "y": 1})
        assert (status, problem["field"]) == (422, "x")
        status, reply = service.request("POST", "/models/wide/learn", {"x": {"feature-7": 1}, "y": 1})
        assert (status, reply["seq"]) == (200, features // 10 + 1)
        told = service.get("/models/wide")
        assert told["features"] == features
        assert resident(service) < 300 * MIB + 400 * features
    assert replayed_elsewhere(folder)["wide"]["sha256"] == told["sha256"]


def test_a_million_features(tmp_path: Path) -> None:
    many_features(tmp_path / "data", amount(quick=10_000, checks=100_000, long=1_000_000))


@only_long
def test_ten_minutes_of_load_leave_the_memory_as_it_was(tmp_path: Path) -> None:
    """Learns, predictions that are kept and labels that come, on a log whose old events go."""
    numbers = iter(range(10**9))

    def mixed() -> bytes:
        i = next(numbers)
        if i % 3 == 0:
            return post("/learn", event(i))
        if i % 3 == 1:
            return post("/predict", {"x": event(i)["x"], "id": f"k{i}"})
        return (
            post("/learn", {"id": f"k{i - 1 - 3 * 40}", "y": 1})
            if i > 1_000
            else post("/predict", {"x": event(i)["x"]})
        )

    with Service(tmp_path / "data", "--keep-events", "100000").wait_until_ready() as service:
        run_clients(service, mixed, 16, 120.0)
        start = resident(service)
        sizes = []
        for _ in range(8):
            tally = run_clients(service, mixed, 16, 60.0)
            assert set(tally.statuses) <= {200, 404}, tally.statuses  # 404: a label that overtook its prediction
            assert tally.statuses[404] < 0.01 * tally.statuses[200]
            sizes.append(resident(service))
        assert service.get("/models/default")["seq"] > 200_000  # so that events have been dropped
        print(f"after 2 minutes {start / MIB:.1f} MiB, then each minute", [f"{size / MIB:.1f}" for size in sizes])
        assert sizes[-1] < 1.01 * start
