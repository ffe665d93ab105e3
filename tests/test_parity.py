"""Equal to river, bit for bit: against river itself, and what `core.parity` says of it."""

from __future__ import annotations

import functools
import importlib.metadata
import math
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from effort import examples, few
from hypothesis import given
from hypothesis import strategies as st
from river import base, linear_model, optim, preprocessing
from streams import Event, sample_weights, stream

from core import Learner, Spec
from core.features import X
from core.parity import CrossCheck, NoTwin, Report, crosscheck, river_twin, ulp_distance
from core.rules import RULES
from core.spec import InverseScaling, Optimal, Scale

Oracle = Callable[[], linear_model.LogisticRegression]
Twin = tuple[base.Transformer | None, linear_model.LogisticRegression]


def river(rate: float, **arguments: Any) -> Oracle:
    """Makes river's model; each needs an optimizer of its own, which counts its steps."""
    return lambda: linear_model.LogisticRegression(optim.SGD(rate), **arguments)


def unscaled(oracle: Oracle) -> Twin:
    return None, oracle()


# Each variant: our spec, and the river model that is its oracle, written out side by side.
VARIANTS: dict[str, tuple[Spec, Oracle]] = {
    "plain": (Spec(), river(0.01, intercept_lr=0.01)),
    "l2": (Spec(learning_rate=0.05, l2=0.01), river(0.05, intercept_lr=0.05, l2=0.01)),
    "l1": (Spec(learning_rate=0.05, l1=0.003), river(0.05, intercept_lr=0.05, l1=0.003)),
    "clip": (Spec(learning_rate=0.03, clip=0.2), river(0.03, intercept_lr=0.03, clip_gradient=0.2)),
    "small learning rate": (Spec(learning_rate=1e-5), river(1e-5, intercept_lr=1e-5)),
    "learning rate of a third": (Spec(learning_rate=1 / 3), river(1 / 3, intercept_lr=1 / 3)),
    "large learning rate": (Spec(learning_rate=7.7), river(7.7, intercept_lr=7.7)),
    "separate bias rate": (Spec(learning_rate=0.1, bias_learning_rate=0.007), river(0.1, intercept_lr=0.007)),
    "bias left alone": (Spec(learning_rate=0.1, bias_learning_rate=0.0), river(0.1, intercept_lr=0.0)),
    "l1 with clip and a separate bias rate": (
        Spec(learning_rate=0.3, bias_learning_rate=0.01, l1=1e-4, clip=0.5),
        river(0.3, intercept_lr=0.01, l1=1e-4, clip_gradient=0.5),
    ),
    "l2 with clip and a separate bias rate": (
        Spec(learning_rate=0.3, bias_learning_rate=0.01, l2=1e-4, clip=0.5),
        river(0.3, intercept_lr=0.01, l2=1e-4, clip_gradient=0.5),
    ),
}
STREAMS = ["Phishing", "Bananas", "Shuttle"]


def learner_and_oracle(variant: str) -> tuple[Learner, linear_model.LogisticRegression]:
    """Both sides of a variant, fresh."""
    spec, oracle = VARIANTS[variant]
    return Learner(spec), oracle()


def assert_equal_after(events: Sequence[Event], weights: Sequence[float], variant: str) -> None:
    """Both sides learn the same events; then every weight and the bias are equal, not close."""
    ours, theirs = learner_and_oracle(variant)
    outcome = ours.learn_many([x for x, _ in events], [y for _, y in events], weights)
    for (x, y), w in zip(events, weights, strict=True):
        theirs.learn_one(x, y, w)
    assert outcome.learned.all()
    assert any(w != 0.0 for w in theirs.weights.values())  # the stream taught river something to compare
    assert ours.weights_by_name() == theirs.weights
    assert ours.bias == theirs.intercept


def events_for(name: str, variant: str) -> tuple[Event, ...]:
    return stream(name, 8_000 if name == "Shuttle" and variant != "plain" else None)


