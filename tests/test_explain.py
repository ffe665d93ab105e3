"""Explanations: that they add up to the score, that they say what the model saw, and that they can be had later."""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from effort import examples, few
from hypothesis import example, given
from hypothesis import strategies as st
from river import base, preprocessing

from core import EventError, Learner, Spec
from core.auto import MAX_SCORE, Terms
from core.auto.path import aumann_shapley
from core.explain import Explanation, explain, explain_served
from core.features import X, flatten
from core.learner import NoWeights
from core.logistic import Floats
from core.parity import scaled_one
from core.rules import RULES
from core.spec import Scale

SCALES: list[Scale] = ["none", "standard", "maxabs"]
LINEAR = list(itertools.product(RULES, SCALES))
NEW = "never seen"


def score(learner: Learner, x: X) -> float:
    """The log odds of label 1."""
    return learner.score_of(*learner.encoded(x))


def events(count: int, seed: int = 7) -> list[tuple[dict[str, Any], int]]:
    """Events with numbers, booleans and text, of which each leaves out some features; `d` is always 0."""
    numbers = random.Random(seed)
    result = []
    for _ in range(count):
        x: dict[str, Any] = {
            "a": numbers.gauss(1.0, 2.0),
            "b": numbers.uniform(0.0, 1e3),
            "c": numbers.random() < 0.5,
            "d": 0.0,
            "city": numbers.choice(["Rome", "Oslo"]),
        }
        x = {name: value for name, value in x.items() if numbers.random() < 0.8}
        result.append((x, int(x.get("a", 0.0) + numbers.gauss(0.0, 0.5) > 1.0)))
    return result


def learned(spec: Spec, count: int = 60, seed: int = 7) -> Learner:
    learner = Learner(spec)
    for x, y in events(count, seed):
        learner.learn_one(x, y)
    return learner


@functools.cache
def a_linear(rule: str, scale: Scale) -> Learner:
    """Shared: not to be changed."""
    return learned(Spec(rule=rule, scale=scale))


@functools.cache
def an_auto(banks: int) -> Learner:
    """Shared: not to be changed. The labels of one with two banks turned round, which raised an alarm."""
    learner = learned(Spec(rule="auto"), 400)
    if banks == 2:
        for x, y in events(100, seed=8):
            learner.learn_one(x, 1 - y)
        assert learner.auto is not None
        assert learner.auto.alarms == 1
    return learner


VALUES = st.one_of(st.floats(-1e3, 1e3), st.booleans(), st.sampled_from(["Rome", "Oslo", "Bern", ""]))
EXTREME = st.one_of(VALUES, st.floats(-1e100, 1e100), st.sampled_from([0.0, -0.0, 1e100, -1e100, 5e-324]))
NAMES = st.sampled_from(["a", "b", "c", "d", "city", "city=Rome", NEW, "0"])


