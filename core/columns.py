"""Names and their columns, as dicts that never stop the service while they grow."""

from __future__ import annotations

from collections.abc import Sequence

FIRST_NAMES = 2**18 * 2 // 3
"""Most names in a model's first dict. A dict grows when two thirds of its slots are used; with one more name it would
grow for 10 ms."""
DICTS = 64


class Columns:
    """Name -> column, like a dict. A large dict blocks the service while it grows: 27 ms with 700,000 names. So names
    after the first FIRST_NAMES, more than most models have, are spread by hash over DICTS smaller dicts."""

    __slots__ = ("_first", "_rest")

    def __init__(self) -> None:
        self._first: dict[str, int] = {}
        self._rest: list[dict[str, int]] = [{} for _ in range(DICTS)]

    def _dict_of(self, name: str) -> dict[str, int]:
        return self._first if name in self._first else self._rest[hash(name) % DICTS]

    def of(self, names: Sequence[str]) -> list[int]:
        """The columns of the names; -1 for unknown names."""
        first = self._first
        found = [first.get(name, -1) for name in names]
        if len(first) == FIRST_NAMES and -1 in found:
            rest, places = self._rest, zip(names, found, strict=True)
            return [i if i >= 0 else rest[hash(name) % DICTS].get(name, -1) for name, i in places]
        return found

    def __contains__(self, name: str) -> bool:
        return name in self._dict_of(name)

    def __setitem__(self, name: str, column: int) -> None:
        (self._first if column < FIRST_NAMES else self._rest[hash(name) % DICTS])[name] = column

    def __delitem__(self, name: str) -> None:
        del self._dict_of(name)[name]


class Buckets(Columns):
    """The same for hashed names with a field before the hash (`country=#3f`): only the hash counts."""

    __slots__ = ()

    def of(self, names: Sequence[str]) -> list[int]:
        return super().of([_bucket(name) for name in names])

    def __contains__(self, name: str) -> bool:
        return super().__contains__(_bucket(name))

    def __setitem__(self, name: str, column: int) -> None:
        super().__setitem__(_bucket(name), column)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(_bucket(name))


def _bucket(name: str) -> str:
    return name[name.rindex("#") :]
