"""Every rule, with every scaler, schedule and penalty, against river itself; and what holds for all rules."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from effort import amount, examples, few
from hypothesis import given
from hypothesis import strategies as st
from river import base, linear_model, optim, preprocessing
from streams import Event, sample_weights, stream

from core import Learner, Spec
from core.batch import Batch
from core.builder import BatchBuilder
from core.linear import Linear
from core.rules import RULES
from core.spec import InverseScaling, Optimal, Scale

STREAMS = ["Phishing", "Bananas", "Shuttle"]
SCALES: list[Scale] = ["none", "standard", "maxabs"]
SCHEDULES = ["constant", "inverse scaling", "optimal"]
PENALTIES = ["none", "l2", "l1"]
CLASS_WEIGHTS: dict[Literal["0", "1"], float] = {"0": 0.7, "1": 2.5}


# -- river's side, by hand

Rate = float | optim.base.Scheduler

OPTIMIZERS: dict[str, Callable[..., optim.base.Optimizer]] = {
    "sgd": optim.SGD,
    "momentum": optim.Momentum,
    "nesterov": optim.NesterovMomentum,
    "adagrad": optim.AdaGrad,
    "rmsprop": optim.RMSProp,
    "adadelta": lambda lr, **own: optim.AdaDelta(**own),
    "adam": optim.Adam,
    "amsgrad": optim.AMSGrad,
    "nadam": optim.Nadam,
    "adamax": optim.AdaMax,
    "adabound": optim.AdaBound,
    "ftrl": lambda lr, **own: optim.FTRLProximal(0.3, **own),
}
SCALERS: dict[str, Callable[[], base.Transformer | None]] = {
    "none": lambda: None,
    "standard": preprocessing.StandardScaler,
    "maxabs": preprocessing.MaxAbsScaler,
}
RATES: dict[str, Callable[[optim.losses.Log], Rate]] = {
    "constant": lambda loss: 0.05,
    "inverse scaling": lambda loss: optim.schedulers.InverseScaling(0.3, 0.6),
    "optimal": lambda loss: optim.schedulers.Optimal(loss, 0.01),
}
MODEL_PENALTIES: dict[str, dict[str, Any]] = {"none": {}, "l2": {"l2": 0.02}, "l1": {"l1": 0.0004}}
FTRL_PENALTIES: dict[str, dict[str, float]] = {
    "none": {"l1": 0.0, "l2": 0.0},
    "l2": {"l1": 0.0, "l2": 0.7},
    "l1": {"l1": 0.4, "l2": 0.2},
}


# -- our side, by hand too

OUR_RATES = {
    "constant": 0.05,
    "inverse scaling": InverseScaling("inverse_scaling", 0.3, 0.6),
    "optimal": Optimal("optimal", 0.01),
}


@dataclass(frozen=True)
class Case:
    """What both sides are told. `own`: the rule's own parameters, which both call the same."""

    rule: str
    scale: Scale = "none"
    schedule: str = "constant"
    penalty: str = "none"
    weighted: bool = False
    own: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.rule} {self.scale} {self.schedule} {self.penalty}{' weighted' * self.weighted}"

    def spec(self) -> Spec:
        said: dict[str, Any] = {"bias_learning_rate": OUR_RATES[self.schedule]}
        if self.rule == "ftrl":
            said |= {"learning_rate": 0.3, **FTRL_PENALTIES[self.penalty]}
        else:
            said |= MODEL_PENALTIES[self.penalty]
        if self.rule not in ("ftrl", "adadelta"):
            said["learning_rate"] = OUR_RATES[self.schedule]
        if self.weighted:
            said["class_weights"] = CLASS_WEIGHTS
        return Spec(rule=self.rule, scale=self.scale, **said, **self.own)

    def oracle(self) -> Oracle:
        loss = optim.losses.Log(weight_pos=2.5, weight_neg=0.7) if self.weighted else optim.losses.Log()
        own = self.own | (FTRL_PENALTIES[self.penalty] if self.rule == "ftrl" else {})
        model = linear_model.LogisticRegression(
            OPTIMIZERS[self.rule](lr=RATES[self.schedule](loss), **own),
            loss,
            intercept_lr=RATES[self.schedule](loss),
            **({} if self.rule == "ftrl" else MODEL_PENALTIES[self.penalty]),
        )
        return Oracle(SCALERS[self.scale](), model)


