"""The commands: what they say, what they leave alone, and how they end."""

from __future__ import annotations

import json
import os
import platform
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
from effort import few, from_checks_on, only_long
from harness import LOGSTEP, PLAIN, Model, Service, Start, Starter, running
from patience import PATIENCE, eventually
from streams import stream

from service import failures
from service.commands import cli
from service.commands.inspect import examine
from service.storage import id_pieces
from service.storage.folder import FolderLock
from service.storage.schema import PAGE_BYTES
from service.storage.wal import read_mark

WHOLE = "whole: every checksum fits"

# -- helpers


def url(service: Service) -> str:
    return f"--url=http://127.0.0.1:{service.port}"


def files(folder: Path) -> dict[str, bytes]:
    """The bytes of the database, the log and the mark; no write-ahead log and an empty one are the same."""
    paths = (folder / name for name in ("log.db", "log.db-wal", "last-commit"))
    return {path.name: path.read_bytes() if path.exists() else b"" for path in paths}


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """The command in this process: exit code, standard output, standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        try:
            code = cli.main([*map(str, arguments)])
        except SystemExit as left:  # argparse's way
            code = int(left.code or 0)
        output, error = capsys.readouterr()
        return code, output, error

    return run


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as kill -9 leaves it, with 200 events in as many commits, 10 ids, and snapshots. Not to be changed."""
    starter = Starter(tmp_path_factory.mktemp("example"))
    service = starter("--snapshot-seconds", "0.0003")
    for number, (x, y) in enumerate(stream("Phishing", 200)):
        event: dict[str, Any] = {"x": x, "y": y}
        if number % 20 == 0:
            event["id"] = f"event-{number}"
        assert service.model().learn(event).status_code == 200
    service.kill()
    starter.close()
    return service.folder


