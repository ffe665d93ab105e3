"""The service as a process: killed, its storage broken, or its folder damaged; and started again."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from effort import few
from harness import STOP_SECONDS, Service
from processes import copied, replayed_elsewhere

SPECS: dict[str, dict[str, Any]] = {
    "plain": {"learning_rate": 0.1},
    "l1": {"learning_rate": 0.1, "l1": 0.001},
    "l2": {"learning_rate": 0.1, "l2": 0.01},
    "hashed": {"learning_rate": 0.1, "hash_bits": 4},
    "bias-stays": {"learning_rate": 0.1, "bias_learning_rate": 0},
    "clipped": {"learning_rate": 0.5, "clip": 0.25},
    "steep": {"learning_rate": 1e250},
    "adam": {"rule": "adam", "scale": "standard"},
    "ftrl": {"rule": "ftrl", "l1": 0.1, "class_weights": {"1": 2.0}},
    "slower": {"learning_rate": {"schedule": "inverse_scaling", "learning_rate": 0.5}},
    "auto": {"rule": "auto"},
    "untouched": {},
}


def some_events(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Events that teach something; features come up late, and weights differ."""
    return [
        {
            "x": {"age": (i % 17) / 10, "colour": f"c{i % 7}", f"late-{i // 50}": 1.0, "vip": i % 3 == 0},
            "y": int(i % 17 > 8),
            "weight": 1.0 + (i % 5) / 4,
            "id": f"event-{i}",
        }
        for i in range(start, start + count)
    ]


def shown(service: Service) -> dict[str, Any]:
    """What the service says of each of its models, but for how old its snapshot is."""
    names = [model["model"] for model in service.get("/models")["models"]]
    models = {name: {**service.get(f"/models/{name}"), "curve": service.get(f"/models/{name}/curve")} for name in names}
    for model in models.values():
        del model["snapshot_seq"]
    return models


def assert_replay_agrees(service: Service) -> None:
    """The running service has for every model what its log comes to, replayed by another process."""
    replayed = replayed_elsewhere(service.folder)
    assert replayed == {
        name: {"seq": model["seq"], "sha256": model["sha256"]} for name, model in shown(service).items()
    }


@few(1)
@pytest.mark.parametrize("snapshot_seconds", ["1000", "0.0005"], ids=["from the log alone", "from snapshots"])
def test_many_models_are_the_same_after_kills_and_equal_a_replay_in_another_process(
    tmp_path: Path, snapshot_seconds: str
) -> None:
    folder, flags = tmp_path / "data", ("--snapshot-seconds", snapshot_seconds, "--window", "50")
    before: dict[str, Any] = {}
    for life in range(2):
        with Service(folder, *flags).wait_until_ready() as service:
            if life == 0:
                for name, spec in SPECS.items():
                    assert service.request("PUT", f"/models/{name}", spec)[0] == 201
            else:
                assert shown(service) == before
            for name in ("default", *SPECS):
                if name != "untouched":
                    for start in range(life * 200, life * 200 + 200, 40):
                        service.learn(some_events(40, start), name)
            before = shown(service)
            assert {model["seq"] for model in before.values()} == {0, 200 * (life + 1)}
            service.kill()
    with Service(folder, *flags).wait_until_ready() as service:
        assert shown(service) == before
        assert_replay_agrees(service)
        replies = service.learn(some_events(400), "l1")
        assert {reply["duplicate"] for reply in replies} == {True}
        assert [reply["seq"] for reply in replies] == list(range(1, 401))


def test_a_graceful_stop_loses_nothing_and_exits_with_0(tmp_path: Path) -> None:
    with Service(tmp_path / "data").wait_until_ready() as service:
        service.learn(some_events(300))
        before = shown(service)
        assert service.stop() == 0
    with Service(tmp_path / "data").wait_until_ready() as service:
        assert shown(service) == before
        assert service.stop() == 0


def test_a_kill_while_it_recovers_harms_nothing(tmp_path: Path) -> None:
    with Service(tmp_path / "data", "--snapshot-seconds", "1000").wait_until_ready() as service:
        for start in range(0, 1000, 100):
            service.learn(some_events(100, start))
        before = shown(service)
        service.kill()
    for _ in range(2):
        with Service(tmp_path / "data") as service:
            service.wait_for_port()
            service.kill()
    with Service(tmp_path / "data").wait_until_ready() as service:
        assert shown(service) == before


