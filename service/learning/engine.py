"""The engine: named models over one log. It puts its parts together, starts and stops them.

`queue` lets requests in. The writer takes them in turns, commits, steps and answers. Between turns it does the chores.
One thread accesses the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence

from core.learner import MANY, Learner
from core.spec import Spec
from service import errors
from service.clock import SYSTEM, Clock
from service.learning.chores import (
    Chore,
    Chores,
    Dropping,
    FlushIds,
    IndexLog,
    MergeIds,
    Room,
    Series,
    Snapshots,
    Timeouts,
)
from service.learning.disk import Disk
from service.learning.model import Model
from service.learning.models import Models
from service.learning.queue import Queue
from service.learning.recovery import recover
from service.learning.request import Item, Outcome, Stream, refusal_of
from service.learning.retention import Retention
from service.learning.sampling import Sampler
from service.learning.state import Lifecycle, On, mistake
from service.learning.telemetry import Facts, Telemetry
from service.learning.writer import Writer
from service.settings import Settings
from service.storage import positions
from service.storage.waiting import KnownId

logger = logging.getLogger("logstep")

COPIED_HERE = 500_000
"""Most weights that are copied on the loop. New memory is slow: with 5,000,000 it may take 45 ms."""


class Engine:
    """Named models over one store. Create and use it on the event loop."""

    has_peers = False
    """Whether other nodes make models too."""

    def __init__(self, settings: Settings, clock: Clock = SYSTEM, retention: Retention | None = None) -> None:
        """retention: by default that of the settings."""
        self.on_failure: Callable[[], None] = lambda: None
        self.telemetry = telemetry = Telemetry(self._facts, settings.metrics_models)
        self._settings = settings
        self._clock = clock
        self.lifecycle = lifecycle = Lifecycle()
        """What it is doing, and why it failed."""
        self.disk = disk = Disk(self._fail)
        """Its thread, for what must run between two commits."""
        self.models = models = Models(settings, disk, lifecycle)
        self.queue = self._make_queue()
        self.writer = Writer(self.queue, models, disk, lifecycle, telemetry, settings.commit_events, clock)
        self.progress = self.writer.progress
        self.no_steps = self.writer.no_steps
        """While a caller holds this lock, no step is taken, so a thread can read the models."""
        self._sampler = Sampler(telemetry)
        if retention is None:
            retention = Retention(settings.keep_events, settings.keep_ids, settings.keep_min, clock)
        series = Series(models, disk, clock, self._sampler)
        self._room = Room(models, disk, clock)
        dropping = Dropping(models, disk, clock, retention)
        flush, index = FlushIds(models, disk, clock), IndexLog(models, disk, clock)
        merge = MergeIds(models, disk, clock)
        self.snapshots = Snapshots(models, disk, clock, settings.snapshot_seconds, retention, self._sampler)
        chores = (self._make_timeouts(), flush, index, series, self._room, dropping, self.snapshots, merge)
        self.chores = Chores(chores, clock)
        self._recovery: asyncio.Task[None] | None = None
        self._recovery_seconds: float | None = None
        self._writing: asyncio.Task[None] | None = None

    def _make_queue(self) -> Queue:
        return Queue(self._settings.queue_events, self.models, self.lifecycle)

    def _make_timeouts(self) -> Chore:
        return Timeouts(self.models, self.disk, self._clock, self.writer)

    # -- what it is doing

    @property
    def unready(self) -> str:
        """Why a load balancer should send nothing here; "" if it may."""
        state = self.lifecycle.state
        return "" if state.ready else state

    def place_of(self, model: str) -> bytes | None:
        """What a reply says of how far the model's log is applied, if that is a topic (service/replica/)."""
        return None

    async def wait_for_place(self, place: str) -> None:
        """Wait until a prediction sees what another node's reply saw. Without a topic there is no other node."""

    def _facts(self) -> Facts:
        """What the metrics tell."""
        ready, queued = not self.unready, self.queue.events
        return Facts(ready, self._settings.data, queued, list(self.models), self._recovery_seconds)

    # -- the models

    def model(self, name: str) -> Model:
        """The model of that name. Raises UnknownModel, or NotReady during recovery."""
        return self.models.get(name)

    async def create(self, name: str, spec: Spec) -> tuple[Model, bool]:
        """The model of that name and spec, and whether it is new. SpecConflict if it exists with another spec."""
        self.models.check_room(name)
        await self.models.load_for(spec)  # before the turns wait
        async with self.writer.between_turns():
            return await self.models.create(name, spec)

    async def delete(self, name: str) -> None:
        """Remove a model with its log, ids and snapshots. `default` reappears empty."""
        async with self.writer.between_turns():
            self.telemetry.count_deleted(await self.models.delete(name))
            self._room.rows_left = True
            self.queue.work.set()

    async def resume(self, name: str) -> Model:
        """Let a stopped model learn again. Nothing changes if it is not stopped."""
        async with self.writer.between_turns():
            model = await self.models.resume(name)
            self.queue.work.set()  # a prediction may be due
            return model

    # -- learning

    async def learn(self, model: str, items: Sequence[Item], stream: Stream | None = None) -> list[Outcome]:
        """Learn events and labels, or keep predictions, in order: all or none; of a stream, those before the first
        refused one, which comes last. Returns when they are on disk and the steps are taken.

        Raises the error if all are refused.
        """
        if stream is None:
            result = await self.queue.learn(model, items)
        else:
            result = await (await self.queue.submit(model, items, stream))
        refused = refusal_of(result)
        if refused is not None and (stream is None or refused.error.index is None):
            raise refused.error
        return result

    async def find_id(self, name: str, id_: str) -> KnownId | None:
        """What an id of a model stands for."""
        key = self.model(name).stored.key
        found = await self.disk.run(lambda store: store.find_ids({key: [id_]}))
        return found.get((key, id_))

    # -- start and stop

    def start(self) -> asyncio.Task[None]:
        """Begin recovery, and return its task. Requests get NotReady until it is done and `state` is ready."""
        self.lifecycle.move(On.START)
        self._recovery = asyncio.create_task(self._recover())
        self._recovery.add_done_callback(self._ended)
        return self._recovery

    async def _recover(self) -> None:
        """Open the store, bring every model to the end of its log, and start the writer."""
        started = time.perf_counter()
        await self.disk.open(self._settings.data)
        await self._claim_log()
        found = await self.disk.run(recover, self._settings, lambda: not self.lifecycle.state.recovering)
        if self.lifecycle.state.recovering:
            await self.models.load(found)
            if any(model.learner.n_features > MANY for model in self.models):
                gc.freeze()  # else each full collection reads the lists of names: 8 ms for a million
        if not self.lifecycle.move(On.RECOVERED):  # it is to stop
            return
        seconds = self._recovery_seconds = time.perf_counter() - started
        events = sum(model.learner.seq for model in self.models)
        logger.info("%d event(s) of %d model(s) recovered in %.2f s", events, len(self.models), seconds)
        self._sampler.begin(self._clock.wall(), self.models)
        self._writing = asyncio.create_task(self._run())
        self._writing.add_done_callback(self._ended)

    async def _claim_log(self) -> None:
        """A folder that followed a topic is on its own from now on: what it learns will not be in the topic."""
        followed = await self.disk.run(lambda store: positions.read_topic(store.log.db))
        if followed is not None:
            await self.disk.run(lambda store: positions.leave(store.commits))
            logger.warning(
                "this folder was a node of the topic %r. It follows it no more, since it is served without --kafka",
                followed.name,
            )

    async def _run(self) -> None:
        """Take turns while requests wait, then do a piece of a chore, else sleep, until the engine stops."""
        while True:
            self.queue.work.clear()  # before the check, so that a request during the check wakes it
            if len(self.queue):
                for _ in range(await self.writer.take_turns()):
                    if not await self.chores.step():  # a piece for each turn; with fewer, work would pile up
                        break
            elif self.lifecycle.state.over:
                return
            elif not await self.chores.step():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, self.chores.due())):
                        await self.queue.work.wait()

    @contextlib.asynccontextmanager
    async def copying(self, learner: Learner) -> AsyncGenerator[bool]:
        """Wraps a copy of the weights, or of the state of `auto`. Yields whether to make it in a thread. Then no step
        is taken meanwhile."""
        long = learner.n_features > COPIED_HERE if learner.auto is None else learner.is_large
        async with self.no_steps if long else contextlib.nullcontext():
            yield long

    def drain(self) -> None:
        """Announce that the service is about to stop. It still serves requests."""
        if self.lifecycle.move(On.DRAIN):
            logger.info("stopping: /readyz says 503, and each connection closes after its next reply")

    async def stop(self, seconds: float) -> None:
        """Learn what still waits, then write snapshots within `seconds`, and close the store."""
        deadline = self._clock.steady() + seconds
        self.lifecycle.move(On.STOP)
        self.queue.wake_all()
        if self._recovery is not None:
            await asyncio.wait([self._recovery])
        if self._writing is not None:
            await asyncio.wait([self._writing])
            if self.lifecycle.failure is None:
                await self.chores.finish(deadline)
                await self._finish_log()
        await self.disk.close()
        gc.unfreeze()  # else this engine, whose parts refer to each other, stays as long as the process
        logger.info("stopped")

    async def _finish_log(self) -> None:
        """Write what a clean stop still writes to the log."""

    def _fail(self, failure: errors.LogstepError) -> None:
        """Learn nothing more, and tell the service to stop."""
        if self.lifecycle.fail(failure):
            logger.error("%s", failure)
            self.queue.refuse_all(failure)
            self.on_failure()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """The writer or the recovery has ended. An error in it stops the service."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, errors.LogstepError):
            self._fail(error)
        elif error is not None:
            self._mistaken(error)

    def _mistaken(self, error: BaseException) -> None:
        logger.error("a mistake in logstep itself", exc_info=error)
        self._fail(mistake())
