"""The command line: serve, replay, cross-check, and manage models and data folders.

Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted. Each command imports its slow modules itself. So
`--help` answers at once, and so does a second service on a folder that is in use.
"""

from __future__ import annotations

import argparse
import difflib
import gc
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from service import errors, failures
from service.children import stop_signals
from service.commands import crosscheck, models, options, token, topic
from service.commands.terminal import Failed, WrongUsage, say
from service.settings import Settings

if TYPE_CHECKING:
    from service.commands.tally import Delay


def main(argv: list[str] | None = None) -> int:
    """The `logstep` command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    before = os.umask(0o077)  # only the owner may read data folders, backups and the files in them
    try:
        code: int = _watched(arguments) if arguments.compiles else arguments.run(arguments)
        sys.stdout.flush()  # here, so that the handler below catches a closed pipe (`| head`)
    except Failed as failure:
        say(str(failure))
        return failure.exit_code
    except errors.LogstepError as error:
        say(str(error))
        return 2 if isinstance(error, failures.WrongProperties) else 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        say(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return 1
    finally:
        os.umask(before)
    return code


def _watched(arguments: argparse.Namespace) -> int:
    from service.commands.kernels import watched

    with watched():
        return int(arguments.run(arguments))


# -- arguments


class _Parser(argparse.ArgumentParser):
    """Accepts no abbreviated options: `--token SECRET` read as `--token-file SECRET` would print the secret."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # its signature is overloaded
        """Parse as argparse does; name the flag that a misspelt one is closest to."""
        found, unknown = super().parse_known_args(args, namespace)
        for flag in (argument.partition("=")[0] for argument in unknown if argument.startswith("--")):
            if meant := difflib.get_close_matches(flag, self._option_string_actions, n=1):
                self.error(f"unrecognized arguments: {' '.join(unknown)}. Did you mean {meant[0]}?")
        return found, unknown


class _Version(argparse.Action):
    """Prints what a report of a fault should name, and exits."""

    def __init__(self, **options: Any) -> None:
        super().__init__(nargs=0, **options)

    def __call__(self, *_: object) -> NoReturn:
        import platform
        import sqlite3
        from importlib.metadata import version

        print(f"logstep {version('logstep')}")
        print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}", end=", ")
        print(", ".join(f"{name} {version(name)}" for name in ("numba", "river")))
        raise SystemExit


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="logstep", description="Online learning over HTTP: one gradient step per event.")
    parser.set_defaults(compiles=True)
    parser.add_argument("--version", action=_Version, help="print the versions of logstep and what it stands on")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="start the service"))
    _add_replay(commands.add_parser("replay", help="send a file to a running service, each event once"))
    _add_consume(commands.add_parser("consume", help="send a Kafka topic to a running service, each record once"))
    topic.add(
        commands.add_parser(
            "kafka", help="make the Kafka topic that is a log, check one, or fill it from a data folder"
        )
    )
    crosscheck.add(commands.add_parser("crosscheck", help="compare a model's weights with river's"))
    models.add(commands.add_parser("models", help="list, create, show, resume and delete models"))
    inspect = commands.add_parser("inspect", help="check a data folder and show what is in it; changes nothing")
    inspect.add_argument("folder", metavar="DIR", type=Path)
    inspect.set_defaults(run=_inspect)
    backup = commands.add_parser("backup", help="copy a data folder and verify the copy; the service may be running")
    backup.add_argument("folder", metavar="DIR", type=Path)
    backup.add_argument("copy", metavar="OUT", type=_folder_or_pipe, help="the new folder; - writes a tar")
    backup.set_defaults(run=_backup)
    restore = commands.add_parser("restore", help="make a data folder from a backup, and verify it")
    restore.add_argument("copy", metavar="BACKUP", type=_folder_or_pipe, help="its folder; - reads a tar")
    restore.add_argument("folder", metavar="DIR", type=Path, help="a new folder, or one without a log")
    restore.set_defaults(run=_restore)
    repair = commands.add_parser("repair", help="accept a lost end of the log or damaged ids, after making a copy")
    repair.add_argument("folder", metavar="DIR", type=Path)
    repair.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    repair.set_defaults(run=_repair)
    token.add(commands.add_parser("token", help="create, list and revoke a service's tokens"))
    demo = commands.add_parser("demo", help="show everything on two real streams, in a temporary folder")
    demo.add_argument("--keep", action="store_true", help="keep the service running until Ctrl-C")
    demo.set_defaults(run=_demo)
    return parser


