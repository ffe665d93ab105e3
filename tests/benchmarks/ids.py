"""What random ids cost: streams of NDJSON whose events have UUIDs, beside the same without ids.

    python tests/benchmarks/ids.py --there 0,1000000 --events 100000 --rounds 7

For each number of ids that are already there, a service in a fresh folder learns that many events with ids. Then it
learns, in each round, one stream without ids and one with new random ids (UUID version 4), 10 features an event. With
--there 0, each round begins in a fresh folder. The time of a stream runs from its first byte to the reply, when all of
it is on disk. "cpu" is the processor time of the service, "bytes" what it wrote to disks (write_bytes of
/proc/PID/io). Both count the work on ids that goes on after the reply: the service rests for --rest seconds after each
stream.

Exit status 0: the measurement ran (it judges nothing). 1: something failed; the message says what.
"""

import argparse
import os
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from bulk import NDJSON, Events, logstep_seconds
from http_benchmark import BenchmarkError, Server, machine, positive, running, sides

FEATURES = 10
PRELOADED = 100_000
"""Events in one stream of those that are there before."""


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def cpu_seconds(server: Server) -> float:
    fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def written(server: Server) -> int:
    lines = Path(f"/proc/{server.pid}/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))


def with_ids(events: Events) -> bytes:
    return events.ndjson(lambda _: str(uuid.uuid4()))


class Side:
    """Streams of one kind: microseconds, those of processor time, and bytes of an event, for each round."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.micros: list[float] = []
        self.cpu: list[float] = []
        self.bytes: list[float] = []

    def learn(self, server: Server, body: bytes, events: int, rest: float) -> None:
        before, cpu = written(server), cpu_seconds(server)
        self.micros.append(logstep_seconds(server.port, body, NDJSON, events) / events * 1e6)
        time.sleep(rest)
        self.cpu.append((cpu_seconds(server) - cpu) / events * 1e6)
        self.bytes.append((written(server) - before) / events)


def servers(there: int, rounds: int, small: Events) -> Iterator[Server]:
    """A server for each round: a new one each time for an empty log, else the same, with so many ids."""
    _, logstep = sides()
    for _ in range(1 if there else rounds):
        with running(logstep) as server:
            logstep_seconds(server.port, small.ndjson(), NDJSON, len(small.labels))
            some = Events.random(PRELOADED, FEATURES)
            for _ in range(there // PRELOADED):
                logstep_seconds(server.port, with_ids(some), NDJSON, PRELOADED)
            for _ in range(rounds if there else 1):
                yield server


def measure(there: int, events: Events, rounds: int, rest: float) -> tuple[Side, Side]:
    without, random, count = Side("none"), Side("random"), len(events.labels)
    plain = events.ndjson()
    for number, server in enumerate(servers(there, rounds, Events.random(1_000, FEATURES)), 1):
        print(f"{there:,} ids there, round {number} of {rounds}", file=sys.stderr)
        without.learn(server, plain, count, rest)
        random.learn(server, with_ids(events), count, rest)
    return without, random


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare streams with random ids with streams without ids.")
    parser.add_argument("--there", type=numbers, default=[0, 1_000_000], help="ids that are there; default 0,1000000")
    parser.add_argument("--events", type=positive, default=100_000)
    parser.add_argument("--rounds", type=positive, default=7)
    parser.add_argument("--rest", type=float, default=1.0, help="seconds after each stream; default 1")
    options = parser.parse_args()
    events = Events.random(options.events, FEATURES)
    print(machine("python"))
    print(f"{'ids there':>10}  {'ids':8}{'us an event':>12}{'ratio':>8}{'cpu':>8}{'bytes an event':>16}{'times':>8}")
    try:
        for there in options.there:
            without, random = measure(there, events, options.rounds, options.rest)
            for side in (without, random):
                micros, size = median(side.micros), sum(side.bytes) / len(side.bytes)
                ratio, times = median(without.micros) / micros, size / (sum(without.bytes) / len(without.bytes))
                print(
                    f"{there:>10,}  {side.name:8}{micros:>12.2f}{ratio:>8.2f}{median(side.cpu):>8.2f}{size:>16,.0f}"
                    f"{times:>8.1f}",
                    flush=True,
                )
    except BenchmarkError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
