"""What `logstep replay` prints: its progress, its results, and how far it came."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from service.commands.tally import Options, Tally
from service.commands.terminal import say, say_if_worse, show


def so_far(tallies: Sequence[Tally], options: Options, goes_on: bool = True) -> str:
    """What was learned, and how to continue, if the same command `goes_on`."""
    if not any(tally.events or tally.served for tally in tallies):
        return "Nothing was learned"
    each = " by each model" if len(tallies) > 1 else ""
    learned = f"{span([tally.learned for tally in tallies])} event(s) were learned{each} and stay learned"
    if any(tally.duplicates for tally in tallies):
        learned += f", {span([tally.duplicates for tally in tallies])} were learned before"
    if options.delay is not None:
        learned += f", {span([tally.waiting for tally in tallies])} prediction(s) wait for their labels"
    if not goes_on:
        return learned
    if options.ids:
        return f"{learned}; the same command continues from there"
    return f"{learned}; without ids the same command would learn them again"


def span(counts: Sequence[int]) -> str:
    """The range of counts; one number if all are equal."""
    least, most = min(counts), max(counts)
    return f"{most:,}" if least == most else f"{least:,} to {most:,}"


def report(model: str, tally: Tally, state: dict[str, Any], options: Options) -> None:
    total = state["progressive"]["total"]
    rows: list[tuple[str, float | str | None]] = [
        ("events", tally.events),
        ("learned", tally.learned),
        ("duplicates", tally.duplicates),
        ("seconds", f"{tally.seconds:.2f}"),
        ("events/s", f"{tally.rate:,.0f}"),
        ("progressive log loss", tally.loss.value),
    ]
    if options.delay is not None:
        rows += _late_rows(tally, state)
    elif options.predict_first:
        rows += [
            ("predictions served first", tally.served_loss.count),
            ("their log loss", tally.served_loss.value),
            ("guessing has", tally.served_guessing),
            ("their accuracy", tally.served_accuracy.value),
        ]
    rows += [
        ("model's seq", state["seq"]),
        ("model's log loss", total["log_loss"]),
        ("guessing has", total["base_rate_log_loss"]),
        ("model's accuracy", total["accuracy"]),
        ("model's ROC AUC", total["roc_auc"]),
    ]
    show(f"{options.name} -> {model}", rows)
    say_if_worse([state])


def _late_rows(tally: Tally, state: dict[str, Any]) -> list[tuple[str, float | str | None]]:
    """Rows on predictions and late labels. The model's numbers cover all runs, as in `_scores`."""
    join = state["join"]
    return [
        ("predictions served", tally.served),
        ("labels too late", tally.too_late),
        ("model's labels joined", join["joined"]),
        ("model's late corrections", join["late"]),
        ("model's expired, dropped", f"{join['expired']:,}, {join['dropped']:,}"),
        ("model's mean delay, s", join["delay_s"]["mean"]),
        ("model's log loss as served", state["served"]["total"]["log_loss"]),
        ("guessing has", state["served"]["total"]["base_rate_log_loss"]),
    ]


COLUMNS = ("model", "rule", "learned", "duplicates", "log loss", "in window", "accuracy", "ROC AUC")
SERVED_COLUMNS = ("served first", "their log loss", "their accuracy")
LATE_COLUMNS = ("served", "too late", "joined", "loss as served")


def compare(tallies: Sequence[Tally], states: Sequence[dict[str, Any]], options: Options) -> None:
    """Show a row for each model. Mark the best one only if all have learned the same events."""
    seqs = [int(state["seq"]) for state in states]
    losses = [state["progressive"]["total"]["log_loss"] for state in states]
    best = min((loss for loss in losses if loss is not None), default=None) if len(set(seqs)) == 1 else None
    rows = [
        (*_scores(tally, state, options), "best" if best is not None and loss == best else "")
        for tally, state, loss in zip(tallies, states, losses, strict=True)
    ]
    rows += [(*row, "") for row in _guessing(tallies, states, options)]
    first = tallies[0]
    took = f"{first.events:,} events in {first.seconds:.2f} s, {first.rate:,.0f}/s"
    show(
        f"{options.name} -> {len(states)} models: {took}",
        rows,
        (*COLUMNS, *_more_columns(options), ""),
    )
    say_if_worse(states)
    if len(set(seqs)) > 1:
        say(f"no best model: they have learned different numbers of events ({span(seqs)})")


