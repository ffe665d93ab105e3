"""The life of an id: what an event, a label or a prediction is to what its id stands for."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np

from core import logistic
from core.batch import EXPIRED, JOINED, LATE, Batch
from core.builder import check_label
from core.features import EventError, Features, X, flatten
from core.fingerprints import fingerprints, label_fingerprints
from service import errors
from service.events import Event, Label
from service.learning.draft import Draft, Known, Place
from service.learning.model import Prediction
from service.learning.request import Item
from service.replies import PredictedKept
from service.storage.ids import DROPPED, WAITING
from service.storage.waiting import KnownId, OldWaiting, Waiting


def place_item(draft: Draft, item: Item, known: Known) -> Place | PredictedKept:
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
        raise errors.IdConflict(
            field="id", id=event.id, seq=found.seq, reason=_LEARNED.format(f"before, at seq {found.seq},")
        )
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
            raise errors.IdConflict(field="id", id=id_, seq=found.seq, reason=reason)
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
        raise errors.IdConflict(field="id", id=label.id, seq=found.seq, reason=reason)
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
