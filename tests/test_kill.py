"""kill -9 at random moments: nothing acknowledged is lost, nothing is learned twice, and the weights are river's."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from effort import amount
from harness import LOST, Service, exchange
from processes import logged_events, replayed_elsewhere
from river import linear_model
from streams import stream


def seeded() -> random.Random:
    """Random numbers; the seed is printed, and KILL_SEED repeats a run's choices (the machine's timing it cannot)."""
    seed = int(os.environ.get("KILL_SEED", random.SystemRandom().randrange(2**32)))
    print(f"KILL_SEED={seed}")
    return random.Random(seed)


# -- a stream that is resumed


@dataclass
class StreamingClient:
    """Streams events as NDJSON with ids, in pieces; a piece whose reply did not come is sent again, from its start.

    At each of `kills` (numbers of events) the service is killed, up to `delay` seconds after that line has been sent.
    """

    service: Service
    lines: list[bytes]
    kills: list[int]
    delay: float
    numbers: random.Random
    killed: int = 0
    duplicates: int = 0
    _timer: threading.Timer | None = field(default=None, init=False)

    def send_all(self) -> None:
        sent = 0
        while sent < len(self.lines):
            piece = range(sent, min(sent + self.numbers.randint(1_000, 12_000), len(self.lines)))
            try:
                reply = self._send(piece)
            except LOST:
                self._restart()
                continue
            assert reply["learned"] + reply["duplicates"] == len(piece), reply
            self.duplicates += reply["duplicates"]
            sent = piece.stop

    def _send(self, piece: range) -> dict[str, Any]:
        connection = self.service.client()
        try:
            headers = {"content-type": "application/x-ndjson", "transfer-encoding": "chunked"}
            connection.request("POST", "/learn", self._body(piece), headers, encode_chunked=True)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        reply: dict[str, Any] = json.loads(text)
        assert response.status == 200, reply
        return reply

    def _body(self, piece: range) -> Iterator[bytes]:
        for start in range(piece.start, piece.stop, 50):
            batch = range(start, min(start + 50, piece.stop))
            if self._timer is None and self.kills and batch[-1] >= self.kills[0]:
                del self.kills[0]
                self._timer = threading.Timer(self.numbers.uniform(0, self.delay), self.service.process.kill)
                self._timer.start()
            yield b"".join(self.lines[i] for i in batch)

    def _restart(self) -> None:
        """The service is gone, by the kill alone: start it again."""
        assert self._timer is not None, f"the connection was lost, and nobody killed the service\n{self.service.log}"
        self._timer.join()
        assert self.service.process.wait(60) == -signal.SIGKILL
        assert "Traceback" not in self.service.log
        self.killed += 1
        self._timer = None
        self.service = Service(self.service.folder).wait_until_ready()

    def finish(self) -> None:
        """Kills that came after the last reply hit the service too."""
        while self._timer is not None or self.kills:
            if self._timer is None:
                del self.kills[0]
                self._timer = threading.Timer(0, self.service.process.kill)
                self._timer.start()
            self._restart()


def shuttle_lines() -> list[bytes]:
    """River's Shuttle as NDJSON, with an id for each event."""
    events = stream("Shuttle")
    return [json.dumps({"x": x, "y": y, "id": f"shuttle-{i}"}).encode() + b"\n" for i, (x, y) in enumerate(events)]


def river_model() -> linear_model.LogisticRegression:
    """River's own, after the same events."""
    model = linear_model.LogisticRegression()
    for x, y in stream("Shuttle"):
        model.learn_one(x, bool(y))
    return model


def killed_stream(folder: Path, kills: int, numbers: random.Random) -> None:
    lines = shuttle_lines()
    places = sorted(numbers.sample(range(len(lines)), kills))
    client = StreamingClient(Service(folder).wait_until_ready(), lines, list(places), 0.03, numbers)
    try:
        client.send_all()
        client.finish()
        print(f"killed {client.killed} times, at events {places}; {client.duplicates} events were sent twice")
        assert client.killed == kills
        state = client.service.get("/models/default/weights")
        assert state["seq"] == len(lines) == 49_097
        theirs = river_model()
        assert state["weights"] == dict(theirs.weights)  # equal floats: 0 ULP
        assert state["bias"] == theirs.intercept
        client.service.kill()
        client.service = Service(folder).wait_until_ready()
        again = client.service.get("/models/default/weights")
        assert again == state
        assert replayed_elsewhere(folder)["default"] == {"seq": 49_097, "sha256": state["sha256"]}
        assert [x for x, _, _ in logged_events(folder)] == [x for x, _ in stream("Shuttle")]
    finally:
        client.service.kill()