@pytest.fixture
def folder(example: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    shutil.copytree(example, tmp_path / "data", ignore=shutil.ignore_patterns("log.db-shm"))
    return tmp_path / "data"


def change(folder: Path, statement: str, *values: Any) -> None:
    """Change the database as damage would: without a commit of logstep's."""
    with closing(sqlite3.connect(folder / "log.db")) as db:
        db.execute(statement, values)
        db.commit()


def as_if_an_event_were_gone(folder: Path) -> int:
    """Let the id of event 20 stand for seq 201, where the log ends at 200. Returns the checksum of all ids then."""
    with closing(sqlite3.connect(folder / "log.db")) as db:
        id_pieces.add_checksum(db)
        (number,) = db.execute("SELECT number FROM new_ids WHERE instr(payload, CAST('event-20' AS BLOB))").fetchone()
        (payload,) = db.execute("SELECT payload FROM new_ids WHERE number = ?", [number]).fetchone()
        payload = payload.replace((21).to_bytes(8, "little"), (201).to_bytes(8, "little"), 1)
        db.execute("UPDATE new_ids SET payload = ? WHERE number = ?", [payload, number])
        db.commit()
        ((checksum,),) = db.execute(id_pieces.CHECKSUM)
        return int(checksum)


def middle_of(wal: Path) -> int:
    """A place in the middle of a write-ahead log, within the frames since the last checkpoint: those with its salt."""
    data = wal.read_bytes()
    frames = [at for at in range(32, len(data), 24 + PAGE_BYTES) if data[at + 8 : at + 16] == data[16:24]]
    return frames[len(frames) // 2] + 100


def damage(path: Path, place: int) -> None:
    """Flip a bit."""
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


# -- start and usage


def loaded_after(program: str) -> set[str]:
    """Which slow modules a process has loaded after running `program`."""
    text = f"import sys\n{program}\nprint(*{{'numba', 'river', 'fastapi', 'rich', 'httpx'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=PATIENCE, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_and_a_second_service_load_nothing_slow(tmp_path: Path) -> None:
    program = "from service.commands.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert loaded_after(program) == set()
    lock = FolderLock(tmp_path)
    program = f"from service.commands.cli import main\nassert main(['serve', '--data', {str(tmp_path)!r}]) == 1"
    assert loaded_after(program) == set()
    lock.release()


def test_the_version_names_what_the_arithmetic_and_the_disk_stand_on() -> None:
    arguments = [sys.executable, "-m", "service.commands.cli", "--version"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout.splitlines() == [
        f"logstep {version('logstep')}",
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
        f"numba {version('numba')}, river {version('river')}",
    ]


@pytest.mark.parametrize(
    ("flag", "meant"),
    [("--prot", "--port"), ("--prot=8001", "--port"), ("--keep-event", "--keep-events"), ("--tls-certs", "--tls-cert")],
)
def test_a_misspelt_flag_is_told_with_what_it_may_mean(call: Call, flag: str, meant: str) -> None:
    code, _, error = call("serve", flag)
    assert code == 2
    assert error.endswith(f"unrecognized arguments: {flag}. Did you mean {meant}?\n")


def test_a_second_service_is_told_who_has_the_folder(tmp_path: Path, call: Call) -> None:
    lock = FolderLock(tmp_path)
    code, _, error = call("serve", "--data", tmp_path)
    lock.release()
    assert code == 1
    assert f"{tmp_path} is in use by process {os.getpid()}" in error


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("fly",),
        ("serve", "--port", "seventy"),
        ("serve", "--port", "70000"),
        ("serve", "--no-such-flag"),
        ("models",),
        ("models", "create"),
        ("models", "create", "a", "--spec", "{"),
        ("models", "create", "a", "--spec", "absent.json"),
        ("models", "list", "--url", "localhost"),
        ("crosscheck", "--url", "http://a", "--data", "b"),
        ("crosscheck", "a.csv", "--data", "b"),
        ("crosscheck", "a.csv", "--label", "y"),
        ("crosscheck", "a.csv"),
        ("crosscheck", "--spec", "{}"),
        ("crosscheck", "a.csv", "--label", "y", "--spec", '{"learning_rate": 0}'),
        ("crosscheck", "a.csv", "--label", "y", "--spec", '{"speed": 1}'),
        ("crosscheck", "a.csv", "--label", "y", "--spec", "[1]"),
        ("inspect",),
        ("repair",),
    ],
)
def test_wrong_usage_is_exit_code_2(call: Call, arguments: tuple[str, ...]) -> None:
    code, output, error = call(*arguments)
    assert code == 2
    assert error
    assert not output


@pytest.mark.parametrize(
    "arguments",
    [
        ("models", "list"),
        ("models", "show", "a"),
        ("models", "create", "a"),
        ("models", "delete", "a", "--yes"),
        ("crosscheck",),
    ],
)
def test_no_service_is_one_clear_line(call: Call, arguments: tuple[str, ...]) -> None:
    code, output, error = call(*arguments, "--url", "http://127.0.0.1:1/")
    assert code == 1
    assert not output
    assert error.startswith("logstep: no service answers at http://127.0.0.1:1; start one with `logstep serve`")
    assert error.count("\n") == 1


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, call: Call) -> None:
    (tmp_path / "file").write_text("")
    code, _, error = call("serve", "--data", tmp_path / "file" / "data")
    assert code == 1
    assert str(tmp_path / "file" / "data") in error
    assert error.count("\n") == 1


# -- models


def test_models_are_created_listed_shown_and_deleted(shared: Service, tmp_path: Path, call: Call) -> None:
    at = url(shared)
    spec = tmp_path / "spec.json"
    spec.write_text('{"learning_rate": 0.25}')
    assert call("models", "create", "made", "--spec", str(spec), at) == (0, "model made created\n", "")
    code, output, _ = call("models", "create", "made", "--spec", '{"learning_rate": 0.25}', at)
    assert code == 0
    assert "exists already" in output
    code, _, error = call("models", "create", "made", at)
    assert code == 1
    assert "exists with another spec" in error
    code, output, _ = call("models", "list", at)
    assert code == 0
    assert ["made", "sgd", "0", "-", "-"] in [line.split() for line in output.splitlines()]
    code, output, _ = call("models", "show", "made", at)
    assert code == 0
    assert "0.25" in output
    assert shared.model("made").state()["sha256"] in output
    assert call("models", "delete", "made", "--yes", at)[0] == 0
    code, _, error = call("models", "show", "made", at)
    assert code == 1
    assert "no model 'made'" in error


