"""`logstep token`: creates, lists and revokes the tokens of a data folder."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from service.commands import options
from service.commands.terminal import number, say, show

if TYPE_CHECKING:
    from service.http.tokens import Token


def add(parser: argparse.ArgumentParser) -> None:
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
    create.add_argument("--rate", type=options.above_zero, metavar="N", help="events a second (default: no limit)")
    create.add_argument(
        "--expires", type=_valid, metavar="TIME", help="how long it is valid, like 90d or 12h (default: for ever)"
    )
    create.add_argument("--name", default="", metavar="TEXT", help="a note for people: who has it")
    create.set_defaults(run=_create)
    list_ = verbs.add_parser("list", help="list all tokens, without their secrets")
    list_.add_argument("folder", metavar="DIR", type=Path)
    list_.set_defaults(run=_list)
    revoke = verbs.add_parser("revoke", help="revoke a token")
    revoke.add_argument("folder", metavar="DIR", type=Path)
    revoke.add_argument("id", metavar="ID", help="the id that `logstep token list` shows")
    revoke.set_defaults(run=_revoke)


def _create(arguments: argparse.Namespace) -> int:
    from service.http import tokens

    scopes = arguments.scope or ["predict", "learn"]
    told = (arguments.model, arguments.rate, arguments.name, arguments.expires)
    text, token = tokens.create(arguments.folder, scopes, *told)
    say(f"token {token.id} for {arguments.folder} ({_may(token)}). Copy it now: the folder keeps only its hash")
    print(text)
    return 0


def _list(arguments: argparse.Namespace) -> int:
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


def _revoke(arguments: argparse.Namespace) -> int:
    from service.http import tokens

    left = tokens.revoke(arguments.folder, arguments.id)
    print(f"revoked token {arguments.id}, {number(left)} left; a running service refuses it within a second")
    if not left:
        say("that was the last token. A running service keeps asking for one; after a restart on localhost it does not")
    return 0


def _valid(text: str) -> float:
    """A period of validity in seconds, ten years at most."""
    from core.spec import LONGEST_KEEP, UNITS

    found = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    seconds = int(found[1]) * UNITS[found[2]] if found else 0.0
    if not 0 < seconds <= LONGEST_KEEP:
        raise argparse.ArgumentTypeError("must be a whole number with s, m, h or d, like 90d; at most 3650d")
    return seconds


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
