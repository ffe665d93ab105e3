"""Removes what need not stay: rows of deleted models, old events and their ids, and free room in the file.

Each call is one short commit, so that learning goes on between them.
"""

from __future__ import annotations

import json
import sqlite3
import time
from bisect import bisect_right
from collections.abc import Sequence

from service.storage import positions
from service.storage.commits import Commits
from service.storage.folder import failure_of
from service.storage.forgotten import NOTHING, Forgotten
from service.storage.ids import OF_AN_EVENT, Rows
from service.storage.log import LogReader, LogRow
from service.storage.merging import Merging
from service.storage.positions import Reached

PURGE_ROWS = 200
DROPPED_BYTES = 1 << 20
"""Events that one short commit drops, in bytes, about."""
SCANNED_IDS = 2_000
"""Ids that one step of `drop_ids` looks at."""
FREE_BYTES = 16 << 20
"""Free room to keep in the file, or a quarter of the file if that is more. The rest goes back to the file system."""
RETURNED_BYTES = 2 << 20
"""Bytes that one short commit gives back."""
_PURGED = {
    **dict.fromkeys(("names", "snapshots", "snapshot_chunks", "drops", "log_starts"), "rowid"),
    **dict.fromkeys(("resumes", "arithmetic"), "rowid"),
    "waiting": "number",
    "series": "t",
    "marks": "t",
    "forgotten": "model",
}
"""Tables with rows of a model, except those of ids, and the column that tells those rows apart."""


