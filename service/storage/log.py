"""Reads the log: the models, their events and snapshots. It reads even while a service writes, and changes nothing."""

from __future__ import annotations

import json
import sqlite3
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from core.arithmetic import arithmetic
from core.batch import Batch
from service import failures
from service.storage import codec, id_pieces
from service.storage.codec import unpack
from service.storage.database import Database, connect_to_read
from service.storage.forgotten import read_forgotten
from service.storage.ids import CHECKSUM, OF_AN_EVENT, add_checksum
from service.storage.log_index import LogIndex
from service.storage.waiting import WaitingReader

JOINED_EVENTS = 20_000
"""Events that `batches` reads as one batch, about."""
NEWEST_ROWS = 1_000
"""Newest rows of the log that a start reads itself, whatever the index says."""
_BATCH = struct.Struct("<qqqdQ")
_ROW = "batches.first_seq, batches.events, batches.written_at, batches.payload, batches.checksum"


class StoredModel(NamedTuple):
    """A stored model: its key, its name, and its spec as JSON types."""

    key: int
    name: str
    spec: dict[str, Any]


class LogRow(NamedTuple):
    """A row of the log: its number, the seq of its last event, when it was written (seconds since 1970), and its
    bytes."""

    number: int
    last_seq: int
    written_at: float
    size: int


def batch_crc(model: int, first_seq: int, events: int, written_at: float, payload: bytes) -> int:
    """The checksum of a row of the log, in two calls, because the log has millions of rows."""
    return zlib.crc32(payload, zlib.crc32(_BATCH.pack(model, first_seq, events, written_at, len(payload))))


class Arithmetic(NamedTuple):
    """From which event on a model learned on a machine that computes so (core/arithmetic.py): those after `seq`, up to
    the next of these. noted_at: microseconds since 1970."""

    seq: int
    noted_at: int
    digest: str


def learned_elsewhere(rows: Sequence[Arithmetic], last: int) -> list[tuple[int, int]]:
    """The first and last seq of each run of events, up to `last`, whose machine computes otherwise than this one."""
    ends = [*(row.seq for row in rows[1:]), last]
    runs = [(row.seq + 1, min(end, last)) for row, end in zip(rows, ends, strict=False) if row.digest != arithmetic()]
    return [run for run in runs if run[0] <= run[1]]


