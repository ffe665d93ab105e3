"""Predictions that wait for their labels, and what ids stand for."""

from __future__ import annotations

import json
import logging
import sqlite3
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import msgspec

from core.features import X
from core.logistic import Floats
from service import failures
from service.storage import codec
from service.storage.database import Database
from service.storage.folder import failure_of
from service.storage.forgotten import NOTHING, Forgotten
from service.storage.ids import EVENT_KINDS, KINDS, IdKind

spared = logging.getLogger("logstep.damage")
"""For what a caller can cause as often as it likes: at most one line a second, see service/logs.py."""

IDS_AT_ONCE = 1_024
"""Ids that one query looks up. With PAYLOAD_BYTES it bounds the reply, which is one text."""
PAYLOAD_BYTES = 16_384
"""A longer payload gets its own query."""
OLDEST_BYTES = 4 << 20
"""Payloads that `oldest` reads at once, about."""
_PAYLOAD = f"CASE WHEN length(payload) <= {PAYLOAD_BYTES} THEN hex(payload) END"
_FIND = f"""
SELECT json_group_array(json_array(
    ids.id, kind, ids.seq, fingerprint, label, length(payload), kept_at, waiting.seq, {_PAYLOAD}, waiting.checksum))
FROM ids LEFT JOIN waiting ON kind = {IdKind.WAITING} AND waiting.model = ids.model AND waiting.number = ids.seq
WHERE ids.model = ?1 AND ids.id IN (SELECT value FROM json_each(?2))
"""  # noqa: S608  # numbers of ours
_OLDEST = f"""
SELECT json_group_array(json_array(
    number, hex(id), kept_at, seq, {_PAYLOAD}, checksum,
    EXISTS (SELECT 1 FROM ids WHERE model = ?1 AND id = oldest.id AND kind = {IdKind.WAITING} AND ids.seq = number)))
FROM (SELECT * FROM waiting WHERE model = ?1 ORDER BY number LIMIT ?2) AS oldest
"""  # noqa: S608  # the same
_ROW = struct.Struct("<qqqqQ")


class Waiting(NamedTuple):
    """A prediction that waits for its label.

    number: its place among all that the model kept. kept_at: microseconds since 1970. seq: the model's seq at the
    prediction. served: float64 that describe what was served, the score first (core/explain.py). x: the input. unknown:
    how many of its features the model did not know. owner: the id of the caller's token, empty if the service asks for
    none.
    """

    number: int
    id: str
    kept_at: int
    seq: int
    served: Floats
    x: X
    unknown: int = 0
    owner: str = ""


class KnownId(NamedTuple):
    """What an id stands for, as in NewId. waiting: its waiting prediction, None if there is none or it is damaged. A
    damaged kind is read as WAITING, without a prediction."""

    kind: IdKind
    seq: int
    fingerprint: int
    label: int | None
    waiting: Waiting | None


class OldWaiting(NamedTuple):
    """A prediction that may have waited too long. waiting: the prediction, None if it is damaged on disk. id: the id
    that leads to it, None if none does."""

    number: int
    id: str | None
    kept_at: int
    waiting: Waiting | None


@dataclass(slots=True)
class Reading:
    """How much may be read at once of what ids stand for. left: bytes of predictions and events that may still be read.
    unread: (model, id) of what was not read because nothing was left. The first is always read."""

    left: int
    unread: set[tuple[int, str]] = field(default_factory=set)

    def takes(self, key: tuple[int, str], size: int) -> bool:
        """Whether so many bytes may be read; if not, the id is noted as unread."""
        if self.left <= 0:
            self.unread.add(key)
            return False
        self.left -= size
        return True


def waiting_crc(model: int, number: int, id_: bytes, kept_at: int, seq: int, payload: bytes) -> int:
    """The checksum of a waiting prediction, in three calls."""
    header = _ROW.pack(model, number, kept_at, seq, len(id_))
    return zlib.crc32(payload, zlib.crc32(id_, zlib.crc32(header)))


