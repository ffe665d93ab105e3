"""The learner that needs no tuning: its theorem, what it promises of any stream, and a second one in plain Python."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
from auto_in_python import Mixture
from effort import examples, few
from hypothesis import example, given
from hypothesis import strategies as st
from streams import stream

from core import Learner, Spec
from core.auto import Auto
from core.auto.evidence import COUNTS, PER_FIELD
from core.auto.learners import STATISTICS, Layout
from core.auto.mixture import SHARE
from core.auto.pairs import PLACES
from core.auto.plan import PLAN, RULES, VIEWS, Plan
from core.batch import Batch, as_arrays
from core.builder import BatchBuilder
from core.explain import explain
from core.features import X
from core.learner import NoWeights, Outcome

AUTO = Spec(rule="auto")
STACKERS = len(PLAN.stackers) + 1
FIRST = len(PLAN.single) + len(PLAN.evidence) + len(PLAN.pairs) + STACKERS
"""Members of the first bank."""
Event = tuple[Any, int, float]


# -- a second one, in plain Python, for features that are all numbers


def score(learner: Learner, x: X) -> float:
    """The log odds of label 1."""
    return learner.score_of(*learner.encoded(x))


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
    ("seed", "flips", "alarms", "spec"),
    [
        (1, 0, 0, {}),
        (2, 1, 1, {}),
        (3, 1, 0, {"class_weights": {"0": 0.5, "1": 3.0}}),
        (4, 1, 0, {"clip": 0.3}),
    ],
)
def test_auto_is_what_its_description_says(seed: int, flips: int, alarms: int, spec: dict[str, Any]) -> None:
    """Through alarms and second banks too."""
    learner = Learner(Spec(rule="auto", **spec))
    weights = learner.spec.class_weights
    other = Mixture(learner.spec.clip, (weights["0"], weights["1"]))
    numbers = random.Random(seed)
    for x, y in made_up(400, seed, flips, doubt=0.1):
        w = numbers.choice([1.0, 1.0, 0.8, 1.25])
        expected = other.learn(x, y, w)
        assert learner.learn_many([x], [y], [w]).probabilities[0] == pytest.approx(expected, rel=1e-7)
    assert learner.auto is not None
    assert learner.auto.alarms == other.alarms
    assert other.alarms >= alarms
    ours = sorted(entry["weight"] for entry in learner.auto.learners())
    assert ours == pytest.approx(sorted(itertools.chain(*other.shares)), rel=1e-6, abs=1e-15)


# -- the theorem


def bound(losses: Sequence[float], events: int, alarms: int, members: int = FIRST) -> float:
    """What the log loss of the mixture is at most, in total."""
    return min(losses) + math.log(members) + alarms * math.log(2) - events * math.log(1 - SHARE)


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


@few(1)
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
        events.append((x, 1 - y if i > count // 2 else y, numbers.choice([1.0, 1.0, 0.5, 1.2])))
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


def test_new_names_are_scored_as_if_they_had_just_been_learned() -> None:
    """A new name has no weight, but the learners know how certain they are of it, and how many values have none."""
    one, other = Learner(AUTO), Learner(AUTO)
    for learner in (one, other):
        learner.learn_many([{"a": 1.0}, {"a": -2.0}, {"a": 0.5}], [1, 0, 1])
    other.features.columns_of(["never seen", "nor=this", "b"], add=True)
    for x in cast("list[X]", [{"a": 0.7, "never seen": 1e100, "nor": "this"}, {"b": 2.0, "never seen": 0.0}]):
        before = bits(one)
        p = one.predict_proba_one(x)
        assert bits(one) == before
        assert other.predict_proba_one(x) == p  # whether or not others have learned the names meanwhile
        assert Learner.from_state(one.state()).learn_many([x], [1]).probabilities.tolist() == [p[True]]


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


def test_tables_that_grow_by_few_rows_change_no_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large table gets some thousand rows at a time, since to copy it would hold up everybody."""
    events, at_once, slowly = awkward(800), Learner(AUTO), Learner(AUTO)
    at_once.learn_batch(batch_for(at_once, events))
    monkeypatch.setattr("core.auto.auto.MORE", 3)
    for x, y, w in events:
        slowly.learn_one(x, y, w)
    assert alarms_of(slowly) > 0
    assert bits(slowly) == bits(at_once)
    assert slowly.auto is not None
    assert slowly.n_features <= slowly.auto.rows <= slowly.n_features + 3


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
        learners = len(PLAN.single)
        state["arrays"]["first_single"][:learners] = sign  # the weights of the bias
        state["arrays"]["first_evidence"][: len(PLAN.evidence)] = sign
        state["arrays"]["first_pairs"][: len(PLAN.pairs)] = sign
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


