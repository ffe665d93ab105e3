"""ASGI's types, and what several readers of a request ask of its head."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from service import events
from service.http.bodies import media_type_of
from service.http.reply import Reply

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

NDJSON, ARROW = events.NDJSON.encode(), events.ARROW.encode()
_STREAMS = (NDJSON, b"application/ndjson", b"application/jsonl", ARROW)


def is_stream(scope: Scope) -> bool:
    """Whether a request's body is a stream, which has no length limit."""
    return media_type_of(scope) in _STREAMS


async def send_reply(send: Send, reply: Reply) -> None:
    """Send a whole reply."""
    await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
    await send({"type": "http.response.body", "body": reply.body})
