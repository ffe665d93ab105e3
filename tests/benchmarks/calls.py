"""Measures the learner without the service: calls against river's, memory against a dict's, large models against small.

    learn_many             events as arrays, against river's learn_one in a loop
    learn_one              one event as a dict, against river's learn_one
    predict_proba_one      one event as a dict, against river's predict_proba_one
    memory                 resident bytes per feature of a model with `--model-features`, against a Python dict of the
                           same names to floats
    large model            events of 10 features drawn from `--model-features`, against the same drawn from 100

    python tests/benchmarks/calls.py --features 10,100 --model-features 1000000 --rounds 5

Plain SGD. Each round measures both sides in turn. The table shows medians over the rounds. Memory is measured in
separate processes. Exit status 0: the measurement ran (it judges nothing).
"""

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

from http_benchmark import machine, positive, positives
from river import linear_model

from core import Learner, Spec
from core.batch import Batch
from core.builder import BatchBuilder

EVENTS = 20_000
FEW = 100
IN_AN_EVENT = 10
CHUNK = 10_000
Row = tuple[dict[str, float], int]


def made_up(features: int, events: int = EVENTS) -> list[Row]:
    """Events with normally distributed values, and a label that depends on the first."""
    numbers = random.Random(1)
    rows = []
    for _ in range(events):
        x = {f"feature_{i}": numbers.gauss(0, 1) for i in range(features)}
        rows.append((x, int(x["feature_0"] + numbers.gauss(0, 1) > 0)))
    return rows


def drawn(features: int, events: int = EVENTS) -> list[Row]:
    """Events of IN_AN_EVENT features each, drawn from `features`."""
    numbers = random.Random(1)
    return [
        ({f"feature_{i}": 1.0 for i in numbers.sample(range(features), IN_AN_EVENT)}, numbers.randrange(2))
        for _ in range(events)
    ]


def as_batch(learner: Learner, rows: list[Row]) -> Batch:
    builder = BatchBuilder(learner.features)
    for x, y in rows:
        builder.add(x, y)
    return builder.build()


def microseconds(run: Callable[[], object], events: int) -> float:
    """Microseconds per event."""
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) / events * 1e6


def each(call: Callable[..., object], rows: Iterable[tuple[Any, ...]]) -> Callable[[], None]:
    def run() -> None:
        for row in rows:
            call(*row)

    return run


# -- the contests: each round gives (ours, theirs)


def calls(features: int) -> dict[str, Callable[[], tuple[float, float]]]:
    """The calls, for events of `features` features."""
    rows = made_up(features)
    few = rows[: EVENTS // 10]
    labelled, plain = [(x, bool(y)) for x, y in few], [(x,) for x, _ in few]

    def learn_many() -> tuple[float, float]:
        learner, river = Learner(), linear_model.LogisticRegression()
        batch = as_batch(learner, rows)
        ours = microseconds(lambda: learner.learn_batch(batch), len(rows))
        return ours, microseconds(each(river.learn_one, labelled), len(few))

    def learn_one() -> tuple[float, float]:
        learner, river = Learner(), linear_model.LogisticRegression()
        ours = microseconds(each(learner.learn_one, few), len(few))
        return ours, microseconds(each(river.learn_one, labelled), len(few))

    def predict_proba_one() -> tuple[float, float]:
        learner, river = Learner(), linear_model.LogisticRegression()
        learner.learn_one(*few[0])
        river.learn_one(*labelled[0])
        ours = microseconds(each(learner.predict_proba_one, plain), len(few))
        return ours, microseconds(each(river.predict_proba_one, plain), len(few))

    contests = {"learn_many": learn_many, "learn_one": learn_one, "predict_proba_one": predict_proba_one}
    return {f"{name}, {features}, us": contest for name, contest in contests.items()}


def memory(features: int) -> tuple[float, float]:
    """Resident bytes per feature."""
    ours, theirs = (
        float(subprocess.check_output([sys.executable, __file__, "--grow", side, "--model-features", str(features)]))
        for side in ("model", "dict")
    )
    return ours, theirs


def grow(side: str, features: int) -> float:
    """Resident bytes that each feature added to this process."""
    learner, weights = Learner(Spec(max_features=features)), dict[str, float]()
    learner.learn_one({"feature_0": 1.0}, 1)  # loads what learning needs
    before = resident()
    for start in range(0, features, CHUNK):
        names = [f"feature_{i}" for i in range(start, min(start + CHUNK, features))]
        if side == "model":
            xs = [dict.fromkeys(names[i : i + 10], 0.5) for i in range(0, len(names), 10)]
            learner.learn_many(xs, [1] * len(xs))
        else:
            weights.update((name, 0.5 + i) for i, name in enumerate(names))
    return (resident() - before) / features


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))


def large_model(features: int, one_by_one: bool) -> tuple[float, float]:
    """Microseconds per event for a model with `features` features, and for one with few."""
    times = []
    for count in (features, FEW):
        learner = Learner()
        learner.learn_many([{f"feature_{i}": 1.0 for i in range(count)}], [1])
        rows = drawn(count)
        batch = as_batch(learner, rows)
        run = each(learner.learn_one, rows) if one_by_one else lambda: learner.learn_batch(batch)  # noqa: B023  # run at once
        times.append(microseconds(run, len(rows)))
    return times[0], times[1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the learner with river and a dict.")
    parser.add_argument("--features", type=positives, default=(10, 100), help="default 10,100")
    parser.add_argument("--model-features", type=positive, default=1_000_000)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--grow", choices=("model", "dict"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.grow:
        print(grow(options.grow, options.model_features))
        return
    contests = {name: contest for features in options.features for name, contest in calls(features).items()}
    many = options.model_features
    contests["memory, bytes a feature"] = lambda: memory(many)
    contests["large model, learn_many, us"] = lambda: large_model(many, one_by_one=False)
    contests["large model, learn_one, us"] = lambda: large_model(many, one_by_one=True)
    print(machine("none"))
    print(f"{'':<30}{'logstep':>10}{'peer':>10}{'peer / logstep':>16}")
    for name, contest in contests.items():
        ours, theirs = (median(side) for side in zip(*(contest() for _ in range(options.rounds)), strict=True))
        print(f"{name:<30}{ours:>10.3f}{theirs:>10.3f}{theirs / ours:>16.2f}", flush=True)


if __name__ == "__main__":
    main()
