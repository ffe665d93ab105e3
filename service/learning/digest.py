"""A running digest of what a model predicted before each step. Nodes that learn the same events have the same."""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from core.learner import Outcome

EVERY = 1_024
"""Events between two marks."""
MARKS = 64
"""Marks that are remembered, to be compared with another node's."""


class Mark(NamedTuple):
    """The digest after the event with that seq."""

    seq: int
    crc: int


class Digest:
    """CRC-32 over the scores of all events, in order. Any change of a weight changes the scores after it.

    >>> import numpy as np
    >>> digest, again = Digest(), Digest()
    >>> scores = Outcome(np.arange(2048.0), np.zeros(2048, np.uint8), np.ones(2048, bool))
    >>> digest.add(scores, 0)
    >>> for start, stop in ((0, 1000), (1000, 2048)):
    ...     again.add(Outcome(scores.scores[start:stop], scores.labels[start:stop], scores.learned[start:stop]), start)
    >>> digest.newest == again.newest, digest.newest.seq, digest.at(1024) == again.at(1024) != None
    (True, 2048, True)
    """

    def __init__(self, crc: int = 0) -> None:
        self._crc = crc
        self._marks: deque[Mark] = deque(maxlen=MARKS)

    def add(self, outcome: Outcome, before: int) -> None:
        """Add the scores of events; `before`: the seq of the last event before them."""
        scores, start = outcome.scores, 0
        to_next = EVERY - before % EVERY
        while len(scores) - start >= to_next:
            stop = start + to_next
            self._crc = zlib.crc32(scores[start:stop].data, self._crc)
            self._marks.append(Mark(before + stop, self._crc))
            start, to_next = stop, EVERY
        if start < len(scores):
            self._crc = zlib.crc32((scores[start:] if start else scores).data, self._crc)

    @property
    def newest(self) -> Mark | None:
        """The newest mark since the start."""
        return self._marks[-1] if self._marks else None

    def at(self, seq: int) -> int | None:
        """The digest of a mark, None if it is not remembered."""
        return next((mark.crc for mark in self._marks if mark.seq == seq), None)

    def state(self) -> dict[str, int]:
        return {"crc": self._crc}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Digest:
        """Go on from a snapshot. Raises what `Model.load` expects of a wrong one."""
        crc = state["crc"]
        if not isinstance(crc, int) or not 0 <= crc < 1 << 32:
            raise ValueError("the digest is no CRC-32")
        return cls(crc)
