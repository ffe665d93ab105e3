"""The parts of the score of one event: what each feature adds to each learner, for `core.explain`.

A learner's score is linear in its inputs, with the scale that a Kalman filter's uncertainty gives it as it is. An input
of the group evidence is a sum over indicators, so each indicator's part goes to its feature; of a pair, half goes to
each. What an input adds for no indicator, as the mean that the standard view subtracts, belongs to the bias.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from core.auto.evidence import AGGREGATES, FIRST_FIELD, PER_FIELD, Found, said, share_of_ones
from core.auto.learners import FLAT, Indices, Table32
from core.auto.pairs import FIRST_PAIR
from core.auto.room import Bank, Counted, Group, Inputs, Room, Side
from core.auto.rules import MAX_SCORE
from core.auto.stacker import MAX_HEARD
from core.batch import Mask
from core.logistic import Floats, Ints
from core.rules import Table

Chances = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Terms:
    """The parts of the score for an event of n features, for B banks of K learners and S stackers; all float64.

    `biases` (B, K); `products` (n, B, K): what each feature adds; `stack` (B, S, K + 1): a stacker's weight for each
    learner, and its bias; `heard` (S,): a stacker hears scores clamped to ± this; `shares` (B, K + S): the weights of
    learners and stackers in the mixture.
    """

    biases: Table
    products: Chances
    stack: Chances
    heard: Floats
    shares: Table

    @classmethod
    def of(cls, banks: Sequence[tuple[Floats, Table, Table, Table]], shares: Floats) -> Terms:
        """The terms of banks, each as `bank_terms` returns it."""
        _, _, adagrad, kalman = banks[0]
        heard = np.array([MAX_SCORE] * len(adagrad) + [MAX_HEARD] * len(kalman))
        stack = np.stack([np.concatenate(stackers) for _, _, *stackers in banks])
        return cls(
            np.stack([biases for biases, *_ in banks]), np.stack([products for _, products, *_ in banks], axis=1),
            stack, heard, shares.reshape(len(banks), -1).copy(),
        )  # fmt: skip


def bank_terms(
    room: Room, n: Counted, pairs: int, bank: Bank, side: Side, columns: Ints, used: int
) -> tuple[Floats, Table, Table, Table]:
    """Of one bank: what its learners have without features (K,), what each feature adds (features, K), and its
    stackers. `used`: how many indicators the model knows."""
    seen, features = room.seen[: n.single], len(columns)
    w = _weights(room.rows[: n.single], seen, bank.single, bank.of_single, side.variances)
    products = np.zeros((features, len(w[0])))
    products[room.positions[: n.single - 1]] = (w * seen)[1:]
    parts = [((w * seen)[0], products)]
    if bank.evidence.at.vw + bank.pairs.at.vw > 0:
        found = _found(room.found, n, bank, used)
        if bank.evidence.at.vw > 0:
            parts.append(_evidence_terms(found, n.evidence, bank, side.evidence, features))
        if bank.pairs.at.vw > 0:
            parts.append(_pair_terms(room, found, pairs, bank, side, columns >= 0))
    biases, products = np.concatenate([one for one, _ in parts]), np.concatenate([many for _, many in parts], axis=1)
    return biases, products, bank.adagrad[::2], bank.kalman[:1]


def _weights(rows: Indices, seen: Table, group: Group, table: Table | Table32, variances: Floats) -> Table:
    """(n, K): what each input's value (`seen`, (n, K)) is multiplied by, for each learner of a group."""
    at = group.at
    kept = np.where(rows[:, None] >= 0, table[rows], 0.0).astype(np.float64)
    w: Table = kept[:, : at.vw]
    scales, x = kept[:, at.scales : at.width], abs(seen[:, at.kalman :])  # see `learners.scores`
    w[:, at.kalman :] *= np.where(x > scales, scales / np.where(x > scales, x, 1.0), 1.0)
    w[:, at.ftrl : at.kalman] /= np.sqrt(1.0 + math.pi * variances[: at.kalman - at.ftrl] / 8.0)
    return w


def _of_few(inputs: Inputs, n: int, group: Group, table: Table32) -> Table:
    seen = np.broadcast_to(inputs.x[:n, None], (n, group.at.vw))
    return _weights(inputs.rows[:n], seen, group, table, inputs.variances)


