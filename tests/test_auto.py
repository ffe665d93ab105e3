"""The learner that needs no tuning: its theorem, what it promises of any stream, and a second one in plain Python."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from effort import examples, few
from hypothesis import example, given
from hypothesis import strategies as st
from streams import stream

from core import Learner, Spec
from core.auto import (
    ADAGRAD,
    ALARM,
    ALARM_CAP,
    ALARM_SLACK,
    FTRL,
    MAX_SCORE,
    SGD,
    SHARE,
    STACKERS,
    VIEWS,
    K,
    M,
)
from core.batch import Batch
from core.builder import BatchBuilder
from core.features import X
from core.learner import NoWeights, Outcome

AUTO = Spec(rule="auto")
Event = tuple[Any, int, float]


# -- a second one, in plain Python, for features that are all numbers


def score(learner: Learner, x: X) -> float:
    """The log odds of label 1."""
    return learner.score_of(*learner.encoded(x))


class Statistics:
    """Of one feature: what its views need."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def views(self, x: float) -> dict[str, float]:
        """The four views of x, with x taken up; by the definitions, not by recurrences."""
        values = [*self.values, x]
        mean = math.fsum(values) / len(values)
        variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
        square = math.fsum(value * value for value in values) / len(values)
        largest = max(map(abs, values))
        return {
            "raw": x,
            "rms": x / math.sqrt(square) if square else 0.0,
            "standard": (x - mean) / math.sqrt(variance) if len(set(values)) > 1 else 0.0,
            "maxabs": x / largest if largest else 0.0,
        }


def clamped(z: float) -> float:
    return max(-MAX_SCORE, min(MAX_SCORE, z))


class Sgd:
    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.w: dict[str, float] = {}

    def score(self, x: dict[str, float]) -> float:
        return sum(self.w.get(name, 0.0) * value for name, value in x.items())

    def learn(self, x: dict[str, float], g: float) -> None:
        for name, value in x.items():
            self.w[name] = self.w.get(name, 0.0) - self.rate * g * value


class AdaGrad(Sgd):
    def __init__(self, rate: float) -> None:
        super().__init__(rate)
        self.squares: dict[str, float] = {}

    def learn(self, x: dict[str, float], g: float) -> None:
        for name, value in x.items():
            self.squares[name] = self.squares.get(name, 0.0) + (g * value) ** 2
            self.w[name] = self.w.get(name, 0.0) - self.rate * g * value / math.sqrt(self.squares[name] + 1e-8)


class Ftrl(Sgd):
    """McMahan et al. 2013 with beta 1 and no penalties."""

    def __init__(self, rate: float) -> None:
        super().__init__(rate)
        self.z: dict[str, float] = {}
        self.n: dict[str, float] = {}

    def learn(self, x: dict[str, float], g: float) -> None:
        for name, value in x.items():
            n, gradient = self.n.get(name, 0.0), g * value
            sigma = (math.sqrt(n + gradient**2) - math.sqrt(n)) / self.rate
            self.z[name] = self.z.get(name, 0.0) + gradient - sigma * self.w.get(name, 0.0)
            self.n[name] = n + gradient**2
            self.w[name] = -self.z[name] / ((1 + math.sqrt(self.n[name])) / self.rate)


class Bank:
    """Every learner and every stacker once."""

    def __init__(self) -> None:
        self.views = [VIEWS[view] for view, _ in (*SGD, *ADAGRAD, *FTRL)]
        self.learners: list[Sgd] = [Sgd(rate) for _, rate in SGD]
        self.learners += [AdaGrad(rate) for _, rate in ADAGRAD]
        self.learners += [Ftrl(rate) for _, rate in FTRL]
        self.stackers = [AdaGrad(rate) for rate in STACKERS]
        for stacker in self.stackers:
            stacker.w = {str(k): 1 / len(self.learners) for k in range(len(self.learners))}

    def scores(self, seen: dict[str, dict[str, float]]) -> list[float]:
        """`seen`: the event by view; the bias is a feature that is always 1."""
        z = [clamped(each.score(seen[view])) for each, view in zip(self.learners, self.views, strict=True)]
        self.heard = {str(k): score for k, score in enumerate(z)} | {"bias": 1.0}
        return z + [clamped(stacker.score(self.heard)) for stacker in self.stackers]

    def learn(self, seen: dict[str, dict[str, float]], g: Sequence[float]) -> None:
        for each, view, gk in zip(self.learners, self.views, g, strict=False):
            each.learn(seen[view], gk)
        for stacker, gk in zip(self.stackers, g[len(self.learners) :], strict=True):
            stacker.learn(self.heard, gk)


