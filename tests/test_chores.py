"""The chores in their order, with a clock that a test sets: who is due, who rests, and what is done last."""

from __future__ import annotations

import asyncio
import math
from typing import Any, cast

import pytest

from service import errors
from service.clock import Clock
from service.learning.chores import FULL_PAUSE_SECONDS, Chore, Chores


class Noted(Chore):
    """A chore that is due for some steps, and notes each."""

    lost = "some notes are lost"

    def __init__(self, name: str, notes: list[str], steps: float = 0, due: float = math.inf) -> None:
        super().__init__(*cast("Any", (None, None, None)))
        self.name, self.notes, self.steps, self.waits = name, notes, steps, due
        self.error: errors.LogstepError | None = None

    def due(self) -> float:
        return 0.0 if self.steps else self.waits

    async def step(self) -> None:
        self.notes.append(self.name)
        if self.error is not None:
            raise self.error
        self.steps -= 1

    async def last_step(self) -> bool:
        if self.steps:
            await self.step()
            return True
        return False


class Stopped:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.clock = Clock(lambda: self.now, lambda: self.now)


def test_the_first_that_is_due_does_a_piece() -> None:
    notes: list[str] = []
    chores = Chores([Noted("a", notes), Noted("b", notes, 2), Noted("c", notes, 1)], Stopped().clock)
    assert [asyncio.run(chores.step()) for _ in range(4)] == [True, True, True, False]
    assert notes == ["b", "b", "c"]


def test_the_sleep_ends_when_the_first_is_due() -> None:
    assert Chores([Noted("a", [], due=7.0), Noted("b", [], due=3.0), Noted("c", [])], Stopped().clock).due() == 3.0


def test_all_rest_when_the_disk_is_full_and_then_try_again() -> None:
    notes: list[str] = []
    time, full = Stopped(), Noted("full", notes, 1)
    full.error = errors.DiskFull()
    chores = Chores([full, Noted("other", notes, 1)], time.clock)
    assert asyncio.run(chores.step())
    assert not asyncio.run(chores.step())
    assert chores.due() == FULL_PAUSE_SECONDS
    time.now += FULL_PAUSE_SECONDS - 1
    assert (asyncio.run(chores.step()), chores.due()) == (False, 1.0)
    time.now += 1
    full.error = None
    assert [asyncio.run(chores.step()) for _ in range(3)] == [True, True, False]
    assert notes == ["full", "full", "other"]


def test_another_error_is_raised() -> None:
    broken = Noted("broken", [], 1)
    broken.error = errors.StorageFailed(reason="broken")
    with pytest.raises(errors.StorageFailed):
        asyncio.run(Chores([broken], Stopped().clock).step())


def test_the_last_steps_are_done_while_there_is_time_and_an_error_costs_one_chore(
    caplog: pytest.LogCaptureFixture,
) -> None:
    notes: list[str] = []
    time, broken = Stopped(), Noted("broken", notes, 3)
    broken.error = errors.StorageFailed(reason="broken")
    asyncio.run(Chores([broken, Noted("whole", notes, 3)], time.clock).finish(time.now + 1))
    assert notes == ["broken"] + ["whole"] * 3
    assert "some notes are lost: " in caplog.text
    asyncio.run(Chores([Noted("late", notes, 3)], time.clock).finish(time.now))
    assert "late" not in notes
