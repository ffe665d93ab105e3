"""The service's metrics: every name, once, and the reply of `GET /metrics`.

Events and predictions are counted in plain integers (`Model.learned`, `Model.predicted`, ...), since that costs
nanoseconds. They are read when somebody asks. Each commit is observed in histograms.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sqlite3
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from core.progressive import Brief
from service import errors
from service.learning.memory import memory_limit
from service.learning.model import Model
from service.storage.folder import backed_up_at

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REMEMBERED_COMMITS = 8_192
"""Commits whose durations are remembered one by one: a few seconds of the fastest writer."""
SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the duration histograms. A synced commit takes 0.2 ms on a good disk, seconds on a bad one."""
ITEMS = tuple(2.0**i for i in range(15))

_COUNTS = {
    "learned": "Events learned since the start.",
    "predicted": "Predictions made since the start.",
    "predicted_unknown": "Predictions whose features the model did not know at all.",
    "duplicates": "Items that were learned or kept before.",
    "not_kept": "Predictions served but not kept: too many waited.",
}
"""What each model counts, in a field of this name. The metrics are sums over all models, deleted ones included."""
_GUESSING = "Log loss of guessing (always predicting the share of label 1) over"
_Family = type[CounterMetricFamily | GaugeMetricFamily]
_OF_A_MODEL: Sequence[tuple[_Family, str, str, Callable[[Model, Brief], float | None]]] = (
    (GaugeMetricFamily, "seq", "Events in the model's history.", lambda m, _: m.learner.seq),
    (CounterMetricFamily, "predicted", _COUNTS["predicted"], lambda m, _: m.predicted),
    (CounterMetricFamily, "predicted_unknown", _COUNTS["predicted_unknown"], lambda m, _: m.predicted_unknown),
    (GaugeMetricFamily, "features", "Features the model knows.", lambda m, _: m.learner.n_features),
    (GaugeMetricFamily, "log_loss", "Progressive log loss over all events.", lambda _, s: s.log_loss),
    (GaugeMetricFamily, "base_rate_log_loss", f"{_GUESSING} all events.", lambda _, s: s.base_rate_loss),
    (
        GaugeMetricFamily,
        "window_log_loss",
        "Progressive log loss over the last --window events.",
        lambda _, s: s.loss_window,
    ),
    (
        GaugeMetricFamily,
        "window_base_rate_log_loss",
        f"{_GUESSING} the last --window events.",
        lambda _, s: s.base_rate_loss_window,
    ),
    (GaugeMetricFamily, "stopped", "1 while the breaker keeps the model from learning.", lambda m, _: m.stopped),
    (
        GaugeMetricFamily,
        "not_taken",
        "Events whose step was not taken: it would not be finite.",
        lambda m, _: m.learner.not_taken,
    ),
    (GaugeMetricFamily, "left_out", "Features left out of events: the model is full.", lambda m, _: m.learner.left_out),
    (GaugeMetricFamily, "waiting", "Predictions that wait for their labels.", lambda m, _: m.waiting),
    (GaugeMetricFamily, "snapshot_seq", "The seq of the newest snapshot.", lambda m, _: m.snapshot_seq),
)


@dataclass(frozen=True, slots=True)
class OfTopic:
    """How a node follows its topic; of a service without one, all is 0. lag: records not applied here. age: seconds
    since all was. applied: records since the start. refused: what was refused after it was in the log, by the error."""

    lag: int = 0
    age: float = 0.0
    applied: int = 0
    refused: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Facts:
    """The engine's state at one moment."""

    ready: bool
    folder: Path
    queued: int
    """Events and predictions that wait for the writer."""
    models: Sequence[Model]
    recovery_seconds: float | None
    topic: OfTopic = field(default_factory=OfTopic)


