"""What several nodes cost and bring, beside one service: `logstep serve --kafka` on three real brokers of this machine.

Brokers, nodes and load share the machine's processors, so the numbers are lower than with a machine for each. The
single service runs in turn with two nodes. The brokers are those of the tests (.ci/kafka fetches them).

    python tests/benchmarks/nodes.py --seconds 4 --rounds 3

Rows: single learns and predictions (rate, p50, p99), a stream of NDJSON, predictions of two nodes at once, catching up
(a node is stopped, records are written, the node goes on), and the longest reply of one node while the other, or the
broker that leads the partition, is killed.

Exit status 0: the measurement ran (it judges nothing). 1: something failed; the message says what.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import urlopen

from bulk import Events
from http_benchmark import BenchmarkError, Server, Side, machine, positive, running, sides
from load import HOST, LoadError, bodies, choose_generator, measure

sys.path.append(str(Path(__file__).resolve().parent.parent))
from broker import LASTING, Cluster, brokers
from confluent_kafka import Producer

from service.brokers import Brokers
from service.events import NDJSON
from service.replica import topic
from service.replica.records import Do, encode, partition_of
from service.table import Table

CONNECTIONS = (1, 32)
STREAM_EVENTS, STREAMS, WARM = 200_000, 5, 30
"""Events of a stream, how many are sent one after another, and how many before those: Java compiles the brokers while
they work, which takes as much time as they do. After 5 streams they still do, and brokers that have run for a minute do
not."""
SINGLES, TABLES, ROWS = 100_000, 2_000, 1_000
"""Records of one event, records of a table, and the rows of one table, to catch up with."""
GAP_SECONDS = 6.0
Rows = dict[str, list[float]]


def node(cluster: Cluster, name: str) -> Side:
    """A node of a topic."""
    _, single = sides()
    return Side("node", (*single.command, "--kafka", cluster.address, "--topic", name), single.ready)


@contextmanager
def two_nodes(cluster: Cluster, name: str) -> Iterator[tuple[Server, Server]]:
    topic.create(Brokers(cluster.address, {}), name)
    with running(node(cluster, name)) as one, running(node(cluster, name)) as two:
        yield one, two


def note(found: Rows, row: str, value: float) -> None:
    found.setdefault(row, []).append(value)


def requests(found: Rows, side: str, port: int, generator: str, seconds: int) -> None:
    for operation in ("learn", "predict"):
        for connections in CONNECTIONS:
            measure(generator, port, f"/{operation}", connections, 1)
            result = measure(generator, port, f"/{operation}", connections, seconds)
            if result.errors:
                raise BenchmarkError(f"{side}: {result.errors} requests failed")
            for what, value in (
                ("a second", result.requests_per_second),
                ("p50 ms", result.p50_ms),
                ("p99 ms", result.p99_ms),
            ):
                note(found, f"{side}: {operation} at {connections}, {what}", value)


def streamed(port: int, body: bytes) -> float:
    """Events a second of one NDJSON body."""
    connection = HTTPConnection(HOST, port, timeout=300)
    started = time.perf_counter()
    connection.request("POST", "/learn", body, {"content-type": NDJSON})
    told = json.loads(connection.getresponse().read())
    if told.get("learned") != STREAM_EVENTS:
        raise BenchmarkError(f"the stream was refused: {told}")
    return STREAM_EVENTS / (time.perf_counter() - started)


def predicted_by_both(ports: list[int], generator: str, seconds: int) -> float:
    """Predictions a second of several nodes at once, with as many connections in all as one gets."""
    with ThreadPoolExecutor() as pool:
        each = CONNECTIONS[-1] // len(ports)
        told = [pool.submit(measure, generator, port, "/predict", each, seconds) for port in ports]
        return sum(one.result().requests_per_second for one in told)


def seq_of(port: int) -> int:
    with urlopen(f"http://{HOST}:{port}/models/default", timeout=60) as reply:
        return int(json.loads(reply.read())["seq"])


def caught_up(cluster: Cluster, name: str, values: Iterator[tuple[Do, bytes]], events: int) -> float:
    """Events a second that a node applies which was stopped while they were written."""
    topic.create(Brokers(cluster.address, {}), name)
    with running(node(cluster, name)) as server:
        os.kill(server.pid, signal.SIGSTOP)
        producer = Producer({"bootstrap.servers": cluster.address, "linger.ms": 20})
        for do, value in values:
            place = name, value, b"default", partition_of(b"default", topic.PARTITIONS)
            while True:
                try:
                    producer.produce(*place, headers=[("do", do.value), ("stream", b"benchmark")])
                    break
                except BufferError:
                    producer.poll(0.1)
        if producer.flush(60):
            raise BenchmarkError("the brokers did not take the records")
        os.kill(server.pid, signal.SIGCONT)
        started = time.perf_counter()
        while seq_of(server.port) < events:
            time.sleep(0.05)
        return events / (time.perf_counter() - started)


def singles() -> Iterator[tuple[Do, bytes]]:
    some = bodies("/learn")
    return ((Do.LEARN, some[i % len(some)].encode()) for i in range(SINGLES))


def tables() -> Iterator[tuple[Do, bytes]]:
    drawn = Events.random(ROWS, 10)
    labels = (drawn.values.sum(axis=1) > 0).astype("uint8")
    record = encode(Table(1, [f"feature-{j}" for j in range(10)], drawn.values, None, labels), True)
    return (record for _ in range(TABLES))


def longest_reply(port: int, hurt: Callable[[], Any]) -> float:
    """Milliseconds of the longest learn at one connection while something is killed; a refused one is tried again."""
    body = bodies("/learn")[0]
    longest, hurt_at, until = 0.0, time.perf_counter() + 1.0, time.perf_counter() + GAP_SECONDS
    with ThreadPoolExecutor() as pool:
        hurting = None
        while time.perf_counter() < until:
            if hurting is None and time.perf_counter() > hurt_at:
                hurting = pool.submit(hurt)
            started = time.perf_counter()
            status = 503
            while status == 503:
                connection = HTTPConnection(HOST, port, timeout=60)
                connection.request("POST", "/learn", body, {"content-type": "application/json"})
                status = connection.getresponse().status
                connection.close()
            longest = max(longest, time.perf_counter() - started)
        if hurting is not None:
            hurting.result()
    return longest * 1e3


def one_round(cluster: Cluster, generator: str, seconds: int, found: Rows) -> None:
    stream = Events.random(STREAM_EVENTS, 10).ndjson()
    _, single = sides()
    with running(single) as server:
        for speed in [streamed(server.port, stream) for _ in range(WARM + STREAMS)][WARM:]:
            note(found, "one service: NDJSON, events a second", speed)
        requests(found, "one service", server.port, generator, seconds)
    with two_nodes(cluster, "requests") as (one, two):
        for speed in [streamed(one.port, stream) for _ in range(WARM + STREAMS)][WARM:]:  # first: the brokers are cold
            note(found, "node: NDJSON, events a second", speed)
        requests(found, "node", one.port, generator, seconds)
        note(found, "two nodes: predict, a second", predicted_by_both([one.port, two.port], generator, seconds))
    note(found, "catching up: single records a second", caught_up(cluster, "singles", singles(), SINGLES))
    note(found, "catching up: batched events a second", caught_up(cluster, "tables", tables(), TABLES * ROWS))
    with two_nodes(cluster, "gaps") as (one, two):
        gap = longest_reply(two.port, lambda: os.kill(one.pid, signal.SIGKILL))
        note(found, "longest learn while the other node is killed, ms", gap)
        leader = cluster.leader("gaps", partition_of(b"default", topic.PARTITIONS))
        gap = longest_reply(two.port, lambda: cluster.kill(leader))
        note(found, "longest learn while the leading broker is killed, ms", gap)
        cluster.mend()


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure several nodes beside one service.")
    parser.add_argument("--seconds", type=positive, default=4)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--generator", choices=("auto", "wrk", "python"), default="auto")
    options = parser.parse_args()
    found: Rows = {}
    try:
        generator = choose_generator(options.generator)
        print(machine(generator))
        for _ in range(options.rounds):
            # New brokers each time: the copies of the partitions of earlier topics would cost them ever more.
            with tempfile.TemporaryDirectory() as folder, brokers(Path(folder) / "brokers", 3, LASTING) as cluster:
                one_round(cluster, generator, options.seconds, found)
    except (BenchmarkError, LoadError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    for row, values in found.items():
        print(f"{row:60} {median(values):12,.2f}   {' '.join(f'{value:,.1f}' for value in values)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
