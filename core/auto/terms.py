"""The parts of the score of one event: what each feature adds to each learner, for `core.explain`.

A learner's score is linear in its inputs, with the scale that a Kalman filter's uncertainty gives it as it is. An input
of the group evidence is a sum over indicators, so each indicator's part goes to its feature; of a pair, half goes to
each. What an input adds for no indicator, as the mean that the standard view subtracts, belongs to the bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from core.auto.evidence import FIRST_FIELD, PER_FIELD, Found, say_of, share_of_ones
from core.auto.learners import FLAT, Group, Indices, Inputs, Table32
from core.auto.pairs import FIRST_PAIR
from core.auto.room import Bank, Counted, Room, Side
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
        found = _said(room.found, n, bank, used)
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


class Said(NamedTuple):
    """Indicators of an event (n): their fields, the places of their features, e, decayed e, and ln(1 + n)."""

    fields: Indices
    features: Indices
    e: Floats
    decayed: Floats
    log_n: Floats

    def largest(self) -> Floats:
        """The e of the largest magnitude, each indicator's part: it is that of the first, and goes to all that have
        it."""
        if not len(self.e):
            return self.e
        largest = self.e[np.argmax(abs(self.e))]
        ties = self.e == largest
        return np.where(ties, largest / ties.sum(), 0.0)


def _said(found: Found, n: Counted, bank: Bank, used: int) -> list[Said]:
    """The event's indicators of text and buckets, and those of distances."""
    b = share_of_ones(bank.labels)
    kinds = []
    for start, many in ((0, n.values), (len(found.ids) // 2, n.distances)):
        at, what = slice(start, start + many), np.empty((many, 3))
        say_of(found.ids[at], bank.counts, used, b, what)
        kinds.append(Said(found.kinds[at] >> 1, found.features[at].copy(), *what.T))
    return kinds


def _evidence_terms(found: list[Said], n: int, bank: Bank, inputs: Inputs, features: int) -> tuple[Floats, Table]:
    """The biases (K,) and the products (features, K) of the group evidence."""
    w = _of_few(inputs, n, bank.evidence, bank.of_evidence)
    order = np.argsort(inputs.rows[:n])
    rows = inputs.rows[:n][order]
    products = np.zeros((features, bank.evidence.at.vw))

    def add(kind: Said, row: Indices | int, x: Floats) -> None:
        """Add the indicators' parts `x` of the inputs in these rows; the event may lack some."""
        places = np.minimum(np.searchsorted(rows, row), n - 1)
        there = np.where((rows[places] == row)[..., None], w[order[places]], 0.0)
        np.add.at(products, kind.features, x[:, None] * there)

    for part, kind in enumerate(found):
        many = len(kind.e)
        _, field, counts = np.unique(kind.fields, return_inverse=True, return_counts=True)
        alike = counts[field]
        row = FIRST_FIELD + PER_FIELD * kind.fields
        add(kind, 1 + 3 * part, kind.e / math.sqrt(max(many, 1)))
        add(kind, 2 + 3 * part, kind.e / max(many, 1))
        add(kind, 3 + 3 * part, kind.largest())
        if part:
            add(kind, row + 3, kind.e / np.sqrt(alike))
        else:
            add(kind, row, kind.e / np.sqrt(alike))
            add(kind, row + 1, kind.decayed / np.sqrt(alike))
            add(kind, row + 2, kind.log_n / alike)
    return w[0].copy(), products


def _pair_terms(room: Room, found: list[Said], n: int, bank: Bank, side: Side, known: Mask) -> tuple[Floats, Table]:
    """The same of the group of pairs. A pair with a feature that the model does not know (`known`, (features,)) may
    have the place of another pair; then all that it adds goes to the other feature, or to the bias."""
    w = _of_few(side.pairs, n, bank.pairs, bank.of_pairs)
    bias, products = w[0].copy(), np.zeros((len(known), bank.pairs.at.vw))
    values = found[0]
    many = max(len(values.e), 1)
    for a, size in enumerate((values.e / math.sqrt(many), values.e / many, values.largest())):
        slope, offset = _standard(side.fresh[a])
        bias += w[1 + a] * offset
        np.add.at(products, values.features, size[:, None] * (w[1 + a] * slope))
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
