"""What one turn of the writer will commit to one model, and the replies to its requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from core import logistic
from core.batch import Batch, Served, fingerprints, label_fingerprints
from core.builder import BatchBuilder
from core.learner import Outcome as Steps
from service import errors
from service.learning.model import Model
from service.learning.request import (
    Duplicate,
    Kept,
    LateLabel,
    Learned,
    NotLearned,
    Refused,
    Request,
    Result,
    Run,
    Stream,
)
from service.storage.id_pieces import EventIds
from service.storage.ids import IdKind, IdRow
from service.storage.store import ModelBatch
from service.storage.waiting import KnownId, Reading, Waiting
from service.table import Table
from service.texts import Texts

JOINED_BYTES = 16 << 20
"""About how much one turn reads of what its ids stand for: as much as the text of an array may have."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is on disk under the ids of a turn, by (model key, id).

    all_of_them: whether all ids were looked up; else ids that are not here are assumed to be new. ids: what each stands
    for. expired: events learned as 0 at the timeout, which a late label corrects, with the time they were written.
    gone: ids whose event is no longer in the log. reading: bounds what is read for one turn.
    """

    all_of_them: bool
    ids: dict[tuple[int, str], KnownId] = field(default_factory=dict)
    expired: dict[tuple[int, str], tuple[float, Batch]] = field(default_factory=dict)
    gone: set[tuple[int, str]] = field(default_factory=set)
    reading: Reading = field(default_factory=lambda: Reading(JOINED_BYTES))

    def readable(self, request: Request, model: int) -> int:
        """How many of a request's items come before the first whose id was not read; `model`: the model's key."""
        items, unread = request.items, self.reading.unread
        ids = (items.ids or ()) if isinstance(items, Table) else (item.id for item in items)
        return next((i for i, id_ in enumerate(ids) if (model, id_) in unread), len(items))


Place = int | Duplicate | NotLearned | Kept
"""What an item is before the steps: a new event by its place in the batch, or what became of the item already."""
Places = Sequence[Place] | range
"""A range holds the places of a table's events."""


