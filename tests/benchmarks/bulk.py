"""Compares learning streams of events over HTTP, durably, with Vowpal Wabbit reading the same events from a file.

    NDJSON                     against VW's --json
    NDJSON with ids            against the same without ids; sequential and random ids
    Arrow IPC                  against VW's own text format

One connection sends a whole body. The time runs from its first byte to the reply, when every event is on disk. VW's
time is that of the process minus that of a process with a single event, so its start does not count. Each round
measures all sides in turn. The table shows medians over the rounds, and ratios of these medians.

    python tests/benchmarks/bulk.py --features 10,30 --events 100000 --arrow-events 1000000 --rounds 5

Exit status 0: the measurement ran (it judges nothing). 1: something failed; the message says what.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
from http_benchmark import BenchmarkError, machine, positive, positives, running, sides
from load import HOST

NDJSON, ARROW = "application/x-ndjson", "application/vnd.apache.arrow.stream"
BATCH_ROWS = 65_536


@dataclass(frozen=True)
class Events:
    """The same events in every format."""

    features: int
    values: np.ndarray[tuple[int, int], np.dtype[np.float64]]
    labels: list[int]

    @classmethod
    def random(cls, count: int, features: int) -> "Events":
        numbers = np.random.default_rng(1)
        values = numbers.normal(size=(count, features))
        labels = (values.sum(axis=1) + numbers.normal(size=count) > 0).astype(int)
        return cls(features, values, labels.tolist())

    def rows(self) -> Iterator[tuple[dict[str, float], int]]:
        """x and y of each event."""
        names = [f"feature-{j}" for j in range(self.features)]
        return (
            (dict(zip(names, row.tolist(), strict=True)), y) for row, y in zip(self.values, self.labels, strict=True)
        )

    def ndjson(self, id_of: Callable[[int], str] | None = None) -> bytes:
        lines = []
        for i, (x, y) in enumerate(self.rows()):
            event: dict[str, Any] = {"x": x, "y": y}
            if id_of is not None:
                event["id"] = id_of(i)
            lines.append(json.dumps(event))
        return "".join(line + "\n" for line in lines).encode()

    def arrow(self) -> bytes:
        columns = {f"feature-{j}": pa.array(column) for j, column in enumerate(self.values.T.copy())}
        table = pa.table({**columns, "y": pa.array(self.labels)})
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=BATCH_ROWS)
        return sink.getvalue()

    def vw_json(self) -> Iterator[str]:
        return (json.dumps({"_label": 2 * y - 1, "f": x}) + "\n" for x, y in self.rows())

    def vw_text(self) -> Iterator[str]:
        heads = {0: "-1 |f ", 1: "1 |f "}
        return (heads[y] + " ".join(f"{name}:{value!r}" for name, value in x.items()) + "\n" for x, y in self.rows())


def write(path: Path, lines: Iterator[str]) -> None:
    with path.open("w") as file:
        file.writelines(lines)


# The sides


def vw_seconds(path: Path, *format_flags: str) -> float:
    """Seconds that a Vowpal Wabbit process takes for a file of events."""
    flags = ["--loss_function", "logistic", "--quiet", "--no_stdin", *format_flags]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "vowpalwabbit", "-d", str(path), *flags], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchmarkError(f"Vowpal Wabbit failed: {done.stderr[-500:]}")
    return time.perf_counter() - started


def logstep_seconds(port: int, body: bytes, content_type: str, expected: int) -> float:
    """Seconds from the first byte of a body to the reply, when its events are learned and on disk."""
    connection = HTTPConnection(HOST, port, timeout=300)
    try:
        started = time.perf_counter()
        connection.request("POST", "/learn", body, {"content-type": content_type})
        reply = connection.getresponse()
        text = reply.read()
        seconds = time.perf_counter() - started
    finally:
        connection.close()
    if reply.status != 200 or json.loads(text)["learned"] != expected:
        raise BenchmarkError(f"the service did not learn all events: {text[:500]!r}")
    return seconds


@dataclass
class Contest:
    """A format of the service and its peer; microseconds per event for each round."""

    name: str
    peer: str
    events: int
    ours: Callable[[int], float]
    theirs: Callable[[], float] | None
    our_times: list[float] = field(default_factory=list)
    their_times: list[float] = field(default_factory=list)

    def round(self, port: int) -> None:
        self.our_times.append(self.ours(port) / self.events * 1e6)
        if self.theirs is not None:
            self.their_times.append(self.theirs() / self.events * 1e6)


def contests(features: int, events: int, arrow_events: int, folder: Path) -> list[Contest]:
    some, many = Events.random(events, features), Events.random(arrow_events, features)
    paths = {name: folder / f"{features}-{name}" for name in ("json", "text", "one.json", "one.text")}
    one = Events.random(1, features)
    write(paths["json"], some.vw_json())
    write(paths["text"], many.vw_text())
    write(paths["one.json"], one.vw_json())
    write(paths["one.text"], one.vw_text())

    def ours(body: bytes, content_type: str, count: int) -> Callable[[int], float]:
        return lambda port: logstep_seconds(port, body, content_type, count)

    def theirs(kind: str, *flags: str) -> Callable[[], float]:
        return lambda: vw_seconds(paths[kind], *flags) - vw_seconds(paths[f"one.{kind}"], *flags)

    plain = Contest(
        f"NDJSON, {features}", "VW --json", events, ours(some.ndjson(), NDJSON, events), theirs("json", "--json")
    )
    count_up, random_ids = some.ndjson(lambda i: f"event-{i:09d}"), some.ndjson(lambda _: str(uuid.uuid4()))
    with_ids = [
        Contest(
            f"NDJSON, {kind}, {features}", "without ids", events, ours(body, NDJSON, events), None, [], plain.our_times
        )
        for kind, body in (("ids", count_up), ("random ids", random_ids))
    ]
    arrow = Contest(
        f"Arrow, {features}", "VW text", arrow_events, ours(many.arrow(), ARROW, arrow_events), theirs("text")
    )
    return [plain, *with_ids, arrow]


def report(found: list[Contest]) -> str:
    head = f"{'format, features':<22}{'us an event':>12}{'a second':>12}   {'peer':<14}{'us an event':>12}{'ratio':>8}"
    lines = [head, "-" * len(head)]
    for contest in found:
        mine, peer = median(contest.our_times), median(contest.their_times)
        lines.append(
            f"{contest.name:<22}{mine:>12.2f}{1e6 / mine:>12,.0f}   {contest.peer:<14}{peer:>12.2f}{peer / mine:>8.2f}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare streams of events with Vowpal Wabbit.")
    parser.add_argument("--features", type=positives, default=(10, 30), help="default 10,30")
    parser.add_argument("--events", type=positive, default=100_000)
    parser.add_argument("--arrow-events", type=positive, default=1_000_000)
    parser.add_argument("--rounds", type=positive, default=5)
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="logstep-streams-") as name:
            found = [
                contest
                for features in options.features
                for contest in contests(features, options.events, options.arrow_events, Path(name))
            ]
            warm_up = Events.random(1_000, 2)
            _, logstep = sides()
            for number in range(1, options.rounds + 1):
                print(f"round {number} of {options.rounds}", file=sys.stderr)
                for contest in found:
                    with running(logstep) as server:  # a new folder: every body meets an empty log
                        logstep_seconds(server.port, warm_up.ndjson(), NDJSON, 1_000)
                        logstep_seconds(server.port, warm_up.arrow(), ARROW, 1_000)
                        contest.round(server.port)
    except BenchmarkError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    print(machine("python"))
    print(report(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
