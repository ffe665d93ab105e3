"""Every error a caller can meet. The docstring is the message; the words in braces are filled in.

An error over HTTP is a problem document (RFC 9457): `type`, `title`, `status`, `detail`, `request_id`, and what else is
known: `field`, `line`, `row`, `learned`, `last_seq`.
"""

from __future__ import annotations

import inspect
import json
from datetime import UTC, datetime
from functools import cache
from typing import Any

TOLD_FIELDS, TOLD_CHARACTERS = 5, 60
"""Of two specs that differ, at most."""
_SHOWN = ("field", "line", "row", "learned", "duplicates", "last_seq")


class LogstepError(Exception):
    """Something went wrong."""

    status = 500
    title = "Internal error"
    headers: tuple[tuple[str, str], ...] = ()
    index: int = 0
    """Which event of a request it is about, from 0."""

    def __init__(self, **members: Any) -> None:
        self.members = members
        super().__init__(self._template().format(**members))

    @classmethod
    @cache
    def _template(cls) -> str:
        return inspect.cleandoc(cls.__doc__ or "").replace("\n", " ")

    @classmethod
    def slug(cls) -> str:
        """What went wrong, in a word or two like queue-full: for programs, and as the label of a metric."""
        return cls.title.lower().replace(" ", "-")

    def problem(self, request_id: str) -> dict[str, Any]:
        """The problem document."""
        return {
            "type": f"urn:logstep:{self.slug()}",
            "title": self.title,
            "status": self.status,
            "detail": str(self),
            "request_id": request_id,
            **{name: value for name, value in self.members.items() if name in _SHOWN},
        }


# -- who may do what (service/http/access.py)


class TokenInUrl(LogstepError):
    """A token does not belong in a URL, where logs and histories keep it: take this one back with
    `logstep token revoke`, and send another as a header, Authorization: Bearer TOKEN."""

    status = 400
    title = "Token in URL"


class Unauthorized(LogstepError):
    """This service takes a token, {reason}. Send it as a header, Authorization: Bearer TOKEN;
    `logstep token create DIR` makes one."""

    status = 401
    title = "Unauthorized"

    def __init__(self, *, sent: bool, expired_at: float | None = None, **told: Any) -> None:
        """`sent`: whether one was; `expired_at`: when it expired, in seconds since 1970, if that is why."""
        reason = "and the one that was sent is none of its" if sent else "and none was sent"
        if expired_at is not None:
            at = datetime.fromtimestamp(expired_at, UTC).isoformat(" ", "seconds")
            reason = f"and the one that was sent expired at {at}"
        super().__init__(**{**told, "sent": sent, "expired_at": expired_at, "reason": reason})

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:  # type: ignore[override]  # RFC 6750
        wrong = ', error="invalid_token"' if self.members["sent"] else ""
        return (("www-authenticate", f'Bearer realm="logstep"{wrong}'),)


class Forbidden(LogstepError):
    """This token may {scopes}, and that takes {wants}. `logstep token create DIR --scope` makes one that may more."""

    status = 403
    title = "Forbidden"


class LearnsByTimeout(Forbidden):
    """{field}: this token may {scopes}, and a prediction with an id takes {wants} too in this model, which learns it as
    0 when its label does not come (on_timeout in its spec). Without an id it is served."""


class ForeignOrigin(LogstepError):
    """A page of {origin!r} may not do this: without tokens, only pages of this service may, and those of
    --cors-origins (LOGSTEP_CORS_ORIGINS)."""

    status = 403
    title = "Foreign origin"


class ForeignSite(ForeignOrigin):
    """A page of another site, or a link on it, may not do this: without tokens, only pages of this service may, and
    those of --cors-origins (LOGSTEP_CORS_ORIGINS). Type the address, or start from the page at /."""


class ForeignHost(LogstepError):
    """This service is not called {host!r}; it answers to localhost, and to the names in --allowed-hosts
    (LOGSTEP_ALLOWED_HOSTS)."""

    status = 421
    title = "Foreign host"


class TooFast(LogstepError):
    """This token may have {rate:g} events a second, and a reply to a GET counts by its size; try again in
    {retry_after} s."""

    status = 429
    title = "Too fast"

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:  # type: ignore[override]
        return (("retry-after", str(self.members["retry_after"])),)


class HeadTooLarge(LogstepError):
    """The request line and the headers take more than {limit} bytes (LOGSTEP_MAX_HEADER_BYTES)."""

    status = 431
    title = "Head too large"
    headers = (("connection", "close"),)


# -- what a caller sent


class MalformedHttp(LogstepError):
    """What came is not a valid HTTP request."""

    status = 400
    title = "Malformed HTTP"
    headers = (("connection", "close"),)