@dataclass(slots=True)
class Draft:
    """What a turn will commit to one model.

    ids: the ids of its events, with their places in the batch. served: by place, what was served for an event, as
    (kind, score, delay in seconds, label). kept: predictions to keep, by id. done: numbers of predictions that no
    longer wait. dropped: number and id of predictions whose label did not come. known: which of these ids stood for
    something before. answers: for each request the places of its items, and what was refused of it.
    """

    model: Model
    builder: BatchBuilder
    now: int
    """Microseconds since 1970."""
    first_seq: int = field(init=False)
    """The seq of its first event."""
    last_seq: int | None = None
    """The seq of the last event that the breaker allows the request that is being added; None for any."""
    ids: dict[str, int] = field(default_factory=dict)
    tables: list[tuple[Texts, range]] = field(default_factory=list)
    """The ids of each table that it takes whole, with their places in the batch."""
    served: dict[int, tuple[IdKind, float, float, int]] = field(default_factory=dict)
    kept: dict[str, Waiting] = field(default_factory=dict)
    done: list[int] = field(default_factory=list)
    dropped: list[tuple[int, str | None]] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    answers: list[tuple[Request, Places, Refused | None]] = field(default_factory=list)
    broken: set[Stream] = field(default_factory=set)
    """Streams with an event that is refused in this turn."""
    wide: bool = False
    """Whether it is so large that work on all of it must run in a thread."""
    unsure: bool = False
    """Whether an answer depends on an id that was not looked up and that the commit does not check."""

    def __post_init__(self) -> None:
        self.first_seq = self.model.last_seq + 1

    @property
    def next_seq(self) -> int:
        return self.first_seq + len(self.builder)

    def has_room_for(self, request: Request) -> bool:
        """Whether the model's breaker has seen enough to say which of these events are learned. An array is learned
        whole if its first event is."""
        watch = self.model.watch
        if watch is None:
            return True
        count = 1 if request.stream is None else len(request.items)
        return self.next_seq + count - 1 <= self.model.learner.seq + watch.breaker.events

    def has_due(self, request: Request) -> bool:
        """Whether a prediction times out before a record of a topic, by the time of that."""
        if request.place is None:
            return False
        due = self.model.next_timeout
        if self.kept:
            due = min(due, self.first_kept_at + self.model.learner.spec.join.keep_seconds)
        return due <= request.place.at / 1e6

    @property
    def first_kept_at(self) -> float:
        """When the first of its predictions was kept, in seconds since 1970. Records of a topic have times of their
        own, so that may be before `now`."""
        return (next(iter(self.kept.values())).kept_at if self.kept else self.now) / 1e6

    def check_learns(self) -> None:
        """Raise LearningStopped if the breaker stops the model before the next event. Duplicates are still answered."""
        if self.last_seq is not None and self.next_seq > self.last_seq:
            raise why_stopped(self.model)

    @property
    def key(self) -> int:
        return self.model.stored.key

    def takes_whole(self, table: Table, known: Known) -> bool:
        """Whether the events of a table need not be looked at one by one. They must if one may be known, if the breaker
        may stop the model at one, or if one has weight 0 and is not learned."""
        ids = table.ids is None or (isinstance(table.ids, Texts) and not known.all_of_them)
        return ids and self.model.stops_at is None and (table.weights is None or bool(table.weights.all()))

    def has_id_of(self, request: Request, known: Known) -> bool:
        """Whether it already has an item with one of the request's ids. The ids of a table that is taken whole
        count as new: if it has an event with one, the commit finds out."""
        if not (self.ids or self.tables or self.kept):
            return False
        guessed = isinstance(request.items, Table) and self.takes_whole(request.items, known)
        if guessed and not (self.kept or self.known):  # an id in either stands for something in this draft
            return False
        if ids := request.ids():
            self._look_at_tables()
        return not (self.ids.keys().isdisjoint(ids) and self.kept.keys().isdisjoint(ids))

    def _look_at_tables(self) -> None:
        """Move the ids of tables to `ids`. If one comes twice, the commit could no longer find out: the turn must
        be taken again."""
        count = len(self.ids) + sum(len(ids) for ids, _ in self.tables)
        for ids, places in self.tables:
            self.ids.update(zip(ids, places, strict=True))
        self.tables.clear()
        self.unsure = self.unsure or len(self.ids) < count

    def mark(self) -> tuple[Any, ...]:
        """Its current state, for `take_back`."""
        return self.builder.mark(), len(self.ids), len(self.served), len(self.kept), len(self.done)

    def take_back(self, mark: tuple[Any, ...]) -> None:
        """Remove everything added since `mark`, in time proportional to that."""
        builder, ids, served, kept, done = mark
        self.builder.take_back(builder)
        entries: dict[Any, Any]
        for entries, before in ((self.ids, ids), (self.served, served), (self.kept, kept)):
            while len(entries) > before:
                entries.popitem()  # the newest
        del self.done[done:]

    def build(self) -> Batch:
        """The events as arrays."""
        batch = self.builder.build()
        if not self.served:
            return batch
        n = len(batch)
        served = Served(np.zeros(n, np.uint8), np.zeros(n), np.zeros(n))
        for place, entry in self.served.items():
            served.kinds[place], served.scores[place], served.delays[place], _ = entry
        return replace(batch, served=served)

    def to_store(self, batch: Batch) -> ModelBatch:
        """The draft in the form that the store commits."""
        ids = self._new_ids(batch) if self.ids or self.tables else None
        changed: Sequence[IdRow] = ()
        if ids is not None and self.known:
            ids, changed = self._parted(ids)
        names = self.builder.new_names()
        return ModelBatch(
            self.key, self.first_seq, batch, self.builder.first_feature, names, ids, changed,
            list(self.kept.values()), self.done, self.dropped, self.known,
        )  # fmt: skip

    def _new_ids(self, batch: Batch) -> EventIds:
        """The ids of the events, and what they stand for. Works by columns: a stream has thousands in a turn."""
        texts = [Texts.of(list(self.ids))] if self.ids else []
        at = [np.fromiter(self.ids.values(), np.int64, len(self.ids))]
        for ids, of_table in self.tables:
            texts.append(ids)
            at.append(np.arange(of_table.start, of_table.stop))
        places = np.concatenate(at)
        labels = label_fingerprints(batch.labels, batch.weights)[places]
        return EventIds(Texts.joined(texts), self.first_seq + places, fingerprints(batch)[places], labels)

    def _parted(self, ids: EventIds) -> tuple[EventIds, list[IdRow]]:
        """The ids that are new, and those that stood for something before."""
        rows = [
            (id_, seq, mark, self.kind(seq - self.first_seq), label)
            for id_, seq, mark, label in zip(ids.ids, *(column.tolist() for column in ids[1:]), strict=True)
        ]
        new = np.flatnonzero([id_ not in self.known for id_ in ids.ids])
        fresh = EventIds(ids.ids.take(new), *(column[new] for column in ids[1:]))
        return fresh, [row for row in rows if row[0] in self.known]

    def kind(self, place: int) -> IdKind:
        """What an event of this draft is."""
        return self.served[place][0] if place in self.served else IdKind.LEARNED

    def results(self, outcome: Steps) -> list[tuple[Request, Result]]:
        """What became of each request, given the outcome of the steps."""
        results: list[tuple[Request, Result]] = []
        p: list[float] = []
        loss: list[float | None] = []
        for request, places, refused in self.answers:
            if isinstance(places, range):  # a table's
                of_table = slice(places.start, places.stop)
                run = Run(self.first_seq + places.start, outcome.losses[of_table], outcome.learned[of_table])
                results.append((request, [run] if refused is None else [run, refused]))
                continue
            if not p:
                probabilities, losses = outcome.assess()
                p, loss, taken = probabilities.tolist(), losses.tolist(), outcome.learned.tolist()
                if not all(taken):  # numpy's `all` takes 2 us, and each batch may have one event
                    loss = [one if stepped else None for one, stepped in zip(loss, taken, strict=True)]
            result: Result = []
            for place in places:
                if isinstance(place, int):
                    late = self._late_label(place) if self.served else None
                    result.append(Learned(self.first_seq + place, p[place], loss[place], late))
                    continue
                result.append(place)
                if isinstance(place, Duplicate):
                    self.model.count_known(duplicate=True)
                elif isinstance(place, Kept):
                    self.model.count_known(duplicate=place.duplicate, kept=place.kept)
            if refused is not None:
                result.append(refused)
            results.append((request, result))
        return results

    def _late_label(self, place: int) -> LateLabel | None:
        if place not in self.served:
            return None
        kind, score, delay, y = self.served[place]
        return LateLabel(logistic.sigmoid(score), logistic.log_loss(score, y), delay, kind == IdKind.LATE)

    def give_up(self, error: errors.LogstepError) -> None:
        """Refuse all requests with this error, except those that are refused whole for an error of their own."""
        for request, _, refused in self.answers:
            request.refuse(error if refused is None or request.stream is not None else refused.error)


def why_stopped(model: Model) -> errors.LearningStopped:
    """The error for learning on a model that its breaker has stopped."""
    assert model.watch is not None and model.watch.passed_at is not None  # noqa: S101, PT018  # it is stopped
    breaker, seq = model.watch.breaker, model.watch.passed_at
    return errors.LearningStopped(model=model.name, seq=seq, events=breaker.events, limit=breaker.log_loss)
