"""Compares the service with its floors: the least possible cost, or its own speed without disturbance.

    predict                one prediction per request, 32 connections, against an endpoint that only parses the body
    learn alone            one durable learn at a time, against one write and fdatasync of the same number of bytes
    learn by hand          the same, against an endpoint that parses the body, writes so many bytes, syncs and replies
    predict while learning predictions while another connection learns NDJSON at full rate, against the same alone
    1,000 models           learns at 32 connections over the models in turn, against one model
    1,000 models, later    the same with 300 events of each model in the log, each in a row, against an empty log
    start                  time to the first answer, against `python -c "import fastapi, river, numba"`

    python tests/benchmarks/floors.py --seconds 3 --rounds 5

Each round measures both sides in turn. The table shows medians over the rounds. Exit status 0: the measurement ran (it
judges nothing). 1: something failed; the message says what.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from statistics import median

import numpy as np
from bulk import NDJSON, Events, logstep_seconds
from http_benchmark import BenchmarkError, Server, Side, answers, free_port, machine, positive, running, sides, stop
from load import FEATURES, HOST, MODELS, LoadError, choose_generator, measure

from core.batch import Batch
from core.spec import Spec
from service.storage.store import ModelBatch, Store

IMPORTS = "import fastapi, river, numba"
SYNCS = 500
ROOM = 4 * 2**20
"""Bytes of the file that the floor of a learn overwrites again and again: about the size of the write-ahead log."""
ROWS = 300
"""Events of each model that the log has before the measurement `1,000 models, later`."""


def rate(generator: str, server: Server, path: str, connections: int, seconds: int) -> float:
    """Requests per second, after a second of warm-up."""
    measure(generator, server.port, path, connections, 1)
    result = measure(generator, server.port, path, connections, seconds)
    if result.errors:
        raise BenchmarkError(f"{result.errors} errors at {path}")
    return result.requests_per_second


def logstep() -> Side:
    return sides()[1]


# -- the contests: each round gives (ours, theirs)


def predict(generator: str, seconds: int) -> tuple[float, float]:
    """Predictions per second, and replies per second of the endpoint that only parses."""
    script = str(Path(__file__).with_name("floor.py").resolve())
    with running(logstep()) as server:
        rate(generator, server, "/learn", 32, 1)
        ours = rate(generator, server, "/predict", 32, seconds)
    with running(Side("floor", (sys.executable, script, "--port", "{port}"), "/")) as server:
        return ours, rate(generator, server, "/predict", 32, seconds)


def learn_alone(generator: str, seconds: int) -> tuple[float, float]:
    """Median milliseconds of a learn on one connection, and of a write and fdatasync of the same number of bytes."""
    with running(logstep()) as server:
        ours, size = one_at_a_time(generator, server, seconds)
        return ours, write_and_sync(server.folder, size)


def learn_by_hand(generator: str, seconds: int) -> tuple[float, float]:
    """The same, and what an endpoint takes that keeps as many bytes."""
    with running(logstep()) as server:
        ours, size = one_at_a_time(generator, server, seconds)
    script = str(Path(__file__).with_name("floor.py").resolve())
    keeps = ("--write", "{folder}/bodies", "--bytes", str(size))
    with running(Side("floor", (sys.executable, script, "--port", "{port}", *keeps), "/")) as server:
        return ours, one_at_a_time(generator, server, seconds)[0]


def one_at_a_time(generator: str, server: Server, seconds: int) -> tuple[float, int]:
    """Median milliseconds of a learn on one connection, and how many bytes it writes."""
    measure(generator, server.port, "/learn", 1, 1)
    before = written(server.pid)
    result = measure(generator, server.port, "/learn", 1, seconds)
    return result.p50_ms, round((written(server.pid) - before) / (result.requests_per_second * seconds))


def written(pid: int) -> int:
    """Number of bytes that a process has written so far."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return next(int(line.partition(":")[2]) for line in lines if line.startswith("wchar"))


def write_and_sync(folder: Path, size: int) -> float:
    """Median milliseconds of one write of `size` bytes and one fdatasync."""
    times = []
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(ROOM))
        file.flush()
        os.fsync(file.fileno())
        for i in range(SYNCS):
            place = i * size % (ROOM - size)
            started = time.perf_counter()
            os.pwrite(file.fileno(), bytes(size), place)
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - started)
    return 1000 * median(times)


