"""The log: what the service says of itself, as JSON for programs or as lines for a person.

A line has a time, a level, a message, and fields that say more: `logger.info("...", extra=fields(seconds=0.2))`. Never
in it: anything of a request's body, headers or query, but for its id. What a caller may make happen often, refusals,
is told once a second at most for each reason, and how often it happened since.
"""

from __future__ import annotations

import logging
import sys
import time
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec

from service import errors

logger = logging.getLogger("onestep")

REFUSAL_SECONDS = 1.0
"""How long refusals for the same reason are only counted once one was told."""
_MEMBERS: tuple[str, ...] = ("line", "row", "learned", "limit")
"""What is told of a refusal beside its reason: numbers. The rest may be of the body."""


def fields(**values: Any) -> dict[str, Any]:
    """What more a line says, for `extra`."""
    return {"fields": values}


class JsonFormatter(logging.Formatter):
    """A JSON object on one line, whatever the message contains."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **_fields_of(record),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


class ConsoleFormatter(logging.Formatter):
    """A line for a person: time of day, level, message, and the fields as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created).astimezone().isoformat(" ", "milliseconds")[:23]
        told = "".join(f" {name}={_shown(value)}" for name, value in _fields_of(record).items())
        line = f"{at} {record.levelname:7} {record.getMessage()}{told}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    found: dict[str, Any] = getattr(record, "fields", {})
    return found


def _shown(value: Any) -> str:
    """As it is, or quoted where it could be taken for more than it is."""
    text = str(value)
    return text if text.isprintable() and " " not in text else repr(text)


def set_up(level: str, form: str, stream: TextIO | None = None) -> None:
    """Log to standard error. `form`: json, console, or auto: console where a person watches."""
    stream = stream or sys.stderr
    if form == "auto":
        form = "console" if stream.isatty() else "json"
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if form == "json" else ConsoleFormatter())
    # Of what others log, warnings: at debug numba alone would write hundreds of lines.
    logging.root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))
    logging.root.addHandler(handler)
    logger.setLevel(level.upper())


class Refusals:
    """Tells of requests that were answered with an error."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}
        self._untold: dict[str, int] = {}

    def tell(self, error: errors.OnestepError, method: str, path: str, request_id: str) -> None:
        """One line, unless one was told a moment ago; where all is told (debug), always."""
        reason, now = error.slug(), time.monotonic()
        if now - self._told.get(reason, -REFUSAL_SECONDS) < REFUSAL_SECONDS and not logger.isEnabledFor(logging.DEBUG):
            self._untold[reason] = self._untold.get(reason, 0) + 1
            return
        self._told[reason] = now
        more = {name: error.members[name] for name in _MEMBERS if name in error.members}
        if untold := self._untold.pop(reason, 0):
            more["others_untold"] = untold
        told = fields(reason=reason, status=error.status, method=method, path=path[:100], request_id=request_id, **more)
        logger.log(logging.WARNING if error.status >= 500 else logging.INFO, "refused", extra=told)
