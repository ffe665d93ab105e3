"""Detects a file's compression, format (CSV, TSV, NDJSON, a JSON array, libsvm, Parquet, Arrow) and delimiter.

Its first bytes and first two lines decide, and the ending of its name, without that of a compression.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import itertools
import json
import lzma
import re
import select
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from service.decode import columnar
from service.decode.compression import zstd
from service.rows.records import DELIMITERS, Dialect
from service.rows.wrong import WrongRow

FORMATS = ("csv", "tsv", "ndjson", "libsvm")
_ENDINGS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".json": "ndjson",
    ".libsvm": "libsvm",
    ".svm": "libsvm",
}
_COMPRESSED: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": zstd.ZstdFile,
}
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
BROKEN = (EOFError, zlib.error, lzma.LZMAError, zstd.ZstdError, OSError)
"""What is raised where a compression is broken; an OSError then has no number."""
_COLUMNAR = (columnar.PARQUET, columnar.ARROW)
_ARRAY = re.compile(rb"(\xef\xbb\xbf)?\s*\[\s*([\[{\]]|$)")
_BETWEEN = re.compile(r"\s*([\[,]|\](?=\s*$))\s*")
"""What stands before an element of an array, or ends it."""
_CHUNK = 2**20
_OTHERS = {
    b"PK\x03\x04": "is a zip file or a spreadsheet; unpack it, or save the sheet as CSV",
    b"\xff\xfe": "is text in UTF-16; `iconv -f UTF-16 -t UTF-8 OLD > NEW` converts it",
    b"\xfe\xff": "is text in UTF-16; `iconv -f UTF-16 -t UTF-8 OLD > NEW` converts it",
}
_CONTROLS = re.compile(rb"[\x01-\x08\x0e-\x1a\x1c-\x1f]")
"""No text has these, in whatever encoding."""
_NEEDED = 6
LONGEST_LINE = 64 * 2**20
"""Bytes. With a longer line the file is something else."""
_TOO_LONG = f"has a line of more than {LONGEST_LINE >> 20} MiB"


class Input:
    """The lines of a file, decompressed; the elements of a JSON array and the rows of Parquet and Arrow as lines.

    told: the format, if it is known. `unit`: what a line is in the file. `index`: the columns that were a data frame's
    index, once a line was read. Raises WrongRow for what cannot be read.
    """

    def __init__(self, file: IO[bytes], told: str | None = None) -> None:
        head = file.read(_NEEDED)
        for magic, reason in _OTHERS.items():
            if head.startswith(magic):
                raise WrongRow(reason)
        self.unit = "line"
        self.index: list[str] = []
        self.has_columns = head.startswith(_COLUMNAR)
        self._joined = _Joined(head, file)
        self._whole = io.BufferedReader(self._joined)
        self._file: Any = self._whole
        self._descriptor: int | None = None
        self._came = 0
        self._made: Iterator[bytes] | None = None
        if self.has_columns:
            self.unit, self._made = "row", _rows(file, self.index.extend)
            return
        compressed = next((opened for magic, opened in _COMPRESSED.items() if head.startswith(magic)), None)
        if compressed is not None:
            self._file = compressed(self._whole)
        else:
            with contextlib.suppress(OSError):  # not every stream has a descriptor
                self._descriptor = file.fileno()
        if told in (None, "ndjson") and _ARRAY.match(self._file.peek(64)):
            self.unit, self._made = "element", _elements(self._file)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._made is not None:
            return next(self._made)
        line: bytes = self._file.readline(LONGEST_LINE)
        if not line:
            raise StopIteration
        if len(line) == LONGEST_LINE:
            raise WrongRow(_TOO_LONG)
        self._came += len(line)
        return line

    def take(self, count: int) -> list[bytes]:
        """The next lines, at most `count`, in a tenth of the time that they take one by one."""
        if self._made is not None:
            return [*itertools.islice(self._made, count)]
        lines = [*itertools.islice(self._file, count)]
        self._came += sum(map(len, lines))
        if max(map(len, lines), default=0) >= LONGEST_LINE:
            raise WrongRow(_TOO_LONG)
        return lines

    def pauses(self) -> bool:
        """Whether the next line has not come yet. False for compressed input and for an array."""
        if self._descriptor is None or self._made is not None:
            return False
        if self._joined.given > self._came and b"\n" in self._whole.peek():  # peek is safe: the buffer has bytes
            return False
        return not select.select([self._descriptor], [], [], 0)[0]


def _rows(file: IO[bytes], index: Callable[[list[str]], None]) -> Iterator[bytes]:
    """The rows of a Parquet or Arrow file. See `columnar.lines_of`."""
    if not file.seekable():
        raise WrongRow("is Parquet or Arrow, whose table of contents comes last: name the file, rather than a pipe")
    try:
        yield from columnar.lines_of(file, index)
    except columnar.WrongFile as wrong:
        raise WrongRow(f"is not a Parquet or Arrow file that can be read: {wrong}") from None
    except ModuleNotFoundError:
        raise WrongRow("is Parquet or Arrow, which needs pyarrow: pip install 'logstep[arrow]'") from None


def _elements(file: IO[bytes]) -> Iterator[bytes]:
    """The elements of a JSON array, while it is read."""
    text, number, decoder = "", 0, json.JSONDecoder()
    source = io.TextIOWrapper(file, "utf-8-sig")
    at = 0
    try:
        while more := source.read(max(_CHUNK, len(text) - at)):  # as much again: an element may be long
            text, at = text[at:] + more, 0
            while found := _BETWEEN.match(text, at):
                if found[1] != ("," if number else "["):
                    break
                try:
                    _, end = decoder.raw_decode(text, found.end())
                except (ValueError, RecursionError):
                    break  # it may go on in what has not been read
                if end == len(text):
                    break
                number += 1
                yield text[found.end() : end].encode()
                at = end
            if len(text) - at > LONGEST_LINE:
                raise WrongRow(f"has an element of more than {LONGEST_LINE >> 20} MiB, or is no JSON array")
    except UnicodeDecodeError as error:
        raise WrongRow(f"it is not UTF-8 text ({error.reason})", number + 1) from None
    rest = text[at:].strip().removeprefix("[" if not number else "").strip()
    if rest != "]":
        raise WrongRow(f"it is not JSON, or the array does not end: {rest[:40]!r}", number + 1)


class _Joined(io.RawIOBase):
    """Bytes that were read already, then the rest: a pipe cannot be read twice. Waits only if it has nothing."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head = head
        self._rest = rest
        self.given = 0
        """Bytes that were given."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # what RawIOBase asks for
        data, self._head = self._head[: len(buffer)], self._head[len(buffer) :]
        data = data or self._rest.read1(len(buffer))  # type: ignore[attr-defined]  # of each buffered file
        buffer[: len(data)] = data
        self.given += len(data)
        return len(data)


def first_lines(lines: Iterator[bytes]) -> tuple[list[bytes], list[bytes]]:
    """All lines up to the second that is not blank, or the first if it is JSON; and those that are not blank."""
    before: list[bytes] = []
    found: list[bytes] = []
    for line in lines:
        before.append(line)
        if line.strip():
            found.append(line)
        if len(found) == 2 or (found[:1] == [line] and line.lstrip(b" \t\xef\xbb\xbf").startswith(b"{")):
            break
    return before, found


class Format(NamedTuple):
    """How to read a file. name: one of FORMATS. dialect: for CSV and TSV. skip: lines to skip at the start."""

    name: str
    dialect: Dialect | None = None
    skip: int = 0


def by_name(file: str) -> str | None:
    """The format that a file's ending gives; None if it gives none.

    >>> by_name("DAY.CSV.GZ"), by_name("day.json.zst"), by_name("adult.data")
    ('csv', 'ndjson', None)
    """
    return _ENDINGS.get(Path(uncompressed(file.lower())).suffix)


def uncompressed(name: str) -> str:
    """A file's name without the ending of a compression.

    >>> uncompressed("day.csv.BZ2")
    'day.csv'
    """
    ending = next((ending for ending in COMPRESSIONS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def of_lines(first: Sequence[bytes], told: str | None, delimiter: str | None, quoted: bool | None) -> Format:
    """The format of a file, from the arguments and its first two lines that are not blank.

    told: one of FORMATS. delimiter: separator of cells, a space for runs of white space. quoted: whether quotes may
    enclose cells, by default unless the delimiter is a tab or white space. Raises WrongRow if the format is unclear.
    """
    if any(map(_CONTROLS.search, first)):
        raise WrongRow("is not a text file; write what is in it as CSV or NDJSON")
    if any(b"\0" in line for line in first):
        raise WrongRow("has zero bytes, so it is not UTF-8 text. `iconv -f UTF-16LE -t UTF-8 OLD > NEW` may convert it")
    lines = [line.decode("utf-8", "replace").removeprefix("\ufeff").strip("\r\n") for line in first]
    name = told or _by_content(lines)
    if name not in ("csv", "tsv"):
        return Format(name)
    skip = 0
    separator = re.fullmatch(r'"?sep=(.)"?', lines[0]) if lines else None
    if separator:
        skip, delimiter, lines = 1, delimiter or separator[1], lines[1:]
    if lines and "\r" in lines[0].rstrip("\r"):
        raise WrongRow(
            "has carriage returns as line ends, like files of old Macs; `tr '\\r' '\\n' < OLD > NEW` converts it"
        )
    if delimiter is None and name == "tsv" and told is not None:
        delimiter = "\t"
    found = None if delimiter == " " else delimiter or _delimiter(lines)
    if quoted is None:
        quoted = found is not None and found != "\t"
    return Format(name, Dialect(found, quoted), skip)


_LIBSVM = re.compile(r"[+-]?[0-9.]+(\s+[0-9]+:\S+)+\s*(#.*)?")


def _by_content(lines: Sequence[str]) -> str:
    first = lines[0].lstrip() if lines else ""
    if first.startswith("["):
        raise WrongRow("is a JSON array of what are no objects; `jq -c '.[]' OLD > NEW` may write objects line by line")
    if first.startswith("{"):
        return "ndjson"
    comment = first.startswith("#") and (lines[-1].startswith("#") or _LIBSVM.fullmatch(lines[-1].strip()))
    if _LIBSVM.fullmatch(first) or comment:
        return "libsvm"
    return "csv"


def _delimiter(lines: Sequence[str]) -> str | None:
    """The delimiter that both lines have equally often, else the first line's most frequent. None for white space."""
    bare = [re.sub(r'"[^"]*"', "", line) for line in lines]
    counts = {mark: [line.count(mark) for line in bare] for mark in DELIMITERS}
    there = {mark: found for mark, found in counts.items() if found and found[0]}
    alike = {mark: found for mark, found in there.items() if found[-1] - found[0] in (0, 1)}  # 1: R's short header
    best = alike or there
    if best:
        return max(best, key=lambda mark: best[mark][0])
    words = [len(line.split()) for line in bare]
    return None if len(words) == 2 and words[0] == words[1] > 1 else ","
