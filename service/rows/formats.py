"""Detects a file's compression, format (CSV, TSV, NDJSON, libsvm) and delimiter.

Its first bytes and first two lines decide, and the ending of its name, without `.gz`.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import re
import select
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from service.rows.records import DELIMITERS, Dialect
from service.rows.wrong import WrongRow

FORMATS = ("csv", "tsv", "ndjson", "libsvm")
_ENDINGS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".libsvm": "libsvm",
    ".svm": "libsvm",
}
_GZIP = b"\x1f\x8b"
_OTHERS = {
    b"PK\x03\x04": "is a zip file or a spreadsheet; unpack it, or save the sheet as CSV",
    b"PAR1": "is Parquet; write it as CSV or NDJSON, or send its columns as Arrow",
    b"ARROW1": "is an Arrow file; write it as CSV or NDJSON, or send its columns to /learn as an Arrow stream",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; `zstd -dc FILE | logstep replay -` reads it",
    b"\xfd7zXZ": "is compressed with xz; `xz -dc FILE | logstep replay -` reads it",
    b"BZh": "is compressed with bzip2; `bzip2 -dc FILE | logstep replay -` reads it",
    b"\xff\xfe": "is text in UTF-16; `iconv -f UTF-16 -t UTF-8 OLD > NEW` converts it",
    b"\xfe\xff": "is text in UTF-16; `iconv -f UTF-16 -t UTF-8 OLD > NEW` converts it",
}
_CONTROLS = re.compile(rb"[\x01-\x08\x0e-\x1a\x1c-\x1f]")
"""No text has these, in whatever encoding."""
_NEEDED = max(map(len, _OTHERS))
LONGEST_LINE = 64 * 2**20
"""Bytes. With a longer line the file is something else."""


class Input:
    """The decompressed lines of a file. Raises WrongRow for a file that cannot be read."""

    def __init__(self, file: IO[bytes]) -> None:
        head = file.read(_NEEDED)
        for magic, reason in _OTHERS.items():
            if head.startswith(magic):
                raise WrongRow(reason)
        self._joined = _Joined(head, file)
        self._whole = io.BufferedReader(self._joined)
        self._lines: IO[bytes] = self._whole
        self._descriptor: int | None = None
        self._came = 0
        if head.startswith(_GZIP):
            self._lines = gzip.GzipFile(fileobj=self._whole)  # type: ignore[assignment]  # the same
            return
        with contextlib.suppress(OSError):  # not every stream has a descriptor
            self._descriptor = file.fileno()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        line = self._lines.readline(LONGEST_LINE)
        if not line:
            raise StopIteration
        if len(line) == LONGEST_LINE:
            raise WrongRow(f"has a line of more than {LONGEST_LINE >> 20} MiB")
        self._came += len(line)
        return line

    def pauses(self) -> bool:
        """Whether the next line has not come yet. False for compressed input."""
        if self._descriptor is None:
            return False
        if self._joined.given > self._came and b"\n" in self._whole.peek():  # peek is safe: the buffer has bytes
            return False
        return not select.select([self._descriptor], [], [], 0)[0]


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

    >>> by_name("DAY.CSV.GZ"), by_name("adult.data")
    ('csv', None)
    """
    name = file.lower()
    return _ENDINGS.get(Path(name.removesuffix(".gz")).suffix)


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
        raise WrongRow("is one JSON array; `jq -c '.[]' OLD > NEW` writes one object per line")
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
