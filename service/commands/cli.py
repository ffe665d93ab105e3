"""The command line: serve, replay, cross-check, and manage models and data folders.

Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted. Each command imports its slow modules itself. So
`--help` answers at once, and so does a second service on a folder that is in use.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service import errors
from service.commands.terminal import Failed, WrongUsage, confirm, number, say, show
from service.settings import Settings
from service.signals import stop_signals

if TYPE_CHECKING:
    from service.commands.client import Client
    from service.commands.delays import Delay
    from service.commands.files import Source
    from service.commands.replay import GivenSpec, Target
    from service.http.tokens import Token

URL = "http://127.0.0.1:8000"
DEFAULT = "default"
LARGEST_BATCH = 100_000
LEAST_WEIGHT = 0.001
"""`models show` lists the learners of `auto` with at least this weight."""


def main(argv: list[str] | None = None) -> int:
    """The `logstep` command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    before = os.umask(0o077)  # only the owner may read data folders, backups and the files in them
    try:
        code = _run(arguments)
        sys.stdout.flush()  # here, so that the handler below catches a closed pipe (`| head`)
    except Failed as failure:
        say(str(failure))
        return failure.exit_code
    except errors.LogstepError as error:
        say(str(error))
        return 1
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


def _run(arguments: argparse.Namespace) -> int:
    if not arguments.compiles:
        code: int = arguments.run(arguments)
        return code
    from service.commands.kernels import watched

    with watched():
        code = arguments.run(arguments)
    return code


# -- arguments