def test_a_model_is_not_deleted_unless_it_is_meant(
    shared: Service, model: Model, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("models", "delete", model.name, url(shared))
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    code, _, error = call(*command)
    assert code == 2
    assert "--yes" in error
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: "n")
    assert call(*command)[0] == 1
    assert model.state()["seq"] == 0, "it is there"
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert call(*command)[0] == 0


@pytest.mark.parametrize("verb", [("create", "--spec", '{"learning_rate": -1}'), ("create", "--spec", "[]")])
def test_the_service_refuses_a_spec_with_its_field(shared: Service, call: Call, verb: tuple[str, ...]) -> None:
    code, _, error = call("models", verb[0], "refused", *verb[1:], url(shared))
    assert code == 1
    assert "learning_rate" in error or "body" in error


# -- cross-check


@from_checks_on
def test_the_cross_check_of_a_service_a_folder_and_a_file(start: Start, tmp_path: Path, call: Call) -> None:
    service = start()
    assert service.model().learn([{"x": x, "y": y} for x, y in stream("Phishing")]).status_code == 200
    lines = "".join(json.dumps({"x": x, "y": y}) + "\n" for x, y in stream("Phishing"))
    (tmp_path / "events.ndjson").write_text(lines)
    for command in ([url(service)], ["--data", service.folder], [tmp_path / "events.ndjson"]):
        code, output, _ = call("crosscheck", *command)
        assert code == 0
        assert output.splitlines()[-1].startswith("equal to river ")
        assert output.splitlines()[-1].endswith(" to the last bit on 1,250 events")
    code, _, error = call("crosscheck", url(service), "--model", "nobody")
    assert code == 1
    assert "no model 'nobody'" in error


