"""The real service as a process, and what tests ask of it."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import Any

import httpx
from effort import EFFORT
from forked import Logstep, children, clean_environment, serve
from patience import PATIENCE, eventually

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
START_SECONDS = 120.0
"""Until a service must be ready; the first start on a machine may compile."""
STOP_SECONDS = PATIENCE
LOST = (OSError, HTTPException)
"""What a client sees of a kill."""
_LISTENS = re.compile(r"logstep serves http://[\d.]+:(\d+) ")
LOGSTEP = str(Path(sys.executable).with_name("logstep"))
JSON = {"content-type": "application/json"}
NDJSON = {"content-type": "application/x-ndjson"}
PLAIN: Any = {"trust_env": False, "verify": False}
"""For clients that speak no TLS: to read all that the machine trusts takes as long as a dozen requests."""


@contextmanager
def running(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process that is killed at the end, if it has not ended. (`with Popen` would wait for it.)"""
    with subprocess.Popen([*map(str, command)], **options) as process:
        try:
            yield process
        finally:
            process.kill()


def copy_source(into: Path) -> None:
    """Copy what a wheel is built of into a new folder."""
    into.mkdir()
    for name in ("pyproject.toml", "logstep.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, into)
    for name in ("core", "service", ".ci"):
        shutil.copytree(ROOT / name, into / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))


# -- what is sent and received

Content = str | bytes | Iterable[bytes]


def ndjson(events: Iterable[Any]) -> bytes:
    """Events as NDJSON."""
    return "".join(json.dumps(event) + "\n" for event in events).encode()


@dataclass(frozen=True)
class Reply:
    """What came back on a `Connection`."""

    status: int
    headers: dict[str, str]
    text: str

    def json(self) -> Any:
        return json.loads(self.text)


class Connection:
    """A connection on which a test says exactly which bytes are sent, and when."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_head(self, path: str, method: str = "POST", **headers: str | int) -> None:
        """The request line and the headers; `content_type="..."` is the header `content-type`."""
        lines = [f"{method} {path} HTTP/1.1", "host: localhost"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send("\r\n".join([*lines, "", ""]).encode())

    def send_chunk(self, data: bytes) -> None:
        """A piece of a chunked body; an empty one ends it."""
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def reply(self) -> Reply:
        """Wait for the reply, and read it."""
        response = HTTPResponse(self.socket)
        try:
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, headers, response.read().decode())
        finally:
            response.close()


def exchange(connection: HTTPConnection, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """One request on an open connection: status and reply."""
    status, reply, _ = exchange_whole(connection, method, path, body)
    return status, reply


def exchange_whole(
    connection: HTTPConnection, method: str, path: str, body: Any = None
) -> tuple[int, Any, HTTPMessage]:
    """The same, and the reply's headers."""
    data = None if body is None else json.dumps(body).encode()
    connection.request(method, path, data, {} if data is None else {"content-type": "application/json"})
    response = connection.getresponse()
    text = response.read()
    return response.status, json.loads(text) if text else None, response.headers


# -- services and their models


class Model:
    """A named model of a service."""

    def __init__(self, service: Service, name: str) -> None:
        self.service = service
        self.name = name
        self.path = f"/models/{name}"

    def learn(self, events: Any) -> httpx.Response:
        """An event, or a list of events as a JSON array."""
        return self.service.http.post(f"{self.path}/learn", content=json.dumps(events), headers=JSON)

    def learn_lines(self, body: Content) -> httpx.Response:
        """A body of NDJSON; sent in chunks where it is an iterator."""
        return self.service.http.post(f"{self.path}/learn", content=body, headers=NDJSON)

    def predict(self, questions: Any) -> httpx.Response:
        return self.service.http.post(f"{self.path}/predict", content=json.dumps(questions), headers=JSON)

    def predict_lines(self, body: Content) -> httpx.Response:
        return self.service.http.post(f"{self.path}/predict", content=body, headers=NDJSON)

    def create(self, spec: Any) -> httpx.Response:
        return self.service.http.put(self.path, content=json.dumps(spec), headers=JSON)

    def delete(self) -> httpx.Response:
        return self.service.http.delete(self.path)

    def crosscheck(self) -> httpx.Response:
        return self.service.http.get(f"{self.path}/crosscheck", timeout=4 * PATIENCE)  # river replays the log

    def assert_equal_to_river(self) -> None:
        """A cross-check loads river in a process of its own, which takes three seconds. So quick leaves it to the tests
        of the cross-check."""
        if EFFORT != "quick":
            assert self.crosscheck().json()["equal"] is True

    def weights(self) -> dict[str, Any]:
        return self.service.get(f"{self.path}/weights")

    def state(self) -> dict[str, Any]:
        """What `GET /models/{model}` says."""
        return self.service.get(self.path)

    def mark(self) -> tuple[int, int, str]:
        """seq, number of features and SHA-256: equal before and after what must not change the model.

        The empty array waits its turn: what was sent before it has been dealt with when it is answered.
        """
        assert self.learn([]).json() == []
        state = self.state()
        return state["seq"], state["features"], state["sha256"]


