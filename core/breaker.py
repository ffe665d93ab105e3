"""The breaker: it stops the learning of a model whose predictions become too wrong, as when its events are poisoned.

It looks at the log losses of the predictions made before each step, in order, and at nothing else, so that a replay of
the log finds it as it was. The steps themselves know nothing of it: an event that is in the log is learned.
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
    """Add losses, in order, to the ring of the `last` ones and to `sums` (events, and the loss of those in the ring).

    The place of the first with which the mean of a full ring passes the limit, or -1. The sum is kept, not made anew:
    until the limit is passed it stays below limit x events, so that what rounding leaves is far below the limit.
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
    """The losses of the last events, and at which of them learning stopped.

    >>> watch = Watch(Breaker(events=2, log_loss=1.0))
    >>> losses = np.array([0.1, 3.0, 0.2])
    >>> outcome = Outcome(np.zeros(3), np.zeros(3, np.uint8), np.ones(3, np.bool_), (np.zeros(3), losses))
    >>> watch.add(outcome, after=10)
    >>> watch.stopped_at
    12
    >>> watch.resume(13)
    >>> watch.stopped_at is None, watch.log_loss is None
    (True, True)
    """

    def __init__(self, breaker: Breaker) -> None:
        self.breaker = breaker
        self.stopped_at: int | None = None
        """The seq of the event with which the mean passed the limit; None while the model learns."""
        self.resumed_at = 0
        """The seq after which it began to look."""
        self._sums = np.zeros(2)
        self._last = np.zeros(breaker.events)

    @property
    def log_loss(self) -> float | None:
        """The mean log loss of the last events since it began to look; None without one."""
        events = min(int(self._sums[EVENTS]), len(self._last))
        return float(self._sums[LOSS]) / events if events else None

    def add(self, outcome: Outcome, after: int) -> None:
        """Look at the events of one `learn_batch`; `after` is the seq before them."""
        start = max(0, self.resumed_at - after)  # those before that were learned, and looked at, before it resumed
        found = _add(outcome.losses[start:], outcome.learned[start:], self.breaker.log_loss, self._sums, self._last)
        if found >= 0 and self.stopped_at is None:
            self.stopped_at = after + start + found + 1

    def resume(self, seq: int) -> None:
        """Forget what was before, and look at the events after `seq`."""
        self.stopped_at, self.resumed_at = None, seq
        self._sums[:], self._last[:] = 0.0, 0.0

    def summary(self) -> dict[str, Any]:
        """What there is to say of it."""
        return {"log_loss": self.log_loss, "stopped_at": self.stopped_at, "resumed_at": self.resumed_at}

    def state(self) -> dict[str, Any]:
        """Everything, as JSON types and arrays: copies."""
        return {
            "stopped_at": self.stopped_at,
            "resumed_at": self.resumed_at,
            "sums": self._sums.copy(),
            "last": self._last.copy(),
        }

    @classmethod
    def from_state(cls, breaker: Breaker, state: dict[str, Any]) -> Watch:
        """The watch that `state()` described."""
        watch = cls(breaker)
        watch.stopped_at, watch.resumed_at = state["stopped_at"], state["resumed_at"]
        watch._sums[:], watch._last[:] = state["sums"], state["last"]
        return watch
