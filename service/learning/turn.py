"""One turn of the writer: makes arrays to commit from the waiting requests, and their replies.

It refuses invalid events, labels and predictions before anything is changed. It answers items that were learned or kept
before under the same id as duplicates.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np

from core import logistic
from core.features import (
    EXPIRED,
    JOINED,
    LATE,
    ORDINARY,
    Batch,
    BatchBuilder,
    EventError,
    Features,
    Mask,
    Served,
    X,
    check_label,
    fingerprints,
    flatten,
    label_fingerprints,
)
from core.learner import Outcome
from core.logistic import Floats
from service import errors
from service.decode.table import Table
from service.decode.wire import Event, Label, PredictedKept
from service.learning.model import Model, Prediction
from service.storage.ids import DROPPED, WAITING, IdRow
from service.storage.log import Waiting
from service.storage.store import KnownId, ModelBatch, OldWaiting, Reading

Item = Event | Label | Prediction
"""What a request asks to learn, or to keep until its label comes."""
JOINED_BYTES = 16 << 20
"""About how much one turn reads of what its ids stand for: as much as the text of an array may have."""
Items = Sequence[Item] | Table
"""A table has only events."""


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


class Run(NamedTuple):
    """The result of a table: the seq of its first event, the log losses before the steps, and which steps were
    taken."""

    first_seq: int
    losses: Floats
    taken: Mask


class LateLabel(NamedTuple):
    """What a joined label shows: p and log loss as served, and the seconds from the prediction to the label. late:
    whether it came after the timeout."""

    served_p: float
    served_loss: float
    delay_s: float
    late: bool


@dataclass(slots=True)
class Result:
    """The result of one request.

    `seq`, `p`, `loss` and `duplicate` have an entry for each answered event or label. `late_labels` has one for each
    that was joined to a prediction, by its place. `predicted` has one for each prediction. `run` is the result of a
    table. Only a request of a stream can have both an `error` and entries: those of the items before the refused one.
    The result is empty if an earlier request of the stream was refused.
    """

    seq: list[int] = field(default_factory=list)
    p: list[float | None] = field(default_factory=list)
    loss: list[float | None] = field(default_factory=list)
    duplicate: list[bool] = field(default_factory=list)
    late_labels: dict[int, LateLabel] = field(default_factory=dict)
    predicted: list[PredictedKept] = field(default_factory=list)
    run: Run | None = None
    error: errors.LogstepError | None = None


@dataclass(slots=True, eq=False)
class Stream:
    """Shared by the requests of one stream. After a refused event, the service learns nothing more of the stream."""

    broken: bool = False


@dataclass(slots=True, eq=False)
class Request:
    """Items that wait for the writer. It takes all or none; of a stream, those before the first that it refuses."""

    model: str
    items: Items
    stream: Stream | None
    answer: asyncio.Future[Result]
    rest: Request | None = None
    """The items that were cut off."""

    def cut(self, count: int) -> Request:
        """Keep the first `count` items; the rest as a request for a later turn. Both together get one answer."""
        loop, answer = self.answer.get_loop(), self.answer
        items = self.items.events(0, len(self.items)) if isinstance(self.items, Table) else self.items
        self.answer, self.items = loop.create_future(), items[:count]
        self.rest = Request(self.model, items[count:], self.stream, loop.create_future())
        asyncio.gather(self.answer, self.rest.answer).add_done_callback(partial(_settle, answer))
        return self.rest

    def refuse(self, error: errors.LogstepError) -> None:
        """Answer with an error, unless already answered."""
        if self.rest is not None:
            self.rest.refuse(error)
        if self.stream is not None:
            self.stream.broken = True
        if not self.answer.done():
            self.answer.set_exception(error)

    def ids(self, *, labels_alone: bool = False) -> list[str]:
        """The ids of its items, or only those of labels without x, which must already stand for something."""
        if isinstance(self.items, Table):
            return [] if labels_alone or self.items.ids is None else self.items.ids  # type: ignore[return-value]
        if labels_alone:
            return [item.id for item in self.items if isinstance(item, Label)]
        return [item.id for item in self.items if item.id is not None]

    def accept(self, result: Result) -> None:
        """Answer, unless already answered."""
        if not self.answer.done():
            self.answer.set_result(result)


def _settle(answer: asyncio.Future[Result], parts: asyncio.Future[list[Result]]) -> None:
    """Answer a request that was cut in two, when both parts are answered."""
    if answer.done():
        return
    error = parts.exception()
    if error is None:
        answer.set_result(_joined_results(*parts.result()))
    else:
        answer.set_exception(error)


def _joined_results(first: Result, second: Result) -> Result:
    """What became of the items of a request that was cut in two."""
    before = len(first.seq) + len(first.predicted)
    if second.error is not None:
        second.error.index += before
    return Result(
        first.seq + second.seq,
        first.p + second.p,
        first.loss + second.loss,
        first.duplicate + second.duplicate,
        first.late_labels | {before + i: label for i, label in second.late_labels.items()},
        first.predicted + second.predicted,
        error=first.error or second.error,
    )


Place = tuple[bool, int]
"""(False, place in the batch) for a new event, (True, seq) for one that was learned before."""
Places = Sequence[Place | PredictedKept] | range
"""A range holds the places of a table's events."""


