"""The metrics: what is counted agrees with what was answered, and what is measured with what was done."""

from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path
from typing import Any

import pytest
from harness import Service, Start
from patience import eventually
from processes import new_engine, running_engine
from prometheus_client.parser import text_string_to_metric_families

from core import Spec
from service import errors
from service.events import Event
from service.learning import telemetry
from service.learning.telemetry import Facts, OfTopic, Telemetry

Samples = dict[str, float]


def scraped(service: Service) -> Samples:
    """Every sample, by its name and labels as they stand in the text."""
    response = service.http.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"] == telemetry.CONTENT_TYPE
    return samples_of(response.text)


def samples_of(text: str) -> Samples:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
            found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


def test_it_counts_what_was_answered(start: Start) -> None:
    service = start()
    clicks = service.model("clicks")
    clicks.create({})
    clicks.learn([{"x": {"a": 1}, "y": 1, "id": "one"}, {"x": {"a": 2}, "y": 0, "id": "two"}])
    clicks.learn({"x": {"a": 1}, "y": 1, "id": "one"})
    service.model().learn_lines(b'{"x": {"b": 1, "c": 2}, "y": 1}\n' * 50)
    service.model().predict([{"x": {"b": 1}}] * 3)
    clicks.predict({"x": {"a": 1}, "id": "kept"})
    clicks.predict({"x": {"a": 1}, "id": "kept"})
    for _ in range(2):
        clicks.learn({"x": {"a": 1}, "y": 7})
    service.http.get("/nothing/here")
    assert service.http.get("/models/nobody").status_code == 404

    said = scraped(service)
    assert said["logstep_learned_total"] == 52
    assert said["logstep_predicted_total"] == 5
    assert said["logstep_duplicates_total"] == 2
    assert said['logstep_refused_total{reason="invalid-event"}'] == 2
    assert said['logstep_refused_total{reason="not-found"}'] == 1
    assert said['logstep_refused_total{reason="unknown-model"}'] == 1
    assert sum(value for name, value in said.items() if name.startswith("logstep_refused_total")) == 4
    assert said['logstep_model_seq{model="default"}'] == 50
    assert said['logstep_model_seq{model="clicks"}'] == 2
    assert said['logstep_model_predicted_total{model="default"}'] == 3
    assert said['logstep_model_features{model="default"}'] == 2
    assert said['logstep_model_waiting{model="clicks"}'] == 1
    scores = service.model().state()["progressive"]
    assert said['logstep_model_log_loss{model="default"}'] == pytest.approx(scores["total"]["log_loss"], rel=1e-15)
    assert said['logstep_model_window_log_loss{model="default"}'] == pytest.approx(scores["window"]["log_loss"])
    for part, name in (("total", "base_rate_log_loss"), ("window", "window_base_rate_log_loss")):
        assert said[f'logstep_model_{name}{{model="default"}}'] == scores[part]["base_rate_log_loss"]
    assert said["logstep_models"] == 2
    assert said["logstep_ready"] == 1
    assert said["logstep_queue_events"] == 0


def test_it_measures_each_commit_once(start: Start) -> None:
    service = start()
    for i in range(20):
        service.model().learn({"x": {"a": i}, "y": i % 2})
    service.model().learn([{"x": {}, "y": 1}] * 100)
    said = scraped(service)
    if said["logstep_commit_seconds_count"] < 21:  # the last one is counted when who waited for it was answered
        said = scraped(service)
    for name in ("commit_seconds", "sync_seconds", "commit_events"):
        assert said[f"logstep_{name}_count"] == 21
    assert said["logstep_commit_events_sum"] == 120
    assert said['logstep_commit_events_bucket{le="1.0"}'] == 20
    assert 0 < said["logstep_sync_seconds_sum"] < said["logstep_commit_seconds_sum"]
    assert said["logstep_replay_seconds"] > 0


