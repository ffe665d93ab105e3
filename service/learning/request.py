"""What waits for the writer, and what became of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import msgspec

from core.batch import Mask
from core.logistic import Floats
from service import errors
from service.events import Event, Label
from service.learning.model import Prediction
from service.replies import PredictedKept
from service.storage.positions import Position
from service.table import Table

logger = logging.getLogger("logstep")

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


class NotLearned(msgspec.Struct, frozen=True, gc=False):
    """An event or label of weight 0 was checked. It has no seq, and its id stands for what it stood for."""


Kept = PredictedKept
"""A prediction waits for its label, or does not because too many wait: this is its reply."""


class Refused(msgspec.Struct, frozen=True):
    """An item was refused, and what it was part of: nothing of its request was learned, or, of a stream, nothing after
    it. The error's `index` is the item's place in the request."""

    error: errors.LogstepError


class Run(NamedTuple):
    """Rows of a table were learned: the seq of the first, the log losses before the steps, and which steps were
    taken."""

    first_seq: int
    losses: Floats
    taken: Mask


Outcome = Learned | Duplicate | NotLearned | Kept | Refused | Run
Result = list[Outcome]
"""What became of a request: an outcome for each item, or a Run for a table, up to the first refused one, which comes
last. Only that if all or none is learned. It is empty if an earlier request of the stream was refused."""


def refusal_of(result: Result) -> Refused | None:
    """What was refused of a request."""
    last = result[-1] if result else None
    return last if isinstance(last, Refused) else None


@dataclass(slots=True, eq=False)
class Stream:
    """Shared by the requests of one stream. After a refused event, the service learns nothing more of the stream."""

    broken: bool = False
    name: str = ""
    """Its name in the topic, if it comes from one."""


class Place(NamedTuple):
    """Where the record of a request stands in a topic. at: the time of the partition, in microseconds since 1970. mark:
    the record's CRC-32. skipped: items that were applied before."""

    partition: int
    record: int
    at: int
    mark: int
    skipped: int = 0


@dataclass(slots=True, eq=False)
class Request:
    """Items that wait for the writer. It takes all or none; of a stream, those before the first that it refuses."""

    model: str
    items: Items
    stream: Stream | None
    tell: Callable[[Result], None]
    """Gets what became of it, on the event loop, once."""
    place: Place | None = None
    """Where it stands in the topic, if it comes from one."""
    parts: list[Request] | None = None
    """All the parts that it was cut into, in order, this one included."""
    result: Result | None = None

    @property
    def lane(self) -> str | int:
        """What is learned in one order: the requests of a model, or those of a partition."""
        return self.model if self.place is None else self.place.partition

    def cut(self, count: int) -> Request:
        """Keep the first `count` items; the rest as a request for a later turn. All parts together get one answer."""
        items = self.items.events(0, len(self.items)) if isinstance(self.items, Table) else self.items
        self.parts = self.parts or [self]
        rest = replace(self, items=items[count:])
        self.items = items[:count]
        self.parts.insert(self.parts.index(self) + 1, rest)
        return rest

    def position(self, place: Place) -> Position:
        """What is applied of the topic once this is, which stands at that place."""
        items = 0
        if self.parts is not None and self.parts[-1] is not self:
            items = place.skipped + sum(len(part.items) for part in self.parts[: self.parts.index(self) + 1])
        return Position(place.record, items, place.at, place.mark)

    def refuse(self, error: errors.LogstepError) -> None:
        """Answer that all of it is refused, and the parts after it, unless already answered."""
        if self.stream is not None:
            self.stream.broken = True
        for part in [self] if self.parts is None else self.parts[self.parts.index(self) :]:
            part.accept([Refused(error)])

    def accept(self, result: Result) -> None:
        """Answer, unless already answered."""
        if self.result is not None:
            return
        self.result = result
        if self.parts is not None:
            if any(part.result is None for part in self.parts):
                return  # the others wait for later turns
            result = _joined(self.parts)
        try:
            self.tell(result)
        except Exception:  # who is told has a mistake; the others are still answered
            logger.exception("a mistake in logstep itself")

    def ids(self, *, labels_alone: bool = False) -> list[str]:
        """The ids of its items, or only those of labels without x, which must already stand for something."""
        if isinstance(self.items, Table):
            if labels_alone or self.items.ids is None:
                return []
            return [id_ for id_ in self.items.ids if id_ is not None]
        if labels_alone:
            return [item.id for item in self.items if isinstance(item, Label)]
        return [item.id for item in self.items if item.id is not None]


def settle(answer: asyncio.Future[Result], result: Result) -> None:
    """Tell who waits for a future."""
    if not answer.done():  # who waited may have been cancelled
        answer.set_result(result)


def _joined(parts: list[Request]) -> Result:
    """What became of a request that was cut. The error's index counts from its beginning."""
    joined, before = list[Outcome](), 0
    for part in parts:
        result = part.result or []
        refused = refusal_of(result)
        if refused is not None and refused.error.index is not None:
            refused.error.index += before
        joined += result
        before += len(part.items)
    return joined
