"""Pairs: two indicators of one event are an input of value 1, so that what matters only together is learned, too.

Of an event's indicators the TOP of the largest |e| are paired, once among those of text and buckets, and once among
those of text and distances. A pair's hash is its place, and a place gets a row of the group's table when it is first
needed. When there are more rows than a quarter of the places, the places double: place i and place i + size then name
the same row, and the second of them that comes takes a copy of it. So a pair keeps its weight when the table grows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from core.auto.evidence import AGGREGATES, Found, mixed_bits
from core.auto.learners import Indices
from core.compiled import part_of_kernels
from core.logistic import Floats, Ints
from core.rules import Table

TOP = 12
PLACES = 2**14
"""Places at first."""
FIRST_PAIR = 1 + AGGREGATES
"""The first row of a pair, after the bias and the aggregates of text and buckets."""
MOST = TOP * (TOP - 1)
"""Most pairs of an event."""
SLOTS = 512
NO_ROW = 1 << 40
"""More than any row."""


class Pairs(NamedTuple):
    """Where the rows of pairs are."""

    rows: Ints
    """(places,): the number of the pair's row; -1 without one. Its length is a power of two."""
    owners: Ints
    """(rows,): the place that has had the row to itself since the places last doubled; -1 if none has."""
    statistics: Table
    """(AGGREGATES, STATISTICS): of the aggregates."""


class Chosen(NamedTuple):
    """Working space: the pairs of an event."""

    top: Indices
    """(TOP,): places in `Found`."""
    size: Floats
    """(TOP,): |e|."""
    slots: Indices
    """(SLOTS,): a hash table of rows, or NO_ROW + place; -1 where free."""
    places: Indices
    """(MOST,)."""
    left: Indices
    """(MOST,): the first indicator of each pair, as its place in `Found`."""
    right: Indices
    """(MOST,): the second."""


@part_of_kernels
def _choose(values: int, distances: int, part: int, found: Found, chosen: Chosen) -> int:
    """`top` <- the TOP indicators of the largest |e|, ties in the event's order; if there are no more than TOP, all in
    that order. Returns how many. Part 0: of text and buckets; part 1: of text and distances."""
    half, n, top, size = len(found.ids) // 2, 0, chosen.top, chosen.size
    many = values + part * distances
    for i in range(many):
        at = i if i < values else half + i - values
        if found.ids[at] < 0 or (part == 1 and i < values and not found.kinds[at] & 1):
            continue
        e, k = abs(found.e[at]), min(n, TOP - 1)
        if n == TOP and e <= size[k]:
            continue
        while many > TOP and k > 0 and size[k - 1] < e:
            size[k], top[k] = size[k - 1], top[k - 1]
            k -= 1
        size[k], top[k] = e, at
        n = min(n + 1, TOP)
    return n


@part_of_kernels
def pair_up(
    values: int, distances: int, free: int, kept: Pairs, found: Found, chosen: Chosen, rows: Indices, x: Floats
) -> int:
    """Choose the pairs of an event; `rows` and `x` <- their rows of the group's table, and 1. Returns their number.

    Of pairs with the same row, or the same place without one, only the first counts. A pair without a row has -1, and
    is left out if no row is `free` for it.
    """
    pairs, slots, mask = 0, chosen.slots, np.uint64(len(kept.rows) - 1)
    for i in range(SLOTS):
        slots[i] = -1
    for part in range(2 if distances > 0 else 1):
        n = _choose(values, distances, part, found, chosen)
        for i in range(n):
            for j in range(i + 1, n):
                if part == 1 and chosen.top[i] < values and chosen.top[j] < values:
                    continue  # both are text, so part 0 has the pair
                one, other = found.ids[chosen.top[i]], found.ids[chosen.top[j]]
                h = np.uint64(min(one, other)) * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(part)
                h ^= np.uint64(max(one, other)) * np.uint64(0xC2B2AE3D27D4EB4F)
                place = np.int64(mixed_bits(h) & mask)
                row = kept.rows[place]
                key = row if row >= 0 else NO_ROW + place
                at = key & (SLOTS - 1)
                while slots[at] >= 0 and slots[at] != key:
                    at = (at + 1) & (SLOTS - 1)
                if slots[at] == key:
                    continue
                slots[at] = key
                if row < 0:
                    if free <= 0:
                        continue
                    free -= 1
                chosen.places[pairs], chosen.left[pairs], chosen.right[pairs] = place, chosen.top[i], chosen.top[j]
                rows[pairs], x[pairs] = FIRST_PAIR + row if row >= 0 else -1, 1.0
                pairs += 1
    return pairs


@part_of_kernels
def give_rows(rows: Indices, places: Indices, used: int, free: int, kept: Pairs) -> int:
    """Give each of an event's pairs a row of its own, as long as rows are `free`: `rows` <- where the step will write
    what it has read. Returns how many are used then.

    Pairs without a row come first. One that cannot have its own goes on with the row that it shares.
    """
    for i in range(len(places)):
        if rows[i] < 0:
            rows[i] = FIRST_PAIR + used
            kept.rows[places[i]], kept.owners[used] = used, places[i]
            used, free = used + 1, free - 1
    for i in range(len(places)):
        row = rows[i] - FIRST_PAIR
        if kept.owners[row] < 0:
            kept.owners[row] = places[i]
        elif kept.owners[row] != places[i] and free > 0:
            rows[i] = FIRST_PAIR + used
            kept.rows[places[i]], kept.owners[used] = used, places[i]
            used, free = used + 1, free - 1
    return used


@part_of_kernels
def is_short(used: int, limit: int, rows: Ints, owners: Ints) -> bool:
    """Whether the rows may not suffice for an event, or the places are to double."""
    return used + MOST > len(owners) or (used > len(rows) // 4 and 2 * len(rows) <= limit)
