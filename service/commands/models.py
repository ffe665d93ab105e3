"""`logstep models`: lists, creates, shows, resumes and deletes the models of a service."""

from __future__ import annotations

import argparse
import json
from typing import Any

from service.commands import options
from service.commands.terminal import confirm, mark_of, number, say, say_if_worse, show

LEAST_WEIGHT = 0.001
"""`models show` lists the learners of `auto` with at least this weight."""


def add(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(required=True, metavar="list|create|show|resume|delete")
    for name, help_, run in (
        ("list", "list all models", _list),
        ("create", "create a model", _create),
        ("show", "show a model's spec, scores and state", _show),
        ("resume", "let a model learn again after its breaker has stopped it", _resume),
        ("delete", "delete a model and its events", _delete),
    ):
        verb = verbs.add_parser(name, help=help_)
        if name != "list":
            verb.add_argument("name", metavar="NAME")
        if name == "create":
            verb.add_argument(
                "--spec", metavar="SPEC", default="{}", help="the model's spec, a file or JSON (default {})"
            )
        if name == "delete":
            verb.add_argument("--yes", action="store_true", help="do not ask for confirmation")
        options.add_url(verb)
        options.add_token_file(verb)
        verb.set_defaults(run=run)


def _list(arguments: argparse.Namespace) -> int:
    with options.client(arguments.url, arguments.token_file) as client:
        models = client.models()
    rows = [
        (*(model[name] for name in ("model", "rule", "seq", "log_loss", "base_rate_log_loss")), mark_of(model))
        for model in models
    ]
    show(f"Models at {arguments.url}", rows, ("model", "rule", "seq", "log loss", "guessing", ""))
    say_if_worse(models)
    return 0


def _create(arguments: argparse.Namespace) -> int:
    spec = options.json_of(arguments.spec)
    with options.client(arguments.url, arguments.token_file) as client:
        new = client.create(arguments.name, spec)["created"]
    print(f"model {arguments.name} created" if new else f"model {arguments.name} exists already, with this spec")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    with options.client(arguments.url, arguments.token_file) as client:
        model = client.model(arguments.name)
    say_if_worse([model])
    del model["worse_than_guessing"]
    spec = {name: value for name, value in model.pop("spec").items() if value is not None}
    scores, served, join = model.pop("progressive"), model.pop("served"), model.pop("join")
    breaker = model.pop("breaker")
    learners = model.pop("learners", [])
    show(
        f"Model {model.pop('model')}",
        [(name.replace("_", " "), value) for name, value in model.items()],
    )
    show("Spec", [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in spec.items()])
    for title, shown in (("Progressive scores", scores), ("Scores of the predictions served by id", served)):
        rows = [(name, shown["total"][name], shown["window"][name]) for name in shown["total"]]
        if shown is scores or shown["total"]["events"]:
            show(title, rows, ("", "total", "window"))
    _show_join(join)
    if learners:
        heavy = [
            (x["view"] + (" again" if x["bank"] > 1 else ""), x["rule"], x["learning_rate"], x["weight"])
            for x in learners
            if x["weight"] >= LEAST_WEIGHT
        ]
        show("Learners that carry the weight", heavy, ("view or group", "rule", "learning rate", "weight"))
    if breaker is not None:
        show("Breaker", [(name.replace("_", " "), value) for name, value in breaker.items()])
    return 0


def _show_join(join: dict[str, Any]) -> None:
    """Show what became of predictions with an id, if there were any."""
    delays = join.pop("delay_s")
    if any(join.values()):
        counts = [(name.replace("_", " "), count) for name, count in join.items()]
        show("Predictions by id", [*counts, ("mean delay of the label, s", delays["mean"])])
        buckets = [(_up_to(bucket["up_to"]), bucket["count"]) for bucket in delays["buckets"] if bucket["count"]]
        if buckets:
            show("Delays of labels", buckets, ("up to", "labels"))


def _up_to(seconds: float | None) -> str:
    return "more" if seconds is None else f"{seconds:g} s"


def _resume(arguments: argparse.Namespace) -> int:
    with options.client(arguments.url, arguments.token_file) as client:
        seq = client.resume(arguments.name)["seq"]
    print(f"model {arguments.name} learns again, from seq {number(seq)} on")
    return 0


def _delete(arguments: argparse.Namespace) -> int:
    with options.client(arguments.url, arguments.token_file) as client:
        seq = client.model(arguments.name)["seq"]
        if not confirm(f"Delete model {arguments.name} and its {number(seq)} events?", arguments.yes):
            say("nothing was deleted")
            return 1
        client.delete(arguments.name)
    print(f"deleted model {arguments.name} and its {number(seq)} events")
    return 0
