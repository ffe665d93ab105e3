"""Progressive validation, held to river's metrics."""

from __future__ import annotations

import math
import random
import tracemalloc
from typing import Any, cast

import numpy as np
import pytest
from effort import examples
from hypothesis import example, given
from hypothesis import strategies as st
from river import metrics, utils
from streams import stream

from core import Learner, Progressive, Spec
from core.learner import Outcome

Predictions = list[tuple[float, int]]


def outcome(predictions: Predictions, learned: list[bool] | None = None) -> Outcome:
    """What a learner would report for these probabilities and labels."""
    p = np.array([p for p, _ in predictions], np.float64)
    y = np.array([y for _, y in predictions], np.uint8)
    losses = np.array([-math.log(p if y else 1 - p) for p, y in predictions], np.float64)
    taken = np.ones(len(p), np.bool_) if learned is None else np.array(learned, np.bool_)
    return Outcome(np.zeros(len(p)), y, taken, (p, losses))


def learned_stream(name: str, count: int | None = None) -> tuple[Outcome, Predictions]:
    """A stream learned once: what the learner reported, and its probabilities with the labels."""
    events = stream(name, count)
    result = Learner(Spec(learning_rate=0.05)).learn_many([x for x, _ in events], [y for _, y in events])
    return result, list(zip(result.probabilities.tolist(), result.labels.tolist(), strict=True))


def random_predictions(count: int, seed: int = 5) -> Predictions:
    """Probabilities over the whole range, some exactly at a threshold of the ROC curve, and labels to go with them."""
    numbers, predictions = random.Random(seed), []
    for _ in range(count):
        p = numbers.choice([numbers.uniform(0.001, 0.999), numbers.randrange(1, 9) / 9, 0.5])
        predictions.append((p, int(numbers.random() < 0.3 + 0.5 * p)))
    return predictions


def assert_rivers(summary: dict[str, float | int | None], predictions: Predictions) -> None:
    """`summary` is what river's metrics say of these predictions."""
    log_loss, accuracy, auc = metrics.LogLoss(), metrics.Accuracy(), metrics.ROCAUC()
    for p, y in predictions:
        log_loss.update(bool(y), p)
        accuracy.update(bool(y), p > 0.5)
        auc.update(bool(y), p)
    assert summary["events"] == len(predictions)
    if not predictions:
        assert summary["log_loss"] is summary["accuracy"] is summary["roc_auc"] is None
        return
    assert summary["log_loss"] == pytest.approx(log_loss.get(), rel=1e-9)
    assert summary["accuracy"] == accuracy.get()
    if len({y for _, y in predictions}) < 2:
        assert summary["roc_auc"] is None  # river says 0, which would read as the worst possible
    else:
        assert summary["roc_auc"] == pytest.approx(auc.get(), abs=1e-12)


@pytest.mark.parametrize("window", [1, 7, 100, 1249, 1250, 1251, 5000])
def test_the_scores_of_a_learned_stream_are_rivers_in_total_and_over_the_window(window: int) -> None:
    result, predictions = learned_stream("Phishing")
    scores = Progressive(window)
    scores.add(result)
    summary = scores.summary()
    assert_rivers(summary["total"], predictions)
    assert_rivers(summary["window"], predictions[-window:])


def test_the_scores_learn_from_the_stream_that_they_score() -> None:
    """Not a statement about river: that the oracle of the test above is asked something that could go wrong."""
    result, _ = learned_stream("Phishing")
    scores = Progressive()
    scores.add(result)
    total = scores.summary()["total"]
    assert 0.8 < total["accuracy"] < 0.95
    assert 0.9 < total["roc_auc"] < 1
    assert 0.2 < total["log_loss"] < 0.5


