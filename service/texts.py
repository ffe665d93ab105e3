"""Many texts as two arrays: ids come by the thousand, and an object for each would take longer than a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from core.compiled import compiled

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]


@compiled("void(uint8[::1], int64[::1], int64[::1], uint8[::1])")
def _gather(text: Bytes, starts: Numbers, lengths: Numbers, gathered: Bytes) -> None:
    """Copy parts of a text, one after the other."""
    at = 0
    for i in range(len(starts)):
        for k in range(starts[i], starts[i] + lengths[i]):
            gathered[at] = text[k]
            at += 1


@dataclass(frozen=True, slots=True, eq=False)
class Texts(Sequence[str]):
    """n texts. text: their UTF-8, joined. lengths (n,): the bytes of each.

    >>> texts = Texts.of(["a", "bé", "c"])
    >>> texts[1], list(texts[1:]), texts.lengths.tolist()
    ('bé', ['bé', 'c'], [1, 3, 1])
    """

    text: Bytes
    lengths: Numbers

    @classmethod
    def of(cls, texts: Sequence[str]) -> Texts:
        joined, n = "".join(texts), len(texts)
        text = bytearray(joined.encode())
        lengths = np.fromiter(map(len, texts), np.int64, n)
        if len(text) != len(joined):
            lengths = np.fromiter((len(one.encode()) for one in texts), np.int64, n)
        return cls(np.frombuffer(text, np.uint8), lengths)

    @classmethod
    def within(cls, text: Bytes, starts: Numbers, lengths: Numbers) -> Texts:
        """Parts of a longer text, given by where each starts, and its bytes. Copies them."""
        lengths = np.ascontiguousarray(lengths)
        gathered = np.empty(int(lengths.sum()), np.uint8)
        _gather(text, np.ascontiguousarray(starts), lengths, gathered)
        return cls(gathered, lengths)

    @classmethod
    def joined(cls, parts: Sequence[Texts]) -> Texts:
        """Those of all parts, one after the other."""
        if len(parts) == 1:
            return parts[0]
        return cls(np.concatenate([part.text for part in parts]), np.concatenate([part.lengths for part in parts]))

    @property
    def starts(self) -> Numbers:
        """Where each begins in the text."""
        return np.cumsum(self.lengths) - self.lengths

    def take(self, which: Numbers) -> Texts:
        """Some of them, given by their indices, in that order."""
        return Texts.within(self.text, self.starts[which], self.lengths[which])

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Texts: ...
    def __getitem__(self, place: int | slice) -> str | Texts:
        if isinstance(place, slice):
            start, stop, _ = place.indices(len(self))
            if (start, stop) == (0, len(self)):
                return self
            before, size = int(self.lengths[:start].sum()), int(self.lengths[start:stop].sum())
            return Texts(self.text[before : before + size], self.lengths[start:stop])
        place = range(len(self))[place]
        (text,) = self[place : place + 1].tolist()
        return text

    def tolist(self) -> list[str]:
        """All of them. What is not UTF-8, because it is damaged, has replacement characters."""
        text = self.text.tobytes()
        ends = np.cumsum(self.lengths)
        bounds = zip((ends - self.lengths).tolist(), ends.tolist(), strict=True)
        if text.isascii():
            ascii_text = text.decode()
            return [ascii_text[start:end] for start, end in bounds]
        return [text[start:end].decode(errors="replace") for start, end in bounds]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tolist())