def test_a_cross_check_that_fails_is_exit_code_1_and_says_where(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    report = {
        "events": 12_000,
        "not_taken": 2,
        "features": 3,
        "max_abs_diff": 1e-17,
        "max_ulp": 4,
        "feature": "age",
        "bias_ulp": 0,
        "equal": False,
        "river": "9.9",
        "replay_equal": True,
    }
    monkeypatch.setattr("service.learning.crosscheck.check", lambda *_: report)
    code, output, _ = call("crosscheck", "--data", "somewhere")
    assert code == 1
    assert "NOT EQUAL to river 9.9 on 12,000 events: the largest difference is 4 units" in output
    assert "at the weight of 'age'" in output
    report |= {"equal": True, "replay_equal": False}
    code, output, _ = call("crosscheck", "--data", "somewhere")
    assert code == 1
    assert "a replay of the log does not give the weights" in output


def test_the_cross_check_says_which_specs_river_has_no_twin_of(start: Start, tmp_path: Path, call: Call) -> None:
    path = tmp_path / "events.ndjson"
    path.write_text('{"x": {"a": 1}, "y": 1}\n')
    service = start()
    for name, spec, reason in (
        ("auto", {"rule": "auto"}, "auto is many learners at once"),
        ("paper", {"rule": "ftrl", "lag": False}, "this spec says lag: false"),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(spec))
        model = service.model(name)
        assert model.create(spec).status_code == 201
        assert model.learn({"x": {"a": 1}, "y": 1}).status_code == 200
        of_file: list[list[str | Path]] = [
            [path, "--spec", given] for given in (json.dumps(spec), tmp_path / f"{name}.json")
        ]
        of_model: list[list[str | Path]] = [
            [where, "--model", name] for where in (f"--data={service.folder}", url(service))
        ]
        for command in (*of_file, *of_model):
            code, output, error = call("crosscheck", *command)
            assert (code, output) == (1, "")
            assert "River has no model to check this one against" in error
            assert reason in error
            assert error.count("\n") == 1


def test_the_cross_check_of_a_file_takes_a_spec_as_json_and_as_a_file(tmp_path: Path, call: Call) -> None:
    path, spec = tmp_path / "events.ndjson", tmp_path / "spec.json"
    path.write_text("".join(json.dumps({"x": x, "y": y}) + "\n" for x, y in stream("Phishing", 50)))
    spec.write_text('{"rule": "adagrad", "scale": "standard"}')
    for given in (spec.read_text(), spec):
        code, output, _ = call("crosscheck", path, "--spec", given)
        assert code == 0
        assert output.endswith("to the last bit on 50 events\n")
    spec.write_text('{"rule": "adagrad", "rho": 0.9}')
    code, _, error = call("crosscheck", path, "--spec", spec)
    assert code == 2
    assert f"{spec}: rho is not a parameter of adagrad" in error


def test_the_cross_check_of_a_file_names_the_line_that_cannot_be_learned(tmp_path: Path, call: Call) -> None:
    path = tmp_path / "events.ndjson"
    path.write_text('{"x": {"a": 1}, "y": 1}\n{"x": {"a": 1}, "y": 0.5}\n')
    code, _, error = call("crosscheck", path)
    assert code == 1
    assert "events.ndjson line 2: y: must be 0, 1" in error


# -- inspect


def test_inspect_changes_nothing_on_a_running_a_killed_and_a_stopped_service(start: Start, call: Call) -> None:
    service = start()
    for x, y in stream("Phishing", 20):
        assert service.model().learn({"x": x, "y": y}).status_code == 200

    def look() -> None:
        before = files(service.folder)
        code, output, _ = call("inspect", service.folder)
        assert code == 0, output
        assert WHOLE in output
        (row,) = [line.split() for line in output.splitlines() if line.startswith("  default")]
        assert row[:6] == ["default", "sgd", "1", "20", "9", "0"]
        assert files(service.folder) == before

    look()
    service.kill()
    look()
    again = start(folder=service.folder)
    assert again.stop() == 0
    look()


def test_inspect_sees_no_damage_while_a_service_writes(start: Start, call: Call) -> None:
    service = start("--snapshot-seconds", "0.001")
    lines = (json.dumps({"x": x, "y": y}).encode() + b"\n" for x, y in stream("Phishing") * 4)

    def body() -> Any:
        for number, line in enumerate(lines):
            yield line
            if number % 1000 == 999:
                code, output, _ = call("inspect", service.folder)
                assert code == 0, output

    assert service.model().learn_lines(body()).status_code == 200


def test_inspect_shows_ids_and_snapshots(folder: Path) -> None:
    found = examine(folder)
    assert found.wrong == []
    (model,) = found.models
    assert (model.name, model.rule, model.seq, model.features, model.ids) == ("default", "sgd", 200, 9, 10)
    assert model.snapshots
    assert all(whole for _, whole in model.snapshots)
    assert found.end == found.mark == read_mark(folder)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE batches SET payload = zeroblob(9) WHERE first_seq = 7", "the events from seq 7 to 7 have a wrong"),
        ("DELETE FROM batches WHERE first_seq = 7", "the events from seq 7 to 7 are missing"),
        ("UPDATE names SET names = x'00'", "the feature names from column 0 on have a wrong checksum"),
        ("DELETE FROM names", "an event has a feature without a name"),
        ("UPDATE models SET spec = '{}'", "the row of model 'default' has a wrong checksum"),
        ("DELETE FROM log_end", "the row of its last commit is missing"),
        ("UPDATE log_end SET checksum = 1", "its last commit is not the one that was acknowledged"),
        ("UPDATE log_end SET ids_checksum = ?", "there is an id of an event at seq 201"),
        ("UPDATE snapshots SET seq = 500", "there is a snapshot at seq 500"),
        ("DROP TABLE ids", "the table 'ids' is missing"),
    ],
)
def test_inspect_names_what_is_damaged_and_repair_refuses(
    folder: Path, call: Call, statement: str, message: str
) -> None:
    if "seq = 500" in statement:
        change(folder, "DELETE FROM snapshots WHERE seq < (SELECT max(seq) FROM snapshots)")
    if "ids_checksum" in statement:
        change(folder, statement, as_if_an_event_were_gone(folder))
    else:
        change(folder, statement)
    before = files(folder)
    code, output, _ = call("inspect", folder)
    assert code == 1
    assert message in output
    assert "DAMAGED" in output
    (folder / "last-commit").unlink(missing_ok=True)  # what repair would repair, were it not for the rest
    code, output, error = call("repair", folder, "--yes")
    if "log_end SET" not in statement:  # without the mark, its checksum has nothing to differ from
        assert code == 1
        assert "Restore a backup" in error
        assert files(folder) == {**before, "last-commit": b""}


