"""The real service as a process, an engine inside a test, and an oracle that replays a log in a process of its own.

The oracle is plain: it reads the log's rows and gives their events, one at a time and by name, to `Learner.learn_one`.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from http.client import HTTPMessage
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, TypeVar

import pytest
from forked import Logstep, clean_environment, elsewhere, serve

from core import Learner, Spec
from core.batch import Batch
from service import clock, errors
from service.clock import SYSTEM
from service.learning.engine import Engine
from service.learning.request import Duplicate, Kept, LateLabel, Learned, Refused, Result, Run
from service.settings import Settings
from service.storage.log import LogReader

HOST = "127.0.0.1"
START_SECONDS = 120.0
"""Until a service must be ready; the first start on a machine may compile."""
STOP_SECONDS = 30.0
LOST = (OSError, http.client.HTTPException)
"""What a client sees of a kill."""
_LISTENS = re.compile(r"logstep serves http://127\.0\.0\.1:(\d+) ")


@contextmanager
def running(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process that is killed at the end, if it has not ended. (`with Popen` would wait for it.)"""
    with subprocess.Popen([*map(str, command)], **options) as process:
        try:
            yield process
        finally:
            process.kill()


# -- the service as a process


class Service:
    """A running `logstep serve` on one data folder. Leaving the `with` block kills it, whatever happened."""

    def __init__(
        self,
        folder: Path,
        *flags: str,
        file_limit: int | None = None,
        tracing: Sequence[str] = (),
        told: Sequence[str] = (),
        first: Callable[[], None] | None = None,
    ) -> None:
        """`file_limit`, `tracing`, `first`: see `Logstep`. `told`: what to put before the command, see
        `told_the_time_by`."""
        arguments, env = serve(folder, *flags), clean_environment()
        self.folder = folder
        self._log_path = folder.with_name(f"{folder.name}.service-log")
        self.process: Logstep | subprocess.Popen[bytes]
        if told:
            logstep = str(Path(sys.executable).with_name("logstep"))
            with self._log_path.open("wb") as log:
                self.process = subprocess.Popen([*told, logstep, *arguments], stdout=log, stderr=log, env=env)
        else:
            self.process = Logstep(
                *arguments, log=self._log_path, env=env, file_limit=file_limit, tracing=tracing, first=first
            )
        self.port = 0

    def __enter__(self) -> Service:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.kill()

    @property
    def log(self) -> str:
        """What the service has logged so far."""
        return self._log_path.read_text()

    def wait_until_ready(self) -> Service:
        """Wait until it listens and has recovered; AssertionError with its log if it does not."""
        self._wait(lambda: _LISTENS.search(self.log) is not None)
        found = _LISTENS.search(self.log)
        assert found is not None
        self.port = int(found[1])
        self._wait(lambda: self._answers("/readyz"))
        return self

    def _wait(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not done():
            assert self.process.poll() is None, f"the service ended: {self.process.returncode}\n{self.log}"
            assert time.monotonic() < deadline, f"the service was not ready in time\n{self.log}"
            time.sleep(0.005)

    def _answers(self, path: str) -> bool:
        try:
            return self.request("GET", path)[0] == 200
        except LOST:
            return False

    def kill(self) -> None:
        """kill -9, as a power cut would end it; nothing if it has ended."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(STOP_SECONDS)

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(HOST, self.port, timeout=60)

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """One request on a connection of its own: status and reply."""
        connection = self.connect()
        try:
            return exchange(connection, method, path, body)
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        status, reply = self.request("GET", path)
        assert status == 200, reply
        return reply

    def learn(self, events: Sequence[Mapping[str, Any]], model: str = "default") -> Any:
        """Learn an array of events: the reply."""
        status, reply = self.request("POST", f"/models/{model}/learn", list(events))
        assert status == 200, reply
        return reply


def exchange(connection: http.client.HTTPConnection, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """One request on an open connection: status and reply."""
    status, reply, _ = exchange_whole(connection, method, path, body)
    return status, reply


def exchange_whole(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any = None
) -> tuple[int, Any, HTTPMessage]:
    """The same, and the reply's headers."""
    data = None if body is None else json.dumps(body).encode()
    connection.request(method, path, data, {} if data is None else {"content-type": "application/json"})
    response = connection.getresponse()
    text = response.read()
    return response.status, json.loads(text) if text else None, response.headers


def faketime() -> Path | None:
    """The library that tells a process another time (Debian's package faketime)."""
    return next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


def told_the_time_by(clock: Path) -> list[str]:
    """What to put before a command so that the time of day is ahead by what stands in a file ("+0d"); elapsed time
    stays as it is."""
    clock.write_text("+0d")
    told = {"FAKETIME_TIMESTAMP_FILE": clock, "FAKETIME_NO_CACHE": 1, "FAKETIME_DONT_FAKE_MONOTONIC": 1}
    return ["env", f"LD_PRELOAD={faketime()}", *(f"{name}={value}" for name, value in told.items())]


# -- an engine inside the test

K = TypeVar("K")
CLOCK = SYSTEM
"""What engines are told the time by; see Clock."""


def new_engine(folder: Path, **settings: Any) -> Engine:
    """An engine on a folder, which is made if it is not there; not started."""
    folder.mkdir(exist_ok=True)
    return Engine(Settings(data=folder, **settings), CLOCK)


async def started(folder: Path, **settings: Any) -> Engine:
    """An engine on a folder that has recovered, or failed to."""
    engine = new_engine(folder, **settings)
    await recover(engine)
    return engine


async def recover(engine: Engine) -> None:
    """Start an engine, and wait until it has recovered, or failed to."""
    engine.start()
    assert engine._recovery is not None
    await asyncio.wait([engine._recovery])


def chore_of(engine: Engine, kind: type[K]) -> K:
    """The chore of that kind."""
    return next(chore for chore in engine._chores._chores if isinstance(chore, kind))


@asynccontextmanager
async def running_engine(folder: Path, **settings: Any) -> AsyncIterator[Engine]:
    """An engine that is ready, stopped at the end."""
    engine = await started(folder, **settings)
    try:
        assert engine.state == "ready", engine.failure
        yield engine
    finally:
        await engine.stop(seconds=0)


class Clock:
    """The time for engines that a test makes from now on. The time of day can be set; both can pass.

    It stands in the place of the module `time` in `modules`.
    """

    perf_counter = staticmethod(time.perf_counter)

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
        self.ahead = self.passed = 0.0
        monkeypatch.setattr(sys.modules[__name__], "CLOCK", clock.Clock(self.time, self.monotonic))
        for module in modules:
            monkeypatch.setattr(module, "time", self)

    def time(self) -> float:
        return time.time() + self.ahead

    def time_ns(self) -> int:
        return time.time_ns() + int(self.ahead * 1e9)

    def monotonic(self) -> float:
        return time.monotonic() + self.passed

    def let_pass(self, seconds: float, *engines: Engine) -> None:
        """Let time pass for engines."""
        self.passed += seconds
        self.advance(seconds, *engines)

    def advance(self, seconds: float, *engines: Engine) -> None:
        """Set it forward (or back), and wake the engines that sleep until a time that has come."""
        self.ahead += seconds
        for engine in engines:
            engine.queue.work.set()


# -- data folders


def copied(folder: Path, to: Path) -> Path:
    """A copy of a data folder as it stands, also while it is open but not writing: what a kill would leave behind."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("lock", "*-shm"))
    return to


class Told:
    """A result by columns: the events and labels that were learned or are duplicates, the predictions, the error."""

    def __init__(self, result: Result) -> None:
        assert not isinstance(result, Run)
        events = [outcome for outcome in result if isinstance(outcome, Learned | Duplicate)]
        self.seq = [event.seq for event in events]
        self.p = [event.p if isinstance(event, Learned) else None for event in events]
        self.loss = [event.loss if isinstance(event, Learned) else None for event in events]
        self.duplicate = [isinstance(event, Duplicate) for event in events]
        self.late_labels: dict[int, LateLabel] = {
            i: event.late for i, event in enumerate(events) if isinstance(event, Learned) and event.late is not None
        }
        self.predicted = [outcome for outcome in result if isinstance(outcome, Kept)]
        refused = [outcome.error for outcome in result if isinstance(outcome, Refused)]
        assert not any(isinstance(outcome, Refused) for outcome in result[:-1]), "nothing follows what is refused"
        self.error: errors.LogstepError | None = refused[0] if refused else None


def told(result: Result | Told) -> Told:
    """A result by columns."""
    return result if isinstance(result, Told) else Told(result)


def events_of(batch: Batch, names: Sequence[str]) -> Iterator[tuple[dict[str, float], int, float]]:
    """A batch's events as a caller would have sent them: x by name, y, weight."""
    offsets, columns, values = batch.offsets.tolist(), batch.columns.tolist(), batch.values.tolist()
    for i, (y, weight) in enumerate(zip(batch.labels.tolist(), batch.weights.tolist(), strict=True)):
        event = slice(offsets[i], offsets[i + 1])
        yield dict(zip([names[c] for c in columns[event]], values[event], strict=True)), y, weight


def logged_events(folder: Path, model: str = "default") -> list[tuple[dict[str, float], int, float]]:
    """Every event that is in the log of a model, in order of seq."""
    log = LogReader(folder)
    try:
        (key,) = [stored.key for stored in log.models() if stored.name == model]
        names = log.names(key)
        return [event for batch in log.batches(key, after=log.gone(key)) for event in events_of(batch, names)]
    finally:
        log.close()


# -- the oracle


def replay(folder: Path) -> dict[str, dict[str, Any]]:
    """For each model what its log comes to: seq, sha256."""
    log = LogReader(folder)
    replayed: dict[str, dict[str, Any]] = {}
    for stored in log.models():
        spec = dict(stored.spec)
        hashed = spec.pop("hash_bits") is not None  # the names in the log are hashes already
        learner = Learner(Spec.from_dict(spec))
        names = log.names(stored.key)
        if hashed:
            assert all(name.startswith("#") for name in names)
        if log.gone(stored.key):  # then its oldest snapshot says what was learned from the events that are gone
            state = log.snapshots.state(stored.key, log.snapshots.seqs(stored.key)[-1])["learner"]
            learner = Learner.from_state({**state, "spec": spec, "names": names[: state["n_features"]]})
        for batch in log.batches(stored.key, after=learner.seq):
            for x, y, weight in events_of(batch, names):
                learner.learn_one(x, y, weight)
        replayed[stored.name] = {"seq": learner.seq, "sha256": learner.sha256()}
    log.close()
    return replayed


def replayed_elsewhere(folder: Path) -> dict[str, dict[str, Any]]:
    """`replay` in a process of its own."""
    return elsewhere(replay, folder)
