"""From start to end: recovering, ready, draining, stopped; and what keeps a service from starting."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from effort import from_checks_on
from harness import JSON, LOGSTEP, NDJSON, Service, Start, assert_problem, ndjson
from patience import PATIENCE, eventually

from core import Learner, Spec
from core.batch import Batch
from service.fairness import NICE, background
from service.storage.store import ModelBatch, Store


def assert_not_ready(response: httpx.Response) -> None:
    """That the service asks to be asked again later."""
    assert_problem(response, 503)
    assert int(response.headers["retry-after"]) > 0


def port_is_closed(port: int) -> bool:
    """Nobody is let in: refused, or, just before that, not answered."""
    with socket.socket() as probe:
        probe.settimeout(0.05)
        return probe.connect_ex(("127.0.0.1", port)) != 0


# -- recovering


@contextmanager
def log_held(folder: Path) -> Iterator[None]:
    """Keep a service from reading its log for as long as this lasts (it waits for some seconds)."""
    with closing(sqlite3.connect(folder / "log.db", isolation_level=None)) as db:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("BEGIN EXCLUSIVE")
        yield
        db.execute("ROLLBACK")


def test_while_it_recovers_a_service_is_alive_and_not_ready(start: Start) -> None:
    service = start("--drain-seconds", "5")
    service.model().learn({"x": {"a": 1}, "y": 1})  # and the connection is kept open
    service.signal(signal.SIGINT)  # which does not wait to be turned away from
    assert service.wait(4) == 0

    with log_held(service.folder):
        service = start(folder=service.folder, ready=False)
        service.wait_for_port()
        assert service.get("/livez") == {"status": "alive", "version": version("logstep")}
        assert_not_ready(service.http.get("/readyz"))
        for path, body in (("/learn", '{"x": {}, "y": 1}'), ("/predict", '{"x": {}}')):
            for prefix in ("", "/models/default", "/models/nobody"):
                assert_not_ready(service.http.post(prefix + path, content=body, headers=JSON))
            assert_not_ready(service.http.post(path, content=body + "\n", headers=NDJSON))
        for path in ("/models", "/models/default", "/models/default/weights", "/models/default/crosscheck"):
            assert_not_ready(service.http.get(path))
        assert_not_ready(service.http.delete("/models/default"))
        assert_not_ready(service.http.put("/models/new", content="{}", headers=JSON))
    service.wait_until_ready()
    assert service.get("/readyz") == {"status": "ready"}
    assert service.model().learn({"x": {"a": 1}, "y": 1}).json()["seq"] == 2


def write_long_log(folder: Path, spec: Spec) -> None:
    """A log that takes long enough to replay that a test can look at the service meanwhile."""
    folder.mkdir()
    store, events = Store(folder), 500_000
    model = store.create_model("default", spec.as_dict())
    labels = (np.arange(events) % 2).astype(np.uint8)
    batch = Batch(
        np.zeros(events + 1, np.int64), np.zeros(0, np.int32), np.zeros(0), labels, np.ones(events, np.float64)
    )
    for i in range(8):
        store.commit([ModelBatch(model.key, 1 + i * events, batch, 0, [], None)])
    store.close()


def test_creating_a_model_that_is_just_being_recovered_does_no_harm(start: Start, tmp_path: Path) -> None:
    write_long_log(tmp_path / "long", Spec())
    service = start(folder=tmp_path / "long", ready=False)
    service.wait_for_port()
    asked = 0
    while (response := service.model().create({})).status_code == 503:
        assert_not_ready(response)
        asked += 1
    assert asked > 0, "it was ready too soon to tell"
    assert response.status_code == 200
    assert service.model().state()["seq"] == 4_000_000
    service.kill()


def test_sigterm_while_it_recovers_ends_it_well(start: Start, tmp_path: Path) -> None:
    write_long_log(tmp_path / "long", Spec(rule="auto"))  # which takes several seconds
    service = start(folder=tmp_path / "long", ready=False)
    service.wait_for_port()
    assert service.http.get("/readyz").status_code == 503
    assert service.stop() == 0
    assert "recovered" not in service.log, "it was ready too soon to tell"
    assert json.loads(service.log.splitlines()[-1])["message"] == "stopped"


# -- stopping


def test_while_it_drains_requests_are_served_and_readyz_turns_clients_away(start: Start) -> None:
    service = start("--drain-seconds", "5")
    service.signal(signal.SIGTERM)
    eventually(lambda: service.http.get("/readyz").status_code == 503, "readyz to say 503")
    assert_not_ready(service.http.get("/readyz"))
    assert service.http.get("/livez").status_code == 200
    with service.another_client() as newcomer:
        reply = newcomer.post("/learn", content='{"x": {"a": 1}, "y": 1}', headers=JSON)
    assert reply.json()["seq"] == 1
    for path in ("/livez", "/readyz", "/models/default", "/models/nobody"):
        assert service.http.get(path).headers["connection"] == "close", path
    assert reply.headers["connection"] == "close"
    assert service.model().predict({"x": {}}).json()["seq"] == 1
    assert service.model().learn_lines(ndjson([{"x": {}, "y": 1}] * 3)).json()["learned"] == 3
    service.signal(signal.SIGTERM)  # a second one: do not wait any longer
    assert service.wait(4) == 0


def test_requests_in_flight_are_answered_before_it_ends(start: Start) -> None:
    service = start()
    one, array = b'{"x": {"a": 1}, "y": 1}', json.dumps([{"x": {"b": i}, "y": 0} for i in range(500)]).encode()
    requests = [("/learn", one), ("/learn", array), ("/predict", b'{"x": {"a": 1}}'), ("/models/default", b"{}")] * 8
    with ExitStack() as stack:
        connections = [stack.enter_context(service.connect()) for _ in requests]
        for connection, (path, body) in zip(connections, requests, strict=True):
            method = "PUT" if path.startswith("/models") else "POST"
            connection.send_head(path, method, content_type="application/json", content_length=len(body))
            connection.send(body[: len(body) // 2])
        eventually(lambda: service.http.get("/readyz").status_code == 200, "a reply after the requests began")
        service.signal(signal.SIGTERM)
        eventually(lambda: port_is_closed(service.port), "the service to take no more connections")
        for connection, (_, body) in zip(connections, requests, strict=True):
            connection.send(body[len(body) // 2 :])
        replies = [connection.reply() for connection in connections]
    assert [reply.status for reply in replies] == [200] * len(replies)
    assert service.wait() == 0
    seqs = [reply.json()["seq"] for reply in replies[0::4]] + [one["seq"] for r in replies[1::4] for one in r.json()]
    assert sorted(seqs) == list(range(1, 8 * 501 + 1))

    service = start(folder=service.folder)
    assert service.model().state()["seq"] == 8 * 501


class KeepsConnections(threading.Thread):
    """A client that keeps its connection as long as the service does, and then makes another, until it is refused."""

    def __init__(self, service: Service, number: int) -> None:
        super().__init__()
        self._connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE)
        self._number = number
        self.learned: dict[str, int] = {}
        self.statuses: Counter[int] = Counter()
        self.connections = 0
        self.broken: list[Exception] = []

    def run(self) -> None:
        for i in itertools.count():
            if self._connection.sock is None:
                try:
                    self._connection.connect()
                except ConnectionRefusedError:
                    return
                self.connections += 1
            try:
                self._learn(f"{self._number}-{i}")
            except (OSError, http.client.HTTPException) as error:
                self.broken.append(error)
                self._connection.close()

    def _learn(self, id_: str) -> None:
        self._connection.request("POST", "/learn", json.dumps({"x": {"a": 1}, "y": 1, "id": id_}), JSON)
        response = self._connection.getresponse()
        body = response.read()
        self.statuses[response.status] += 1
        if response.status == 200:
            self.learned[id_] = json.loads(body)["seq"]


@pytest.mark.parametrize("drain_seconds", ["0", "0.5"])
def test_a_stop_under_load_breaks_no_connection_and_loses_nothing(start: Start, drain_seconds: str) -> None:
    service = start("--drain-seconds", drain_seconds)
    clients = [KeepsConnections(service, number) for number in range(32)]
    for client in clients:
        client.start()
    eventually(lambda: all(client.learned for client in clients), "each client to learn")
    assert service.stop() == 0
    for client in clients:
        client.join(PATIENCE)
    assert [error for client in clients for error in client.broken] == []
    assert {status for client in clients for status in client.statuses} <= {200, 503}
    if float(drain_seconds):  # each reply says that the connection closes, and the next is made
        assert sum(client.connections for client in clients) > 2 * len(clients)
    learned = {id_: seq for client in clients for id_, seq in client.learned.items()}
    assert sorted(learned.values()) == list(range(1, len(learned) + 1))

    model = start(folder=service.folder).model()
    assert model.state()["seq"] == len(learned)
    again = model.learn([{"x": {"a": 1}, "y": 1, "id": id_} for id_ in learned]).json()
    assert [(one["seq"], one["duplicate"]) for one in again] == [(seq, True) for seq in learned.values()]


def test_a_time_for_requests_in_flight_below_a_second_is_kept(start: Start) -> None:
    service, body = start("--shutdown-seconds", "0.9"), b'{"x": {"a": 1}, "y": 1}'
    with service.connect() as connection:
        connection.send_head("/learn", content_type="application/json", content_length=len(body))
        connection.send(body[:5])
        eventually(lambda: service.http.get("/readyz").status_code == 200, "a reply after the request began")
        service.signal(signal.SIGTERM)
        eventually(lambda: port_is_closed(service.port), "the service to take no more connections")
        time.sleep(0.1)  # well within that time
        connection.send(body[5:])
        reply = connection.reply()
    assert reply.status == 200, reply.text
    assert service.wait() == 0


def test_it_leaves_a_snapshot_and_the_same_state(start: Start) -> None:
    service, count = start("--snapshot-seconds", "1000"), 50_000
    line = json.dumps({"x": [0.5, -2, 0.25] + [1] * 60, "y": 1}) + "\n"
    assert service.model().learn_lines(line.encode() * count).json()["learned"] == count
    before = service.model().state()
    assert before["snapshot_seq"] == 0
    assert service.stop() == 0

    service = start(folder=service.folder)
    assert service.model().state() == {**before, "snapshot_seq": count}


def test_a_restart_from_a_snapshot_and_what_came_after_gives_the_same_state(start: Start) -> None:
    service = start("--snapshot-seconds", "0.0001")
    learner = Learner(Spec(learning_rate=0.2, l1=0.001))
    model = service.model("held")
    model.create({"learning_rate": 0.2, "l1": 0.001})
    for i in range(60):
        event: Any = {"x": {"a": i * 0.7, f"f{i % 6}": True, "t": "uvw"[i % 3]}, "y": i % 2, "weight": 1 + i % 4}
        model.learn(event)
        learner.learn_one(event["x"], event["y"], event["weight"])
    eventually(lambda: model.state()["snapshot_seq"] > 0, "a snapshot")
    before = model.state()
    assert before["sha256"] == learner.sha256()
    service.kill()

    model = start(folder=service.folder).model("held")
    after = model.state()
    assert 0 < after["snapshot_seq"] <= 60
    assert {**after, "snapshot_seq": 0} == {**before, "snapshot_seq": 0}
    learner.learn_one({"a": 1, "f1": 1}, 1)  # what the L1 penalty has taken so far is remembered too
    model.learn({"x": {"a": 1, "f1": 1}, "y": 1})
    assert model.state()["sha256"] == learner.sha256()


def send_until_answered(service: Service, lines: list[bytes], stop_at: int) -> tuple[Any, int]:
    """Send lines as a stream until the service answers, with SIGTERM after `stop_at`: the reply, and the lines sent."""
    sent = 0
    with service.connect() as connection:
        connection.send_head("/learn", content_type="application/x-ndjson", transfer_encoding="chunked")
        while True:
            assert sent < len(lines), "the stream was not ended"
            connection.socket.settimeout(30)
            connection.send_chunk(b"".join(lines[sent : sent + 500]))
            sent += 500
            if sent == stop_at:
                service.signal(signal.SIGTERM)
            connection.socket.settimeout(0.02)
            try:
                connection.socket.recv(1, socket.MSG_PEEK)
            except TimeoutError:
                continue
            connection.socket.settimeout(30)
            return connection.reply(), sent


@from_checks_on
def test_a_stream_is_ended_between_two_pieces_and_can_be_sent_again(start: Start) -> None:
    service = start("--stream-events", "500")
    events: list[Any] = [{"x": {"a": i % 10, "b": "xyz"[i % 3]}, "y": i % 2, "id": f"e{i}"} for i in range(20_000)]
    lines = ndjson(events).splitlines(keepends=True)
    reply, sent = send_until_answered(service, lines, stop_at=2_000)
    problem = assert_problem(reply, 503)
    assert 0 < problem["learned"] <= sent
    assert problem["last_seq"] == problem["learned"]
    assert int(reply.headers["retry-after"]) > 0
    assert service.wait() == 0

    model = start(folder=service.folder).model()
    assert model.state()["seq"] == problem["learned"]
    resent = model.learn_lines(ndjson(events)).json()
    assert (resent["learned"], resent["duplicates"]) == (20_000 - problem["learned"], problem["learned"])
    learner = Learner()
    learner.learn_many([event["x"] for event in events], [event["y"] for event in events])
    assert model.state()["sha256"] == learner.sha256()


def test_a_stream_that_has_gone_silent_does_not_keep_it_from_ending(start: Start) -> None:
    service = start("--shutdown-seconds", "1")
    with service.connect() as connection:
        connection.send_head("/learn", content_type="application/x-ndjson", transfer_encoding="chunked")
        connection.send_chunk(ndjson([{"x": {"a": 1}, "y": 1}] * 1_000))
        eventually(lambda: service.model().state()["seq"] == 1_000, "the lines to be learned")
        service.signal(signal.SIGTERM)
        problem = assert_problem(connection.reply(), 503)
    assert (problem["learned"], problem["last_seq"]) == (1_000, 1_000)
    assert service.wait() == 0


def test_a_crosscheck_under_way_does_not_outlive_the_service(start: Start) -> None:
    service = start("--shutdown-seconds", "1")
    service.model().learn_lines(b'{"x":[1],"y":1}\n' * 100_000)
    with service.connect() as connection:
        connection.send_head("/models/default/crosscheck", "GET")
        (child,) = eventually(service.children, "the cross-check to begin")
        service.signal(signal.SIGTERM)
        assert service.wait() == 0

    def has_ended() -> bool:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            return "\nState:\tZ" in Path(f"/proc/{child}/status").read_text()
        return True

    try:
        # It looks whether its parent lives once it has loaded what it needs, which it may just have begun.
        eventually(has_ended, "the cross-check to end", seconds=10)
    finally:
        if Path(f"/proc/{child}").exists():
            os.kill(child, signal.SIGKILL)


# -- not starting


def run(*arguments: str, env: dict[str, str] | None = None, seconds: float = PATIENCE) -> tuple[int, str]:
    """`logstep serve` with these arguments, which is expected to end by itself: exit code and output."""
    done = subprocess.run(
        [LOGSTEP, "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=seconds,
        env=os.environ | (env or {}),
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def test_a_second_service_on_a_folder_is_told_who_has_it(start: Start) -> None:
    service = start()
    before = service.model().learn({"x": {"a": 1}, "y": 1}).json()["seq"]
    began = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    code, output = run("--data", str(service.folder), "--port", "0")
    assert code == 1
    assert f"process {service.process.pid}" in output
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - began < 2, "seconds of the processor"
    assert service.model().learn({"x": {"a": 1}, "y": 1}).json()["seq"] == before + 1


@from_checks_on
def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, output = run("--data", str(tmp_path / "data"), "--port", str(port))
    assert code == 1
    assert f"port {port}" in output
    assert "--port" in output


def test_a_folder_that_cannot_be_one_is_told(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("not a folder")
    code, output = run("--data", str(file), "--port", "0")
    assert code == 1
    assert str(file) in output
    assert file.read_text() == "not a folder"


WRONG_SETTINGS = {
    "--port abc": "port",
    "--port 65536": "port",
    "--max-body-bytes 1": "max-body-bytes",
    "--drain-seconds 9": "drain-seconds",
    "--snapshot-seconds nan": "snapshot-seconds",
    "--log-level loud": "log-level",
    "--no-such-setting 1": "no-such-setting",
    "LOGSTEP_PORT=abc": "LOGSTEP_PORT",
}


@from_checks_on
def test_wrong_settings_are_told_by_name(tmp_path: Path) -> None:
    """All at once, because each start costs a part of a second."""
    running = {}
    for wrong in WRONG_SETTINGS:
        environment = dict([wrong.split("=")]) if "=" in wrong else {}
        flags = [] if environment else wrong.split()
        running[wrong] = subprocess.Popen(
            [LOGSTEP, "serve", "--data", str(tmp_path / "data"), "--port", "0", *flags][: 4 if environment else None],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | environment,
        )
    found = {}
    for wrong, process in running.items():
        try:
            output, _ = process.communicate(timeout=PATIENCE)
            found[wrong] = (process.returncode, WRONG_SETTINGS[wrong] in output and "Traceback" not in output)
        except subprocess.TimeoutExpired:
            found[wrong] = ("started", False)
        finally:
            process.kill()
            process.communicate()
    assert found == dict.fromkeys(WRONG_SETTINGS, (2, True))


# -- while it serves


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
def test_threads_that_read_bodies_stand_back_for_those_that_predict_and_write_the_log(start: Start) -> None:
    service = start()
    assert service.model().learn_lines(ndjson([{"x": {"a": 1}, "y": 1}])).status_code == 200
    process = service.process.pid
    threads = [int(task.name) for task in Path(f"/proc/{process}/task").iterdir()]
    nice = {thread: os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}
    assert nice[process] == os.getpriority(os.PRIO_PROCESS, 0)
    behind = [thread for thread, value in nice.items() if value == nice[process] + NICE]
    assert len(behind) == 1


def test_threads_work_where_priorities_may_not_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: int) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "nice", refused)
    with background("test") as threads:
        assert threads.submit(int, "7").result(timeout=5) == 7
