"""The connections: uvicorn's protocol, with limits, and a short way for requests of one event.

Nearly all requests of `/learn` and `/predict` have one event. This module answers them as soon as their last byte
arrives: no task, no ASGI messages, and one write for head and body of the reply. Measured with
tests/benchmarks/http_benchmark.py at 32 connections: 3.9 times the peer's predictions, against 3.2 times through ASGI.
Arrays, streams and all other requests go through ASGI, and get the same replies.

A connection is read piece by piece, only as far as it can be answered. While a request waits for those before it, or
the client does not read its replies, the rest waits as bytes, and then in the client's own system.
"""

from __future__ import annotations

import asyncio
import fcntl
import math
import select
import termios
import time
from array import array
from collections import deque
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service import errors
from service.fairness import SLICE_SECONDS
from service.http.access import Asked
from service.http.app import Service
from service.http.asgi import Scope, is_stream
from service.http.crowd import Crowd
from service.http.cycle import Cycle
from service.http.exchange import new_id
from service.http.reply import CLOSE, KEEP, Reply

_NOTHING = memoryview(b"")
_FIELD_BYTES = len(b": \r\n")
_PIECE = 4_096
"""Bytes read before checking whether more can be answered: some two hundred of the smallest requests."""
_WAITING_BYTES = 2_048
"""Approximate size of a request that waits in line."""
_ONCE = {b"host", b"content-type", b"authorization", b"origin"}
"""Headers that the service trusts. If one came twice, a proxy in front might have looked at the other one."""
_OFFER = (b"upgrade", b"http2-settings")
_CLOSING_SECONDS = 1.0
"""How long a client may take to close TLS, once another connection has its place."""


def _untaken(fd: int) -> int:
    """Bytes that the system has and the other side has not acknowledged."""
    count = array("i", [0])
    with suppress(OSError):  # not every system has this
        fcntl.ioctl(fd, termios.TIOCOUTQ, count)
    return count[0]


class Flow(FlowControl):
    """Whether a connection is read. Reading goes on only when no reason to wait is left, whoever asks for it."""

    def __init__(self, connection: Protocol) -> None:
        super().__init__(connection.transport)
        self._connection = connection

    def resume_reading(self) -> None:
        if self.read_paused and self._connection.may_read:
            self.read_paused = False
            self._connection.read_on()
            if not self.read_paused:
                self._transport.resume_reading()


