"""What is done between turns, a piece at a time: timeouts, ids, series, removal, free room, retention, snapshots."""

from __future__ import annotations

import asyncio
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from core.copying import Copy
from service import errors
from service.clock import Clock
from service.fairness import worked
from service.learning.disk import Disk
from service.learning.model import Model
from service.learning.models import Models
from service.learning.retention import Retention
from service.learning.sampling import Sampler
from service.learning.writer import Writer
from service.storage.series import Piece
from service.storage.store import Store

logger = logging.getLogger("logstep")

SPACE_PAUSE_SECONDS = 5.0
"""How often to check whether the file has much free room."""
FULL_PAUSE_SECONDS = 30.0
"""How long all chores rest when the disk is full."""
DROP_PAUSE_SECONDS = 1.0
"""How often retention looks for something to drop."""
LAST_SNAPSHOT_SECONDS = 0.05
"""At shutdown, write a snapshot if it saves the next start this much."""


class Chore(ABC):
    """Work that is done in pieces. A piece is short, because requests wait meanwhile."""

    def __init__(self, models: Models, disk: Disk, clock: Clock) -> None:
        self._models = models
        self._disk = disk
        self._clock = clock

    @abstractmethod
    def due(self) -> float:
        """Seconds until the next piece: 0 or less now, infinity if nothing is to be done."""

    @abstractmethod
    async def step(self) -> None:
        """Do a piece. It is due."""

    lost = ""
    """What an error in `last_step` costs. It is never an event: the log has them all."""

    async def last_step(self) -> bool:
        """Do a piece before the service ends. Whether there was one."""
        return False


class Chores:
    """The chores, the most urgent first."""

    def __init__(self, chores: Sequence[Chore], clock: Clock) -> None:
        self._chores = chores
        self._clock = clock
        self._rests_until = -math.inf

    def add(self, chore: Chore) -> None:
        """Add the least urgent one."""
        self._chores = (*self._chores, chore)

    def due(self) -> float:
        """Seconds until there is a piece to do."""
        return max(min(chore.due() for chore in self._chores), self._rests_until - self._clock.steady())

    async def step(self) -> bool:
        """Do a piece of the first chore that is due. Whether there was one."""
        if self._clock.steady() < self._rests_until:
            return False
        for chore in self._chores:
            if chore.due() <= 0:
                try:
                    await chore.step()
                except errors.DiskFull:
                    seconds = FULL_PAUSE_SECONDS
                    logger.warning("no room on the disk for snapshots and series; next try in %d s", seconds)
                    self.rest(seconds)
                return True
        return False

    def rest(self, seconds: float) -> None:
        """Do nothing for so long, from now on."""
        self._rests_until = self._clock.steady() + seconds

    async def finish(self, deadline: float) -> None:
        """Do the last steps of all chores, while there is time."""
        for chore in self._chores:
            try:
                while self._clock.steady() < deadline and await chore.last_step():
                    pass
            except errors.LogstepError as error:
                logger.warning("%s: %s", chore.lost, error)


class Timeouts(Chore):
    """Times out some predictions of the model that is due first."""

    def __init__(self, models: Models, disk: Disk, clock: Clock, writer: Writer) -> None:
        super().__init__(models, disk, clock)
        self._writer = writer

    def due(self) -> float:
        return self._models.next_timeout - self._clock.wall()

    async def step(self) -> None:
        async with self._writer.turn:
            now = self._clock.wall()
            model = self._models.first_to_time_out()
            if now < model.next_timeout:  # a breaker has stopped the model that was due
                return
            await self._writer.expire(model, now)


class FlushIds(Chore):
    """Moves the ids of events from memory to a run on the disk. It goes before what may be due for long: it bounds
    the memory that they take."""

    def due(self) -> float:
        return 0.0 if self._disk.store.merging.flush_due else math.inf

    async def step(self) -> None:
        await self._disk.run(lambda store: store.merging.flush())


class IndexLog(Chore):
    """Adds the rows of the log to its index, which bounds the memory of those that are not there yet. It rests after
    each step as long as that took, because it is always due if thousands of models learn in every turn."""

    _next = -math.inf

    def due(self) -> float:
        return self._next - self._clock.steady() if self._disk.store.indexing.due else math.inf

    async def step(self) -> None:
        began = self._clock.steady()
        await self._disk.run(lambda store: store.indexing.step())
        ended = self._clock.steady()
        self._next = ended + (ended - began)


class MergeIds(Chore):
    """Merges runs of ids of events. Nothing waits for it: look-ups only take longer."""

    def due(self) -> float:
        return 0.0 if self._disk.store.merging.merge_due else math.inf

    async def step(self) -> None:
        await self._disk.run(lambda store: store.merging.merge())


