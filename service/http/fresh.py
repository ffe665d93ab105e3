"""How much a reply must have seen: `?min_seq=` and the header X-Logstep-Offset. A request with them waits until the
model is so far here."""

from __future__ import annotations

import asyncio
from urllib.parse import parse_qsl, urlencode

from starlette.types import Scope

from service import errors
from service.http.access import asked_of
from service.learning.engine import Engine

PLACE = b"x-logstep-offset"
"""Of a reply: how far the topic is applied here, for the partition of the reply's model ("PARTITION:OFFSET")."""
MIN_SEQ = "min_seq"
LOOK_SECONDS = 0.005
_LARGEST = 2**63 - 1


async def wait_until_fresh(scope: Scope, engine: Engine, seconds: float) -> None:
    """Wait until the model is as far as a request wants, and take that out of its query. Raises InvalidParameter, or
    Behind after `seconds`."""
    for name, value in scope["headers"]:
        if name == PLACE:
            await engine.wait_for_place(value.decode("latin-1"))
    if MIN_SEQ.encode() not in scope["query_string"]:
        return
    query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    wanted = [value for name, value in query if name == MIN_SEQ]
    if asked_of(scope).verb == "learn" or not wanted:
        return
    if len(wanted) > 1 or not wanted[0].isascii() or not wanted[0].isdecimal() or int(wanted[0][:20]) > _LARGEST:
        raise errors.InvalidParameter(field=MIN_SEQ, reason="must be one whole number, a seq")
    scope["query_string"] = urlencode([pair for pair in query if pair[0] != MIN_SEQ]).encode()
    await _wait_for_seq(engine, asked_of(scope).model, int(wanted[0]), seconds)


async def _wait_for_seq(engine: Engine, name: str, seq: int, seconds: float) -> None:
    if not engine.has_peers:
        engine.model(name)  # what is not there will not come

    def is_there() -> bool:
        model = engine.models.find(name)
        return model is not None and model.learner.seq >= seq

    try:
        async with asyncio.timeout(seconds):
            while not is_there():  # noqa: ASYNC110  # nobody else waits for it
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError:
        raise errors.Behind(wanted=f"the event with seq {seq} of the model {name!r}") from None