class _Parser(argparse.ArgumentParser):
    """Accepts no abbreviated options: `--token SECRET` read as `--token-file SECRET` would print the secret."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="logstep", description="Online learning over HTTP: one gradient step per event.")
    parser.set_defaults(compiles=True)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="start the service"))
    _add_replay(commands.add_parser("replay", help="send a file to a running service, each event once"))
    _add_crosscheck(commands.add_parser("crosscheck", help="compare a model's weights with river's"))
    _add_models(commands.add_parser("models", help="list, create, show, resume and delete models"))
    inspect = commands.add_parser("inspect", help="check a data folder and show what is in it; changes nothing")
    inspect.add_argument("folder", metavar="DIR", type=Path)
    inspect.set_defaults(run=_inspect)
    backup = commands.add_parser("backup", help="copy a data folder and verify the copy; the service may be running")
    backup.add_argument("folder", metavar="DIR", type=Path)
    backup.add_argument("copy", metavar="OUT", type=Path, help="the new folder")
    backup.set_defaults(run=_backup)
    restore = commands.add_parser("restore", help="make a data folder from a backup, and verify it")
    restore.add_argument("copy", metavar="BACKUP", type=Path)
    restore.add_argument("folder", metavar="DIR", type=Path, help="a new folder, or one without a log")
    restore.set_defaults(run=_restore)
    repair = commands.add_parser("repair", help="accept a lost end of the log or damaged ids, after making a copy")
    repair.add_argument("folder", metavar="DIR", type=Path)
    repair.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    repair.set_defaults(run=_repair)
    _add_token(commands.add_parser("token", help="create, list and revoke a service's tokens"))
    top = commands.add_parser("top", help="watch the models of a running service in the terminal")
    _add_url(top)
    _add_token_file(top)
    top.set_defaults(run=_top)
    demo = commands.add_parser("demo", help="show everything on two real streams, in a temporary folder")
    demo.add_argument("--keep", action="store_true", help="keep the service running until Ctrl-C")
    demo.set_defaults(run=_demo)
    return parser


def _add_serve(parser: argparse.ArgumentParser) -> None:
    for name, field in Settings.model_fields.items():
        help_ = f"{field.description} Default {field.default}; environment variable LOGSTEP_{name.upper()}."
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
        help="CSV, TSV, NDJSON or libsvm, also .gz; - is standard input; several files are learned in turn",
    )
    _add_source(parser)
    _add_url(parser)
    _add_token_file(parser)
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
    parser.add_argument("--batch", type=_batch, default=1_000, metavar="N", help="events per request (default 1000)")
    parser.add_argument("--rate", type=_above_zero, metavar="N", help="events a second (default: no limit)")
    parser.add_argument("--predict-first", action="store_true", help="predict each batch before learning it")
    parser.add_argument(
        "--delay",
        metavar="TIME",
        help="with --predict-first: time from a prediction to its label: exp(30s), uniform(1s,60s) or 30s",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the random delays (default 0)")
    parser.add_argument(
        "--speed-up", type=_above_zero, metavar="X", help="with --delay: divide delays and multiply --rate by X"
    )
    parser.add_argument(
        "--retry-seconds",
        type=_seconds,
        default=60.0,
        metavar="S",
        help="give up after S seconds without progress (default 60)",
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


def _add_crosscheck(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="?", help="learn this file here, without a service")
    _add_source(parser)
    where = parser.add_mutually_exclusive_group()
    _add_url(where, default=None)
    where.add_argument("--data", type=Path, metavar="DIR", help="check the log in this data folder; changes nothing")
    _add_token_file(parser)
    _add_model(parser)
    parser.add_argument("--spec", metavar="SPEC", help="with FILE: the model's spec, a file or JSON")
    parser.set_defaults(run=_crosscheck)


def _add_models(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(required=True, metavar="list|create|show|resume|delete")
    for name, help_, run in (
        ("list", "list all models", _models_list),
        ("create", "create a model", _models_create),
        ("show", "show a model's spec, scores and state", _models_show),
        ("resume", "let a model learn again after its breaker has stopped it", _models_resume),
        ("delete", "delete a model and its events", _models_delete),
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
        _add_url(verb)
        _add_token_file(verb)
        verb.set_defaults(run=run)


def _add_source(parser: argparse.ArgumentParser) -> None:
    many: dict[str, Any] = {"action": "append", "default": [], "metavar": "COLUMN"}
    parser.add_argument("--label", metavar="COLUMN", help="column or key of the label")
    parser.add_argument("--label-column", type=_place, metavar="N", help="number of the label's column, from 1")
    parser.add_argument(
        "--positive", action="append", default=[], metavar="VALUE", help="read this label as 1 and all others as 0"
    )
    parser.add_argument(
        "--negative", action="append", default=[], metavar="VALUE", help="read this label as 0 and all others as 1"
    )
    parser.add_argument("--text", **many, help="read this column as text, even if its cells are numbers")
    parser.add_argument("--number", **many, help="read this column as numbers; a cell that is not one is an error")
    parser.add_argument("--ignore", **many, help="leave this column out")
    parser.add_argument("--weight-column", metavar="COLUMN", help="column or key of the event's weight")
    parser.add_argument("--id-column", metavar="COLUMN", help="column or key of the event's id")
    parser.add_argument(
        "--look",
        type=_look,
        metavar="N",
        help="rows to read before deciding what each column is (default 10000; fewer if rows are very wide)",
    )
    parser.add_argument(
        "--header",
        action=argparse.BooleanOptionalAction,
        help="whether the first line names the columns; else they are 1, 2, ... (default: it does)",
    )
    parser.add_argument(
        "--quoted",
        action=argparse.BooleanOptionalAction,
        help="whether cells may be in quotes (default: yes in CSV, no in TSV)",
    )
    parser.add_argument(
        "--delimiter",
        type=_delimiter,
        metavar="CHARACTER",
        help="separator of cells (default: found in the first lines)",
    )
    parser.add_argument(
        "--format",
        choices=("csv", "tsv", "ndjson", "libsvm"),
        help="format of the file (default: by its name or content)",
    )


def _add_url(parser: Any, default: str | None = URL) -> None:
    parser.add_argument("--url", type=_url, default=default, help=f"the service (default {URL})")


def _add_token_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="file with the token to send (else LOGSTEP_TOKEN, LOGSTEP_TOKEN_FILE)",
    )


def _add_token(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(compiles=False)
    verbs = parser.add_subparsers(required=True, metavar="create|list|revoke")
    create = verbs.add_parser("create", help="create a token and print it; it cannot be shown again")
    create.add_argument("folder", metavar="DIR", type=Path, help="the service's data folder")
    create.add_argument(
        "--scope",
        action="append",
        choices=("predict", "learn", "admin"),
        help="what the token allows; may be repeated (default predict and learn)",
    )
    create.add_argument(
        "--model", action="append", metavar="NAME", help="allow only this model; may be repeated (default: all models)"
    )
    create.add_argument("--rate", type=_above_zero, metavar="N", help="events a second (default: no limit)")
    create.add_argument(
        "--expires", type=_valid, metavar="TIME", help="how long it is valid, like 90d or 12h (default: for ever)"
    )
    create.add_argument("--name", default="", metavar="TEXT", help="a note for people: who has it")
    create.set_defaults(run=_token_create)
    list_ = verbs.add_parser("list", help="list all tokens, without their secrets")
    list_.add_argument("folder", metavar="DIR", type=Path)
    list_.set_defaults(run=_token_list)
    revoke = verbs.add_parser("revoke", help="revoke a token")
    revoke.add_argument("folder", metavar="DIR", type=Path)
    revoke.add_argument("id", metavar="ID", help="the id that `logstep token list` shows")
    revoke.set_defaults(run=_token_revoke)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=DEFAULT, metavar="NAME", help=f"name of the model (default {DEFAULT})")


def _url(text: str) -> str:
    import httpx

    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise argparse.ArgumentTypeError(f"{text!r} is not a URL like {URL}")
    return text


def _batch(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= LARGEST_BATCH:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {LARGEST_BATCH}")
    return int(text)


def _id_prefix(text: str) -> str:
    from service.commands.identity import LONGEST_PREFIX

    if not 0 < len(text) <= LONGEST_PREFIX:
        raise argparse.ArgumentTypeError(f"must have 1 to {LONGEST_PREFIX} characters")
    return text


def _look(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number, 1 or more")
    return int(text)


def _place(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be the number of a column, from 1")
    return int(text)


def _delimiter(text: str) -> str:
    delimiter = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise argparse.ArgumentTypeError(
            "must be one character and not a quote; write 'tab' for a tab and ' ' for white space"
        )
    return delimiter


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError("must be a number, 0 or more")
    return value


def _above_zero(text: str) -> float:
    value = _seconds(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be a number above 0")
    return value


def _valid(text: str) -> float:
    """A period of validity in seconds, ten years at most."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    seconds = int(found[1]) * {"s": 1, "m": 60, "h": 3_600, "d": 86_400}[found[2]] if found else 0
    if not 0 < seconds <= 3_650 * 86_400:
        raise argparse.ArgumentTypeError("must be a whole number with s, m, h or d, like 90d; at most 3650d")
    return float(seconds)


