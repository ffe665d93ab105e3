"""Compares the service with the plain peer, and with one that keeps events, over HTTP on this machine's loopback.

It measures requests per second and latency percentiles for learn and predict, at several numbers of connections. The
sides take turns, one server at a time, so the machine's noise affects both. Each turn starts the server in a fresh
folder, warms it up, and loads learn at each number of connections, then predict. The table shows medians over the
rounds, and ratios of these medians.

The peer keeps its model in memory. The durable peer is the same program, which also writes each event to SQLite and
syncs it before it replies. So does the service. The folders are temporary (TMPDIR chooses where). On tmpfs a sync costs
nothing, so the output names the file system.

    python tests/benchmarks/http_benchmark.py --seconds 5 --rounds 3 --connections 1,32,128 --generator auto

Exit status 0: the measurement ran (it judges nothing). 1: something failed; the message says what.
"""

import argparse
import os
import platform
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from urllib.error import URLError
from urllib.request import urlopen

from load import HOST, TAIL, LoadError, LoadResult, choose_generator, describe_generator, measure

OPERATIONS = ("learn", "predict")
START_TIMEOUT = 120.0
"""Most seconds until a server is ready; the first start on a machine may compile."""
STOP_TIMEOUT = 15.0
"""Seconds that a server gets to end before it is killed."""
WARM_UP = 1
"""Seconds of load on each path before a turn's measurements."""


class BenchmarkError(Exception):
    """The measurement failed."""


@dataclass(frozen=True)
class Side:
    """A server to measure. Each start fills in `{port}` and `{folder}` in its command."""

    name: str
    command: tuple[str, ...]
    ready: str
    """Path that answers 200 once the server is ready."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    port: int
    pid: int
    folder: Path


@dataclass(frozen=True)
class Plan:
    seconds: int
    rounds: int
    connections: tuple[int, ...]
    generator: str

    def cells(self) -> list[tuple[str, int]]:
        """Learn comes first, so that a trained model makes the predictions."""
        return [(operation, connections) for operation in OPERATIONS for connections in self.connections]


Results = dict[tuple[str, str, int], list[LoadResult]]
"""(side, operation, connections) -> one result per round."""


def sides() -> tuple[Side, Side]:
    """The peer and logstep."""
    logstep = Path(sys.executable).with_name("logstep")
    if not logstep.exists():
        raise BenchmarkError(f"no logstep command next to {sys.executable}: install the project in this environment")
    peer = str(Path(__file__).with_name("peer.py").resolve())
    serve = (str(logstep), "serve", "--data", "{folder}", "--host", HOST, "--port", "{port}")
    return (
        Side("peer", (sys.executable, peer, "--port", "{port}"), "/openapi.json"),
        Side("logstep", serve, "/readyz"),
    )


def durable_peer() -> Side:
    """The peer that keeps events."""
    peer, _ = sides()
    return Side("durable peer", (*peer.command, "--keep", "{folder}/events.db"), peer.ready)


# Servers


@contextmanager
def running(side: Side, fill: Callable[[Path], None] = lambda folder: None) -> Iterator[Server]:
    """Start the server in a fresh folder, or one that `fill` filled, yield it once it is ready, and end it in every
    case."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        fill(Path(folder))
        port = free_port()
        command = [part.format(port=port, folder=folder) for part in side.command]
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)
        try:
            wait_until_ready(process, f"http://{HOST}:{port}{side.ready}")
            yield Server(port, process.pid, Path(folder))
        except (BenchmarkError, LoadError) as error:
            output.seek(0)
            tail = output.read().decode(errors="replace")[-TAIL:].strip() or "(nothing)"
            raise BenchmarkError(f"{side.name}: {error}\nThe server's last output:\n{tail}") from error
        finally:
            stop(process)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not answers(url):
        if process.poll() is not None:
            raise BenchmarkError(f"the server ended with status {process.returncode} before it was ready")
        if time.monotonic() > deadline:
            raise BenchmarkError(f"the server was not ready after {START_TIMEOUT:.0f} s")
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (URLError, OSError):  # not listening yet, or not ready yet (503)
        return False


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        print(f"killing a server that did not end within {STOP_TIMEOUT:.0f} s", file=sys.stderr)
    finally:  # even if a second Ctrl-C interrupts the wait
        process.kill()
        process.wait()


# Measurement


def run(plan: Plan, contestants: Sequence[Side]) -> Results:
    results: Results = {}
    for number in range(1, plan.rounds + 1):
        for side in contestants:
            print(f"round {number} of {plan.rounds}: {side.name}", file=sys.stderr)
            with running(side) as server:
                take_turn(plan, side, server.port, results)
                tell_log(server.folder)
    return results


def take_turn(plan: Plan, side: Side, port: int, results: Results) -> None:
    for operation in OPERATIONS:
        warm_up = measure(plan.generator, port, f"/{operation}", max(plan.connections), WARM_UP)
        if warm_up.errors:
            raise BenchmarkError(f"{warm_up.errors} errors while warming up {operation}")
    for operation, connections in plan.cells():
        result = measure(plan.generator, port, f"/{operation}", connections, plan.seconds)
        results.setdefault((side.name, operation, connections), []).append(result)
        print(f"  {operation:<8}{connections:>4} connections: {describe(result)}", file=sys.stderr)


