"""Bodies of rows: CSV, and NDJSON of flat objects. The parameters of the query say what their columns are."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl

from msgspec import structs
from starlette.types import Scope

from core.features import Features, is_text
from core.spec import MAX_COLUMNS
from service import errors
from service.events import MAX_ID
from service.http.bodies import CSV, TSV, content_type_of
from service.learning.model import Model
from service.replies import LearnedMany, LearnedRows
from service.rows.columns import NEW, Kept
from service.rows.reading import LOOK, How
from service.rows.stream import Rows
from service.settings import Settings

_ONCE = ("label", "id", "weight", "look", "header", "quoted", "delimiter", "id_prefix")
_OFTEN = ("positive", "negative", "text", "number", "ignore")
_KINDS = ("text", "number", "ignore", "weight", "id")
_LONGEST_PREFIX = MAX_ID - 20
"""Characters before the row's number, which takes a colon and up to 19 digits."""


def rows_of(
    scope: Scope,
    model: Model,
    settings: Settings,
    hold: Callable[[int], None],
    large: Callable[[int], AbstractAsyncContextManager[None]],
    *,
    learn: bool,
) -> Rows | None:
    """The rows of a request's body; None if it has events rather than rows."""
    media_type = content_type_of(scope).media_type
    if not scope["query_string"] and media_type not in (CSV, TSV):
        return None
    asked = _parameters(scope["query_string"])
    format_ = {CSV: "csv", TSV: "tsv"}.get(media_type, "ndjson")
    if format_ == "ndjson" and not asked:
        return None
    kept = Kept(f"model {model.name!r}", model.learner.spec.columns or {})
    prefix = asked["id_prefix"][0] if "id_prefix" in asked else None
    return Rows(
        _how(asked), format_, kept, settings, learn=learn, hold=hold, large=large, id_prefix=prefix,
        learned=_Learned(model.learner.features).kind,
    )  # fmt: skip


def learned_rows(reply: LearnedMany, rows: Rows) -> LearnedRows:
    """The reply to rows, which also says how they were read."""
    kinds = {column.name: column.kind for column in rows.columns if column.name and column.kind != "label"}
    return LearnedRows(
        **structs.asdict(reply),
        columns=kinds if len(kinds) <= MAX_COLUMNS else None,
        unlabelled=rows.unlabelled,
        missing=rows.missing,
        notices=rows.notices,
    )


def _parameters(query: bytes) -> dict[str, list[str]]:
    """The values of each parameter of a query."""
    asked: dict[str, list[str]] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name not in _ONCE + _OFTEN:
            like = difflib.get_close_matches(name, _ONCE + _OFTEN, 1)
            meant = f"; perhaps {like[0]} is meant" if like else f"; they are {', '.join(_ONCE + _OFTEN)}"
            raise errors.InvalidParameter(field=name[:64], reason=f"is not a parameter of this request{meant}")
        asked.setdefault(name, []).append(value)
    for name in _ONCE:
        if len(asked.get(name, ())) > 1:
            raise errors.InvalidParameter(field=name, reason="comes more than once")
    return asked


def _how(asked: dict[str, list[str]]) -> How:
    kinds: dict[str, str] = {}
    for kind in _KINDS:
        for column in asked.get(kind, ()):
            if kinds.setdefault(column, kind) != kind:
                raise errors.InvalidParameter(field=kind, reason=f"{column!r} cannot also be {kinds[column]}")
    return How(
        label=_one(asked, "label", str, lambda label: label != "", "must name a column"),
        positive=asked.get("positive", ()),
        negative=asked.get("negative", ()),
        asked=kinds,
        look=_one(asked, "look", int, lambda look: 1 <= look <= LOOK, f"must be a whole number from 1 to {LOOK}"),
        header=_one(asked, "header", _truth, lambda _: True, "must be true or false"),
        quoted=_one(asked, "quoted", _truth, lambda _: True, "must be true or false"),
        delimiter=_one(
            asked, "delimiter", _delimiter, lambda mark: len(mark) == 1 and mark not in '"\r\n',
            "must be one character and not a quote; write tab for a tab and %20 for white space",
        ),
    )  # fmt: skip


def _one(
    asked: dict[str, list[str]], name: str, read: Callable[[str], Any], good: Callable[[Any], bool], reason: str
) -> Any:
    """A parameter that comes once; None if it does not come."""
    if name not in asked:
        return None
    try:
        value = read(asked[name][0])
    except (KeyError, ValueError):
        value = None
    if value is None or not good(value):
        raise errors.InvalidParameter(field=name, reason=reason)
    return value


def _truth(text: str) -> bool:
    return {"true": True, "false": False}[text]


def _delimiter(text: str) -> str:
    return {"tab": "\t", "\\t": "\t"}.get(text, text)


class _Learned:
    """The kinds of columns by the names that a model knows. Its spec may keep no kinds, and one body's first rows may
    look like numbers where another's are codes."""

    def __init__(self, features: Features) -> None:
        self._features = features

    @cached_property
    def _texts(self) -> set[str]:
        """The columns that were text. All names are read, so this is for a thread."""
        return {name.partition("=")[0] for name in self._features.names if is_text(name)}

    def kind(self, name: str) -> str | None:
        """None if the model has learned both kinds, or nothing yet; of hashed names it cannot tell. NEW if it has
        learned other columns only."""
        if self._features.hashed or not self._features.names:
            return None
        is_number, was_text = self._features.known([name])[0] >= 0, name in self._texts
        if is_number == was_text:
            return None if is_number else NEW
        return "number" if is_number else "text"