class Trimming:
    """Removes rows through the one writer."""

    def __init__(self, log: LogReader, commits: Commits, merging: Merging) -> None:
        self._log = log
        self._merging = merging
        self._commits = commits
        self._db = log.db

    def give_back(self) -> bool:
        """Give a piece of the file's free room back to the file system, if there is much. Whether there is more."""
        connection = self._db.connection
        try:
            ((free,),) = connection.execute("PRAGMA freelist_count").fetchall()
            ((pages,),) = connection.execute("PRAGMA page_count").fetchall()
            page = self._db.page_bytes()
            if free <= max(FREE_BYTES // page, pages // 4):
                return False
            connection.execute(f"PRAGMA incremental_vacuum({RETURNED_BYTES // page})").fetchall()
            ((left,),) = connection.execute("PRAGMA freelist_count").fetchall()
        except sqlite3.Error as error:
            raise failure_of(error) from error
        return bool(left < free)

    def purge(self) -> bool:
        """Remove some rows of deleted models. Whether there may be more."""
        # Never of an existing model: then its number in `purges` is damage.
        query = "SELECT model FROM purges WHERE model NOT IN (SELECT model FROM models) LIMIT 1"
        doomed = [key for (key,) in self._db.rows(query)]
        if not doomed:
            return False
        if self._merging.purge(*doomed):
            return True
        if self._purge_rows(*doomed):
            return True
        some = "model = ?1 AND id IN (SELECT id FROM ids WHERE model = ?1 LIMIT ?2)"
        ids = Rows(some, (*doomed, PURGE_ROWS))
        with self._commits.transaction(ids) as db:
            if self._commits.ids.delete(ids):
                return True
            for table, key in _PURGED.items():
                # The table and key are ours, not a caller's.
                some = f"SELECT {key} FROM {table} WHERE model = ?1 LIMIT {PURGE_ROWS}"  # noqa: S608
                gone = db.execute(f"DELETE FROM {table} WHERE model = ?1 AND {key} IN ({some})", doomed)  # noqa: S608
                if gone.rowcount:
                    return True
            db.execute("DELETE FROM purges WHERE model = ?", doomed)
        return True

    def _purge_rows(self, model: int) -> bool:
        """Remove some rows of a deleted model from the log. Whether there were any."""
        # By the entries themselves: rows that they do not lead to need not be there.
        entries = "SELECT first_seq, number FROM log_index WHERE model = ? ORDER BY first_seq LIMIT ?"
        rows = list(self._db.rows(entries, model, PURGE_ROWS))
        rows = rows or list(zip(*self._log.index.new_of(model), strict=True))[:PURGE_ROWS]
        if rows:
            end = rows[-1][0]
            with self._commits.transaction() as db:
                self._delete(db, model, [number for _, number in rows], end)
            self._log.index.forget(model, end)
        return bool(rows)

    def _delete(self, db: sqlite3.Connection, model: int, numbers: Sequence[int], end: int) -> None:
        """Delete a model's oldest rows, those that begin up to a seq: they have these numbers, or are not indexed."""
        first_seqs, new = self._log.index.new_of(model)
        count = bisect_right(first_seqs, end)
        self._commits.new_rows -= count
        # Of this model: a damaged entry may have the number of a row of another.
        query = "DELETE FROM batches WHERE model = ? AND number IN (SELECT value FROM json_each(?))"
        db.execute(query, (model, json.dumps([*numbers, *new[:count]])))
        db.execute("DELETE FROM log_index WHERE model = ? AND first_seq <= ?", (model, end))

    def forget(self, model: int, new: Forgotten, reached: Reached) -> None:
        """Record what is forgotten from now on, and the position of the record that says so in the same transaction:
        after a crash between the two, records before it would be applied again, and not find ids that they found."""
        forgotten = new.joined(self._log.forgotten.get(model, NOTHING))
        with self._commits.transaction() as db:
            self._commits.replace("forgotten", model, *forgotten)
            positions.write(db, self._commits, reached)
        self._log.forgotten[model] = forgotten

    def drop_events(self, model: int, up_to: int, written_before: float, remember: float) -> bool:
        """Remove some of the oldest rows of a model's log. Whether there were any.

        It removes rows that end at or before `up_to` and were written before `written_before`. `remember`: for how many
        seconds the store remembers when dropped events were written.
        """
        rows, dropped = list[LogRow](), 0
        for row in self._log.rows_after(model, self._log.gone(model), PURGE_ROWS):
            if row.last_seq > up_to or row.written_at >= written_before or dropped >= DROPPED_BYTES:
                break
            rows.append(row)
            dropped += row.size
        if not rows or not self._log.has_model(model):
            return False
        _, end, written_at, _ = rows[-1]
        with self._commits.transaction() as db:
            self._delete(db, model, [row.number for row in rows], end)
            kept = json.dumps([seq for seq, _ in _thinned(self._log.starts(model), remember)])
            query = "DELETE FROM log_starts WHERE model = ? AND seq NOT IN (SELECT value FROM json_each(?))"
            db.execute(query, (model, kept))
            self._commits.insert("log_starts", model, end, written_at)
        self._log.index.forget(model, end)
        return True

    def seq_written_before(self, model: int, time_: float) -> int:
        """The last seq whose event was written before a time, or an earlier seq. The clock may have been wrong."""
        found = max((seq for seq, written_at in self._log.starts(model) if written_at < time_), default=0)
        low, high = self._log.gone(model), self._log.last_seq(model)
        while low < high:
            middle = (low + high) // 2
            row = self._log.rows_after(model, middle, 1)
            if row and row[0].written_at < time_:
                low = found = row[0].last_seq
            else:
                high = middle
        return found

    def drop_ids(self, model: int, up_to: int, after: str) -> str | None:
        """Look at some ids of the table `ids` after `after`, in order, and remove those of events up to a seq. Returns
        the last id that it looked at, None at the end."""
        looked_at = "SELECT id, kind, seq FROM ids WHERE model = ? AND id > ? ORDER BY id LIMIT ?"
        query = f"SELECT max(id), sum({OF_AN_EVENT} AND seq <= ?) FROM ({looked_at})"  # noqa: S608  # of ours
        ((last, old),) = self._db.rows(query, up_to, model, after, SCANNED_IDS)
        if old:
            condition = f"model = ? AND id > ? AND id <= ? AND {OF_AN_EVENT} AND seq <= ?"
            rows = Rows(condition, (model, after, last, up_to))
            with self._commits.transaction(rows):
                self._commits.ids.delete(rows)
        return None if last is None else str(last)


def _thinned(starts: Sequence[tuple[int, float]], seconds: float) -> list[tuple[int, float]]:
    """The (seq, time) pairs to keep: they cover the last `seconds`, in steps of at least a 64th of that."""
    kept: list[tuple[int, float]] = []
    for start in starts:
        if seconds and (not kept or start[1] - kept[-1][1] >= seconds / 64):
            kept.append(start)
    long_ago = time.time() - seconds
    while len(kept) > 1 and kept[1][1] < long_ago:
        del kept[0]
    return kept
