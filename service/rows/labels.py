"""Reads a file's labels as 0 and 1, and checks that they make sense.

The worst mistake is a typo that makes every label 0, since everything seems to work. So the labels that --positive and
--negative name must occur in the first rows, before anything is learned. They are checked again at the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from core.builder import Words
from core.logistic import Labels as LabelArray
from service.rows.cells import is_missing, to_number
from service.rows.wrong import WrongOption, WrongRow

Key = float | str
_KNOWN: dict[Key, int] = {1.0: 1, 0.0: 0, -1.0: 0}
MOST_VALUES = 1_000
"""Different labels that are told apart."""
SHOWN = 5
FEWEST = 100
"""With fewer labels it is no surprise that all are the same."""


class Labels:
    """Decides which label is 1.

    positive: labels that are 1; all others are 0. negative: labels that are 0; all others are 1. With both, other
    labels are errors. With neither, labels are 0, 1, -1, +1, true or false, but not both -1 and 0. look: rows after
    which the labels are checked. notice: gets warnings about labels that may be intended.

    `missing`: rows without a label so far; they are not events.
    """

    def __init__(
        self, name: str, positive: Sequence[str], negative: Sequence[str], look: int, notice: Callable[[str], None]
    ) -> None:
        self.name = name
        self._sides = {"--positive": (positive, 1), "--negative": (negative, 0)}
        self.named = {key_of(text): y for texts, y in self._sides.values() for text in texts}
        self._others = int(not positive)
        if both := {key_of(text) for text in positive} & {key_of(text) for text in negative}:
            raise WrongOption(f"the label {both.pop()!r} cannot be both --positive and --negative")
        if missing := [text for text in (*positive, *negative) if is_missing(text)]:
            raise WrongOption(
                f"{missing[0]!r} is not a label: it means that a row has no label, and such rows are left out"
            )
        self._look = look
        self._notice = notice
        self._rows = 0
        self._seen: Counter[Key] = Counter()
        self._known: dict[object, tuple[Key, int]] = {}
        self._shown: dict[Key, str] = {}
        self.missing = 0

    @property
    def words(self) -> str:
        """Which labels are 1 and 0, for people."""
        named = [f"{self._quoted(texts)} is {y}" for texts, y in self._sides.values() if texts]
        if not named:
            return "1 and true are 1; 0, -1 and false are 0"
        return ", ".join(named) + ("" if len(named) == 2 else f", all others are {self._others}")

    def read(self, value: object) -> int | None:
        """0 or 1; None if the label is missing."""
        self._rows += 1
        if self._rows > self._look > 0:
            self.looked()
        try:
            key, y = self._known[value]
        except (KeyError, TypeError):
            if value is None or (isinstance(value, str) and is_missing(value)):
                self.missing += 1
                return None
            key, y = self._new(value)
        self._seen[key] += 1
        return y

    def known(self, words: Words, header: str | None = None) -> LabelArray:
        """The first labels of a column of text, up to one that must be read alone: it is new or missing, or the name of
        the column in a `header`, or the first rows end before it. Counts none of them."""
        found = [None if word == header else self._known.get(word) for word in words.words]
        is_new = np.array([one is None for one in found], np.bool_)[words.codes]
        count = int(is_new.argmax()) if is_new.any() else len(is_new)
        if self._look:
            count = min(count, max(0, self._look - self._rows))
        return np.array([one[1] if one else 0 for one in found], np.uint8)[words.codes[:count]]

    def count(self, words: Words) -> None:
        """Count labels that are `known`, as `read` does."""
        self._rows += len(words.codes)
        for word, times in zip(words.words, np.bincount(words.codes, minlength=len(words.words)).tolist(), strict=True):
            if times:
                self._seen[self._known[word][0]] += times

    def _new(self, value: object) -> tuple[Key, int]:
        """Read a label for the first time."""
        key = key_of(value)
        if key in self.named:
            y = self.named[key]
        elif not self.named:
            y = self._plain(value, key)
        elif not self._one_sided:
            raise WrongRow(f"neither --positive nor --negative names the label {value!r}")
        else:
            y = self._others
        if len(self._known) < MOST_VALUES:
            self._known[value] = key, y
            self._shown.setdefault(key, f"{key:g}" if isinstance(key, float) else repr(value))
        elif key not in self._seen and key not in self.named:  # more are not told apart
            key = ""
        return key, y

    def _plain(self, value: object, key: Key) -> int:
        """Read a label when no flag names any."""
        if key not in _KNOWN:
            before = f"; labels before it are {self._listed(self._seen)}" if self._seen else ""
            raise WrongRow(
                f"the label {value!r} is not 0, 1, -1, +1, true or false{before}. --positive VALUE says which is 1"
            )
        if {0.0, -1.0} <= {key, *self._seen}:
            raise WrongRow(
                f"with {value!r} there are more than two labels: {self._listed(self._seen)} came before, and 0 and -1 "
                "would both be 0. --positive VALUE says which is 1; all others are 0 then"
            )
        return _KNOWN[key]

    # -- checks

    def looked(self) -> None:
        """Check the labels so far, once. Raises WrongOption if they cannot be intended."""
        if not self._look:
            return
        self._look = 0
        for flag, (texts, y) in self._sides.items():
            if not self._seen or not texts:
                continue
            unseen = [text for text in texts if key_of(text) not in self._seen]
            others = Counter({key: count for key, count in self._seen.items() if key not in self.named})
            if len(unseen) == len(texts) and len(others) > 1:
                raise WrongOption(
                    f"{self.name}: none of the first {self._total:,} labels is {self._quoted(unseen)}; they are "
                    f"{self._listed(others)}. {flag} names one of the labels, and --look N looks at more rows"
                )
            if unseen:
                self._notice(
                    f"none of the first {self._total:,} labels of {self.name} is {self._quoted(unseen)} ({flag}); "
                    f"they are {self._listed(self._seen)}"
                )
            elif len(others) > 1 and self._one_sided:
                self._notice(
                    f"of the labels of {self.name}, {self._quoted(texts)} is {y} and all others are {1 - y}: "
                    f"{self._listed(others)}; use --positive and --negative together to allow only the labels you mean"
                )

    @property
    def _one_sided(self) -> bool:
        """Whether all labels without a flag are read the same."""
        return len(set(self.named.values())) == 1

    def never_came(self) -> str:
        """The warning at the end if no label of a flag ever came; else ""."""
        for flag, (texts, y) in self._sides.items():
            if self._seen and texts and not any(key_of(text) in self._seen for text in texts):
                return (
                    f"no label of {self.name} is {self._quoted(texts)} ({flag}): they are {self._listed(self._seen)}, "
                    f"and all {self._total:,} were read as {1 - y}"
                )
        return ""

    def only_one(self) -> str:
        """The warning at the end if all labels are the same; else ""."""
        if len(self._seen) != 1 or self._total < FEWEST:
            return ""
        (key,) = self._seen
        label = self._shown.get(key, "alike")
        return f"all {self._total:,} labels of {self.name} are {label}: there is nothing to learn"

    @property
    def _total(self) -> int:
        return sum(self._seen.values())

    @staticmethod
    def _quoted(texts: Sequence[str]) -> str:
        return " or ".join(map(repr, texts))

    def _listed(self, seen: Counter[Key]) -> str:
        """The most frequent labels, with their counts."""
        most = [f"{self._shown.get(key, 'others')} ({count:,})" for key, count in seen.most_common(SHOWN)]
        return ", ".join(most) + (f" and {len(seen) - SHOWN:,} others" if len(seen) > SHOWN else "")


def key_of(value: object) -> Key:
    """The same key for equal labels: "+1", "1.0", 1 and true are equal, and so are "Up" and "up".

    >>> [key_of(label) for label in ("+1", True, " false", "Up", 3)]
    [1.0, 1.0, 0.0, 'up', 3.0]
    """
    if isinstance(value, bool | int | float):
        return float(value)
    if not isinstance(value, str):
        raise WrongRow(f"the label {value!r} is neither a number nor text")
    text = value.strip().lower()
    number = to_number(text)
    return text if number is None else number
