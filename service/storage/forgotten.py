"""What the nodes of a topic have forgotten of a model, up to which seq. A record says so, so that all forget the same.

It holds from that record on, at once: nobody finds an id, or an event to correct, that is forgotten. Its rows may still
be there, because each node removes them later, in short pieces. A single node needs no such row: what it has removed is
forgotten.
"""

from __future__ import annotations

from typing import NamedTuple

from service.storage.database import Database


class Forgotten(NamedTuple):
    """The ids of events up to a seq, and the events up to a seq; 0 for none."""

    ids: int = 0
    events: int = 0

    def joined(self, other: Forgotten) -> Forgotten:
        """What is forgotten by both."""
        return Forgotten(max(self.ids, other.ids), max(self.events, other.events))


NOTHING = Forgotten()


def read_forgotten(db: Database) -> dict[int, Forgotten]:
    """What is forgotten of each model. LogDamaged if a row is damaged."""
    query = "SELECT model, ids, events, checksum FROM forgotten"
    rows = db.whole("the row that says what is forgotten of model number {0} is damaged", query)
    return {model: Forgotten(ids, events) for model, ids, events in rows}
