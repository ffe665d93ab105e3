"""Parts of a folder's log as records: what `logstep kafka import` writes, and what a node makes of them.

A node puts them into its own log as they are, and takes the steps. So the events keep their seq, their ids stand for
what they stood for, and nothing is checked against limits that came after them. For each model come, in this order: a
`put`, unless it is the model `default`; its feature names; its events, with a `resume` where a stopped model learned
again; the ids of events; the other ids; the predictions that wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Annotated, NamedTuple, TypeVar

import msgspec
import numpy as np

from core.batch import Batch
from core.features import MAX_FLOAT, MAX_NAME, check_name
from service.events import DEFAULT, is_id
from service.learning.model import Model
from service.replica.records import Do, PoisonError
from service.storage import codec
from service.storage.forgotten import NOTHING
from service.storage.id_pieces import EventIds, Piece
from service.storage.ids import KINDS, IdKind, IdRow, event_ids, other_ids
from service.storage.log import LogReader, StoredModel
from service.storage.store import ModelBatch
from service.storage.waiting import Waiting
from service.texts import Texts

T = TypeVar("T")

NAMES = 5_000
"""Feature names of a record; this and the next: at most."""
EVENTS = 10_000
VALUES = 2**18
"""Values of a record, unless a single event has more."""
IDS = 5_000
WAITING_BYTES = 1 << 20
"""Predictions that wait, in a record, about."""
HASH = "0123456789abcdef"

_Int = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Place = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Kept(msgspec.Struct, array_like=True, frozen=True):
    id: str
    kept_at: _Place
    seq: _Place
    payload: bytes


class _Logged(msgspec.Struct, array_like=True, frozen=True):
    """A part of what a log has of a model. first_seq: of the events. names: the next ones, in column order. events: a
    row of the log. event_ids: a piece of so many ids of events. ids: others, as IdRow; of predictions that wait come
    only those."""

    first_seq: _Place = 0
    events: bytes = b""
    names: tuple[str, ...] = ()
    ids_of_events: Annotated[int, msgspec.Meta(ge=0, le=2 * IDS)] = 0
    event_ids: bytes = b""
    ids: tuple[tuple[str, _Int, _Int, int, _Int | None], ...] = ()
    waiting: tuple[_Kept, ...] = ()


_encoded = msgspec.msgpack.Encoder().encode
_decoded = msgspec.msgpack.Decoder(_Logged).decode


class Written(NamedTuple):
    """A record to write, and how many events it has."""

    do: Do
    value: bytes
    events: int = 0


# -- out of a folder


def records_of(log: LogReader, model: StoredModel) -> Iterator[Written]:
    """The records that make a model anew. Raises LogDamaged."""
    if model.name != DEFAULT:  # every node has that
        yield Written(Do.PUT, msgspec.json.encode(model.spec))
    for names in _some(log.names(model.key), NAMES):
        yield _record(names=names)
    yield from _of_events(log, model.key)
    forgotten = log.forgotten.get(model.key, NOTHING).ids
    for piece in _pieces(event_ids(log.db, model.key, forgotten)):
        yield _record(ids_of_events=len(piece), event_ids=piece.encode())
    for ids in _some(other_ids(log.db, model.key, forgotten), IDS):
        yield _record(ids=ids)
    yield from _of_waiting(log, model.key)


def _record(**parts: object) -> Written:
    return Written(Do.LOGGED, _encoded(_Logged(**parts)))  # type: ignore[arg-type]  # the fields of it


def _of_events(log: LogReader, key: int) -> Iterator[Written]:
    """The events. A node counts the losses of a stopped model anew from its last resume on, as a start does; earlier
    ones change nothing then."""
    last = 0
    resumed = log.resumed(key)
    for up_to in (resumed, None):
        for batch in log.batches(key, last, up_to):
            for piece in batch.slices(EVENTS, VALUES):
                yield Written(Do.LOGGED, _encoded(_Logged(last + 1, codec.pack(piece))), len(piece))
                last += len(piece)
        if up_to:
            yield Written(Do.RESUME, b"")


def _pieces(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """The same ids in pieces of IDS."""
    some: list[Piece] = []
    for piece in pieces:
        for start in range(0, len(piece), IDS):
            some.append(piece.part(start, min(start + IDS, len(piece))))
            if sum(map(len, some)) >= IDS:
                yield Piece.joined(some)
                some = []
    if some:
        yield Piece.joined(some)


def _of_waiting(log: LogReader, key: int) -> Iterator[Written]:
    some: list[_Kept] = []
    for one in log.waiting.all(key):
        payload = codec.encode_prediction(one.served, one.x, one.unknown, one.owner)
        some.append(_Kept(one.id, one.kept_at, one.seq, payload))
        if sum(len(kept.payload) for kept in some) >= WAITING_BYTES:
            yield _record(waiting=tuple(some))
            some = []
    if some:
        yield _record(waiting=tuple(some))


def _some(items: Iterable[T], count: int) -> Iterator[tuple[T, ...]]:
    """The items, so many at a time."""
    rest = iter(items)
    while some := tuple(islice(rest, count)):
        yield some


# -- into a node


def part_of(value: bytes, model: Model) -> ModelBatch:
    """What a record adds to a model that is at the end of its log. Changes nothing. It takes long. Raises PoisonError
    if it is no part of a log, or not the next one."""
    try:
        return _part(_decoded(value), model)
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise PoisonError(f"it is no part of a log: {error}") from None


def _part(logged: _Logged, model: Model) -> ModelBatch:
    known = len(model.learner.features)
    _check_names(logged.names, model)
    batch = codec.unpack([logged.events] if logged.events else [])
    if len(batch):
        _check_events(batch, known + len(logged.names))
        if logged.first_seq != model.last_seq + 1:
            raise PoisonError(f"it begins at seq {logged.first_seq}, but the model is at {model.last_seq}")
    last = model.last_seq + len(batch)
    return ModelBatch(
        model.stored.key,
        model.last_seq + 1,
        batch,
        known,
        logged.names,
        _event_ids(logged, last),
        _other_ids(logged, last),
        [_waiting(kept, number) for number, kept in enumerate(logged.waiting, model.next_number)],
    )


def _check_names(names: tuple[str, ...], model: Model) -> None:
    features = model.learner.features
    for name in names:
        check_name(name, 2 * MAX_NAME + 1)
        if features.hashed and name.rstrip(HASH)[-1:] not in ("#", "="):
            raise PoisonError("a name is not hashed")
    if len(set(names)) < len(names) or max(features.known(names), default=-1) >= 0:
        raise PoisonError("it has a feature twice")
    if len(features) + len(names) > features.max_features:
        raise PoisonError("it has more features than the model has room for")


def _check_events(batch: Batch, features: int) -> None:
    floats = [batch.values, batch.weights, *(() if batch.served is None else batch.served[1:])]
    if not all(np.isfinite(array).all() for array in floats):
        raise PoisonError("a number is not finite")
    if not ((batch.weights > 0) & (batch.weights <= MAX_FLOAT)).all():
        raise PoisonError("a weight is not above 0")
    if len(batch.columns) and not 0 <= batch.columns.min() <= batch.columns.max() < features:
        raise PoisonError("a feature has no name")


def _event_ids(logged: _Logged, last: int) -> EventIds | None:
    if not logged.ids_of_events:
        return None
    piece = Piece.decode(logged.ids_of_events, logged.event_ids)
    if piece is None or not 1 <= piece.seqs.min() <= piece.seqs.max() <= last:
        raise PoisonError("its ids are not those of events")
    ids = piece.ids.tolist()
    if not all(map(is_id, ids)) or len(set(ids)) < len(ids):
        raise PoisonError("an id is none, or comes twice")
    return EventIds(Texts.of(ids), *piece.numbers[1:])  # what is not UTF-8 was replaced


def _other_ids(logged: _Logged, last: int) -> list[IdRow]:
    for id_, seq, _, kind, _ in logged.ids:
        if not is_id(id_) or kind not in KINDS or kind == IdKind.WAITING or not 0 <= seq <= last:
            raise PoisonError("an id stands for nothing that is")
    if len({id_ for id_, *_ in logged.ids}) < len(logged.ids):
        raise PoisonError("an id comes twice")
    return list(logged.ids)


def _waiting(kept: _Kept, number: int) -> Waiting:
    if not is_id(kept.id):
        raise PoisonError("an id is none")
    return Waiting(number, kept.id, kept.kept_at, kept.seq, *codec.decode_prediction(kept.payload))