class Indicator(NamedTuple):
    """An indicator of an event: its field, the place of its feature, e, decayed e, and ln(1 + n)."""

    field: int
    feature: int
    e: float
    decayed: float
    log_n: float


def _found(found: Found, n: Counted, bank: Bank, used: int) -> list[list[Indicator]]:
    """The event's indicators of text and buckets, and those of distances."""
    b = share_of_ones(bank.labels)
    kinds = []
    for start, many in ((0, n.values), (len(found.ids) // 2, n.distances)):
        kind = []
        for at in range(start, start + many):
            known = 0 <= found.ids[at] < used
            e = said(bank.counts[found.ids[at]], b) if known else (0.0, 0.0, 0.0)
            kind.append(Indicator(int(found.kinds[at]) >> 1, int(found.features[at]), *e))
        kinds.append(kind)
    return kinds


def _largest(kind: list[Indicator]) -> list[float]:
    """The e of the largest magnitude, each indicator's part: it is that of the first, and goes to all that have it."""
    largest = max(kind, key=lambda one: abs(one.e)).e if kind else 0.0
    ties = sum(one.e == largest for one in kind)
    return [largest / ties if one.e == largest else 0.0 for one in kind]


def _evidence_terms(
    found: list[list[Indicator]], n: int, bank: Bank, inputs: Inputs, features: int
) -> tuple[Floats, Table]:
    """The biases (K,) and the products (features, K) of the group evidence."""
    weights = _of_few(inputs, n, bank.evidence, bank.of_evidence)
    w = dict(zip(inputs.rows[:n].tolist(), weights, strict=True))
    products = np.zeros((features, bank.evidence.at.vw))
    for part, kind in enumerate(found):
        count = Counter(one.field for one in kind)
        largest = _largest(kind)
        for one, part_of_largest in zip(kind, largest, strict=True):
            row, many, alike = FIRST_FIELD + PER_FIELD * one.field, len(kind), count[one.field]
            added = {1 + 3 * part: one.e / math.sqrt(many), 2 + 3 * part: one.e / many}
            added[3 + 3 * part] = part_of_largest
            if part:
                added[row + 3] = one.e / math.sqrt(alike)
            else:
                added[row], added[row + 1] = one.e / math.sqrt(alike), one.decayed / math.sqrt(alike)
                added[row + 2] = one.log_n / alike
            for where, x in added.items():
                products[one.feature] += w.get(where, 0.0) * x
    return w[0].copy(), products


def _pair_terms(
    room: Room, found: list[list[Indicator]], n: int, bank: Bank, side: Side, known: Mask
) -> tuple[Floats, Table]:
    """The same of the group of pairs. A pair with a feature that the model does not know (`known`, (features,)) may
    have the place of another pair; then all that it adds goes to the other feature, or to the bias."""
    w = _of_few(side.pairs, n, bank.pairs, bank.of_pairs)
    bias, products = w[0].copy(), np.zeros((len(known), bank.pairs.at.vw))
    values = found[0]
    largest = _largest(values)
    for a in range(AGGREGATES):
        slope, offset = _standard(side.fresh[a])
        bias += w[1 + a] * offset
        for one, part_of_largest in zip(values, largest, strict=True):
            size = (one.e / math.sqrt(len(values)), one.e / len(values), part_of_largest)[a]
            products[one.feature] += w[1 + a] * slope * size
    chosen, count = side.chosen, n - FIRST_PAIR
    left, right = (room.found.features[ends[:count]] for ends in (chosen.left, chosen.right))
    for one_end, other in ((left, right), (right, left)):
        part = np.where(known[one_end], np.where(known[other], 0.5, 1.0), 0.0)
        np.add.at(products, one_end, part[:, None] * w[FIRST_PAIR:])
    bias += w[FIRST_PAIR:][~known[left] & ~known[right]].sum(axis=0)
    return bias, products


def _standard(statistics: Floats) -> tuple[float, float]:
    """The standard view of a value x as slope x + offset; `statistics` include x. See `learners.look`."""
    _, mean, variance, square, largest = statistics.tolist()
    if variance > FLAT * square:
        return 1.0 / math.sqrt(variance), -mean / math.sqrt(variance)
    return 1.0 / largest if largest > 0.0 else 0.0, 0.0