def test_an_event_of_weight_1_counts_twice_as_much_in_the_shares_as_one_of_a_half() -> None:
    def shares(weight: float) -> dict[tuple[Any, ...], float]:
        learner = Learner(AUTO)
        learner.learn_many([{"a": 1.0}, {"a": -1.0}], [1, 0])
        before = shares_of(learner)
        learner.learn_one({"a": 2.0}, 1, weight)
        after = shares_of(learner)
        # As they were before the small share was given back; what is lost in normalising is the same for all.
        return {key: ((after[key] - SHARE / FIRST) / (1 - SHARE)) / before[key] for key in after}

    once, twice = shares(0.5), shares(1.0)
    first = next(iter(once))
    assert len({round(ratio, 6) for ratio in once.values()}) > 10  # the learners do differ
    for key, ratio in once.items():
        assert twice[key] / twice[first] == pytest.approx((ratio / once[first]) ** 2, rel=1e-9)
    assert shares(30.0) == twice  # above 1, log loss is not mixable


def shares_of(learner: Learner) -> dict[tuple[Any, ...], float]:
    assert learner.auto is not None
    named = ("bank", "view", "rule", "learning_rate")
    return {tuple(entry[name] for name in named): entry["weight"] for entry in learner.auto.learners()}


@pytest.mark.parametrize("label", [0, 1])
def test_a_class_weight_is_the_sample_weight_of_its_class_but_in_the_counts(label: int) -> None:
    """Evidence is how often a value came with each label, so a class weight must not move it."""
    events = stream("Phishing", 300)
    xs, ys = [x for x, _ in events], [y for _, y in events]
    by_event, plain = Learner(AUTO), Learner(AUTO)
    by_class = Learner(Spec(rule="auto", class_weights={"1" if label else "0": 0.4}))
    by_class.learn_many(xs, ys)
    plain.learn_many(xs, ys)
    by_event.learn_many(xs, ys, [0.4 if y == label else 1.0 for y in ys])
    of_class, of_event, of_plain = (each.state()["arrays"] for each in (by_class, by_event, plain))
    assert of_class["first_counts"].tolist() == of_plain["first_counts"].tolist() != of_event["first_counts"].tolist()
    assert of_class["first_single"].tolist() == of_event["first_single"].tolist() != of_plain["first_single"].tolist()


def rare(count: int) -> list[tuple[dict[str, float], int]]:
    """Label 1 is rare, and whoever is certain is wrong."""
    numbers, events = random.Random(1), []
    for _ in range(count):
        a = numbers.gauss(0, 1)
        events.append(({"a": a}, int(numbers.random() < 1 / (1 + math.exp(2 - a)))))
    return events


@pytest.mark.parametrize("weight", [10.0, 100.0])
def test_a_weight_that_all_events_have_changes_little(weight: float) -> None:
    xs, ys = zip(*rare(3000), strict=True)
    plain, weighted = Learner(AUTO), Learner(AUTO)
    losses = plain.learn_many(xs, ys).losses.mean()
    assert weighted.learn_many(xs, ys, [weight] * len(xs)).losses.mean() <= 1.02 * losses
    assert weighted.auto is not None
    assert weighted.auto.alarms == 0


