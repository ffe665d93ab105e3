"""Compares learning streams of events over HTTP, durably, with Vowpal Wabbit reading the same events from a file.

    NDJSON                     against VW's --json
    NDJSON with ids            against the same without ids; sequential and random ids
    random ids, others there   the same, where the log has `--ids-there` random ids already
    Arrow IPC                  against VW's own text format
    text                       NDJSON and Arrow where the last two features are categories of 50 values, against numbers
    CSV                        with numbers, and with the same text, against NDJSON with numbers
    replay                     `logstep replay` of the same CSV, which gives each row an id, against NDJSON with ids

One connection sends a whole body. The time runs from its first byte to the reply, when every event is on disk. Of
`replay` it is the time that the command tells, from its first request on. VW's time is that of the process minus that
of a process with a single event, so its start does not count. Each round measures all sides in turn. The table shows
medians over the rounds, and ratios of these medians.

    python tests/benchmarks/bulk.py --features 10,30 --events 100000 --ids-there 1000000 --rounds 5

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
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
from http_benchmark import BenchmarkError, machine, positive, positives, running, sides
from load import HOST

NDJSON, ARROW = "application/x-ndjson", "application/vnd.apache.arrow.stream"
CSV = "text/csv"
BATCH_ROWS = 65_536
CATEGORIES, VALUES = 2, 50
"""How many features are text, and how many different values each has."""


@dataclass(frozen=True)
class Events:
    """The same events in every format."""

    features: int
    values: np.ndarray[tuple[int, int], np.dtype[np.float64]]
    labels: list[int]
    text: bool = False
    """Whether the last features are categories."""

    def with_text(self) -> "Events":
        """The same, where the last features are text."""
        return replace(self, text=True)

    @property
    def columns(self) -> dict[str, list[Any]]:
        """The features by name."""
        found = {f"feature-{j}": column.tolist() for j, column in enumerate(self.values.T)}
        if self.text:
            numbers = np.random.default_rng(2).integers(0, VALUES, (CATEGORIES, len(self.values))).tolist()
            for name, column in zip(list(found)[-CATEGORIES:], numbers, strict=True):
                found[name] = [f"value-{number}" for number in column]
        return found

    @classmethod
    def random(cls, count: int, features: int) -> "Events":
        numbers = np.random.default_rng(1)
        values = numbers.normal(size=(count, features))
        labels = (values.sum(axis=1) + numbers.normal(size=count) > 0).astype(int)
        return cls(features, values, labels.tolist())

    def rows(self) -> Iterator[tuple[dict[str, Any], int]]:
        """x and y of each event."""
        columns = self.columns
        rows = zip(*columns.values(), strict=True)
        return ((dict(zip(columns, row, strict=True)), y) for row, y in zip(rows, self.labels, strict=True))

    def csv(self) -> bytes:
        columns = {**self.columns, "y": self.labels}
        return "".join(",".join(map(str, row)) + "\n" for row in [[*columns], *zip(*columns.values())]).encode()  # noqa: B905

    def ndjson(self, id_of: Callable[[int], str] | None = None) -> bytes:
        lines = []
        for i, (x, y) in enumerate(self.rows()):
            event: dict[str, Any] = {"x": x, "y": y}
            if id_of is not None:
                event["id"] = id_of(i)
            lines.append(json.dumps(event))
        return "".join(line + "\n" for line in lines).encode()

    def arrow(self) -> bytes:
        table = pa.table({**self.columns, "y": self.labels})
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
    path = "/learn?label=y" if content_type == CSV else "/learn"
    try:
        started = time.perf_counter()
        connection.request("POST", path, body, {"content-type": content_type})
        reply = connection.getresponse()
        text = reply.read()
        seconds = time.perf_counter() - started
    finally:
        connection.close()
    if reply.status != 200 or json.loads(text)["learned"] != expected:
        raise BenchmarkError(f"the service did not learn all events: {text[:500]!r}")
    return seconds


def replay_seconds(port: int, path: Path, expected: int) -> float:
    """Seconds that `logstep replay` takes for a file, as it tells them."""
    command = [str(Path(sys.executable).with_name("logstep")), "replay", str(path), "--label", "y"]
    asked = ["--url", f"http://{HOST}:{port}", "--model", "default"]
    done = subprocess.run([*command, *asked], capture_output=True, text=True, check=False)
    told = {line.split()[0]: line.split()[-1] for line in done.stdout.splitlines() if len(line.split()) == 2}
    if done.returncode or told.get("learned") != f"{expected:,}":
        raise BenchmarkError(f"logstep replay failed: {done.stderr[-500:]}")
    return float(told["seconds"].replace(",", ""))


@dataclass
class Contest:
    """A format of the service and its peer; microseconds per event for each round. before: what is learned first."""

    name: str
    peer: str
    events: int
    ours: Callable[[int], float]
    theirs: Callable[[], float] | None
    our_times: list[float] = field(default_factory=list)
    their_times: list[float] = field(default_factory=list)
    before: Callable[[int], object] = lambda _: None

    def round(self, port: int) -> None:
        self.our_times.append(self.ours(port) / self.events * 1e6)
        if self.theirs is not None:
            self.their_times.append(self.theirs() / self.events * 1e6)


def contests(features: int, events: int, arrow_events: int, ids_there: int, folder: Path) -> list[Contest]:
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

    def beside(name: str, peer: Contest, what: str, run: Callable[[int], float]) -> Contest:
        """A contest with another one of the service's own."""
        return Contest(f"{name}, {features}", what, peer.events, run, None, [], peer.our_times)

    def replay(name: str, data: bytes) -> Callable[[int], float]:
        path = folder / f"{features}-{name}.csv"
        path.write_bytes(data)
        return lambda port: replay_seconds(port, path, events)

    def random_id(_: int) -> str:
        return str(uuid.uuid4())

    plain = Contest(
        f"NDJSON, {features}", "VW --json", events, ours(some.ndjson(), NDJSON, events), theirs("json", "--json")
    )
    with_ids = beside(
        "NDJSON, ids", plain, "without ids", ours(some.ndjson(lambda i: f"event-{i:09d}"), NDJSON, events)
    )
    random_ids = beside("NDJSON, random ids", plain, "without ids", ours(some.ndjson(random_id), NDJSON, events))
    others_there = beside(
        f"same, {ids_there:,} there", plain, "without ids", ours(some.ndjson(random_id), NDJSON, events)
    )
    others = Events.random(events, 2)

    def learn_others(port: int) -> None:
        for _ in range(max(1, ids_there // events)):
            logstep_seconds(port, others.ndjson(random_id), NDJSON, events)

    others_there.before = learn_others
    arrow = Contest(
        f"Arrow, {features}", "VW text", arrow_events, ours(many.arrow(), ARROW, arrow_events), theirs("text")
    )
    text = some.with_text()
    return [
        plain,
        with_ids,
        random_ids,
        others_there,
        arrow,
        beside("NDJSON, text", plain, "numbers", ours(text.ndjson(), NDJSON, events)),
        beside("Arrow, text", arrow, "numbers", ours(many.with_text().arrow(), ARROW, arrow_events)),
        beside("CSV", plain, "NDJSON", ours(some.csv(), CSV, events)),
        beside("CSV, text", plain, "NDJSON", ours(text.csv(), CSV, events)),
        beside("replay", with_ids, "NDJSON, ids", replay("numbers", some.csv())),
        beside("replay, text", with_ids, "NDJSON, ids", replay("text", text.csv())),
    ]


def report(found: list[Contest]) -> str:
    head = f"{'format, features':<26}{'us an event':>12}{'a second':>12}   {'peer':<14}{'us an event':>12}{'ratio':>8}"
    lines = [head, "-" * len(head)]
    for contest in found:
        mine, peer = median(contest.our_times), median(contest.their_times)
        lines.append(
            f"{contest.name:<26}{mine:>12.2f}{1e6 / mine:>12,.0f}   {contest.peer:<14}{peer:>12.2f}{peer / mine:>8.2f}"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare streams of events with Vowpal Wabbit.")
    parser.add_argument("--features", type=positives, default=(10, 30), help="default 10,30")
    parser.add_argument("--events", type=positive, default=100_000)
    parser.add_argument("--arrow-events", type=positive, default=1_000_000)
    parser.add_argument("--ids-there", type=positive, default=1_000_000)
    parser.add_argument("--rounds", type=positive, default=5)
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="logstep-streams-") as name:
            found = [
                contest
                for features in options.features
                for contest in contests(features, options.events, options.arrow_events, options.ids_there, Path(name))
            ]
            warm_up = Events.random(1_000, 2)
            _, logstep = sides()
            for number in range(1, options.rounds + 1):
                print(f"round {number} of {options.rounds}", file=sys.stderr)
                for contest in found:
                    with running(logstep) as server:  # a new folder: every body meets an empty log
                        logstep_seconds(server.port, warm_up.ndjson(), NDJSON, 1_000)
                        logstep_seconds(server.port, warm_up.arrow(), ARROW, 1_000)
                        contest.before(server.port)
                        contest.round(server.port)
    except BenchmarkError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    print(machine("python"))
    print(report(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
