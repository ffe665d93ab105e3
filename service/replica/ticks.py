"""Makes time pass in the topic: where a prediction is due and nothing else comes, a record says so to every node."""

from __future__ import annotations

import math

from service.clock import Clock
from service.learning.chores import Chore
from service.learning.disk import Disk
from service.learning.models import Models
from service.replica.outbox import Outbox
from service.replica.records import Do

AGAIN_SECONDS = 1.0
"""How long to wait for a tick, and for the broker's clock, before another."""


class Ticks(Chore):
    """Writes ticks in the place of the timeouts of a single node. Every node may write one; a second does nothing."""

    def __init__(self, models: Models, disk: Disk, clock: Clock, outbox: Outbox) -> None:
        super().__init__(models, disk, clock)
        self._outbox = outbox
        self._next = -math.inf

    def due(self) -> float:
        return max(self._models.next_timeout - self._clock.wall(), self._next - self._clock.steady())

    async def step(self) -> None:
        self._next = self._clock.steady() + AGAIN_SECONDS
        now = self._clock.wall()
        self._models.first_to_time_out()
        if self._outbox.link is None:
            return
        for model in self._models:
            if model.next_timeout <= now:
                self._outbox.announce(Do.TICK, model.name)
