"""Microseconds per event: every rule and `auto` against river's pipelines, on the same made-up events.

    python tests/benchmarks/learners.py [--features 10] [--events 20000] [--rounds 5]

`learn_many` is one call with all events as dicts. `kernel` is the same with the events as arrays, as in the service's
writer. River learns in a loop of `learn_one`. Each round measures the sides in turn; the table shows medians.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

from river import compose, linear_model, optim, preprocessing

from core import Learner, Spec
from core.builder import BatchBuilder
from core.parity import river_twin
from core.rules import RULES

Row = tuple[dict[str, float], int]


def made_up(events: int, features: int) -> list[Row]:
    """Events with normally distributed values, and a label that depends on the first."""
    numbers = random.Random(1)
    rows = []
    for _ in range(events):
        x = {f"feature_{i}": numbers.gauss(0, 1) for i in range(features)}
        rows.append((x, int(x["feature_0"] + numbers.gauss(0, 1) > 0)))
    return rows


def timed(run: Callable[[], object], events: int) -> float:
    """Microseconds per event."""
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) / events * 1e6


def here(spec: Spec, rows: list[Row]) -> tuple[float, float]:
    """Microseconds per event of `learn_many` with dicts, and with arrays."""
    xs, ys = [x for x, _ in rows], [y for _, y in rows]
    learner, other = Learner(spec), Learner(spec)
    builder = BatchBuilder(other.features)
    for x, y in rows:
        builder.add(x, y)
    batch = builder.build()
    return timed(lambda: learner.learn_many(xs, ys), len(rows)), timed(lambda: other.learn_batch(batch), len(rows))


def in_river(spec: Spec, rows: list[Row]) -> float:
    """Microseconds per event of the spec's twin in river, one event at a time."""
    scaler, model = river_twin(spec)
    pipeline = model if scaler is None else compose.Pipeline(scaler, model)

    def run() -> None:
        for x, y in rows:
            pipeline.learn_one(x, bool(y))

    return timed(run, len(rows))


def usual(rows: list[Row]) -> dict[str, float]:
    """Microseconds per event of river's usual pipelines."""
    optimizers = {
        "SGD(0.1)": optim.SGD(0.1),
        "AdaGrad(0.1)": optim.AdaGrad(0.1),
        "FTRLProximal()": optim.FTRLProximal(),
    }
    times = {}
    for name, optimizer in optimizers.items():
        pipeline = preprocessing.StandardScaler() | linear_model.LogisticRegression(optimizer)

        def run(pipeline: compose.Pipeline = pipeline) -> None:
            for x, y in rows:
                pipeline.learn_one(x, bool(y))

        times[f"river StandardScaler | {name}"] = timed(run, len(rows))
    return times


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=10)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    rows = made_up(arguments.events, arguments.features)
    few = rows[: max(1, len(rows) // 10)]  # river is slow
    print(f"{arguments.features} features, microseconds per event")
    print(f"{'':34} {'learn_many':>11} {'kernel':>8} {'river':>8}")
    for rule in RULES:
        spec = Spec(rule=rule)
        rounds = [(*here(spec, rows), in_river(spec, few)) for _ in range(arguments.rounds)]
        mine, kernel, theirs = (statistics.median(side) for side in zip(*rounds, strict=True))
        print(f"{rule:34} {mine:11.2f} {kernel:8.2f} {theirs:8.2f}")
    pairs = [(here(Spec(rule="auto"), rows), usual(few)) for _ in range(arguments.rounds)]
    mine, kernel = (statistics.median(side) for side in zip(*(first for first, _ in pairs), strict=True))
    print(f"{'auto':34} {mine:11.2f} {kernel:8.2f}")
    for name in pairs[0][1]:
        print(f"{name:34} {'':11} {'':8} {statistics.median(second[name] for _, second in pairs):8.2f}")


if __name__ == "__main__":
    main()