def test_a_stream_survives_kills_and_ends_with_rivers_weights(tmp_path: Path) -> None:
    killed_stream(tmp_path / "data", amount(quick=2, checks=4, long=20), seeded())


# -- single events from many clients


class Journal:
    """What one client knows: which of its events were acknowledged, with their seq and p, and which were only sent."""

    def __init__(self, client: int) -> None:
        self.client = client
        self.acknowledged: dict[float, int] = {}
        self.sent: set[float] = set()

    def run(self, service: Service, start: threading.Event, events: int) -> None:
        """Send single events until they are all sent or the service is gone."""
        assert start.wait(60)
        connection = service.client()
        try:
            for i in range(events):
                # Its own value tells an event from every other: no id, so nothing but the log keeps it from doubling.
                value = (self.client * 1_000_000 + len(self.sent)) / 2**23
                event = {"x": {"value": value, f"client-{self.client}": 1.0}, "y": i % 2}
                self.sent.add(value)
                status, reply = exchange(connection, "POST", "/learn", event)
                assert status == 200, reply
                self.acknowledged[value] = reply["seq"]
        except LOST:
            return
        finally:
            connection.close()


def killed_clients(folder: Path, kills: int, numbers: random.Random) -> None:
    journals = [Journal(client) for client in range(8)]
    for _ in range(kills):
        with Service(folder, "--snapshot-seconds", "0.01").wait_until_ready() as service:
            start = threading.Event()
            # Enough that none of them is done before the kill.
            threads = [threading.Thread(target=journal.run, args=(service, start, 50_000)) for journal in journals]
            for thread in threads:
                thread.start()
            start.set()
            delay = numbers.uniform(0.01, 0.3)
            time.sleep(delay)
            service.process.kill()
            for thread in threads:
                thread.join(60)
                assert not thread.is_alive()
            assert "Traceback" not in service.log
    with Service(folder).wait_until_ready() as service:
        state = service.get("/models/default")
        assert_exactly_once(folder, journals, state)


def assert_exactly_once(folder: Path, journals: list[Journal], state: dict[str, Any]) -> None:
    logged = [x["value"] for x, _, _ in logged_events(folder)]
    acknowledged = {value: seq for journal in journals for value, seq in journal.acknowledged.items()}
    sent = {value for journal in journals for value in journal.sent}
    print(f"{len(sent)} sent, {len(acknowledged)} acknowledged, {len(logged)} in the log")
    assert len(acknowledged) > 8
    assert state["seq"] == len(logged)
    assert len(set(logged)) == len(logged)  # none twice
    assert set(logged) <= sent
    assert acknowledged.keys() <= set(logged)
    assert {value: logged[seq - 1] for value, seq in acknowledged.items()} == {value: value for value in acknowledged}
    for journal in journals:  # a client's events are in the order in which it sent them
        ours = [value for value in logged if value in journal.sent]
        assert ours == sorted(ours)
    assert replayed_elsewhere(folder)["default"] == {"seq": len(logged), "sha256": state["sha256"]}


def test_acknowledged_events_of_many_clients_are_in_the_log_exactly_once_after_kills(tmp_path: Path) -> None:
    kills = amount(quick=4, checks=44, long=1_000)  # with those of the other tests here, the checks have 50
    killed_clients(tmp_path / "data", kills, seeded())


# -- predictions first, their labels later


@dataclass(frozen=True)
class Row:
    """An event that is told in two parts: its features under an id, and later its label."""

    id: str
    x: dict[str, float]
    y: int


