"""What one turn of the writer will commit to one model, and the replies to its requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any

import numpy as np

from core import logistic
from core.batch import LATE, ORDINARY, Batch, Served
from core.builder import BatchBuilder
from core.fingerprints import fingerprints, label_fingerprints
from core.learner import Outcome
from service import errors
from service.learning.model import Model
from service.learning.request import LateLabel, Request, Result, Run, Stream
from service.replies import PredictedKept
from service.storage.ids import IdRow
from service.storage.store import ModelBatch
from service.storage.waiting import KnownId, Reading, Waiting
from service.table import Table

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


def why_stopped(model: Model) -> errors.LearningStopped:
    """The error for learning on a model that its breaker has stopped."""
    assert model.watch is not None and model.watch.stopped_at is not None  # noqa: S101, PT018  # it is stopped
    breaker, seq = model.watch.breaker, model.watch.stopped_at
    return errors.LearningStopped(model=model.name, seq=seq, events=breaker.events, limit=breaker.log_loss)


def _losses(outcome: Outcome) -> list[float | None]:
    """The log losses, None if the step was not taken."""
    losses: list[float | None] = list(outcome.losses.tolist())
    learned = outcome.learned.tolist()  # numpy's `all` takes 2 us, and each batch may have one event
    if all(learned):
        return losses
    return [loss if taken else None for loss, taken in zip(losses, learned, strict=True)]
