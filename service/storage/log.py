"""Reads a data folder, even while a service writes to it. store.py describes the tables.

Nothing here changes the folder. Damage is never learned: reading it raises LogDamaged, which says what is damaged.
"""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from core.batch import LATE, Batch
from service import errors
from service.storage import codec, schema, series
from service.storage.ids import CHECKSUM, add_checksum
from service.storage.packed import unpack
from service.storage.schema import APPLICATION_ID, FORMAT, UNRELEASED_ID
from service.storage.waiting import Waiting, waiting_crc
from service.storage.wal import INDEX, Tail, tail_of

JOINED_EVENTS = 20_000
"""Events that `batches` reads as one batch, about."""
COPIED_BYTES = 4 << 20
"""Bytes to copy before each sync. A longer sync would delay the commits of a service on the same disk."""
SHOWN = 5
"""Differences of a schema that a message lists, at most."""
NEWEST_ROWS = 1_000
"""Newest rows of the log that a start reads without the index."""
_UNREADABLE = (sqlite3.DatabaseError, UnicodeDecodeError)
"""What sqlite3 raises for damaged pages. UnicodeDecodeError comes if the message would contain a damaged text."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A stored model: its key, its name, and its spec as JSON types."""

    key: int
    name: str
    spec: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A learner's state at a seq."""

    seq: int
    state: dict[str, Any]


def crc(*parts: bytes | int | str | float) -> int:
    """CRC-32 of the parts. Numbers have a fixed width. Before each text or bytes comes its length."""
    checksum = 0
    for part in parts:
        if isinstance(part, str):
            part = part.encode()  # noqa: PLW2901
        if isinstance(part, bytes):
            checksum = zlib.crc32(part, zlib.crc32(struct.pack("<Q", len(part)), checksum))
        else:
            checksum = zlib.crc32(struct.pack("<d" if isinstance(part, float) else "<q", part), checksum)
    return checksum


_BATCH = struct.Struct("<qqqdQ")


def batch_crc(model: int, first_seq: int, events: int, written_at: float, payload: bytes) -> int:
    """The checksum of a row of the log, in two calls, because the log has millions of rows."""
    return zlib.crc32(payload, zlib.crc32(_BATCH.pack(model, first_seq, events, written_at, len(payload))))


_MODELS_WITH_EVENTS = """
WITH RECURSIVE found (model) AS (
    SELECT min(model) FROM batches
    UNION ALL
    SELECT (SELECT min(model) FROM batches WHERE model > found.model) FROM found WHERE found.model IS NOT NULL)
SELECT model FROM found
"""
"""It takes one index seek for each model."""


