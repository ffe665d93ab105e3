"""Every error a caller can get. The docstring of a class is its message, with the names in braces filled in.

Over HTTP an error is a problem document (RFC 9457): `type`, `title`, `status`, `detail` and `request_id`. It also has
`field`, `line`, `row`, `learned`, `duplicates` and `last_seq` where they are known.
"""

from __future__ import annotations

import inspect
import json
from datetime import UTC, datetime
from functools import cache
from typing import Any

TOLD_FIELDS, TOLD_CHARACTERS = 5, 60
"""How many differing fields a message shows at most, and how much of each value."""
_SHOWN = ("field", "line", "row", "learned", "duplicates", "last_seq")


def path(at: str, field: str) -> str:
    """The path of a field: "y", "[3].y", or "line 7: y"."""
    return field if not at else f"{at}.{field}" if at.startswith("[") else f"{at}: {field}"


class LogstepError(Exception):
    """Something went wrong."""

    status = 500
    title = "Internal error"
    headers: tuple[tuple[str, str], ...] = ()
    index: int = 0
    """Which event of the request is wrong, counted from 0."""

    def __init__(self, **members: Any) -> None:
        self.members = members
        super().__init__(self._template().format(**members))

    @classmethod
    @cache
    def _template(cls) -> str:
        return inspect.cleandoc(cls.__doc__ or "").replace("\n", " ")

    @classmethod
    def slug(cls) -> str:
        """The title as a word like queue-full: for programs, and as the label of a metric."""
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
    """A token must not be in a URL, because logs and browser histories keep URLs. Revoke this one with `logstep token
    revoke`, and send another in the header Authorization: Bearer TOKEN."""

    status = 400
    title = "Token in URL"


class Unauthorized(LogstepError):
    """This service requires a token, {reason}. Send it in the header Authorization: Bearer TOKEN. `logstep token create
    DIR` makes one."""

    status = 401
    title = "Unauthorized"

    def __init__(self, *, sent: bool, expired_at: float | None = None, **told: Any) -> None:
        """`sent`: whether the request had a token. `expired_at`: when it expired, in seconds since 1970, if it did."""
        reason = "but the one that was sent is unknown" if sent else "but none was sent"
        if expired_at is not None:
            at = datetime.fromtimestamp(expired_at, UTC).isoformat(" ", "seconds")
            reason = f"but the one that was sent expired at {at}"
        super().__init__(**{**told, "sent": sent, "expired_at": expired_at, "reason": reason})

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:  # type: ignore[override]  # RFC 6750
        wrong = ', error="invalid_token"' if self.members["sent"] else ""
        return (("www-authenticate", f'Bearer realm="logstep"{wrong}'),)


class Forbidden(LogstepError):
    """This token may only {scopes}, but this request needs {wants}. `logstep token create DIR --scope` makes a token
    that may do more."""

    status = 403
    title = "Forbidden"


class LearnsByTimeout(Forbidden):
    """{field}: this token may only {scopes}. In this model, a prediction with an id also needs {wants}: if its label
    does not come, the model learns it as 0 (on_timeout in its spec). A prediction without an id is allowed."""


class ForeignOrigin(LogstepError):
    """A page of {origin!r} may not do this. Without tokens, only pages of this service and of --cors-origins
    (LOGSTEP_CORS_ORIGINS) may."""

    status = 403
    title = "Foreign origin"


class ForeignSite(ForeignOrigin):
    """A page of another site, or a link on it, may not do this. Without tokens, only pages of this service and of
    --cors-origins (LOGSTEP_CORS_ORIGINS) may. Type the address, or start from the page at /."""


class ForeignHost(LogstepError):
    """This service does not answer to the name {host!r}, only to localhost and the names in --allowed-hosts
    (LOGSTEP_ALLOWED_HOSTS)."""

    status = 421
    title = "Foreign host"


class TooFast(LogstepError):
    """This token may have {rate:g} events a second. A reply to a GET counts by its size. Try again in {retry_after}
    s."""

    status = 429
    title = "Too fast"

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:  # type: ignore[override]
        return (("retry-after", str(self.members["retry_after"])),)


class HeadTooLarge(LogstepError):
    """The request line and the headers are larger than {limit} bytes (LOGSTEP_MAX_HEADER_BYTES)."""

    status = 431
    title = "Head too large"
    headers = (("connection", "close"),)


# -- what a caller sent


class MalformedHttp(LogstepError):
    """The request is not valid HTTP."""

    status = 400
    title = "Malformed HTTP"
    headers = (("connection", "close"),)


