"""A log that is cut: what was never acknowledged is dropped, and said so; what was acknowledged refuses to start."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from effort import amount
from examples import Example, State, make_example, opened
from processes import copied

from service import errors, failures
from service.commands.inspect import examine
from service.commands.repair import repair
from service.storage.log import LogReader
from service.storage.schema import PAGE_BYTES
from service.storage.wal import encode_mark

LAST = 3
"""Commits at the end that are cut."""
FRAME = 24 + PAGE_BYTES


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    return asyncio.run(make_example(tmp_path_factory.mktemp("example")))


def cut(example: Example, size: int, to: Path, name: str = "log.db-wal") -> Path:
    """A copy of the folder as a kill left it, with a file cut to so many bytes."""
    folder = copied(example.killed, to)
    with (folder / name).open("r+b") as file:
        file.truncate(size)
    return folder


def end_of(folder: Path) -> tuple[int, int]:
    """Number and checksum of the last commit that can be read."""
    log = LogReader(folder)
    try:
        return log.db.log_end()
    finally:
        log.close()


def state_at(example: Example, number: int) -> State:
    """The state after a commit; those in between wrote snapshots."""
    return example.history[max(noted for noted in example.history if noted <= number)]


def sizes(example: Example, every: int, whole: int) -> tuple[Sequence[int], int]:
    """Bytes to cut the write-ahead log to, within the last commits; and how long it was before them.

    All within the last `whole` frames, all just around the start of any frame or of its page, and one in `every` of the
    others. SQLite and `read_tail` read a frame's header, and its page as a whole. So where in a page the log ends
    should not matter; one frame cut at every byte shows that, and the others show that it does not hang on the frame.
    """
    numbers = sorted(example.sizes)
    start, end = example.sizes[numbers[-LAST - 1]], example.sizes[numbers[-1]]
    near = {0, 1, 23, 24, 25, FRAME - 1}
    chance = random.Random(1)

    def chosen(size: int) -> bool:
        return size >= end - whole * FRAME or (size - 32) % FRAME in near or chance.randrange(every) == 0

    return [size for size in range(start, end) if chosen(size)], start


def check_unacknowledged(example: Example, to: Path, caplog: pytest.LogCaptureFixture) -> None:
    lengths, start = sizes(example, EVERY, WHOLE_FRAMES)
    acknowledged = end_of(cut(example, start, to / "before"))
    for size in lengths:
        caplog.clear()
        folder = cut(example, size, to / str(size))
        (folder / "last-commit").write_bytes(encode_mark(*acknowledged))
        number, _ = end_of(folder)
        assert number >= acknowledged[0]
        boundary = size in example.sizes.values()
        assert bool(examine(folder).tail.pages) is not boundary
        assert not examine(folder).wrong
        assert asyncio.run(opened(folder)) == state_at(example, number), size
        assert (f"commit {number + 1} was cut short and never acknowledged" in caplog.text) is not boundary, size
        shutil.rmtree(folder)  # the long form has thousands


def check_acknowledged(example: Example, to: Path) -> None:
    for size in sizes(example, EVERY, WHOLE_FRAMES)[0]:
        folder = cut(example, size, to / str(size))
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        refusal = asyncio.run(opened(folder))
        assert isinstance(refusal, failures.LogEndsEarly), size
        assert f"logstep repair {folder}" in str(refusal)
        assert {name: (folder / name).read_bytes() for name in before} == before  # and left alone
        shutil.rmtree(folder)


def check_database(example: Example, sizes: Sequence[int], to: Path) -> None:
    for size in sizes:
        folder = copied(example.closed, to / str(size))
        with (folder / "log.db").open("r+b") as file:
            file.truncate(size)
        found = asyncio.run(opened(folder))
        if isinstance(found, errors.LogstepError):
            assert f"{folder}" in str(found)
        else:  # of the last page only rows are cut that come before a snapshot
            assert size > (example.closed / "log.db").stat().st_size - PAGE_BYTES
            assert found == example.state
            assert examine(folder).damage


EVERY = amount(quick=20_000, checks=2_000, long=97)
"""Of so many bytes one is cut at by chance, beside those at the ends of frames."""
WHOLE_FRAMES = amount(quick=0, checks=0, long=1)
"""So many frames are cut at every byte."""


def test_a_cut_in_what_was_never_acknowledged_is_dropped_and_said_so(
    example: Example, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_unacknowledged(example, tmp_path, caplog)


def test_a_cut_in_what_was_acknowledged_refuses_to_start(example: Example, tmp_path: Path) -> None:
    check_acknowledged(example, tmp_path)


def test_a_hole_before_commits_that_were_synced_is_refused_and_told(example: Example, tmp_path: Path) -> None:
    """After a power cut the mark may be behind the log: then it is the commits after the hole that tell of it."""
    numbers = sorted(example.sizes)
    folder = copied(example.killed, tmp_path / "data")
    wal = bytearray((folder / "log.db-wal").read_bytes())
    wal[example.sizes[numbers[-LAST - 1]] + 24 + 100] ^= 1
    (folder / "log.db-wal").write_bytes(wal)
    number, checksum = end_of(folder)
    assert number < numbers[-1]
    (folder / "last-commit").write_bytes(encode_mark(number, checksum))
    refusal = asyncio.run(opened(folder))
    assert isinstance(refusal, failures.LogHasAHole)
    assert f"`logstep repair {folder}`" in str(refusal)
    assert any("synced commit(s) follow" in wrong for wrong in examine(folder).wrong)
    assert repair(folder, yes=True) == 0
    assert asyncio.run(opened(folder)) == state_at(example, number)


def test_a_database_that_is_cut_is_refused(example: Example, tmp_path: Path) -> None:
    length = (example.closed / "log.db").stat().st_size
    within = amount(
        quick=random.Random(1).sample(range(length), 5),
        checks=random.Random(1).sample(range(length), 20),
        long=range(length - PAGE_BYTES, length),
    )
    ends = [0, 1, 99, 100, 4_095, 4_096, *range(8_192, length, PAGE_BYTES), length - 1]
    check_database(example, sorted({*ends, *within}), tmp_path)