class Service:
    """A `logstep serve` in a process of its own, on a free port of this machine. Leaving a `with` block kills it."""

    def __init__(
        self,
        folder: Path,
        *flags: str,
        log: Path | None = None,
        env: Mapping[str, str] | None = None,
        told: Sequence[str] = (),
        file_limit: int | None = None,
        tracing: Sequence[str] = (),
        first: Callable[[], None] | None = None,
    ) -> None:
        """`log`: where it logs, a file beside the folder by default. `env`: more settings. `told`: what to put before
        the command, see `told_the_time_by`. `file_limit`, `tracing`, `first`: see `Logstep`."""
        self.folder = folder
        self.port = 0
        self.http = httpx.Client(timeout=PATIENCE, **PLAIN)
        self._log = log or folder.with_name(f"{folder.name}.service-log")
        environment, cwd = clean_environment() | dict(env or {}), self._log.parent
        self.process: Logstep | subprocess.Popen[bytes]
        if told:
            with self._log.open("wb") as file:
                command = [*told, LOGSTEP, *serve(folder, *flags)]
                self.process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=cwd)
        else:
            self.process = Logstep(
                *serve(folder, *flags),
                log=self._log, env=environment, cwd=cwd, file_limit=file_limit, tracing=tracing, first=first,
            )  # fmt: skip

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, however it is."""
        self.kill()

    # -- the process

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self._log.read_text()

    def wait_for_port(self) -> Service:
        """Wait until it listens; it may still be recovering."""
        self.port = int(self._wait(lambda: _LISTENS.search(self.log), "the service to listen")[1])
        self.http.base_url = httpx.URL(f"http://{HOST}:{self.port}")
        return self

    def wait_until_ready(self) -> Service:
        """Wait until it listens and has recovered; AssertionError with its log if it ends before."""
        if not self.port:
            self.wait_for_port()
        self._wait(self._is_ready, "the service to be ready")
        return self

    def _wait(self, done: Callable[[], Any], what: str) -> Any:
        def done_or_ended() -> Any:
            result = done()
            assert result or self.process.poll() is None, f"it ended: {self.process.returncode}\n{self.log}"
            return result

        return eventually(done_or_ended, what, START_SECONDS)

    def _is_ready(self) -> bool:
        try:
            return self.request("GET", "/readyz")[0] == 200
        except LOST:
            return False

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep the process from running: it finds all at once what is sent meanwhile."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """The exit code; fails if the process takes longer than `seconds` to end."""
        return self.process.wait(seconds)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """`kill -9`, as a power cut would end it; nothing if it has ended."""
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        self.http.close()

    def children(self) -> set[int]:
        """The process ids of its own child processes."""
        return children(self.process.pid)

    # -- what is asked of it

    def another_client(self) -> httpx.Client:
        """A client with connections of its own."""
        return httpx.Client(base_url=self.http.base_url, timeout=PATIENCE, **PLAIN)

    def model(self, name: str = "default") -> Model:
        return Model(self, name)

    def get(self, path: str) -> dict[str, Any]:
        """What a GET that must succeed says."""
        response = self.http.get(path)
        assert response.status_code == 200, response.text
        result: dict[str, Any] = response.json()
        return result

    def learn(self, events: Sequence[Mapping[str, Any]], model: str = "default") -> Any:
        """What is said when an array of events is learned."""
        status, reply = self.request("POST", f"/models/{model}/learn", list(events))
        assert status == 200, reply
        return reply

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """One request on a connection of its own: status and reply."""
        with closing(self.client()) as client:
            return exchange(client, method, path, body)

    def client(self) -> HTTPConnection:
        """One connection, for `exchange`."""
        return HTTPConnection(HOST, self.port, timeout=60)

    def connect(self) -> Connection:
        """One connection, for bytes."""
        return Connection(self.port)

    def post_at_once(self, path: str, bodies: Sequence[bytes]) -> list[Reply]:
        """Send JSON bodies on as many connections, so that the service finds them at the same moment; the replies."""
        with ExitStack() as stack:
            connections = [stack.enter_context(self.connect()) for _ in bodies]
            for connection, body in zip(connections, bodies, strict=True):
                connection.send_head(path, content_type="application/json", content_length=len(body))
            eventually(lambda: self.http.get("/livez").status_code == 200, "a reply after the requests began")
            with self.paused():
                for connection, body in zip(connections, bodies, strict=True):
                    connection.send(body)
            return [connection.reply() for connection in connections]


Start = Callable[..., Service]


NewModel = Callable[..., Model]


class Starter:
    """Starts services below a folder, and ends all of them."""

    def __init__(self, below: Path) -> None:
        self._below = below
        self._numbers = itertools.count(1)
        self.services: list[Service] = []

    def __call__(
        self,
        *flags: str,
        folder: Path | None = None,
        ready: bool = True,
        env: dict[str, str] | None = None,
        first: Callable[[], None] | None = None,
    ) -> Service:
        """A service on `folder`, a new one by default. Returns when it is ready, or, without `ready`, when it runs.
        first: what its process is to do before."""
        number = next(self._numbers)
        log = self._below / f"log-{number}"
        service = Service(folder or self._below / f"data-{number}", *flags, log=log, env=env, first=first)
        self.services.append(service)
        if ready:
            service.wait_until_ready()
        return service

    def close(self) -> None:
        """End them; a trace in the log of one of them is a failure of its own."""
        for service in self.services:
            service.close()
        for service in self.services:
            assert "Traceback" not in service.log, service.log


# -- the time of a service


def ahead_by(hours: Path) -> None:
    """What a service's process does first: its time of day is ahead by the hours that stand in a file; elapsed time
    stays as it is."""
    from service.clock import Clock
    from service.learning.engine import Engine

    own = time.time

    def wall() -> float:
        return own() + 3_600 * float(hours.read_text() or 0)  # it may be about to be written

    time.time = wall
    Engine.__init__.__defaults__ = (Clock(wall), None)


def faketime() -> Path | None:
    """The library that tells a process another time (Debian's package faketime)."""
    return next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


def told_the_time_by(clock: Path) -> list[str]:
    """The same by faketime: what to put before a command so that the time of day is ahead by what stands in a file
    ("+0d"), for all that the process does."""
    clock.write_text("+0d")
    told = {"FAKETIME_TIMESTAMP_FILE": clock, "FAKETIME_NO_CACHE": 1, "FAKETIME_DONT_FAKE_MONOTONIC": 1}
    return ["env", f"LD_PRELOAD={faketime()}", *(f"{name}={value}" for name, value in told.items())]


def assert_problem(response: httpx.Response | Reply, status: int, *details: str) -> dict[str, Any]:
    """That a reply is a problem document with this status, whose detail contains each of `details`; the document."""
    code = response.status_code if isinstance(response, httpx.Response) else response.status
    assert code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert "Traceback" not in response.text
    problem: dict[str, Any] = response.json()
    assert problem.keys() >= {"type", "title", "status", "detail"}
    assert problem["status"] == status
    for detail in details:
        assert detail in problem["detail"]
    return problem