def xs(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    objects = st.dictionaries(NAMES, values, max_size=8)
    objects = objects.filter(lambda x: not ("city=Rome" in x and x.get("city") == "Rome"))  # one feature twice: refused
    return st.one_of(objects, st.lists(st.floats(-1e3, 1e3), max_size=3))


def added(explanation: Explanation) -> float:
    """Contributions one after the other, and then the bias. (Python's `sum` rounds less from 3.12 on.)"""
    total = 0.0
    for feature in explanation.features:
        total += feature.contribution
    return total + explanation.bias


def by_name(explanation: Explanation) -> dict[str, Any]:
    return {feature.name: feature for feature in explanation.features}


def state_bytes(learner: Learner) -> bytes:
    """Everything the learner is, to the bit."""
    state = learner.state()
    arrays = state.pop("arrays")
    return repr((state, [(name, array.tobytes()) for name, array in arrays.items()], learner.features.names)).encode()


# -- a model with weights


@pytest.mark.parametrize(("rule", "scale"), LINEAR)
@examples(25)
@given(x=xs(EXTREME))
def test_contributions_in_order_and_then_the_bias_are_the_score_to_the_last_bit(rule: str, scale: Scale, x: X) -> None:
    learner = a_linear(rule, scale)
    explanation = explain(learner, x)
    assert added(explanation) == explanation.score == score(learner, x)
    assert explanation.p == learner.predict_proba_one(x)[True]
    assert explanation.bias == learner.bias
    assert explanation.seq == learner.seq


@pytest.mark.parametrize(("rule", "scale"), LINEAR)
@examples(25)
@given(x=xs(VALUES))
def test_a_contribution_is_the_feature_s_weight_times_its_value_as_seen(rule: str, scale: Scale, x: X) -> None:
    learner = a_linear(rule, scale)
    explanation = explain(learner, x)
    names, values = flatten(x)
    given_values, weights = dict(zip(names, values, strict=True)), learner.weights_by_name()
    assert [feature.name for feature in explanation.features] == [name for name in given_values if name in weights]
    for feature in explanation.features:
        assert feature.value == given_values[feature.name]
        assert feature.weight == weights[feature.name]
        assert feature.seen is not None
        assert feature.contribution == feature.weight * feature.seen


SCALERS: dict[str, Callable[[], base.Transformer | None]] = {
    "none": lambda: None,
    "standard": preprocessing.StandardScaler,
    "maxabs": preprocessing.MaxAbsScaler,
}


@pytest.mark.parametrize("scale", SCALES)
@examples(25)
@given(x=st.dictionaries(st.sampled_from(["a", "b", "c", "d", "city"]), VALUES, min_size=1))
def test_the_value_as_seen_is_what_river_s_scaler_makes_of_it(scale: str, x: dict[str, Any]) -> None:
    flat: dict[Any, Any] = dict(zip(*flatten(x), strict=True))
    scaler = SCALERS[scale]()
    if scaler is not None:
        for known, _ in events(60):
            scaled_one(scaler, dict(zip(*flatten(known), strict=True)))
        flat |= scaler.transform_one({name: value for name, value in flat.items() if "=" not in name})
    for feature in explain(a_linear("sgd", scale), x).features:
        assert feature.seen == flat[feature.name]


@pytest.mark.parametrize(("rule", "scale"), LINEAR)
def test_a_feature_contributes_the_same_in_whatever_order_the_event_has(rule: str, scale: str) -> None:
    learner = a_linear(rule, scale)
    x: dict[str, Any] = {"a": 0.1, "b": 700.7, NEW: 1.0, "c": True, "city": "Oslo"}
    for names in itertools.permutations(x):
        turned = explain(learner, {name: x[name] for name in names})
        assert by_name(turned) == by_name(explain(learner, x))
        flat = ["city=Oslo" if name == "city" else name for name in names]
        assert [feature.name for feature in turned.features] == [name for name in flat if name != NEW]


# -- names that the model does not know, and names that it makes


@pytest.mark.parametrize("spec", [Spec(), Spec(scale="standard"), Spec(rule="auto")], ids=["raw", "scaled", "auto"])
def test_what_the_model_never_learned_is_listed_and_adds_nothing(spec: Spec) -> None:
    learner = learned(spec)
    x: X = {"first": 1.0, "a": 2.0, "city": "Bern", "b": 3.0}
    explanation = explain(learner, x)
    assert explanation.unknown == ["first", "city=Bern"]
    assert [feature.name for feature in explanation.features] == ["a", "b"]
    assert explanation.score == score(learner, x)
    if spec.rule == "auto":  # a new name adds nothing by itself, but the others count as parts of a longer event
        assert added(explanation) == pytest.approx(explanation.score, rel=1e-9)
        assert learner.learn_many([x], [1]).scores.tolist() == [explanation.score]
    else:
        assert explanation.score == score(learner, {"a": 2.0, "b": 3.0})


@pytest.mark.parametrize("spec", [Spec(), Spec(scale="maxabs"), Spec(rule="auto")], ids=["raw", "scaled", "auto"])
def test_a_name_of_a_batch_that_is_not_yet_learned_is_unknown(spec: Spec) -> None:
    learner, x = learned(spec), {"early": 5.0, "a": 2.0}
    before = score(learner, x)
    learner.features.columns_of(["early"], add=True)
    explanation = explain(learner, x)
    assert explanation.unknown == ["early"]
    assert explanation.score == before
    assert spec.rule == "auto" or before == score(learner, {"a": 2.0})


@pytest.mark.parametrize("spec", [Spec(), Spec(rule="auto")], ids=["linear", "auto"])
def test_a_model_without_events_knows_nothing(spec: Spec) -> None:
    explanation = explain(Learner(spec), {"a": 1.0})
    assert (explanation.score, explanation.p, explanation.bias) == (0.0, 0.5, 0.0)
    assert (explanation.features, explanation.unknown, explanation.seq) == ([], ["a"], 0)


@pytest.mark.parametrize("spec", [Spec(hash_bits=2), Spec(hash_bits=2, scale="standard"), Spec("auto", hash_bits=2)])
@examples(25)
@given(x=st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(-9, 9), min_size=5))
def test_hashed_names_that_meet_are_one_feature_with_their_sum(spec: Spec, x: dict[str, Any]) -> None:
    learner = Learner(spec)
    learner.learn_one({str(i): 1.0 + i for i in range(20)}, 1)
    explanation = explain(learner, x)
    assert explanation.unknown == []
    assert len(explanation.features) <= 4
    hashes = {feature.name[feature.name.index("#") :] for feature in explanation.features}
    assert hashes <= {"#0", "#1", "#2", "#3"}
    fields = {feature.name[: feature.name.index("#")] for feature in explanation.features}
    assert fields <= {str(i) for i in range(20)} if spec.rule == "auto" else fields == {""}  # of the first that fell in
    assert sum(feature.value for feature in explanation.features) == sum(x.values())
    assert added(explanation) == pytest.approx(score(learner, x), rel=1e-9 if spec.rule == "auto" else 0, abs=0)


