"""Bodies of one short event, as nearly all are: answered as soon as their last byte is here, without a task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from service.decode import event_json
from service.fairness import WIDE
from service.http.access import Asked
from service.http.answers import learned, predicted
from service.http.asgi import Scope
from service.http.bodies import ContentType, content_type
from service.http.reply import JSON
from service.learning.engine import Engine
from service.learning.model import Prediction
from service.learning.request import Refused, Result
from service.replies import Learned, Predicted
from service.settings import Settings

Told = Learned | Predicted | BaseException
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
        return length is not None and int(length) <= self._short and is_json and b"content-encoding" not in headers

    def answer_now(self, asked: Asked, scope: Scope, body: bytes, tell: Tell) -> bool:
        """Answer a request of one short event. Returns False, having done nothing, if it takes long after all. Raises
        what is wrong, or tells it if the event already waits for the writer."""
        if asked.verb == "learn":
            self._learn(asked.model, body, tell)
            return True
        return self._predict(asked.model, scope, body, tell)

    def _learn(self, model: str, body: bytes, tell: Tell) -> None:
        """Learn an event. Tell when it is on disk."""
        self._engine.model(model)
        event = event_json.decode_learn(body)
        waits = self._engine.queue.enqueue(model, [event])
        waits.add_done_callback(partial(_settle, tell, lambda outcome: learned(model, event, outcome)))

    def _predict(self, name: str, scope: Scope, body: bytes, tell: Tell) -> bool:
        """Predict from the current model. A prediction with an id is stored first."""
        model = self._engine.model(name)
        question = event_json.decode_question(body)
        if len(question.x) > WIDE:
            return False
        made = predicted(scope, model, question)
        if isinstance(made, Prediction):
            waits = self._engine.queue.enqueue(name, [made])
            waits.add_done_callback(partial(_settle, tell, lambda kept: kept))
        else:
            tell(made)
        return True


def _settle(tell: Tell, reply: Callable[[Any], Told], waited: asyncio.Future[Result]) -> None:
    """Tell when the writer is done."""
    outcome = waited.result()[0]
    tell(outcome.error if isinstance(outcome, Refused) else reply(outcome))