@pytest.mark.parametrize("of_class", [True, False])
@pytest.mark.parametrize("weight", [10.0, 30.0])
def test_weights_of_a_label_above_1_beat_guessing_and_are_no_change_of_the_stream(
    weight: float, of_class: bool
) -> None:
    events = rare(3000)
    weights = np.array([weight if y else 1.0 for _, y in events])
    learner = Learner(Spec(rule="auto", class_weights={"1": weight} if of_class else {}))
    xs, ys = zip(*events, strict=True)
    losses = learner.learn_many(xs, ys, None if of_class else weights.tolist()).losses
    share = float(weights[[y == 1 for _, y in events]].sum() / weights.sum())
    guessing = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert (losses * weights).sum() / weights.sum() < guessing
    assert learner.auto is not None
    assert learner.auto.alarms == 0


def test_class_weights_count_by_how_they_compare() -> None:
    events = rare(200)
    large = Learner(Spec(rule="auto", clip=4.0, class_weights={"0": 2.0, "1": 8.0}))
    small = Learner(Spec(rule="auto", clip=0.5, class_weights={"0": 0.25, "1": 1.0}))
    assert outcome_of(large, events).losses.tolist() == outcome_of(small, events).losses.tolist()


def test_one_event_of_a_million_is_no_measure_for_those_that_follow() -> None:
    events = rare(3000)
    xs, ys = zip(*events, strict=True)
    weights = [1e6 if i == 1500 else 1.0 for i in range(len(xs))]
    plain = Learner(AUTO).learn_many(xs, ys).losses[1500:].mean()
    assert Learner(AUTO).learn_many(xs, ys, weights).losses[1500:].mean() <= 1.02 * plain


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
    for events, banks, members in (([], 1, FIRST), (awkward(30), 1, FIRST), (awkward(800), 2, 2 * FIRST)):
        learner = Learner(AUTO)
        learner.learn_batch(batch_for(learner, events))
        assert learner.auto is not None
        told = learner.auto.learners()
        assert len(told) == len(shares_of(learner)) == members  # each under a name of its own
        weights = [entry["weight"] for entry in told]
        assert sum(weights) == pytest.approx(1.0, abs=1e-9)
        assert weights == sorted(weights, reverse=True)
        assert min(weights) >= SHARE / members * 0.99
        assert {entry["bank"] for entry in told} == set(range(1, banks + 1))
    auto = Learner(AUTO).auto
    assert auto is not None
    assert [(e["view"], e["rule"], e["learning_rate"]) for e in auto.learners()] == [
        *[(VIEWS[each.view], RULES[each.rule], each.rate) for each in PLAN.single],
        *[("evidence", RULES[each.rule], each.rate) for each in PLAN.evidence],
        *[("pairs", RULES[each.rule], each.rate) for each in PLAN.pairs],
        *[("all", "adagrad", rate) for rate in PLAN.stackers],
        ("all", "kalman", PLAN.kalman),
    ]


def test_the_learner_that_is_best_counts_most() -> None:
    """Raw values of 1e9 tell the learners of the raw view nothing."""
    learner, numbers = Learner(AUTO), random.Random(9)
    outcome_of(learner, [learnable(1e9, numbers) for _ in range(1000)])
    shares = shares_of(learner)
    assert sum(weight for (_, view, _, _), weight in shares.items() if view == "raw") < 0.01


