"""Every error a caller can get. The docstring of a class is its message, with its fields in the braces."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

from service.problem import CLOSE, ENCODINGS, SOON, Invalid, OfId, OfModel, OverLimit, Reasoned
from service.problem import LogstepError as LogstepError  # noqa: PLC0414  # it is one of them

# -- who may do what (service/http/access.py)


class TokenInUrl(LogstepError, status=400, title="Token in URL"):
    """A token must not be in a URL, because logs and browser histories keep URLs. Revoke this one with `logstep token
    revoke`, and send another in the header Authorization: Bearer TOKEN."""


_CHALLENGE = (("www-authenticate", 'Bearer realm="logstep"{wrong}'),)  # RFC 6750


class Unauthorized(LogstepError, status=401, title="Unauthorized", headers=_CHALLENGE):
    """This service requires a token, {reason}. Send it in the header Authorization: Bearer TOKEN. `logstep token create
    DIR` makes one."""

    sent: bool
    """Whether the request had a token."""
    expired_at: float | None = None
    """When the token expired, in seconds since 1970."""
    reason: str = dataclasses.field(init=False)
    wrong: str = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.wrong = ', error="invalid_token"' if self.sent else ""
        self.reason = "but the one that was sent is unknown" if self.sent else "but none was sent"
        if self.expired_at is not None:
            at = datetime.fromtimestamp(self.expired_at, UTC).isoformat(" ", "seconds")
            self.reason = f"but the one that was sent expired at {at}"


class Forbidden(LogstepError, status=403, title="Forbidden"):
    """This token may only {scopes}, but this request needs {wants}. `logstep token create DIR --scope` makes a token
    that may do more."""

    scopes: str
    wants: str


class LearnsByTimeout(Forbidden):
    """{field}: this token may only {scopes}. In this model, a prediction with an id also needs {wants}: if its label
    does not come, the model learns it as 0 (on_timeout in its spec). A prediction without an id is allowed."""

    field: str


class ForeignOrigin(LogstepError, status=403, title="Foreign origin"):
    """A page of {origin!r} may not do this. Without tokens, only pages of this service and of --cors-origins
    (LOGSTEP_CORS_ORIGINS) may."""

    origin: str


class ForeignSite(LogstepError, status=403, title="Foreign origin"):
    """A page of another site, or a link on it, may not do this. Without tokens, only pages of this service and of
    --cors-origins (LOGSTEP_CORS_ORIGINS) may. Type the address, or start from the page at /."""


class ForeignHost(LogstepError, status=421, title="Foreign host"):
    """This service does not answer to the name {host!r}, only to localhost and the names in --allowed-hosts
    (LOGSTEP_ALLOWED_HOSTS)."""

    host: str


class TooFast(LogstepError, status=429, title="Too fast", headers=(("retry-after", "{retry_after}"),)):
    """This token may have {rate:g} events a second. A reply to a GET counts by its size. Try again in {retry_after}
    s."""

    rate: float
    retry_after: int


class HeadTooLarge(OverLimit, status=431, title="Head too large", headers=CLOSE):
    """The request line and the headers are larger than {limit} bytes (LOGSTEP_MAX_HEADER_BYTES)."""


# -- what a caller sent


class MalformedHttp(LogstepError, status=400, title="Malformed HTTP", headers=CLOSE):
    """The request is not valid HTTP."""


class UnclearHead(Reasoned, status=400, title="Unclear head", headers=CLOSE):
    """The head of the request {reason}. It can be read in two ways, so the service refuses it."""


class MalformedJson(Reasoned, status=400, title="Malformed JSON"):
    """{where}is not valid JSON: {reason}."""

    where: str


class MalformedArrow(Reasoned, status=400, title="Malformed Arrow"):
    """The body is not an Arrow IPC stream: {reason}."""


class ArrowNotInstalled(LogstepError, status=415, title="Arrow not installed"):
    """Columns (Arrow, Parquet) need pyarrow, which is not installed beside logstep. Install the extra:
    pip install 'logstep[arrow]', and start logstep again. JSON, NDJSON and CSV need no extra."""


class ArrowTooLarge(OverLimit, status=413, title="Arrow batch too large"):
    """In the Arrow stream, {what} takes {size} bytes; the limit is {limit}. Write smaller batches (with pyarrow:
    writer.write_table(table, max_chunksize=10_000)). The stream itself has no limit."""

    what: str
    size: int


class MalformedFile(Reasoned, status=400, title="Malformed file"):
    """The body is not a Parquet or Arrow file: {reason}."""


class RowGroupTooLarge(OverLimit, status=413, title="Row group too large"):
    """Reading this file takes more than {limit} bytes of memory. Write smaller row groups (with pyarrow:
    parquet.write_table(table, file, row_group_size=100_000)) or shorter texts."""


class FileTooLarge(OverLimit, status=413, title="File too large"):
    """The Parquet or Arrow file is larger than {limit} bytes (LOGSTEP_MAX_FILES_BYTES). Send it in parts, or as an
    Arrow stream. A stream has no limit."""


class ArrowSchemaTooLarge(OverLimit, status=413, title="Arrow schema too large"):
    """The schema of the Arrow stream takes {size} bytes; the limit is {limit}. Leave out columns that are no features,
    and metadata (with pyarrow: table.replace_schema_metadata())."""

    size: int


class CompressedArrow(LogstepError, status=415, title="Compressed Arrow"):
    """In the Arrow stream, {what} is compressed. Write it uncompressed, as is the default (with pyarrow:
    pyarrow.ipc.IpcWriteOptions(compression=None); with Polars: write_ipc_stream(file, compression="uncompressed"))."""

    what: str


class TooManyRows(LogstepError, status=413, title="Too many rows"):
    """In the Arrow stream, {what} claims {rows} rows in {size} bytes. A batch of more than {free} rows must have a byte
    for every {ratio} rows. Write smaller batches (with pyarrow: writer.write_table(table, max_chunksize=100_000)). The
    stream itself has no limit."""

    what: str
    rows: int
    size: int
    free: int
    ratio: int


class MalformedEncoding(Reasoned, status=400, title="Malformed encoding"):
    """The body is not valid {encoding}, as its header Content-Encoding says: {reason}."""

    encoding: str


class ExpandsTooMuch(OverLimit, status=413, title="Expands too much"):
    """The compressed body expands to more than {limit} bytes and {times} times its size. Send it uncompressed, or in
    parts."""

    times: int


class BodyIncomplete(LogstepError, status=400, title="Body incomplete", headers=CLOSE):
    """The connection ended before the whole body arrived, or the body is not valid HTTP. Nothing of a JSON body was
    learned. Of a stream, `learned` says how many events were."""


class InvalidEvent(Invalid, title="Invalid event"): ...


class InvalidRows(Reasoned, status=422, title="Invalid rows"):
    """The body {reason}."""


class InvalidSpec(Invalid, title="Invalid spec"): ...


class InvalidParameter(Invalid, title="Invalid parameter"): ...


class InvalidModelName(OfModel, status=422, title="Invalid model name"):
    """{model!r} is not a valid model name. Use 1 to 64 letters, digits, '_', '-' and '.', and begin with a letter or a
    digit."""


class NotFound(LogstepError, status=404, title="Not found"):
    """There is nothing at {path}. GET /docs lists every route."""

    path: str


class UnknownModel(OfModel, status=404, title="Unknown model"):
    """There is no model {model!r}. PUT /models/{model} with a spec creates it. GET /models lists all models."""


class MethodNotAllowed(LogstepError, status=405, title="Method not allowed", headers=(("allow", "{allow}"),)):
    """{path} does not allow {method}, only {allow}."""

    path: str
    method: str
    allow: str


class UnknownId(OfId, title="Unknown id"):
    """{field}: no prediction waits under the id {id!r}. Only a label for a prediction made with that id may leave out
    x."""


class NothingWaits(OfId, title="Unknown id"):
    """{field}: no prediction waits under the id {id!r}. It was never made, or its label or its timeout came. To explain
    it by the current model, send its x."""


class ExpiredId(OfId, title="Expired id"):
    """{field}: the prediction under the id {id!r} waited longer than {keep} (join.keep in the model's spec) and was
    learned as y = 0, at seq {seq}. With "late": "learn" in the spec, a label 1 would correct that."""

    keep: str
    seq: int


class DroppedId(OfId, title="Dropped id"):
    """{field}: the prediction under the id {id!r} waited longer than {keep} (join.keep in the model's spec) and was
    dropped. Send the label with its x."""

    keep: str


class EventGone(OfId, title="Event gone"):
    """{field}: the prediction under the id {id!r} was learned as y = 0 at seq {seq}. That event is no longer in the log
    (LOGSTEP_KEEP_EVENTS), so a label cannot correct it."""

    seq: int


class IdConflict(OfId, status=409, title="Id conflict"):
    """{field}: the id {id!r} {reason}."""

    reason: str


class SpecConflict(OfModel, status=409, title="Spec conflict"):
    """Model {model!r} exists with another spec: {differences}. GET /models/{model} shows it, DELETE /models/{model}
    removes it."""

    differences: str


class NoWeights(OfModel, status=409, title="No weights"):
    """Model {model!r} has the rule auto, which combines many learners and has no weights of its own. GET
    /models/{model} shows how much each learner counts."""


class LearningStopped(OfModel, status=409, title="Learning stopped"):
    """Model {model!r} has stopped learning: at seq {seq} the mean log loss of its last {events} events passed {limit:g}
    (breaker in its spec). It still predicts. When you have found the cause, POST /models/{model}/resume lets it learn
    again."""

    seq: int
    events: int
    limit: float


class NoBreaker(OfModel, status=409, title="No breaker"):
    """Model {model!r} has no breaker in its spec, so it never stops learning."""


class NoRiverTwin(Reasoned, status=409, title="No river twin"):
    """River has no model to check this one against: {reason}."""


class TooManyModels(OverLimit, status=409, title="Too many models"):
    """There are {limit} models already, the most allowed (LOGSTEP_MAX_MODELS)."""


class RequestTimeout(LogstepError, status=408, title="Request timeout", headers=CLOSE):
    """The request, or the next bytes of a stream, did not arrive within {seconds:g} s (LOGSTEP_REQUEST_SECONDS)."""

    seconds: float


class ReplyNotTaken(LogstepError, status=408, title="Reply not taken"):
    """The client read nothing of its reply for {seconds:g} s (LOGSTEP_REQUEST_SECONDS)."""

    seconds: float


class BodyTooLarge(OverLimit, status=413, title="Body too large"):
    """The body is larger than {limit} bytes (LOGSTEP_MAX_BODY_BYTES). NDJSON has no limit."""


class ArrayTooLong(OverLimit, status=413, title="Array too long"):
    """The array has {count} elements; the limit is {limit}. Send them as NDJSON, one on each line (content type
    application/x-ndjson). NDJSON has no limit."""

    count: int


class IdsTooLarge(OverLimit, status=413, title="Ids too large"):
    """The predictions that wait under the array's ids have more than {limit} bytes; the first {count} have nearly all.
    Send fewer at once, or send them as NDJSON, one on each line (content type application/x-ndjson). NDJSON has no
    limit. Nothing of the array was learned."""

    count: int


class ReplyTooLarge(OverLimit, status=413, title="Reply too large"):
    """The reply would be larger than {limit} bytes (LOGSTEP_MAX_REPLIES_BYTES). Split it into several requests."""


class LineTooLong(OverLimit, status=413, title="Line too long"):
    """Line {line} is longer than {limit} bytes (LOGSTEP_MAX_LINE_BYTES)."""

    line: int


class UnsupportedMediaType(LogstepError, status=415, title="Unsupported media type"):
    """The content type {content_type!r} is not supported. Send application/json, application/x-ndjson, text/csv,
    application/vnd.apache.arrow.stream or application/vnd.apache.parquet (with curl: -H 'content-type:
    application/json')."""

    content_type: str


class UnsupportedEncoding(LogstepError, status=415, title="Unsupported encoding", headers=ENCODINGS):
    """The content encoding {encoding!r} is not supported. Compress the body with gzip or zstd, or send it uncompressed,
    without the header Content-Encoding."""

    encoding: str


class UnsupportedCharset(LogstepError, status=415, title="Unsupported charset"):
    """The charset {charset!r} is not supported. Send the body in UTF-8, with charset=utf-8 or no charset in
    Content-Type."""

    charset: str


# -- what the service cannot do at present


class CrossCheckBusy(LogstepError, status=429, title="Cross-check busy", headers=(("retry-after", "5"),)):
    """Another cross-check is running, and only one runs at a time. Try again when it is done."""


class CrossCheckFailed(Reasoned, status=500, title="Cross-check failed"):
    """The cross-check ended without a result: {reason}."""


class PredictionDamaged(OfId, status=500, title="Prediction damaged"):
    """{field}: the prediction stored under the id {id!r} is damaged on the disk and was not learned. Send the label
    with its x under another id. `logstep inspect` shows what else is damaged."""


class NotReady(LogstepError, status=503, title="Not ready", headers=SOON):
    """The service is {state}. Try again in a moment."""

    state: str


class NotSure(LogstepError, status=503, title="Not sure", headers=SOON):
    """The brokers of Kafka did not confirm the record. It is not known whether it is in the log. Send it again with the
    same id: it is then learned once."""


class RecordTooLarge(OverLimit, status=413, title="Record too large"):
    """The body is one record of the topic, and takes {size} bytes; the limit is {limit}. Send NDJSON
    (application/x-ndjson): its events are several records."""

    size: int


class Behind(LogstepError, status=503, title="Behind", headers=SOON):
    """This node has not yet applied {wanted}. Try again in a moment, or ask another node."""

    wanted: str


class TooManyConnections(OverLimit, status=503, title="Too many connections", headers=SOON + CLOSE):
    """There are {limit} connections with requests already, the most allowed (LOGSTEP_MAX_CONNECTIONS)."""


class TooManyBodies(OverLimit, status=503, title="Too many bodies", headers=SOON):
    """Bodies that arrive or wait fill the {limit} bytes allowed for all (LOGSTEP_MAX_BODIES_BYTES). Nothing of this
    request was learned."""


class TooManyFiles(OverLimit, status=503, title="Too many files", headers=SOON):
    """Parquet and Arrow files that arrive or are read fill the {limit} bytes allowed for all (LOGSTEP_MAX_FILES_BYTES).
    Nothing of this request was learned."""


class TooManyReplies(OverLimit, status=503, title="Too many replies", headers=SOON):
    """Replies that wait to be sent fill the {limit} bytes allowed for all (LOGSTEP_MAX_REPLIES_BYTES). Nothing of this
    request was learned."""


class TooMuchUntaken(OverLimit, status=503, title="Too much untaken", headers=SOON):
    """Clients have not yet read {limit} bytes of their replies, the most allowed for all (LOGSTEP_MAX_UNSENT_BYTES)."""


class QueueFull(OverLimit, status=503, title="Queue full", headers=SOON):
    """{waiting} events wait for the writer; the limit is {limit} (LOGSTEP_QUEUE_EVENTS). Nothing of this request was
    learned."""

    waiting: int


class TooManyViewers(OverLimit, status=503, title="Too many viewers", headers=(("retry-after", "5"),)):
    """There are {limit} live streams already, the most allowed (LOGSTEP_MAX_VIEWERS). Close one, or poll GET
    /models/{{model}}."""


class StorageFailed(Reasoned, status=503, title="Storage failed"):
    """Writing to the log failed ({reason}). The service learns nothing more and stops. When you start it again, it
    recovers every acknowledged event from the log."""


class StorageDamaged(StorageFailed, title="Storage damaged"):
    """A page of the log is damaged ({reason}). The service learns nothing more and stops. `logstep inspect` shows what
    is damaged."""


class DiskFull(LogstepError, status=507, title="Disk full"):
    """The disk is full. The event was not learned, or the prediction not stored. Predictions without an id still work.
    Learning works again when there is space."""


class NoRoomForFile(LogstepError, status=507, title="No room for file"):
    """The disk has no space for this Parquet or Arrow file, which waits there until it has been read. Nothing of it was
    learned. Send it in parts, or as an Arrow stream."""


class NoRoomForReply(LogstepError, status=507, title="No room for reply"):
    """The disk has no space for so long a reply, which is stored there until it is sent. Split it into several
    requests."""


def slugs() -> list[str]:
    """The slug of every error, each once."""
    kinds = [kind for kind in globals().values() if isinstance(kind, type) and issubclass(kind, LogstepError)]
    return sorted({kind.slug() for kind in kinds})
