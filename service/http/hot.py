"""`/learn` and `/predict`, the two paths that carry the load, as plain ASGI.

FastAPI's routing halves uvicorn's rate (measured: 25,000 parsed bodies a second without it, 12,000 with it), so these
two stand in front of it. The OpenAPI document has them like every other route.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from core.features import EventError
from core.learner import Encoded
from service import errors
from service.decode import arrow, event_json, pieces
from service.events import Event, Label, Question
from service.fairness import WIDE, Slices, worked
from service.http.access import LEARN, Access, may_learn, owner_of, pace_of
from service.http.bodies import (
    Bodies,
    ContentType,
    check_readable,
    chunk_of,
    content_type,
    media_type_of,
    told_length,
)
from service.http.long_reply import LongReplies, LongReply
from service.http.reply import JSON, Reply, json_reply
from service.http.tokens import Pace
from service.learning.engine import DEFAULT, Engine
from service.learning.model import Model, Prediction
from service.learning.request import Result, Run, Stream
from service.replies import Learned, LearnedLate, LearnedMany, LearnedManyLate, Predicted, encode
from service.settings import Settings
from service.table import Table
from service.threads import Collecting, let_go, let_go_all

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

Tell = Callable[[Any, BaseException | None], None]
"""Receives the reply, or what is wrong."""

NDJSON = b"application/x-ndjson"
_JSON = ContentType(JSON)
ARROW = arrow.CONTENT_TYPE
_STREAMS = (NDJSON, b"application/ndjson", b"application/jsonl", ARROW)
Pieces = AsyncGenerator[pieces.Piece[Any]]
Item = TypeVar("Item")
AHEAD = 16
"""Pieces of a stream that wait for the writer at once: enough for two commits, one that syncs and the next."""
_LARGE = 2**20
MAX_ITEMS = 2**16
"""Most elements of an array. It is learned whole or not at all, so all are in memory at once."""
_ENCODED = 1_000
"""Items of a reply encoded in one call."""
_LEARNED_BYTES = 320 + 2 * 64
"""Most bytes of the reply to one event of an array, with the longest model name."""
_LOOK_SECONDS = 0.25
"""How often a request is checked for whether it may go on."""


class Asked(NamedTuple):
    """`learn` or `predict`, and the model."""

    verb: str
    model: str


def match(path: str) -> Asked | None:
    """What a path asks; None if it belongs to another route."""
    if path in {"/learn", "/predict"}:
        return Asked(path[1:], DEFAULT)
    if path.startswith("/models/"):
        model, _, verb = path[8:].partition("/")
        if verb in {"learn", "predict"}:
            return Asked(verb, model)
    return None


def is_stream(scope: Scope) -> bool:
    """Whether a request's body is a stream, which has no length limit."""
    return media_type_of(scope) in _STREAMS