def test_a_damaged_snapshot_is_damage_and_the_log_is_whole(folder: Path, call: Call) -> None:
    change(folder, "UPDATE snapshot_chunks SET data = zeroblob(9)")
    code, output, _ = call("inspect", folder)
    assert code == 1
    assert "has a wrong checksum" in output
    assert "The log is whole" in output
    assert call("repair", folder, "--yes") == (0, f"nothing to repair in {folder}\n", "")


@pytest.mark.parametrize("name", ["log.db", "log.db-wal", "last-commit"])
def test_whatever_bit_is_damaged_inspect_does_not_crash(folder: Path, call: Call, name: str) -> None:
    numbers = random.Random(name)
    original = (folder / name).read_bytes()
    for _ in range(25):
        for _ in range(numbers.randint(1, 20)):
            damage(folder / name, numbers.randrange(len(original)))
        (folder / "log.db-shm").unlink(missing_ok=True)
        code, output, error = call("inspect", folder)
        assert code in (0, 1)
        assert "DAMAGED" in output or WHOLE in output or "logstep:" in error
        (folder / name).write_bytes(original)


def test_a_folder_of_another_program_is_told(tmp_path: Path, call: Call) -> None:
    code, _, error = call("inspect", tmp_path / "absent")
    assert code == 1
    assert "is not a data folder of logstep: it has no log.db" in error
    with closing(sqlite3.connect(tmp_path / "log.db")) as db:
        db.execute("CREATE TABLE theirs (a)")
    code, _, error = call("inspect", tmp_path)
    assert code == 1
    assert "belongs to another program" in error
    (tmp_path / "log.db").write_text("no database at all\n" * 100)
    code, output, _ = call("inspect", tmp_path)
    assert code == 1
    assert "DAMAGED: file is not a database" in output
    code, _, error = call("repair", tmp_path, "--yes")
    assert code == 1
    assert "Restore a backup" in error


# -- repair


def test_nothing_to_repair_changes_nothing(folder: Path, call: Call) -> None:
    before = files(folder), (folder / "lock").read_bytes()
    assert call("repair", folder) == (0, f"nothing to repair in {folder}\n", "")
    assert (files(folder), (folder / "lock").read_bytes()) == before


def test_a_log_whose_end_is_gone_is_refused_repaired_and_served(folder: Path, start: Start, call: Call) -> None:
    wal = folder / "log.db-wal"
    damage(wal, middle_of(wal))
    damaged = files(folder)
    service = start(folder=folder, ready=False)
    assert service.wait() == 1
    assert f"logstep repair {folder}" in service.log
    shutil.rmtree(folder)
    folder.mkdir()
    for name, content in damaged.items():
        (folder / name).write_bytes(content)

    code, output, _ = call("inspect", folder)
    assert code == 1
    assert "but commit" in output
    assert files(folder) == damaged
    code, output, _ = call("repair", folder, "--yes")
    assert code == 0, output
    (copy,) = folder.glob("before-repair-*")
    assert files(copy) == damaged
    repaired = files(folder)
    assert damaged["log.db-wal"].startswith(repaired["log.db-wal"])  # what could be read of it
    assert repaired == {**damaged, "last-commit": repaired["last-commit"], "log.db-wal": repaired["log.db-wal"]}
    found = examine(folder)
    assert found.wrong == []
    left = found.models[0].seq
    assert 0 < left < 200
    assert f"commit {found.end[0] if found.end else 0:,}" in output

    again = start(folder=folder)
    assert again.model().state()["seq"] == left
    for x, y in stream("Phishing", 200)[left:]:
        assert again.model().learn({"x": x, "y": y}).status_code == 200
    again.model().assert_equal_to_river()
    again.kill()
    assert call("inspect", folder)[0] == 0


