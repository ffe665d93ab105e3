"""A request and its reply: the id for finding both again, and whether the connection stays open.

The service takes the caller's `X-Request-ID` if it has only harmless characters. Else it makes one from a random part
of the process and a number, because asking the system for random bytes costs more than everything else here.
"""

from __future__ import annotations

import itertools
import re
import secrets
import time
from collections.abc import Awaitable

from service.http.asgi import Message, Scope, Send
from service.http.reply import CLOSE, Reply
from service.learning.engine import Engine

_SANE = re.compile(rb"[A-Za-z0-9._~:/+=@-]{1,128}")
_process = secrets.token_hex(4).encode()
_numbers = itertools.count(1)


class Exchange:
    """One request and its reply."""

    __slots__ = ("_engine", "_id", "scope", "started", "status")

    def __init__(self, scope: Scope, engine: Engine) -> None:
        self.scope = scope
        self._id = _id_of(scope)
        self.status = 0
        """Status of the reply; 0 before it begins."""
        self.started = time.perf_counter()
        self._engine = engine

    @property
    def request_id(self) -> str:
        return self._id.decode()

    def over(self, send: Send) -> Send:
        """A `send` that adds the headers of every reply."""

        def sends(message: Message) -> Awaitable[None]:  # a coroutine would cost as much as the rest together
            if message["type"] == "http.response.start":
                self.status = message["status"]
                message["headers"] = [*message["headers"], *self._added()]
            return send(message)

        return sends

    def complete(self, reply: Reply) -> Reply:
        """The reply with the headers of every reply, for a caller that writes it without ASGI."""
        self.status = reply.status
        return Reply(reply.status, reply.headers + self._added(), reply.body)

    def _added(self) -> list[tuple[bytes, bytes]]:
        added = [(b"x-request-id", self._id)]
        if self._engine.state.stopping:
            # Else a client that keeps its connections may send its next request on a closed one.
            added.append(CLOSE)
        return added


def _id_of(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SANE.fullmatch(value):
            given: bytes = value
            return given
    return new_id()


def new_id() -> bytes:
    """An id for a request that has none."""
    return b"%b-%x" % (_process, next(_numbers))