def test_the_windowed_scores_are_those_of_rivers_rolling_metrics_at_every_moment() -> None:
    predictions, scores = random_predictions(150), Progressive(40)
    log_loss, accuracy, auc = (
        cast("metrics.base.BinaryMetric", utils.Rolling(metric, window_size=40))  # it has its metric's methods
        for metric in (metrics.LogLoss, metrics.Accuracy, metrics.ROCAUC)
    )
    for i, (p, y) in enumerate(predictions):
        scores.add(outcome([(p, y)]))
        log_loss.update(bool(y), p)
        accuracy.update(bool(y), p > 0.5)
        auc.update(bool(y), p)
        window = scores.summary()["window"]
        assert window["events"] == min(i + 1, 40)
        assert window["log_loss"] == pytest.approx(log_loss.get(), rel=1e-9)
        assert window["accuracy"] == accuracy.get()
        if window["roc_auc"] is None:
            assert len({y for _, y in predictions[max(0, i - 39) : i + 1]}) == 1
        else:
            assert window["roc_auc"] == pytest.approx(auc.get(), abs=1e-12)


@examples(60)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.floats(0.001, 0.999), st.sampled_from([i / 9 for i in range(1, 9)] + [0.5])), st.integers(0, 1)
        ),
        max_size=30,
    ),
    st.integers(0, 40),
    st.integers(1, 7),
)
def test_the_scores_of_any_stream_are_rivers_however_it_is_cut_into_batches(
    predictions: Predictions, window: int, size: int
) -> None:
    scores = Progressive(window)
    for start in range(0, len(predictions), size):
        scores.add(outcome(predictions[start : start + size]))
    summary = scores.summary()
    assert_rivers(summary["total"], predictions)
    assert_rivers(summary["window"], predictions[len(predictions) - min(window, len(predictions)) :])


def test_a_window_takes_room_as_events_come_and_then_no_more() -> None:
    tracemalloc.start()
    try:
        scores = Progressive(window=1_000_000)
        scores.add(outcome([(0.25, 1)]))
        few, _ = tracemalloc.get_traced_memory()
        assert few < 50_000
        window = Progressive(window=10_000)
        for _ in range(40):
            window.add(outcome([(0.25, 1)] * 1_000))
        full, _ = tracemalloc.get_traced_memory()
        assert full - few < 17 * 10_000 + 50_000
    finally:
        tracemalloc.stop()


def test_the_room_of_a_window_changes_no_score() -> None:
    """Event by event it grows several times, and at the end it is a ring."""
    rng = random.Random(5)
    predictions = [(rng.random(), rng.randrange(2)) for _ in range(450)]
    one_by_one, at_once = Progressive(window=200), Progressive(window=200)
    for prediction in predictions:
        one_by_one.add(outcome([prediction]))
    at_once.add(outcome(predictions))
    assert one_by_one.summary() == at_once.summary()
    assert one_by_one.summary()["window"]["events"] == 200
    assert repr(one_by_one.state()) == repr(at_once.state())


def test_a_batch_larger_than_the_window_leaves_its_last_events_in_it() -> None:
    predictions, scores = random_predictions(95), Progressive(10)
    scores.add(outcome(predictions[:3]))
    scores.add(outcome(predictions[3:]))
    assert_rivers(scores.summary()["window"], predictions[-10:])


def test_certain_predictions_are_above_or_below_every_threshold_as_in_river() -> None:
    certain = [(1.0, 1), (0.0, 0), (1.0, 0), (0.0, 1), (0.5, 1)]
    p = np.array([p for p, _ in certain])
    labels = np.array([y for _, y in certain], np.uint8)
    scores, auc = Progressive(), metrics.ROCAUC()
    scores.add(Outcome(np.zeros(5), labels, np.ones(5, np.bool_), (p, np.ones(5))))
    for probability, y in certain:
        auc.update(bool(y), probability)
    assert scores.summary()["total"]["roc_auc"] == pytest.approx(auc.get(), abs=1e-12)


def test_a_prediction_of_exactly_one_half_says_zero() -> None:
    scores = Progressive()
    scores.add(outcome([(0.5, 0), (0.5, 1), (0.5, 1)]))
    assert scores.summary()["total"]["accuracy"] == 1 / 3


