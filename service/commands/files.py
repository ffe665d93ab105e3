"""Events from a file: CSV, TSV, NDJSON and libsvm, plain or .gz, or from standard input.

What is wrong with a file is WrongUsage, with the line where it stands.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import math
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from service import errors
from service.commands.identity import Lines
from service.commands.terminal import WrongUsage
from service.decode import wire

FORMATS = ("csv", "tsv", "ndjson", "libsvm")
_ENDINGS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".libsvm": "libsvm",
    ".svm": "libsvm",
}
_LABELS = {1.0: 1, 0.0: 0, -1.0: 0, "true": 1, "false": 0}


class Row(NamedTuple):
    """An event of a file: its number among the events, from 1, and the line where it stands (or ends), from 1."""

    number: int
    line: int
    event: wire.Event


class _Wrong(Exception):
    """What is wrong with a row, said without where it stands."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file of events, or "-" for standard input, and how to read it.

    format: one of FORMATS, by default what the file's name ends in. label: the column, or key, of the label. positive:
    the label that is 1, all others are 0; without it labels are 0, 1, -1, +1, true or false. id_column: the column of
    the event's id, which is no feature then.
    """

    file: str
    format: str | None = None
    label: str | None = None
    positive: str | None = None
    id_column: str | None = None

    @property
    def name(self) -> str:
        """The file's name without its folder: "elec.csv"."""
        return "stdin" if self.file == "-" else Path(self.file).name

    def checked_format(self) -> str:
        """The format; WrongUsage where it is not known, or does not go with what else was asked for."""
        ending = Path(self.file.removesuffix(".gz")).suffix.lower()
        found = self.format or _ENDINGS.get(ending)
        if found is None:
            raise WrongUsage(f"the name {self.name!r} does not tell a format; --format names one of {_listed(FORMATS)}")
        if found in ("csv", "tsv") and self.label is None:
            raise WrongUsage(f"--label COLUMN says which column of {self.name} is the label")
        if self.id_column is not None and (found == "libsvm" or self.label is None):
            raise WrongUsage("--id-column goes with CSV, or with NDJSON of flat objects and --label")
        return found

    @contextmanager
    def open(self) -> Iterator[OpenSource]:
        """The file, open for reading."""
        format_ = self.checked_format()
        if self.file == "-":
            yield OpenSource(self, format_, sys.stdin.buffer, None)
            return
        try:
            file = Path(self.file).open("rb")  # noqa: SIM115  # an error of its caller's is not one of opening
        except OSError as error:
            raise WrongUsage(f"cannot read {self.file}: {error.strerror}") from None
        with file:
            yield OpenSource(self, format_, file, _size(file))


def _size(file: IO[bytes]) -> int | None:
    status = os.fstat(file.fileno())
    return status.st_size if stat.S_ISREG(status.st_mode) else None


