"""The one writer: takes what waits, commits it, steps the models, and answers.

Requests wait in one queue. When no more come, the writer takes all of them, makes arrays, and gives these to the store
as one transaction. After the sync it steps the learners and answers the requests. While one commit syncs, the next
gathers, so all of its requests share the cost of a sync. If many events wait, the writer takes the steps of one turn
while the next commits.

Every step is taken on the event loop, so no lock is needed: a prediction sees the model after one event or after the
next, never in between. The disk and the arrays of long requests have threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from functools import partial

from core.batch import Batch
from core.builder import BatchBuilder
from core.learner import Outcome
from service import errors, logs
from service.clock import Clock
from service.fairness import WIDE, worked
from service.learning.disk import Disk
from service.learning.draft import JOINED_BYTES, Draft, Known, why_stopped
from service.learning.drafting import draft_request, read_ids, work_of
from service.learning.labels import draft_timeouts
from service.learning.model import Model
from service.learning.models import Models
from service.learning.progress import Progress
from service.learning.queue import Queue
from service.learning.request import Request
from service.learning.state import Lifecycle, mistake
from service.learning.telemetry import Telemetry
from service.storage.positions import Reached
from service.storage.store import ModelBatch, Store
from service.storage.waiting import OldWaiting
from service.table import Table

logger = logging.getLogger("logstep")

STEP_EVENTS = 4_096
"""Events to step before the loop may serve others: well under a millisecond of kernel time for short events."""
STEP_VALUES = 2**16
"""Feature values to step before the loop may serve others."""
AUTO_STEP_VALUES = 2**10
"""The same for `auto`, which takes up to 30 us for an event of few features."""
ANSWERS = 256
"""Requests to answer before the loop may serve others. Each takes some 20 us, and its step as long."""
DRAFT_WORK = 2**12
"""Work to draft before the loop may serve others, as `work_of` counts it."""
WIDE_DRAFT = 2**14
"""Work above which a request is drafted in a thread."""

LEFT_OUT = 8
"""How many times as much the items of a request cost if the model has no room for new names. What it leaves out is
hashed; of a table, all at once."""

QUIET = 3
"""Loop turns without a new request that end the gathering. The first only sends replies, and these bring the next
requests."""
GATHER_SECONDS = 0.001
"""How long to gather at most, if requests keep coming."""

TIMEOUTS = 500
"""Predictions that one commit times out, at most, because requests wait meanwhile."""
FULL_SECONDS = 1.0
"""How long a replica waits before it tries again to write what the topic says to a full disk."""
BUSY = 2
"""Predictions between two commits from which the loop gives way to the commit. With none, the thread gets the GIL
anyway, and to block the loop only lets other processes have its processor. That holds for a request that is alone, too:
to wake a blocked loop takes as long as to wake one that waits for its sockets."""
ROW_SECONDS = 0.05
"""How long turns may follow one another before tidying and changes of models get their time."""
MUCH = 1_000
"""Waiting events from which it pays to commit them and take other steps at the same time. With fewer, the committing
thread would only wait for the GIL."""


class Writer:
    """Takes turns, one after the other. `turn`: held while one is taken, or while a model is made or removed."""

    def __init__(
        self,
        queue: Queue,
        models: Models,
        disk: Disk,
        lifecycle: Lifecycle,
        telemetry: Telemetry,
        commit_events: int,
        clock: Clock,
    ) -> None:
        self._queue = queue
        self._models = models
        self._disk = disk
        self._lifecycle = lifecycle
        self._telemetry = telemetry
        self._commit_events = commit_events
        self._clock = clock
        self._committed: deque[tuple[Draft, Batch]] = deque()
        """Drafts on disk whose steps are not taken yet."""
        self.turn = asyncio.Lock()
        self.no_steps = asyncio.Lock()
        """While somebody holds it, no step is taken, so a thread can read the models."""
        self.progress = Progress()
        self.full = False
        """Whether records of a topic wait because the disk is full."""
        self._taken = self._expected = 0
        """How many requests the last turn took, and how many the next one will probably have."""
        self._uncounted: list[tuple[int, float, float]] = []
        """Commits that the metrics do not have yet: items, seconds, and seconds of the sync."""
        self._changing = 0  # how many wait between turns to change models

    @contextlib.asynccontextmanager
    async def between_turns(self) -> AsyncIterator[None]:
        """Inside, every model is at the end of its log, and no turn commits."""
        self._changing += 1
        try:
            async with self.turn:
                self._lifecycle.check_accepts()
                yield
        finally:
            self._changing -= 1

    async def expire(self, model: Model, now: float) -> None:
        """Time out some predictions of a model, as of a time in seconds since 1970. The caller holds `turn`."""
        keep = model.learner.spec.join.keep_seconds
        key = model.stored.key
        oldest = await self._disk.run(lambda store: store.log.waiting.oldest(key, TIMEOUTS))
        overdue = [old for old in oldest if _too_late(old, now, keep)]
        late = overdue[: int(min(model.room, TIMEOUTS))]
        if late:
            draft = Draft(model, BatchBuilder(model.learner.features), int(now * 1e6))
            draft.wide = sum(len(old.waiting.x) for old in late if old.waiting is not None) > WIDE_DRAFT
            await worked(draft.wide, draft_timeouts, draft, late)
            await self._finish([draft], self.progress.unwritten)
            await self._take_steps()
        if len(late) == len(overdue) < len(oldest):
            model.first_due(min(old.kept_at for old in oldest if not _too_late(old, now, keep)) / 1e6 + keep)
        elif not oldest:
            model.first_due(math.inf)
        self._models.first_to_time_out()
        self._count_commits()

    async def copy(self, model: Model, part: ModelBatch, reached: Reached, now: int) -> bool:
        """Commit a part of another log as it is, and take its steps. The caller holds `turn`. False, and nothing is
        changed, if an id of it is not new. now: microseconds since 1970."""
        if not await self._disk.run(Store.commit, [part], now / 1e6, reached):
            return False
        self.progress.settle(reached, written=True)
        model.learner.features.extend(part.names)
        model.committed(len(part.batch), len(part.kept), 0, 0, now / 1e6)
        if part.kept:
            model.first_due(0.0)  # unknown: they were kept elsewhere, and earlier
            self._models.note_timeout(model)
        self._committed.append((Draft(model, BatchBuilder(model.learner.features), now), part.batch))
        await self._take_steps()
        return True

    async def _expire_before(self, requests: list[Request]) -> None:
        """Time out what is due by the times of records, before they are applied: then it is the same on every node."""
        if not requests or requests[0].place is None:
            return
        first: dict[str, int] = {}
        for request in requests:
            if request.place is not None:
                first.setdefault(request.model, request.place.at)
        for name, at in first.items():
            model = self._models.find(name)
            while model is not None and model.next_timeout <= at / 1e6:
                await self.expire(model, at / 1e6)

    async def _gather(self) -> None:
        """Wait a moment until no more requests come. If as many wait as the last turn answered and left waiting, all
        who learn one event after another are here, and nobody is waited for.

        While the loop is busy, the committing thread does not get the GIL, so this commit may as well include what
        comes meanwhile. Without this, connections that send one event after another split into two groups that wait for
        each other's commits: 8 connections learned 8,000 events a second instead of 12,000.
        """
        waiting, quiet, until = 0, 0, time.perf_counter() + GATHER_SECONDS
        while (waits := len(self._queue)) < self._expected and self._queue.events < MUCH:
            if quiet == QUIET or time.perf_counter() >= until:
                return
            quiet = quiet + 1 if waits == waiting else 0
            waiting = waits
            await asyncio.sleep(0)

    async def take_turns(self) -> int:
        """Take a turn, and more turns while many events wait. Returns how many.

        The steps of one turn are taken while the next commits: a stream of arrays is learned in three quarters of the
        time.
        """
        await self._gather()
        async with self.turn:
            turns, until = 1, time.perf_counter() + ROW_SECONDS
            try:
                await self._take_turn()
                while self._queue.events >= MUCH and not self._changing and time.perf_counter() < until:
                    await self._take_turn()
                    turns += 1
            finally:
                await self._take_steps()
        # If the loop gave way to the commit, what came meanwhile is not in the queue yet. This turn of the loop reads
        # it, and then sends the replies. So who was answered is not counted twice, and then waited for in vain.
        await asyncio.sleep(0)
        self._expected = self._taken + len(self._queue)
        self._count_commits()
        return turns

    def _count_commits(self) -> None:
        """Count commits, once those who waited for them are answered."""
        for items, seconds, sync_seconds in self._uncounted:
            self._telemetry.count_commit(items, seconds, sync_seconds)
            logger.debug("commit", extra=logs.fields(items=items, seconds=round(seconds, 6)))
        self._uncounted.clear()

    async def _take_turn(self) -> None:
        """Take one turn. Every request gets an answer, whatever happens."""
        if any(draft.model.watch is not None for draft, _ in self._committed):
            await self._take_steps()  # the next draft may be no further ahead than the breaker allows
        requests = list(self._in_pieces(self._queue.take(self._commit_events)))
        self._taken = len(requests)
        try:
            put_off = await self._learn_turn(requests, int(self._clock.wall() * 1e6))
        except BaseException:
            for request in requests:
                request.refuse(self._lifecycle.failure or mistake())
            raise
        self._queue.put_back(put_off)

    def _in_pieces(self, requests: list[Request]) -> Iterator[Request]:
        """The requests; those of streams in pieces that a breaker can follow. Nearly all are short enough as they come
        (service/http/streams.py)."""
        for request in requests:
            yield request
            model = self._models.find(request.model)
            if model is not None and model.watch is not None and request.stream is not None:
                while len(request.items) > model.watch.breaker.events:
                    request = request.cut(model.watch.breaker.events)  # noqa: PLW2901  # its rest
                    yield request

    async def _learn_turn(self, requests: list[Request], now: int) -> list[Request]:
        """One turn without its steps: arrays, commit. Returns the requests that are put off to later turns. now:
        microseconds since 1970.

        Nearly every id is new, and the commit finds one that is not. Then nothing is committed, and the turn is taken
        again with all ids looked up. Looking first cost a fifth of the rate.
        """
        later: list[Request] = []
        try:
            await self._expire_before(requests)
            known, requests, later = await self._look_up(requests, all_of_them=False)
            put_off = await self._try_turn(requests, known, now)
            if put_off is None:
                known, requests, sooner = await self._look_up(requests, all_of_them=True)
                later = sooner + later
                put_off = await self._try_turn(requests, known, now)
            assert put_off is not None  # noqa: S101  # all ids were looked up
        except errors.DiskFull as full:  # of a replica: every other node learns what is in the topic
            return await self._wait_for_room(requests + later, full)
        self.full = False
        return put_off + later

    async def _wait_for_room(self, requests: list[Request], full: errors.DiskFull) -> list[Request]:
        """Put requests off, all of them. At the end they are given up: the topic still has them at the next start."""
        self.full = True
        if self._lifecycle.state.over:
            for request in requests:
                request.refuse(full)
            return []
        await asyncio.sleep(FULL_SECONDS)
        return requests

    async def _try_turn(self, requests: list[Request], known: Known, now: int) -> list[Request] | None:
        """The turn, assuming that all ids not in `known` are new. None, and nothing changed, if one is not."""
        drafts, put_off = await self._draft(requests, known, now)
        reached = self.progress.after(requests, put_off, drafts)
        try:
            return put_off if await self._finish(drafts, reached) else None
        except errors.DiskFull as error:
            if any(request.place is not None for request in requests):
                raise
            for draft in drafts:
                draft.give_up(error)
        return put_off

    async def _finish(self, drafts: list[Draft], reached: Reached) -> bool:
        """Commit drafts. `_take_steps` then takes their steps and answers their requests. False if an id must be looked
        up first. Then, and after DiskFull, nothing is changed and no request is answered."""
        batches = [await asyncio.to_thread(draft.build) if draft.wide else draft.build() for draft in drafts]
        committed = False
        try:
            committed = not any(draft.unsure for draft in drafts) and await self._commit(drafts, batches, reached)
        finally:
            if not committed:  # remove the names that their events added
                for draft in drafts:
                    await worked(draft.wide, draft.model.learner.features.truncate, draft.builder.first_feature)
        if committed:
            for draft, batch in zip(drafts, batches, strict=True):
                for stream in draft.broken:
                    stream.broken = True
                done, dropped = len(draft.done), len(draft.dropped)
                draft.model.committed(len(batch), len(draft.kept), done, dropped, draft.first_kept_at)
                if draft.kept:
                    self._models.note_timeout(draft.model)
                self._committed.append((draft, batch))
        return committed

    async def _commit(self, drafts: list[Draft], batches: list[Batch], reached: Reached) -> bool:
        """Write and sync the drafts, and meanwhile take the steps of the turn before. False if an id is not new."""
        added: list[ModelBatch] = []
        items = 0
        for draft, batch in zip(drafts, batches, strict=True):
            if (count := len(batch)) or draft.kept or draft.dropped:
                items += count + len(draft.kept)
                added.append(await asyncio.to_thread(draft.to_store, batch) if draft.wide else draft.to_store(batch))
        if not added:
            self.progress.settle(reached, written=False)
            return True
        started = time.perf_counter()
        written_at = max(draft.now for draft in drafts) / 1e6
        commit = self._disk.begin(partial(self._disk.store.commit, added, written_at, reached))
        try:
            await self._take_steps()
            if items < MUCH and self._queue.passed_by >= BUSY:
                self._disk.give_way(commit)
            self._queue.passed_by = 0
        finally:
            written = await self._disk.end(commit)
        if written:
            self.progress.settle(reached, written=True)
            commits = self._disk.store.commits
            self._uncounted.append((items, commits.synced_at - started, commits.sync_seconds))
        return written

    async def _draft(self, requests: list[Request], known: Known, now: int) -> tuple[list[Draft], list[Request]]:
        """Sort the requests' events by model, and make arrays of them. Refuses invalid events.

        A draft has a prefix of its model's requests, so what is learned does not depend on how requests were cut into
        turns. It ends before a request with an id of an earlier one: in the next turn that is a duplicate, or, if the
        earlier one failed, it is tried itself. It ends where the model's breaker must see its events first, and before
        a record of a topic by whose time a prediction is due.
        """
        drafts: dict[str, Draft] = {}
        put_off: list[Request] = []
        behind: set[str | int] = set()
        """Lanes of requests that are put off."""
        drafted = 0
        for request in requests:
            if request.lane in behind:
                put_off.append(request)
                continue
            model = self._models.find(request.model)
            if model is None:
                request.refuse(errors.UnknownModel(model=request.model))
                continue
            draft = drafts.get(request.model)
            if draft is None:
                draft = drafts[request.model] = Draft(model, BatchBuilder(model.learner.features), now)
            if draft.has_id_of(request, known) or not draft.has_room_for(request) or draft.has_due(request):
                behind.add(request.lane)
                put_off.append(request)
                continue
            if request.place is not None:
                draft.now = request.place.at
            work = work_of(request, draft.key, known)
            if model.learner.features.full and not isinstance(request.items, Table):
                work *= LEFT_OUT
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

    async def _look_up(
        self, requests: list[Request], *, all_of_them: bool
    ) -> tuple[Known, list[Request], list[Request]]:
        """What is on disk under the requests' ids, the requests whose ids were read, and those that must wait for a
        later turn.

        An array that alone has more than one turn may read is refused; a stream is cut.
        """
        known = await self._find_ids(requests, all_of_them=all_of_them)
        if not known.reading.unread:
            return known, requests, []
        for i, request in enumerate(requests):
            model = self._models.find(request.model)
            count = len(request.items) if model is None else known.readable(request, model.stored.key)
            if count == len(request.items):
                continue
            if i:
                return known, requests[:i], requests[i:]
            if len(requests) > 1:  # alone, because others may have taken its share
                known, first, rest = await self._look_up(requests[:1], all_of_them=all_of_them)
                return known, first, rest + requests[1:]
            if request.stream is None:
                request.refuse(errors.IdsTooLarge(count=count, limit=JOINED_BYTES))
                request.items = []  # it stays in the turn, because a replica's position must pass it
            return known, [request], [request.cut(count)]
        return known, requests, []

    async def _find_ids(self, requests: list[Request], *, all_of_them: bool) -> Known:
        """Look up the requests' ids on disk: all of them, or only those that cannot be assumed new."""
        wanted: dict[int, list[str]] = {}
        corrected: set[tuple[int, str]] = set()
        for request in requests:
            model = self._models.find(request.model)
            if model is None:
                continue
            if len(request.items) > WIDE:
                ids = await asyncio.to_thread(request.ids, labels_alone=not all_of_them)
            else:
                ids = request.ids(labels_alone=not all_of_them)
            if ids:
                wanted.setdefault(model.stored.key, []).extend(ids)
                if model.learner.spec.join.late == "learn":
                    corrected.update((model.stored.key, id_) for id_ in ids)
        known = Known(all_of_them)
        if wanted:
            await self._disk.run(read_ids, known, wanted, corrected)
        return known

    async def _take_steps(self) -> None:
        """Take the steps of committed drafts. Every request gets an answer, whatever happens."""
        if self._committed:
            try:
                async with self.no_steps:
                    await self._step_all()
            except BaseException:
                for draft, _ in self._committed:
                    draft.give_up(self._lifecycle.failure or mistake())
                self._committed.clear()
                raise
        self.progress.all_stepped()

    async def _step_all(self) -> None:
        """Take the steps of one draft after the other."""
        answered = 0
        while self._committed:
            draft, batch = self._committed[0]
            await self._step(draft, batch)
            self._committed.popleft()
            answered += len(draft.answers)
            if answered >= ANSWERS:
                answered = 0
                await asyncio.sleep(0)

    async def _step(self, draft: Draft, batch: Batch) -> None:
        """Step for each event of a batch, in pieces, then answer the requests."""
        learner = draft.model.learner
        outcomes: list[Outcome] = []  # `list[Outcome]()` takes longer than a step
        if learner.takes_long_to_make_room:
            await asyncio.to_thread(learner.make_room, batch)
            gc.freeze()  # else each full collection reads the list of names: 8 ms for a million
        values = STEP_VALUES if learner.auto is None else AUTO_STEP_VALUES
        for piece in batch.slices(STEP_EVENTS, values):
            if outcomes:
                await asyncio.sleep(0)
            outcomes.append(draft.model.learn(piece))
        if len(batch):
            self._models.replay_seconds += draft.model.stepped(batch)
            if draft.model.stopped:  # these were its last
                logger.warning("%s", why_stopped(draft.model))
        joined = Outcome.joined(outcomes)
        results = await asyncio.to_thread(draft.results, joined) if draft.wide else draft.results(joined)
        for number, (request, result) in enumerate(results, 1):
            request.accept(result)
            if number % ANSWERS == 0:
                await asyncio.sleep(0)


def _too_late(old: OldWaiting, now: float, keep: float) -> bool:
    """Whether a prediction waited longer than `keep` seconds. Also if it is damaged and its time is in the future."""
    kept_at = old.kept_at / 1e6
    return kept_at + keep <= now or (old.waiting is None and kept_at > now)