class Hot:
    """The ASGI endpoints of `/learn` and `/predict`, for the model in the path or `default`."""

    def __init__(self, engine: Engine, access: Access, bodies: Bodies, settings: Settings) -> None:
        self._engine = engine
        self._access = access
        self._bodies = bodies
        self._settings = settings
        self.replies = LongReplies(settings)
        self._short = min(event_json.WIDE_BYTES, settings.max_body_bytes)
        self._large = asyncio.Semaphore(1)
        """Limits large arrays to one at a time, because in memory an array takes ten times the size of its text."""

    async def __call__(self, asked: Asked, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer any request of these paths through ASGI."""
        check_readable(scope)
        await (self._learn if asked.verb == "learn" else self._predict)(asked.model, scope, receive, send)

    def is_short(self, scope: Scope) -> bool:
        """Whether a request has a short JSON body, by its head."""
        headers = dict(scope["headers"])
        length = headers.get(b"content-length")
        is_json = content_type(headers.get(b"content-type", b"")) == _JSON
        return length is not None and int(length) <= self._short and is_json and b"content-encoding" not in headers

    def check_head(self, scope: Scope) -> None:
        """Refuse a body to learn that is not JSON or too long, or for which there is no room."""
        check_readable(scope)
        _check_json(scope)
        told_length(scope, self._settings.max_body_bytes)
        self._engine.check_room()

    def answer_now(self, asked: Asked, scope: Scope, body: bytes, tell: Tell) -> bool:
        """Answer a request of one short event. Returns False, having done nothing, if it takes long after all. Raises
        what is wrong, or tells it if the event already waits for the writer."""
        if asked.verb == "learn":
            self._learn_one(asked.model, body, tell)
            return True
        return self._predict_one(asked.model, scope, body, tell)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """A whole JSON body. Its content type has been checked."""
        return await self._bodies.read(scope, receive, self._settings.max_body_bytes)

    async def _elements(self, scope: Scope, body: bytes) -> event_json.Elements:
        """The elements of an array. Takes them from the token's rate; the request itself took one."""
        elements: event_json.Elements = await worked(len(body) > _LARGE, event_json.Elements, body)
        if elements.count > MAX_ITEMS:
            raise errors.ArrayTooLong(count=elements.count, limit=MAX_ITEMS)
        pace = pace_of(scope)
        if pace is not None:
            pace.take(max(0, elements.count - 1))
        return elements

    @contextlib.asynccontextmanager
    async def _one_of_the_large(self, body: bytes) -> AsyncGenerator[None]:
        if len(body) <= _LARGE:
            yield
            return
        with self._bodies.held(body):  # counted, or any number of bodies could wait for the place
            async with self._large:
                gc.disable()  # scanning the decoded items takes as long as decoding them, and they have no cycles
                try:
                    yield
                finally:
                    let_go(Collecting())

    # -- learn

    def _learn_one(self, model: str, body: bytes, tell: Tell) -> None:
        """Learn an event. Tell when it is on disk."""
        self._engine.model(model)
        event = event_json.decode_learn(body)
        waits = self._engine.enqueue(model, [event])
        waits.add_done_callback(partial(_settle, tell, lambda result: _learned(model, event, result, 0)))

    async def _learn(self, model: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Learn an event, an array or a stream. Reply when all is on disk."""
        self._engine.model(model)
        if is_stream(scope):
            await send_reply(send, json_reply(await self._learn_stream(model, scope, receive)))
            return
        self.check_head(scope)
        async with contextlib.AsyncExitStack() as held:  # has the place of a large body until the reply is sent
            async with self.while_it_may(scope):
                body = await self._body(scope, receive)
                if await worked(len(body) > _LARGE, event_json.is_array, body):
                    events, reply = await self._events(body, scope, held)
                else:
                    await held.enter_async_context(self._one_of_the_large(body))
                    events = [await worked(len(body) > event_json.WIDE_BYTES, event_json.decode_learn, body)]
                    reply = None
            # From here on it is learned, even if the token is revoked or the service stops.
            if reply is None:
                result = await self._engine.learn(model, events)
                await send_reply(send, json_reply(_learned(model, events[0], result, 0)))
                return
            try:
                result = await self._engine.learn(model, events)
                learned = (_learned(model, event, result, i) for i, event in enumerate(events))
                await self._send_array(send, learned, reply)
            except errors.LogstepError as error:
                raise _placed(error, f"[{error.index}]") from None
            finally:
                let_go_all(events)

    async def _events(
        self, body: bytes, scope: Scope, held: contextlib.AsyncExitStack
    ) -> tuple[list[Event | Label], LongReply]:
        """The events of an array, and their future reply. `held`: gets the place of a large array, only once its turn
        comes, or arrays that need no place would wait for it too."""
        elements = await self._elements(scope, body)
        promised = elements.count * _LEARNED_BYTES if elements.count > _ENCODED else 0
        async with self._engine.announced(elements.count):
            await held.enter_async_context(self._one_of_the_large(body))
            # Reserved now: learned events must not end in an error because their reply finds no room.
            reply = held.enter_context(self.replies.gathered(JSON, promised))
            return await _decoded(elements, event_json.decode_learn), reply

    async def _learn_stream(self, model: str, scope: Scope, receive: Receive) -> LearnedMany:
        """Learn piece by piece. An error says what was learned before it; that stays learned."""
        tally = _Tally(model)
        breaker = self._engine.model(model).learner.spec.breaker
        chunks = self._stream(scope, receive)
        arriving: Pieces = (
            pieces.events_of_rows(chunks, self._settings)
            if media_type_of(scope) == ARROW
            else pieces.events_of_lines(chunks, self._settings)
        )
        if breaker is not None:  # it must be checked before many more events are committed
            arriving = pieces.cut(arriving, breaker.events)
        try:
            async with self.while_it_may(scope), contextlib.aclosing(self._paced(scope, arriving)) as paced:
                await self._learn_pieces(tally, paced)
        except errors.LogstepError as error:
            # A new error: other requests may share this one, and their counts differ.
            told = {"learned": tally.learned, "duplicates": tally.duplicates, "last_seq": tally.last_seq}
            raise type(error)(**{**error.members, **told}) from None
        return tally.reply()

    async def _learn_pieces(self, tally: _Tally, arriving: Pieces) -> None:
        """Learn the items up to the first wrong one, then raise its error.

        Several pieces wait for the writer at once, so that it has the next one when it has synced one.
        """
        stream = Stream()
        waiting: deque[tuple[pieces.Piece[Any], asyncio.Future[Result]]] = deque()
        try:
            async for piece in arriving:
                if len(waiting) == AHEAD:
                    await _settle_but(AHEAD - 1, tally, waiting)
                if len(piece.items):
                    waiting.append((piece, await self._engine.submit(tally.model, piece.items, stream)))
                if piece.wrong is not None:
                    raise piece.wrong
        finally:
            await _settle_but(0, tally, waiting)  # an error here comes first: its event is earlier in the stream

    # -- predict

    def _predict_one(self, name: str, scope: Scope, body: bytes, tell: Tell) -> bool:
        """Predict from the current model. A prediction with an id is stored first."""
        model = self._engine.model(name)
        question = event_json.decode_question(body)
        if len(question.x) > WIDE:
            return False
        made = _predicted(scope, model, question)
        if isinstance(made, Prediction):
            waits = self._engine.enqueue(name, [made])
            waits.add_done_callback(partial(_settle, tell, lambda result: result.predicted[0]))
        else:
            tell(made, None)
        return True

    async def _predict(self, model: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Predict from the current model. An array gets an array, a stream gets a stream."""
        found = self._engine.model(model)
        async with self.while_it_may(scope):
            if is_stream(scope):
                chunks = self._stream(scope, receive)
                arriving = (
                    pieces.questions_of_rows(chunks, self._settings)
                    if media_type_of(scope) == ARROW
                    else pieces.lines_of(chunks, event_json.decode_question, self._settings)
                )
                async with contextlib.aclosing(self._paced(scope, arriving)) as paced:
                    await self._predict_stream(found, scope, paced, send)
                return
            _check_json(scope)
            body = await self._body(scope, receive)
            async with self._one_of_the_large(body):
                await self._predict_body(found, body, scope, send)

    async def _predict_body(self, model: Model, body: bytes, scope: Scope, send: Send) -> None:
        if not await worked(len(body) > _LARGE, event_json.is_array, body):
            question = await worked(len(body) > event_json.WIDE_BYTES, event_json.decode_question, body)
            (predicted,), _ = await self._predict_all(model, scope, [question], lambda _: "", Slices())
            await send_reply(send, json_reply(predicted))
            return
        questions = await _decoded(await self._elements(scope, body), event_json.decode_question)
        try:
            replies, _ = await self._predict_all(model, scope, questions, "[{}]".format, Slices())
            with self.replies.gathered(JSON) as reply:
                await self._send_array(send, replies, reply)
        finally:
            let_go_all(questions)

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

    async def _predict_all(
        self,
        model: Model,
        scope: Scope,
        questions: Sequence[Question],
        place: Callable[[int], str],
        slices: Slices,
        stream: bool = False,
    ) -> tuple[list[Predicted], errors.LogstepError | None]:
        """Predict, and store predictions with an id. `place` says where a question stands, for error messages.

        All or nothing. Of a `stream`: the predictions before the first wrong question, and its error.
        """
        made: list[Predicted | Prediction] = []
        wrong: errors.LogstepError | None = None
        for question in questions:
            try:
                encoded = await _encoded(model, question) if len(question.x) > WIDE else None
                made.append(_predicted(scope, model, question, encoded))
            except errors.LogstepError as error:
                wrong = _placed(error, place(len(made)))
                if not stream:
                    raise wrong from None
                break
            if slices.spent(len(question.x)):
                await slices.rest()
        kept_at = [i for i, prediction in enumerate(made) if isinstance(prediction, Prediction)]
        to_keep = [prediction for prediction in made if isinstance(prediction, Prediction)]
        if to_keep:
            try:
                kept, refused = await self._engine.keep(model.name, to_keep, Stream() if stream else None)
            except errors.LogstepError as error:
                raise _placed(error, place(kept_at[error.index])) from None
            if refused is not None:
                wrong = _placed(refused, place(kept_at[len(kept)]))
                del made[kept_at[len(kept)] :]
            for i, reply in zip(kept_at, kept, strict=False):
                made[i] = reply
        return made, wrong  # type: ignore[return-value]  # each Prediction has its reply now

    async def _predict_stream(
        self, model: Model, scope: Scope, arriving: AsyncGenerator[pieces.Piece[list[Question]]], send: Send
    ) -> None:
        """Predict piece by piece. The reply has a line for each question.

        The reply starts when the whole body has been read. Before that the status is unknown. Also, a client that sends
        all of a long body before it reads would wait for the service while the service waits for the client.
        """
        slices = Slices()  # for all pieces, because many come without a rest between them
        with self.replies.gathered(NDJSON) as reply:
            async for piece in arriving:
                replies, refused = await self._predict_all(model, scope, piece.items, piece.place, slices, stream=True)
                if refused is not None:
                    raise type(refused)(**{**refused.members, piece.unit: piece.numbers[len(replies)]})
                if piece.wrong is not None:
                    raise piece.wrong
                await reply.add(b"".join(map(encode, replies)))
            await reply.send(send)

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

    async def _stream(self, scope: Scope, receive: Receive) -> AsyncGenerator[bytes]:
        """The body of a stream as it arrives, until the service stops or the token is revoked."""
        stop = asyncio.ensure_future(self._engine.streams_end.wait())
        message: asyncio.Future[dict[str, Any]] | None = None
        try:
            while True:
                message = asyncio.ensure_future(receive())
                seconds = self._settings.request_seconds
                await asyncio.wait({message, stop}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                if not message.done():
                    if not stop.done():
                        raise errors.RequestTimeout(seconds=seconds)
                    raise errors.NotReady(state="stopping and ends all streams")
                chunk, more = chunk_of(message.result())
                self._access.check_again(scope)
                yield chunk
                if not more:
                    return
        finally:
            stop.cancel()
            if message is not None:
                message.cancel()

    def _paced(self, scope: Scope, arriving: Pieces) -> Pieces:
        """The same pieces, no faster than the token's rate: the service reads more slowly and refuses nothing."""
        pace = pace_of(scope)
        return arriving if pace is None else self._slowed(pace, arriving)

    async def _slowed(self, pace: Pace, arriving: Pieces) -> Pieces:
        async with contextlib.aclosing(arriving):
            async for piece in arriving:
                yield piece
                pace.take(len(piece.items))
                while (seconds := pace.wait_seconds) > 0 and not self._engine.streams_end.is_set():
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._engine.streams_end.wait(), seconds)


async def _settle_but(
    left: int, tally: _Tally, waiting: deque[tuple[pieces.Piece[Any], asyncio.Future[Result]]]
) -> None:
    """Wait until only `left` remain, then raise the first error."""
    wrong: errors.LogstepError | None = None
    while len(waiting) > left:
        if not waiting[0][1].done():
            await asyncio.wait([waiting[0][1]])  # if cancelled, the piece stays first and is counted later
        piece, answer = waiting.popleft()
        try:
            result = answer.result()
        except errors.LogstepError as error:
            wrong = wrong or error
            continue
        tally.add(piece.items, result)
        if result.error is not None:
            wrong = wrong or piece.located(result.error, result.error.index)
    if wrong is not None:
        raise wrong


class _Tally:
    """Counts what was learned of a stream."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.learned = self.duplicates = self._scored = 0
        self.first_seq: int | None = None
        self.last_seq: int | None = None
        self._loss = 0.0
        self._has_labels = False
        self._joined = self._late = 0
        self._served_loss = 0.0

    def add(self, events: Sequence[Event | Label] | Table, result: Result) -> None:
        if result.run is not None:
            self._add_run(result.run)
            return
        fresh = [seq for seq, duplicate in zip(result.seq, result.duplicate, strict=True) if not duplicate]
        self.learned += len(fresh)
        self.duplicates += len(result.seq) - len(fresh)
        if fresh:
            self.first_seq = fresh[0] if self.first_seq is None else self.first_seq
            self.last_seq = fresh[-1]
        losses = [loss for loss in result.loss if loss is not None]
        self._loss += sum(losses)
        self._scored += len(losses)
        if not isinstance(events, Table):
            self._has_labels = self._has_labels or any(isinstance(event, Label) for event in events)
        for label in result.late_labels.values():
            self._joined += not label.late
            self._late += label.late
            self._served_loss += label.served_loss

    def _add_run(self, run: Run) -> None:
        count = len(run.losses)
        self.learned += count
        if count:
            self.first_seq = run.first_seq if self.first_seq is None else self.first_seq
            self.last_seq = run.first_seq + count - 1
        self._loss += float(run.losses[run.taken].sum())
        self._scored += int(run.taken.sum())

    def reply(self) -> LearnedMany:
        loss = self._loss / self._scored if self._scored else None
        plain = (self.model, self.learned, self.duplicates, self.first_seq, self.last_seq, loss)
        labels = self._joined + self._late
        if not (self._has_labels or labels):
            return LearnedMany(*plain)
        return LearnedManyLate(*plain, self._joined, self._late, self._served_loss / labels if labels else None)


def _learned(model: str, event: Event | Label, result: Result, i: int) -> Learned:
    plain = (model, result.seq[i], result.p[i], result.loss[i], result.duplicate[i])
    late_label = result.late_labels.get(i)
    if late_label is not None:
        return LearnedLate(*plain, *late_label)
    if isinstance(event, Label):
        return LearnedLate(*plain, served_p=None, served_loss=None, delay_s=None, late=False)
    return Learned(*plain)


async def _encoded(model: Model, question: Question) -> Encoded:
    """The features of a question that has many."""
    try:
        return await asyncio.to_thread(model.learner.encoded, question.x)
    except EventError as error:
        raise errors.InvalidEvent(field=error.field, reason=error.message) from None


def _predicted(
    scope: Scope, model: Model, question: Question, encoded: Encoded | None = None
) -> Predicted | Prediction:
    """The reply, or, if there is an id, the prediction to store. `encoded`: its features, if already encoded."""
    try:
        if question.id is not None:
            _check_may_keep(scope, model)
            return model.predict_to_keep(question.id, question.x, owner_of(scope), encoded)
        p, unknown = model.predict(question.x, encoded)
    except EventError as error:
        raise errors.InvalidEvent(field=error.field, reason=error.message) from None
    return Predicted(model.name, p, p > 0.5, model.learner.seq, unknown)


def _check_may_keep(scope: Scope, model: Model) -> None:
    """Raise LearnsByTimeout if the model will learn from the stored prediction even without a label, but the token may
    only predict."""
    if model.learner.spec.join.on_timeout == "negative" and not may_learn(scope):
        scopes = " and ".join(scope["grant"].token.scopes)
        raise errors.LearnsByTimeout(field="id", scopes=scopes, wants=LEARN)


def _placed(error: errors.LogstepError, at: str) -> errors.LogstepError:
    """The same error, with the event's place in the body before its field."""
    if "field" not in error.members:
        return error
    return type(error)(**{**error.members, "field": errors.path(at, error.members["field"])})


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


def _check_json(scope: Scope) -> None:
    if media_type_of(scope) != JSON:
        raise errors.UnsupportedMediaType(content_type=media_type_of(scope).decode("latin-1")[:100])


def _settle(tell: Tell, content: Callable[[Result], Any], waited: asyncio.Future[Result]) -> None:
    """Tell when the writer is done."""
    error = waited.exception()
    tell(content(waited.result()) if error is None else None, error)


async def send_reply(send: Send, reply: Reply) -> None:
    """Send a whole reply."""
    await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
    await send({"type": "http.response.body", "body": reply.body})
