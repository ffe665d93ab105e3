"""Processes of our own that this one starts: they run this code, and they end when it does, however it ends.

A child's standard input is a pipe that its parent holds open as long as it lives; the end of it is the parent's end,
also by `kill -9`.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable


def command(module: str, *arguments: str) -> list[str]:
    """The command of a child that runs a module of ours."""
    # -P: `-m` alone would look into the current folder first, which may have a `service` or a `core` of its own.
    return [sys.executable, "-P", "-m", module, *arguments]


def end_with_parent(end: Callable[[], None]) -> None:
    """In the child: call `end`, from a thread of its own, when its standard input ends. What comes there is dropped."""

    def watch() -> None:
        while os.read(0, 4096):  # of the file itself: at exit Python waits for the lock of sys.stdin
            pass
        end()

    threading.Thread(target=watch, name="parent", daemon=True).start()
