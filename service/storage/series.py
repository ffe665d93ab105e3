"""The history of each model, for plots: rows of 5 seconds for an hour, of a minute for a day, of 15 minutes for a
month. They are in the same file as the log, and nothing depends on them. If a row cannot be written, the plot has a
gap.

    series    a row for each model and bucket in which something happened: its sums, and the model's state at its end
    marks     starts of the service (as model 0) and snapshots

What is on disk after a model learned 20 events in 5 seconds (an idle model has no rows):

    series    1 | 1767225605 | 5 | seq 1042 | features 6 | learned 20 | predicted 0 | scored 20 | loss 6.2 | ...
    marks     0 | 1767225600 | 0 | start

Each write also merges the old rows of some models, so that merging needs no writes of its own.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from service.storage.database import Database

BUCKET_SECONDS = 5
COARSER = ((60, 3_600), (900, 86_400))
"""(seconds, age): rows older than `age` seconds are merged into rows of `seconds`."""
KEPT_SECONDS = 31 * 86_400
MOST_ROWS = 5_000_000
"""Of all models together, about (500 MB). Many models share this, so each keeps a shorter history."""
FEWEST_ROWS = 500
"""What each model keeps at least."""
KEPT_MARKS = 500


class Row(NamedTuple):
    """What happened to a model in the `seconds` up to `t` (since 1970), and its state at `t`.

    Sums over the bucket: events `learned`; predictions made (`predicted`); events `scored` and their `loss`; events
    whose prediction was `served` and its loss (`served_loss`); labels that came after their predictions (`delays`) and
    the seconds between (`delay`). `shares`: for `auto`, JSON: group of learners -> weight. `commit_...`: of the whole
    service.
    """

    model: int
    t: int
    seconds: int
    seq: int
    features: int
    learned: int
    predicted: int
    scored: int
    loss: float
    loss_total: float | None
    loss_window: float | None
    accuracy_window: float | None
    entropy: float | None
    served: int
    served_loss: float
    waiting: int
    delays: int
    delay: float
    commit_p50_ms: float | None
    commit_p99_ms: float | None
    shares: str | None


class Mark(NamedTuple):
    """Something that happened to a model, or with model 0 to the service, at a time."""

    model: int
    t: int
    seq: int
    kind: str


class Piece(NamedTuple):
    """What one commit writes. `tidied`: models whose old rows it merges. `now`: seconds since 1970."""

    now: int
    rows: Sequence[Row]
    marks: Sequence[Mark]
    tidied: Sequence[int]
    models: int
    """How many models there are."""


_SUMS = ("learned", "predicted", "scored", "loss", "served", "served_loss", "delays", "delay")
_MERGED = ", ".join(
    f"merged.{name}" if name in (*_SUMS, "commit_p50_ms", "commit_p99_ms") else f"newest.{name}"
    for name in Row._fields[3:]
)
# The names are ours, not a caller's.
_MERGE = f"""
INSERT OR REPLACE INTO series
SELECT merged.model, merged.bucket, ?3, {_MERGED}
FROM (SELECT model, (t + ?3 - 1) / ?3 * ?3 AS bucket, max(t) AS last, {", ".join(f"sum({n}) AS {n}" for n in _SUMS)},
             avg(commit_p50_ms) AS commit_p50_ms, max(commit_p99_ms) AS commit_p99_ms
      FROM series WHERE model IN (SELECT value FROM json_each(?1)) AND t <= ?2 AND seconds < ?3
      GROUP BY model, bucket) AS merged
JOIN series AS newest ON newest.model = merged.model AND newest.t = merged.last
"""  # noqa: S608
_DROP_MERGED = "DELETE FROM series WHERE model IN (SELECT value FROM json_each(?1)) AND t <= ?2 AND seconds < ?3"
_DROP_OLD = "DELETE FROM series WHERE model IN (SELECT value FROM json_each(?1)) AND t <= ?2"


def write(db: sqlite3.Connection, piece: Piece) -> None:
    """Write a piece. The caller begins and ends the transaction."""
    # One statement for all rows, because each statement gives up the GIL and must win it back.
    if piece.rows:
        db.execute(_insert("series", len(Row._fields)), (json.dumps(piece.rows),))
    if piece.marks:
        db.execute(_insert("marks", len(Mark._fields)), (json.dumps(piece.marks),))
    if piece.tidied:
        _tidy(db, piece)


def _insert(table: str, columns: int) -> str:
    """Insert rows given as JSON. A model may have been deleted since they were made: nobody would remove its rows."""
    values = ", ".join(f"value ->> {i}" for i in range(columns))
    known = "value ->> 0 = 0 OR value ->> 0 IN (SELECT model FROM models)"
    return f"INSERT OR REPLACE INTO {table} SELECT {values} FROM json_each(?) WHERE {known}"  # noqa: S608


def _drop_many(table: str) -> str:
    newest = f"SELECT t FROM {table} WHERE model = ?1 ORDER BY t DESC LIMIT 1 OFFSET ?2"  # noqa: S608
    return f"DELETE FROM {table} WHERE model = ?1 AND t <= ({newest})"  # noqa: S608


def _tidy(db: sqlite3.Connection, piece: Piece) -> None:
    """Merge the old rows of some models, and drop rows that are too old or too many."""
    models = json.dumps(piece.tidied)
    for seconds, age in COARSER:
        whole = (models, (piece.now - age) // seconds * seconds, seconds)
        db.execute(_MERGE, whole)
        db.execute(_DROP_MERGED, whole)
    db.execute(_DROP_OLD, (models, piece.now - KEPT_SECONDS))
    rows = max(FEWEST_ROWS, MOST_ROWS // max(piece.models, 1))
    db.executemany(_drop_many("series"), [(model, rows) for model in piece.tidied])
    db.executemany(_drop_many("marks"), [(model, KEPT_MARKS) for model in (*piece.tidied, 0)])


_READ = f"""
SELECT json_group_array(json_array({", ".join(Row._fields)}))
FROM (SELECT * FROM series WHERE model = ? AND t > ? AND t - seconds < ? ORDER BY t)
"""  # noqa: S608
_READ_MARKS = """
SELECT ?1, t, seq, kind FROM marks WHERE model IN (0, ?1) AND t >= ?2 AND t <= ?3 ORDER BY t, seq
"""


def read(db: Database, model: int, after: int, before: int) -> tuple[list[Row], list[Mark]]:
    """The rows and marks of a model between two times."""
    ((rows,),) = db.rows(_READ, model, after, before)
    return msgspec.json.decode(rows, type=list[Row]), [Mark(*row) for row in db.rows(_READ_MARKS, model, after, before)]
