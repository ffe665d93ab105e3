"""Progressive log loss of untuned `auto` against ten usual configurations of river and Vowpal Wabbit.

    python tests/benchmarks/quality.py [--data DIR] [--only NAME ...] [--landscape] [--made]

For each stream it computes the mean log loss of all predictions, each made before its event was learned. The peers are
what people try: river's SGD on raw values; river's StandardScaler with SGD 0.01, SGD 0.1, AdaGrad 0.1, Adam 0.01 and
FTRL (each with river's default `intercept_lr` and with the optimizer's own rate; the better one counts); Vowpal Wabbit
with its defaults, `--sgd`, `--ftrl` and `--coin`. `auto` is compared with the best of them *in hindsight*.

Without `--data`, the streams are river's: Phishing, Bananas, Shuttle. `--data` adds from its folder, if present,
`elec.csv` (label `class`), `sms.tsv` (label, tab, text; a feature `w=WORD` with its count for each word), `a9a.libsvm`,
`shoppers.csv` (label `Revenue`) and `telco.csv` (label `Churn`). A cell is a number where it reads as one, text else,
and missing where it is empty; four columns of shoppers are text though they are written as numbers.

`--landscape` adds what a reader may compare with: Vowpal Wabbit with crosses by hand (`-q ::`, `--cubic :::`), river's
adaptive random forest and AMF on the first 5,000 rows, with their time an event, and scikit-learn's gradient boosting,
trained on all rows so far at each tenth of the stream: not a stream learner, but what one would like to be as good as.
A peer that does not end is left out, and its row says why.

`--made` runs streams that are made here instead: a million events of two text columns whose parity is the label, three
nearly linear streams, and four in which there is nothing to find but a line.
"""

from __future__ import annotations

import argparse
import collections
import csv
import functools
import math
import random
import re
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import vowpalwabbit
from river import base, datasets, forest, linear_model, optim, preprocessing
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_extraction import DictVectorizer

from core import Learner, Spec
from core.features import flatten