class UnclearHead(LogstepError):
    """The head of the request {reason}. It can be read in two ways, so the service refuses it."""

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
    """In the Arrow stream, {what} takes {size} bytes; the limit is {limit}. Write smaller batches (with pyarrow:
    writer.write_table(table, max_chunksize=10_000)). The stream itself has no limit."""

    status = 413
    title = "Arrow batch too large"


class ArrowSchemaTooLarge(LogstepError):
    """The schema of the Arrow stream takes {size} bytes; the limit is {limit}. Leave out columns that are no features,
    and metadata (with pyarrow: table.replace_schema_metadata())."""

    status = 413
    title = "Arrow schema too large"


class CompressedArrow(LogstepError):
    """In the Arrow stream, {what} is compressed. Write it uncompressed, as is the default (with pyarrow:
    pyarrow.ipc.IpcWriteOptions(compression=None); with Polars: write_ipc_stream(file, compression="uncompressed"))."""

    status = 415
    title = "Compressed Arrow"


class TooManyRows(LogstepError):
    """In the Arrow stream, {what} claims {rows} rows in {size} bytes. A batch of more than {free} rows must have a byte
    for every {ratio} rows. Write smaller batches (with pyarrow: writer.write_table(table, max_chunksize=100_000)). The
    stream itself has no limit."""

    status = 413
    title = "Too many rows"


class BodyIncomplete(LogstepError):
    """The connection ended before the whole body arrived, or the body is not valid HTTP. Nothing of a JSON body was
    learned. Of a stream, `learned` says how many events were."""

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
    """{model!r} is not a valid model name. Use 1 to 64 letters, digits, '_', '-' and '.', and begin with a letter or a
    digit."""

    status = 422
    title = "Invalid model name"


class NotFound(LogstepError):
    """There is nothing at {path}. GET /docs lists every route."""

    status = 404
    title = "Not found"


class UnknownModel(LogstepError):
    """There is no model {model!r}. PUT /models/{model} with a spec creates it. GET /models lists all models."""

    status = 404
    title = "Unknown model"


class MethodNotAllowed(LogstepError):
    """{path} does not allow {method}, only {allow}."""

    status = 405
    title = "Method not allowed"

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:  # type: ignore[override]  # RFC 9110 requires it
        return (("allow", self.members["allow"]),)


class UnknownId(LogstepError):
    """{field}: no prediction waits under the id {id!r}. Only a label for a prediction made with that id may leave out
    x."""

    status = 404
    title = "Unknown id"


class NothingWaits(LogstepError):
    """{field}: no prediction waits under the id {id!r}. It was never made, or its label or its timeout came. To explain
    it by the current model, send its x."""

    status = 404
    title = "Unknown id"


class ExpiredId(LogstepError):
    """{field}: the prediction under the id {id!r} waited longer than {keep} (join.keep in the model's spec) and was
    learned as y = 0, at seq {seq}. With "late": "learn" in the spec, a label 1 would correct that."""

    status = 404
    title = "Expired id"


class DroppedId(LogstepError):
    """{field}: the prediction under the id {id!r} waited longer than {keep} (join.keep in the model's spec) and was
    dropped. Send the label with its x."""

    status = 404
    title = "Dropped id"


class EventGone(LogstepError):
    """{field}: the prediction under the id {id!r} was learned as y = 0 at seq {seq}. That event is no longer in the log
    (LOGSTEP_KEEP_EVENTS), so a label cannot correct it."""

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
    """The fields of a spec by their full names: {"join": {"keep": "1h"}} becomes {"join.keep": "1h"}."""
    found: dict[str, Any] = {}
    for name, value in spec.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return found


def _differences(there: dict[str, Any], asked: dict[str, Any]) -> str:
    """Which fields of two specs differ, and how. Fields that only one spec has come last, because each rule has its
    own."""
    names = [name for name in there | asked if there.get(name) != asked.get(name)]
    names.sort(key=lambda name: name not in there or name not in asked)
    told = [
        f"{name} is {_field(there, name)} in the model and {_field(asked, name)} in the request"
        for name in names[:TOLD_FIELDS]
    ]
    more = len(names) - len(told)
    return ", ".join(told) + (f", and {more} more fields differ" if more else "")


def _field(spec: dict[str, Any], name: str) -> str:
    value = spec.get(name)
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)[:TOLD_CHARACTERS]


class NoWeights(LogstepError):
    """Model {model!r} has the rule auto, which combines many learners and has no weights of its own. GET
    /models/{model} shows how much each learner counts."""

    status = 409
    title = "No weights"