class Oracle:
    """River's model behind river's scaler, which learns an event's features before they are scaled."""

    def __init__(self, scaler: base.Transformer | None, model: linear_model.LogisticRegression) -> None:
        self.scaler = scaler
        self.model = model

    def predict_proba_one(self, x: dict[Any, float]) -> Any:
        return self.model.predict_proba_one(x if self.scaler is None else self.scaler.transform_one(x))

    def learn_one(self, x: dict[Any, float], y: int, w: float = 1.0) -> None:
        if self.scaler is not None:
            self.scaler.learn_one(x)
            x = self.scaler.transform_one(x)
        self.model.learn_one(x, bool(y), w)


def assert_equal_models(ours: Learner, theirs: Oracle, what: object) -> None:
    """0 ULP: every weight and the bias are equal, not close."""
    assert ours.weights_by_name() == theirs.model.weights, what
    assert ours.bias == theirs.model.intercept, what


def assert_equal_after(events: Sequence[Event], case: Case) -> None:
    """Both sides learn the same events; then they are equal."""
    ours, theirs = Learner(case.spec()), case.oracle()
    weights = sample_weights(len(events)) if case.weighted else [1.0] * len(events)
    outcome = ours.learn_many([x for x, _ in events], [y for _, y in events], weights)
    for (x, y), w in zip(events, weights, strict=True):
        theirs.learn_one(dict(x), y, w)
    assert outcome.learned.all(), case
    assert any(w != 0.0 for w in theirs.model.weights.values()), case  # river learned something to compare
    assert_equal_models(ours, theirs, case)


def all_cases() -> list[Case]:
    axes = itertools.product(RULES, SCALES, SCHEDULES, PENALTIES, (False, True))
    return [Case(*choices) for choices in axes]