def predict_while_learning(generator: str, seconds: int) -> tuple[float, float]:
    """p99 in milliseconds of predictions at 8 connections: while the service learns NDJSON, and undisturbed."""
    body = Events.random(100_000, 10).ndjson()
    with running(logstep()) as server:
        logstep_seconds(server.port, body, NDJSON, 100_000)
        measure(generator, server.port, "/predict", 8, 1)
        idle = measure(generator, server.port, "/predict", 8, seconds).p99_ms
        with learning(server, body):
            return measure(generator, server.port, "/predict", 8, seconds).p99_ms, idle


@contextmanager
def learning(server: Server, body: bytes) -> Iterator[None]:
    """Send the same body again and again in the background."""
    end, failed = threading.Event(), list[BenchmarkError]()

    def run() -> None:
        try:
            while not end.is_set():
                logstep_seconds(server.port, body, NDJSON, 100_000)
        except BenchmarkError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
    if failed:
        raise failed[0]


def many_models(generator: str, seconds: int) -> tuple[float, float]:
    """Learns per second over many models in turn, and on one."""
    with running(logstep()) as server:
        connection = HTTPConnection(HOST, server.port)
        for i in range(MODELS):
            connection.request("PUT", f"/models/model-{i}", "{}", {"content-type": "application/json"})
            connection.getresponse().read()
        connection.close()
        many = rate(generator, server, "/models/{}/learn", 32, seconds)
        return many, rate(generator, server, "/models/model-0/learn", 32, seconds)


def many_models_later(generator: str, seconds: int) -> tuple[float, float]:
    """Learns per second over many models in turn that have learned before, and over new ones."""
    with running(logstep(), partial(fill, rows=ROWS)) as server:
        later = rate(generator, server, "/models/{}/learn", 32, seconds)
    with running(logstep(), partial(fill, rows=0)) as server:
        return later, rate(generator, server, "/models/{}/learn", 32, seconds)


def fill(folder: Path, rows: int) -> None:
    """Make a log of MODELS models with so many events each, as those learn that take turns: each event is a row."""
    names = [f"f{i}" for i in range(FEATURES)]
    columns, values = np.arange(FEATURES, dtype=np.int32), np.random.default_rng(0).normal(size=FEATURES)
    event = Batch(np.array([0, FEATURES]), columns, values, np.ones(1, np.uint8), np.ones(1))
    with closing(Store(folder)) as store:
        keys = [store.create_model(f"model-{i}", Spec().as_dict()).key for i in range(MODELS)]
        for seq in range(1, rows + 1):
            store.commit([ModelBatch(key, seq, event, 0, names if seq == 1 else [], None) for key in keys])
            while store.indexing.due:
                store.indexing.step()


def start(generator: str, seconds: int) -> tuple[float, float]:
    """Seconds from the start of the process to its first answer, and of a process that only imports."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        command = [part.format(port=port, folder=folder) for part in logstep().command]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not answers(f"http://{HOST}:{port}/readyz"):
                time.sleep(0.005)
            ours = time.perf_counter() - started
        finally:
            stop(process)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return ours, time.perf_counter() - started


CONTESTS: dict[str, tuple[str, Callable[[str, int], tuple[float, float]]]] = {
    "predict": ("a second", predict),
    "learn alone": ("ms, p50", learn_alone),
    "learn by hand": ("ms, p50", learn_by_hand),
    "predict while learning": ("ms, p99", predict_while_learning),
    "1,000 models": ("a second", many_models),
    "1,000 models, later": ("a second", many_models_later),
    "start": ("s", start),
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the service with its floors.")
    parser.add_argument("--seconds", type=positive, default=3, help="length of each measurement (default 3)")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--only", choices=CONTESTS, action="append", help="measure only this; may be repeated")
    parser.add_argument("--generator", choices=("auto", "wrk", "python"), default="auto")
    options = parser.parse_args()
    try:
        generator = choose_generator(options.generator)
        print(machine(generator))
        print(f"{'':<24}{'unit':<10}{'logstep':>12}{'floor':>12}{'ratio':>8}")
        for name, (unit, contest) in CONTESTS.items():
            if options.only and name not in options.only:
                continue
            rounds = [contest(generator, options.seconds) for _ in range(options.rounds)]
            ours, theirs = (median(side) for side in zip(*rounds, strict=True))
            print(f"{name:<24}{unit:<10}{ours:>12,.2f}{theirs:>12,.2f}{ours / theirs:>8.2f}", flush=True)
    except (BenchmarkError, LoadError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