class Mixture:
    """What `Auto` is, by its description."""

    def __init__(self, clip: float = 1e12, class_weights: tuple[float, float] = (1.0, 1.0)) -> None:
        self.clip = clip
        self.class_weights = class_weights
        self.banks = [Bank()]
        self.shares = [[1 / M] * M]
        self.statistics: dict[str, Statistics] = {}
        self.excess, self.alarms = 0.0, 0
        self.losses = [0.0] * M
        """The log loss so far of each learner of the first bank."""
        self.loss = 0.0

    def learn(self, x: dict[str, float], y: int, weight: float = 1.0) -> float:
        """The probability before the event, which is then learned."""
        views = {name: self.statistics.setdefault(name, Statistics()).views(value) for name, value in x.items()}
        seen = {view: {"bias": 1.0} | {f"x.{name}": by[view] for name, by in views.items()} for view in VIEWS}
        scores = [bank.scores(seen) for bank in self.banks]
        of_1, of_0 = ([[1 / (1 + math.exp(sign * z)) for z in row] for row in scores] for sign in (-1, 1))
        p, q = (
            sum(c * s for rows in zip(of, self.shares, strict=True) for c, s in zip(*rows, strict=True))
            for of in (of_1, of_0)
        )
        p, q = p / (p + q), q / (p + q)
        weight *= self.class_weights[y]
        of_y, of_the_other = (of_1, of_0) if y else (of_0, of_1)
        for bank, row in zip(self.banks, of_the_other, strict=True):
            bank.learn(seen, [max(-self.clip, min(self.clip, (-c if y else c) * weight)) for c in row])
        for name, value in x.items():
            self.statistics[name].values.append(value)
        self.losses = [loss - math.log(c) for loss, c in zip(self.losses, of_y[0], strict=True)]
        self.loss -= math.log(p if y else q)
        largest = max(map(max, of_y))
        new = [
            [s * (c / largest) ** weight for c, s in zip(*rows, strict=True)]
            for rows in zip(of_y, self.shares, strict=True)
        ]
        total, count = sum(map(sum, new)), M * len(self.banks)
        self.shares = [[(1 - SHARE) * s / total + SHARE / count for s in row] for row in new]
        entropy = -p * math.log(p) - q * math.log(q)
        surprise = -math.log(p if y else q) - entropy
        self.excess = max(0.0, self.excess + min(surprise, ALARM_CAP) - ALARM_SLACK)
        if self.excess > ALARM:
            self.excess, self.alarms = 0.0, self.alarms + 1
            old = sum(self.shares[0])
            self.banks = [self.banks[0], Bank()]
            self.shares = [[0.5 * s / old for s in self.shares[0]], [0.5 / M] * M]
        return p


def made_up(count: int, seed: int, flips: int, doubt: float = 1.0) -> list[tuple[dict[str, float], int]]:
    """Numbers of several sizes, some missing, one constant, one late; the labels' rule is reversed `flips` times."""
    numbers, events = random.Random(seed), []
    for i in range(count):
        x = {"a": numbers.gauss(0, 1), "b": numbers.gauss(5, 2), "c": numbers.gauss(0, 300), "one": 1.0}
        if numbers.random() < 0.4:
            x["rare"] = numbers.gauss(0, 0.01)
        if i > count // 3:
            x["late"] = numbers.gauss(0, 1)
        z = 3 * x["a"] - (x["b"] - 5) + 2 * x.get("late", 0.0)
        if i * (flips + 1) // count % 2:
            z = -z
        events.append((x, int(numbers.random() < 1 / (1 + math.exp(-z / doubt)))))
    return events


def majority(blocks: int, block: int, features: int) -> list[tuple[list[float], int]]:
    """Values of ±1, and the label of their majority after some have been reversed: others in each block of events."""
    numbers, events = random.Random(block), []
    for _ in range(blocks):
        signs = [numbers.choice([-1.0, 1.0]) for _ in range(features)]
        for _ in range(block):
            x = [numbers.choice([-1.0, 1.0]) for _ in range(features)]
            events.append((x, int(sum(a * b for a, b in zip(signs, x, strict=True)) > 0)))
    return events