class LateClient(threading.Thread):
    """Asks for predictions of its rows, and sends each label when a random delay is over, so in random order.

    What gets no reply is sent again to the next service, whole. One label in ten has the features with it once more.
    """

    def __init__(self, service: Service, rows: list[Row], delay: float, numbers: random.Random) -> None:
        super().__init__(daemon=True)
        self.rows, self.delay, self.numbers = rows, delay, numbers
        self.service = service
        self.due: list[tuple[float, Row]] = []
        self.seqs: dict[str, int] = {}
        self.sent_twice = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            at = 0
            while at < len(self.rows) or self.due:
                ready = [entry for entry in self.due if entry[0] <= time.monotonic()]
                if at < len(self.rows) and (not ready or self.numbers.random() < 0.5):
                    piece = self.rows[at : at + self.numbers.choice((1, 20, 200))]
                    self.predict(piece)
                    at += len(piece)
                elif ready:
                    self.due = [entry for entry in self.due if entry not in ready]
                    self.label([row for _, row in sorted(ready, key=lambda entry: entry[0])])
                else:
                    time.sleep(0.001)
        except BaseException as error:
            self.error = error  # raised again by `check`

    def predict(self, rows: list[Row]) -> None:
        reply = self.send("/predict", [{"id": row.id, "x": row.x} for row in rows])
        assert all(told["kept"] for told in reply), reply
        now = time.monotonic()
        self.due += [(now + self.numbers.expovariate(1 / self.delay), row) for row in rows]

    def label(self, rows: list[Row]) -> None:
        events = [{"id": row.id, "y": row.y, **self.x_or_none(row)} for row in rows]
        reply = self.send("/learn", events)
        for row, told in zip(rows, reply, strict=True):
            assert self.seqs.setdefault(row.id, told["seq"]) == told["seq"]

    def x_or_none(self, row: Row) -> dict[str, Any]:
        return {"x": row.x} if self.numbers.random() < 0.1 else {}

    def send(self, path: str, items: list[dict[str, Any]]) -> Any:
        """Until there is a reply."""
        for attempt in range(100):
            service = self.service
            try:
                status, reply = service.request("POST", path, items)
            except LOST:
                service.process.wait(60)
                while self.service is service:
                    time.sleep(0.001)
                continue
            assert status == 200, reply
            self.sent_twice += len(items) if attempt else 0
            return reply
        raise AssertionError("no reply from any of 100 services")


def check(clients: list[LateClient]) -> None:
    for client in clients:
        if client.error is not None:
            raise client.error


def killed_joins(folder: Path, rows: list[Row], kills: int, numbers: random.Random) -> None:
    places = sorted(numbers.sample(range(len(rows)), kills))
    service = Service(folder, "--snapshot-seconds", "0.01").wait_until_ready()
    clients = [LateClient(service, rows[i::4], 0.1, random.Random(numbers.random())) for i in range(4)]
    try:
        for client in clients:
            client.start()
        for place in places:
            while sum(len(client.seqs) for client in clients) < place:
                check(clients)
                time.sleep(0.001)
            time.sleep(numbers.uniform(0, 0.03))
            service.kill()
            assert service.process.returncode == -signal.SIGKILL
            assert "Traceback" not in service.log
            service = Service(folder, "--snapshot-seconds", "0.01").wait_until_ready()
            for client in clients:
                client.service = service
        for client in clients:
            client.join(120)
            assert not client.is_alive()
        check(clients)
        sent_twice = sum(client.sent_twice for client in clients)
        print(f"killed {kills} times, at labels {places}; {sent_twice} predictions or labels were sent twice")
        assert_rivers_in_order_of_labels(
            service, rows, {k: seq for client in clients for k, seq in client.seqs.items()}
        )
    finally:
        service.kill()


def assert_rivers_in_order_of_labels(service: Service, rows: list[Row], seqs: dict[str, int]) -> None:
    assert sorted(seqs.values()) == list(range(1, len(rows) + 1))  # each label once, and no gap
    learned = sorted(rows, key=lambda row: seqs[row.id])
    assert learned != rows
    theirs = linear_model.LogisticRegression()
    for row in learned:
        theirs.learn_one(row.x, bool(row.y))
    state = service.get("/models/default/weights")
    assert state["weights"] == dict(theirs.weights)  # equal floats: 0 ULP
    assert state["bias"] == theirs.intercept
    told = service.get("/models/default")["join"]
    assert (told["waiting"], told["joined"], told["dropped"]) == (0, len(rows), 0)
    service.kill()
    folder = service.folder
    assert [(x, y) for x, y, _ in logged_events(folder)] == [(row.x, row.y) for row in learned]
    assert replayed_elsewhere(folder)["default"] == {"seq": len(rows), "sha256": state["sha256"]}


def shuttle_rows(count: int | None = None) -> list[Row]:
    return [Row(f"shuttle-{i}", dict(x), y) for i, (x, y) in enumerate(stream("Shuttle", count))]


def test_predictions_and_late_labels_survive_kills_and_end_with_rivers_weights(tmp_path: Path) -> None:
    rows = shuttle_rows(amount(quick=1_000, checks=4_000, long=None))
    killed_joins(tmp_path / "data", rows, amount(quick=1, checks=2, long=20), seeded())
