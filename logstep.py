"""The client of a logstep service, in one file. It needs httpx alone, and may be copied into another project.

>>> from logstep import Client
>>> client = Client("http://localhost:8000", model="visits")
>>> client.create(rule="auto")["created"]
True
>>> client.learn({"age": 31, "country": "FR"}, 1).seq
1
>>> client.predict({"age": 31, "country": "FR"}).y
True

`learn` and `predict` take one event, a list, any iterable, or a table of pandas, polars, pyarrow or numpy.
`AsyncClient` is the same with await. `RiverClassifier` and `SklearnClassifier` stand where river and scikit-learn want
a classifier. `Learner` and `Spec` are the learner without a service.

**What is sent again.** A request without an answer is sent again, with growing pauses and for at most `patience`
seconds, where that is safe: this client gives each event to learn an id, and the service learns an id once. Without
ids (`id=False`), only a request that surely did nothing is sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import html
import importlib.util
import itertools
import json
import logging
import math
import os
import random
import secrets
import ssl
import sys
import time
import types
import uuid
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload
from urllib.parse import quote

import httpx

if TYPE_CHECKING:  # see __getattr__ at the end
    from core import Learner as Learner  # noqa: PLC0414  # for those who import it from here
    from core import Spec as Spec  # noqa: PLC0414

URL = "http://localhost:8000"
JSON, NDJSON, ARROW = "application/json", "application/x-ndjson", "application/vnd.apache.arrow.stream"
PIECE_EVENTS, PIECE_BYTES, PIECE_SECONDS = 10_000, 2**20, 1.0
"""Many events are sent in pieces. One is sent when it has so many events or bytes, or when its first event is so old
(which is looked at when the next comes)."""
TABLE_ROWS, TABLE_BYTES = 65_536, 2**22
"""The same for the rows of a table."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0

X = Mapping[str, Any] | Sequence[float | None]
"""The features of one event: by name, or an array of numbers."""
Progress = Callable[[int, int | None], object] | None
"""Called after each piece with the number of events so far, and of all if it is known: `print` will do."""
T = TypeVar("T")
_log = logging.getLogger("logstep")


# -- what the service answers


@dataclass(frozen=True, slots=True)
class Learned:
    """One learned event. `p` is what the model predicted before it learned, `loss` the log loss of that; both are None
    for a duplicate, which is also an event that an unanswered first try had learned. A late label has the others."""

    model: str
    seq: int
    p: float | None
    loss: float | None
    duplicate: bool
    served_p: float | None = None
    served_loss: float | None = None
    delay_s: float | None = None
    late: bool = False


@dataclass(frozen=True, slots=True)
class LearnedMany:
    """Many learned events. `loss` is the mean log loss of those `learned`; `learned` and `duplicates` are all that were
    sent. `joined` and `late` count late labels."""

    model: str
    learned: int = 0
    duplicates: int = 0
    first_seq: int | None = None
    last_seq: int | None = None
    loss: float | None = None
    joined: int = 0
    late: int = 0
    served_loss: float | None = None

    def plus(self, more: LearnedMany) -> LearnedMany:
        """Both, one after the other."""
        counts = {
            name: getattr(self, name) + getattr(more, name) for name in ("learned", "duplicates", "joined", "late")
        }
        first = more.first_seq if self.first_seq is None else self.first_seq
        last = self.last_seq if more.last_seq is None else more.last_seq
        loss = _mean(self.loss, self.learned, more.loss, more.learned)
        served = _mean(self.served_loss, self.joined + self.late, more.served_loss, more.joined + more.late)
        return LearnedMany(self.model, first_seq=first, last_seq=last, loss=loss, served_loss=served, **counts)


@dataclass(frozen=True, slots=True)
class Prediction:
    """`p` is the probability of label 1, `y` whether it is above 0.5, `unknown` how many features the model does not
    know. With an `id`, `kept` says whether the prediction waits for its label."""

    model: str
    p: float
    y: bool
    seq: int
    unknown: int = 0
    id: str | None = None
    kept: bool = False
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Model:
    """A model as it stands: what `GET /models/{model}` says, and its learning curve, `GET /models/{model}/curve`, whose
    arrays a data frame takes. A notebook shows it with the curve."""

    name: str
    seq: int
    spec: Mapping[str, Any]
    state: Mapping[str, Any] = field(repr=False)
    curve: Mapping[str, Any] = field(repr=False)

    @property
    def log_loss(self) -> float | None:
        """The mean log loss of the predictions made before each step."""
        loss: float | None = self.state["progressive"]["total"]["log_loss"]
        return loss

    @property
    def base_rate_log_loss(self) -> float | None:
        """What guessing has. A model that is of use is below it."""
        loss: float | None = self.state["progressive"]["total"]["base_rate_log_loss"]
        return loss

    def _repr_html_(self) -> str:
        return _html(self)


def _mean(one: float | None, ones: int, two: float | None, twos: int) -> float | None:
    """The mean of two means, each of so many."""
    if one is None or two is None:
        return two if one is None else one
    return (one * ones + two * twos) / (ones + twos)


def _made(kind: Callable[..., T], members: Mapping[str, Any], **more: Any) -> T:
    """A reply as its class. Members that a later service adds are left out."""
    known = kind.__slots__  # type: ignore[attr-defined]  # those of a dataclass
    return kind(**{name: value for name, value in members.items() if name in known}, **more)


# -- errors


class LogstepError(Exception):
    """What a call raises if the service refuses it, or does not answer."""


class NoAnswer(LogstepError, ConnectionError):
    """No service answered for as long as the client is patient, or the request must not be sent again."""


