"""`Auto`: the state of a model whose rule is `auto`, as `Learner` keeps it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from core.auto.event import NUMBERED, PAIRED, go_through
from core.auto.evidence import COUNTS, FIRST_FIELD, PER_FIELD, rebuild
from core.auto.learners import STATISTICS, Indices, Layout
from core.auto.mixture import ALARMS, HEAVIEST, USUAL
from core.auto.pairs import FIRST_PAIR, MOST, PLACES
from core.auto.plan import PLAN, RULES, VIEWS, Plan
from core.auto.room import Counted, bank_of, carved, sizes, small_of
from core.auto.terms import Terms, bank_terms
from core.batch import Batch
from core.logistic import Floats, Ints
from core.rules import Table
from core.spec import Spec

MAX_CLIP = 1e12
"""Residuals are clipped to this, or to the spec's smaller `clip`. So their squares times squared values stay finite."""
_MIN_ROWS = 64
NO_LABELS = np.empty(0, np.uint8)
BANK_PARTS = "single", "evidence", "pairs", "counts", "rows", "owners", "small"


def _limits_of(spec: Spec) -> Floats:
    """What the kernels call `limits`. Class weights are divided by the larger one if that is above 1, and the clip with
    them: what counts is how they compare, and the mixture's bound holds for weights up to 1."""
    weights = spec.class_weights
    largest = max(1.0, *weights.values())
    return np.array([1.0, min(spec.clip / largest, MAX_CLIP), weights["0"] / largest, weights["1"] / largest])


def _power_of_2(least: int) -> int:
    return 1 << max(least - 1, 0).bit_length()


MORE = 8_192
"""An array that is too short doubles, but gets at most so many rows at once: a step that copied a table of 500 MB would
hold up the service for a second. The C library moves large arrays without copying them (`mremap`)."""


def _lengthen(array: npt.NDArray[Any], length: int, fill: float | Floats) -> None:
    """Make room for so many rows, in place; new ones are filled. Nothing else may look at the array meanwhile."""
    old = len(array)
    if length > old:
        array.resize((max(length, old + min(old, MORE)), *array.shape[1:]), refcheck=False)
        array[old:] = fill


class _Plan:
    """A plan as the kernels take it."""

    def __init__(self, plan: Plan) -> None:
        groups = plan.single, plan.evidence, plan.pairs
        self.layouts = [Layout.of(members) for members in groups]
        self.fresh = [at.fresh(members) for at, members in zip(self.layouts, groups, strict=True)]
        rates = [member.rate for members in groups for member in members]
        self.learners = len(rates)
        self.members = len(rates) + len(plan.stackers) + (plan.kalman is not None)
        self.small = np.zeros(small_of(plan, self.layouts))
        """What is small of a bank, at first."""
        views = np.array([member.view for member in plan.single], np.int64)
        self.arrays = np.array(self.layouts), views, np.concatenate([rates, *self.fresh, plan.stackers])


class Bank:
    """The arrays of one bank: a table for each group, the counts of indicators, the rows of pairs and their owners, and
    what is small."""

    def __init__(self, plan: Plan, of: _Plan, places: int) -> None:
        self._fresh = of.fresh
        self.single = np.zeros((0, of.layouts[0].width))
        self.evidence = np.zeros((0, of.layouts[1].width), np.float32)
        self.pairs = np.zeros((0, of.layouts[2].width), np.float32)
        self.counts = np.zeros((0, COUNTS))
        self.rows, self.owners = np.full(places, -1, np.int32), np.zeros(0, np.int32)
        self.small = of.small.copy()
        self.grow(1, FIRST_FIELD, 0, 2 * MOST)
        for table, at in zip(self.arrays(), of.layouts, strict=False):
            table[0, at.variances : at.squares] = 1.0  # of the bias
        bank = bank_of(*of.arrays[::2], *self.arrays())
        bank.adagrad[::2, : of.learners] = 1.0 / of.learners  # stackers start as the mean score
        if plan.kalman is not None:
            bank.kalman[0, : of.learners] = 1.0 / of.learners
            np.fill_diagonal(bank.kalman[1:], plan.kalman)

    def arrays(self) -> tuple[npt.NDArray[Any], ...]:
        """The arrays, as the kernels take them."""
        return self.single, self.evidence, self.pairs, self.counts, self.rows, self.owners, self.small

    def grow(self, features: int, fields: int, indicators: int, owners: int) -> None:
        """Make room for so many rows of each."""
        _lengthen(self.single, features, self._fresh[0])
        _lengthen(self.evidence, fields, self._fresh[1])
        _lengthen(self.counts, indicators, 0.0)
        _lengthen(self.owners, owners, -1)
        _lengthen(self.pairs, FIRST_PAIR + len(self.owners), self._fresh[2])


