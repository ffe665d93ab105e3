"""How far a node is behind its topic."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

logger = logging.getLogger("logstep")

REMEMBERED = 256
"""Ends of the topic that are remembered, until they are applied."""


class Lag:
    """What is in the topic and not applied here. applied_to: the offset up to which a partition is applied."""

    def __init__(self, applied_to: Callable[[int], int]) -> None:
        self._applied_to = applied_to
        self._ends: deque[tuple[float, Sequence[int]]] = deque(maxlen=REMEMBERED)
        """Where the partitions ended, and when that was asked; the oldest first."""
        self._fresh_at = time.monotonic()
        """A time whose records are all applied."""
        self._caught_up = False

    def note(self, asked_at: float, ends: Sequence[int]) -> None:
        """The brokers told where the partitions end. asked_at: monotonic."""
        self._ends.append((asked_at, ends))
        self._look()

    @property
    def records(self) -> int:
        """How many are not applied, as far as it is known."""
        return sum(self._behind(self._ends[-1][1])) if self._ends else 0

    def seconds(self) -> float:
        """Since everything was applied that was in the topic."""
        self._look()
        return time.monotonic() - self._fresh_at

    def caught_up(self) -> bool:
        """Whether everything was applied once since the start."""
        self._look()
        return self._caught_up

    def _look(self) -> None:
        """Forget the ends that are applied by now."""
        while self._ends and not any(self._behind(self._ends[0][1])):
            self._fresh_at = self._ends.popleft()[0]
            if not self._caught_up:
                self._caught_up = True
                logger.info("all that is in the topic is applied")

    def _behind(self, ends: Sequence[int]) -> list[int]:
        return [max(0, end - self._applied_to(partition)) for partition, end in enumerate(ends)]
