"""What a turn of the writer makes of the requests that wait: arrays to commit, and who is to be told what.

Events that cannot be learned are refused here, before anything is changed; an event whose id was learned before is
answered as a duplicate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from core.features import Batch, BatchBuilder, EventError, Features, check_label, fingerprints
from service import errors
from service.model import Model
from service.store import ModelBatch, NewId
from service.wire import Event

Known = dict[tuple[int, str], tuple[int, int]]
"""(model key, event id) -> (seq, fingerprint)"""


@dataclass(slots=True)
class Result:
    """What became of the events of one request.

    `seq`, `p`, `loss` and `duplicate` have an entry for each event that was answered. Only a request that is not
    `atomic` can have an `error` and entries as well: those of the events before the one that was refused.
    """

    seq: list[int] = field(default_factory=list)
    p: list[float | None] = field(default_factory=list)
    loss: list[float | None] = field(default_factory=list)
    duplicate: list[bool] = field(default_factory=list)
    error: errors.OnestepError | None = None


@dataclass(slots=True, eq=False)
class Request:
    """Events that wait to be learned. Atomic: all or none of them; else those before the first that is refused."""

    model: str
    events: Sequence[Event]
    atomic: bool
    answer: asyncio.Future[Result]

    def refuse(self, error: errors.OnestepError) -> None:
        """Answer with an error, unless it was answered before."""
        if not self.answer.done():
            self.answer.set_exception(error)


@dataclass(slots=True)
class Draft:
    """What a turn will commit to one model. `places[i]` says for event i of a request where it stands in the batch, or,
    for a duplicate, its seq."""

    model: Model
    builder: BatchBuilder
    ids: dict[str, int] = field(default_factory=dict)
    answers: list[tuple[Request, list[tuple[bool, int]], errors.OnestepError | None]] = field(default_factory=list)

    @property
    def first_seq(self) -> int:
        return self.model.learner.seq + 1

    def to_store(self, batch: Batch) -> ModelBatch:
        """The draft as the store takes it."""
        ids: list[NewId] = []
        if self.ids:
            marks = fingerprints(batch).tolist()
            ids = [NewId(id_, self.first_seq + place, marks[place]) for id_, place in self.ids.items()]
        names = self.builder.new_names()
        return ModelBatch(self.model.stored.key, self.first_seq, batch, self.builder.first_feature, names, ids)


def draft_request(draft: Draft, request: Request, known: Known) -> None:
    """Add a request's events to the draft; where one cannot be learned, none of them, or those before it."""
    mark, ids = draft.builder.mark(), len(draft.ids)
    places: list[tuple[bool, int]] = []
    refusal: errors.OnestepError | None = None
    try:
        for event in request.events:
            places.append(_place(draft, request, event, known))
    except EventError as error:
        refusal = errors.InvalidEvent(field=error.field, reason=error.message)
    except errors.IdConflict as error:
        refusal = error
    if refusal is not None:
        refusal.index = len(places)
        if request.atomic:
            draft.builder.take_back(mark)
            draft.ids = dict(list(draft.ids.items())[:ids])
            request.refuse(refusal)
            return
    draft.answers.append((request, places, refusal))


def _place(draft: Draft, request: Request, event: Event, known: Known) -> tuple[bool, int]:
    """(False, place in the batch) of an event, or (True, its seq) of one that was learned before."""
    if event.id is not None:
        check_label(event.y, event.weight)
        before = known.get((draft.model.stored.key, event.id))
        if before is not None:
            seq, fingerprint = before
            if _fingerprint(draft.model.learner.features, event) != fingerprint:
                raise errors.IdConflict(field="id", id=event.id, before=f"before, at seq {seq},")
            return True, seq
        if event.id in draft.ids:  # of this request: others with this id were put off to the next turn
            first = next(other for other in request.events if other.id == event.id)
            if (first.x, first.y, first.weight) != (event.x, event.y, event.weight):
                raise errors.IdConflict(field="id", id=event.id, before="earlier in the same body")
            return True, draft.first_seq + draft.ids[event.id]
    draft.builder.add(event.x, event.y, event.weight)
    place = len(draft.builder) - 1
    if event.id is not None:
        draft.ids[event.id] = place
    return False, place


def _fingerprint(features: Features, event: Event) -> int | None:
    """The fingerprint of an event, None if it has features that the model does not know."""
    columns, values = features.encode(event.x)
    if -1 in columns:
        return None
    batch = Batch(
        np.array([0, len(columns)], np.int64),
        np.array(columns, np.int32),
        np.array(values, np.float64),
        np.array([event.y], np.uint8),
        np.array([event.weight], np.float64),
    )
    return int(fingerprints(batch)[0])
