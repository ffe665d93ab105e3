"""The learner: what holds for any events of any model, and its state."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import random
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from effort import examples
from hypothesis import example, given
from hypothesis import strategies as st

from core import EventError, Learner, Spec, logistic
from core.builder import BatchBuilder
from core.features import Features
from core.rules import BIAS, RULES
from core.spec import InverseScaling, Optimal

Event = tuple[Any, int, float]

NAMES = st.sampled_from([*"abcdef", "city", "größe", "0", "1", "city=Rome"])
USUAL = st.floats(-1e3, 1e3)
EXTREME = st.one_of(
    st.floats(-1e100, 1e100),
    st.sampled_from([0.0, -0.0, 1e100, -1e100, 5e-324, -5e-324, 2.2e-308, 1e-200, 1e50]),
)


def xs(numbers: st.SearchStrategy[float]) -> st.SearchStrategy[Any]:
    values = st.one_of(numbers, numbers, st.booleans(), st.integers(-1000, 1000), st.sampled_from(["Rome", "Oslo", ""]))
    objects = st.dictionaries(NAMES, values, max_size=6)
    objects = objects.filter(lambda x: not ("city=Rome" in x and x.get("city") == "Rome"))  # one feature twice: refused
    return st.one_of(objects, st.lists(numbers, max_size=4))


def streams(numbers: st.SearchStrategy[float], weights: st.SearchStrategy[float]) -> st.SearchStrategy[list[Event]]:
    return st.lists(st.tuples(xs(numbers), st.integers(0, 1), weights), max_size=15)


EVENTS = streams(USUAL, st.floats(0.01, 10.0))
EXTREME_EVENTS = streams(EXTREME, st.one_of(st.floats(5e-324, 1.7e308), st.just(1.0)))
# A spec of every kind: of every rule, with every scale, penalty and schedule somewhere.
LINEAR = [
    Spec(),
    Spec(learning_rate=0.3, l1=0.01),
    Spec(learning_rate=0.3, l2=0.1, clip=0.2),
    Spec(learning_rate=1.0, bias_learning_rate=0.0),
    Spec(learning_rate=0.1, hash_bits=2),
    Spec(rule="momentum", scale="standard", l1=0.01),
    Spec(rule="nesterov", learning_rate=InverseScaling("inverse_scaling", 0.1)),
    Spec(rule="adagrad", scale="maxabs", class_weights={"0": 0.5, "1": 3.0}),
    Spec(rule="rmsprop", l1=0.001),
    Spec(rule="adadelta", bias_learning_rate=Optimal("optimal", 0.01)),
    Spec(rule="adam", scale="standard", l2=0.01),
    Spec(rule="amsgrad", correct_bias=False, hash_bits=3),
    Spec(rule="nadam", learning_rate=Optimal("optimal", 0.01)),
    Spec(rule="adamax", scale="maxabs", l1=0.01),
    Spec(rule="adabound", learning_rate=InverseScaling("inverse_scaling", 0.1), scale="standard"),
    Spec(rule="ftrl", l1=0.5, l2=0.5),
    Spec(rule="ftrl", lag=False, l1=0.5, scale="standard"),
]
KINDS = [*LINEAR, Spec(rule="auto"), Spec(rule="auto", hash_bits=2, class_weights={"0": 0.5, "1": 3.0})]
LINEAR_SPECS = st.sampled_from(LINEAR)
SPECS = st.sampled_from(KINDS)
EXTREME_SPECS = st.sampled_from(
    [
        Spec(),
        Spec(learning_rate=1e100),
        Spec(learning_rate=1e300, clip=1e308),
        Spec(learning_rate=1e-300),
        Spec(learning_rate=1e200, l1=1e100),
        Spec(learning_rate=1e3, l1=1e306),
        Spec(learning_rate=1e150, l2=1e150),
        Spec(bias_learning_rate=1e308, clip=1e308),
        Spec(learning_rate=1e100, max_value=1e300, hash_bits=1),
        Spec(learning_rate=Optimal("optimal", 1e-300)),
        Spec(learning_rate=InverseScaling("inverse_scaling", 1e200, 10.0), scale="maxabs"),
        *[Spec(rule=rule, max_value=1e300) for rule in RULES],
        *[Spec(rule=rule, max_value=1e300, scale="standard") for rule in RULES],
        *[Spec(rule=rule, max_value=1e300, scale="maxabs", clip=1e308, l1=1e300) for rule in RULES],
        Spec(rule="auto"),
        Spec(rule="auto", clip=1e308),
    ]
)


def described(spec: Spec) -> str:
    """An id for a test: what a spec says that the default one does not."""
    usual = Spec().as_dict()
    return ", ".join(f"{name}={value}" for name, value in spec.as_dict().items() if usual.get(name) != value)


def learned(spec: Spec, events: Sequence[Event]) -> Learner:
    learner = Learner(spec)
    for x, y, w in events:
        learner.learn_one(x, y, w)
    return learner


def state_bytes(learner: Learner) -> bytes:
    """Everything the learner is, to the bit."""
    state = learner.state()
    arrays = state.pop("arrays")
    return json.dumps(state).encode() + b"".join(name.encode() + array.tobytes() for name, array in arrays.items())


# -- learning and predicting


@examples(60)
@given(EVENTS)
def test_learning_and_predicting_never_change_their_input(events: list[Event]) -> None:
    before = copy.deepcopy(events)
    learner = learned(Spec(), events)
    learner.learn_many([x for x, _, _ in events], [y for _, y, _ in events], [w for _, _, w in events])
    for x, _, _ in events:
        learner.predict_proba_one(x)
    assert events == before
    assert [list(x) for x, _, _ in events] == [list(x) for x, _, _ in before]  # the order of features too


def test_learning_a_batch_does_not_change_its_arrays() -> None:
    learner = Learner(Spec(learning_rate=0.5, l1=0.1))
    builder = BatchBuilder(learner.features)
    for i in range(5):
        builder.add({"a": float(i), "b": 1.0}, i % 2, 0.5)
    batch = builder.build()
    arrays = (batch.offsets, batch.columns, batch.values, batch.labels, batch.weights)
    before = [array.tobytes() for array in arrays]
    learner.learn_batch(batch)
    assert [array.tobytes() for array in arrays] == before


@examples(60)
@given(SPECS, EVENTS, xs(EXTREME))
def test_a_prediction_changes_nothing(spec: Spec, events: list[Event], x: Any) -> None:
    learner = learned(spec, events)
    before, sha256, names = state_bytes(learner), learner.sha256(), list(learner.features.names)
    first = learner.predict_proba_one(x)
    assert learner.predict_proba_one(x) == first
    assert state_bytes(learner) == before
    assert learner.sha256() == sha256
    assert learner.features.names == names


@examples(60)
@given(SPECS, EVENTS, xs(EXTREME))
def test_the_probabilities_of_the_two_labels_sum_to_one(spec: Spec, events: list[Event], x: Any) -> None:
    proba = learned(spec, events).predict_proba_one(x)
    assert list(proba) == [False, True]
    assert 0.0 <= proba[True] <= 1.0
    assert proba[False] == 1.0 - proba[True]


@pytest.mark.parametrize("rule", ["sgd", "adam", "auto"])
def test_a_hash_that_was_asked_for_is_of_that_moment_whatever_is_learned_until_it_is_made(rule: str) -> None:
    learner = Learner(Spec(rule=rule))
    learner.learn_many([{"a": 1.0, "b": float(i)} for i in range(30)], [i % 2 for i in range(30)])
    before, asked = learner.sha256(), learner.sha256_now()
    learner.learn_many([{"a": 2.0, "new": float(i)} for i in range(30)], [1] * 30)
    assert asked() == before != learner.sha256()


@examples(80)
@given(SPECS, EVENTS)
def test_learning_many_is_learning_one_after_the_other_to_the_bit(spec: Spec, events: list[Event]) -> None:
    one_by_one, at_once = Learner(spec), Learner(spec)
    probabilities = []
    for x, y, w in events:
        probabilities.append(one_by_one.predict_proba_one(x)[True])
        one_by_one.learn_one(x, y, w)
    outcome = at_once.learn_many([x for x, _, _ in events], [y for _, y, _ in events], [w for _, _, w in events])
    assert state_bytes(at_once) == state_bytes(one_by_one)
    assert at_once.sha256() == one_by_one.sha256()
    assert outcome.probabilities.tolist() == probabilities  # each made before its step
    assert outcome.labels.tolist() == [y for _, y, _ in events]
    assert outcome.learned.all()
    assert at_once.seq == len(events)


def test_learning_many_is_n_steps_and_not_one_averaged_step() -> None:
    learner = Learner(Spec(learning_rate=0.5))
    outcome = learner.learn_many([{"a": 2.0}, {"a": 2.0}], [1, 1])
    # The first step: w = 1/2·1/2·2 = 1/2 and b = 1/4; the second prediction is made from them.
    second = 1 / (1 + math.exp(-1.25))
    assert outcome.probabilities.tolist() == [0.5, second]
    assert outcome.losses.tolist() == pytest.approx([math.log(2), -math.log(second)], rel=1e-15)
    assert learner.weights_by_name() == {"a": pytest.approx(0.5 + 0.5 * (1 - second) * 2.0, rel=1e-15)}
    assert learner.bias == pytest.approx(0.25 + 0.5 * (1 - second), rel=1e-15)


def test_sample_weights_are_one_where_none_are_given() -> None:
    given_ones, given_none = Learner(), Learner()
    given_ones.learn_many([{"a": 2.0}, [1.0]], [1, 0], [1.0, 1.0])
    given_none.learn_many([{"a": 2.0}, [1.0]], [1, 0])
    assert state_bytes(given_ones) == state_bytes(given_none)


def test_an_event_without_features_moves_the_bias_alone() -> None:
    learner = Learner(Spec(learning_rate=0.5))
    learner.learn_one({}, 1)
    assert (learner.bias, learner.weights_by_name(), learner.seq) == (0.25, {}, 1)
    learner.learn_one([], 0)
    assert learner.bias < 0.25
    assert learner.weights_by_name() == {}


def test_a_feature_that_was_never_learned_predicts_the_bias() -> None:
    learner = Learner(Spec(learning_rate=0.5))
    learner.learn_one({"a": 2.0}, 1)
    assert learner.score_of(*learner.encoded({"never seen": 1e100})) == learner.bias == 0.25


@pytest.mark.parametrize("spec", KINDS, ids=described)
def test_learning_nothing_is_nothing(spec: Spec) -> None:
    learner = Learner(spec)
    before = state_bytes(learner)
    assert len(learner.learn_many([], []).labels) == 0
    assert state_bytes(learner) == before


@examples(30)
@given(st.integers(1, 400), st.integers(1, 60), st.sampled_from([0.0, 1e-3]))
def test_a_model_grows_with_its_features_and_keeps_every_weight(features: int, per_event: int, l1: float) -> None:
    """The room for weights doubles now and then; nothing of that is to be seen."""
    learner, expected = Learner(Spec(learning_rate=0.5, l1=l1)), dict[str, float]()
    for start in range(0, features, per_event):
        x = {f"f{i}": 1.0 + i for i in range(start, min(start + per_event, features))}
        learner.learn_one(x, start % 2)
        expected |= {name: learner.weights_by_name()[name] for name in x}  # no later event has these
    assert list(learner.weights_by_name().items()) == list(expected.items())
    assert any(expected.values())
    assert len(learner.weights) == learner.n_features == features


@examples(150)
@given(EXTREME_SPECS, EXTREME_EVENTS, xs(EXTREME))
@example(Spec(), [], {})
@example(Spec(learning_rate=1e100), [({"a": 1e100}, 1, 1e300), ({"a": 1e100, "b": -1e100}, 0, 1.0)], {"a": -1e100})
@example(Spec(learning_rate=1e3, l1=1e306), [({"a": 1.0}, 1, 1.0)], {"a": 1.0})
@example(Spec(learning_rate=1e-300), [({"a": 5e-324}, 1, 5e-324)], {"a": 5e-324})
def test_extreme_events_never_leave_a_number_that_is_not_finite(spec: Spec, events: list[Event], x: Any) -> None:
    learner = Learner(spec)
    outcome = learner.learn_many([x for x, _, _ in events], [y for _, y, _ in events], [w for _, _, w in events])
    assert ((outcome.probabilities >= 0.0) & (outcome.probabilities <= 1.0)).all()
    assert (np.isfinite(outcome.losses) & (outcome.losses >= 0.0))[outcome.learned].all()
    arrays = learner.state()["arrays"]
    assert len(arrays) >= 5
    for name, array in arrays.items():
        assert np.isfinite(array).all(), name
    assert learner.seq == len(events)
    assert learner.not_taken == len(events) - int(outcome.learned.sum())
    assert 0.0 <= learner.predict_proba_one(x)[True] <= 1.0


def test_a_step_that_is_not_taken_counts_as_an_event_and_changes_nothing_else() -> None:
    learner = Learner(Spec(learning_rate=1e250))
    learner.learn_one({"a": 1.0}, 1)
    sha256, bias = learner.sha256(), learner.bias
    outcome = learner.learn_many([{"a": 1e99}], [0])
    assert outcome.learned.tolist() == [False]
    assert (learner.seq, learner.not_taken) == (2, 1)
    assert (learner.sha256(), learner.bias) == (sha256, bias)


# -- all or nothing

BAD_EVENTS: dict[str, Event] = {
    "x": ({"new": 1.0, "a": math.nan}, 1, 1.0),
    "y": ({"new": 1.0}, 2, 1.0),
    "weight": ({"new": 1.0}, 1, 0.0),
}


@pytest.mark.parametrize("bad", BAD_EVENTS.values(), ids=BAD_EVENTS.keys())
@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("spec", [Spec(l1=0.01), Spec(rule="adam", scale="standard"), Spec(rule="auto")], ids=described)
def test_learning_many_is_all_or_nothing(spec: Spec, bad: Event, place: int) -> None:
    learner = learned(spec, [({"a": 1.0}, 1, 1.0), ({"b": "x"}, 0, 1.0)])
    before, names = state_bytes(learner), list(learner.features.names)
    events: list[Event] = [({"other": 1.0}, 1, 1.0), ({"a": 2.0}, 0, 1.0), ({"one more": 3.0}, 1, 1.0)]
    events.insert(place, bad)
    with pytest.raises(EventError):
        learner.learn_many([x for x, _, _ in events], [y for _, y, _ in events], [w for _, _, w in events])
    assert state_bytes(learner) == before
    assert learner.features.names == names


def test_learning_as_many_labels_as_events_is_required_and_nothing_is_learned_otherwise() -> None:
    learner = learned(Spec(), [({"a": 1.0}, 1, 1.0)])
    before, names = state_bytes(learner), list(learner.features.names)
    for ys, ws in (([1], None), ([1, 0, 1], None), ([1, 0], [1.0]), ([1, 0], [1.0, 1.0, 1.0])):
        with pytest.raises(ValueError, match="argument"):
            learner.learn_many([{"b": 1.0}, {"c": 1.0}], ys, ws)
        assert state_bytes(learner) == before
        assert learner.features.names == names


def test_a_source_of_events_that_breaks_midway_leaves_nothing_behind() -> None:
    def source() -> Any:
        yield {"b": 1.0}
        raise KeyboardInterrupt

    learner = learned(Spec(), [({"a": 1.0}, 1, 1.0)])
    before, names = state_bytes(learner), list(learner.features.names)
    with pytest.raises(KeyboardInterrupt):
        learner.learn_many(source(), [1, 0])
    assert state_bytes(learner) == before
    assert learner.features.names == names


@pytest.mark.parametrize("spec", [Spec(), Spec(rule="adam", scale="standard"), Spec(rule="auto")], ids=described)
def test_a_full_model_learns_the_same_as_one_that_never_saw_what_is_left_out(spec: Spec) -> None:
    full = Learner(dataclasses.replace(spec, max_features=3))
    other = Learner(full.spec if spec.rule == "auto" else spec)  # of auto, max_features limits indicators and pairs too
    for i in range(60):
        x, y = {"a": i / 7, "b": 1.0 - i % 3}, i % 2
        # With an id in each event: the first one takes the last room. Now and then all of it is left out.
        full.learn_one({**x, "user": f"u{i}"} if i % 10 != 9 else {"user": f"u{i}"}, y)
        other.learn_one({**x, **({"user": "u0"} if i == 0 else {})} if i % 10 != 9 else {}, y)
    assert full.names == ["a", "b", "user=u0"]
    assert full.sha256() == other.sha256()
    assert (full.seq, full.left_out) == (60, 59)
    assert Learner.from_state(full.state()).left_out == 59


def test_a_model_that_is_full_and_refuses_learns_events_of_its_own_features_only() -> None:
    learner = learned(Spec(max_features=2, overflow="refuse"), [({"a": 1.0, "b": 1.0}, 1, 1.0)])
    before = state_bytes(learner)
    with pytest.raises(EventError, match="max_features"):
        learner.learn_many([{"a": 1.0}, {"c": 1.0}], [1, 1])
    assert state_bytes(learner) == before
    learner.learn_one({"b": 2.0, "a": 1.0}, 0)
    assert learner.seq == 2


# -- state


@examples(60)
@given(st.one_of(SPECS, EXTREME_SPECS), EVENTS, EVENTS)
def test_a_learner_from_a_state_is_the_same_and_goes_on_learning_the_same(
    spec: Spec, before: list[Event], after: list[Event]
) -> None:
    learner = learned(spec, before)
    reopened = Learner.from_state(learner.state())
    assert reopened.spec == learner.spec
    assert state_bytes(reopened) == state_bytes(learner)
    assert reopened.sha256() == learner.sha256()
    for x, y, w in after:
        assert reopened.predict_proba_one(x) == learner.predict_proba_one(x)
        learner.learn_one(x, y, w)
        reopened.learn_one(x, y, w)
    assert state_bytes(reopened) == state_bytes(learner)
    assert reopened.sha256() == learner.sha256()
    assert reopened.features.names == learner.features.names


@pytest.mark.parametrize("spec", [*KINDS, Spec(hash_bits=9)], ids=described)
def test_a_learner_of_many_features_comes_back_whole(spec: Spec) -> None:
    numbers = random.Random(6)
    events: list[Event] = [
        ({f"f{numbers.randrange(500)}": numbers.gauss(0, 1) for _ in range(9)}, numbers.randrange(2), 1.0)
        for _ in range(400)
    ]
    learner = learned(spec, events)
    reopened = Learner.from_state(learner.state())
    if spec.hash_bits is None or spec.hash_bits > 7:
        assert learner.n_features > 128  # more than one doubling of the room for weights
    assert state_bytes(reopened) == state_bytes(learner)
    reopened.learn_one({"f1": 1.0, "entirely new": 2.0}, 1)
    learner.learn_one({"f1": 1.0, "entirely new": 2.0}, 1)
    assert state_bytes(reopened) == state_bytes(learner)


@pytest.mark.parametrize("spec", KINDS, ids=described)
def test_a_state_is_a_copy_that_later_steps_leave_alone(spec: Spec) -> None:
    learner = learned(spec, [({"a": 1.0}, 1, 1.0), ({"a": 2.0}, 0, 1.0)])
    before, sha256, state = state_bytes(learner), learner.sha256(), learner.state()
    learner.learn_many([{"a": 3.0}, {"b": 1.0}], [0, 1])
    assert learner.sha256() != sha256
    assert Learner.from_state(state).sha256() == sha256
    assert state_bytes(Learner.from_state(state)) == before


@pytest.mark.parametrize("spec", KINDS, ids=described)
def test_a_learner_leaves_the_state_it_came_from_alone(spec: Spec) -> None:
    learner = learned(spec, [({"a": 1.0}, 1, 1.0), ({"a": 2.0}, 0, 1.0)])
    before, state = state_bytes(learner), copy.deepcopy(learner.state())
    Learner.from_state(state).learn_many([{"a": 3.0}, {"b": 1.0}], [0, 1])
    assert state_bytes(Learner.from_state(state)) == before


def test_a_state_without_names_takes_them_from_who_keeps_them() -> None:
    learner = learned(Spec(), [({"a": 1.0, "b": 2.0}, 1, 1.0)])
    state = learner.state(names=False)
    assert "names" not in state
    assert state_bytes(Learner.from_state({**state, "names": ["a", "b"]})) == state_bytes(learner)


@pytest.mark.parametrize("spec", KINDS, ids=described)
def test_a_state_is_json_types_and_arrays_of_float64(spec: Spec) -> None:
    state = learned(spec, [({"a": 1.0}, 1, 1.0)]).state()
    arrays = state.pop("arrays")
    assert {(type(value), value.dtype.str, value.ndim) for value in arrays.values()} == {(np.ndarray, "<f8", 1)}
    assert json.loads(json.dumps(state)) == state


@pytest.mark.parametrize("spec", [kind for kind in KINDS if kind.hash_bits is None], ids=described)
def test_the_names_of_a_batch_not_yet_learned_are_no_part_of_the_state(spec: Spec) -> None:
    learner = learned(spec, [({"a": 1.0}, 1, 1.0)])
    before, sha256 = state_bytes(learner), learner.sha256()
    builder = BatchBuilder(learner.features)
    mark = builder.mark()
    builder.add({"gathered": 1.0, "a": 2.0}, 1)
    assert state_bytes(learner) == before
    assert learner.sha256() == sha256
    if learner.auto is None:
        assert learner.weights_by_name().keys() == {"a"}
    assert learner.predict_proba_one({"gathered": 1e9}) == learner.predict_proba_one({"never gathered": 1e9})
    assert (learner.names, learner.n_features) == (["a"], 1)
    builder.take_back(mark)
    learner.learn_one({"instead": 1.0}, 1)
    assert learner.names == ["a", "instead"]


# -- sha256


def sha256_as_defined(names: list[str], weights: Mapping[str, float], bias: float) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode("utf-8") + b"\x00")
    for name in names:
        digest.update(struct.pack("<d", weights[name]))
    digest.update(struct.pack("<d", bias))
    return digest.hexdigest()


@examples(60)
@given(LINEAR_SPECS, EVENTS)
def test_sha256_is_of_the_names_the_weights_and_the_bias(spec: Spec, events: list[Event]) -> None:
    learner = learned(spec, events)
    weights = learner.weights_by_name()
    assert learner.sha256() == sha256_as_defined(list(weights), weights, learner.bias)


def test_sha256_of_a_model_without_events_is_that_of_a_bias_of_zero() -> None:
    assert Learner().sha256() == hashlib.sha256(bytes(8)).hexdigest()


def test_sha256_of_a_model_by_hand() -> None:
    learner = Learner(Spec(learning_rate=0.5))
    learner.learn_one({"größe": 2.0, "x": -4.0}, 1)  # w = 1/2 and -1, b = 1/4: see test_logistic
    content = b"gr\xc3\xb6\xc3\x9fe\0x\0" + struct.pack("<3d", 0.5, -1.0, 0.25)
    assert learner.sha256() == hashlib.sha256(content).hexdigest()


def test_sha256_changes_with_the_smallest_change_of_a_weight_the_bias_or_a_name() -> None:
    state = learned(Spec(learning_rate=0.5), [({"a": 2.0, "b": 3.0}, 1, 1.0)]).state()
    hashes = {Learner.from_state(state).sha256()}
    for field, place in (("weights", 0), ("weights", 1), ("scalars", BIAS)):
        changed = copy.deepcopy(state)
        changed["arrays"][field][place] = math.nextafter(changed["arrays"][field][place], math.inf)
        hashes.add(Learner.from_state(changed).sha256())
    for names in (["a", "c"], ["b", "a"], ["ab", ""]):
        hashes.add(Learner.from_state({**state, "names": names}).sha256())
    assert len(hashes) == 7


def test_sha256_of_an_auto_model_changes_with_the_smallest_change_of_any_of_its_numbers_and_names() -> None:
    state = learned(Spec(rule="auto"), [({"a": 2.0, "b": 3.0}, 1, 1.0), ({"b": 3.0}, 0, 1.0)]).state()
    hashes = [Learner.from_state(state).sha256()]
    for field in state["arrays"]:
        for place in {0, len(state["arrays"][field]) - 1}:
            changed = copy.deepcopy(state)
            value = changed["arrays"][field][place]
            if field in ("used", "keys", "first_rows", "first_owners"):
                changed["arrays"][field][place] += 1.0
            elif field in ("first_evidence", "first_pairs"):
                changed["arrays"][field][place] = np.nextafter(np.float32(value), np.float32(math.inf))
            else:
                changed["arrays"][field][place] = math.nextafter(value, math.inf)
            hashes.append(Learner.from_state(changed).sha256())
    hashes.append(Learner.from_state({**state, "names": ["a", "c"]}).sha256())
    assert len(hashes) > 15
    assert len(set(hashes)) == len(hashes)


def test_two_learners_of_the_same_events_have_the_same_sha256() -> None:
    events: list[Event] = [({"a": float(i % 7), "b": 1.0}, i % 3 == 0, 1.0) for i in range(50)]
    for spec in KINDS:
        assert learned(spec, events).sha256() == learned(spec, events).sha256()


def test_a_batch_with_columns_of_other_features_is_refused() -> None:
    builder, learner = BatchBuilder(Features()), Learner()
    builder.add([1.0] * 5_000, 1)
    with pytest.raises(ValueError, match="does not know"):
        learner.learn_batch(builder.build())
    assert (learner.seq, learner.n_features) == (0, 0)


# -- one event without a batch

odd = st.sampled_from(
    [0, 3, True, -0.0, 5e-324, 1e100, 1.1e100, 10**400, math.nan, math.inf, "text", None, [1.0], "1.5"]
)
one_x = st.one_of(
    st.dictionaries(st.sampled_from("abc"), st.floats(-1e3, 1e3), max_size=3),
    st.fixed_dictionaries({"a": st.floats(-1e60, 1e60), "b": st.floats(-1e60, 1e60)}),
    st.fixed_dictionaries({"a": st.floats(-1e3, 1e3), "b": odd}),
    st.lists(st.floats(-1e3, 1e3), max_size=2),
)
one_y = st.sampled_from([0, 1, 0, 1, True, 0.0, 1.0, 2, 0.5])
one_weight = st.sampled_from([1.0, 1.0, 1, 0.5, 1e300, 0.0, math.nan])
PLAIN_SPECS = [{}, {"clip": 0.1}, {"learning_rate": 1e60}, {"hash_bits": 3}, {"max_features": 2}, {"rule": "adam"}]


def said(call: Callable[..., object], *arguments: Any) -> object:
    """What a call returns, or its error."""
    try:
        return call(*arguments)
    except EventError as error:
        return error.field, error.message


@examples(500)
@given(st.lists(st.tuples(one_x, one_y, one_weight), max_size=12), st.sampled_from(PLAIN_SPECS))
def test_events_learned_and_predicted_one_by_one_are_those_of_a_batch(
    events: list[tuple[Any, Any, float]], spec: dict[str, Any]
) -> None:
    short, long = Learner(Spec(**spec)), Learner(Spec(**spec))

    def predict(x: Any) -> dict[bool, float]:
        p = logistic.sigmoid(long.score_of(*long.features.encode(x)))
        return {False: 1.0 - p, True: p}

    def learn(x: Any, y: Any, weight: float) -> None:
        long.learn_many([x], [y], [weight])

    for event in events:
        assert said(short.predict_proba_one, event[0]) == said(predict, event[0])
        assert said(short.learn_one, *event) == said(learn, *event)
        assert (short.sha256(), short.seq, short.not_taken) == (long.sha256(), long.seq, long.not_taken)


def test_names_of_a_batch_that_is_not_learned_yet_are_not_those_of_an_event_learned_before_it() -> None:
    learner = Learner(Spec())
    learner.learn_one({"a": 1.0}, 1)
    builder = BatchBuilder(learner.features)
    builder.add({"b": 1.0}, 1)
    learner.features.columns_of(["b"])  # now cached
    learner.learn_one({"b": 2.0}, 1)
    assert learner.names == ["a", "b"]
    assert learner.weights_by_name()["b"] != 0.0


def test_threads_that_predict_at_once_get_what_each_asked_for() -> None:
    learner, asked = Learner(), [{"a": float(i), "b": -2.0 * i} for i in range(2)]
    for x in [*asked, *asked]:
        learner.learn_one(x, 1)
    expected = [learner.predict_proba_one(x) for x in asked]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as threads:
            found = threads.map(lambda x: [learner.predict_proba_one(x) for _ in range(20_000)], asked)
            assert [[p for p in of_x if p != right] for of_x, right in zip(found, expected, strict=True)] == [[], []]
    finally:
        sys.setswitchinterval(interval)
