"""Groups of learners: what they keep, their scores, their steps.

What a group keeps is one table. Row 0 is for the bias, an input that is always 1; the other rows are for the inputs. A
row has, for K learners in the order of their rules,

    K weights | squares (AdaGrad), roots (FTRL) | sums (FTRL) | variances (Kalman) | squares (VW) | scales (VW)

so that a step reads and writes one stretch of memory for each input. There are two kinds of groups. Many learners that
see an input differently, each in its view: `scores` and `step`. A few learners that see the same values of many inputs,
of which most are seldom needed: `scores_of_few` and `step_of_few`; their table is float32, and they work on a copy of
its rows in which each learner's numbers are side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from core.auto.plan import ADAGRAD, FTRL, KALMAN, MAXABS, RAW, RMS, RULES, STANDARD, VW, Member
from core.auto.rules import MAX_SCORE, MAX_WEIGHT, WEIGHT, adagrad, clipped, ftrl, kalman, vw
from core.compiled import part_of_kernels
from core.logistic import Floats
from core.rules import Table

Indices = npt.NDArray[np.int64]
Table32 = npt.NDArray[np.float32]

STATISTICS = 5
"""What is kept of an input's values: count, mean, variance, mean square, largest magnitude."""
FLAT = 1e-12
"""Values whose variance is at most this part of their mean square have not varied."""


class Layout(NamedTuple):
    """Where a row has what. `sgd` to `vw`: the place after the last learner of each rule, among all K."""

    sgd: int
    adagrad: int
    ftrl: int
    kalman: int
    vw: int
    sums: int
    variances: int
    squares: int
    scales: int
    width: int

    @classmethod
    def of(cls, members: Sequence[Member]) -> Layout:
        """The layout for these learners, which stand in the order of their rules."""
        count = [sum(member.rule == rule for member in members) for rule in range(len(RULES))]
        sums = sum(count) + count[ADAGRAD] + count[FTRL]
        variances = sums + count[FTRL]
        squares = variances + count[KALMAN]
        scales = squares + count[VW]
        return cls._make([*np.cumsum(count).tolist(), sums, variances, squares, scales, scales + count[VW]])

    def fresh(self, members: Sequence[Member]) -> Floats:
        """What is kept for an input that has not come yet."""
        row = np.zeros(self.width)
        row[self.variances : self.squares] = [member.rate for member in members if member.rule == KALMAN]
        return row


class Group(NamedTuple):
    """A group of learners: where a row has what, each one's rate, the row of an input that has not come yet, and VW's
    events so far with the sums of normalised squares of each of its learners."""

    at: Layout
    rates: Floats
    row: Floats
    norms: Floats


class Inputs(NamedTuple):
    """What a group of few learners sees of an event, see `scores_of_few`."""

    rows: Indices
    x: Floats
    copy: Table
    raw: Floats
    variances: Floats


@part_of_kernels
def look(x: float, before: Floats, after: Floats, views: Floats) -> None:
    """`after` <- the statistics `before` plus the value x; `views` <- x in each view of them.

    Mean and population variance are updated by Welford's method. The standard view of values that have not varied is
    their magnitude, not 0: else a one-hot feature would say nothing there.
    """
    count = before[0] + 1.0
    mean = before[1] + (x - before[1]) / count
    variance = before[2] + ((x - before[1]) * (x - mean) - before[2]) / count
    square = before[3] + (x * x - before[3]) / count
    largest = max(before[4], abs(x))
    after[0], after[1], after[2], after[3], after[4] = count, mean, variance, square, largest
    views[RAW] = x
    views[RMS] = x / math.sqrt(square) if square > 0.0 else 0.0
    views[MAXABS] = x / largest if largest > 0.0 else 0.0
    views[STANDARD] = (x - mean) / math.sqrt(variance) if variance > FLAT * square else views[MAXABS]


@part_of_kernels
def _finish(at: Layout, raw: Floats, variances: Floats, z: Floats) -> None:
    """`z` <- the scores for w·x (`raw`)."""
    for k in range(at.vw):
        z[k] = raw[k]
    for i in range(at.kalman - at.ftrl):  # E s(m·x) is about s(m·x / sqrt(1 + pi v / 8)) (MacKay 1992)
        z[at.ftrl + i] = raw[at.ftrl + i] / math.sqrt(1.0 + math.pi * variances[i] / 8.0)
    for k in range(at.vw):
        z[k] = min(max(z[k], -MAX_SCORE), MAX_SCORE)


