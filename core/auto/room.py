"""What the kernels of `auto` hand each other: banks of learners, and working space for an event.

Kernels take tuples of arrays from each other at no cost. From Python each array costs 0.1 us a call, so what is small
of a bank is one array, and all working space is two, which `bank_of` and `carved` cut up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from core.auto.evidence import AGGREGATES, FIELD, FIRST_FIELD, PER_FIELD, Found
from core.auto.learners import STATISTICS, VECTORS, Group, Indices, Inputs, Layout, Table32
from core.auto.pairs import FIRST_PAIR, MOST, SLOTS, TOP, Chosen, Pairs
from core.auto.plan import Plan
from core.compiled import part_of_kernels
from core.logistic import Floats, Ints
from core.rules import Table


class Bank(NamedTuple):
    """Groups of learners with their tables, what evidence and pairs keep, and the stackers."""

    single: Group
    evidence: Group
    pairs: Group
    of_single: Table
    of_evidence: Table32
    of_pairs: Table32
    counts: Table
    labels: Floats
    """How many events had label 1, and how many there were, by weight."""
    rows: Pairs
    adagrad: Table
    stack_rates: Floats
    kalman: Table


class Side(NamedTuple):
    """What one bank makes of an event."""

    raw: Floats
    variances: Floats
    evidence: Inputs
    pairs: Inputs
    chosen: Chosen
    fresh: Table
    """Statistics of the aggregates with the event included."""


class Room(NamedTuple):
    """Working space for one event."""

    rows: Indices
    """Of single features, as is `seen`: see `learners.scores`."""
    seen: Table
    positions: Indices
    """The places in the event of the features that count."""
    fresh: Table
    """Statistics with the event included, of the features."""
    found: Found
    first: Side
    second: Side
    small: Floats
    z: Floats
    """The members' scores."""
    chances: Table
    """The members' probabilities of label 0 and of label 1."""
    g: Floats
    vectors: Table
    """(VECTORS, inputs): for a step."""


class Counted(NamedTuple):
    """How many inputs an event has of single features, and for each bank as evidence and as pairs; how many indicators
    of each kind it has, and how many are new."""

    single: int
    evidence: int
    pairs: int
    pairs_2: int
    values: int
    distances: int
    new: int


def small_of(plan: Plan, layouts: Sequence[Layout]) -> int:
    """How many numbers `bank_of` cuts out of what is small of a bank."""
    learners = sum(at.vw for at in layouts)
    stackers = 2 * len(plan.stackers) + (learners + 2) * (plan.kalman is not None)
    return sum(1 + at.vw - at.kalman for at in layouts) + 2 + AGGREGATES * STATISTICS + stackers * (learners + 1)


@part_of_kernels
def _cut(numbers: Floats, many: int) -> tuple[Floats, Floats]:
    return numbers[:many], numbers[many:]


@part_of_kernels
def _table(numbers: Floats, rows: int, columns: int) -> tuple[Table, Floats]:
    return numbers[: rows * columns].reshape((rows, columns)), numbers[rows * columns :]


@part_of_kernels
def _cut_rows(integers: Indices, many: int) -> tuple[Indices, Indices]:
    return integers[:many], integers[many:]


@part_of_kernels
def _layout(p: Indices) -> Layout:
    return Layout(p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9])