def _add_serve(parser: argparse.ArgumentParser) -> None:
    for name, field in Settings.model_fields.items():
        default = "E" if field.default in ("", None) else f"Default {field.default}; e"
        help_ = f"{field.description} {default}nvironment variable LOGSTEP_{name.upper()}."
        flag: dict[str, Any] = {"metavar": name.upper()}
        if field.annotation is bool:  # takes no value
            flag = {"action": "store_const", "const": True}
        parser.add_argument(f"--{name.replace('_', '-')}", help=help_.replace("%", "%%"), **flag)
    parser.set_defaults(run=_serve, compiles=False)


def _add_replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="CSV, TSV, NDJSON, a JSON array, libsvm, Parquet or Arrow, also .gz, .bz2, .xz or .zst; - is standard "
        "input; several files are learned in turn",
    )
    options.add_source(parser)
    options.add_url(parser)
    options.add_token_file(parser)
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="the model that learns; made if it does not exist (default: a model named after the file and --spec)",
    )
    parser.add_argument(
        "--spec",
        action="append",
        metavar="SPEC",
        help='spec of a new model, a file or JSON (default {"rule": "auto"}); several make a model each, to compare',
    )
    parser.add_argument(
        "--batch",
        type=options.batch,
        metavar="N",
        help="events per request, fewer if they are wide (default 20000; 1000 with --predict-first or --delay)",
    )
    parser.add_argument("--rate", type=options.above_zero, metavar="N", help="events a second (default: no limit)")
    parser.add_argument("--predict-first", action="store_true", help="predict each batch before learning it")
    parser.add_argument(
        "--delay",
        metavar="TIME",
        help="with --predict-first: time from a prediction to its label: exp(30s), uniform(1s,60s) or 30s",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the random delays (default 0)")
    parser.add_argument(
        "--speed-up", type=options.above_zero, metavar="X", help="with --delay: divide delays and multiply --rate by X"
    )
    parser.add_argument(
        "--retry-seconds",
        type=options.seconds,
        default=60.0,
        metavar="S",
        help="give up after S seconds without progress (default 60), but at once if nobody answers at the start",
    )
    ids = parser.add_mutually_exclusive_group()
    ids.add_argument(
        "--id-prefix",
        type=_id_prefix,
        metavar="TEXT",
        help="event ids are TEXT:row (default TEXT: the file's name and a hash of its first lines)",
    )
    ids.add_argument("--no-ids", action="store_true", help="send no ids; an event sent twice is learned twice")
    parser.set_defaults(run=_replay)


def _add_consume(parser: argparse.ArgumentParser) -> None:
    options.add_kafka(parser, "the topic; its records are JSON objects")
    parser.add_argument("--group", metavar="NAME", help="the consumer group (default: logstep-TOPIC-MODEL)")
    parser.add_argument(
        "--from",
        dest="begin",
        type=_begin,
        default="beginning",
        metavar="WHERE",
        help="where a new group begins: beginning (the default), end, or a time like 2026-01-31T10:00:00Z",
    )
    options.add_columns(parser, id_="--id-field", weight="--weight-field")
    options.add_url(parser)
    options.add_token_file(parser)
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="the model that learns; made if it does not exist (default: a model named after the topic)",
    )
    parser.add_argument("--spec", metavar="SPEC", help='spec of a new model, a file or JSON (default {"rule": "auto"})')
    parser.add_argument(
        "--batch", type=options.batch, default=1_000, metavar="N", help="most events per request (default 1000)"
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="stop at a record that can be no event, with exit code 3 (default: log it and leave it out)",
    )
    parser.add_argument(
        "--retry-seconds",
        type=options.seconds,
        default=float("inf"),
        metavar="S",
        help="give up when the service has not answered for S seconds (default: wait for it)",
    )
    parser.set_defaults(run=_consume)


def _begin(text: str) -> str | datetime:
    if text in ("beginning", "end"):
        return text
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("must be beginning, end, or a time like 2026-01-31T10:00:00Z") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _id_prefix(text: str) -> str:
    from service.commands.files import LONGEST_PREFIX

    if not 0 < len(text) <= LONGEST_PREFIX:
        raise argparse.ArgumentTypeError(f"must have 1 to {LONGEST_PREFIX} characters")
    return text


# -- serve


def _serve(arguments: argparse.Namespace) -> int:
    for stop in stop_signals():
        signal.signal(stop, lambda *_: sys.exit(0))  # until the server sets its own handlers
    settings = options.settings({name: getattr(arguments, name) for name in Settings.model_fields})
    from service.http.access import refuse_an_open_door
    from service.storage.folder import FolderLock

    refuse_an_open_door(settings)
    lock = FolderLock(settings.data)  # first, so that a second service on the folder fails at once
    from service.commands import kernels

    gc.disable()  # imported modules stay; scanning them repeatedly took an eighth of the start
    with kernels.watched(settings.data):
        import service.commands.rows  # noqa: F401  # else the first `replay` would compile its kernel
        from service.http.server import serve

    return serve(settings, lock)