Row = tuple[dict[str, float | str], int]
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
    """A message's words, each with its count."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            label, _, text = line.rstrip("\n").partition("\t")
            words = collections.Counter(re.findall(r"\w+", text.lower()))
            yield {f"w={word}": float(count) for word, count in words.items()}, int(label == "spam")


def cells(
    path: Path, label: str, one: str, text: tuple[str, ...] = (), left_out: tuple[str, ...] = ()
) -> Iterator[Row]:
    """Rows of a CSV file; the columns `text` are text whatever they read as."""
    with path.open(newline="") as lines:
        for row in csv.DictReader(lines):
            y = int(row.pop(label) == one)
            x: dict[str, float | str] = {}
            for name, cell in row.items():
                if cell.strip() and name not in left_out:
                    x[name] = cell if name in text else number(cell)
            yield x, y


def number(cell: str) -> float | str:
    """A cell as a number, if it reads as one."""
    try:
        return float(cell)
    except ValueError:
        return cell


SHOPPERS = functools.partial(
    cells, label="Revenue", one="TRUE", text=("OperatingSystems", "Browser", "Region", "TrafficType")
)
TELCO = functools.partial(cells, label="Churn", one="Yes", left_out=("customerID",))


def parity(events: int = 1_000_000, levels: int = 200) -> Iterator[Row]:
    """Two text columns; the label says whether both are of the same parity."""
    numbers = random.Random(1)
    for _ in range(events):
        a, b = numbers.randrange(levels), numbers.randrange(levels)
        yield {"a": str(a), "b": str(b)}, int(a % 2 == b % 2)


def made(kind: str, events: int = 20_000) -> Iterator[Row]:
    """Made streams: nearly linear ones, and ones in which there is nothing but a line, or nothing at all."""
    numbers = random.Random(kind)
    weights = [numbers.gauss(0, 1) for _ in range(10)]
    of_level: dict[str, float] = collections.defaultdict(lambda: numbers.gauss(0, 1))
    for _ in range(events):
        values = [numbers.gauss(0, 1) for _ in range(10)]
        z = sum(w * v for w, v in zip(weights, values, strict=True))
        x: dict[str, float | str] = {f"f{i}": value for i, value in enumerate(values)}
        if kind == "noise":
            z = 0.0
        elif kind == "log-normal":
            x = {name: math.exp(2 * value) for name, value in zip(x, values, strict=True)}
        elif kind == "10,000 levels":
            level = str(numbers.randrange(10_000))
            x, z = {"f0": values[0], "level": level}, values[0]
        elif kind == "linear, scales":
            x = {f"f{i}": value * 10.0 ** (i - 5) + i for i, value in enumerate(values)}
        elif kind == "linear, text":
            text = [str(numbers.randrange(8)) for _ in range(3)]
            x |= {f"t{i}": value for i, value in enumerate(text)}
            z = z / 2 + sum(of_level[f"{i} {value}"] for i, value in enumerate(text))
        elif kind == "linear, sparse":
            words = numbers.sample(range(300), 8)
            x = {f"w={word}": 1.0 for word in words}
            z = sum(of_level[str(word)] for word in words)
        yield x, int(numbers.random() < 1 / (1 + math.exp(-z)))


MADE = ["linear, scales", "linear, text", "linear, sparse", "noise", "linear", "10,000 levels", "log-normal"]


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
        files: dict[str, Callable[[Path], Iterator[Row]]] = {
            "elec.csv": elec, "sms.tsv": sms, "a9a.libsvm": a9a, "shoppers.csv": SHOPPERS, "telco.csv": TELCO
        }  # fmt: skip
        for file, read in files.items():
            if (folder / file).exists():
                found[file.partition(".")[0]] = functools.partial(read, folder / file)
    return found


def flat(x: dict[str, float | str]) -> dict[Any, Any]:
    """x with text as `name=value`, as the model takes it."""
    return dict(zip(*flatten(x), strict=True))


def log_loss(z: float, y: int) -> float:
    """Log loss from the score, in nats."""
    m = z if y else -z
    return math.log1p(math.exp(-m)) if m > 0 else math.log1p(math.exp(m)) - m


def river_loss(rows: list[Row], optimizer: optim.base.Optimizer, intercept_lr: float, scaled: bool) -> float:
    """Progressive log loss of a river model. It is computed from the score, so rounded probabilities cost nothing."""
    rows = [(flat(x), y) for x, y in rows]
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
        features = " ".join(f"{re.sub('[:| ]', '_', name)}:{value!r}" for name, value in flat(x).items())
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


def memory() -> float:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def auto(rows: list[Row]) -> tuple[float, float]:
    """`auto`'s log loss, and microseconds per event."""
    learner = Learner(Spec(rule="auto"))
    xs, ys = [x for x, _ in rows], [y for _, y in rows]
    started = time.process_time()
    outcome = learner.learn_many(xs, ys)
    seconds = time.process_time() - started
    return float(outcome.losses.mean()), seconds / len(rows) * 1e6


def crossed(rows: list[Row], options: str) -> float:
    """Vowpal Wabbit's log loss with crosses of everything with everything."""
    return vw_loss(rows, f"{options} -b 22")


MAX_SECONDS = 900.0
"""Processor time after which a forest is left out."""
MAX_CELLS = 10_000_000
"""Gradient boosting takes a dense table; with more cells it trains for hours."""


def forest_loss(rows: list[tuple[dict[Any, Any], int]], model: base.Classifier) -> str:
    """Progressive log loss of a river model that tells probabilities, and microseconds an event; or why not."""
    total, started = 0.0, time.process_time()
    for i, (x, y) in enumerate(rows):
        if time.process_time() - started > MAX_SECONDS:
            return f"left out: {i:,} rows took {MAX_SECONDS:.0f} s"
        p = min(max(model.predict_proba_one(x).get(True, 0.5), 1e-6), 1 - 1e-6)
        total -= math.log(p if y else 1 - p)
        model.learn_one(x, bool(y))
    return f"{total / len(rows):8.4f} {(time.process_time() - started) / len(rows) * 1e6:9.1f} us/event"