class LearningStopped(LogstepError):
    """Model {model!r} has stopped learning: at seq {seq} the mean log loss of its last {events} events passed {limit:g}
    (breaker in its spec). It still predicts. When you have found the cause, POST /models/{model}/resume lets it learn
    again."""

    status = 409
    title = "Learning stopped"


class NoBreaker(LogstepError):
    """Model {model!r} has no breaker in its spec, so it never stops learning."""

    status = 409
    title = "No breaker"


class NoRiverTwin(LogstepError):
    """River has no model to check this one against: {reason}."""

    status = 409
    title = "No river twin"


class TooManyModels(LogstepError):
    """There are {limit} models already, the most allowed (LOGSTEP_MAX_MODELS)."""

    status = 409
    title = "Too many models"


class RequestTimeout(LogstepError):
    """The request, or the next bytes of a stream, did not arrive within {seconds:g} s (LOGSTEP_REQUEST_SECONDS)."""

    status = 408
    title = "Request timeout"
    headers = (("connection", "close"),)


class ReplyNotTaken(LogstepError):
    """The client read nothing of its reply for {seconds:g} s (LOGSTEP_REQUEST_SECONDS)."""

    status = 408
    title = "Reply not taken"


class BodyTooLarge(LogstepError):
    """The body is larger than {limit} bytes (LOGSTEP_MAX_BODY_BYTES). NDJSON has no limit."""

    status = 413
    title = "Body too large"


class ArrayTooLong(LogstepError):
    """The array has {count} elements; the limit is {limit}. Send them as NDJSON, one on each line (content type
    application/x-ndjson). NDJSON has no limit."""

    status = 413
    title = "Array too long"


class IdsTooLarge(LogstepError):
    """The predictions that wait under the array's ids have more than {limit} bytes; the first {count} have nearly all.
    Send fewer at once, or send them as NDJSON, one on each line (content type application/x-ndjson). NDJSON has no
    limit. Nothing of the array was learned."""

    status = 413
    title = "Ids too large"


class ReplyTooLarge(LogstepError):
    """The reply would be larger than {limit} bytes (LOGSTEP_MAX_REPLIES_BYTES). Split it into several requests."""

    status = 413
    title = "Reply too large"


class LineTooLong(LogstepError):
    """Line {line} is longer than {limit} bytes (LOGSTEP_MAX_LINE_BYTES)."""

    status = 413
    title = "Line too long"


class UnsupportedMediaType(LogstepError):
    """The content type {content_type!r} is not supported. Send application/json, application/x-ndjson or
    application/vnd.apache.arrow.stream (with curl: -H 'content-type: application/json')."""

    status = 415
    title = "Unsupported media type"


class UnsupportedEncoding(LogstepError):
    """The content encoding {encoding!r} is not supported. Send the body uncompressed, without the header
    Content-Encoding."""

    status = 415
    title = "Unsupported encoding"
    headers = (("accept-encoding", "identity"),)


class UnsupportedCharset(LogstepError):
    """The charset {charset!r} is not supported. Send the body in UTF-8, with charset=utf-8 or no charset in
    Content-Type."""

    status = 415
    title = "Unsupported charset"


# -- what the service cannot do at present


class CrossCheckBusy(LogstepError):
    """Another cross-check is running, and only one runs at a time. Try again when it is done."""

    status = 429
    title = "Cross-check busy"
    headers = (("retry-after", "5"),)


class CrossCheckFailed(LogstepError):
    """The cross-check ended without a result: {reason}."""

    status = 500
    title = "Cross-check failed"


class PredictionDamaged(LogstepError):
    """{field}: the prediction stored under the id {id!r} is damaged on the disk and was not learned. Send the label
    with its x under another id. `logstep inspect` shows what else is damaged."""

    status = 500
    title = "Prediction damaged"


class NotReady(LogstepError):
    """The service is {state}. Try again in a moment."""

    status = 503
    title = "Not ready"
    headers = (("retry-after", "1"),)


class TooManyConnections(LogstepError):
    """There are {limit} connections with requests already, the most allowed (LOGSTEP_MAX_CONNECTIONS)."""

    status = 503
    title = "Too many connections"
    headers = (("retry-after", "1"), ("connection", "close"))


class TooManyBodies(LogstepError):
    """Bodies that arrive or wait fill the {limit} bytes allowed for all (LOGSTEP_MAX_BODIES_BYTES). Nothing of this
    request was learned."""

    status = 503
    title = "Too many bodies"
    headers = (("retry-after", "1"),)


