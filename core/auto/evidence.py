"""Evidence: what the labels have said of each indicator so far, as inputs for learners.

An event's indicators: a text value (`country=FR`) is one, and so is a number whose name has a `=` (`w=hello`). Any
other number has two: a bucket by its float bits, and one by its distance from the feature's mean. An indicator keeps
how often it came with each label, n1 and n0. With b, the share of label 1 so far, its evidence is

    e = ln((n1 + 2 b) / (n0 + 2 (1 - b))) - ln(b / (1 - b))

It is read before the event's label and moved after it. Decayed evidence is the same of counts that halve with every 50
of the indicator's own events. A field is what stands before the first `=` of a name.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from core.auto.learners import FLAT, Indices
from core.auto.rules import MAX_WEIGHT
from core.compiled import compiled, part_of_kernels
from core.logistic import Floats, Ints
from core.rules import Table

PRIOR = 2.0
DECAY = 0.5 ** (1 / 50)
COUNTS = 4
"""What is kept of an indicator: n1 and n0, then both decayed."""

# Rows of the group's table, after the bias: the aggregates of text and buckets, those of distances, then each field's.
AGGREGATES = 3
"""The sum of e / sqrt(L), the sum of e / L and the e of the largest magnitude, of an event's L indicators."""
FIRST_FIELD = 1 + 2 * AGGREGATES
PER_FIELD = 4
"""Evidence, decayed evidence and mean ln(1 + n) of text and buckets; evidence of distances."""

# The key of an indicator is column * CODES + code. Code 0 is the feature itself.
CODES = 512
LOW, HIGH, STEPS = -6, 24, 4
"""Buckets: the least and the largest exponent of two, and how many buckets there are between two powers of two."""
NEGATIVE = 2 + (HIGH - LOW + 1) * STEPS
DISTANCE = 2 * NEGATIVE
WIDTH, FARTHEST = 0.5, 6
"""Distances: how many standard deviations wide, and how many there are on each side of the mean."""

FIELD = 1 + 2 * 4


class Indicators(NamedTuple):
    """The indicators so far, in order of appearance, and what columns are made of."""

    keys: Indices
    """(n,)."""
    places: Ints
    """An open hash table from key to indicator, -1 where free. Its length is a power of two."""
    kinds: Ints
    """(columns,): 2 * field, plus 1 if the column itself is an indicator."""


class Found(NamedTuple):
    """Working space: the indicators of an event of n features. The first n places are for text and buckets, the last n
    for distances."""

    ids: Indices
    """The indicator; a new one has the next number, and -1 if there is no room for it."""
    keys: Indices
    kinds: Indices
    """As in `Indicators`."""
    features: Indices
    """The place of its feature in the event."""
    e: Floats
    places: Indices
    """A hash table from field to its place in `fields`, -1 where free."""
    fields: Table
    """(2 n, FIELD): of each field of the event its number, then of its indicators of both kinds how many there are and
    the sums of e, of decayed e and of ln(1 + n)."""


@part_of_kernels
def bucket(x: float) -> int:
    """The bucket of x by sign, exponent and two bits of its mantissa. All |x| < 2^-6 are one."""
    if abs(x) < 2.0**LOW:
        return 1
    mantissa, exponent = math.frexp(abs(x))
    place = 2 + (min(max(exponent, LOW), HIGH) - LOW) * STEPS + int((mantissa - 0.5) * 2 * STEPS)
    return place + NEGATIVE if x < 0.0 else place


@part_of_kernels
def distance(x: float, statistics: Floats) -> int:
    """The bucket of x by its distance from the mean; `statistics` include x. 0 if the feature has not varied."""
    if statistics[2] <= FLAT * statistics[3]:
        return 0
    z = (x - statistics[1]) / math.sqrt(statistics[2])
    return DISTANCE + FARTHEST + int(min(max(math.floor(z / WIDTH + 0.5), -FARTHEST), FARTHEST))


@part_of_kernels
def mixed_bits(bits: np.uint64) -> np.uint64:
    """A 64-bit number with its bits mixed, as in SplitMix64."""
    bits ^= bits >> np.uint64(29)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    return bits ^ (bits >> np.uint64(32))


