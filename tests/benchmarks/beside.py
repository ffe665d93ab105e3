"""How much learning is left beside predictions, and how long predictions take beside a stream.

First 8 connections learn single events alone, then beside 1 and beside 8 connections that predict as fast as they can:
closed loops, so nobody waits politely. Then 8 connections predict alone, beside 8 that learn, and beside a stream of
NDJSON at full rate.
`--busy 2` keeps so many processors busy with other processes meanwhile, as on a machine with neighbours.

The ratios compare the rows of one service within a round; the table shows their medians over the rounds. To compare
two versions, run both in turn.

    python tests/benchmarks/beside.py --seconds 4 --rounds 5 --busy 0

Exit status 0: the measurement ran (it judges nothing). 1: something failed; the message says what.
"""

import argparse
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from statistics import median

from http_benchmark import BenchmarkError, machine, positive, running, sides
from load import HOST, LoadError, LoadResult, bodies, choose_generator, measure

LEARNERS = PREDICTORS = 8
STREAM_EVENTS = 30_000
"""Events of one request of the stream; the next follows at once."""


@contextmanager
def beside(generator: str, port: int, path: str, connections: int, seconds: int) -> Iterator[None]:
    """Requests as fast as they come, from before the block until after it."""
    with ThreadPoolExecutor() as pool:
        told = pool.submit(measure, generator, port, path, connections, seconds)
        yield
        if told.result().errors:
            raise BenchmarkError(f"some requests of {path} failed")


@contextmanager
def streaming(port: int) -> Iterator[None]:
    """A stream of NDJSON that another request continues when it ends."""
    lines = bodies("/learn")
    body = "\n".join(lines[i % len(lines)] for i in range(STREAM_EVENTS)).encode()
    ends = threading.Event()

    def send() -> None:
        connection = HTTPConnection(HOST, port, timeout=60)
        while not ends.is_set():
            connection.request("POST", "/learn", body, {"content-type": "application/x-ndjson"})
            told = json.loads(connection.getresponse().read())
            if told.get("learned") != STREAM_EVENTS:
                raise BenchmarkError(f"the stream was refused: {told}")

    with ThreadPoolExecutor() as pool:
        sent = pool.submit(send)
        try:
            yield
        finally:
            ends.set()
        sent.result()


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that do nothing but take a processor."""
    with ExitStack() as ends:
        for _ in range(processes):
            process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            ends.callback(process.wait)
            ends.callback(process.kill)
        yield


def one_round(generator: str, seconds: int) -> dict[str, LoadResult]:
    found: dict[str, LoadResult] = {}
    _, logstep = sides()
    with running(logstep) as server:
        measure(generator, server.port, "/learn", LEARNERS, 1)
        found["learn"] = measure(generator, server.port, "/learn", LEARNERS, seconds)
        for others in (1, PREDICTORS):
            with beside(generator, server.port, "/predict", others, seconds + 2):
                found[f"learn beside {others}"] = measure(generator, server.port, "/learn", LEARNERS, seconds)
        found["predict"] = measure(generator, server.port, "/predict", PREDICTORS, seconds)
        with beside(generator, server.port, "/learn", LEARNERS, seconds + 2):
            found[f"predict beside {LEARNERS}"] = measure(generator, server.port, "/predict", PREDICTORS, seconds)
        with streaming(server.port):
            found["predict beside a stream"] = measure(generator, server.port, "/predict", PREDICTORS, seconds)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure learning and predictions beside each other.")
    parser.add_argument("--seconds", type=positive, default=4)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--busy", type=int, default=0, help="processes that take processors meanwhile")
    parser.add_argument("--generator", choices=("auto", "wrk", "python"), default="auto")
    options = parser.parse_args()
    try:
        generator = choose_generator(options.generator)
        print(machine(generator))
        with busy(options.busy):
            rounds = [one_round(generator, options.seconds) for _ in range(options.rounds)]
    except (BenchmarkError, LoadError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    for name in rounds[0]:
        alone = name.partition(" ")[0]
        rate = median(found[name].requests_per_second for found in rounds)
        ratio = median(found[name].requests_per_second / found[alone].requests_per_second for found in rounds)
        p99 = median(found[name].p99_ms for found in rounds)
        errors = sum(found[name].errors for found in rounds)
        print(f"{name:<26}{rate:>10,.0f} a second   {ratio:.2f} of alone   p99 {p99:7.2f} ms   {errors} errors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
