"""What all connections share: the replies of one turn of the loop, who is idle, and who does not read its replies."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from service import errors
from service.fairness import SLICE_SECONDS
from service.http.cycle import Cycle
from service.http.reply import Reply
from service.settings import Settings

if TYPE_CHECKING:
    from service.http.connection import Protocol


STILL_SECONDS = 1.0
"""A client that has read nothing for so long may lose its place to others."""


class Crowd:
    """All connections together."""

    def __init__(self, settings: Settings) -> None:
        self.outbox = Outbox()
        self.idle = Idle()
        self.unsent = Unsent(settings.max_unsent_bytes)

    def forget(self, connection: Protocol) -> None:
        """A connection has ended."""
        self.idle.remove(connection)
        self.unsent.remove(connection)


class Outbox:
    """Replies made in one turn of the loop, written at its end.

    Written at once, each would wake its client, which would ask again before the next reply is made. With 32 clients on
    the same machine that cost a third of the rate.
    """

    def __init__(self) -> None:
        self._replies: list[tuple[Protocol, Cycle, Reply]] = []

    def put(self, connection: Protocol, cycle: Cycle, reply: Reply) -> None:
        """Write a reply after the requests at hand have been read."""
        if not self._replies:
            connection.loop.call_soon(self._flush)
        self._replies.append((connection, cycle, reply))

    def _flush(self) -> None:
        """Write the replies. If that takes long, others get a turn before the rest. After each reply, its connection
        goes on to its next request."""
        replies, self._replies = self._replies, []
        until = time.perf_counter() + SLICE_SECONDS
        for i, (connection, cycle, reply) in enumerate(replies, 1):
            connection.write_reply(cycle, reply)
            if time.perf_counter() >= until and i < len(replies):
                if not self._replies:
                    connection.loop.call_soon(self._flush)
                self._replies[:0] = replies[i:]
                return


class Idle:
    """Idle connections, the one that has been idle for longest first."""

    def __init__(self) -> None:
        self._since: dict[Protocol, float] = {}

    def add(self, connection: Protocol, now: float) -> None:
        """A connection has become idle, or is idle again."""
        self._since.pop(connection, None)
        self._since[connection] = now

    def remove(self, connection: Protocol) -> None:
        """A connection is no longer idle."""
        self._since.pop(connection, None)

    def close_one(self) -> bool:
        """Close the one that has been idle for longest, to make room for another. False if none can be closed."""
        for connection in self._since:
            if connection.close_at_rest():
                self.remove(connection)
                return True
        return False

    def close_all_since(self, then: float) -> None:
        """Close those that have been idle since `then`."""
        closed = []
        for connection, since in self._since.items():
            if since > then:
                break
            if connection.close_at_rest():
                closed.append(connection)
        for connection in closed:
            self.remove(connection)


class Unsent:
    """Bytes written but not sent, because clients do not read them. All together have a limit, however many clients
    there are. Past it, the clients that have read nothing for longest are cut."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[Protocol, int] = {}
        """Bytes of each connection at the last look; they only become fewer since."""
        self._all = 0

    def has_room(self, size: int, now: float) -> bool:
        """Whether so many more bytes may wait. Only clients that have read nothing for STILL_SECONDS are cut for
        them."""
        self._make_room(size, lambda connection: now - connection.taken_at >= STILL_SECONDS)
        return self._all + size <= self._limit or not self._held

    def add(self, connection: Protocol) -> None:
        """A connection waits for its client to read. Its bytes are counted once, now."""
        self._held[connection] = size = connection.held_bytes()
        self._all += size
        self._make_room(0, lambda other: other is not connection)  # even if it exceeds the limit alone

    def remove(self, connection: Protocol) -> None:
        """The connection no longer waits."""
        self._all -= self._held.pop(connection, 0)

    def _make_room(self, size: int, gives_way: Callable[[Protocol], bool]) -> None:
        if self._all + size <= self._limit:
            return
        self._held = {connection: connection.held_bytes() for connection in self._held}
        self._all = sum(self._held.values())
        for connection in sorted(self._held, key=lambda connection: connection.taken_at):
            if self._all + size <= self._limit:
                return
            if gives_way(connection):
                self.remove(connection)
                connection.give_up(errors.TooMuchUntaken(limit=self._limit))
