"""Bodies that are read whole, and the limit on all of them together."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

from starlette.types import Message, Receive, Scope

from service import errors, events
from service.decode.compression import FRAMES, Unpacker
from service.fairness import Slices
from service.settings import Settings

JSON, NDJSON, ARROW = events.JSON.encode(), events.NDJSON.encode(), events.ARROW.encode()
CSV, TSV = events.CSV.encode(), events.TSV.encode()
FILES = (events.PARQUET.encode(), b"application/x-parquet", b"application/parquet", events.ARROW_FILE.encode())
_STREAMS = (NDJSON, b"application/ndjson", b"application/jsonl", ARROW, CSV, TSV, *FILES)


class Bodies:
    """Reads bodies. Together they take at most `max_bodies_bytes`, however many come at once."""

    def __init__(self, settings: Settings) -> None:
        self._limit = settings.max_bodies_bytes
        self._held = 0

    async def read_json(self, scope: Scope, receive: Receive, limit: int) -> bytes:
        """A whole JSON body, without a UTF-8 byte order mark. It is refused before it is read if its head allows."""
        check_json(scope, limit)
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
        """Count a body while it waits after `read`. There must be no await between `read` and this."""
        self._hold(len(body))
        try:
            yield
        finally:
            self._held -= len(body)

    @contextmanager
    def growing(self) -> Iterator[Callable[[int], None]]:
        """A function that counts more bytes, or fewer, of a part of a body that waits until the block ends."""
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            self._hold(size)
            held += size

        try:
            yield hold
        finally:
            self._held -= held

    def _hold(self, size: int) -> None:
        if self._held + size > self._limit:
            raise errors.TooManyBodies(limit=self._limit)
        self._held += size


class ContentType(NamedTuple):
    """The type of a body. charset: the encoding that the header names; empty for UTF-8 or if it names none."""

    media_type: bytes
    charset: bytes = b""


_UTF_8 = (b"utf-8", b"utf8", b"us-ascii", b"ascii")


@lru_cache(maxsize=128)
def content_type(value: bytes) -> ContentType:
    """Parse the header Content-Type.

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


def content_type_of(scope: Scope) -> ContentType:
    """The content type of a request's body; empty if its head has none."""
    return content_type(next((value for name, value in scope["headers"] if name == b"content-type"), b""))


def is_stream(scope: Scope) -> bool:
    """Whether a request's body is a stream, which has no length limit."""
    return content_type_of(scope).media_type in _STREAMS


def check_readable(scope: Scope) -> None:
    """Raise UnsupportedEncoding or UnsupportedCharset if the head says so of the body."""
    encoding_of(scope)
    if charset := content_type_of(scope).charset:
        raise errors.UnsupportedCharset(charset=charset.decode("latin-1")[:100])


def encoding_of(scope: Scope) -> str:
    """The content encoding of a body; empty if it is not compressed. Raises UnsupportedEncoding for others than those
    of compression.py, and for several."""
    named = [value.strip().lower().decode("latin-1") for name, value in scope["headers"] if name == b"content-encoding"]
    encodings = [name for name in named if name not in ("", "identity")]
    if encodings and (len(encodings) > 1 or encodings[0] not in FRAMES):
        raise errors.UnsupportedEncoding(encoding=", ".join(encodings)[:100])
    return encodings[0] if encodings else ""


def unpacked(scope: Scope, receive: Receive, free: int) -> Receive:
    """A `receive` for the body as it was before it was compressed. free: see Unpacker."""
    encoding = encoding_of(scope)
    if not encoding:
        return receive
    unpacker = Unpacker(encoding, free)
    slices = Slices()
    pieces: Iterator[bytes] = iter(())
    more = True

    async def receives() -> Message:
        nonlocal pieces, more
        while (piece := next(pieces, None)) is None:
            if not more:
                unpacker.end()
                return {"type": "http.request", "body": b"", "more_body": False}
            message = await receive()
            if message["type"] != "http.request":
                return message
            more = message.get("more_body", False)
            pieces = unpacker.pieces(message.get("body", b""))
        if slices.spent(len(piece) // 4):
            await slices.rest()
        return {"type": "http.request", "body": piece, "more_body": True}

    return receives


def check_json(scope: Scope, limit: int) -> None:
    """Raise what is wrong with a JSON body, by its head: it is not readable, not JSON, or too long."""
    check_readable(scope)
    if (media_type := content_type_of(scope).media_type) != JSON:
        raise errors.UnsupportedMediaType(content_type=media_type.decode("latin-1")[:100])
    if next((int(value) for name, value in scope["headers"] if name == b"content-length"), 0) > limit:
        raise errors.BodyTooLarge(limit=limit)


def chunk_of(message: Message) -> tuple[bytes, bool]:
    """A piece of a body, and whether more will come."""
    if message["type"] == "http.disconnect":
        raise errors.BodyIncomplete()
    return message.get("body", b""), message.get("more_body", False)
