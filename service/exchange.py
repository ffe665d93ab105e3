"""A request and its reply: the id by which both are found again, and whether the connection is kept.

`X-Request-ID` of a caller is taken if it is a token that can stand anywhere; else one is made: the process's own random
part and a number, because asking the system for random bytes costs more than the whole of it.
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Awaitable
from typing import Any

from service.engine import Engine
from service.hot import Scope, Send

_SANE = re.compile(rb"[A-Za-z0-9._~:/+=@-]{1,128}")
_process = secrets.token_hex(4).encode()
_numbers = itertools.count(1)


class Exchange:
    """One request on its way. `send` sends the reply, with what every reply has."""

    __slots__ = ("_engine", "_id", "_send", "status")

    def __init__(self, scope: Scope, send: Send, engine: Engine) -> None:
        self._send = send
        self._engine = engine
        self._id = _id_of(scope)
        self.status = 0
        """Of the reply; 0 before it begins."""

    @property
    def request_id(self) -> str:
        return self._id.decode()

    def send(self, message: dict[str, Any]) -> Awaitable[None]:
        """Not a coroutine of its own: it would cost as much as all else here."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = headers = [*message["headers"], (b"x-request-id", self._id)]
            if self._engine.stopping:
                # So that a client that keeps its connections does not find one closed under its next request.
                headers.append((b"connection", b"close"))
        return self._send(message)


def _id_of(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SANE.fullmatch(value):
            given: bytes = value
            return given
    return b"%b-%x" % (_process, next(_numbers))