def test_it_measures_the_files(start: Start) -> None:
    service = start()
    service.model().learn([{"x": {}, "y": 1}] * 100)
    log = service.folder / "log.db"

    def same() -> bool:  # chores may write between the two looks
        said = scraped(service)
        sizes = log.stat().st_size, log.with_name("log.db-wal").stat().st_size
        return (said["logstep_log_bytes"], said["logstep_wal_bytes"]) == sizes

    eventually(same, "the sizes of the files")


def test_counts_of_a_deleted_model_stay(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path / "data") as engine:
            await engine.create("short-lived", Spec())
            await engine.learn("short-lived", [Event({"a": 1.0}, 1)] * 3)
            engine.model("short-lived").predict({"a": 1.0})
            await engine.delete("short-lived")
            told = engine.telemetry.exposition().decode()
            said = samples_of(told)
            assert (said["logstep_learned_total"], said["logstep_predicted_total"]) == (3, 1)
            assert 'model="short-lived"' not in told

    asyncio.run(story())


def test_what_was_recovered_does_not_count_as_learned(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path / "data") as engine:
            await engine.learn("default", [Event({"a": 1.0}, 1)] * 3)
        async with running_engine(tmp_path / "data") as engine:
            said = samples_of(engine.telemetry.exposition().decode())
            assert said["logstep_learned_total"] == 0
            assert said['logstep_model_seq{model="default"}'] == 3
            assert said["logstep_recovery_seconds"] > 0

    asyncio.run(story())


def test_of_many_models_the_first_have_series_and_the_rest_are_counted(tmp_path: Path) -> None:
    async def story() -> None:
        async with running_engine(tmp_path / "data", metrics_models=3) as engine:
            for i in range(9):
                await engine.create(f"model-{i}", Spec())
            said = samples_of(engine.telemetry.exposition().decode())
            assert [name for name in said if name.startswith("logstep_model_seq")] == [
                f'logstep_model_seq{{model="{name}"}}' for name in ("default", "model-0", "model-1")
            ]
            assert (said["logstep_models"], said["logstep_models_without_series"]) == (10, 7)

    asyncio.run(story())


def test_an_engine_that_has_not_started_has_metrics_too(tmp_path: Path) -> None:
    said = samples_of(new_engine(tmp_path / "data").telemetry.exposition().decode())
    assert said["logstep_ready"] == 0
    assert "logstep_recovery_seconds" not in said


@pytest.fixture
def alone(tmp_path: Path) -> Telemetry:
    """Telemetry without an engine."""
    return Telemetry(lambda: Facts(True, tmp_path, 0, [], None, OfTopic()))


def test_quantiles_are_of_the_commits_of_the_last_seconds(alone: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    assert alone.commit_ms(0.5, 0.99) == [None, None]
    now = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    alone.count_commit(1, 9.0, 9.0)
    now[0] += 60
    for milliseconds in range(1, 101):
        alone.count_commit(1, milliseconds / 1e3, 0.0)
    p50, p99 = alone.commit_ms(0.5, 0.99)
    assert p50 == pytest.approx(51)
    assert p99 == pytest.approx(100)
    assert alone.commit_ms(1.0, last_seconds=100) == [pytest.approx(9_000)]


def test_what_is_remembered_is_bounded(alone: Telemetry) -> None:
    alone.count_commit(1, 9.0, 9.0)
    for _ in range(telemetry.REMEMBERED_COMMITS):
        alone.count_commit(1, 0.001, 0.001)
    assert alone.commit_ms(1.0, last_seconds=math.inf) == [1.0]


def test_every_reason_has_a_series_from_the_start(alone: Telemetry) -> None:
    kinds: list[Any] = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    said = samples_of(alone.exposition().decode())
    for kind in kinds:
        if issubclass(kind, errors.LogstepError):
            assert said[f'logstep_refused_total{{reason="{kind.slug()}"}}'] == 0