class OpenSource:
    """A source that is being read. `size`: its bytes, None where nobody knows."""

    def __init__(self, source: Source, format_: str, file: IO[bytes], size: int | None) -> None:
        self.size = size
        self._source = source
        self._format = format_
        self._file = file
        self._line = 0
        self._lines = Lines((), header=False)

    def position(self) -> int:
        """Bytes read so far."""
        return self._file.tell() if self.size is not None else 0

    def id_prefix(self) -> str:
        """What stands before the row in the ids of the events, once the first was read: see identity.py."""
        return self._lines.id_prefix(self._source.name)

    def rows(self) -> Iterator[Row]:
        """The events, in order."""
        number = 0
        try:
            for event in self._events():
                number += 1
                yield Row(number, self._line, event)
        except _Wrong as wrong:
            raise WrongUsage(f"{self._source.name} line {self._line}: {wrong}") from None
        except csv.Error as error:
            raise WrongUsage(f"{self._source.name} line {self._line + 1}: {error}") from None
        except UnicodeDecodeError:
            raise self._broken("it is not text in UTF-8") from None
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise self._broken(f"its compression is broken: {error}") from None

    def _broken(self, reason: str) -> WrongUsage:
        return WrongUsage(f"{self._source.name}, after line {self._line}: {reason}")

    def _events(self) -> Iterator[wire.Event]:
        zipped = self._source.file.endswith(".gz")
        lines: Iterable[bytes] = gzip.GzipFile(fileobj=self._file) if zipped else self._file
        if self._format == "libsvm":
            lines = (line.partition(b"#")[0] for line in lines)
        file = self._lines = Lines(lines, header=self._format in ("csv", "tsv"))
        if self._format in ("csv", "tsv"):
            return self._csv(file)
        if self._format == "ndjson":
            return self._by_line(file, self._json_event)
        return self._by_line(file, self._libsvm_event)

    def _by_line(self, file: Iterable[bytes], read: Callable[[bytes], wire.Event]) -> Iterator[wire.Event]:
        for self._line, line in enumerate(file, 1):
            if line.strip():
                yield read(line)

    def _label(self, value: object) -> int:
        """0 or 1 for a label."""
        key = _key(value)
        if key == "":
            raise _Wrong("it has no label")
        if self._source.positive is not None:
            return int(key == _key(self._source.positive))
        if key not in _LABELS:
            raise _Wrong(f"the label {value!r} is not 0, 1, -1, +1, true or false; --positive VALUE says which is 1")
        return _LABELS[key]

    # -- CSV

    def _csv(self, file: Iterable[bytes]) -> Iterator[wire.Event]:
        reader = csv.reader(codecs.iterdecode(file, "utf-8-sig"), delimiter="\t" if self._format == "tsv" else ",")
        header = next(reader, None)
        self._line = reader.line_num
        if header is None:
            raise WrongUsage(f"{self._source.name} is empty")
        label = self._place(header, self._source.label)
        id_ = self._place(header, self._source.id_column)
        features = [(place, name) for place, name in enumerate(header) if place not in (label, id_)]
        self._check_header(header)
        for cells in reader:
            self._line = reader.line_num
            if not cells:
                continue
            if len(cells) != len(header):
                raise _Wrong(f"it has {len(cells)} cells, and the header {len(header)}")
            x = {name: _number_or_text(cells[place]) for place, name in features if cells[place].strip()}
            yield wire.Event(x, self._label(cells[label]), None if id_ < 0 else _id(cells[id_]))

    def _place(self, header: list[str], column: str | None) -> int:
        """Where a column stands, -1 if none is asked for."""
        if column is None:
            return -1
        if column not in header:
            raise WrongUsage(f"{self._source.name} has no column {column!r}; it has {_listed(header)}")
        return header.index(column)

    def _check_header(self, header: list[str]) -> None:
        for place, name in enumerate(header, 1):
            if not name:
                raise WrongUsage(f"{self._source.name}: column {place} has no name in the header")
            if header.index(name) < place - 1:
                raise WrongUsage(f"{self._source.name}: two columns have the name {name!r}")

    # -- NDJSON

    def _json_event(self, line: bytes) -> wire.Event:
        if self._source.label is None:
            try:
                return wire.decode_event(line)
            except errors.OnestepError as error:
                hint = "; where the label stands among the features, --label names it"
                raise _Wrong(str(error).replace("The body is", "it is") + hint) from None
        try:
            x = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _Wrong(f"it is not JSON: {error}") from None
        if not isinstance(x, dict):
            raise _Wrong("it is not a JSON object")
        label = self._label(_taken(x, self._source.label))
        id_ = None if self._source.id_column is None else _id(_text(_taken(x, self._source.id_column)))
        return wire.Event({name: _feature(name, value) for name, value in x.items() if value is not None}, label, id_)

    # -- libsvm

    def _libsvm_event(self, line: bytes) -> wire.Event:
        label, *features = line.decode().split()
        x: dict[str, float | bool | str] = {}
        for feature in features:
            index, _, value = feature.partition(":")
            x[index] = _number_or_text(value)
            if not index.isdecimal() or isinstance(x[index], str):
                raise _Wrong(f"{feature!r} is not index:value")
        return wire.Event(x, self._label(label))


def _number_or_text(cell: str) -> float | str:
    """The finite number that a cell reads as, else its text. `1_000` is text: only Python reads a number there."""
    try:
        value = float(cell)
    except ValueError:
        return cell
    return value if math.isfinite(value) and "_" not in cell else cell


def _text(value: object) -> str:
    """A JSON value as text: true, 17, France; nothing for null."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _key(value: object) -> float | str:
    """What two equal labels have in common: "+1", "1.0" and 1 are equal, and so are "True" and true."""
    found = _number_or_text(_text(value).strip())
    return found.lower() if isinstance(found, str) else found


def _id(text: str) -> str:
    if not text:
        raise _Wrong("it has no id")
    return text


def _taken(x: dict[str, Any], key: str) -> Any:
    try:
        return x.pop(key)
    except KeyError:
        raise _Wrong(f"it has no {key!r}") from None


def _feature(name: str, value: object) -> float | bool | str:
    if not isinstance(value, float | int | str):
        raise _Wrong(f"{name}: must be a number, a string, true, false or null")
    return value


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
