"""What each callback of a service's event loop costs, and how long other clients wait meanwhile.

The loop's thread serves everybody, so whatever keeps it busy for long in one go is time in which nobody else is
answered. Judged is the processor time of that thread, which does not hang on what else the machine does; how long
another client waited over HTTP does, and is told beside it.

The service runs on asyncio's own loop: uvloop's handles are compiled, and cannot be timed one by one. What the handles
call is the same.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from forked import CONTEXT
from harness import HOST, Service

LIMIT = 0.025
"""Seconds of its thread's processor time that a callback may take."""
TRIES = 3
"""How often something is asked, at most, until no callback takes longer. On a busy machine any callback may take long
once: a thread's processor time includes what the host took away, and waiting for memory that others use. What takes
long by itself takes long each time."""
TOLD = 0.005
"""Seconds from which on a callback is told of."""
SAMPLES = 0.005
"""Seconds between two looks at what the loop is doing."""
POLLS = 0.002
"""Seconds between a reply that the other client got and its next request."""


@dataclass(frozen=True)
class Callback:
    """One that took long: seconds of processor time, what was called, and the lines in which it was seen most often."""

    seconds: float
    what: str
    where: str

    def __str__(self) -> str:
        return f"{self.seconds * 1e3:.1f} ms in {self.what}: {self.where}"


@dataclass
class Seen:
    """What was seen while something was asked: callbacks, the longest first, and how long another client waited."""

    callbacks: list[Callback] = field(default_factory=list)
    waited: float = 0.0

    @property
    def longest(self) -> float:
        """Seconds of processor time of the longest callback; 0 where none was worth telling."""
        return max((callback.seconds for callback in self.callbacks), default=0.0)

    def __str__(self) -> str:
        told = "\n".join(f"  {callback}" for callback in self.callbacks[:5])
        return (
            f"callback {self.longest * 1e3:.1f} ms, another client waited {self.waited * 1e3:.1f} ms\n{told}".rstrip()
        )


class Timed:
    """A service whose callbacks are timed, and another client that asks it `/livez` again and again."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self._told = folder.with_name(f"{folder.name}.callbacks")
        self._told.write_bytes(b"")
        self.service = Service(folder, *flags, first=partial(time_callbacks, self._told))

    def __enter__(self) -> Timed:
        self.service.wait_until_ready()
        self._other, others = CONTEXT.Pipe()
        self._client = CONTEXT.Process(target=_poll, args=(self.service.port, others), daemon=True)
        self._client.start()
        others.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._other.close()
        self._client.join()
        self.service.kill()

    @contextmanager
    def seen(self) -> Iterator[Seen]:
        """What is seen while the block runs."""
        seen, start = Seen(), self._told.stat().st_size
        self._other.send("begin")
        self._other.recv()
        try:
            yield seen
        finally:
            self._other.send("end")
            seen.waited = self._other.recv()
        with self._told.open("rb") as file:
            file.seek(start)
            seen.callbacks += sorted((Callback(*json.loads(line)) for line in file), key=lambda one: -one.seconds)

    def calmest(self, ask: Callable[[], object]) -> Seen:
        """What is seen while `ask` runs: the first time no callback takes too long, else the best of TRIES times."""
        looks: list[Seen] = []
        while not looks or (looks[-1].longest > LIMIT and len(looks) < TRIES):
            with self.seen() as seen:
                ask()
            looks.append(seen)
        return min(looks, key=lambda seen: seen.longest)


def _poll(port: int, orders: Connection) -> None:
    """Ask `/livez` between "begin" and "end", and then tell the longest wait."""
    try:
        while orders.recv() == "begin":
            client = http.client.HTTPConnection(HOST, port, timeout=120)
            orders.send(None)
            longest = 0.0
            while not orders.poll(POLLS):
                began = time.perf_counter()
                client.request("GET", "/livez")
                client.getresponse().read()
                longest = max(longest, time.perf_counter() - began)
            client.close()
            orders.recv()
            orders.send(longest)
    except EOFError:  # nothing more is wanted
        return


# -- in the process of the service


class _Sampler:
    """Where the loop's thread was seen during the callback that runs, if it runs for long."""

    def __init__(self) -> None:
        self._loop = threading.get_ident()
        self.running = 0
        """The number of the callback that runs; 0 between two."""
        self.lines: Counter[str] = Counter()

    def begin(self) -> None:
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        before = 0
        while True:
            time.sleep(SAMPLES)
            if self.running and self.running == before:
                self.lines[_lines(sys._current_frames()[self._loop])] += 1
            before = self.running


def _lines(frame: FrameType | None) -> str:
    """The innermost lines of a stack, those of the project alone where there are some."""
    stack = []
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        stack.append(("/".join(path.parts[-3:]), f"{path.name}:{frame.f_lineno} {frame.f_code.co_name}"))
        frame = frame.f_back
    ours = [line for path, line in stack if {"core", "service"} & set(Path(path).parts)]
    return " < ".join(ours[:4] or [line for _, line in stack[:4]])


def _what(callback: Any) -> str:
    """What a handle calls: a task by its coroutine."""
    task = getattr(callback, "__self__", None)
    called = task.get_coro() if isinstance(task, asyncio.Task) else callback
    return getattr(called, "__qualname__", None) or repr(called)


def _set_nodelay(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def time_callbacks(told: Path) -> None:
    """Time every callback from now on; those that take long are told, each a line of JSON in a file."""
    import uvicorn.config

    file = os.open(told, os.O_WRONLY | os.O_APPEND)
    run, sampler, number = asyncio.Handle._run, _Sampler(), 0

    def timed(handle: asyncio.Handle) -> None:
        nonlocal number
        what = handle._callback  # type: ignore[attr-defined]  # private, and not in the stub
        number += 1
        sampler.running = number
        began = time.thread_time()
        run(handle)
        seconds = time.thread_time() - began
        sampler.running = 0
        if seconds >= TOLD:
            where = max(sampler.lines, key=sampler.lines.__getitem__, default="not seen")
            os.write(file, json.dumps([seconds, _what(what), where]).encode() + b"\n")
        sampler.lines.clear()

    asyncio.Handle._run = timed  # type: ignore[method-assign,assignment]  # its stub names the argument self
    # As uvloop does; asyncio passes over sockets of a listener like ours, and each reply would wait for 40 ms.
    asyncio.base_events._set_nodelay = _set_nodelay  # type: ignore[attr-defined]  # private, and not in the stub
    uvicorn.config.LOOP_FACTORIES["uvloop"] = uvicorn.config.LOOP_FACTORIES["asyncio"]
    sampler.begin()
