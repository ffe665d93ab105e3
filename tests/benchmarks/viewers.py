"""The cost of viewers: the learning rate while nobody watches the model, and while many do.

It sends single durable learns over 32 connections, in turn with 0 and with `--viewers` open streams of server-sent
events. It prints medians over the rounds. One process reads all streams.

    python tests/benchmarks/viewers.py --viewers 100 --seconds 5 --rounds 5

Exit status 0: the measurement ran (it judges nothing). 1: something failed; the message says what.
"""

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import uvloop
from http_benchmark import BenchmarkError, machine, positive, running, sides
from load import HOST, LoadError, LoadResult, choose_generator, measure


class Viewer(asyncio.Protocol):
    """Reads one stream without parsing it, to leave the processor to the service."""

    received = 0

    def data_received(self, data: bytes) -> None:
        Viewer.received += data.count(b"event: now")


async def watch(port: int, viewers: int) -> None:
    """Read streams until standard input ends, then print how many messages a second each viewer got."""
    loop = asyncio.get_running_loop()
    for _ in range(viewers):
        transport, _ = await loop.create_connection(Viewer, HOST, port)
        transport.write(f"GET /models/default/stream HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
    print("watching", flush=True)
    started = time.perf_counter()
    await loop.run_in_executor(None, sys.stdin.read)
    print(Viewer.received / viewers / (time.perf_counter() - started))


@contextlib.contextmanager
def watching(port: int, viewers: int) -> Iterator[list[float]]:
    """Run viewers in their own process. At the end the list has the messages per second of each viewer."""
    command = [sys.executable, __file__, "--watch", str(port), "--viewers", str(viewers)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    rates: list[float] = []
    try:
        if process.stdout is None or process.stdout.readline().strip() != "watching":
            raise BenchmarkError("the viewers could not connect")
        yield rates
        out, _ = process.communicate(timeout=10)
        rates.append(float(out))
    finally:
        process.kill()
        process.wait()


def busy(pid: int) -> float:
    """Processor time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def compare(generator: str, viewers: int, seconds: int, rounds: int) -> None:
    without: list[LoadResult] = []
    with_: list[LoadResult] = []
    seen: list[float] = []
    costs: list[tuple[float, float]] = []
    _, logstep = sides()
    with running(logstep) as server:

        def run(into: list[LoadResult]) -> float:
            """Microseconds of the service's processor time per learn."""
            before = busy(server.pid)
            into.append(measure(generator, server.port, "/learn", 32, seconds))
            return (busy(server.pid) - before) * 1e6 / (into[-1].requests_per_second * seconds)

        measure(generator, server.port, "/learn", 32, 1)
        for _ in range(rounds):
            alone = run(without)
            with watching(server.port, viewers) as rates:
                costs.append((alone, run(with_)))
            seen += rates
    rates_of = [median(result.requests_per_second for result in found) for found in (without, with_)]
    for name, found, rate in zip(("nobody", f"{viewers} viewers"), (without, with_), rates_of, strict=True):
        errors = sum(result.errors for result in found)
        p99 = median(result.p99_ms for result in found)
        print(f"{name:<14}{rate:>10,.0f} learns a second at 32 connections, p99 {p99:.2f} ms, {errors} errors")
    alone, watched = (median(cost) for cost in zip(*costs, strict=True))
    print(f"processor time of the service per learn: {alone:.1f} us, {watched:.1f} us")
    print(f"ratio {rates_of[1] / rates_of[0]:.3f}; each viewer got {median(seen):.1f} messages a second")


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the cost of viewers.")
    parser.add_argument("--viewers", type=positive, default=100)
    parser.add_argument("--seconds", type=positive, default=5)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--generator", choices=("auto", "wrk", "python"), default="auto")
    parser.add_argument("--watch", type=positive, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.watch:
        uvloop.run(watch(options.watch, options.viewers))
        return 0
    try:
        generator = choose_generator(options.generator)
        print(machine(generator))
        compare(generator, options.viewers, options.seconds, options.rounds)
    except (BenchmarkError, LoadError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
