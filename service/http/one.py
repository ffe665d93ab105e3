"""One event or question: what is answered, whatever body it came in, and the way of a short one.

Nearly all bodies are one short event. They are answered as soon as their last byte is here, without a task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from starlette.types import Scope

from core.features import EventError
from core.learner import Encoded
from service import errors, replies
from service.decode import event_json
from service.events import Label, Question
from service.fairness import WIDE, Slices
from service.http.access import LEARN, Asked, grant_of
from service.http.bodies import ContentType, content_type
from service.http.fresh import PLACE
from service.http.reply import JSON
from service.learning.engine import Engine
from service.learning.model import Model, Prediction
from service.learning.request import Duplicate, Item, Kept, Learned, NotLearned, Outcome, Refused, Result, Stream
from service.problem import path_of
from service.replies import Predicted
from service.settings import Settings

Told = replies.Learned | replies.NotLearned | Predicted | BaseException
"""What is told of an event or a question: its reply, or what is wrong."""
Tell = Callable[[Told], None]

_JSON = ContentType(JSON)
_SHORT_BYTES = 2**14
"""Longest body of a short event. While it arrives, it does not count against `max_bodies_bytes`, as others do."""


class One:
    """Answers requests of one short event."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._short = min(_SHORT_BYTES, settings.max_body_bytes)

    def is_short(self, scope: Scope) -> bool:
        """Whether a request has a short JSON body, by its head."""
        headers = dict(scope["headers"])
        length = headers.get(b"content-length")
        is_json = content_type(headers.get(b"content-type", b"")) == _JSON
        waits = b"content-encoding" in headers or PLACE in headers or scope["query_string"]
        return is_json and not waits and length is not None and int(length) <= self._short

    def answer_now(self, asked: Asked, scope: Scope, body: bytes, tell: Tell) -> bool:
        """Answer a request of one short event: a prediction at once, one with an id and an event when they are on disk.
        Returns False, having done nothing, if it takes long after all. Raises what is wrong, or tells it if the event
        already waits for the writer."""
        model = self._engine.model(asked.model)
        item: Item
        if asked.verb == "learn":
            item = event_json.decode_learn(body)
        else:
            question = event_json.decode_question(body)
            if len(question.x) > WIDE:
                return False
            made = predicted(scope, model, question)
            if isinstance(made, Predicted):
                self._engine.queue.passed_by += 1
                tell(made)
                return True
            item = made
        self._engine.queue.enqueue_for(asked.model, [item], partial(_settle, tell, asked.model, item))
        return True


def _settle(tell: Tell, model: str, item: Item, result: Result) -> None:
    """Tell when the writer is done."""
    outcome = result[0]
    if isinstance(outcome, Refused):
        tell(outcome.error)
    else:
        tell(outcome if isinstance(outcome, Kept) else learned(model, item, outcome))


def learned(model: str, item: Item, outcome: Outcome) -> replies.Learned | replies.NotLearned:
    """The reply to an event or label that was not refused."""
    if isinstance(outcome, Duplicate):
        if isinstance(item, Label):
            return replies.LearnedLate(model, outcome.seq, None, None, True, None, None, None, late=False)
        return replies.Learned(model, outcome.seq, None, None, duplicate=True)
    if isinstance(outcome, NotLearned):
        return replies.NotLearned(model)
    assert isinstance(outcome, Learned)  # noqa: S101  # only predictions are kept
    if outcome.late is None:
        return replies.Learned(model, outcome.seq, outcome.p, outcome.loss, duplicate=False)
    return replies.LearnedLate(model, outcome.seq, outcome.p, outcome.loss, False, *outcome.late)


async def predict_all(
    engine: Engine,
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
            many = len(question.x) > WIDE
            encoded = await asyncio.to_thread(model.learner.encoded, question.x) if many else None
            made.append(predicted(scope, model, question, encoded))
        except (EventError, errors.LogstepError) as error:
            wrong = placed(invalid(error) if isinstance(error, EventError) else error, place(len(made)))
            if not stream:
                raise wrong from None
            break
        if slices.spent(len(question.x)):
            await slices.rest()
    to_keep = {i: prediction for i, prediction in enumerate(made) if isinstance(prediction, Prediction)}
    if to_keep:
        places = list(to_keep)
        try:
            outcomes = await engine.learn(model.name, list(to_keep.values()), Stream() if stream else None)
        except errors.LogstepError as error:
            raise placed(error, place(places[error.index or 0])) from None
        for i, outcome in zip(places, outcomes, strict=False):
            if isinstance(outcome, Refused):
                wrong = placed(outcome.error, place(i))
                del made[i:]
                break
            assert isinstance(outcome, Kept)  # noqa: S101  # only events are learned
            made[i] = outcome
    return made, wrong  # type: ignore[return-value]  # each Prediction has its reply now


def predicted(scope: Scope, model: Model, question: Question, encoded: Encoded | None = None) -> Predicted | Prediction:
    """The reply, or, if there is an id, the prediction to store. `encoded`: its features, if already encoded."""
    try:
        if question.id is None:
            p, unknown = model.predict(question.x, encoded)
            return Predicted(model.name, p, p > 0.5, model.learner.seq, unknown)
        grant = grant_of(scope)
        if not grant.may_learn and model.learner.spec.join.on_timeout == "negative":  # it learns without a label too
            raise errors.LearnsByTimeout(field="id", scopes=" and ".join(grant.token.scopes), wants=LEARN)
        return model.predict_to_keep(question.id, question.x, grant.id, encoded, grant.may_learn)
    except EventError as error:
        raise invalid(error) from None


def invalid(error: EventError) -> errors.InvalidEvent:
    """What the learner says of an event, as callers get it."""
    return errors.InvalidEvent(field=error.field, reason=error.message)


def placed(error: errors.LogstepError, at: str) -> errors.LogstepError:
    """The same error, with the event's place in the body before its field."""
    return error if error.field is None else replace(error, field=path_of(at, error.field))
