"""`logstep kafka`: makes the topic that is a log, says what is wrong with one, and writes a folder's log into one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from service.commands import options
from service.settings import DECIDING

if TYPE_CHECKING:
    from service.brokers import Brokers
    from service.replica.topic import Finding

MOST_COPIES = 32_767


def add(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(compiles=False)
    verbs = parser.add_subparsers(required=True, metavar="create-topic|check|import")
    for name, run, help_, copies in (
        ("create-topic", _create, "make a topic that can be a log, and check it", "copies of each partition"),
        ("check", _check, "say what is right and what is wrong with a topic", "fewer copies of a partition are wrong"),
    ):
        verb = verbs.add_parser(name, help=help_)
        options.add_kafka(verb, "the topic that is the log")
        verb.add_argument(
            "--replication",
            type=_copies,
            default=3,
            metavar="N",
            help=f"{copies} (default 3; 1 for development on one broker)",
        )
        verb.set_defaults(run=run)
    verb = verbs.add_parser("import", help="write the log of a stopped data folder into a new topic")
    verb.add_argument("folder", metavar="DIR", type=Path)
    options.add_kafka(verb, "a topic that create-topic has made")
    for name in DECIDING:
        flag = name.replace("_", "-")
        verb.add_argument(f"--{flag}", metavar=name.upper(), help=f"the nodes' --{flag}, if they have one")
    verb.set_defaults(run=_import, compiles=True)


def _copies(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MOST_COPIES:
        raise argparse.ArgumentTypeError("must be a whole number, 1 or more")
    return int(text)


def _create(arguments: argparse.Namespace) -> int:
    from service.replica import topic

    found = topic.create(_brokers(arguments), arguments.topic, arguments.replication)
    print(f"made the topic {arguments.topic} at {arguments.kafka}")
    return _told(arguments.topic, found)


def _check(arguments: argparse.Namespace) -> int:
    from service.replica import topic

    return _told(arguments.topic, topic.findings(_brokers(arguments), arguments.topic, arguments.replication))


def _brokers(arguments: argparse.Namespace) -> Brokers:
    from service.brokers import Brokers, properties

    return Brokers(arguments.kafka, properties(arguments.kafka_config))


def _import(arguments: argparse.Namespace) -> int:
    settings = options.settings({name: getattr(arguments, name) for name in DECIDING} | {"data": arguments.folder})
    from service.brokers import Brokers, properties
    from service.commands.imports import PROPERTIES, import_

    brokers = Brokers(arguments.kafka, properties(arguments.kafka_config, PROPERTIES))
    return import_(arguments.folder, brokers, arguments.topic, settings)


def _told(name: str, found: Sequence[Finding]) -> int:
    """Print what is right and what is wrong. Returns the exit code."""
    for verdict, what, *more in found:
        print(f"{verdict.value:5}  {what}")
        for text in filter(None, more):
            print(f"       {text}")
    wrong = sum(finding.verdict.value == "WRONG" for finding in found)
    print(f"{name} cannot be the log: {wrong} thing(s) are wrong" if wrong else f"{name} can be the log")
    return 1 if wrong else 0
