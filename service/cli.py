"""The command line: serve, and look after data folders and models.

Exit codes: 0 fine, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from pydantic import ValidationError

from service import errors
from service.settings import Settings


def main(argv: list[str] | None = None) -> int:
    """The `onestep` command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except errors.OnestepError as error:
        print(f"onestep: {error}", file=sys.stderr)
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="onestep", description="Online learning over HTTP, one gradient step an event."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the service")
    for name, field in Settings.model_fields.items():
        help_ = f"{field.description} Default {field.default}; in the environment ONESTEP_{name.upper()}."
        serve.add_argument(f"--{name.replace('_', '-')}", metavar=name.upper(), help=help_.replace("%", "%%"))
    serve.set_defaults(run=_serve)
    return parser


def _usage(message: str) -> NoReturn:
    print(f"onestep: {message}", file=sys.stderr)
    raise SystemExit(2)


def _settings(flags: dict[str, Any]) -> Settings:
    """Settings from flags, then the environment, then defaults."""
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        _usage(f"--{name.replace('_', '-')} (ONESTEP_{name.upper()}): {first['msg']}, got {first['input']!r}")


def _serve(arguments: argparse.Namespace) -> int:
    settings = _settings({name: getattr(arguments, name) for name in Settings.model_fields})
    from service.store import FolderLock

    lock = FolderLock(settings.data)  # first: a second service on the folder is told at once
    from service.server import serve

    return serve(settings, lock)