def tell_log(folder: Path) -> None:
    """Print the sizes of the service's files. A write-ahead log does not shrink below 64 MiB."""
    sizes = [f"{path.name} {path.stat().st_size / 2**20:.1f} MiB" for path in sorted(folder.glob("log.db*"))]
    if sizes:
        print(f"  {', '.join(sizes)}", file=sys.stderr)


def describe(result: LoadResult) -> str:
    milliseconds = f"p50 {result.p50_ms:.2f}, p99 {result.p99_ms:.2f}, p99.9 {result.p999_ms:.2f} ms"
    rates = f"{result.requests_per_second:,.0f}/s, {milliseconds}"
    return f"FAILED with {result.errors} errors ({rates})" if result.errors else rates


# Report


def medians(results: list[LoadResult]) -> LoadResult:
    """The median of each number over the rounds. Errors are summed, because one spoils the cell."""
    return LoadResult(
        requests_per_second=median(result.requests_per_second for result in results),
        p50_ms=median(result.p50_ms for result in results),
        p99_ms=median(result.p99_ms for result in results),
        p999_ms=median(result.p999_ms for result in results),
        errors=sum(result.errors for result in results),
    )


def table(plan: Plan, results: Results, first: str, second: str) -> str:
    """Two sides, by their names."""
    names = f"{'':>20} |{first:^37}|{second:^37}|{f'{second} / {first}':^24}"
    head = f"{'':<8}{'connections':>12} |" + f"{'per s':>9}{'p50 ms':>9}{'p99 ms':>9}{'p99.9':>9} |" * 2
    lines = [names, head + f"{'per s':>8}{'p50':>8}{'p99':>8}", "-" * len(names)]
    for operation, connections in plan.cells():
        left, right = (medians(results[name, operation, connections]) for name in (first, second))
        lines.append(f"{operation:<8}{connections:>12} |{numbers(left)} |{numbers(right)} |{ratios(left, right)}")
    return "\n".join(line.rstrip() for line in lines)


def numbers(result: LoadResult) -> str:
    if result.errors:
        return f"{f'{result.errors} errors':>36}"
    return f"{result.requests_per_second:>9,.0f}{result.p50_ms:>9.2f}{result.p99_ms:>9.2f}{result.p999_ms:>9.2f}"


def ratios(left: LoadResult, right: LoadResult) -> str:
    if left.errors or right.errors:
        return f"{'no ratio':>24}"
    pairs = [
        (right.requests_per_second, left.requests_per_second),
        (right.p50_ms, left.p50_ms),
        (right.p99_ms, left.p99_ms),
    ]
    return "".join(f"{above / below:>8.2f}" for above, below in pairs)


def machine(generator: str) -> str:
    """One line about the machine and the load generator."""
    return (
        f"{processor()}, {os.cpu_count()} cores, {file_system(Path(tempfile.gettempdir()))} file system, "
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, load by {describe_generator(generator)}"
    )


def processor() -> str:
    """The processor's model name from Linux, else Python's."""
    source = Path("/proc/cpuinfo")
    lines = source.read_text().splitlines() if source.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def file_system(folder: Path) -> str:
    """The type of `folder`'s file system, from its nearest mount point."""
    source = Path("/proc/self/mounts")
    mounts = [line.split() for line in source.read_text().splitlines()] if source.exists() else []
    types = {mount[1]: mount[2] for mount in mounts}
    places = [str(place) for place in (folder.resolve(), *folder.resolve().parents)]
    return next((types[place] for place in places if place in types), "unknown")


# Command


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(f"{value} is not positive")
    return value


def positives(text: str) -> tuple[int, ...]:
    return tuple(positive(part) for part in text.split(","))


def arguments() -> Plan:
    parser = argparse.ArgumentParser(description="Compare the service with a plain FastAPI and river server.")
    parser.add_argument("--seconds", type=positive, default=5, help="length of each measurement (default 5)")
    parser.add_argument("--rounds", type=positive, default=3, help="number of rounds (default 3)")
    parser.add_argument("--connections", type=positives, default=(1, 32, 128), help="default 1,32,128")
    parser.add_argument("--generator", choices=("auto", "wrk", "python"), default="auto")
    options = parser.parse_args()
    return Plan(options.seconds, options.rounds, options.connections, choose_generator(options.generator))


def main() -> int:
    # On SIGTERM, end the server too, as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        plan, (peer, logstep), durable = arguments(), sides(), durable_peer()
        results = run(plan, (peer, durable, logstep))
    except (BenchmarkError, LoadError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1
    print(machine(plan.generator))
    print(table(plan, results, peer.name, logstep.name))
    print(table(plan, results, durable.name, logstep.name))
    errors = sum(result.errors for rounds in results.values() for result in rounds)
    if errors:
        print(f"failed: {errors} errors, see the table", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
