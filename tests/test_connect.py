"""The recipes of docs/connect.md, run as they stand there: connectors that are killed midway, and generated clients.

Each connector sends a file in which some events stand twice. The model must be what a learner becomes that learns each
id once, in the order of the file. `.ci/connectors` installs what is not Debian's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from effort import from_checks_on
from forked import clean_environment
from harness import PLAIN, Service, Start
from patience import eventually

from core import Learner

ROOT = Path(__file__).parents[1]
INSTALLED = ROOT / ".connectors"
BLOCKS = re.findall(r"^```\w+\n(.*?)^```", (ROOT / "docs/connect.md").read_text(), re.MULTILINE | re.DOTALL)
TOKEN = "a-token-of-more-than-32-characters"
EVENTS = 20_000
"""Enough that no connector sends all of them before it is killed."""


def program(name: str) -> str:
    """The path of a program; skips the test where it is missing."""
    found = shutil.which(name, path=f"{INSTALLED}:{INSTALLED / 'node_modules/.bin'}:{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"{name} is missing: .ci/connectors or Debian has it")
    return found


def recipe(name: str, to: Path, **places: str) -> Path:
    """The block of the page that begins with this name, as a file, with other places than there."""
    (text,) = [block for block in BLOCKS if any(line[:2] != "{" and name in line for line in block.splitlines()[:2])]
    for old, new in places.items():
        assert PLACES[old] in text
        text = text.replace(PLACES[old], new)
    path = to / Path(name).name
    path.write_text(text)
    return path


PLACES = {
    "url": "http://localhost:8000",
    "folder": "/var/log/shop",
    "spool": "/var/spool/shop",
    "address": "127.0.0.1:4196",
    "buffer": "reliable(yes)",
}


# -- what is sent, and what must come of it


def records(count: int = EVENTS) -> list[dict[str, Any]]:
    """Flat records; every tenth stands twice."""
    once = [
        {"order": f"o-{i:06d}", "clicked": i % 3 == 0, "age": i % 60, "country": ("FR", "DE", "IT")[i % 7 % 3]}
        for i in range(count)
    ]
    return [record for i, record in enumerate(once) for _ in range(1 + (i % 10 == 0))]


def event_of(record: dict[str, Any]) -> dict[str, Any]:
    return {
        "x": {"age": record["age"], "country": record["country"]},
        "y": int(record["clicked"]),
        "id": record["order"],
    }


def write_lines(path: Path, rows: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def learned_once(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """seq and SHA-256 after each id was learned once, in this order."""
    learner = Learner()
    for event in {event["id"]: event for event in events}.values():
        learner.learn_one(event["x"], event["y"])
    return {"seq": learner.seq, "sha256": learner.sha256()}


def state(service: Service, model: str = "clicks") -> dict[str, Any]:
    return {key: service.get(f"/models/{model}")[key] for key in ("seq", "sha256")}


def seq(service: Service) -> int:
    found: int = state(service)["seq"]
    return found


def duplicates(service: Service) -> int:
    (found,) = re.findall(r"^logstep_duplicates_total ([\d.e+]+)$", service.http.get("/metrics").text, re.MULTILINE)
    return int(float(found))


@pytest.fixture
def service(start: Start) -> Service:
    """A service that asks for a token and has an empty model `clicks`."""
    service = start(env={"LOGSTEP_TOKEN": TOKEN})
    service.http.headers["authorization"] = f"Bearer {TOKEN}"
    assert service.http.put("/models/clicks", json={}).status_code == 201
    return service


def url(service: Service) -> str:
    return str(service.http.base_url).rstrip("/")


# -- how it is run


@contextmanager
def running(*command: str | Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A connector in a session of its own; it and its children are killed at the end."""
    process = subprocess.Popen(
        [*map(str, command)],
        env=clean_environment() | {"LOGSTEP_TOKEN": TOKEN} | environment,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def kill_midway(service: Service, *command: str | Path) -> None:
    """Run a connector until something is learned, and kill it."""
    with running(*command):
        eventually(lambda: seq(service) > 0, "the first event")
    assert 0 < seq(service) < EVENTS, "it was to be killed midway"


def run(*command: str | Path, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env=clean_environment() | {"LOGSTEP_TOKEN": TOKEN} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# -- connectors


def test_a_cron_job_with_curl_that_is_killed_sends_the_file_again_and_nothing_is_learned_twice(
    service: Service, tmp_path: Path
) -> None:
    program("curl")
    script = recipe("/usr/local/bin/send-events", tmp_path, url=url(service), spool=str(tmp_path))
    script.chmod(stat.S_IRWXU)
    (tmp_path / "token").write_text(f"Authorization: Bearer {TOKEN}\n")
    for folder in ("outbox", "sent"):
        (tmp_path / folder).mkdir()
    events = [*map(event_of, records())]
    write_lines(tmp_path / "outbox" / "1.ndjson", events[:15_000])
    write_lines(tmp_path / "outbox" / "2.ndjson", events[14_000:])
    kill_midway(service, script)
    before = seq(service)
    run(script, folder=tmp_path)
    assert state(service) == learned_once(events)
    assert duplicates(service) >= min(before, 10_000)
    assert [path.name for path in sorted((tmp_path / "sent").iterdir())] == ["1.ndjson", "2.ndjson"]
    run(script, folder=tmp_path)


@from_checks_on
def test_redpanda_connect_that_is_killed_sends_the_file_again_and_nothing_is_learned_twice(
    service: Service, tmp_path: Path
) -> None:
    command = (program("connect"), "run", recipe("connect.yaml", tmp_path, url=url(service), folder=str(tmp_path)))
    write_lines(tmp_path / "clicks.ndjson", records())
    kill_midway(service, *command)
    before = seq(service)
    run(*command, folder=tmp_path)
    assert state(service) == learned_once([*map(event_of, records())])
    assert duplicates(service) > before


@from_checks_on
def test_redpanda_connect_sets_a_batch_aside_that_is_refused_and_sends_the_rest(
    service: Service, tmp_path: Path
) -> None:
    command = (program("connect"), "run", recipe("connect.yaml", tmp_path, url=url(service), folder=str(tmp_path)))
    rows = records(2_000)
    wrong = {**rows[700], "order": "wrong", "clicked": "perhaps"}
    write_lines(tmp_path / "clicks.ndjson", [*rows[:700], wrong, *rows[700:]])
    assert "y: must be 0, 1, true or false" in run(*command, folder=tmp_path)
    aside = [json.loads(line) for line in (tmp_path / "refused.ndjson").read_text().splitlines()]
    assert len(aside) == 500
    mended = [event for event in aside if event["id"] != "wrong"]
    reply = service.model("clicks").learn(mended)
    assert reply.status_code == 200
    assert seq(service) == 2_000


@from_checks_on
def test_syslog_ng_that_is_killed_goes_on_where_it_was_and_nothing_is_learned_twice(
    service: Service, tmp_path: Path
) -> None:
    syslog_ng = program("syslog-ng")
    buffer = f'reliable(yes) dir("{tmp_path}")'
    config = recipe("logstep.conf", tmp_path, url=url(service), folder=str(tmp_path), buffer=buffer)
    config.write_text(
        f'@version: 3.38\n@define LOGSTEP_TOKEN "{TOKEN}"\noptions {{ time-reopen(1); }};\n{config.read_text()}'
    )
    write_lines(tmp_path / "clicks.ndjson", records())
    command = (
        *(syslog_ng, "--foreground", "--stderr", "--no-caps", "-f", config),
        *("-R", tmp_path / "persist", "-c", tmp_path / "control", "-p", tmp_path / "pid"),
    )
    kill_midway(service, *command)
    expected = learned_once([*map(event_of, records())])
    with running(*command):
        eventually(lambda: seq(service) >= expected["seq"], "all events")
    assert state(service) == expected


@from_checks_on
def test_a_webhook_that_is_repeated_until_it_gets_200_is_learned_once(service: Service, tmp_path: Path) -> None:
    assert service.http.put("/models/payments", json={}).status_code == 201
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = (program("connect"), "run", recipe("webhook.yaml", tmp_path, url=url(service), address=address))
    hooks = [
        {"id": f"evt-{i}", "type": ("charge.paid", "charge.disputed")[i % 2], "data": {"amount": i, "currency": "eur"}}
        for i in range(60)
    ]
    with httpx.Client(base_url=f"http://{address}", timeout=10, **PLAIN) as sender:

        def answered(hook: Any) -> bool:
            with suppress(httpx.TransportError):
                return sender.post("/paid", json=hook).status_code == 200
            return False

        with running(*command):
            for hook in hooks[:30]:
                eventually(partial(answered, hook), "200")
        with running(*command):
            for hook in hooks[20:]:
                eventually(partial(answered, hook), "200")
            refused = sender.post("/paid", json={"id": "evt-61", "type": "charge.paid", "data": {"amount": {}}})
    assert refused.status_code == 502
    assert "x.amount: must be a finite number" in refused.text
    events = [{"x": hook["data"], "y": int(hook["type"] == "charge.disputed"), "id": hook["id"]} for hook in hooks]
    assert state(service, "payments") == learned_once(events)
    assert duplicates(service) == 10


# -- generated clients


@from_checks_on
def test_a_generated_client_in_typescript_compiles_and_learns_an_event(service: Service, tmp_path: Path) -> None:
    node, tsc, generate = program("node"), program("tsc"), program("openapi-typescript")
    assert service.http.delete("/models/clicks").status_code == 204
    recipe("main.ts", tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "node_modules").symlink_to(INSTALLED / "node_modules")
    (tmp_path / "openapi.json").write_text(service.http.get("/openapi.json").text)
    run(generate, "openapi.json", "-o", "logstep.d.ts", folder=tmp_path)
    run(tsc, "--strict", "--module", "nodenext", "--target", "es2022", "--types", "node", "main.ts", folder=tmp_path)
    learned, asked = json.loads(run(node, "main.js", folder=tmp_path, LOGSTEP_URL=url(service)))
    assert (learned["seq"], learned["p"], learned["duplicate"]) == (1, 0.5, False)
    assert 0.5 < asked["p"] < 1
    assert service.get("/models/clicks")["spec"]["rule"] == "adam"


@from_checks_on
def test_a_generated_client_in_go_compiles_and_learns_an_event(service: Service, tmp_path: Path) -> None:
    go, generate = program("go"), program("oapi-codegen")
    recipe("main.go", tmp_path)
    for name in ("go.mod", "go.sum"):
        shutil.copy(INSTALLED / "go" / name, tmp_path)
    (tmp_path / "openapi.json").write_text(service.http.get("/openapi.json").text)
    generated = run(generate, "-generate", "types,client", "-package", "main", "openapi.json", folder=tmp_path)
    (tmp_path / "logstep.gen.go").write_text(generated)
    assert "float32" not in generated
    run(go, "vet", ".", folder=tmp_path)
    run(go, "build", "-o", "client", ".", folder=tmp_path)
    assert run(tmp_path / "client", folder=tmp_path, LOGSTEP_URL=url(service)) == "1 0.5\n"
    assert state(service) == learned_once([{"x": {"age": 31, "country": "FR", "vip": True}, "y": 1, "id": "order-77"}])