# -- replay and cross-check


def _replay(arguments: argparse.Namespace) -> int:
    from service.commands.client import Client
    from service.commands.late import LateReplay
    from service.commands.replay import Replay, replay
    from service.commands.tally import Options
    from service.commands.targets import targets
    from service.http.tokens import given

    sources = [options.source(arguments, file) for file in arguments.files]
    delay = _delay(arguments)
    chosen = targets(sources, arguments.model, arguments.spec or [])
    for source in sources:  # a mistake in the last file must show before the first is learned
        source.check()
        if source.file != "-" and not Path(source.file).exists():
            raise WrongUsage(f"cannot read {source.file}: there is no such file")
    if len(sources) > 1 and arguments.id_prefix is not None:
        raise WrongUsage("--id-prefix needs a single file: rows of several files would get the same ids")
    codes: list[int] = []
    with Client(arguments.url, given(arguments.token_file)) as client:
        for place, source in enumerate(sources):
            how = Options(
                name=source.name,
                batch=arguments.batch or (1_000 if arguments.predict_first or arguments.delay else 20_000),
                id_prefix=arguments.id_prefix,
                ids=not arguments.no_ids,
                rate=arguments.rate and arguments.rate * (arguments.speed_up or 1.0),
                retry_seconds=arguments.retry_seconds,
                predict_first=arguments.predict_first,
                delay=delay,
            )
            after = [] if place else sources[1:]
            codes.append(replay(source, client, chosen, how, LateReplay if delay else Replay, after))
            if codes[-1] == 130:
                return 130
    return min(codes)  # 1 means that a label never came; a rare label need not be in every file


def _consume(arguments: argparse.Namespace) -> int:
    from service.brokers import properties
    from service.commands.client import Client
    from service.commands.consume import Signals, consume
    from service.commands.kafka import OURS, Topic
    from service.commands.tally import Options
    from service.commands.targets import of_topic
    from service.http.tokens import given
    from service.rows.reading import How

    target = of_topic(arguments.topic, arguments.model, arguments.spec)
    asked = options.asked(arguments)
    needs_id = arguments.label is None and asked == {"id": "id"}  # events as one would POST have it there
    how = How(
        label=arguments.label,
        positive=arguments.positive,
        negative=arguments.negative,
        asked={} if needs_id else asked,
        look=arguments.look,
    )
    how_sent = Options(
        name=arguments.topic, batch=arguments.batch, retry_seconds=arguments.retry_seconds, unit="offset"
    )
    group = arguments.group or f"logstep-{arguments.topic}-{target.name}"
    told = properties(arguments.kafka_config, OURS)
    with (
        Signals().handled() as signals,
        Client(arguments.url, given(arguments.token_file)) as client,
        Topic(
            arguments.kafka, arguments.topic, group, told, begin=arguments.begin, stopping=lambda: bool(signals)
        ) as read,
    ):
        return consume(read, how, client, target, how_sent, needs_id=needs_id, strict=arguments.strict, signals=signals)


def _delay(arguments: argparse.Namespace) -> Delay | None:
    """How long labels take to come; None where they are sent with their features."""
    from service.commands.tally import Delay

    if arguments.delay is None:
        if arguments.seed is not None or arguments.speed_up is not None:
            raise WrongUsage("--seed and --speed-up need --delay")
        return None
    if not arguments.predict_first:
        raise WrongUsage("--delay needs --predict-first: it is the time from a prediction to its label")
    if arguments.no_ids:
        raise WrongUsage("--delay needs ids, since a late label names its prediction by id; drop --no-ids")
    return Delay.parse(arguments.delay, arguments.seed or 0, arguments.speed_up or 1.0)


# -- data folders


def _inspect(arguments: argparse.Namespace) -> int:
    from service.commands.inspect import inspect

    return inspect(arguments.folder)


def _repair(arguments: argparse.Namespace) -> int:
    from service.commands.repair import repair

    return repair(arguments.folder, arguments.yes)


def _folder_or_pipe(text: str) -> Path | None:
    return None if text == "-" else Path(text)


def _backup(arguments: argparse.Namespace) -> int:
    from service.commands.backup import backup, backup_to_output

    return backup_to_output(arguments.folder) if arguments.copy is None else backup(arguments.folder, arguments.copy)


def _restore(arguments: argparse.Namespace) -> int:
    from service.commands.backup import restore

    return restore(arguments.copy, arguments.folder)


def _demo(arguments: argparse.Namespace) -> int:
    from service.commands.demo import demo

    return demo(arguments.keep)


if __name__ == "__main__":
    raise SystemExit(main())
