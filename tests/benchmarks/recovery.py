"""Compares the time in which a service recovers a log with the time to read the same file.

It writes a log with the store, `--events-per-commit` events in each commit and no snapshot. Then it starts the real
service on that folder `--rounds` times and kills it each time, so every start finds the same log. It measures the
seconds that the service reports ("recovered in X s"), the seconds from the start of the process until /readyz answers
200, and, in turn with them, the seconds that `cat` takes for the file. The table shows medians. The file is always in
the page cache.

    python tests/benchmarks/recovery.py --events 1000000 --features 10 --events-per-commit 20 --rounds 3

`--profile` also replays the log in this process and prints where the time goes.

Exit status 0: the measurement ran (it judges nothing). 1: something failed; the message says what.
"""

from __future__ import annotations

import argparse
import cProfile
import platform
import pstats
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np

from core import Spec
from core.batch import Batch
from service.learning.recovery import Recovery
from service.settings import Settings
from service.storage.store import ModelBatch, Store

START_TIMEOUT = 600.0
"""Most seconds until a service is ready."""
CHUNK = 20_000
"""Events to make up at once."""


class BenchmarkError(Exception):
    """The measurement failed."""


def batches(events: int, features: int, events_per_commit: int) -> Iterator[Batch]:
    """Made-up events, each with all features, in batches of one commit each."""
    rng = np.random.default_rng(1)
    truth = rng.normal(size=features)
    columns = np.arange(features, dtype=np.int32)
    whole = max(CHUNK // events_per_commit, 1) * events_per_commit
    for start in range(0, events, whole):
        n = min(whole, events - start)
        values = rng.normal(size=(n, features))
        labels = (values @ truth > 0).astype(np.uint8)
        offsets = np.arange(n + 1, dtype=np.int64) * features
        yield from Batch(offsets, np.tile(columns, n), values.ravel(), labels, np.ones(n)).slices(events_per_commit)


def write_log(folder: Path, events: int, features: int, events_per_commit: int) -> None:
    """Write a log of one model. It is not synced, because writing is not measured."""
    store = Store(folder)
    store.log.db.connection.execute("PRAGMA synchronous = OFF")
    model = store.create_model("default", Spec().as_dict()).key
    names, seq = [f"feature-{i}" for i in range(features)], 0
    for batch in batches(events, features, events_per_commit):
        store.commit([ModelBatch(model, seq + 1, batch, 0, names if seq == 0 else [], None)])
        seq += len(batch)
    store.close()


def measure_service(folder: Path) -> tuple[float, float]:
    """Seconds of recovery as the service reports them, and from the start of its process until it is ready."""
    logstep = str(Path(sys.executable).with_name("logstep"))
    command = [logstep, "serve", "--data", str(folder), "--port", "0", "--snapshot-seconds", "1000"]
    with tempfile.NamedTemporaryFile() as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            port = int(wait_for(r"serves http://127\.0\.0\.1:(\d+) ", Path(log.name), process))
            while not is_ready(port):
                wait_for("", Path(log.name), process)
                time.sleep(0.01)
            until_ready = time.perf_counter() - started
            recovered = float(wait_for(r"recovered in ([0-9.]+) s", Path(log.name), process))
        finally:
            process.send_signal(signal.SIGKILL)  # a graceful stop would leave a snapshot
            process.wait()
    return recovered, until_ready


def wait_for(pattern: str, log: Path, process: subprocess.Popen[bytes]) -> str:
    """Wait for a pattern in a service's log and return its first group."""
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        found = re.search(pattern, log.read_text())
        if found is not None:
            return found[found.lastindex or 0]
        if process.poll() is not None:
            raise BenchmarkError(f"the service ended with status {process.returncode}:\n{log.read_text()}")
        if time.monotonic() > deadline:
            raise BenchmarkError(f"the service was not ready after {START_TIMEOUT:.0f} s")
        time.sleep(0.01)


def is_ready(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as response:
            return bool(response.status == 200)
    except URLError:
        return False


def measure_cat(path: Path) -> float:
    """Seconds that `cat` takes to read a file."""
    started = time.perf_counter()
    with path.open("rb") as file:
        subprocess.run(["cat"], stdin=file, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def measure(options: argparse.Namespace, events_per_commit: int) -> str:
    """A row of the table."""
    with tempfile.TemporaryDirectory(prefix="logstep-recovery-") as name:
        folder = Path(name)
        write_log(folder, options.events, options.features, events_per_commit)
        if options.profile:
            profile(folder)
        size = (folder / "log.db").stat().st_size
        recovered, ready, cat = [], [], []
        for _ in range(options.rounds):
            cat.append(measure_cat(folder / "log.db"))
            seconds, until_ready = measure_service(folder)
            recovered.append(seconds)
            ready.append(until_ready)
    events_per_second = options.events / median(recovered) if median(recovered) else float("inf")
    return (
        f"{events_per_commit:>17,} {size / 1e6:>9,.1f} {median(recovered):>12.2f} {events_per_second:>12,.0f} "
        f"{1e6 * median(recovered) / options.events:>9.3f} {median(ready):>12.2f} {median(cat):>8.3f}"
    )


def profile(folder: Path) -> None:
    """Replay the log in this process and print where the time goes."""
    store = Store(folder)
    recovery = Recovery(store.log, Settings(data=folder), given_up=lambda: False)
    profiler = cProfile.Profile()
    profiler.enable()
    recovery.models()
    profiler.disable()
    store.close()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(18)


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure how long a service takes to recover a log.")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=10, help="per event")
    parser.add_argument("--events-per-commit", default="20", help="one or several, like 1,20,1000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="also print where the time of a replay goes")
    options = parser.parse_args()
    print(f"{platform.platform()}, Python {platform.python_version()}")
    print(f"{options.events:,} events of {options.features} features; medians of {options.rounds} round(s)")
    print("events per commit   log, MB  recovery, s     events/s  us/event  to ready, s   cat, s")
    try:
        for events_per_commit in map(int, options.events_per_commit.split(",")):
            print(measure(options, events_per_commit), flush=True)
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