@pytest.mark.parametrize("spec", [Spec(), Spec(scale="standard"), Spec(rule="auto")], ids=["raw", "scaled", "auto"])
def test_an_array_s_features_are_named_by_their_places(spec: Spec) -> None:
    learner = Learner(spec)
    learner.learn_many([[1.0, -1.0], [2.0, 3.0]], [1, 0])
    explanation = explain(learner, [4.0, 5.0, 6.0])
    assert [(feature.name, feature.value) for feature in explanation.features] == [("0", 4.0), ("1", 5.0)]
    assert explanation.unknown == ["2"]
    assert explanation == explain(learner, {"0": 4.0, "1": 5.0, "2": 6.0})


BAD = [{"a": [1.0]}, {"": 1.0}, {"a": math.nan}, {"a": 1e101}, {"x" * 257: 1.0}, [1.0, "b"], {"a\0": 1.0}]


@pytest.mark.parametrize("x", BAD, ids=lambda x: repr(x)[:20])
@pytest.mark.parametrize("spec", [Spec(), Spec(scale="standard"), Spec(rule="auto")], ids=["raw", "scaled", "auto"])
def test_an_event_that_cannot_be_predicted_from_cannot_be_explained(spec: Spec, x: Any) -> None:
    learner = learned(spec)
    for ask in (learner.encoded, learner.predict_proba_one, functools.partial(explain, learner)):
        with pytest.raises(EventError):
            ask(x)


# -- as it was served


@few(6)
@pytest.mark.parametrize(("rule", "scale"), LINEAR)
@examples(10)
@given(x=xs(VALUES))
@example(x={NEW: 2.0, "a": 1.0, "city": "Bern"})
def test_a_score_is_explained_as_it_was_served_when_the_model_has_moved_on(rule: str, scale: Scale, x: X) -> None:
    learner = learned(Spec(rule=rule, scale=scale), 20)
    then, numbers, seq = explain(learner, x), learner.served_of(*learner.encoded(x)), learner.seq
    learner.learn_many([{NEW: 1.0, "city": "Bern"}, {"a": 9.0}, x], [1, 0, 1])
    served = explain_served(learner, x, numbers, seq)
    assert served == then
    assert added(served) == served.score == numbers[0]
    assert explain_served(Learner(learner.spec), x, numbers, seq) == then  # only its spec counts