@dataclass(slots=True)
class Draft:
    """What a turn will commit to one model.

    ids: the ids of its events, with their places in the batch. served: by place, what was served for an event, as
    (kind, score, delay in seconds, label). kept: predictions to keep, by id. done: numbers of predictions that no
    longer wait. dropped: number and id of predictions whose label did not come. known: which of these ids stood for
    something before. answers: for each request the places of its events, or its predictions, and the error. refused:
    requests that are refused whole.
    """

    model: Model
    builder: BatchBuilder
    now: int
    """Microseconds since 1970."""
    first_seq: int = field(init=False)
    """The seq of its first event."""
    ids: dict[str, int] = field(default_factory=dict)
    served: dict[int, tuple[int, float, float, int]] = field(default_factory=dict)
    kept: dict[str, Waiting] = field(default_factory=dict)
    done: list[int] = field(default_factory=list)
    dropped: list[tuple[int, str | None]] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    answers: list[tuple[Request, Places, errors.LogstepError | None]] = field(default_factory=list)
    refused: list[tuple[Request, errors.LogstepError]] = field(default_factory=list)
    broken: set[Stream] = field(default_factory=set)
    """Streams with an event that is refused in this turn."""
    wide: bool = False
    """Whether it is so large that work on all of it must run in a thread."""
    unsure: bool = False
    """Whether an answer depends on an id that was not looked up and that the commit does not check."""

    def __post_init__(self) -> None:
        self.first_seq = self.model.last_seq + 1

    @property
    def full(self) -> bool:
        """Whether the model's breaker must see these events before more are committed."""
        breaker = self.model.learner.spec.breaker
        return breaker is not None and len(self.builder) >= breaker.events

    def check_learns(self, known: Known) -> None:
        """Raise LearningStopped if the model is stopped. Duplicates are still answered, so ids must be looked up."""
        if self.model.stopped:
            self.unsure = self.unsure or not known.all_of_them
            raise why_stopped(self.model)

    @property
    def key(self) -> int:
        return self.model.stored.key

    def has_id_of(self, request: Request) -> bool:
        """Whether it already has an item with one of the request's ids."""
        if not (self.ids or self.kept):
            return False
        ids = request.ids()
        return not (self.ids.keys().isdisjoint(ids) and self.kept.keys().isdisjoint(ids))

    def mark(self) -> tuple[Any, ...]:
        """Its current state, for `take_back`."""
        return self.builder.mark(), len(self.ids), len(self.served), len(self.kept), len(self.done)

    def take_back(self, mark: tuple[Any, ...]) -> None:
        """Remove everything added since `mark`."""
        builder, ids, served, kept, done = mark
        self.builder.take_back(builder)
        self.ids = dict(list(self.ids.items())[:ids])
        self.served = dict(list(self.served.items())[:served])
        self.kept = dict(list(self.kept.items())[:kept])
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
        ids = self._new_ids(batch) if self.ids else []
        fresh = ids if not self.known else [new for new in ids if new[0] not in self.known]
        changed = () if not self.known else [new for new in ids if new[0] in self.known]
        names = self.builder.new_names()
        return ModelBatch(
            self.key, self.first_seq, batch, self.builder.first_feature, names, fresh, changed,
            list(self.kept.values()), self.done, self.dropped, self.known,
        )  # fmt: skip

    def _new_ids(self, batch: Batch) -> list[IdRow]:
        """The ids of the events, and what they stand for. Works by columns: a stream has thousands in a turn."""
        places = np.fromiter(self.ids.values(), np.int64, len(self.ids))
        kinds: Iterable[int] = repeat(ORDINARY)
        if self.served:
            kinds = [self.served[place][0] if place in self.served else ORDINARY for place in self.ids.values()]
        seqs, marks = (self.first_seq + places).tolist(), fingerprints(batch)[places].tolist()
        labels = label_fingerprints(batch.labels, batch.weights)[places].tolist()
        return list(zip(self.ids, seqs, marks, kinds, labels, strict=False))

    @property
    def empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not (len(self.builder) or self.kept or self.dropped)

    def results(self, outcome: Outcome) -> list[tuple[Request, Result]]:
        """The result of each request, given the outcome of the steps."""
        results: list[tuple[Request, Result]] = []
        p: list[float] = []
        loss: list[float | None] = []
        for request, places, error in self.answers:
            result = Result(error=error)
            results.append((request, result))
            if isinstance(places, range):  # a table's
                of_table = slice(places.start, places.stop)
                result.run = Run(self.first_seq + places.start, outcome.losses[of_table], outcome.learned[of_table])
                continue
            if not p:
                p, loss = outcome.probabilities.tolist(), _losses(outcome)
            for i, place in enumerate(places):
                if isinstance(place, PredictedKept):
                    result.predicted.append(place)
                    self.model.not_kept += not place.kept
                    self.model.duplicates += place.duplicate
                    continue
                duplicate, at = place
                self.model.duplicates += duplicate
                result.seq.append(at if duplicate else self.first_seq + at)
                result.p.append(None if duplicate else p[at])
                result.loss.append(None if duplicate else loss[at])
                result.duplicate.append(duplicate)
                if self.served and not duplicate and at in self.served:
                    result.late_labels[i] = self._late_label(at)
        return results

    def _late_label(self, place: int) -> LateLabel:
        kind, score, delay, y = self.served[place]
        return LateLabel(logistic.sigmoid(score), logistic.log_loss(score, y), delay, kind == LATE)

    def refuse(self) -> None:
        """Answer the refused requests. Only after the commit: until then the turn may run again with all ids looked
        up."""
        for request, error in self.refused:
            request.refuse(error)

    def give_up(self, error: errors.LogstepError) -> None:
        """Answer all other requests with an error."""
        for request, _, _ in self.answers:
            request.refuse(error)

    def results_from_memory(self) -> list[tuple[Request, Result]]:
        """The results of predictions to answer before the commit, if the spec says so (join.ack)."""
        results: list[tuple[Request, Result]] = []
        if self.model.learner.spec.join.ack == "memory":
            for request, places, error in self.answers:
                predicted = [place for place in places if isinstance(place, PredictedKept)]
                if predicted:
                    results.append((request, Result(predicted=predicted, error=error)))
        return results