def test_memory_grows_in_proportion_to_the_features() -> None:
    """By so many numbers a feature: its statistics and its row; its field; its indicator with its key."""
    single, evidence, pairs = (Layout.of(members).width for members in (PLAN.single, PLAN.evidence, PLAN.pairs))

    def numbers_kept(features: int) -> int:
        learner = Learner(AUTO)
        learner.learn_one({f"x{i}": 1.0 for i in range(features)}, 1)
        return sum(array.size for array in learner.state()["arrays"].values())

    sizes = [numbers_kept(features) for features in (100, 200, 300, 1300)]
    a_hundred = sizes[1] - sizes[0]
    assert sizes[2] - sizes[1] == a_hundred
    assert sizes[3] - sizes[2] == 10 * a_hundred
    assert a_hundred == 100 * (STATISTICS + single + PER_FIELD * evidence + COUNTS + 1)
    # A pair's row, and its owner. A second bank is as much again, and later ones replace it.
    learner = Learner(AUTO)
    outcome_of(learner, [(x * 30, y) for x, y in majority(10, 250, 7)])
    assert alarms_of(learner) > 1
    arrays = learner.state()["arrays"]
    _, _, first, second = arrays["used"]
    kept = sum(array.size for array in arrays.values())
    places = len(arrays["first_rows"]) - PLACES, len(arrays["second_rows"])
    of_indicators, of_pairs = 210 * 20 * (2 * COUNTS + 1), (first + second) * (pairs + 1) + sum(places)
    assert kept <= 2 * numbers_kept(210) + of_indicators + of_pairs


# -- groups


