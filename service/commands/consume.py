"""Reads somebody's own Kafka topic and sends its records to a running service, each of them once.

A record's id is the topic's UUID, its partition and its offset, unless it has an id of its own. Records are read in
batches; a batch is committed to the group when the service has answered for all of it. After a crash of either side the
last records are sent again, and the service knows their ids.

A record that can be no event is counted, logged with its offset, and left out. With `strict` it ends the command, and
is not committed.
"""

from __future__ import annotations

import itertools
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from service.children import stop_signals
from service.commands.client import Client, Refused
from service.commands.files import kinds_to_keep, show_columns
from service.commands.kafka import Record, Topic
from service.commands.replay import Replay
from service.commands.rows import Row
from service.commands.tally import Options, Tally
from service.commands.targets import Target
from service.commands.terminal import Failed, WrongUsage, number, say
from service.events import NO_ID, is_id
from service.rows.columns import NOTHING_KEPT, Kept
from service.rows.formats import Format
from service.rows.readers import MOST_BYTES, ONE_OBJECT, Looked
from service.rows.reading import LOOK, How
from service.rows.wrong import WrongOption, WrongRow

POLL_SECONDS = 0.5
REPORT_SECONDS = 10.0
FEWEST_FIRST = 10
"""A new model's columns are decided by at least so many records, or --look."""
FIRST_WRONG = 100
"""If so many records of a new group can be no events, and none was one, the command was called wrongly."""
OF_ONE_EVENT = ("invalid-event", "id-conflict", "malformed-json", "line-too-long")
"""Refusals of the service that are about one record, whatever comes after it."""

Wrong = Callable[[int, int, str], None]
"""Gets the partition and the offset of a record that can be no event, and the reason."""


class WrongRecord(Failed):
    """A record that can be no event, which ends a strict run."""

    exit_code = 3

    def __init__(self, message: str, partition: int, offset: int) -> None:
        super().__init__(message)
        self.place = partition, offset


class _Stopped(Exception):
    """A signal came while the service was waited for."""


class Signals:
    """Whether a signal has asked for the end. The second one ends the process as it does without us."""

    def __init__(self) -> None:
        self.came: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.came is not None

    @contextmanager
    def handled(self) -> Iterator[Signals]:
        before = {each: signal.signal(each, self._take) for each in (signal.SIGINT, *stop_signals())}
        try:
            yield self
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _take(self, which: int, _: FrameType | None) -> None:
        self.came = signal.Signals(which)
        for each in (signal.SIGINT, *stop_signals()):
            signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)

    def sleep(self, seconds: float) -> None:
        """Sleep, and raise _Stopped as soon as a signal has come."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self:
            time.sleep(min(left, 0.1))
        if self:
            raise _Stopped


class Sender(Replay):
    """Sends rows to the model. A row's number is its partition, its line the offset."""

    def __init__(
        self,
        client: Client,
        target: Target,
        options: Options,
        signals: Signals,
        wrong: Wrong,
    ) -> None:
        super().__init__(client, target, options, Tally())
        self._signals = signals
        self._wrong = wrong

    def _part(self, done: int, refusal: Refused, piece: Sequence[Row]) -> int:
        """The rows before a refused one, and that one, which is left out."""
        if refusal.kind not in OF_ONE_EVENT or done != refusal.line - 1 or refusal.line > len(piece):
            return super()._part(done, refusal, piece)
        row = piece[done]
        self._wrong(row.number, row.line, str(refusal).removeprefix(f"line {refusal.line}: "))
        return done + 1

    def _pause(self, seconds: float) -> None:
        self._signals.sleep(seconds)


