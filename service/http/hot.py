"""`/learn` and `/predict`, the two paths that carry the load, as plain ASGI.

FastAPI declares them like every other route (routes.py). But the service calls them without FastAPI's routing, which
would halve the rate (measured: 25,000 parsed bodies a second without it, 12,000 with it).
"""

from __future__ import annotations

from service.http.access import Access, Asked
from service.http.arrays import Arrays
from service.http.asgi import Receive, Scope, Send
from service.http.bodies import Bodies, check_readable, is_stream
from service.http.long_reply import LongReplies
from service.http.one import One
from service.http.permit import Permit
from service.http.reply import json_reply
from service.http.streams import Streams
from service.learning.engine import Engine
from service.settings import Settings

VERBS = frozenset({"learn", "predict"})


class Hot:
    """The ASGI endpoints of `/learn` and `/predict`, for the model in the path or `default`."""

    def __init__(self, engine: Engine, access: Access, bodies: Bodies, settings: Settings) -> None:
        self._engine = engine
        self.replies = LongReplies(settings)
        self.permit = Permit(access, engine)
        self.one = One(engine, settings)
        self.arrays = Arrays(engine, bodies, settings, self.replies, self.permit)
        self._streams = Streams(engine, settings, self.replies, self.permit)

    async def __call__(self, asked: Asked, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer any request of these paths through ASGI."""
        check_readable(scope)
        await (self._learn if asked.verb == "learn" else self._predict)(asked.model, scope, receive, send)

    async def _learn(self, model: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Learn an event, an array or a stream. Reply when all is on disk."""
        self._engine.model(model)
        if is_stream(scope):
            await json_reply(await self._streams.learn(model, scope, receive)).send(send)
        else:
            await self.arrays.learn(model, scope, receive, send)

    async def _predict(self, model: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Predict from the current model. An array gets an array, a stream gets a stream."""
        found = self._engine.model(model)
        await (self._streams if is_stream(scope) else self.arrays).predict(found, scope, receive, send)