@pytest.mark.parametrize("group", ["single", "evidence", "pairs", "stackers", "kalman"])
def test_without_a_line_of_the_plan_the_rest_learns_replays_and_keeps_the_bound(
    group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(**{name: part for name, part in PLAN._asdict().items() if name != group})
    monkeypatch.setattr("core.auto.auto.PLAN", plan)
    events = [({str(i): value for i, value in enumerate(x)}, y) for x, y in majority(2, 250, 7)]
    other, learner = Mixture(plan=plan), Learner(AUTO)
    losses = []
    for x, y in events:
        p = learner.predict_proba_one(x)[True]
        outcome = learner.learn_many([x], [y])
        assert outcome.probabilities.tolist() == [p]
        assert p == pytest.approx(other.learn(x, y), rel=1e-6)
        losses += outcome.losses.tolist()
    assert learner.auto is not None
    told = [entry for entry in learner.auto.learners() if entry["bank"] == 1]
    members = len(told)
    assert members == len(other.losses)
    assert sum(losses) <= bound(other.losses, len(events), alarms_of(learner), members) + 1e-6
    assert np.mean(losses[-250:]) < base_rate_loss([y for _, y in events])
    replayed = Learner(AUTO)
    outcome_of(replayed, events[:300])
    replayed = Learner.from_state(replayed.state())
    outcome_of(replayed, events[300:])
    assert bits(replayed) == bits(learner)
    parts = explain(learner, events[0][0])
    whole = math.fsum([parts.bias, *(each.contribution for each in parts.features)])
    assert whole == pytest.approx(parts.score, abs=1e-9)


# -- evidence and pairs


def clicks(count: int, seed: int) -> list[Event]:
    """Numbers, text, words as numbers, many of them new; labels that depend on a pair."""
    numbers, events = random.Random(seed), []
    for i in range(count):
        x: dict[str, Any] = {f"n{j}": numbers.gauss(0, 10.0 ** (j - 1)) for j in range(4) if numbers.random() < 0.8}
        x |= {"country": numbers.choice("abcdef"), "hour": numbers.choice("uvwxyz"), "user": f"u{i // 2}"}
        x |= {f"w={numbers.randrange(60)}": float(numbers.randrange(3)) for _ in range(3)}
        x[f"new {i}"] = numbers.gauss(0, 1)
        y = int((x["country"] < "d") == (x["hour"] < "x"))
        events.append((x, y, numbers.choice([1.0, 1.0, 0.3, 4.0])))
    return events


@pytest.mark.parametrize("spec", [{}, {"hash_bits": 5}, {"hash_bits": 18}, {"max_features": 60}])
def test_a_prediction_is_what_learning_reports_also_where_half_of_the_names_are_new(spec: dict[str, Any]) -> None:
    learner = Learner(Spec(rule="auto", **spec))
    for x, y, w in clicks(300, 7):
        before = bits(learner) if learner.seq % 50 == 0 else None
        p = learner.predict_proba_one(x)[True]
        assert before is None or bits(learner) == before  # counts too
        assert learner.learn_many([x], [y], [w]).probabilities.tolist() == [p]


@examples(30)
@given(
    st.lists(
        st.tuples(
            st.dictionaries(
                st.sampled_from(["a", "b", "c=1", "c=2", "d#3", "=", "e=f=g", "#=", "é"]),
                st.one_of(EXTREME_VALUES, st.sampled_from(["red", "=", "#", ""]), st.booleans()),
                max_size=6,
            ),
            st.integers(0, 1),
        ),
        max_size=12,
    ),
    st.sampled_from([{}, {"hash_bits": 1}, {"hash_bits": 20}, {"max_features": 3}]),
)
def test_a_prediction_is_what_learning_reports_for_any_names(
    events: list[tuple[Any, int]], spec: dict[str, Any]
) -> None:
    learner = Learner(Spec(rule="auto", **spec))
    for x, y in events:
        p = learner.predict_proba_one(x)[True]
        assert learner.learn_many([x], [y]).probabilities.tolist() == [p]


@pytest.mark.parametrize("spec", [{}, {"hash_bits": 8}, {"max_features": 200}])
def test_evidence_and_pairs_replay_to_the_bit(spec: dict[str, Any]) -> None:
    events, whole = clicks(400, 8), Learner(Spec(rule="auto", **spec))
    whole.learn_batch(batch_for(whole, events))
    parts = Learner(Spec(rule="auto", **spec))
    for start in range(0, 400, 37):
        parts.learn_batch(batch_for(parts, events[start : start + 37]))
        parts = Learner.from_state(parts.state())
    assert bits(parts) == bits(whole)


def test_pairs_learn_what_no_value_tells_by_itself() -> None:
    numbers, learner = random.Random(3), Learner(AUTO)
    events = [({"a": f"{numbers.randrange(6)}", "b": f"{numbers.randrange(6)}"}, 0) for _ in range(3000)]
    outcome = outcome_of(learner, [(x, (int(x["a"]) + int(x["b"])) % 2) for x, _ in events])
    assert outcome.losses[-1000:].mean() < 0.02
    by_group = Counter[str]()
    assert learner.auto is not None
    for entry in learner.auto.learners():
        by_group[entry["group"]] += entry["weight"]
    assert by_group["pairs"] + by_group["stackers"] > 0.9


def test_growing_the_table_changes_no_prediction_from_pairs_that_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.auto.auto.PLACES", 64)
    learner, learned, grow, places = Learner(AUTO), list[Event](), Auto._grow, [64]  # noqa: SLF001  # the only place where it grows

    def watched(auto: Auto, more: int = 0) -> None:
        known = [as_arrays(*learner.encoded(x)) for x, _, _ in learned] if more else []
        before = [auto.score(*x) for x in known]
        grow(auto, more)
        places.append(len(auto.arrays(0)["first_rows"]))
        assert [auto.score(*x) for x in known] == before

    monkeypatch.setattr(Auto, "_grow", watched)
    for x, y, w in clicks(150, 9):
        learned.append((x, y, w))
        learner.learn_one(x, y, w)
    assert sorted(set(places))[:4] == [64, 128, 256, 512]


def test_past_max_features_new_indicators_say_nothing_and_nothing_is_refused() -> None:
    learner = Learner(Spec(rule="auto", max_features=20))
    for x, y, w in clicks(200, 10):
        learner.learn_one(x, y, w)
    used = learner.state()["arrays"]["used"]
    assert used[1] + used[2] == 20
    assert len(learner.names) == 20
    assert learner.left_out > 0


def test_ties_are_by_place_in_the_event_whatever_the_names_hash_to() -> None:
    """Of 30 new words, none with evidence, the first twelve are paired."""
    words, more = [f"w={i}" for i in range(30)], [f"v={i * 7919}" for i in range(30)]
    kept = []
    for names in (words, more):
        learner = Learner(AUTO)
        learner.learn_one(dict.fromkeys(names, 1.0), 1)
        learner.learn_one(dict.fromkeys(names[:12], 1.0), 0)
        kept.append(learner.state()["arrays"]["used"].tolist())
    assert kept[0] == kept[1]
    assert kept[0][2] == 12 * 11 / 2
