"""Statistics of predictions served with an id: how good they were, and how late their labels came."""

from __future__ import annotations

from typing import Any

import numpy as np

from core.batch import EXPIRED, JOINED, LATE, ORDINARY, Batch
from core.learner import Outcome
from core.progressive import Progressive

DELAYS = (0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 21600.0, 86400.0, 604800.0, 2592000.0)
"""Upper bounds of the delay histogram, in seconds: from 0.1 s to 30 days."""


class Joins:
    """Counts events by how their labels came, scores the predictions as served, and records the labels' delays.

    window
        How many of the last such events the windowed scores cover. Default 1,000.

    Everything is computed from the events, so a replay of the log gives the same.
    """

    def __init__(self, window: int = 1_000) -> None:
        self.scores = Progressive(window)
        self._counts = np.zeros(LATE + 1)
        self._delays = np.zeros(len(DELAYS) + 1)
        self._delay_sum = np.zeros(1)

    def add(self, batch: Batch) -> None:
        """Add the events of a batch."""
        if batch.served is None:
            return
        kinds, scores, delays = batch.served.kinds, batch.served.scores, batch.served.delays
        # Of ordinary events none, because a batch without others is not looked at: batches may be cut in any way.
        self._counts[JOINED:] += np.bincount(kinds, minlength=LATE + 1)[JOINED:]
        self.scores.add(Outcome(scores, batch.labels, kinds != ORDINARY))
        told = delays[(kinds == JOINED) | (kinds == LATE)]
        self._delays += np.bincount(np.searchsorted(DELAYS, told), minlength=len(DELAYS) + 1)
        for delay in told.tolist():  # one by one: then a replay's sum is the same to the last bit
            self._delay_sum += delay

    def counts(self) -> dict[str, int]:
        """Events `joined` with a label, `expired` (learned as 0 without one), and `late` corrections."""
        joined, expired, late = self._counts[[JOINED, EXPIRED, LATE]].astype(int).tolist()
        return {"joined": joined, "expired": expired, "late": late}

    def delays(self) -> dict[str, Any]:
        """Seconds from a prediction to its label: `count`, `mean`, and a count for each bucket.

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
        """How many labels came after their predictions, and the sum of their delays in seconds."""
        return int(self._delays.sum()), float(self._delay_sum[0])

    def state(self) -> dict[str, Any]:
        """The whole state, as JSON types and arrays; arrays are copies."""
        return {
            "scores": self.scores.state(),
            "counts": self._counts.copy(),
            "delays": self._delays.copy(),
            "delay_sum": self._delay_sum.copy(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], window: int = 1_000) -> Joins:
        """The joins that `state()` described."""
        joins = cls(window)
        joins.scores = Progressive.from_state(state["scores"], window)
        joins._counts[:] = state["counts"]
        joins._delays[:] = state["delays"]
        joins._delay_sum[:] = state["delay_sum"]
        return joins
