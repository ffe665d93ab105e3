"""What became of the predictions that were served under an id: how good they were, and how late their labels came."""

from __future__ import annotations

from typing import Any

import numpy as np

from core.features import EXPIRED, JOINED, LATE, ORDINARY, Batch
from core.learner import Outcome
from core.progressive import Progressive

DELAYS = (0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 21600.0, 86400.0, 604800.0, 2592000.0)
"""Upper bounds of the histogram of delays, in seconds: up to a tenth of a second ... an hour ... 30 days."""


class Joins:
    """Counts by how labels came, the progressive scores of the predictions as they were served, and the labels' delays.

    window
        How many of the last such events the windowed scores cover. Default 1,000.

    All of it follows from the events, so that a replay of the log gives the same.
    """

    def __init__(self, window: int = 1_000) -> None:
        self.scores = Progressive(window)
        self._counts = np.zeros(LATE + 1)
        self._delays = np.zeros(len(DELAYS) + 1)
        self._delay_sum = np.zeros(1)

    def add(self, batch: Batch) -> None:
        """Take up the events of a batch."""
        if batch.served is None:
            return
        kinds, scores, delays = batch.served.kinds, batch.served.scores, batch.served.delays
        self._counts += np.bincount(kinds, minlength=LATE + 1)
        self.scores.add(Outcome(scores, batch.labels, kinds != ORDINARY))
        told = delays[(kinds == JOINED) | (kinds == LATE)]
        self._delays += np.bincount(np.searchsorted(DELAYS, told), minlength=len(DELAYS) + 1)
        for delay in told.tolist():  # one after the other: the sum of a replay is the same to the last bit
            self._delay_sum += delay

    def counts(self) -> dict[str, int]:
        """Events `joined` with their labels, `expired` (learned as 0 when no label came), and `late` corrections."""
        joined, expired, late = self._counts[[JOINED, EXPIRED, LATE]].astype(int).tolist()
        return {"joined": joined, "expired": expired, "late": late}

    def delays(self) -> dict[str, Any]:
        """Seconds from a prediction to its label: how many, their mean, and how many up to each bound.

        >>> Joins().delays()["count"]
        0
        """
        counts = self._delays.astype(int).tolist()
        bounds = [*DELAYS, None]
        count = sum(counts)
        return {
            "count": count,
            "mean": float(self._delay_sum[0]) / count if count else None,
            "buckets": [{"up_to": bound, "count": n} for bound, n in zip(bounds, counts, strict=True)],
        }

    def delay(self) -> tuple[int, float]:
        """How many labels came late, and the seconds that they took together."""
        return int(self._delays.sum()), float(self._delay_sum[0])

    def state(self) -> dict[str, Any]:
        """Everything, as JSON types and arrays: copies."""
        return {
            "scores": self.scores.state(),
            "counts": self._counts.copy(),
            "delays": self._delays.copy(),
            "delay_sum": self._delay_sum.copy(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], window: int = 1_000) -> Joins:
        """What `state()` described."""
        joins = cls(window)
        joins.scores = Progressive.from_state(state["scores"], window)
        joins._counts[:] = state["counts"]
        joins._delays[:] = state["delays"]
        joins._delay_sum[:] = state["delay_sum"]
        return joins
