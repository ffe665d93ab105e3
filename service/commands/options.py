"""Options that several commands have: which service, which token, which spec, and how a file is read."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.commands.terminal import WrongUsage
from service.events import DEFAULT
from service.settings import Settings

if TYPE_CHECKING:
    from service.commands.client import Client
    from service.commands.files import Source


URL = "http://127.0.0.1:8000"
LARGEST_BATCH = 100_000


def settings(flags: dict[str, Any]) -> Settings:
    """Settings from flags, then the environment, then defaults."""
    from pydantic import ValidationError

    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        flag = f"--{name.replace('_', '-')} (LOGSTEP_{name.upper()})"
        raise WrongUsage(f"{flag}: {first['msg']}, got {first['input']!r}") from None


def add_columns(parser: argparse.ArgumentParser, *, id_: str = "--id-column", weight: str = "--weight-column") -> None:
    """Which column is what. id_, weight: other names of these flags, which then are the first ones."""
    many: dict[str, Any] = {"action": "append", "default": [], "metavar": "COLUMN"}
    parser.add_argument("--label", metavar="COLUMN", help="column or key of the label; a number if there is no header")
    parser.add_argument(
        "--positive", action="append", default=[], metavar="VALUE", help="read this label as 1 and all others as 0"
    )
    parser.add_argument(
        "--negative", action="append", default=[], metavar="VALUE", help="read this label as 0 and all others as 1"
    )
    parser.add_argument("--text", **many, help="read this column as text, even if its cells are numbers")
    parser.add_argument("--number", **many, help="read this column as numbers; a cell that is not one is an error")
    parser.add_argument("--ignore", **many, help="leave this column out")
    for first, name in ((weight, "weight"), (id_, "id")):
        flags = dict.fromkeys((first, f"--{name}-column"))
        help_ = f"column or key of the event's {name}"
        parser.add_argument(*flags, dest=f"{name}_column", metavar="COLUMN", help=help_)
    parser.add_argument(
        "--look",
        type=_look,
        metavar="N",
        help="rows to read before deciding what each column is (default 10000; fewer if rows are very wide)",
    )


def add_source(parser: argparse.ArgumentParser) -> None:
    add_columns(parser)
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


def add_kafka(parser: argparse.ArgumentParser, topic: str) -> None:
    """Which topic of which brokers. topic: what it is, for people."""
    parser.add_argument(
        "--kafka", type=_brokers, metavar="HOST:PORT", required=True, help="brokers to begin with, with commas between"
    )
    parser.add_argument("--topic", required=True, metavar="TOPIC", help=topic)
    parser.add_argument(
        "--kafka-config",
        type=Path,
        metavar="FILE",
        help="file of librdkafka's properties, a line NAME=VALUE each: SASL, TLS and others",
    )


def _brokers(text: str) -> str:
    if not all(text.split(",")):
        raise argparse.ArgumentTypeError("must be HOST:PORT, or several with commas between")
    return text


def add_url(parser: Any, default: str | None = URL) -> None:
    parser.add_argument("--url", type=_url, default=default, help=f"the service (default {URL})")


def add_token_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="file with the token to send (else LOGSTEP_TOKEN, LOGSTEP_TOKEN_FILE)",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
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


def batch(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= LARGEST_BATCH:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {LARGEST_BATCH}")
    return int(text)


def _look(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number, 1 or more")
    return int(text)


def _delimiter(text: str) -> str:
    delimiter = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise argparse.ArgumentTypeError(
            "must be one character and not a quote; write 'tab' for a tab and ' ' for white space"
        )
    return delimiter


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError("must be a number, 0 or more")
    return value


def above_zero(text: str) -> float:
    value = seconds(text)
    if value == 0:
        raise argparse.ArgumentTypeError("must be a number above 0")
    return value


def source(arguments: argparse.Namespace, file: str) -> Source:
    from service.commands.files import Source

    return Source(
        file,
        format=arguments.format,
        label=arguments.label,
        positive=arguments.positive,
        negative=arguments.negative,
        asked=asked(arguments),
        look=arguments.look,
        header=arguments.header,
        quoted=arguments.quoted,
        delimiter=arguments.delimiter,
    )


def asked(arguments: argparse.Namespace) -> dict[str, str]:
    """The kinds that flags give to columns, by column name."""
    from service.rows.columns import FLAGS

    kinds: dict[str, str] = {}
    for kind, flag in FLAGS.items():
        found = getattr(arguments, flag.removeprefix("--").replace("-", "_")) or []
        for name in [found] if isinstance(found, str) else found:
            if kinds.setdefault(name, kind) != kind:
                raise WrongUsage(f"column {name!r} cannot be both {FLAGS[kinds[name]]} and {flag}")
    return kinds


def client(url: str, token_file: Path | None) -> Client:
    from service.commands.client import Client
    from service.http.tokens import given

    return Client(url, given(token_file))


def json_of(text: str) -> bytes:
    """The JSON of a --spec: its text, or the content of the file that it names."""
    file = spec_file(text)
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


def spec_file(text: str) -> Path | None:
    """The file that a --spec names; None where it is JSON itself.

    A list counts as JSON: it is no valid spec, but no file name either.
    """
    return None if text.lstrip().startswith(("{", "[")) else Path(text)
