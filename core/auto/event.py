"""One event of `auto`: its score, and the steps of all learners. The mixture's way is told in `__init__.py`."""

from __future__ import annotations

from numba import types

from core.auto.evidence import AGGREGATES, FOUND, INDEX, INDICATORS, Found, Indicators, count, enter, find, weigh
from core.auto.learners import (
    ROWS,
    STATISTICS,
    TABLE32,
    Indices,
    Table32,
    look,
    scores,
    scores_of_few,
    step,
    step_of_few,
)
from core.auto.mixture import changed, mixed, reweigh
from core.auto.pairs import FIRST_PAIR, is_short, own, pair_up
from core.auto.plan import STANDARD
from core.auto.room import (
    BANK,
    COUNTED,
    GROUP,
    INPUTS,
    ROOM,
    SIDE,
    Bank,
    Counted,
    Group,
    Inputs,
    Room,
    Side,
    bank_of,
    carved,
)  # fmt: skip
from core.auto.rules import CLIP, WEIGHT
from core.auto.stacker import stack_scores, stack_step
from core.compiled import compiled
from core.logistic import Floats, Ints, Labels, Offsets
from core.rules import COLUMNS, FLOATS, TABLE, Table

LIMIT, NUMBERED, PAIRED = range(3)
"""Places in `used`: how many indicators and rows of pairs there may be, how many indicators there are, and how many
rows of pairs each bank has, from PAIRED on."""


@compiled(types.int64(COLUMNS, FLOATS, TABLE, types.int64, ROWS, ROOM))
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


@compiled(types.int64(types.int64, types.int64, types.int64, BANK, FOUND, SIDE, FLOATS))
def _see_evidence(values: int, distances: int, used: int, bank: Bank, found: Found, side: Side, small: Floats) -> int:
    """The inputs of the group evidence: the bias, then what `weigh` finds. Returns their number. `small[4:]` <- the
    aggregates of text and buckets."""
    rows, x = side.evidence.rows, side.evidence.x
    rows[0], x[0] = 0, 1.0
    n = 1 + weigh(values, distances, used, bank.labels, bank.counts, found, rows[1:], x[1:], small[4:])
    for j in range(1, n):
        if rows[j] >= len(bank.of_evidence):  # of a field that the model does not know
            rows[j] = -1
    return n


@compiled(types.int64(types.int64, types.int64, types.int64, BANK, FOUND, SIDE, FLOATS))
def _see_pairs(values: int, distances: int, free: int, bank: Bank, found: Found, side: Side, small: Floats) -> int:
    """The inputs of the group of pairs: the bias, the aggregates, then the chosen pairs. Returns their number.

    A pair without a row is left out if no row is free for it.
    """
    rows, x, chosen, kept = side.pairs.rows, side.pairs.x, side.chosen, bank.rows
    n = pair_up(values, distances, kept, found, chosen)
    rows[0], x[0] = 0, 1.0
    for a in range(AGGREGATES):
        look(small[4 + a], kept.statistics[a], side.fresh[a], small[:4])
        rows[1 + a], x[1 + a] = 1 + a, small[STANDARD]
    m = 0
    for i in range(n):
        row = kept.rows[chosen.places[i]]
        if row < 0:
            if free <= 0:
                continue
            free -= 1
        chosen.places[m], chosen.left[m], chosen.right[m] = chosen.places[i], chosen.left[i], chosen.right[i]
        rows[FIRST_PAIR + m], x[FIRST_PAIR + m] = -1 if row < 0 else FIRST_PAIR + row, 1.0
        m += 1
    return FIRST_PAIR + m


@compiled(types.int64(BANK))
def learners_of(bank: Bank) -> int:
    """How many learners a bank has."""
    return bank.single.at.vw + bank.evidence.at.vw + bank.pairs.at.vw


@compiled(types.int64(BANK))
def members_of(bank: Bank) -> int:
    """How many members of the mixture a bank has: its learners and its stackers."""
    return learners_of(bank) + len(bank.adagrad) // 2 + min(len(bank.kalman), 1)


@compiled(types.void(types.int64, INPUTS, TABLE32, GROUP, FLOATS))
def _score_few(n: int, inputs: Inputs, table: Table32, group: Group, z: Floats) -> None:
    rows, x = inputs.rows[:n], inputs.x[:n]
    scores_of_few(rows, x, table, group.row, group.at, inputs.copy, inputs.raw, inputs.variances, z)