def test_the_loss_of_a_certain_and_wrong_prediction_is_its_score_and_not_infinity() -> None:
    learner, scores = Learner(Spec(learning_rate=100.0)), Progressive()
    learner.learn_one({"a": 1.0}, 1)  # w = 50, b = 50
    scores.add(learner.learn_many([{"a": 99.0}], [0]))
    assert scores.summary()["total"]["log_loss"] == 99.0 * 50 + 50


@pytest.mark.parametrize("events", [0, 1])
def test_scores_that_cannot_be_told_yet_are_none(events: int) -> None:
    scores = Progressive()
    scores.add(outcome([(0.75, 1)] * events))
    summary = scores.summary()
    assert summary["total"] == summary["window"]
    assert summary["total"]["events"] == events
    assert summary["total"]["roc_auc"] is None
    assert (summary["total"]["log_loss"] is None) == (summary["total"]["accuracy"] is None) == (events == 0)


def test_events_whose_step_was_not_taken_are_not_scored() -> None:
    predictions, numbers = random_predictions(200), random.Random(2)
    taken = [numbers.random() < 0.6 for _ in predictions]
    mixed, only_taken = Progressive(50), Progressive(50)
    mixed.add(outcome(predictions, taken))
    scored = [prediction for prediction, was_taken in zip(predictions, taken, strict=True) if was_taken]
    only_taken.add(outcome(scored))
    assert mixed.summary() == only_taken.summary()
    assert_rivers(mixed.summary()["window"], scored[-50:])


def test_the_loss_of_an_event_whose_step_was_not_taken_cannot_poison_the_scores() -> None:
    learner, scores = Learner(Spec(learning_rate=1e250)), Progressive(3)
    outcome = learner.learn_many([{"a": 1.0}, {"a": 1e99}, {"a": 1e-300}], [1, 0, 1])
    assert outcome.learned.tolist() == [True, False, True]
    scores.add(outcome)
    assert scores.summary()["total"]["events"] == 2
    assert math.isfinite(scores.summary()["total"]["log_loss"])


@examples(60)
@given(st.integers(0, 45), st.integers(0, 20), st.integers(0, 25), st.integers(0, 25))
@example(before=10, after=0, old=3, new=8)
@example(before=40, after=2, old=5, new=20)
def test_scores_taken_from_a_state_go_on_as_if_nothing_had_been(before: int, after: int, old: int, new: int) -> None:
    """With the same window exactly; with a smaller one the rest is forgotten, with a larger one it fills up again."""
    predictions = random_predictions(before + after)
    scores = Progressive(old)
    scores.add(outcome(predictions[:before]))
    reopened = Progressive.from_state(scores.state(), new)
    scores.add(outcome(predictions[before:]))
    reopened.add(outcome(predictions[before:]))
    assert reopened.summary()["total"] == scores.summary()["total"]
    remembered = min(before, old, new) + after
    count = min(remembered, new)
    assert_rivers(reopened.summary()["window"], predictions[len(predictions) - count :])
    if old == new:
        assert reopened.summary() == scores.summary()
        assert_same_state(reopened, scores)


def assert_same_state(a: Progressive, b: Progressive) -> None:
    ours, theirs = a.state(), b.state()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert np.array_equal(ours[name], theirs[name]), name


def test_a_window_that_grows_covers_only_what_was_kept_until_it_is_full_again() -> None:
    predictions, scores = random_predictions(100), Progressive(10)
    scores.add(outcome(predictions[:80]))
    reopened = Progressive.from_state(scores.state(), 25)
    assert_rivers(reopened.summary()["window"], predictions[70:80])
    reopened.add(outcome(predictions[80:85]))
    assert_rivers(reopened.summary()["window"], predictions[70:85])
    reopened.add(outcome(predictions[85:]))
    assert_rivers(reopened.summary()["window"], predictions[75:])
    assert_rivers(reopened.summary()["total"], predictions)


def test_a_grown_window_survives_another_round_trip_before_it_is_full() -> None:
    predictions, scores = random_predictions(40), Progressive(5)
    scores.add(outcome(predictions[:30]))
    grown = Progressive.from_state(scores.state(), 20)
    grown.add(outcome(predictions[30:33]))
    again = Progressive.from_state(grown.state(), 20)
    assert_rivers(again.summary()["window"], predictions[25:33])