def test_a_deleted_model_stays_deleted_after_a_kill(tmp_path: Path) -> None:
    with Service(tmp_path / "data").wait_until_ready() as service:
        service.request("PUT", "/models/gone", {})
        service.request("PUT", "/models/again", {"learning_rate": 0.5})
        for name in ("default", "gone", "again"):
            service.learn(some_events(50), name)
        for name in ("default", "gone", "again"):
            assert service.request("DELETE", f"/models/{name}")[0] == 204
        service.request("PUT", "/models/again", {"learning_rate": 0.25})
        service.learn(some_events(7), "again")
        before = shown(service)
        service.kill()
    with Service(tmp_path / "data").wait_until_ready() as service:
        assert shown(service) == before
        assert {name: model["seq"] for name, model in before.items()} == {"default": 0, "again": 7}
        assert_replay_agrees(service)


def test_a_service_whose_log_cannot_grow_says_so_ends_and_recovers_what_it_acknowledged(tmp_path: Path) -> None:
    """No file may grow beyond 300,000 bytes: the write fails as on a broken disk, not as on a full one."""
    acknowledged, status, reply = 0, 200, dict[str, Any]()
    with Service(tmp_path / "data", file_limit=300_000).wait_until_ready() as service:
        while status == 200:
            status, reply = service.request("POST", "/learn", some_events(40, acknowledged))
            acknowledged += 40 * (status == 200)
        assert status == 503
        assert reply["title"] == "Storage failed"
        assert service.process.wait(STOP_SECONDS) == 1
        assert "Writing to the log failed" in service.log
    assert acknowledged > 0
    with Service(tmp_path / "data").wait_until_ready() as service:
        assert service.get("/models/default")["seq"] == acknowledged
        assert_replay_agrees(service)
        replies = service.learn(some_events(acknowledged + 40))
        assert sum(reply["duplicate"] for reply in replies) == acknowledged


def test_a_service_that_cannot_create_a_model_because_its_storage_failed_ends(tmp_path: Path) -> None:
    with Service(tmp_path / "data", file_limit=300_000).wait_until_ready() as service:
        status, number = 201, 0
        while status == 201:
            number += 1
            status, reply = service.request("PUT", f"/models/m{number}", {})
        assert (status, reply["title"]) == (503, "Storage failed")
        assert service.process.wait(STOP_SECONDS) == 1
    with Service(tmp_path / "data").wait_until_ready() as service:
        assert len(service.get("/models")["models"]) == number  # with default


def killed_after(folder: Path, events: int) -> None:
    """Leave a folder whose service was killed after so many events, one a commit."""
    with Service(folder, "--snapshot-seconds", "1000").wait_until_ready() as service:
        for event in some_events(events):
            service.learn([event])
        service.kill()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the lock, which names the last holder, and SQLite's index, which is made anew at each start.

    An empty write-ahead log is as good as none: a read-only connection leaves one.
    """
    found = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    passing = {"lock", "log.db-shm"} | ({"log.db-wal"} if not found.get("log.db-wal") else set())
    return {name: data for name, data in found.items() if name not in passing}


def log_of_a_refused_start(folder: Path) -> str:
    """Start a service that must not start: exit code 1, the log in one line without a trace, and nothing changed."""
    before = contents(folder)
    with Service(folder) as service:
        assert service.process.wait(STOP_SECONDS) == 1
        assert "Traceback" not in service.log
    after = contents(folder)
    assert after.keys() == before.keys()
    assert [name for name in before if after[name] != before[name]] == []
    return service.log


def test_a_service_does_not_start_from_a_log_that_lost_commits_and_leaves_it_as_it_is(tmp_path: Path) -> None:
    killed_after(tmp_path / "data", 30)
    wal = tmp_path / "data" / "log.db-wal"
    damaged = bytearray(wal.read_bytes())
    damaged[len(damaged) // 3] ^= 1
    wal.write_bytes(damaged)
    log = log_of_a_refused_start(tmp_path / "data")
    assert "was acknowledged. Nothing was changed." in log
    assert f"logstep repair {tmp_path / 'data'}" in log


def test_a_service_does_not_start_from_a_damaged_batch_and_names_it(tmp_path: Path) -> None:
    killed_after(tmp_path / "data", 30)
    copy = copied(tmp_path / "data", tmp_path / "copy")
    with closing(sqlite3.connect(copy / "log.db", isolation_level=None)) as db:
        db.execute("UPDATE batches SET payload = CAST(payload || x'00' AS BLOB) WHERE first_seq = 17")
    assert "the events from seq 17 to 17 have a wrong checksum" in log_of_a_refused_start(copy)


def test_a_second_service_on_a_folder_is_refused_and_the_first_named(tmp_path: Path) -> None:
    with Service(tmp_path / "data").wait_until_ready() as first:
        with Service(tmp_path / "data") as second:
            assert second.process.wait(STOP_SECONDS) == 1
            assert f"in use by process {first.process.pid} on " in second.log
        first.learn(some_events(1))
        first.kill()
    with Service(tmp_path / "data").wait_until_ready() as third:
        assert third.get("/models/default")["seq"] == 1