class LogReader:
    """The models and events of a data folder. db: the connection. index: where each model's events are. snapshots,
    waiting: what else it has there."""

    def __init__(self, folder: Path, connection: sqlite3.Connection | None = None) -> None:
        self.db = Database(folder, connection or connect_to_read(folder))
        add_checksum(self.db.connection)
        self.index = LogIndex(self.db)
        self.forgotten = read_forgotten(self.db)
        """Of each model that has forgotten something."""
        self.snapshots = Snapshots(self.db)
        self.waiting = WaitingReader(self.db)

    def close(self) -> None:
        self.db.close()

    # -- models

    def models(self) -> list[StoredModel]:
        """Every model, in order of creation."""
        query = "SELECT model, name, spec, checksum FROM models ORDER BY model"
        rows = self.db.whole("the row of model {1!r} has a wrong checksum", query)
        return [StoredModel(key, name, json.loads(spec)) for key, name, spec in rows]

    def has_model(self, key: int) -> bool:
        """Whether there is a model with this key. A deleted model's key is not used again."""
        return any(self.db.rows("SELECT 1 FROM models WHERE model = ?", key))

    def check_models(self) -> None:
        """LogDamaged if the log has events of a model that has no row and is not being removed."""
        query = "SELECT model FROM models NOT INDEXED UNION SELECT model FROM purges"
        known = {model for (model,) in self.db.rows(query)}
        for model in sorted(self.index.refresh().models() - known):
            raise self.db.damaged(f"the row of model number {model} is missing, but it has events")

    def names(self, model: int) -> list[str]:
        """A model's feature names, in column order."""
        names: list[str] = []
        query = "SELECT first_column, count, names, checksum FROM names WHERE model = ? ORDER BY first_column"
        wrong = "the feature names from column {0} on have a wrong checksum"
        for first_column, _, data in self.db.whole(wrong, query, model):
            if first_column != len(names):
                raise self.db.damaged(f"the feature names of columns {len(names)} to {first_column - 1} are missing")
            names += data.decode().split("\0")[:-1]
        return names

    def resumed(self, model: int) -> int:
        """The seq at which a stopped model last resumed learning, 0 if it never did."""
        query = "SELECT seq, resumed_at, checksum FROM resumes WHERE model = ? ORDER BY seq DESC LIMIT 1"
        rows = self.db.whole("the row that says learning resumed at seq {0} has a wrong checksum", query, model)
        return next((int(seq) for seq, _ in rows), 0)

    def arithmetic(self, model: int) -> list[Arithmetic]:
        """On which machines a model learned, in order."""
        query = "SELECT seq, noted_at, digest, checksum FROM arithmetic WHERE model = ? ORDER BY seq"
        wrong = "the row that says on which machine the events after seq {0} were learned has a wrong checksum"
        return [Arithmetic(*row) for row in self.db.whole(wrong, query, model)]

    def ids(self, model: int) -> tuple[int, int]:
        """How many ids a model has, and the largest seq of an event with an id, 0 without one."""
        query = f"SELECT count(*), ifnull(max(seq) FILTER (WHERE {OF_AN_EVENT}), 0) FROM ids WHERE model = ?"  # noqa: S608
        count, last = next((count, seq) for count, seq in self.db.rows(query, model))
        pieces = f"SELECT ids, payload FROM ({id_pieces.PIECES}) WHERE model = ?"  # noqa: S608  # of constants
        for ids, payload in self.db.rows(pieces, model):
            piece = id_pieces.Piece.decode(ids, payload)
            if piece is not None:  # else `check_ids` tells of it
                count, last = count + len(piece), max(last, int(piece.seqs.max(initial=0)))
        return count, last

    def check_ids(self) -> None:
        """Read all ids of all models; LogDamaged if their checksum is wrong."""
        # One query, so that all is from one moment.
        query = f"SELECT (SELECT ids_checksum FROM log_end), ({CHECKSUM}), ({id_pieces.CHECKSUM})"  # noqa: S608
        for expected, *found in self.db.rows(query):
            if expected != sum(found) % id_pieces.MODULUS:
                raise self.db.damaged("the table of ids has a wrong checksum")

    # -- events

    def batches(self, model: int, after: int = 0, up_to: int | None = None) -> Iterator[Batch]:
        """The events of a model with seq > `after`, and <= `up_to` if given, in order. LogDamaged at damage or a gap.
        It joins rows into batches of thousands of events. Learning row by row would cost more than the steps."""
        last = after
        while True:
            packed: list[bytes] = []
            first = last
            # A query for each batch, because an open query keeps SQLite from reusing its write-ahead log.
            with closing(self.index.refresh().rows(_ROW, model, last)) as rows:
                for row in rows:
                    if last - first >= JOINED_EVENTS or (up_to is not None and last >= up_to):
                        break
                    packed.append(self._checked(model, last + 1, *row))
                    last += row[1]
            if not packed:
                return
            batch = self._unpacked(packed, first + 1, last)
            yield batch if up_to is None else batch.first(up_to - first)

    def event(self, model: int, seq: int) -> tuple[float, Batch] | None:
        """When the event of a model at a seq was written (seconds since 1970), and the event. None if the log does not
        have it."""
        row = self.index.refresh().newest(_ROW, model, seq)
        if row is None or seq >= row[0] + row[1]:
            return None
        first_seq, events, written_at, *_ = row
        batch = self._unpacked([self._checked(model, first_seq, *row)], first_seq, first_seq + events - 1)
        return written_at, batch.part(seq - first_seq, seq - first_seq + 1)

    def _checked(
        self, model: int, expected: int, first_seq: int, events: int, written_at: float, payload: bytes, checksum: int
    ) -> bytes:
        """The payload of a row. LogDamaged or EventsGone if it is not the next row; LogDamaged if it is damaged."""
        if first_seq != expected:
            if self.gone(model) >= first_seq - 1:
                reason = f"the events from seq {expected} to {first_seq - 1} are no longer in the log (--keep-events)"
                raise failures.EventsGone(folder=str(self.db.folder), reason=reason)
            raise self.db.damaged(f"the events from seq {expected} to {first_seq - 1} are missing")
        if checksum != batch_crc(model, first_seq, events, written_at, payload):
            raise self.db.damaged(f"the events from seq {first_seq} to {first_seq + events - 1} have a wrong checksum")
        return payload

    def _unpacked(self, packed: list[bytes], first_seq: int, last_seq: int) -> Batch:
        try:
            batch = unpack(packed)
        except ValueError as error:
            raise self.db.damaged(f"the events from seq {first_seq} on cannot be read: {error}") from None
        if len(batch) != last_seq - first_seq + 1:
            raise self.db.damaged(f"the rows of seq {first_seq} to {last_seq} have {len(batch)} events")
        return batch

    def rows_after(self, model: int, seq: int, count: int) -> list[LogRow]:
        """The first rows of a model's log after a seq, at most `count`."""
        columns = "number, batches.first_seq + batches.events - 1, batches.written_at, length(batches.payload)"
        with closing(self.index.refresh().rows(columns, model, seq)) as rows:
            return [LogRow(*row) for row in islice(rows, count)]

    def starts(self, model: int) -> list[tuple[int, float]]:
        """Pairs: the seq up to which events are gone, and when the last of these was written (seconds since 1970). The
        newest pair is last. `drop_events` keeps older pairs as long as its caller asks."""
        query = "SELECT seq, written_at, checksum FROM log_starts WHERE model = ? ORDER BY seq"
        rows = self.db.whole("the row that says the log begins after seq {0} has a wrong checksum", query, model)
        return [(seq, written_at) for seq, written_at in rows]

    def gone(self, model: int) -> int:
        """The seq up to which a model's events are no longer in the log, 0 if it has all of them."""
        starts = self.starts(model)
        return starts[-1][0] if starts else 0

    def last_seq(self, model: int) -> int:
        """The seq of a model's newest event, 0 without one."""
        row = self.index.refresh().newest("batches.first_seq + batches.events - 1", model)
        return 0 if row is None else int(row[0])

    def newest(self) -> dict[int, int]:
        """The last seq of each model in the newest rows of the log, read without the index. A damaged page of that can
        hide an entry without an error from SQLite. A gap shows that one is hidden, except the last of a model."""
        query = (
            "SELECT model, max(last) FROM (SELECT model, first_seq + events - 1 AS last FROM batches "
            "ORDER BY number DESC LIMIT ?) GROUP BY model"
        )
        return {model: seq for model, seq in self.db.rows(query, NEWEST_ROWS)}  # noqa: C416


