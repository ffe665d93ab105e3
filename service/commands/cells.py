"""What one cell of a table says: a number, a text, or nothing.

A cell is a number if it reads as one, has no leading zero, and no more than 15 digits before the point: `01234` is a
zip, and `1234567890123456` a card, of which a 64-bit float would not keep every digit. So `7e5c2ff4` is a text, and so
is `1989e165`, as no value may be beyond 1e100. `true` and `false` are 1 and 0, as they are in JSON.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from service.commands.terminal import WrongRow

SPACES = " \u00a0\u2007\u202f\u3000"
"""What may stand around a cell and means nothing: spaces, also those at which a line does not break."""
MISSING = frozenset(("", "na", "n/a", "nan", "null", "?", "\\n"))
"""In any case; the last is how databases write it."""
TRUTHS = {"true": 1.0, "false": 0.0}
LARGEST = 1e100

_MANTISSA = r"[+-]?+(?:(?:0|[1-9][0-9]{0,14}+)(?:\.[0-9]*+)?+|\.[0-9]++)"
_PLAIN = rf"{_MANTISSA}(?:[eE](?:-[0-9]{{3}}|[+-]?+[0-9]{{1,2}}+))?+"
is_plain = re.compile(_PLAIN).fullmatch
"""Matches a number. One beyond 1e100 may still be among them: the service says so, and names the feature."""
_is_number = re.compile(rf"{_MANTISSA}(?:[eE][+-]?[0-9]++)?+").fullmatch
"""Matches any number, however small or large."""
_are_plain = re.compile(f"(?:{_PLAIN} )*+").fullmatch
"""The same for several, with a space after each."""
_CODE = re.compile(r"[+-]?0[0-9].*|[+-]?[0-9]{16,}(\..*)?|[0-9]+[eE][+-]?[0-9]+")
UNKNOWN = "leave the cell empty where the number is not known"
_MONEY = r"(?:[$\u00a2-\u00a5\u0e3f\u20a0-\u20cf]|R\$|kr|USD|EUR|GBP|CHF|JPY|CNY|INR|AUD|CAD|SEK|NOK|DKK|PLN|BRL)"
_NEARLY = {
    re.compile(r"[+-]?inf(inity)?", re.IGNORECASE): "a number is finite here: leave the cell empty",
    re.compile(r"[+-]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]*)?"): "write 1234, without a comma",
    re.compile(r"[+-]?[0-9]+,[0-9]*"): "write 12.5, with a point; in a file without other commas `tr , .` does",
    re.compile(r"[+-]?[0-9]{1,3}(\.[0-9]{3})+,[0-9]*"): "write 1234.5, with a point, and without other marks",
    re.compile(r"[+-]?[0-9.,]+ *%"): "write 12, without a sign for percent",
    re.compile(rf"[+-]?{_MONEY} *[+-]?[0-9][0-9.,]*|[+-]?[0-9][0-9.,]* *{_MONEY}"): "write 5, without a sign for money",
    re.compile(rf"\({_MONEY}? *[0-9][0-9.,]*\)"): "write -5, without brackets",
    re.compile(r"[\u2012-\u2015\u2212\ufe63\uff0d] *[0-9][0-9.,]*"): "write -5, with the minus of a keyboard",
    re.compile(r"[+-]?[0-9]{1,3}([ '\u00a0\u2019\u202f][0-9]{3})+([.,][0-9]*)?"): "write 1234, without spaces",
    re.compile(
        r"<?(none|na|nat|nil|null|undefined|unknown|missing)>?|\(null\)|n\.a\.?|#(n/a|null!|num!|value!|ref!|name\?|div/0!)"
        r"|[-\u2012-\u2015]+|\.+",
        re.IGNORECASE,
    ): UNKNOWN,
}
"""What programs and people write where a number stands, or where they know none, and what to write for it."""


def is_missing(cell: str) -> bool:
    """Whether a cell says nothing."""
    return cell.strip().lower() in MISSING


def to_number(text: str) -> float | None:
    """The number that a cell without spaces around it says, None where it says none.

    >>> [to_number(text) for text in ("-2.5e3", "TRUE", "0.50", "01234", "1e101", "1_000")]
    [-2500.0, 1.0, 0.5, None, None, None]
    """
    if _is_number(text):
        value = float(text)
        return value if abs(value) <= LARGEST else None
    return TRUTHS.get(text.lower())


def is_code(text: str) -> bool:
    """Whether a cell that is no number is made of digits all the same, as zips, cards and hexadecimal ids are."""
    return _CODE.fullmatch(text) is not None


def what_to_write(text: str) -> str | None:
    """What to do about a cell that is nearly a number, such as `inf`, `1,234` and `12%`, or says that none is
    known, such as `None` and `#N/A`; None for any other."""
    return next((advice for pattern, advice in _NEARLY.items() if pattern.fullmatch(text)), None)


def read_numbers(cells: Sequence[str]) -> list[float] | None:
    """The numbers that all cells say; None where one of them may say none. Half the time of one after the other."""
    if _are_plain(" ".join((*cells, ""))):
        try:
            return [*map(float, cells)]
        except ValueError:  # a space stood within a cell
            return None
    return None


def read_number(cell: str) -> float | None:
    """The number that a cell of a column of numbers says, None where it is missing. WrongRow for any other."""
    if is_plain(cell):
        return float(cell)
    if cell.lower() in MISSING:
        return None
    value = to_number(cell.strip())
    if value is None and not is_missing(cell):
        raise WrongRow(f"{cell!r} is no number")
    return value


def read_text(cell: str) -> str | None:
    """The text that a cell says, None where it is missing."""
    return None if cell.lower() in MISSING else cell
