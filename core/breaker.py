"""The breaker stops a model's learning when its predictions become too wrong, for example on poisoned events.

It reads only the log losses of the predictions before each step, in order. So a replay of the log restores it exactly.
The learner ignores the breaker: it learns every event in the log.

The loss of an event is known only after all steps before it. To ask for each event before the next is written would
leave one event to a commit. So a breaker takes effect late, and exactly: when the mean of the last `events` losses
passes the limit, `events` more are learned, and none after them. A service that writes no event further ahead of the
steps than that stops at the same event, however it gathered the events.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from core.compiled import compiled
from core.learner import Outcome
from core.logistic import Floats
from core.spec import Breaker

# Positions in the array of sums.
EVENTS, LOSS = 0, 1


@compiled("int64(float64[::1], boolean[::1], float64, float64[::1], float64[::1])")
def _add(losses: Floats, learned: npt.NDArray[np.bool_], limit: float, sums: Floats, last: Floats) -> int:
    """Add losses, in order, to the ring `last` and to `sums` (events so far, and the ring's total loss).

    Returns the index of the first loss that brings the mean of a full ring over the limit, or -1. The sum is updated,
    not recomputed. Until it passes the limit it stays below limit x events, so rounding errors stay far below the
    limit.
    """
    n, found = len(last), -1
    for i in range(len(losses)):
        if not learned[i]:
            continue
        place = int(sums[EVENTS]) % n
        sums[LOSS] += losses[i] - last[place]
        last[place] = losses[i]
        sums[EVENTS] += 1.0
        if found < 0 and sums[EVENTS] >= n and sums[LOSS] / n > limit:
            found = i
    return found


class Watch:
    """Keeps the losses of the last events, and the events at which they passed the limit and learning stops.

    >>> watch = Watch(Breaker(events=2, log_loss=1.0))
    >>> losses = np.array([0.1, 3.0, 0.2])
    >>> outcome = Outcome(np.zeros(3), np.zeros(3, np.uint8), np.ones(3, np.bool_), (np.zeros(3), losses))
    >>> watch.add(outcome, after=10)
    >>> watch.passed_at, watch.stopped_at
    (12, 14)
    >>> watch.resume(14)
    >>> watch.stopped_at is None, watch.log_loss is None
    (True, True)
    """

    def __init__(self, breaker: Breaker) -> None:
        self.breaker = breaker
        self.passed_at: int | None = None
        """The seq of the event that brought the mean over the limit; None while there is none."""
        self.resumed_at = 0
        """The watch counts events after this seq."""
        self._sums = np.zeros(2)
        self._last = np.zeros(breaker.events)

    @property
    def stopped_at(self) -> int | None:
        """The seq of the last event that is learned: `events` after the one that passed the limit."""
        return None if self.passed_at is None else self.passed_at + self.breaker.events

    @property
    def log_loss(self) -> float | None:
        """The mean log loss of the last events after `resumed_at`; None without events."""
        events = min(int(self._sums[EVENTS]), len(self._last))
        return float(self._sums[LOSS]) / events if events else None

    def add(self, outcome: Outcome, after: int) -> None:
        """Add the events of one `learn_batch`; `after` is the seq before them."""
        start = max(0, self.resumed_at - after)  # skip events from before the resume
        found = _add(outcome.losses[start:], outcome.learned[start:], self.breaker.log_loss, self._sums, self._last)
        if found >= 0 and self.passed_at is None:
            self.passed_at = after + start + found + 1

    def resume(self, seq: int) -> None:
        """Forget all losses, and count events after `seq`."""
        self.passed_at, self.resumed_at = None, seq
        self._sums[:], self._last[:] = 0.0, 0.0

    def summary(self) -> dict[str, Any]:
        """The state that the API shows, as JSON types."""
        shown = ("log_loss", "passed_at", "stopped_at", "resumed_at")
        return {name: getattr(self, name) for name in shown}

    def state(self) -> dict[str, Any]:
        """The whole state, as JSON types and arrays; arrays are copies."""
        arrays = {"sums": self._sums.copy(), "last": self._last.copy()}
        return {"passed_at": self.passed_at, "resumed_at": self.resumed_at, **arrays}

    @classmethod
    def from_state(cls, breaker: Breaker, state: dict[str, Any]) -> Watch:
        """The watch that `state()` described."""
        watch = cls(breaker)
        watch.passed_at, watch.resumed_at = state["passed_at"], state["resumed_at"]
        watch._sums[:], watch._last[:] = state["sums"], state["last"]
        return watch