# -- serve


def _settings(flags: dict[str, Any]) -> Settings:
    """Settings from flags, then the environment, then defaults."""
    from pydantic import ValidationError

    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        flag = f"--{name.replace('_', '-')} (LOGSTEP_{name.upper()})"
        raise WrongUsage(f"{flag}: {first['msg']}, got {first['input']!r}") from None


def _serve(arguments: argparse.Namespace) -> int:
    for stop in stop_signals():
        signal.signal(stop, lambda *_: sys.exit(0))  # until the server sets its own handlers
    settings = _settings({name: getattr(arguments, name) for name in Settings.model_fields})
    from service.http.access import refuse_an_open_door
    from service.storage.lock import FolderLock

    refuse_an_open_door(settings)
    lock = FolderLock(settings.data)  # first, so that a second service on the folder fails at once
    from service.commands import kernels

    gc.disable()  # imported modules stay; scanning them repeatedly took an eighth of the start
    with kernels.watched(settings.data):
        from service.http.server import serve

    return serve(settings, lock)


# -- replay and cross-check


def _source(arguments: argparse.Namespace, file: str) -> Source:
    from service.commands.files import Source

    if arguments.label is not None and arguments.label_column is not None:
        raise WrongUsage("--label and --label-column both give the column of the label; use one of them")
    return Source(
        file,
        format=arguments.format,
        label=arguments.label if arguments.label_column is None else arguments.label_column,
        positive=arguments.positive,
        negative=arguments.negative,
        asked=_asked(arguments),
        look=arguments.look,
        header=arguments.header,
        quoted=arguments.quoted,
        delimiter=arguments.delimiter,
    )


def _asked(arguments: argparse.Namespace) -> dict[str, str]:
    """The kinds that flags give to columns, by column name."""
    from service.commands.columns import FLAGS

    asked: dict[str, str] = {}
    for kind, flag in FLAGS.items():
        found = getattr(arguments, flag.removeprefix("--").replace("-", "_")) or []
        for name in [found] if isinstance(found, str) else found:
            if asked.setdefault(name, kind) != kind:
                raise WrongUsage(f"column {name!r} cannot be both {FLAGS[asked[name]]} and {flag}")
    return asked


