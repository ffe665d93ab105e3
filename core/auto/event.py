"""One event of `auto`: its score, and the steps of all learners. The mixture's way is told in `__init__.py`."""

from __future__ import annotations

from numba import types

from core.auto.evidence import AGGREGATES, Found, Indicators, count, enter, find, weigh
from core.auto.learners import STATISTICS, Indices, Table32, look, scores, scores_of_few, step, step_of_few
from core.auto.mixture import changed, mixed, reweigh, share_of_weight
from core.auto.pairs import FIRST_PAIR, give_rows, is_short, pair_up
from core.auto.plan import STANDARD
from core.auto.room import Bank, Counted, Room, Side, bank_of, carved
from core.auto.rules import OF_LABELS, WEIGHT
from core.auto.stacker import stack_scores, stack_step
from core.compiled import compiled, part_of_kernels
from core.logistic import Floats, Ints, Labels, Offsets
from core.rules import COLUMNS, FLOATS, TABLE, Table

LIMIT, NUMBERED, PAIRED = range(3)
"""Places in `used`: how many indicators and rows of pairs there may be, how many indicators there are, and how many
rows of pairs each bank has, from PAIRED on."""


@part_of_kernels
def _see_features(c: Ints, x: Floats, statistics: Table, free: int, views: Indices, room: Room) -> int:
    """The inputs of the group of single features: the bias, then the features. Returns their number.

    Of the features that the model does not know, the first `free` are new, as they would be if the event were learned.
    There is no room for the others, so they do not count.
    """
    fresh, four = room.fresh, room.small[:4]
    room.rows[0] = 0
    for k in range(len(views)):
        room.seen[0, k] = 1.0
    n = 1
    for j in range(len(c)):
        new = not 0 <= c[j] < len(statistics)
        if new:
            if free <= 0:
                continue
            free -= 1
            for s in range(STATISTICS):
                fresh[n - 1, s] = 0.0
        look(x[j], fresh[n - 1] if new else statistics[c[j]], fresh[n - 1], four)
        for k in range(len(views)):
            room.seen[n, k] = four[views[k]]
        room.rows[n], room.positions[n - 1] = -1 if new else c[j] + 1, j
        n += 1
    return n


@part_of_kernels
def _see_pairs(values: int, distances: int, free: int, bank: Bank, found: Found, side: Side, small: Floats) -> int:
    """The inputs of the group of pairs: the bias, the aggregates, then the chosen pairs. Returns their number."""
    rows, x = side.pairs.rows, side.pairs.x
    rows[0], x[0] = 0, 1.0
    for a in range(AGGREGATES):
        look(small[4 + a], bank.rows.statistics[a], side.fresh[a], small[:4])
        rows[1 + a], x[1 + a] = 1 + a, small[STANDARD]
    pairs = pair_up(values, distances, free, bank.rows, found, side.chosen, rows[FIRST_PAIR:], x[FIRST_PAIR:])
    return FIRST_PAIR + pairs


@part_of_kernels
def learners_of(bank: Bank) -> int:
    """How many learners a bank has."""
    return bank.single.at.vw + bank.evidence.at.vw + bank.pairs.at.vw


@part_of_kernels
def members_of(bank: Bank) -> int:
    """How many members of the mixture a bank has: its learners and its stackers."""
    return learners_of(bank) + len(bank.adagrad) // 2 + min(len(bank.kalman), 1)


@part_of_kernels
def _score_bank(n: Counted, used: int, free: int, bank: Bank, side: Side, room: Room, z: Floats) -> tuple[int, int]:
    """`z` <- the scores of a bank's learners, then of its stackers. Returns how many inputs evidence and pairs have."""
    evidence, pairs, learners = 0, 0, learners_of(bank)
    at, at_e = bank.single.at.vw, bank.evidence.at.vw
    scores(room.rows[: n.single], room.seen, bank.of_single, bank.single, side.raw, side.variances, z)
    if learners > at:
        evidence = weigh(
            n.values, n.distances, used, bank.labels, bank.counts, len(bank.of_evidence), room.found,
            side.evidence.rows, side.evidence.x, room.small[4:],
        )  # fmt: skip
        if at_e > 0:
            scores_of_few(evidence, side.evidence, bank.of_evidence, bank.evidence, z[at:])
        if learners > at + at_e:
            pairs = _see_pairs(n.values, n.distances, free, bank, room.found, side, room.small)
            scores_of_few(pairs, side.pairs, bank.of_pairs, bank.pairs, z[at + at_e :])
    stack_scores(z[:learners], bank.adagrad, bank.kalman, z[learners:])
    return evidence, pairs


