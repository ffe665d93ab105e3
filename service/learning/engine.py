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
from service.learning.chores import Chore, Chores, Dropping, FlushIds, MergeIds, Room, Series, Snapshots, Timeouts
from service.learning.disk import Disk
from service.learning.model import Model
from service.learning.models import Models
from service.learning.queue import Queue
from service.learning.recovery import Recovery, note_arithmetic
from service.learning.request import Item, Outcome, Result, Stream, refusal_of
from service.learning.retention import Retention
from service.learning.sampling import Sampler
from service.learning.state import EngineState, Lifecycle, On, mistake
from service.learning.telemetry import Facts, OfTopic, Telemetry
from service.learning.writer import Writer
from service.settings import Settings
from service.storage import positions
from service.storage.store import Store
from service.storage.waiting import KnownId

logger = logging.getLogger("logstep")

COPIED_HERE = 500_000
"""Most weights that are copied on the loop. New memory is slow: with 5,000,000 it may take 45 ms."""


class Engine:
    """Named models over one store. Create and use it on the event loop."""

    def __init__(self, settings: Settings, clock: Clock = SYSTEM) -> None:
        self.on_failure: Callable[[], None] = lambda: None
        self.telemetry = telemetry = Telemetry(self._facts, settings.metrics_models)
        self._settings = settings
        self._clock = clock
        self._lifecycle = lifecycle = Lifecycle()
        self.streams_end = lifecycle.streams_end
        self.disk = disk = Disk(self._fail)
        """Its thread, for what must run between two commits."""
        self._models = models = Models(settings, disk, lifecycle)
        self.queue = self._make_queue()
        self.writer = Writer(self.queue, models, disk, lifecycle, telemetry, settings.commit_events, clock)
        self.progress = self.writer.progress
        self.no_steps = self.writer.no_steps
        """While a caller holds this lock, no step is taken, so a thread can read the models."""
        self._sampler = Sampler(telemetry)
        retention = self._make_retention()
        series = Series(models, disk, clock, self._sampler)
        self._room = Room(models, disk, clock)
        dropping = Dropping(models, disk, clock, retention)
        flush, merge = FlushIds(models, disk, clock), MergeIds(models, disk, clock)
        self.snapshots = Snapshots(models, disk, clock, settings.snapshot_seconds, retention, self._sampler)
        self.chores = Chores((self._make_timeouts(), flush, series, self._room, dropping, self.snapshots, merge), clock)
        self._recovery: asyncio.Task[None] | None = None
        self._recovery_seconds: float | None = None
        self._writing: asyncio.Task[None] | None = None

    def _make_queue(self) -> Queue:
        return Queue(self._settings.queue_events, self._models, self._lifecycle)

    def _make_timeouts(self) -> Chore:
        return Timeouts(self._models, self.disk, self._clock, self.writer)

    def _make_retention(self) -> Retention:
        settings = self._settings
        return Retention(settings.keep_events, settings.keep_ids, settings.keep_min, self._clock)

    # -- what it is doing

    @property
    def state(self) -> EngineState:
        return self._lifecycle.state

    @property
    def failure(self) -> errors.LogstepError | None:
        """Why it failed."""
        return self._lifecycle.failure

    @property
    def unready(self) -> str:
        """Why a load balancer should send nothing here; "" if it may."""
        return "" if self.state.ready else self.state

    def place_of(self, model: str) -> bytes | None:
        """What a reply says of how far the model's log is applied, if that is a topic (service/replica/)."""
        return None

    async def wait_for_place(self, place: str) -> None:
        """Wait until a prediction sees what another node's reply saw. Without a topic there is no other node."""

    def check_recovered(self) -> None:
        """Raise NotReady during recovery."""
        self._models.check_loaded()

    def _facts(self) -> Facts:
        ready = not self.unready
        return Facts(ready, self._settings.data, self.queue.events, self.models, self._recovery_seconds, self._topic())

    def _topic(self) -> OfTopic:
        """What the metrics tell of the topic that is the log."""
        return OfTopic()

    # -- the models

    @property
    def models(self) -> list[Model]:
        """Every model, in order of creation."""
        return list(self._models)

    def model(self, name: str) -> Model:
        """The model of that name. Raises UnknownModel, or NotReady during recovery."""
        return self._models.get(name)

    async def create(self, name: str, spec: Spec) -> tuple[Model, bool]:
        """The model of that name and spec, and whether it is new. SpecConflict if it exists with another spec."""
        self._models.check_room(name)
        await self._models.load_for(spec)  # before the turns wait
        async with self.writer.between_turns():
            return await self._models.create(name, spec)

    async def delete(self, name: str) -> None:
        """Remove a model with its log, ids and snapshots. `default` reappears empty."""
        async with self.writer.between_turns():
            self.telemetry.count_deleted(await self._models.delete(name))
            self._room.rows_left = True
            self.queue.work.set()

    async def resume(self, name: str) -> Model:
        """Let a stopped model learn again. Nothing changes if it is not stopped."""
        async with self.writer.between_turns():
            model = await self._models.resume(name)
            self.queue.work.set()  # a prediction may be due
            return model

    # -- learning

    async def learn(self, model: str, items: Sequence[Item], stream: Stream | None = None) -> list[Outcome]:
        """Learn events and labels, or keep predictions, in order: all or none; of a stream, those before the first
        refused one, which comes last. Returns when they are on disk and the steps are taken.

        Raises the error if all are refused.
        """
        if stream is None:
            result = await self._enqueue_all(model, items)
        else:
            result = await (await self.queue.submit(model, items, stream))
        refused = refusal_of(result)
        if refused is not None and (stream is None or refused.error.index is None):
            raise refused.error
        return result

    async def _enqueue_all(self, model: str, items: Sequence[Item]) -> Result:
        return await self.queue.enqueue(model, items)

    async def find_id(self, name: str, id_: str) -> KnownId | None:
        """What an id of a model stands for."""
        key = self.model(name).stored.key
        found = await self.disk.run(lambda store: store.find_ids({key: [id_]}))
        return found.get((key, id_))

    # -- start and stop

    def start(self) -> asyncio.Task[None]:
        """Begin recovery, and return its task. Requests get NotReady until it is done and `state` is ready."""
        self._lifecycle.move(On.START)
        self._recovery = asyncio.create_task(self._recover())
        self._recovery.add_done_callback(self._ended)
        return self._recovery

    async def _recover(self) -> None:
        """Open the store, bring every model to the end of its log, and start the writer."""
        started = time.perf_counter()
        await self.disk.open(self._settings.data)
        await self._claim_log()
        found = await self.disk.run(self._replay_all)
        if self.state.recovering:
            await self._models.load(found)
            if any(model.learner.n_features > MANY for model in self._models):
                gc.freeze()  # else each full collection reads the lists of names: 8 ms for a million
        if not self._lifecycle.move(On.RECOVERED):  # it is to stop
            return
        seconds = self._recovery_seconds = time.perf_counter() - started
        events = sum(model.learner.seq for model in self._models)
        logger.info("%d event(s) of %d model(s) recovered in %.2f s", events, len(self._models), seconds)
        self._sampler.begin(self._clock.wall(), self._models)
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

    def _replay_all(self, store: Store) -> dict[str, Model]:
        models = Recovery(store.log, self._settings, given_up=lambda: not self.state.recovering).models()
        note_arithmetic(store, models.values())
        return models

    async def _run(self) -> None:
        """Take turns while requests wait, then do a piece of a chore, else sleep, until the engine stops."""
        while True:
            self.queue.work.clear()  # before the check, so that a request during the check wakes it
            if len(self.queue):
                for _ in range(await self.writer.take_turns()):
                    if not await self.chores.step():  # a piece for each turn; with fewer, work would pile up
                        break
            elif self.state.over:
                return
            elif not await self.chores.step():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, self.chores.due())):
                        await self.queue.work.wait()

    @contextlib.asynccontextmanager
    async def copying(self, learner: Learner) -> AsyncGenerator[bool]:
        """Wraps a copy of the weights. Yields whether to make it in a thread; then no step is taken meanwhile."""
        long = learner.n_features > COPIED_HERE
        async with self.no_steps if long else contextlib.nullcontext():
            yield long

    def drain(self) -> None:
        """Announce that the service is about to stop. It still serves requests."""
        if self._lifecycle.move(On.DRAIN):
            logger.info("stopping: /readyz says 503, and each connection closes after its next reply")

    async def stop(self, seconds: float) -> None:
        """Learn what still waits, then write snapshots within `seconds`, and close the store."""
        deadline = self._clock.steady() + seconds
        self._lifecycle.move(On.STOP)
        self.queue.wake_all()
        if self._recovery is not None:
            await asyncio.wait([self._recovery])
        if self._writing is not None:
            await asyncio.wait([self._writing])
            if self.failure is None:
                await self.chores.finish(deadline)
                await self._finish_log()
        await self.disk.close()
        gc.unfreeze()  # else this engine, whose parts refer to each other, stays as long as the process
        logger.info("stopped")

    async def _finish_log(self) -> None:
        """Write what a clean stop still writes to the log."""

    def _fail(self, failure: errors.LogstepError) -> None:
        """Learn nothing more, and tell the service to stop."""
        if self._lifecycle.fail(failure):
            logger.error("%s", failure)
            self.queue.refuse_all(failure)
            self.on_failure()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """The writer or the recovery has ended. An error in it stops the service."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, errors.LogstepError):
            self._fail(error)
        elif error is not None:
            logger.error("a mistake in logstep itself", exc_info=error)
            self._fail(mistake())