@few(12)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", STREAMS)
def test_every_weight_and_the_bias_equal_rivers(name: str, variant: str) -> None:
    events = events_for(name, variant)
    assert_equal_after(events, [1.0] * len(events), variant)


@few(6)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", STREAMS)
def test_every_weight_and_the_bias_equal_rivers_with_sample_weights(name: str, variant: str) -> None:
    events = events_for(name, variant)
    assert_equal_after(events, sample_weights(len(events)), variant)


def test_rivers_own_defaults_are_ours() -> None:
    events, ours, theirs = stream("Phishing"), Learner(), linear_model.LogisticRegression()
    for x, y in events:
        ours.learn_one(x, y)
        theirs.learn_one(x, y)
    assert ours.weights_by_name() == theirs.weights
    assert ours.bias == theirs.intercept


@pytest.mark.parametrize("variant", ["plain", "l1", "l2 with clip and a separate bias rate"])
def test_every_progressive_probability_equals_rivers(variant: str) -> None:
    ours, theirs = learner_and_oracle(variant)
    for x, y in stream("Phishing"):
        assert ours.predict_proba_one(x) == theirs.predict_proba_one(x)
        ours.learn_one(x, y)
        theirs.learn_one(x, y)


def test_the_probabilities_that_learning_reports_are_rivers_before_each_step() -> None:
    events, theirs = stream("Bananas"), VARIANTS["plain"][1]()
    reported = Learner().learn_many([x for x, _ in events], [y for _, y in events]).probabilities.tolist()
    for (x, y), p in zip(events, reported, strict=True):
        assert theirs.predict_proba_one(x)[True] == p
        theirs.learn_one(x, y)


def test_events_with_few_of_many_features_in_any_order_equal_rivers() -> None:
    """Sparse events: features come late, leave out, and change their order, which decides the bits of the score."""
    numbers = random.Random(11)
    names = [f"f{i}" for i in range(200)]
    for variant in VARIANTS:
        ours, theirs = learner_and_oracle(variant)
        for _ in range(400):
            x = {name: numbers.gauss(0, 2) for name in numbers.sample(names, numbers.randrange(0, 20))}
            y, w = numbers.randrange(2), numbers.choice([1.0, 0.3, 4.1])
            assert ours.predict_proba_one(x) == theirs.predict_proba_one(x)
            ours.learn_one(x, y, w)
            theirs.learn_one(x, y, w)
        assert ours.weights_by_name() == theirs.weights, variant
        assert ours.bias == theirs.intercept, variant


# -- core.parity


def checked(spec: Spec, name: str = "Phishing", count: int = 400) -> CrossCheck:
    check = CrossCheck(spec)
    for (x, y), w in zip(stream(name, count), sample_weights(count), strict=True):
        check.learn_one(x, y, w)
    return check


def own_report(check: CrossCheck) -> Report:
    return check.compare(check.learner.weights_by_name(), check.learner.bias)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_cross_check_finds_equality(variant: str) -> None:
    events, weights = stream("Phishing"), sample_weights(1250)
    report = crosscheck(((x, y, w) for (x, y), w in zip(events, weights, strict=True)), VARIANTS[variant][0])
    assert report == Report(
        events=1250,
        from_seq=0,
        not_taken=0,
        features=9,
        max_abs_diff=0.0,
        max_ulp=0,
        feature=None,
        bias_ulp=0,
        equal=True,
        river=importlib.metadata.version("river"),
    )


def test_the_cross_check_learns_the_defaults_unless_told_otherwise() -> None:
    check, events = CrossCheck(Spec()), [(x, y, 1.0) for x, y in stream("Bananas", 300)]
    for event in events:
        check.learn_one(*event)
    assert crosscheck(events) == own_report(check)
    assert own_report(check).features == 2


def plain(optimizer: optim.base.Optimizer, intercept_lr: float | optim.base.Scheduler, **arguments: Any) -> Twin:
    """River's model without a scaler."""
    return None, linear_model.LogisticRegression(optimizer, intercept_lr=intercept_lr, **arguments)


