"""The time. It comes from outside, so that a test can set it and need not sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple


class Clock(NamedTuple):
    """wall: seconds since 1970; somebody may set it back. steady: seconds since some moment; nobody sets it."""

    wall: Callable[[], float] = time.time
    steady: Callable[[], float] = time.monotonic


SYSTEM = Clock()