class Problem(LogstepError):
    """The service refused a request. The attributes are those of its problem document; `members` has all of them.

    Of many events, `members` counts over all that were sent: `line` or `row` is the wrong one, from 1, and `learned`
    and `duplicates` say how many before it were learned.
    """

    def __init__(self, members: Mapping[str, Any], retry_after: float = 0.0) -> None:
        super().__init__(members, retry_after)
        self.members = members
        self.type = str(members.get("type", "about:blank"))
        self.title, self.detail = str(members.get("title", "")), str(members.get("detail", ""))
        self.status = int(members["status"])
        self.kind = self.type.rpartition(":")[2]
        """The last part of the type: "id-conflict"."""
        self.retry_after = retry_after
        """Seconds after which the service wants to be asked again."""

    def __str__(self) -> str:
        return self.detail

    @classmethod
    def of(cls, reply: httpx.Response) -> Problem:
        """That of a reply, also if it is a proxy's or another program's."""
        try:
            members = reply.json()
        except ValueError:
            members = None
        if not isinstance(members, dict) or "type" not in members:
            words = f"{reply.request.url} answered {reply.status_code}, but not like a logstep service"
            members = {"title": reply.reason_phrase, "detail": words}
        after = reply.headers.get("retry-after", "")
        return cls({**members, "status": reply.status_code}, float(after) if after.isdecimal() else 0.0)

    def after(self, events: int, before: LearnedMany | None) -> Problem:
        """The same, where so many events were sent before in requests of their own."""
        told = dict(self.members)
        for unit in told.keys() & {"line", "row"}:
            told["detail"] = self.detail.replace(f"{unit} {told[unit]}", f"{unit} {told[unit] + events}")
            told[unit] += events
        for count in ("learned", "duplicates") if before else ():
            told[count] = told.get(count, 0) + getattr(before, count)
        return Problem(told, self.retry_after)


# -- one event as JSON


def new_id() -> str:
    """A new id: a UUID of version 7 (RFC 9562), which begins with the time. The service looks such ids up twice as fast
    as random ones."""
    ms, ns = divmod(time.time_ns(), 1_000_000)
    number = ms << 80 | 7 << 76 | (ns * 4_096 // 1_000_000) << 64 | 2 << 62 | secrets.randbits(62)
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


_encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def _json(event: Mapping[str, Any]) -> bytes:
    """An event as JSON. Only what JSON lacks takes the slow way: NaN and other missing values are left out, and numpy's
    numbers become Python's."""
    try:
        return _encode(event).encode()
    except (TypeError, ValueError):
        plain = {name: _features(value) if name == "x" else _value(name, value) for name, value in event.items()}
        return _encode(plain).encode()


def _features(x: Any) -> dict[str, Any] | list[Any]:
    if hasattr(x, "to_dict"):  # a row of pandas
        x = x.to_dict()
    if isinstance(x, Mapping):
        values = ((str(name), _value(name, value)) for name, value in x.items())
        return {name: value for name, value in values if value is not None}
    if isinstance(x, str | bytes) or not isinstance(x, Iterable):
        raise TypeError(f"x is a {type(x).__name__}; an event's x is a dict of features or a list of numbers")
    return [_value(place, value) for place, value in enumerate(x)]


def _value(name: Any, value: Any) -> Any:
    """A value that JSON has; None if it is missing."""
    if hasattr(value, "item"):
        value = value.item()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float | Decimal):
        if math.isinf(value):
            raise ValueError(f"{name} is infinite; leave it out, or send a large number")
        return None if math.isnan(value) else float(value)
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, uuid.UUID):
        return str(value)
    raise TypeError(f"{name} is a {type(value).__name__}; a value is a number, a truth value or text")


def _is_one(x: Any) -> bool:
    """Whether x is the features of one event."""
    if isinstance(x, list | tuple):
        first = x[0] if x else ""
        return first is None or isinstance(first, float | int) or getattr(first, "ndim", 1) == 0
    return isinstance(x, Mapping) or getattr(x, "ndim", 2) == 1  # a row of pandas or numpy


# -- many events: which label, id and weight they have