def outcome_of(learner: Learner, events: Sequence[Any]) -> Outcome:
    return learner.learn_many([event[0] for event in events], [event[1] for event in events])


@pytest.mark.parametrize(
    ("seed", "flips", "spec"),
    [
        (1, 0, {}),
        (2, 2, {}),
        (3, 1, {"class_weights": {"0": 0.5, "1": 3.0}}),
        (4, 1, {"clip": 0.3}),
    ],
)
def test_auto_is_what_its_description_says(seed: int, flips: int, spec: dict[str, Any]) -> None:
    """Through alarms and second banks too."""
    learner = Learner(Spec(rule="auto", **spec))
    weights = learner.spec.class_weights
    other = Mixture(learner.spec.clip, (weights["0"], weights["1"]))
    numbers = random.Random(seed)
    for x, y in made_up(300, seed, flips):
        w = numbers.choice([1.0, 1.0, 0.4, 2.5])
        expected = other.learn(x, y, w)
        assert learner.learn_many([x], [y], [w]).probabilities[0] == pytest.approx(expected, rel=1e-7)
    assert learner.auto is not None
    assert learner.auto.alarms == other.alarms
    assert other.alarms >= (flips > 1)
    ours = sorted(entry["weight"] for entry in learner.auto.learners())
    assert ours == pytest.approx(sorted(itertools.chain(*other.shares)), rel=1e-6, abs=1e-15)


# -- the theorem


def bound(losses: Sequence[float], events: int, alarms: int) -> float:
    """What the log loss of the mixture is at most, in total."""
    return min(losses) + math.log(M) + alarms * math.log(2) - events * math.log(1 - SHARE)


def assert_within_the_bound(events: Sequence[tuple[dict[str, float], int]]) -> int:
    """The theorem for these events, each learner's own log loss by the second one; the number of alarms."""
    other, learner = Mixture(), Learner(AUTO)
    for x, y in events:
        other.learn(x, y)
    loss = float(outcome_of(learner, events).losses.sum())
    assert loss == pytest.approx(other.loss, rel=1e-6, abs=1e-9)
    assert loss <= bound(other.losses, len(events), alarms_of(learner)) + 1e-6
    return alarms_of(learner)


@few(4)
@pytest.mark.parametrize(("seed", "flips"), [(seed, flips) for seed in range(4) for flips in (0, 1, 4)])
def test_the_mixture_loses_at_most_the_bound_more_than_any_learner(seed: int, flips: int) -> None:
    assert_within_the_bound(made_up(300, 100 + seed, flips, doubt=0.1 if flips else 1.0))


@pytest.mark.parametrize(("blocks", "alarms"), [(2, 1), (3, 2)])
def test_the_bound_holds_through_alarms(blocks: int, alarms: int) -> None:
    events = [({str(i): value for i, value in enumerate(x)}, y) for x, y in majority(blocks, 250, 7)]
    assert assert_within_the_bound(events) >= alarms


@examples(25)
@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from("abc"), st.floats(-100, 100).map(lambda x: round(x, 3)), max_size=3),
            st.integers(0, 1),
        ),
        max_size=40,
    )
)
@example([({"a": 1.0}, 1)] * 60 + [({"a": 1.0}, 0)] * 60)
@example([({"a": 1.0}, i % 2) for i in range(60)])
def test_the_bound_holds_for_any_stream(events: list[tuple[dict[str, float], int]]) -> None:
    assert_within_the_bound(events)


def test_a_single_good_learner_is_found_among_the_bad() -> None:
    """The bound's smallest case by hand: certain labels, and after n events at most ln M and little more is lost."""
    learner = Learner(AUTO)
    outcome = outcome_of(learner, [({"a": 1.0 if i % 2 else -1.0}, i % 2) for i in range(2000)])
    assert outcome.losses[-200:].mean() < 0.005
    assert learner.auto is not None
    assert learner.auto.alarms == 0


# -- predicting, learning, state


