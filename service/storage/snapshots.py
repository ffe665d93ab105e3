"""Reads snapshots: a learner's state at a seq, in chunks. The row in `snapshots` comes last and makes it valid."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from service.storage import codec
from service.storage.database import Database


class Snapshots:
    """The snapshots of each model in a database."""

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