def _replay(arguments: argparse.Namespace) -> int:
    from service.commands.client import Client
    from service.commands.late import LateReplay
    from service.commands.replay import Options, Replay, replay
    from service.http.tokens import given

    sources = [_source(arguments, file) for file in arguments.files]
    delay = _delay(arguments)
    targets = _targets(sources, arguments.model, arguments.spec or [])
    for source in sources:  # a mistake in the last file must show before the first is learned
        source.check()
        if source.file != "-" and not Path(source.file).exists():
            raise WrongUsage(f"cannot read {source.file}: there is no such file")
    if len(sources) > 1 and arguments.id_prefix is not None:
        raise WrongUsage("--id-prefix needs a single file: rows of several files would get the same ids")
    codes: list[int] = []
    with Client(arguments.url, given(arguments.token_file)) as client:
        for source in sources:
            options = Options(
                name=source.name,
                batch=arguments.batch,
                id_prefix=arguments.id_prefix,
                ids=not arguments.no_ids,
                rate=arguments.rate and arguments.rate * (arguments.speed_up or 1.0),
                retry_seconds=arguments.retry_seconds,
                predict_first=arguments.predict_first,
                delay=delay,
            )
            codes.append(replay(source, client, targets, options, LateReplay if delay else Replay))
            if codes[-1] == 130:
                return 130
    return min(codes)  # 1 means that a label never came; a rare label need not be in every file


def _delay(arguments: argparse.Namespace) -> Delay | None:
    """How long labels take to come; None where they are sent with their features."""
    from service.commands.delays import Delay

    if arguments.delay is None:
        if arguments.seed is not None or arguments.speed_up is not None:
            raise WrongUsage("--seed and --speed-up need --delay")
        return None
    if not arguments.predict_first:
        raise WrongUsage("--delay needs --predict-first: it is the time from a prediction to its label")
    if arguments.no_ids:
        raise WrongUsage("--delay needs ids, since a late label names its prediction by id; drop --no-ids")
    return Delay.parse(arguments.delay, arguments.seed or 0, arguments.speed_up or 1.0)


def _targets(sources: list[Source], model: str | None, texts: list[str]) -> list[Target]:
    """The models that learn: the named one, else one named after the file; with specs, one model for each."""
    from service.commands.replay import AUTO, CHOOSE, Target, model_name, model_names, stem_of

    if model is None and len(sources) > 1:
        raise WrongUsage("several files need --model NAME: which model learns them")
    if model is None and not sources[0].has_name:
        raise WrongUsage("standard input needs --model NAME: which model learns it")
    specs = [_given_spec(text) for text in texts]
    if len(specs) > 1:
        _check_specs(specs)
        names = model_names(stem_of(sources[0].name) if model is None else model, specs)
        return [Target(name, spec) for name, spec in zip(names, specs, strict=True)]
    if specs:
        name = model_names(stem_of(sources[0].name), specs)[0] if model is None else model
        return [Target(name, specs[0])]
    if model is None:
        return [Target(model_name(sources[0].name), AUTO, hint=CHOOSE)]
    return [Target(model, AUTO, as_it_is=True)]


def _given_spec(text: str) -> GivenSpec:
    from service.commands.replay import GivenSpec

    data, file = _json(text), _spec_file(text)
    if file is not None:
        return GivenSpec(str(file), file.stem, data)
    found = json.loads(data)
    rule = found.get("rule", "sgd") if isinstance(found, dict) else "spec"
    return GivenSpec(text, str(rule), data)


def _check_specs(specs: list[GivenSpec]) -> None:
    """Raise Failed if one of several specs is wrong, before any model is made. The service checks a single spec."""
    from core.spec import Spec, SpecError

    for spec in specs:
        try:
            Spec.from_dict(json.loads(spec.json))
        except SpecError as error:
            raise Failed(f"{spec.text}: {error.field}: {error.message}") from None
        except (TypeError, ValueError):
            raise Failed(f'{spec.text}: body: must be an object like {{"learning_rate": 0.05}}') from None