class Protocol(HttpToolsProtocol):
    """One connection."""

    cycle: Cycle | None  # type: ignore[assignment]  # uvicorn's type is wider
    """The last request."""
    pipeline: deque[tuple[Cycle, Any]]  # type: ignore[assignment]
    """Requests that wait in line, the last one first, and the application that answers each."""

    def __init__(self, service: Service, crowd: Crowd, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._service = service
        self._crowd = crowd
        self.serving: Cycle | None = None
        """The request being answered. Those after it are in `pipeline`."""
        self._held: tuple[Cycle, Asked] | None = None
        """A request that waits for its body, and what it asks."""
        self._refused: Cycle | None = None
        """A request refused by its head."""
        self._offered: bytes | None = None
        """The request line of a request that offers another protocol."""
        self._came = _NOTHING
        """Bytes received but not read yet."""
        self._over = False
        """Whether reading has ended: the client has ended its side, or its bytes can no longer be understood."""
        self._rests = False
        """Whether others get a turn before more is read."""
        self._last_words: errors.LogstepError | None = None
        """The reason, if it must be sent after all replies."""
        self._max_head = service.settings.max_header_bytes
        self._in_head = True
        self._at_most = self._at_least = 0
        """Bounds of the size of the current or last head, in bytes. One read may also contain other heads, or
        bodies."""
        self._read = 0
        self._between = self._begins = True
        """_between: whether no message has begun that has not ended. _begins: whether that was so when the last read
        began, and no message has begun in it."""
        self._receives_since = self.taken_at = self.loop.time()
        """When the current request began, or the connection if it has sent none; infinite between requests."""
        self._left = 0
        """Bytes of replies that the client had not read at the last look. `taken_at`: when it last read some, or had
        nothing to read."""

    # -- what the client sends

    @property
    def may_read(self) -> bool:
        """Whether more can be answered."""
        return not (self.pipeline or self.flow.write_paused or self._over or self._rests)

    def data_received(self, data: bytes) -> None:
        came, flow = self._came, self.flow
        if len(data) <= _PIECE and not (came or flow.read_paused):  # nearly always
            taken = self._feed(data)
            if taken == len(data):
                return
            data = data[taken:]
        self._came = memoryview(bytes(came) + data if came else data)
        self.read_on()

    def read_on(self) -> None:
        """Read as much of the received bytes as can be answered, but only for one slice: a body in chunks of one byte
        has thousands of them."""
        until = time.perf_counter() + SLICE_SECONDS
        while self._came and not self.flow.read_paused:
            taken = self._feed(self._came[:_PIECE])
            self._came = self._came[taken:]
            if self._came and time.perf_counter() >= until:
                self._rests = True
                self.flow.pause_reading()
                self.loop.call_soon(self._read_after_rest)
        if not self._came:
            self._came = _NOTHING  # an empty view would keep the whole buffer in memory

    def _read_after_rest(self) -> None:
        self._rests = False
        self.flow.resume_reading()

    def _feed(self, piece: memoryview | bytes) -> int:
        """Give a piece to the parser. Returns how much of it was read."""
        self._read = taken = len(piece)
        self._at_most += taken
        self._at_least += taken
        self._begins = self._between
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            taken = upgrade.args[0]
            self._decline()
        except httptools.HttpParserError:
            self._end(errors.MalformedHttp())
        if self._in_head and self._at_least > self._max_head:
            self._end(errors.HeadTooLarge(limit=self._max_head))
        return taken

    def _decline(self) -> None:
        """Read a head that offered another protocol again, without the offer (RFC 9110, 7.8).

        Else the parser would treat the offer as accepted, and everything after the head as the other protocol.
        """
        if self._offered is None:  # CONNECT means nothing else
            self._close_after_last()
            return
        fields = [b"%b: %b\r\n" % field for field in self.headers if field[0] not in _OFFER]
        head, self._offered = b"".join([self._offered, *fields, b"\r\n"]), None
        self._feed(head)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's may return that the connection stays open
        """The client sends no more. Answer what it has asked, then close the connection.

        Not over TLS: there, for asyncio and most clients, the end of one side ends both.
        """
        if self.scheme == "https":
            return False
        if self._between:
            self._close_after_last()
        else:
            self._end(errors.BodyIncomplete() if self._of_this_message else errors.MalformedHttp())
        closes = self.cycle is None or self.cycle.response_complete or self.transport.is_closing()
        return not closes

    def _close_after_last(self) -> None:
        """Read nothing more, and close after the last reply."""
        self._stop_reading()
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def _stop_reading(self) -> None:
        self._over, self._came = True, _NOTHING
        self.flow.pause_reading()

    @property
    def _of_this_message(self) -> Cycle | None:
        """The cycle of the message being received, if its head is complete."""
        return self.cycle if self.cycle is not None and self.cycle.scope is self.scope else None

    # -- what the parser finds

    def on_message_begin(self) -> None:
        self._crowd.idle.remove(self)
        self._in_head, self._at_most = True, self._read
        self._at_least = self._read if self._begins else 0
        self._begins = self._between = False
        self._receives_since = self.loop.time()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:  # a trailer; nothing uses those
            return
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if self.parser.should_upgrade() and method != b"CONNECT":
            self._offered = b"%b %b HTTP/%b\r\n" % (method, self.url, version.encode())
            return
        url = httptools.parse_url(self.url)
        path = (url.path or b"/").decode("ascii")
        self.scope["method"], self.scope["http_version"] = method.decode("ascii"), version
        self.scope["path"] = unquote(path) if "%" in path else path
        self.scope["raw_path"], self.scope["query_string"] = url.path or b"/", url.query or b""
        wrong = self._wrong_with_head(version)
        if url.host and wrong is None and not self._is_of(url.host):
            wrong = errors.UnclearHead(reason="names one host in its first line and another in the header host")
        app = self.app if wrong is None else partial(self._service.refuse, wrong)
        before, self.cycle = self.cycle, self._new_cycle(version)
        if before is None or (before.response_complete and not self.flow.write_paused):
            self._start(self.cycle, app)
        else:
            self.pipeline.appendleft((self.cycle, app))
            self.flow.pause_reading()

    def _new_cycle(self, version: str) -> Cycle:
        cycle = Cycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue and version == "1.1",
            keep_alive=self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        cycle.connection = self
        return cycle

    def _wrong_with_head(self, version: str) -> errors.LogstepError | None:
        """What is wrong with a head, whatever it asks."""
        if self._at_most > self._max_head and self._head_bytes() > self._max_head:
            return errors.HeadTooLarge(limit=self._max_head)
        fields = dict(self.headers)
        if len(fields) < len(self.headers):
            names = [name for name, _ in self.headers]
            for name in _ONCE:
                if names.count(name) > 1:
                    return errors.UnclearHead(reason=f"has the header {name.decode()} more than once")
        if b"transfer-encoding" in fields:
            codings = b", ".join(value for name, value in self.headers if name == b"transfer-encoding")
            if version != "1.1" or codings.lower() != b"chunked":
                shown = codings.decode("latin-1")[:100]
                return errors.UnclearHead(reason=f"has the transfer coding {shown!r} in HTTP/{version}")
        return None

    def _is_of(self, host: bytes) -> bool:
        """Whether the header Host has this name. A request in absolute form also has a name, which takes precedence."""
        told = dict(self.headers).get(b"host", b"")
        name = told if told.endswith(b"]") else told.rpartition(b":")[0] or told
        return name.strip(b"[]").lower() == host.lower()

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + _FIELD_BYTES for name, value in self.headers)

    def on_body(self, body: bytes) -> None:
        # Nobody reads a refused body. Storing it would double the cost of refusing half a megabyte.
        if self.cycle is not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._between = True
        if self._offered is not None:
            return
        super().on_message_complete()
        self._refused = None
        self._receives_since = math.inf
        if self._held is not None:
            (cycle, asked), self._held = self._held, None
            if not self._answer_now(cycle, asked):
                self._start_task(cycle, self.app)
        elif self.cycle is not None and self.cycle.response_complete:  # refused before it was complete
            self._crowd.idle.add(self, self.loop.time())

    # -- what is answered

    def _start(self, cycle: Cycle, app: Any) -> None:
        """Answer a request. The body of the last one may be incomplete."""
        self.serving = cycle
        if app is self._service:
            asked = self._service.asks_in_short(cycle.scope)
            if asked is None:
                if cycle.more_body and self._service.refuse_by_head(cycle.scope, partial(self._reply, cycle)):
                    self._refused = cycle
                    cycle.body.clear()  # what arrived while others were answered
                    return
            elif not cycle.waiting_for_100_continue:
                if cycle.more_body and not cycle.ends_early:
                    self._held = cycle, asked
                    return
                if not cycle.more_body and self._answer_now(cycle, asked):
                    return
        self._start_task(cycle, app)

    def _answer_now(self, cycle: Cycle, asked: Asked) -> bool:
        return self._service.answer_now(cycle.scope, asked, bytes(cycle.body), partial(self._reply, cycle))

    def _start_task(self, cycle: Cycle, app: Any) -> None:
        task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _reply(self, cycle: Cycle, reply: Reply) -> None:
        self._crowd.outbox.put(self, cycle, reply)

    def write_reply(self, cycle: Cycle, reply: Reply) -> None:
        """Write a whole reply, and go on to the client's next request."""
        if cycle.disconnected:
            return
        cycle.response_started = cycle.response_complete = True
        ends = CLOSE in reply.headers
        if not (cycle.keep_alive or ends):
            reply.headers.append(CLOSE)
        elif not ends and cycle.scope["http_version"] != "1.1":
            reply.headers.append(KEEP)
        self.transport.write(reply.as_http())
        if ends or not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if not (self.transport.is_closing() or self.flow.write_paused):
            self._go_on()

    def _go_on(self) -> None:
        """Go on after a reply: to the next request in line, or to the received bytes."""
        if self.pipeline:
            self._start(*self.pipeline.pop())
        elif self._last_words is not None:
            self._say_and_close(self._last_words)
        elif self._between:
            self._crowd.idle.add(self, self.loop.time())
        self.flow.resume_reading()

    # -- what is wrong

    def _end(self, error: errors.LogstepError) -> None:
        """Nothing more from this client can be answered. Send the pending replies, then the reason, and close."""
        last, broken = self.cycle, None if self._between else self._of_this_message
        self._stop_reading()
        if broken is None:
            if last is None or last.response_complete:
                self._say_and_close(error)
            elif last.keep_alive:
                self._last_words = error
        elif broken.response_started:  # the client would take a second head for a part of the reply
            broken.vanish()
            self.transport.close()
        elif broken is self._refused:  # its reply is in the outbox
            broken.keep_alive = False
        elif self._held is not None or isinstance(error, errors.RequestTimeout):
            self._held = None
            broken.vanish()
            self._say_and_close(error)
        else:  # the reader of the body can say what it has learned so far
            broken.end_early()

    def _say_and_close(self, error: errors.LogstepError) -> None:
        self.transport.write(self._service.refusal(error, new_id().decode()).as_http())
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Replaces uvicorn's reply to invalid HTTP by a problem document."""
        self._end(errors.MalformedHttp())

    # -- too many, too long, too slow, gone

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.flow = Flow(self)
        limit = self._service.settings.max_connections
        if len(self.connections) > limit and not self._crowd.idle.close_one():
            self.app = partial(self._service.refuse, errors.TooManyConnections(limit=limit))
        self._crowd.idle.add(self, self.loop.time())

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for cycle in (self.serving, self.cycle):
            if cycle is not None:
                cycle.vanish()
        self.pipeline.clear()
        self._over, self._came = True, _NOTHING
        self._crowd.forget(self)

    def close_at_rest(self) -> bool:
        """Close an idle connection. False if a request has arrived unread, or a reply is on its way."""
        if self.transport.get_write_buffer_size() or self._look(select.POLLIN):
            return False
        self.connections.discard(self)  # another takes its place now
        self.transport.close()
        if self.scheme == "https":
            self.loop.call_later(_CLOSING_SECONDS, self.transport.abort)
        return True

    def pause_writing(self) -> None:
        super().pause_writing()
        self.taken_at = self.loop.time()
        self.flow.pause_reading()
        self._crowd.unsent.add(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.taken_at = self.loop.time()
        self._crowd.unsent.remove(self)
        if self.transport.is_closing():
            return
        if self.serving is None or self.serving.response_complete:
            self._go_on()
        else:
            self.flow.resume_reading()

    def has_room(self, size: int) -> bool:
        """Whether a reply of so many bytes may wait for its client to read it."""
        return self._crowd.unsent.has_room(size, self.loop.time())

    def refuse_large(self, scope: Scope, request_id: str) -> Reply:
        """The reply if it may not."""
        error = errors.TooMuchUntaken(limit=self._service.settings.max_unsent_bytes)
        return self._service.refusal(error, request_id, scope)

    def held_bytes(self) -> int:
        """Bytes that the service stores because this client does not read."""
        self._look_whether_taken()
        writes = 0 if self.serving is None else self.serving.writes
        waits = len(self._came) + _WAITING_BYTES * len(self.pipeline)
        return writes + self.transport.get_write_buffer_size() + waits

    def _look_whether_taken(self) -> None:
        """Check whether the client has read anything since the last call."""
        left = self.transport.get_write_buffer_size()
        if left:  # the system holds megabytes more; a slow client may read those before any of ours
            left += _untaken(self.transport.get_extra_info("socket").fileno())
        if not left or left < self._left:
            self.taken_at = self.loop.time()
        self._left = left

    def end_if_slow(self, seconds: float) -> None:
        """End a request that has not arrived for `seconds`, or a reply of which the client has read nothing for so
        long.

        Streams have no deadline. The code that waits for their next bytes has its own time limit.
        """
        self._look_whether_taken()
        now, cycle = self.loop.time(), self._of_this_message
        if now - self.taken_at >= seconds:
            self.give_up(errors.ReplyNotTaken(seconds=seconds))
        elif self.flow.read_paused and self._look(0):  # else the loop would have noticed
            self.transport.abort()
        elif now - self._receives_since >= seconds and not self._over:
            if self.flow.read_paused:  # it is the service that is slow
                self._receives_since = now
            elif cycle is None or not (cycle.response_started or is_stream(cycle.scope)):
                self._end(errors.RequestTimeout(seconds=seconds))
            elif cycle.response_complete:  # refused before it was complete
                self.transport.close()

    def give_up(self, error: errors.LogstepError) -> None:
        """Cut a connection whose client does not read its reply, and log and count the reason."""
        self._service.refusal(error, new_id().decode(), None if self.serving is None else self.serving.scope)
        self.transport.abort()

    def _look(self, events: int) -> int:
        """Which of these events the socket has, or POLLHUP or POLLERR if the other side is gone."""
        if self.transport.is_closing():
            return 0
        looks = select.poll()
        looks.register(self.transport.get_extra_info("socket").fileno(), events)
        return sum(found for _, found in looks.poll(0))