@part_of_kernels
def bank_of(
    layouts: Table, constants: Floats, single: Table, evidence: Table32, pairs: Table32, counts: Table, rows: Ints,
    owners: Ints, small: Floats,
) -> Bank:  # fmt: skip
    """A bank with these tables. `constants`: the rates of all learners, the rows of inputs that have not come, and the
    rates of the stackers that learn by AdaGrad."""
    at, at_e, at_p = _layout(layouts[0]), _layout(layouts[1]), _layout(layouts[2])
    learners = at.vw + at_e.vw + at_p.vw
    rates, constants = _cut(constants, at.vw)
    rates_e, constants = _cut(constants, at_e.vw)
    rates_p, constants = _cut(constants, at_p.vw)
    row, constants = _cut(constants, at.width)
    row_e, constants = _cut(constants, at_e.width)
    row_p, constants = _cut(constants, at_p.width)
    norms, small = _cut(small, 1 + at.vw - at.kalman)
    norms_e, small = _cut(small, 1 + at_e.vw - at_e.kalman)
    norms_p, small = _cut(small, 1 + at_p.vw - at_p.kalman)
    labels, small = _cut(small, 2)
    statistics, small = _table(small, AGGREGATES, STATISTICS)
    adagrad, small = _table(small, 2 * len(constants), learners + 1)
    kalman, small = _table(small, len(small) // (learners + 1), learners + 1)
    return Bank(
        Group(at, rates, row, norms), Group(at_e, rates_e, row_e, norms_e), Group(at_p, rates_p, row_p, norms_p),
        single, evidence, pairs, counts, labels, Pairs(rows, owners, statistics), adagrad, constants, kalman,
    )  # fmt: skip


def sizes(n: int, layouts: Sequence[Layout], members: int) -> tuple[int, int]:
    """How many numbers and integers `carved` needs for events of at most n features."""
    single, evidence, pairs = layouts
    n_e, n_p = FIRST_FIELD + PER_FIELD * n, FIRST_PAIR + MOST
    side = 2 * single.vw + n_e * (2 + evidence.width) + 2 * evidence.vw + n_p * (2 + pairs.width) + 2 * pairs.vw
    side += AGGREGATES * STATISTICS
    numbers = (n + 1) * single.vw + STATISTICS * n + 2 * n * (1 + FIELD) + TOP + 2 * side + 8 + 8 * members
    numbers += max(at.vw for at in layouts) + VECTORS * max(n + 1, n_e, n_p)
    integers = 2 * n + 1 + 8 * n + TOP + SLOTS + 2 * (n_e + n_p + 3 * MOST)
    return numbers, integers + (1 << (4 * n + 1).bit_length()) + len(Counted._fields)


@part_of_kernels
def _inputs(n: int, at: Layout, numbers: Floats, integers: Indices) -> tuple[Inputs, Floats, Indices]:
    rows, integers = _cut_rows(integers, n)
    x, numbers = _cut(numbers, n)
    copy, numbers = _table(numbers, at.width + 1, n)
    raw, numbers = _cut(numbers, at.vw)
    variances, numbers = _cut(numbers, at.vw)
    return Inputs(rows, x, copy, raw, variances), numbers, integers


@part_of_kernels
def _side(
    n: int, bank: Bank, top: Indices, size: Floats, slots: Indices, numbers: Floats, integers: Indices
) -> tuple[Side, Floats, Indices]:
    raw, numbers = _cut(numbers, bank.single.at.vw)
    variances, numbers = _cut(numbers, bank.single.at.vw)
    evidence, numbers, integers = _inputs(FIRST_FIELD + PER_FIELD * n, bank.evidence.at, numbers, integers)
    pairs, numbers, integers = _inputs(FIRST_PAIR + MOST, bank.pairs.at, numbers, integers)
    fresh, numbers = _table(numbers, AGGREGATES, STATISTICS)
    places, integers = _cut_rows(integers, MOST)
    left, integers = _cut_rows(integers, MOST)
    right, integers = _cut_rows(integers, MOST)
    return (
        Side(raw, variances, evidence, pairs, Chosen(top, size, slots, places, left, right), fresh), numbers, integers
    )  # fmt: skip


@part_of_kernels
def carved(n: int, bank: Bank, members: int, numbers: Floats, integers: Indices) -> Room:
    """Working space for events of at most n features."""
    k = bank.single.at.vw
    top, integers = _cut_rows(integers, TOP)
    size, numbers = _cut(numbers, TOP)
    slots, integers = _cut_rows(integers, SLOTS)
    first, numbers, integers = _side(n, bank, top, size, slots, numbers, integers)
    second, numbers, integers = _side(n, bank, top, size, slots, numbers, integers)
    rows, integers = _cut_rows(integers, n + 1)
    positions, integers = _cut_rows(integers, n)
    seen, numbers = _table(numbers, n + 1, k)
    fresh, numbers = _table(numbers, n, STATISTICS)
    fields, numbers = _table(numbers, 2 * n, FIELD)
    e, numbers = _cut(numbers, 2 * n)
    ids, integers = _cut_rows(integers, 2 * n)
    keys, integers = _cut_rows(integers, 2 * n)
    kinds, integers = _cut_rows(integers, 2 * n)
    features, integers = _cut_rows(integers, 2 * n)
    small, numbers = _cut(numbers, 8 + 2 * members)
    z, numbers = _cut(numbers, 2 * members)
    chances, numbers = _table(numbers, 2, 2 * members)
    g, numbers = _cut(numbers, max(k, bank.evidence.at.vw, bank.pairs.at.vw))
    vectors, numbers = _table(numbers, VECTORS, max(n + 1, FIRST_FIELD + PER_FIELD * n, FIRST_PAIR + MOST))
    found = Found(ids, keys, kinds, features, e, integers, fields)
    return Room(rows, seen, positions, fresh, found, first, second, small, z, chances, g, vectors)