def awkward(count: int, seed: int = 4) -> list[Event]:
    """Text, booleans, missing, constant, late and never repeated features; values of any size; a change half-way."""
    numbers, events = random.Random(seed), []
    for i in range(count):
        city = numbers.choice(["Rome", "Oslo", "Lima"])
        x: dict[str, Any] = {"city": city, "one": 1.0, "vip": numbers.random() < 0.5, "zero": 0.0}
        x["huge"], x["tiny"] = numbers.gauss(0, 1e9), numbers.gauss(3e-9, 1e-9)
        if numbers.random() < 0.5:
            x["maybe"] = numbers.gauss(0, 1)
        if i > count // 2:
            x["late"] = numbers.gauss(0, 1)
        if i % 11 == 0:
            x["id"] = f"user {i}"
        z = 2e-9 * x["huge"] + 1.5 * x.get("maybe", 0.0) + (city == "Rome") - (city == "Oslo") + 0.5 * x["vip"]
        y = int(numbers.random() < 1 / (1 + math.exp(-z)))
        events.append((x, 1 - y if i > count // 2 else y, numbers.choice([1.0, 1.0, 0.2, 3.0])))
    return events


def bits(learner: Learner) -> tuple[Any, ...]:
    """Everything the learner is, to the bit."""
    state = learner.state()
    arrays = {name: array.tobytes() for name, array in state["arrays"].items()}
    return (arrays, state["seq"], state["n_features"], state["names"], learner.sha256())


def batch_for(learner: Learner, events: Sequence[Event]) -> Batch:
    builder = BatchBuilder(learner.features)
    for event in events:
        builder.add(*event)
    return builder.build()


def alarms_of(learner: Learner) -> int:
    assert learner.auto is not None
    return learner.auto.alarms


def test_the_probability_that_learning_reports_is_the_prediction_just_before() -> None:
    learner = Learner(AUTO)
    for x, y, w in awkward(800):
        p = learner.predict_proba_one(x)
        assert learner.learn_many([x], [y], [w]).probabilities.tolist() == [p[True]]
        assert p[False] == 1.0 - p[True]
    assert alarms_of(learner) > 0  # with a second bank too


def test_a_prediction_changes_nothing_and_can_be_repeated() -> None:
    learner, events = Learner(AUTO), awkward(800)
    learner.learn_batch(batch_for(learner, events[:500]))
    assert alarms_of(learner) > 0
    before = bits(learner)
    for x, _, _ in [*events[500:], ({}, 0, 1.0), ({"new": 1e100, "huge": -1e100}, 0, 1.0)]:
        assert learner.predict_proba_one(x) == learner.predict_proba_one(x)
    assert bits(learner) == before
    assert list(learner.features.names) == learner.names


def test_a_feature_that_was_never_learned_adds_nothing() -> None:
    learner = Learner(AUTO)
    learner.learn_many([{"a": 1.0}, {"a": -2.0}, {"a": 0.5}], [1, 0, 1])
    for x in ({"a": 0.7}, {}):
        assert score(learner, {**x, "never seen": 1e100, "nor": "this"}) == learner.score_of(*learner.encoded(x))


def test_two_learners_of_the_same_events_are_the_same() -> None:
    one, other = Learner(AUTO), Learner(AUTO)
    for learner in (one, other):
        learner.learn_batch(batch_for(learner, awkward(800)))
    assert alarms_of(one) > 0
    assert bits(one) == bits(other)


@pytest.mark.parametrize("size", [1, 2, 7, 100, 799])
def test_learning_in_pieces_equals_learning_at_once_with_alarms_within_the_pieces(size: int) -> None:
    events, at_once, in_pieces = awkward(800), Learner(AUTO), Learner(AUTO)
    whole = at_once.learn_batch(batch_for(at_once, events))
    probabilities: list[float] = []
    for piece in batch_for(in_pieces, events).slices(size):
        probabilities += in_pieces.learn_batch(piece).probabilities.tolist()
    assert alarms_of(at_once) > 0
    assert probabilities == whole.probabilities.tolist()
    assert bits(in_pieces) == bits(at_once)


def test_several_alarms_within_one_call() -> None:
    events: list[Event] = [(x, y, 1.0) for x, y in majority(10, 250, 7)]
    at_once, one_by_one = Learner(AUTO), Learner(AUTO)
    at_once.learn_batch(batch_for(at_once, events))
    for x, y, w in events:
        one_by_one.learn_one(x, y, w)
    assert alarms_of(at_once) > 2
    assert bits(at_once) == bits(one_by_one)


def test_a_learner_from_a_state_half_way_equals_one_that_was_never_interrupted() -> None:
    events, unbroken = awkward(800), Learner(AUTO)
    whole = unbroken.learn_batch(batch_for(unbroken, events)).probabilities.tolist()
    seen = set()
    for place in (0, 1, 200, 430, 500, 799, 800):
        first = Learner(AUTO)
        first.learn_batch(batch_for(first, events[:place]))
        second = Learner.from_state(first.state())
        assert bits(second) == bits(first)
        assert second.learn_batch(batch_for(second, events[place:])).probabilities.tolist() == whole[place:]
        assert bits(second) == bits(unbroken)
        seen.add(alarms_of(first) > 0)
    assert seen == {False, True}  # with the first bank alone, and with both


def test_a_second_bank_grows_with_the_features_that_come_after_it() -> None:
    learner, one_by_one = Learner(AUTO), Learner(AUTO)
    events: list[Event] = [(x, y, 1.0) for x, y in majority(4, 250, 7)]
    events += [({f"new {i}": 1.0, f"new {i // 2}": 0.5}, i % 2, 1.0) for i in range(300)]
    learner.learn_batch(batch_for(learner, events))
    for x, y, w in events:
        one_by_one.learn_one(x, y, w)
    assert alarms_of(learner) > 0
    assert bits(learner) == bits(one_by_one)
    assert bits(Learner.from_state(learner.state())) == bits(learner)


def test_a_state_is_a_copy_that_later_events_leave_alone() -> None:
    learner, events = Learner(AUTO), awkward(800)
    learner.learn_batch(batch_for(learner, events[:500]))
    for more in (events[:3], events[500:]):  # features it knows; then new ones, for which it makes room
        state, before = learner.state(), bits(learner)
        learner.learn_batch(batch_for(learner, more))
        assert bits(Learner.from_state(state)) == before


# -- any stream: finite, within (0, 1), sane


def assert_sound(learner: Learner, outcome: Outcome) -> None:
    assert outcome.learned.all()
    assert ((outcome.probabilities > 0.0) & (outcome.probabilities < 1.0)).all()
    assert (np.isfinite(outcome.losses) & (outcome.losses >= 0.0)).all()
    for name, array in learner.state()["arrays"].items():
        assert np.isfinite(array).all(), name
    assert learner.auto is not None
    assert sum(entry["weight"] for entry in learner.auto.learners()) == pytest.approx(1.0, abs=1e-9)


EXTREME_VALUES = st.one_of(
    st.floats(-1e100, 1e100),
    st.sampled_from([0.0, -0.0, 1e100, -1e100, 5e-324, -5e-324, 2.2e-308, 1e9, 1e-9, 1.0]),
)


@examples(80)
@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from("abcd"), EXTREME_VALUES, max_size=4),
            st.integers(0, 1),
            st.one_of(st.just(1.0), st.sampled_from([5e-324, 1e-6, 1e6, 1e12, 1e300, 1.7e308])),
        ),
        max_size=30,
    )
)
@example([({"a": 1e100, "b": -1e100}, i % 2, 1e300) for i in range(50)])
@example([({"a": 5e-324 * (i % 3)}, i % 2, 1.0) for i in range(50)])
def test_extreme_events_leave_only_finite_numbers(events: list[Event]) -> None:
    learner = Learner(Spec(rule="auto", class_weights={"0": 1.0, "1": 1e9}))
    assert_sound(learner, learner.learn_batch(batch_for(learner, events)))


