"""What tells one file from another: its name, and how it begins.

Both are in the ids of the events that are read from it. So a file that grows, moves, or is compressed has the ids that
it had, and another day's file of the same name has others.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator

from service.decode.wire import MAX_ID

LONGEST_NAME = 200
"""Characters of a file's name in an id. A longer one is cut, and ends with its hash."""
LONGEST_PREFIX = MAX_ID - 20
"""Characters before the row: the row is a number of up to 19 digits, after a colon."""
_SEPARATOR_LINE = re.compile(rb'"?sep=.')
"""What some spreadsheets write before the header."""
_BOM = b"\xef\xbb\xbf"


class Lines:
    """The lines of a file, decompressed, of which the first are remembered.

    header: whether the first line is a header, so that the first two tell this file from another. Blank lines do not
    count, and neither do line ends and a byte order mark.
    """

    def __init__(self, lines: Iterable[bytes], header: bool) -> None:
        self._lines = iter(lines)
        self._wanted = 2 if header else 1
        self._first: list[bytes] = []

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        line = next(self._lines)
        if len(self._first) < self._wanted:
            content = line.removeprefix(_BOM).rstrip(b"\r\n")
            if content.strip() and not _SEPARATOR_LINE.match(content):
                self._first.append(content)
        return line

    def id_prefix(self, name: str) -> str:
        """What stands before the row in an event's id, once the first event was read: "elec.csv:9c56cc51b374c3ba".

        name: the file's, without its folder. That it is compressed does not count.
        """
        return _short(name) + ":" + _hash(b"\n".join(self._first))


def _short(name: str) -> str:
    if name.lower().endswith(".gz"):
        name = name[:-3]
    name = name.encode(errors="replace").decode()  # a name may have bytes that are no text
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 17]}-{_hash(name.encode())}"


def _hash(data: bytes) -> str:
    """64 bits, in hexadecimal digits."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()