def why_stopped(model: Model) -> errors.LearningStopped:
    """The error for learning on a model that its breaker has stopped."""
    assert model.watch is not None  # noqa: S101  # it is stopped
    breaker = model.watch.breaker
    told = {"seq": model.watch.stopped_at, "events": breaker.events, "limit": breaker.log_loss}
    return errors.LearningStopped(model=model.name, **told)


def _losses(outcome: Outcome) -> list[float | None]:
    """The log losses, None if the step was not taken."""
    losses: list[float | None] = list(outcome.losses.tolist())
    learned = outcome.learned.tolist()  # numpy's `all` takes 2 us, and each batch may have one event
    if all(learned):
        return losses
    return [loss if taken else None for loss, taken in zip(losses, learned, strict=True)]


# -- what the requests ask for

ITEM = 4
"""The fixed cost of an item, in features."""
TABLE = 64
"""Values of a table that cost as much as one feature of an event: they are copied as arrays. A table of 8,192 rows of
10 features takes a tenth of a millisecond, less than the hops to threads and back that long work takes."""


def work_of(request: Request, model: int, known: Known) -> int:
    """The cost of drafting a request, in features, about. `model`: the model's key."""
    items = request.items
    if isinstance(items, Table):
        return items.values.size // TABLE + ITEM * len(items.ids or ())
    work = ITEM * len(items)
    for item in items:
        if not isinstance(item, Label):
            work += len(item.x)
        elif (found := known.ids.get((model, item.id))) is not None and found.waiting is not None:
            work += len(found.waiting.x)
    return work


