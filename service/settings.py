"""Every setting. `logstep serve --queue-events 1000` and `LOGSTEP_QUEUE_EVENTS=1000` mean the same. If both are given,
the flag wins."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


def _checked(keep: str) -> str:
    if not re.fullmatch(r"all|[0-9]{1,12}|[0-9]{1,12}(\.[0-9]{1,6})?[smhd]", keep):
        raise ValueError("must be all, a number of events like 1000000, or a time like 30d or 12h (units s, m, h, d)")
    return keep


def _without_brackets(host: str) -> str:
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


Host = Annotated[str, AfterValidator(_without_brackets)]
"""An address or a name. An IPv6 address may have brackets, as in a URL: [::1]."""
Keep = Annotated[str, AfterValidator(_checked)]
"""all, a number of events (the last ones of each model), or a time (what was written in the last so much time)."""


NODE_STREAM_EVENTS = 8_000
"""Brokers take nearly the same time for a record of any size: with pieces of 1,000 events, they and the node that wrote
them took more than twice the processor time an event."""
DECIDING = ("max_event_features", "max_name_characters", "keep_events", "keep_min", "keep_ids")
"""Settings that decide what is learned, so every node of a topic has the same."""


class Settings(BaseSettings):
    """The settings of the service. Each has its unit, its default and its reason."""

    model_config = SettingsConfigDict(env_prefix="LOGSTEP_", extra="forbid", frozen=True, use_attribute_docstrings=True)

    data: Path = Path("data")
    """Folder of the log and the snapshots. The service creates it if it does not exist."""
    host: Host = "127.0.0.1"
    """Address to listen on. :: is every address, IPv4 too."""
    insecure: bool = False
    """Serve other machines without a token: anyone who reaches the service may do everything."""
    token_file: Path | None = None
    """File with a token that may do everything, 32 characters or longer. LOGSTEP_TOKEN may hold it instead."""
    allowed_hosts: str = ""
    """Host names that requests may use, separated by commas, or *. If empty: localhost if only this machine reaches the
    service, else any."""
    cors_origins: str = ""
    """Origins whose pages may use the service, separated by commas, like https://example.com."""
    tls_cert: Path | None = None
    """Certificate in PEM, with the intermediate ones. Turns on https."""
    tls_key: Path | None = None
    """Key of the certificate in PEM, without a passphrase."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on. 0 picks a free one."""
    max_body_bytes: int = Field(16 * 2**20, ge=1024)
    """Largest JSON body, in bytes. A larger one gets 413. NDJSON has no limit."""
    max_bodies_bytes: int = Field(256 * 2**20, ge=2**20)
    """All JSON bodies being received and large ones that wait, in bytes. More get 503."""
    max_replies_bytes: int = Field(2**30, ge=2**20)
    """All replies to streams and large arrays that wait to be sent, in memory and on the disk, in bytes. More get 503.
    A single larger one gets 413."""
    max_line_bytes: int = Field(2**20, ge=1024)
    """Longest NDJSON line, in bytes. A longer one gets 413."""
    max_batch_bytes: int = Field(64 * 2**20, ge=65_536)
    """Largest record batch of an Arrow stream, in bytes. A larger one gets 413."""
    max_files_bytes: int = Field(2**30, ge=2**20)
    """All Parquet and Arrow files being received or read, on the disk, in bytes. More get 503. A single larger one gets
    413."""
    max_unsent_bytes: int = Field(256 * 2**20, ge=2**20)
    """Bytes of replies that clients have not yet read, all together. Past it, the service cuts the connections that
    have read nothing for longest. If all are reading, large replies get 503."""
    max_connections: int = Field(4_096, ge=1)
    """Connections at once. Past it, the service closes the one that has been idle for longest. If none is idle, the new
    one gets 503 and is closed."""
    keep_alive_seconds: float = Field(75.0, gt=0)
    """The service closes a connection that is idle for so long. A proxy in front must close its connections sooner, or
    it may send a request on one that is closing, and lose it."""
    request_seconds: float = Field(30.0, gt=0)
    """Time for a request, or the next bytes of a stream, to arrive (else 408), and for a client to read some of its
    reply. Then the service closes the connection."""
    max_header_bytes: int = Field(32_768, ge=1_024)
    """Request line and headers of a request, in bytes. More get 431."""
    max_event_features: int = Field(100_000, ge=1, le=1_000_000)
    """Features of one event. More get 422. For auto the limit is at most 8,000, for other models but plain SGD 40,000,
    because their steps take longer."""
    max_name_characters: int = Field(256, ge=1, le=256)
    """Characters of the name of a new feature. Twice as many with its text. More get 422."""
    max_models: int = Field(10_000, ge=1)
    """Number of models. More get 409."""
    queue_events: int = Field(65_536, ge=1)
    """Events that may wait for the writer. More get 503, but streams are read more slowly instead."""
    commit_events: int = Field(8_192, ge=1)
    """Events in one commit, about. More events share the cost of a sync; fewer are learned sooner."""
    stream_events: int = Field(4_000, ge=1)
    """Events of an NDJSON or Arrow body that are learned in one piece, at most. With --kafka a piece is a record, and
    the default is 8000."""
    window: int = Field(1_000, ge=1)
    """Number of last events that the windowed scores cover."""
    snapshot_seconds: float = Field(1.0, gt=0)
    """The service writes a snapshot once replaying the events after the last one would take this long."""
    metrics_models: int = Field(1_000, ge=0)
    """Models with their own series in /metrics. Further models are only counted."""
    keep_events: Keep = "all"
    """Events that stay in the log: all, at least the last so many of each model (1000000), or those of the last so much
    time (30d, 12h)."""
    keep_min: int = Field(1_000, ge=1)
    """Events of each model that stay, with their ids, however old they are. The windowed scores cover as many by
    default, so you can see why a model went wrong."""
    keep_ids: Keep = "all"
    """Ids that stay, so that no event is learned twice: all, or those of events as in --keep-events."""
    max_viewers: int = Field(250, ge=0)
    """Open streams of server-sent events at once. More get 503."""
    drain_seconds: float = Field(1.0, ge=0, le=5)
    """After SIGTERM: how long the service still accepts requests while /readyz says 503."""
    shutdown_seconds: float = Field(5.0, gt=0, le=8)
    """After that: how long requests in progress may take, and then the last snapshots."""
    kafka: str = ""
    """Brokers of Kafka, HOST:PORT with commas between. The service is then one of several nodes: the log is a topic."""
    topic: str = "logstep"
    """The topic that is the log of all nodes. `logstep kafka create-topic` makes it."""
    kafka_config: Path | None = None
    """File of librdkafka's properties, a line NAME=VALUE each: SASL, TLS and others."""
    max_lag: float = Field(10.0, gt=0)
    """Seconds that a request waits for what it must have seen (min_seq, X-Logstep-Offset). With --kafka: so long behind
    the topic, or without an answer of the brokers, /readyz says 503."""
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$")
    """What is logged: debug (each request and commit too), info, warning or error."""
    log_format: str = Field("auto", pattern="^(auto|json|console)$")
    """Format of the log lines: json, console (for people), or auto: console if standard error is a terminal, else
    json."""

    @model_validator(mode="before")
    @classmethod
    def _of_a_node(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {"stream_events": NODE_STREAM_EVENTS, **given} if given.get("kafka") else given
