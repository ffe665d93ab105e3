"""What the service says of itself: lines that programs and people can read, and nothing of what a caller sent."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from effort import from_checks_on
from harness import JSON, LOGSTEP, Service, Start, assert_problem
from patience import PATIENCE, eventually

from service import errors, logs

SECRET = "s3cr3t-value-of-a-caller"


def lines(service: Service) -> list[dict[str, Any]]:
    """What a service has logged: each line is a JSON object with a time, a level and a message."""
    found = [json.loads(line) for line in service.log.splitlines()]
    assert all(line.keys() >= {"time", "level", "message"} for line in found)
    return found


def told(service: Service, message: str) -> list[dict[str, Any]]:
    return [line for line in lines(service) if line["message"] == message]


# -- request ids


@pytest.mark.parametrize("id_", ["a", "0" * 128, "c2f1e9de-8d3c-4c1e-9d5c-0f6b5f1c8a11", "Az09._~:/+=@-"])
def test_a_request_id_that_is_a_token_comes_back(shared: Service, id_: str) -> None:
    for response in (
        shared.http.get("/livez", headers={"x-request-id": id_}),
        shared.http.post("/predict", content='{"x": {}}', headers={**JSON, "x-request-id": id_}),
        shared.http.post("/predict", content="{", headers={**JSON, "x-request-id": id_}),
        shared.http.get("/models/nobody", headers={"x-request-id": id_}),
    ):
        assert response.headers.get_list("x-request-id") == [id_]
        if response.status_code >= 400:
            assert response.json()["request_id"] == id_


@pytest.mark.parametrize("id_", ["", "0" * 129, "a b", 'a"b', "a\\b", "<script>", "a\tb", "é"])
def test_a_request_id_that_is_none_is_replaced(shared: Service, id_: str) -> None:
    response = shared.http.get("/livez", headers={b"x-request-id": id_.encode("latin-1")})
    (given,) = response.headers.get_list("x-request-id")
    assert given != id_
    assert logs_take(given)


def logs_take(id_: str) -> bool:
    """Whether an id would itself be taken from a caller."""
    return 1 <= len(id_) <= 128 and id_.isascii() and all(c.isalnum() or c in "._~:/+=@-" for c in id_)


def test_each_reply_has_an_id_of_its_own_on_every_route(shared: Service) -> None:
    asked = [("GET", "/livez"), ("GET", "/models"), ("GET", "/metrics"), ("GET", "/docs"), ("GET", "/nothing")]
    asked += [("POST", "/learn"), ("POST", "/predict"), ("PUT", "/learn"), ("DELETE", "/models/nobody")]
    found = [shared.http.request(method, path).headers["x-request-id"] for method, path in asked * 2]
    assert len(set(found)) == len(found)


def test_two_processes_do_not_make_the_same_ids(start: Start) -> None:
    ids = {service.http.get("/livez").headers["x-request-id"].partition("-")[0] for service in (start(), start())}
    assert len(ids) == 2


# -- what is logged


def test_at_info_a_start_a_refusal_and_a_stop_are_told_and_requests_are_not(start: Start) -> None:
    service = start()
    service.model().learn({"x": {"a": 1}, "y": 1})
    refused = service.http.post("/learn", content='{"x": {}, "y": 3}', headers=JSON)
    problem = assert_problem(refused, 422)
    assert service.stop() == 0
    assert not told(service, "request")
    assert not told(service, "commit")
    assert any("serves http" in line["message"] for line in lines(service))
    assert any("recovered in" in line["message"] for line in lines(service))
    (line,) = told(service, "refused")
    assert line["level"] == "info"
    assert (line["reason"], line["status"], line["path"]) == ("invalid-event", 422, "/learn")
    assert line["request_id"] == problem["request_id"] == refused.headers["x-request-id"]
    assert lines(service)[-1]["message"] == "stopped"


def test_at_debug_each_request_and_commit_is_told(start: Start) -> None:
    service = start("--log-level", "debug")
    given = {**JSON, "x-request-id": "mine"}
    service.http.post("/learn", content='{"x": {"a": 1}, "y": 1}', headers=given)
    service.http.get("/models/nobody", headers={"x-request-id": "mine-too"})
    eventually(lambda: "mine-too" in {line["request_id"] for line in told(service, "request")}, "both to be told")
    by_id = {line["request_id"]: line for line in told(service, "request")}
    assert (by_id["mine"]["method"], by_id["mine"]["path"], by_id["mine"]["status"]) == ("POST", "/learn", 200)
    assert by_id["mine-too"]["status"] == 404
    assert by_id["mine"]["seconds"] > 0
    (commit,) = told(service, "commit")
    assert commit["items"] == 1


def test_many_refusals_are_told_once_a_second_and_counted(start: Start) -> None:
    service = start()
    began = time.monotonic()
    for _ in range(200):
        service.http.post("/learn", content='{"x": {}, "y": 3}', headers=JSON)
    service.http.post("/learn", content="{", headers=JSON)  # another reason is told at once
    assert "malformed-json" in {line["reason"] for line in told(service, "refused")}
    assert_all_told(service, began, 200, lambda line: line.get("reason") == "invalid-event")


def assert_all_told(service: Service, began: float, times: int, is_of: Callable[[dict[str, Any]], bool]) -> None:
    """That lines say of something that it happened so often, and that there is one a second at most."""

    def found() -> list[dict[str, Any]]:
        return [line for line in lines(service) if is_of(line)]

    def counted() -> int:
        return sum(1 + line.get("others_untold", 0) for line in found())

    eventually(lambda: counted() >= times, f"{times} to be told or counted")
    assert counted() == times
    assert len(found()) <= 2 + time.monotonic() - began


@from_checks_on
def test_a_flood_of_what_is_no_request_does_not_flood_the_log(start: Start) -> None:
    service = start()
    began = time.monotonic()

    def flood(times: int) -> None:
        for _ in range(times):
            with service.connect() as connection:
                connection.send(b"NONSENSE\r\n\r\n")
                assert connection.socket.recv(12) == b"HTTP/1.1 400"

    with ThreadPoolExecutor(7) as pool:
        assert list(pool.map(flood, [500] * 7)) == [None] * 7
    assert_all_told(service, began, 3_500, lambda line: line.get("reason") == "malformed-http")
    assert len(lines(service)) < 20 + 2 * (time.monotonic() - began)
    assert service.stop() == 0
    assert service.log.count("\n") < 25 + 2 * (time.monotonic() - began)


@pytest.mark.usefixtures("root")
def test_what_other_packages_log_is_told_once_a_second_for_each_place_it_comes_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """uvicorn, for one, has a warning for each request that is none of HTTP."""
    out, clock = io.StringIO(), Clock(monkeypatch)
    handler = logs.set_up("info", "json", out)
    other = logging.getLogger("uvicorn.error")

    def flood(times: int) -> None:
        for i in range(times):
            other.warning("Invalid HTTP request received from %d.", i)

    def said() -> list[tuple[str, int]]:
        found = [json.loads(line) for line in out.getvalue().splitlines()]
        out.seek(0)
        out.truncate()
        return [(line["message"], line.get("others_untold", 0)) for line in found]

    flood(1_000)
    other.warning("something else")
    assert said() == [("Invalid HTTP request received from 0.", 0), ("something else", 0)]
    clock.now += 0.9
    handler.tell_the_rest()
    assert said() == []
    clock.now += 0.2
    handler.tell_the_rest()
    assert said() == [("Invalid HTTP request received from 999.", 998)]
    flood(3)
    clock.now += 1.1
    flood(1)  # nobody has asked to tell the rest
    assert said() == [("Invalid HTTP request received from 0.", 3)]
    flood(2)
    handler.tell_the_rest(now=True)
    assert said() == [("Invalid HTTP request received from 1.", 1)]
    for _ in range(2):
        clock.now += 1.1
        handler.tell_the_rest()
    assert said() == []
    assert not handler._others._told  # noqa: SLF001  # what is over is forgotten, which shows in memory alone


class Clock:
    """Elapsed time, as the log sees it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_what_was_not_told_when_a_service_stops_is_counted(start: Start) -> None:
    service = start("--drain-seconds", "0")
    for _ in range(5):
        assert service.http.get("/nothing").status_code == 404
    assert service.stop() == 0
    assert sum(1 + line.get("others_untold", 0) for line in told(service, "refused")) == 5