def retrained_loss(rows: list[Row]) -> str:
    """Log loss of gradient boosting, trained on all rows so far at each tenth; the first is guessed. Or why not."""
    vectors = DictVectorizer(sparse=False).fit([x for x, _ in rows])
    if len(rows) * len(vectors.feature_names_) > MAX_CELLS:
        return f"left out: it needs a dense table, and there are {len(vectors.feature_names_):,} columns"
    ys = np.array([y for _, y in rows])
    losses, tenth = [np.full(len(rows) // 10, math.log(2))], len(rows) // 10
    for part in range(1, 10):
        start, stop = part * tenth, (part + 1) * tenth if part < 9 else len(rows)
        model = HistGradientBoostingClassifier().fit(vectors.transform([x for x, _ in rows[:start]]), ys[:start])
        p = model.predict_proba(vectors.transform([x for x, _ in rows[start:stop]]))[:, 1].clip(1e-6, 1 - 1e-6)
        losses.append(-np.log(np.where(ys[start:stop] == 1, p, 1 - p)))
    return f"{np.concatenate(losses).mean():8.4f}"


def landscape(rows: list[Row]) -> None:
    """Print what else there is."""
    short = rows[:5_000]
    print(f"{'':20}{'vw -q ::':36} {crossed(rows, '-q ::'):8.4f}")
    if statistics.fmean(len(x) for x, _ in rows[:100]) <= 20:
        print(f"{'':20}{'vw -q :: --cubic :::':36} {crossed(rows, '-q :: --cubic :::'):8.4f}")
    print(f"{'':20}{'auto, the first 5,000 rows':36} {auto(short)[0]:8.4f} {auto(short)[1]:9.1f} us/event")
    for name, model in (("river ARF", forest.ARFClassifier(seed=1)), ("river AMF", forest.AMFClassifier(seed=1))):
        result = forest_loss([(flat(x), y) for x, y in short], model)
        print(f"{'':20}{f'{name}, the first 5,000 rows':36} {result}", flush=True)
    print(f"{'':20}{'gradient boosting, each tenth':36} {retrained_loss(rows)}")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with elec.csv, sms.tsv and a9a.libsvm")
    parser.add_argument("--only", nargs="*", help="only these streams")
    parser.add_argument("--all", action="store_true", help="print every peer's loss")
    parser.add_argument("--landscape", action="store_true", help="forests, crosses and gradient boosting too")
    parser.add_argument("--made", action="store_true", help="streams that are made here")
    arguments = parser.parse_args()
    if arguments.made:
        loss, microseconds = auto(list(parity()))
        print(f"{'parity':16} {loss:8.4f} {microseconds:9.1f} us/event, memory {memory():,.0f} MB")
    print(f"{'stream':16} {'rows':>7}  {'best peer':36} {'loss':>8} {'auto':>8} {'ratio':>7} {'us/event':>9}")
    ratios = []
    which = streams(arguments.data)
    if arguments.made:
        which = {kind: functools.partial(made, kind) for kind in MADE}
    for name, read in which.items():
        if arguments.only and name not in arguments.only:
            continue
        rows = list(read())
        losses = peers(rows)
        best = min(losses, key=lambda peer: losses[peer])
        loss, microseconds = auto(rows)
        ratios.append(loss / losses[best])
        print(
            f"{name:16} {len(rows):7,}  {best:36} {losses[best]:8.4f} {loss:8.4f} {ratios[-1]:7.4f} {microseconds:9.1f}"
        )
        if arguments.all:
            for peer, peer_loss in sorted(losses.items(), key=lambda item: item[1]):
                print(f"{'':20}{peer:36} {peer_loss:8.4f}")
        if arguments.landscape:
            landscape(rows)
    print(f"geometric mean of the ratios {statistics.geometric_mean(ratios):.4f}, largest {max(ratios):.4f}")


if __name__ == "__main__":
    main()
