"""Bodies of JSON that are read whole: an array, or one event that is long or comes slowly."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any, TypeVar

from starlette.types import Receive, Scope, Send

from service import errors
from service.decode import event_json
from service.events import Event, Label
from service.fairness import Collecting, Slices, let_go, let_go_all, worked
from service.http.access import Access, grant_of
from service.http.bodies import JSON, Bodies, check_json
from service.http.long_reply import LongReplies, LongReply
from service.http.one import learned, placed, predict_all
from service.http.reply import json_reply
from service.learning.engine import Engine
from service.learning.model import Model
from service.replies import encode
from service.settings import Settings

Item = TypeVar("Item")
_LARGE = 2**20
MAX_ITEMS = 2**16
"""Most elements of an array. It is learned whole or not at all, so all are in memory at once."""
_ENCODED = 1_000
"""Items of a reply encoded in one call."""
_LEARNED_BYTES = 320 + 2 * 64
"""Most bytes of the reply to one event of an array, with the longest model name."""


class Arrays:
    """Answers requests whose body is read whole."""

    def __init__(
        self, engine: Engine, bodies: Bodies, settings: Settings, replies: LongReplies, access: Access
    ) -> None:
        self._engine = engine
        self._bodies = bodies
        self._longest = settings.max_body_bytes
        self._replies = replies
        self._access = access
        self.large = asyncio.Semaphore(1)
        """Limits large arrays to one at a time, because in memory an array takes ten times the size of its text."""

    def check_head(self, scope: Scope) -> None:
        """Refuse a body to learn that is not JSON or too long, or for which there is no room."""
        check_json(scope, self._longest)
        self._engine.queue.check_room()

    async def learn(self, model: Model, scope: Scope, receive: Receive, send: Send) -> None:
        """Learn an event or an array. Reply when all is on disk."""
        self.check_head(scope)
        async with contextlib.AsyncExitStack() as held:  # has the place of a large body until the reply is sent
            async with self._access.while_it_may(scope):
                body = await self._bodies.read_json(scope, receive, self._longest)
                if await worked(len(body) > _LARGE, event_json.is_array, body):
                    events, reply = await self._events(body, scope, held)
                else:
                    await held.enter_async_context(self._one_of_the_large(body))
                    events = [await worked(len(body) > event_json.WIDE_BYTES, event_json.decode_learn, body)]
                    reply = None
            # From here on it is learned, even if the token is revoked or the service stops.
            if reply is None:
                (outcome,) = await self._engine.learn(model.name, events)
                await json_reply(learned(model.name, events[0], outcome)).send(send)
                return
            try:
                outcomes = await self._engine.learn(model.name, events)
                replies = (learned(model.name, event, outcome) for event, outcome in zip(events, outcomes, strict=True))
                await self._send_array(send, replies, reply)
            except errors.LogstepError as error:
                raise placed(error, f"[{error.index}]") from None
            finally:
                let_go_all(events)

    async def _events(
        self, body: bytes, scope: Scope, held: contextlib.AsyncExitStack
    ) -> tuple[list[Event | Label], LongReply]:
        """The events of an array, and their future reply. `held`: gets the place of a large array, only once its turn
        comes, or arrays that need no place would wait for it too."""
        elements = await self._elements(scope, body)
        promised = elements.count * _LEARNED_BYTES if elements.count > _ENCODED else 0
        async with self._engine.queue.announced(elements.count):
            await held.enter_async_context(self._one_of_the_large(body))
            # Reserved now: learned events must not end in an error because their reply finds no room.
            reply = held.enter_context(self._replies.gathered(JSON, promised))
            return await _decoded(elements, event_json.decode_learn), reply

    async def predict(self, model: Model, scope: Scope, receive: Receive, send: Send) -> None:
        """Predict from the current model. An array gets an array."""
        async with self._access.while_it_may(scope):
            body = await self._bodies.read_json(scope, receive, self._longest)
            async with self._one_of_the_large(body):
                await self._predict_body(model, body, scope, send)

    async def _predict_body(self, model: Model, body: bytes, scope: Scope, send: Send) -> None:
        if not await worked(len(body) > _LARGE, event_json.is_array, body):
            question = await worked(len(body) > event_json.WIDE_BYTES, event_json.decode_question, body)
            (predicted,), _ = await predict_all(self._engine, model, scope, [question], lambda _: "", Slices())
            await json_reply(predicted).send(send)
            return
        questions = await _decoded(await self._elements(scope, body), event_json.decode_question)
        try:
            replies, _ = await predict_all(self._engine, model, scope, questions, "[{}]".format, Slices())
            with self._replies.gathered(JSON) as reply:
                await self._send_array(send, replies, reply)
        finally:
            let_go_all(questions)

    async def _elements(self, scope: Scope, body: bytes) -> event_json.Elements:
        """The elements of an array. Takes them from the token's rate; the request itself took one."""
        elements: event_json.Elements = await worked(len(body) > _LARGE, event_json.Elements, body)
        if elements.count > MAX_ITEMS:
            raise errors.ArrayTooLong(count=elements.count, limit=MAX_ITEMS)
        pace = grant_of(scope).pace
        if pace is not None:
            pace.take(max(0, elements.count - 1))
        return elements

    @contextlib.asynccontextmanager
    async def _one_of_the_large(self, body: bytes) -> AsyncGenerator[None]:
        if len(body) <= _LARGE:
            yield
            return
        with self._bodies.held(body):  # counted, or any number of bodies could wait for the place
            async with self.large:
                gc.disable()  # scanning the decoded items takes as long as decoding them, and they have no cycles
                try:
                    yield
                finally:
                    let_go(Collecting())

    async def _send_array(self, send: Send, items: Iterable[Any], reply: LongReply) -> None:
        """Send an array. Others are served while its items are made and encoded."""
        slices = Slices()
        some, before = [], b"["
        for item in items:
            some.append(item)
            if len(some) == _ENCODED:
                await reply.add(before + encode(some).strip()[1:-1])
                some, before = [], b","
                if slices.spent(_ENCODED):
                    await slices.rest()
        await reply.add((before + encode(some).strip()[1:-1] if some or before == b"[" else b"") + b"]\n")
        await reply.send(send)


async def _decoded(elements: event_json.Elements, decode: Callable[[bytes, str], Item]) -> list[Item]:
    """The elements of an array, decoded while others are served."""
    items: list[Item] = []
    slices = Slices()
    try:
        for i in range(len(elements)):
            for element in await worked(elements.is_long(i), elements.piece, i):
                size, place = len(element), f"[{len(items)}]"
                if size > event_json.WIDE_BYTES:
                    items.append(await asyncio.to_thread(decode, element, place))
                else:
                    items.append(decode(element, place))
                if slices.spent(size // 4):
                    await slices.rest()
    except BaseException:
        let_go_all(items)
        raise
    return items
