"""Waiting for what should happen soon."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

PATIENCE = 100.0
"""Seconds after which a test gives up waiting for something that should long have happened. On two processors with ten
things to do, what takes two seconds takes thirty."""


def eventually(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait until `condition()` is true, and return what it returned."""
    began = time.monotonic()
    while (waited := time.monotonic() - began) < seconds:
        if result := condition():
            return result
        time.sleep(min(0.005 + waited / 10, 0.1))  # who asks a service all the time takes its processor
    pytest.fail(f"waited {seconds:g} s in vain for {what}")
