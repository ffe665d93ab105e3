"""Load generation: requests per second and latencies of one URL at a fixed number of keep-alive connections.

Closed loop: each connection sends its next request as soon as it gets a reply. The bodies are a few hundred events of
ten numeric features in turn, without ids or each with a new one. Two generators give the same `LoadResult`:

- `wrk`: one thread, a Lua script. Its percentiles are corrected for coordinated omission: a stall also counts for the
  requests that it delayed.
- `python`: asyncio protocols on uvloop, latencies by `time.perf_counter`, uncorrected. It uses more processor time per
  request than wrk, so on few cores the server reaches a lower rate.

Compare only numbers of the same generator. Each runs in its own process. Run as a file, this is the Python one:

    python tests/benchmarks/load.py --port 8001 --path /learn --connections 32 --seconds 5
"""

import argparse
import asyncio
import json
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import cycle
from math import ceil
from pathlib import Path
from typing import cast

import uvloop

HOST = "127.0.0.1"
EVENTS = 300
MODELS = 1_000
"""Number of models that a path with `{}` addresses in turn."""
FEATURES = 10
REPLY_TIMEOUT = 2.0
"""Seconds. A later reply is an error, with both generators (2 s is wrk's default)."""
EXIT_TIMEOUT = 30.0
"""Seconds that a generator may take after its run."""
TAIL = 2000
"""Most characters of a failed program's output to show."""


@dataclass(frozen=True)
class LoadResult:
    """The result of one run. If `errors` is above 0, the run failed and the other numbers are no measurement."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    errors: int
    """Replies that were not a success or came too late, and connections that failed."""


class LoadError(Exception):
    """The generator failed, or the server refused the first request."""


def choose_generator(wanted: str) -> str:
    """`auto` means wrk if it is installed, else python."""
    installed = shutil.which("wrk") is not None
    if wanted == "wrk" and not installed:
        raise LoadError("wrk is not installed: install it, or use the python generator")
    if wanted == "auto":
        return "wrk" if installed else "python"
    return wanted


def describe_generator(generator: str) -> str:
    if generator == "python":
        return f"python asyncio with uvloop {version('uvloop')}"
    # wrk prints its version and ends with status 1.
    words = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout.split()
    return " ".join(words[:2])


def measure(generator: str, port: int, path: str, connections: int, seconds: int, ids: bool = False) -> LoadResult:
    """Load `path` on the loopback `port` for `seconds` and return the generator's result. With `ids`, each request has
    a new random id."""
    probe(port, path)
    if generator == "python":
        return run_generator(python_command(port, path, connections, seconds, ids), seconds)
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "load.lua")
        script.write_text(wrk_script(path, ids))
        return run_generator(wrk_command(script, port, path, connections, seconds), seconds)


def run_generator(command: list[str], seconds: int) -> LoadResult:
    """Run a generator; its last line of output is a LoadResult in JSON."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + EXIT_TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise LoadError(f"the load generator did not end {EXIT_TIMEOUT:.0f} s after its run") from error
    if done.returncode != 0:
        raise LoadError(f"the load generator failed:\n{(done.stdout + done.stderr)[-TAIL:]}")
    result = LoadResult(**json.loads(done.stdout.splitlines()[-1]))
    if result.requests_per_second == 0 and result.errors == 0:
        raise LoadError("the server gave no reply at all")
    return result


# The requests are the same for both generators.


def bodies(path: str) -> list[str]:
    """JSON bodies for a path that ends in learn (x and y) or predict (x). Every call returns the same."""
    rng = random.Random(1)
    truth = [rng.gauss(0, 1) for _ in range(FEATURES)]
    return [event_json(rng, truth, labelled=path.endswith("learn")) for _ in range(EVENTS)]


def event_json(rng: random.Random, truth: list[float], labelled: bool) -> str:
    values = [round(rng.gauss(0, 1), 6) for _ in truth]
    event: dict[str, object] = {"x": {f"f{i}": value for i, value in enumerate(values)}}
    if labelled:
        event["y"] = int(sum(w * value for w, value in zip(truth, values, strict=True)) > 0)
    return json.dumps(event)


def targets(path: str) -> list[tuple[str, str]]:
    """Path and body of each request, in the order of sending."""
    events, count = bodies(path), max(EVENTS, MODELS) if "{}" in path else EVENTS
    return [(path.format(f"model-{i % MODELS}"), events[i % EVENTS]) for i in range(count)]


def with_id(body: str, id_: str) -> str:
    return f'{body[:-1]}, "id": "{id_}"}}'


def request_bytes(port: int, path: str, body: str, connection: str = "keep-alive") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nConnection: {connection}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def probe(port: int, path: str) -> None:
    """Send one request first, to show the reason of a refusal, and because wrk counts a redirect as a success."""
    reply = b""
    try:
        with socket.create_connection((HOST, port), timeout=10) as connection:
            connection.sendall(request_bytes(port, *targets(path)[0], connection="close"))
            while part := connection.recv(65536):
                reply += part
    except OSError as error:
        raise LoadError(f"POST {path} failed: {error}") from error
    if not is_success(reply):
        raise LoadError(f"POST {path} was refused:\n{reply.decode(errors='replace')}")


def is_success(reply: bytes) -> bool:
    return reply.startswith(b"HTTP/1.1 2")


# wrk


def wrk_command(script: Path, port: int, path: str, connections: int, seconds: int) -> list[str]:
    url = f"http://{HOST}:{port}{path}"
    return ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", f"--timeout={REPLY_TIMEOUT:.0f}s", f"-s{script}", url]


