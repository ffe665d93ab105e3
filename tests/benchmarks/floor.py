"""The floor of a prediction: an ASGI endpoint that parses the body, does nothing else, and replies.

It uses the service's server (uvicorn with uvloop and httptools) and parser (msgspec).

    python tests/benchmarks/floor.py --port 8001
"""

import argparse
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import uvicorn

Message = dict[str, Any]
REPLY = b'{"model":"default","p":0.9919579763934316,"y":true,"seq":12345}'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(REPLY))]


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
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": REPLY})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="An endpoint that parses the body and does nothing.")
    parser.add_argument("--port", type=int, required=True)
    uvicorn.run(
        endpoint,
        host="127.0.0.1",
        port=parser.parse_args().port,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        date_header=False,
    )
