"""Splits lines of CSV, TSV and similar files into cells, without guessing.

Python's `csv` silently reads a stray quote as the beginning of a cell that swallows rows. Here quotes must enclose a
whole cell; any other quote is an error with its line. Most lines have no quote and are simply split.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from service.rows.cells import SPACES
from service.rows.wrong import WrongRow

LONGEST_CELL = 100
"""Most lines of one quoted cell."""
DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
_HOW_TO_QUOTE = 'Quotes must enclose a whole cell, and a quote inside is written twice: "5"" pipe"'
_CARRIAGE_RETURN = "it has a carriage return in the middle; only a quoted cell may have one"
_OR_NOT = "--no-quoted reads quotes as ordinary characters"


class Dialect(NamedTuple):
    """How cells are separated. delimiter: a character, or None for runs of white space. quoted: whether quotes may
    enclose a cell; else they are ordinary characters."""

    delimiter: str | None
    quoted: bool

    @property
    def words(self) -> str:
        """For people: "a semicolon between cells"."""
        if self.delimiter is None:
            return "white space between cells"
        return f"a {DELIMITERS.get(self.delimiter, repr(self.delimiter))} between cells"


class Records:
    """The rows of a table: cells as text, without surrounding spaces. Skips blank lines.

    skip: lines to skip at the start. `notice` gets one warning: of a cell that looks quoted although quotes mean
    nothing, or of a quoted cell over several lines. Raises WrongRow with the line for anything that is not a row.
    """

    def __init__(self, dialect: Dialect, skip: int, notice: Callable[[int, str], None]) -> None:
        self.line = 0
        """Where the last row began."""
        self._lines: Iterator[bytes] = iter(())
        self.read = 0
        """How many lines have been read. Who reads lines in between counts them here."""
        self._skip = skip
        self._dialect = dialect
        self._notice: Callable[[int, str], None] | None = notice
        delimiter = re.escape(dialect.delimiter or " ")
        self._bare = re.compile(rf'[^"\r\n{delimiter}]*')

    def of(self, lines: Iterator[bytes]) -> Iterator[tuple[int, list[str]]]:
        """Each row in the next lines, and the line where it begins. A row must not go on in later ones."""
        delimiter, quoted = self._dialect
        self._lines = lines
        while self.read < self._skip and self._next_line() is not None:
            pass
        while (text := self._next_line()) is not None:
            self.line = self.read
            if quoted and '"' in text:
                yield self.line, self._with_quotes(text)
                continue
            text = text.rstrip("\r\n")
            if "\r" in text:
                raise WrongRow(_CARRIAGE_RETURN, self.line)
            if not text or (text.isspace() and (delimiter is None or delimiter not in text)):
                continue
            if delimiter is None:
                yield self.line, text.split()
                continue
            cells = text.split(delimiter)
            if " " in text or not text.isascii():
                cells = [cell.strip(SPACES) for cell in cells]
            if not quoted and '"' in text:
                self._tell_of_quotes(cells)
            yield self.line, cells

    def _next_line(self) -> str | None:
        data = next(self._lines, None)
        if data is None:
            return None
        self.read += 1
        try:
            return data.decode("utf-8-sig" if self.read == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise WrongRow(
                f"it is not UTF-8 text (byte {error.start + 1} of the line is {data[error.start]:#x}). "
                "If it is Latin-1, `iconv -f LATIN1 -t UTF-8 OLD > NEW` converts it",
                self.read,
            ) from None

    # -- quotes

    def _with_quotes(self, text: str) -> list[str]:
        """The cells of a row with quotes. A quoted cell may span lines."""
        cells: list[str] = []
        at = 0
        while True:
            start = _OPENING.match(text, at)
            if start:
                text, end = self._closed(text, start.end())
                cells.append(text[start.end() : end].replace('""', '"').strip(SPACES))
                at = _SPACES.match(text, end + 1).end()  # type: ignore[union-attr]  # it also matches ""
            else:
                found = self._bare.match(text, at)
                cells.append(found.group().strip(SPACES))  # type: ignore[union-attr]  # the same
                at = found.end()  # type: ignore[union-attr]  # the same
            rest = text[at : at + 2]
            if rest[:1] in ("", "\n") or rest == "\r\n":
                return cells
            if rest[:1] != self._dialect.delimiter:
                raise WrongRow(self._misplaced(rest[0], cells[-1], bool(start)), self.line + text.count("\n", 0, at))
            at += 1

    def _misplaced(self, found: str, cell: str, quoted: bool) -> str:
        """The message for a cell that ends without a delimiter."""
        if found == "\r":
            return _CARRIAGE_RETURN
        place = f"after the quoted cell {_cut(cell)!r}" if quoted else f"in the middle of a cell, after {_cut(cell)!r}"
        what = "a quote" if found == '"' else "text"
        return f"{what} comes {place}. {_HOW_TO_QUOTE}; {_OR_NOT}"

    def _closed(self, text: str, start: int) -> tuple[str, int]:
        """The text, extended by lines as needed, and the end of the quoted cell that began before `start`."""
        opened = self.read
        end = start
        while (end := _INNER.match(text, end).end()) == len(text):  # type: ignore[union-attr]  # it also matches ""
            if self.read - opened + 1 == LONGEST_CELL:
                raise WrongRow(self._swallows(f"not closed within {LONGEST_CELL} lines"), opened)
            more = self._next_line()
            if more is None:
                raise WrongRow(self._swallows("never closed"), opened)
            text += more
        if self.read > opened and self._notice is not None:
            self._notice(opened, f"a quoted cell begins here and ends on line {self.read}")
            self._notice = None
        return text, end

    def _swallows(self, how: str) -> str:
        return f"a quoted cell begins here but is {how}. {_HOW_TO_QUOTE}; {_OR_NOT}"

    def _tell_of_quotes(self, cells: list[str]) -> None:
        cell = next((cell for cell in cells if len(cell) > 1 and cell[0] == cell[-1] == '"'), None)
        if cell is not None and self._notice is not None:
            self._notice(
                self.line,
                f"the cell {_cut(cell)} begins and ends with a quote, and both are read as part of it; "
                "with --quoted they enclose the cell",
            )
            self._notice = None


_OPENING = re.compile(r' *"')
_SPACES = re.compile(r" *")
_INNER = re.compile(r'(?:[^"]+|"")*+')


def _cut(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
