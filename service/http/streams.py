"""Bodies that are streams: lines of NDJSON or messages of Arrow, answered piece by piece as they arrive."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
from starlette.types import Receive, Scope, Send

from core.logistic import Floats
from service import errors
from service.decode import event_json, pieces
from service.events import Event, Label, Question
from service.fairness import Slices
from service.http.access import Access, grant_of
from service.http.bodies import ARROW, FILES, NDJSON, Bodies, chunk_of, content_type_of
from service.http.files import Files
from service.http.long_reply import LongReplies
from service.http.one import predict_all
from service.http.reply import json_reply
from service.http.rows import learned_rows, rows_of
from service.http.tokens import Pace
from service.learning.engine import Engine
from service.learning.model import Model
from service.learning.request import Duplicate, Learned, NotLearned, Result, Run, Stream, refusal_of
from service.replies import LearnedMany, LearnedManyLate, encode
from service.rows.stream import Rows
from service.settings import Settings
from service.table import Table

Pieces = AsyncGenerator[pieces.Piece[Any]]
_LARGE = 2**20
AHEAD, AHEAD_EVENTS = 16, 12_000
"""Pieces of a stream that wait for the writer at once, and their events, about: enough for two commits, one that syncs
and the next. More would leave others no room in the queue."""
LARGE_PIECES = 3
"""So many pieces wait also where they have more events, on a node: one on its way to the topic, one that comes back,
and one that is learned."""
PACED_EVENTS = 1_000
"""Events of a piece of a stream that a token's rate slows down."""


class Streams:
    """Answers requests whose body is a stream."""

    def __init__(
        self, engine: Engine, bodies: Bodies, settings: Settings, replies: LongReplies, access: Access
    ) -> None:
        self._engine = engine
        self._bodies = bodies
        self._settings = settings
        self._replies = replies
        self._access = access
        self._files = Files(settings)
        self._ahead = max(AHEAD_EVENTS, LARGE_PIECES * settings.stream_events)
        self._large = asyncio.Semaphore(1)
        """Limits large first rows to those of one body at a time, because in memory they take ten times their text."""

    async def learn(self, model: Model, scope: Scope, receive: Receive, send: Send) -> None:
        """Learn piece by piece. An error says what was learned before it; that stays learned."""
        tally = _Tally(model.name)
        breaker = model.learner.spec.breaker
        try:
            with self._bodies.growing() as hold:
                arriving, rows = self._arriving(model, scope, receive, hold, learn=True)
                if breaker is not None:  # it must be checked before many more events are committed
                    arriving = pieces.cut(arriving, breaker.events)
                async with (
                    self._access.while_it_may(scope),
                    contextlib.aclosing(_slowed(grant_of(scope).pace, arriving)) as paced,
                ):
                    await self._learn_pieces(tally, paced)
        except errors.LogstepError as error:
            # A new error: other requests may share this one, and their counts differ.
            told = replace(error, learned=tally.learned, duplicates=tally.duplicates, last_seq=tally.last_seq)
            told.not_learned = tally.not_learned or None
            raise told from None
        reply = tally.reply()
        await json_reply(reply if rows is None else learned_rows(reply, rows)).send(send)

    async def _learn_pieces(self, tally: _Tally, arriving: Pieces) -> None:
        """Learn the items up to the first wrong one, then raise its error.

        Several pieces wait for the writer at once, so that it has the next one when it has synced one.
        """
        stream = Stream()
        waiting: deque[tuple[pieces.Piece[Any], asyncio.Future[Result]]] = deque()
        try:
            async for piece in arriving:
                if len(waiting) == AHEAD or sum(len(other.items) for other, _ in waiting) >= self._ahead:
                    await _settle_but(len(waiting) - 1, tally, waiting)
                if len(piece.items):
                    waiting.append((piece, await self._engine.queue.submit(tally.model, piece.items, stream)))
                if piece.wrong is not None:
                    raise piece.wrong
        finally:
            await _settle_but(0, tally, waiting)  # an error here comes first: its event is earlier in the stream

    async def predict(self, model: Model, scope: Scope, receive: Receive, send: Send) -> None:
        """Predict piece by piece."""
        async with self._access.while_it_may(scope):
            with self._bodies.growing() as hold:
                arriving, _ = self._arriving(model, scope, receive, hold, learn=False)
                async with contextlib.aclosing(_slowed(grant_of(scope).pace, arriving)) as paced:
                    await self._predict_pieces(model, scope, paced, send)

    async def _predict_pieces(
        self, model: Model, scope: Scope, arriving: AsyncGenerator[pieces.Piece[list[Question]]], send: Send
    ) -> None:
        """Predict each piece. The reply has a line for each question.

        The reply starts when the whole body has been read. Before that the status is unknown. Also, a client that sends
        all of a long body before it reads would wait for the service while the service waits for the client.
        """
        slices = Slices()  # for all pieces, because many come without a rest between them
        with self._replies.gathered(NDJSON) as reply:
            async for piece in arriving:
                replies, refused = await predict_all(
                    self._engine, model, scope, piece.items, piece.place, slices, stream=True
                )
                if refused is not None:
                    number = piece.numbers[len(replies)]
                    raise replace(refused, line=number) if piece.unit == "line" else replace(refused, row=number)
                if piece.wrong is not None:
                    raise piece.wrong
                await reply.add(b"".join(map(encode, replies)))
            await reply.send(send)

    def _arriving(
        self, model: Model, scope: Scope, receive: Receive, hold: Callable[[int], None], *, learn: bool
    ) -> tuple[Pieces, Rows | None]:
        """The pieces of a body, by its kind, and what its rows were read as."""
        chunks, media_type = self._chunks(receive), content_type_of(scope).media_type
        rows = rows_of(scope, model, self._settings, hold, self._place_of_the_large, learn=learn)
        if media_type in FILES or (media_type == ARROW and rows is not None):
            chunks = self._files.chunks(chunks, rows.index if rows is not None else None)
        if rows is not None:
            return rows.pieces(chunks), rows
        if media_type == ARROW or media_type in FILES:
            return (pieces.events_of_rows if learn else pieces.questions_of_rows)(chunks, self._settings), None
        if learn:
            return pieces.events_of_lines(chunks, self._settings), None
        return pieces.lines_of(chunks, event_json.decode_question, self._settings), None

    @contextlib.asynccontextmanager
    async def _place_of_the_large(self, size: int) -> AsyncGenerator[None]:
        async with self._large if size > _LARGE else contextlib.nullcontext():
            yield

    async def _chunks(self, receive: Receive) -> AsyncGenerator[bytes]:
        """The body of a stream as it arrives."""
        seconds, more = self._settings.request_seconds, True
        while more:
            try:
                async with asyncio.timeout(seconds):
                    message = await receive()
            except TimeoutError:
                raise errors.RequestTimeout(seconds=seconds) from None
            chunk, more = chunk_of(message)
            yield chunk


