"""The floors of a prediction and of a durable learn: an ASGI endpoint that parses the body and replies.

It uses the service's server (uvicorn with uvloop and httptools) and parser (msgspec). With `--write` it also writes
each body to a file, filled up to `--bytes`, and syncs it before it replies.

    python tests/benchmarks/floor.py --port 8001
    python tests/benchmarks/floor.py --port 8001 --write FILE --bytes 17000
"""

import argparse
import os
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import uvicorn

Message = dict[str, Any]
REPLY = b'{"model":"default","p":0.9919579763934316,"y":true,"seq":12345}'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(REPLY))]
ROOM = 4 * 2**20
"""Bytes of the file, which is overwritten again and again: about the size of the write-ahead log."""


class File:
    """A file that is written in place, as the write-ahead log is."""

    def __init__(self, path: str, size: int) -> None:
        self._size = size
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.write(self._fd, bytes(ROOM))
        os.fsync(self._fd)
        self._at = 0

    def keep(self, body: bytes) -> None:
        os.pwrite(self._fd, body.ljust(self._size, b"\0"), self._at)
        os.fdatasync(self._fd)
        self._at = (self._at + self._size) % (ROOM - self._size)


file: File | None = None


class Question(msgspec.Struct):
    """The body of a prediction request."""

    x: dict[str, float]


async def endpoint(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """Answer any path."""
    body = b""
    if scope["method"] == "POST":
        message = await receive()
        body = message["body"]
        while message["more_body"]:
            message = await receive()
            body += message["body"]
        msgspec.json.decode(body, type=Question)
        if file is not None:
            file.keep(body)
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": REPLY})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="An endpoint that parses the body and does nothing.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--write", metavar="FILE", help="write each body to this file and sync it before the reply")
    parser.add_argument("--bytes", type=int, default=16_000, help="how many bytes at a time")
    options = parser.parse_args()
    if options.write:
        file = File(options.write, options.bytes)
    uvicorn.run(
        endpoint,
        host="127.0.0.1",
        port=options.port,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        date_header=False,
    )
