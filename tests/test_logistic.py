"""The mathematics: every equation against the kernels that the service runs, and the step by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
from river import optim
from river.utils.math import sigmoid as river_sigmoid

from core import Learner, Spec, logistic
from core.batch import Batch
from core.linear import Linear
from core.logistic import Floats, log_loss, residual, score, sigmoid
from core.rules import BIAS, L1_TOTAL
from core.spec import Scale

MODERATE_SCORES = [-6.0, -2.5, -1.0, -0.1, 0.0, 0.3, 1.0, 2.0, 5.5]
X = np.array([0.5, -2.0, 3.0])
W = np.array([0.7, 0.2, -0.4])
B = 0.3
COLUMNS = np.array([0, 1, 2], np.int32)


def slope(function: Callable[[float], float], at: float) -> float:
    """The derivative by central differences: the error is of the order of h² (5e-11) and of rounding / h (1e-11)."""
    h = 7e-6
    return (function(at + h) - function(at - h)) / (2 * h)


def grid_of_scores() -> list[float]:
    """Scores of every magnitude, more where the formulas change branch."""
    grid = [sign * 10.0**k for k in range(-300, 301, 7) for sign in (-1, 1)]
    grid += [i / 64 for i in range(-64 * 40, 64 * 40 + 1)]
    for edge in (18.0, 30.0):
        for sign in (-1.0, 1.0):
            grid += [sign * math.nextafter(edge, 0), sign * edge, sign * math.nextafter(edge, math.inf)]
    return [*grid, 0.0, -0.0, 5e-324, -5e-324, 709.7, -709.7, 710.0, -710.0, 745.2, -745.2, 1.7e308, -1.7e308]


class Model:
    """A model with given weights, bias and penalties paid, and one step of it."""

    def __init__(
        self, weights: list[float], bias: float = 0.0, paid: list[float] | None = None, owed: float = 0.0, **spec: Any
    ) -> None:
        self.size = len(weights)
        self.linear = Linear(Spec(**spec))
        arrays = self.linear.arrays(self.size)
        arrays["weights"][:] = weights
        arrays["scalars"][BIAS], arrays["scalars"][L1_TOTAL] = bias, owed
        if paid is not None:
            arrays["paid"][:] = paid
        self.linear.load(arrays, [f"x{i}" for i in range(self.size)])

    def step(self, x: list[float], y: int, sample_weight: float = 1.0) -> bool:
        """Whether the step was taken."""
        scores, learned = np.empty(1), np.empty(1, np.bool_)
        batch = Batch(
            np.array([0, len(x)]),
            np.arange(len(x), dtype=np.int32),
            np.array(x, np.float64),
            np.array([y], np.uint8),
            np.array([sample_weight]),
        )
        self.linear.learn(batch, 0, scores, learned)
        return bool(learned[0])

    @property
    def weights(self) -> Floats:
        return self.linear.arrays(self.size)["weights"]

    @property
    def paid(self) -> Floats:
        return self.linear.arrays(self.size)["paid"]

    @property
    def owed(self) -> float:
        """What every weight owes of the L1 penalty so far."""
        return float(self.linear.arrays(self.size)["scalars"][L1_TOTAL])

    @property
    def bias(self) -> float:
        return self.linear.bias

    def bits(self) -> bytes:
        return b"".join(array.tobytes() for array in self.linear.arrays(self.size).values())


# -- the chain rule, factor by factor


@pytest.mark.parametrize("z", MODERATE_SCORES)
def test_dp_dz_is_p_times_one_minus_p(z: float) -> None:
    p = sigmoid(z)
    assert slope(sigmoid, z) == pytest.approx(p * (1 - p), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("y", [0, 1])
@pytest.mark.parametrize("p", [0.02, 0.2, 0.5, 0.73, 0.97])
def test_dl_dp_is_one_minus_y_over_one_minus_p_less_y_over_p(p: float, y: int) -> None:
    def loss(p: float) -> float:
        return log_loss(math.log(p / (1 - p)), y)  # the kernel takes the score that gives p

    assert slope(loss, p) == pytest.approx((1 - y) / (1 - p) - y / p, rel=1e-6)


@pytest.mark.parametrize("i", range(3))
def test_dz_dw_is_x(i: int) -> None:
    def score_at(w: float) -> float:
        weights = W.copy()
        weights[i] = w
        return score(COLUMNS, X, weights, B)

    assert slope(score_at, W[i]) == pytest.approx(X[i], rel=1e-8)


def test_dz_db_is_one() -> None:
    assert slope(lambda b: score(COLUMNS, X, W, b), B) == pytest.approx(1.0, rel=1e-8)


@pytest.mark.parametrize("y", [0, 1])
@pytest.mark.parametrize("z", MODERATE_SCORES)
def test_dl_dz_is_the_residual_p_minus_y(z: float, y: int) -> None:
    assert slope(lambda at: log_loss(at, y), z) == pytest.approx(residual(z, y, 1.0), rel=1e-6, abs=1e-9)
    assert residual(z, y, 1.0) == pytest.approx(sigmoid(z) - y, rel=1e-12)


@pytest.mark.parametrize("y", [0, 1])
@pytest.mark.parametrize("i", range(3))
def test_dl_dw_is_the_residual_times_x(i: int, y: int) -> None:
    def loss(w: float) -> float:
        weights = W.copy()
        weights[i] = w
        return log_loss(score(COLUMNS, X, weights, B), y)

    p = sigmoid(score(COLUMNS, X, W, B))
    assert slope(loss, W[i]) == pytest.approx((p - y) * X[i], rel=1e-6)


@pytest.mark.parametrize("y", [0, 1])
def test_dl_db_is_the_residual(y: int) -> None:
    p = sigmoid(score(COLUMNS, X, W, B))
    assert slope(lambda b: log_loss(score(COLUMNS, X, W, b), y), B) == pytest.approx(p - y, rel=1e-6)


@pytest.mark.parametrize("y", [0, 1])
def test_a_step_goes_against_the_measured_gradient_of_the_loss(y: int) -> None:
    rate, model = 0.1, Model(W.tolist(), B, learning_rate=0.1)
    assert model.step(X.tolist(), y)
    for i in range(3):

        def loss(w: float, i: int = i) -> float:
            weights = W.copy()
            weights[i] = w
            return log_loss(score(COLUMNS, X, weights, B), y)

        assert model.weights[i] - W[i] == pytest.approx(-rate * slope(loss, W[i]), rel=1e-6)
    measured = slope(lambda b: log_loss(score(COLUMNS, X, W, b), y), B)
    assert model.bias - B == pytest.approx(-rate * measured, rel=1e-6)


# -- the score


def test_the_score_is_summed_in_the_events_order_and_the_bias_is_added_last() -> None:
    numbers = random.Random(1)
    for _ in range(200):
        w = [numbers.gauss(0, 1) * 10 ** numbers.uniform(-8, 8) for _ in range(9)]
        x = [numbers.gauss(0, 1) for _ in range(9)]
        b = numbers.gauss(0, 1)
        order = numbers.sample(range(9), 9)
        z = 0.0
        for i in order:
            z += w[i] * x[i]
        z += b
        assert score(np.array(order, np.int32), np.array([x[i] for i in order]), np.array(w), b) == z


def test_a_large_term_swallows_a_small_one_that_comes_after_it_and_the_bias_survives_the_cancellation() -> None:
    weights, values = np.ones(3), np.array([1e17, 1.0, -1e17])
    assert score(np.array([0, 1, 2], np.int32), values, weights, 0.25) == 0.25
    assert score(np.array([0, 2, 1], np.int32), values[[0, 2, 1]], weights, 0.25) == 1.25


@pytest.mark.parametrize("column", [-1, 3, 2**31 - 1])
def test_a_column_without_a_weight_adds_nothing_to_the_score(column: int) -> None:
    columns = np.array([0, column, 2], np.int32)
    assert score(columns, np.array([2.0, 1e9, 1.0]), np.array([1.0, 5.0, 0.5]), 0.25) == 2.75


def test_the_score_of_an_event_without_features_is_the_bias() -> None:
    assert score(np.zeros(0, np.int32), np.zeros(0), W, B) == B


# -- sigmoid, log loss and residual at every magnitude


def test_sigmoid_equals_rivers_to_the_last_bit() -> None:
    for z in grid_of_scores():
        assert sigmoid(z) == river_sigmoid(z), z


def test_sigmoid_is_exactly_zero_or_one_beyond_thirty_and_not_before() -> None:
    assert sigmoid(math.nextafter(30.0, math.inf)) == 1.0
    assert sigmoid(math.nextafter(-30.0, -math.inf)) == 0.0
    assert 0.0 < sigmoid(-30.0) < 1e-13
    assert 1.0 - 1e-13 < sigmoid(30.0) < 1.0


def test_sigmoid_of_infinities_is_certain_and_of_nan_undecided() -> None:
    assert [sigmoid(math.inf), sigmoid(-math.inf), sigmoid(math.nan)] == [1.0, 0.0, 0.5]


@pytest.mark.parametrize(("weight_0", "weight_1"), [(1.0, 1.0), (0.3, 7.7)])
def test_the_residual_equals_the_gradient_of_rivers_log_loss_bit_for_bit(weight_0: float, weight_1: float) -> None:
    river = optim.losses.Log(weight_pos=weight_1, weight_neg=weight_0)
    for z in grid_of_scores():
        for y in (0, 1):
            assert residual(z, y, weight_1 if y else weight_0) == river.gradient(y_true=y, y_pred=z), (z, y)


@pytest.mark.parametrize("y", [0, 1])
def test_the_residual_is_p_minus_y_without_cancellation(y: int) -> None:
    """A rounded p would leave p - 1 at z = 17 with eight digits only."""
    with localcontext(prec=60):
        for z in grid_of_scores():
            if abs(z) > 700:
                continue  # past the range of a float's exp
            m = Decimal(z) if y else -Decimal(z)
            exact = (-1 if y else 1) / (m.exp() + 1)
            # Beyond 18 river leaves the "+ 1" out, which is less than exp(-18) of the whole.
            tolerance = Decimal("1e-15") if abs(z) <= 18 else (Decimal(-18)).exp()
            assert abs(Decimal(residual(z, y, 1.0)) / exact - 1) <= tolerance, z


@pytest.mark.parametrize("y", [0, 1])
def test_the_log_loss_is_right_to_the_last_digits_at_any_score(y: int) -> None:
    with localcontext(prec=400):
        for z in [*grid_of_scores()[::17], -700.0, -40.0, -37.0, -18.0, 18.0, 36.0, 37.0, 40.0, 700.0]:
            m = Decimal(z) if y else -Decimal(z)
            if m > 700:
                continue  # less than the smallest normal float
            exact = (1 + (-m).exp()).ln() if m > -800 else -m
            assert abs(Decimal(log_loss(z, y)) - exact) <= exact * Decimal("1e-15"), z


@pytest.mark.parametrize("size", [1e3, 1e5, 1e150, 1e308])
def test_extreme_scores_give_extreme_losses_and_never_infinities(size: float) -> None:
    assert log_loss(size, 0) == log_loss(-size, 1) == size
    assert log_loss(size, 1) == log_loss(-size, 0) == 0.0
    assert (residual(size, 0, 1.0), residual(-size, 1, 1.0)) == (1.0, -1.0)
    assert residual(size, 1, 1.0) == residual(-size, 0, 1.0) == 0.0
    assert (sigmoid(size), sigmoid(-size)) == (1.0, 0.0)


def test_small_losses_are_not_rounded_to_zero() -> None:
    assert log_loss(100.0, 1) == pytest.approx(math.exp(-100), rel=1e-15)
    assert log_loss(-700.0, 0) == pytest.approx(math.exp(-700), rel=1e-15)


def test_the_log_loss_of_an_undecided_prediction_is_log_two() -> None:
    assert log_loss(0.0, 0) == log_loss(0.0, 1) == math.log(2)


# -- the step, worked by hand. Each event has z = 0, so p = 1/2 and p - y is exactly -1/2 or +1/2.


def test_a_step_by_hand_towards_a_one() -> None:
    model = Model([0.0, 0.0], learning_rate=0.5)
    assert model.step([2.0, -4.0], 1)
    # p - y = -1/2; gradients -1 and 2; w = 0 - 1/2·(-1), 0 - 1/2·2; b = 0 - 1/2·(-1/2)
    assert model.weights.tolist() == [0.5, -1.0]
    assert model.bias == 0.25


def test_a_step_by_hand_towards_a_zero() -> None:
    model = Model([0.0, 0.0], learning_rate=0.5)
    assert model.step([2.0, -4.0], 0)
    # p - y = 1/2: everything the other way
    assert model.weights.tolist() == [-0.5, 1.0]
    assert model.bias == -0.25


def test_a_step_by_hand_starts_from_the_weights_and_bias_it_finds() -> None:
    model = Model([1.0, 1.0], bias=2.0, learning_rate=0.5)
    assert model.step([2.0, -4.0], 1)
    # z = 2 - 4 + 2 = 0
    assert model.weights.tolist() == [1.5, 0.0]
    assert model.bias == 2.25


def test_a_step_by_hand_with_a_sample_weight() -> None:
    model = Model([0.0, 0.0], learning_rate=0.5)
    assert model.step([2.0, -4.0], 1, sample_weight=4.0)
    # 4·(p - y) = -2; gradients -4 and 8
    assert model.weights.tolist() == [2.0, -4.0]
    assert model.bias == 1.0


def test_a_step_by_hand_with_a_separate_bias_rate() -> None:
    model = Model([0.0], learning_rate=0.5, bias_learning_rate=0.125)
    assert model.step([2.0], 1)
    assert model.weights.tolist() == [0.5]
    assert model.bias == 0.0625  # 1/8 · 1/2


def test_a_bias_rate_of_zero_leaves_the_bias_alone() -> None:
    model = Model([0.0], learning_rate=0.5, bias_learning_rate=0.0)
    assert model.step([2.0], 1)
    assert model.weights.tolist() == [0.5]
    assert model.bias == 0.0


def test_a_step_by_hand_with_l2_penalises_the_events_weights_and_not_the_bias() -> None:
    model = Model([2.0, 1.0, 8.0], learning_rate=0.5, l2=0.25)
    assert model.step([2.0, -4.0], 1)
    # z = 4 - 4 = 0; gradients 2·(-1/2) + 1/4·2 = -1/2 and -4·(-1/2) + 1/4·1 = 9/4; the third weight is not in the event
    assert model.weights.tolist() == [2.25, -0.125, 8.0]
    assert model.bias == 0.25


def test_a_step_by_hand_with_clip_clips_the_weighted_residual() -> None:
    model = Model([0.0, 0.0], learning_rate=0.5, clip=1.0)
    assert model.step([2.0, -4.0], 1, sample_weight=8.0)
    # 8·(-1/2) = -4, clipped to -1; gradients -2 and 4, which are not clipped
    assert model.weights.tolist() == [1.0, -2.0]
    assert model.bias == 0.5


def test_clip_works_on_both_sides() -> None:
    model = Model([0.0], learning_rate=0.5, clip=1.0)
    assert model.step([2.0], 0, sample_weight=8.0)
    assert model.weights.tolist() == [-1.0]
    assert model.bias == -0.5


def test_a_step_by_hand_with_l1_moves_weights_towards_zero_from_both_sides() -> None:
    model = Model([4.0, -2.0], learning_rate=0.5, l1=0.25)
    assert model.step([2.0, 4.0], 1)
    # z = 8 - 8 = 0; after the gradient: 4 + 1/2, -2 + 1; everyone owes 1/4·1/2 = 1/8
    assert model.weights.tolist() == [4.375, -0.875]
    assert model.paid.tolist() == [-0.125, 0.125]
    assert model.bias == 0.25
    assert model.owed == 0.125


def test_l1_by_hand_never_takes_a_weight_past_zero() -> None:
    model = Model([0.0, 0.0], learning_rate=0.5, l1=2.0)
    assert model.step([2.0, -8.0], 1)
    # after the gradient: 1/2 and -2; everyone owes 2·1/2 = 1: the first can pay a half only
    assert model.weights.tolist() == [0.0, -1.0]
    assert model.paid.tolist() == [-0.5, 1.0]


def test_l1_by_hand_is_cumulative_and_paid_when_the_feature_comes_again() -> None:
    # 1 is owed for earlier events, without this feature
    model = Model([8.0, 0.0], paid=[-0.25, 0.0], owed=1.0, learning_rate=0.5, l1=2.0)
    assert model.step([0.0], 1)
    # 1 + 2·1/2 = 2 owed, 1/4 paid: 8 - 7/4; the other weight is not in the event
    assert model.weights.tolist() == [6.25, 0.0]
    assert model.paid.tolist() == [-2.0, 0.0]
    assert model.owed == 2.0


def test_without_l1_nothing_is_kept_of_penalties_paid() -> None:
    model = Model([0.0], learning_rate=0.5)
    assert model.step([2.0], 1)
    assert model.weights.tolist() == [0.5]
    assert (model.paid.tolist(), model.owed) == ([], 0.0)


def test_a_step_by_hand_with_class_weights() -> None:
    for y, weight in ((0, 0.5), (1, 4.0)):
        model = Model([0.0, 0.0], learning_rate=0.5, class_weights={"0": 0.5, "1": 4.0})
        assert model.step([2.0, -4.0], y, sample_weight=2.0)
        # 2·weight·(p - y) with p - y = 1/2 for y = 0 and -1/2 for y = 1
        towards = 1 if y else -1
        assert model.weights.tolist() == [towards * weight, towards * -2 * weight]
        assert model.bias == towards * weight / 2


def test_clip_clips_after_the_class_weight() -> None:
    model = Model([0.0], learning_rate=0.5, class_weights={"1": 100.0}, clip=1.0)
    assert model.step([2.0], 1)
    assert model.weights.tolist() == [1.0]


def test_a_step_by_hand_behind_the_maxabs_scaler() -> None:
    learner = Learner(Spec(learning_rate=0.5, scale="maxabs"))
    learner.learn_one({"a": -8.0, "b": 0.0}, 1)
    # a is -8/8 = -1, b is 0; gradients -1·(-1/2) and 0
    assert learner.weights_by_name() == {"a": -0.25, "b": 0.0}
    assert learner.bias == 0.25
    assert learner.score_of(*learner.encoded({"a": 4.0, "b": 1e9, "new": 5.0})) == 0.125  # 4/8·(-1/4) + 0 + 1/4


def test_a_step_by_hand_behind_the_standard_scaler() -> None:
    learner = Learner(Spec(learning_rate=0.5, scale="standard"))
    learner.learn_one({"a": 1.0}, 1)
    # one value has no variance: a is 0; only the bias moves
    assert learner.weights_by_name() == {"a": 0.0}
    assert learner.bias == 0.25
    learner.learn_one({"a": 5.0}, 0)
    # mean 3, variance 4: a is 1; z = 1/4
    g = residual(0.25, 0, 1.0)
    assert learner.weights_by_name() == {"a": -(0.5 * g)}
    assert learner.bias == 0.25 - 0.5 * g
    assert learner.score_of(*learner.encoded({"a": 2.0, "new": 5.0})) == -(0.5 * g) * -0.5 + learner.bias


def test_a_step_by_hand_behind_a_scaler_leaves_text_as_it_is() -> None:
    learner = Learner(Spec(learning_rate=0.5, scale="standard"))
    learner.learn_one({"colour": "red", "a": 1.0}, 1)
    assert learner.weights_by_name() == {"colour=red": 0.25, "a": 0.0}
    learner.learn_one({"a": 1.0, "price=usd": -8.0}, 1)  # the sign alone says so
    assert learner.weights_by_name()["price=usd"] == -8.0 * 0.5 * -residual(0.25, 1, 1.0)
    assert learner.score_of(*learner.encoded({"colour": "red", "price=usd": 2.0})) == (
        0.25 + 2.0 * learner.weights_by_name()["price=usd"] + learner.bias
    )


def test_the_products_are_grouped_as_rate_times_x_times_residual() -> None:
    """`(rate * x) * residual` differs in the last bit in about a third of the cases, and river does it this way."""
    numbers, other_grouping_differs = random.Random(3), 0
    for _ in range(500):
        w, x, rate, b = numbers.gauss(0, 1), numbers.gauss(0, 3), numbers.uniform(0.001, 1), numbers.gauss(0, 2)
        l2, sample_weight = numbers.choice([0.0, 0.37]), numbers.uniform(0.1, 3)
        model = Model([w], bias=b, learning_rate=rate, l2=l2)
        assert model.step([x], 1, sample_weight=sample_weight)
        g = residual(w * x + b, 1, 1.0) * sample_weight
        gradient = x * g + l2 * w if l2 else x * g
        assert model.weights[0] == w - rate * gradient
        assert model.bias == b - rate * g
        other_grouping_differs += rate * (x * g) != (rate * x) * g
    assert other_grouping_differs > 50


@pytest.mark.parametrize("z", [1e3, -1e3, 1e5, -1e5, 1e300, -1e300])
@pytest.mark.parametrize("y", [0, 1])
def test_a_step_from_an_extreme_score_is_a_whole_step_or_none_at_all(z: float, y: int) -> None:
    model = Model([1.0, z], bias=-1.0, learning_rate=0.5)  # the second weight makes the score: z + 1
    assert model.step([2.0, 1.0], y)
    wrong = (z > 0) != (y == 1)
    whole = 0.5 * (1 if z > 0 else -1) if wrong else 0.0
    assert model.weights[0] == 1.0 - 2 * whole
    assert model.weights[1] == z - whole
    assert model.bias == -1.0 - whole


# -- steps that are not taken


@pytest.mark.parametrize(
    ("weights", "x", "z"),
    [
        ([1e300, 0.0], [1e100, 0.0], math.inf),
        ([-1e300, 0.0], [1e100, 0.0], -math.inf),
        ([1e300, -1e300], [1e100, 1e100], math.nan),
    ],
)
def test_a_step_from_a_score_that_is_not_finite_is_not_taken_and_changes_nothing(
    weights: list[float], x: list[float], z: float
) -> None:
    model = Model(weights, bias=3.0, paid=[0.5, -0.5], learning_rate=0.1, l1=0.1)
    before = model.bits()
    assert repr(model.linear.score(np.arange(2, dtype=np.int32), np.array(x))) == repr(z)
    assert not model.step(x, 0)
    assert model.bits() == before


# Each: the event's values, its sample weight, and the spec.
NOT_FINITE: dict[str, tuple[list[float], float, dict[str, float]]] = {
    "a weight overflows": ([1.0, 1e200], 1.0, {"learning_rate": 1e200, "bias_learning_rate": 0.1}),
    "a weight overflows with l1": (
        [1.0, 1e200],
        1.0,
        {"learning_rate": 1e200, "bias_learning_rate": 0.1, "l1": 0.1},
    ),
    "the gradient overflows": ([1.0, 1e300], 1e20, {"learning_rate": 0.1, "clip": 1e30}),
    "the penalty overflows": ([1.0, 1.0], 1.0, {"learning_rate": 0.1, "l2": 1e308}),
    "the bias overflows": ([1.0, 1.0], 1e12, {"learning_rate": 0.1, "bias_learning_rate": 1e300}),
    "a value is infinite": ([1.0, math.inf], 1.0, {"learning_rate": 0.1}),
    "a value is not a number": ([1.0, math.nan], 1.0, {"learning_rate": 0.1}),
    "the sum of the l1 penalties overflows": ([1.0, 1.0], 1.0, {"learning_rate": 1e3, "l1": 1e306}),
}


@pytest.mark.parametrize(("x", "sample_weight", "spec"), NOT_FINITE.values(), ids=NOT_FINITE.keys())
def test_a_step_that_would_leave_a_number_that_is_not_finite_is_not_taken_and_changes_nothing(
    x: list[float], sample_weight: float, spec: dict[str, float]
) -> None:
    model = Model([1.0, 20.0], bias=3.0, paid=[0.5, -0.5] if "l1" in spec else None, **spec)
    before = model.bits()
    if all(map(math.isfinite, x)):  # it is the step that overflows, not the score
        assert math.isfinite(model.linear.score(np.arange(2, dtype=np.int32), np.array(x)))
    assert not model.step(x, 0, sample_weight)
    assert model.bits() == before


@pytest.mark.parametrize("scale", ["none", "standard", "maxabs"])
def test_an_event_whose_step_is_not_taken_leaves_the_events_around_it_as_if_it_had_not_been(scale: Scale) -> None:
    def learn(values: list[float]) -> tuple[list[bool], list[float], bytes]:
        n, linear = len(values), Linear(Spec(learning_rate=0.5, scale=scale))
        scores, learned = np.empty(n), np.empty(n, np.bool_)
        batch = Batch(
            np.arange(n + 1), np.zeros(n, np.int32), np.array(values), np.ones(n, np.uint8), np.ones(n)
        )  # fmt: skip
        linear.learn(batch, 0, scores, learned)
        return learned.tolist(), scores.tolist(), b"".join(array.tobytes() for array in linear.arrays(1).values())

    learned, scores, state = learn([2.0, math.inf, -1.0])
    learned_without, scores_without, state_without = learn([2.0, -1.0])
    assert learned == [True, False, True]
    assert learned_without == [True, True]
    assert [scores[0], scores[2]] == scores_without
    assert state == state_without


def test_assess_gives_the_probability_and_the_loss_of_each_score() -> None:
    scores, labels = np.array([-1000.0, -1.0, 0.0, 2.0, 1000.0]), np.array([1, 0, 1, 0, 1], np.uint8)
    probabilities, losses = np.empty(5), np.empty(5)
    logistic.assess(scores, labels, probabilities, losses)
    assert probabilities.tolist() == [sigmoid(z) for z in scores]
    assert losses.tolist() == [log_loss(z, y) for z, y in zip(scores, labels, strict=True)]
