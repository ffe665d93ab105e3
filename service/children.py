"""Child processes that run this code, and the signals that stop a service.

A child ends when its parent ends, however it ends: its standard input is a pipe that the parent holds open while it
lives. When the parent dies, even by `kill -9`, the pipe ends.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable


def command(module: str, *arguments: str) -> list[str]:
    """The command of a child that runs one of our modules."""
    # -P: `-m` alone looks in the current folder first, which may have its own `service` or `core`.
    return [sys.executable, "-P", "-m", module, *arguments]


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
