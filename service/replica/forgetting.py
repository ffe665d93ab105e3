"""Retention of a node. Which events and ids go is a record, so that all nodes forget the same at the same place."""

from __future__ import annotations

import math
from collections.abc import Callable

from service.clock import Clock
from service.learning.model import Model
from service.learning.retention import Limit, Retention, up_to
from service.settings import Settings
from service.storage.forgotten import NOTHING, Forgotten
from service.storage.store import Store

SHARE = 8
"""Old events are forgotten when they are at least one for so many that stay: each time takes a record."""
SHARE_OF_IDS = 2
"""The same of ids. To remove some from the disk, all are looked at."""


class Forgetting(Retention):
    """Asks the nodes to forget what its limits let go, and removes from this node's disk what is forgotten. ask: gets a
    model's name; called in the disk's thread."""

    def __init__(self, settings: Settings, clock: Clock, ask: Callable[[str, Forgotten], None]) -> None:
        super().__init__(settings.keep_events, settings.keep_ids, settings.keep_min, clock)
        self._ask = ask

    def events_limit(self, store: Store, model: Model, last: int) -> Limit:
        forgotten = store.log.forgotten.get(model.stored.key, NOTHING)
        old = up_to(store, model, super().events_limit(store, model, last))
        if old - forgotten.events > (last - old) / SHARE:
            self._ask(model.name, Forgotten(events=old))
        return Limit(forgotten.events, math.inf)

    def ids_limit(self, store: Store, model: Model, last: int) -> int:
        forgotten = store.log.forgotten.get(model.stored.key, NOTHING)
        old = super().ids_limit(store, model, last)
        if old - forgotten.ids > (last - old) / SHARE_OF_IDS:
            self._ask(model.name, Forgotten(ids=old))
        return forgotten.ids
