"""The lines of an NDJSON body, gathered as they arrive.

They are passed on when they make a piece, or when no more come for a moment: who sends an event a second has each
learned at once, and who sends a million has them learned a thousand at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

import numpy as np

from service import errors
from service.settings import Settings

Chunks = AsyncIterator[bytes]

PIECE_BYTES = 2 * 2**20
"""Bytes of lines in a piece, about: many pieces wait at a time, and lines may be long."""
LINGER_SECONDS = 0.05
"""How long lines wait for others to come."""
CHUNKS_AHEAD = 8
"""Chunks, of 64 KiB mostly, that are received while the lines before them are read."""

_LINE_FEED = 10


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


async def texts_of(chunks: Chunks, settings: Settings) -> AsyncIterator[Text]:
    """A body's lines in texts of `stream_events`; smaller are the last, those of long lines, those before an error, and
    those after which no more came for LINGER_SECONDS.

    LineTooLong where a line that has not ended is longer than it may be.
    """
    gathered, arriving = _Gathered(settings), _Arriving(chunks)
    try:
        while (chunk := await arriving.next(LINGER_SECONDS if gathered.lines else None)) is not None:
            gathered.add(chunk)
            for text in gathered.texts(all_of_them=not chunk):
                yield text
            gathered.check_length()
    except errors.OnestepError:
        for text in gathered.texts(all_of_them=True):
            yield text
        raise
    finally:
        arriving.stop()
    gathered.end()
    for text in gathered.texts(all_of_them=True):
        yield text


def lines_in(data: bytes | bytearray) -> int:
    """How many lines end in it. `bytes.count` takes six times as long."""
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == _LINE_FEED))


class _Gathered:
    """The bytes of a body that have come and were not passed on. lines: how many lines of them have ended."""

    def __init__(self, settings: Settings) -> None:
        self.lines = 0
        self._data = bytearray()
        self._number = 1
        self._size, self._longest = settings.stream_events, settings.max_line_bytes

    def add(self, chunk: bytes) -> None:
        self._data += chunk
        self.lines += lines_in(chunk)

    def end(self) -> None:
        """The body has ended, and with it its last line."""
        if self._data and not self._data.endswith(b"\n"):
            self.add(b"\n")

    def texts(self, all_of_them: bool) -> Iterator[Text]:
        """What there is to be passed on: the whole lines, all of them or those that make a piece."""
        while self.lines and (all_of_them or self.lines >= self._size or len(self._data) > PIECE_BYTES):
            lines = min(self.lines, self._size)
            text = Text(self._number, self._data[: self._end_of(lines)])
            del self._data[: len(text.data)]
            self._number, self.lines = self._number + lines, self.lines - lines
            yield text

    def _end_of(self, lines: int) -> int:
        """Where the first so many lines end."""
        feeds = np.flatnonzero(np.frombuffer(self._data, np.uint8) == _LINE_FEED)
        return int(feeds[lines - 1]) + 1

    def check_length(self) -> None:
        """LineTooLong if a line that has not ended is too long already."""
        unended = len(self._data) - (self._data.rfind(b"\n") + 1)
        if unended > self._longest:
            raise errors.LineTooLong(line=self._number + self.lines, limit=self._longest)


class _Arriving:
    """Chunks that are received while those before them are worked on."""

    def __init__(self, chunks: Chunks) -> None:
        self._queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(CHUNKS_AHEAD)
        self._filling = asyncio.create_task(self._fill(chunks))

    async def _fill(self, chunks: Chunks) -> None:
        try:
            async for chunk in chunks:
                await self._queue.put(chunk)
        except Exception as error:  # raised again where the chunks are taken
            await self._queue.put(error)
        else:
            await self._queue.put(None)

    async def next(self, seconds: float | None) -> bytes | None:
        """The next chunk, b"" if none comes for so many seconds, None after the last."""
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
        """Receive no more."""
        self._filling.cancel()
