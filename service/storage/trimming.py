"""Removes what need not stay: rows of deleted models, old events and their ids, and free room in the file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

PURGE_ROWS = 200
DROPPED_BYTES = 1 << 20
"""Events that one short commit drops, in bytes, about."""
SCANNED_IDS = 2_000
"""Ids that one step of `drop_ids` looks at."""
FREE_BYTES = 16 << 20
"""Free room to keep in the file, or a quarter of the file if that is more. The rest goes back to the file system."""
RETURNED_BYTES = 2 << 20
"""Bytes that one short commit gives back."""
PURGED = {
    "batches": "rowid",
    "names": "rowid",
    "snapshots": "rowid",
    "snapshot_chunks": "rowid",
    "drops": "rowid",
    "log_starts": "rowid",
    "resumes": "rowid",
    "waiting": "number",
    "series": "t",
    "marks": "t",
}
"""Tables with rows of a model, except `ids`, and the column that tells those rows apart."""


class LogRow(NamedTuple):
    """A row of the log: the seq of its last event, when it was written (seconds since 1970), and its bytes."""

    last_seq: int
    written_at: float
    size: int


def thinned(starts: Sequence[tuple[int, float]], seconds: float) -> list[tuple[int, float]]:
    """The (seq, time) pairs to keep: they cover the last `seconds`, in steps of at least a 64th of that."""
    kept: list[tuple[int, float]] = []
    for start in starts:
        if seconds and (not kept or start[1] - kept[-1][1] >= seconds / 64):
            kept.append(start)
    long_ago = time.time() - seconds
    while len(kept) > 1 and kept[1][1] < long_ago:
        del kept[0]
    return kept
