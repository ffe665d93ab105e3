"""`logstep kafka import`: writes a folder's log into a new topic, so that the nodes of it begin with its models.

All of it is one transaction of Kafka, which a node reads whole or not at all. So an import that is killed leaves
nothing that a node would learn, only a topic that is not new.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import OffsetSpec

from core.spec import Spec
from service.brokers import Brokers
from service.commands.inspect import examine
from service.commands.terminal import Failed, number, say, show
from service.events import DEFAULT
from service.learning.model import Model
from service.learning.recovery import Recovery
from service.replica import rules, topic
from service.replica.link import FIXED
from service.replica.logged import records_of
from service.replica.records import Do, partition_of
from service.settings import Settings
from service.storage.folder import FolderLock
from service.storage.log import LogReader, StoredModel, learned_elsewhere

PROPERTIES = FIXED | {"transactional.id": "logstep sets it, so that a second import ends the first"}
"""Properties that a file must not set, and why."""
LONGEST_SECONDS = 900
"""How long a transaction may take: what brokers allow (transaction.max.timeout.ms) unless they were told otherwise."""
TELL_SECONDS = 10.0
_NO_LEADER = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.UNKNOWN_TOPIC_OR_PART)
BESIDE = 1_024
"""Bytes of a record beside its value, at most."""


class Found(NamedTuple):
    """A model of the folder: where it stands, how many predictions wait, and how many of these too long by now."""

    stored: StoredModel
    seq: int
    sha256: str
    waiting: int
    overdue: int


def import_(folder: Path, brokers: Brokers, name: str, settings: Settings) -> int:
    """Write the log of a folder that no service uses into a new topic. Returns the exit code."""
    LogReader(folder).close()  # before anything is made in it, see that it is a data folder
    _require_new(brokers, name)
    started = time.monotonic()
    with contextlib.closing(_Lock(folder)):
        say(f"reading {folder}")
        found = _read(folder, settings)
        log = LogReader(folder)
        try:
            with _Writing(brokers, name) as writing:
                writing.begin(rules.encoded(rules.rules_of(settings)).encode())
                _write(log, found, writing)
        finally:
            log.close()
    events, seconds = sum(model.seq for model in found), time.monotonic() - started
    show("Models", [(one.stored.name, one.seq, one.sha256) for one in found], ("model", "seq", "sha256"))
    print(f"imported {number(len(found))} model(s), {number(events)} event(s) into the topic {name} in {seconds:.1f} s")
    _tell_of_overdue(found)
    return 0


class _Lock(FolderLock):
    close = FolderLock.release


# -- the topic


def _require_new(brokers: Brokers, name: str) -> None:
    """Refuse a topic that no node would follow, or that has been written to."""
    for fault in topic.faults(brokers, name):
        if fault.verdict is topic.Verdict.WRONG:
            raise Failed(f"the topic {name} cannot be a log: {fault}. Nothing was written")
        say(f"topic {name}: {fault}")
    if records := sum(_ends(brokers, name)):
        raise Failed(
            f"the topic {name} is not new: it has {records:,} record(s), of nodes or of an import that was ended. "
            "Nothing was written. Make another with `logstep kafka create-topic`"
        )


def _ends(brokers: Brokers, name: str) -> list[int]:
    """The offset after the last record of each partition, whoever wrote it. Raises NoBroker."""
    until = time.monotonic() + brokers.patience
    while True:
        try:
            return brokers.offsets(name, range(topic.PARTITIONS), OffsetSpec.latest(), brokers.patience)
        except KafkaException as error:
            # A broker may not know yet that it leads a partition of a topic that was just made.
            if error.args[0].code() not in _NO_LEADER or time.monotonic() > until:
                raise brokers.no_answer(error) from None
            time.sleep(topic.AGAIN_SECONDS)


# -- the folder


def _read(folder: Path, settings: Settings) -> list[Found]:
    """The models of a whole folder."""
    findings = examine(folder)
    if wrong := [*findings.damage, *([findings.loss] if findings.loss else []), *findings.bad_ids]:
        raise Failed(f"{folder} is damaged, and nothing was written: {wrong[0]}. `logstep inspect {folder}` shows more")
    if elsewhere := [model.name for model in findings.models if learned_elsewhere(model.arithmetic, model.seq)]:
        say(
            f"{len(elsewhere):,} model(s), {elsewhere[0]} the first, learned on a machine whose C library rounds exp, "
            "log or pow otherwise than this one's. Nodes may have other last bits than the SHA-256 below tells"
        )
    log = LogReader(folder)
    try:
        for stored in log.models():
            _require_all(log, stored, folder)
        return [_found(log, model) for model in Recovery(log, settings, lambda: False).models().values()]
    finally:
        log.close()


def _require_all(log: LogReader, stored: StoredModel, folder: Path) -> None:
    """Refuse a model that the log alone cannot make."""
    if gone := log.gone(stored.key):
        raise Failed(
            f"{folder} has no events of the model {stored.name!r} up to seq {gone:,} (--keep-events), and nodes learn "
            "from the first on. Nothing was written. Import an older backup that has them, or begin with an empty "
            "topic and send the events again (`logstep replay`)"
        )
    if stored.name == DEFAULT and Spec.from_dict(stored.spec) != Spec():
        raise Failed(f"the model {DEFAULT!r} of {folder} has another spec than on nodes. Nothing was written")


def _found(log: LogReader, model: Model) -> Found:
    until = (time.time() - model.learner.spec.join.keep_seconds) * 1e6
    waiting = [one.kept_at for one in log.waiting.all(model.stored.key)] if model.waiting else []
    overdue = sum(kept_at <= until for kept_at in waiting)
    return Found(model.stored, model.learner.seq, model.learner.sha256(), len(waiting), overdue)


def _tell_of_overdue(found: list[Found]) -> None:
    late = [one for one in found if one.overdue]
    for one in late:
        say(
            f"model {one.stored.name}: {one.overdue:,} of its {one.waiting:,} waiting prediction(s) have waited too "
            "long by now. Nodes learn or drop them as they begin, as its join says"
        )


# -- writing


def _write(log: LogReader, found: list[Found], writing: _Writing) -> None:
    events, done, told_at = sum(model.seq for model in found), 0, time.monotonic()
    for one in found:
        for record in records_of(log, one.stored):
            writing.write(record.do, one.stored.name, record.value)
            done += record.events
            if time.monotonic() >= told_at + TELL_SECONDS:
                told_at = time.monotonic()
                say(f"{done:,} of {events:,} events")


class _Writing:
    """A transaction of a topic. At the end of its context it commits, or aborts after an error."""

    def __init__(self, brokers: Brokers, name: str) -> None:
        self._brokers, self._topic = brokers, name
        self._first = -1
        fixed = {"acks": "all", "enable.idempotence": True, "transactional.id": f"logstep-import-{name}"}
        self._producer = brokers.client(
            Producer,
            fixed,
            transaction_timeout_ms=LONGEST_SECONDS * 1_000,
            message_max_bytes=topic.LARGEST_RECORD,
            linger_ms=20,
            queue_buffering_max_kbytes=262_144,
        )

    def __enter__(self) -> _Writing:
        with self._failing():
            self._producer.init_transactions(self._brokers.patience)
            self._producer.begin_transaction()
        return self

    def begin(self, rules: bytes) -> None:
        """Write the first record of the log, and see that it is the first."""

        def written(error: Any, message: Any) -> None:
            self._first = -1 if error is not None else message.offset()

        with self._failing():
            self._producer.produce(self._topic, rules, b"", 0, headers=[("do", Do.BEGIN.value)], on_delivery=written)
            self._producer.flush(self._brokers.patience)
        if self._first > 0:
            raise Failed(f"somebody else writes to the topic {self._topic}. Nothing was imported. {AGAIN}")

    def write(self, do: Do, model: str, value: bytes) -> None:
        """Write a record. Waits while too many are under way."""
        if len(value) > topic.LARGEST_RECORD - BESIDE:
            raise Failed(
                f"model {model}: a part of its log has {len(value):,} bytes, and a record has at most "
                f"{topic.LARGEST_RECORD:,}. Nothing was imported"
            )
        key = model.encode()
        place = self._topic, value, key, partition_of(key, topic.PARTITIONS)
        with self._failing():
            while True:
                try:
                    self._producer.produce(*place, headers=[("do", do.value)])
                except BufferError:
                    self._producer.poll(0.1)
                else:
                    self._producer.poll(0)
                    return

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is not None:
            self._abort()
            return
        with self._failing():
            self._commit()

    def _commit(self) -> None:
        while True:
            try:
                self._producer.commit_transaction(TELL_SECONDS)
            except KafkaException as error:
                if not error.args[0].retriable():
                    self._abort()
                    raise
                say("the brokers have not confirmed all of it yet; waiting for them")
            except KeyboardInterrupt:
                say("the brokers were confirming it: a node that begins with the topic shows whether it counts")
                raise
            else:
                return

    def _abort(self) -> None:
        say("nothing was imported; what was written counts for nobody")
        with contextlib.suppress(KafkaException):
            self._producer.abort_transaction(self._brokers.patience)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Say why the brokers do not take it."""
        try:
            yield
        except KafkaException as error:
            reason = self._brokers.denied or error.args[0].str()
            raise Failed(f"Kafka at {self._brokers.address} does not take it: {reason}. {AGAIN}") from None


AGAIN = "Make a new topic (`logstep kafka create-topic`) and import into that"
