"""Progressive log loss of untuned `auto` against ten usual configurations of river and Vowpal Wabbit.

    python tests/benchmarks/quality.py [--data DIR] [--only NAME ...]

For each stream it computes the mean log loss of all predictions, each made before its event was learned. The peers are
what people try: river's SGD on raw values; river's StandardScaler with SGD 0.01, SGD 0.1, AdaGrad 0.1, Adam 0.01 and
FTRL (each with river's default `intercept_lr` and with the optimizer's own rate; the better one counts); Vowpal Wabbit
with its defaults, `--sgd`, `--ftrl` and `--coin`. `auto` is compared with the best of them *in hindsight*.

Without `--data`, the streams are river's: Phishing, Bananas, Shuttle. `--data` adds from its folder, if present,
`elec.csv` (label `class`), `sms.tsv` (label, tab, text; the words are the features) and `a9a.libsvm`.
"""

from __future__ import annotations

import argparse
import csv
import functools
import math
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import vowpalwabbit
from river import datasets, linear_model, optim, preprocessing

from core import Learner, Spec

Row = tuple[dict[str, float], int]
OPTIMIZERS: dict[str, tuple[Callable[[], optim.base.Optimizer], float]] = {
    "SGD 0.01": (lambda: optim.SGD(0.01), 0.01),
    "SGD 0.1": (lambda: optim.SGD(0.1), 0.1),
    "AdaGrad 0.1": (lambda: optim.AdaGrad(0.1), 0.1),
    "Adam 0.01": (lambda: optim.Adam(0.01), 0.01),
    "FTRL": (optim.FTRLProximal, 0.05),
}
VW_OPTIONS = {"vw": "", "vw --sgd": "--sgd", "vw --ftrl": "--ftrl", "vw --coin": "--coin"}


def river_stream(dataset: type) -> Iterator[Row]:
    """One of river's streams."""
    for x, y in dataset():
        yield {name: float(value) for name, value in x.items()}, int(y)


def elec(path: Path) -> Iterator[Row]:
    """Numeric columns and the label `class`."""
    with path.open(newline="") as lines:
        for row in csv.DictReader(lines):
            y = int(row.pop("class"))
            yield {name: float(value) for name, value in row.items()}, y


def sms(path: Path) -> Iterator[Row]:
    """A message's words, each with value 1."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            label, _, text = line.rstrip("\n").partition("\t")
            yield dict.fromkeys(re.findall(r"\w+", text.lower()), 1.0), int(label == "spam")


def a9a(path: Path) -> Iterator[Row]:
    """libsvm: label, then index:value."""
    with path.open() as lines:
        for line in lines:
            label, *pairs = line.split()
            named = (pair.split(":") for pair in pairs)
            yield {name: float(value) for name, value in named}, int(float(label) > 0)


def streams(folder: Path | None) -> dict[str, Callable[[], Iterator[Row]]]:
    """The streams available."""
    found: dict[str, Callable[[], Iterator[Row]]] = {
        "phishing": lambda: river_stream(datasets.Phishing),
        "bananas": lambda: river_stream(datasets.Bananas),
        "shuttle": lambda: river_stream(datasets.Shuttle),
    }
    if folder is not None:
        for name, file, read in (("elec", "elec.csv", elec), ("sms", "sms.tsv", sms), ("a9a", "a9a.libsvm", a9a)):
            if (folder / file).exists():
                found[name] = functools.partial(read, folder / file)
    return found


def log_loss(z: float, y: int) -> float:
    """Log loss from the score, in nats."""
    m = z if y else -z
    return math.log1p(math.exp(-m)) if m > 0 else math.log1p(math.exp(m)) - m


def river_loss(rows: list[Row], optimizer: optim.base.Optimizer, intercept_lr: float, scaled: bool) -> float:
    """Progressive log loss of a river model. It is computed from the score, so rounded probabilities cost nothing."""
    scaler = preprocessing.StandardScaler()
    model = linear_model.LogisticRegression(optimizer, intercept_lr=intercept_lr)
    total = 0.0
    for x, y in rows:
        seen = scaler.transform_one(x) if scaled else x
        total += log_loss(model._raw_dot_one(seen), y)  # noqa: SLF001  # river tells the score in no other way
        if scaled:
            scaler.learn_one(x)
            x = scaler.transform_one(x)  # noqa: PLW2901
        model.learn_one(x, bool(y))
    return total / len(rows)


def vw_loss(rows: list[Row], options: str) -> float:
    """Progressive log loss of Vowpal Wabbit, from its scores before it learned each row."""
    workspace = vowpalwabbit.Workspace(f"--loss_function=logistic --quiet {options}")
    total = 0.0
    for x, y in rows:
        features = " ".join(f"{re.sub('[:| ]', '_', name)}:{value!r}" for name, value in x.items())
        example = workspace.parse(f"{1 if y else -1} | {features}")
        workspace.learn(example)
        total += log_loss(example.get_partial_prediction(), y)
        workspace.finish_example(example)
    workspace.finish()
    return total / len(rows)


def peers(rows: list[Row]) -> dict[str, float]:
    """The log loss of each of the ten peers."""
    losses = {"river SGD 0.01, raw": river_loss(rows, optim.SGD(0.01), 0.01, scaled=False)}
    for name, (optimizer, rate) in OPTIMIZERS.items():
        tried = [river_loss(rows, optimizer(), intercept_lr, scaled=True) for intercept_lr in {0.01, rate}]
        losses[f"river StandardScaler, {name}"] = min(tried)
    return losses | {name: vw_loss(rows, options) for name, options in VW_OPTIONS.items()}


def auto(rows: list[Row]) -> tuple[float, float]:
    """`auto`'s log loss, and microseconds per event."""
    learner = Learner(Spec(rule="auto"))
    xs, ys = [x for x, _ in rows], [y for _, y in rows]
    started = time.perf_counter()
    outcome = learner.learn_many(xs, ys)
    seconds = time.perf_counter() - started
    return float(outcome.losses.mean()), seconds / len(rows) * 1e6


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with elec.csv, sms.tsv and a9a.libsvm")
    parser.add_argument("--only", nargs="*", help="only these streams")
    parser.add_argument("--all", action="store_true", help="print every peer's loss")
    arguments = parser.parse_args()
    print(f"{'stream':10} {'rows':>7}  {'best peer':36} {'loss':>8} {'auto':>8} {'ratio':>7} {'us/event':>9}")
    ratios = []
    for name, read in streams(arguments.data).items():
        if arguments.only and name not in arguments.only:
            continue
        rows = list(read())
        losses = peers(rows)
        best = min(losses, key=lambda peer: losses[peer])
        loss, microseconds = auto(rows)
        ratios.append(loss / losses[best])
        print(
            f"{name:10} {len(rows):7,}  {best:36} {losses[best]:8.4f} {loss:8.4f} {ratios[-1]:7.4f} {microseconds:9.1f}"
        )
        if arguments.all:
            for peer, peer_loss in sorted(losses.items(), key=lambda item: item[1]):
                print(f"{'':20}{peer:36} {peer_loss:8.4f}")
    print(f"geometric mean of the ratios {statistics.geometric_mean(ratios):.4f}, largest {max(ratios):.4f}")


if __name__ == "__main__":
    main()