@pytest.mark.parametrize(("scale", "length"), [("none", 5), ("standard", 8), ("maxabs", 8)])
def test_what_is_kept_is_score_bias_weights_and_where_the_model_scales_the_scaled_values(
    scale: str, length: int
) -> None:
    learner = a_linear("adam", scale)
    x = {"b": 500.0, NEW: 1.0, "a": 2.0}
    numbers, weights = learner.served_of(*learner.encoded(x)), learner.weights_by_name()
    assert numbers.dtype == np.float64
    assert len(numbers) == length
    assert numbers[:3].tolist() == [score(learner, x), learner.bias, weights["b"]]
    assert math.isnan(numbers[3])
    assert numbers[4] == weights["a"]


@pytest.mark.parametrize("scale", SCALES)
def test_numbers_of_another_event_are_refused(scale: str) -> None:
    learner = a_linear("sgd", scale)
    with pytest.raises(ValueError, match="do not fit a score of 2 features"):
        explain_served(learner, {"a": 1.0, "b": 2.0}, learner.served_of(*learner.encoded({"a": 1.0})), learner.seq)


def test_a_score_past_the_largest_number_is_explained_as_it_is() -> None:
    learner = Learner(Spec(learning_rate=1e150, max_value=1e200, clip=1e308))
    learner.learn_one({"a": 1e100, "b": -1.0}, 1)
    explanation = explain(learner, {"a": 1e200, "b": 1.0})
    assert added(explanation) == explanation.score == math.inf
    assert explanation.p == 1.0


@pytest.mark.parametrize("banks", [1, 2])
def test_of_auto_the_score_alone_is_kept(banks: int) -> None:
    learner = an_auto(banks)
    assert learner.served_of(*learner.encoded({"a": 1.0})).tolist() == [score(learner, {"a": 1.0})]
    with pytest.raises(NoWeights):
        explain_served(learner, {"a": 1.0}, learner.served_of(*learner.encoded({"a": 1.0})), learner.seq)


@pytest.mark.parametrize("spec", [Spec(), Spec("adam", scale="standard"), Spec(rule="auto")])
@examples(25)
@given(x=xs(EXTREME))
def test_to_explain_changes_nothing(spec: Spec, x: X) -> None:
    learner = learned(spec, 20)
    before = state_bytes(learner)
    explain(learner, x)
    learner.served_of(*learner.encoded(x))
    assert state_bytes(learner) == before


@pytest.mark.parametrize("scale", SCALES)
def test_a_sentence_says_how_contributions_are_made(scale: str) -> None:
    method = explain(a_linear("sgd", scale), {"a": 1.0}).method
    said = {"none": "its value.", "standard": "standard deviation", "maxabs": "largest magnitude"}
    assert said[scale] in method
    assert "Aumann-Shapley" in explain(an_auto(1), {"a": 1.0}).method


# -- auto


@pytest.mark.parametrize("banks", [1, 2])
@examples(100)
@given(x=xs(EXTREME))
def test_of_auto_contributions_and_bias_are_the_score_within_rounding(banks: int, x: X) -> None:
    learner = an_auto(banks)
    explanation = explain(learner, x)
    assert explanation.score == score(learner, x)
    assert explanation.p == learner.predict_proba_one(x)[True]
    assert abs(added(explanation) - explanation.score) <= 1e-9 * max(1.0, abs(explanation.score))
    assert all(feature.weight is None and feature.seen is None for feature in explanation.features)


@examples(40)
@given(st.lists(st.tuples(xs(EXTREME), st.integers(0, 1)), min_size=1, max_size=12))
def test_that_holds_of_any_stream(stream: list[tuple[X, int]]) -> None:
    learner = Learner(Spec(rule="auto"))
    learner.learn_many([x for x, _ in stream], [y for _, y in stream])
    for x, _ in stream:
        explanation = explain(learner, x)
        largest = max([1.0, abs(explanation.score), *(abs(f.contribution) for f in explanation.features)])
        assert abs(added(explanation) - explanation.score) <= 1e-9 * largest


