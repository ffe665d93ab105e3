"""The records of a topic that is a log: what each changes, and how it is written.

A record's key is the model, and its partition follows from the key as Kafka's own clients compute it. Its headers say
what to do (`do`), whom to answer (`re`), and which stream a piece belongs to (`stream`). Its value is what one would
POST; pieces of streams are columns.

    do       value
    learn    an event or label, or an array of them: all or none
    part     the same, a piece of a stream: up to the first that is refused
    table    a piece of a stream in columns, as msgpack
    keep     predictions to keep until their labels come, all or none, as msgpack
    kept     the same, a piece of a stream
    put      a spec: create the model
    delete, resume      nothing
    logged   a part of another log, as msgpack: events, ids, predictions that wait (replica/logged.py)
    forget   up to which seq ids of events and events are forgotten, as JSON (storage/forgotten.py)
    tick     a time has passed at which a prediction is due, or digests to compare (replica/digests.py)
    begin    the first record of partition 0: the rules of the log (replica/rules.py)
"""

from __future__ import annotations

import zlib
from enum import Enum
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from core import features
from core.builder import Words
from service.decode import event_json
from service.events import Event, Features, Label, is_id
from service.learning.model import Prediction
from service.learning.request import Items
from service.table import Table
from service.texts import Texts


class Do(Enum):
    """What a record is for, as its header says it."""

    LEARN = b"learn"
    PART = b"part"
    TABLE = b"table"
    KEEP = b"keep"
    KEPT = b"kept"
    PUT = b"put"
    DELETE = b"delete"
    RESUME = b"resume"
    LOGGED = b"logged"
    FORGET = b"forget"
    TICK = b"tick"
    BEGIN = b"begin"


OF_STREAMS = {Do.PART, Do.TABLE, Do.KEPT}
OF_ITEMS = {Do.LEARN, Do.KEEP, *OF_STREAMS}


class Record(NamedTuple):
    """A record as it was read. at: when the broker appended it, in microseconds since 1970. do, re, stream: its
    headers, empty where it has none."""

    partition: int
    offset: int
    at: int
    key: bytes
    do: bytes
    re: bytes
    stream: bytes
    value: bytes

    @property
    def mark(self) -> int:
        """CRC-32 of the record without its place. Of two topics, the records at one place have different ones."""
        mark = 0
        for part in (self.key, self.do, self.re, self.stream, self.value):
            mark = zlib.crc32(part, zlib.crc32(len(part).to_bytes(8, "little"), mark))
        return mark


class PoisonError(ValueError):
    """A record that says nothing a node could do. It is counted and left out."""


# -- items


_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Kept(msgspec.Struct, array_like=True):
    id: str
    x: Any
    seq: _Count
    served: bytes
    unknown: _Count
    owner: str
    sees_all: bool


class _Columns(msgspec.Struct, array_like=True):
    rows: int
    names: list[str]
    values: bytes
    present: bytes | None
    labels: bytes
    weights: bytes | None
    ids: list[str] | None
    texts: dict[int, tuple[bytes, list[str]]]


_any_model = features.Features()
"""Checks values; what a model has room for, the model checks."""
_json, _pack = msgspec.json.Encoder(), msgspec.msgpack.Encoder()
_kept, _columns = msgspec.msgpack.Decoder(list[_Kept]), msgspec.msgpack.Decoder(_Columns)


def encode(items: Items, stream: bool) -> tuple[Do, bytes]:
    """What to do with items, and their bytes."""
    if isinstance(items, Table):
        return Do.TABLE, _pack.encode(_columns_of(items))
    if items and isinstance(items[0], Prediction):
        kept = [
            _Kept(one.id, one.x, one.seq, one.served.tobytes(), one.unknown, one.owner, one.sees_all)
            for one in items
            if isinstance(one, Prediction)
        ]
        return (Do.KEPT if stream else Do.KEEP), _pack.encode(kept)
    if stream or len(items) != 1:
        return (Do.PART if stream else Do.LEARN), _json.encode(items)
    return Do.LEARN, _json.encode(items[0])


def decode(do: Do, value: bytes) -> Items:
    """The items of a record. Raises PoisonError, or what is wrong with one."""
    try:
        if do is Do.TABLE:
            return _table_of(_columns.decode(value))
        if do in (Do.KEEP, Do.KEPT):
            return [_prediction_of(one) for one in _kept.decode(value)]
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise PoisonError(str(error)) from None
    if event_json.is_array(value):
        return _items_of(event_json.Elements(value))
    return [event_json.decode_learn(value)]


