"""A process that learns events with ids, and moves the ids and indexes the log all the time, to be killed or recorded.

    python tests/moving_ids.py FOLDER SEED

It says its process id, and then `committed N` when the first N events are on disk. Their ids are `id_of(1)` to
`id_of(N)`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from random import Random

import numpy as np

from core.batch import Batch
from service.storage import event_ids, id_filter, id_pieces, indexing, merging
from service.storage.id_pieces import EventIds
from service.storage.store import ModelBatch, Store


def id_of(seq: int) -> str:
    """The id of an event; neighbours share nothing."""
    return f"{seq * 0x9E3779B97F4A7C15 % 2**64:016x}-{'é' * (seq % 3)}"


def make_small() -> None:
    """Let some dozens of ids be enough for every kind of move."""
    id_pieces.PIECE = 4
    id_filter.LEAST_BLOCKS, id_filter.IDS_A_BLOCK = 1, 2
    event_ids.FILTERED, event_ids.LARGE = 3, 4
    merging.FLUSHED_IDS, merging.FLUSHED_ROWS, merging.MOVED_IDS = 40, 12, 20
    merging.FAN_IN, merging.READ, merging.SWEPT, merging.PURGED = 3, 2, 2, 2
    indexing.INDEXED_ROWS, indexing.STEPS = 9, 3


def commit(store: Store, model: int, first: int, count: int, first_id: int = 0) -> bool:
    """Learn events with ids from `id_of(first)` or `id_of(first_id)` on, one commit for all. False if one is known."""
    none, ids = np.zeros(0), range(first_id or first, (first_id or first) + count)
    batch = Batch(np.zeros(count + 1, np.int64), none.astype(np.int32), none, np.zeros(count, np.uint8), np.ones(count))
    new = EventIds.of((id_of(id_), seq, seq * 7**15, -seq) for seq, id_ in enumerate(ids, first))
    return store.commit([ModelBatch(model, first, batch, 0, [], new)])


def move(store: Store) -> bool:
    """Do what is due, as the chores do. Whether there was anything."""
    if store.merging.flush_due:
        store.merging.flush()
    elif store.indexing.due:
        store.indexing.step()
    elif store.merging.merge_due:
        store.merging.merge()
    else:
        return False
    return True


def main(folder: Path, seed: int) -> None:
    make_small()
    print(os.getpid(), flush=True)
    numbers = Random(seed)
    store = Store(folder)
    model = store.log.models()[0].key if store.log.models() else store.create_model("m", {}).key
    last = store.log.last_seq(model)
    while True:
        count = numbers.choice((1, 1, 3, 30))
        assert commit(store, model, last + 1, count)
        last += count
        print(f"committed {last}", flush=True)
        while numbers.random() < 0.8 and move(store):
            pass


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
