"""Reads one cell of a table: a number, a text, or missing.

A cell is a number if it reads as one, has no leading zero, at most 15 digits before the point, and is at most 1e100.
So `01234` (a zip), `1234567890123456` (a card, whose digits a 64-bit float would not keep), `7e5c2ff4` and `1989e165`
are texts. `true` and `false` are 1 and 0, as in JSON.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from service.rows.wrong import WrongRow

SPACES = " \u00a0\u2007\u202f\u3000"
"""Ignored around a cell: spaces, non-breaking ones included."""
MISSING = frozenset(("", "na", "n/a", "nan", "null", "?", "\\n"))
"""Case does not matter. Databases write the last one."""
TRUTHS = {"true": 1.0, "false": 0.0}
LARGEST = 1e100

_MANTISSA = r"[+-]?+(?:(?:0|[1-9][0-9]{0,14}+)(?:\.[0-9]*+)?+|\.[0-9]++)"
_PLAIN = rf"{_MANTISSA}(?:[eE](?:-[0-9]{{3}}|[+-]?+[0-9]{{1,2}}+))?+"
is_plain = re.compile(_PLAIN).fullmatch
"""Matches a number, even beyond 1e100: the service refuses that and names the feature."""
_is_number = re.compile(rf"{_MANTISSA}(?:[eE][+-]?[0-9]++)?+").fullmatch
"""Matches a number of any size."""
_are_plain = re.compile(f"(?:{_PLAIN} )*+").fullmatch
"""Matches several numbers, each followed by a space."""
_CODE = re.compile(r"[+-]?0[0-9].*|[+-]?[0-9]{16,}(\..*)?|[0-9]+[eE][+-]?[0-9]+")
UNKNOWN = "leave the cell empty if the number is unknown"
_MONEY = r"(?:[$\u00a2-\u00a5\u0e3f\u20a0-\u20cf]|R\$|kr|USD|EUR|GBP|CHF|JPY|CNY|INR|AUD|CAD|SEK|NOK|DKK|PLN|BRL)"
_NEARLY = {
    re.compile(r"[+-]?inf(inity)?", re.IGNORECASE): "numbers must be finite: leave the cell empty",
    re.compile(r"[+-]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]*)?"): "write 1234, without a comma",
    re.compile(r"[+-]?[0-9]+,[0-9]*"): "write 12.5, with a point (`tr , .` does so in a file without other commas)",
    re.compile(r"[+-]?[0-9]{1,3}(\.[0-9]{3})+,[0-9]*"): "write 1234.5, with a point and no other marks",
    re.compile(r"[+-]?[0-9.,]+ *%"): "write 12, without a percent sign",
    re.compile(rf"[+-]?{_MONEY} *[+-]?[0-9][0-9.,]*|[+-]?[0-9][0-9.,]* *{_MONEY}"): "write 5, without a currency sign",
    re.compile(rf"\({_MONEY}? *[0-9][0-9.,]*\)"): "write -5, without brackets",
    re.compile(r"[\u2012-\u2015\u2212\ufe63\uff0d] *[0-9][0-9.,]*"): "write -5, with the minus sign of the keyboard",
    re.compile(r"[+-]?[0-9]{1,3}([ '\u00a0\u2019\u202f][0-9]{3})+([.,][0-9]*)?"): "write 1234, without spaces",
    re.compile(
        r"<?(none|na|nat|nil|null|undefined|unknown|missing)>?|\(null\)|n\.a\.?|#(n/a|null!|num!|value!|ref!|name\?|div/0!)"
        r"|[-\u2012-\u2015]+|\.+",
        re.IGNORECASE,
    ): UNKNOWN,
}
"""How programs and people write numbers and unknown numbers, and what to write instead."""


def is_missing(cell: str) -> bool:
    """Whether a cell is missing."""
    return cell.strip().lower() in MISSING


def to_number(text: str) -> float | None:
    """The number in a cell (without surrounding spaces); None if it is not one.

    >>> [to_number(text) for text in ("-2.5e3", "TRUE", "0.50", "01234", "1e101", "1_000")]
    [-2500.0, 1.0, 0.5, None, None, None]
    """
    if _is_number(text):
        value = float(text)
        return value if abs(value) <= LARGEST else None
    return TRUTHS.get(text.lower())


def is_code(text: str) -> bool:
    """Whether a cell that is not a number looks like a code: a zip, a card, a hexadecimal id."""
    return _CODE.fullmatch(text) is not None


def what_to_write(text: str) -> str | None:
    """Advice for a cell that is nearly a number (`inf`, `1,234`, `12%`) or means an unknown one (`None`, `#N/A`); None
    for any other."""
    return next((advice for pattern, advice in _NEARLY.items() if pattern.fullmatch(text)), None)


def read_numbers(cells: Sequence[str]) -> list[float] | None:
    """The numbers in all cells; None if one may not be a number. Takes half the time of reading cell by cell."""
    if _are_plain(" ".join((*cells, ""))):
        try:
            return [*map(float, cells)]
        except ValueError:  # a cell contains a space
            return None
    return None


def read_number(cell: str) -> float | None:
    """The number in a cell of a number column; None if missing. Raises WrongRow otherwise."""
    if is_plain(cell):
        return float(cell)
    if cell.lower() in MISSING:
        return None
    value = to_number(cell.strip())
    if value is None and not is_missing(cell):
        raise WrongRow(f"{cell!r} is not a number")
    return value


def read_text(cell: str) -> str | None:
    """The text in a cell; None if missing."""
    return None if cell.lower() in MISSING else cell