@compiled(types.UniTuple(types.int64, 2)(COUNTED, types.int64, types.int64, BANK, SIDE, ROOM, FLOATS))
def _score_bank(n: Counted, used: int, free: int, bank: Bank, side: Side, room: Room, z: Floats) -> tuple[int, int]:
    """`z` <- the scores of a bank's learners, then of its stackers. Returns how many inputs evidence and pairs have."""
    evidence, pairs, learners = 0, 0, learners_of(bank)
    group, at, at_e = bank.single, bank.single.at.vw, bank.evidence.at.vw
    scores(room.rows[: n.single], room.seen, bank.of_single, group.row, group.at, side.raw, side.variances, z)
    if learners > at:
        evidence = _see_evidence(n.values, n.distances, used, bank, room.found, side, room.small)
        if at_e > 0:
            _score_few(evidence, side.evidence, bank.of_evidence, bank.evidence, z[at:])
        if learners > at + at_e:
            pairs = _see_pairs(n.values, n.distances, free, bank, room.found, side, room.small)
            _score_few(pairs, side.pairs, bank.of_pairs, bank.pairs, z[at + at_e :])
    stack_scores(z[:learners], bank.adagrad, bank.kalman, z[learners:])
    return evidence, pairs


@compiled(
    types.Tuple([types.float64, COUNTED])(
        COLUMNS, FLOATS, types.int64, ROWS, BANK, BANK, TABLE, INDICATORS, ROWS, FLOATS, ROOM
    )
)  # fmt: skip
def event_score(
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


@compiled(types.void(FLOATS, types.uint8, FLOATS, FLOATS))
def _gradients(other: Floats, y: int, limits: Floats, g: Floats) -> None:
    """`g` <- the weighted and clipped p - y, from the probabilities of the other label."""
    for k in range(len(g)):
        residual = (-other[k] if y else other[k]) * limits[WEIGHT]
        g[k] = max(min(residual, limits[CLIP]), -limits[CLIP])


@compiled(types.void(types.int64, INPUTS, TABLE32, GROUP, FLOATS, types.uint8, FLOATS, ROOM))
def _step_few(
    n: int, inputs: Inputs, table: Table32, group: Group, other: Floats, y: int, limits: Floats, room: Room
) -> None:
    _gradients(other, y, limits, room.g[: group.at.ftrl])
    step_of_few(
        inputs.rows[:n], inputs.x[:n], inputs.raw, inputs.variances, room.g, y, limits, inputs.copy, table, group.norms,
        group.at, group.rates, room.vectors,
    )  # fmt: skip


@compiled(types.int64(types.int64, types.int64, types.int64, BANK, SIDE))
def _own_rows(n: int, used: int, free: int, bank: Bank, side: Side) -> int:
    """Give the event's pairs rows of their own, and take up the aggregates' statistics."""
    places = side.chosen.places[: n - FIRST_PAIR]
    used = own(places, used, free, bank.rows, bank.of_pairs)
    for i in range(len(places)):
        side.pairs.rows[FIRST_PAIR + i] = FIRST_PAIR + bank.rows.rows[places[i]]
    for a in range(AGGREGATES):
        for s in range(STATISTICS):
            bank.rows.statistics[a, s] = side.fresh[a, s]
    return used


@compiled(types.void(COUNTED, types.int64, BANK, SIDE, ROOM, types.uint8, *[FLOATS] * 3))
def _step_bank(
    n: Counted, pairs: int, bank: Bank, side: Side, room: Room, y: int, limits: Floats, z: Floats, other: Floats
) -> None:
    """One step of each learner and stacker of a bank; `other` has the members' probabilities of the other label."""
    group, learners = bank.single, learners_of(bank)
    at, at_e = group.at.vw, bank.evidence.at.vw
    _gradients(other, y, limits, room.g[: group.at.ftrl])
    step(
        room.rows[: n.single], room.seen, side.raw, side.variances, room.g, y, limits, bank.of_single, group.norms,
        group.at, group.rates, room.vectors,
    )  # fmt: skip
    if at_e > 0:
        _step_few(n.evidence, side.evidence, bank.of_evidence, bank.evidence, other[at:], y, limits, room)
    if pairs > 0:
        _step_few(pairs, side.pairs, bank.of_pairs, bank.pairs, other[at + at_e :], y, limits, room)
    stack_step(z[:learners], z[learners:], y, limits, bank.adagrad, bank.stack_rates, bank.kalman, room.small[8:])


# -- what Python calls: arrays one by one, since numba needs 4 us more for a call with a tuple

_PLAN = types.int64[:, ::1], ROWS, FLOATS
_BANK = TABLE, TABLE32, TABLE32, TABLE, INDEX, INDEX, FLOATS
_KEPT = TABLE, ROWS, INDEX, INDEX, ROWS, FLOATS, FLOATS


@compiled(types.float64(COLUMNS, FLOATS, types.int64, *_PLAN, *_BANK, *_BANK, *_KEPT, FLOATS, ROWS))
def score_one(
    c: Ints, x: Floats, free: int, layouts: Table, views: Indices, constants: Floats,
    single: Table, evidence: Table32, pairs: Table32, counts: Table, rows: Ints, owners: Ints, small: Floats,
    single_2: Table, evidence_2: Table32, pairs_2: Table32, counts_2: Table, rows_2: Ints, owners_2: Ints,
    small_2: Floats, statistics: Table, keys: Indices, places: Ints, kinds: Ints, used: Indices, scalars: Floats,
    shares: Floats, numbers: Floats, integers: Indices,
) -> float:  # fmt: skip
    """`event_score` for one event. The last of `integers` <- what it was made of, for an explanation."""
    bank = bank_of(layouts, constants, single, evidence, pairs, counts, rows, owners, small)
    bank_2 = bank_of(layouts, constants, single_2, evidence_2, pairs_2, counts_2, rows_2, owners_2, small_2)
    kept = Indicators(keys, places, kinds)
    room = carved(len(c), bank, members_of(bank), numbers, integers)
    score, n = event_score(c, x, free, views, bank, bank_2, statistics, kept, used, shares, room)
    for i in range(len(n)):
        integers[len(integers) - len(n) + i] = n[i]
    return score


@compiled(
    types.int64(
        types.int64, types.int64, types.int64[::1], COLUMNS, FLOATS, types.uint8[::1], FLOATS, FLOATS, FLOATS, FLOATS,
        *_PLAN, *_BANK, *_BANK, *_KEPT, FLOATS, ROWS,
    )
)  # fmt: skip
def learn_many(
    start: int, longest: int, offsets: Offsets, columns: Ints, values: Floats, labels: Labels, weights: Floats,
    limits: Floats, class_weights: Floats, predicted: Floats, layouts: Table, views: Indices, constants: Floats,
    single: Table, evidence: Table32, pairs: Table32, counts: Table, rows: Ints, owners: Ints, small: Floats,
    single_2: Table, evidence_2: Table32, pairs_2: Table32, counts_2: Table, rows_2: Ints, owners_2: Ints,
    small_2: Floats, statistics: Table, keys: Indices, places: Ints, kinds: Ints, used: Indices, scalars: Floats,
    shares: Floats, numbers: Floats, integers: Indices,
) -> int:  # fmt: skip
    """Learn the events from `start` on, in order; `predicted` <- the score before each.

    Returns the index after the last learned event. An alarm stops the loop after the event that raised it; an array
    that may be too small stops it before the event.
    """
    bank = bank_of(layouts, constants, single, evidence, pairs, counts, rows, owners, small)
    bank_2 = bank_of(layouts, constants, single_2, evidence_2, pairs_2, counts_2, rows_2, owners_2, small_2)
    kept, members = Indicators(keys, places, kinds), members_of(bank)
    both = len(shares) > members
    room = carved(longest, bank, members, numbers, integers)
    found, first, second = room.found, room.first, room.second
    for i in range(start, len(labels)):
        c, x, y = columns[offsets[i] : offsets[i + 1]], values[offsets[i] : offsets[i + 1]], labels[i]
        limit = used[LIMIT]
        short = is_short(used[PAIRED], limit, rows, owners) or is_short(used[PAIRED + 1], limit, rows_2, owners_2)
        if short or used[NUMBERED] + 2 * len(c) > len(keys):
            return i
        predicted[i], n = event_score(c, x, 0, views, bank, bank_2, statistics, kept, used, shares, room)
        limits[WEIGHT] = weights[i] * class_weights[y]
        enter(n.values, n.distances, used[NUMBERED], kept, found)
        used[NUMBERED] += n.new
        free = used[LIMIT] - used[NUMBERED]
        if n.pairs > 0:
            used[PAIRED] = _own_rows(n.pairs, used[PAIRED], free - used[PAIRED], bank, first)
        _step_bank(n, n.pairs, bank, first, room, y, limits, room.z[:members], room.chances[1 - y, :members])
        count(n.values, n.distances, y, weights[i], bank.labels, counts, found)
        if both:
            if n.pairs_2 > 0:
                used[PAIRED + 1] = _own_rows(n.pairs_2, used[PAIRED + 1], free - used[PAIRED + 1], bank_2, second)
            _step_bank(n, n.pairs_2, bank_2, second, room, y, limits, room.z[members:], room.chances[1 - y, members:])
            count(n.values, n.distances, y, weights[i], bank_2.labels, counts_2, found)
        for j in range(len(c)):
            for s in range(STATISTICS):
                statistics[c[j], s] = room.fresh[j, s]
        reweigh(room.chances[y], shares, limits[WEIGHT])
        if changed(predicted[i], y, scalars):
            return i + 1
    return len(labels)
