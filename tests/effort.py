"""How much the tests do. The environment variable EFFORT says it:

quick    the default: under three minutes on two cores, with an example of everything that is promised
checks   what a change must pass (`.ci/run`): every test and every case
long     the same with thousands of kills, cuts, flips and examples; takes hours
"""

from __future__ import annotations

import os
from typing import Any, TypeVar

import hypothesis
import pytest

T = TypeVar("T")

EFFORT = os.environ.get("EFFORT", "quick")
if EFFORT not in ("quick", "checks", "long"):
    raise pytest.UsageError(f"EFFORT={EFFORT}: it can be quick, checks or long")

from_checks_on = pytest.mark.skipif(EFFORT == "quick", reason="EFFORT=checks runs it")
"""For a test that takes seconds, where quick has another one of the same promise."""

only_long = pytest.mark.skipif(EFFORT != "long", reason="EFFORT=long runs it")
"""For a test that takes minutes, and has no short form."""


def amount(*, quick: T, checks: T, long: T) -> T:
    """How many kills, cuts, flips or seconds: what belongs to the effort."""
    return {"quick": quick, "checks": checks, "long": long}[EFFORT]


def few(cases: int) -> pytest.MarkDecorator:
    """For a test with many cases: quick runs so many of them, the same each time. conftest.py chooses them."""
    return pytest.mark.few(cases)


def examples(checks: int, *, long: int | None = None, **options: Any) -> hypothesis.settings:
    """Hypothesis' settings for a test that is to try so many examples in the checks."""
    tried = amount(quick=max(5, checks // 10), checks=checks, long=10 * checks if long is None else long)
    return hypothesis.settings(max_examples=tried, **options)


# No example has a deadline: on a machine with other work any may pass it. All but long try the same examples each time,
# so that a change and not chance makes them fail.
hypothesis.settings.register_profile("ours", deadline=None, derandomize=EFFORT != "long")
hypothesis.settings.load_profile("ours")
hypothesis.settings.register_profile(EFFORT, examples(100))
hypothesis.settings.load_profile(EFFORT)
