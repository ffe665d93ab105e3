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


def worse_lines(models: Sequence[dict[str, Any]]) -> list[str]:
    """The first models that are worse than guessing, with advice."""
    worse = [model for model in models if model["worse_than_guessing"] is not None]
    lines = [f"model {model['model']}: {model['worse_than_guessing']['advice']}" for model in worse[:TOLD]]
    if len(worse) > TOLD:
        more = len(worse) - TOLD
        lines.append(f"{more:,} more models are worse than guessing; `logstep models show NAME` says more")
    return lines


def say_if_worse(models: Sequence[dict[str, Any]]) -> None:
    """Print which models are worse than guessing, with advice."""
    for line in worse_lines(models):
        say(line)