@pytest.mark.parametrize(
    ("clip", "weight", "value"), [(1e308, 1e300, 1.0), (1e200, 1e180, 1.0), (1e130, 1e150, 1e100), (1e60, 1e80, 1e100)]
)
def test_a_clip_that_lets_huge_gradients_through_leaves_only_finite_numbers(
    clip: float, weight: float, value: float
) -> None:
    """As a model of any other rule, `auto` either takes a step whole, or does not take it."""
    learner = Learner(Spec(rule="auto", clip=clip))
    outcome = learner.learn_batch(batch_for(learner, [({"a": value}, i % 2, weight) for i in range(60)]))
    assert (np.isfinite(outcome.losses) & (outcome.losses >= 0.0))[outcome.learned].all()
    for name, array in learner.state()["arrays"].items():
        assert np.isfinite(array).all(), name
    assert learner.not_taken == 60 - int(outcome.learned.sum())


@pytest.mark.parametrize("weight", [1.0, 1e6])
@pytest.mark.parametrize("y", [0, 1])
def test_labels_of_one_class_become_likely_and_never_certain(y: int, weight: float) -> None:
    learner, numbers = Learner(AUTO), random.Random(3)
    events = [({"a": numbers.gauss(0, 1), "one": 1.0}, y, weight) for _ in range(5000)]
    outcome = learner.learn_batch(batch_for(learner, events))
    assert_sound(learner, outcome)
    assert outcome.losses[-500:].mean() < 0.001
    assert alarms_of(learner) == 0