def standard(optimizer: optim.base.Optimizer, intercept_lr: float, **arguments: float) -> Twin:
    return preprocessing.StandardScaler(), plain(optimizer, intercept_lr, **arguments)[1]


def maxabs(optimizer: optim.base.Optimizer, intercept_lr: float, **arguments: float) -> Twin:
    return preprocessing.MaxAbsScaler(), plain(optimizer, intercept_lr, **arguments)[1]


def with_class_weights() -> Twin:
    loss = optim.losses.Log(weight_pos=3.0, weight_neg=0.5)
    schedule, bias_schedule = (optim.schedulers.Optimal(loss, alpha) for alpha in (0.01, 0.02))
    return None, linear_model.LogisticRegression(optim.SGD(schedule), loss, intercept_lr=bias_schedule)


# Every rule, scale and schedule once, with parameters that are not the defaults, and river's written out beside it.
TWINS: dict[str, tuple[Spec, Callable[[], Twin]]] = {
    "sgd, optimal schedules, class weights": (
        Spec(
            learning_rate=Optimal("optimal", 0.01),
            bias_learning_rate=Optimal("optimal", 0.02),
            class_weights={"0": 0.5, "1": 3.0},
        ),
        with_class_weights,
    ),
    "momentum, inverse scaling": (
        Spec(rule="momentum", rho=0.7, learning_rate=InverseScaling("inverse_scaling", 0.2, 0.4)),
        lambda: plain(
            optim.Momentum(optim.schedulers.InverseScaling(0.2, 0.4), rho=0.7),
            optim.schedulers.InverseScaling(0.2, 0.4),
        ),
    ),
    "nesterov, standard": (
        Spec(rule="nesterov", learning_rate=0.02, rho=0.8, scale="standard"),
        lambda: standard(optim.NesterovMomentum(0.02, rho=0.8), 0.02),
    ),
    "adagrad, maxabs": (
        Spec(rule="adagrad", learning_rate=0.2, eps=1e-3, scale="maxabs"),
        lambda: maxabs(optim.AdaGrad(0.2, eps=1e-3), 0.2),
    ),
    "rmsprop, l1": (
        Spec(rule="rmsprop", learning_rate=0.02, rho=0.8, eps=1e-4, l1=1e-3),
        lambda: plain(optim.RMSProp(0.02, rho=0.8, eps=1e-4), 0.02, l1=1e-3),
    ),
    "adadelta": (Spec(rule="adadelta", rho=0.9, eps=1e-4), lambda: plain(optim.AdaDelta(rho=0.9, eps=1e-4), 0.01)),
    "adam, l2 and clip": (
        Spec(rule="adam", learning_rate=0.02, beta_1=0.8, beta_2=0.99, eps=1e-4, l2=0.01, clip=0.4),
        lambda: plain(optim.Adam(0.02, beta_1=0.8, beta_2=0.99, eps=1e-4), 0.02, l2=0.01, clip_gradient=0.4),
    ),
    "amsgrad": (
        Spec(rule="amsgrad", learning_rate=0.02, beta_1=0.8, beta_2=0.99, eps=1e-4, correct_bias=False),
        lambda: plain(optim.AMSGrad(0.02, beta_1=0.8, beta_2=0.99, eps=1e-4, correct_bias=False), 0.02),
    ),
    "nadam": (
        Spec(rule="nadam", learning_rate=0.02, beta_1=0.8, beta_2=0.99, eps=1e-4, bias_learning_rate=0.3),
        lambda: plain(optim.Nadam(0.02, beta_1=0.8, beta_2=0.99, eps=1e-4), 0.3),
    ),
    "adamax": (
        Spec(rule="adamax", learning_rate=0.02, beta_1=0.8, beta_2=0.99, eps=1e-4, bias_learning_rate=0.0),
        lambda: plain(optim.AdaMax(0.02, beta_1=0.8, beta_2=0.99, eps=1e-4), 0.0),
    ),
    "adabound": (
        Spec(rule="adabound", learning_rate=0.02, beta_1=0.8, beta_2=0.99, eps=1e-4, gamma=0.1, final_lr=0.5),
        lambda: plain(optim.AdaBound(0.02, beta_1=0.8, beta_2=0.99, eps=1e-4, gamma=0.1, final_lr=0.5), 0.02),
    ),
    "ftrl": (
        Spec(rule="ftrl", learning_rate=0.3, beta=0.5, l1=0.7, l2=0.2),
        lambda: plain(optim.FTRLProximal(alpha=0.3, beta=0.5, l1=0.7, l2=0.2), 0.3),
    ),
    **{name: (spec, functools.partial(unscaled, oracle)) for name, (spec, oracle) in VARIANTS.items()},
}


