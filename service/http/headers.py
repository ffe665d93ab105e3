"""Headers that let a browser only show a reply."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content security policy of a page: its own files only, no other host, no inline scripts or styles."""
NO_SNIFFING = (b"x-content-type-options", b"nosniff")
_EVERYWHERE = {b"x-content-type-options": b"nosniff", b"referrer-policy": b"no-referrer"}
_ON_PAGES = {**_EVERYWHERE, b"content-security-policy": POLICY.encode()}

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]


def with_headers(send: Send) -> Send:
    """A `send` that adds these headers, unless the route has set its own."""

    async def hardened(message: Message) -> None:
        if message["type"] == "http.response.start":
            there = dict(message.get("headers", ()))
            is_page = there.get(b"content-type", b"").startswith(b"text/html")
            added = [item for item in (_ON_PAGES if is_page else _EVERYWHERE).items() if item[0] not in there]
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await send(message)

    return hardened
