"""The demo: two real streams through a real service, their scores, the cross-check with river, and a kill -9."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from service.children import command, stop_signals
from service.commands.client import Client, NoAnswer, Refused
from service.commands.crosscheck import verdict
from service.commands.replay import Replay
from service.commands.replay_report import display
from service.commands.rows import Row
from service.commands.tally import Options, Tally
from service.commands.targets import GivenSpec, Target
from service.commands.terminal import Failed, show
from service.events import Event

SPECS: dict[str, dict[str, Any]] = {
    "phishing": {"learning_rate": 0.3},
    "shuttle": {"learning_rate": 0.00001},
}
"""Shuttle needs smaller steps: its values reach the hundreds and are not scaled."""
START_SECONDS = 60.0
STOP_SECONDS = 15.0


def demo(keep: bool = False) -> int:
    """Run the demo; with `keep`, serve until Ctrl-C. Returns the exit code. Leaves nothing behind."""
    for number in stop_signals():
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # so that the cleanup below runs
    with tempfile.TemporaryDirectory(prefix="logstep-demo-") as folder:
        service = _Service(Path(folder))
        try:
            _show_all(service)
            if keep:
                _keep(service)
            service.stop()
        finally:
            service.kill()
    print(
        "The service has stopped and its folder is gone. Next: `logstep serve`, `logstep replay FILE --label COLUMN`."
    )
    return 0


def _keep(service: _Service) -> None:
    """Serve until Ctrl-C."""
    print(f"The service keeps running at {service.url}/ , with a page that shows it learn. Ctrl-C ends it.", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        service.wait()
        raise Failed("the service ended unexpectedly")


def _show_all(service: _Service) -> None:
    service.start()
    print(f"Started a service at {service.url}, in a temporary folder.")
    with Client(service.url) as client:
        runs = {name: _stream(client, name) for name in SPECS}
        show("Two streams, each event predicted and then learned", *_scores(client, runs))
        print("River is now learning the same events, which takes some seconds.", flush=True)
        reports = {name: client.crosscheck(name) for name in SPECS}
        show("The same events through river", *_comparison(reports))
        before = _states(client)
    service.kill()
    started = service.start()
    with Client(service.url) as client:
        after = _states(client)
    show(f"After kill -9 and a restart in {started:.1f} s", *_survival(before, after))
    equal = all(report["equal"] and report["replay_equal"] for report in reports.values())
    if not equal or before != after:
        raise Failed("the demo failed: see the tables above")


class _Service:
    """The demo's own service, on a free port."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = str(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{self._port}"
        self._data = str(folder / "data")
        self._log = folder / "service.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start it, and wait until it is ready. Returns the seconds taken."""
        started = time.monotonic()
        flags = ("--data", self._data, "--port", self._port, "--drain-seconds", "0")
        settings = {name: value for name, value in os.environ.items() if not name.upper().startswith("LOGSTEP_")}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603  # our own command
                command("service.commands.entry", "serve", *flags),
                stdin=subprocess.PIPE,  # the service ends when this closes, with the demo
                stdout=log,
                stderr=log,
                env=settings,
                start_new_session=True,  # Ctrl-C must reach only the demo, which then ends the service
            )
        with Client(self.url) as client:
            while not _ready(client):
                if self._process.poll() is not None or time.monotonic() > started + START_SECONDS:
                    raise Failed(f"the service did not start: {self._log.read_text().strip()}")
                time.sleep(0.02)
        return time.monotonic() - started

    def kill(self) -> None:
        """kill -9, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def wait(self) -> None:
        """Wait until it ends."""
        if self._process is not None:
            self._process.wait()

    def stop(self) -> None:
        """Ask it to stop, and wait until it has stopped."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(STOP_SECONDS)


def _ready(client: Client) -> bool:
    try:
        client.ready()
    except (NoAnswer, Refused):
        return False
    return True


def _stream(client: Client, name: str) -> Tally:
    """Create a model and stream its data set into it."""
    target = Target(name, GivenSpec("", name, msgspec.json.encode(SPECS[name])))
    rows, tally = list(_rows(name)), Tally()
    with display(name, len(rows), lambda tally: tally.events) as (progress, notice):
        Replay(client, target, Options(name), tally, progress, notice).run(rows)
    return tally


def _rows(name: str) -> Iterator[Row]:
    """The events of a data set that river ships."""
    from river import datasets

    stream = {"phishing": datasets.Phishing, "shuttle": datasets.Shuttle}[name]()
    for number, (x, y) in enumerate(stream, 1):
        yield Row(number, number, Event(dict(x), int(y)))


# -- tables: rows and columns


Table = tuple[list[tuple[float | str | None, ...]], tuple[str, ...]]


def _scores(client: Client, runs: dict[str, Tally]) -> Table:
    columns = ("model", "events", "features", "events/s", "log loss", "guessing", "accuracy", "ROC AUC")
    rows: list[tuple[float | str | None, ...]] = []
    for name, tally in runs.items():
        state = client.model(name)
        scores = state["progressive"]["total"]
        scored = (scores[name] for name in ("log_loss", "base_rate_log_loss", "accuracy", "roc_auc"))
        rows.append((name, state["seq"], state["features"], int(tally.rate), *scored))
    return rows, columns


def _comparison(reports: dict[str, dict[str, Any]]) -> Table:
    return [(name, report["features"] + 1, report["max_ulp"], verdict(report)) for name, report in reports.items()], (
        "model",
        "weights",
        "largest ULP",
        "verdict",
    )


def _survival(before: dict[str, tuple[int, str]], after: dict[str, tuple[int, str]]) -> Table:
    rows: list[tuple[float | str | None, ...]] = []
    for name, (seq, sha256) in before.items():
        same = "the same" if after[name] == (seq, sha256) else "DIFFERENT"
        rows.append((name, seq, after[name][0], f"{sha256[:16]}…", f"{after[name][1][:16]}…", same))
    return rows, ("model", "seq before", "seq after", "state before", "state after", "")


def _states(client: Client) -> dict[str, tuple[int, str]]:
    """seq and SHA-256 of each model."""
    return {name: (state["seq"], state["sha256"]) for name in SPECS for state in (client.model(name),)}
