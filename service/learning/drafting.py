"""What a turn makes of a request: its items in a draft, or why they are refused."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from core.features import EventError
from service import errors, failures
from service.events import Event, Label
from service.learning.draft import Draft, Known, Place, Places
from service.learning.labels import place_item
from service.learning.request import Item, Refused, Request
from service.storage.forgotten import NOTHING
from service.storage.ids import IdKind
from service.storage.store import Store
from service.table import Table
from service.texts import Texts

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
    items, stops = request.items, draft.model.stops_at
    draft.last_seq = None if request.stream is None and stops is not None and draft.next_seq <= stops else stops
    places: Places = []
    refused: Refused | None = None
    if type(items) is list and len(items) == 1 and stops is None and request.stream is None:
        item = items[0]
        if type(item) is Event and item.id is None and item.weight:  # nearly all; refused, it has changed nothing
            try:
                draft.builder.add(item.x, item.y, item.weight)
                places = (len(draft.builder) - 1,)
            except EventError as error:
                refused = _invalid(error, 0)
            draft.answers.append((request, places, refused))
            return
    if request.stream is not None and (request.stream.broken or request.stream in draft.broken):
        pass
    elif not isinstance(items, Table):
        places, refused = _add_items(draft, request, items, known)
    elif draft.takes_whole(items, known):
        places, refused = _add_table(draft, items)
    else:
        places, refused = _add_items(draft, request, items.events(0, len(items)), known)
    draft.answers.append((request, places, refused))
    if refused is not None and request.stream is not None:
        draft.broken.add(request.stream)


def _add_table(draft: Draft, table: Table) -> tuple[range, Refused | None]:
    """Add the events before the first invalid one. Their ids are taken for new."""
    start, refused = len(draft.builder), None
    try:
        draft.builder.add_table(*table.arrays())
    except EventError as error:
        draft.builder.add_table(*table.part(0, error.row).arrays())
        refused = _invalid(error, error.row)
    places = range(start, len(draft.builder))
    if isinstance(table.ids, Texts):  # each has one, see Table
        draft.tables.append((table.ids[: len(places)], places))
        draft.unsure = draft.unsure or refused is not None
    return places, refused


def _add_items(
    draft: Draft, request: Request, items: Sequence[Item], known: Known
) -> tuple[list[Place], Refused | None]:
    """Add items one by one."""
    mark, places, refused = draft.mark(), list[Place](), None
    try:
        for item in items:
            places.append(place_item(draft, item, known))
    except EventError as error:
        refused = _invalid(error, len(places))
    except errors.LogstepError as error:
        error.index, refused = len(places), Refused(error)
    if refused is not None:
        # Another item may be refused, or none, once it is known what the ids stand for. Labels' are known.
        guessed = (item.id is not None and not isinstance(item, Label) for item in items[: len(places) + 1])
        draft.unsure = draft.unsure or (not known.all_of_them and any(guessed))
        if request.stream is None:
            draft.take_back(mark)
            places = []
    return places, refused


def _invalid(error: EventError, index: int) -> Refused:
    refused = Refused(errors.InvalidEvent(field=error.field, reason=error.message))
    refused.error.index = index
    return refused


def read_ids(store: Store, known: Known, wanted: dict[int, list[str]], corrected: set[tuple[int, str]]) -> None:
    """Runs in the disk thread. `corrected`: ids whose event is wanted too if the timeout learned it as 0."""
    known.ids.update(store.find_ids(wanted, known.reading))
    if not corrected:
        return
    for model, id_ in ((model, id_) for model, ids in wanted.items() for id_ in ids):
        found = known.ids.get((model, id_))
        if found is None or found.kind is not IdKind.EXPIRED or (model, id_) not in corrected:
            continue
        if not known.reading.takes((model, id_), 0):
            continue
        with contextlib.suppress(failures.LogDamaged):  # then only this label is refused
            if found.seq <= store.log.forgotten.get(model, NOTHING).events:
                known.gone.add((model, id_))
                continue
            logged = store.log.event(model, found.seq)
            if logged is not None:
                known.expired[model, id_] = logged
                known.reading.left -= logged[1].values.nbytes + logged[1].columns.nbytes
            elif found.seq <= store.log.gone(model):
                known.gone.add((model, id_))
