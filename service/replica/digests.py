"""The safety net: nodes compare digests of what they predicted. One that differs stops."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from service import failures
from service.clock import Clock
from service.learning.chores import Chore
from service.learning.disk import Disk
from service.learning.model import Model
from service.learning.models import Models
from service.learning.progress import Progress
from service.replica.outbox import Outbox
from service.replica.records import Do
from service.storage.positions import Position

EVERY_SECONDS = 10.0
"""How often a node writes its digests of what has learned enough since."""


class _Told(msgspec.Struct, array_like=True):
    """A digest after so many events, by a node that had applied the model's partition up to that record."""

    seq: int
    crc: int
    record: int


class Digests(Chore):
    """Writes the newest digest of each model in a tick, unless another node has."""

    def __init__(self, models: Models, disk: Disk, clock: Clock, outbox: Outbox, progress: Progress) -> None:
        super().__init__(models, disk, clock)
        self._outbox = outbox
        self._progress = progress
        self._compared: dict[str, int] = {}  # model -> the seq of the last comparison
        self._started: Mapping[int, Position] = {}
        self._begun: dict[str, int] = {}  # model -> the record that made it anew
        self._next = -math.inf

    def due(self) -> float:
        return self._next - self._clock.steady()

    async def step(self) -> None:
        self._next = self._clock.steady() + EVERY_SECONDS
        for model in self._models:
            mark = model.digest.newest
            if mark is not None and mark.seq > self._compared.get(model.name, 0):
                known = self._progress.stepped.get(self._outbox.partition_of(model.name))
                told = _Told(*mark, -1 if known is None else known.record)
                self._outbox.announce(Do.TICK, model.name, msgspec.json.encode(told))

    def begin_with(self, positions: Mapping[int, Position]) -> None:
        """The node starts there. It does not know which models were made anew before, so it looks at no digest of a
        node that was not as far."""
        self._started = positions

    def begin(self, model: str, record: int) -> None:
        """A record made a model anew: what was told of an earlier one of that name says nothing."""
        self._begun[model] = record
        self._compared.pop(model, None)

    def compare(self, model: Model, value: bytes) -> None:
        """Compare with the digest of a tick. All that its writer had learned is learned here. Raises NodesDiffer."""
        theirs = msgspec.json.decode(value, type=_Told)
        started = self._started.get(self._outbox.partition_of(model.name))
        if theirs.record < max(self._begun.get(model.name, -1), -1 if started is None else started.record):
            return
        self._compared[model.name] = max(theirs.seq, self._compared.get(model.name, 0))
        ours = model.digest.at(theirs.seq)
        if theirs.seq > model.learner.seq:
            reason = f"it has {model.learner.seq} events of the model {model.name!r}, and the other {theirs.seq}"
            raise failures.NodesDiffer(reason=reason)
        if ours is not None and ours != theirs.crc:
            reason = f"their predictions of the model {model.name!r} are not the same up to seq {theirs.seq}"
            raise failures.NodesDiffer(reason=reason)
