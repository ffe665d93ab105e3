"""Lines of NDJSON, however they arrive: how many at a time, how long they wait, and which are too long."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service import errors
from service.decode import pieces
from service.decode.text import LINGER_SECONDS, PIECE_BYTES, Text, texts_of
from service.settings import Settings

LONGEST = 1_024
"""Bytes that a line may have here."""

Part = bytes | float | Exception
"""What comes of a body: bytes, a pause of so many seconds, or an error."""


async def arriving(parts: Iterable[Part]) -> AsyncGenerator[bytes]:
    for part in parts:
        if isinstance(part, Exception):
            raise part
        if isinstance(part, float):
            await asyncio.sleep(part)
        else:
            yield part


def texts(parts: Iterable[Part], size: int = 1_000) -> tuple[list[Text], errors.LogstepError | None]:
    """The texts of a body that comes in these parts, and what ended it."""
    found: list[Text] = []

    async def gather() -> errors.LogstepError | None:
        try:
            async for text in texts_of(arriving(parts), Settings(stream_events=size, max_line_bytes=LONGEST)):
                found.append(text)
        except errors.LogstepError as error:
            return error
        return None

    error = asyncio.run(gather())
    return found, error


def lines_of(parts: Iterable[Part], size: int = 1_000) -> list[tuple[int, bytes]]:
    """All lines of a body, with their numbers."""
    found, error = texts(parts, size)
    assert error is None
    return [line for text in found for line in text.lines()]


@given(
    body=st.text(alphabet="ab \r\n\t", max_size=40).map(str.encode),
    cuts=st.lists(st.integers(0, 40)),
    size=st.integers(1, 5),
)
@example(body=b"a\r\nb", cuts=[2], size=1)
@example(body=b"", cuts=[], size=1)
@example(body=b"a\nb\nc\nd", cuts=[], size=2)
def test_the_lines_of_a_body_are_the_same_however_it_arrives(body: bytes, cuts: list[int], size: int) -> None:
    edges = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    chunks = [body[start:stop] for start, stop in itertools.pairwise(edges)]
    expected = [(n, line) for n, line in enumerate(body.split(b"\n"), 1) if line.strip()]
    assert lines_of(chunks, size) == expected


def test_blank_lines_count_and_are_left_out() -> None:
    assert lines_of([b"\n\na\n \r\n\nb"]) == [(3, b"a"), (6, b"b")]


def test_lines_that_come_at_once_are_cut_into_texts_of_the_size_asked_for() -> None:
    found, _ = texts([b"a\n" * 10, b"b\n" * 15], size=10)
    assert [(text.number, text.data.count(b"\n")) for text in found] == [(1, 10), (11, 10), (21, 5)]


def test_long_lines_are_passed_on_in_smaller_texts() -> None:
    line = b"x" * (LONGEST - 1) + b"\n"
    found, _ = texts([line] * 5_000, size=5_000)
    assert sum(len(text.data) for text in found) == 5_000 * LONGEST
    assert max(len(text.data) for text in found) <= PIECE_BYTES + LONGEST


# -- slow bodies


def test_lines_are_passed_on_when_the_next_let_wait_for_themselves() -> None:
    came: list[tuple[bytes, float]] = []

    async def gather() -> None:
        started = time.monotonic()
        async for text in texts_of(arriving([b"a\nb\nhal", 1.0, b"f\n", 1.0]), Settings()):
            came.append((bytes(text.data), time.monotonic() - started))

    asyncio.run(gather())
    assert [data for data, _ in came] == [b"a\nb\n", b"half\n"]
    assert came[0][1] < 0.9, "the first lines waited for the next"
    assert came[1][1] < 1.9, "the last line waited for the end"


def test_lines_that_come_close_together_are_passed_on_together() -> None:
    found, _ = texts([b"a\n", LINGER_SECONDS / 50, b"b\n", LINGER_SECONDS / 50, b"c\n"])
    assert [bytes(text.data) for text in found] == [b"a\nb\nc\n"]


def test_lines_that_keep_coming_one_by_one_do_not_hold_each_other_back() -> None:
    async def first() -> float:
        started = time.monotonic()
        trickle = [part for _ in range(100) for part in (b"a\n", LINGER_SECONDS / 2)]
        async with aclosing(texts_of(arriving(trickle), Settings())) as found:
            async for _ in found:
                break
        return time.monotonic() - started

    assert asyncio.run(first()) < 20 * LINGER_SECONDS


def test_a_body_that_is_given_up_is_received_no_further_and_let_go() -> None:
    received: list[int] = []
    closed = asyncio.Event()

    async def chunks() -> AsyncGenerator[bytes]:
        try:
            while True:
                received.append(1)
                yield b"a\n"
        finally:
            closed.set()

    async def give_up() -> int:
        async with aclosing(texts_of(chunks(), Settings(stream_events=1))) as found:
            async for _ in found:
                break
        await asyncio.wait_for(closed.wait(), 5)
        count = len(received)
        await asyncio.sleep(0.01)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return len(received) - count

    assert asyncio.run(give_up()) == 0


@pytest.mark.parametrize("turns", range(8))
def test_a_body_ends_when_it_is_cancelled_even_as_a_line_comes(turns: int) -> None:
    """`turns` of the loop lie between the line and the cancellation."""
    comes = asyncio.Event()

    async def chunks() -> AsyncGenerator[bytes]:
        yield b"a\n"
        await comes.wait()
        yield b"b\n"
        await asyncio.Event().wait()

    async def read() -> None:
        async for _ in texts_of(chunks(), Settings()):
            pass

    async def story() -> bool:
        reading = asyncio.create_task(read())
        await asyncio.sleep(LINGER_SECONDS / 5)  # it has the first line, and waits for more to pass on with it
        comes.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading], timeout=1)
        return reading.cancelled()

    assert asyncio.run(story())


def test_a_body_is_received_while_the_lines_before_are_worked_on() -> None:
    received: list[int] = []

    async def chunks() -> AsyncGenerator[bytes]:
        for i in range(100):
            received.append(i)
            yield b"a\n"

    async def first() -> int:
        async for _ in texts_of(chunks(), Settings(stream_events=1)):
            await asyncio.sleep(LINGER_SECONDS)
            return len(received)
        return 0

    assert 1 < asyncio.run(first()) < 20, "some chunks, and not all"


# -- what ends a body


TOO_LONG = b"1" * (LONGEST + 1)


@pytest.mark.parametrize(
    "chunks",
    [
        [b"ok\n" + TOO_LONG + b"\nok\n"],
        [b"ok\n" + TOO_LONG[:9], TOO_LONG[9:] + b"\nok\n"],
        [b"ok\n" + TOO_LONG],
        [b"ok\n", TOO_LONG[:9], TOO_LONG[9:]],
        [b"o", b"k\n" + b" " * len(TOO_LONG)],
    ],
    ids=["whole", "in two", "not ended", "not ended, in two", "blank"],
)
def test_the_lines_before_one_that_is_too_long_are_given_first(chunks: list[bytes]) -> None:
    found: list[bytes] = []

    async def gather() -> None:
        limits = Settings(max_line_bytes=LONGEST)
        async for piece in pieces.lines_of(arriving(chunks), lambda line, _: line, limits):
            found.extend(piece.items)
            if piece.wrong is not None:
                raise piece.wrong

    with pytest.raises(errors.LineTooLong) as refused:
        asyncio.run(gather())
    assert found == [b"ok"]
    assert (refused.value.line, refused.value.status) == (2, 413)


def test_a_line_of_just_the_limit_is_not_too_long() -> None:
    line = b"1" * LONGEST
    assert lines_of([line + b"\n", line[:9], line[9:]]) == [(1, line), (2, line)]


def test_a_line_that_never_ends_is_refused_before_much_of_it_is_held() -> None:
    taken: list[int] = []

    async def endless() -> AsyncGenerator[bytes]:
        for i in range(1_000):
            taken.append(i)
            yield b"1" * 512

    async def gather() -> None:
        async for _ in texts_of(endless(), Settings(max_line_bytes=LONGEST)):
            pass

    with pytest.raises(errors.LineTooLong):
        asyncio.run(gather())
    assert len(taken) < 20


def test_the_whole_lines_before_a_body_breaks_off_are_given_first_and_what_was_cut_is_not() -> None:
    found, error = texts([b"a\nb\nhal", errors.BodyIncomplete()])
    assert [bytes(text.data) for text in found] == [b"a\nb\n"]
    assert isinstance(error, errors.BodyIncomplete)