def draft_request(draft: Draft, request: Request, known: Known) -> None:
    """Add a request's items to the draft. If one is refused, add none; of a stream, add those before it."""
    items = request.items
    if request.stream is not None and (request.stream.broken or request.stream in draft.broken):
        draft.answers.append((request, (), None))
    elif not isinstance(items, Table):
        _add_items(draft, request, items, known)
    elif draft.model.stopped or (items.ids is not None and (known.all_of_them or len(set(items.ids)) < len(items))):
        _add_items(draft, request, items.events(0, len(items)), known)  # checks each, because one may be known
    else:
        places, refusal = _add_table(draft.builder, items)
        if items.ids is not None:
            draft.ids.update(zip(items.ids, places, strict=False))  # type: ignore[arg-type]  # each has one, see Table
            draft.unsure = draft.unsure or refusal is not None
        _answer(draft, request, places, refusal)


def _answer(draft: Draft, request: Request, places: Places, refusal: errors.LogstepError | None) -> None:
    draft.answers.append((request, places, refusal))
    if refusal is not None and request.stream is not None:
        draft.broken.add(request.stream)


def _add_table(builder: BatchBuilder, table: Table) -> tuple[range, errors.LogstepError | None]:
    """The places of a table's events and None; or those of the events before the first invalid one, and its error."""
    start = len(builder)
    try:
        builder.add_table(*table.arrays())
    except EventError as error:
        builder.add_table(*table.part(0, error.row).arrays())
        refusal = errors.InvalidEvent(field=error.field, reason=error.message)
        refusal.index = error.row
        return range(start, start + error.row), refusal
    return range(start, start + len(table)), None


def _add_items(draft: Draft, request: Request, items: Sequence[Item], known: Known) -> None:
    mark = draft.mark()
    places: list[Place | PredictedKept] = []
    refusal: errors.LogstepError | None = None
    try:
        for item in items:
            places.append(_place(draft, item, known))
    except EventError as error:
        refusal = errors.InvalidEvent(field=error.field, reason=error.message)
    except errors.LogstepError as error:
        refusal = error
    if refusal is not None:
        refusal.index = len(places)
        draft.unsure = draft.unsure or not known.all_of_them
        if request.stream is None:
            draft.take_back(mark)
            draft.refused.append((request, refusal))
            return
    _answer(draft, request, places, refusal)


