"""Child processes that run this code. They end when their parent ends, however it ends.

A child's standard input is a pipe that the parent holds open while it lives. When the parent dies, even by `kill -9`,
the pipe ends.
"""

from __future__ import annotations

import os
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
