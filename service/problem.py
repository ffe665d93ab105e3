"""What an error is: its fields, its message and its problem document. errors.py and failures.py list them all.

Over HTTP an error is a problem document (RFC 9457): `type`, `title`, `status`, `detail` and `request_id`. It also has
`field`, `line`, `row`, `seq`, `learned`, `duplicates`, `not_learned` and `last_seq` where they are known.
"""

from __future__ import annotations

import dataclasses
import inspect
from functools import cache
from typing import Any, ClassVar, dataclass_transform

Headers = tuple[tuple[str, str], ...]
CLOSE: Headers = (("connection", "close"),)
SOON: Headers = (("retry-after", "1"),)
ENCODINGS: Headers = (("accept-encoding", "gzip, zstd"),)
_SHOWN = ("field", "line", "row", "seq", "learned", "duplicates", "not_learned", "last_seq")


def path_of(at: str, field: str) -> str:
    """The path of a field: "y", "[3].y", or "line 7: y"."""
    return field if not at else f"{at}.{field}" if at.startswith("[") else f"{at}: {field}"


@dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(dataclasses.field,))
class _Typed(Exception):
    """Makes every subclass a dataclass, so that mypy checks the fields where an error is raised."""

    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    templates: ClassVar[Headers] = ()

    def __init_subclass__(cls, *, status: int = 0, title: str = "", headers: Headers = ()) -> None:
        cls.status, cls.title, cls.templates = status or cls.status, title or cls.title, headers or cls.templates
        cls.__doc__ = inspect.getdoc(cls)  # else a dataclass without one gets its signature
        dataclasses.dataclass(kw_only=True, eq=False, repr=False)(cls)


class LogstepError(_Typed):
    """Something went wrong."""

    index: int | None = None
    """Which item of the request is wrong, counted from 0. None if none is."""
    field: str | None = None
    line: int | None = None
    row: int | None = None
    seq: int | None = None
    """Where the event was learned that the error is about. A conflict of ids has none if the prediction still waits."""
    learned: int | None = None
    """Of a stream: how many events were learned before; then `duplicates` and `last_seq` belong to it."""
    duplicates: int | None = None
    not_learned: int | None = None
    last_seq: int | None = None

    def __str__(self) -> str:
        return self._template().format(**vars(self))

    @classmethod
    @cache
    def _template(cls) -> str:
        return (cls.__doc__ or "").replace("\n", " ")

    @property
    def headers(self) -> Headers:
        """Headers of the reply."""
        return tuple((name, value.format(**vars(self))) for name, value in self.templates)

    @classmethod
    def slug(cls) -> str:
        """The title as a word like queue-full: for programs, and as the label of a metric."""
        return cls.title.lower().replace(" ", "-")

    def problem(self, request_id: str) -> dict[str, Any]:
        """The problem document."""
        known = {name: value for name in _SHOWN if (value := vars(self)[name]) is not None}
        if self.learned is not None:  # a stream that learned nothing has no last seq, and says so
            known["last_seq"] = self.last_seq
        return {
            "type": f"urn:logstep:{self.slug()}",
            "title": self.title,
            "status": self.status,
            "detail": str(self),
            "request_id": request_id,
            **known,
        }


# -- fields that several errors have


class Reasoned(LogstepError):
    reason: str


class Invalid(LogstepError, status=422):
    """{field}: {reason}."""

    field: str
    reason: str


class OverLimit(LogstepError):
    limit: int


class OfModel(LogstepError):
    model: str


class OfId(LogstepError, status=404):
    field: str
    id: str | None
