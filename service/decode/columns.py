"""Converts Arrow columns of any type to numbers and text.

Dictionaries (pandas' and Polars' categories) and runs (run-end encoding) refer to values of another type; the kind of
such a column is the kind of its values. Each value in use is read once. Otherwise a long word in every row would take
more memory than the stream.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import types

from core.batch import Mask

Array = Any
"""A pyarrow.Array; pyarrow has no types."""
Places = npt.NDArray[np.int64]

Kind = Literal["number", "truth", "whole", "text", "uuid", "null", "date", "time", "bytes", "nested", "other"]
"""The kind of a column's values. "whole" means an integer type; a float is never whole."""

_EXTENDED: dict[str, Kind] = {"arrow.uuid": "uuid", "arrow.bool8": "truth", "arrow.json": "text"}
"""Known extension types. Nobody can tell what the numbers of others mean."""
EXTENSION = b"ARROW:extension:name"
"""Key in a field's metadata that names its extension type, if pyarrow does not know the type."""


def kind_of(field: Any) -> Kind:
    """The kind of a column, from its field in the schema."""
    kind = field.type
    while types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        kind = kind.value_type
    extended = (field.metadata or {}).get(EXTENSION, b"").decode(errors="replace")
    if isinstance(kind, pa.BaseExtensionType):
        extended, kind = kind.extension_name, kind.storage_type
    if extended:
        return _EXTENDED.get(extended, "other")
    return next((name for name, is_it in _KINDS if is_it(kind)), "other")


_KINDS: list[tuple[Kind, Any]] = [
    ("truth", types.is_boolean),
    ("whole", types.is_integer),
    ("whole", lambda kind: types.is_decimal(kind) and kind.scale == 0),  # an integer of more than 64 bits
    ("number", lambda kind: types.is_floating(kind) or types.is_decimal(kind)),
    ("text", lambda kind: types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)),
    ("null", types.is_null),
    ("date", types.is_date),
    ("time", types.is_temporal),
    ("nested", types.is_nested),
    ("bytes", lambda kind: "binary" in str(kind)),
]


def numbers(column: Array) -> npt.NDArray[Any]:
    """The values of a number column; NaN for null."""
    return _read(column, _numbers, np.nan)


def strings(column: Array) -> list[str | None]:
    """The values of a column of text, UUIDs or whole numbers, as text; None for null."""
    words: list[str | None] = _read(column, _strings, None).tolist()
    return words


def _read(column: Array, read: Callable[[Array], npt.NDArray[Any]], null: float | None) -> npt.NDArray[Any]:
    """What `read` makes of a column's values, each of them read once."""
    places, values = _looked_up(column)
    if places is None:
        return read(values)
    used, back = np.unique(places, return_inverse=True)
    found = np.full(len(used), null)
    found[used >= 0] = read(_chosen(values, used[used >= 0]))
    return found[back]


@dataclass(frozen=True, slots=True)
class Words:
    """A column of text, whose strings are made when they are needed."""

    column: Array

    def __getitem__(self, rows: slice) -> Words:
        return Words(self.column[rows])

    def tolist(self) -> list[str | None]:
        return strings(self.column)


def there(column: Array) -> Mask:
    """Where a column is not null."""
    places, values = _looked_up(column)
    if places is None:
        return _valid(values)
    found = places >= 0
    if values.null_count:  # not every pyarrow's is_valid checks the dictionary
        found[found] = _valid(values)[places[found]]
    return found


def _looked_up(column: Array) -> tuple[Places | None, Array]:
    """For each row the index of its value in another array (-1 for null), and that array. The indices are None if the
    column holds its values itself."""
    if types.is_dictionary(column.type):
        values = column.dictionary
        places = np.full(len(column), -1, np.int64)
        places[_valid(column.indices)] = column.indices.drop_null().to_numpy()
    elif types.is_run_end_encoded(column.type):
        values = column.values
        rows = np.arange(column.offset, column.offset + len(column))
        places = np.searchsorted(column.run_ends.to_numpy(), rows, side="right").astype(np.int64)
    else:
        return None, column
    further, values = _looked_up(values)
    if further is not None:  # runs of dictionary values
        places = np.append(further, -1)[places]
    return places, values


def _chosen(values: Array, places: Places) -> Array:
    """The values at these indices."""
    if types.is_string_view(values.type):  # pyarrow's take does not support these
        return pa.array([values[place].as_py() for place in places.tolist()], pa.string())
    return values.take(pa.array(places))


def _valid(values: Array) -> Mask:
    valid: Mask = np.array(values.is_valid().to_numpy(zero_copy_only=False))
    return valid


def _storage(values: Array) -> tuple[str, Array]:
    """The name of the values' extension type ("" for none), and the stored values."""
    extended = isinstance(values.type, pa.BaseExtensionType)
    return (values.type.extension_name, values.storage) if extended else ("", values)


def _numbers(values: Array) -> npt.NDArray[Any]:
    extended, values = _storage(values)
    if types.is_null(values.type):
        return np.full(len(values), np.nan)
    if types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    if types.is_decimal(values.type):
        values = values.cast(pa.string()).cast(pa.float64())  # pyarrow's direct cast may miss the nearest float
    found: npt.NDArray[Any] = values.to_numpy(zero_copy_only=False)
    if extended == "arrow.bool8":  # an integer; any but 0 is true
        return np.where(np.isnan(found), np.nan, found != 0)
    return found


def _strings(values: Array) -> npt.NDArray[Any]:
    _, values = _storage(values)
    if types.is_fixed_size_binary(values.type):
        return np.array([None if one is None else str(uuid.UUID(bytes=one)) for one in values.to_pylist()], object)
    if types.is_integer(values.type) or types.is_decimal(values.type):
        values = values.cast(pa.string())
    found: npt.NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return found
