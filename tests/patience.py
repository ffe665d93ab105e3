"""Waiting for what should happen soon."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

PATIENCE = 30.0
"""Seconds after which a test gives up waiting for something that should long have happened."""


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """Wait until `condition()` is true, and return what it returned."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.01)
    pytest.fail(f"waited {PATIENCE:g} s in vain for {what}")