def _place(draft: Draft, item: Item, known: Known) -> Place | PredictedKept:
    if isinstance(item, Prediction):
        return _keep(draft, item, known)
    if item.id is not None:
        check_label(item.y, item.weight)
        found = known.ids.get((draft.key, item.id))
        if item.id in draft.ids:  # from this request: others with this id are deferred to the next turn
            return _learned_here(draft, item)
        if isinstance(item, Label):
            return _join(draft, item, found, known)
        if found is not None:
            if found.kind != DROPPED:
                return _learned_before(draft, item, found, known)
            draft.known.add(item.id)
    draft.check_learns(known)
    draft.builder.add(item.x, item.y, item.weight)
    place = len(draft.builder) - 1
    if item.id is not None:
        draft.ids[item.id] = place
    return False, place


def _learned_here(draft: Draft, item: Event | Label) -> Place:
    """An event or label with the id of an earlier one in its request: a duplicate or a conflict."""
    place = draft.ids[item.id]  # type: ignore[index]  # it has an id
    event = draft.builder.event(place)
    same = (event.labels[0], event.weights[0]) == (item.y, item.weight)
    if same and isinstance(item, Event):
        same = _fingerprint(draft.builder.features, item) == fingerprints(event)[0]
    if not same:
        raise errors.IdConflict(field="id", id=item.id, reason=_LEARNED.format("earlier in the same body"))
    return True, draft.first_seq + place


_LEARNED = "was learned {} with another x, y or weight"


def _learned_before(draft: Draft, event: Event, found: KnownId, known: Known) -> Place:
    """An event with x whose id already stands for something."""
    assert event.id is not None  # noqa: S101  # by the caller
    if found.kind == WAITING:
        if same_x(_waiting_x(event.id, found), event.x):
            return _join(draft, Label(event.id, event.y, event.weight), found, known)
        reason = "waits for its label with another x; send the label without x"
        raise errors.IdConflict(field="id", id=event.id, reason=reason)
    features = draft.model.learner.features
    if found.kind == EXPIRED and _fingerprint(features, Event(event.x, 0)) == found.fingerprint:
        return _join(draft, Label(event.id, event.y, event.weight), found, known)
    if _fingerprint(features, event) != found.fingerprint:
        raise errors.IdConflict(field="id", id=event.id, reason=_LEARNED.format(f"before, at seq {found.seq},"))
    return True, found.seq


def _fingerprint(features: Features, event: Event) -> int | None:
    """The fingerprint of an event, None if the model cannot have learned it before."""
    admitted = features.admitted(event.x)
    return None if admitted is None else int(fingerprints(Batch.of_one(admitted, event.y, event.weight))[0])


def same_x(a: X, b: X) -> bool:
    """Whether two x have the same features, in any order and any spelling.

    >>> same_x({"vip": True, "age": 31}, {"age": 31.0, "vip": 1}), same_x([1.0], {"0": 2.0})
    (True, False)
    """
    return dict(zip(*flatten(a), strict=True)) == dict(zip(*flatten(b), strict=True))


# -- predictions, and the labels that come later


def _keep(draft: Draft, prediction: Prediction, known: Known) -> PredictedKept:
    """Keep a prediction until its label comes. If it already waits, give the same answer again."""
    id_, model = prediction.id, draft.model
    found = known.ids.get((draft.key, id_))
    waiting = draft.kept.get(id_)
    if found is not None:
        draft.known.add(id_)
    if waiting is None and found is not None and found.kind != DROPPED:
        if found.kind != WAITING:
            reason = f"was learned before, at seq {found.seq}: a prediction needs a new id"
            raise errors.IdConflict(field="id", id=id_, reason=reason)
        _waiting_x(id_, found)
        waiting = found.waiting
    if waiting is not None:
        if not same_x(waiting.x, prediction.x):
            raise errors.IdConflict(field="id", id=id_, reason="waits for its label with another x")
        p = logistic.sigmoid(float(waiting.served[0]))
        return PredictedKept(model.name, p, p > 0.5, waiting.seq, waiting.unknown, kept=True, duplicate=True)
    kept = model.waiting + len(draft.kept) - len(draft.done) < model.learner.spec.join.max_waiting
    if kept:
        number = model.next_number + len(draft.kept)
        made = (prediction.seq, prediction.served, prediction.x, prediction.unknown, prediction.owner)
        draft.kept[id_] = Waiting(number, id_, draft.now, *made)
    elif not known.all_of_them:
        draft.unsure = True
    p = logistic.sigmoid(float(prediction.served[0]))
    return PredictedKept(model.name, p, p > 0.5, prediction.seq, prediction.unknown, kept=kept, duplicate=False)