def _prediction_of(one: _Kept) -> Prediction:
    served = np.frombuffer(one.served)
    _any_model.flat(msgspec.convert(one.x, Features))
    if not is_id(one.id) or not len(served):
        raise PoisonError("it is no prediction that could be kept")
    return Prediction(one.id, one.x, one.seq, served, one.unknown, one.owner, one.sees_all)


def _items_of(elements: event_json.Elements) -> list[Event | Label]:
    items: list[Event | Label] = []
    for i in range(len(elements)):
        for element in elements.piece(i):
            items.append(event_json.decode_learn(element, f"[{len(items)}]"))
    return items


def _columns_of(table: Table) -> _Columns:
    table = table.coded()
    if table.labels is None or isinstance(table.ids, list):
        raise TypeError("these rows have no labels, or some of them no ids")
    optional = (table.present, table.labels, table.weights)
    present, labels, weights = (None if array is None else array.tobytes() for array in optional)
    assert labels is not None  # noqa: S101  # looked at above
    texts = {j: (words.codes.tobytes(), words.words) for j, words in table.texts.items()}
    ids = None if table.ids is None else table.ids.tolist()
    return _Columns(len(table), table.names, table.values.tobytes(), present, labels, weights, ids, texts)


def _table_of(columns: _Columns) -> Table:
    """Copies, because what is learned must own its memory."""
    shape = columns.rows, len(columns.names)

    def array(data: bytes | None, kind: type[np.generic]) -> Any:
        return None if data is None else np.frombuffer(data, kind).copy()

    values, present = array(columns.values, np.float64), array(columns.present, np.bool_)
    texts = {j: Words(array(codes, np.int32), words) for j, (codes, words) in columns.texts.items()}
    table = Table(
        1, columns.names, values.reshape(shape), None if present is None else present.reshape(shape),
        array(columns.labels, np.uint8), array(columns.weights, np.float64),
        None if columns.ids is None else Texts.of(columns.ids), texts,
    )  # fmt: skip
    rows = [len(part) for part in (table.labels, table.weights, table.ids) if part is not None]
    rows += [len(words.codes) for words in texts.values()]
    if any(count != columns.rows for count in rows):
        raise PoisonError("its columns have different lengths")
    if not all(map(is_id, columns.ids or ())) or len(set(table.names)) < len(table.names):
        raise PoisonError("its names or ids are not those of a table")
    there = bool(table.names) if table.present is None else table.present.any(axis=1).all()
    if columns.ids is not None and not there:
        raise PoisonError("a row has an id and no features")
    heavy = table.weights is None or (table.weights > 0).all()
    if table.labels is None or (table.labels > 1).any() or not heavy:
        raise PoisonError("a label is neither 0 nor 1, or a weight is not above 0")
    for j, words in texts.items():
        codes, known = words.codes, len(words.words)
        if not 0 <= j < len(table.names) or (len(codes) and not -1 <= codes.min() <= codes.max() < known):
            raise PoisonError("a column of text has codes without words")
    return table


# -- partitions


@lru_cache(maxsize=16_384)
def partition_of(key: bytes, partitions: int) -> int:
    """The partition of a key, as Kafka's Java client computes it: murmur2 without its sign, modulo the partitions.

    >>> partition_of(b"default", 64), partition_of(b"clicks", 64)
    (43, 52)
    """
    return (murmur2(key) & 0x7FFFFFFF) % partitions


def murmur2(data: bytes) -> int:
    """Austin Appleby's MurmurHash2 with Kafka's seed (org.apache.kafka.common.utils.Utils.murmur2).

    >>> murmur2(b"21") & 0x7FFFFFFF == -973932308 & 0x7FFFFFFF  # a value of Kafka's own test
    True
    """
    m, word = 0x5BD1E995, 0xFFFFFFFF
    h = (0x9747B28C ^ len(data)) & word
    whole = len(data) // 4 * 4
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & word
        h = h * m & word ^ ((k ^ k >> 24) * m & word)
    if len(data) > whole:
        h = (h ^ int.from_bytes(data[whole:], "little")) * m & word
    h = (h ^ h >> 13) * m & word
    return h ^ h >> 15