class Snapshots:
    """States of each model's learner, in chunks. The row in `snapshots` comes last and makes a snapshot valid."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def seqs(self, model: int) -> list[int]:
        """The seqs of a model's snapshots, the newest first."""
        return [seq for (seq,) in self._db.rows("SELECT seq FROM snapshots WHERE model = ? ORDER BY seq DESC", model)]

    def state(self, model: int, seq: int) -> dict[str, Any]:
        """The state of a model at a seq; LogDamaged if the snapshot cannot be used."""
        data = b"".join(self.chunks(model, seq))
        try:
            return codec.decode_state(data)
        except (ValueError, KeyError, TypeError) as error:
            raise self._db.damaged(f"the snapshot at seq {seq} cannot be read: {error}") from None

    def chunks(self, model: int, seq: int) -> Iterator[bytes]:
        """The bytes of a snapshot, one chunk at a time; LogDamaged if a chunk is damaged or missing."""
        what = f"the snapshot at seq {seq}"
        query = "SELECT chunks, checksum FROM snapshots WHERE model = ? AND seq = ?"
        (chunks,) = next(self._db.whole(f"{what} is incomplete", query, model, seq), (None,))
        if chunks is None:
            raise self._db.damaged(f"{what} is missing")
        query = "SELECT data, checksum FROM snapshot_chunks WHERE model = ? AND seq = ? AND chunk = ?"
        for chunk in range(chunks):
            (data,) = next(self._db.whole(f"{what} has a wrong checksum", query, model, seq, chunk), (None,))
            if data is None:
                raise self._db.damaged(f"{what} is incomplete")
            yield data
