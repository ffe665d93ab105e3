"""The disk's thread: what it does comes back to the loop, and the loop gives way to it where that helps."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from patience import PATIENCE

from service import errors
from service.learning import disk
from service.learning.disk import MOST_PASSED, Begun, Disk


@asynccontextmanager
async def opened(folder: Path, told: list[errors.LogstepError] | None = None) -> AsyncIterator[Disk]:
    """A disk; `told` gets its failures."""
    found = Disk((told if told is not None else []).append)
    await found.open(folder)
    try:
        yield found
    finally:
        await found.close()


def fail(error: Exception) -> None:
    raise error


def test_work_is_done_in_one_thread_in_order(tmp_path: Path) -> None:
    done: list[int] = []

    def work(number: int) -> str:
        done.append(number)
        return threading.current_thread().name

    async def run() -> None:
        async with opened(tmp_path) as thread:
            begun = [thread.begin(partial(work, i)) for i in range(20)]
            assert {await thread.end(one) for one in reversed(begun)} == {"logstep-store"}

    asyncio.run(run())
    assert done == list(range(20))


def test_an_error_comes_back_and_a_failed_disk_is_told(tmp_path: Path) -> None:
    told: list[errors.LogstepError] = []
    failure = errors.StorageFailed(reason="no disk")

    async def run() -> None:
        async with opened(tmp_path, told) as thread:
            with pytest.raises(ZeroDivisionError):
                await thread.end(thread.begin(partial(fail, ZeroDivisionError())))
            assert told == []
            with pytest.raises(errors.StorageFailed):
                await thread.end(thread.begin(partial(fail, failure)))

    asyncio.run(run())
    assert told == [failure]


def test_work_goes_on_when_nobody_waits_for_it_any_more(tmp_path: Path) -> None:
    async def run() -> None:
        goes_on, ended = threading.Event(), threading.Event()
        async with opened(tmp_path) as thread:
            waits = asyncio.create_task(thread.end(thread.begin(partial(goes_on.wait, PATIENCE))))
            after = thread.begin(ended.set)
            await asyncio.sleep(0)
            waits.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waits
            goes_on.set()
            await thread.end(after)
            assert ended.is_set()

    asyncio.run(run())


def test_after_giving_way_to_short_work_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "GIVE_WAY_SECONDS", PATIENCE)

    async def run() -> None:
        async with opened(tmp_path) as thread:
            begun = thread.begin(lambda: "short")
            thread.give_way(begun)
            with pytest.raises(StopIteration) as over:
                begun.outcome().send(None)  # it would give a future to wait for
            assert over.value.value == "short"

    asyncio.run(run())


def test_on_a_slow_disk_the_loop_gives_way_ever_more_rarely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But soon again when the disk is fast."""
    monkeypatch.setattr(disk, "GIVE_WAY_SECONDS", 0.0)
    asked: list[Begun[bool]] = []
    give_way = Begun.give_way

    def counted(begun: Begun[bool], seconds: float) -> bool:
        asked.append(begun)
        return give_way(begun, seconds)

    monkeypatch.setattr(Begun, "give_way", counted)

    async def run() -> None:
        async with opened(tmp_path) as thread:
            slow: list[Begun[bool]] = []
            for _ in range(40):
                goes_on = threading.Event()
                slow.append(thread.begin(partial(goes_on.wait, PATIENCE)))
                thread.give_way(slow[-1])
                goes_on.set()
                assert await thread.end(slow[-1])
            first = [0, 2, 6, 14]
            assert [slow.index(one) for one in asked] == [*first, *range(15 + MOST_PASSED, 40, MOST_PASSED + 1)]
            for _ in range(MOST_PASSED + 1):
                fast = thread.begin(lambda: True)
                await thread.end(fast)
                thread.give_way(fast)
            asked.clear()
            for _ in range(10):
                thread.give_way(fast)
            assert len(asked) == 10

    asyncio.run(run())
