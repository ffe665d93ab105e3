"""How far a replica is in its topic. It stands in the same transaction as what the records changed."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import NamedTuple

from service.storage.commits import Commits
from service.storage.database import Database

KEPT_SECONDS = 86_400.0
"""How long a broken stream is remembered, by the time of the topic. Whoever sends one hears of it within seconds."""


class Position(NamedTuple):
    """The newest record of a partition that is applied, and all before it. record: its offset. items: how many of its
    items are applied; 0 for all. at: the time of the partition, in microseconds since 1970. mark: the record's
    CRC-32."""

    record: int
    items: int
    at: int
    mark: int

    @property
    def whole(self) -> int:
        """The newest record all of which is applied."""
        return self.record - 1 if self.items else self.record


class Reached(NamedTuple):
    """What a commit says of the topic: the new positions, by partition, and the streams that are broken from now on,
    with the times."""

    positions: Mapping[int, Position] = {}
    broken: Mapping[str, int] = {}


class TopicName(NamedTuple):
    """The topic that a folder follows. id: Kafka's own, "" if the brokers have none. rules: JSON, see
    replica/rules.py."""

    name: str
    id: str
    rules: str


NOWHERE = Reached()


def read_topic(db: Database) -> TopicName | None:
    """The topic that the folder follows, None if it follows none."""
    for row in db.whole("the row of its topic is damaged", "SELECT one, name, id, rules, checksum FROM topic"):
        return TopicName(*row[1:])
    return None


def read_positions(db: Database) -> dict[int, Position]:
    query = "SELECT partition, record, items, at, mark, checksum FROM positions"
    wrong = "its position in partition {0} of its topic is damaged"
    return {partition: Position(*rest) for partition, *rest in db.whole(wrong, query)}


def read_broken(db: Database) -> dict[str, int]:
    """The streams of which nothing more is learned, and since when."""
    query = "SELECT stream, at, checksum FROM broken_streams"
    rows = db.whole("a broken stream of its topic cannot be read", query)
    return {str(stream): int(at) for stream, at in rows}


def follow(commits: Commits, topic: TopicName) -> None:
    """Record that the folder follows a topic."""
    with commits.transaction():
        commits.insert("topic", 1, *topic)


def leave(commits: Commits) -> None:
    """The folder follows its topic no more: what it learns from now on is its own."""
    with commits.transaction() as db:
        for table in ("topic", "positions", "broken_streams"):
            db.execute(f"DELETE FROM {table}")  # noqa: S608  # tables of ours


def write(db: sqlite3.Connection, commits: Commits, reached: Reached) -> None:
    """Write what was reached, in the transaction of what changed."""
    for partition, position in reached.positions.items():
        commits.replace("positions", partition, *position)
    for stream, at in reached.broken.items():
        commits.replace("broken_streams", stream, at)
        db.execute("DELETE FROM broken_streams WHERE at < ?", (at - int(KEPT_SECONDS * 1e6),))
