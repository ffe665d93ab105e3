"""A node: an engine whose log is a topic. What changes a model goes to the topic as a record, on whichever node it was
asked, and every node applies the records in order."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging

import msgspec
from confluent_kafka import KafkaException

from core.spec import Spec
from service import errors, failures
from service.brokers import Brokers, properties
from service.clock import SYSTEM, Clock
from service.learning.chores import Chore
from service.learning.engine import Engine
from service.learning.model import Model
from service.learning.telemetry import Facts, OfTopic
from service.replica import rules, topic
from service.replica.changes import Changes
from service.replica.digests import Digests
from service.replica.feed import Feed
from service.replica.forgetting import Forgetting
from service.replica.joining import BEGIN_AGAIN, IF_MADE_AGAIN, check_followed, check_new, check_rules, find
from service.replica.lag import Lag
from service.replica.link import FIXED, Link
from service.replica.outbox import Outbox
from service.replica.records import Do, Record
from service.replica.ticks import Ticks
from service.settings import Settings
from service.storage import positions
from service.storage.forgotten import Forgotten
from service.storage.positions import NOWHERE, Position, TopicName
from service.storage.store import Store

logger = logging.getLogger("logstep")

TRY_SECONDS = 1.0
"""Between two tries to reach the brokers at the start."""
STOP_SECONDS = 1.0
LOOK_SECONDS = 1.0
"""Between two looks whether this node is ready, and whether a request waits for too long."""


class Replica(Engine):
    """One node. It serves predictions from its folder at once, and learns once it follows the topic."""

    queue: Outbox
    has_peers = True

    def __init__(self, settings: Settings, clock: Clock = SYSTEM) -> None:
        self._brokers = Brokers(settings.kafka, properties(settings.kafka_config, FIXED))
        super().__init__(settings, clock, Forgetting(settings, clock, self._ask_to_forget))
        self._link: Link | None = None
        self._feed: Feed | None = None
        self._following: asyncio.Task[None] | None = None
        self._lag: Lag | None = None
        folder = settings.data
        self._digests = Digests(self.models, self.disk, clock, self.queue, self.progress, folder, self._ended)
        self.chores.add(self._digests)

    def _make_queue(self) -> Outbox:
        return Outbox(self._settings.queue_events, self.models, self.lifecycle, self.telemetry.round_trip, self.model)

    def _make_timeouts(self) -> Chore:
        return Ticks(self.models, self.disk, self._clock, self.queue)

    def _ask_to_forget(self, model: str, forgotten: Forgotten) -> None:
        self.queue.announce(Do.FORGET, model, msgspec.json.encode(forgotten))

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
        self.models.check_room(name)
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
        known = partition.isdecimal() and len(partition) < 9 and int(partition) < topic.PARTITIONS
        if not (colon and known and record.isdecimal() and len(record) < 19):
            reason = f"must be PARTITION:OFFSET, as a reply says it, with a partition below {topic.PARTITIONS}"
            raise errors.InvalidParameter(field="X-Logstep-Offset", reason=reason)
        try:
            async with asyncio.timeout(self._settings.max_lag):
                await self.progress.wait_for(int(partition), int(record))
        except TimeoutError:
            raise errors.Behind(wanted=f"record {record} of partition {partition}") from None

    def _facts(self) -> Facts:
        facts = super()._facts()
        if self._feed is None or self._lag is None:
            return facts
        of_topic = OfTopic(self._lag.records, self._lag.seconds(), self._feed.applied, self._feed.refused)
        return dataclasses.replace(facts, topic=of_topic)

    @property
    def unready(self) -> str:
        """Why a load balancer should send nothing here; "" if it may."""
        if not self.lifecycle.state.ready:
            return self.lifecycle.state
        if self._lag is None:
            return self.queue.why_closed
        if not self._lag.caught_up():
            return f"catching up with its topic: {self._lag.records:,} record(s) to apply"
        if self.writer.full:
            return "waiting for room on its disk, and does not apply its topic"
        if (behind := self._lag.seconds()) > (most := self._settings.max_lag):
            return f"{behind:.0f} s behind its topic, or the brokers do not answer (--max-lag {most:g})"
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
        if self.lifecycle.state.ready:
            self._following = asyncio.create_task(self._follow())
            self._following.add_done_callback(self._ended)

    async def _follow(self) -> None:
        """Find the topic, see that it is the one, and apply its records until the end."""
        link = Link(self._brokers, self._settings.topic, self._take, self.queue.give_up)
        link.on_overtaken, link.on_another, link.on_mistake = self._overtaken, self._made_again, self._mistaken
        while True:
            try:
                found = await asyncio.to_thread(find, self._brokers, link, self._settings)
                break
            except (failures.NoBroker, KafkaException) as error:
                reason = error.args[0].str() if isinstance(error, KafkaException) else str(error)
                self.queue.why_closed = f"waiting for the brokers: {reason}"
                logger.warning("topic %s: %s; next try in %g s", self._settings.topic, reason, TRY_SECONDS)
                await asyncio.sleep(TRY_SECONDS)
        followed, reached, broken = await self.disk.run(_read)
        if followed is None:
            check_new(found, self._settings.data, empty=self._is_empty())
            await self.disk.run(lambda store: positions.follow(store.commits, found.topic))
        else:
            check_followed(found, followed, reached)
        self.progress.recovered(reached)
        self._digests.begin_with(reached)
        changes = Changes(self.models, self.writer, self.disk, self._digests, super().delete, super().resume)
        feed = self._feed = Feed(self.queue, self.progress, changes, reached, broken)
        places = {partition: max(at.record, found.ranges[partition][0]) for partition, at in reached.items()}
        feed.begin(link, places)
        lag = Lag(feed.applied_to)
        link.on_ends = lag.note
        link.follow(places, topic.PARTITIONS, found.topic.id)
        self._link, self._lag, self.queue.link = link, lag, link
        watch = asyncio.create_task(self._look_now_and_then())
        try:
            await feed.run()
        finally:
            watch.cancel()

    def _take(self, records: list[Record], ends: dict[int, int]) -> None:
        if self._feed is not None:
            self._feed.take(records, ends)

    def _overtaken(self, partition: int, told: str) -> None:
        reason = f"partition {partition} no longer has the record after the last one applied ({told}). {BEGIN_AGAIN}. "
        reason += IF_MADE_AGAIN
        self._fail(failures.WrongTopic(reason=reason))

    def _made_again(self, topic_id: str) -> None:
        reason = f"it was deleted and made again (its id is {topic_id} now). {IF_MADE_AGAIN}"
        self._fail(failures.WrongTopic(reason=reason))

    def _is_empty(self) -> bool:
        """Whether the folder is as a service makes it, so that it may begin with the topic."""
        models = list(self.models)
        return len(models) == 1 and not (models[0].last_seq or models[0].waiting) and models[0].learner.spec == Spec()

    async def _look_now_and_then(self) -> None:
        """Give up requests that wait for too long, and log when /readyz changes its answer."""
        was_ready = not self.unready
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.queue.give_up_old()
            if not self.lifecycle.state.ready:  # it ends, which is logged where it does
                continue
            unready = self.unready
            if unready and was_ready:
                logger.warning("unready: %s", unready)
            elif not unready and not was_ready:
                logger.info("ready: it is up to date with its topic")
            was_ready = not unready

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


def _read(store: Store) -> tuple[TopicName | None, dict[int, Position], dict[str, int]]:
    db = store.log.db
    return positions.read_topic(db), positions.read_positions(db), positions.read_broken(db)