# -- many learners, each with its view


@part_of_kernels
def scores(rows: Indices, seen: Table, table: Table, group: Group, raw: Floats, variances: Floats, z: Floats) -> None:
    """`z` <- the score of each of K learners, clamped; `raw` <- their w·x; `variances` <- that of Kalman's w·x.

    `rows[j]` is the table's row of input j, and `seen[j, k]` its value as learner k sees it. Row -1 stands for an input
    that has not come yet.
    """
    at = group.at
    k_of_kalman, k_of_vw = at.kalman - at.ftrl, at.vw - at.kalman
    for k in range(at.vw):
        raw[k] = 0.0
    for i in range(k_of_kalman):
        variances[i] = 0.0
    for j in range(len(rows)):
        x = seen[j]
        kept = table[rows[j]] if rows[j] >= 0 else group.row
        for k in range(at.kalman):  # w·x
            raw[k] += kept[k] * x[k]
        for i in range(k_of_kalman):  # v = sum of s x²
            variances[i] += kept[at.variances + i] * x[at.ftrl + i] * x[at.ftrl + i]
        for i in range(k_of_vw):  # a larger value than ever shrinks its weight first, w <- w scale / |x|
            k = at.kalman + i
            raw[k] += kept[k] * min(max(x[k], -kept[at.scales + i]), kept[at.scales + i])
    _finish(at, raw, variances, z)


@part_of_kernels
def _gather(rows: Indices, table: Table, k: int, out: Floats) -> None:
    for j in range(len(rows)):
        out[j] = table[rows[j], k]


@part_of_kernels
def _scatter(rows: Indices, column: Floats, table: Table, k: int) -> None:
    for j in range(len(rows)):
        table[rows[j], k] = column[j]


VECTORS = 6
"""Rows of the working space of a step."""


@part_of_kernels
def step(
    rows: Indices, seen: Table, raw: Floats, variances: Floats, z: Floats, own: Floats, other: Floats, y: int,
    limits: Floats, table: Table, group: Group, g: Floats, room: Table,
) -> None:  # fmt: skip
    """One step of each learner for an event, whose raw scores, variances and scores z are as `scores` left them.

    `rows` are all different. `own` and `other`: the learners' probabilities of the label that came and of the other
    one. `g` and `room` (VECTORS, inputs): working space.
    """
    at, rates, norms = group.at, group.rates, group.norms
    for k in range(at.ftrl):
        g[k] = clipped(other[k], y, limits)
    for j in range(len(rows)):
        kept, x = table[rows[j]], seen[j]
        for k in range(at.sgd):  # w <- w - rate g x
            kept[k] -= rates[k] * (g[k] * x[k])
        for k in range(at.sgd, at.adagrad):
            n = at.vw - at.sgd + k
            kept[k], kept[n] = adagrad(kept[k], kept[n], g[k] * x[k], rates[k])
        for k in range(at.adagrad, at.ftrl):
            n, s = at.vw - at.sgd + k, at.sums - at.adagrad + k
            kept[k], kept[n], kept[s] = ftrl(kept[k], kept[n], kept[s], g[k] * x[k], rates[k])
    many = len(rows)
    x, w, squares, b, variance = room[0, :many], room[1, :many], room[2, :many], room[3, :many], room[2, :many]
    for i in range(at.kalman - at.ftrl):
        k = at.ftrl + i
        for j in range(len(rows)):
            x[j] = seen[j, k]
        _gather(rows, table, k, w)
        _gather(rows, table, at.variances + i, variance)
        kalman(x, w, variance, raw[k], variances[i], y, limits)
        _scatter(rows, w, table, k)
        _scatter(rows, variance, table, at.variances + i)
    norms[0] += min(limits[WEIGHT], MAX_WEIGHT)
    for i in range(at.vw - at.kalman):
        k = at.kalman + i
        for j in range(len(rows)):
            x[j] = seen[j, k]
        _gather(rows, table, k, w)
        _gather(rows, table, at.squares + i, squares)
        _gather(rows, table, at.scales + i, b)
        vw(x, w, squares, b, rates[k], z[k], own[k], other[k], y, limits, norms, 1 + i, room[4, :many], room[5, :many])
        _scatter(rows, w, table, k)
        _scatter(rows, squares, table, at.squares + i)
        _scatter(rows, b, table, at.scales + i)