@part_of_kernels
def place_of(key: int, keys: Indices, index: Ints) -> np.int64:
    """The place of a key in the index, or the free one where it would stand."""
    mask = len(index) - 1
    at = np.int64(mixed_bits(np.uint64(key) * np.uint64(0x9E3779B97F4A7C15))) & mask
    while index[at] >= 0 and keys[index[at]] != key:
        at = (at + 1) & mask
    return at


@compiled("void(int64, int64[::1], int32[::1])")
def rebuild(used: int, keys: Indices, index: Ints) -> None:
    """Fill the index with the first `used` keys."""
    for i in range(len(index)):
        index[i] = -1
    for i in range(used):
        index[place_of(keys[i], keys, index)] = i


@part_of_kernels
def find(
    c: Ints, x: Floats, positions: Indices, fresh: Table, used: int, free: int, kept: Indicators, found: Found
) -> tuple[int, int, int]:
    """Find an event's indicators.

    `positions`: the places in c and x of the features that count, whose statistics are in `fresh`. A column that is not
    known is -2 - its kind. `used`: how many indicators there are; `free`: how many more there may be.

    Returns how many are of text and buckets, how many are of distances, and how many are new.
    """
    values, distances, new = 0, len(found.ids) // 2, 0
    for j in range(len(positions)):
        column, value = c[positions[j]], x[positions[j]]
        kind = kept.kinds[column] if column >= 0 else -2 - column
        text = kind & 1
        if text and value == 0.0:
            continue  # the word is not there
        for part in range(1 if text else 2):
            code = 0
            if part == 1:
                code = distance(value, fresh[j])
                if code == 0:
                    continue
            elif not text:
                code = bucket(value)
            at = distances if part else values
            values, distances = values + 1 - part, distances + part
            key = column * CODES + code
            known = kept.places[place_of(key, kept.keys, kept.places)] if column >= 0 else -1
            if known < 0 and new < free:
                known = used + new
                new += 1
            found.ids[at], found.keys[at], found.kinds[at], found.features[at] = known, key, kind, positions[j]
    return values, distances - len(found.ids) // 2, new


@part_of_kernels
def share_of_ones(labels: Floats) -> float:
    """b, from how many events had label 1 and how many there were."""
    b: float = min(max((labels[0] + 0.5) / (labels[1] + 1.0), 1e-9), 1.0 - 1e-9)
    return b


@part_of_kernels
def evidence(n1: float, n0: float, b: float) -> float:
    """e = ln((n1 + 2 b) / (n0 + 2 (1 - b))) - ln(b / (1 - b))"""
    return math.log((n1 + PRIOR * b) * (1.0 - b) / ((n0 + PRIOR * (1.0 - b)) * b))


@part_of_kernels
def said(counts: Floats, b: float) -> tuple[float, float, float]:
    """What an indicator's counts say: e, decayed e, and ln(1 + n)."""
    return evidence(counts[0], counts[1], b), evidence(counts[2], counts[3], b), math.log1p(counts[0] + counts[1])


@compiled("void(int64[::1], float64[:, ::1], int64, float64, float64[:, ::1])")
def say_of(ids: Indices, counts: Table, used: int, b: float, out: Table) -> None:
    """`out` (n, 3) <- what the counts of each of n indicators say; 0 for one that is not among the first `used`."""
    for i in range(len(ids)):
        if 0 <= ids[i] < used:
            out[i, 0], out[i, 1], out[i, 2] = said(counts[ids[i]], b)
        else:
            out[i, 0] = out[i, 1] = out[i, 2] = 0.0


@part_of_kernels
def _field_of(kind: int, fields: int, mask: int, found: Found) -> int:
    """The place in `found.fields` of an indicator's field: a new one, after the first `fields`, if it has none."""
    field = kind >> 1
    place = field & mask
    while found.places[place] >= 0 and found.fields[found.places[place], 0] != field:
        place = (place + 1) & mask
    if found.places[place] < 0:
        found.places[place] = fields
        for k in range(FIELD):
            found.fields[fields, k] = 0.0
        found.fields[fields, 0] = field
    of: int = found.places[place]
    return of


