"""Disks that fail, fill up or are slow, kills at each system call, and many clients at once: nothing acknowledged is
lost, nothing is learned twice.

The oracle: each client keeps a journal of what it sent and what was acknowledged. After recovery every acknowledged
event is in the log once, at its seq, every other one at most once, and the weights are those of an independent replay.
"""

from __future__ import annotations

import functools
import http.client
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPMessage
from pathlib import Path
from typing import Any

import pytest
from disk import fill, needs_strace, small_disk
from effort import amount, few, from_checks_on, only_long
from harness import LOST, Service, exchange, exchange_whole, faketime, told_the_time_by
from patience import PATIENCE, eventually
from processes import logged_events, replayed_elsewhere
from river import linear_model

ANY = "pwrite64,fdatasync,fsync,rename,unlink,ftruncate"
"""What a service does to the files of its folder."""


@dataclass
class Journal:
    """What was sent and what was acknowledged: seq by value, by which an event is told from all others."""

    sent: list[int] = field(default_factory=list)
    acknowledged: dict[int, int] = field(default_factory=dict)
    refused: list[tuple[int, Any]] = field(default_factory=list)
    refusals: list[HTTPMessage] = field(default_factory=list)
    """Their headers."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def learn(self, connection: http.client.HTTPConnection) -> int:
        """Send one event: the status."""
        (value,) = values = self._next(1)
        event = {"x": {"value": value, "one": 1}, "y": value % 2}
        status, reply, headers = exchange_whole(connection, "POST", "/learn", event)
        return self._note(values, status, [reply], headers)

    def learn_array(self, connection: http.client.HTTPConnection, events: int, **more: float) -> int:
        """Send so many at once: the status."""
        values = self._next(events)
        array = [{"x": {"value": value, **more}, "y": value % 2} for value in values]
        status, replies, headers = exchange_whole(connection, "POST", "/learn", array)
        return self._note(values, status, replies if status == 200 else [replies], headers)

    def _next(self, events: int) -> list[int]:
        with self.lock:
            values = [len(self.sent) + i for i in range(1, events + 1)]
            self.sent += values
        return values

    def _note(self, values: list[int], status: int, replies: list[Any], headers: HTTPMessage) -> int:
        with self.lock:
            if status == 200:
                self.acknowledged.update(zip(values, (reply["seq"] for reply in replies), strict=True))
            else:
                self.refused.append((status, replies[0]))
                self.refusals.append(headers)
        return status

    def learn_until_lost(self, service: Service, events: int) -> bool:
        """Send so many, one after the other; whether the service lived to answer them all."""
        with connected(service) as connection:
            try:
                return all(self.learn(connection) for _ in range(events))
            except LOST:
                return False

    def check(self, folder: Path) -> None:
        """Start the service again, and hold what it has against the journal."""
        with Service(folder).wait_until_ready() as service:
            state = service.get("/models/default")
            assert service.learn([{"x": {"value": 0.5}, "y": 1}])[0]["seq"] == state["seq"] + 1  # it goes on
            after = service.get("/models/default")
        logged = [x["value"] for x, _, _ in logged_events(folder)][:-1]
        assert state["seq"] == len(logged)
        assert len(set(logged)) == len(logged)
        assert set(logged) <= set(self.sent)
        assert {value: logged[seq - 1] for value, seq in self.acknowledged.items()} == {
            value: value for value in self.acknowledged
        }
        assert replayed_elsewhere(folder)["default"] == {"seq": len(logged) + 1, "sha256": after["sha256"]}


@contextmanager
def connected(service: Service) -> Iterator[http.client.HTTPConnection]:
    """A connection, closed at the end."""
    connection = service.client()
    try:
        yield connection
    finally:
        connection.close()


def injecting(
    calls: str, what: str, when: str, log: Path, only: Path | None = None, inject: str | None = None
) -> list[str]:
    """How to trace a service so that something happens at some of its system calls, perhaps on one file only.

    `log` has all of the `calls`; it happens at those named in `inject`, or at any of them.
    """
    path = [] if only is None else ["-P", str(only)]
    return [
        "strace",
        "-f",
        "-o",
        str(log),
        *path,
        "-e",
        f"trace={calls}",
        "-e",
        f"inject={inject or calls}:{what}:when={when}",
    ]


# -- killed at a system call


def killed_at(call: str, number: int, folder: Path, life: str) -> bool:
    """Kill a service just before the so manieth call of a kind of one of its threads, and check; whether it came so
    far. "Just after" a call is before the next one.

    life: in its `first` it begins with an empty folder, in its `second` it recovers from a kill. In both it learns,
    writes snapshots and stops.
    """
    journal = Journal()
    flags = ("--snapshot-seconds", "0.0001")
    if life == "second":
        with Service(folder, *flags).wait_until_ready() as service:
            assert journal.learn_until_lost(service, 30)
    tracing = injecting(call, "signal=KILL", str(number), folder.with_name("trace"))
    with Service(folder, *flags, tracing=tracing) as service:
        lived = ready(service) and journal.learn_until_lost(service, 30 if life == "first" else 3)
        killed = not lived or service.stop() != 0
        if killed:
            assert service.process.wait(PATIENCE) == -signal.SIGKILL, service.log
    journal.check(folder)
    return killed


def ready(service: Service) -> bool:
    """Whether it lived until it was ready."""
    try:
        service.wait_until_ready()
    except AssertionError:
        return False
    return True


KILLS = [
    ("first", "pwrite64", 2), ("first", "pwrite64", 30), ("first", "pwrite64", 90),
    ("first", "fdatasync", 1), ("first", "fdatasync", 9), ("first", "fsync", 2), ("first", "rename", 1),
    ("first", "unlink", 1), ("second", "pwrite64", 4), ("second", "fsync", 1),
]  # fmt: skip


@needs_strace()
@pytest.mark.parametrize(("life", "call", "number"), KILLS)
@few(2)
def test_killed_at_a_system_call_nothing_acknowledged_is_lost(
    tmp_path: Path, life: str, call: str, number: int
) -> None:
    assert killed_at(call, number, tmp_path / "data", life)


@only_long
@needs_strace()
@pytest.mark.parametrize("life", ["first", "second"])
@pytest.mark.parametrize("call", ANY.split(","))
def test_killed_at_each_system_call_nothing_acknowledged_is_lost(tmp_path: Path, call: str, life: str) -> None:
    number = 1
    while killed_at(call, number, tmp_path / f"data-{number}", life):
        number += 1
    print(f"{number - 1} kills, one at each {call} of its {life} life")


# -- disks that fail


@needs_strace()
@few(2)
@pytest.mark.parametrize(("calls", "first"), [("pwrite64", 40), ("fdatasync", 8)])
@pytest.mark.parametrize("when", ["{}", "{}+"], ids=["once", "for good"])
def test_an_error_on_write_or_sync_acknowledges_nothing_and_is_not_tried_again(
    tmp_path: Path, calls: str, first: int, when: str
) -> None:
    folder, trace = tmp_path / "data", tmp_path / "trace"
    journal = Journal()
    wal = folder / "log.db-wal"
    tracing = injecting("pwrite64,fdatasync", "error=EIO", when.format(first), trace, wal, inject=calls)
    with Service(folder, tracing=tracing).wait_until_ready() as service, connected(service) as connection:
        while (status := journal.learn(connection)) == 200:
            assert len(journal.sent) < 100, "the error never came"
        assert status == 503
        assert journal.refused[0][1]["title"] == "Storage failed"
        assert service.process.wait(PATIENCE) == 1
        assert "Writing to the log failed" in service.log
    after = trace.read_text().partition("(INJECTED)")[2]
    assert after, "nothing was injected"
    assert "pwrite64(" not in after
    assert "fdatasync(" not in after
    journal.check(folder)


@needs_strace()
@pytest.mark.parametrize(
    ("call", "when"),
    [
        ("pwrite64", "1+"),
        pytest.param("fdatasync", "1", marks=only_long),
        pytest.param("pwrite64", "1", marks=only_long),
        pytest.param("fdatasync", "1+", marks=only_long),
    ],
)
def test_an_error_while_the_log_is_copied_to_the_database_loses_nothing(tmp_path: Path, call: str, when: str) -> None:
    """All is in the write-ahead log. If it happens again and again the service ends, before that log is much longer."""
    folder = tmp_path / "data"
    journal = Journal()
    with Service(folder).wait_until_ready() as service, connected(service) as connection:
        assert journal.learn(connection) == 200
        assert service.stop() == 0
    tracing = injecting(call, "error=EIO", when, tmp_path / "trace", folder / "log.db")
    with Service(folder, tracing=tracing).wait_until_ready() as service, connected(service) as connection:
        more = {f"f{i}": i / 7 for i in range(20)}
        statuses = [200]
        while statuses[-1] == 200 and len(statuses) < 20:
            statuses.append(journal.learn_array(connection, 4_000, **more))
        assert (folder / "log.db-wal").stat().st_size < 10 * 2**20
        if when == "1":
            assert set(statuses) == {200}
            assert service.stop() == 0
        else:
            assert statuses[-1] == 503
            assert journal.refused[0][1]["title"] == "Storage failed"
            assert service.process.wait(PATIENCE) == 1
    assert "(INJECTED)" in (tmp_path / "trace").read_text()
    journal.check(folder)


def test_a_full_disk_refuses_to_learn_and_goes_on_by_itself_when_there_is_room_again(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        folder, filler = disk / "data", disk / "filler"
        journal = Journal()
        with Service(folder).wait_until_ready() as service, connected(service) as connection:
            assert journal.learn(connection) == 200
            fill(filler)
            while (status := journal.learn(connection)) == 200:  # what room the write-ahead log still has
                assert len(journal.sent) < 1_000
            assert status == 507
            assert "The disk is full" in journal.refused[0][1]["detail"]
            seq = len(journal.acknowledged)
            status, reply = exchange(connection, "POST", "/predict", {"x": {"one": 1}})
            assert (status, reply["seq"]) == (200, seq)
            filler.unlink()
            assert journal.learn(connection) == 200
            assert journal.acknowledged[len(journal.sent)] == seq + 1
        journal.check(folder)


@from_checks_on
@needs_strace()
def test_a_disk_that_syncs_slowly_bounds_the_queue_and_stops_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    journal = Journal()
    trace = tmp_path / "trace"  # it has a line for each sync that has ended
    slow = injecting("fdatasync", "delay_enter=500000", "1+", trace, folder / "log.db-wal")
    with Service(folder, "--queue-events", "20", tracing=slow).wait_until_ready() as service:
        end = time.monotonic() + 3

        def run() -> None:
            with connected(service) as connection:
                while time.monotonic() < end:
                    if journal.learn(connection) != 200:
                        time.sleep(0.05)

        threads = [threading.Thread(target=run) for _ in range(60)]
        for thread in threads:
            thread.start()
        answered_meanwhile = []
        """Whether no sync ended between a request and its answer."""
        while time.monotonic() < end:
            for method, path, body in (("GET", "/livez", None), ("POST", "/predict", {"x": {"one": 1}})):
                before = trace.read_bytes().count(b"\n")
                assert service.request(method, path, body)[0] == 200
                answered_meanwhile.append(trace.read_bytes().count(b"\n") == before)
            time.sleep(0.05)
        for thread in threads:
            thread.join(60)
        assert trace.read_bytes().count(b"\n") > 3
        assert sum(answered_meanwhile) > len(answered_meanwhile) / 2  # who waits for a sync sees it end
        assert {status for status, _ in journal.refused} == {503}
        assert {reply["title"] for _, reply in journal.refused} == {"Queue full"}
        assert {headers["Retry-After"] for headers in journal.refusals} == {"1"}
        assert len(journal.acknowledged) > 20
    journal.check(folder)


# -- many at once


def at_once(service: Service, bodies: Sequence[tuple[str, Any]]) -> list[tuple[int, Any]]:
    """Send each body on a connection of its own, all at the same time: the replies."""
    replies: list[tuple[int, Any]] = [(0, None)] * len(bodies)
    barrier = threading.Barrier(len(bodies))

    def run(i: int) -> None:
        with connected(service) as connection:
            connection.connect()
            barrier.wait(60)
            replies[i] = exchange(connection, "POST", *bodies[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return replies


def test_the_same_id_from_64_connections_at_once_is_learned_once(tmp_path: Path) -> None:
    with Service(tmp_path / "data").wait_until_ready() as service:
        for number in range(5):
            event = {"x": {"a": 1.0}, "y": 1, "id": f"same-{number}"}
            replies = at_once(service, [("/learn", event)] * 64)
            assert [status for status, _ in replies] == [200] * 64
            assert {reply["seq"] for _, reply in replies} == {number + 1}
            assert sum(not reply["duplicate"] for _, reply in replies) == 1
    assert len(logged_events(tmp_path / "data")) == 5


def test_the_same_id_with_other_features_from_64_connections_is_learned_once_and_refused_to_the_others(
    tmp_path: Path,
) -> None:
    with Service(tmp_path / "data").wait_until_ready() as service:
        replies = at_once(service, [("/learn", {"x": {"a": float(i)}, "y": 1, "id": "one"}) for i in range(64)])
        assert sorted(status for status, _ in replies) == [200] + [409] * 63
    assert len(logged_events(tmp_path / "data")) == 1


def many_writers(folder: Path, events: int) -> None:
    """32 clients, each with so many events in arrays of 50: the weights are those of their order in the log."""
    with Service(folder, "--snapshot-seconds", "0.01").wait_until_ready() as service:

        def run(writer: int) -> None:
            with connected(service) as connection:
                for start in range(0, events, 50):
                    array = [
                        {"x": {f"w{writer}": 1.0, "n": (i % 13) / 7, "m": -(i % 5) / 3}, "y": (i + writer) % 2}
                        for i in range(start, min(start + 50, events))
                    ]
                    status, reply = exchange(connection, "POST", "/learn", array)
                    assert status == 200, reply

        threads = [threading.Thread(target=run, args=(writer,)) for writer in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(600)
        state = service.get("/models/default/weights")
    assert state["seq"] == 32 * events
    theirs = linear_model.LogisticRegression()
    for x, y, _ in logged_events(folder):
        theirs.learn_one(x, bool(y))
    assert state["weights"] == dict(theirs.weights)  # equal floats: 0 ULP
    assert state["bias"] == theirs.intercept
    assert replayed_elsewhere(folder)["default"] == {"seq": 32 * events, "sha256": state["sha256"]}


def test_32_writers_leave_the_weights_of_a_replay_in_the_order_of_seq(tmp_path: Path) -> None:
    many_writers(tmp_path / "data", amount(quick=100, checks=300, long=10_000))


def test_sigterm_under_load_answers_what_it_took_and_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    journal = Journal()
    with Service(folder).wait_until_ready() as service:
        threads = [threading.Thread(target=journal.learn_until_lost, args=(service, 100_000)) for _ in range(16)]
        for thread in threads:
            thread.start()
        eventually(lambda: len(journal.acknowledged) > 100, "some to be learned")
        assert service.stop() == 0
        for thread in threads:
            thread.join(60)
    assert {status for status, _ in journal.refused} <= {503}
    journal.check(folder)


def begun(service: Service) -> bool:
    return "logstep serves" in service.log


def kills_while_it_recovers(folder: Path, kills: int) -> None:
    """Each at another moment of a recovery that takes long."""
    journal, arrays = Journal(), amount(quick=2, checks=5, long=5)
    events = [{"x": {f"f{j}": (i * j) % 7 / 7 for j in range(20)}, "y": i % 2} for i in range(4_000)]
    with Service(folder, "--snapshot-seconds", "1000").wait_until_ready() as service:
        assert service.request("PUT", "/models/long", {"rule": "auto"})[0] == 201
        for _ in range(arrays):
            service.learn(events, "long")
        assert journal.learn_until_lost(service, 200)
    with Service(folder).wait_until_ready() as service:
        takes = float(service.log.partition(" recovered in ")[2].split()[0])
        state = service.get("/models/long")
    recovering = 0
    for i in range(kills):
        with Service(folder) as starts:
            eventually(functools.partial(begun, starts), "it to begin")
            time.sleep(takes * i / kills)
            starts.kill()
            recovering += "recovered in" not in starts.log
    assert recovering >= kills // 2, "few of the kills came while it recovered"
    journal.check(folder)
    assert replayed_elsewhere(folder)["long"] == {"seq": 4_000 * arrays, "sha256": state["sha256"]}
    print(f"{recovering} of {kills} kills came while it recovered")


@from_checks_on
def test_kills_while_it_recovers_from_a_kill_change_nothing(tmp_path: Path) -> None:
    kills_while_it_recovers(tmp_path / "data", amount(quick=2, checks=3, long=100))


# -- the clock


@from_checks_on
@few(1)
@pytest.mark.skipif(faketime() is None, reason="needs libfaketime (Debian: apt-get install faketime)")
@pytest.mark.parametrize("years", [10, -10])
def test_a_clock_that_jumps_by_ten_years_loses_nothing(tmp_path: Path, years: int) -> None:
    """While it runs, and across a kill; what waits for its label is dropped when the clock says that it is late."""
    folder, clock = tmp_path / "data", tmp_path / "clock"
    told = told_the_time_by(clock)
    flags = ("--keep-events", "30d", "--keep-min", "1000")
    journal, events = Journal(), amount(quick=20, checks=40, long=100)
    with Service(folder, *flags, told=told).wait_until_ready() as service:
        assert service.request("POST", "/predict", {"x": {"one": 1}, "id": "waits"})[0] == 200
        assert journal.learn_until_lost(service, events)
        clock.write_text(f"{years * 365:+d}d")
        assert journal.learn_until_lost(service, events)
        if years > 0:  # it looks at the clock now and then
            eventually(lambda: not service.get("/models/default")["join"]["waiting"], "what is late to be dropped")
        assert service.request("GET", "/readyz")[0] == 200
        status, reply = service.request("POST", "/learn", {"id": "waits", "y": 1})
        if years > 0:
            assert (status, reply["title"]) == (404, "Dropped id")
        else:
            assert (status, reply["seq"]) == (200, 2 * events + 1)
        service.kill()
    clock.write_text("+0d")
    with Service(folder, *flags, told=told).wait_until_ready() as service:
        assert service.get("/models/default")["seq"] == 2 * events + (years < 0)
        service.learn([{"x": {"one": 1}, "y": 1}])
        state = service.get("/models/default")
    logged = [x.get("value") for x, _, _ in logged_events(folder)]
    assert logged[: 2 * events] == journal.sent
    assert {value: logged[seq - 1] for value, seq in journal.acknowledged.items()} == {v: v for v in journal.sent}
    assert replayed_elsewhere(folder)["default"] == {"seq": len(logged), "sha256": state["sha256"]}
    with closing(sqlite3.connect(folder / "log.db")) as db:
        ((first, last),) = db.execute("SELECT min(written_at), max(written_at) FROM batches")
    assert last - first > 9.9 * 365 * 86_400, "the clock did not jump"
