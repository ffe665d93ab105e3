"""Gathers the lines of an NDJSON body as they arrive.

Lines are passed on when they fill a piece, or after a short wait. So a client that sends an event a second has each
learned at once, and one that sends a million has them learned a thousand at a time.
"""

from __future__ import annotations

import asyncio
import codecs
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any, NamedTuple

import numpy as np

from core.compiled import compiled
from service import errors
from service.fairness import Slices
from service.settings import Settings
from service.texts import Bytes

Chunks = AsyncGenerator[bytes]

PIECE_BYTES = 2 * 2**20
"""Approximate bytes of a piece. Lines may be long, and many pieces may wait at a time."""
LINGER_SECONDS = 0.05
"""How long lines wait for more lines."""
CHUNKS_AHEAD = 8
"""Chunks, mostly of 64 KiB, that are received while earlier lines are read."""

_LINE_FEED = 10


@compiled("int64(uint8[::1], int64)")
def _end_of(data: Bytes, lines: int) -> Any:
    """Where the first `lines` lines end, which must be there."""
    at = np.uint64(0)
    while lines > 0:
        lines -= data[at] == _LINE_FEED
        at += np.uint64(1)
    return np.int64(at)


class Text(NamedTuple):
    """Whole lines of a body, each ended by a line feed, and the number of the first, from 1."""

    number: int
    data: bytearray

    def lines(self) -> list[tuple[int, bytes]]:
        """Each line that is not blank, with its number."""
        numbered = enumerate(bytes(self.data).split(b"\n"), self.number)
        return [(number, line) for number, line in numbered if line.strip()]

    def after(self, lines: int, end: int) -> Text:
        """The rest after `lines` lines, the last of which ends at `end`."""
        return Text(self.number + lines, self.data[end:])


async def texts_of(chunks: Chunks, settings: Settings) -> AsyncGenerator[Text]:
    """A body's lines, in texts of `stream_events` lines.

    Fewer lines come at the end, before an error, if lines are long, and after a wait of LINGER_SECONDS. Raises
    LineTooLong for a line that exceeds the limit before it has ended.
    """
    gathered, arriving, slices = _Gathered(settings), _Arriving(chunks), Slices()
    try:
        while (chunk := await arriving.next(gathered.patience())) is not None:
            gathered.add(chunk)
            for text in gathered.texts(all_of_them=gathered.patience() == 0.0):
                yield text
                if slices.spent(len(text.data)):
                    await slices.rest()
            gathered.check_length()
    except errors.LogstepError:
        for text in gathered.texts(all_of_them=True):
            yield text
        raise
    finally:
        arriving.stop()
    gathered.end()
    for text in gathered.texts(all_of_them=True):
        yield text


def lines_in(data: bytes | bytearray) -> int:
    """How many lines end in `data`. `bytes.count` takes six times as long."""
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == _LINE_FEED))


class _Gathered:
    """The bytes of a body that have arrived but were not passed on."""

    def __init__(self, settings: Settings) -> None:
        self._lines = 0
        self._data = bytearray()
        self._number = 1
        self._open_since = 0  # start of the line that has not ended
        self._due = 0.0  # when the lines must be passed on
        self._size, self._longest = settings.stream_events, settings.max_line_bytes

    def patience(self) -> float | None:
        """Seconds that the lines may still wait for more; None if there are no lines."""
        return max(0.0, self._due - time.monotonic()) if self._lines else None

    def add(self, chunk: bytes) -> None:
        ended = lines_in(chunk)
        if ended:
            if not self._lines:
                self._due = time.monotonic() + LINGER_SECONDS
            self._open_since = len(self._data) + chunk.rindex(b"\n") + 1
            self._lines += ended
        self._data += chunk

    def end(self) -> None:
        """End the last line: the body has ended."""
        if self._open_since < len(self._data):
            self.add(b"\n")

    def texts(self, all_of_them: bool) -> Iterator[Text]:
        """The whole lines to pass on: all of them, or only full pieces."""
        while self._lines and (all_of_them or self._lines >= self._size or len(self._data) > PIECE_BYTES):
            lines = min(self._lines, self._size)
            end = _end_of(np.frombuffer(self._data, np.uint8), lines)
            number, data = self._number, self._data[:end]
            del self._data[:end]
            self._open_since -= end
            self._number, self._lines = number + lines, self._lines - lines
            yield Text(number, data if number > 1 else data.removeprefix(codecs.BOM_UTF8))
            # Counted from now: more lines may have come while that text was worked on.
            self._due = time.monotonic() + LINGER_SECONDS

    def check_length(self) -> None:
        """Raise LineTooLong if the unfinished line is too long already."""
        if len(self._data) - self._open_since > self._longest:
            raise errors.LineTooLong(line=self._number + self._lines, limit=self._longest)


class _Arriving:
    """Receives chunks while earlier ones are worked on."""

    def __init__(self, chunks: Chunks) -> None:
        self._queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(CHUNKS_AHEAD)
        self._filling = asyncio.create_task(self._fill(chunks))

    async def _fill(self, chunks: Chunks) -> None:
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    await self._queue.put(chunk)
        except Exception as error:  # `next` raises it
            await self._queue.put(error)
        else:
            await self._queue.put(None)

    async def next(self, seconds: float | None) -> bytes | None:
        """The next chunk; b"" if none comes within `seconds`; None after the last."""
        there = not self._queue.empty()
        try:
            if there:
                found = self._queue.get_nowait()
            else:
                async with asyncio.timeout(seconds):
                    found = await self._queue.get()
        except TimeoutError:
            return b""
        if isinstance(found, Exception):
            raise found
        return found

    def stop(self) -> None:
        """Stop receiving, and free the chunks."""
        self._filling.cancel()
        # The ended task refers to its frame, and that to this object: else only the collector frees the chunks.
        del self._filling