@part_of_kernels
def _score(
    c: Ints, x: Floats, free: int, views: Indices, bank: Bank, bank_2: Bank, statistics: Table, kept: Indicators,
    used: Indices, shares: Floats, room: Room,
) -> tuple[float, Counted]:  # fmt: skip
    """The mixture's score for an event, log p / (1 - p), and what it was made of. Changes only the room.

    `free`: how many features the model has room for.
    """
    members, indicators = members_of(bank), used[NUMBERED]
    single = _see_features(c, x, statistics, free, views, room)
    values, distances, new = 0, 0, 0
    left = used[LIMIT] - indicators
    if learners_of(bank) > bank.single.at.vw:
        positions, most = room.positions[: single - 1], left - max(used[PAIRED], used[PAIRED + 1])
        values, distances, new = find(c, x, positions, room.fresh, indicators, most, kept, room.found)
    left -= new
    n = Counted(single, 0, 0, 0, values, distances, new)
    evidence, pairs = _score_bank(n, indicators, left - used[PAIRED], bank, room.first, room, room.z[:members])
    pairs_2 = 0
    if len(shares) > members:
        free = left - used[PAIRED + 1]
        _, pairs_2 = _score_bank(n, indicators, free, bank_2, room.second, room, room.z[members:])
    n = Counted(single, evidence, pairs, pairs_2, values, distances, new)
    return mixed(room.z[: len(shares)], shares, room.chances), n


@part_of_kernels
def _own_rows(n: int, used: int, free: int, bank: Bank, side: Side) -> int:
    """Give the event's pairs rows of their own, and take up the aggregates' statistics."""
    for a in range(AGGREGATES):
        for s in range(STATISTICS):
            bank.rows.statistics[a, s] = side.fresh[a, s]
    return give_rows(side.pairs.rows[FIRST_PAIR:n], side.chosen.places[: n - FIRST_PAIR], used, free, bank.rows)


@part_of_kernels
def _learn_bank(
    n: Counted, pairs: int, bank: Bank, side: Side, room: Room, y: int, weight: float, limits: Floats, first: int
) -> None:
    """One step of each learner and stacker of a bank, whose members are those from the `first` on. Then its counts."""
    group, learners, members = bank.single, learners_of(bank), members_of(bank)
    at, at_e = group.at.vw, bank.evidence.at.vw
    z, own = room.z[first : first + members], room.chances[y, first : first + members]
    other = room.chances[1 - y, first : first + members]
    step(
        room.rows[: n.single], room.seen, side.raw, side.variances, z, own, other, y, limits, bank.of_single, group,
        room.g, room.vectors,
    )  # fmt: skip
    if at_e > 0:
        z_e, own_e, other_e = z[at:], own[at:], other[at:]
        step_of_few(
            n.evidence, side.evidence, z_e, own_e, other_e, y, limits, bank.of_evidence, bank.evidence, room.vectors
        )
    if pairs > 0:
        z_p, own_p, other_p = z[at + at_e :], own[at + at_e :], other[at + at_e :]
        step_of_few(pairs, side.pairs, z_p, own_p, other_p, y, limits, bank.of_pairs, bank.pairs, room.vectors)
    stack_step(z[:learners], other[learners:], y, limits, bank.adagrad, bank.stack_rates, bank.kalman, room.small[8:])
    count(n.values, n.distances, y, weight, bank.labels, bank.counts, room.found)


