"""What is told of one event or question, whatever body it came in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from core.features import EventError
from core.learner import Encoded
from service import errors
from service.events import Event, Label, Question
from service.fairness import WIDE, Slices
from service.http.access import LEARN, grant_of
from service.http.asgi import Scope
from service.learning.engine import Engine
from service.learning.model import Model, Prediction
from service.learning.request import Result, Stream
from service.replies import Learned, LearnedLate, Predicted


def learned(model: str, event: Event | Label, result: Result, i: int) -> Learned:
    plain = (model, result.seq[i], result.p[i], result.loss[i], result.duplicate[i])
    late_label = result.late_labels.get(i)
    if late_label is not None:
        return LearnedLate(*plain, *late_label)
    if isinstance(event, Label):
        return LearnedLate(*plain, served_p=None, served_loss=None, delay_s=None, late=False)
    return Learned(*plain)


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
            encoded = await _encoded(model, question) if len(question.x) > WIDE else None
            made.append(predicted(scope, model, question, encoded))
        except errors.LogstepError as error:
            wrong = placed(error, place(len(made)))
            if not stream:
                raise wrong from None
            break
        if slices.spent(len(question.x)):
            await slices.rest()
    kept_at = [i for i, prediction in enumerate(made) if isinstance(prediction, Prediction)]
    to_keep = [prediction for prediction in made if isinstance(prediction, Prediction)]
    if to_keep:
        try:
            kept, refused = await engine.keep(model.name, to_keep, Stream() if stream else None)
        except errors.LogstepError as error:
            raise placed(error, place(kept_at[error.index])) from None
        if refused is not None:
            wrong = placed(refused, place(kept_at[len(kept)]))
            del made[kept_at[len(kept)] :]
        for i, reply in zip(kept_at, kept, strict=False):
            made[i] = reply
    return made, wrong  # type: ignore[return-value]  # each Prediction has its reply now


async def _encoded(model: Model, question: Question) -> Encoded:
    """The features of a question that has many."""
    try:
        return await asyncio.to_thread(model.learner.encoded, question.x)
    except EventError as error:
        raise errors.InvalidEvent(field=error.field, reason=error.message) from None


def predicted(scope: Scope, model: Model, question: Question, encoded: Encoded | None = None) -> Predicted | Prediction:
    """The reply, or, if there is an id, the prediction to store. `encoded`: its features, if already encoded."""
    try:
        if question.id is not None:
            _check_may_keep(scope, model)
            return model.predict_to_keep(question.id, question.x, grant_of(scope).id, encoded)
        p, unknown = model.predict(question.x, encoded)
    except EventError as error:
        raise errors.InvalidEvent(field=error.field, reason=error.message) from None
    return Predicted(model.name, p, p > 0.5, model.learner.seq, unknown)


def _check_may_keep(scope: Scope, model: Model) -> None:
    """Raise LearnsByTimeout if the model will learn from the stored prediction even without a label, but the token may
    only predict."""
    if model.learner.spec.join.on_timeout == "negative" and not grant_of(scope).may_learn:
        scopes = " and ".join(grant_of(scope).token.scopes)
        raise errors.LearnsByTimeout(field="id", scopes=scopes, wants=LEARN)


def placed(error: errors.LogstepError, at: str) -> errors.LogstepError:
    """The same error, with the event's place in the body before its field."""
    return error if error.field is None else replace(error, field=errors.path(at, error.field))