class UnclearHead(LogstepError):
    """The head of the request {reason}: it can be understood in two ways, and is not answered in either."""

    status = 400
    title = "Unclear head"
    headers = (("connection", "close"),)


class MalformedJson(LogstepError):
    """{where}is not valid JSON: {reason}."""

    status = 400
    title = "Malformed JSON"


class MalformedArrow(LogstepError):
    """The body is not an Arrow IPC stream: {reason}."""

    status = 400
    title = "Malformed Arrow"


class ArrowTooLarge(LogstepError):
    """In the Arrow stream, {what} takes {size} bytes and no more than {limit} are read at once; write it in smaller
    batches (with pyarrow: writer.write_table(table, max_chunksize=10_000)). The stream itself has no limit."""

    status = 413
    title = "Arrow batch too large"


class TooManyRows(LogstepError):
    """In the Arrow stream, {what} says that it has {rows} rows in {size} bytes; a batch of more than {free} rows must
    have a byte for each {ratio}. Write it in smaller batches (with pyarrow: writer.write_table(table,
    max_chunksize=100_000)). The stream itself has no limit."""

    status = 413
    title = "Too many rows"


class BodyIncomplete(LogstepError):
    """The connection ended before the whole body had arrived, or what came of it is not valid HTTP. Nothing of a JSON
    body was learned; of a stream, so many events as `learned` says."""

    status = 400
    title = "Body incomplete"
    headers = (("connection", "close"),)


class InvalidEvent(LogstepError):
    """{field}: {reason}."""

    status = 422
    title = "Invalid event"


class InvalidSpec(LogstepError):
    """{field}: {reason}."""

    status = 422
    title = "Invalid spec"


class InvalidParameter(LogstepError):
    """{field}: {reason}."""

    status = 422
    title = "Invalid parameter"


class InvalidModelName(LogstepError):
    """{model!r} cannot be a model's name: 1 to 64 letters, digits, '_', '-' and '.', the first a letter or digit."""

    status = 422
    title = "Invalid model name"


class NotFound(LogstepError):
    """There is nothing at {path}; GET /docs lists what there is."""

    status = 404
    title = "Not found"


class UnknownModel(LogstepError):
    """There is no model {model!r}; PUT /models/{model} with a spec creates it, GET /models lists those there are."""

    status = 404
    title = "Unknown model"


class MethodNotAllowed(LogstepError):
    """{path} does not take {method}, it takes {allow}."""

    status = 405
    title = "Method not allowed"

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:  # type: ignore[override]  # RFC 9110 wants what is allowed
        return (("allow", self.members["allow"]),)


class UnknownId(LogstepError):
    """{field}: no prediction waits under the id {id!r}. A label without x is for a prediction that was served with its
    id."""

    status = 404
    title = "Unknown id"


class NothingWaits(LogstepError):
    """{field}: no prediction waits under the id {id!r}: it was never made, or its label or its timeout came. Send its x
    for an explanation by the model as it stands."""

    status = 404
    title = "Unknown id"


class ExpiredId(LogstepError):
    """{field}: the prediction under the id {id!r} waited longer than {keep} (join.keep in the model's spec) and was
    learned as y = 0, at seq {seq}. With "late": "learn" a label 1 would correct that."""

    status = 404
    title = "Expired id"


class DroppedId(LogstepError):
    """{field}: the prediction under the id {id!r} waited longer than {keep} (join.keep in the model's spec) and was
    dropped; send the label with its x."""

    status = 404
    title = "Dropped id"


class EventGone(LogstepError):
    """{field}: the prediction under the id {id!r} was learned as y = 0 at seq {seq}, and that event is no longer in the
    log (LOGSTEP_KEEP_EVENTS): a label so late cannot correct it."""

    status = 404
    title = "Event gone"


class IdConflict(LogstepError):
    """{field}: the id {id!r} {reason}."""

    status = 409
    title = "Id conflict"


class SpecConflict(LogstepError):
    """Model {model!r} exists with another spec: {differences}. GET /models/{model} shows it, DELETE /models/{model}
    removes it."""

    status = 409
    title = "Spec conflict"

    def __init__(self, *, model: str, there: dict[str, Any], asked: dict[str, Any]) -> None:
        super().__init__(model=model, differences=_differences(_flat(there), _flat(asked)))


def _flat(spec: dict[str, Any], before: str = "") -> dict[str, Any]:
    """The fields of a spec by their names: {"join": {"keep": "1h"}} is {"join.keep": "1h"}."""
    found: dict[str, Any] = {}
    for name, value in spec.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return found