def test_even_learners_that_are_all_certain_leave_a_doubt() -> None:
    learner = Learner(AUTO)
    learner.learn_one({}, 1)
    for sign, y in itertools.product((1e6, -1e6), (0, 1)):
        state = learner.state()
        state["arrays"]["first_w"][:] = sign
        certain = Learner.from_state(state)
        p = certain.predict_proba_one({})
        assert min(p.values()) > 0.0
        assert_sound(certain, certain.learn_many([{}, {}], [y, y]))


def base_rate_loss(labels: Sequence[int]) -> float:
    """The log loss of who knows how many labels are 1, and nothing else."""
    rate = sum(labels) / len(labels)
    return -rate * math.log(rate) - (1 - rate) * math.log(1 - rate)


def learnable(scale: float, numbers: random.Random) -> tuple[Any, int]:
    a, b = numbers.gauss(0, 1), numbers.gauss(0, 1)
    return {"a": a * scale, "b": (b + 3) * scale, "noise": numbers.gauss(0, scale)}, int(a + b > numbers.gauss(0, 1))


def words(numbers: random.Random) -> tuple[Any, int]:
    text = numbers.sample(["good", "fine", "bad", "poor", "the", "a", "of", "to"], 3)
    return dict.fromkeys(text, 1.0), int(("good" in text) + ("fine" in text) > ("bad" in text) + ("poor" in text))


def categories(numbers: random.Random) -> tuple[Any, int]:
    city = numbers.choice(["Rome", "Oslo", "Lima", "Cork"])
    return {"city": city, "vip": numbers.random() < 0.5}, int(
        numbers.random() < {"Rome": 0.9, "Oslo": 0.1}.get(city, 0.5)
    )


def missing(numbers: random.Random) -> tuple[Any, int]:
    x, y = learnable(1.0, numbers)
    return {name: value for name, value in x.items() if numbers.random() < 0.6}, y


def constant(numbers: random.Random) -> tuple[Any, int]:
    x, y = learnable(1.0, numbers)
    return {**x, "one": 1.0, "large": 1e9, "zero": 0.0}, y


def mixed_scales(numbers: random.Random) -> tuple[Any, int]:
    x, y = learnable(1.0, numbers)
    return {"a": x["a"] * 1e9, "b": x["b"] * 1e-9, "noise": x["noise"]}, y


def spikes(numbers: random.Random) -> tuple[Any, int]:
    x, y = learnable(1.0, numbers)
    return ({**x, "noise": numbers.choice([1e100, -1e100, 5e-324])} if numbers.random() < 0.02 else x), y


LEARNABLE: dict[str, Any] = {
    "usual values": lambda numbers: learnable(1.0, numbers),
    "values of 1e9": lambda numbers: learnable(1e9, numbers),
    "values of 1e-9": lambda numbers: learnable(1e-9, numbers),
    "values of 1e99": lambda numbers: learnable(1e99, numbers),
    "values of 1e-300": lambda numbers: learnable(1e-150, numbers),
    "scales of 1e9 and 1e-9": mixed_scales,
    "text": words,
    "categories and booleans": categories,
    "missing values": missing,
    "constant features": constant,
    "a few values of 1e100 and denormal ones": spikes,
}


@pytest.mark.parametrize("source", LEARNABLE.values(), ids=LEARNABLE.keys())
def test_what_can_be_learned_is_learned(source: Any) -> None:
    numbers, learner = random.Random(9), Learner(AUTO)
    events = [source(numbers) for _ in range(3000)]
    outcome = outcome_of(learner, events)
    assert_sound(learner, outcome)
    assert outcome.losses.mean() < 0.9 * base_rate_loss([y for _, y in events])


