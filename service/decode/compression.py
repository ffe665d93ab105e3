"""Unpacks gzip and zstd as they arrive, a bounded piece at a time.

zstd comes with Python from 3.14 on; until then the package backports.zstd has the same classes.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from service import errors

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["FRAMES", "MOST_TIMES", "Unpacker", "zstd"]
PIECE_BYTES = 2**16
"""Most bytes that come out at a time: unpacking as many takes less than a millisecond."""
MOST_TIMES = 200
"""How many times its size a body may become, beyond some free bytes. Rows of real data become ten or twenty times
theirs; a bomb a thousand times with gzip, and 30,000 times with zstd."""
_WINDOW: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 23}
"""Memory of a zstd frame, as a power of two: 8 MiB, which RFC 9659 asks of every HTTP client and server."""


class _Frame(Protocol):
    """Unpacks one frame, as the classes of bz2, lzma and zstd do."""

    eof: bool
    needs_input: bool
    unused_data: bytes

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """One member of gzip, as a _Frame."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        found = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        self.needs_input = not self._zlib.unconsumed_tail and len(found) < max_length
        return found


FRAMES: dict[str, Callable[[], Any]] = {
    "gzip": _Gzip,
    "x-gzip": _Gzip,
    "zstd": lambda: zstd.ZstdDecompressor(options=_WINDOW),
}
"""Content encodings, and what unpacks them."""


class Unpacker:
    """Unpacks a body. free: bytes that may come out whatever its size is.

    >>> import gzip
    >>> unpacker = Unpacker("gzip", free=100)
    >>> list(unpacker.pieces(gzip.compress(b"age,y\\n"))), unpacker.end()
    ([b'age,y\\n'], None)
    """

    def __init__(self, encoding: str, free: int) -> None:
        self._encoding = encoding
        self._free = free
        self._in = self._out = 0
        self._frame: _Frame | None = None

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What comes out of the next bytes, in pieces. Raises MalformedEncoding, or ExpandsTooMuch."""
        self._in += len(data)
        while data or (self._frame is not None and not self._frame.needs_input):
            if self._frame is None:
                self._frame = FRAMES[self._encoding]()
            try:
                found = self._frame.decompress(data, PIECE_BYTES)
            except (zlib.error, zstd.ZstdError) as error:
                raise errors.MalformedEncoding(encoding=self._encoding, reason=_reason(error)) from None
            data = b""
            self._out += len(found)
            if self._out > self._free + MOST_TIMES * self._in:
                raise errors.ExpandsTooMuch(times=MOST_TIMES, limit=self._free)
            if self._frame.eof:  # another frame may follow
                data, self._frame = self._frame.unused_data, None
            yield found  # even if empty: a body of empty frames must let others be served too

    def end(self) -> None:
        """Raise MalformedEncoding if the body ends within a frame."""
        if self._frame is not None:
            raise errors.MalformedEncoding(encoding=self._encoding, reason="it ends early")


def _reason(error: Exception) -> str:
    if "too much memory" in str(error):
        return "it needs a window of more than 8 MiB; compress it without --long and --ultra"
    return str(error).rpartition("data: ")[2]