class Reading:
    """Makes events of a topic's records.

    how: what their fields are; without a label they are events as one would POST. kept: the kinds that the model keeps.
    needs_id: whether each event must have an id of its own. wrong: gets partition, offset and reason of what can be no
    event.
    """

    def __init__(self, topic: Topic, how: How, kept: Kept, needs_id: bool, wrong: Wrong) -> None:
        self.labels = how.labels(topic.name, say)
        self.reader = how.reader(Format("ndjson"), kept, self.labels, say)
        self.reader.look(iter(()), Looked(0, regular=False))
        self.tombstones = 0
        """Records without a value."""
        self._topic, self._needs_id, self._wrong = topic, needs_id, wrong

    def row(self, record: Record) -> Row | None:
        """The row of a record; None if it is no event."""
        partition, offset, value = record
        if value is None:
            self.tombstones += 1
            return None
        try:
            return self._row(partition, offset, value)
        except WrongRow as error:
            self._wrong(partition, offset, str(error).removesuffix(ONE_OBJECT))
            return None

    def _row(self, partition: int, offset: int, value: bytes) -> Row | None:
        if value.startswith(b"\0"):
            raise WrongRow("it begins with a zero byte, as a schema registry's Avro does; only plain JSON can be read")
        found = next(self.reader.records(iter((value,))), None)
        if found is None:
            raise WrongRow("it is empty")
        event = self.reader.event(found[1])
        if event is None:
            return None
        if event.id is None:
            if self._needs_id:
                raise WrongRow("it has no id")
            event.id = f"{self._topic.id}:{partition}:{offset}"
        elif not is_id(event.id):
            raise WrongRow(f"its id {NO_ID}")
        return Row(partition, offset, event)