@dataclass(frozen=True, slots=True)
class _Roles:
    """What `learn` and `predict` are told beside x. `y` and `weight`: the name of a column, or values. `id`: the same;
    True or, to learn, None: made here; False: none."""

    learn: bool
    y: Any = None
    id: Any = None
    weight: Any = None

    @property
    def makes_ids(self) -> bool:
        return self.id is True or (self.learn and self.id is None)

    @property
    def safe(self) -> bool:
        """Whether to send it twice does what to send it once does."""
        return not self.learn or self.id is not False

    def given(self) -> dict[str, Any]:
        """The roles that have the name of a column, or values."""
        told = {"y": self.y, "id": None if isinstance(self.id, bool) else self.id, "weight": self.weight}
        return {role: value for role, value in told.items() if value is not None}

    def one(self, x: Any) -> dict[str, Any]:
        """The only event."""
        return self._with_id({"x": x, **self.given()})

    def events(self, xs: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """Many events, in order. A column of values must be as long as xs."""
        columns = {role: column for role, column in self.given().items() if not isinstance(column, str)}
        for role, column in columns.items():
            _check_length(xs, role, column)
        for item, *values in zip(xs, *map(_listed, columns.values()), strict=True):
            yield self.event(item, dict(zip(columns, values, strict=True)))

    def event(self, item: Any, values: dict[str, Any]) -> dict[str, Any]:
        """One of many: an item, and its values of columns."""
        keys = {role: key for role, key in self.given().items() if isinstance(key, str)}
        if keys:
            row = dict(item)
            if missing := keys.values() - row.keys():
                raise ValueError(f"an event has no {', '.join(missing)}; it has {', '.join(map(str, row))}")
            event = {role: row.pop(key) for role, key in keys.items()} | {"x": row}
            if not self.learn:
                event.pop("y", None)  # no feature
        elif not self.learn or "y" in values:
            event = {"x": item}
        elif isinstance(item, tuple) and len(item) == 2:
            event = {"x": item[0], "y": item[1]}
        elif isinstance(item, Mapping) and "y" in item and item.keys() <= {"x", "y", "id", "weight"}:
            event = dict(item)
        else:
            raise ValueError(
                "an event is a dict with x and y, and perhaps id and weight, or a pair (x, y). Rows that hold their "
                f"label go as learn(rows, 'label'). This is neither: {item!r:.200}"
            )
        return self._with_id(event | values)

    def _with_id(self, event: dict[str, Any]) -> dict[str, Any]:
        id = event.get("id")
        if id is None and (self.makes_ids or "id" not in event):
            return event | {"id": new_id()} if self.makes_ids else event
        if id is None or isinstance(id, float):
            raise ValueError(f"an id is text, a whole number or a UUID, not {id}")
        return event | {"id": str(id)}


def _check_length(xs: Any, role: str, column: Any) -> None:
    if not hasattr(column, "__iter__"):
        raise TypeError(f"{role}={column!r} is one value for many events; give one for each, or the name of a column")
    if hasattr(xs, "__len__") and hasattr(column, "__len__") and len(xs) != len(column):
        raise ValueError(f"there are {len(xs)} events, but {role} has {len(column)} values")


def _listed(column: Iterable[Any]) -> Iterable[Any]:
    """A column's values as Python's own."""
    convert = getattr(column, "tolist", None) or getattr(column, "to_list", None) or getattr(column, "to_pylist", None)
    return column if convert is None else list(convert())


# -- pieces, each of which is one request


@dataclass(slots=True)
class _Piece:
    """Events of one request, in order: lines of JSON, or a table."""

    before: int = 0
    """Events in the pieces before it."""
    lines: list[bytes] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)
    table: Any = None
    refused: bool = False
    """Whether the service does not read Arrow."""
    size: int = 0
    since: float = field(default_factory=time.monotonic)

    def __len__(self) -> int:
        return len(self.lines) if self.table is None else int(self.table.num_rows)

    def add(self, event: Mapping[str, Any]) -> bool:
        """Add an event. Whether the piece should be sent."""
        line = _json(event)
        self.lines.append(line)
        self.ids.append(event.get("id"))
        self.size += len(line)
        is_full = len(self.lines) >= PIECE_EVENTS or self.size >= PIECE_BYTES
        return is_full or time.monotonic() - self.since >= PIECE_SECONDS

    def body(self) -> tuple[str, bytes]:
        """The type and the bytes."""
        if self.table is None:
            return NDJSON, b"\n".join(self.lines) + b"\n"
        import pyarrow as pa

        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self.table.schema) as writer:
            writer.write_table(self.table.combine_chunks())
        return ARROW, sink.getvalue().to_pybytes()

    def become_lines(self) -> None:
        """For a service without pyarrow, and for rows without features, which Arrow cannot tell from late labels."""
        rows, self.table = self.table.to_pylist(), None
        for row in rows:
            event = {role: row.pop(role) for role in ("y", "weight") if row.get(role) is not None}
            event |= {"id": str(row.pop("id"))} if "id" in row else {}
            self.add(event | {"x": {name: value for name, value in row.items() if value is not None}})

    def answered(self, reply: httpx.Response) -> Iterator[tuple[dict[str, Any], str | None]]:
        """What a reply says of each question, and the question's id."""
        found: list[dict[str, Any]] = json.loads(b"[" + reply.content.strip().replace(b"\n", b",") + b"]")
        if len(found) != len(self):
            raise Problem.of(reply)
        if lost := sum(answer.get("kept") is False for answer in found):
            words = (
                f"{lost} predictions do not wait for their labels: too many do (max_waiting). Send those labels with x"
            )
            warnings.warn(words, stacklevel=4)
        return zip(found, self.ids or itertools.repeat(None), strict=False)


def _gathered(events: Iterable[Mapping[str, Any]]) -> Iterator[_Piece]:
    piece = _Piece()
    for event in events:
        if piece.add(event):
            yield piece
            piece = _Piece(piece.before + len(piece))
    if piece.lines:
        yield piece


async def _gathered_from(items: AsyncIterable[Any], roles: _Roles) -> AsyncIterator[_Piece]:
    piece = _Piece()
    async for item in items:
        if piece.add(roles.event(item, {})):
            yield piece
            piece = _Piece(piece.before + len(piece))
    if piece.lines:
        yield piece


async def _one_by_one(items: Iterable[T]) -> AsyncIterator[T]:
    for item in items:
        yield item


def _pieces(x: Any, roles: _Roles, arrow: bool) -> Iterator[_Piece]:
    """Many events as requests, in order. A table goes as Arrow, unless pyarrow is missing here or there."""
    library = _library(x)
    if not library:
        if isinstance(x, str | bytes) or not isinstance(x, Iterable):
            raise TypeError(f"x is a {type(x).__name__}, neither features nor events nor a table")
        return _gathered(roles.events(x))
    if roles.y is None and "y" in _columns(x, library):
        roles = dataclasses.replace(roles, y="y")
    _check_columns(x, library, roles)
    if arrow and importlib.util.find_spec("pyarrow"):
        return _sliced(_arrow(x, library), roles)
    return _gathered(roles.events(_rows(x, library)))


# -- tables

_TABLES = {("pandas", "DataFrame"), ("polars", "DataFrame"), ("pyarrow", "Table"), ("pyarrow", "RecordBatch")}


def _library(x: Any) -> str:
    """Whose table x is: pandas, polars, pyarrow, numpy; "" if it is none."""
    if type(x).__module__ == "numpy" and getattr(x, "ndim", 0) == 2:
        return "numpy"
    origins = ((kind.__module__.partition(".")[0], kind.__name__) for kind in type(x).__mro__)
    return next((library for library, name in origins if (library, name) in _TABLES), "")


def _columns(x: Any, library: str) -> list[str]:
    names = range(x.shape[1]) if library == "numpy" else x.schema.names if library == "pyarrow" else x.columns
    return [str(name) for name in names]


