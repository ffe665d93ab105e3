"""Bodies that are read whole, and how much of them there may be."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from service import errors
from service.settings import Settings

Message = dict[str, Any]


class Bodies:
    """Reads bodies; together they hold no more than `max_bodies_bytes`, however many come at once."""

    def __init__(self, settings: Settings) -> None:
        self._limit = settings.max_bodies_bytes
        self._held = 0

    async def read(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Message]], limit: int) -> bytes:
        """A body, whole. Refused before it is read where its length is told and too large."""
        told_length(scope, limit)
        body = bytearray()
        more = True
        try:
            while more:
                chunk, more = chunk_of(await receive())
                if len(body) + len(chunk) > limit:
                    raise errors.BodyTooLarge(limit=limit)
                self._hold(len(chunk))
                body += chunk
        finally:
            self._held -= len(body)
        return bytes(body)

    @contextmanager
    def held(self, body: bytes) -> Iterator[None]:
        """Count a body that has been read while it waits; no other is waited for between `read` and this."""
        self._hold(len(body))
        try:
            yield
        finally:
            self._held -= len(body)

    def _hold(self, size: int) -> None:
        if self._held + size > self._limit:
            raise errors.TooManyBodies(limit=self._limit)
        self._held += size


def told_length(scope: dict[str, Any], limit: int) -> int:
    """The length of a body as its head tells it, 0 if it does not; BodyTooLarge past the limit."""
    length = next((int(value) for name, value in scope["headers"] if name == b"content-length"), 0)
    if length > limit:
        raise errors.BodyTooLarge(limit=limit)
    return length


def chunk_of(message: Message) -> tuple[bytes, bool]:
    """A piece of a body, and whether more will come."""
    if message["type"] == "http.disconnect":
        raise errors.BodyIncomplete()
    return message.get("body", b""), message.get("more_body", False)