def _differences(there: dict[str, Any], asked: dict[str, Any]) -> str:
    """In which fields two specs differ, and how; last those that only one of them has, as rules have their own."""
    names = [name for name in there | asked if there.get(name) != asked.get(name)]
    names.sort(key=lambda name: name not in there or name not in asked)
    told = [f"{name} is {_field(there, name)} there and {_field(asked, name)} here" for name in names[:TOLD_FIELDS]]
    more = len(names) - len(told)
    return ", ".join(told) + (f", and {more} more fields differ" if more else "")


def _field(spec: dict[str, Any], name: str) -> str:
    value = spec.get(name)
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)[:TOLD_CHARACTERS]


class NoWeights(LogstepError):
    """Model {model!r} has the rule auto: it is many learners at once and has no weights of its own. GET /models/{model}
    shows which learners carry the weight."""

    status = 409
    title = "No weights"


class LearningStopped(LogstepError):
    """Model {model!r} has stopped learning: at seq {seq} the mean log loss of its last {events} events passed {limit:g}
    (breaker in its spec). Nothing more is learned, and predictions go on. When the cause is found, POST
    /models/{model}/resume lets it learn again."""

    status = 409
    title = "Learning stopped"


class NoBreaker(LogstepError):
    """Model {model!r} has no breaker in its spec: it has not stopped, and never does."""

    status = 409
    title = "No breaker"


class NoRiverTwin(LogstepError):
    """River has nothing to check this model against: {reason}."""

    status = 409
    title = "No river twin"


class TooManyModels(LogstepError):
    """There are {limit} models, and no more are allowed (LOGSTEP_MAX_MODELS)."""

    status = 409
    title = "Too many models"


class RequestTimeout(LogstepError):
    """The request did not arrive within {seconds:g} s (LOGSTEP_REQUEST_SECONDS; of a stream, its next bytes)."""

    status = 408
    title = "Request timeout"
    headers = (("connection", "close"),)


class ReplyNotTaken(LogstepError):
    """The client took nothing of its reply for {seconds:g} s (LOGSTEP_REQUEST_SECONDS)."""

    status = 408
    title = "Reply not taken"


class BodyTooLarge(LogstepError):
    """The body is larger than {limit} bytes (LOGSTEP_MAX_BODY_BYTES); NDJSON has no limit."""

    status = 413
    title = "Body too large"


class ArrayTooLong(LogstepError):
    """The array has {count} elements, and no more than {limit} are taken at once; send a line for each as NDJSON
    (content type application/x-ndjson), which has no limit."""

    status = 413
    title = "Array too long"


class ReplyTooLarge(LogstepError):
    """The reply would take more than {limit} bytes (LOGSTEP_MAX_REPLIES_BYTES); ask in several requests."""

    status = 413
    title = "Reply too large"


class LineTooLong(LogstepError):
    """Line {line} is longer than {limit} bytes (LOGSTEP_MAX_LINE_BYTES)."""

    status = 413
    title = "Line too long"


class UnsupportedMediaType(LogstepError):
    """The content type {content_type!r} is not understood; send application/json, application/x-ndjson or
    application/vnd.apache.arrow.stream (with curl: -H 'content-type: application/json')."""

    status = 415
    title = "Unsupported media type"


class UnsupportedEncoding(LogstepError):
    """A body with the content encoding {encoding!r} is not read; send it as it is, uncompressed, and without the header
    Content-Encoding."""

    status = 415
    title = "Unsupported encoding"
    headers = (("accept-encoding", "identity"),)


class UnsupportedCharset(LogstepError):
    """A body in the charset {charset!r} is not read; send it in UTF-8, with no charset in Content-Type, or
    charset=utf-8."""

    status = 415
    title = "Unsupported charset"


# -- what the service cannot do now


class CrossCheckBusy(LogstepError):
    """Another cross-check is running, and one runs at a time; try again when it is done."""

    status = 429
    title = "Cross-check busy"
    headers = (("retry-after", "5"),)


class CrossCheckFailed(LogstepError):
    """The cross-check ended without a result: {reason}."""

    status = 500
    title = "Cross-check failed"


class PredictionDamaged(LogstepError):
    """{field}: what was kept under the id {id!r} is damaged on the disk, and is not learned; send the label with its x
    under another id. `logstep inspect` shows what else is damaged."""

    status = 500
    title = "Prediction damaged"


class NotReady(LogstepError):
    """The service is {state}; try again in a moment."""

    status = 503
    title = "Not ready"
    headers = (("retry-after", "1"),)


class TooManyConnections(LogstepError):
    """There are {limit} connections with requests on them, and no more are served at once (LOGSTEP_MAX_CONNECTIONS)."""

    status = 503
    title = "Too many connections"
    headers = (("retry-after", "1"), ("connection", "close"))


