"""Headers that keep a browser from guessing what a reply is, and from telling others where a reader came from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]
NO_SNIFFING = (b"x-content-type-options", b"nosniff")
_NO_REFERRER = (b"referrer-policy", b"no-referrer")


def with_headers(send: Send) -> Send:
    """A `send` that adds these headers, unless the route has set its own."""

    async def hardened(message: Message) -> None:
        if message["type"] == "http.response.start":
            there = {name for name, _ in message["headers"]}
            added = [header for header in (NO_SNIFFING, _NO_REFERRER) if header[0] not in there]
            message = {**message, "headers": [*message["headers"], *added]}
        await send(message)

    return hardened
