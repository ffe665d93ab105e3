"""The cost of predictions that wait for their labels.

First it loads services in turn with single learns without ids, and with single predictions with ids; both are durable.
Then another service keeps `--waiting` predictions (NDJSON, random ids), is killed and restarted, and gets all their
labels in random order. It measures rates, the memory of the process, the size of its files, and the time of a start
with and without waiting predictions.

    python tests/benchmarks/waiting.py --waiting 1000000 --features 10 --seconds 5 --rounds 5

Exit status 0: the measurement ran (it judges nothing). 1: something failed; the message says what.
"""

import argparse
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any

from http_benchmark import BenchmarkError, machine, positive, running, sides, wait_until_ready
from load import HOST, LoadError, LoadResult, choose_generator, measure

PIECE = 10_000
"""Predictions or labels per request."""


# Single requests


def measure_single(generator: str, seconds: int, rounds: int) -> None:
    results: dict[str, list[LoadResult]] = {"learn": [], "predict with an id": []}
    _, logstep = sides()
    for _ in range(rounds):
        for name, path, ids in (("learn", "/learn", False), ("predict with an id", "/predict", True)):
            with running(logstep) as server:
                measure(generator, server.port, path, 32, 1, ids)
                results[name].append(measure(generator, server.port, path, 32, seconds, ids))
    rates = {name: median(result.requests_per_second for result in found) for name, found in results.items()}
    for name, found in results.items():
        errors = sum(result.errors for result in found)
        p99 = median(result.p99_ms for result in found)
        print(f"{name:<20}{rates[name]:>10,.0f} a second at 32 connections, p99 {p99:.2f} ms, {errors} errors")
    print(f"ratio {rates['predict with an id'] / rates['learn']:.2f}")


# Many waiting predictions


@contextmanager
def service(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], HTTPConnection, float]]:
    """A service on a folder, a connection to it, and the seconds until it was ready. Kills the service at the end."""
    with tempfile.NamedTemporaryFile() as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            [Path(sys.executable).with_name("logstep"), "serve", "--data", str(folder), "--port", "0"],
            stdout=log,
            stderr=log,
        )
        try:
            while (found := re.search(r"serves http://127\.0\.0\.1:(\d+) ", Path(log.name).read_text())) is None:
                if process.poll() is not None:
                    raise BenchmarkError(f"the service ended: {Path(log.name).read_text()}")
                time.sleep(0.01)
            wait_until_ready(process, f"http://{HOST}:{found[1]}/readyz")
            yield process, HTTPConnection(HOST, int(found[1]), timeout=120), time.perf_counter() - started
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


def send(connection: HTTPConnection, path: str, lines: list[dict[str, Any]]) -> bytes:
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    connection.request("POST", path, body, {"content-type": "application/x-ndjson"})
    reply = connection.getresponse()
    text = reply.read()
    if reply.status != 200:
        raise BenchmarkError(f"POST {path} was refused: {text[:500]!r}")
    return text


def memory(process: subprocess.Popen[bytes]) -> float:
    """Resident memory of a process in MB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1e3


def size(folder: Path) -> str:
    sizes = [path.stat().st_size / 1e6 for path in (folder / "log.db", folder / "log.db-wal")]
    return f"log.db {sizes[0]:,.0f} MB, write-ahead log {sizes[1]:,.0f} MB"


def measure_waiting(waiting: int, features: int) -> None:
    numbers = random.Random(1)
    ids = [str(uuid.UUID(int=numbers.getrandbits(128))) for _ in range(waiting)]
    with tempfile.TemporaryDirectory(prefix="logstep-waiting-") as name:
        folder = Path(name)
        with service(folder) as (process, _, empty_start):
            print(f"an empty service: ready after {empty_start:.2f} s, {memory(process):,.0f} MB of memory")
        with service(folder) as (process, connection, _):
            seconds = 0.0
            for start in range(0, waiting, PIECE):
                lines = [
                    {"x": {f"feature-{i}": numbers.gauss(0, 1) for i in range(features)}, "id": id_}
                    for id_ in ids[start : start + PIECE]
                ]
                begun = time.perf_counter()
                send(connection, "/predict", lines)
                seconds += time.perf_counter() - begun
            print(f"{waiting:,} predictions of {features} features kept: {waiting / seconds:,.0f} a second")
            print(f"  {memory(process):,.0f} MB of memory, {size(folder)}")
        starts = []
        for _ in range(3):
            with service(folder) as (process, _, ready):
                starts.append(ready)
                after = memory(process)
        print(f"  after kill -9 ready after {median(starts):.2f} s, {after:,.0f} MB of memory")
        numbers.shuffle(ids)
        with service(folder) as (process, connection, _):
            seconds = 0.0
            for start in range(0, waiting, PIECE):
                labels = [{"id": id_, "y": numbers.getrandbits(1)} for id_ in ids[start : start + PIECE]]
                begun = time.perf_counter()
                send(connection, "/learn", labels)
                seconds += time.perf_counter() - begun
            print(f"all labels, in random order: {waiting / seconds:,.0f} a second")
            time.sleep(20)  # the service frees memory and disk every few seconds
            print(f"  {memory(process):,.0f} MB of memory, {size(folder)}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the cost of predictions that wait for their labels.")
    parser.add_argument("--waiting", type=positive, default=1_000_000)
    parser.add_argument("--features", type=positive, default=10)
    parser.add_argument("--seconds", type=positive, default=5)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--generator", choices=("auto", "wrk", "python"), default="auto")
    options = parser.parse_args()
    try:
        generator = choose_generator(options.generator)
        print(machine(generator))
        measure_single(generator, options.seconds, options.rounds)
        measure_waiting(options.waiting, options.features)
    except (BenchmarkError, LoadError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
