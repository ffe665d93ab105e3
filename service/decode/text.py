"""The lines of an NDJSON body, gathered as they arrive.

They are passed on when they make a piece, or when no more come for a moment: who sends an event a second has each
learned at once, and who sends a million has them learned a thousand at a time.
"""

from __future__ import annotations

import asyncio
import codecs
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import NamedTuple

import numpy as np

from service import errors
from service.fairness import Slices
from service.settings import Settings

Chunks = AsyncGenerator[bytes]

PIECE_BYTES = 2 * 2**20
"""Bytes of lines in a piece, about: many pieces wait at a time, and lines may be long."""
LINGER_SECONDS = 0.05
"""How long lines wait for others to come."""
CHUNKS_AHEAD = 8
"""Chunks, of 64 KiB mostly, that are received while the lines before them are read."""

_LINE_FEED = 10
_LOOK_BYTES = 2**15


class Text(NamedTuple):
    """Some whole lines of a body, each ended by a line feed, and the number of the first; they count from 1."""

    number: int
    data: bytearray

    def lines(self) -> list[tuple[int, bytes]]:
        """Each line with its number; blank ones are left out."""
        numbered = enumerate(bytes(self.data).split(b"\n"), self.number)
        return [(number, line) for number, line in numbered if line.strip()]

    def after(self, lines: int, end: int) -> Text:
        """What comes after so many lines, the last of which ends at `end`."""
        return Text(self.number + lines, self.data[end:])


async def texts_of(chunks: Chunks, settings: Settings) -> AsyncGenerator[Text]:
    """A body's lines in texts of `stream_events`; smaller are the last, those of long lines, those before an error, and
    those that have waited LINGER_SECONDS.

    LineTooLong where a line that has not ended is longer than it may be.
    """
    gathered, arriving, slices = _Gathered(settings), _Arriving(_without_mark(chunks)), Slices()
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


async def _without_mark(chunks: Chunks) -> Chunks:
    """The same chunks without the mark that may stand before UTF-8, wherever they part."""
    first: bytes | None = b""
    async with aclosing(chunks):
        async for chunk in chunks:
            if first is None:
                yield chunk
                continue
            first += chunk
            if len(first) >= len(codecs.BOM_UTF8) or not codecs.BOM_UTF8.startswith(first):
                yield first.removeprefix(codecs.BOM_UTF8)
                first = None
    if first:
        yield first


def lines_in(data: bytes | bytearray) -> int:
    """How many lines end in it. `bytes.count` takes six times as long."""
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == _LINE_FEED))


class _Gathered:
    """The bytes of a body that have come and were not passed on."""

    def __init__(self, settings: Settings) -> None:
        self._lines = 0
        self._data = bytearray()
        self._number = 1
        self._open_since = 0  # where the line begins that has not ended
        self._due = 0.0  # when the lines have waited long enough
        self._size, self._longest = settings.stream_events, settings.max_line_bytes

    def patience(self) -> float | None:
        """Seconds that the lines may still wait for others; None if there are none."""
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
        """The body has ended, and with it its last line."""
        if self._open_since < len(self._data):
            self.add(b"\n")

    def texts(self, all_of_them: bool) -> Iterator[Text]:
        """What there is to be passed on: the whole lines, all of them or those that make a piece."""
        while self._lines and (all_of_them or self._lines >= self._size or len(self._data) > PIECE_BYTES):
            lines = min(self._lines, self._size)
            text = Text(self._number, self._data[: self._end_of(lines)])
            del self._data[: len(text.data)]
            self._open_since -= len(text.data)
            self._number, self._lines = self._number + lines, self._lines - lines
            yield text
            # From now, not from when they came: while that text was worked on, others may have.
            self._due = time.monotonic() + LINGER_SECONDS

    def _end_of(self, lines: int) -> int:
        """Where the first so many lines end."""
        looked_at = _LOOK_BYTES  # not all at once: much may have come, and it would be looked at for each text
        while True:
            feeds = np.flatnonzero(np.frombuffer(self._data, np.uint8)[:looked_at] == _LINE_FEED)
            if len(feeds) >= lines:
                return int(feeds[lines - 1]) + 1
            looked_at *= 4

    def check_length(self) -> None:
        """LineTooLong if a line that has not ended is too long already."""
        if len(self._data) - self._open_since > self._longest:
            raise errors.LineTooLong(line=self._number + self._lines, limit=self._longest)


class _Arriving:
    """Chunks that are received while those before them are worked on."""

    def __init__(self, chunks: Chunks) -> None:
        self._queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(CHUNKS_AHEAD)
        self._filling = asyncio.create_task(self._fill(chunks))

    async def _fill(self, chunks: Chunks) -> None:
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    await self._queue.put(chunk)
        except Exception as error:  # raised again where the chunks are taken
            await self._queue.put(error)
        else:
            await self._queue.put(None)

    async def next(self, seconds: float | None) -> bytes | None:
        """The next chunk, b"" if none comes in so many seconds, None after the last."""
        try:
            found = (
                await asyncio.wait_for(self._queue.get(), seconds) if self._queue.empty() else self._queue.get_nowait()
            )
        except TimeoutError:
            return b""
        if isinstance(found, Exception):
            raise found
        return found

    def stop(self) -> None:
        """Receive no more, and let go what was received."""
        self._filling.cancel()
        # The task's end leads to the frame that it ended in, and that to this: the chunks would wait for the collector.
        del self._filling