@pytest.mark.parametrize("mark", [None, b"", b"sixteen bytes..."])
def test_a_lost_mark_is_written_anew(folder: Path, start: Start, call: Call, mark: bytes | None) -> None:
    path = folder / "last-commit"
    original = path.read_bytes()
    if mark is None:
        path.unlink()
    else:
        path.write_bytes(mark)
    code, output, _ = call("inspect", folder)
    assert code == 1
    assert "last-commit is missing or unreadable" in output
    assert call("repair", folder, "--yes")[0] == 0
    assert path.read_bytes() == original
    if mark is None:
        assert start(folder=folder).model().state()["seq"] == 200


def test_repair_asks_and_does_nothing_without_a_yes(folder: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "last-commit").unlink()
    before = files(folder)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    code, _, error = call("repair", folder)
    assert code == 2
    assert "--yes" in error
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: "")
    code, _, error = call("repair", folder)
    assert code == 1
    assert "nothing was changed" in error
    assert files(folder) == before
    assert not list(folder.glob("before-repair-*"))


def test_repair_keeps_out_of_a_folder_in_use(folder: Path, call: Call) -> None:
    (folder / "last-commit").unlink()
    lock = FolderLock(folder)
    code, _, error = call("repair", folder, "--yes")
    lock.release()
    assert code == 1
    assert "is in use by" in error


def test_a_mark_without_a_log_is_told(tmp_path: Path, call: Call, folder: Path) -> None:
    (folder / "log.db").unlink()
    for command in ("inspect", "repair"):
        code, _, error = call(command, folder)
        assert code == 1
        assert "it has no log.db" in error
    with pytest.raises(failures.NotADataFolder):
        examine(folder)


# -- demo


@from_checks_on
def test_the_demo_shows_it_all_and_leaves_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "LOGSTEP_PORT": "1"}
    done = subprocess.run([LOGSTEP, "demo"], capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal to river") == 2
    assert "49,097" in done.stdout
    assert done.stdout.count("the same\n") == 2
    assert "\x1b" not in done.stdout
    assert list(tmp_path.iterdir()) == []


@from_checks_on
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda number: number.name)
def test_the_demos_service_ends_with_the_demo(number: signal.Signals, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"}  # else its address comes much later
    with running([LOGSTEP, "demo", "--keep"], stdout=subprocess.PIPE, text=True, env=environment) as demo:
        assert demo.stdout is not None
        url = next(found[1] for line in demo.stdout if (found := re.search(r"Started a service at (http\S+),", line)))
        assert httpx.get(f"{url}/livez", **PLAIN).status_code == 200
        demo.send_signal(number)
        demo.wait(PATIENCE)
    eventually(lambda: not answers(url), "the service to end")
    if number != signal.SIGKILL:
        assert demo.returncode == 128 + number
        assert list(tmp_path.iterdir()) == []


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/livez", **PLAIN).status_code == 200
    except httpx.TransportError:
        return False


@only_long
def test_the_demo_that_is_kept_serves_its_page_until_ctrl_c(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with running([LOGSTEP, "demo", "--keep"], stdout=subprocess.PIPE, text=True, env=environment) as demo:
        assert demo.stdout is not None
        url = next(found[1] for line in demo.stdout if (found := re.search(r"keeps running at (http\S+)/ ,", line)))
        assert httpx.get(f"{url}/models/shuttle/series", trust_env=False).json()["marks"]
        demo.send_signal(signal.SIGINT)
        rest = demo.stdout.read()
        assert demo.wait(PATIENCE) == 0
    assert "its folder is gone" in rest
    assert list(tmp_path.iterdir()) == []


@few(1)
@pytest.mark.parametrize("module", ["service.commands.cli", "pydantic_settings", "service.http.server"])
def test_ctrl_c_while_modules_are_imported_ends_a_command_as_later(tmp_path: Path, module: str) -> None:
    program = f"""
import os, signal, sys
from service.commands import entry
class Interrupts:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
sys.exit(entry.main())
"""
    command = [sys.executable, "-c", program, "serve", "--data", str(tmp_path / "data"), "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (ended.returncode, ended.stderr) == (130, "logstep: interrupted\n")
