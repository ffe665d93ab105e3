"""The life of an id: what happens to an item, by what its id stands for. `decide` is this table as a function.

    stands for   event                       label                       prediction                   timeout
    new          learn                       404 unknown                 keep                         -
    waiting      same x: join, else 409      join                        same x: duplicate, else 409  expire or drop
    joined       same: duplicate, else 409   same: duplicate, else 409   409                          -
    learned      same: duplicate, else 409   same: duplicate, else 409   409                          -
    expired      same x: like its label,     late: 404, or               409                          -
                 else 409                    0: duplicate, 1: correct
    late         same: duplicate, else 409   same: duplicate, else 409   409                          -
    dropped      learn                       404 dropped                 keep                         -
    forgotten    learn                       404 unknown                 keep                         -

learned: an event came whole. joined: a label came for the waiting prediction. expired: none came in time, and the event
was learned as 0. late: a label came later still, and corrected that. The model's `join` says whether a timeout expires
or drops, and whether a late label is refused or corrects. forgotten: it stood for an event, and retention dropped it.

An event is the same if x, y and weight are; a label, if y and weight are. What is damaged on disk is refused, and
dropped at its timeout. To a token that may only predict, what waits for another token has another x.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple

import numpy as np

from core import logistic
from core.batch import Batch, fingerprints, label_fingerprints
from core.builder import check_label
from core.features import EventError, Features, X, flatten
from core.spec import Join
from service import errors
from service.events import Event, Label
from service.learning.draft import Draft, Known, Place
from service.learning.model import Prediction
from service.learning.request import Duplicate, Item, Kept, NotLearned
from service.storage.ids import IdKind
from service.storage.waiting import KnownId, OldWaiting, Waiting


class Do(Enum):
    """What to do with an item that is not refused."""

    LEARN = auto()
    JOIN = auto()
    """Learn the label with the x that waits."""
    CORRECT = auto()
    """Take one more step, with y = 1, for an event that was learned as 0."""
    KEEP = auto()
    DUPLICATE = auto()
    """Answer as before."""
    EXPIRE = auto()
    """Learn the waiting prediction as 0."""
    DROP = auto()


class Found(NamedTuple):
    """What an id stands for, and how the item that comes with it compares.

    kind: None for a new id. seq: the seq of its event. here: whether that is earlier in the same request. same_x:
    whether the item's x is that of the waiting prediction or of the expired event. same: whether the event or label is
    that which was learned. whole: whether the disk has the waiting prediction, or the event to correct, undamaged.
    gone: whether retention dropped that event.
    """

    kind: IdKind | None = None
    seq: int = 0
    here: bool = False
    same_x: bool = False
    same: bool = False
    whole: bool = True
    gone: bool = False


NEW = Found()


def decide(found: Found, item: Item | None, join: Join) -> Do | errors.LogstepError:
    """What to do with an item that has an id, or why it is refused. `item` is None at the timeout of a prediction."""
    if item is None:
        return Do.EXPIRE if join.on_timeout == "negative" and found.whole else Do.DROP
    match found.kind:
        case None | IdKind.DROPPED | IdKind.FORGOTTEN:
            return _of_nothing(found, item, join)
        case IdKind.WAITING:
            return _of_waiting(found, item)
        case IdKind.EXPIRED if isinstance(item, Label) or (found.same_x and isinstance(item, Event)):
            return _of_expired(found, item, join)
        case _:
            return _of_learned(found, item)


def _of_nothing(found: Found, item: Item, join: Join) -> Do | errors.LogstepError:
    if not isinstance(item, Label):
        return Do.KEEP if isinstance(item, Prediction) else Do.LEARN
    if found.kind is not IdKind.DROPPED:
        return errors.UnknownId(field="id", id=item.id)
    return errors.DroppedId(field="id", id=item.id, keep=join.keep)


def _of_waiting(found: Found, item: Item) -> Do | errors.LogstepError:
    if not found.whole:
        return errors.PredictionDamaged(field="id", id=item.id)
    if isinstance(item, Label):
        return Do.JOIN
    if found.same_x:
        return Do.JOIN if isinstance(item, Event) else Do.DUPLICATE
    better = "; send the label without x" if isinstance(item, Event) else " or for another token"
    return _conflict(item, f"waits for its label with another x{better}")


def _of_expired(found: Found, label: Event | Label, join: Join) -> Do | errors.LogstepError:
    if join.late == "refuse":
        return errors.ExpiredId(field="id", id=label.id, keep=join.keep, seq=found.seq)
    if not label.y:
        return Do.DUPLICATE  # the timeout assumed it
    if found.gone:
        return errors.EventGone(field="id", id=label.id, seq=found.seq)
    return Do.CORRECT if found.whole else errors.PredictionDamaged(field="id", id=label.id)


def _of_learned(found: Found, item: Item) -> Do | errors.LogstepError:
    if isinstance(item, Prediction):
        return _conflict(item, f"was learned before, at seq {found.seq}: a prediction needs a new id", found.seq)
    if found.same:
        return Do.DUPLICATE
    which = "y or weight" if isinstance(item, Label) else "x, y or weight"
    if found.here:
        return _conflict(item, f"was learned earlier in the same body with another {which}")
    return _conflict(item, f"was learned before, at seq {found.seq}, with another {which}", found.seq)


def _conflict(item: Item, reason: str, seq: int | None = None) -> errors.IdConflict:
    assert item.id is not None  # noqa: S101  # only an item with an id has a life
    return errors.IdConflict(field="id", id=item.id, seq=seq, reason=reason)


# -- what is found under an id


def _found(draft: Draft, item: Item, known: Known) -> Found:
    assert item.id is not None  # noqa: S101  # by the caller
    if item.id in draft.ids:
        return _found_here(draft, item, draft.ids[item.id])
    if item.id in draft.kept:
        return Found(IdKind.WAITING, same_x=_asks_the_same(draft.kept[item.id], item))
    on_disk = known.ids.get((draft.key, item.id))
    return NEW if on_disk is None else _found_on_disk(draft, item, on_disk, known)


def _found_on_disk(draft: Draft, item: Item, on_disk: KnownId, known: Known) -> Found:
    kind, seq, features = on_disk.kind, on_disk.seq, draft.builder.features
    if kind is IdKind.WAITING:
        waiting = on_disk.waiting
        return Found(kind, same_x=waiting is not None and _asks_the_same(waiting, item), whole=waiting is not None)
    if kind in (IdKind.DROPPED, IdKind.FORGOTTEN) or isinstance(item, Prediction):
        return Found(kind, seq)
    if kind is IdKind.EXPIRED:
        key = draft.key, str(item.id)
        logged = known.expired.get(key)
        whole = logged is not None and logged[1].served is not None
        same = isinstance(item, Event) and _fingerprint(features, Event(item.x, 0)) == on_disk.fingerprint
        return Found(kind, seq, same_x=same, whole=whole, gone=key in known.gone)
    if isinstance(item, Label):
        mark = label_fingerprints(np.array([item.y], np.uint8), np.array([item.weight]))[0]
        return Found(kind, seq, same=on_disk.label == mark)
    return Found(kind, seq, same=_fingerprint(features, item) == on_disk.fingerprint)


def _found_here(draft: Draft, item: Item, place: int) -> Found:
    """The id came earlier in the same request. Requests with an id of an earlier one wait for a later turn."""
    kind, seq = draft.kind(place), draft.first_seq + place
    if isinstance(item, Prediction):
        return Found(kind, seq, here=True)
    event = draft.builder.event(place)
    same = (event.labels[0], event.weights[0]) == (item.y, item.weight)
    if same and isinstance(item, Event):
        same = _fingerprint(draft.builder.features, item) == fingerprints(event)[0]
    return Found(kind, seq, here=True, same=same)


def _asks_the_same(waiting: Waiting, item: Item) -> bool:
    """Whether an item has the x of a waiting prediction. What another token asked for counts as another x: else a token
    that may only predict could find out what waits for others, by trying."""
    if isinstance(item, Label) or (isinstance(item, Prediction) and not item.may_see(waiting)):
        return False
    return same_x(waiting.x, item.x)


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


# -- what is done


def place_item(draft: Draft, item: Item, known: Known) -> Place:
    """Add an item to the draft. Raises why it is refused; the draft may then be half changed (`take_back`)."""
    if item.id is None or (not isinstance(item, Prediction) and item.weight == 0):
        return _learn(draft, item)
    if not isinstance(item, Prediction):
        check_label(item.y, item.weight)
    found = _found(draft, item, known)
    do = decide(found, item, draft.model.learner.spec.join)
    if not isinstance(do, Do):
        raise do
    on_disk = known.ids.get((draft.key, item.id))
    if do is Do.DUPLICATE and not isinstance(item, Prediction):
        return Duplicate(found.seq)
    if do is not Do.DUPLICATE and on_disk is not None:
        draft.known.add(item.id)
    if isinstance(item, Prediction):
        return _keep(draft, item, known, duplicate=do is Do.DUPLICATE)
    if do is Do.LEARN:
        place = _learn(draft, item)
        assert isinstance(place, int)  # noqa: S101  # its weight is not 0
        draft.ids[item.id] = place
        return place
    draft.check_learns()
    if do is Do.CORRECT:
        return _correct(draft, item, *known.expired[draft.key, item.id])
    assert on_disk is not None and on_disk.waiting is not None  # noqa: S101, PT018  # `_found` has seen it
    return _join(draft, on_disk.waiting, item.y, item.weight, IdKind.JOINED)


def _learn(draft: Draft, event: Item) -> int | NotLearned:
    assert not isinstance(event, Prediction)  # noqa: S101  # it has an id, and is kept
    if event.weight == 0:
        return _check(draft, event)
    assert isinstance(event, Event)  # noqa: S101  # a label has an id
    draft.check_learns()
    draft.builder.add(event.x, event.y, event.weight)
    return len(draft.builder) - 1


def _check(draft: Draft, item: Event | Label) -> NotLearned:
    """Check an item of weight 0 as if it were learned. A prediction under its id goes on waiting."""
    draft.check_learns()
    if isinstance(item, Label):
        check_label(item.y, 1.0)
        return NotLearned()
    mark = draft.builder.mark()
    draft.builder.add(item.x, item.y)
    draft.builder.take_back(mark)
    return NotLearned()


def _join(draft: Draft, waiting: Waiting, y: float, weight: float, kind: IdKind) -> int:
    """Learn a waiting prediction with this label."""
    draft.builder.add(waiting.x, y, weight)
    draft.done.append(waiting.number)
    return _served(draft, waiting.id, kind, float(waiting.served[0]), waiting.kept_at, y)


def _correct(draft: Draft, label: Event | Label, written_at: float, logged: Batch) -> int:
    assert label.id is not None and logged.served is not None  # noqa: S101, PT018  # `_found` has seen it
    draft.builder.add_again(logged, label.y, label.weight)
    kept_at = int((written_at - float(logged.served.delays[0])) * 1e6)
    return _served(draft, label.id, IdKind.LATE, float(logged.served.scores[0]), kept_at, label.y)


def _served(draft: Draft, id_: str, kind: IdKind, score: float, kept_at: int, y: float) -> int:
    """The newest event was served as a prediction with this id and score. Returns its place."""
    place = draft.ids[id_] = len(draft.builder) - 1
    draft.known.add(id_)
    draft.served[place] = kind, score, max(0, draft.now - kept_at) / 1e6, int(y)
    return place


def _keep(draft: Draft, prediction: Prediction, known: Known, *, duplicate: bool) -> Kept:
    """Keep a prediction until its label comes, unless too many wait. A duplicate is answered as when it was kept."""
    model, waiting, kept = draft.model, draft.kept.get(prediction.id), True
    if duplicate:
        waiting = waiting or known.ids[draft.key, prediction.id].waiting
    elif model.waiting + len(draft.kept) - len(draft.done) < model.learner.spec.join.max_waiting:
        number = model.next_number + len(draft.kept)
        made = (prediction.seq, prediction.served, prediction.x, prediction.unknown, prediction.owner)
        draft.kept[prediction.id] = Waiting(number, prediction.id, draft.now, *made)
    else:
        kept = False
        draft.unsure = draft.unsure or not known.all_of_them
    told = waiting or prediction
    p = logistic.sigmoid(float(told.served[0]))
    return Kept(model.name, p, p > 0.5, told.seq, told.unknown, kept=kept, duplicate=duplicate)


def draft_timeouts(draft: Draft, oldest: Sequence[OldWaiting]) -> None:
    """Learn predictions whose labels did not come in time as y = 0, or drop them, as the table says.

    It also drops a prediction that cannot be learned because the model has no room for its features.
    """
    join = draft.model.learner.spec.join
    for old in oldest:
        found = Found(IdKind.WAITING, whole=old.waiting is not None)
        if decide(found, None, join) is Do.EXPIRE and old.waiting is not None:
            with contextlib.suppress(EventError):
                _join(draft, old.waiting, 0, 1.0, IdKind.EXPIRED)
                continue
        draft.dropped.append((old.number, old.id))