def _check_columns(x: Any, library: str, roles: _Roles) -> None:
    """Raise ValueError where a table cannot be read in one way only."""
    names, given = _columns(x, library), roles.given()
    for role, column in given.items():
        if isinstance(column, str):
            if column not in names:
                raise ValueError(f"the table has no column {column!r} ({role}); it has {', '.join(names)}")
            continue
        _check_length(x, role, column)
        index = getattr(column, "index", None)
        if library == "pandas" and hasattr(index, "equals") and not x.index.equals(index):
            raise ValueError(f"{role} has another index than the table; if its rows are in the same order: .to_numpy()")
    if roles.learn and "y" not in given:
        raise ValueError(f"say which column is the label: learn(table, 'label'); it has {', '.join(names)}")
    taken = {column for column in given.values() if isinstance(column, str)}
    for role in {"y", "id", "weight"} & set(names) - taken:
        raise ValueError(
            f"the table has a column {role!r}. If it is the events' {'label' if role == 'y' else role}, say "
            f"{role}={role!r}; if it is a feature, rename it; if it is neither, drop it"
        )


def _arrow(x: Any, library: str) -> Any:
    """A table as pyarrow's. The index is no feature, and pandas' NaN is null, a feature that the row lacks."""
    import pyarrow as pa

    if library == "pandas":
        try:
            return pa.Table.from_pandas(x, preserve_index=False).replace_schema_metadata()
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise TypeError(f"make each column numbers, text or truth values: {error}") from None
    if library == "numpy":
        return pa.table({str(j): x[:, j] for j in range(x.shape[1])})
    if library == "polars":
        return x.to_arrow()
    return pa.Table.from_batches([x]) if isinstance(x, pa.RecordBatch) else x