def test_a_state_is_a_copy_that_later_events_leave_alone() -> None:
    scores, predictions = Progressive(10), random_predictions(30)
    scores.add(outcome(predictions[:15]))
    state, summary = scores.state(), scores.summary()
    scores.add(outcome(predictions[15:]))
    assert scores.summary() != summary
    assert Progressive.from_state(state, 10).summary() == summary


def test_the_state_is_arrays_of_float64() -> None:
    scores = Progressive(10)
    scores.add(outcome(random_predictions(15)))
    assert {(type(value), value.dtype.str, value.ndim) for value in scores.state().values()} == {(np.ndarray, "<f8", 1)}


# -- calibration, the base rate, and what a plot shows


def calibrated(predictions: Predictions) -> list[dict[str, Any]]:
    """The calibration, told plainly."""
    buckets = []
    for i in range(10):
        inside = [(p, y) for p, y in predictions if min(int(p * 10), 9) == i]
        n = len(inside)
        buckets.append(
            {
                "up_to": (i + 1) / 10,
                "count": n,
                "p": pytest.approx(sum(p for p, _ in inside) / n) if n else None,
                "ones": sum(y for _, y in inside) / n if n else None,
            }
        )
    return buckets


@pytest.mark.parametrize("window", [1, 100, 5000])
def test_the_calibration_is_what_was_predicted_and_what_came_in_each_tenth(window: int) -> None:
    predictions = [*random_predictions(700), (1.0, 1), (0.1, 0), (1e-12, 0)]
    scores = Progressive(window)
    scores.add(outcome([(min(p, 1 - 1e-16), y) for p, y in predictions]))
    assert scores.summary()["calibration"] == {
        "total": calibrated(predictions),
        "window": calibrated(predictions[-window:]),
    }


def test_the_base_rate_log_loss_is_the_log_loss_of_always_predicting_the_share_of_ones() -> None:
    predictions = random_predictions(900)
    scores = Progressive(200)
    assert scores.summary()["total"]["base_rate_log_loss"] is None
    scores.add(outcome(predictions))
    for part, labels in (("total", predictions), ("window", predictions[-200:])):
        share, loss = sum(y for _, y in labels) / len(labels), metrics.LogLoss()
        for _, y in labels:
            loss.update(bool(y), share)
        assert scores.summary()[part]["base_rate_log_loss"] == pytest.approx(loss.get())


def test_the_calibration_goes_on_from_a_state() -> None:
    predictions = random_predictions(600)
    scores = Progressive(50)
    scores.add(outcome(predictions[:400]))
    state = scores.state()
    again = Progressive.from_state(state, 50)
    for each in (scores, again):
        each.add(outcome(predictions[400:]))
    assert again.summary() == scores.summary()


@pytest.mark.parametrize(("kept", "window"), [(50, 50), (50, 20), (20, 70)])
def test_in_brief_it_says_what_the_summary_says(kept: int, window: int) -> None:
    scores = Progressive(kept)
    assert scores.brief() == (0, 0.0, None, None, 0, None, None, None)
    scores.add(outcome(random_predictions(333)))
    scores = Progressive.from_state(scores.state(), window)
    scores.add(outcome(random_predictions(11, seed=6)))
    brief, total, last = scores.brief(), scores.summary()["total"], scores.summary()["window"]
    assert (brief.events, brief.accuracy) == (total["events"], total["accuracy"])
    assert brief.loss == pytest.approx(total["log_loss"] * total["events"])
    assert brief.accuracy_window == last["accuracy"]
    assert (brief.log_loss, brief.base_rate_loss) == (total["log_loss"], total["base_rate_log_loss"])
    assert (brief.events_window, brief.base_rate_loss_window) == (last["events"], last["base_rate_log_loss"])
    assert brief.loss_window == pytest.approx(last["log_loss"])
    assert scores.totals() == (brief.events, brief.loss)