class Consumption:
    """Sends a topic to a model until a signal comes."""

    def __init__(
        self,
        topic: Topic,
        how: How,
        client: Client,
        target: Target,
        options: Options,
        signals: Signals,
        *,
        needs_id: bool,
        strict: bool,
    ) -> None:
        self._topic, self._how, self._signals = topic, how, signals
        self._batch, self._needs_id, self._strict = options.batch, needs_id, strict
        self._sender = Sender(client, target, options, signals, self._leave_out)
        self._model_is_new = False
        self._left_out = 0
        self._first: deque[tuple[list[Record], dict[int, int]]] = deque()
        """Batches that were read to decide the kinds of fields."""
        self._said, self._say_at = "", 0.0

    def run(self) -> None:
        """Send records. Returns when a signal has come and the current batch is committed."""
        try:
            reading = self._prepared()
            while not self._signals:
                self._take(reading, *(self._first.popleft() if self._first else self._read()))
                self._report(reading)
        except _Stopped:
            return
        self._report(reading, last=True)
        for told in (reading.labels.never_came(), reading.labels.only_one()):
            if told:
                say(told)

    def _read(self) -> tuple[list[Record], dict[int, int]]:
        return self._topic.read(self._batch, POLL_SECONDS)

    # -- before the first record is sent

    def _prepared(self) -> Reading:
        """Make the model if it does not exist, and find how records are read: as the model keeps its fields. So a
        record is the same event in every run."""
        sender, how = self._sender, self._how
        kept = sender.kept()
        if not sender.is_there and how.label is not None and not kept.kinds:
            sender.kinds = self._looked()
        self._model_is_new = not sender.is_there
        try:
            say(sender.prepare())
        except Refused as refusal:
            if not self._model_is_new or refusal.kind != "spec-conflict":
                raise
            self._model_is_new = False  # another member of the group has made it meanwhile
            say(sender.prepare())
        kept = sender.kept() if how.label is not None else NOTHING_KEPT
        reading = Reading(self._topic, how, kept, self._needs_id, self._leave_out)
        has_id = self._needs_id or any(column.kind == "id" for column in reading.reader.columns)
        if not self._topic.id and not has_id:
            raise WrongUsage(
                f"the brokers have no id for the topic {self._topic.name} (Kafka has ids since 2.8). Without it, a "
                "partition and an offset do not name a record for ever: --id-field FIELD names an id in the records"
            )
        return reading

    def _looked(self) -> dict[str, str] | None:
        """Read the first records, decide the kinds of their fields, and check the labels. None if another member of the
        group makes the model meanwhile; one without a partition waits for that."""
        look = self._how.look or LOOK
        fewest = min(look, FEWEST_FIRST)
        wrong: list[str] = []
        first = Reading(self._topic, self._how, NOTHING_KEPT, False, lambda *where: wrong.append(_place(*where)))
        values: list[bytes] = []
        size, told = 0, False
        while len(values) < look and size < MOST_BYTES and not (self._topic.caught_up and len(values) >= fewest):
            if self._signals:
                raise _Stopped
            self._first.append(self._read())
            records, _ = self._first[-1]
            if not records:
                self._sender.kept()
                if self._sender.is_there:
                    return None
            values += [record.value for record in records if record.value is not None and first.row(record) is not None]
            size += sum(len(record.value or b"") for record in records)
            if not values and len(wrong) >= FIRST_WRONG:
                raise WrongUsage(_none_is_an_event(len(wrong), self._topic.name, wrong[-1]))
            if self._topic.caught_up and len(values) < fewest and not told:
                told = True
                say(f"{len(values)} record(s) have come; the first {fewest} decide how fields are read (--look N)")
        first.labels.looked()
        reader = self._how.reader(Format("ndjson"), NOTHING_KEPT, first.labels, say)
        reader.look(iter(values), Looked(look, regular=True))
        show_columns(self._topic.name, reader.columns, min(look, len(values)))
        return kinds_to_keep(reader.columns)

    # -- one batch

    def _take(self, reading: Reading, records: Sequence[Record], ends: Mapping[int, int]) -> None:
        """Send records, and commit them."""
        rows: list[Row] = []
        stop: WrongRecord | None = None
        try:
            for record in records:
                if (row := reading.row(record)) is not None:
                    rows.append(row)
        except WrongRecord as wrong:
            stop = wrong
        try:
            self._sender.take(rows)
            if stop is not None:
                raise stop
        except WrongRecord as stopped:
            place = stopped.place
            self._topic.commit(_after(itertools.takewhile(lambda record: record[:2] != place, records)))
            raise
        if self._topic.is_new and self._left_out and not self._sender.tally.events:
            if self._left_out >= FIRST_WRONG:
                raise WrongUsage(_none_is_an_event(self._left_out, self._topic.name, "see above"))
            return  # not committed: the command may be called wrongly, and is corrected
        self._topic.commit({**_after(records), **ends})
        if records and self._model_is_new and not self._topic.is_new:
            say(
                f"the model {self._sender.model} is new, but the group {self._topic.group} had read of "
                f"{self._topic.name} before. The model does not learn that part; --group with a new name reads it all"
            )
        self._model_is_new = self._model_is_new and not records

    def _leave_out(self, partition: int, offset: int, reason: str) -> None:
        """Count and log a record that can be no event; raises WrongRecord if strict."""
        place = f"{self._topic.name} {_place(partition, offset, reason)}"
        if self._strict:
            raise WrongRecord(
                f"{place.rstrip('.')}. --strict stops here; what came before is learned", partition, offset
            )
        self._left_out += 1
        say(f"{place.rstrip('.')}; left out")

    def _report(self, reading: Reading, *, last: bool = False) -> None:
        """Say what has been done, and the lag, every REPORT_SECONDS if it has changed."""
        now = time.monotonic()
        if now < self._say_at and not last:
            return
        tally, lag = self._sender.tally, self._topic.lag()
        if lag is None and not last:
            return
        counts = {
            "learned": tally.learned,
            "known before": tally.duplicates,
            "left out": self._left_out,
            "without a label": reading.labels.missing,
            "without a value": reading.tombstones,
        }
        told = ", ".join(f"{number(count)} {what}" for what, count in counts.items() if count or what == "learned")
        behind = f"lag {sum(lag.values()):,} record(s) in {len(lag)} partition(s)" if lag else "no partition"
        if lag is None:
            behind = "lag unknown"
        if (line := f"{self._topic.name}: {told}; {behind}") != self._said or last:
            say(f"ended. {line}" if last else line)
            self._said, self._say_at = line, now + REPORT_SECONDS


def _after(records: Iterable[Record]) -> dict[int, int]:
    """For each partition, the offset after the last of these records."""
    return {record.partition: record.offset + 1 for record in records}


def _place(partition: int, offset: int, reason: str) -> str:
    return f"partition {partition} offset {offset}: {reason}"


def _none_is_an_event(count: int, name: str, example: str) -> str:
    return (
        f"none of the first {count:,} records of {name} is an event ({example}). Nothing is committed. Mend the flags, "
        "or begin after these records: --from TIME"
    )


def consume(
    topic: Topic,
    how: How,
    client: Client,
    target: Target,
    options: Options,
    *,
    needs_id: bool,
    strict: bool,
    signals: Signals,
) -> int:
    """Send a topic's records to a model until a signal comes. Returns the exit code."""
    client.alive()  # once, without retries: people should see at once that there is no service
    try:
        Consumption(topic, how, client, target, options, signals, needs_id=needs_id, strict=strict).run()
    except WrongOption as error:
        raise WrongUsage(str(error)) from None
    return 130 if signals.came == signal.SIGINT else 0
