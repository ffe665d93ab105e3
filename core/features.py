"""Maps feature names to columns, and turns events into arrays for the kernels.

An event's x is an object of features or an array of numbers:

- a number is the feature's value;
- `true` and `false` are 1 and 0;
- a string value `v` of feature `f` is the feature `f=v` with value 1;
- an array's features are named by position: "0", "1", ...

A missing feature, or one that is None, is 0. An object in which two names become one (`{"a=b": 2, "a": "b"}`) is
refused.
"""

from __future__ import annotations

import sys
import zlib
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from core import one
from core.batch import Admitted, left_out_of, name_hashes
from core.columns import Buckets, Columns
from core.compiled import compiled
from core.logistic import Floats, Ints

Value = float | bool | str
X = Mapping[str, Value | None] | Sequence[float | None]

MAX_NAME = 256
"""Most characters of a feature's name, and of a string value."""
MAX_ARRAY = 1_000_000
"""Most numbers in an event that is an array."""
MAX_FLOAT = sys.float_info.max


class EventError(ValueError):
    """An event that is not valid. `field` is the path to the fault ("x.age"), and the message says what is wrong."""

    row: int = 0
    """The event's row in a table, from 0."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


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
    there = len(x)
    for name, value in x.items():
        if value is None:
            check_name(name)
            there -= 1
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
    if len(features) < there:
        raise _one_feature_twice(x)
    return features


def _one_feature_twice(x: Mapping[str, Value | None]) -> EventError:
    """The error for an object in which two names become one feature."""
    names: dict[str, str] = {}
    for name, value in x.items():
        feature = f"{name}={value}" if isinstance(value, str) else name
        if value is not None and names.setdefault(feature, name) != name:
            break
    words = f"is the feature {_shown(feature)}, as x.{_shown(names[feature])} is; rename one"
    return EventError(f"x.{_shown(name)}", words)


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


def is_name(name: str) -> bool:
    """Whether `check_name` passes."""
    try:
        check_name(name)
    except EventError:
        return False
    return True


@compiled("int64(float64[::1], float64)")
def first_beyond(values: Floats, limit: float) -> int:
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


class _Remembered(array):  # type: ignore[type-arg]  # as a base, array.array takes no type argument
    """Columns without a -1, so nobody needs to look for one."""

    __slots__ = ()


class Features:
    """The names that a model knows, each with its column. Columns count from 0, in order of appearance.

    max_features: most names. overflow: what happens to a new name beyond that: `ignore` leaves the feature out of the
    event, `refuse` refuses the event. max_value: the largest magnitude of a feature's value.

    hash_bits: with k, a name is replaced by `#h`, where h is the CRC-32 of its UTF-8, modulo 2^k, in hexadecimal. It
    suits streams with endless new names. Features of one event with the same hash are summed. None: no hashing.
    text_apart: whether hashed text names (`colour=red`) become `=h` instead. Then text and numbers never share a
    column, and there are at most 2^k of each. A model that scales needs this, because text is not scaled.
    with_fields: whether the field stays before the hash: `age` becomes `age#h`, and `colour=red` becomes `colour=#h`. A
    hash keeps the field of the first name that fell into it.

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
        with_fields: bool = False,
    ) -> None:
        self.names: list[str] = []
        self.hashed = hash_bits is not None
        """Whether hashes replace names."""
        self._fields = with_fields and self.hashed
        self._column = Buckets() if self._fields else Columns()
        self._hash_mask = (1 << (hash_bits or 0)) - 1
        self._text_sign = "=" if text_apart else "#"
        self.max_features = max_features if hash_bits is None else 1 << hash_bits + text_apart
        self.max_value = max_value
        self.overflow = overflow
        self.max_event = MAX_ARRAY
        """Most features of an event. Whoever accepts events from others may lower it, before the first."""
        self.where = ""
        """Added to the message about `max_event`: which models have this limit (" where the rule is auto")."""
        self.max_name = MAX_NAME
        """Most characters of a new name. A name with a text value (`country=FR`) may have twice as many, plus one."""
        self._shapes: dict[tuple[str, ...], array[int]] = {}
        """The columns of lists of names."""
        self.lent: dict[tuple[str, ...], one.Lent] = {}
        """What the short way of one event needs, for some of these lists."""
        self.kinds_of: Callable[[Sequence[str]], list[int]] | None = None
        """What unknown names are made of, if the model wants to know: `encode` then gives -2 - kind, not -1."""
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
        if count < len(self.names):
            for name in self.names[count:]:
                del self._column[name]
            del self.names[count:]
            self._forget_shapes()

    def _forget_shapes(self) -> None:
        self.lent = {}
        self._shapes = {}  # a new dict: a thread in the middle of a look-up still writes to the old one
        self._remembered = 0

    def known(self, names: Sequence[str]) -> list[int]:
        """The columns of `names`; -1 for unknown names, which are not checked."""
        return self._column.of(names)

    @property
    def full(self) -> bool:
        """Whether there is no room for a new name."""
        return len(self.names) >= self.max_features

    def columns_of(self, names: Iterable[str], add: bool = False) -> array[int]:
        """The columns of `names`. An unknown name is -1, or gets the next column with `add`.

        If no column is free: with overflow `refuse`, raises EventError and adds no name; with `ignore`, -1. Raises
        EventError for a name that is not valid. The result is cached: do not change it.
        """
        shape = tuple(names)
        shapes = self._shapes
        cached = shapes.get(shape)
        if cached is not None:
            return cached
        columns = _Remembered("i", self.known(shape))
        if -1 in columns:
            return self._columns_of_new(shape, add)
        if len(shapes) < MAX_SHAPES and self._remembered + len(shape) <= REMEMBERED_NAMES:
            shapes[shape] = columns
            self._remembered += len(shape)
        else:
            self._forget_shapes()  # the list is cached when it comes again
        return columns

    def prepare(self, x: X) -> None:
        """Let the next event with the names of x go the short way of `core.one`, if it can: if x is a dict of numbers,
        and the model has met its names in this order.

        >>> features = Features()
        >>> columns, _, _ = features.admit({"age": 31})
        >>> features.prepare({"age": 31}), list(features.lent)
        (None, [])
        >>> columns = features.columns_of(["age"])
        >>> features.prepare({"age": 31}), list(features.lent)
        (None, [('age',)])
        """
        if type(x) is not dict or self.hashed or len(x) > self.max_event:
            return
        names = tuple(x)
        columns = self._shapes.get(names)
        if columns is not None and names not in self.lent:
            self.lent[names] = one.lent(columns)

    def _columns_of_new(self, names: tuple[str, ...], add: bool) -> array[int]:
        new = [name for name in names if name not in self._column]
        if not self.hashed:  # hashed names are always valid
            for name in new:
                check_flat_name(name, self.max_name)
        if add:
            room = self.max_features - len(self)
            if len(new) > room and self.overflow == "refuse":
                there = f"the model has {len(self)} of at most {self.max_features}"
                see = "see max_features, overflow and hash_bits in the model's spec"
                raise EventError("x", f"has {len(new)} new feature(s), but {there}; {see}")
            self.extend(new[:room])
        return array("i", self.known(names))

    def unknown(self, columns: array[int]) -> int:
        """How many columns in a result of `columns_of` belong to unknown names.

        >>> features = Features()
        >>> features.extend(["age"])
        >>> features.unknown(features.columns_of(["age", "vip"])), features.unknown(features.columns_of(["age"]))
        (1, 0)
        """
        return 0 if type(columns) is _Remembered else sum(column < 0 for column in columns)

    def encode(self, x: X) -> tuple[array[int], array[float]]:
        """The columns and values of an event's x, in its own order; below 0 for unknown names. Raises EventError."""
        names, values = self.flat(x)
        names = tuple(names)
        columns = self.columns_of(names)
        if type(columns) is _Remembered:
            return columns, values
        return self.with_kinds(names, columns, len(self)), values

    def with_kinds(self, names: Sequence[str], columns: array[int], known: int) -> array[int]:
        """The columns, with those from `known` on taken for unknown, and unknown ones as `kinds_of` has them."""
        if type(columns) is _Remembered and known >= len(self):
            return columns
        unknown = [i for i, column in enumerate(columns) if not 0 <= column < known]
        if not unknown:
            return columns
        coded = array("i", columns)
        kinds = self.kinds_of([names[i] for i in unknown]) if self.kinds_of else [-1] * len(unknown)
        for i, kind in zip(unknown, kinds, strict=True):
            coded[i] = -2 - kind
        return coded

    def admit(self, x: X) -> Admitted:
        """Encode an event's x for learning. New names get columns; features without room are left out.

        Raises EventError if x is not valid; then nothing changes.

        >>> features = Features(max_features=1)
        >>> columns, values, left_out = features.admit({"age": 31.0, "user": "u7"})
        >>> list(columns), list(values), left_out.counts.tolist()
        ([0], [31.0], [1])
        """
        names, values = self.flat(x)
        columns = self.columns_of(names := tuple(names), add=True)
        if self.full and self.unknown(columns):
            return self._without_unknown(names, columns, values)
        return columns, values, None

    def admitted(self, x: X) -> Admitted | None:
        """What `admit` returned for x if x was learned before. None if x has unknown names and there is room for them,
        because then it was not learned."""
        names, values = self.flat(x)
        columns = self.columns_of(names := tuple(names))
        if not self.unknown(columns):
            return columns, values, None
        return self._without_unknown(names, columns, values) if self.full and self.overflow == "ignore" else None

    @staticmethod
    def _without_unknown(names: tuple[str, ...], columns: array[int], values: array[float]) -> Admitted:
        known = [i for i, column in enumerate(columns) if column >= 0]
        unknown = [i for i, column in enumerate(columns) if column < 0]
        row = np.array([[values[i] for i in unknown]])
        left_out = left_out_of(name_hashes([names[i] for i in unknown])[None], row, np.ones(row.shape, np.bool_))
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
            beyond = first_beyond(np.frombuffer(values), self.max_value)
            if beyond >= 0:
                name = list(names)[beyond]
                name = f"x.{_shown(name)}" if isinstance(x, Mapping) else f"x[{name}]"
                raise EventError(name, f"must be within ±{self.max_value:g}")
        if not self.hashed:
            return names, values
        summed: dict[str, float] = {}  # values of names with the same hash
        named: dict[str, str] = {}
        for name, value in zip(names, values, strict=True):
            check_flat_name(name, self.max_name)
            sign = self._text_sign if is_text(name) else "#"
            bucket = f"{sign}{zlib.crc32(name.encode()) & self._hash_mask:x}"
            summed[bucket] = summed.get(bucket, 0.0) + value
            if self._fields and bucket not in named:
                field, text, _ = name.partition("=")
                named[bucket] = field + text + bucket
        return (named.values() if self._fields else summed.keys()), _numbers(summed.values())


def is_text(name: str) -> bool:
    """Whether a name is that of a text feature, like `colour=red`. Its value is not scaled.

    >>> is_text("colour=red"), is_text("age")
    (True, False)
    """
    return "=" in name


def check_flat_name(name: str, longest: int = MAX_NAME) -> None:
    """`check_name` for a name that may include a string value ("country=FR")."""
    check_name(name, 2 * longest + 1 if "=" in name else longest)
