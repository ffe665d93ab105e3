"""What the client sends again and what not: against a service that is killed under it, and against scripted replies."""

from __future__ import annotations

import http.server
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from effort import amount
from harness import Model, Service, Start

import logstep
from logstep import Client, LearnedMany, NoAnswer, Problem

KILLS = amount(quick=1, checks=4, long=60)
BETWEEN = 600
"""Events of the stream from one kill to the next."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


# -- a service that is killed and restarted


class Load:
    """A thread that calls something until it is told to stop; the events that it has sent, and what it met."""

    def __init__(self, call: Callable[[int], int]) -> None:
        self.sent = 0
        self.error: BaseException | None = None
        self._call, self._over = call, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                self.sent += self._call(self.sent)
        except BaseException as error:
            self.error = error

    def stop(self) -> int:
        self._over.set()
        self._thread.join()
        if self.error is not None:
            raise self.error
        return self.sent


def test_a_service_that_is_killed_under_its_clients_loses_nothing_and_learns_nothing_twice(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a stream, single events, labels that come later, tables and predictions are sent: each is sent again until
    it is answered, and no caller sees an exception."""
    pa = pytest.importorskip("pyarrow")
    monkeypatch.setattr(logstep, "PIECE_EVENTS", 50)
    monkeypatch.setattr(logstep, "TABLE_ROWS", 20)
    port = str(free_port())
    service = start("--port", port)
    kill = threading.Event()
    client = Client(f"http://127.0.0.1:{port}", patience=300.0)

    def stream() -> Iterator[dict[str, Any]]:
        for i in range(BETWEEN * (KILLS + 1)):
            if i and i % BETWEEN == 0:
                kill.set()
            yield {"x": {"stream": i % 7, "b": 1.0}, "y": i % 2, "id": f"stream-{i}"}

    def one(i: int) -> int:
        client.learn({"one": float(i % 5)}, i % 2)
        return 1

    def late(i: int) -> int:
        kept = client.predict({"late": float(i % 5)}, id=f"late-{i}")
        assert kept.kept
        client.label(f"late-{i}", i % 2)
        return 1

    def table(_: int) -> int:
        told = client.learn(pa.table({"table": [0.5] * 60}), [1, 0] * 30)
        assert told.learned + told.duplicates == 60
        return 60

    def ask(_: int) -> int:
        assert len(client.predict([{"one": 1.0}] * 120)) == 120
        return 0

    learns, asks = [Load(one), Load(one), Load(late), Load(table)], Load(ask)
    with ThreadPoolExecutor(1) as pool:
        streamed = pool.submit(client.learn, stream())
        for n in range(KILLS):
            while not kill.wait(0.05):
                assert not streamed.done(), streamed.result()
            kill.clear()
            if n % 2:
                service.stop()
            else:
                service.kill()
            service = start("--port", port, folder=service.folder)
        told = streamed.result()
    sent = sum(load.stop() for load in learns)
    asks.stop()
    assert told.learned + told.duplicates == BETWEEN * (KILLS + 1)
    assert client.model().seq == told.learned + told.duplicates + sent
    state = service.get("/models/default")
    assert state["join"]["waiting"] == 0
    client.close()


def test_many_threads_share_a_client(model: Model) -> None:
    with Client(f"http://127.0.0.1:{model.service.port}", model=model.name) as client, ThreadPoolExecutor(16) as pool:
        seqs = list(pool.map(lambda i: client.learn({"a": float(i % 3)}, i % 2).seq, range(400)))
        assert sorted(seqs) == list(range(1, 401))


def test_a_connection_that_a_restart_closed_is_no_error_even_without_ids(start: Start) -> None:
    port = str(free_port())
    service = start("--port", port)
    with Client(f"http://127.0.0.1:{port}") as client:
        assert client.learn({"a": 1.0}, 1, id=False).seq == 1
        service.stop()
        start("--port", port, folder=service.folder)
        assert client.learn({"a": 1.0}, 1, id=False).seq == 2


# -- scripted replies

Script = list[tuple[int, dict[str, str], dict[str, Any]] | None]
"""Status, headers and body of each reply, in order; None: the connection ends without one. Then all goes well."""
LEARNED = {"model": "default", "seq": 1, "p": 0.5, "loss": 0.7, "duplicate": False}


def problem(title: str, status: int, headers: dict[str, str] | None = None, **members: Any) -> Any:
    kind = title.lower().replace(" ", "-")
    return status, headers or {}, {"type": f"urn:logstep:{kind}", "title": title, "detail": f"{title}.", **members}