class Series(Chore):
    """Writes what the sampler saw."""

    lost = "the plots will lack some seconds"

    def __init__(self, models: Models, disk: Disk, clock: Clock, sampler: Sampler) -> None:
        super().__init__(models, disk, clock)
        self._sampler = sampler

    def due(self) -> float:
        return self._sampler.due_in(self._clock.wall())

    async def step(self) -> None:
        await self._write(self._sampler.piece(self._clock.wall(), self._models))

    async def last_step(self) -> bool:
        return await self._write(self._sampler.last_piece(self._clock.wall(), self._models))

    async def _write(self, piece: Piece | None) -> bool:
        if piece is not None:
            await self._disk.run(Store.write_series, piece)
        return piece is not None


class Room(Chore):
    """Removes the rows of deleted models, and gives free room of the file back."""

    rows_left = True
    """Set it after a model was deleted."""
    _next = -math.inf

    def due(self) -> float:
        return 0.0 if self.rows_left else self._next - self._clock.steady()

    async def step(self) -> None:
        if self.rows_left:
            self.rows_left = await self._disk.run(lambda store: store.trimming.purge())
        elif not await self._disk.run(lambda store: store.trimming.give_back()):
            self._next = self._clock.steady() + SPACE_PAUSE_SECONDS


class Dropping(Chore):
    """Does a round of retention over all models, then pauses."""

    _round: Iterator[None] | None = None
    _next = -math.inf

    def __init__(self, models: Models, disk: Disk, clock: Clock, retention: Retention) -> None:
        super().__init__(models, disk, clock)
        self._retention = retention

    def due(self) -> float:
        if not self._retention.drops:
            return math.inf
        return 0.0 if self._round is not None else self._next - self._clock.steady()

    async def step(self) -> None:
        under_way, self._round = self._round, None  # so that after an error a new round begins
        if under_way is None:
            under_way = self._retention.pieces(self._disk.store, list(self._models))
        if await self._disk.step(under_way):
            self._round = under_way
        else:
            self._next = self._clock.steady() + DROP_PAUSE_SECONDS


class _UnderWay(NamedTuple):
    """A snapshot that is being written, and the seconds of replay that it will save. copy: what must be whole before
    the first piece is written."""

    model: Model
    seq: int
    saves_seconds: float
    pieces: Iterator[None]
    copy: Copy | None


class Snapshots(Chore):
    """Writes a snapshot of the model with the longest replay if all together take `seconds`, else of one for which
    retention waits. It copies the state of the model, a large one's in slices, and writes the copy in chunks."""

    lost = "the snapshot at shutdown failed"
    _under_way: _UnderWay | None = None

    def __init__(
        self, models: Models, disk: Disk, clock: Clock, seconds: float, retention: Retention, sampler: Sampler
    ) -> None:
        super().__init__(models, disk, clock)
        self._seconds = seconds
        self._retention = retention
        self._sampler = sampler

    def due(self) -> float:
        return 0.0 if self._under_way is not None or self._next(self._seconds) is not None else math.inf

    async def step(self) -> None:
        await self._piece(self._seconds)

    async def last_step(self) -> bool:
        return await self._piece(LAST_SNAPSHOT_SECONDS)

    async def _piece(self, seconds: float) -> bool:
        """Write a chunk of the current snapshot, or of the next one that is due. Whether there was one."""
        if self._under_way is None:
            model = self._next(seconds)
            if model is None:
                return False
            # In a thread the loop goes on, but the writer waits: for `auto`, until the whole state is copied.
            self._under_way = await worked(model.learner.is_large, self._begin, model)
        under_way, more = self._under_way, False
        try:
            if under_way.model in self._models:
                if under_way.copy is not None:
                    if not await asyncio.to_thread(under_way.copy.go_on):  # whole: steps need not put rows aside
                        under_way.model.learner.end_copy()
                        self._under_way = under_way._replace(copy=None)
                    more = True
                else:
                    more = await self._disk.step(under_way.pieces)
                    if not more:
                        self._written(under_way)
        finally:
            if not more:  # also when the disk is full, or the model was deleted
                self._under_way = None
                under_way.model.learner.end_copy()
        return True

    def _next(self, seconds: float) -> Model | None:
        found = None
        if self._models.replay_seconds >= seconds:
            found = self._models.longest_to_replay(seconds)
        if found is None and self._retention.wanted:
            wanted = (model for model in self._models if model.stored.key in self._retention.wanted)
            found = next((model for model in wanted if not model.held), None)
        return found

    def _begin(self, model: Model) -> _UnderWay:
        """Copy the model's state, or begin to, and make the iterator that writes the copy."""
        learner = model.learner
        copy = learner.begin_copy() if learner.auto is None and learner.is_large else None
        pieces = self._disk.store.write_snapshot(model.stored.key, learner.seq, model.state(copy))
        return _UnderWay(model, learner.seq, model.replay_seconds, pieces, copy)

    def _written(self, snapshot: _UnderWay) -> None:
        model = snapshot.model
        self._retention.wanted.discard(model.stored.key)
        model.snapshot_written(snapshot.seq, snapshot.saves_seconds)
        self._models.replay_seconds = math.inf  # another may be due
        self._sampler.mark_snapshot(self._clock.wall(), model)
        logger.debug("model %r: snapshot at seq %d", model.name, snapshot.seq)
