"""Every setting. `logstep serve --queue-events 1000` and `LOGSTEP_QUEUE_EVENTS=1000` are the same; the flag wins."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


def _checked(keep: str) -> str:
    if not re.fullmatch(r"all|[0-9]{1,12}|[0-9]{1,12}(\.[0-9]{1,6})?[smhd]", keep):
        raise ValueError("must be all, a number of events like 1000000, or a time like 30d or 12h (units s, m, h, d)")
    return keep


def _without_brackets(host: str) -> str:
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


Host = Annotated[str, AfterValidator(_without_brackets)]
"""An address or a name; an address of IPv6 may be written as in a URL, [::1]."""
Keep = Annotated[str, AfterValidator(_checked)]
"""What is kept: all, so many of the last events of each model, or what was written in so much time."""


class Settings(BaseSettings):
    """The service's settings: each with its unit, default and reason."""

    model_config = SettingsConfigDict(env_prefix="LOGSTEP_", extra="forbid", frozen=True)

    data: Path = Field(Path("data"), description="Folder of the log and the snapshots; made if it is not there.")
    host: Host = Field("127.0.0.1", description="Address to listen on; :: is every address, those of IPv4 too.")
    insecure: bool = Field(
        False, description="Serve others than this machine without asking for a token: whoever reaches it may do all."
    )
    token_file: Path | None = Field(
        None, description="File with a token that may do everything, of 32 characters or more; or LOGSTEP_TOKEN has it."
    )
    allowed_hosts: str = Field(
        "",
        description="Names that requests may call the service by, with commas between, or *: by default localhost "
        "where only this machine reaches it, else any.",
    )
    cors_origins: str = Field(
        "", description="Origins whose pages may use the service, with commas between, like https://example.com."
    )
    tls_cert: Path | None = Field(
        None, description="Certificate in PEM, with those that lead to its root: serve https."
    )
    tls_key: Path | None = Field(None, description="The certificate's key in PEM, without a passphrase.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    max_body_bytes: int = Field(
        16 * 2**20, ge=1024, description="Largest JSON body, in bytes; past it 413. NDJSON is not limited by it."
    )
    max_bodies_bytes: int = Field(
        256 * 2**20,
        ge=2**20,
        description="JSON bodies that are being received, and large ones that wait, in bytes all together; past it "
        "503.",
    )
    max_replies_bytes: int = Field(
        2**30,
        ge=2**20,
        description="Replies to streams and large arrays that wait to be sent, in memory and on the disk, in bytes all "
        "together; past it 503, and 413 for one that is larger.",
    )
    max_line_bytes: int = Field(2**20, ge=1024, description="Longest line of NDJSON, in bytes; past it 413.")
    max_batch_bytes: int = Field(
        64 * 2**20,
        ge=65_536,
        description="Largest record batch of an Arrow stream, in bytes, as it is and decompressed; past it 413.",
    )
    max_unsent_bytes: int = Field(
        256 * 2**20,
        ge=2**20,
        description="What is written to clients and not taken by them, in bytes all together; past it those are cut "
        "that have taken nothing for the longest, and large replies get 503 where all take some.",
    )
    max_connections: int = Field(
        4_096,
        ge=1,
        description="Connections that are served at once; past it the one is closed on which nothing was asked for the "
        "longest, and where all are at work, the new one gets 503 and is closed.",
    )
    keep_alive_seconds: float = Field(
        75.0,
        gt=0,
        description="How long a connection is kept on which nothing is asked. A proxy in front must close its own "
        "sooner: what it sends on one that is being closed here is lost.",
    )
    request_seconds: float = Field(
        30.0,
        gt=0,
        description="How long a request may take to arrive, or the next bytes of a stream, past it 408; and how long a "
        "client may take nothing of its reply. Then the connection is closed.",
    )
    max_header_bytes: int = Field(
        32_768, ge=1_024, description="Request line and headers of a request, in bytes; past it 431."
    )
    max_event_features: int = Field(
        100_000,
        ge=1,
        le=1_000_000,
        description="Features that one event may have; past it 422. At most 20,000 of auto, and 40,000 of "
        "other models but plain SGD, whose steps take longer.",
    )
    max_name_characters: int = Field(
        256,
        ge=1,
        le=256,
        description="Characters of a feature's name that is new to a model, twice as many with its text; past it 422.",
    )
    max_models: int = Field(10_000, ge=1, description="How many models there may be; past it 409.")
    queue_events: int = Field(
        65_536,
        ge=1,
        description="Events that may wait for the writer; past it 503, while streams are read more slowly.",
    )
    commit_events: int = Field(
        8_192,
        ge=1,
        description="Events in one commit, about: more share the price of a sync, fewer are sooner learned.",
    )
    stream_events: int = Field(
        1_000, ge=1, description="Events of an NDJSON or Arrow body that are learned in one piece, at most."
    )
    window: int = Field(1_000, ge=1, description="Last events that the windowed scores cover.")
    snapshot_seconds: float = Field(
        1.0, gt=0, description="A snapshot is due when replaying the log after the last one would take this long."
    )
    metrics_models: int = Field(
        1_000, ge=0, description="Models that have series of their own in /metrics; those after them are counted."
    )
    keep_events: Keep = Field(
        "all",
        description="Events that stay in the log: all, at least so many of each model (1000000), or those of the last "
        "so much time (30d, 12h).",
    )
    keep_min: int = Field(
        1_000,
        ge=1,
        description="Events of each model, and their ids, that stay whatever the clock says; as many as the windowed "
        "scores cover, for whoever looks why a model went wrong.",
    )
    keep_ids: Keep = Field(
        "all",
        description="Ids that stay, so that what was learned under them is not learned twice: all, or those of events "
        "as in --keep-events.",
    )
    max_viewers: int = Field(
        250, ge=0, description="Streams of server-sent events that are open at a time; past it 503."
    )
    drain_seconds: float = Field(
        1.0, ge=0, le=5, description="After SIGTERM: how long requests are still taken while /readyz says 503."
    )
    shutdown_seconds: float = Field(
        5.0, gt=0, le=8, description="Then: how long requests in flight may take, and after them the last snapshots."
    )
    log_level: str = Field(
        "info",
        pattern="^(debug|info|warning|error)$",
        description="What is logged: debug (each request and commit too), info, warning or error.",
    )
    log_format: str = Field(
        "auto",
        pattern="^(auto|json|console)$",
        description="How it is logged: json, console (for a person), or auto: console where standard error is a "
        "terminal.",
    )