def test_a_feature_that_comes_late_is_learned() -> None:
    numbers, learner = random.Random(9), Learner(AUTO)
    events: list[tuple[Any, int]] = [({"noise": numbers.gauss(0, 1)}, numbers.randrange(2)) for _ in range(2000)]
    for _ in range(1000):
        late = numbers.gauss(0, 1)
        events.append(({"noise": numbers.gauss(0, 1), "late": late}, int(late > 0)))
    outcome = outcome_of(learner, events)
    assert_sound(learner, outcome)
    assert outcome.losses[-300:].mean() < 0.3


@pytest.mark.parametrize("rate", [0.5, 0.05])
def test_where_there_is_nothing_to_learn_little_is_lost_beside_the_base_rate(rate: float) -> None:
    numbers, learner = random.Random(10), Learner(AUTO)
    events = [
        ({f"noise {i}": numbers.gauss(0, 1) for i in range(5)}, int(numbers.random() < rate)) for _ in range(4000)
    ]  # fmt: skip
    outcome = outcome_of(learner, events)
    assert_sound(learner, outcome)
    assert outcome.losses.mean() < base_rate_loss([y for _, y in events]) + 0.012


# -- weights of events


def test_an_event_of_weight_2_counts_twice_in_the_shares() -> None:
    def shares(weight: float) -> dict[tuple[Any, ...], float]:
        learner = Learner(AUTO)
        learner.learn_many([{"a": 1.0}, {"a": -1.0}], [1, 0])
        before = shares_of(learner)
        learner.learn_one({"a": 2.0}, 1, weight)
        after = shares_of(learner)
        # As they were before the small share was given back; what is lost in normalising is the same for all.
        return {key: ((after[key] - SHARE / M) / (1 - SHARE)) / before[key] for key in after}

    once, twice = shares(1.0), shares(2.0)
    first = next(iter(once))
    assert len({round(ratio, 6) for ratio in once.values()}) > 10  # the learners do differ
    for key, ratio in once.items():
        assert twice[key] / twice[first] == pytest.approx((ratio / once[first]) ** 2, rel=1e-9)


def shares_of(learner: Learner) -> dict[tuple[Any, ...], float]:
    assert learner.auto is not None
    named = ("bank", "view", "rule", "learning_rate")
    return {tuple(entry[name] for name in named): entry["weight"] for entry in learner.auto.learners()}


@pytest.mark.parametrize("label", [0, 1])
def test_a_class_weight_is_the_sample_weight_of_its_class(label: int) -> None:
    by_class = Learner(Spec(rule="auto", class_weights={"1" if label else "0": 2.5}))
    by_event = Learner(AUTO)
    events = stream("Phishing", 300)
    ys = [y for _, y in events]
    by_class.learn_many([x for x, _ in events], ys)
    by_event.learn_many([x for x, _ in events], ys, [2.5 if y == label else 1.0 for y in ys])
    assert by_class.sha256() == by_event.sha256()


@pytest.mark.parametrize("weight", [1e6, 1e12, 1e-12])
def test_heavy_and_light_events_leave_finite_numbers_and_a_sane_model(weight: float) -> None:
    learner, numbers = Learner(AUTO), random.Random(5)
    events = [(*learnable(1.0, numbers), weight if i % 50 == 0 else 1.0) for i in range(2000)]
    outcome = learner.learn_batch(batch_for(learner, events))
    assert_sound(learner, outcome)
    assert outcome.losses.mean() < 1.0


# -- streams that change


@few(1)
@pytest.mark.parametrize("name", ["Phishing", "Bananas", "Shuttle"])
def test_after_an_abrupt_change_it_is_soon_as_good_as_one_that_starts_there(name: str) -> None:
    events = stream(name)
    half, last = len(events) // 2, len(events) // 5
    flipped = [(x, 1 - y if i >= half else y) for i, (x, y) in enumerate(events)]
    through = float(outcome_of(Learner(AUTO), flipped).losses[-last:].mean())
    afresh = float(outcome_of(Learner(AUTO), flipped[half:]).losses[-last:].mean())
    assert through <= 1.05 * afresh


