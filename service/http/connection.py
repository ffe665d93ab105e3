"""The connections: uvicorn's protocol, with limits, and a short way for requests of one event.

Nearly all requests of `/learn` and `/predict` have one event. They are answered as soon as their last byte arrives: no
task, no ASGI messages, and one write for head and body of the reply. Arrays, streams and all other requests go through
ASGI, and get the same replies.

Only this file uses uvicorn's insides. `fits` says whether they are those that it was written for.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from functools import partial
from typing import Any
from urllib.parse import unquote

import httptools
from starlette.types import Message
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service import errors
from service.fairness import SLICE_SECONDS
from service.http.access import Asked
from service.http.app import Service
from service.http.bodies import is_stream
from service.http.crowd import Crowd, Peer
from service.http.heads import HeadSize, size_of, without_offer, wrong_with
from service.http.reply import CLOSE, KEEP, Reply

SINCE, BEFORE = (0, 45), (0, 55)
"""The versions of uvicorn that this file was written for, as in pyproject.toml."""
_NOTHING = memoryview(b"")
_PIECE = 4_096
"""Bytes read before checking whether more can be answered: some two hundred of the smallest requests. The rest of a
body is read at once, if its head says how long it is."""
_WAITING_BYTES = 2_048
"""Approximate size of a request that waits in line."""
_WITHOUT_BODY = (204, 304)
_OF_EVERY_REPLY = (b"x-request-id", b"connection")


def fits(version: str) -> bool:
    """Whether this version of uvicorn is one that this file was written for."""
    major, minor = version.split(".")[:2]
    return SINCE <= (int(major), int(minor)) < BEFORE


class Flow(FlowControl):
    """What is read of a connection: piece by piece, and only as far as it can be answered.

    While a request waits for those before it, or the client does not read its replies, the rest waits as bytes, and
    then in the client's own system. Reading goes on only when no reason to wait is left, whoever asks for it.
    """

    def __init__(self, connection: Protocol) -> None:
        super().__init__(connection.transport)
        self._connection = connection
        self.came: memoryview = _NOTHING
        """Bytes received but not read yet."""
        self.body_left = 0
        """Bytes of the current body that are still to come, if its head says how long it is; else 0 or less."""
        self.over = False
        """Whether reading has ended: the client has ended its side, or its bytes can no longer be understood."""
        self._rests = False
        """Whether others get a turn before more is read."""

    def receive(self, data: bytes) -> None:
        """Read these bytes, or keep them for later."""
        if len(data) <= _PIECE and not (self.came or self.read_paused):  # nearly always
            taken = self._connection.feed(data)
            if taken == len(data):
                return
            data = data[taken:]
        self.came = memoryview(bytes(self.came) + data if self.came else data)
        self._read_on()

    def _read_on(self) -> None:
        """Read as much as can be answered, but only for one slice: a body in chunks of one byte has thousands of
        them."""
        until = time.perf_counter() + SLICE_SECONDS
        while self.came and not self.read_paused:
            taken = self._connection.feed(self.came[: max(_PIECE, self.body_left)])
            self.came = self.came[taken:]
            if self.came and time.perf_counter() >= until:
                self._rests = True
                self.pause_reading()
                self._connection.loop.call_soon(self._after_rest)
        if not self.came:
            self.came = _NOTHING  # an empty view would keep the whole buffer in memory

    def _after_rest(self) -> None:
        self._rests = False
        self.resume_reading()

    def resume_reading(self) -> None:
        if self.read_paused and not (self._connection.pipeline or self.write_paused or self.over or self._rests):
            self.read_paused = False
            self._read_on()
            if not self.read_paused:
                self._transport.resume_reading()

    def forget(self) -> None:
        """Nothing more will be read."""
        self.over, self.came = True, _NOTHING

    def stop(self) -> None:
        """Read nothing more."""
        self.forget()
        self.pause_reading()

    def close_after_last(self) -> None:
        """Read nothing more, and close after the last reply."""
        self.stop()
        if self._connection.cycle is not None:
            self._connection.cycle.keep_alive = False

    def waiting_bytes(self) -> int:
        """Bytes that wait because the client does not read its replies."""
        serving, line = self._connection.serving, self._connection.pipeline
        return (0 if serving is None else serving.writes) + len(self.came) + _WAITING_BYTES * len(line)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._connection.peer.taken_at = self._connection.loop.time()
        self.pause_reading()
        self._connection.crowd.unsent.add(self._connection.peer)

    def resume_writing(self) -> None:
        super().resume_writing()
        connection = self._connection
        connection.peer.taken_at = connection.loop.time()
        connection.crowd.unsent.remove(connection.peer)
        if self._transport.is_closing():
            return
        if connection.serving is None or connection.serving.response_complete:
            connection.go_on()
        else:
            self.resume_reading()


class Cycle(RequestResponseCycle):
    """A request on a connection and its reply, as ASGI defines them: uvicorn's class, with three additions.

    If a client ends its side of the connection in the middle of a body, it gets a reply that says so; uvicorn would
    treat it as gone. A large reply is written as fast as the client reads it, and refused if too many wait already.
    HTTP/1.0 clients may keep their connections, and get no chunks: a reply of unknown length ends with the connection.
    """

    scope: dict[str, Any]  # type: ignore[assignment]  # uvicorn says which members it has
    connection: Protocol
    ends_early = False
    """Whether the body ended early and no more of it will come."""
    writes = 0
    """Bytes of the reply that are stored while they are written."""
    _head: Message | None = None
    """The head of a reply that waits for its body."""
    _until_the_end = False
    """Whether the end of the connection marks the end of the reply."""

    def end_early(self) -> None:
        """No more of the body will come. Its reader learns so, and may still reply."""
        self.ends_early, self.keep_alive = True, False
        self.message_event.set()

    def vanish(self) -> None:
        """The client is gone: read and write nothing more."""
        if not self.response_complete:
            self.disconnected = True
        self.message_event.set()

    def answer_now(self, asked: Asked) -> bool:
        """Answer a request whose body is there. False if it takes long after all."""
        return self.connection.service.answer_now(self.scope, asked, bytes(self.body), self.put)

    def put(self, reply: Reply) -> None:
        """Write a whole reply at the end of this turn of the loop."""
        self.connection.crowd.outbox.put(self.connection.loop, self._write_whole, reply)

    def _write_whole(self, reply: Reply) -> None:
        if self.disconnected:
            return
        self.response_started = self.response_complete = True
        ends = CLOSE in reply.headers
        if not (self.keep_alive or ends):
            reply.headers.append(CLOSE)
        elif not ends and self.scope["http_version"] != "1.1":
            reply.headers.append(KEEP)
        self.transport.write(reply.as_http())
        if ends or not self.keep_alive:
            self.transport.close()
        self.connection.on_response_complete()

    async def receive(self) -> Any:
        """The next piece of the body, or a message that there is none."""
        if self.ends_early and not self.body:
            return {"type": "http.disconnect"}
        return await super().receive()

    async def send(self, message: Any) -> None:
        """Write a piece of the reply. The head waits for the first piece of the body, which shows whether there is
        room."""
        if message["type"] == "http.response.start":
            self._head = message
            return
        body = b"" if self.scope["method"] == "HEAD" else message.get("body", b"")
        large = len(body) > HIGH_WATER_LIMIT
        if self._head is not None:
            head, self._head = self._head, None
            if large and not self.connection.crowd.unsent.has_room(len(body), self.connection.loop.time()):
                head, message = self._refused(head)
                large = False
            await super().send(self._of_this_connection(head))  # type: ignore[arg-type]  # a dict
        if not large:
            await self._write(message)
            return
        # In one write, all of it would stay in memory until its last byte is sent, and its size could not be counted.
        self.writes = len(body)
        for place in range(0, len(body), HIGH_WATER_LIMIT):
            await self._write({**message, "body": body[place : place + HIGH_WATER_LIMIT], "more_body": True})
        self.writes = 0
        await self._write({**message, "body": b""})

    def _refused(self, head: Message) -> tuple[Message, Message]:
        """Head and body of the reply instead of a body for which there is no room."""
        kept = [field for field in head["headers"] if field[0] in _OF_EVERY_REPLY]
        error = errors.TooMuchUntaken(limit=self.connection.crowd.unsent.limit)
        reply = self.connection.service.refusal(error, self.scope, dict(kept)[b"x-request-id"].decode())
        head = {**head, "status": reply.status, "headers": reply.headers + kept}
        return head, {"type": "http.response.body", "body": reply.body}

    async def _write(self, message: Any) -> None:
        if self._until_the_end:
            self.expected_content_length = len(message.get("body", b""))  # uvicorn compares the body's length with this
        await super().send(message)

    def _of_this_connection(self, head: Message) -> Message:
        """The same head, with the header Connection, and without chunks for clients that do not know them."""
        old = self.scope["http_version"] != "1.1"
        no_body = self.scope["method"] == "HEAD" or head["status"] in _WITHOUT_BODY
        if old and not no_body and b"content-length" not in dict(head["headers"]):
            self._until_the_end, self.keep_alive, self.chunked_encoding = True, False, False
        if (self.keep_alive and not old) or CLOSE in head["headers"]:
            return head
        return {**head, "headers": [*head["headers"], KEEP if self.keep_alive else CLOSE]}


class Protocol(HttpToolsProtocol):
    """One connection: what its client sends, and in which order it is answered."""

    cycle: Cycle | None  # type: ignore[assignment]  # uvicorn's type is wider
    """The last request."""
    flow: Flow
    peer: Peer
    pipeline: deque[tuple[Cycle, Any]]  # type: ignore[assignment]  # uvicorn has its own cycles there
    """Requests that wait in line, the last one first, and the application that answers each."""

    def __init__(self, service: Service, crowd: Crowd, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self.service = service
        self.crowd = crowd
        self.serving: Cycle | None = None
        """The request being answered. Those after it are in `pipeline`."""
        self._held: tuple[Cycle, Asked] | None = None
        """A request that waits for its body, and what it asks."""
        self._refused: Cycle | None = None
        """A request refused by its head."""
        self._offered: bytes | None = None
        """The request line of a request that offers another protocol."""
        self._last_words: errors.LogstepError | None = None
        """The reason why nothing more can be answered, if it must be sent after all replies."""
        self._head, self._max_head = HeadSize(), service.settings.max_header_bytes
        self._receives_since = self.loop.time()
        """When the current request began, or the connection if it has sent none; infinite between requests."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.flow = Flow(self)
        self.peer = Peer(transport, self.loop, self.flow.waiting_bytes, self._end_if_late, self.service.refusal)
        self.crowd.peers.add(self.peer)
        limit = self.service.settings.max_connections
        if len(self.crowd.peers) > limit and not self.crowd.make_room():
            self.app = partial(self.service.refuse, errors.TooManyConnections(limit=limit))
        self.crowd.idle.add(self.peer, self.loop.time())

    def connection_lost(self, exc: Exception | None) -> None:
        self.flow.forget()
        self.pipeline.clear()
        self._last_words = None
        super().connection_lost(exc)
        for cycle in (self.serving, self.cycle):
            if cycle is not None:
                cycle.vanish()
        self.crowd.forget(self.peer)

    # -- what the client sends

    def data_received(self, data: bytes) -> None:
        self.flow.receive(data)

    def feed(self, piece: memoryview | bytes) -> int:
        """Give a piece to the parser. Returns how much of it was read."""
        taken = len(piece)
        self._head.read(taken)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as upgrade:
            taken = upgrade.args[0]
            if self._offered is None:  # CONNECT means nothing else
                self.flow.close_after_last()
            else:  # read the head again without the offer; else all that follows would be the other protocol's
                head, self._offered = without_offer(self._offered, self.headers), None
                self.feed(head)
        except httptools.HttpParserError:
            self._end(errors.MalformedHttp())
        if self._head.in_head and self._head.at_least > self._max_head:
            self._end(errors.HeadTooLarge(limit=self._max_head))
        return taken

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's may return that the connection stays open
        """The client sends no more. Answer what it has asked, then close the connection.

        Not over TLS: there, for asyncio and most clients, the end of one side ends both.
        """
        if self.scheme == "https":
            return False
        if self._head.between:
            self.flow.close_after_last()
        else:
            self._end(errors.BodyIncomplete() if self._of_this_message else errors.MalformedHttp())
        closes = self.cycle is None or self.cycle.response_complete or self.transport.is_closing()
        return not closes

    @property
    def _of_this_message(self) -> Cycle | None:
        """The cycle of the message being received, if its head is complete."""
        return self.cycle if self.cycle is not None and self.cycle.scope is self.scope else None

    # -- what the parser finds

    def on_message_begin(self) -> None:
        self.crowd.idle.remove(self.peer)
        self._head.begin()
        self._receives_since = self.loop.time()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head.in_head:  # a trailer; nothing uses those
            return
        name = name.lower()
        if name == b"content-length":
            self.flow.body_left = int(value)
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._head.in_head = False
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if self.parser.should_upgrade() and method != b"CONNECT":
            self._offered = b"%b %b HTTP/%b\r\n" % (method, self.url, version.encode())
            return
        url = httptools.parse_url(self.url)
        path = (url.path or b"/").decode("ascii")
        self.scope["method"], self.scope["http_version"] = method.decode("ascii"), version
        self.scope["path"] = unquote(path) if "%" in path else path
        self.scope["raw_path"], self.scope["query_string"] = url.path or b"/", url.query or b""
        wrong: errors.LogstepError | None = wrong_with(self.headers, version, url.host)
        if self._head.at_most > self._max_head and size_of(self.url, self.headers) > self._max_head:
            wrong = errors.HeadTooLarge(limit=self._max_head)
        app = self.app if wrong is None else partial(self.service.refuse, wrong)
        before = self.cycle
        self.cycle = cycle = Cycle(
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
        if before is None or (before.response_complete and not self.flow.write_paused):
            self._start(cycle, app)
        else:
            self.pipeline.appendleft((cycle, app))
            self.flow.pause_reading()

    def on_body(self, body: bytes) -> None:
        self.flow.body_left -= len(body)
        # Nobody reads a refused body. Storing it would double the cost of refusing half a megabyte.
        if self.cycle is not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._head.between = True
        if self._offered is not None:
            return
        super().on_message_complete()
        self._refused = None
        self._receives_since = math.inf
        if self._held is not None:
            (cycle, asked), self._held = self._held, None
            if not cycle.answer_now(asked):
                self._start_asgi_task(cycle, self.app)
        elif self.cycle is not None and self.cycle.response_complete:  # refused before it was complete
            self.crowd.idle.add(self.peer, self.loop.time())

    # -- what is answered

    def _start(self, cycle: Cycle, app: Any) -> None:
        """Answer a request. The body of the last one may be incomplete."""
        self.serving, self.peer.scope = cycle, cycle.scope
        if app is self.service:
            asked = self.service.asks_in_short(cycle.scope)
            if asked is None:
                if cycle.more_body and self.service.refuse_by_head(cycle.scope, cycle.put):
                    self._refused = cycle
                    cycle.body.clear()  # what arrived while others were answered
                    return
            elif not cycle.waiting_for_100_continue:
                if cycle.more_body and not cycle.ends_early:
                    self._held = cycle, asked
                    return
                if not cycle.more_body and cycle.answer_now(asked):
                    return
        self._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if not (self.transport.is_closing() or self.flow.write_paused):
            self.go_on()

    def go_on(self) -> None:
        """Go on after a reply: to the next request in line, or to the received bytes."""
        if self.pipeline:
            self._start(*self.pipeline.pop())
        elif self._last_words is not None:
            self._say_and_close(self._last_words)
        elif self._head.between:
            self.crowd.idle.add(self.peer, self.loop.time())
        self.flow.resume_reading()

    # -- what is wrong

    def _end(self, error: errors.LogstepError) -> None:
        """Nothing more from this client can be answered. Send the pending replies, then the reason, and close."""
        last, broken = self.cycle, None if self._head.between else self._of_this_message
        self.flow.stop()
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
        self.transport.write(self.service.refusal(error).as_http())
        self.transport.close()

    def _end_if_late(self, now: float, seconds: float) -> None:
        """End a request that has not arrived for `seconds`.

        Streams have no deadline. The code that waits for their next bytes has its own time limit.
        """
        cycle = self._of_this_message
        if self.flow.read_paused and self.peer.is_gone:  # else the loop would have noticed
            self.transport.abort()
        elif now - self._receives_since >= seconds and not self.flow.over:
            if self.flow.read_paused:  # it is the service that is slow
                self._receives_since = now
            elif cycle is None or not (cycle.response_started or is_stream(cycle.scope)):
                self._end(errors.RequestTimeout(seconds=seconds))
            elif cycle.response_complete:  # refused before it was complete
                self.transport.close()
