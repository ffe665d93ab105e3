"""Where a long JSON text may be cut, so that it is decoded piece by piece: found without the GIL, a nanosecond or so a
byte.

Only strings and brackets are looked at. Whether the text is JSON is for the decoder to say, of each piece.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.compiled import compiled

Bytes = npt.NDArray[np.uint8]
Places = npt.NDArray[np.int64]

PIECE_BYTES = 2**15
"""Bytes of a piece, at least: it is decoded in a fraction of a millisecond."""

CUTS, COMMAS, END, OPENS, CLOSES, FIELDS = range(6)


@compiled("int64(Array(uint8, 1, 'C', True), int64)")
def _string_end(text: Bytes, at: int) -> int:
    """The place of the quote that ends the string in which `at` is."""
    end = len(text)
    while at < end and text[at] != 34:
        at += 2 if text[at] == 92 else 1  # what a backslash escapes ends no string
    return at


@compiled("void(Array(uint8, 1, 'C', True), int64, int64, int64[::1], int64[::1])")
def _outline(text: Bytes, at: int, size: int, cuts: Places, found: Places) -> None:
    """Fill in `cuts` and `found` for the array or object that opens at `at`, see `Outline`."""
    depth, opened, last, end = 0, 0, at, len(text)
    while at < end:
        byte = text[at]
        if byte == 34:  # a quote
            at = _string_end(text, at + 1)
        elif byte | 32 == 123:  # [ or {, which is [ and a bit
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


@dataclass(frozen=True, slots=True)
class Outline:
    """What a JSON array or object looks like from outside.

    start, end
        Where it opens and closes; `end` is -1 where it does not close.
    commas
        Between its elements or fields.
    inner
        Where the largest array or object opens and closes that is an element or field of it; two zeros if there is
        none.
    cuts
        Commas between its elements or fields, each PIECE_BYTES or more after the one before.

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
        """From where to where each piece goes between two cuts; together all that is inside, but for the cut commas."""
        return list(zip([self.start + 1, *(cut + 1 for cut in self.cuts)], [*self.cuts, self.end], strict=True))
