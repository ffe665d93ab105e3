"""The service's own log lines: JSON for programs, or text for people.

A line has a time, a level, a message and fields: `logger.info("...", extra=fields(seconds=0.2))`. It never has anything
of a request's body, headers or query, except the request id. Callers can cause refusals, and lines of other packages,
as often as they like. So each reason gets at most one line a second, with the number of lines left out.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any, TextIO

import msgspec

from service import errors

logger = logging.getLogger("logstep")

PAUSE_SECONDS = 1.0
"""After a line, further lines for the same reason are only counted for so long."""
_MEMBERS: tuple[str, ...] = ("line", "row", "learned", "limit")
"""What a line says of a refusal beside its reason: numbers only. The other members may come from the body."""
Line = Callable[[dict[str, Any]], None]
"""Writes a line, with these additional fields."""


def fields(**values: Any) -> dict[str, Any]:
    """Additional fields of a line, for `extra`."""
    return {"fields": values}


class JsonFormatter(logging.Formatter):
    """One JSON object on one line, whatever the message contains."""

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
    """A line for people: time of day, level, message, and the fields as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created).astimezone().isoformat(" ", "milliseconds")[:23]
        told = "".join(f" {name}={_shown(value)}" for name, value in _fields_of(record).items())
        line = f"{at} {record.levelname:7} {record.getMessage()}{told}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    found: dict[str, Any] = getattr(record, "fields", {})
    return found


def _shown(value: Any) -> str:
    """The text as it is, or quoted if it has spaces or characters that do not print."""
    text = str(value)
    return text if text.isprintable() and " " not in text else repr(text)


def set_up(level: str, form: str, stream: TextIO | None = None) -> Handler:
    """Log to standard error. `form`: json, console, or auto: console on a terminal."""
    stream = stream or sys.stderr
    if form == "auto":
        form = "console" if stream.isatty() else "json"
    handler = Handler(stream)
    handler.setFormatter(JsonFormatter() if form == "json" else ConsoleFormatter())
    # Other packages only log warnings: at debug, numba alone would write hundreds of lines.
    logging.root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level.upper()]))
    logging.root.addHandler(handler)
    logger.setLevel(level.upper())
    return handler


@dataclass(slots=True)
class _Told:
    """The lines of one reason: when the last was written, how many have been left out since, and the last of those."""

    at: float
    untold: int = 0
    last: Line | None = None


class Sparing:
    """Writes one line a second for each reason. It counts further lines, and writes the last of them with their number
    when the second is over."""

    def __init__(self) -> None:
        self._told: dict[Hashable, _Told] = {}

    def tell(self, reason: Hashable, line: Line) -> None:
        """Write a line now, or later, or count it."""
        told, now = self._told.get(reason), time.monotonic()
        if told is None or now - told.at >= PAUSE_SECONDS:
            self._told[reason] = _Told(now)
            line(_others(told.untold if told else 0))
        else:
            told.untold += 1
            told.last = line

    def tell_the_rest(self, *, now: bool = False) -> None:
        """Write the lines that are due. Call it regularly. `now`: write all, because no more will come."""
        at = time.monotonic()
        for reason, told in list(self._told.items()):
            if not now and at - told.at < PAUSE_SECONDS:
                continue
            if told.last is None:
                del self._told[reason]
                continue
            self._told[reason] = _Told(at)
            told.last(_others(told.untold - 1))


def _others(count: int) -> dict[str, Any]:
    return {"others_untold": count} if count else {}


class Handler(logging.StreamHandler[TextIO]):
    """Writes lines. Lines of other loggers go through `Sparing`, because callers may cause them."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._others = Sparing()

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == logger.name:
            super().emit(record)
            return
        kind = record.exc_info and record.exc_info[0]
        self._others.tell((record.pathname, record.lineno, kind), partial(self._tell, record))

    def _tell(self, record: logging.LogRecord, more: dict[str, Any]) -> None:
        record.__dict__.update(fields(**more))
        super().emit(record)

    def tell_the_rest(self, *, now: bool = False) -> None:
        self.acquire()
        try:
            self._others.tell_the_rest(now=now)
        finally:
            self.release()


class Refusals:
    """Logs requests that got an error, through `Sparing`. At level debug it logs each one."""

    def __init__(self) -> None:
        self._sparing = Sparing()

    def tell(self, error: errors.LogstepError, method: str, path: str, request_id: str) -> None:
        """Log a refused request."""
        reason = error.slug()

        def line(more: dict[str, Any]) -> None:
            told = {"reason": reason, "status": error.status, "method": method, "path": path[:100]}
            more = {name: vars(error)[name] for name in _MEMBERS if vars(error).get(name) is not None} | more
            level = logging.WARNING if error.status >= 500 else logging.INFO
            logger.log(level, "refused", extra=fields(**told, request_id=request_id, **more))

        self._tell(reason, line)

    def tell_mistake(self, error: BaseException, request_id: str) -> None:
        """Log an error that is not the caller's fault."""

        def line(more: dict[str, Any]) -> None:
            extra = fields(request_id=request_id, **more)
            logger.error("a mistake in logstep itself", exc_info=error, extra=extra)

        self._tell((type(error), error.__traceback__ and _raised_at(error.__traceback__)), line)

    def tell_the_rest(self, *, now: bool = False) -> None:
        self._sparing.tell_the_rest(now=now)

    def _tell(self, reason: Hashable, line: Line) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            line({})
        else:
            self._sparing.tell(reason, line)


def _raised_at(trace: TracebackType) -> tuple[str, int]:
    """The file and the line that raised an error."""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_filename, trace.tb_lineno
