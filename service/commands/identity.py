"""Identifies a file by its name and its first lines.

Both are in the ids of its events. So a file that grows, moves or is compressed keeps its ids, and another day's file of
the same name gets other ids.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator

from service.events import MAX_ID

LONGEST_NAME = 200
"""Characters of a file's name in an id. A longer name is cut and ends with its hash."""
LONGEST_PREFIX = MAX_ID - 20
"""Characters before the row, which takes a colon and up to 19 digits."""
_SEPARATOR_LINE = re.compile(rb'"?sep=.')
"""Some spreadsheets write this line before the header."""
_BOM = b"\xef\xbb\xbf"


class Lines:
    """The decompressed lines of a file; remembers the first.

    header: whether the first line is a header; then the first two lines identify the file. Blank lines, line ends and a
    byte order mark do not count.
    """

    def __init__(self, lines: Iterable[bytes], header: bool) -> None:
        self._lines = iter(lines)
        self._wanted = 2 if header else 1
        self._first: list[bytes] = []

    def __iter__(self) -> Iterator[bytes]:
        for line in self._lines:
            content = line.removeprefix(_BOM).rstrip(b"\r\n")
            if content.strip() and not _SEPARATOR_LINE.match(content):
                self._first.append(content)
            yield line
            if len(self._first) == self._wanted:
                break
        yield from self._lines

    def id_prefix(self, name: str) -> str:
        """The part of an event's id before the row: "elec.csv:9c56cc51b374c3ba". Known once the first event was read.

        name: the file's name without its folder. The ending .gz does not count.
        """
        return _short(name) + ":" + _hash(b"\n".join(self._first))


def _short(name: str) -> str:
    if name.lower().endswith(".gz"):
        name = name[:-3]
    name = name.encode(errors="replace").decode()  # a name may have bytes that are not text
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 17]}-{_hash(name.encode())}"


def _hash(data: bytes) -> str:
    """64 bits, in hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()
