"""What is told of one event or question, whatever body it came in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from core.features import EventError
from core.learner import Encoded
from service import errors, replies
from service.events import Event, Label, Question
from service.fairness import WIDE, Slices
from service.http.access import LEARN, grant_of
from service.http.asgi import Scope
from service.learning.engine import Engine
from service.learning.model import Model, Prediction
from service.learning.request import Duplicate, Kept, LateLabel, Learned, Outcome, Refused, Stream
from service.replies import Predicted


def learned(model: str, event: Event | Label, outcome: Outcome) -> replies.Learned:
    """The reply to an event or label that was not refused."""
    late: LateLabel | tuple[None, None, None, bool] | None = None
    plain: tuple[str, int, float | None, float | None, bool]
    if isinstance(outcome, Learned):
        plain, late = (model, outcome.seq, outcome.p, outcome.loss, False), outcome.late
    else:
        assert isinstance(outcome, Duplicate)  # noqa: S101  # only predictions are kept
        plain = (model, outcome.seq, None, None, True)
    if late is None and isinstance(event, Label):
        late = None, None, None, False
    return replies.Learned(*plain) if late is None else replies.LearnedLate(*plain, *late)


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
            outcomes = await engine.learn(model.name, to_keep, Stream() if stream else None)
        except errors.LogstepError as error:
            raise placed(error, place(kept_at[error.index or 0])) from None
        for i, outcome in zip(kept_at, outcomes, strict=False):
            if isinstance(outcome, Refused):
                wrong = placed(outcome.error, place(i))
                del made[i:]
                break
            assert isinstance(outcome, Kept)  # noqa: S101  # only events are learned
            made[i] = outcome
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
            grant = grant_of(scope)
            return model.predict_to_keep(question.id, question.x, grant.id, encoded, grant.may_learn)
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
