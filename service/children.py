"""Child processes that run this code, and the signals that stop a service.

A child ends when its parent ends, however it ends: its standard input is a pipe that the parent holds open while it
lives. When the parent dies, even by `kill -9`, the pipe ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import cast


def command(module: str, *arguments: str) -> list[str]:
    """The command of a child that runs one of our modules."""
    # -P: `-m` alone looks in the current folder first, which may have its own `service` or `core`.
    return [sys.executable, "-P", "-m", module, *arguments]


class ChildFailedError(Exception):
    """A child ended without an answer. Its text is the last line that the child wrote to its standard error."""


async def answer_of(module: str, question: bytes) -> bytes:
    """Run one of our modules as a child that gets `question`; what it prints. Raises ChildFailedError."""
    child = await asyncio.create_subprocess_exec(
        *command(module),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdin = cast("asyncio.StreamWriter", child.stdin)
    outputs = cast("list[asyncio.StreamReader]", [child.stdout, child.stderr])
    try:
        with contextlib.suppress(ConnectionError):  # the child ended early; its stderr says why
            stdin.write(question)
            await stdin.drain()
        output, error = await asyncio.gather(*(stream.read() for stream in outputs))
        stdin.close()
        await child.wait()
    finally:
        if child.returncode is None:  # the caller was cancelled
            child.kill()
            await child.wait()
    if child.returncode != 0:
        last_line = error.decode(errors="replace").strip().rpartition("\n")[2]
        raise ChildFailedError(last_line or f"exit code {child.returncode}")
    return output


def end_with_parent(end: Callable[[], None]) -> None:
    """Call `end`, from a thread of its own, when the child's standard input ends. For the child; it drops any input."""

    def watch() -> None:
        while os.read(0, 4096):  # not sys.stdin: at exit, Python would wait for its lock
            pass
        end()

    threading.Thread(target=watch, name="parent", daemon=True).start()


def stop_signals() -> list[signal.Signals]:
    """SIGTERM, and SIGHUP, which a closing terminal sends. Without SIGHUP where it is ignored, as under nohup."""
    hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGTERM, *hang_up]
