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
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service import errors
from service.learning.memory import memory_limit
from service.learning.model import Model
from service.learning.state import EngineState
from service.storage.folder import backed_up_at

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REMEMBERED_COMMITS = 8_192
"""Commits whose durations are remembered one by one: a few seconds of the fastest writer."""
SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the duration histograms. A synced commit takes 0.2 ms on a good disk, seconds on a bad one."""
UNKNOWN = "Predictions whose features the model did not know at all."
_GUESSING = "Log loss of guessing (always predicting the share of label 1) over"
ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True, slots=True)
class Facts:
    """The engine's state at one moment."""

    state: EngineState
    folder: Path
    queued: int
    """Events and predictions that wait for the writer."""
    models: Sequence[Model]
    recovery_seconds: float | None


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts since the start, over all models, deleted ones included."""

    learned: int
    predicted: int
    predicted_unknown: int
    duplicates: int
    not_kept: int
    refused: int


NOTHING = Totals(0, 0, 0, 0, 0, 0)


class Telemetry(Collector):
    """The metrics of one service. `look` asks the engine for the facts; at most `most_models` models have series."""

    def __init__(self, look: Callable[[], Facts], most_models: int = 1_000) -> None:
        self._look = look
        self._most_models = most_models
        self._refused: Counter[str] = Counter()
        self._deleted = NOTHING
        self._commits: deque[tuple[float, float]] = deque(maxlen=REMEMBERED_COMMITS)
        self.snapshot_at = time.monotonic()
        """When the newest snapshot was written, or the service was started."""
        self.certificate_ends: float | None = None
        """When the certificate of https ends, in seconds since 1970. None without https."""
        # Else each counter gets a second metric with its creation time; process_start_time_seconds is enough.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry(auto_describe=False)
        self._commit_seconds = Histogram(
            "logstep_commit_seconds",
            "Seconds per commit: handing over, writing and syncing.",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._sync_seconds = Histogram(
            "logstep_sync_seconds",
            "Seconds per commit spent writing, syncing and checkpointing the write-ahead log.",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._commit_events = Histogram(
            "logstep_commit_events",
            "Events and kept predictions per commit.",
            buckets=ITEMS,
            registry=self._registry,
        )
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
        self._deleted = self._with(self._deleted, [model])

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

    def totals(self) -> Totals:
        """Counts since the start."""
        return self._with(self._deleted, self._look().models)

    def _with(self, before: Totals, models: Sequence[Model]) -> Totals:
        return Totals(
            before.learned + sum(model.learned for model in models),
            before.predicted + sum(model.predicted for model in models),
            before.predicted_unknown + sum(model.predicted_unknown for model in models),
            before.duplicates + sum(model.duplicates for model in models),
            before.not_kept + sum(model.not_kept for model in models),
            self._refused.total(),
        )

    def exposition(self, reach: Container[str] | None = None) -> bytes:
        """The metrics in Prometheus' format: all, or with `reach` only those of its models."""
        return generate_latest(self._registry if reach is None else self._part(reach))

    def _part(self, reach: Container[str]) -> CollectorRegistry:
        """The metrics of some models. Sizes, durations and refusals are left out: they reveal other models' traffic."""
        facts = self._look()
        models = [model for model in facts.models if model.name in reach]
        families = [
            *_totals(self._with(NOTHING, models)),
            _ready(facts),
            _build(),
            *_of_models(models, self._most_models),
        ]
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Families(families))
        return registry

    def families(self) -> list[Metric]:
        """Every metric with its type, help text and samples."""
        return list(self._registry.collect())

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics that are not histograms; prometheus_client calls this for each exposition."""
        facts = self._look()
        yield from self._of_service(facts)
        ends = "When the certificate of https ends, in seconds since 1970."
        yield _gauge("logstep_certificate_end_timestamp_seconds", ends, self.certificate_ends)
        limit = "Memory that the process may use: the limit of its control group, else the machine's."
        yield _gauge("logstep_memory_limit_bytes", limit, memory_limit())
        yield from _of_storage(facts, time.monotonic() - self.snapshot_at)
        yield from _of_models(facts.models, self._most_models)

    def _of_service(self, facts: Facts) -> Iterator[Metric]:
        yield from _totals(self._with(self._deleted, facts.models))
        refused = CounterMetricFamily("logstep_refused", "Requests answered with an error.", labels=["reason"])
        for reason in errors.slugs():
            refused.add_metric([reason], self._refused[reason])
        yield refused
        yield _ready(facts)
        yield _gauge("logstep_queue_events", "Events and predictions that wait for the writer.", facts.queued)
        yield _gauge("logstep_recovery_seconds", "Seconds that recovery took at the start.", facts.recovery_seconds)
        yield _build()


class _Families(Collector):
    """Collects metrics that are given."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _totals(totals: Totals) -> Iterator[Metric]:
    yield _counter("logstep_learned", "Events learned since the start.", totals.learned)
    yield _counter("logstep_predicted", "Predictions made since the start.", totals.predicted)
    yield _counter("logstep_predicted_unknown", UNKNOWN, totals.predicted_unknown)
    yield _counter("logstep_duplicates", "Items that were learned or kept before.", totals.duplicates)
    yield _counter("logstep_not_kept", "Predictions served but not kept: too many waited.", totals.not_kept)


