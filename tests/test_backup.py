"""Backups: whole while the service learns, none after a kill or on a full disk, and served again after a restore."""

from __future__ import annotations

import io
import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from disk import needs_strace
from effort import amount, few, from_checks_on
from forked import CONTEXT
from harness import LOGSTEP, Service, exchange
from patience import PATIENCE, eventually
from processes import copied, logged_events, replayed_elsewhere

from core import Learner, Spec
from service import failures
from service.commands import backup as backups
from service.commands import cli
from service.commands.inspect import examine
from service.storage.folder import FolderLock, backed_up_at
from service.storage.schema import PAGE_BYTES
from service.storage.store import Store
from service.storage.wal import read_mark

CLIENTS = 4
SLOWEST_SECONDS = 2.0
"""A learn must not wait longer for its reply while a backup is made. Usually it is 0.02."""


class Said(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    output: str
    error: str


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str | Path) -> Said:
        code = cli.main([*map(str, arguments)])
        return Said(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as kill -9 leaves it: 300 events with ids in as many commits, snapshots, a prediction that waits."""
    folder = tmp_path_factory.mktemp("example") / "data"
    with Service(folder, "--snapshot-seconds", "0.0004").wait_until_ready() as service:
        connection = service.client()
        for i in range(300):
            event = {"x": {"age": i % 17, f"f{i // 10}": 1}, "y": i % 2, "id": f"e{i}"}
            assert exchange(connection, "POST", "/learn", event)[0] == 200
        assert exchange(connection, "POST", "/predict", {"x": {"age": 3}, "id": "waits"})[0] == 200
        connection.close()
        service.kill()
    assert len(examine(folder).models[0].snapshots) == 2
    return folder


@pytest.fixture
def folder(example: Path, tmp_path: Path) -> Path:
    return copied(example, tmp_path / "data")


def sql(folder: Path, statement: str) -> None:
    """Meddle with a closed log."""
    with closing(sqlite3.connect(folder / "log.db", isolation_level=None)) as db:
        db.execute(statement).fetchall()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- while the service learns


class Client(threading.Thread):
    """Sends single events as fast as they are answered, and knows which were acknowledged, and how long that took."""

    def __init__(self, service: Service, number: int) -> None:
        super().__init__()
        self.service, self.number = service, number
        self.stop = threading.Event()
        self.acknowledged: list[str] = []
        self.waits: list[tuple[float, float]] = []

    def run(self) -> None:
        connection = self.service.client()
        while not self.stop.is_set():
            id_ = f"{self.number}-{len(self.acknowledged)}"
            begun = time.monotonic()
            event = {"x": {"value": begun % 1, f"client-{self.number}": 1}, "y": int(begun * 1e4) % 2, "id": id_}
            assert exchange(connection, "POST", "/learn", event)[0] == 200
            self.waits.append((begun, time.monotonic() - begun))
            self.acknowledged.append(id_)
        connection.close()


def backup_while_learning(service: Service, out: Path) -> tuple[list[str], list[float]]:
    """Make a backup while clients learn: the ids acknowledged before it began, and how long learns took meanwhile."""
    clients = [Client(service, number) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        eventually(lambda: all(len(client.acknowledged) > 10 for client in clients), "all of them to learn")
        before, begun = [id_ for client in clients for id_ in client.acknowledged], time.monotonic()
        command = [str(Path(sys.executable).with_name("logstep")), "backup", str(service.folder), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        ended = time.monotonic()
    finally:
        for client in clients:
            client.stop.set()
            client.join()
    assert (done.returncode, done.stderr) == (0, "")
    waits = [seconds for client in clients for start, seconds in client.waits if begun <= start <= ended]
    assert len(before) > CLIENTS
    return before, waits


@from_checks_on
def test_a_backup_of_a_service_that_learns_has_all_it_acknowledged_before_and_holds_nothing_up(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Service(tmp_path / "data", "--snapshot-seconds", "0.01").wait_until_ready() as service:
        service.learn([{"x": {f"f{i % 50}": i / 7}, "y": i % 2} for i in range(5000)])
        service.request("POST", "/predict", {"x": {"f1": 3}, "id": "waits"})
        before, waits = backup_while_learning(service, out)
        assert max(waits) < SLOWEST_SECONDS
        assert len(waits) > 20 * CLIENTS
        seq = service.get("/models/default")["seq"]
        service.kill()
    assert files(out) == ["last-commit", "log.db"]
    assert examine(out).wrong == []
    copy = replayed_elsewhere(out)["default"]
    assert len(before) + 5000 <= copy["seq"] <= seq
    assert logged_events(out) == logged_events(tmp_path / "data")[: copy["seq"]]
    with Service(out).wait_until_ready() as served:
        model = served.get("/models/default")
        assert (model["seq"], model["sha256"]) == (copy["seq"], copy["sha256"])
        assert model["join"]["waiting"] == 1
        again = served.request("POST", "/learn", {"id": "waits", "y": 1})
        assert (again[0], again[1]["seq"]) == (200, copy["seq"] + 1)


# -- there and back


def test_what_was_restored_serves_and_ids_and_waiting_predictions_went_along(
    folder: Path, tmp_path: Path, call: Any
) -> None:
    out, restored = tmp_path / "out", tmp_path / "restored"
    said = call("backup", folder, out)
    assert (said.code, said.error) == (0, "")
    assert said.output.startswith("copied 1 model(s), 300 event(s), ")
    assert said.output.endswith(f" s to {out}\n")
    said = call("restore", out, restored)
    assert (said.code, said.error) == (0, "")
    assert said.output.startswith("restored 1 model(s), 300 event(s), ")
    assert files(restored) == ["last-commit", "lock", "log.db"]
    assert logged_events(restored) == logged_events(folder)
    assert read_mark(restored) == read_mark(folder)
    with Service(restored).wait_until_ready() as service:
        model = service.get("/models/default")
        assert replayed_elsewhere(folder)["default"] == {"seq": 300, "sha256": model["sha256"]}
        reply = service.request("POST", "/learn", {"x": {"age": 0, "f0": 1}, "y": 0, "id": "e0"})[1]
        assert (reply["seq"], reply["duplicate"]) == (1, True)
        reply = service.request("POST", "/learn", {"id": "waits", "y": 1})[1]
        assert (reply["seq"], reply["duplicate"]) == (301, False)


def test_a_backup_notes_when_it_was_made_and_changes_nothing_else_in_what_it_copies(
    folder: Path, tmp_path: Path, call: Any
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    started = time.time()
    assert backed_up_at(folder) == 0
    assert call("backup", folder, tmp_path / "out").code == 0
    after = {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("-shm")}
    assert after == before | {"last-backup": b""}
    assert started - 1 < backed_up_at(folder) < time.time() + 1


def test_a_backup_may_stand_below_the_folder_or_in_an_empty_one(folder: Path, tmp_path: Path, call: Any) -> None:
    (tmp_path / "empty").mkdir()
    for out in (folder / "backups" / "monday", tmp_path / "empty"):
        assert call("backup", folder, out).code == 0
        assert examine(out).wrong == []
        assert files(out.parent).count(f"{out.name}.partial") == 0


# -- through a pipe


@pytest.fixture(scope="module")
def tarred(example: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What `logstep backup DIR -` writes."""
    folder = copied(example, tmp_path_factory.mktemp("tarred") / "data")
    done = subprocess.run([LOGSTEP, "backup", folder, "-"], capture_output=True, check=True)
    assert done.stderr.startswith(b"logstep: copied 1 model(s), 300 event(s), ")
    assert done.stderr.endswith(b" s to standard output\n")
    assert not (folder / "backup.partial").exists()
    assert backed_up_at(folder) > 0
    return done.stdout


def restored_from(data: bytes, folder: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> Said:
    """`logstep restore - FOLDER` with this on standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    said: Said = call("restore", "-", folder)
    return said


@from_checks_on
def test_a_backup_on_standard_output_is_a_tar_of_a_data_folder(tarred: bytes, example: Path, tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(tarred)) as archive:
        assert archive.getnames() == ["log.db", "last-commit"]
        (tmp_path / "data").mkdir()
        for name in archive.getnames():  # `extractall` warns without a filter, which Python 3.11.2 does not know
            content = archive.extractfile(name)
            assert content is not None
            (tmp_path / "data" / name).write_bytes(content.read())
    assert examine(tmp_path / "data").wrong == []
    assert logged_events(tmp_path / "data") == logged_events(example)


def test_a_backup_goes_through_a_pipe_and_back(
    tarred: bytes, example: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = restored_from(tarred, tmp_path / "restored", call, monkeypatch)
    assert (said.code, said.error) == (0, "")
    assert said.output.startswith("restored 1 model(s), 300 event(s), ")
    assert files(tmp_path / "restored") == ["last-commit", "lock", "log.db"]
    assert logged_events(tmp_path / "restored") == logged_events(example)
    assert read_mark(tmp_path / "restored") == read_mark(example)


def test_a_tar_that_was_cut_short_anywhere_or_is_of_something_else_is_refused(
    tarred: bytes, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(fileobj=io.BytesIO(tarred)) as archive:
        log, mark = archive.getmembers()
    cuts = [
        0,
        100,
        log.offset_data + 1,
        log.offset_data + log.size - 1,
        mark.offset,
        mark.offset_data,
        mark.offset_data + 9,
    ]
    other = io.BytesIO()
    with tarfile.open(fileobj=other, mode="w") as archive:
        archive.add(__file__, "log.db.txt")
    for data in [*(tarred[:cut] for cut in cuts), b"hello\n" * 1000, other.getvalue(), tarred[mark.offset :]]:
        said = restored_from(data, tmp_path / "restored", call, monkeypatch)
        assert said.code == 1
        assert said.error.startswith("logstep: standard input is not a whole backup: ")
        assert said.error.endswith(". Nothing was restored\n")
        assert not (tmp_path / "restored").exists()


def test_a_tar_with_a_damaged_log_is_refused(
    tarred: bytes, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = bytearray(tarred)
    for place in range(512 + PAGE_BYTES, len(tarred) - 12 * 512, PAGE_BYTES):
        damaged[place + 1000] ^= 1
    said = restored_from(bytes(damaged), tmp_path / "restored", call, monkeypatch)
    assert said.code == 1
    assert "the backup is damaged, and no copy was put in place: " in said.error
    assert not (tmp_path / "restored").exists()


@from_checks_on
def test_a_damaged_log_writes_nothing_to_standard_output(folder: Path) -> None:
    (folder / "last-commit").unlink()
    done = subprocess.run([LOGSTEP, "backup", folder, "-"], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"is damaged, and no copy was put in place" in done.stderr
    assert not (folder / "backup.partial").exists()


@from_checks_on
def test_a_lost_machine_costs_nothing_that_clients_can_send_again(tmp_path: Path) -> None:
    """The rehearsal: copies leave the machine while it learns, it is lost, and clients resend from before the copy."""
    events: list[dict[str, Any]] = [
        {"x": {"age": i % 17, f"f{i % 40}": i / 7}, "y": i % 3 // 2, "id": f"e{i}"} for i in range(4000)
    ]
    twin = Learner(Spec())
    for event in events:
        twin.learn_one(event["x"], event["y"])
    with Service(tmp_path / "data").wait_until_ready() as service:
        for start in range(0, 3000, 100):
            service.learn(events[start : start + 100])
            if start in (1000, 2000):
                done = subprocess.run([LOGSTEP, "backup", service.folder, "-"], capture_output=True, check=True)
                (tmp_path / "elsewhere.tar").write_bytes(done.stdout)
        service.kill()
    shutil.rmtree(tmp_path / "data")
    with (tmp_path / "elsewhere.tar").open("rb") as copy:
        subprocess.run([LOGSTEP, "restore", "-", tmp_path / "new"], stdin=copy, check=True)
    with Service(tmp_path / "new").wait_until_ready() as service:
        assert service.get("/models/default")["seq"] == 2100
        for start in range(1500, 4000, 100):
            service.learn(events[start : start + 100])
        model = service.get("/models/default")
    assert (model["seq"], model["sha256"]) == (4000, twin.sha256())


# -- what is refused


def test_a_backup_is_not_made_over_something(folder: Path, tmp_path: Path, call: Any) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for out in (tmp_path / "full", tmp_path / "full" / "file", folder):
        said = call("backup", folder, out)
        assert said.code == 1
        assert "exists already; name a new folder" in said.error
    assert files(tmp_path / "full") == ["file"]


def test_what_is_no_data_folder_is_not_copied(tmp_path: Path, call: Any) -> None:
    for command in ("backup", "restore"):
        said = call(command, tmp_path / "nothing", tmp_path / "new" / "out")
        assert said.code == 1
        assert "is not a data folder of logstep" in said.error
        assert not (tmp_path / "new").exists()


def lose_the_end(folder: Path) -> None:
    """A write-ahead log that lost what was acknowledged: SQLite says nothing."""
    wal = folder / "log.db-wal"
    data = bytearray(wal.read_bytes())
    data[100] ^= 1  # in its first frame
    wal.write_bytes(data)


DAMAGE = {
    "the events from seq 17 to 17 have a wrong checksum": "UPDATE batches SET payload = x'00' WHERE first_seq = 17",
    "the events from seq 17 to 17 are missing": "DELETE FROM batches WHERE first_seq = 17",
    "the prediction that waits under the id 'waits' has a wrong checksum": "UPDATE waiting SET seq = seq + 1",
}


@pytest.mark.parametrize("reason", DAMAGE)
def test_a_damaged_folder_is_neither_copied_nor_restored_and_the_damage_is_named(
    folder: Path, tmp_path: Path, call: Any, reason: str
) -> None:
    sql(folder, DAMAGE[reason])
    for command in ("backup", "restore"):
        said = call(command, folder, tmp_path / "out")
        assert said.code == 1
        assert reason in said.error
        assert f"logstep inspect {folder}" in said.error
        assert files(tmp_path) == ["data"]


def test_a_log_that_lost_its_end_is_neither_copied_nor_restored(folder: Path, tmp_path: Path, call: Any) -> None:
    lose_the_end(folder)
    for command in ("backup", "restore"):
        said = call(command, folder, tmp_path / "out")
        assert said.code == 1
        assert "commit(s) are gone" in said.error
        assert files(tmp_path) == ["data"]


def test_pages_that_are_garbage_are_refused(folder: Path, tmp_path: Path, call: Any) -> None:
    sql(folder, "PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray((folder / "log.db").read_bytes())
    data[PAGE_BYTES * 2 :] = b"\xff" * (len(data) - PAGE_BYTES * 2)
    (folder / "log.db").write_bytes(data)
    assert call("backup", folder, tmp_path / "out").code == 1
    assert files(tmp_path) == ["data"]


def test_a_damaged_snapshot_is_told_and_the_log_is_copied_all_the_same(folder: Path, tmp_path: Path, call: Any) -> None:
    sql(folder, "UPDATE snapshot_chunks SET data = x'00'")
    said = call("backup", folder, tmp_path / "out")
    assert said.code == 0
    assert said.error.count("DAMAGED, but not needed: model 'default': the snapshot at seq") == 2
    assert logged_events(tmp_path / "out") == logged_events(folder)


def test_a_restore_does_not_touch_a_folder_that_has_a_log_or_lost_one(folder: Path, tmp_path: Path, call: Any) -> None:
    other = copied(folder, tmp_path / "other")
    before = {name: (other / name).read_bytes() for name in files(other)}
    said = call("restore", folder, other)
    assert said.code == 1
    assert f"{other} has a log; move it away" in said.error
    (other / "log.db").unlink()
    assert "of a log that is gone; move it away" in call("restore", folder, other).error
    del before["log.db"]
    assert {name: (other / name).read_bytes() for name in files(other) if name != "lock"} == before


def test_a_restore_that_was_killed_between_its_renames_can_be_done_again(
    folder: Path, tmp_path: Path, call: Any
) -> None:
    out = tmp_path / "out"
    assert call("restore", folder, out).code == 0
    (out / "restore.partial").mkdir()
    (out / "log.db").rename(out / "restore.partial" / "log.db")
    refused = Service(out)
    assert refused.process.wait(PATIENCE) == 1
    assert call("restore", folder, out).code == 0
    assert files(out) == ["last-commit", "lock", "log.db"]
    assert logged_events(out) == logged_events(folder)


def test_a_restore_into_a_folder_in_use_is_refused_and_the_user_named(folder: Path, tmp_path: Path, call: Any) -> None:
    lock = FolderLock(tmp_path / "used")
    said = call("restore", folder, tmp_path / "used")
    lock.release()
    assert said.code == 1
    assert "is in use by process" in said.error
    assert call("restore", folder, tmp_path / "used").code == 0


def test_a_second_backup_to_the_same_place_waits_for_nobody(folder: Path, tmp_path: Path, call: Any) -> None:
    lock = FolderLock(tmp_path / "out.partial")
    assert "is in use by process" in call("backup", folder, tmp_path / "out").error
    lock.release()
    assert call("backup", folder, tmp_path / "out").code == 0


# -- kills, power cuts, and disks without room


@from_checks_on
@needs_strace()
@pytest.mark.parametrize("command", ["backup", "restore"])
def test_a_copy_is_synced_before_it_is_in_place_and_then_its_place_is(
    folder: Path, tmp_path: Path, command: str
) -> None:
    """Or a power cut could leave a copy with nothing in it."""
    out, trace = tmp_path / "out", tmp_path / "trace"
    strace = ["strace", "-f", "-y", "-o", str(trace), "-e", "trace=fsync,fdatasync,rename,renameat,renameat2"]
    logstep = str(Path(sys.executable).with_name("logstep"))
    subprocess.run([*strace, logstep, command, str(folder), str(out)], check=True, capture_output=True)
    lines = trace.read_text().splitlines()
    staging = tmp_path / "out.partial" if command == "backup" else out / "restore.partial"
    inside = '/last-commit.new"'  # which is made in the copy itself
    renames = [i for i, line in enumerate(lines) if "rename" in line and str(staging) in line and inside not in line]
    assert renames

    def syncs(path: Path, after: int, before: int) -> bool:
        return any("sync(" in line and f"<{path}>" in line for line in lines[after:before])

    for path in (staging / "log.db", staging / "last-commit.new", staging):
        assert syncs(path, 0, renames[0]), path
    assert syncs(tmp_path if command == "backup" else out, renames[-1], len(lines))


def limited_backup(folder: Path, out: Path, limit: int) -> None:
    """A backup that may write no file beyond a size."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with pytest.raises(failures.CopyFailed, match="No copy was made"):
        backups.backup(folder, out)


@pytest.fixture(scope="module")
def large(example: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The example with 30 MiB of snapshot that are left from a crash, so that it takes some time to copy."""
    folder = copied(example, tmp_path_factory.mktemp("large") / "data")
    sql(folder, "INSERT INTO snapshot_chunks SELECT 1, 999, first_seq, zeroblob(1048576), 0 FROM batches LIMIT 30")
    yield folder
    shutil.rmtree(folder)


def killed(function: Any, arguments: tuple[Path, Path], seconds: float) -> bool:
    """Run a function in a process, and kill it after so many seconds; whether it was still running."""
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    process.join(seconds)
    running = process.is_alive()
    process.kill()
    process.join()
    return running


@few(1)
@pytest.mark.parametrize("command", ["backup", "restore"])
def test_a_kill_at_any_moment_leaves_a_whole_copy_or_none(large: Path, tmp_path: Path, command: str) -> None:
    kills = amount(quick=3, checks=8, long=150)
    function = getattr(backups, command)
    numbers, out = random.Random(7), tmp_path / "out"
    begun = time.monotonic()
    assert not killed(function, (large, out), 60)
    whole = time.monotonic() - begun
    ended_by_the_kill = 0
    for _ in range(kills):
        shutil.rmtree(out, ignore_errors=True)
        begun = time.monotonic()
        if killed(function, (large, out), numbers.uniform(0, whole)):
            ended_by_the_kill += 1
        else:  # it was faster than before
            whole = min(whole, time.monotonic() - begun)
        if (out / "log.db").exists():
            assert examine(out).wrong == []
            assert len(logged_events(out)) == 300
        else:
            assert not killed(function, (large, out), 60)  # what was left is in nobody's way
            assert examine(out).wrong == []
    assert ended_by_the_kill > 0
    assert not [path for path in tmp_path.rglob("*.partial") if path.parent == out]


def test_a_backup_that_can_write_no_more_puts_nothing_in_place(large: Path, tmp_path: Path) -> None:
    process = CONTEXT.Process(target=limited_backup, args=(large, tmp_path / "out", 3_000_000))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert files(tmp_path) == []


def test_a_backup_for_which_there_is_no_room_is_refused_before_it_fills_the_disk(
    folder: Path, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    said = call("backup", folder, tmp_path / "out")
    assert said.code == 1
    assert f"no room for a copy in {tmp_path}" in said.error
    assert "9.8 KiB are free" in said.error
    assert files(tmp_path) == ["data"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 1 MiB."""
    disk = tmp_path / "small"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_fills_up_while_it_is_copied_to_has_nothing_of_the_copy_left(
    large: Path, small_disk: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = call("backup", large, small_disk / "out")
    assert (said.code, files(small_disk)) == (1, [])
    assert f"no room for a copy in {small_disk}" in said.error
    usage = shutil.disk_usage(small_disk)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**40))  # others take the room meanwhile
    for command, target in (("backup", "out"), ("restore", "new")):
        said = call(command, large, small_disk / target)
        assert said.code == 1
        assert "failed (database or disk is full). No copy was made" in said.error
        assert files(small_disk) == []


@from_checks_on
@pytest.mark.parametrize(
    "command", [["inspect", "{}"], ["restore", "{}", "{}-restored"], ["serve", "--port", "0", "--data", "{}"]]
)
@pytest.mark.parametrize("name", ["last-commit", "tokens.json"])
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(
    tmp_path: Path, command: list[str], name: str
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    Store(folder).close()
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    reads = name == "last-commit" or command[0] == "serve"
    arguments = [part.format(folder) for part in command]
    done = subprocess.run([LOGSTEP, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode == 1) == reads, done
    assert ("is not a file" in done.stdout + done.stderr) == reads