class Telemetry(Collector):
    """The metrics of one service. `look` asks the engine for the facts; at most `most_models` models have series."""

    def __init__(self, look: Callable[[], Facts], most_models: int = 1_000) -> None:
        self._look = look
        self._most_models = most_models
        self._refused: Counter[str] = Counter()
        self._deleted: Counter[str] = Counter()
        self._commits: deque[tuple[float, float]] = deque(maxlen=REMEMBERED_COMMITS)
        self.snapshot_at = time.monotonic()
        """When the newest snapshot was written, or the service was started."""
        self.certificate_ends: float | None = None
        """When the certificate of https ends, in seconds since 1970. None without https."""
        # Else each counter gets a second metric with its creation time; process_start_time_seconds is enough.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the package has no types here
        self._registry = CollectorRegistry(auto_describe=False)
        seconds = partial(Histogram, buckets=SECONDS, registry=self._registry)
        self._commit_seconds = seconds(
            "logstep_commit_seconds", "Seconds per commit: handing over, writing and syncing."
        )
        self._sync_seconds = seconds(
            "logstep_sync_seconds", "Seconds per commit spent writing, syncing and checkpointing the write-ahead log."
        )
        told = "Events and kept predictions per commit."
        self._commit_events = Histogram("logstep_commit_events", told, buckets=ITEMS, registry=self._registry)
        self.round_trip = seconds(
            "logstep_topic_round_trip_seconds", "With --kafka: seconds from writing a record to having applied it here."
        ).observe
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    # -- counting

    def count_refusal(self, error: errors.LogstepError) -> None:
        """Count a request that was answered with this error."""
        self._refused[error.slug()] += 1

    def count_commit(self, items: int, seconds: float, sync_seconds: float) -> None:
        """Count a commit of `items` events and predictions that is on disk."""
        self._commits.append((time.monotonic(), seconds))
        self._commit_seconds.observe(seconds)
        self._sync_seconds.observe(sync_seconds)
        self._commit_events.observe(items)

    def count_deleted(self, model: Model) -> None:
        """Keep the counts of a model that is being deleted."""
        self._deleted += _counts([model])

    # -- reading

    def commit_ms(self, *quantiles: float, last_seconds: float = 10.0) -> list[float | None]:
        """Quantiles (like 0.5 and 0.99) of commit durations in the last seconds, in ms; None if there was no commit."""
        since = time.monotonic() - last_seconds
        recent: list[float] = []
        for at, seconds in reversed(self._commits):
            if at < since:
                break
            recent.append(seconds)
        recent.sort()
        return [recent[min(int(q * len(recent)), len(recent) - 1)] * 1e3 if recent else None for q in quantiles]

    def exposition(self, reach: Container[str] | None = None) -> bytes:
        """The metrics in Prometheus' format: all, or with `reach` only those of its models.

        A part has no sizes, durations and refusals: they reveal other models' traffic.
        """
        if reach is None:
            return generate_latest(self._registry)
        facts = self._look()
        part = CollectorRegistry(auto_describe=False)
        models = [model for model in facts.models if model.name in reach]
        part.register(_Families(list(self._of_models(facts, models, Counter()))))
        return generate_latest(part)

    def families(self) -> list[Metric]:
        """Every metric with its type, help text and samples."""
        return list(self._registry.collect())

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics that are not histograms; prometheus_client calls this for each exposition."""
        facts = self._look()
        refused = CounterMetricFamily("logstep_refused", "Requests answered with an error.", labels=["reason"])
        for reason in errors.slugs():
            refused.add_metric([reason], self._refused[reason])
        yield refused
        yield _gauge("queue_events", "Events and predictions that wait for the writer.", facts.queued)
        yield _gauge("recovery_seconds", "Seconds that recovery took at the start.", facts.recovery_seconds)
        ends = "When the certificate of https ends, in seconds since 1970."
        yield _gauge("certificate_end_timestamp_seconds", ends, self.certificate_ends)
        limit = "Memory that the process may use: the limit of its control group, else the machine's."
        yield _gauge("memory_limit_bytes", limit, memory_limit())
        log = facts.folder / "log.db"
        yield _gauge("log_bytes", "Size of the log in bytes.", _size(log))
        yield _gauge("wal_bytes", "Size of the write-ahead log in bytes.", _size(log.with_name("log.db-wal")))
        free: float | None = None
        with contextlib.suppress(OSError):  # no value if the folder cannot be read
            disk = os.statvfs(facts.folder)
            free = disk.f_bavail * disk.f_frsize
        yield _gauge("disk_free_bytes", "Free bytes on the data folder's disk.", free)
        age = "Seconds since the newest snapshot that this process wrote, or since its start."
        yield _gauge("snapshot_age_seconds", age, time.monotonic() - self.snapshot_at)
        backed_up = "When `logstep backup` last copied the data folder, in seconds since 1970; 0 if it never did."
        yield _gauge("backup_timestamp_seconds", backed_up, backed_up_at(facts.folder))
        replay = sum(model.replay_seconds for model in facts.models)
        yield _gauge("replay_seconds", "Estimated seconds to replay the log after the snapshots.", replay)
        yield from _of_topic(facts.topic)
        yield from self._of_models(facts, facts.models, self._deleted)

    def _of_models(self, facts: Facts, models: Sequence[Model], deleted: Counter[str]) -> Iterator[Metric]:
        """Counts over models, and series of the first of them: each one costs the service, and Prometheus more."""
        counts = deleted + _counts(models)
        for name, told in _COUNTS.items():
            yield CounterMetricFamily(f"logstep_{name}", told, value=counts[name])
        yield _gauge("ready", "1 while the service takes requests, 0 while it recovers or stops.", facts.ready)
        build = "Always 1; the labels are the running versions."
        versions = GaugeMetricFamily("logstep_build_info", build, labels=["version", "python", "sqlite"])
        versions.add_metric([version("logstep"), platform.python_version(), sqlite3.sqlite_version], 1)
        yield versions
        yield _gauge("models", "Models.", len(models))
        shown, without = models[: self._most_models], len(models[self._most_models :])
        yield _gauge("models_without_series", "Models without series of their own (--metrics-models).", without)
        scores = [model.scores.brief() for model in shown]
        for kind, name, told, read in _OF_A_MODEL:
            family = kind(f"logstep_model_{name}", told, labels=["model"])
            for model, score in zip(shown, scores, strict=True):
                if (number := read(model, score)) is not None:
                    family.add_metric([model.name], number)
            yield family


def _of_topic(topic: OfTopic) -> Iterator[Metric]:
    told = "With --kafka: records of the topic that are not applied here."
    yield _gauge("topic_lag_records", told, topic.lag)
    told = "With --kafka: seconds since all that was in the topic was applied here. It grows while no broker answers."
    yield _gauge("topic_lag_seconds", told, topic.age)
    told = "With --kafka: records applied here since the start."
    yield CounterMetricFamily("logstep_topic_applied", told, value=topic.applied)
    told = "With --kafka: records refused after they were in the log; poison is no record of logstep."
    refused = CounterMetricFamily("logstep_topic_refused", told, labels=["reason"])
    for reason in sorted({"poison", *topic.refused}):
        refused.add_metric([reason], topic.refused[reason])
    yield refused


class _Families(Collector):
    """Collects metrics that are given."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _counts(models: Sequence[Model]) -> Counter[str]:
    return Counter({name: sum(getattr(model, name) for model in models) for name in _COUNTS})


def _gauge(name: str, told: str, value: float | None) -> GaugeMetricFamily:
    """A gauge; without a sample if `value` is None."""
    return GaugeMetricFamily(f"logstep_{name}", told, value=value)


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):  # not there yet
        return path.stat().st_size
    return 0
