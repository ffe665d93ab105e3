"""One request must not stop the others: nothing that is asked keeps the loop's thread for long in one go.

Everything large is asked of a service that knows a model of a million features, and no callback of its loop may take
more than 25 ms of the thread's processor time. How long another client waited meanwhile is told, and not judged: that
hangs on what else the machine does. The long form asks five times, and tells the median.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import callbacks
import pytest
from callbacks import LIMIT, Timed
from forked import elsewhere

FEATURES = 1_000_000
AT_ONCE = 100_000
"""Features of an event, at most, by default."""
JSON, NDJSON = "application/json", "application/x-ndjson"


@dataclass(frozen=True)
class Asked:
    """A request, and the status that it is answered with. Its body is made when it is first asked."""

    method: str
    path: str
    body: Callable[[], bytes] = bytes
    status: int = 200
    kind: str = JSON


def names(first: int, count: int) -> dict[str, float]:
    """An x of features of the large model."""
    return {f"f{i}": i % 7 / 7 + 0.5 for i in range(first, first + count)}


def as_bytes(content: Any) -> bytes:
    return json.dumps(content).encode()


@cache
def many_features() -> bytes:
    return as_bytes({"x": names(0, AT_ONCE)})


@cache
def many_strangers() -> bytes:
    return as_bytes({"x": {f"stranger-{i}": 1.0 for i in range(AT_ONCE)}})


@cache
def many_features_learned() -> bytes:
    return as_bytes({"x": names(0, AT_ONCE), "y": 1})


@cache
def wrong_at_the_end() -> bytes:
    return as_bytes({"x": {**{f"f{i}": 1 for i in range(FEATURES - 1)}, "last": None}, "y": 1})


@cache
def too_many_features() -> bytes:
    return as_bytes({"x": [1] * FEATURES, "y": 1})


LARGE = {
    "a model": Asked("GET", "/models/large"),
    "all models": Asked("GET", "/models"),
    "weights": Asked("GET", "/models/large/weights"),
    "the largest weights": Asked("GET", "/models/large/weights?top=10"),
    "half of the weights by size": Asked("GET", "/models/large/weights?top=500000"),
    "metrics": Asked("GET", "/metrics"),
    "series": Asked("GET", "/models/large/series"),
    "a model that is there": Asked("PUT", "/models/large", lambda: b"{}"),
    "an explanation of many features": Asked("POST", "/models/large/explain", many_features),
    "an explanation of unknown features": Asked("POST", "/models/large/explain", many_strangers),
    "a prediction from many features": Asked("POST", "/models/large/predict", many_features),
    "an event with many features": Asked("POST", "/models/large/learn", many_features_learned),
    "an event whose last feature is wrong": Asked("POST", "/models/large/learn", wrong_at_the_end, 422),
    "an event with too many features": Asked("POST", "/models/large/learn", too_many_features, 422),
}


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Timed]:
    """A service whose callbacks are timed, with a model of a million features."""
    with Timed(tmp_path_factory.mktemp("one-request") / "data") as timed:
        assert timed.service.request("PUT", "/models/large", {})[0] == 201
        for first in range(0, FEATURES, AT_ONCE):
            status, reply = timed.service.request(
                "POST", "/models/large/learn", {"x": names(first, AT_ONCE), "y": first // AT_ONCE % 2}
            )
            assert status == 200, reply
        yield timed


def ask(timed: Timed, asked: Asked) -> bytes:
    """The reply, as it is read at the usual rate."""
    connection = timed.service.connect()
    try:
        connection.request(asked.method, asked.path, asked.body(), {"content-type": asked.kind})
        reply = connection.getresponse()
        body = reply.read()
        assert reply.status == asked.status, body[:1000]
        return body
    finally:
        connection.close()


def _busy() -> None:
    until = time.thread_time() + 2 * LIMIT
    while time.thread_time() < until:
        pass


def _run_what_takes_long(told: Path) -> None:
    callbacks.time_callbacks(told)
    loop = asyncio.new_event_loop()
    loop.call_soon(_busy)
    loop.call_soon(loop.call_later, 2 * LIMIT, loop.stop)  # which waits, and does nothing meanwhile
    loop.run_forever()


def test_what_takes_long_is_told_with_its_name(tmp_path: Path) -> None:
    told = tmp_path / "callbacks"
    told.touch()
    elsewhere(_run_what_takes_long, told)
    ((seconds, what, where),) = map(json.loads, told.read_text().splitlines())
    assert 2 * LIMIT <= seconds < 3 * LIMIT
    assert (what, where.split()[1]) == ("_busy", "_busy")


@pytest.mark.parametrize("name", LARGE)
def test_no_callback_takes_long(timed: Timed, name: str) -> None:
    LARGE[name].body()  # made before the other client waits
    with timed.seen() as seen:
        ask(timed, LARGE[name])
    print(f"{name}: {seen}")
    assert seen.longest <= LIMIT, f"{name}: {seen}"


@pytest.mark.long
def test_how_long_another_client_waits(timed: Timed) -> None:
    """Told, and not judged."""
    for name, asked in LARGE.items():
        waited = []
        for _ in range(5):
            with timed.seen() as seen:
                ask(timed, asked)
            waited.append(seen.waited)
        print(f"{median(waited) * 1e3:7.1f} ms, at most {max(waited) * 1e3:7.1f} ms: {name}")