async def _slowed(pace: Pace | None, arriving: Pieces) -> Pieces:
    """The same items, no faster than the token's rate: the service reads more slowly and refuses nothing."""
    if pace is not None:
        arriving = pieces.cut(arriving, PACED_EVENTS)
    async with contextlib.aclosing(arriving):
        async for piece in arriving:
            yield piece
            if pace is not None:
                pace.take(len(piece.items))
                await asyncio.sleep(pace.wait_seconds)


async def _settle_but(
    left: int, tally: _Tally, waiting: deque[tuple[pieces.Piece[Any], asyncio.Future[Result]]]
) -> None:
    """Wait until only `left` remain, then raise the first error."""
    wrong: errors.LogstepError | None = None
    while len(waiting) > left:
        if not waiting[0][1].done():
            await asyncio.wait([waiting[0][1]])  # if cancelled, the piece stays first and is counted later
        piece, answer = waiting.popleft()
        result = answer.result()
        tally.add(piece.items, result)
        if (refused := refusal_of(result)) is not None:
            error = refused.error
            wrong = wrong or (error if error.index is None else piece.located(error, error.index))
    if wrong is not None:
        raise wrong


class _Tally:
    """Counts what was learned of a stream."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.learned = self.duplicates = self.not_learned = self._scored = 0
        self.first_seq: int | None = None
        self.last_seq: int | None = None
        self._loss = 0.0
        self._has_labels = False
        self._joined = self._late = 0
        self._served_loss = 0.0

    def add(self, items: Sequence[Event | Label] | Table, result: Result) -> None:
        seqs: Sequence[int]
        losses: Sequence[float] | Floats
        if result and isinstance(result[0], Run):
            runs = [run for run in result if isinstance(run, Run)]
            places = [range(run.first_seq, run.first_seq + len(run.losses)) for run in runs]
            seqs = places[0] if len(runs) == 1 else [*chain.from_iterable(places)]
            losses = np.concatenate([run.losses[run.taken] for run in runs])
        else:
            fresh = [outcome for outcome in result if isinstance(outcome, Learned)]
            seqs = [outcome.seq for outcome in fresh]
            losses = [outcome.loss for outcome in fresh if outcome.loss is not None]
            self.duplicates += sum(isinstance(outcome, Duplicate) for outcome in result)
            self.not_learned += sum(isinstance(outcome, NotLearned) for outcome in result)
            for late in (outcome.late for outcome in fresh if outcome.late is not None):
                self._joined += not late.late
                self._late += late.late
                self._served_loss += late.served_loss
        if not isinstance(items, Table):
            self._has_labels = self._has_labels or any(isinstance(item, Label) for item in items)
        if seqs:
            self.first_seq = seqs[0] if self.first_seq is None else self.first_seq
            self.last_seq = seqs[-1]
        self.learned += len(seqs)
        self._loss += float(np.sum(losses))
        self._scored += len(losses)

    def reply(self) -> LearnedMany:
        loss = self._loss / self._scored if self._scored else None
        plain = self.model, self.learned, self.duplicates, self.first_seq, self.last_seq, loss, self.not_learned
        labels = self._joined + self._late
        if not (self._has_labels or labels):
            return LearnedMany(*plain)
        served_loss = self._served_loss / labels if labels else None
        return LearnedManyLate(*plain, joined=self._joined, late=self._late, served_loss=served_loss)
