"""The commands' warnings about models that are worse than guessing (service/learning/guessing.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.commands.terminal import say

TOLD = 5
"""Most models that are named."""


def mark_of(model: dict[str, Any]) -> str:
    """The mark of a model that is worse than guessing: over its window, or in total."""
    worse = model["worse_than_guessing"]
    return "" if worse is None else "worse than guessing" if worse["over"] == "window" else "worse in total"


def say_if_worse(models: Sequence[dict[str, Any]]) -> None:
    """Say which models are worse than guessing, with advice."""
    worse = [model for model in models if model["worse_than_guessing"] is not None]
    for model in worse[:TOLD]:
        say(f"model {model['model']}: {model['worse_than_guessing']['advice']}")
    if len(worse) > TOLD:
        say(f"{len(worse) - TOLD:,} more models are worse than guessing; `logstep models show NAME` says more")
