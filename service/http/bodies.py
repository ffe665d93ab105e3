"""Bodies that are read whole, and how much of them there may be."""

from __future__ import annotations

import codecs
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

from service import errors
from service.settings import Settings

Message = dict[str, Any]


class Bodies:
    """Reads bodies; together they hold no more than `max_bodies_bytes`, however many come at once."""

    def __init__(self, settings: Settings) -> None:
        self._limit = settings.max_bodies_bytes
        self._held = 0

    async def read(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Message]], limit: int) -> bytes:
        """A body, whole, without the mark that may stand before UTF-8. Refused before it is read where its length is
        told and too large."""
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
        return bytes(body).removeprefix(codecs.BOM_UTF8)

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


class ContentType(NamedTuple):
    """What a body is. charset: what its text is encoded in, as it was told; empty for UTF-8, also where none was."""

    media_type: bytes
    charset: bytes = b""


_UTF_8 = (b"utf-8", b"utf8", b"us-ascii", b"ascii")


@lru_cache(maxsize=128)
def content_type(value: bytes) -> ContentType:
    """The header of that name, taken apart.

    >>> content_type(b"application/json; charset=UTF-8"), content_type(b'Text/CSV;charset="utf-16"')
    (ContentType(media_type=b'application/json', charset=b''), ContentType(media_type=b'text/csv', charset=b'utf-16'))
    """
    media_type, *parameters = value.split(b";")
    charset = b""
    for parameter in parameters:
        name, _, told = parameter.partition(b"=")
        if name.strip().lower() == b"charset":
            charset = told.strip(b' \t"').lower()
    return ContentType(media_type.strip().lower(), b"" if charset in _UTF_8 else charset)


def content_type_of(scope: dict[str, Any]) -> ContentType:
    """That of a request's body; empty where its head does not tell."""
    return content_type(next((value for name, value in scope["headers"] if name == b"content-type"), b""))


def media_type_of(scope: dict[str, Any]) -> bytes:
    """The same without parameters."""
    return content_type_of(scope).media_type


def check_readable(scope: dict[str, Any]) -> None:
    """UnsupportedEncoding or UnsupportedCharset, by its head, for a body that is compressed, or text of another kind
    than UTF-8."""
    for name, value in scope["headers"]:
        if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise errors.UnsupportedEncoding(encoding=value.decode("latin-1")[:100])
    if charset := content_type_of(scope).charset:
        raise errors.UnsupportedCharset(charset=charset.decode("latin-1")[:100])


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