def test_nothing_of_a_body_a_header_or_a_query_is_logged(start: Start) -> None:
    service = start("--log-level", "debug")
    bodies = [
        {"x": {SECRET: 1}, "y": 1},
        {"x": {"a": SECRET}, "y": 1, "id": SECRET},
        {"x": {"a": "b"}, "y": 1, "id": SECRET},  # in conflict with the one before
        {"x": {SECRET: [SECRET]}, "y": 1},
        {"x": {}, "y": SECRET},
        {"id": SECRET + "unknown", "y": 1},
        {SECRET: 1},
        {"spec": SECRET},
        {"rule": SECRET},
    ]
    headers = {"authorization": f"Bearer {SECRET}", "cookie": SECRET, "x-request-id": f'"{SECRET}"'}
    contents: list[str | bytes] = [*map(json.dumps, bodies), SECRET, f'{{"x": "{SECRET}'.encode() + b"\xff"]
    for body in contents:
        for method, path in (
            ("POST", "/learn"),
            ("POST", "/predict"),
            ("PUT", "/models/m"),
            ("POST", "/models/m/explain"),
        ):
            for kind in ("application/json", "application/x-ndjson", SECRET):
                url = f"{path}?token={SECRET}"
                service.http.request(method, url, content=body, headers={**headers, "content-type": kind})
    assert service.http.get("/livez").status_code == 200
    assert len(told(service, "request")) > 100
    assert SECRET not in service.log