def _ready(facts: Facts) -> Metric:
    told = "1 while the service takes requests, 0 while it recovers or stops."
    return _gauge("logstep_ready", told, facts.state.ready)


def _build() -> Metric:
    build = GaugeMetricFamily(
        "logstep_build_info", "Always 1; the labels are the running versions.", labels=["version", "python", "sqlite"]
    )
    build.add_metric([version("logstep"), platform.python_version(), sqlite3.sqlite_version], 1)
    return build


def _of_storage(facts: Facts, snapshot_age: float) -> Iterator[Metric]:
    log = facts.folder / "log.db"
    yield _gauge("logstep_log_bytes", "Size of the log in bytes.", _size(log))
    yield _gauge("logstep_wal_bytes", "Size of the write-ahead log in bytes.", _size(log.with_name("log.db-wal")))
    free: float | None = None
    with contextlib.suppress(OSError):  # no value if the folder cannot be read
        disk = os.statvfs(facts.folder)
        free = disk.f_bavail * disk.f_frsize
    yield _gauge("logstep_disk_free_bytes", "Free bytes on the data folder's disk.", free)
    age = "Seconds since the newest snapshot that this process wrote, or since its start."
    yield _gauge("logstep_snapshot_age_seconds", age, snapshot_age)
    backed_up = "When `logstep backup` last copied the data folder, in seconds since 1970; 0 if it never did."
    yield _gauge("logstep_backup_timestamp_seconds", backed_up, backed_up_at(facts.folder))
    replay = sum(model.replay_seconds for model in facts.models)
    yield _gauge("logstep_replay_seconds", "Estimated seconds to replay the log after the snapshots.", replay)


def _of_models(models: Sequence[Model], most: int) -> Iterator[Metric]:
    """Series per model, for the first `most` models: each one costs the service, and Prometheus more."""
    shown = models[:most]
    yield _gauge("logstep_models", "Models.", len(models))
    yield _gauge(
        "logstep_models_without_series", "Models without series of their own (--metrics-models).", len(models[most:])
    )
    scores = [model.scores.brief() for model in shown]
    values: list[tuple[type[CounterMetricFamily | GaugeMetricFamily], str, str, list[float | None]]] = [
        (GaugeMetricFamily, "seq", "Events in the model's history.", [m.learner.seq for m in shown]),
        (CounterMetricFamily, "predicted", "Predictions made since the start.", [m.predicted for m in shown]),
        (
            CounterMetricFamily,
            "predicted_unknown",
            UNKNOWN,
            [m.predicted_unknown for m in shown],
        ),
        (GaugeMetricFamily, "features", "Features the model knows.", [m.learner.n_features for m in shown]),
        (GaugeMetricFamily, "log_loss", "Progressive log loss over all events.", [s.log_loss for s in scores]),
        (GaugeMetricFamily, "base_rate_log_loss", f"{_GUESSING} all events.", [s.base_rate_loss for s in scores]),
        (
            GaugeMetricFamily,
            "window_log_loss",
            "Progressive log loss over the last --window events.",
            [s.loss_window for s in scores],
        ),
        (
            GaugeMetricFamily,
            "window_base_rate_log_loss",
            f"{_GUESSING} the last --window events.",
            [s.base_rate_loss_window for s in scores],
        ),
        (
            GaugeMetricFamily,
            "stopped",
            "1 while the breaker keeps the model from learning.",
            [m.stopped for m in shown],
        ),
        (
            GaugeMetricFamily,
            "not_taken",
            "Events whose step was not taken: it would not be finite.",
            [m.learner.not_taken for m in shown],
        ),
        (
            GaugeMetricFamily,
            "left_out",
            "Features left out of events: the model is full.",
            [m.learner.left_out for m in shown],
        ),
        (GaugeMetricFamily, "waiting", "Predictions that wait for their labels.", [m.waiting for m in shown]),
        (GaugeMetricFamily, "snapshot_seq", "The seq of the newest snapshot.", [m.snapshot_seq for m in shown]),
    ]
    for kind, name, told, numbers in values:
        family = kind(f"logstep_model_{name}", told, labels=["model"])
        for model, number in zip(shown, numbers, strict=True):
            if number is not None:
                family.add_metric([model.name], number)
        yield family


def _counter(name: str, told: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, told, value=value)


def _gauge(name: str, told: str, value: float | None) -> GaugeMetricFamily:
    """A gauge; without a sample if `value` is None."""
    return GaugeMetricFamily(name, told, value=value)


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):  # not there yet
        return path.stat().st_size
    return 0