_INTEGERS, _TABLE32, _INDEX = types.int64[::1], types.float32[:, ::1], types.int32[::1]
_BANK = TABLE, _TABLE32, _TABLE32, TABLE, _INDEX, _INDEX, FLOATS
_KEPT = TABLE, _INTEGERS, _INDEX, _INDEX, _INTEGERS, FLOATS, FLOATS


@compiled(
    types.int64(
        types.int64, types.int64, types.int64, _INTEGERS, COLUMNS, FLOATS, types.uint8[::1], *[FLOATS] * 3,
        types.int64[:, ::1], _INTEGERS, FLOATS, *_BANK, *_BANK, *_KEPT, FLOATS, _INTEGERS,
    )
)  # fmt: skip
def go_through(  # noqa: C901  # a part more would take its compile time again
    start: int, longest: int, free: int, offsets: Offsets, columns: Ints, values: Floats, labels: Labels,
    weights: Floats, limits: Floats, predicted: Floats, layouts: Table, views: Indices, constants: Floats,
    single: Table, evidence: Table32, pairs: Table32, counts: Table, rows: Ints, owners: Ints, small: Floats,
    single_2: Table, evidence_2: Table32, pairs_2: Table32, counts_2: Table, rows_2: Ints, owners_2: Ints,
    small_2: Floats, statistics: Table, keys: Indices, places: Ints, kinds: Ints, used: Indices, scalars: Floats,
    shares: Floats, numbers: Floats, integers: Indices,
) -> int:  # fmt: skip
    """Go through the events from `start` on, in order: `predicted` <- the score of each, then learn it. Without labels,
    only the first is scored, and the last of `integers` <- what it was made of, for an explanation.

    One kernel for both, since it takes seconds to compile. Python passes the arrays one by one, since numba needs 4 us
    more for a call with a tuple.

    Returns the index after the last event. An alarm stops the loop after the event that raised it; an array that may be
    too small stops it before the event.
    """
    bank = bank_of(layouts, constants, single, evidence, pairs, counts, rows, owners, small)
    bank_2 = bank_of(layouts, constants, single_2, evidence_2, pairs_2, counts_2, rows_2, owners_2, small_2)
    kept, members = Indicators(keys, places, kinds), members_of(bank)
    room = carved(longest, bank, members, numbers, integers)
    for i in range(start, len(predicted)):
        c, x, limit = columns[offsets[i] : offsets[i + 1]], values[offsets[i] : offsets[i + 1]], used[LIMIT]
        if len(labels) > 0:
            short = is_short(used[PAIRED], limit, rows, owners) or is_short(used[PAIRED + 1], limit, rows_2, owners_2)
            if short or used[NUMBERED] + 2 * len(c) > len(keys):
                return i
        predicted[i], n = _score(c, x, free, views, bank, bank_2, statistics, kept, used, shares, room)
        if len(labels) == 0:
            for j in range(len(n)):
                integers[len(integers) - len(n) + j] = n[j]
            return i
        y = labels[i]
        limits[WEIGHT] = weights[i] * limits[OF_LABELS + y]
        enter(n.values, n.distances, used[NUMBERED], kept, room.found)
        used[NUMBERED] += n.new
        left = limit - used[NUMBERED]
        if n.pairs > 0:
            used[PAIRED] = _own_rows(n.pairs, used[PAIRED], left - used[PAIRED], bank, room.first)
        _learn_bank(n, n.pairs, bank, room.first, room, y, weights[i], limits, 0)
        if len(shares) > members:
            if n.pairs_2 > 0:
                used[PAIRED + 1] = _own_rows(n.pairs_2, used[PAIRED + 1], left - used[PAIRED + 1], bank_2, room.second)
            _learn_bank(n, n.pairs_2, bank_2, room.second, room, y, weights[i], limits, members)
        for j in range(len(c)):
            for s in range(STATISTICS):
                statistics[c[j], s] = room.fresh[j, s]
        weight = share_of_weight(limits[WEIGHT], scalars)
        reweigh(room.chances[y], shares, weight)
        if changed(predicted[i], y, weight, scalars):
            return i + 1
    return len(predicted)
