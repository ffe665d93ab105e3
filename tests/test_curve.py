"""The learning curve by events, held to a recomputation in plain Python, and the same whatever happened on the way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from effort import examples
from harness import Service, Start
from hypothesis import given
from hypothesis import strategies as st
from streams import stream

from core import Learner, Spec
from core.curve import POINTS, Curve, Points
from core.learner import Outcome


def some(count: int, seed: int = 3, taken: float = 0.97) -> Outcome:
    """Predictions of events, of which so large a share was `taken` a step for."""
    numbers = np.random.default_rng(seed)
    p = numbers.uniform(0.01, 0.99, count)
    labels = (numbers.random(count) < p).astype(np.uint8)
    learned = numbers.random(count) < taken
    losses = np.where(learned, -np.log(np.where(labels == 1, p, 1 - p)), np.nan)
    return Outcome(np.zeros(count), labels, learned, (p, losses))


def part(outcome: Outcome, start: int, end: int) -> Outcome:
    assessed = outcome.probabilities[start:end], outcome.losses[start:end]
    return Outcome(outcome.scores[start:end], outcome.labels[start:end], outcome.learned[start:end], assessed)


def curve_of(outcome: Outcome) -> Curve:
    curve = Curve()
    curve.add(outcome)
    return curve


def recomputed(outcome: Outcome, window: int) -> list[tuple[float, ...]]:
    """The points, each computed anew from all events before it."""
    rows = zip(outcome.probabilities, outcome.labels, outcome.losses, outcome.learned, strict=True)
    events = [(float(p), int(y), float(loss)) if taken else None for p, y, loss, taken in rows]
    n, stride = len(events), 1
    while n > POINTS * stride:
        stride *= 2
    width = max(1, math.ceil(window / stride)) * stride
    points: list[tuple[float, ...]] = []
    for seq in [*range(stride, n + 1, stride), *([n] if n % stride else [])]:
        before = [event for event in events[:seq] if event]
        recent = [event for event in events[max(0, (seq - width) // stride * stride) : seq] if event]
        share = _mean(y for _, y, _ in recent)
        entropy = share if math.isnan(share) else sum(-q * math.log(q) for q in (share, 1 - share) if q)
        losses = (_mean(loss for *_, loss in before), _mean(loss for *_, loss in recent))
        points.append((seq, *losses, entropy, _mean((p > 0.5) == (y == 1) for p, y, _ in recent)))
    return points


def _mean(values: Any) -> float:
    there = list(values)
    return math.fsum(there) / len(there) if there else math.nan


def rows(points: Points) -> list[tuple[float, ...]]:
    return list(zip(*(column.tolist() for column in points), strict=True))


@examples(40)
@given(
    count=st.one_of(st.integers(0, 40), st.integers(POINTS - 2, POINTS + 2), st.integers(0, 5 * POINTS)),
    window=st.one_of(st.integers(1, 8), st.integers(1, 2_000)),
    taken=st.sampled_from([0.0, 0.2, 1.0]),
)
def test_the_points_are_those_of_a_recomputation_from_the_events(count: int, window: int, taken: float) -> None:
    outcome = some(count, seed=count, taken=taken)
    found = rows(curve_of(outcome).points(window))
    expected = recomputed(outcome, window)
    assert [row[0] for row in found] == [row[0] for row in expected]
    np.testing.assert_allclose(found or [()], expected or [()], rtol=1e-12, atol=1e-12)


@examples(40)
@given(
    count=st.integers(0, 4 * POINTS + 3),
    sizes=st.lists(st.integers(1, 700), min_size=1, max_size=12),
    restarts=st.sets(st.integers(0, 40)),
)
def test_it_is_the_same_to_the_bit_however_events_are_cut_into_batches_and_states(
    count: int, sizes: list[int], restarts: set[int]
) -> None:
    outcome, cut, at, batch = some(count), Curve(), 0, 0
    while at < count:
        size = sizes[batch % len(sizes)]
        cut.add(part(outcome, at, min(at + size, count)))
        if batch in restarts:
            cut = Curve.from_state(cut.state())
        at, batch = at + size, batch + 1
    whole = curve_of(outcome)
    assert cut.state()["stretches"].tobytes() == whole.state()["stretches"].tobytes()
    assert (cut.seq, cut.stride) == (whole.seq, whole.stride) == (count, whole.stride)


def test_points_stay_where_they_are_and_every_second_goes_when_there_are_too_many() -> None:
    outcome = some(POINTS + 1, taken=1.0)
    full, more = curve_of(part(outcome, 0, POINTS)), curve_of(outcome)
    assert full.points(1).seq.tolist() == list(range(1, POINTS + 1))
    assert more.points(1).seq.tolist() == [*range(2, POINTS + 1, 2), POINTS + 1]
    loss = full.points(1).loss_total
    np.testing.assert_allclose(more.points(1).loss_total[:-1], loss[1::2], rtol=1e-12)


def test_of_fewer_points_the_last_is_kept_and_the_others_are_evenly_spaced() -> None:
    curve = curve_of(some(1_001))
    every, few = rows(curve.points(50)), rows(curve.points(50, most=60))
    assert len(every) == 501
    assert few == every[::-1][::9][::-1]
    assert few[-1][0] == 1_001


def test_one_huge_loss_does_not_swallow_those_that_follow() -> None:
    outcome = some(2_000, taken=1.0)
    outcome.losses[0] = 1e35
    points = curve_of(outcome).points(100)
    assert points.loss_window[-1] == pytest.approx(outcome.losses[-104:].mean(), rel=0.1)
    assert points.loss_total[-1] == pytest.approx(1e35 / 2_000)


def test_a_model_that_has_learned_nothing_has_no_point_and_needs_no_room() -> None:
    curve = Curve()
    assert rows(curve.points(100)) == []
    assert sum(value.nbytes for value in vars(curve).values() if isinstance(value, np.ndarray)) == 0


@pytest.mark.parametrize(
    "wrong", [{"stride": 0}, {"stretches": np.zeros(5)}, {"seq": 10**9}, {"stretches": np.zeros(0)}]
)
def test_a_state_that_does_not_fit_itself_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises((ArithmeticError, ValueError)):
        Curve.from_state({**curve_of(some(300)).state(), **wrong})


# -- a service


def test_the_service_tells_the_curve_of_a_model_and_the_same_after_a_kill(start: Start) -> None:
    xs, labels = zip(*stream("Phishing", 600), strict=True)
    events = [{"x": x, "y": y} for x, y in zip(xs, labels, strict=True)]
    flags = ("--window", "50")
    service = start(*flags)
    for begin in range(0, 600, 150):
        assert service.model().learn(events[begin : begin + 150]).status_code == 200
    told = service.get("/models/default/curve")
    progressive = service.model().state()["progressive"]
    service.kill()
    again = start(*flags, folder=service.folder)
    assert again.get("/models/default/curve") == told

    outcome = Learner(Spec()).learn_many(xs, labels)
    points = curve_of(outcome).points(50)
    assert told == {
        "model": "default",
        "window": 50,
        **{k: pytest.approx(v.tolist(), rel=1e-12) for k, v in points._asdict().items()},
    }
    assert told["seq"] == [*range(2, 601, 2)]
    assert told["loss_total"][-1] == pytest.approx(progressive["total"]["log_loss"])
    for name, score in (("loss_window", "log_loss"), ("accuracy_window", "accuracy")):
        assert told[name][-1] == pytest.approx(progressive["window"][score])
    assert told["base_rate_loss_window"][-1] == pytest.approx(progressive["window"]["base_rate_log_loss"])


def test_the_last_point_is_the_windowed_score_wherever_the_stretches_end(shared: Service) -> None:
    model = shared.model("curve-last")
    assert model.create({}).status_code == 201
    xs, labels = zip(*stream("Phishing", 1250), strict=True)
    assert model.learn([{"x": x, "y": y} for x, y in zip(xs, labels, strict=True)][:1233]).status_code == 200
    told, last = shared.get("/models/curve-last/curve"), model.state()["progressive"]["window"]
    assert (told["window"], told["seq"][-2:], last["events"]) == (1000, [1232, 1233], 1000)
    for name, score in (("loss", "log_loss"), ("accuracy", "accuracy"), ("base_rate_loss", "base_rate_log_loss")):
        assert told[f"{name}_window"][-1] == pytest.approx(last[score], rel=1e-12)


def test_a_step_that_was_not_taken_leaves_null_and_not_a_number_that_is_none(shared: Service) -> None:
    model = shared.model("curve-not-taken")
    assert model.create({"learning_rate": 1e250}).status_code == 201
    assert model.learn([{"x": {"a": 1e99}, "y": 1}]).status_code == 200
    told = shared.get("/models/curve-not-taken/curve")
    assert told["seq"] == [1]
    assert told["loss_total"] == told["loss_window"] == told["accuracy_window"] == [None]