def test_every_rule_has_a_twin_among_these() -> None:
    assert {spec.rule for spec, _ in TWINS.values()} == RULES.keys()


@pytest.mark.parametrize("name", TWINS)
def test_the_river_twin_is_the_oracle_of_these_tests(name: str) -> None:
    spec, oracle = TWINS[name]
    sides = (river_twin(spec), oracle())
    assert type(sides[0][0]) is type(sides[1][0])
    for (x, y), w in zip(stream("Phishing", 300), sample_weights(300), strict=True):
        for scaler, model in sides:
            scaled: dict[Any, Any] = dict(x)
            if scaler is not None:
                scaler.learn_one(scaled)
                scaled = scaler.transform_one(scaled)
            model.learn_one(scaled, bool(y), w)
    (_, twin), (_, expected) = sides
    assert any(twin.weights.values())
    assert twin.weights == expected.weights
    assert twin.intercept == expected.intercept


@pytest.mark.parametrize("name", TWINS)
def test_the_cross_check_finds_equality_for_every_rule(name: str) -> None:
    report = own_report(checked(TWINS[name][0]))
    assert (report.equal, report.events, report.not_taken, report.max_abs_diff) == (True, 400, 0, 0.0)


# -- from a state, where the beginning of the log is gone


def halves(spec: Spec, events: Sequence[tuple[X, int, float]]) -> tuple[CrossCheck, CrossCheck]:
    """A cross-check of all events, and one that begins with the state that the learner had half-way."""
    whole = CrossCheck(spec)
    for event in events[: len(events) // 2]:
        whole.learn_one(*event)
    half = CrossCheck.from_state(whole.learner.state())
    for event in events[len(events) // 2 :]:
        whole.learn_one(*event)
        half.learn_one(*event)
    return whole, half


def assert_the_same_from_half_way(spec: Spec, events: Sequence[tuple[X, int, float]]) -> CrossCheck:
    """River goes on from our state as it does from its own: every weight and the bias, to the last bit."""
    whole, half = halves(spec, events)
    assert half.learner.sha256() == whole.learner.sha256()
    report, from_start = own_report(half), own_report(whole)
    assert (report.equal, from_start.equal) == (True, True)
    assert (report.from_seq, report.events) == (len(events) // 2, len(events) - len(events) // 2)
    assert half.compare(whole.learner.weights_by_name(), whole.learner.bias).equal
    assert any(half.learner.weights)
    return half


@few(6)
@pytest.mark.parametrize("name", TWINS)
def test_a_cross_check_from_half_way_equals_one_from_the_start(name: str) -> None:
    events = [(x, y, w) for (x, y), w in zip(stream("Phishing", 300), sample_weights(300), strict=True)]
    assert_the_same_from_half_way(TWINS[name][0], events)


PENALTIES: dict[str, dict[str, Any]] = {"none": {}, "l1": {"l1": 1e-3}, "l2": {"l2": 0.01}}


@few(18)
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("scale", ["none", "standard", "maxabs"])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_scale_and_penalty_goes_on_from_half_way(rule: str, scale: Scale, penalty: str) -> None:
    """Sparse events: features that come up after the state was taken, some before it alone."""
    numbers = random.Random(f"{rule}{scale}{penalty}")
    events = []
    for i in range(120):
        names = [f"f{number}" for number in numbers.sample(range(i // 10, 20 + i // 5), 6)]
        x = {name: numbers.gauss(1, 2) for name in names}
        events.append((x, numbers.randrange(2), numbers.choice([1.0, 0.3, 2.5])))
    assert_the_same_from_half_way(Spec(rule=rule, scale=scale, **PENALTIES[penalty]), events)


def mixed_events(seed: str, count: int) -> list[tuple[dict[str, float], int, float]]:
    """Events of numbers, truth values and text, as features, in random order; more and more features come up."""
    numbers = random.Random(seed)
    events = []
    for i in range(count):
        x: dict[str, float] = {f"n{j}": numbers.gauss(j, 1 + 5 * j) for j in range(6) if numbers.random() < 0.8}
        x |= {f"flag{j}": float(numbers.random() < 0.3) for j in range(3)}
        x |= {f"{field}={numbers.randrange(1 + i // 4)}": 1.0 for field in ("city", "user")}
        if numbers.random() < 0.2:
            x["price=usd"] = numbers.gauss(50, 20)  # a number, and its name says text
        shuffled = dict(numbers.sample(list(x.items()), len(x)))
        events.append((shuffled, numbers.randrange(2), numbers.choice([1.0, 0.3, 2.5])))
    return events


SCALED: list[Scale] = ["standard", "maxabs"]
MIXED_SPECS = {
    f"{rule}, {scale}": Spec(rule=rule, scale=scale, **PENALTIES[penalty])
    for scale in SCALED
    for rule, penalty in [*((rule, "none") for rule in RULES), ("sgd", "l1"), ("adam", "l2")]
}


@few(6)
@pytest.mark.parametrize("name", MIXED_SPECS)
def test_numbers_are_scaled_as_river_scales_them_and_text_is_left_as_it_is(name: str) -> None:
    """River's scaler over the numbers alone, then all features in the event's own order: every probability on the way,
    every weight and the bias, with as many features as make the model's arrays grow twice."""
    spec, events = MIXED_SPECS[name], mixed_events(name, 500)
    ours, (_, theirs) = Learner(spec), river_twin(spec)
    scaler: base.Transformer = (
        preprocessing.StandardScaler() if spec.scale == "standard" else preprocessing.MaxAbsScaler()
    )
    seen: set[str] = set()
    for x, y, w in events:
        numbers: dict[Any, float] = {feature: value for feature, value in x.items() if "=" not in feature}
        scaled = scaler.transform_one(numbers)
        # What was never learned weighs nothing; river's scaler, and Nesterov's look ahead, would make an entry of it.
        known = {f: scaled.get(f, value) if "=" not in f else value for f, value in x.items() if f in seen}
        if spec.rule != "nesterov":
            assert ours.predict_proba_one(x) == theirs.predict_proba_one(known)
        scaler.learn_one(numbers)
        scaled = scaler.transform_one(numbers)
        theirs.learn_one({f: scaled[f] if f in numbers else value for f, value in x.items()}, bool(y), w)
        ours.learn_one(x, y, w)
        seen |= x.keys()
    assert ours.not_taken == 0
    assert ours.n_features > 128
    assert ours.weights_by_name() == {feature: theirs.weights.get(feature, 0.0) for feature in ours.names}
    assert ours.bias == theirs.intercept
    assert any(ours.weights_by_name()[feature] for feature in seen if "=" in feature)


@pytest.mark.parametrize("name", MIXED_SPECS)
def test_text_beside_numbers_goes_on_from_half_way(name: str) -> None:
    assert_the_same_from_half_way(MIXED_SPECS[name], mixed_events(name, 120))


@pytest.mark.parametrize("scale", ["standard", "maxabs"])
def test_hashed_text_beside_numbers_goes_on_from_half_way(scale: Scale) -> None:
    spec = Spec(rule="adagrad", scale=scale, hash_bits=6)
    half = assert_the_same_from_half_way(spec, mixed_events(scale, 200))
    assert {name[0] for name in half.learner.names} == {"#", "="}


def test_a_text_feature_alone_is_learned_behind_the_standard_scaler() -> None:
    learner = Learner(Spec(scale="standard"))
    for i in range(400):
        learner.learn_one({"colour": "red" if i % 2 else "blue"}, i % 2)
    p = {colour: learner.predict_proba_one({"colour": colour})[True] for colour in ("red", "blue")}
    assert p["red"] > 0.65
    assert p["blue"] < 0.35


@pytest.mark.parametrize("rate", [InverseScaling("inverse_scaling", 0.3, 0.4), Optimal("optimal", 0.01)])
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule not in ("adadelta", "ftrl")])
def test_every_schedule_goes_on_from_half_way(rule: str, rate: InverseScaling | Optimal) -> None:
    events = [(x, y, 1.0) for x, y in stream("Phishing", 200)]
    assert_the_same_from_half_way(Spec(rule=rule, learning_rate=rate, l1=1e-4), events)


@pytest.mark.parametrize("scale", ["none", "standard", "maxabs"])
@pytest.mark.parametrize("rule", RULES)
def test_a_model_that_had_no_feature_half_way_goes_on_too(rule: str, scale: Scale) -> None:
    events: list[tuple[X, int, float]] = [({}, 1, 1.0)] * 10 + [({"a": 1.0 + i}, i % 2, 1.0) for i in range(10)]
    assert_the_same_from_half_way(Spec(rule=rule, scale=scale), events)


def test_hashed_features_go_on_from_half_way() -> None:
    """The state has hashes for names, and so has the log."""
    spec, events = Spec(hash_bits=3), [({f"name {i % 37}": 1.0 + i / 50}, i % 2, 1.0) for i in range(200)]
    assert_the_same_from_half_way(spec, events)


def test_steps_that_were_not_taken_before_half_way_are_not_counted_after_it() -> None:
    usual = [({"a": i / 9, "b": 1.0}, i % 2, 1.0) for i in range(20)]
    huge = [({"a": 1e200, "b": 1e-200, "only here": 1.0}, y, 1.0) for y in (0, 1)]
    spec = Spec(rule="adam", max_value=1e300, scale="standard", learning_rate=0.01)
    half = assert_the_same_from_half_way(spec, [*usual[:4], *huge, *usual[4:], *usual])
    assert (half.learner.not_taken > 0, own_report(half).not_taken) == (True, 0)


def test_a_cross_check_from_half_way_finds_a_model_that_learned_one_event_less() -> None:
    events = [(x, y, 1.0) for x, y in stream("Phishing", 100)]
    _, half = halves(Spec(rule="ftrl"), events)
    other, _ = halves(Spec(rule="ftrl"), events[:-1])
    assert not half.compare(other.learner.weights_by_name(), other.learner.bias).equal


@pytest.mark.parametrize("rule", RULES)
def test_the_cross_check_of_any_rule_finds_a_model_that_learned_one_event_less(rule: str) -> None:
    spec, events = Spec(rule=rule, scale="standard"), stream("Phishing", 400)
    other = Learner(spec)
    other.learn_many([x for x, _ in events[:-1]], [y for _, y in events[:-1]], sample_weights(400)[:-1])
    assert not checked(spec).compare(other.weights_by_name(), other.bias).equal


def test_auto_and_ftrl_without_lag_have_no_twin_and_the_error_says_why() -> None:
    for spec, reason in ((Spec(rule="auto"), "auto"), (Spec(rule="ftrl", lag=False), "lag")):
        with pytest.raises(NoTwin, match=reason):
            river_twin(spec)
        with pytest.raises(NoTwin, match=reason):
            CrossCheck(spec)
        with pytest.raises(NoTwin, match=reason):
            crosscheck([({"a": 1.0}, 1, 1.0)], spec)


@pytest.mark.parametrize("towards", [math.inf, -math.inf])
@pytest.mark.parametrize("feature", ["is_popular", "ip_in_url"])
def test_the_cross_check_finds_a_weight_that_is_off_by_one_unit_in_the_last_place(feature: str, towards: float) -> None:
    check = checked(Spec(learning_rate=0.1))
    weights = check.learner.weights_by_name()
    planted = math.nextafter(weights[feature], towards)
    report = check.compare({**weights, feature: planted}, check.learner.bias)
    assert not report.equal
    assert report.feature == feature
    assert (report.max_ulp, report.bias_ulp) == (1, 0)
    assert report.max_abs_diff == abs(planted - weights[feature]) > 0


def test_the_cross_check_finds_a_bias_that_is_off_by_one_unit_in_the_last_place() -> None:
    check = checked(Spec(learning_rate=0.1))
    bias = check.learner.bias
    planted = math.nextafter(bias, math.inf)
    report = check.compare(check.learner.weights_by_name(), planted)
    assert not report.equal
    assert report.feature is None  # the weights are equal
    assert (report.max_ulp, report.bias_ulp) == (1, 1)
    assert report.max_abs_diff == planted - bias > 0


def test_the_cross_check_names_the_feature_with_the_largest_difference() -> None:
    check = checked(Spec(learning_rate=0.1))
    weights = check.learner.weights_by_name()
    off_by_three = weights["long_url"]
    for _ in range(3):
        off_by_three = math.nextafter(off_by_three, math.inf)
    planted = {**weights, "https": math.nextafter(weights["https"], math.inf), "long_url": off_by_three}
    report = check.compare(planted, check.learner.bias)
    assert (report.feature, report.max_ulp) == ("long_url", 3)


def test_a_missing_weight_and_one_too_many_are_differences() -> None:
    check = checked(Spec(learning_rate=0.1))
    weights = check.learner.weights_by_name()
    missing = {name: w for name, w in weights.items() if name != "https"}
    report = check.compare(missing, check.learner.bias)
    assert (report.equal, report.feature, report.max_abs_diff) == (False, "https", abs(weights["https"]))
    report = check.compare({**weights, "made up": 0.5}, check.learner.bias)
    assert (report.equal, report.feature, report.max_abs_diff) == (False, "made up", 0.5)


def test_a_weight_that_is_not_a_number_is_a_difference() -> None:
    check = checked(Spec(learning_rate=0.1))
    report = check.compare({**check.learner.weights_by_name(), "https": math.nan}, check.learner.bias)
    assert (report.equal, report.feature) == (False, "https")


def test_the_cross_check_finds_a_model_of_another_spec() -> None:
    other = Learner(Spec(learning_rate=0.1, clip=0.3))
    events = stream("Phishing", 400)
    other.learn_many([x for x, _ in events], [y for _, y in events], sample_weights(400))
    report = checked(Spec(learning_rate=0.1)).compare(other.weights_by_name(), other.bias)
    assert not report.equal
    assert report.max_ulp > 1000


def test_the_cross_check_finds_that_a_stream_was_learned_in_another_order() -> None:
    other, events = Learner(Spec(learning_rate=0.1)), list(stream("Phishing", 400))
    weights = sample_weights(400)
    for i in [1, 0, *range(2, 400)]:
        x, y = events[i]
        other.learn_one(x, y, weights[i])
    assert not checked(Spec(learning_rate=0.1)).compare(other.weights_by_name(), other.bias).equal


@pytest.mark.parametrize("rule", ["adagrad", "adadelta", "adabound", "ftrl", "adam"])
@pytest.mark.parametrize("scale", ["none", "standard"])
def test_a_step_of_any_rule_that_is_not_taken_is_not_asked_of_river_either(rule: str, scale: Scale) -> None:
    """River raises OverflowError for some of these, or is left with NaN."""
    usual = [({"a": 1.0 + i % 7, "b": -0.5 * (i % 3)}, i % 2, 1.0) for i in range(40)]
    # Unscaled, the score is certain of one label: for that the gradient is 0, and for the other its square overflows.
    # Scaled, the variance overflows for both.
    huge = [({"a": 1.0, "b": 1e200}, y, 1.0) for y in (0, 1)]
    report = crosscheck([*usual[:20], *huge, *usual[20:]], Spec(rule=rule, max_value=1e300, scale=scale))
    assert (report.events, report.not_taken, report.equal) == (42, 1 if scale == "none" else 2, True)


def test_a_step_that_is_not_taken_is_not_asked_of_river_either() -> None:
    spec = Spec(learning_rate=1e250)
    events = [({"a": 1.0}, 1, 1.0), ({"b": 1e90, "a": 0.0}, 0, 1.0), ({"a": -1e-200, "b": 0.5}, 1, 1.0)]
    report = crosscheck(events, spec)
    assert (report.events, report.not_taken, report.equal) == (3, 1, True)


def test_text_booleans_and_arrays_are_cross_checked_too() -> None:
    events: list[tuple[X, int, float]] = [
        ({"age": 31, "country": "FR", "vip": True}, 1, 1.0),
        ([0.25, -3.5], 0, 2.0),
        ({"country": "DE", "vip": False, "0": 2.5}, 0, 1.0),
        ({}, 1, 1.0),
    ] * 20
    report = crosscheck(events, Spec(learning_rate=0.3))
    assert (report.equal, report.features, report.events) == (True, 6, 80)


def test_hashed_features_are_cross_checked_too() -> None:
    events = [({f"name {i % 37}": 1.0 + i, f"other {i % 11}": -0.5}, i % 2, 1.0) for i in range(300)]
    report = crosscheck(events, Spec(learning_rate=0.01, hash_bits=3))
    assert (report.equal, report.features) == (True, 8)


def test_a_report_is_plain_values() -> None:
    report = crosscheck([({"a": 1.0}, 1, 1.0)])
    assert {type(value) for value in report} <= {int, float, bool, str, type(None)}


# -- units in the last place

FINITE = st.floats(allow_nan=False, allow_infinity=False)


@examples(200)
@given(FINITE, FINITE)
def test_the_distance_in_units_in_the_last_place_is_symmetric(a: float, b: float) -> None:
    assert ulp_distance(a, b) == ulp_distance(b, a) >= 0


@examples(200)
@given(FINITE, FINITE)
def test_the_distance_is_zero_exactly_for_equal_numbers(a: float, b: float) -> None:
    assert ulp_distance(a, a) == 0
    assert (ulp_distance(a, b) == 0) == (a == b)


@examples(200)
@given(FINITE, st.sampled_from([math.inf, -math.inf]))
def test_the_next_number_is_one_away(a: float, towards: float) -> None:
    following = math.nextafter(a, towards)
    if math.isfinite(following):
        assert ulp_distance(a, following) == 1


@examples(200)
@given(FINITE, FINITE)
def test_distances_of_opposite_signs_go_through_zero(a: float, b: float) -> None:
    a, b = abs(a), -abs(b)
    assert ulp_distance(a, b) == ulp_distance(a, 0.0) + ulp_distance(0.0, b)


@examples(200)
@given(FINITE, FINITE, FINITE)
def test_distances_add_up_along_the_line(a: float, b: float, c: float) -> None:
    a, b, c = sorted([a, b, c])
    assert ulp_distance(a, c) == ulp_distance(a, b) + ulp_distance(b, c)


def test_distances_by_hand() -> None:
    assert ulp_distance(0.0, -0.0) == 0
    assert ulp_distance(0.0, 5e-324) == ulp_distance(-0.0, 5e-324) == 1
    assert ulp_distance(-5e-324, 5e-324) == 2
    assert ulp_distance(1.0, 2.0) == 2**52
    assert ulp_distance(1.0, 0.5) == 2**52
    assert ulp_distance(0.0, 1.0) == struct.unpack("<q", struct.pack("<d", 1.0))[0]