def rotating_cases(turns: int) -> list[Case]:
    """Every rule with every scale, `turns` times, each with the next choice of schedule, penalty and weights.

    The steps through the three lists have no common period, so that all their combinations come up by and by.
    """
    cases = []
    for i, (rule, scale) in enumerate(itertools.product(RULES, SCALES)):
        for turn in range(turns):
            j = i + 7 * turn
            cases.append(Case(rule, scale, SCHEDULES[j % 3], PENALTIES[(j // 3 + j) % 3], (j // 2) % 2 == 1))
    return cases


def test_the_cases_are_what_they_are_meant_to_be() -> None:
    """Each rule meets every scale, schedule, penalty and both kinds of weights, also in the rotation."""
    assert len(all_cases()) == 12 * 3 * 3 * 3 * 2
    for cases in (all_cases(), rotating_cases(2)):
        for rule in RULES:
            met = [case for case in cases if case.rule == rule]
            for axis, choices in (("scale", 3), ("schedule", 3), ("penalty", 3), ("weighted", 2)):
                assert len({getattr(case, axis) for case in met}) == choices, (rule, axis)


# -- equal to river, to the last bit


EVENTS = amount(quick=100, checks=250, long=None)
"""So many events of each stream; None: all."""


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", amount(quick=["Phishing"], checks=["Phishing"], long=["Phishing", "Bananas"]))
def test_every_combination_equals_river(name: str, rule: str, scale: Scale) -> None:
    for case in all_cases():
        if (case.rule, case.scale) == (rule, scale):
            assert_equal_after(stream(name, EVENTS), case)


@few(12)
@pytest.mark.parametrize("case", rotating_cases(amount(quick=2, checks=2, long=3)), ids=str)
@pytest.mark.parametrize("name", ["Bananas", "Shuttle"])
def test_every_rule_and_scale_equal_river_on_other_streams(name: str, case: Case) -> None:
    assert_equal_after(stream(name, EVENTS), case)


OWN_PARAMETERS: dict[str, list[dict[str, Any]]] = {
    "sgd": [{}],
    "momentum": [{"rho": 0.0}, {"rho": 0.55}],
    "nesterov": [{"rho": 0.0}, {"rho": 0.55}],
    "adagrad": [{"eps": 0.3}],
    "rmsprop": [{"rho": 0.55}, {"eps": 0.3}],
    "adadelta": [{"rho": 0.55}, {"eps": 0.3}],
    "adam": [{"beta_1": 0.3}, {"beta_2": 0.77}, {"eps": 0.3}, {"beta_1": 0.0, "beta_2": 0.0}],
    "amsgrad": [{"beta_1": 0.3}, {"beta_2": 0.77}, {"eps": 0.3}, {"correct_bias": False}],
    "nadam": [{"beta_1": 0.3}, {"beta_2": 0.77}, {"eps": 0.3}],
    "adamax": [{"beta_1": 0.3}, {"beta_2": 0.77}, {"eps": 0.3}],
    "adabound": [{"beta_1": 0.3}, {"beta_2": 0.77}, {"eps": 0.3}, {"gamma": 0.4}, {"gamma": 0.4, "final_lr": 0.9}],
    "ftrl": [{"beta": 0.0}, {"beta": 3.3}],
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rules_own_parameters_are_rivers(rule: str) -> None:
    for own, scale in itertools.product(OWN_PARAMETERS[rule], SCALES):
        assert_equal_after(stream("Phishing", 150), Case(rule, scale, own=own))


@pytest.mark.parametrize("rule", RULES)
def test_every_parameter_of_a_rule_makes_a_difference(rule: str) -> None:
    """Not a statement about river: that the test above would notice a parameter that is left unused."""

    def weights(**own: Any) -> list[float]:
        learner = Learner(Case(rule, "maxabs", own=own).spec())
        learner.learn_many([x for x, _ in stream("Phishing", 150)], [y for _, y in stream("Phishing", 150)])
        return [float(weight) for weight in learner.weights]

    found = [weights(), *[weights(**own) for own in OWN_PARAMETERS[rule] if own]]
    assert len({tuple(learned) for learned in found}) == len(found)


@pytest.mark.parametrize("first", [5e-324, 2.3e-308])
@pytest.mark.parametrize("rule", RULES)
def test_values_far_above_all_before_them_are_learned_as_river_learns_them(rule: str, first: float) -> None:
    ours, theirs = Learner(Case(rule, "maxabs").spec()), Case(rule, "maxabs").oracle()
    for value, y in [(first, 1), (5.0, 0), (-1e100, 1), (3.0, 1)]:
        assert 0.0 <= ours.predict_proba_one({"a": value})[True] <= 1.0
        ours.learn_one({"a": value}, y)
        theirs.learn_one({"a": value}, y)
    assert ours.not_taken == 0
    assert_equal_models(ours, theirs, rule)


@few(9)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("rule", RULES)
def test_every_progressive_probability_equals_rivers(rule: str, scale: Scale) -> None:
    ours, theirs = Learner(Case(rule, scale).spec()), Case(rule, scale).oracle()
    for x, y in stream("Phishing"):
        assert ours.predict_proba_one(x) == theirs.predict_proba_one(dict(x))
        ours.learn_one(x, y)
        theirs.learn_one(dict(x), y)
    assert_equal_models(ours, theirs, (rule, scale))


def sparse_events(count: int, seed: int, spread: float = 100.0) -> list[Event]:
    """Like counts of words: few of many features in an event, in any order; some come late, some not again.

    One now and then has values of the size of `spread`.
    """
    numbers, events = random.Random(seed), list[Event]()
    for i in range(count):
        first = i // 4  # the vocabulary moves on
        words = numbers.sample(range(first, first + 60), numbers.randrange(0, 14))
        x: dict[str, float] = {f"word {word}": float(numbers.randrange(0, 4)) for word in words}
        if numbers.random() < 0.3:
            x["length"] = numbers.gauss(0, spread)
        if numbers.random() < 0.1:
            x[f"only once {i}"] = 1.0
        events.append((x, int(sum(word % 5 == 0 for word in words) + numbers.random() > 2)))
    return events


@few(12)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("rule", RULES)
def test_sparse_events_equal_river(rule: str, scale: Scale) -> None:
    numbers = random.Random(12)
    for case in (Case(rule, scale), Case(rule, scale, "inverse scaling", "l1"), Case(rule, scale, "optimal", "l2")):
        ours, theirs = Learner(case.spec()), case.oracle()
        for i, (x, y) in enumerate(sparse_events(160, seed=5)):
            if i % 8 == 0:
                assert ours.predict_proba_one(x) == theirs.predict_proba_one(dict(x)), case
            w = numbers.choice([1.0, 0.3, 4.1])
            ours.learn_one(x, y, w)
            theirs.learn_one(dict(x), y, w)
        assert_equal_models(ours, theirs, case)
        assert len(ours.weights) > 90


def test_an_event_whose_every_value_is_0_equals_river() -> None:
    for case in rotating_cases(1):
        events = [({"a": 0.0, "b": -0.0}, 1), ({"a": 1.0}, 0), ({"b": 0.0, "a": 0.0}, 0), ({}, 1), ({"b": 2.0}, 1)] * 4
        assert_equal_after(events, case)


# -- ftrl without lag: Algorithm 1 of McMahan et al. 2013


def mcmahan(
    events: Sequence[Event], alpha: float, beta: float, l1: float, l2: float, bias_rate: float
) -> tuple[list[float], dict[str, float], float]:
    """Every prediction, the weights and the bias; the bias moves by plain gradient descent."""
    z: dict[str, float] = {}
    n: dict[str, float] = {}
    bias = 0.0

    def weight(i: str) -> float:
        if abs(z.get(i, 0.0)) <= l1:
            return 0.0
        return -(z[i] - math.copysign(l1, z[i])) / ((beta + math.sqrt(n[i])) / alpha + l2)

    predictions = []
    for x, y in events:
        w = {i: weight(i) for i in x}
        p = 1 / (1 + math.exp(-(sum(w[i] * value for i, value in x.items()) + bias)))
        predictions.append(p)
        for i, value in x.items():
            g = (p - y) * value
            sigma = (math.sqrt(n.get(i, 0.0) + g * g) - math.sqrt(n.get(i, 0.0))) / alpha
            z[i] = z.get(i, 0.0) + g - sigma * w[i]
            n[i] = n.get(i, 0.0) + g * g
        bias -= bias_rate * (p - y)
    return predictions, {i: weight(i) for i in z}, bias


@pytest.mark.parametrize(("l1", "l2", "beta"), [(0.0, 0.0, 1.0), (1.5, 0.0, 1.0), (0.7, 2.0, 0.3), (0.0, 1.0, 0.0)])
@pytest.mark.parametrize("events", ["Phishing", "Bananas", "sparse"])
def test_ftrl_without_lag_is_algorithm_1_of_the_paper(events: str, l1: float, l2: float, beta: float) -> None:
    # No large values: beyond a score of 18 river, and so the kernel, rounds p - y, which is exact here.
    learned = sparse_events(300, seed=8, spread=2.0) if events == "sparse" else stream(events, 600)
    ours = Learner(
        Spec(rule="ftrl", lag=False, learning_rate=0.2, beta=beta, l1=l1, l2=l2, bias_learning_rate=0.05)
    )  # fmt: skip
    outcome = ours.learn_many([x for x, _ in learned], [y for _, y in learned])
    predictions, weights, bias = mcmahan(learned, 0.2, beta, l1, l2, 0.05)
    assert outcome.probabilities.tolist() == pytest.approx(predictions, rel=1e-11)
    assert ours.bias == pytest.approx(bias, rel=1e-11)
    assert ours.weights_by_name() == pytest.approx(weights, rel=1e-10, abs=1e-14)
    zeros = {name for name, w in ours.weights_by_name().items() if w == 0.0}
    assert zeros == {name for name, w in weights.items() if w == 0.0}  # exactly 0, and where the paper has them
    if events == "sparse" and l1:
        assert 10 < len(zeros) < len(weights) - 10


def test_ftrl_without_lag_predicts_with_all_it_has_learned_and_with_lag_it_does_not() -> None:
    at_once, lagging = (Learner(Spec(rule="ftrl", lag=lag, l1=0.0)) for lag in (False, True))
    for learner in (at_once, lagging):
        learner.learn_one({"a": 2.0}, 1)
    # g = -1; z = -1, n = 1; w = 1 / ((1 + 1)/0.05 + 1) = 1/41
    assert at_once.weights_by_name() == {"a": pytest.approx(1 / 41, rel=1e-15)}
    assert lagging.weights_by_name() == {"a": 0.0}


# -- the cost of an event is that of its own features


def linear_arrays(learner: Learner) -> dict[str, npt.NDArray[np.float64]]:
    """The state, with a row for each feature where there is one."""
    n, arrays = learner.n_features, learner.state()["arrays"]
    return {name: array if name == "scalars" else array.reshape(n, -1) for name, array in arrays.items() if array.size}


FEATURES = 100_000


@pytest.fixture(scope="module")
def wide_events() -> list[tuple[list[float], int]]:
    numbers = random.Random(20)
    # Small, so that no score is so certain that there is no gradient left.
    return [([numbers.gauss(0, 0.01) for _ in range(FEATURES)], y) for y in (1, 0, 1)]


@few(2)
@pytest.mark.parametrize("rule", RULES)
def test_an_event_changes_the_rows_of_its_own_features_and_no_others(
    rule: str, wide_events: list[tuple[list[float], int]]
) -> None:
    for scale, l1 in zip(SCALES, (0.0, 1e-6, 1e-6), strict=True):
        learner = Learner(Spec(rule=rule, scale=scale, l1=l1))
        learner.learn_many([x for x, _ in wide_events], [y for _, y in wide_events])
        before = linear_arrays(learner)
        if rule == "adadelta" and l1:  # the penalty is l1 times the learning rate, and it has none: as in river
            assert not before.pop("paid").any()
        for name in before.keys() - {"scalars"}:
            assert (before[name] != 0.0).any(axis=1).mean() > 0.9, name  # there is something to change in the others
        own = [17, FEATURES - 1, 50_000]
        learner.learn_one({str(column): value for column, value in zip(own, (1.5, -2.0, 1e-9), strict=True)}, 0)
        after = linear_arrays(learner)
        assert after.keys() >= before.keys()
        for name in before.keys() - {"scalars"}:
            changed = (after[name] != before[name]).any(axis=1).nonzero()[0].tolist()
            if (name, scale) == ("scaler", "maxabs"):
                assert changed == [17, FEATURES - 1]  # 1e-9 is not the largest
            else:
                assert changed == sorted(own), (name, scale)


# -- a state is all there is, and pieces are the whole


def batch_for(learner: Learner, events: Sequence[Event], weights: Sequence[float]) -> Batch:
    builder = BatchBuilder(learner.features)
    for (x, y), w in zip(events, weights, strict=True):
        builder.add(x, y, w)
    return builder.build()


def bits(learner: Learner) -> dict[str, Any]:
    state = learner.state()
    return {**state, "arrays": {name: array.tobytes() for name, array in state["arrays"].items()}}


def cases_of(rule: str) -> Iterator[Spec]:
    for case in all_cases():
        if case.rule == rule:
            yield case.spec()
            if rule == "ftrl":
                yield Case(**{**case.__dict__, "own": {"lag": False}}).spec()


@few(4)
@pytest.mark.parametrize("rule", RULES)
def test_a_learner_from_a_state_half_way_equals_one_that_was_never_interrupted(rule: str) -> None:
    events, weights = sparse_events(120, seed=9), sample_weights(120)
    for spec in cases_of(rule):
        unbroken, first = Learner(spec), Learner(spec)
        whole = unbroken.learn_batch(batch_for(unbroken, events, weights))
        first.learn_batch(batch_for(first, events[:60], weights[:60]))
        second = Learner.from_state(first.state())
        assert bits(second) == bits(first)
        rest = second.learn_batch(batch_for(second, events[60:], weights[60:]))
        assert rest.probabilities.tolist() == whole.probabilities.tolist()[60:]
        assert bits(second) == bits(unbroken), spec


@few(4)
@pytest.mark.parametrize("rule", RULES)
def test_learning_in_pieces_equals_learning_at_once(rule: str) -> None:
    events, weights = sparse_events(120, seed=10), sample_weights(120)
    for spec in cases_of(rule):
        at_once, in_pieces = Learner(spec), Learner(spec)
        whole = at_once.learn_batch(batch_for(at_once, events, weights))
        probabilities: list[float] = []
        for piece in batch_for(in_pieces, events, weights).slices(7):
            probabilities += in_pieces.learn_batch(piece).probabilities.tolist()
        assert probabilities == whole.probabilities.tolist()
        assert bits(in_pieces) == bits(at_once), spec


# -- steps that are not taken

# Where a rule squares a gradient, one of 1e300 is too much; where it does not, it takes a learning rate of this size.
LARGE_RATES = {"sgd": 1e200, "momentum": 1e200, "nesterov": 1e200, "adamax": 1e307}


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("rule", RULES)
def test_a_step_that_would_overflow_is_not_taken_and_changes_nothing(rule: str, penalty: str) -> None:
    said: dict[str, Any] = FTRL_PENALTIES[penalty] if rule == "ftrl" else MODEL_PENALTIES[penalty]
    if rule in LARGE_RATES:
        said = said | {"learning_rate": LARGE_RATES[rule], "bias_learning_rate": 0.1}
        if penalty == "l1":
            said["l1"] = 1e-300
        if penalty == "l2":
            said["l2"] = 1e-307
    learner, other = (Learner(Spec(rule=rule, max_value=1e300, **said)) for _ in range(2))
    for side in (learner, other):
        side.learn_many([{"a": 1.0, "b": 0.0}, {"a": -1.0, "b": 0.0}], [1, 1])
    before = bits(learner)
    x = {"a": 1.0, "b": 1e300}  # the step moves a before it comes to b
    score = learner.score_of(*learner.encoded(x))
    assert math.isfinite(score)
    wrong = int(score < 0)
    assert learner.learn_many([x], [wrong], [3.0]).learned.tolist() == [False]
    assert bits(learner) == {**before, "seq": 3, "not_taken": 1}
    for side in (learner, other):
        assert side.learn_many([{"b": 1e-5, "a": 1e-3}], [0]).learned.all()
    assert bits(learner) == {**bits(other), "seq": 4, "not_taken": 1}  # its schedules do not count it either


@pytest.mark.parametrize("rule", RULES)
def test_a_variance_that_would_overflow_is_not_learned(rule: str) -> None:
    learner = Learner(Spec(rule=rule, max_value=1e300, scale="standard"))
    learner.learn_many([{"a": 1.0, "b": 3.0}, {"a": -1.0, "b": 0.0}], [1, 0])
    before = bits(learner)
    assert learner.learn_many([{"a": 2.0, "b": 1e300}], [0]).learned.tolist() == [False]
    assert bits(learner) == {**before, "seq": 3, "not_taken": 1}


def test_a_feature_whose_first_event_is_not_taken_is_as_if_it_had_never_come() -> None:
    for rule in RULES:
        learner = Learner(Spec(rule=rule, max_value=1e300, learning_rate=LARGE_RATES.get(rule)))
        learner.learn_one({"a": 1.0}, 1)
        before = linear_arrays(learner)
        outcome = learner.learn_many([{"a": 1.0, "new": 1e300}], [0])
        assert outcome.learned.tolist() == [False], rule
        for name, array in linear_arrays(learner).items():
            rows = array if name == "scalars" else array[:1]
            assert rows.tobytes() == before[name].tobytes(), (rule, name)
            assert name == "scalars" or not array[1:].any(), (rule, name)


# -- the kernel for plain SGD


@examples(200)
@given(
    events=st.lists(
        st.tuples(
            st.dictionaries(st.integers(0, 6), st.floats(-1e100, 1e100) | st.floats(-3, 3), max_size=5),
            st.integers(0, 1),
            st.floats(1e-3, 1e3) | st.just(1e308),
        ),
        max_size=30,
    ),
    rate=st.sampled_from([0.01, 1.0, 1e200]),
    clip=st.sampled_from([1e12, 0.25, 1e300]),
    taken=st.integers(0, 3),
)
def test_the_kernel_for_plain_sgd_does_what_the_general_one_does(
    events: list[tuple[dict[int, float], int, float]], rate: float, clip: float, taken: int
) -> None:
    spec = Spec(learning_rate=rate, bias_learning_rate=0.1, clip=clip, class_weights=CLASS_WEIGHTS)
    rows = [({str(name): value for name, value in x.items()}, y) for x, y, _ in events]
    batch = batch_for(Learner(spec), rows, [weight for _, _, weight in events])
    plain, general = Linear(spec), Linear(spec)
    assert plain.plain
    general.plain = False
    found = []
    for model in (plain, general):
        scores, learned = np.empty(len(batch)), np.empty(len(batch), np.bool_)
        model.learn(batch, taken, scores, learned)
        found.append([scores.tobytes(), learned.tolist(), {k: v.tobytes() for k, v in model.arrays(7).items()}])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "spec",
    [
        Spec(rule="adam"),
        Spec(scale="standard"),
        Spec(l1=0.1),
        Spec(l2=0.1),
        Spec(learning_rate=InverseScaling("inverse_scaling", 0.3, 0.6)),
        Spec(learning_rate=0.1, bias_learning_rate=Optimal("optimal", 0.01)),
    ],
)
def test_only_plain_sgd_takes_its_kernel(spec: Spec) -> None:
    assert not Linear(spec).plain
