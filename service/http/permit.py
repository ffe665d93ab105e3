"""How a request that takes long ends early: its token is revoked, or the service stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from service import errors
from service.http.access import Access
from service.http.asgi import Scope
from service.learning.engine import Engine

_LOOK_SECONDS = 0.25
"""How often a request is checked for whether it may go on."""


class Permit:
    """Whether requests may go on."""

    def __init__(self, access: Access, engine: Engine) -> None:
        self._access = access
        self._engine = engine

    @contextlib.asynccontextmanager
    async def while_it_may(self, scope: Scope) -> AsyncGenerator[None]:
        """End the block soon after its token is revoked or the service stops, wherever it is, and raise the reason.

        When the service stops, the block first gets a moment, in which most requests finish.
        """
        loop = asyncio.get_running_loop()
        why: errors.LogstepError | None = None
        stops = False
        next_look: asyncio.TimerHandle

        def look() -> None:
            nonlocal why, stops, next_look
            try:
                self._access.check_again(scope)
                if stops:
                    raise errors.NotReady(state="stopping")
            except errors.LogstepError as error:
                why = error
            if why is not None:
                end.reschedule(loop.time())
                return
            stops = self._engine.streams_end.is_set()
            next_look = loop.call_later(_LOOK_SECONDS, look)

        try:
            async with asyncio.timeout(None) as end:
                next_look = loop.call_later(_LOOK_SECONDS, look)
                try:
                    yield
                finally:
                    next_look.cancel()
        except TimeoutError:
            if why is None:
                raise
            raise why from None
