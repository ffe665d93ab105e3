"""The one writer: queue -> commit -> step -> acknowledge; named models; snapshots.

Requests wait in one queue. When no more come, the writer takes all of them, makes arrays, and gives these to the store
as one transaction. After the sync it steps the learners and answers the requests. While one commit syncs, the next
gathers, so all of its requests share the cost of a sync. If many events wait, the writer takes the steps of one turn
while the next commits.

Everything but the disk runs on the event loop, so no lock is needed: a prediction sees the model after one event or
after the next, never in between. All disk access runs in one thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from core.batch import EXPIRED, Batch
from core.builder import BatchBuilder
from core.learner import Outcome
from core.spec import Spec
from service import errors, logs
from service.events import Event, Label
from service.fairness import WIDE, worked
from service.learning.draft import JOINED_BYTES, Draft, Known, why_stopped
from service.learning.labels import draft_timeouts
from service.learning.model import Model, Prediction
from service.learning.recovery import Recovery
from service.learning.request import Items, Request, Result, Stream
from service.learning.retention import Retention
from service.learning.sampling import Sampler
from service.learning.telemetry import Facts, Telemetry
from service.learning.turn import draft_request, work_of
from service.replies import PredictedKept
from service.settings import Settings
from service.storage.ids import IdsTakenError
from service.storage.log import Snapshot, StoredModel
from service.storage.series import Piece
from service.storage.store import ModelBatch, Store
from service.storage.waiting import KnownId, OldWaiting
from service.threads import background

logger = logging.getLogger("logstep")

DEFAULT = "default"
STEP_EVENTS = 4_096
"""Events to step before the loop may serve others: well under a millisecond of kernel time for short events."""
STEP_VALUES = 2**16
"""Feature values to step before the loop may serve others."""
AUTO_STEP_VALUES = 2**13
"""The same for `auto`, which is many learners."""
DRAFT_WORK = 2**12
"""Work to draft before the loop may serve others, as `work_of` counts it."""
WIDE_DRAFT = 2**14
"""Work above which a request is drafted in a thread."""

QUIET = 3
"""Loop turns without a new request that end the gathering. The first only sends replies, and these bring the next
requests."""
GATHER_SECONDS = 0.001
"""How long to gather at most, if requests keep coming."""

ROW_SECONDS = 0.05
"""How long turns may follow one another before tidying and changes of models get their time."""
MUCH = 1_000
"""Waiting events from which it pays to commit them and take other steps at the same time. With fewer, the committing
thread would only wait for the GIL."""

IN_LINE = 8
"""Most arrays that wait for room in the queue."""
LINE_SECONDS = 2.0
"""How long they wait at most."""

TIMEOUTS = 500
"""Predictions that one commit times out, at most, because requests wait meanwhile."""

SPACE_PAUSE_SECONDS = 5
"""How often to check whether the file has much free room."""
DROP_PAUSE_SECONDS = 1
"""How often retention looks for something to drop."""
TIDY_PAUSE_SECONDS = 30
LAST_SNAPSHOT_SECONDS = 0.05
"""At shutdown, write a snapshot if it saves the next start this much."""

T = TypeVar("T")


@dataclass(slots=True)
class _SnapshotUnderWay:
    """A snapshot that is being written, and the seconds of replay that it will save."""

    model: Model
    seq: int
    saves_seconds: float
    pieces: Iterator[None]


class Engine:
    """Named models over one store. Create and use it on the event loop."""

    def __init__(self, settings: Settings) -> None:
        self.state = "starting"
        """starting, recovering, ready, draining, stopped or failed"""
        self.streams_end = asyncio.Event()
        """Set when the service stops: streams then end between two pieces."""
        self.failure: errors.LogstepError | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self._recovery_seconds: float | None = None
        self.telemetry = Telemetry(self._facts, settings.metrics_models)
        self._settings = settings
        self._models: dict[str, Model] = {}
        self._queue: deque[Request] = deque()
        self._waiting_events = 0
        self._announced_events = 0
        self._in_line = 0  # arrays that wait for room in the queue
        self._line = asyncio.Lock()  # held by the first in line, an array or a stream
        self._committed: deque[tuple[Draft, Batch]] = deque()
        """Drafts on disk whose steps are not taken yet."""
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._turn = asyncio.Lock()
        self._steps = asyncio.Lock()
        self._changing = 0  # how many wait between turns to change models
        self._thread = background("logstep-store", 1)
        self._writer: asyncio.Task[None] | None = None
        self._store: Store | None = None
        self._recovery: asyncio.Task[None] | None = None
        self._abandon = False  # whether to give up a running recovery
        self._purging = True
        self._snapshot: _SnapshotUnderWay | None = None
        self._replay_seconds = math.inf
        """How long replaying all models' logs after their snapshots would take, at most."""
        self._tidy_after = 0.0
        self._due = math.inf  # when the first prediction times out, or earlier: seconds since 1970
        self._space_after = 0.0
        self._retention = Retention(settings.keep_events, settings.keep_ids, settings.keep_min)
        self._sampler = Sampler(self.telemetry)
        self._dropping: Iterator[None] | None = None
        self._drop_after = 0.0

    # -- predicting and looking

    @property
    def models(self) -> list[Model]:
        """Every model, in order of creation."""
        return list(self._models.values())

    @property
    def stopping(self) -> bool:
        """Whether the service is about to stop, so connections must not be kept."""
        return self.state not in ("ready", "starting", "recovering")

    def model(self, name: str) -> Model:
        """The model of that name. Raises UnknownModel, or NotReady during recovery."""
        self.check_recovered()
        try:
            return self._models[name]
        except KeyError:
            raise errors.UnknownModel(model=name) from None

    def _facts(self) -> Facts:
        return Facts(self.state, self._settings.data, self._waiting_events, self.models, self._recovery_seconds)

    # -- learning

    async def learn(self, model: str, events: Sequence[Event | Label], stream: Stream | None = None) -> Result:
        """Learn events, in order: all or none; of a stream, those before the first invalid one.

        Returns when they are on disk and the steps are taken.
        """
        return await (self.enqueue(model, events) if stream is None else await self.submit(model, events, stream))

    async def keep(
        self, model: str, predictions: Sequence[Prediction], stream: Stream | None = None
    ) -> tuple[list[PredictedKept], errors.LogstepError | None]:
        """Keep predictions until their labels come. The replies, and for a stream the error of the first refused one.

        Returns when they are on disk.
        """
        waits = self.enqueue(model, predictions) if stream is None else await self.submit(model, predictions, stream)
        result = await waits
        return result.predicted, result.error

    async def find_id(self, name: str, id_: str) -> KnownId | None:
        """What an id of a model stands for."""
        key = self.model(name).stored.key
        return (await self._on_disk(self._opened.find_ids, {key: [id_]})).get((key, id_))

    async def submit(self, model: str, items: Items, stream: Stream) -> asyncio.Future[Result]:
        """Put items of a stream in the writer's queue. Waits for room, because a stream can be read slowly."""
        self.model(model)
        await self._wait_for_room(len(items))
        if self.streams_end.is_set():
            raise errors.NotReady(state="stopping, and streams end here")
        return self.enqueue(model, items, stream)

    def enqueue(self, model: str, items: Items, stream: Stream | None = None) -> asyncio.Future[Result]:
        """Put items in the writer's queue. Returns their future result. QueueFull if there is no room."""
        self._check_open()
        self.model(model)
        if not self.has_room(len(items)):
            raise self._full()
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.append(Request(model, items, stream, answer))
        self._waiting_events += len(items)
        self._work.set()
        return answer

    def check_room(self) -> None:
        """Raise QueueFull if there is no room, or if others wait for it."""
        if self._in_line or not self.has_room(1):
            raise self._full()

    def _full(self) -> errors.QueueFull:
        waiting = self._waiting_events + self._announced_events
        return errors.QueueFull(waiting=waiting, limit=self._settings.queue_events)

    def has_room(self, count: int) -> bool:
        """Whether `count` more events may wait. An empty queue takes any number."""
        coming = self._waiting_events + self._announced_events
        return not coming or coming + count <= self._settings.queue_events

    @contextlib.asynccontextmanager
    async def announced(self, count: int) -> AsyncIterator[None]:
        """Reserve room for `count` events while they are decoded. Otherwise, with room for one array, fifty would be
        decoded and one learned. Waits in line if there is no room. QueueFull after LINE_SECONDS, or if IN_LINE others
        wait.

        While some wait here, `check_room` refuses others before their bodies are read. That makes refusing cheap.
        """
        if self._in_line >= IN_LINE:
            raise self._full()
        self._in_line += 1
        try:
            async with asyncio.timeout(LINE_SECONDS):
                await self._wait_for_room(count)
        except TimeoutError:
            raise self._full() from None
        finally:
            self._in_line -= 1
        self._announced_events += count
        try:
            yield
        finally:
            self._announced_events -= count
            self._room.set()

    async def _wait_for_room(self, count: int) -> None:
        """Wait until there is room for `count` events and all earlier callers. Streams and arrays wait in one line:
        otherwise large ones would wait for ever behind small ones."""
        async with self._line:
            self._check_open()
            while not self.has_room(count):
                self._room.clear()
                await self._room.wait()
                self._check_open()

    def check_recovered(self) -> None:
        """Raise NotReady during recovery."""
        if self.state in ("starting", "recovering"):
            raise errors.NotReady(state="recovering: replaying its log")

    def _check_open(self) -> None:
        self.check_recovered()
        if self.failure is not None:
            raise self.failure
        if self.state == "stopped":
            raise errors.NotReady(state="stopping")

    async def _write(self) -> None:
        """The writer's loop: take turns while requests wait, then do a piece of tidying, else sleep."""
        while True:
            self._work.clear()  # before the check, so that a request during the check wakes it
            if self._queue:
                await self._gather()
                async with self._turn:
                    turns = await self._take_turns()
                for _ in range(turns):  # a piece for each turn; with fewer, work would pile up under load
                    if not await self._tidy():
                        break
            elif self.state in ("stopped", "failed"):
                return
            elif not await self._tidy():
                await self._sleep()

    async def _gather(self) -> None:
        """Wait a moment until no more requests come.

        While the loop is busy, the committing thread does not get the GIL, so this commit may as well include what
        comes meanwhile. Without this, connections that send one event after another split into two groups that wait for
        each other's commits: 8 connections learned 8,000 events a second instead of 12,000.
        """
        waiting, quiet, until = 0, 0, time.perf_counter() + GATHER_SECONDS
        while quiet < QUIET and self._waiting_events < MUCH and time.perf_counter() < until:
            quiet = quiet + 1 if len(self._queue) == waiting else 0
            waiting = len(self._queue)
            await asyncio.sleep(0)

    async def _sleep(self) -> None:
        """Sleep until there is work, a prediction times out, or the series or retention are due."""
        now = time.time()
        seconds = min(self._due - now, self._sampler.due_in(now))
        if self._retention.drops:
            seconds = min(seconds, self._drop_after - time.monotonic())
        # Not before `_tidy` works again: it pauses when the disk was full.
        seconds = max(seconds, self._tidy_after - time.monotonic())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._work.wait(), max(0.0, seconds))

    async def _take_turns(self) -> int:
        """Take a turn, and more turns while many events wait. Returns how many. The steps of one turn are taken while
        the next commits: a stream of arrays is learned in three quarters of the time."""
        turns, until = 1, time.perf_counter() + ROW_SECONDS
        try:
            await self._take_turn()
            while self._waiting_events >= MUCH and not self._changing and time.perf_counter() < until:
                await self._take_turn()
                turns += 1
        finally:
            await self._take_steps()
        return turns

    async def _take_turn(self) -> None:
        """Take one turn. Every request gets an answer, whatever happens."""
        if any(draft.model.watch is not None for draft, _ in self._committed):
            await self._take_steps()  # they may stop the model
        requests = self._take()
        try:
            put_off = await self._learn_turn(requests)
        except BaseException:
            for request in requests:
                request.refuse(self.failure or _mistake())
            raise
        self._queue.extendleft(reversed(put_off))
        self._waiting_events += sum(len(request.items) for request in put_off)

    def _take(self) -> list[Request]:
        """Take the waiting requests, up to the size of a commit."""
        taken: list[Request] = []
        events = 0
        while self._queue and (not taken or events + len(self._queue[0].items) <= self._settings.commit_events):
            taken.append(self._queue.popleft())
            events += len(taken[-1].items)
        self._waiting_events -= events
        self._room.set()
        return taken

    async def _learn_turn(self, requests: list[Request]) -> list[Request]:
        """One turn without its steps: arrays, commit. Returns the requests deferred to the next turn."""
        # Nearly every id is new, and the commit finds one that is not. Looking first cost a fifth of the rate.
        known = await self._find_ids(requests, all_of_them=False)
        requests, later = self._cut(requests, known)
        try:
            return await self._try_turn(requests, known) + later
        except IdsTakenError:
            known = await self._find_ids(requests, all_of_them=True)
            requests, sooner = self._cut(requests, known)
            return await self._try_turn(requests, known) + sooner + later

    def _cut(self, requests: list[Request], known: Known) -> tuple[list[Request], list[Request]]:
        """Of a turn's requests those whose ids were read, and those that have to wait for a later turn.

        An array that has more than one turn may read is refused; a stream is cut.
        """
        if not known.reading.unread:
            return requests, []
        for i, request in enumerate(requests):
            model = self._models.get(request.model)
            count = len(request.items) if model is None else known.readable(request, model.stored.key)
            if count == len(request.items):
                continue
            if i:
                return requests[:i], requests[i:]
            if request.stream is None:
                request.refuse(errors.IdsTooLarge(count=count, limit=JOINED_BYTES))
                return [], requests[1:]
            return [request], [request.cut(count), *requests[1:]]
        return requests, []

    async def _try_turn(self, requests: list[Request], known: Known) -> list[Request]:
        """The turn, assuming that all ids not in `known` are new. If one is not: IdsTakenError, and nothing changed."""
        drafts, put_off = await self._draft(requests, known)
        try:
            await self._finish(drafts)
        except errors.DiskFull as error:
            for draft in drafts:
                draft.refuse()
                draft.give_up(error)
        return put_off

    async def _finish(self, drafts: list[Draft]) -> None:
        """Commit drafts. `_take_steps` then takes their steps and answers their requests.

        After DiskFull or IdsTakenError nothing is changed and no request is answered.
        """
        batches = [await worked(draft.wide, draft.build) for draft in drafts]
        await self._commit(drafts, batches)
        for draft, batch in zip(drafts, batches, strict=True):
            draft.refuse()
            self._count_committed(draft, batch)
            self._committed.append((draft, batch))

    async def _commit(self, drafts: list[Draft], batches: list[Batch]) -> None:
        """Write and sync the drafts. If that fails, remove the feature names that their events added."""
        added: list[ModelBatch] = []
        try:
            for draft, batch in zip(drafts, batches, strict=True):
                if not draft.empty:
                    added.append(await worked(draft.wide, draft.to_store, batch))
            if any(draft.unsure for draft in drafts):
                raise IdsTakenError
            if added:
                started = time.perf_counter()
                commit = self._begin(self._opened.commit, added)
                try:
                    await self._take_steps()
                finally:
                    await self._end(commit)
                items = sum(len(part.batch) + len(part.kept) for part in added)
                seconds = self._opened.synced_at - started
                self.telemetry.count_commit(items, seconds, self._opened.sync_seconds)
                logger.debug("commit", extra=logs.fields(items=items, seconds=round(seconds, 6)))
        except (errors.LogstepError, IdsTakenError):
            for draft in drafts:
                await worked(draft.wide, draft.model.learner.features.truncate, draft.builder.first_feature)
            raise

    def _count_committed(self, draft: Draft, batch: Batch) -> None:
        """Update what a commit changes: the end of the log, broken streams, and counts of waiting predictions."""
        model = draft.model
        model.last_seq += len(batch)
        for stream in draft.broken:
            stream.broken = True
        if draft.kept:  # it may be the first to time out: none waited, or the clock was set back
            model.due = min(model.due, draft.now / 1e6 + model.learner.spec.join.keep_seconds)
            self._due = min(self._due, model.next_timeout)
        model.waiting += len(draft.kept) - len(draft.done) - len(draft.dropped)
        model.next_number += len(draft.kept)
        model.dropped += len(draft.dropped)

    async def _draft(self, requests: list[Request], known: Known) -> tuple[list[Draft], list[Request]]:
        """Sort the requests' events by model, and make arrays of them. Refuses invalid events.

        It defers a request with an id of an earlier request in this turn. In the next turn the later request is a
        duplicate, or, if the earlier one failed, it is tried itself. What follows in its stream is deferred too.
        """
        now = _now()
        drafts: dict[str, Draft] = {}
        put_off: list[Request] = []
        drafted = 0
        for request in requests:
            model = self._models.get(request.model)
            if model is None:
                request.refuse(errors.UnknownModel(model=request.model))
                continue
            draft = drafts.get(request.model)
            if draft is None:
                draft = drafts[request.model] = Draft(model, BatchBuilder(model.learner.features), now)
            elif (
                draft.full
                or draft.has_id_of(request)
                or (request.stream and any(r.stream is request.stream for r in put_off))
            ):
                put_off.append(request)
                continue
            work = work_of(request, draft.key, known)
            if work > WIDE_DRAFT:
                draft.wide = True
                await asyncio.to_thread(draft_request, draft, request, known)
            else:
                draft_request(draft, request, known)
            drafted += work
            if drafted >= DRAFT_WORK:
                drafted = 0
                await asyncio.sleep(0)
        return list(drafts.values()), put_off

    async def _find_ids(self, requests: list[Request], *, all_of_them: bool) -> Known:
        """Look up the requests' ids on disk: all of them, or only those that cannot be assumed new."""
        wanted: dict[int, list[str]] = {}
        corrected: set[tuple[int, str]] = set()
        for request in requests:
            model = self._models.get(request.model)
            if model is None:
                continue
            ids = await worked(len(request.items) > WIDE, partial(request.ids, labels_alone=not all_of_them))
            if ids:
                wanted.setdefault(model.stored.key, []).extend(ids)
                if model.learner.spec.join.late == "learn":
                    corrected.update((model.stored.key, id_) for id_ in ids)
        known = Known(all_of_them)
        if wanted:
            await self._on_disk(self._look_up, known, wanted, corrected)
        return known

    def _look_up(self, known: Known, wanted: dict[int, list[str]], corrected: set[tuple[int, str]]) -> None:
        """Runs in the disk thread. `corrected`: ids whose event is wanted too if the timeout learned it as 0."""
        known.ids.update(self._opened.find_ids(wanted, known.reading))
        if not corrected:
            return
        for model, id_ in ((model, id_) for model, ids in wanted.items() for id_ in ids):
            found = known.ids.get((model, id_))
            if found is None or found.kind != EXPIRED or (model, id_) not in corrected:
                continue
            if not known.reading.takes((model, id_), 0):
                continue
            with contextlib.suppress(errors.LogDamaged):  # then only this label is refused
                logged = self._opened.event(model, found.seq)
                if logged is not None:
                    known.expired[model, id_] = logged
                    known.reading.left -= logged[1].values.nbytes + logged[1].columns.nbytes
                elif found.seq <= self._opened.gone(model):
                    known.gone.add((model, id_))

    def no_steps(self) -> asyncio.Lock:
        """While a caller holds this lock, no step is taken, so a thread can read the models."""
        return self._steps

    async def _take_steps(self) -> None:
        """Take the steps of committed drafts. Every request gets an answer, whatever happens."""
        while self._committed:
            draft, batch = self._committed.popleft()
            try:
                async with self._steps:
                    await self._step(draft, batch)
            except BaseException:
                for other in (draft, *(later for later, _ in self._committed)):
                    other.give_up(self.failure or _mistake())
                self._committed.clear()
                raise

    async def _step(self, draft: Draft, batch: Batch) -> None:
        """Step for each event of a batch, in pieces, then answer the requests."""
        learner, outcomes = draft.model.learner, list[Outcome]()
        if learner.takes_long_to_make_room:
            await asyncio.to_thread(learner.make_room, batch)
        values = STEP_VALUES if learner.auto is None else AUTO_STEP_VALUES
        for piece in batch.slices(STEP_EVENTS, values):
            if outcomes:
                await asyncio.sleep(0)
            outcomes.append(draft.model.learn(piece))
        if len(batch):
            draft.model.learned += len(batch)
            self._replay_seconds += draft.model.count_replay(batch)
            if draft.model.stopped:
                logger.warning("%s", why_stopped(draft.model))
        _accept(await worked(draft.wide, draft.results, Outcome.joined(outcomes)))

    # -- predictions whose label does not come

    async def _time_out(self) -> bool:
        """Learn as 0, or drop, some predictions of one model that waited too long. Whether there were any."""
        now = _now()
        if now / 1e6 < self._due:
            return False
        async with self._turn:
            model = min(self.models, key=lambda model: model.next_timeout)
            self._due = model.next_timeout
            if now / 1e6 < self._due:  # a breaker has stopped the model that was due
                return False
            keep = model.learner.spec.join.keep_seconds
            oldest = await self._on_disk(self._opened.oldest_waiting, model.stored.key, TIMEOUTS)
            late = [old for old in oldest if _too_late(old, now, keep)]
            if late:
                draft = Draft(model, BatchBuilder(model.learner.features), now)
                work = sum(len(old.waiting.x) for old in late if old.waiting is not None)
                draft.wide = work > WIDE_DRAFT
                await worked(draft.wide, draft_timeouts, draft, late)
                await self._finish([draft])
                await self._take_steps()
            if len(late) < len(oldest):
                model.due = min(old.kept_at for old in oldest if not _too_late(old, now, keep)) / 1e6 + keep
            elif not oldest:
                model.due = math.inf
        self._due = min(other.next_timeout for other in self.models)
        return bool(late)

    # -- models

    @contextlib.asynccontextmanager
    async def _between_turns(self) -> AsyncIterator[None]:
        """Inside, every model is at the end of its log, and no turn commits."""
        self._changing += 1
        try:
            async with self._turn:
                self._check_open()
                yield
        finally:
            self._changing -= 1

    async def create(self, name: str, spec: Spec) -> tuple[Model, bool]:
        """The model of that name and spec, and whether it is new. SpecConflict if it exists with another spec."""
        async with self._between_turns():
            if name in self._models:
                model = self.model(name)
                if model.learner.spec != spec:
                    there = model.learner.spec.as_dict()
                    raise errors.SpecConflict(model=name, there=there, asked=spec.as_dict())
                return model, False
            if len(self._models) >= self._settings.max_models:
                raise errors.TooManyModels(limit=self._settings.max_models)
            stored = await self._on_disk(self._opened.create_model, name, spec.as_dict())
            return self._add(stored), True

    async def delete(self, name: str) -> None:
        """Remove a model with its log, ids and snapshots. `default` reappears empty."""
        async with self._between_turns():
            model = self.model(name)
            successor = Spec().as_dict() if name == DEFAULT else None
            stored = await self._on_disk(self._opened.delete_model, model.stored, successor)
            del self._models[name]
            self.telemetry.count_deleted(model)
            if stored is not None:
                self._add(stored)
            self._purging = True
            self._work.set()

    async def resume(self, name: str) -> Model:
        """Let a stopped model learn again. Nothing changes if it is not stopped."""
        async with self._between_turns():
            model = self.model(name)
            if model.watch is None:
                raise errors.NoBreaker(model=name)
            if model.stopped:
                seq = model.learner.seq
                await self._on_disk(self._opened.resume, model.stored.key, seq)
                model.watch.resume(seq)
                self._due = min(self._due, model.due)
                self._work.set()
                logger.info("model %r learns again from seq %d on", name, seq)
            return model

    def _add(self, stored: StoredModel) -> Model:
        model = self._models[stored.name] = Model(stored, self._settings.window)
        model.limit(self._settings.max_event_features, self._settings.max_name_characters)
        return model

    # -- start, snapshots, stop

    def start(self) -> None:
        """Begin recovery. Requests get NotReady until it is done and `state` is ready."""
        self.state = "recovering"
        self._recovery = asyncio.create_task(self._recover())
        self._recovery.add_done_callback(self._ended)

    async def _recover(self) -> None:
        """Open the store, bring every model to the end of its log, and start the writer."""
        started = time.perf_counter()
        self._store = await self._on_disk(Store, self._settings.data)
        self._models = await self._on_disk(self._replay_all)
        if self._abandon:
            return
        self._due = min((model.next_timeout for model in self.models), default=math.inf)
        if DEFAULT not in self._models:
            self._add(await self._on_disk(self._opened.create_model, DEFAULT, Spec().as_dict()))
        events = sum(model.learner.seq for model in self.models)
        seconds = time.perf_counter() - started
        self._recovery_seconds = seconds
        logger.info("%d event(s) of %d model(s) recovered in %.2f s", events, len(self._models), seconds)
        self._sampler.begin(time.time(), self._models.values())
        self.state = "ready"
        self._writer = asyncio.create_task(self._write())
        self._writer.add_done_callback(self._ended)

    def _replay_all(self) -> dict[str, Model]:
        return Recovery(self._opened, self._settings, given_up=lambda: self._abandon).models()

    async def _tidy(self) -> bool:
        """Do one piece of timeouts, series, removal, retention or snapshots. Whether there was one."""
        if time.monotonic() < self._tidy_after:
            return False
        try:
            return (
                await self._time_out()
                or await self._write_series(self._sampler.piece(time.time(), self._models.values()))
                or await self._purge()
                or await self._give_back()
                or await self._drop_piece()
                or await self._snapshot_piece(self._settings.snapshot_seconds)
            )
        except errors.DiskFull:
            logger.warning("no room on the disk for snapshots and series; next try in %d s", TIDY_PAUSE_SECONDS)
            self._snapshot = self._dropping = None
            self._tidy_after = time.monotonic() + TIDY_PAUSE_SECONDS
            return False

    async def _write_series(self, piece: Piece | None) -> bool:
        """Write a piece of the series. Whether there was one."""
        if piece is None:
            return False
        await self._on_disk(self._opened.write_series, piece)
        return True

    async def _purge(self) -> bool:
        """Remove some rows of deleted models. Whether there may be more."""
        if self._purging:
            self._purging = await self._on_disk(self._opened.purge)
            return True
        return False

    async def _give_back(self) -> bool:
        """Give some free room of the file back. Whether there may be more."""
        if time.monotonic() <= self._space_after:
            return False
        if await self._on_disk(self._opened.give_back):
            return True
        self._space_after = time.monotonic() + SPACE_PAUSE_SECONDS
        return False

    async def _drop_piece(self) -> bool:
        """Do a piece of retention, or begin a new round. Whether there was something to do."""
        if self._dropping is None:
            if not self._retention.drops or time.monotonic() < self._drop_after:
                return False
            self._dropping = self._retention.pieces(self._opened, self.models)
        if await self._on_disk(next, self._dropping, _END) is _END:
            self._dropping = None
            self._drop_after = time.monotonic() + DROP_PAUSE_SECONDS
        return True

    async def _snapshot_piece(self, due_seconds: float) -> bool:
        """Write a chunk of the current snapshot, or of the next one that is due. Whether there was one."""
        if self._snapshot is None:
            model = self._due_for_snapshot(due_seconds)
            if model is None:
                return False
            self._snapshot = await worked(model.learner.n_features > WIDE, self._begin_snapshot, model)
        under_way = self._snapshot
        if self._models.get(under_way.model.name) is not under_way.model:  # deleted meanwhile
            self._snapshot = None
        elif await self._on_disk(next, under_way.pieces, _END) is _END:
            self._snapshot = None
            self._replay_seconds = math.inf  # another may be due
            under_way.model.snapshot_seq = under_way.seq
            under_way.model.replay_seconds -= under_way.saves_seconds
            self.telemetry.snapshot_at = time.monotonic()
            self._sampler.mark_snapshot(time.time(), under_way.model)
            logger.debug("model %r: snapshot at seq %d", under_way.model.name, under_way.seq)
        return True

    def _due_for_snapshot(self, due_seconds: float) -> Model | None:
        """The model with the longest replay, if all together take `due_seconds`; else one that retention waits for."""
        if self._replay_seconds < due_seconds and not self._retention.drops:
            return None  # checking each of a thousand models took a tenth of all time
        self._replay_seconds = sum(model.replay_seconds for model in self.models)
        models = [model for model in self.models if not model.held]
        if models and sum(model.replay_seconds for model in models) >= due_seconds:
            return max(models, key=lambda model: model.replay_seconds)
        return next((model for model in models if model.snapshot_wanted), None)

    def _begin_snapshot(self, model: Model) -> _SnapshotUnderWay:
        """Copy the model's state, and make the iterator that writes the copy. A large model is copied in a thread:
        the writer waits for it, so no step is taken meanwhile."""
        model.snapshot_wanted = False
        seq = model.learner.seq
        state = {
            "learner": model.learner.state(names=False),
            "scores": model.scores.state(),
            "joins": model.joins.state(),
        }
        if model.watch is not None:
            state["watch"] = model.watch.state()
        pieces = self._opened.write_snapshot(model.stored.key, Snapshot(seq, state))
        return _SnapshotUnderWay(model, seq, model.replay_seconds, pieces)

    def drain(self) -> None:
        """Announce that the service is about to stop. It still serves requests."""
        if self.state == "ready":
            self.state = "draining"
            logger.info("stopping: /readyz says 503, and each connection closes after its next reply")

    async def stop(self, seconds: float) -> None:
        """Learn what still waits, then write snapshots within `seconds`, and close the store."""
        deadline = time.monotonic() + seconds
        self._abandon = True
        if self._recovery is not None:
            await asyncio.wait([self._recovery])
        if self._writer is not None:
            if self.state != "failed":
                self.state = "stopped"
            self._room.set()
            self._work.set()
            await asyncio.wait([self._writer])
        if self.state == "stopped":
            await self._last_series(deadline)
            await self._last_snapshots(deadline)
        if self._store is not None:
            await self._on_disk(self._store.close)
        self._thread.shutdown()
        logger.info("stopped")

    async def _last_series(self, deadline: float) -> None:
        try:
            while time.monotonic() < deadline:
                if not await self._write_series(self._sampler.last_piece(time.time(), self._models.values())):
                    return
        except errors.LogstepError as error:
            logger.warning("the plots will lack some seconds: %s", error)

    async def _last_snapshots(self, deadline: float) -> None:
        try:
            while time.monotonic() < deadline and await self._snapshot_piece(LAST_SNAPSHOT_SECONDS):
                pass
        except errors.LogstepError as error:
            logger.warning("the snapshot at shutdown failed: %s", error)  # no loss: the log has every event

    # -- the thread for the disk, and failures

    @property
    def _opened(self) -> Store:
        if self._store is None:
            raise errors.NotReady(state="starting")
        return self._store

    async def _on_disk(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function in the disk thread, the only one that accesses the disk."""
        return await self._end(self._begin(function, *arguments))

    def _begin(self, function: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def _end(self, begun: asyncio.Future[T]) -> T:
        try:
            return await begun
        except errors.StorageFailed as failure:
            self._fail(failure)
            raise

    def _fail(self, failure: errors.LogstepError) -> None:
        """Learn nothing more, and tell the service to stop."""
        if self.failure is not None:
            return
        self.failure, self.state = failure, "failed"
        logger.error("%s", failure)
        while self._queue:
            self._queue.popleft().refuse(failure)
        self._waiting_events = 0
        self._room.set()
        self._work.set()
        self.on_failure()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """The writer or the recovery has ended. An error in it stops the service."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, errors.LogstepError):
            self._fail(error)
        elif error is not None:
            logger.error("a mistake in logstep itself", exc_info=error)
            self._fail(_mistake())


def _accept(results: list[tuple[Request, Result]]) -> None:
    for request, result in results:
        request.accept(result)


_END = object()


def _now() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1_000


def _too_late(old: OldWaiting, now: int, keep: float) -> bool:
    """Whether a prediction waited longer than `keep` seconds. Also if it is damaged and its time is in the future."""
    return old.kept_at / 1e6 + keep <= now / 1e6 or (old.waiting is None and old.kept_at > now)


def _mistake() -> errors.LogstepError:
    return errors.StorageFailed(reason="a mistake in logstep itself; its log says more")