@few(1)
@pytest.mark.parametrize("name", ["Phishing", "Shuttle"])
def test_an_abrupt_change_raises_the_alarm_and_the_stream_as_it_is_does_not(name: str) -> None:
    events = stream(name)
    half = len(events) // 2
    changed, as_it_is = Learner(AUTO), Learner(AUTO)
    outcome_of(changed, [(x, 1 - y if i >= half else y) for i, (x, y) in enumerate(events)])
    outcome_of(as_it_is, events)
    assert alarms_of(changed) > 0 == alarms_of(as_it_is)


def test_a_single_wrong_label_raises_no_alarm() -> None:
    learner = Learner(AUTO)
    for i in range(3000):
        sign = 1.0 if i % 2 else -1.0
        learner.learn_one({"a": sign}, int(sign > 0) if i % 300 else int(sign < 0))
    assert alarms_of(learner) == 0


# -- quality: 1.005 times the best of ten usual configurations, chosen in hindsight

BARS = {"Phishing": 0.2635, "Bananas": 0.6893, "Shuttle": 0.0230}


@pytest.mark.parametrize("name", BARS)
def test_untuned_it_is_as_good_as_the_best_of_ten_tuned_learners(name: str) -> None:
    outcome = outcome_of(Learner(AUTO), stream(name))
    assert outcome.losses.mean() <= BARS[name]


# -- what it says of itself


def test_it_has_no_weights_and_no_bias_and_says_so() -> None:
    learner = Learner(AUTO)
    learner.learn_one({"a": 1.0}, 1)
    for ask in (
        lambda: learner.weights,
        lambda: learner.bias,
        lambda: learner.linear,
        learner.weights_by_name,
    ):
        with pytest.raises(NoWeights, match="auto has no weights"):
            ask()
    assert Learner().auto is None


def test_it_tells_its_learners_and_what_each_counts_for() -> None:
    learner = Learner(AUTO)
    assert learner.auto is not None
    for events, banks in (([], 1), (awkward(30), 1), (awkward(800), 2)):
        learner = Learner(AUTO)
        learner.learn_batch(batch_for(learner, events))
        assert learner.auto is not None
        told = learner.auto.learners()
        assert len(told) == len(shares_of(learner)) == banks * M  # each under a name of its own
        weights = [entry["weight"] for entry in told]
        assert sum(weights) == pytest.approx(1.0, abs=1e-9)
        assert weights == sorted(weights, reverse=True)
        assert min(weights) >= SHARE / (banks * M) * 0.99
        assert {entry["bank"] for entry in told} == set(range(1, banks + 1))
    auto = Learner(AUTO).auto
    assert auto is not None
    assert [(e["view"], e["rule"], e["learning_rate"]) for e in auto.learners()] == [
        *[(VIEWS[view], "sgd", rate) for view, rate in SGD],
        *[(VIEWS[view], "adagrad", rate) for view, rate in ADAGRAD],
        *[(VIEWS[view], "ftrl", rate) for view, rate in FTRL],
        *[("all", "stack", rate) for rate in STACKERS],
    ]


def test_the_learner_that_is_best_counts_most() -> None:
    """Raw values of 1e9 tell the learners of the raw view nothing."""
    learner, numbers = Learner(AUTO), random.Random(9)
    outcome_of(learner, [learnable(1e9, numbers) for _ in range(1000)])
    shares = shares_of(learner)
    assert sum(weight for (_, view, _, _), weight in shares.items() if view == "raw") < 0.01


def test_memory_grows_in_proportion_to_the_features() -> None:
    def numbers_kept(features: int) -> int:
        learner = Learner(AUTO)
        learner.learn_one([1.0] * features, 1)
        return sum(array.size for array in learner.state()["arrays"].values())

    sizes = [numbers_kept(features) for features in (100, 200, 300, 1300)]
    a_hundred = sizes[1] - sizes[0]
    assert sizes[2] - sizes[1] == a_hundred
    assert sizes[3] - sizes[2] == 10 * a_hundred
    assert a_hundred == 100 * (5 + K + (len(ADAGRAD) + len(FTRL)) + len(FTRL))
    # A second bank is as much again, and later ones replace it.
    learner = Learner(AUTO)
    events = [(x * 30, y) for x, y in majority(10, 250, 7)]
    outcome_of(learner, events)
    assert alarms_of(learner) > 1
    kept = sum(array.size for array in learner.state()["arrays"].values())
    assert kept <= 2 * numbers_kept(210)