@from_checks_on
def test_a_mistake_is_a_500_without_a_trace_whose_id_leads_to_the_trace_in_the_log(tmp_path: Path) -> None:
    """In a process of its own: a mistake has to be put into it."""
    program = """
import sys, pathlib
from service.learning import model
from service.http import routes, server
from service import settings
from service.storage.folder import FolderLock
def mistake(self, *_):
    raise ZeroDivisionError("a mistake put here")
model.Model.predict = routes.explaining = mistake
found = settings.Settings(data=pathlib.Path(sys.argv[1]), port=0, drain_seconds=0)
sys.exit(server.serve(found, FolderLock(found.data)))
"""
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "data")], stdout=out, stderr=out)
    try:
        port = eventually(lambda: re.search(r"serves http://[\d.]+:(\d+) ", log.read_text()), "it to listen")[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            eventually(lambda: http.get("/readyz").status_code == 200, "it to be ready")
            for path in ("/predict", "/models/default/explain"):
                problem = assert_problem(http.post(path, content='{"x": {"a": 1}}', headers=JSON), 500)
                assert "mistake put here" not in str(problem)

                def trace(of: str = problem["request_id"]) -> list[dict[str, Any]]:
                    logged = [json.loads(line) for line in log.read_text().splitlines()]
                    return [line for line in logged if line.get("request_id") == of and "trace" in line]

                (found,) = eventually(trace, "the trace to be logged")
                assert "ZeroDivisionError" in found["trace"]
                assert found["level"] == "error"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


# -- for programs and for people


@pytest.fixture
def root() -> Iterator[None]:
    """Leave logging as it was."""
    handlers, level, own = logging.root.handlers[:], logging.root.level, logs.logger.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    logs.logger.setLevel(own)


@pytest.mark.usefixtures("root")
def test_a_json_line_is_one_line_whatever_is_in_it() -> None:
    out = io.StringIO()
    logs.set_up("info", "auto", out)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logs.logger.exception("it\nhappened: %s", "\x00\u2028é", extra=logs.fields(path=Path("/a\nb"), n=1.5))
    logs.logger.debug("not told")
    assert out.getvalue().count("\n") == 1
    line = out.getvalue().rstrip("\n")
    found = json.loads(line)
    assert found["message"] == "it\nhappened: \x00\u2028é"
    assert (found["path"], found["n"], found["level"]) == ("/a\nb", 1.5, "error")
    assert "ValueError: two\nlines" in found["trace"]


@pytest.mark.usefixtures("root")
def test_a_line_for_a_person_cannot_be_made_to_look_like_two() -> None:
    out = io.StringIO()
    logs.set_up("info", "console", out)
    refusals = logs.Refusals()
    refusals.tell(errors.NotFound(path="/"), "GET", "/a\n2026-01-01 00:00:00.000 ERROR   on fire", "id-1")
    assert out.getvalue().count("\n") == 1
    assert out.getvalue().rstrip().endswith("request_id=id-1")
    assert "INFO    refused reason=not-found status=404 method=GET path='/a\\n2026" in out.getvalue()


@pytest.mark.usefixtures("root")
def test_of_others_only_warnings_are_told_at_debug_too() -> None:
    out = io.StringIO()
    logs.set_up("debug", "json", out)
    logging.getLogger("numba.core").debug("hundreds of these")
    logging.getLogger("uvicorn.error").warning("but this")
    logs.logger.debug("and this")
    assert [json.loads(line)["message"] for line in out.getvalue().splitlines()] == ["but this", "and this"]


@from_checks_on
def test_on_a_terminal_it_is_for_a_person(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen([LOGSTEP, "serve", "--data", str(tmp_path / "data"), "--port", "0"], stderr=theirs)
    os.close(theirs)
    try:
        said = b""
        while b"recovered" not in said:
            said += os.read(ours, 4096)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert b" INFO    logstep serves http://127.0.0.1:" in said
    assert b"{" not in said
