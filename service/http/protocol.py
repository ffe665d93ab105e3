"""The connections: uvicorn's protocol, with limits, and a short way for requests of one event.

Nearly all requests of `/learn` and `/predict` have one event. They are answered here when their last byte is there: no
task, no ASGI messages, head and body of the reply in one write. Measured with tests/benchmarks/http_benchmark.py at 32
connections: 3.9 times the peer's predictions, and 3.2 times through ASGI. What does not fit (an array, a stream, a
pipelined request) goes through ASGI like all the rest, and gets the same reply.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service import errors
from service.http.app import Service
from service.http.exchange import new_id
from service.http.hot import Asked, is_stream
from service.http.reply import CLOSE, Reply

_FIELD_BYTES = len(b": \r\n")


class Outbox:
    """Replies made in one turn of the loop, written at its end.

    Written at once, each would wake its client, which asks again before the next reply is made: with 32 clients on the
    same machine that cost a third of the rate.
    """

    def __init__(self) -> None:
        self._replies: list[tuple[Protocol, Any, Reply]] = []

    def put(self, connection: Protocol, cycle: Any, reply: Reply) -> None:
        """Write a reply when what is at hand has been read."""
        if not self._replies:
            connection.loop.call_soon(self._flush)
        self._replies.append((connection, cycle, reply))

    def _flush(self) -> None:
        replies, self._replies = self._replies, []
        for connection, cycle, reply in replies:
            connection.write_reply(cycle, reply)


class Protocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, service: Service, outbox: Outbox, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._service = service
        self._outbox = outbox
        self._held: tuple[Any, Asked] | None = None
        """A request whose head is there, and what it asks, until its body is."""
        self._refused: Any = None
        """A request that was refused by its head."""
        self._max_head = service.settings.max_header_bytes
        self._in_head = True
        self._at_most = self._at_least = 0
        """Bytes of the head, or of the last: in one read with it others may have come, or their bodies."""
        self._read = 0
        self._between = self._begins = True
        """Whether no message has begun that has not ended; whether that was so when the last read began, and no message
        has begun in it."""
        self._receives_since = self.loop.time()
        """When the request that is being received began, or the connection that has not sent one; infinite between."""
        self._sends_since = math.inf
        """When the client was first too slow to take what is written."""

    # -- the short way

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """uvicorn has the head of a request, or answers the next of those that were pipelined."""
        if cycle is self.cycle and cycle.more_body and app is self._service and not self.flow.write_paused:
            asked = self._service.asks_in_short(cycle.scope)
            if asked is None and self._service.refuse_by_head(cycle.scope, partial(self._reply, cycle)):
                self._refused = cycle
                cycle.body.clear()  # what came of it while others were answered
                return
            if asked is not None and not cycle.waiting_for_100_continue:
                self._held = cycle, asked
                return
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        # Nobody asks for a refused body: to keep what comes of it doubles what it costs to refuse half a megabyte.
        if self.cycle is not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._refused, self._between = None, True
        # What was refused by its head has had its reply, and uvicorn began to wait for the next request, but what came
        # of this one's body ended that.
        self._receives_since = self.loop.time() if self.cycle.response_complete else math.inf
        if self._held is not None:
            (cycle, asked), self._held = self._held, None
            if not self._service.answer_now(cycle.scope, asked, bytes(cycle.body), partial(self._reply, cycle)):
                super()._start_asgi_task(cycle, self.app)

    def _reply(self, cycle: Any, reply: Reply) -> None:
        self._outbox.put(self, cycle, reply)

    def write_reply(self, cycle: Any, reply: Reply) -> None:
        """Write a whole reply, and go on to what the client asks next."""
        if cycle.disconnected:
            return
        cycle.response_started = cycle.response_complete = True
        ends = CLOSE in reply.headers
        if not (cycle.keep_alive or ends):
            reply.headers.append(CLOSE)
        self.transport.write(reply.as_http())
        if ends or not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    # -- too many, too long, too slow

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        limit = self._service.settings.max_connections
        if len(self.connections) > limit:
            self.app = partial(self._service.refuse, errors.TooManyConnections(limit=limit))

    def data_received(self, data: bytes) -> None:
        self._read = len(data)
        self._at_most += self._read
        self._at_least += self._read
        self._begins = self._between
        super().data_received(data)
        if self._in_head and self._at_least > self._max_head and not self.transport.is_closing():
            self._end(errors.HeadTooLarge(limit=self._max_head))

    def on_message_begin(self) -> None:
        self._in_head, self._at_most = True, self._read
        self._at_least = self._read if self._begins else 0
        self._begins = self._between = False
        self._receives_since = self.loop.time()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        app = self.app
        if self._at_most > self._max_head and self._head_bytes() > self._max_head:
            self.app = partial(self._service.refuse, errors.HeadTooLarge(limit=self._max_head))
        super().on_headers_complete()
        self.app = app

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + _FIELD_BYTES for name, value in self.headers)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._sends_since = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._sends_since = math.inf

    def end_if_slow(self, seconds: float) -> None:
        """End a request that began `seconds` ago and has not arrived, or whose reply nobody takes.

        Streams have no end that could be late: what waits for their next bytes gives up by itself.
        """
        now = self.loop.time()
        if now - self._sends_since >= seconds:
            self.transport.abort()
        elif now - self._receives_since >= seconds:
            cycle: Any = self.cycle if self.cycle is not None and self.cycle.scope is self.scope else None
            if self.flow.read_paused:  # it is the service that is slow
                self._receives_since = now
            elif cycle is None or not (cycle.response_started or is_stream(cycle.scope)):
                self._end(errors.RequestTimeout(seconds=seconds))
            elif cycle.response_complete:  # refused before all of it was there
                self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's reply to what is not HTTP, as a problem document like all others."""
        self._end(errors.MalformedHttp())

    def _end(self, error: errors.OnestepError) -> None:
        """There is no request that could be answered, or not yet; unless another's reply is under way, say why."""
        if self.cycle is None or self.cycle.response_complete or self.cycle.scope is self.scope:
            self.transport.write(self._service.refusal(error, new_id().decode()).as_http())
        self.transport.close()