def _more_columns(options: Options) -> Sequence[str]:
    return LATE_COLUMNS if options.delay is not None else SERVED_COLUMNS if options.predict_first else ()


def _scores(tally: Tally, state: dict[str, Any], options: Options) -> tuple[float | str | None, ...]:
    """A model's row. The service's scores cover all that the model has learned, so an interruption changes nothing."""
    total, window = state["progressive"]["total"], state["progressive"]["window"]
    served: tuple[float | None, ...] = ()
    if options.delay is not None:
        loss = state["served"]["total"]["log_loss"]
        served = (tally.served, tally.too_late, state["join"]["joined"], loss)
    elif options.predict_first:
        served = (tally.served_loss.count, tally.served_loss.value, tally.served_accuracy.value)
    return (
        *(tally.model, rule_of(state["spec"]), tally.learned, tally.duplicates),
        *(total["log_loss"], window["log_loss"], total["accuracy"], total["roc_auc"]),
        *served,
    )


def _guessing(
    tallies: Sequence[Tally], states: Sequence[dict[str, Any]], options: Options
) -> list[tuple[float | str | None, ...]]:
    """Rows for guessing, whose log losses the models should beat: a single row if all learned the same events."""
    found: dict[tuple[float | None, ...], str] = {}
    for tally, state in zip(tallies, states, strict=True):
        total, window = state["progressive"]["total"], state["progressive"]["window"]
        served: tuple[float | None, ...] = ()
        if options.delay is not None:
            served = (None, None, None, state["served"]["total"]["base_rate_log_loss"])
        elif options.predict_first:
            served = (None, tally.served_guessing, None)
        losses = total["base_rate_log_loss"], window["base_rate_log_loss"]
        found.setdefault((None, None, *losses, None, None, *served), tally.model)
    if len(found) == 1:
        return [("guessing", "", *scores) for scores in found]
    return [(f"guessing, {model}", "", *scores) for scores, model in found.items()]


def rule_of(spec: dict[str, Any]) -> str:
    """A spec in short: "adagrad", or with a scale "adagrad, standard"."""
    return spec["rule"] if spec["scale"] == "none" else f"{spec['rule']}, {spec['scale']}"


Display = tuple[Callable[[Tally], None], Callable[[str], None]]


@contextmanager
def display(name: str, total: int | None, completed: Callable[[Tally], int]) -> Iterator[Display]:
    """Two functions: one shows progress, `completed` of `total`; the other prints a message beside it."""
    if not sys.stdout.isatty():
        yield _lines(seconds=10.0), say
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[counts]}"),
        TimeRemainingColumn(),
        transient=True,
    ) as bar:
        task = bar.add_task(name, total=total, counts="")

        def progress(tally: Tally) -> None:
            bar.update(task, completed=completed(tally), counts=_counts(tally))

        yield progress, lambda message: bar.console.print(f"logstep: {message}", markup=False, highlight=False)


def _lines(seconds: float) -> Callable[[Tally], None]:
    """A function that prints progress as a line every so often."""
    last = time.monotonic()

    def progress(tally: Tally) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            print(_counts(tally), flush=True)

    return progress


def _counts(tally: Tally) -> str:
    counts = f"{tally.events:,} events, {tally.rate:,.0f} events/s"
    if tally.waiting:
        counts += f", {tally.waiting:,} labels wait"
    if tally.loss.value is None:
        return counts
    if tally.model:
        return f"{counts}, best log loss {tally.loss.value:.4f} ({tally.model})"
    return f"{counts}, log loss {tally.loss.value:.4f}"