# -- a few learners of the same values


@part_of_kernels
def _sum(x: Floats) -> float:
    """The sum, as four sums of every fourth: a processor adds them at the same time."""
    a, b, c, d, n = 0.0, 0.0, 0.0, 0.0, len(x) // 4 * 4
    for j in range(0, n, 4):
        a += x[j]
        b += x[j + 1]
        c += x[j + 2]
        d += x[j + 3]
    for j in range(n, len(x)):
        a += x[j]
    return (a + b) + (c + d)


@part_of_kernels
def _fetch(rows: Indices, table: Table32, row: Floats, copy: Table) -> None:
    for j in range(len(rows)):
        if rows[j] >= 0:
            kept = table[rows[j]]
            for i in range(len(row)):
                copy[i, j] = kept[i]
        else:
            for i in range(len(row)):
                copy[i, j] = row[i]


@part_of_kernels
def scores_of_few(many: int, inputs: Inputs, table: Table32, group: Group, z: Floats) -> None:
    """The same as `scores` for so `many` inputs that all learners see alike; `copy` <- the rows, as columns; its last
    row is working space."""
    at, x, copy, raw, variances = group.at, inputs.x, inputs.copy, inputs.raw, inputs.variances
    _fetch(inputs.rows[:many], table, group.row, copy)
    terms = copy[at.width, :many]
    for k in range(at.kalman):
        for j in range(many):
            terms[j] = copy[k, j] * x[j]
        raw[k] = _sum(terms)
    for i in range(at.kalman - at.ftrl):
        for j in range(many):
            terms[j] = copy[at.variances + i, j] * x[j] * x[j]
        variances[i] = _sum(terms)
    for i in range(at.vw - at.kalman):
        for j in range(many):
            most = copy[at.scales + i, j]
            terms[j] = copy[at.kalman + i, j] * min(max(x[j], -most), most)
        raw[at.kalman + i] = _sum(terms)
    _finish(at, raw, variances, z)


@part_of_kernels
def step_of_few(  # noqa: C901  # a part more would take its compile time again
    many: int, inputs: Inputs, z: Floats, own: Floats, other: Floats, y: int, limits: Floats, table: Table32,
    group: Group, room: Table,
) -> None:  # fmt: skip
    """The same as `step`, for the rows that `scores_of_few` has copied; they are written back to `inputs.rows`."""
    at, x, copy, rates, norms = group.at, inputs.x[:many], inputs.copy, group.rates, group.norms
    for k in range(at.ftrl):
        w, g = copy[k, :many], clipped(other[k], y, limits)
        if k < at.sgd:
            for j in range(many):
                w[j] -= rates[k] * (g * x[j])
        elif k < at.adagrad:
            n = copy[at.vw - at.sgd + k, :many]
            for j in range(many):
                w[j], n[j] = adagrad(w[j], n[j], g * x[j], rates[k])
        else:
            n, s = copy[at.vw - at.sgd + k, :many], copy[at.sums - at.adagrad + k, :many]
            for j in range(many):
                w[j], n[j], s[j] = ftrl(w[j], n[j], s[j], g * x[j], rates[k])
    for i in range(at.kalman - at.ftrl):
        k = at.ftrl + i
        kalman(x, copy[k, :many], copy[at.variances + i, :many], inputs.raw[k], inputs.variances[i], y, limits)
    norms[0] += min(limits[WEIGHT], MAX_WEIGHT)
    for i in range(at.vw - at.kalman):
        k, n, b = at.kalman + i, copy[at.squares + i, :many], copy[at.scales + i, :many]
        w, normal, moves = copy[k, :many], room[0, :many], room[1, :many]
        vw(x, w, n, b, rates[k], z[k], own[k], other[k], y, limits, norms, 1 + i, normal, moves)
    for j in range(many):
        kept = table[inputs.rows[j]]
        for i in range(at.width):
            kept[i] = copy[i, j]