def _join(draft: Draft, label: Label, found: KnownId | None, known: Known) -> Place:
    """Learn a label with the x kept under its id."""
    if found is None:
        raise errors.UnknownId(field="id", id=label.id)
    if found.kind == DROPPED:
        raise errors.DroppedId(field="id", id=label.id, keep=draft.model.learner.spec.join.keep)
    if found.kind == WAITING:
        draft.check_learns(known)
        draft.builder.add(_waiting_x(label.id, found), label.y, label.weight)
        assert found.waiting is not None  # noqa: S101  # _waiting_x has checked it
        draft.done.append(found.waiting.number)
        return _joined(draft, label, JOINED, found.waiting)
    if found.kind == EXPIRED:
        if draft.model.learner.spec.join.late == "refuse":
            raise errors.ExpiredId(field="id", id=label.id, keep=draft.model.learner.spec.join.keep, seq=found.seq)
        if label.y and (draft.key, label.id) in known.gone:
            raise errors.EventGone(field="id", id=label.id, seq=found.seq)
        if label.y:
            draft.check_learns(known)
            return _correct(draft, label, known.expired.get((draft.key, label.id)))
        return True, found.seq  # label 0, as the timeout assumed
    mark = label_fingerprints(np.array([label.y], np.uint8), np.array([label.weight]))[0]
    if found.label != mark:
        reason = f"was learned before, at seq {found.seq}, with another y or weight"
        raise errors.IdConflict(field="id", id=label.id, reason=reason)
    return True, found.seq


def _correct(draft: Draft, label: Label, logged: tuple[float, Batch] | None) -> Place:
    """One more step, with y = 1, for an event that was learned as 0 at the timeout."""
    if logged is None or logged[1].served is None:
        raise errors.PredictionDamaged(field="id", id=label.id)
    written_at, batch = logged
    draft.builder.add_again(batch, label.y, label.weight)
    served = batch.served
    assert served is not None  # noqa: S101  # checked above
    kept_at = int((written_at - float(served.delays[0])) * 1e6)
    return _joined(draft, label, LATE, Waiting(0, label.id, kept_at, 0, served.scores, {}))


def _joined(draft: Draft, label: Label, kind: int, waiting: Waiting) -> Place:
    place = len(draft.builder) - 1
    draft.ids[label.id] = place
    draft.known.add(label.id)
    delay = max(0, draft.now - waiting.kept_at) / 1e6
    draft.served[place] = kind, float(waiting.served[0]), delay, int(label.y)
    return False, place


def _waiting_x(id_: str, found: KnownId) -> X:
    if found.waiting is None:
        raise errors.PredictionDamaged(field="id", id=id_)
    return found.waiting.x


def draft_timeouts(draft: Draft, oldest: Sequence[OldWaiting]) -> None:
    """Learn predictions whose labels did not come in time as y = 0, or drop them, as the spec says.

    It also drops a prediction that cannot be learned: the model has no room for its features, or it is damaged on disk.
    """
    for old in oldest:
        if old.waiting is not None and draft.model.learner.spec.join.on_timeout == "negative":
            with contextlib.suppress(EventError):
                draft.builder.add(old.waiting.x, 0)
                draft.done.append(old.number)
                _joined(draft, Label(old.waiting.id, 0), EXPIRED, old.waiting)
                continue
        draft.dropped.append((old.number, old.id))
