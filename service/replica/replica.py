"""A node: an engine whose log is a topic. What changes a model goes to the topic as a record, on whichever node it was
asked, and every node applies the records in order."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
from confluent_kafka import KafkaException

from core.spec import Spec
from service import errors, failures
from service.brokers import Brokers, properties
from service.clock import SYSTEM, Clock
from service.learning.chores import Chore
from service.learning.engine import Engine
from service.learning.model import Model
from service.learning.request import Item, Outcome, Place
from service.learning.telemetry import OfTopic
from service.replica import rules, topic
from service.replica.digests import Digests
from service.replica.feed import Feed
from service.replica.joining import BEGIN_AGAIN, check_followed, check_new, check_rules, find
from service.replica.link import FIXED, Link
from service.replica.logged import part_of
from service.replica.outbox import Outbox
from service.replica.records import Do, PoisonError, Record
from service.replica.ticks import Ticks
from service.settings import Settings
from service.storage import positions
from service.storage.positions import NOWHERE, Position, Reached, TopicName
from service.storage.store import Store

logger = logging.getLogger("logstep")

TRY_SECONDS = 1.0
"""Between two tries to reach the brokers at the start, or to write to a full disk."""
STOP_SECONDS = 1.0
REMEMBERED_ENDS = 256


class Replica(Engine):
    """One node. It serves predictions from its folder at once, and learns once it follows the topic."""

    queue: Outbox

    def __init__(self, settings: Settings, clock: Clock = SYSTEM) -> None:
        for name in rules.KEEP_ALL:
            if getattr(settings, name) != "all":
                raise failures.NotOnReplicas(flag=f"--{name.replace('_', '-')}")
        self._brokers = Brokers(settings.kafka, properties(settings.kafka_config, FIXED))
        super().__init__(settings, clock)
        self._link: Link | None = None
        self._feed: Feed | None = None
        self._following: asyncio.Task[None] | None = None
        self._ends: deque[tuple[float, list[int]]] = deque(maxlen=REMEMBERED_ENDS)
        """Where the partitions ended, and when that was asked; the oldest first."""
        self.fresh_at = time.monotonic()
        """A time (monotonic) whose records are all applied."""
        self.caught_up = False
        folder = settings.data
        self._digests = Digests(self._models, self.disk, clock, self.queue, self.progress, folder, self._ended)
        self.chores.add(self._digests)

    def _make_queue(self) -> Outbox:
        return Outbox(self._settings.queue_events, self._models, self._lifecycle, self.telemetry.round_trip, self.model)

    def _make_timeouts(self) -> Chore:
        return Ticks(self._models, self.disk, self._clock, self.queue)

    # -- asking: a record for each change

    def model(self, name: str) -> Model:
        """The model of that name. A node that is behind does not say that there is none: NotReady."""
        try:
            return super().model(name)
        except errors.UnknownModel:
            if unready := self.unready:
                raise errors.NotReady(state=unready) from None
            raise

    async def create(self, name: str, spec: Spec) -> tuple[Model, bool]:
        """The model of that name and spec, and whether it is new."""
        self._models.check_room(name)
        made: tuple[Model, bool] = await self.queue.ask(name, Do.PUT, msgspec.json.encode(spec.as_dict()))
        return made

    async def delete(self, name: str) -> None:
        """Remove a model on every node."""
        self.model(name)
        await self.queue.ask(name, Do.DELETE)

    async def resume(self, name: str) -> Model:
        """Let a stopped model learn again, on every node."""
        self.model(name)
        model: Model = await self.queue.ask(name, Do.RESUME)
        return model

    async def _enqueue_all(self, model: str, items: Sequence[Item]) -> list[Outcome]:
        return await self.queue.learn(model, items)

    # -- how far it is

    def place_of(self, model: str) -> bytes | None:
        """What a reply says of this node: partition and record of the model that are applied here."""
        partition = self.queue.partition_of(model)
        position = self.progress.committed.get(partition)
        return None if position is None else b"%d:%d" % (partition, position.record)

    async def wait_for_place(self, place: str) -> None:
        """Wait until a prediction sees what another reply saw. InvalidParameter if the text is none; Behind if it takes
        too long."""
        partition, colon, record = place.partition(":")
        if not (colon and partition.isdecimal() and record.isdecimal() and len(place) < 32):
            reason = "must be PARTITION:OFFSET, as a reply says it"
            raise errors.InvalidParameter(field="X-Logstep-Offset", reason=reason)
        try:
            async with asyncio.timeout(self._settings.max_lag):
                await self.progress.wait_for(int(partition), int(record))
        except TimeoutError:
            raise errors.Behind(wanted=f"record {record} of partition {partition}") from None

    @property
    def age(self) -> float:
        """Seconds since everything was applied that was in the topic."""
        while self._ends and self._is_applied(self._ends[0][1]):
            self.fresh_at = self._ends.popleft()[0]
            if not self.caught_up:
                self.caught_up = True
                logger.info("all that is in the topic is applied")
        return time.monotonic() - self.fresh_at

    def _is_applied(self, ends: list[int]) -> bool:
        assert self._feed is not None  # noqa: S101  # it was there before anybody asked
        return all(end <= self._feed.applied_to(partition) for partition, end in enumerate(ends))

    @property
    def lag(self) -> int:
        """Records of the topic that are not applied here, as far as it is known."""
        if self._feed is None or not self._ends:
            return 0
        return sum(max(0, end - self._feed.applied_to(partition)) for partition, end in enumerate(self._ends[-1][1]))

    def _topic(self) -> OfTopic:
        if self._feed is None:
            return OfTopic()
        return OfTopic(self.lag, self.age, self._feed.applied, self._feed.refused)

    @property
    def unready(self) -> str:
        """Why a load balancer should send nothing here; "" if it may."""
        if not self.state.ready:
            return self.state
        if self._link is None:
            return self.queue.why_closed
        age = self.age
        if not self.caught_up:
            return f"catching up with its topic: {self.lag:,} record(s) to apply"
        if self.writer.full:
            return "waiting for room on its disk, and does not apply its topic"
        if age > self._settings.max_lag:
            return f"{age:.0f} s behind its topic, or the brokers do not answer (--max-lag {self._settings.max_lag:g})"
        return ""

    # -- start and stop

    async def _claim_log(self) -> None:
        """The folder goes on with its topic, if this node has its rules. Else it must not even replay: a machine that
        computes otherwise would write a snapshot with other bits."""
        followed, _, _ = await self.disk.run(_read)
        if followed is not None:
            check_rules(json.loads(followed.rules), rules.rules_of(self._settings))

    async def _recover(self) -> None:
        await super()._recover()
        if self.state.ready:
            self._following = asyncio.create_task(self._follow())
            self._following.add_done_callback(self._ended)

    async def _follow(self) -> None:
        """Find the topic, see that it is the one, and apply its records until the end."""
        link = Link(self._brokers, self._settings.topic, self._take, self.queue.give_up)
        link.on_ends, link.on_overtaken, link.on_another = self._note_ends, self._overtaken, self._made_again
        loop = asyncio.get_running_loop()
        while True:
            try:
                found = await asyncio.to_thread(find, self._brokers, link, self._settings)
                break
            except (failures.NoBroker, KafkaException) as error:
                reason = error.args[0].str() if isinstance(error, KafkaException) else str(error)
                self.queue.why_closed = f"waiting for the brokers: {reason}"
                logger.warning("%s; next try in %g s", reason, TRY_SECONDS)
                await asyncio.sleep(TRY_SECONDS)
        followed, reached, broken = await self.disk.run(_read)
        if followed is None:
            check_new(found, self._settings.data, empty=self._is_empty())
            await self.disk.run(lambda store: positions.follow(store.commits, found.topic))
        else:
            check_followed(found, followed, reached)
        self.progress.recovered(reached)
        self._digests.begin_with(reached)
        feed = self._feed = Feed(self.queue, self.progress, self._control, self._reach, reached, broken)
        feed.begin(link)
        places = {partition: position.record for partition, position in reached.items()}
        link.follow(places, topic.PARTITIONS, found.topic.id)
        self._link = self.queue.link = link
        watch = loop.create_task(self._give_up_now_and_then())
        try:
            await feed.run()
        finally:
            watch.cancel()

    def _take(self, records: list[Record], ends: dict[int, int]) -> None:
        if self._feed is not None:
            self._feed.take(records, ends)

    def _note_ends(self, asked_at: float, ends: list[int]) -> None:
        self._ends.append((asked_at, ends))
        self.age  # noqa: B018  # forgets what is applied

    def _overtaken(self, partition: int, told: str) -> None:
        reason = f"partition {partition} no longer has the record after the last one applied ({told}). {BEGIN_AGAIN}"
        self._fail(failures.WrongTopic(reason=reason))

    def _made_again(self, topic_id: str) -> None:
        self._fail(failures.WrongTopic(reason=f"it was deleted and made again (its id is {topic_id} now)"))

    def _is_empty(self) -> bool:
        """Whether the folder is as a service makes it, so that it may begin with the topic."""
        models = self.models
        return len(models) == 1 and not (models[0].last_seq or models[0].waiting) and models[0].learner.spec == Spec()

    async def _give_up_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self.queue.give_up_old()

    async def stop(self, seconds: float) -> None:
        """Stop to follow, then stop as a single node does."""
        if self._following is not None:
            if self._feed is not None:
                self._feed.stop()
                await asyncio.wait([self._following], timeout=STOP_SECONDS)
            self._following.cancel()
            await asyncio.wait([self._following])
        self._digests.stop()
        if self._link is not None:
            await asyncio.to_thread(self._link.close)
        self.queue.give_up_all()
        self.queue.drop_all()
        await super().stop(seconds)

    async def _finish_log(self) -> None:
        if self.progress.unwritten != NOWHERE:
            with contextlib.suppress(errors.DiskFull):  # what changed nothing is applied again at the next start
                await self.disk.run(Store.reach, self.progress.unwritten)

    # -- applying what has no items

    async def _control(self, do: Do, model: str, value: bytes, place: Place) -> Any:
        """Do what a record says. It is tried again while the disk is full."""
        while True:
            try:
                return await self._do(do, model, value, place)
            except errors.DiskFull:
                self.writer.full = True
                await asyncio.sleep(TRY_SECONDS)

    async def _do(self, do: Do, name: str, value: bytes, place: Place) -> Any:
        if do is Do.BEGIN:
            return None
        found = self._models.find(name)
        if found is not None:
            async with self.writer.turn:
                while found.next_timeout <= place.at / 1e6:
                    await self.writer.expire(found, place.at / 1e6)
        if do is Do.PUT:
            spec = Spec.from_dict(msgspec.json.decode(value))
            async with self.writer.between_turns():
                made, new = await self._models.create(name, spec)
            if new:
                self._digests.begin(name, place.record)
            return made, new
        if do is Do.DELETE:
            await super().delete(name)
            self._digests.begin(name, place.record)
        if do is Do.RESUME:
            return await super().resume(name)
        if do is Do.LOGGED:
            await self._copy(self._models.get(name), value, place)
        if do is Do.TICK and found is not None and value:
            self._digests.compare(found, value)
        return None

    async def _copy(self, model: Model, value: bytes, place: Place) -> None:
        """Put a part of another log into this one."""
        part = await asyncio.to_thread(part_of, value, model)
        ids = [id_ for id_, *_ in part.changed_ids]
        async with self.writer.turn:
            taken = await self.disk.run(Store.find_ids, {model.stored.key: ids}) if ids else {}
            before = self.progress.unwritten
            position = Position(place.record, 0, place.at, place.mark)
            reached = Reached({**before.positions, place.partition: position}, before.broken)
            if taken or not await self.writer.copy(model, part, reached, place.at):
                raise PoisonError("it is no part of a log: an id of it stands for something already")
            self.writer.full = False

    async def _reach(self, partition: int, position: Position) -> None:
        if self.progress.committed.get(partition) == position:
            return  # it is in the transaction of what it changed
        while True:
            try:
                async with self.writer.turn:
                    before = self.progress.unwritten
                    reached = Reached({**before.positions, partition: position}, before.broken)
                    await self.disk.run(Store.reach, reached)
                    self.progress.settle(reached, written=True)
                    self.progress.all_stepped()
                    self.writer.full = False
                    return
            except errors.DiskFull:
                self.writer.full = True
                await asyncio.sleep(TRY_SECONDS)


def _read(store: Store) -> tuple[TopicName | None, dict[int, Position], dict[str, int]]:
    db = store.log.db
    return positions.read_topic(db), positions.read_positions(db), positions.read_broken(db)