@pytest.mark.parametrize("banks", [1, 2])
def test_a_feature_that_no_learner_heeds_contributes_exactly_nothing(banks: int) -> None:
    features = by_name(explain(an_auto(banks), {"a": 2.0, "d": 7.0, "b": 500.0}))
    assert features["d"].contribution == 0.0  # it was 0 in every event
    assert features["a"].contribution != 0.0


def test_a_contribution_has_the_sign_of_what_the_feature_speaks_for() -> None:
    learner = an_auto(1)
    assert by_name(explain(learner, {"a": 6.0, "b": 500.0}))["a"].contribution > 1.0
    assert by_name(explain(learner, {"a": -4.0, "b": 500.0}))["a"].contribution < -1.0


def test_a_feature_alone_contributes_all_that_is_not_the_bias() -> None:
    explanation = explain(an_auto(2), {"a": 3.0})
    assert explanation.features[0].contribution == pytest.approx(explanation.score - explanation.bias, rel=1e-12)


def test_features_that_were_always_alike_contribute_alike() -> None:
    learner = Learner(Spec(rule="auto"))
    for x, y in events(100):
        value = x.get("a", 0.0)
        learner.learn_one({"left": value, "b": x.get("b", 0.0), "right": value}, y)
    features = by_name(explain(learner, {"left": 3.0, "b": 10.0, "right": 3.0}))
    assert features["left"].contribution == pytest.approx(features["right"].contribution, rel=1e-12)


@pytest.mark.parametrize("banks", [1, 2])
def test_of_auto_the_order_of_the_event_moves_contributions_by_rounding_only(banks: int) -> None:
    x: dict[str, Any] = {"a": 0.1, "b": 700.7, "c": True, "city": "Oslo"}
    expected = by_name(explain(an_auto(banks), x))
    for names in itertools.permutations(x):
        for name, feature in by_name(explain(an_auto(banks), {name: x[name] for name in names})).items():
            assert feature.contribution == pytest.approx(expected[name].contribution, rel=1e-9)


# -- the path, by the definitions, in plain Python


K, STACKERS = 3, 2
"""How many learners and stackers a mixture has here."""


def clamped(z: float, most: float = MAX_SCORE) -> float:
    return max(-most, min(most, z))


def mixture(terms: Terms, grown: list[float]) -> float:
    """The score where what feature i adds to each learner is grown to `grown[i]` of its size."""
    sides = [0.0, 0.0]
    for bank in range(len(terms.biases)):
        z = [
            terms.biases[bank, k] + sum(a * terms.products[i, bank, k] for i, a in enumerate(grown))
            for k in range(terms.biases.shape[1])
        ]
        stacked = [
            sum(w * clamped(z_k, most) for w, z_k in zip(stack, z, strict=False)) + stack[-1]
            for stack, most in zip(terms.stack[bank], terms.heard, strict=True)
        ]
        z = [clamped(z_k) for z_k in z + stacked]
        for share, z_k in zip(terms.shares[bank], z, strict=True):
            sides[0] += share / (1.0 + math.exp(z_k))
            sides[1] += share / (1.0 + math.exp(-z_k))
    return math.log(sides[1]) - math.log(sides[0])


def moved_on_account_of(terms: Terms, i: int, steps: int) -> float:
    """The sum, over short steps of all features along the path, of what the score's slope in feature i alone makes."""
    total, h = 0.0, 1e-6
    for step in range(steps):
        a = (step + 0.5) / steps
        there, back = [a] * len(terms.products), [a] * len(terms.products)
        there[i] += h
        back[i] -= h
        total += (mixture(terms, there) - mixture(terms, back)) / (2 * h) / steps
    return total


