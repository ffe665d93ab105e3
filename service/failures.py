"""Why a service or a command does not start. The docstring of a class is its message, as in errors.py."""

from __future__ import annotations

from service.problem import LogstepError, Reasoned


class OfFolder(LogstepError):
    folder: str


class TokenNeeded(LogstepError):
    """Other machines can reach {host}, but {path} has no token to tell who may do what. Make one with `logstep token
    create {folder}`, or name one in LOGSTEP_TOKEN or LOGSTEP_TOKEN_FILE. With --insecure, anyone who reaches the
    address may do everything."""

    host: str
    path: str
    folder: str


class BadToken(Reasoned):
    """{source} {reason}."""

    source: str


class TokensUnreadable(LogstepError):
    """The tokens in {path} cannot be read: {reason}."""

    path: str
    reason: str | None


class UnknownToken(OfFolder):
    """There is no token {id!r} in {folder}. `logstep token list {folder}` shows all tokens."""

    id: str


class BadCertificate(LogstepError):
    """TLS fails with the certificate {certificate} and the key {key} (--tls-cert, --tls-key): {reason}."""

    certificate: object
    key: object
    reason: str | None


class CannotListen(LogstepError):
    """Cannot listen on {host} port {port}: {reason}. Name another with --host and --port."""

    host: str
    port: int
    reason: object


class WrongTopic(Reasoned):
    """This node cannot follow its topic: {reason}."""


class NodesDiffer(Reasoned):
    """This node differs from another: {reason}. It stops. If it differs again after a start, begin with a backup of
    another node (`logstep backup`)."""


class FolderInUse(OfFolder):
    """{folder} is in use by {holder}. Two services on one folder would damage it. Stop that one, or name another folder
    with --data."""

    holder: str


class NotADataFolder(Reasoned):
    """{path} is not a data folder of logstep: {reason}."""

    path: str


class UnreleasedFormat(LogstepError):
    """{path} was written before the first release of logstep, in a format that no version reads. Nothing was changed.
    Start with an empty folder, and send your events again (`logstep replay FILE`)."""

    path: str


class NewerFormat(UnreleasedFormat):
    """{path} was written by a newer logstep (format {found}; this one reads {known}). Use that version."""

    found: int
    known: int


class LogDamaged(OfFolder):
    """The log in {folder} is damaged: {reason}. Nothing was changed. `logstep inspect {folder}` shows more. Restore a
    backup."""

    reason: str


class EventsGone(LogDamaged):
    """In {folder} {reason}."""


class CopyFailed(Reasoned):
    """Writing the copy {path} failed ({reason}). No copy was made, and the original is unchanged."""

    path: str


class LogEndsEarly(OfFolder):
    """The log in {folder} is shorter than it was: it ends at commit {log}, but commit {mark} was acknowledged.
    Nothing was changed. Restore a backup, or accept the loss with `logstep repair {folder}`."""

    log: int
    mark: int


class LogHasAHole(OfFolder):
    """The log in {folder} is damaged: its write-ahead log is readable up to commit {log}, but {lost} synced commit(s)
    follow. Nothing was changed. Restore a backup, or accept the loss with `logstep repair {folder}`."""

    log: int
    lost: int


# -- Kafka


class KafkaMissing(LogstepError):
    """Kafka needs confluent-kafka, which is not installed beside logstep. Install the extra: pip install
    'logstep[kafka]'."""


class WrongProperties(Reasoned):
    """--kafka-config: {reason}."""


class OfBrokers(Reasoned):
    brokers: str


class NoBroker(OfBrokers):
    """No Kafka broker answers at {brokers} ({reason})."""


class BrokersRefuse(OfBrokers):
    """Kafka at {brokers} refuses: {reason}."""


class NoTopic(OfBrokers):
    """There is no topic {topic!r} at {brokers}: {reason}."""

    topic: str


class TopicExists(LogstepError):
    """There is a topic {topic!r} at {brokers} already, and nothing was changed. `logstep kafka check` says whether a
    log may be in it."""

    topic: str
    brokers: str
