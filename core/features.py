"""Maps feature names to columns, and turns events into arrays for the kernels.

An event's x is an object of features or an array of numbers:

- a number is the feature's value;
- `true` and `false` are 1 and 0;
- a string value `v` of feature `f` is the feature `f=v` with value 1;
- an array's features are named by position: "0", "1", ...

A missing feature, or one that is None, is 0. If two names of an object become one (`{"a=b": 2, "a": "b"}`), the later
value wins.
"""

from __future__ import annotations

import math
import sys
import zlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from core.compiled import compiled
from core.logistic import Floats, Ints, Labels, Offsets

Value = float | bool | str
X = Mapping[str, Value | None] | Sequence[float | None]
Bits = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]

MAX_NAME = 256
"""Most characters of a feature's name, and of a string value."""
MAX_ARRAY = 1_000_000
"""Most numbers in an event that is an array."""
MAX_FLOAT = sys.float_info.max
NO_LABEL = "must be 0, 1, true or false; map other labels to these before you send them"


class EventError(ValueError):
    """An event that is not valid. `field` is the path to the fault ("x.age"), and the message says what is wrong."""

    row: int = 0
    """The event's row in a table, from 0."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class TooManyFeatures(EventError):
    """The event has new names, and the model has no room for them."""


ORDINARY, JOINED, EXPIRED, LATE = range(4)
"""How an event got its label. ORDINARY: together with its features. JOINED: by id, after a prediction. EXPIRED: no
label came in time, so it is 0. LATE: by id, after that."""


@dataclass(frozen=True, slots=True)
class Served:
    """The served predictions of n events.

    `kinds` (uint8): how each event got its label. For kinds other than ORDINARY: `scores` (float64), the served score;
    `delays` (float64), the seconds from the prediction to the label or the timeout.
    """

    kinds: Labels
    scores: Floats
    delays: Floats

    def part(self, start: int, stop: int) -> Served:
        """Those of the events from `start` to before `stop`."""
        return Served(self.kinds[start:stop], self.scores[start:stop], self.delays[start:stop])


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The features left out of each of n events, because the model had no room for them.

    `counts` (uint32): their number. `marks` (uint64): a hash of their names and values in any order; 0 without any.
    """

    counts: npt.NDArray[np.uint32]
    marks: Bits

    @classmethod
    def none(cls, events: int) -> LeftOut:
        """For events from which nothing was left out."""
        return cls(np.zeros(events, np.uint32), np.zeros(events, np.uint64))

    @classmethod
    def of(cls, names: Sequence[str], values: Floats, present: Mask) -> LeftOut:
        """For features `names` (m) with the values `values` (n, m), where `present` (n, m)."""
        hashes = [int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little") for name in names]
        found = cls.none(len(values))
        bits = np.ascontiguousarray(values + 0.0).view(np.uint64)  # + 0.0: -0.0 is 0.0
        _left_out(np.array(hashes, np.uint64), bits, np.ascontiguousarray(present), found.counts, found.marks)
        return found

    def part(self, start: int, stop: int) -> LeftOut:
        """Those of the events from `start` to before `stop`."""
        return LeftOut(self.counts[start:stop], self.marks[start:stop])


@dataclass(slots=True)  # not frozen: that takes 0.7 us to make, not 0.3
class Batch:
    """n events as arrays, in order.

    Event i has the features `columns[offsets[i]:offsets[i + 1]]` (int32), with their `values` (float64) at the same
    positions. `offsets` (int64) has n + 1 entries and starts at 0. `labels` (uint8, 0 or 1) and `weights` (float64,
    the sample weights) have n. `served` is None if all events are ordinary; `left_out` is None if nothing was left
    out.
    """

    offsets: Offsets
    columns: Ints
    values: Floats
    labels: Labels
    weights: Floats
    served: Served | None = None
    left_out: LeftOut | None = None

    @classmethod
    def of_one(cls, event: Admitted, y: float, weight: float = 1.0) -> Batch:
        """A batch of one event, from `Features.admit`."""
        columns, values, left_out = event
        return cls(
            np.array([0, len(columns)], np.int64),
            *as_arrays(columns, values),
            np.array([y], np.uint8),
            np.array([weight], np.float64),
            left_out=left_out,
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def longest(self) -> int:
        """The number of features of the longest event; 0 without events."""
        return int(np.diff(self.offsets).max(initial=0))

    def slices(self, events: int, values: int = 2**62) -> Iterator[Batch]:
        """The same events in pieces, without copying the features. A piece has at most `events` events, and at most
        `values` values unless a single event has more.

        >>> batch = Batch(np.array([0, 3, 4, 5]), np.zeros(5, np.int32), np.ones(5), np.ones(3, np.uint8), np.ones(3))
        >>> [len(piece) for piece in batch.slices(10, 2)], [len(piece) for piece in batch.slices(1, 10)]
        ([1, 2], [1, 1, 1])
        """
        if 0 < len(self) <= events and len(self.values) <= values:
            yield self
            return
        start = 0
        while start < len(self):
            within = (
                int(np.searchsorted(self.offsets, min(self.offsets[start] + values, len(self.values)), "right")) - 1
            )
            stop = min(start + events, max(within, start + 1))
            yield self.part(start, stop)
            start = stop

    def part(self, start: int, stop: int) -> Batch:
        """The events from `start` to before `stop`, without copying the features."""
        if start == 0 and stop == len(self):
            return self
        first, last = self.offsets[start], self.offsets[stop]
        return Batch(
            self.offsets[start : stop + 1] - first,
            self.columns[first:last],
            self.values[first:last],
            self.labels[start:stop],
            self.weights[start:stop],
            self.served and self.served.part(start, stop),
            self.left_out and self.left_out.part(start, stop),
        )

    def first(self, events: int) -> Batch:
        """The first `events` events, or all if there are fewer."""
        return self.part(0, min(events, len(self)))

    @classmethod
    def concatenate(cls, batches: Sequence[Batch]) -> Batch:
        """Several batches as one, in order."""
        if len(batches) == 1:
            return batches[0]
        starts = np.cumsum([0] + [len(batch.columns) for batch in batches])
        offsets = [np.zeros(1, np.int64)]
        offsets += [batch.offsets[1:] + start for batch, start in zip(batches, starts[:-1], strict=True)]
        return cls(
            np.concatenate(offsets),
            np.concatenate([batch.columns for batch in batches]),
            np.concatenate([batch.values for batch in batches]),
            np.concatenate([batch.labels for batch in batches]),
            np.concatenate([batch.weights for batch in batches]),
            left_out=_left_out_of_all(batches),
        )


def _left_out_of_all(batches: Sequence[Batch]) -> LeftOut | None:
    if all(batch.left_out is None for batch in batches):
        return None
    parts = [batch.left_out or LeftOut.none(len(batch)) for batch in batches]
    return LeftOut(np.concatenate([part.counts for part in parts]), np.concatenate([part.marks for part in parts]))


_positions: list[str] = []


def _position_names(count: int) -> list[str]:
    """The names of an array's features: "0", "1", ... They stay in memory, so their number is limited."""
    if count > MAX_ARRAY:
        raise EventError("x", f"an array has at most {MAX_ARRAY} numbers")
    if len(_positions) < count:
        there = len(_positions)
        _positions[there:count] = map(str, range(there, count))  # in one assignment: another thread may do the same
    return _positions[:count]


def _numbers(values: Iterable[Value | None]) -> array[float]:
    """The values as float64. Raises TypeError if one is not a number."""
    return array("d", values)  # type: ignore[arg-type]  # text raises TypeError, which the callers expect


def _text_to_features(x: Mapping[str, Value | None]) -> dict[str, float]:
    """The features, with strings as `f=v` of value 1 and without None."""
    features: dict[str, float] = {}
    for name, value in x.items():
        if value is None:
            check_name(name)
        elif isinstance(value, str):
            if len(value) > MAX_NAME:
                raise EventError(f"x.{_shown(name)}", f"a string value has at most {MAX_NAME} characters")
            check_name(name)  # here, where name and value are still apart
            features[f"{name}={value}"] = 1.0
        else:
            try:
                features[name] = float(value)
            except (TypeError, ValueError):
                raise EventError(f"x.{_shown(name)}", "must be a number, a string, true or false") from None
            except OverflowError:
                raise EventError(f"x.{_shown(name)}", "is too large for a 64-bit float") from None
    return features


def _numbers_there(x: Sequence[float | None]) -> tuple[Iterable[str], array[float]]:
    """The names and values of an array's numbers, without None."""
    try:
        names, values = _position_names(len(x)), _numbers(value for value in x if value is not None)
    except TypeError:
        raise EventError("x", "an array may contain only numbers and null") from None
    except OverflowError:
        raise EventError("x", "has a number that is too large for a 64-bit float") from None
    return [name for name, value in zip(names, x, strict=True) if value is not None], values


def flatten(x: X) -> tuple[Iterable[str], array[float]]:
    """The names and numeric values of an event's x, in its own order. Raises EventError.

    >>> names, values = flatten({"age": 31, "country": "FR", "vip": True})
    >>> list(names), list(values)
    (['age', 'country=FR', 'vip'], [31.0, 1.0, 1.0])
    >>> names, values = flatten([0.5, None, 2])
    >>> list(names), list(values)
    (['0', '2'], [0.5, 2.0])
    """
    try:
        if type(x) is dict or isinstance(x, Mapping):  # the first is four times as fast
            return x.keys(), _numbers(x.values())
        return _position_names(len(x)), _numbers(x)
    except OverflowError:
        raise EventError("x", "has a number that is too large for a 64-bit float") from None
    except TypeError:
        if not isinstance(x, Mapping):
            return _numbers_there(x)
    features = _text_to_features(x)
    return features.keys(), _numbers(features.values())


def _shown(name: str) -> str:
    """A name for a message, cut so that an error never repeats a whole body."""
    return name if len(name) <= 64 else name[:61] + "..."


def check_name(name: str, longest: int = MAX_NAME) -> None:
    """Raise EventError unless `name` is a valid feature name of at most `longest` characters."""
    if not name:
        raise EventError("x", "a feature's name must not be empty")
    if len(name) > longest:
        raise EventError(f"x.{_shown(name)}", f"a feature's name has at most {longest} characters")
    if "\0" in name:
        raise EventError("x", "a feature's name must not contain a zero byte")  # it ends each name in the SHA-256
    try:
        name.encode()
    except UnicodeEncodeError:
        raise EventError("x", "a feature's name must be valid Unicode, without lone surrogates") from None


@compiled("int64(float64[::1], float64)")
def _first_beyond(values: Floats, limit: float) -> int:
    """The position of the first value that is not within ±limit, or -1. NaN is never within."""
    for i in range(len(values)):
        if not abs(values[i]) <= limit:
            return i
    return -1


@compiled("int64(int32[::1])")
def last_column(columns: Ints) -> int:
    """The largest column; -1 without columns."""
    largest = np.int32(-1)  # of the columns' type, else the compiler does not vectorise the loop
    for i in range(len(columns)):
        largest = max(largest, columns[i])
    return int(largest)


MAX_SHAPES = 1_000
"""Most lists of names whose columns are cached. Most events of a stream have the same names in the same order; one
look-up for the whole list takes a third less time."""


REMEMBERED_NAMES = 250_000
"""Most names in all cached lists together."""
FIRST_NAMES = 2**18 * 2 // 3
"""Most names in a model's first dict. A dict grows when two thirds of its slots are used; with one more name it would
grow for 10 ms."""
DICTS = 64


class _Remembered(array):  # type: ignore[type-arg]  # as a base, array.array takes no type argument
    """Columns without a -1, so nobody needs to look for one."""

    __slots__ = ()


class _Columns:
    """Name -> column, like a dict.

    A large dict blocks the service while it grows: 27 ms with 700,000 names. So names after the first FIRST_NAMES are
    spread by hash over DICTS smaller dicts. Most models have fewer names; they use one dict and pay nothing.
    """

    __slots__ = ("_first", "_rest")

    def __init__(self) -> None:
        self._first: dict[str, int] = {}
        self._rest: list[dict[str, int]] = []

    def _dict_of(self, name: str) -> dict[str, int]:
        if not self._rest or name in self._first:
            return self._first
        return self._rest[hash(name) % len(self._rest)]

    def of(self, names: Sequence[str]) -> list[int]:
        """The columns of the names; -1 for unknown names."""
        first = self._first
        found = [first.get(name, -1) for name in names]
        if self._rest and -1 in found:
            for i, column in enumerate(found):
                if column < 0:
                    found[i] = self._rest[hash(names[i]) % len(self._rest)].get(names[i], -1)
        return found

    def __contains__(self, name: str) -> bool:
        return name in self._dict_of(name)

    def __setitem__(self, name: str, column: int) -> None:
        if column < FIRST_NAMES:
            self._first[name] = column
            return
        if not self._rest:
            self._rest = [{} for _ in range(DICTS)]
        self._rest[hash(name) % DICTS][name] = column

    def __delitem__(self, name: str) -> None:
        del self._dict_of(name)[name]


class Features:
    """The names that a model knows, each with its column. Columns count from 0, in order of appearance.

    max_features
        Most names. Default 1,000,000.
    overflow
        What happens to a new name beyond that: `ignore` leaves the feature out of the event, `refuse` refuses the
        event. Default `ignore`.
    hash_bits
        With k, a name is replaced by `#h`, where h is the CRC-32 of its UTF-8, modulo 2^k, in hexadecimal. It suits
        streams with endless new names. Features of one event with the same hash are summed. Default None: no hashing.
    max_value
        The largest magnitude of a feature's value. Default 1e100.
    text_apart
        Whether hashed text names (`colour=red`) become `=h` instead of `#h`. Then text and numbers never share a
        column, and there are at most 2^k of each. A model that scales needs this, because text is not scaled. Default
        False.

    >>> features = Features()
    >>> features.columns_of(["age", "vip"], add=True).tolist()
    [0, 1]
    >>> features.names
    ['age', 'vip']
    """

    def __init__(
        self,
        max_features: int = 1_000_000,
        hash_bits: int | None = None,
        max_value: float = 1e100,
        text_apart: bool = False,
        overflow: Literal["ignore", "refuse"] = "ignore",
    ) -> None:
        self.names: list[str] = []
        self._column = _Columns()
        self._hash_mask = None if hash_bits is None else (1 << hash_bits) - 1
        self._text_sign = "=" if text_apart else "#"
        self.max_features = max_features if hash_bits is None else 1 << hash_bits + text_apart
        self.max_value = max_value
        self.overflow = overflow
        self.max_event = MAX_ARRAY
        """Most features of an event. Whoever accepts events from others may lower it."""
        self.where = ""
        """Added to the message about `max_event`: which models have this limit (" where the rule is auto")."""
        self.max_name = MAX_NAME
        """Most characters of a new name. A name with a text value (`country=FR`) may have twice as many, plus one."""
        self._shapes: dict[tuple[str, ...], array[int]] = {}
        self._remembered = 0  # names in `_shapes`

    def __len__(self) -> int:
        return len(self.names)

    def extend(self, names: Iterable[str]) -> None:
        """Add names without a check, as from a stored model."""
        for name in names:
            self._column[name] = len(self.names)
            self.names.append(name)

    def truncate(self, count: int) -> None:
        """Remove every name from column `count` on, because its batch was not committed."""
        for name in self.names[count:]:
            del self._column[name]
        del self.names[count:]
        self._forget_shapes()

    def _forget_shapes(self) -> None:
        self._shapes = {}  # a new dict: a thread in the middle of a look-up still writes to the old one
        self._remembered = 0

    def known(self, names: Sequence[str]) -> list[int]:
        """The columns of `names`; -1 for unknown names, which are not checked."""
        return self._column.of(names)

    @property
    def hashed(self) -> bool:
        """Whether hashes replace names."""
        return self._hash_mask is not None

    @property
    def full(self) -> bool:
        """Whether there is no room for a new name."""
        return len(self.names) >= self.max_features

    def columns_of(self, names: Iterable[str], add: bool = False) -> array[int]:
        """The columns of `names`. An unknown name is -1, or gets the next column with `add`.

        If no column is free: with overflow `refuse`, raises TooManyFeatures and adds no name; with `ignore`, -1. Raises
        EventError for a name that is not valid. The result is cached: do not change it.
        """
        shape = tuple(names)
        shapes = self._shapes
        columns = shapes.get(shape)
        if columns is None:
            columns = _Remembered("i", self.known(shape))
            if -1 in columns:
                return self._columns_of_new(shape, add)
            if len(shapes) < MAX_SHAPES and self._remembered + len(shape) <= REMEMBERED_NAMES:
                shapes[shape] = columns
                self._remembered += len(shape)
            else:
                self._forget_shapes()  # the list is cached when it comes again
        return columns

    def _columns_of_new(self, names: tuple[str, ...], add: bool) -> array[int]:
        new = [name for name in names if name not in self._column]
        if self._hash_mask is None:  # hashed names are always valid
            for name in new:
                check_flat_name(name, self.max_name)
        if add:
            room = self.max_features - len(self)
            if len(new) > room and self.overflow == "refuse":
                raise TooManyFeatures(
                    "x",
                    f"has {len(new)} new feature(s), but the model has {len(self)} of at most {self.max_features}; "
                    "see max_features, overflow and hash_bits in the model's spec",
                )
            self.extend(new[:room])
        return array("i", self.known(names))

    def unknown(self, columns: array[int]) -> int:
        """How many columns in a result of `columns_of` belong to unknown names.

        >>> features = Features()
        >>> features.extend(["age"])
        >>> features.unknown(features.columns_of(["age", "vip"])), features.unknown(features.columns_of(["age"]))
        (1, 0)
        """
        return 0 if type(columns) is _Remembered else columns.count(-1)

    def encode(self, x: X) -> tuple[array[int], array[float]]:
        """The columns and values of an event's x, in its own order; -1 for unknown names.

        Raises EventError if x is not valid.
        """
        names, values = self.flat(x)
        return self.columns_of(names), values

    def admit(self, x: X) -> Admitted:
        """Encode an event's x for learning. New names get columns; features without room are left out.

        Raises EventError if x is not valid; then nothing changes.

        >>> features = Features(max_features=1)
        >>> columns, values, left_out = features.admit({"age": 31.0, "user": "u7"})
        >>> list(columns), list(values), left_out.counts.tolist()
        ([0], [31.0], [1])
        """
        names, values = self.flat(x)
        names = tuple(names)
        columns = self.columns_of(names, add=True)
        if self.full and self.unknown(columns):
            return self._without_unknown(names, columns, values)
        return columns, values, None

    def admitted(self, x: X) -> Admitted | None:
        """What `admit` returned for x if x was learned before. None if x has unknown names and there is room for them,
        because then it was not learned."""
        names, values = self.flat(x)
        names = tuple(names)
        columns = self.columns_of(names)
        if not self.unknown(columns):
            return columns, values, None
        return self._without_unknown(names, columns, values) if self.full and self.overflow == "ignore" else None

    @staticmethod
    def _without_unknown(names: tuple[str, ...], columns: array[int], values: array[float]) -> Admitted:
        known = [i for i, column in enumerate(columns) if column >= 0]
        unknown = [i for i, column in enumerate(columns) if column < 0]
        row = np.array([[values[i] for i in unknown]])
        left_out = LeftOut.of([names[i] for i in unknown], row, np.ones(row.shape, np.bool_))
        return array("i", [columns[i] for i in known]), array("d", [values[i] for i in known]), left_out

    def flat(self, x: X) -> tuple[Iterable[str], array[float]]:
        """The model's names for an event's features, and their values, in the event's own order.

        Raises EventError for a value that is not valid. `columns_of` checks the names.

        >>> names, values = Features(hash_bits=4).flat({"age": 31, "country": "FR"})
        >>> list(names), list(values)
        (['#2', '#a'], [31.0, 1.0])
        """
        names, values = flatten(x)
        if len(values) > self.max_event:
            raise EventError("x", f"has {len(values)} features; an event has at most {self.max_event}{self.where}")
        # A sum of magnitudes within the limit clears all values, in half the time of a look at each.
        if not sum(map(abs, values)) <= self.max_value:
            beyond = _first_beyond(np.frombuffer(values), self.max_value)
            if beyond >= 0:
                name = list(names)[beyond]
                name = f"x.{_shown(name)}" if isinstance(x, Mapping) else f"x[{name}]"
                raise EventError(name, f"must be within ±{self.max_value:g}")
        if self._hash_mask is not None:
            names, values = self._hashed(names, values, self._hash_mask)
        return names, values

    def _hashed(self, names: Iterable[str], values: Iterable[float], mask: int) -> tuple[Iterable[str], array[float]]:
        """Names as hashes; values with the same hash are summed."""
        summed: dict[str, float] = {}
        for name, value in zip(names, values, strict=True):
            check_flat_name(name, self.max_name)
            sign = self._text_sign if is_text(name) else "#"
            bucket = f"{sign}{zlib.crc32(name.encode()) & mask:x}"
            summed[bucket] = summed.get(bucket, 0.0) + value
        return summed.keys(), _numbers(summed.values())


Admitted: TypeAlias = "tuple[array[int], array[float], LeftOut | None]"
"""The columns and values of an event to learn, in its own order; and the features left out, or None."""


def as_arrays(columns: array[int], values: array[float]) -> tuple[Ints, Floats]:
    """The same memory as numpy arrays."""
    if not values:  # `frombuffer` refuses an empty buffer
        return np.zeros(0, np.int32), np.zeros(0)
    return np.frombuffer(columns, np.int32), np.frombuffer(values)


def is_text(name: str) -> bool:
    """Whether a name is that of a text feature, like `colour=red`. Its value is not scaled.

    >>> is_text("colour=red"), is_text("age")
    (True, False)
    """
    return "=" in name


def check_flat_name(name: str, longest: int = MAX_NAME) -> None:
    """`check_name` for a name that may include a string value ("country=FR")."""
    check_name(name, 2 * longest + 1 if "=" in name else longest)


def check_label(y: float, weight: float) -> None:
    """Raise EventError unless `y` is a label and `weight` a sample weight."""
    if y not in (0, 1):
        raise EventError("y", NO_LABEL)
    if not 0.0 < weight < math.inf or weight > MAX_FLOAT:
        raise EventError("weight", "must be a number above 0")


@compiled("boolean(float64[:, ::1], boolean[:, ::1], int32[::1], float64, int64[::1], int32[::1], float64[::1])")
def _gather(
    table: npt.NDArray[np.float64],
    present: Mask,
    of_column: Ints,
    limit: float,
    offsets: Offsets,
    columns: Ints,
    values: Floats,
) -> bool:
    """Copy the values that are present and have a column, row by row, to `columns` and `values`.

    Returns False if a present value is not within ±limit.
    """
    at = 0
    for i in range(table.shape[0]):
        for j in range(table.shape[1]):
            if present[i, j]:
                if not abs(table[i, j]) <= limit:
                    return False
                if of_column[j] >= 0:
                    columns[at] = of_column[j]
                    values[at] = table[i, j]
                    at += 1
        offsets[i + 1] = at
    return True


class BatchBuilder:
    """Gathers events for one model into a `Batch`. It refuses events that are not valid, and they change nothing.

    >>> builder = BatchBuilder(Features())
    >>> builder.add({"a": 2.0}, 1)
    >>> builder.add({"b": True, "a": 1.0}, 0, weight=0.5)
    >>> batch = builder.build()
    >>> batch.columns.tolist(), batch.values.tolist(), batch.offsets.tolist()
    ([0, 1, 0], [2.0, 1.0, 1.0], [0, 1, 3])
    """

    def __init__(self, features: Features) -> None:
        self.features = features
        self.first_feature = len(features)
        # Single events go to the open part; each table is a part of its own.
        self._closed: list[Batch] = []
        self._in_closed = 0
        self._open()

    def _open(self) -> None:
        self._columns = array("i")
        self._values = array("d")
        self._ends = array("q", [0])
        self._labels = bytearray()
        self._weights = array("d")
        self._left_out: dict[int, LeftOut] = {}  # by position, for events with features left out

    def __len__(self) -> int:
        return self._in_closed + len(self._labels)

    def add(self, x: X, y: float, weight: float = 1.0) -> None:
        """Add one event. Raises EventError if it is not valid; then nothing changes."""
        check_label(y, weight)
        self._append(*self.features.admit(x), y, weight)

    def add_again(self, event: Batch, y: float, weight: float = 1.0) -> None:
        """Add an event that was learned before, with another label."""
        check_label(y, weight)
        self._append(event.columns.tolist(), event.values.tolist(), event.left_out, y, weight)

    def _append(
        self, columns: Iterable[int], values: Iterable[float], left_out: LeftOut | None, y: float, weight: float
    ) -> None:
        if left_out is not None:
            self._left_out[len(self._labels)] = left_out
        self._columns.extend(columns)
        self._values.extend(values)
        self._ends.append(len(self._columns))
        self._labels.append(int(y))
        self._weights.append(weight)

    def add_table(
        self, names: Sequence[str], values: Floats, present: Mask | None, labels: Labels, weights: Floats | None = None
    ) -> None:
        """Add n events at once: same as `add` for each row, in a fiftieth of the time.

        Row i has the features `names` (m) in this order, with the values `values[i]` (n, m), where `present[i]` (n, m;
        None: all present). `labels` and `weights` have n entries (no weights: all 1). The arrays are used, not copied.

        Raises EventError if a row is not valid, with its `row` from 0; then nothing changes. Raises ValueError if the
        shapes do not fit.

        >>> builder = BatchBuilder(Features())
        >>> builder.add_table(["a", "b"], np.array([[1.0, 2.0], [3.0, 4.0]]), None, np.array([0, 1], np.uint8))
        >>> builder.build().columns.tolist()
        [0, 1, 0, 1]
        """
        shape = (len(labels), len(names))
        if values.shape != shape or (present is not None and present.shape != shape):
            raise ValueError(f"{len(labels)} labels and {len(names)} names make a table of shape {shape}")
        weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
        part = None
        at_once = not self.features.hashed and len(set(names)) == len(names) <= self.features.max_event
        if at_once and _can_be_learned(labels, weights):
            part = self._encode_table(names, np.ascontiguousarray(values, np.float64), present, labels, weights)
        if part is None:
            self._add_rows(names, values, present, labels, weights)
        else:
            self._close()
            self._closed.append(part)
            self._in_closed += len(part)

    def _encode_table(
        self, names: Sequence[str], table: Floats, present: Mask | None, labels: Labels, weights: Floats
    ) -> Batch | None:
        """The rows as a batch, with their new names added. None if a row is not valid; then nothing changes."""
        n, m = table.shape
        found = self.features.known(names)
        new = _by_appearance([j for j in range(m) if found[j] < 0], present) if n else []
        room = self.features.max_features - len(self.features)
        for place, j in enumerate(new[:room], len(self.features)):
            found[j] = place
        of_column = np.array(found, np.int32)
        limit = self.features.max_value
        over = new[room:]
        if over and present is None:
            present = np.ones(table.shape, np.bool_)
        if present is None:
            if _first_beyond(table.reshape(-1), limit) >= 0:
                return None
            offsets, columns, values = np.arange(n + 1, dtype=np.int64) * m, np.tile(of_column, n), table.reshape(-1)
        else:
            count = int(np.count_nonzero(present))
            offsets, columns, values = np.zeros(n + 1, np.int64), np.empty(count, np.int32), np.empty(count)
            if not _gather(table, np.ascontiguousarray(present), of_column, limit, offsets, columns, values):
                return None
            columns, values = columns[: offsets[-1]], values[: offsets[-1]]
        try:
            self.features.columns_of([names[j] for j in new], add=True)
        except EventError:
            return None
        left_out = None
        if over and present is not None:
            left_out = LeftOut.of([names[j] for j in over], table[:, over], present[:, over])
        return Batch(offsets, columns, values, np.asarray(labels, np.uint8), weights, left_out=left_out)

    def _add_rows(
        self, names: Sequence[str], values: Floats, present: Mask | None, labels: Labels, weights: Floats
    ) -> None:
        """`add_table` row by row: for hashed names, and to find which row is wrong and why."""
        mark = self.mark()
        there = [[True] * len(names)] * len(labels) if present is None else present.tolist()
        rows = zip(values.tolist(), there, labels.tolist(), weights.tolist(), strict=True)
        for i, (row, has, label, weight) in enumerate(rows):
            try:
                self.add({names[j]: value for j, value in enumerate(row) if has[j]}, label, weight)
            except EventError as error:
                self.take_back(mark)
                error.row = i
                raise

    def event(self, place: int) -> Batch:
        """The event at `place`, which was added after the last table."""
        i = place - self._in_closed
        of_event = slice(self._ends[i], self._ends[i + 1])
        admitted = (self._columns[of_event], self._values[of_event], self._left_out.get(i))
        return Batch.of_one(admitted, self._labels[i], self._weights[i])

    def mark(self) -> tuple[int, int]:
        """The present position, for `take_back`."""
        return len(self), len(self.features)

    def take_back(self, mark: tuple[int, int]) -> None:
        """Remove every event and every new name since `mark`."""
        events, features = mark
        while events < self._in_closed:
            self._open()
            part = self._closed.pop()
            self._in_closed -= len(part)
            if events > self._in_closed:
                self._closed.append(part.first(events - self._in_closed))
                self._in_closed = events
        kept = events - self._in_closed
        end = self._ends[kept]
        del self._columns[end:], self._values[end:], self._ends[kept + 1 :]
        del self._labels[kept:], self._weights[kept:]
        self._left_out = {i: left_out for i, left_out in self._left_out.items() if i < kept}
        self.features.truncate(features)

    def new_names(self) -> list[str]:
        """The names that these events brought."""
        return self.features.names[self.first_feature :]

    def _close(self) -> None:
        """Close the open part if it has events, and begin a new one."""
        if self._labels:
            self._closed.append(self._open_part())
            self._in_closed += len(self._labels)
            self._open()

    def _open_part(self) -> Batch:
        """The events of the open part. They share its memory, so it cannot grow any more."""
        return Batch(
            np.frombuffer(self._ends, np.int64),
            *as_arrays(self._columns, self._values),
            np.frombuffer(self._labels, np.uint8),
            np.frombuffer(self._weights),
            left_out=self._left_out_of_open(),
        )

    def _left_out_of_open(self) -> LeftOut | None:
        if not self._left_out:
            return None
        whole, places = LeftOut.none(len(self._labels)), list(self._left_out)
        whole.counts[places] = [one.counts[0] for one in self._left_out.values()]
        whole.marks[places] = [one.marks[0] for one in self._left_out.values()]
        return whole

    def build(self) -> Batch:
        """The events as arrays. No event can be added afterwards."""
        parts = [*self._closed, self._open_part()] if self._labels else self._closed
        if not parts:
            return Batch(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0), np.zeros(0, np.uint8), np.zeros(0))
        return Batch.concatenate(parts)


def _can_be_learned(labels: Labels, weights: Floats) -> bool:
    """`check_label` for many at once."""
    good_labels = ((labels == 0) | (labels == 1)).all()
    return bool(good_labels and ((weights > 0.0) & (weights <= MAX_FLOAT)).all())


def _by_appearance(columns: list[int], present: Mask | None) -> list[int]:
    """The table's columns that are ever present, in the order of their first appearance, row by row."""
    if present is None or not columns:
        return columns
    there = present[:, columns]
    first = there.argmax(axis=0).tolist()
    return [j for _, j in sorted((first[k], j) for k, j in enumerate(columns) if there[first[k], k])]


@compiled("uint64(uint64)")
def _mixed(bits: np.uint64) -> np.uint64:
    """A 64-bit number with its bits mixed by MurmurHash3's finaliser."""
    bits ^= bits >> np.uint64(33)
    bits *= np.uint64(0xFF51AFD7ED558CCD)
    bits ^= bits >> np.uint64(33)
    bits *= np.uint64(0xC4CEB9FE1A85EC53)
    return bits ^ (bits >> np.uint64(33))


@compiled("void(uint64[::1], uint64[:, ::1], boolean[:, ::1], uint32[::1], uint64[::1])")
def _left_out(names: Bits, values: Bits, present: Mask, counts: npt.NDArray[np.uint32], marks: Bits) -> None:
    """Count the present features of each row, and sum their marks, each made of name hash and value."""
    for i in range(len(counts)):
        for j in range(len(names)):
            if present[i, j]:
                counts[i] += 1
                marks[i] += _mixed(_mixed(names[j]) ^ values[i, j])


@compiled("void(int64[::1], int32[::1], uint64[::1], uint8[::1], uint64[::1], uint64[::1], uint64[::1])")
def _fingerprints(
    offsets: Offsets, columns: Ints, values: Bits, labels: Labels, weights: Bits, left_out: Bits, fingerprints: Bits
) -> None:
    for i in range(len(labels)):
        mixed = _mixed(_mixed(weights[i]) + np.uint64(labels[i])) + left_out[i]
        for j in range(offsets[i], offsets[i + 1]):
            # A sum does not depend on the features' order.
            mixed += _mixed(_mixed(np.uint64(columns[j]) + np.uint64(1)) ^ values[j])
        fingerprints[i] = mixed


def fingerprints(batch: Batch) -> npt.NDArray[np.int64]:
    """A 64-bit fingerprint (n,) of each event in a batch, equal for equal events in any order of features.

    Features left out of an event count, too. Two different events of one model have the same fingerprint once in 2^64.
    It does not withstand an attacker, who could only deceive himself.

    >>> builder = BatchBuilder(Features())
    >>> builder.add({"a": 1.0, "b": 2.0}, 1)
    >>> builder.add({"b": 2.0, "a": 1.0}, 1)
    >>> builder.add({"b": 1.0, "a": 2.0}, 1)
    >>> first, same, other = fingerprints(builder.build())
    >>> bool(first == same), bool(first == other)
    (True, False)
    """
    result = np.empty(len(batch), np.uint64)
    values, weights = batch.values + 0.0, batch.weights  # + 0.0: -0.0 is 0.0
    bits = (values.view(np.uint64), batch.labels, weights.view(np.uint64))
    marks = np.zeros(len(batch), np.uint64) if batch.left_out is None else batch.left_out.marks
    _fingerprints(batch.offsets, batch.columns, *bits, marks, result)
    return result.view(np.int64)


def label_fingerprints(labels: Labels, weights: Floats) -> npt.NDArray[np.int64]:
    """A 64-bit fingerprint (n,) of each pair of a label and a sample weight, equal for equal pairs.

    >>> same = label_fingerprints(np.array([1, 1, 0], np.uint8), np.array([2.0, 2.0, 2.0]))
    >>> bool(same[0] == same[1]), bool(same[1] == same[2])
    (True, False)
    """
    none = np.zeros(0)
    return fingerprints(Batch(np.zeros(len(labels) + 1, np.int64), np.zeros(0, np.int32), none, labels, weights))
