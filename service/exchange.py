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
_process = secrets.token_hex(4)
_numbers = itertools.count(1)


class Exchange:
    """One request on its way. `send` sends the reply, with what every reply has."""

    __slots__ = ("_engine", "_send", "request_id", "status")

    def __init__(self, scope: Scope, send: Send, engine: Engine) -> None:
        self._send = send
        self._engine = engine
        self.request_id: str = _id_of(scope)
        self.status = 0
        """Of the reply; 0 before it begins."""
        scope["request_id"] = self.request_id

    def send(self, message: dict[str, Any]) -> Awaitable[None]:
        """Not a coroutine of its own: it would cost as much as all else here."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            added = [(b"x-request-id", self.request_id.encode())]
            if self._engine.stopping:
                # So that a client that keeps its connections does not find one closed under its next request.
                added.append((b"connection", b"close"))
            message["headers"] = [*message["headers"], *added]
        return self._send(message)


def _id_of(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SANE.fullmatch(value):
            given: str = value.decode()
            return given
    return f"{_process}-{next(_numbers):x}"