class Scripted:
    """A server that replies what it is told to, and the bodies that it got."""

    def __init__(self) -> None:
        self.script: Script = []
        self.got: list[bytes] = []
        scripted = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                scripted.got.append(self.rfile.read(int(self.headers.get("content-length", 0))))
                reply = scripted.script.pop(0) if scripted.script else (200, {}, LEARNED)
                if reply is None:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                body = json.dumps(reply[2]).encode()
                self.send_response(reply[0])
                for name, value in {**reply[1], "content-length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def do_DELETE(self) -> None:
                self.do_POST()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[Scripted]:
    server = Scripted()
    yield server
    server.close()


@pytest.fixture
def client(server: Scripted) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that the client makes, which take no time."""
    made: list[float] = []
    monkeypatch.setattr(time, "sleep", lambda seconds: made.append(seconds) if seconds else None)
    return made


PASSING = [
    problem("Queue full", 503),
    problem("Storage failed", 503),
    problem("Disk full", 507),
    problem("Request timeout", 408),
    problem("Too fast", 429),
    (502, {}, {"a proxy": "says so"}),
    None,
]


@pytest.mark.parametrize("reply", PASSING, ids=lambda reply: reply[2].get("title", "a proxy") if reply else "none")
def test_what_passes_is_sent_again_with_the_same_id(
    server: Scripted, client: Client, pauses: list[float], reply: Any
) -> None:
    server.script = [reply, reply, reply]
    assert client.learn({"a": 1.0}, 1).seq == 1
    assert len(server.got) == 4
    assert len(set(server.got)) == 1
    assert json.loads(server.got[0])["id"]
    assert [pause / (0.1 * 2**n) for n, pause in enumerate(pauses)] == pytest.approx([0.75] * 3, abs=0.25)


def test_the_pause_is_as_long_as_the_service_says(server: Scripted, client: Client, pauses: list[float]) -> None:
    server.script = [problem("Too fast", 429, {"retry-after": "7"}), problem("Not ready", 503, {"retry-after": "1"})]
    client.learn({"a": 1.0}, 1)
    assert pauses == [7.0, 1.0]
    server.script = [problem("Too fast", 429, {"retry-after": "120"})]
    with pytest.raises(Problem, match="Too fast") as refused:
        client.learn({"a": 1.0}, 1)
    assert refused.value.retry_after == 120.0
    assert len(server.got) == 4


def test_pauses_grow_to_a_longest_one_and_patience_ends(
    server: Scripted, client: Client, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: start + sum(pauses))
    server.script = [problem("Queue full", 503)] * 100
    with pytest.raises(Problem, match="Queue full"):
        client.learn({"a": 1.0}, 1)
    assert 50.0 < sum(pauses) <= 60.0
    assert 2.5 <= max(pauses) <= 5.0


@pytest.mark.parametrize(
    ("reply", "again"),
    [
        (problem("Queue full", 503), True),
        (problem("Not ready", 503), True),
        (problem("Too fast", 429), True),
        (problem("Not ready", 503, learned=3), False),
        (problem("Storage failed", 503), False),
        (problem("Disk full", 507), False),
        (problem("Internal error", 500), False),
        ((502, {}, {}), False),
        (None, False),
    ],
)
def test_without_ids_only_what_surely_did_nothing_is_sent_again(
    server: Scripted, client: Client, pauses: list[float], reply: Any, again: bool
) -> None:
    server.script = [reply]
    if again:
        client.learn({"a": 1.0}, 1, id=False)
    else:
        with pytest.raises((NoAnswer, Problem)) as refused:
            client.learn({"a": 1.0}, 1, id=False)
        if reply is None:
            assert "may have been learned. With ids they would be sent again" in str(refused.value)
    assert len(server.got) == 1 + again
    assert "id" not in json.loads(server.got[0])


def test_a_delete_whose_answer_is_lost_is_not_sent_again(server: Scripted, client: Client) -> None:
    server.script = [None]
    with pytest.raises(NoAnswer):
        client.delete()
    assert len(server.got) == 1


@pytest.mark.parametrize(("title", "status"), [("Id conflict", 409), ("Invalid event", 422), ("Internal error", 500)])
def test_what_stays_wrong_is_not_sent_again(server: Scripted, client: Client, title: str, status: int) -> None:
    server.script = [problem(title, status)]
    with pytest.raises(Problem, match=title) as refused:
        client.learn({"a": 1.0}, 1)
    assert (refused.value.status, refused.value.title, len(server.got)) == (status, title, 1)


def test_pieces_that_went_well_are_not_sent_again(
    server: Scripted, client: Client, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logstep, "PIECE_EVENTS", 2)
    many = {"model": "default", "learned": 2, "duplicates": 0, "first_seq": 1, "last_seq": 2, "loss": 0.5}
    server.script = [(200, {}, many), None, (200, {}, {**many, "learned": 1, "duplicates": 1}), (200, {}, many)]
    told = client.learn([({"a": float(i)}, 1) for i in range(6)])
    assert (told.learned, told.duplicates, len(pauses)) == (5, 1, 1)
    assert server.got[1] == server.got[2]
    assert len(set(server.got)) == 3


def test_who_waits_for_a_service_is_told_once(
    caplog: pytest.LogCaptureFixture, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: start + sum(pauses))
    url = f"http://127.0.0.1:{free_port()}"
    with caplog.at_level(logging.WARNING, "logstep"), Client(url) as client, pytest.raises(NoAnswer, match=url):
        client.learn({"a": 1.0}, 1)
    (told,) = caplog.messages
    assert f"no service answers at {url}" in told
    assert "sent again, for at most 60 s" in told


def test_a_certificate_that_is_not_trusted_ends_it_at_once(pauses: list[float]) -> None:
    """Waiting would not make it trusted."""
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with suppress(OSError), server.accept()[0] as connection:
            connection.recv(65_536)
            connection.sendall(b"HTTP/1.1 400 no TLS here\r\n\r\n")

    thread = threading.Thread(target=accept)
    thread.start()
    with server, Client(f"https://127.0.0.1:{server.getsockname()[1]}", verify=ssl.create_default_context()) as client:
        with pytest.raises(NoAnswer, match="SSL"):
            client.models()
        thread.join()
    assert pauses == []


def test_the_first_try_of_a_service_that_recovers_is_answered_when_it_is_ready(shared: Service) -> None:
    assert isinstance(Client(f"http://127.0.0.1:{shared.port}").learn([]), LearnedMany)