def wrk_script(path: str, ids: bool) -> str:
    """A Lua script that formats every request once, sends them in turn and prints the result as one line of JSON."""
    lines = ",\n".join(f"{{'{target}', [[{body}]]}}" for target, body in targets(path))
    request = (
        """
  local id = string.format('%08x-%08x', math.random(0, 4294967295), math.random(0, 4294967295))
  return wrk.format(nil, targets[last][1], nil, targets[last][2]:sub(1, -2) .. ', "id": "' .. id .. '"}')"""
        if ids
        else """
  return requests[last]"""
    )
    return f"""local targets = {{
{lines}
}}
local requests, last = {{}}, 0
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"

function init()
  math.randomseed(os.time())
  for i, target in ipairs(targets) do requests[i] = wrk.format(nil, target[1], nil, target[2]) end
end

function request()
  last = last % #requests + 1{request}
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '{{"requests_per_second": %.3f, "p50_ms": %.3f, "p99_ms": %.3f, "p999_ms": %.3f, "errors": %d}}\\n',
    summary.requests / summary.duration * 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency:percentile(99.9) / 1e3,
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


# Python


def python_command(port: int, path: str, connections: int, seconds: int, ids: bool) -> list[str]:
    numbers = [f"--port={port}", f"--connections={connections}", f"--seconds={seconds}"]
    return [sys.executable, __file__, f"--path={path}", *numbers, *(["--ids"] if ids else [])]


def endless_requests(port: int, path: str, ids: bool) -> Iterator[bytes]:
    """The requests in turn; with `ids`, each has a new id."""
    if not ids:
        yield from cycle([request_bytes(port, *target) for target in targets(path)])
    for target, body in cycle(targets(path)):
        yield request_bytes(port, target, with_id(body, uuid.uuid4().hex[:17]))


class Run:
    """Shared by the connections of one run: the requests in turn, and their results."""

    def __init__(self, requests: Iterator[bytes]) -> None:
        self.requests = requests
        self.latencies: list[float] = []
        self.errors = 0
        self.running = False

    def replied(self, latency: float, success: bool) -> None:
        self.latencies.append(latency)
        self.errors += not success or latency > REPLY_TIMEOUT

    def result(self, seconds: float) -> LoadResult:
        ordered = sorted(self.latencies)
        return LoadResult(
            requests_per_second=len(ordered) / seconds,
            p50_ms=1000 * percentile(ordered, 0.50),
            p99_ms=1000 * percentile(ordered, 0.99),
            p999_ms=1000 * percentile(ordered, 0.999),
            errors=self.errors,
        )


def percentile(ordered: list[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed (nearest rank); 0 without values."""
    return ordered[ceil(share * len(ordered)) - 1] if ordered else 0.0


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one open request."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.transport: asyncio.Transport
        self.received = b""
        self.missing: int | None = None
        self.sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, because uvloop's transports have the methods of asyncio.Transport, but not its class.
        self.transport = cast(asyncio.Transport, transport)

    def send(self) -> None:
        self.received, self.missing = b"", None
        self.sent_at = time.perf_counter()
        self.transport.write(next(self.run.requests))

    def data_received(self, data: bytes) -> None:
        if not self.run.running:
            return
        self.received += data
        if self.missing is None:
            self.missing = reply_length(self.received)
        if self.missing is not None and len(self.received) >= self.missing:
            self.run.replied(time.perf_counter() - self.sent_at, is_success(self.received))
            self.send()

    def connection_lost(self, error: Exception | None) -> None:
        self.run.errors += self.run.running

    def finish(self) -> None:
        """End the run. A request with an overdue reply is an error; a recent one is not."""
        overdue = time.perf_counter() - self.sent_at > REPLY_TIMEOUT
        self.run.errors += overdue and not self.transport.is_closing()
        self.transport.abort()


def reply_length(received: bytes) -> int | None:
    """Length of the whole reply, head and body, in bytes; None until the head is complete."""
    head, end, _ = received.partition(b"\r\n\r\n")
    if not end:
        return None
    _, found, rest = head.lower().partition(b"\r\ncontent-length:")
    if not found:
        raise LoadError(f"the reply has no Content-Length:\n{head.decode(errors='replace')}")
    return len(head) + len(end) + int(rest.partition(b"\r\n")[0])


async def generate(port: int, path: str, connections: int, seconds: float, ids: bool) -> LoadResult:
    """Open all connections, then count the replies during `seconds`."""
    run = Run(endless_requests(port, path, ids))
    loop = asyncio.get_running_loop()
    opened = [(await loop.create_connection(lambda: Connection(run), HOST, port))[1] for _ in range(connections)]
    run.running = True
    start = time.perf_counter()
    for connection in opened:
        connection.send()
    await asyncio.sleep(seconds)
    run.running = False
    elapsed = time.perf_counter() - start
    for connection in opened:
        connection.finish()
    return run.result(elapsed)


def main() -> None:
    parser = argparse.ArgumentParser(description="Load one path of a local server; prints the result as JSON.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True, help="ends in learn or predict")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--ids", action="store_true", help="an id in each request")
    options = parser.parse_args()
    try:
        result = uvloop.run(generate(options.port, options.path, options.connections, options.seconds, options.ids))
    except OSError as error:
        sys.exit(f"cannot connect to port {options.port}: {error}")
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