@part_of_kernels
def _of_fields(fields: int, n: int, table: int, found: Found, rows: Indices, x: Floats) -> int:
    """Add the inputs of each field to the first n. Returns their number. `table`: how many rows the group's table has;
    a field that the model does not know has its rows past the end, and they are -1."""
    for i in range(fields):
        sums = found.fields[i]
        row = FIRST_FIELD + PER_FIELD * int(sums[0])
        known = row + PER_FIELD <= table
        if sums[1] > 0.0:
            root = math.sqrt(sums[1])
            x[n], x[n + 1], x[n + 2] = sums[2] / root, sums[3] / root, sums[4] / sums[1]
            for k in range(3):
                rows[n + k] = row + k if known else -1
            n += 3
        if sums[5] > 0.0:
            rows[n], x[n] = row + 3 if known else -1, sums[6] / math.sqrt(sums[5])
            n += 1
    return n


@part_of_kernels
def weigh(  # noqa: C901  # a part more would take its compile time again
    values: int, distances: int, used: int, labels: Floats, counts: Table, table: int, found: Found, rows: Indices,
    x: Floats, aggregates: Floats,
) -> int:  # fmt: skip
    """The evidence of an event's indicators: `rows` of the group's inputs, and their values x: the bias, the aggregates
    of each kind, then each field's. Returns their number.

    `labels`: how many events had label 1 so far, and how many there were. `table`: how many rows the group's table has.
    `aggregates` <- those of text and buckets.
    """
    b = share_of_ones(labels)
    half, fields, size, n = len(found.ids) // 2, 0, 2, 1
    rows[0], x[0] = 0, 1.0
    while size < 2 * (values + distances):
        size *= 2
    for i in range(size):
        found.places[i] = -1
    for part in range(2):
        total, largest = 0.0, 0.0
        many = distances if part else values
        for at in range(part * half, part * half + many):
            e, decayed, log_n = 0.0, 0.0, 0.0
            if 0 <= found.ids[at] < used:
                kept = counts[found.ids[at]]
                if part == 0:
                    e, decayed, log_n = said(kept, b)
                else:
                    e = evidence(kept[0], kept[1], b)
            found.e[at] = e
            total += e
            if abs(e) > abs(largest):
                largest = e
            place = _field_of(found.kinds[at], fields, size - 1, found)
            fields = max(fields, place + 1)
            sums = found.fields[place, 1 + 4 * part :]
            sums[0], sums[1], sums[2], sums[3] = sums[0] + 1.0, sums[1] + e, sums[2] + decayed, sums[3] + log_n
        if part == 0:
            aggregates[0], aggregates[1], aggregates[2] = 0.0, 0.0, 0.0
        if many > 0:
            row = 1 + part * AGGREGATES
            rows[n], rows[n + 1], rows[n + 2] = row, row + 1, row + 2
            x[n], x[n + 1], x[n + 2] = total / math.sqrt(many), total / many, largest
            if part == 0:
                aggregates[0], aggregates[1], aggregates[2] = x[n], x[n + 1], x[n + 2]
            n += AGGREGATES
    return _of_fields(fields, n, table, found, rows, x)


@part_of_kernels
def enter(values: int, distances: int, used: int, kept: Indicators, found: Found) -> None:
    """Enter the event's new indicators, whose numbers are those from `used` on."""
    for i in range(values + distances):
        at = i if i < values else len(found.ids) // 2 + i - values
        if found.ids[at] >= used:
            kept.keys[found.ids[at]] = found.keys[at]
            kept.places[place_of(found.keys[at], kept.keys, kept.places)] = found.ids[at]


@part_of_kernels
def count(values: int, distances: int, y: int, weight: float, labels: Floats, counts: Table, found: Found) -> None:
    """Add a label to the counts of the event's indicators."""
    weight = min(weight, MAX_WEIGHT)
    for i in range(values + distances):
        at = i if i < values else len(found.ids) // 2 + i - values
        if found.ids[at] >= 0:
            n = counts[found.ids[at]]
            n[2] *= DECAY
            n[3] *= DECAY
            n[0 if y else 1] += weight
            n[2 if y else 3] += weight
    labels[0] += weight if y else 0.0
    labels[1] += weight