class Auto:
    """The state of an `auto` model, as `Learner` keeps it.

    limit
        The most features, and the most indicators and pairs together.
    """

    def __init__(self, spec: Spec, limit: int) -> None:
        self.plan = PLAN
        self._plan = _Plan(PLAN)
        self._limit = limit
        self._hashed = spec.hash_bits is not None
        self._limits = _limits_of(spec)
        self._features = 0
        self._rows = _MIN_ROWS
        self._statistics = np.zeros((_MIN_ROWS, STATISTICS))
        self._fields: dict[str, int] = {}
        self._kinds = np.zeros(_MIN_ROWS, np.int32)
        self._keys, self._places = np.zeros(_MIN_ROWS, np.int64), np.full(2 * _MIN_ROWS, -1, np.int32)
        self._first, self._second = Bank(PLAN, self._plan, PLACES), Bank(PLAN, self._plan, 1)
        self._shares = np.full(self._plan.members, 1.0 / self._plan.members)
        self._scalars = np.zeros(HEAVIEST + 1)
        self._scalars[HEAVIEST] = 1.0
        self._scalars[USUAL] = math.log(2)
        self._used = np.array([limit, 0, 0, 0])
        self._grow()

    @property
    def _banks(self) -> list[Bank]:
        return [self._first, self._second] if len(self._shares) > self._plan.members else [self._first]

    def _state(self, room: tuple[Floats, Indices]) -> tuple[Any, ...]:
        return (
            *self._plan.arrays, *self._first.arrays(), *self._second.arrays(), self._statistics, self._keys,
            self._places, self._kinds, self._used, self._scalars, self._shares, *room,
        )  # fmt: skip

    def _room(self, longest: int) -> tuple[Floats, Indices]:
        """Working space for an event."""
        numbers, integers = sizes(longest, self._plan.layouts, self._plan.members)
        return np.empty(numbers), np.empty(integers, np.int64)

    # -- predicting

    def score(self, columns: Ints, values: Floats) -> float:
        """The mixture's score for one event; changes nothing. A column that is not known is -2 - its kind."""
        return self._score(columns, values, self._room(len(columns)))

    def _score(self, columns: Ints, values: Floats, room: tuple[Floats, Indices]) -> float:
        score, n, free = np.empty(1), len(columns), self._limit - self._features
        go_through(
            0, n, free, np.array([0, n]), columns, values, NO_LABELS, values, self._limits, score, *self._state(room)
        )
        return float(score[0])

    def served(self, columns: Ints, values: Floats, features: int) -> Floats:
        """The score for one event, as in `Learner.served`."""
        return np.array([self.score(columns, values)])

    def kinds_of(self, names: Sequence[str]) -> list[int]:
        """What unknown names are made of: 2 * field, plus 1 for text. New fields have the numbers that they would get
        if the names were learned."""
        fields: dict[str, int] = {}
        kinds = []
        for name in names:
            field, text = self._field(name)
            number = self._fields.get(field)
            if number is None:
                number = fields.setdefault(field, len(self._fields) + len(fields))
            kinds.append(2 * number + text)
        return kinds

    def terms(self, columns: Ints, values: Floats) -> Terms:
        """The parts of the score for one event of n features, known or not; copies."""
        numbers, integers = self._room(len(columns))
        self._score(columns, values, (numbers, integers))
        counted = Counted(*integers[-len(Counted._fields) :].tolist())
        constants = self._plan.arrays[::2]
        banks = [bank_of(*constants, *bank.arrays()) for bank in (self._first, self._second)]
        room = carved(len(columns), banks[0], self._plan.members, numbers, integers)
        used = int(self._used[NUMBERED])
        sides = zip(banks, (room.first, room.second), (counted.pairs, counted.pairs_2), self._banks, strict=False)
        parts = [bank_terms(room, counted, pairs, bank, side, columns, used) for bank, side, pairs, _ in sides]
        return Terms.of(parts, self._shares)

    def _field(self, name: str) -> tuple[str, bool]:
        """A name's field, and whether it is text."""
        if self._hashed:
            name = name[: name.rindex("#")]
        field, text, _ = name.partition("=")
        return field, bool(text)

    # -- learning

    def learn(self, batch: Batch, taken: int, scores: Floats, learned: npt.NDArray[np.bool_]) -> int:
        """Learn n events in order. Every step is taken: scores and values are bounded, so all numbers stay finite.
        Returns how many were not."""
        learned[:] = True
        longest = batch.longest
        room = self._room(longest)
        at = 0
        while at < len(batch):
            alarms = self.alarms
            at = go_through(
                at, longest, 0, batch.offsets, batch.columns, batch.values, batch.labels, batch.weights, self._limits,
                scores, *self._state(room),
            )  # fmt: skip
            if self.alarms > alarms:
                self._restart_second()
            self._grow(2 * longest)
        return 0

    def _restart_second(self) -> None:
        """Start the second bank from zero with half of the weight. The first bank's members share the rest."""
        self._used[PAIRED + 1] = 0
        self._second = Bank(self.plan, self._plan, PLACES)
        first = self._shares[: self._plan.members]
        self._shares = np.concatenate([first * (0.5 / first.sum()), np.full(len(first), 0.5 / len(first))])

    def _grow(self, more: int = 0) -> None:
        """Make room for the features and fields that are known, for so `many` more indicators, and for pairs."""
        _lengthen(self._keys, int(self._used[NUMBERED]) + more, 0)
        if 2 * len(self._keys) > len(self._places):
            self._places = np.empty(2 * _power_of_2(len(self._keys)), np.int32)
            rebuild(int(self._used[NUMBERED]), self._keys, self._places)
        fields = FIRST_FIELD + PER_FIELD * len(self._fields)
        for bank, used in zip(self._banks, self._used[PAIRED:].tolist(), strict=False):
            bank.grow(self._rows, fields, len(self._keys), used + MOST)
            if used > len(bank.rows) // 4 and 2 * len(bank.rows) <= self._limit:
                bank.rows = np.concatenate([bank.rows, bank.rows])
                bank.owners[:] = -1

    @property
    def rows(self) -> int:
        """How many features the arrays have room for."""
        return self._rows - 1

    def add(self, first: int, names: Sequence[str]) -> None:
        """Add features, all 0, at the columns from `first` on."""
        self._features = first + len(names)
        if self._features + 1 > self._rows:
            _lengthen(self._statistics, self._features + 1, 0.0)
            _lengthen(self._kinds, len(self._statistics), 0)
            self._rows = len(self._statistics)
        self._kinds[first : self._features] = self.kinds_of(names)
        for name in names:
            self._fields.setdefault(self._field(name)[0], len(self._fields))
        self._grow()

    # -- telling

    def learners(self) -> list[dict[str, Any]]:
        """Every member with its present weight in the mixture, heaviest first. Its view is one of the data, or the
        inputs of its group."""
        members = [("single", VIEWS[each.view], RULES[each.rule], each.rate) for each in self.plan.single]
        for group in ("evidence", "pairs"):
            members += [(group, group, RULES[each.rule], each.rate) for each in getattr(self.plan, group)]
        members += [("stackers", "all", "adagrad", rate) for rate in self.plan.stackers]
        if self.plan.kalman is not None:
            members.append(("stackers", "all", "kalman", self.plan.kalman))
        names = "bank", "group", "view", "rule", "learning_rate", "weight"
        shares = self._shares.reshape(-1, len(members)).tolist()
        weights = [
            dict(zip(names, (bank, *member, share), strict=True))
            for bank, of_bank in enumerate(shares, 1)
            for member, share in zip(members, of_bank, strict=True)
        ]
        return sorted(weights, key=lambda learner: -learner["weight"])

    @property
    def alarms(self) -> int:
        """How often the second bank was started or restarted."""
        return int(self._scalars[ALARMS])

    # -- state

    def _parts(self, features: int) -> dict[str, npt.NDArray[Any]]:
        """The used part of every array, by name, for the first `features` columns."""
        indicators = int(self._used[NUMBERED])
        parts = {"used": self._used, "scalars": self._scalars, "shares": self._shares}
        parts |= {"statistics": self._statistics[:features], "keys": self._keys[:indicators]}
        rows = features + 1, FIRST_FIELD + PER_FIELD * len(self._fields)
        for name, bank, pairs in zip(("first", "second"), self._banks, self._used[PAIRED:].tolist(), strict=False):
            used = *rows, FIRST_PAIR + pairs, indicators, len(bank.rows), pairs, len(bank.small)
            for part, array, many in zip(BANK_PARTS, bank.arrays(), used, strict=True):
                parts[f"{name}_{part}"] = array[:many]
        return parts

    def size(self, features: int) -> int:
        """Bytes of what `arrays` returns."""
        return sum(8 * part.size for part in self._parts(features).values())

    def arrays(self, features: int) -> dict[str, Table]:
        """The whole state of the bias and the first `features` columns, as copies."""
        # One copy each: a second one in between would take seven times as long, most of it for new memory.
        return {name: part.astype(np.float64).reshape(-1) for name, part in self._parts(features).items()}

    def load(self, arrays: dict[str, Table], names: Sequence[str]) -> None:
        """Load what `arrays` returned; `names` are the features' names."""
        self._shares = arrays["shares"].copy()
        self._used[:] = arrays["used"]
        self._second = Bank(self.plan, self._plan, PLACES)
        for name, bank in zip(("first", "second"), self._banks, strict=False):
            bank.rows = np.empty(len(arrays[f"{name}_rows"]), np.int32)
        self.add(0, names)
        self._grow(1)
        parts = self._parts(len(names))
        for name, part in parts.items():
            part[...] = arrays[name].reshape(part.shape)
        self._places[:] = -1
        rebuild(int(self._used[NUMBERED]), self._keys, self._places)