class TooManyReplies(LogstepError):
    """Replies that wait to be sent fill the {limit} bytes allowed for all (LOGSTEP_MAX_REPLIES_BYTES). Nothing of this
    request was learned."""

    status = 503
    title = "Too many replies"
    headers = (("retry-after", "1"),)


class TooMuchUntaken(LogstepError):
    """Clients have not yet read {limit} bytes of their replies, the most allowed for all (LOGSTEP_MAX_UNSENT_BYTES)."""

    status = 503
    title = "Too much untaken"
    headers = (("retry-after", "1"),)


class QueueFull(LogstepError):
    """{waiting} events wait for the writer; the limit is {limit} (LOGSTEP_QUEUE_EVENTS). Nothing of this request was
    learned."""

    status = 503
    title = "Queue full"
    headers = (("retry-after", "1"),)


class TooManyViewers(LogstepError):
    """There are {limit} live streams already, the most allowed (LOGSTEP_MAX_VIEWERS). Close one, or poll GET
    /models/{{model}}."""

    status = 503
    title = "Too many viewers"
    headers = (("retry-after", "5"),)


class StorageFailed(LogstepError):
    """Writing to the log failed ({reason}). The service learns nothing more and stops. When you start it again, it
    recovers every acknowledged event from the log."""

    status = 503
    title = "Storage failed"


class StorageDamaged(StorageFailed):
    """A page of the log is damaged ({reason}). The service learns nothing more and stops. `logstep inspect` shows what
    is damaged."""

    title = "Storage damaged"


class DiskFull(LogstepError):
    """The disk is full. The event was not learned, or the prediction not stored. Predictions without an id still work.
    Learning works again when there is space."""

    status = 507
    title = "Disk full"


class NoRoomForReply(LogstepError):
    """The disk has no space for so long a reply, which is stored there until it is sent. Split it into several
    requests."""

    status = 507
    title = "No room for reply"


# -- why a service does not start


class TokenNeeded(LogstepError):
    """Other machines can reach {host}, but {path} has no token to tell who may do what. Make one with `logstep token
    create {folder}`, or name one in LOGSTEP_TOKEN or LOGSTEP_TOKEN_FILE. With --insecure, anyone who reaches the
    address may do everything."""


class BadToken(LogstepError):
    """{source} {reason}."""


class TokensUnreadable(LogstepError):
    """The tokens in {path} cannot be read: {reason}."""


class UnknownToken(LogstepError):
    """There is no token {id!r} in {folder}. `logstep token list {folder}` shows all tokens."""


class BadCertificate(LogstepError):
    """TLS fails with the certificate {certificate} and the key {key} (--tls-cert, --tls-key): {reason}."""


class CannotListen(LogstepError):
    """Cannot listen on {host} port {port}: {reason}. Name another with --host and --port."""


class FolderInUse(LogstepError):
    """{folder} is in use by {holder}. Two services on one folder would damage it. Stop that one, or name another folder
    with --data."""


class NotADataFolder(LogstepError):
    """{path} is not a data folder of logstep: {reason}."""


class NewerFormat(LogstepError):
    """{path} was written by a newer logstep (format {found}; this one reads {known}). Use that version."""


class UnreleasedFormat(LogstepError):
    """{path} was written before the first release of logstep, in a format that no version reads. Nothing was changed.
    Start with an empty folder, and send your events again (`logstep replay FILE`)."""


class LogDamaged(LogstepError):
    """The log in {folder} is damaged: {reason}. Nothing was changed. `logstep inspect {folder}` shows more. Restore a
    backup."""


class EventsGone(LogDamaged):
    """In {folder} {reason}."""


class CopyFailed(LogstepError):
    """Writing the copy {path} failed ({reason}). No copy was made, and the original is unchanged."""


class LogEndsEarly(LogstepError):
    """The log in {folder} is shorter than it was: it ends at commit {log}, but commit {mark} was acknowledged.
    Nothing was changed. Restore a backup, or accept the loss with `logstep repair {folder}`."""


class LogHasAHole(LogstepError):
    """The log in {folder} is damaged: its write-ahead log is readable up to commit {log}, but {lost} synced commit(s)
    follow. Nothing was changed. Restore a backup, or accept the loss with `logstep repair {folder}`."""


def slugs() -> list[str]:
    """The slug of every error, each once."""
    kinds = [kind for kind in globals().values() if isinstance(kind, type) and issubclass(kind, LogstepError)]
    return sorted({kind.slug() for kind in kinds})
