"""The life of an id: its table (service/learning/labels.py), cell by cell, against the function that implements it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from core.spec import Join
from service import errors
from service.events import Event, Label, Named
from service.learning import labels
from service.learning.labels import Do, Found, decide
from service.learning.model import Prediction
from service.learning.request import Item
from service.storage.ids import KINDS, IdKind

X: Named = {"a": 1.0}
EVENT, LABEL, PREDICTION, TIMEOUT = Event(X, 1, "i"), Label("i", 1), Prediction("i", X, 0, np.zeros(1), 0, ""), None
COLUMNS: dict[str, Item | None] = {"event": EVENT, "label": LABEL, "prediction": PREDICTION, "timeout": TIMEOUT}
FOUND = {"new": None, **{kind.name.lower(): kind for kind in IdKind}}
DROPS, REFUSES, LEARNS = Join(), Join(on_timeout="negative"), Join(on_timeout="negative", late="learn")

learned = ("same: duplicate, else 409", "same: duplicate, else 409", "409", "-")
TABLE = {
    "new": ("learn", "404 unknown", "keep", "-"),
    "waiting": ("same x: join, else 409", "join", "same x: duplicate, else 409", "expire or drop"),
    "joined": learned,
    "learned": learned,
    "expired": ("same x: like its label, else 409", "late: 404, or 0: duplicate, 1: correct", "409", "-"),
    "late": learned,
    "dropped": ("learn", "404 dropped", "keep", "-"),
    "forgotten": ("learn", "404 unknown", "keep", "-"),
}


def decided(found: str, item: Any, join: Join = DROPS, **more: Any) -> Any:
    """What is done, or the type and the text of the error."""
    do = decide(Found(FOUND[found], 7, **more), item, join)
    return do if isinstance(do, Do) else (type(do), str(do))


def test_the_table_at_the_top_of_the_file_is_the_one_that_is_tested() -> None:
    told = labels.__doc__ or ""
    lines = told.split("    stands for", 1)[1].split("\n\n", 1)[0].splitlines()
    starts = [lines[0].index(name) + len("    stands for") for name in COLUMNS]
    rows: dict[str, list[str]] = {}
    for line in lines[1:]:
        cells = [line[a:b].strip() for a, b in zip([0, *starts], [*starts, None], strict=True)]
        name = cells[0] or list(rows)[-1]
        before = rows.get(name, [""] * len(COLUMNS))
        rows[name] = [f"{a} {b}".strip() for a, b in zip(before, cells[1:], strict=True)]
    assert {name: tuple(row) for name, row in rows.items()} == TABLE
    assert rows.keys() == FOUND.keys(), "a row for each kind"


# What each word of the table means, by what the item has in common with what was found.
SAME_X, SAME, OTHER = {"same_x": True}, {"same": True}, dict[str, Any]()
BEFORE = "was learned before, at seq 7"
Case = tuple[Join, dict[str, Any], Any]
OF_WAITING: dict[tuple[str, str], list[Case]] = {
    ("waiting", "event"): [
        (DROPS, SAME_X, Do.JOIN),
        (DROPS, OTHER, (errors.IdConflict, "waits for its label with another x; send the label without x")),
    ],
    ("waiting", "label"): [(DROPS, OTHER, Do.JOIN)],
    ("waiting", "prediction"): [
        (DROPS, SAME_X, Do.DUPLICATE),
        (DROPS, OTHER, (errors.IdConflict, r"waits for its label with another x(?!;)")),
    ],
    ("waiting", "timeout"): [(DROPS, OTHER, Do.DROP), (REFUSES, OTHER, Do.EXPIRE), (LEARNS, OTHER, Do.EXPIRE)],
    ("expired", "event"): [
        (REFUSES, SAME_X, (errors.ExpiredId, "")),
        (LEARNS, SAME_X, Do.CORRECT),
        (LEARNS, {**SAME_X, "y": 0}, Do.DUPLICATE),
        (LEARNS, OTHER, (errors.IdConflict, f"{BEFORE}, with another x, y or weight")),
        (REFUSES, OTHER, (errors.IdConflict, f"{BEFORE}, with another x, y or weight")),
    ],
    ("expired", "label"): [
        (REFUSES, OTHER, (errors.ExpiredId, "")),
        (REFUSES, {"y": 0}, (errors.ExpiredId, "")),
        (LEARNS, OTHER, Do.CORRECT),
        (LEARNS, {"y": 0}, Do.DUPLICATE),
        (LEARNS, {"gone": True}, (errors.EventGone, "")),
        (LEARNS, {"whole": False}, (errors.PredictionDamaged, "")),
        (LEARNS, {"y": 0, "whole": False, "gone": True}, Do.DUPLICATE),
    ],
}  # fmt: skip
OF_LEARNED: dict[tuple[str, str], list[Case]] = {
    (found, column): [
        (join, SAME, Do.DUPLICATE),
        (join, OTHER, (errors.IdConflict, f"{BEFORE}, with another {which}")),
        (join, {"here": True}, (errors.IdConflict, f"was learned earlier in the same body with another {which}")),
    ]
    for found in ("joined", "learned", "late")
    for column, which, join in (("event", "x, y or weight", DROPS), ("label", "y or weight", LEARNS))
}
MEANS = OF_WAITING | OF_LEARNED
PLAIN = {
    "learn": Do.LEARN,
    "keep": Do.KEEP,
    "404 unknown": (errors.UnknownId, ""),
    "404 dropped": (errors.DroppedId, ""),
    "409": (errors.IdConflict, f"{BEFORE}: a prediction needs a new id"),
}


@pytest.mark.parametrize(("found", "column"), [(found, column) for found in FOUND for column in COLUMNS])
def test_each_cell_of_the_table_is_what_is_decided(found: str, column: str) -> None:
    cell = TABLE[found][list(COLUMNS).index(column)]
    if cell == "-":
        return  # only what waits has a timeout
    cases = MEANS.get((found, column)) or [(join, OTHER, PLAIN[cell]) for join in (DROPS, REFUSES, LEARNS)]
    for join, told, expected in cases:
        more = {**told}
        y = more.pop("y", 1)
        item = {**COLUMNS, "event": Event(X, y, "i"), "label": Label("i", y)}[column]
        is_ = decided(found, item, join, **more)
        if isinstance(expected, Do):
            assert is_ is expected, (found, column, join, more)
        else:
            assert is_[0] is expected[0], (found, column, join, more)
            assert re.search(expected[1], is_[1]), is_[1]


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("join", [DROPS, REFUSES, LEARNS])
def test_a_waiting_prediction_that_is_damaged_is_refused_and_dropped_at_its_timeout(column: str, join: Join) -> None:
    do = decide(Found(IdKind.WAITING, whole=False), COLUMNS[column], join)
    if column == "timeout":
        assert do is Do.DROP
    else:
        assert isinstance(do, errors.PredictionDamaged)


def test_the_kinds_on_disk_stay_what_they_are() -> None:
    from core.batch import EXPIRED, JOINED, LATE, ORDINARY

    assert [(kind.name, kind.value) for kind in KINDS.values()] == [
        ("LEARNED", ORDINARY), ("JOINED", JOINED), ("EXPIRED", EXPIRED), ("LATE", LATE), ("WAITING", 4), ("DROPPED", 5)
    ]  # fmt: skip
