"""Finds where to cut a long JSON text, so that it can be decoded piece by piece.

It runs without the GIL, at about a nanosecond a byte. It looks only at strings, brackets and commas; the decoder
checks that each piece is valid JSON.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from core.compiled import compiled

Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]

PIECE_BYTES = 2**15
"""Least bytes of a piece. Decoding one takes a fraction of a millisecond."""

CUTS, COMMAS, END, OPENS, CLOSES, FIELDS = range(6)


@compiled("int64(Array(uint8, 1, 'C', True), int64)")
def _string_end(text: Bytes, at: int) -> int:
    """The position of the quote that ends the string around `at`."""
    end = len(text)
    while at < end and text[at] != 34:
        at += 2 if text[at] == 92 else 1  # an escaped quote does not end the string
    return at


@compiled("void(Array(uint8, 1, 'C', True), int64, int64, int64[::1], int64[::1])")
def _outline(text: Bytes, at: int, size: int, cuts: Places, found: Places) -> None:
    """Fill in `cuts` and `found` for the array or object that opens at `at`, see `Outline`."""
    depth, opened, last, end = 0, 0, at, len(text)
    while at < end:
        byte = text[at]
        if byte == 34:  # a quote
            at = _string_end(text, at + 1)
        elif byte | 32 == 123:  # [ or {, which differ in one bit
            depth += 1
            if depth == 2:
                opened = at
        elif byte | 32 == 125:  # ] or }
            depth -= 1
            if depth == 0:
                found[END] = at
                return
            if depth == 1 and at - opened > found[CLOSES] - found[OPENS]:
                found[OPENS], found[CLOSES] = opened, at
        elif byte == 44 and depth == 1:  # a comma
            found[COMMAS] += 1
            if at - last >= size:
                last = cuts[found[CUTS]] = at
                found[CUTS] += 1
        at += 1


class Outline(NamedTuple):
    """The outline of a JSON array or object: positions in its text.

    start, end: where it opens and closes; `end` is -1 if it does not close. commas: number of commas between its
    elements or fields. inner: where its largest array or object opens and closes; two zeros without one. cuts: commas
    between its elements or fields, each PIECE_BYTES or more after the last cut.

    >>> outline = Outline.of(b'{"y": 1, "x": {"a": 1, "b": [2]}}')
    >>> outline.start, outline.end, outline.commas, outline.inner
    (0, 32, 1, (14, 31))
    """

    start: int
    end: int
    commas: int
    inner: tuple[int, int]
    cuts: list[int]

    @classmethod
    def of(cls, text: bytes, start: int = 0) -> Outline:
        """The outline of the array or object that opens at `start`."""
        found = np.zeros(FIELDS, np.int64)
        found[END] = -1
        cuts = np.empty((len(text) - start) // PIECE_BYTES + 1, np.int64)
        _outline(np.frombuffer(text, np.uint8), start, PIECE_BYTES, cuts, found)
        inner = int(found[OPENS]), int(found[CLOSES])
        return cls(start, int(found[END]), int(found[COMMAS]), inner, cuts[: found[CUTS]].tolist())

    def pieces(self) -> list[tuple[int, int]]:
        """Start and end of each piece between cuts. Together they are the whole inside without the cut commas."""
        return list(zip([self.start + 1, *(cut + 1 for cut in self.cuts)], [*self.cuts, self.end], strict=True))
