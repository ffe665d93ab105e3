"""What waits for the writer, and what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from core.batch import Mask
from core.logistic import Floats
from service import errors
from service.events import Event, Label
from service.learning.model import Prediction
from service.replies import PredictedKept
from service.table import Table

Item = Event | Label | Prediction
"""What a request asks to learn, or to keep until its label comes."""
Items = Sequence[Item] | Table
"""A table has only events."""


class Run(NamedTuple):
    """The result of a table: the seq of its first event, the log losses before the steps, and which steps were
    taken."""

    first_seq: int
    losses: Floats
    taken: Mask


class LateLabel(NamedTuple):
    """What a joined label shows: p and log loss as served, and the seconds from the prediction to the label. late:
    whether it came after the timeout."""

    served_p: float
    served_loss: float
    delay_s: float
    late: bool


@dataclass(slots=True)
class Result:
    """The result of one request.

    `seq`, `p`, `loss` and `duplicate` have an entry for each answered event or label. `late_labels` has one for each
    that was joined to a prediction, by its place. `predicted` has one for each prediction. `run` is the result of a
    table. Only a request of a stream can have both an `error` and entries: those of the items before the refused one.
    The result is empty if an earlier request of the stream was refused.
    """

    seq: list[int] = field(default_factory=list)
    p: list[float | None] = field(default_factory=list)
    loss: list[float | None] = field(default_factory=list)
    duplicate: list[bool] = field(default_factory=list)
    late_labels: dict[int, LateLabel] = field(default_factory=dict)
    predicted: list[PredictedKept] = field(default_factory=list)
    run: Run | None = None
    error: errors.LogstepError | None = None


@dataclass(slots=True, eq=False)
class Stream:
    """Shared by the requests of one stream. After a refused event, the service learns nothing more of the stream."""

    broken: bool = False


@dataclass(slots=True, eq=False)
class Request:
    """Items that wait for the writer. It takes all or none; of a stream, those before the first that it refuses."""

    model: str
    items: Items
    stream: Stream | None
    answer: asyncio.Future[Result]
    rest: Request | None = None
    """The items that were cut off."""

    def cut(self, count: int) -> Request:
        """Keep the first `count` items; the rest as a request for a later turn. Both together get one answer."""
        loop, answer = self.answer.get_loop(), self.answer
        items = self.items.events(0, len(self.items)) if isinstance(self.items, Table) else self.items
        self.answer, self.items = loop.create_future(), items[:count]
        self.rest = Request(self.model, items[count:], self.stream, loop.create_future())
        asyncio.gather(self.answer, self.rest.answer).add_done_callback(partial(_settle, answer))
        return self.rest

    def refuse(self, error: errors.LogstepError) -> None:
        """Answer with an error, unless already answered."""
        if self.rest is not None:
            self.rest.refuse(error)
        if self.stream is not None:
            self.stream.broken = True
        if not self.answer.done():
            self.answer.set_exception(error)

    def ids(self, *, labels_alone: bool = False) -> list[str]:
        """The ids of its items, or only those of labels without x, which must already stand for something."""
        if isinstance(self.items, Table):
            return [] if labels_alone or self.items.ids is None else self.items.ids  # type: ignore[return-value]
        if labels_alone:
            return [item.id for item in self.items if isinstance(item, Label)]
        return [item.id for item in self.items if item.id is not None]

    def accept(self, result: Result) -> None:
        """Answer, unless already answered."""
        if not self.answer.done():
            self.answer.set_result(result)


def _settle(answer: asyncio.Future[Result], parts: asyncio.Future[list[Result]]) -> None:
    """Answer a request that was cut in two, when both parts are answered."""
    if answer.done():
        return
    error = parts.exception()
    if error is None:
        answer.set_result(_joined_results(*parts.result()))
    else:
        answer.set_exception(error)


def _joined_results(first: Result, second: Result) -> Result:
    """What became of the items of a request that was cut in two."""
    before = len(first.seq) + len(first.predicted)
    if second.error is not None:
        second.error.index += before
    return Result(
        first.seq + second.seq,
        first.p + second.p,
        first.loss + second.loss,
        first.duplicate + second.duplicate,
        first.late_labels | {before + i: label for i, label in second.late_labels.items()},
        first.predicted + second.predicted,
        error=first.error or second.error,
    )
