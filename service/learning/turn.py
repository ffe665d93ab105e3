"""One turn of the writer: makes arrays to commit from the waiting requests, and their replies.

It refuses invalid events, labels and predictions before anything is changed. It answers items that were learned or kept
before under the same id as duplicates.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.builder import BatchBuilder
from core.features import EventError
from service import errors
from service.events import Label
from service.learning.draft import Draft, Known, Place, Places
from service.learning.labels import place_item
from service.learning.request import Item, Request
from service.replies import PredictedKept
from service.table import Table

# -- what the requests ask for

ITEM = 4
"""The fixed cost of an item, in features."""
TABLE = 64
"""Values of a table that cost as much as one feature of an event: they are copied as arrays. A table of 8,192 rows of
10 features takes a tenth of a millisecond, less than the hops to threads and back that long work takes."""


def work_of(request: Request, model: int, known: Known) -> int:
    """The cost of drafting a request, in features, about. `model`: the model's key."""
    items = request.items
    if isinstance(items, Table):
        return len(items.names) + items.values.size // TABLE + ITEM * len(items.ids or ())
    work = ITEM * len(items)
    for item in items:
        if not isinstance(item, Label):
            work += len(item.x)
        elif (found := known.ids.get((model, item.id))) is not None and found.waiting is not None:
            work += len(found.waiting.x)
    return work


def draft_request(draft: Draft, request: Request, known: Known) -> None:
    """Add a request's items to the draft. If one is refused, add none; of a stream, add those before it."""
    items = request.items
    if request.stream is not None and (request.stream.broken or request.stream in draft.broken):
        draft.answers.append((request, (), None))
    elif not isinstance(items, Table):
        _add_items(draft, request, items, known)
    elif draft.model.stopped or (items.ids is not None and (known.all_of_them or len(set(items.ids)) < len(items))):
        _add_items(draft, request, items.events(0, len(items)), known)  # checks each, because one may be known
    else:
        places, refusal = _add_table(draft.builder, items)
        if items.ids is not None:
            draft.ids.update(zip(items.ids, places, strict=False))  # type: ignore[arg-type]  # each has one, see Table
            draft.unsure = draft.unsure or refusal is not None
        _answer(draft, request, places, refusal)


def _answer(draft: Draft, request: Request, places: Places, refusal: errors.LogstepError | None) -> None:
    draft.answers.append((request, places, refusal))
    if refusal is not None and request.stream is not None:
        draft.broken.add(request.stream)


def _add_table(builder: BatchBuilder, table: Table) -> tuple[range, errors.LogstepError | None]:
    """The places of a table's events and None; or those of the events before the first invalid one, and its error."""
    start = len(builder)
    try:
        builder.add_table(*table.arrays())
    except EventError as error:
        builder.add_table(*table.part(0, error.row).arrays())
        refusal = errors.InvalidEvent(field=error.field, reason=error.message)
        refusal.index = error.row
        return range(start, start + error.row), refusal
    return range(start, start + len(table)), None


def _add_items(draft: Draft, request: Request, items: Sequence[Item], known: Known) -> None:
    mark = draft.mark()
    places: list[Place | PredictedKept] = []
    refusal: errors.LogstepError | None = None
    try:
        for item in items:
            places.append(place_item(draft, item, known))
    except EventError as error:
        refusal = errors.InvalidEvent(field=error.field, reason=error.message)
    except errors.LogstepError as error:
        refusal = error
    if refusal is not None:
        refusal.index = len(places)
        draft.unsure = draft.unsure or not known.all_of_them
        if request.stream is None:
            draft.take_back(mark)
            draft.refused.append((request, refusal))
            return
    _answer(draft, request, places, refusal)
