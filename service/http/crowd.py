"""What all connections share: the replies of one turn of the loop, who is idle, and who does not read its replies."""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import select
import termios
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress

from starlette.types import Scope

from service import errors
from service.fairness import SLICE_SECONDS
from service.http.reply import Reply
from service.settings import Settings

STILL_SECONDS = 1.0
"""A client that has read nothing for so long may lose its place to others."""
_CLOSING_SECONDS = 1.0
"""How long a client may take to close TLS, once another connection has its place."""


class Crowd:
    """All connections together."""

    def __init__(self, settings: Settings) -> None:
        self.peers: set[Peer] = set()
        self.outbox = Outbox()
        self.idle = Idle()
        self.unsent = Unsent(settings.max_unsent_bytes)

    def make_room(self) -> bool:
        """Close the connection that has been idle for longest. False if none can be closed."""
        for peer in self.idle:
            if peer.close_at_rest():
                self.forget(peer)
                return True
        return False

    def cut_viewers(self) -> None:
        """Cut event streams that are still open, and replies whose clients read too slowly."""
        for peer in list(self.peers):
            views = peer.scope is not None and peer.scope["path"].endswith("/stream")
            if views or peer in self.unsent:
                peer.transport.abort()

    def forget(self, peer: Peer) -> None:
        """A connection has ended."""
        self.peers.discard(peer)
        self.idle.remove(peer)
        self.unsent.remove(peer)


class Peer:
    """The other end of a connection: whether it is there, and what it has not read of its replies."""

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        waits: Callable[[], int],
        late: Callable[[float, float], None],
        refusal: Callable[[errors.LogstepError, Scope | None], Reply],
    ) -> None:
        """waits: bytes that wait for it besides the transport's. late: ends a request that arrives too slowly, given
        the time and the limit in seconds. refusal: logs and counts an error."""
        self.transport = transport
        self._loop = loop
        self._waits, self._late, self._refusal = waits, late, refusal
        self.scope: Scope | None = None
        """The request being answered, or the last one; None before the first."""
        self.taken_at = loop.time()
        """When it last read some of its replies, or had nothing to read."""
        self._left = 0
        """Bytes of replies that it had not read at the last look."""

    def close_at_rest(self) -> bool:
        """Close an idle connection. False if a request has arrived unread, or a reply is on its way."""
        if self.transport.get_write_buffer_size() or self._look(select.POLLIN):
            return False
        self.transport.close()
        if self.transport.get_extra_info("sslcontext"):
            self._loop.call_later(_CLOSING_SECONDS, self.transport.abort)
        return True

    def held_bytes(self) -> int:
        """Bytes that the service stores because this client does not read."""
        self._look_whether_taken()
        return self.transport.get_write_buffer_size() + self._waits()

    def end_if_slow(self, seconds: float) -> None:
        """Cut the connection if the client has read nothing of a reply for `seconds`, or is gone."""
        self._look_whether_taken()
        now = self._loop.time()
        if now - self.taken_at >= seconds:
            self.cut(errors.ReplyNotTaken(seconds=seconds))
        else:
            self._late(now, seconds)

    def cut(self, error: errors.LogstepError) -> None:
        """Cut the connection, and log and count the reason."""
        self._refusal(error, self.scope)
        self.transport.abort()

    @property
    def is_gone(self) -> bool:
        """Whether the other side has gone. The loop would notice only if the connection was read."""
        return bool(self._look(0))

    def _look_whether_taken(self) -> None:
        """Check whether the client has read anything since the last call."""
        left = self.transport.get_write_buffer_size()
        if left:  # the system holds megabytes more; a slow client may read those before any of ours
            left += _untaken(self.transport.get_extra_info("socket").fileno())
        if not left or left < self._left:
            self.taken_at = self._loop.time()
        self._left = left

    def _look(self, events: int) -> int:
        """Which of these events the socket has, or POLLHUP or POLLERR if the other side is gone."""
        if self.transport.is_closing():
            return 0
        looks = select.poll()
        looks.register(self.transport.get_extra_info("socket").fileno(), events)
        return sum(found for _, found in looks.poll(0))


def _untaken(fd: int) -> int:
    """Bytes that the system has and the other side has not acknowledged."""
    count = array("i", [0])
    with suppress(OSError):  # not every system has this
        fcntl.ioctl(fd, termios.TIOCOUTQ, count)
    return count[0]


class Outbox:
    """Replies made in one turn of the loop, written at its end.

    Written at once, each would wake its client, which would ask again before the next reply is made. With 32 clients on
    the same machine that cost a third of the rate.
    """

    def __init__(self) -> None:
        self._replies: list[tuple[Callable[[Reply], None], Reply]] = []

    def put(self, loop: asyncio.AbstractEventLoop, write: Callable[[Reply], None], reply: Reply) -> None:
        """Write a reply after the requests at hand have been read."""
        if not self._replies:
            loop.call_soon(self._flush, loop)
        self._replies.append((write, reply))

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        """Write the replies. If that takes long, others get a turn before the rest. After each reply, its connection
        goes on to its next request."""
        replies, self._replies = self._replies, []
        until = time.perf_counter() + SLICE_SECONDS
        for i, (write, reply) in enumerate(replies, 1):
            write(reply)
            if time.perf_counter() >= until and i < len(replies):
                if not self._replies:
                    loop.call_soon(self._flush, loop)
                self._replies[:0] = replies[i:]
                return


class Idle:
    """Idle clients, the one that has been idle for longest first."""

    def __init__(self) -> None:
        self._since: dict[Peer, float] = {}

    def add(self, peer: Peer, now: float) -> None:
        """A client has become idle, or is idle again."""
        self._since.pop(peer, None)
        self._since[peer] = now

    def remove(self, peer: Peer) -> None:
        """A client is no longer idle."""
        self._since.pop(peer, None)

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._since)

    def close_all_since(self, then: float) -> None:
        """Close those that have been idle since `then`."""
        old = itertools.takewhile(lambda peer: self._since[peer] <= then, self)
        for peer in [peer for peer in old if peer.close_at_rest()]:
            self.remove(peer)


class Unsent:
    """Bytes written but not sent, because clients do not read them. All together have a limit, however many clients
    there are. Past it, the clients that have read nothing for longest are cut."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: dict[Peer, int] = {}
        """Bytes of each client at the last look; they only become fewer since."""
        self._all = 0

    def __contains__(self, peer: Peer) -> bool:
        return peer in self._held

    def has_room(self, size: int, now: float) -> bool:
        """Whether so many more bytes may wait. Only clients that have read nothing for STILL_SECONDS are cut for
        them."""
        self._make_room(size, lambda peer: now - peer.taken_at >= STILL_SECONDS)
        return self._all + size <= self.limit or not self._held

    def add(self, peer: Peer) -> None:
        """A connection waits for its client to read. Its bytes are counted once, now."""
        self._held[peer] = size = peer.held_bytes()
        self._all += size
        self._make_room(0, lambda other: other is not peer)  # even if it exceeds the limit alone

    def remove(self, peer: Peer) -> None:
        """The connection no longer waits."""
        self._all -= self._held.pop(peer, 0)

    def _make_room(self, size: int, gives_way: Callable[[Peer], bool]) -> None:
        if self._all + size <= self.limit:
            return
        self._held = {peer: peer.held_bytes() for peer in self._held}
        self._all = sum(self._held.values())
        for peer in sorted(self._held, key=lambda peer: peer.taken_at):
            if self._all + size <= self.limit:
                return
            if gives_way(peer):
                self.remove(peer)
                peer.cut(errors.TooMuchUntaken(limit=self.limit))