class WaitingReader:
    """The waiting predictions of each model in a database."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def count(self, model: int) -> int:
        """How many predictions of a model wait."""
        return next(int(count) for (count,) in self._db.rows("SELECT count(*) FROM waiting WHERE model = ?", model))

    def dropped(self, model: int) -> int:
        """How many predictions of a model were dropped because they waited too long."""
        query = "SELECT number, seq, dropped_at, predictions, checksum FROM drops WHERE model = ?"
        rows = self._db.whole("the row of {3} dropped prediction(s) has a wrong checksum", query, model)
        return sum(row[3] for row in rows)

    def last_number(self, model: int) -> int:
        """The largest number of a waiting or dropped prediction, 0 without one. Numbers above it may be used again."""
        query = (
            "SELECT max(ifnull((SELECT max(number) FROM waiting WHERE model = ?1), 0), "
            "ifnull((SELECT max(number) FROM drops WHERE model = ?1), 0))"
        )
        return next(int(number) for (number,) in self._db.rows(query, model))

    def all(self, model: int) -> Iterator[Waiting]:
        """The waiting predictions of a model, the oldest first. LogDamaged if one is damaged."""
        query = "SELECT number, id, kept_at, seq, payload, checksum FROM waiting WHERE model = ? ORDER BY number"
        for row in self._db.rows(query, model):
            yield self._read(model, *row)

    def oldest(self, model: int, count: int) -> list[OldWaiting]:
        """The oldest waiting predictions, at most `count`; fewer if they are large, but at least one."""
        query = "SELECT length(payload) FROM waiting WHERE model = ? ORDER BY number LIMIT ?"
        sizes = accumulate(size for (size,) in self._db.rows(query, model, count))
        count = max(1, sum(size <= OLDEST_BYTES for size in sizes))
        oldest = []
        for number, id_hex, *rest, known in self._json_rows(_OLDEST, model, count):
            # An id that does not lead to this prediction is damaged: it may be another's.
            id_ = _text(id_hex) if known else self._id_of(model, number)
            waiting = None if id_ is None else self._whole(model, number, id_, *rest)
            oldest.append(OldWaiting(number, id_, rest[0], waiting))
        return oldest

    def find_ids(
        self, wanted: dict[int, list[str]], forgotten: Mapping[int, Forgotten], reading: Reading | None = None
    ) -> dict[tuple[int, str], KnownId]:
        """(model, id) -> what it stands for, of the ids in the table `ids`. Wanted ids that are not there are left out.
        reading: bounds what is read, in the order of the ids."""
        found = {}
        reading = reading or Reading(1 << 62)
        starts = ((model, at) for model, ids in wanted.items() for at in range(0, len(ids), IDS_AT_ONCE))
        for model, at in starts:
            ids = wanted[model][at : at + IDS_AT_ONCE]
            if reading.left <= 0:
                reading.unread.update((model, id_) for id_ in ids)
                continue
            places, up_to = {id_: place for place, id_ in enumerate(ids)}, forgotten.get(model, NOTHING).ids
            # One row with everything, because each row gives up the GIL.
            rows = sorted(self._json_rows(_FIND, model, json.dumps(ids)), key=lambda row: places[row[0]])
            for id_, kind, seq, fingerprint, label, size, kept_at, made_at, payload, checksum in rows:
                waiting = None
                if kind == IdKind.WAITING and kept_at is not None:
                    if not reading.takes((model, id_), size):
                        continue
                    waiting = self._whole(model, seq, id_, kept_at, made_at, payload, checksum)
                forgets = kind in EVENT_KINDS and seq <= up_to
                known = IdKind.FORGOTTEN if forgets else KINDS.get(kind, IdKind.WAITING)
                found[model, id_] = KnownId(known, seq, fingerprint, label, waiting)
        return found

    def _json_rows(self, query: str, *values: Any) -> list[list[Any]]:
        """The rows of a query that returns them as one JSON array."""
        try:
            ((rows,),) = self._db.connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise failure_of(error) from error
        try:
            decoded: list[list[Any]] = msgspec.json.decode(rows)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._db.damaged(f"an id cannot be read: {error}") from None
        return decoded

    def _id_of(self, model: int, number: int) -> str | None:
        """The id of the waiting prediction with this number. It searches all ids."""
        query = "SELECT hex(id) FROM ids WHERE model = ? AND kind = ? AND seq = ?"
        return next((_text(id_hex) for (id_hex,) in self._db.rows(query, model, IdKind.WAITING.value, number)), None)

    def _whole(
        self, model: int, number: int, id_: str, kept_at: int, seq: int, in_hex: str | None, checksum: int
    ) -> Waiting | None:
        """The waiting prediction of a row, None if it is damaged. Without `in_hex`, it reads the payload."""
        try:
            if in_hex is None:
                query = "SELECT payload FROM waiting WHERE model = ? AND number = ?"
                payload = next(bytes(payload) for (payload,) in self._db.rows(query, model, number))
            else:
                payload = bytes.fromhex(in_hex)
            return self._read(model, number, id_, kept_at, seq, payload, checksum)
        except failures.LogDamaged as damage:
            spared.warning("%s", damage.reason)
            return None

    def _read(
        self, model: int, number: int, id_: str, kept_at: int, seq: int, payload: bytes, checksum: int
    ) -> Waiting:
        """The waiting prediction of a row; LogDamaged if the row is damaged."""
        what = f"the prediction that waits under the id {id_!r}"
        if checksum != waiting_crc(model, number, id_.encode(), kept_at, seq, payload):
            raise self._db.damaged(f"{what} has a wrong checksum")
        try:
            return Waiting(number, id_, kept_at, seq, *codec.decode_prediction(payload))
        except ValueError as error:
            raise self._db.damaged(f"{what} cannot be read: {error}") from None


def _text(in_hex: str) -> str | None:
    """The text that these bytes encode, None if they encode none."""
    try:
        return bytes.fromhex(in_hex).decode()
    except UnicodeDecodeError:
        return None