class LogReader:
    """Reads a data folder, even one that a service is using. Changes nothing in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._db = self._connect()
        try:
            self._check_format()
        except BaseException:
            self._db.close()
            raise

    def _connect(self) -> sqlite3.Connection:
        path = self.folder / "log.db"
        if not path.is_file():
            raise errors.NotADataFolder(path=str(self.folder), reason="it has no log.db")
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=10)
        db.executescript(schema.GUARDS)
        add_checksum(db)
        return db

    def _check_format(self) -> None:
        try:
            (application,) = self._db.execute("PRAGMA application_id").fetchone()
            (found,) = self._db.execute("PRAGMA user_version").fetchone()
        except _UNREADABLE as error:
            raise self._damaged(str(error)) from None
        if application == UNRELEASED_ID:
            raise errors.UnreleasedFormat(path=str(self.folder))
        if application != APPLICATION_ID:
            raise errors.NotADataFolder(path=str(self.folder), reason="its log.db belongs to another program")
        if found > FORMAT:
            raise errors.NewerFormat(path=str(self.folder), found=found, known=FORMAT)
        if found < FORMAT:
            raise self._damaged(f"its format is {found}, but the first format is {FORMAT}")
        self._check_schema()

    def _check_schema(self) -> None:
        try:
            different = schema.differences(schema.entries(self._db))
        except _UNREADABLE as error:
            raise self._damaged(str(error)) from None
        if different:
            more = f"; and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
            raise self._damaged(f"its schema is not the one that logstep creates: {'; '.join(different[:SHOWN])}{more}")

    def close(self) -> None:
        self._db.close()

    def _rows(self, query: str, *values: Any) -> Generator[tuple[Any, ...]]:
        try:
            # Not `yield from`: it would close the cursor of an abandoned generator, perhaps after its connection.
            for row in self._db.execute(query, values):  # noqa: UP028
                yield row
        except _UNREADABLE as error:
            raise self._damaged(str(error)) from None

    def _damaged(self, reason: str) -> errors.LogDamaged:
        return errors.LogDamaged(folder=str(self.folder), reason=reason)

    def models(self) -> list[StoredModel]:
        """Every model, in order of creation."""
        models = []
        for key, name, spec, checksum in self._rows("SELECT model, name, spec, checksum FROM models ORDER BY model"):
            if checksum != crc(key, name, spec):
                raise self._damaged(f"the row of model {name!r} has a wrong checksum")
            models.append(StoredModel(key, name, json.loads(spec)))
        return models

    def names(self, model: int) -> list[str]:
        """A model's feature names, in column order."""
        names: list[str] = []
        query = "SELECT first_column, count, names, checksum FROM names WHERE model = ? ORDER BY first_column"
        for first_column, count, data, checksum in self._rows(query, model):
            if checksum != crc(model, first_column, count, data):
                raise self._damaged(f"the feature names from column {first_column} on have a wrong checksum")
            if first_column != len(names):
                raise self._damaged(f"the feature names of columns {len(names)} to {first_column - 1} are missing")
            names += data.decode().split("\0")[:-1]
        return names

    def batches(self, model: int, after: int = 0, up_to: int | None = None) -> Iterator[Batch]:
        """The events of a model with seq > `after`, and <= `up_to` if given, in order. LogDamaged at damage or a gap.

        It joins rows into batches of thousands of events. Learning row by row would cost more than the steps.
        """
        last = after
        while True:
            packed: list[bytes] = []
            first = last
            # A query for each batch, because an open query keeps SQLite from reusing its write-ahead log.
            rows = self._rows(
                "SELECT first_seq, events, written_at, payload, checksum FROM batches "
                "WHERE model = ? AND first_seq > ? ORDER BY first_seq",
                model,
                last,
            )
            for row in rows:
                if last - first >= JOINED_EVENTS or (up_to is not None and last >= up_to):
                    break
                packed.append(self._checked(model, last + 1, *row))
                last += row[1]
            rows.close()
            if not packed:
                return
            batch = self._unpacked(packed, first + 1, last)
            yield batch if up_to is None else batch.first(up_to - first)

    def _checked(
        self, model: int, expected: int, first_seq: int, events: int, written_at: float, payload: bytes, checksum: int
    ) -> bytes:
        """The payload of a row. LogDamaged or EventsGone if it is not the next row; LogDamaged if it is damaged."""
        if first_seq != expected:
            if self.gone(model) >= first_seq - 1:
                reason = f"the events from seq {expected} to {first_seq - 1} are no longer in the log (--keep-events)"
                raise errors.EventsGone(folder=str(self.folder), reason=reason)
            raise self._damaged(f"the events from seq {expected} to {first_seq - 1} are missing")
        if checksum != batch_crc(model, first_seq, events, written_at, payload):
            raise self._damaged(f"the events from seq {first_seq} to {first_seq + events - 1} have a wrong checksum")
        return payload

    def _unpacked(self, packed: list[bytes], first_seq: int, last_seq: int) -> Batch:
        try:
            batch = unpack(packed)
        except ValueError as error:
            raise self._damaged(f"the events from seq {first_seq} on cannot be read: {error}") from None
        if len(batch) != last_seq - first_seq + 1:
            raise self._damaged(f"the rows of seq {first_seq} to {last_seq} have {len(batch)} events")
        return batch

    def gone(self, model: int) -> int:
        """The seq up to which a model's events are no longer in the log, 0 if it has all of them."""
        starts = self._starts(model)
        return starts[-1][0] if starts else 0

    def _starts(self, model: int) -> list[tuple[int, float]]:
        """Pairs: the seq up to which events are gone, and when the last of these was written (seconds since 1970). The
        newest pair is last. `drop_events` keeps older pairs as long as its caller asks."""
        starts: list[tuple[int, float]] = []
        query = "SELECT seq, written_at, checksum FROM log_starts WHERE model = ? ORDER BY seq"
        for seq, written_at, checksum in self._rows(query, model):
            if checksum != crc(model, seq, written_at):
                raise self._damaged(f"the row that says the log begins after seq {seq} has a wrong checksum")
            starts.append((seq, written_at))
        return starts

    def resumed(self, model: int) -> int:
        """The seq at which a stopped model last resumed learning, 0 if it never did."""
        for seq, resumed_at, checksum in self._rows(
            "SELECT seq, resumed_at, checksum FROM resumes WHERE model = ? ORDER BY seq DESC LIMIT 1", model
        ):
            if checksum != crc(model, seq, resumed_at):
                raise self._damaged(f"the row that says learning resumed at seq {seq} has a wrong checksum")
            return int(seq)
        return 0

    def last_seq(self, model: int) -> int:
        """The seq of a model's newest event, 0 without one."""
        query = "SELECT first_seq + events - 1 FROM batches WHERE model = ? ORDER BY first_seq DESC LIMIT 1"
        return next((seq for (seq,) in self._rows(query, model)), 0)

    def newest(self) -> dict[int, int]:
        """The last seq of each model in the newest rows of the log, read without the index.

        A damaged index page can hide a row without an error from SQLite. A gap shows that a row is hidden, except the
        last one.
        """
        query = (
            "SELECT model, max(last) FROM (SELECT model, first_seq + events - 1 AS last FROM batches NOT INDEXED "
            "ORDER BY rowid DESC LIMIT ?) GROUP BY model"
        )
        return {model: seq for model, seq in self._rows(query, NEWEST_ROWS)}  # noqa: C416

    def check_models(self) -> None:
        """LogDamaged if the log has events of a model that has no row and is not being removed."""
        known = {
            model for (model,) in self._rows("SELECT model FROM models NOT INDEXED UNION SELECT model FROM purges")
        }
        for (model,) in self._rows(_MODELS_WITH_EVENTS):
            if model is not None and model not in known:
                raise self._damaged(f"the row of model number {model} is missing, but it has events")

    def series(self, model: int, after: int, before: int) -> tuple[list[series.Row], list[series.Mark]]:
        """The series and marks of a model between two times."""
        ((rows,),) = self._rows(series.READ, model, after, before)
        marks = [series.Mark(model, *row) for row in self._rows(series.READ_MARKS, model, after, before)]
        return msgspec.json.decode(rows, type=list[series.Row]), marks

    def recent_losses(self, models: Sequence[int], count: int) -> dict[int, list[float | None]]:
        """The last windowed losses of some models, oldest first."""
        rows = self._rows(series.RECENT, count, json.dumps(models))
        return {model: json.loads(losses)[::-1] for model, losses in rows}

    def event(self, model: int, seq: int) -> tuple[float, Batch] | None:
        """When the event of a model at a seq was written (seconds since 1970), and the event. None if the log does not
        have it."""
        for first_seq, events, *row in self._rows(
            "SELECT first_seq, events, written_at, payload, checksum FROM batches "
            "WHERE model = ? AND first_seq <= ? ORDER BY first_seq DESC LIMIT 1",
            model,
            seq,
        ):
            if seq < first_seq + events:
                payload = self._checked(model, first_seq, first_seq, events, *row)
                batch = self._unpacked([payload], first_seq, first_seq + events - 1)
                return row[0], batch.part(seq - first_seq, seq - first_seq + 1)
        return None

    def ids(self, model: int) -> tuple[int, int]:
        """How many ids a model has, and the largest seq of an event with an id, 0 without one."""
        query = f"SELECT count(*), ifnull(max(seq) FILTER (WHERE kind <= {LATE}), 0) FROM ids WHERE model = ?"  # noqa: S608
        return next((count, seq) for count, seq in self._rows(query, model))

    def waiting(self, model: int) -> Iterator[Waiting]:
        """The waiting predictions of a model, the oldest first. LogDamaged if one is damaged."""
        query = "SELECT number, id, kept_at, seq, payload, checksum FROM waiting WHERE model = ? ORDER BY number"
        for row in self._rows(query, model):
            yield self.waiting_row(model, *row)

    def waiting_row(
        self, model: int, number: int, id_: str, kept_at: int, seq: int, payload: bytes, checksum: int
    ) -> Waiting:
        """The waiting prediction of a row; LogDamaged if the row is damaged."""
        what = f"the prediction that waits under the id {id_!r}"
        if checksum != waiting_crc(model, number, id_.encode(), kept_at, seq, payload):
            raise self._damaged(f"{what} has a wrong checksum")
        try:
            return Waiting(number, id_, kept_at, seq, *codec.decode_prediction(payload))
        except ValueError as error:
            raise self._damaged(f"{what} cannot be read: {error}") from None

    def waiting_count(self, model: int) -> int:
        """How many predictions of a model wait."""
        return next(int(count) for (count,) in self._rows("SELECT count(*) FROM waiting WHERE model = ?", model))

    def dropped(self, model: int) -> int:
        """How many predictions of a model were dropped because they waited too long."""
        dropped = 0
        query = "SELECT number, seq, dropped_at, predictions, checksum FROM drops WHERE model = ?"
        for number, seq, dropped_at, predictions, checksum in self._rows(query, model):
            if checksum != crc(model, number, seq, dropped_at, predictions):
                raise self._damaged(f"the row of {predictions} dropped prediction(s) has a wrong checksum")
            dropped += predictions
        return dropped

    def snapshot_seqs(self, model: int) -> list[int]:
        """The seqs of a model's snapshots, the newest first."""
        return [seq for (seq,) in self._rows("SELECT seq FROM snapshots WHERE model = ? ORDER BY seq DESC", model)]

    def snapshot(self, model: int, seq: int) -> Snapshot:
        """The snapshot of a model at a seq; LogDamaged if it cannot be used."""
        data = b"".join(self.snapshot_chunks(model, seq))
        try:
            return Snapshot(seq, codec.decode_state(data))
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(f"the snapshot at seq {seq} cannot be read: {error}") from None

    def snapshot_chunks(self, model: int, seq: int) -> Iterator[bytes]:
        """The bytes of a snapshot, one chunk at a time; LogDamaged if a chunk is damaged or missing."""
        what = f"the snapshot at seq {seq}"
        query = "SELECT chunks, checksum FROM snapshots WHERE model = ? AND seq = ?"
        chunks, checksum = next(self._rows(query, model, seq), (None, None))
        if chunks is None:
            raise self._damaged(f"{what} is missing")
        if checksum != crc(model, seq, chunks):
            raise self._damaged(f"{what} is incomplete")
        query = "SELECT data, checksum FROM snapshot_chunks WHERE model = ? AND seq = ? AND chunk = ?"
        for chunk in range(chunks):
            data, checksum = next(self._rows(query, model, seq, chunk), (None, None))
            if data is None:
                raise self._damaged(f"{what} is incomplete")
            if checksum != crc(model, seq, chunk, data):
                raise self._damaged(f"{what} has a wrong checksum")
            yield data

    def copy_to(self, path: Path) -> None:
        """Copy the database as it is now to a new file, and sync it.

        It copies in one read transaction, so a service can go on writing. The transaction keeps SQLite from reusing the
        write-ahead log, which grows until the copy is done.
        """
        with path.open("wb") as file, closing(sqlite3.connect(path, isolation_level=None)) as target:
            try:
                target.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")
                self._db.execute("BEGIN")
                self.log_end()  # a read transaction begins with its first read
                pages = COPIED_BYTES // self._page_bytes()
                self._db.backup(target, pages=pages, progress=lambda *_: os.fsync(file.fileno()))
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                    raise self._damaged(str(error)) from None
                raise errors.CopyFailed(path=str(path), reason=str(error)) from error
            os.fsync(file.fileno())

    def _page_bytes(self) -> int:
        return next(int(size) for (size,) in self._rows("PRAGMA page_size"))

    def log_end(self) -> tuple[int, int]:
        """The number of the last commit, and the checksum over all commits."""
        for number, checksum in self._rows("SELECT number, checksum FROM log_end"):
            if not isinstance(number, int) or not isinstance(checksum, int) or not 0 <= checksum < 1 << 32:
                raise self._damaged("the row of its last commit cannot be read")
            return number, checksum
        raise self._damaged("the row of its last commit is missing")

    def ids_checksum(self) -> int:
        """The checksum that the table `ids` should have."""
        ((checksum,),) = self._rows("SELECT ids_checksum FROM log_end")
        if not isinstance(checksum, int):
            raise self._damaged("the row of its last commit cannot be read")
        return checksum

    def check_ids(self) -> None:
        """Read all ids of all models; LogDamaged if their checksum is wrong."""
        query = f"SELECT (SELECT ids_checksum FROM log_end), ({CHECKSUM})"  # noqa: S608  # one query, so both are from one moment
        for expected, found in self._rows(query):
            if expected != found:
                raise self._damaged("the table of ids has a wrong checksum")

    def tail(self) -> Tail:
        """What the write-ahead log has after the commits that SQLite reads from it."""
        path = self.folder / "log.db-wal"
        whole = self._whole_frames()
        if whole is None or not path.is_file():
            return Tail()
        with path.open("rb") as wal:
            found = tail_of(wal, whole, self._page_bytes())
        # Checked again: a service may have committed meanwhile, or restarted its write-ahead log.
        return found if self._whole_frames() == whole else Tail()

    def _whole_frames(self) -> int | None:
        """How many frames of the write-ahead log SQLite reads, by the log's index (sqlite.org/walformat.html). None if
        there is no index."""
        next(self._rows("SELECT 1 FROM log_end"), None)  # the first query makes the index
        try:
            with (self.folder / "log.db-shm").open("rb") as index:
                header, copy = index.read(INDEX.size), index.read(INDEX.size)
        except FileNotFoundError:
            return None
        return int(INDEX.unpack(header)[0]) if header and header == copy else None

    def integrity(self) -> list[str]:
        """What SQLite's own check finds wrong. Empty if nothing is."""
        found = [str(row[0]) for row in self._rows("PRAGMA integrity_check")]
        return [] if found == ["ok"] else found
