"""Reads NDJSON lines of one shape at once.

Most events of a stream have the same features in the same order, so their lines differ only in the numbers. The first
line gives the shape, and `lines.py` reads the lines after it. That takes 0.3 us for an event of 10 features, while
the general decoder takes 1.2 us, and its objects 2 us more. A line of another shape goes to the general decoder, which
also names its errors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from core.logistic import Floats
from service.decode.lines import ID, LINE_END, read_lines
from service.decode.text import lines_in
from service.events import MAX_ID
from service.table import Table

LABEL, WEIGHT = -2, -1
"""Places of label and weight among a line's values, after its features."""

_TOKEN = re.compile(rb'"[^"\\]*"\s*:|"([^"\\]*)"|(-?[0-9][-+.0-9eE]*|true|false)')
"""A name, a string, or a number."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What lines with the same features in the same order share. The arrays are those of `lines.py`."""

    names: list[str]
    literals: npt.NDArray[np.uint8]
    ends: npt.NDArray[np.int64]
    holes: npt.NDArray[np.int64]

    @classmethod
    def of(cls, line: bytes) -> Shape | None:
        """The shape of a line; None unless it is an event of numbers only that its bytes identify."""
        if b"\\" in line or b"null" in line:
            return None
        literals: list[bytes] = []
        filled: list[bytes] = []  # the line, with each hole's number in its place
        end = 0
        for token in _TOKEN.finditer(line):
            start, stop = token.span(1) if token[1] is not None else token.span(2)
            if start >= 0:
                literals.append(line[end:start])
                if literals[-1].endswith(b"-"):
                    return None  # "--1" would pass as JSON once its second part is replaced by a number
                filled += [literals[-1], b"%d" % (len(literals) - 1)]
                end = stop
        literals.append(line[end:])
        found = _holes(b"".join([*filled, literals[-1]]))
        if found is None or len(found[1]) != len(literals) - 1:
            return None
        names, at_hole = found
        holes = np.array([at_hole[i] for i in range(len(at_hole))], np.int64)
        ends = np.cumsum([len(literal) for literal in literals], dtype=np.int64)
        return cls(names, np.frombuffer(bytearray().join(literals), np.uint8), ends, holes)

    def read(self, data: bytearray, longest: int) -> tuple[Table, int]:
        """The leading whole lines of this shape, each at most `longest` bytes, and where they end."""
        text = np.frombuffer(data, np.uint8)
        shortest = int(self.ends[-1]) + len(self.holes)  # each hole has at least a byte, except the id's
        lines = min(
            lines_in(data), len(data) // shortest
        )  # not counting blank lines: arrays for them could take gigabytes
        values, places = np.empty((lines, len(self.names) + 2)), np.empty((lines, 3), np.int64)
        values[:, WEIGHT] = 1.0
        read = read_lines(text, self.literals, self.ends, self.holes, longest, values, places)
        read = _count_good(values[:read], places[:read] if ID in self.holes else None)
        end = int(places[read - 1, LINE_END]) if read else 0
        ids: list[str | None] | None = None
        if ID in self.holes:
            as_text = data[:end].decode("latin-1")  # an id that was read is ASCII
            ids = [as_text[start:stop] for start, stop in places[:read, :LINE_END].tolist()]
        labels, weights = values[:read, LABEL].astype(np.uint8), np.ascontiguousarray(values[:read, WEIGHT])
        return Table(1, self.names, np.ascontiguousarray(values[:read, :LABEL]), None, labels, weights, ids), end


def _count_good(values: Floats, id_places: npt.NDArray[np.int64] | None) -> int:
    """How many lines come before the first with an invalid label, weight or id."""
    labels, weights = values[:, LABEL], values[:, WEIGHT]
    good = ((labels == 0) | (labels == 1)) & (weights > 0)
    if id_places is not None:
        lengths = id_places[:, 1] - id_places[:, 0]
        good &= (lengths > 0) & (lengths <= MAX_ID)
    return len(good) if good.all() else int(good.argmin())


def _holes(filled: bytes) -> tuple[list[str], dict[int, int]] | None:
    """Features by column and the meaning of each hole, from a line with the holes' numbers; None if it is no event."""
    try:
        event: Any = msgspec.json.decode(filled)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(event, dict) or not {"x", "y"} <= event.keys() <= {"x", "y", "id", "weight"}:
        return None
    x, id_ = event["x"], event.get("id", "0")
    if isinstance(x, list):
        x = {str(i): hole for i, hole in enumerate(x)}
    if not x or not isinstance(x, dict) or not isinstance(id_, str) or not id_.isdecimal():
        return None
    pairs = [*zip(x.values(), range(len(x)), strict=True), (event["y"], len(x))]
    if "id" in event:
        pairs.append((int(id_), ID))
    if "weight" in event:
        pairs.append((event["weight"], len(x) + 1))
    return (list(x), dict(pairs)) if all(type(hole) is int for hole, _ in pairs) else None
