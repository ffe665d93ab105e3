"""A real service for the tests: a process of its own, on a free port, in a folder of its own."""

from __future__ import annotations

import http.client
import itertools
import json
import random
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from effort import EFFORT
from forked import Logstep, clean_environment, end, serve, started
from patience import PATIENCE, eventually

LOGSTEP = str(Path(sys.executable).with_name("logstep"))
JSON = {"content-type": "application/json"}
NDJSON = {"content-type": "application/x-ndjson"}
PLAIN: Any = {"trust_env": False, "verify": False}
"""For clients that speak no TLS: to read all that the machine trusts takes as long as a dozen requests."""

# Doctests are looked for in every file, and to import these takes seconds.
collect_ignore = ["benchmarks", "golden", "schemathesis_hooks.py"]

LONG_SECONDS = 3 * 3600.0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The efforts: see effort.py."""
    if EFFORT == "long":
        for item in items:
            item.add_marker(pytest.mark.timeout(LONG_SECONDS))
    if EFFORT != "quick":
        return
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("few"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    left_out: set[pytest.Item] = set()
    for name, all_of_them in cases.items():
        mark = all_of_them[0].get_closest_marker("few")
        assert mark is not None
        too_many = max(0, len(all_of_them) - mark.args[0])
        left_out.update(random.Random(name).sample(all_of_them, too_many))
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=list(left_out))


@pytest.fixture(autouse=True)
def what_a_test_started_ends_with_it() -> Iterator[None]:
    """Also if it failed, or took too long. What fixtures of a module or session started is there before."""
    before = started()
    yield
    for pid in started() - before:
        end(pid)


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
        response = http.client.HTTPResponse(self.socket)
        try:
            response.begin()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, headers, response.read().decode())
        finally:
            response.close()


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
        return self.service.http.get(f"{self.path}/crosscheck")

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
    """A service in a process of its own."""

    def __init__(self, folder: Path, log_file: Path, flags: tuple[str, ...], env: dict[str, str]) -> None:
        self.folder = folder
        self.log_file = log_file
        self.process = Logstep(*serve(folder, *flags), log=log_file, env=clean_environment() | env, cwd=log_file.parent)
        self.http = httpx.Client(timeout=PATIENCE, **PLAIN)
        self.port = 0

    def log(self) -> str:
        """What the process has logged."""
        return self.log_file.read_text()

    def wait_for_port(self) -> None:
        """Wait until the service listens; it may still be recovering."""

        def found() -> re.Match[str] | None:
            if self.process.poll() is not None:
                pytest.fail(f"the service ended with code {self.process.returncode}:\n{self.log()}")
            return re.search(r"serves http://[\d.]+:(\d+) ", self.log())

        self.port = int(eventually(found, "the service to listen")[1])
        self.http.base_url = httpx.URL(f"http://127.0.0.1:{self.port}")

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            if self.process.poll() is not None:
                pytest.fail(f"the service ended with code {self.process.returncode}:\n{self.log()}")
            return self.http.get("/readyz").status_code == 200

        eventually(ready, "the service to be ready")

    def get(self, path: str) -> dict[str, Any]:
        """What a GET that must succeed says."""
        response = self.http.get(path)
        assert response.status_code == 200, response.text
        result: dict[str, Any] = response.json()
        return result

    def another_client(self) -> httpx.Client:
        """A client with connections of its own."""
        return httpx.Client(base_url=self.http.base_url, timeout=PATIENCE, **PLAIN)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep the process from running: it finds all at once what is sent meanwhile."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

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

    def connect(self) -> Connection:
        return Connection(self.port)

    def model(self, name: str = "default") -> Model:
        return Model(self, name)

    def children(self) -> set[int]:
        """The process ids of the service's own child processes."""
        found: set[int] = set()
        for thread in Path(f"/proc/{self.process.pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
                found |= {int(pid) for pid in (thread / "children").read_text().split()}
        return found

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 10.0) -> int:
        """The exit code; fails if the process takes longer than `seconds` to end."""
        return self.process.wait(seconds)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL: the process ends between two instructions."""
        self.process.kill()
        self.wait()

    def close(self) -> None:
        """End the process, however it is, and let go of everything."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.http.close()


Start = Callable[..., Service]


class Starter:
    """Starts services below a folder, and ends all of them."""

    def __init__(self, below: Path) -> None:
        self._below = below
        self._numbers = itertools.count(1)
        self.services: list[Service] = []

    def __call__(
        self, *flags: str, folder: Path | None = None, ready: bool = True, env: dict[str, str] | None = None
    ) -> Service:
        """A service on `folder`, a new one by default. Returns when it is ready, or, without `ready`, when it runs."""
        number = next(self._numbers)
        service = Service(folder or self._below / f"data-{number}", self._below / f"log-{number}", flags, env or {})
        self.services.append(service)
        if ready:
            service.wait_for_port()
            service.wait_until_ready()
        return service

    def close(self) -> None:
        """End them; a trace in the log of one of them is a failure of its own."""
        for service in self.services:
            service.close()
        for service in self.services:
            assert "Traceback" not in service.log(), service.log()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a service: `start("--window", "10")`; `start(folder=...)` for a folder that is there already."""
    starter = Starter(tmp_path)
    yield starter
    starter.close()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all tests that need no own; each uses its own model."""
    starter = Starter(tmp_path_factory.mktemp("shared"))
    yield starter()
    starter.close()


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service with small limits: bodies of 4,096 bytes, lines of 2,048, three models."""
    starter = Starter(tmp_path_factory.mktemp("small"))
    yield starter("--max-body-bytes", "4096", "--max-line-bytes", "2048", "--max-models", "3")
    starter.close()


_names = itertools.count(1)
NewModel = Callable[..., Model]


@pytest.fixture
def new_model(shared: Service) -> NewModel:
    """Make a model with a spec (the default one if none is given) on the shared service, under a name of its own."""

    def create(**spec: Any) -> Model:
        model = shared.model(f"model-{next(_names)}")
        created = model.create(spec)
        assert created.status_code == 201, created.text
        return model

    return create


@pytest.fixture
def model(new_model: NewModel) -> Model:
    """A new model with the default spec, on the shared service."""
    return new_model()


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
