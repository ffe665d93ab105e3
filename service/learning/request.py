"""What waits for the writer, and what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import msgspec

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


class LateLabel(NamedTuple):
    """What a joined label shows: p and log loss as served, and the seconds from the prediction to the label. late:
    whether it came after the timeout."""

    served_p: float
    served_loss: float
    delay_s: float
    late: bool


class Learned(msgspec.Struct, frozen=True, gc=False):
    """An event or label was learned. p and loss: before its step; None if the step was not taken. late: of a label that
    was joined to a prediction."""

    seq: int
    p: float
    loss: float | None
    late: LateLabel | None = None


class Duplicate(msgspec.Struct, frozen=True, gc=False):
    """An event or label was learned before, at this seq."""

    seq: int


Kept = PredictedKept
"""A prediction waits for its label, or does not because too many wait: this is its reply."""


class Refused(msgspec.Struct, frozen=True):
    """An item was refused, and what it was part of: nothing of its request was learned, or, of a stream, nothing after
    it. The error's `index` is the item's place in the request."""

    error: errors.LogstepError


Outcome = Learned | Duplicate | Kept | Refused


class Run(NamedTuple):
    """What became of a table: the seq of its first event, the log losses before the steps, which steps were taken, and
    the first row that was refused."""

    first_seq: int
    losses: Floats
    taken: Mask
    refused: Refused | None


Result = list[Outcome] | Run
"""What became of a request: an outcome for each item up to the first refused one, or only that if all or none is
learned. It is empty if an earlier request of the stream was refused."""


def refusal_of(result: Result) -> Refused | None:
    """What was refused of a request."""
    if isinstance(result, Run):
        return result.refused
    last = result[-1] if result else None
    return last if isinstance(last, Refused) else None


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
        """Answer that all of it is refused, unless already answered."""
        if self.rest is not None:
            self.rest.refuse(error)
        if self.stream is not None:
            self.stream.broken = True
        self.accept([Refused(error)])

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
    first, second = parts.result()
    if second and isinstance(refused := second[-1], Refused) and refused.error.index is not None:
        refused.error.index += len(first)
    answer.set_result([*first, *second])  # neither is a Run, see `cut`