@few(2)
@pytest.mark.parametrize("banks", [1, 2])
@pytest.mark.parametrize(
    ("x", "steps", "within"),
    [
        ({"a": 0.9, "c": True, "city": "Rome"}, 400, 1e-6),
        ({"b": 999.0, "a": -3.0}, 2_000, 0.01),  # even short steps are crude over clamps
    ],
    ids=["without clamps", "with clamps"],
)
def test_contributions_are_the_integral_of_the_score_s_slopes(
    banks: int, x: dict[str, float], steps: int, within: float
) -> None:
    learner = an_auto(banks)
    assert learner.auto is not None
    columns, values = learner.encoded(x)
    terms = learner.auto.terms(np.array(columns, np.int32), np.array(values))
    assert mixture(terms, [1.0] * len(x)) == pytest.approx(score(learner, x), rel=1e-12)
    for i, feature in enumerate(explain(learner, x).features):
        assert feature.contribution == pytest.approx(moved_on_account_of(terms, i, steps), abs=within)


def terms_of_one(k: int, bias: float, products: list[float]) -> Terms:
    """A mixture in which learner 0, or stacker k - K, has all the weight. Stackers add up the learners 0 and 1."""
    biases, each, shares = np.zeros((1, K)), np.zeros((len(products), 1, K)), np.zeros((1, K + STACKERS))
    stack = np.zeros((1, STACKERS, K + 1))
    stack[0, :, :2] = 1.0
    biases[0, 0], each[:, 0, 0], shares[0, k] = bias, products, 1.0
    return Terms(biases, each, stack, np.array([MAX_SCORE, 8.0]), shares)


@pytest.mark.parametrize("k", [0, K], ids=["a learner", "a stacker"])
@pytest.mark.parametrize("size", [1.0, 7.0, 1e3, 1e100])
def test_past_a_clamp_nothing_is_added(k: int, size: float) -> None:
    # z = clamp(1 + a 4 size): each feature is given its slope times the part of the path before z is MAX_SCORE
    terms = terms_of_one(k, 1.0, [5.0 * size, -1.0 * size])
    free = min(1.0, (MAX_SCORE - 1.0) / (4.0 * size))
    assert aumann_shapley(terms).tolist() == pytest.approx([5.0 * size * free, -1.0 * size * free], rel=1e-12)


def test_before_a_clamp_lets_go_nothing_is_added() -> None:
    # z = clamp(-50 + a 40) is free from a = 1/2 on
    assert aumann_shapley(terms_of_one(0, -50.0, [30.0, 10.0])).tolist() == pytest.approx([15.0, 5.0], rel=1e-12)


def test_a_stacker_heeds_the_clamps_of_those_that_it_adds_up() -> None:
    # z = clamp(a 90) + clamp(-a 60): the first is held from a = 1/3 on, the second from a = 1/2
    terms = terms_of_one(K, 0.0, [90.0, 0.0])
    terms.products[1, 0, 1] = -60.0
    contributions: Floats = aumann_shapley(terms)
    assert contributions.tolist() == pytest.approx([30.0, -30.0], rel=1e-12)


def test_the_kalman_stacker_hears_scores_up_to_8() -> None:
    # z = clamp of a 10, heard as at most 8: from a = 0.8 on nothing is added
    assert aumann_shapley(terms_of_one(K + 1, 0.0, [10.0, 0.0])).tolist() == pytest.approx([8.0, 0.0], rel=1e-12)


def random_terms(seed: int, size: float) -> Terms:
    numbers = np.random.default_rng(seed)
    return Terms(
        numbers.normal(0.0, 1.0, (2, K)),
        numbers.normal(0.0, size, (5, 2, K)),
        numbers.normal(0.0, 0.5, (2, STACKERS, K + 1)),
        np.array([MAX_SCORE, 8.0]),
        numbers.dirichlet(np.full(2 * (K + STACKERS), 0.3)).reshape(2, K + STACKERS),
    )


@pytest.mark.parametrize("size", [0.0, 1e-310, 1e-3, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("seed", range(5))
def test_contributions_add_up_however_many_clamps_the_path_meets(seed: int, size: float) -> None:
    terms = random_terms(seed, size)
    rise = mixture(terms, [1.0] * 5) - mixture(terms, [0.0] * 5)
    contributions = aumann_shapley(terms)
    assert contributions.sum() == pytest.approx(rise, abs=1e-11 * max(1.0, float(abs(contributions).max())))