def _crosscheck(arguments: argparse.Namespace) -> int:
    if arguments.file is not None and (arguments.url or arguments.data):
        raise WrongUsage("give only one of FILE, --url and --data")
    if arguments.spec is not None and arguments.file is None:
        raise WrongUsage("--spec needs FILE; a service and a data folder have their models' specs")
    if arguments.file is not None:
        source = _source(arguments, arguments.file)
        what, report = source.name, _crosscheck_file(source, arguments.spec or "{}")
    elif arguments.data is not None:
        from service.learning.crosscheck import check

        what, report = f"{arguments.model} in {arguments.data}", check(arguments.data, arguments.model)
    else:
        url = arguments.url or URL
        with _client(url, arguments.token_file) as client:
            what, report = f"{arguments.model} at {url}", client.crosscheck(arguments.model)
    show(f"Cross-check of {what}", crosscheck_rows(report))
    print(verdict(report))
    return 0 if report["equal"] and report.get("replay_equal", True) else 1


def _crosscheck_file(source: Source, spec: str) -> dict[str, Any]:
    """The report on a file's events, which this process and river both learn."""
    from core.parity import crosscheck
    from core.spec import Spec, SpecError
    from service.commands.columns import Kept
    from service.learning.crosscheck import require_twin

    data, named = _json(spec), _spec_file(spec) or "--spec"
    try:
        parsed = Spec.from_dict(json.loads(data))
    except SpecError as error:
        raise WrongUsage(f"{named}: {error}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise WrongUsage(f"{named} is not a spec: {error}") from None
    require_twin(parsed)
    line = 0
    with source.open() as opened:
        opened.look(Kept("the spec", parsed.columns or {}))

        def events() -> Any:
            nonlocal line
            for row in opened.rows():
                line = row.line
                yield row.event.x, row.event.y, row.event.weight

        from core.features import EventError

        try:
            report = crosscheck(events(), parsed).as_dict()
        except EventError as error:
            raise Failed(f"{source.name} line {line}: {error}") from None
        opened.tell_what_was_left_out()
        if never := opened.labels.never_came():
            raise Failed(never)
        return report


def crosscheck_rows(report: dict[str, Any]) -> list[tuple[str, float | str | None]]:
    """A report as rows of a table."""
    rows: list[tuple[str, float | str | None]] = [
        ("events", report["events"]),
        ("weights compared", report["features"] + 1),
        ("largest difference", f"{report['max_abs_diff']:g}"),
        ("in units in the last place", report["max_ulp"]),
    ]
    if report.get("from_seq"):
        rows.insert(0, ("begins with the snapshot at seq", report["from_seq"]))
    if report["not_taken"]:
        rows.append(("steps not taken", report["not_taken"]))
    if "replay_equal" in report:
        rows.append(("replay of the log equal", "yes" if report["replay_equal"] else "NO"))
    return rows


def verdict(report: dict[str, Any]) -> str:
    """A report in one sentence."""
    if not report.get("replay_equal", True):
        return "NOT EQUAL: a replay of the log does not give the weights of the model"
    events = f"{number(report['events'])} events"
    if report.get("from_seq"):
        events += f" after seq {number(report['from_seq'])}, where the log begins (--keep-events)"
    if report["equal"]:
        return f"equal to river {report['river']} to the last bit on {events}"
    place = "in the bias" if report["feature"] is None else f"at the weight of {report['feature']!r}"
    return (
        f"NOT EQUAL to river {report['river']} on {events}: the largest difference is "
        f"{report['max_ulp']:,} units in the last place, {place}"
    )


# -- models


def _client(url: str, token_file: Path | None) -> Client:
    from service.commands.client import Client
    from service.http.tokens import given

    return Client(url, given(token_file))


def _json(text: str) -> bytes:
    """The JSON of a --spec: its text, or the content of the file that it names."""
    file = _spec_file(text)
    try:
        data = text.encode() if file is None else file.read_bytes()
    except OSError as error:
        rule = f'; the rule {text} is given as \'{{"rule": "{text}"}}\'' if re.fullmatch("[a-z]+", text) else ""
        raise WrongUsage(f"--spec: cannot read {file}: {error.strerror}{rule}") from None
    try:
        json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WrongUsage(f"{file or '--spec'} is not JSON: {error}") from None
    return data


def _spec_file(text: str) -> Path | None:
    """The file that a --spec names, with or without an @; None where it is JSON itself.

    A list counts as JSON: it is no valid spec, but no file name either.
    """
    return None if text.lstrip().startswith(("{", "[")) else Path(text.removeprefix("@"))


def _models_list(arguments: argparse.Namespace) -> int:
    from service.commands.worse import mark_of, say_if_worse

    with _client(arguments.url, arguments.token_file) as client:
        models = client.models()
    rows = [
        (*(model[name] for name in ("model", "rule", "seq", "log_loss", "base_rate_log_loss")), mark_of(model))
        for model in models
    ]
    show(f"Models at {arguments.url}", rows, ("model", "rule", "seq", "log loss", "guessing", ""))
    say_if_worse(models)
    return 0


def _models_create(arguments: argparse.Namespace) -> int:
    spec = _json(arguments.spec)
    with _client(arguments.url, arguments.token_file) as client:
        new = client.create(arguments.name, spec)["created"]
    print(f"model {arguments.name} created" if new else f"model {arguments.name} exists already, with this spec")
    return 0


def _models_show(arguments: argparse.Namespace) -> int:
    from service.commands.worse import say_if_worse

    with _client(arguments.url, arguments.token_file) as client:
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
        show("Learners that carry the weight", heavy, ("view", "rule", "learning rate", "weight"))
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


def _models_resume(arguments: argparse.Namespace) -> int:
    with _client(arguments.url, arguments.token_file) as client:
        seq = client.resume(arguments.name)["seq"]
    print(f"model {arguments.name} learns again, from seq {number(seq)} on")
    return 0


def _models_delete(arguments: argparse.Namespace) -> int:
    with _client(arguments.url, arguments.token_file) as client:
        seq = client.model(arguments.name)["seq"]
        if not confirm(f"Delete model {arguments.name} and its {number(seq)} events?", arguments.yes):
            say("nothing was deleted")
            return 1
        client.delete(arguments.name)
    print(f"deleted model {arguments.name} and its {number(seq)} events")
    return 0


# -- data folders


def _inspect(arguments: argparse.Namespace) -> int:
    from service.commands.inspect import inspect

    return inspect(arguments.folder)


def _repair(arguments: argparse.Namespace) -> int:
    from service.commands.inspect import repair

    return repair(arguments.folder, arguments.yes)


def _backup(arguments: argparse.Namespace) -> int:
    from service.commands.backup import backup

    return backup(arguments.folder, arguments.copy)


def _restore(arguments: argparse.Namespace) -> int:
    from service.commands.backup import restore

    return restore(arguments.copy, arguments.folder)


# -- tokens


def _token_create(arguments: argparse.Namespace) -> int:
    from service.http import tokens

    scopes = arguments.scope or ["predict", "learn"]
    told = (arguments.model, arguments.rate, arguments.name, arguments.expires)
    text, token = tokens.create(arguments.folder, scopes, *told)
    say(f"token {token.id} for {arguments.folder} ({_may(token)}). Copy it now: the folder keeps only its hash")
    print(text)
    return 0


def _token_list(arguments: argparse.Namespace) -> int:
    from service.http import tokens

    rows = [
        (token.id, token.name or "-", *_may_parts(token), _day(token.created_at), _valid_until(token) or "-")
        for token in tokens.read(arguments.folder)
    ]
    if not rows:
        print(f"no tokens for {arguments.folder}")
        return 0
    show(f"Tokens for {arguments.folder}", rows, ("id", "name", "scopes", "models", "events/s", "made", "expires"))
    return 0


def _token_revoke(arguments: argparse.Namespace) -> int:
    from service.http import tokens

    left = tokens.revoke(arguments.folder, arguments.id)
    print(f"revoked token {arguments.id}, {number(left)} left; a running service refuses it within a second")
    if not left:
        say("that was the last token. A running service keeps asking for one; after a restart on localhost it does not")
    return 0


def _may_parts(token: Token) -> tuple[str, str, str]:
    models = "all" if token.models is None else ", ".join(token.models)
    return ", ".join(token.scopes), models, "-" if token.rate is None else f"{token.rate:g}"


def _may(token: Token) -> str:
    scopes, models, rate = _may_parts(token)
    held = "" if token.rate is None else f", {rate} events a second"
    valid = "" if token.expires_at is None else f", until {_valid_until(token)}"
    return f"{scopes}; models: {models}{held}{valid}"


def _valid_until(token: Token) -> str | None:
    """When a token expires or expired; None if it never does."""
    if token.expires_at is None:
        return None
    return ("expired " if token.expired else "") + time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(token.expires_at))


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _top(arguments: argparse.Namespace) -> int:
    from service.commands.top import top

    return top(_client(arguments.url, arguments.token_file))


def _demo(arguments: argparse.Namespace) -> int:
    from service.commands.demo import demo

    return demo(arguments.keep)


if __name__ == "__main__":
    raise SystemExit(main())