def _sliced(table: Any, roles: _Roles) -> Iterator[_Piece]:
    """The rows in pieces, with labels, ids and weights under the names that the service knows."""
    import pyarrow as pa

    special = {}
    for role, column in roles.given().items():
        if isinstance(column, str):
            special[role] = table.column(column)
            table = table.drop_columns([column])
        else:
            special[role] = pa.array(_listed(column), from_pandas=True)
    if "id" in special and special["id"].null_count:
        raise ValueError("the column of ids has nulls; each event needs one")
    for role, column in special.items():
        if roles.learn or role != "y":  # to predict, a label is no feature
            table = table.append_column(role, column)
    rows = max(1, min(TABLE_ROWS, TABLE_BYTES * len(table) // max(1, table.nbytes)))
    for start in range(0, len(table), rows):
        part = table.slice(start, rows)
        if roles.makes_ids:
            part = part.append_column("id", pa.array([new_id() for _ in range(len(part))]))
        piece = _Piece(start, table=part)
        if roles.makes_ids and roles.learn and _has_empty_row(part):
            piece.become_lines()
        yield piece


def _has_empty_row(table: Any) -> bool:
    """Whether a row has no feature."""
    import pyarrow.compute as pc

    empty: Any = True
    for name in table.schema.names:
        if name not in ("y", "id", "weight"):
            empty = pc.and_(empty, pc.is_null(table.column(name), nan_is_null=True))
            if not pc.any(empty).as_py():
                return False
    return True


def _rows(x: Any, library: str) -> Iterator[Any]:
    """A table's rows: a dict for each, or of an array a list."""
    convert = {"pandas": "to_dict", "polars": "to_dicts", "pyarrow": "to_pylist", "numpy": "tolist"}[library]
    for start in range(0, len(x), 1_000):  # all at once would take much memory
        part = x.slice(start, 1_000) if hasattr(x, "slice") else getattr(x, "iloc", x)[start : start + 1_000]
        yield from getattr(part, convert)(*["records"] * (library == "pandas"))


def _as_given(x: Any, library: str, answers: list[float]) -> Any:
    """A table's predictions as its library has them: in the same order, with the same index."""
    module = sys.modules[library]
    if library == "pandas":
        return module.Series(answers, index=x.index, name="p", dtype="float64")
    if library == "polars":
        return module.Series("p", answers, module.Float64)
    return module.array(answers, "float64")


# -- one request: what is sent again, and when

PASSING = frozenset({408, 429, 502, 503, 504, 507})
"""Statuses that pass: too fast; or the service, or the way to it, is too slow, stops, recovers, is full, or waits for
room on the disk."""
NOTHING_DONE = frozenset({"too-fast", "not-ready", "queue-full", "too-many-bodies", "too-many-connections"})
"""Problems which say that nothing was learned, unless they count what was."""


@dataclass(slots=True)
class _Request:
    """A request, and how it is sent until there is a reply."""

    method: str
    path: str
    body: bytes | None = None
    type: str = JSON
    safe: bool = True
    """Whether to send it twice does what to send it once does."""
    piece: _Piece | None = None
    """Its events, if there are many, and what was learned `before`."""
    before: LearnedMany | None = None
    reply: httpx.Response | None = None
    pause: float = 0.0
    """Seconds until it is sent again."""
    _backoff: float = FIRST_PAUSE_SECONDS
    _since: float = field(default_factory=time.monotonic)

    def options(self) -> dict[str, Any]:
        headers = {"content-type": self.type}
        return {"method": self.method, "url": self.path, "content": self.body, "headers": headers}

    def take(self, outcome: httpx.Response | httpx.TransportError, patience: float) -> None:
        """A reply, or why there is none. Raises Problem or NoAnswer, unless the request is sent again after a pause."""
        error: LogstepError
        if isinstance(outcome, httpx.TransportError):
            error, again = self._no_answer(outcome)
        elif outcome.is_success:
            self.reply, self.pause = outcome, 0.0
            return
        else:
            error, again = self._refused(outcome)
        backoff = self._backoff * random.uniform(0.5, 1.0)  # noqa: S311  # else all clients come back at once
        self.pause = max(backoff, getattr(error, "retry_after", 0.0))
        left = self._since + patience - time.monotonic()
        if not again or self.pause > left:
            raise error
        level = logging.WARNING if self._backoff == FIRST_PAUSE_SECONDS else logging.DEBUG
        _log.log(level, "%s. It is sent again, for at most %.0f s", str(error).rstrip("."), left)
        self._backoff = min(self._backoff * 2, LONGEST_PAUSE_SECONDS)

    def _refused(self, reply: httpx.Response) -> tuple[Problem, bool]:
        problem = Problem.of(reply)
        if problem.status == 415 and self.type == ARROW and self.piece is not None:
            self.piece.become_lines()
            self.piece.refused = True
            self.type, self.body = self.piece.body()
            return problem, True
        nothing_done = problem.kind in NOTHING_DONE and not problem.members.get("learned")
        if self.piece is not None:
            problem = problem.after(self.piece.before, self.before)
        return problem, problem.status in PASSING and (self.safe or nothing_done)

    def _no_answer(self, error: httpx.TransportError) -> tuple[NoAnswer, bool]:
        reason, host = str(error) or type(error).__name__, error.request.url.copy_with(raw_path=b"/")
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
            return NoAnswer(f"no service answers at {host} ({reason})"), "[SSL" not in reason  # not trusted stays so
        what = "" if self.safe else ", so the events may have been learned. With ids they would be sent again"
        return NoAnswer(f"the connection to {host} was lost ({reason}){what}"), self.safe


def _object(reply: httpx.Response) -> dict[str, Any]:
    """The JSON object of a reply."""
    with contextlib.suppress(ValueError):
        if isinstance(found := reply.json(), dict):
            return found
    raise Problem.of(reply)


# -- the clients


class _Base:
    """What both clients have: where the service is, and what is asked of it."""

    _kind: Callable[..., Any]

    def __init__(
        self,
        url: str = URL,
        token: str | None = None,
        model: str = "default",
        *,
        patience: float = 60.0,
        timeout: float = 60.0,
        verify: ssl.SSLContext | bool = True,
    ) -> None:
        """token: by default what LOGSTEP_TOKEN, or the file that LOGSTEP_TOKEN_FILE names, holds. patience: for how
        many seconds a request is sent again. timeout: how many seconds of silence mean that a connection is lost.
        verify: which certificates to trust, as in httpx."""
        where = httpx.URL(url)
        if where.scheme not in ("http", "https") or not where.host:
            raise ValueError(f"{url!r} is not a URL like {URL}")
        self.url, self.model_name, self.patience, self.timeout = url.rstrip("/"), model, patience, timeout
        self._reads_arrow = True
        token = _token() if token is None else token
        self._http = self._kind(
            base_url=self.url,
            headers={"authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(timeout, connect=5.0),
            trust_env=where.host not in ("127.0.0.1", "localhost", "::1"),  # a proxy cannot reach this machine
            verify=verify if where.scheme == "https" else False,  # to read all that is trusted takes long
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r}, model={self.model_name!r})"  # never the token

    def _asks(self, method: str, path: str = "", body: Mapping[str, Any] | None = None, safe: bool = True) -> _Request:
        """A request about the model. What is None in the body is left out."""
        told = None if body is None else _json({name: value for name, value in body.items() if value is not None})
        return _Request(method, self._path(path), told, safe=safe)

    def _asks_many(self, piece: _Piece, roles: _Roles, before: LearnedMany | None = None) -> _Request:
        verb, (type_, body) = "/learn" if roles.learn else "/predict", piece.body()
        return _Request("POST", self._path(verb), body, type_, roles.safe, piece, before)

    def _path(self, path: str) -> str:
        return f"/models/{quote(self.model_name, safe='')}{path}"

    def _told(self, piece: _Piece, x: Any, progress: Progress) -> None:
        """After a piece."""
        self._reads_arrow = self._reads_arrow and not piece.refused
        if progress is not None:
            progress(piece.before + len(piece), len(x) if hasattr(x, "__len__") else None)


def _token() -> str | None:
    """The token that the environment holds, as the commands read it."""
    if file := os.environ.get("LOGSTEP_TOKEN_FILE"):
        return Path(file).read_text().strip()
    return os.environ.get("LOGSTEP_TOKEN")


def _spec(spec: Any, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {**(spec.as_dict() if hasattr(spec, "as_dict") else spec or {}), **fields}


class Client(_Base):
    """A running service, and one of its models. Many threads may share a client.

    Every method raises Problem if the service refuses, and NoAnswer if none answers for `patience` seconds.

    >>> client = Client("http://localhost:8000", model="shop")
    >>> client.create(rule="auto", join={"keep": "7d"})["spec"]["rule"]
    'auto'
    >>> client.learn([{"age": 31}, {"age": 64}], [0, 1]).learned
    2
    >>> client.predict({"age": 40}, id="order-77").kept
    True
    >>> client.label("order-77", 1).seq
    3
    """

    _kind = httpx.Client
    _http: httpx.Client

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_http"):  # a URL that is none made no connections
            self.close()

    def __deepcopy__(self, memo: object) -> Client:
        return self  # the copy of an estimator wants the same service

    def __reduce__(self) -> Any:  # without the token: who loads it has LOGSTEP_TOKEN set
        return functools.partial(
            Client, self.url, None, self.model_name, patience=self.patience, timeout=self.timeout
        ), ()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _send(self, request: _Request) -> httpx.Response:
        while request.reply is None:
            try:
                request.take(self._http.request(**request.options()), self.patience)
            except httpx.TransportError as error:
                request.take(error, self.patience)
            time.sleep(request.pause)
        return request.reply

    def _object(self, *asked: Any) -> dict[str, Any]:
        return _object(self._send(self._asks(*asked)))

    @overload
    def learn(self, x: X, y: float, *, id: Any = None, weight: float | None = None) -> Learned: ...

    @overload
    def learn(
        self, x: Any, y: Any = None, *, id: Any = None, weight: Any = None, progress: Progress = None
    ) -> LearnedMany: ...

    def learn(self, x: Any, y: Any = None, *, id: Any = None, weight: Any = None, progress: Progress = None) -> Any:
        """Learn one event or many: one gradient step for each, in order, on the service's disk when this returns.

        x and y: the features of one event and its label, 0 or 1; or many of both; or a table, and its column of labels
        by name or as values; or dicts that hold their label, and its key; or, without y, an iterable of events
        `{"x": ..., "y": ...}`, of late labels `{"id": ..., "y": ...}`, or of pairs (x, y). id, weight: ids and weights,
        given like labels. By default each event gets an id of its own; with `id=False` none, which is faster, but then
        an event whose answer is lost is not sent again.

        NaN and None are features that an event does not have. An iterable is sent in pieces, and takes no more memory
        than one of them. Many events are learned up to the first wrong one: the Problem says which.
        """
        roles = _Roles(True, y, id, weight)
        if _is_one(x):
            return _made(Learned, self._object("POST", "/learn", roles.one(x), roles.safe))
        total = LearnedMany(self.model_name)
        for piece in _pieces(x, roles, self._reads_arrow):
            reply = self._send(self._asks_many(piece, roles, total))
            total = total.plus(_made(LearnedMany, _object(reply)))
            self._told(piece, x, progress)
        return total

    @overload
    def predict(self, x: X, *, id: Any = None) -> Prediction: ...

    @overload
    def predict(
        self, x: Sequence[Mapping[str, Any]], *, id: Any = None, progress: Progress = None
    ) -> list[Prediction]: ...

    @overload
    def predict(self, x: Any, *, id: Any = None, progress: Progress = None) -> Any: ...

    def predict(self, x: Any, *, id: Any = None, progress: Progress = None) -> Any:
        """Predict one event: a Prediction; a list: a list of them; an iterator: an iterator of them, which reads as it
        is read; or a table: the p of its rows, in pandas and polars as a Series, with the same index.

        id: keeps each prediction until its label comes, which `label` or `learn` then sends alone. Ids, the column that
        has them, or True to make them.
        """
        roles = _Roles(False, None, id)
        if _is_one(x):
            event = roles.one(x)
            return _made(Prediction, self._object("POST", "/predict", event), id=event.get("id"))
        found = self._predicted(x, roles, progress)
        if library := _library(x):
            return _as_given(x, library, [answer["p"] for answer, _ in found])
        predictions = (_made(Prediction, answer, id=id) for answer, id in found)
        return predictions if isinstance(x, Iterator) else list(predictions)

    def _predicted(self, x: Any, roles: _Roles, progress: Progress) -> Iterator[tuple[dict[str, Any], Any]]:
        for piece in _pieces(x, roles, self._reads_arrow):
            yield from piece.answered(self._send(self._asks_many(piece, roles)))
            self._told(piece, x, progress)

    def label(self, id: str, y: float, *, weight: float | None = None) -> Learned:
        """Learn the label of a prediction that was made with this id."""
        return _made(Learned, self._object("POST", "/learn", {"id": id, "y": y, "weight": weight}))

    def explain(self, x: X | None = None, *, id: str | None = None) -> dict[str, Any]:
        """What each feature adds to the score of x, or of the prediction that waits under an id."""
        return self._object("POST", "/explain", {"x": x, "id": id})

    def create(self, spec: Any = None, **fields: Any) -> dict[str, Any]:
        """Create the model with a spec (a dict or a `Spec`) or its fields, unless it is there with the same spec."""
        return self._object("PUT", "", _spec(spec, fields))

    def delete(self) -> None:
        """Remove the model with its log. This is not sent again if its answer is lost."""
        self._send(self._asks("DELETE", safe=False))

    def models(self) -> list[dict[str, Any]]:
        """Each model's name, rule, seq and log loss."""
        return list(_object(self._send(_Request("GET", "/models")))["models"])

    def model(self) -> Model:
        """The model as it stands. A notebook shows it with its curve."""
        return _model(self._object("GET"), self._object("GET", "/curve"))

    def weights(self) -> dict[str, float]:
        """The weights by feature name."""
        return dict(self._object("GET", "/weights")["weights"])


class AsyncClient(_Base):
    """`Client` with await. `learn` and `predict` take asynchronous iterables too; an iterator's predictions are an
    asynchronous one.

    >>> async def main():
    ...     async with AsyncClient("http://localhost:8000", model="visits") as client:
    ...         await asyncio.gather(*(client.learn({"age": age}, age > 40) for age in range(20, 60)))
    ...         return (await client.predict({"age": 59})).y
    >>> asyncio.run(main())
    True
    """

    _kind = httpx.AsyncClient
    _http: httpx.AsyncClient

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def _send(self, request: _Request) -> httpx.Response:
        while request.reply is None:
            try:
                request.take(await self._http.request(**request.options()), self.patience)
            except httpx.TransportError as error:
                request.take(error, self.patience)
            await asyncio.sleep(request.pause)
        return request.reply

    async def _object(self, *asked: Any) -> dict[str, Any]:
        return _object(await self._send(self._asks(*asked)))

    def _pieces(self, x: Any, roles: _Roles) -> AsyncIterator[_Piece]:
        is_async = isinstance(x, AsyncIterable)
        return _gathered_from(x, roles) if is_async else _one_by_one(_pieces(x, roles, self._reads_arrow))

    async def learn(
        self, x: Any, y: Any = None, *, id: Any = None, weight: Any = None, progress: Progress = None
    ) -> Any:
        roles = _Roles(True, y, id, weight)
        if _is_one(x):
            return _made(Learned, await self._object("POST", "/learn", roles.one(x), roles.safe))
        total = LearnedMany(self.model_name)
        async for piece in self._pieces(x, roles):
            reply = await self._send(self._asks_many(piece, roles, total))
            total = total.plus(_made(LearnedMany, _object(reply)))
            self._told(piece, x, progress)
        return total

    async def predict(self, x: Any, *, id: Any = None, progress: Progress = None) -> Any:
        roles = _Roles(False, None, id)
        if _is_one(x):
            event = roles.one(x)
            return _made(Prediction, await self._object("POST", "/predict", event), id=event.get("id"))
        found = self._predicted(x, roles, progress)
        if library := _library(x):
            return _as_given(x, library, [answer["p"] async for answer, _ in found])
        predictions = (_made(Prediction, answer, id=id) async for answer, id in found)
        return predictions if isinstance(x, Iterator | AsyncIterable) else [one async for one in predictions]

    async def _predicted(self, x: Any, roles: _Roles, progress: Progress) -> AsyncIterator[tuple[dict[str, Any], Any]]:
        async for piece in self._pieces(x, roles):
            for answer in piece.answered(await self._send(self._asks_many(piece, roles))):
                yield answer
            self._told(piece, x, progress)

    async def label(self, id: str, y: float, *, weight: float | None = None) -> Learned:
        return _made(Learned, await self._object("POST", "/learn", {"id": id, "y": y, "weight": weight}))

    async def explain(self, x: X | None = None, *, id: str | None = None) -> dict[str, Any]:
        return await self._object("POST", "/explain", {"x": x, "id": id})

    async def create(self, spec: Any = None, **fields: Any) -> dict[str, Any]:
        return await self._object("PUT", "", _spec(spec, fields))

    async def delete(self) -> None:
        await self._send(self._asks("DELETE", safe=False))

    async def models(self) -> list[dict[str, Any]]:
        return list(_object(await self._send(_Request("GET", "/models")))["models"])

    async def model(self) -> Model:
        return _model(await self._object("GET"), await self._object("GET", "/curve"))

    async def weights(self) -> dict[str, float]:
        return dict((await self._object("GET", "/weights"))["weights"])


# -- a model in a notebook

WIDTH, HEIGHT = 560, 160
"""Of the curve, in pixels."""


def _model(state: Mapping[str, Any], curve: Mapping[str, Any]) -> Model:
    return Model(state["model"], state["seq"], state["spec"], state, curve)


def _html(model: Model) -> str:
    """A table and the curve, without scripts and in the page's own colours."""
    total, worse = model.state["progressive"]["total"], model.state.get("worse_than_guessing")
    rows = {"rule": model.spec["rule"], "events": f"{model.seq:,}", "features": f"{model.state['features']:,}"}
    names = {"log loss": "log_loss", "guessing has": "base_rate_log_loss", "accuracy": "accuracy", "ROC AUC": "roc_auc"}
    rows |= {name: f"{total[score]:.4f}" for name, score in names.items() if total[score] is not None}
    cells = "".join(f"<tr><th>{name}</th><td>{html.escape(value)}</td></tr>" for name, value in rows.items())
    advice = f"<p>{html.escape(worse['advice'])}</p>" if worse else ""
    return f"<h4>{html.escape(model.name)}</h4><table>{cells}</table>{advice}{_drawn(model.curve)}"


def _drawn(curve: Mapping[str, Any]) -> str:
    """The log loss of the last events, and what guessing has, by events."""
    columns = zip(curve["seq"], curve["loss_window"], curve["base_rate_loss_window"], strict=True)
    points = [point for point in columns if None not in point]
    if len(points) < 2:
        return "<p>The curve begins with the second event.</p>"
    first, last, top = points[0][0], points[-1][0], max(max(losses) for _, *losses in points) or 1.0

    def line(j: int, style: str) -> str:
        across = (f"{WIDTH * (point[0] - first) / max(last - first, 1):.1f}" for point in points)
        down = (f"{HEIGHT * (1 - point[j] / top):.1f}" for point in points)
        at = " ".join(f"{x},{y}" for x, y in zip(across, down, strict=True))
        return f'<polyline points="{at}" fill="none" stroke="currentColor" {style}/>'

    words = (
        f"Log loss of the last {curve['window']:,} events, from event {first:,} to {last:,}; dashed: guessing; "
        f"the top is {top:.3f}"
    )
    lines = line(2, 'stroke-dasharray="4 4" opacity="0.6"') + line(1, 'stroke-width="2"')
    axes = f'<path d="M0 0V{HEIGHT}H{WIDTH}" fill="none" stroke="currentColor" opacity="0.3"/>'
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'<svg role="img" aria-label="{words}" {size}>{axes}{lines}</svg><p>{words}</p>'


# -- river and scikit-learn, imported when their class is asked for


class _Remote:
    """An estimator whose state a service has. So its clone or copy is the same model, and a pickle is no backup."""

    def __init__(self, client: Client | None = None) -> None:
        self.client = client

    @property
    def _service(self) -> Client:
        return self.client or _default_client()


@functools.cache
def _default_client() -> Client:
    return Client()


class _River(_Remote):
    """A model of a service as a classifier of river: at the end of a pipeline, in `evaluate.progressive_val_score`.

    client: by default `Client()`. The service has the state: a clone or a copy is the same model.

    >>> from river import datasets, evaluate, metrics, preprocessing
    >>> client = Client("http://localhost:8000", model="phishing")
    >>> _ = client.create(learning_rate=0.05)
    >>> model = preprocessing.StandardScaler() | RiverClassifier(client)
    >>> evaluate.progressive_val_score(datasets.Phishing().take(300), model, metrics.Accuracy())
    Accuracy: 85.67%
    """

    def learn_one(self, x: dict[Any, Any], y: Any, w: float = 1.0) -> None:
        """Take one step."""
        self._service.learn(x, y, weight=w)

    def predict_proba_one(self, x: dict[Any, Any], **_: Any) -> dict[Any, float]:
        """The probability of each label."""
        p = self._service.predict(x).p
        return {False: 1.0 - p, True: p}


class _Sklearn(_Remote):
    """A model of a service as a classifier of scikit-learn. X: numbers, NaN for missing; a sparse matrix; or a data
    frame, whose columns may also be text, categories and truth values. y: two classes.

    `partial_fit` learns more. `fit` wants a model without events and raises ValueError otherwise; with `reset=True` it
    deletes the model's log first. `predict` needs no `fit`, as the service may have learned elsewhere.

    client: by default `Client()`. The service has the state: a clone or a copy is the same model.

    >>> client = Client("http://localhost:8000", model="flowers")
    >>> _ = client.create(rule="auto")
    >>> classifier = SklearnClassifier(client).fit([[0.0, 1.0], [1.0, 0.0]] * 50, ["rose", "tulip"] * 50)
    >>> classifier.predict([[0.1, 0.9]]).tolist(), classifier.classes_.tolist()
    (['rose'], ['rose', 'tulip'])
    """

    classes_: Any

    def __init__(self, client: Client | None = None, *, reset: bool = False) -> None:
        self.client = client
        self.reset = reset

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # type: ignore[misc]  # BaseEstimator's
        tags.classifier_tags.multi_class = False
        tags.input_tags.allow_nan = tags.input_tags.sparse = True
        tags.requires_fit = False
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Learn the rows of X, in order, as the first events of the model."""
        events = self._events(X, y, sample_weight, None, is_first=True)
        model = self._service.model()
        if model.seq and not self.reset:
            raise ValueError(
                f"the model {model.name!r} has learned {model.seq:,} events, and fit begins with none. partial_fit "
                "learns more; a client of another model leaves these alone; reset=True deletes them with their log"
            )
        if model.seq:
            self._service.delete()
            self._service.create(model.spec)
        return self._learn(*events)

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Any:
        """Learn the rows of X, in order, after all that the model has learned. classes: both, if not 0 and 1."""
        import numpy as np

        if classes is None and set((found := np.unique(y)).tolist()) <= {0, 1}:
            classes = np.array([0, 1], found.dtype)
        return self._learn(*self._events(X, y, sample_weight, classes, is_first=not hasattr(self, "classes_")))

    def predict_proba(self, X: Any) -> Any:
        """The probability of each class, in the order of `classes_`: (n, 2) float64."""
        import numpy as np

        X = self._checked(X, is_first=False)
        found = self._service.predict(_for_the_service(X))
        p = np.array([one.p for one in found] if isinstance(found, list) else found, np.float64)
        return np.stack([1.0 - p, p], axis=1)

    def predict(self, X: Any) -> Any:
        """The more likely class of each row."""
        import numpy as np

        classes = self.classes_ if hasattr(self, "classes_") else np.array([0, 1])
        return classes[(self.predict_proba(X)[:, 1] > 0.5).astype(np.intp)]

    def _checked(self, X: Any, is_first: bool) -> Any:
        """X checked as scikit-learn does. A data frame stays one."""
        from sklearn.utils.validation import validate_data

        if _library(X) not in ("pandas", "polars"):
            return validate_data(self, X, reset=is_first, accept_sparse="csr", ensure_all_finite="allow-nan")
        validate_data(self, X, reset=is_first, skip_check_array=True)
        return X

    def _events(self, X: Any, y: Any, weights: Any, classes: Any, is_first: bool) -> tuple[Any, Any, Any, Any]:
        """The rows that are events, whether they have the second class, their weights, and both classes."""
        import numpy as np
        from sklearn.utils import check_consistent_length, column_or_1d, multiclass, validation

        X = self._checked(X, is_first)
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        y = column_or_1d(y, warn=True)
        check_consistent_length(X, y)
        multiclass.check_classification_targets(y)
        known = np.unique(y if classes is None else classes) if is_first else self.classes_
        if len(known) != 2:
            kind = "multiclass" if len(known) > 2 else "one class; partial_fit(X, y, classes=...) takes both"
            raise ValueError(f"Only binary classification is supported. The type of the target is {kind}.")
        if unknown := set(y.tolist()) - set(known.tolist()):
            raise ValueError(f"y has classes other than {known.tolist()}: {sorted(map(str, unknown))}")
        ones = (y == known[1]).astype(np.uint8)
        if weights is not None:
            weights = validation._check_sample_weight(weights, X, ensure_non_negative=True)
            events = np.flatnonzero(weights)  # a row of weight 0 is none
            X, ones, weights = (X.iloc if hasattr(X, "iloc") else X)[events], ones[events], weights[events]
        return X, ones, weights, known

    def _learn(self, X: Any, ones: Any, weights: Any, classes: Any) -> Any:
        self._service.learn(_for_the_service(X), ones, weight=weights)
        self.classes_ = classes
        return self


def _for_the_service(X: Any) -> Any:
    """X as `learn` and `predict` take it: rows of a sparse matrix, and of a frame with a feature named as a role."""
    if hasattr(X, "indptr"):
        names, values = [str(name) for name in X.indices.tolist()], X.data.tolist()
        spans = itertools.pairwise(X.indptr.tolist())
        return [dict(zip(names[start:end], values[start:end], strict=True)) for start, end in spans]
    library = _library(X)
    return list(_rows(X, library)) if {"y", "id", "weight"} & set(_columns(X, library)) else X


if TYPE_CHECKING:
    from river import base
    from sklearn.base import BaseEstimator, ClassifierMixin

    class RiverClassifier(_River, base.Classifier): ...

    class SklearnClassifier(_Sklearn, ClassifierMixin, BaseEstimator): ...

else:

    def __getattr__(name: str) -> Any:
        """The classes that need more than httpx."""
        if name == "RiverClassifier":
            from river import base

            found: Any = _subclass(name, _River, base.Classifier)
        elif name == "SklearnClassifier":
            from sklearn.base import BaseEstimator, ClassifierMixin

            found = _subclass(name, _Sklearn, ClassifierMixin, BaseEstimator)
        elif name in ("Learner", "Spec"):
            found = _of_core(name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found
        return found


def _subclass(name: str, *bases: type) -> type:
    own = {"__module__": __name__, "__doc__": bases[0].__doc__}
    return types.new_class(name, bases, {}, lambda body: body.update(own))


def _of_core(name: str) -> Any:
    """`Learner` or `Spec`. river then takes a Learner for a classifier of its own."""
    try:
        import core
    except ImportError:
        words = f"logstep.{name} is part of the whole project, and this is its client alone: pip install logstep"
        raise ImportError(words) from None
    with contextlib.suppress(ImportError):
        from river import base

        base.Classifier.register(core.Learner)
    return getattr(core, name)