class TooManyBodies(LogstepError):
    """Bodies of {limit} bytes are being received or wait, and no more may be at once (LOGSTEP_MAX_BODIES_BYTES);
    nothing of this request was learned."""

    status = 503
    title = "Too many bodies"
    headers = (("retry-after", "1"),)


class TooManyReplies(LogstepError):
    """Replies of {limit} bytes wait to be sent, and no more may at once (LOGSTEP_MAX_REPLIES_BYTES); nothing of this
    request was learned."""

    status = 503
    title = "Too many replies"
    headers = (("retry-after", "1"),)


class TooMuchUntaken(LogstepError):
    """Clients have not taken {limit} bytes of what was written to them, and no more may wait
    (LOGSTEP_MAX_UNSENT_BYTES)."""

    status = 503
    title = "Too much untaken"
    headers = (("retry-after", "1"),)


class QueueFull(LogstepError):
    """{waiting} events wait to be written and no more than {limit} may (LOGSTEP_QUEUE_EVENTS); nothing of this request
    was learned."""

    status = 503
    title = "Queue full"
    headers = (("retry-after", "1"),)


class TooManyViewers(LogstepError):
    """{limit} streams are open and no more may be (LOGSTEP_MAX_VIEWERS); close one, or ask
    GET /models/{{model}} now and then."""

    status = 503
    title = "Too many viewers"
    headers = (("retry-after", "5"),)


class StorageFailed(LogstepError):
    """Writing to the log failed ({reason}). Nothing more is learned and the service stops; started again, it recovers
    every event that it acknowledged from the log."""

    status = 503
    title = "Storage failed"


class StorageDamaged(StorageFailed):
    """A page of the log is damaged ({reason}). Nothing more is learned and the service stops; `logstep inspect` shows
    what is damaged."""

    title = "Storage damaged"


class DiskFull(LogstepError):
    """There is no room on the disk. The event was not learned, or the prediction not kept; predictions without an id go
    on, and so does learning when there is room again."""

    status = 507
    title = "Disk full"


class NoRoomForReply(LogstepError):
    """There is no room on the disk for so long a reply, which waits there until it is sent; ask in several requests."""

    status = 507
    title = "No room for reply"


# -- why a service does not start


class TokenNeeded(LogstepError):
    """Others than this machine reach {host}, and no token is there to tell who may do what: {path} has none. Make one
    with `logstep token create {folder}`, or name one in LOGSTEP_TOKEN or LOGSTEP_TOKEN_FILE; with --insecure whoever
    reaches the address may do everything."""


class BadToken(LogstepError):
    """{source} {reason}."""


class TokensUnreadable(LogstepError):
    """The tokens in {path} cannot be read: {reason}."""


class UnknownToken(LogstepError):
    """There is no token {id!r} in {folder}; `logstep token list {folder}` shows those there are."""


class BadCertificate(LogstepError):
    """TLS does not work with the certificate {certificate} and the key {key} (--tls-cert, --tls-key): {reason}."""


class CannotListen(LogstepError):
    """Cannot listen on {host} port {port}: {reason}. Name another with --host and --port."""


class FolderInUse(LogstepError):
    """{folder} is in use by {holder}. Two services on one folder would damage it; stop that one or name another folder
    with --data."""


class NotADataFolder(LogstepError):
    """{path} is not a data folder of logstep: {reason}."""


class NewerFormat(LogstepError):
    """{path} was written by a newer logstep (format {found}, this one knows {known}); use that version."""


class UnreleasedFormat(LogstepError):
    """{path} was written before the first release of logstep, in a format that no version reads. Nothing was changed.
    Begin with an empty folder, and send it your events again (`logstep replay FILE`)."""


class LogDamaged(LogstepError):
    """The log in {folder} is damaged: {reason}. Nothing was changed. `logstep inspect {folder}` shows more; restore a
    backup."""


class EventsGone(LogDamaged):
    """In {folder} {reason}."""


class CopyFailed(LogstepError):
    """Writing the copy {path} failed ({reason}). Nothing was put in place, and what was copied is as it was."""


class LogEndsEarly(LogstepError):
    """The log in {folder} is shorter than it was: it ends at commit {log}, but commit {mark} was acknowledged.
    Nothing was changed. Restore a backup, or accept the loss with `logstep repair {folder}`."""


class LogHasAHole(LogstepError):
    """The log in {folder} is damaged: its write-ahead log can be read up to commit {log}, and {lost} commit(s) that
    were synced come after that. Nothing was changed. Restore a backup, or accept the loss with
    `logstep repair {folder}`."""


def slugs() -> list[str]:
    """What can go wrong, each once."""
    kinds = [kind for kind in globals().values() if isinstance(kind, type) and issubclass(kind, LogstepError)]
    return sorted({kind.slug() for kind in kinds})
