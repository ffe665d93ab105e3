"""What watches the service: Prometheus' configuration, the alerts, the dashboard, held to what the service says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from effort import from_checks_on
from harness import Service, Start, Starter
from prometheus_client.parser import text_string_to_metric_families

from service import errors

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"
RULES = DOCKER / "alerts.yml"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
DASHBOARD: dict[str, Any] = json.loads((DOCKER / "grafana/logstep.json").read_text())
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"] if "alert" in rule
]
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def dashboard_queries() -> Iterator[str]:
    """Every query of the dashboard, its variables filled in as Grafana does."""
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    queries += [annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]]
    for query in queries:
        yield query.replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$model", ".*")


QUERIES = [*dashboard_queries(), *(alert["expr"] for alert in ALERTS)]


# -- the files


@needs_promtool
def test_promtool_finds_nothing_wrong_with_the_configuration_and_the_rules() -> None:
    promtool("check", "config", "--syntax-only", DOCKER / "prometheus.yml")  # the token's file is in the container
    promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)


def test_prometheus_sends_the_token_that_the_service_asks_for() -> None:
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    (job,) = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
    (secret,) = compose["services"]["prometheus"]["secrets"]
    assert job["authorization"] == {"credentials_file": f"/run/secrets/{secret}"}
    assert compose["secrets"][secret] == {"file": "./secrets/metrics-token"}  # from the environment it would not start


@from_checks_on
@needs_promtool
def test_the_alerts_are_there_when_they_should_be_and_only_then() -> None:
    promtool("test", "rules", ROOT / "tests/alerts.yml")


def test_each_alert_is_tried() -> None:
    tried = (ROOT / "tests/alerts.yml").read_text()
    for alert in ALERTS:
        assert re.search(rf"\b{alert['alert']}\b", tried), alert["alert"]


@needs_promtool
def test_each_query_of_the_dashboard_is_one(tmp_path: Path) -> None:
    rules = [{"record": f"query:{i}", "expr": query} for i, query in enumerate(dashboard_queries())]
    assert len(rules) > 30
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", "--lint=none", file)


def test_each_alert_says_what_is_wrong_and_the_readme_what_to_do() -> None:
    for alert in ALERTS:
        assert alert["annotations"].keys() == {"summary", "description"}, alert["alert"]
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert f"| `{alert['alert']}` |" in OPERATIONS, alert["alert"]


def test_the_panels_of_the_dashboard_are_told_apart_and_fit_beside_each_other() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24


def test_compose_mounts_what_is_there_and_starts_it_only_when_asked() -> None:
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    for name in ("prometheus", "grafana"):
        assert services[name]["profiles"] == ["monitoring"]
        for port in services[name]["ports"]:
            assert port.startswith("127.0.0.1:")
        mounted = [volume.split(":")[0] for volume in services[name]["volumes"]]
        for source in mounted:
            assert not source.startswith(".") or (DOCKER / source).is_file(), source
    config = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    (scrape,) = config["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": ["logstep:8000"]}]
    assert scrape["job_name"] == "logstep"
    assert "logstep" in services
    for file in ("datasource.yaml", "dashboards.yaml"):
        assert yaml.safe_load((DOCKER / "grafana" / file).read_text())["apiVersion"] == 1


# -- held to the service


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, set[str]]]:
    """Each sample that a service has after a little of everything, with its labels."""
    starter = Starter(tmp_path_factory.mktemp("monitored"))
    service = starter()
    service.model().learn([{"x": {"a": 1}, "y": 1}] * 3)
    service.model().predict({"x": {"a": 1}, "id": "waits"})
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(service.http.get("/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    yield found
    starter.close()


@pytest.mark.parametrize("query", QUERIES)
def test_what_a_query_asks_for_is_there(samples: dict[str, set[str]], query: str) -> None:
    asked = set(re.findall(r"\b(?:logstep|process)_[a-z_]+\b", query))
    assert asked or "up{" in query
    assert asked <= samples.keys() | {"logstep_certificate_end_timestamp_seconds"}  # only with https: test_hardening
    from_prometheus = {"instance", "job"}
    for name, selectors in re.findall(r"\b((?:logstep|process)_[a-z_]+)\{([^}]*)\}", query):
        assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selectors)) <= samples.get(name, set()) | from_prometheus


@pytest.mark.parametrize("query", QUERIES)
def test_a_reason_that_a_query_asks_for_is_one(query: str) -> None:
    for reasons in re.findall(r'reason(?:=~|!~|!=|=)"([^"]*)"', query):
        assert set(reasons.split("|")) <= set(errors.slugs())


def test_every_metric_of_the_service_is_in_the_dashboard(samples: dict[str, set[str]]) -> None:
    shown = " ".join(dashboard_queries())
    for name in samples:
        stem = re.sub(r"_(bucket|sum|count|total)$", "", name)
        if stem not in ("process_virtual_memory_bytes",):
            assert re.search(rf"\b{stem}(_bucket|_sum|_count|_total)?\b", shown), name


def test_the_scrape_asks_where_the_service_answers(start: Start) -> None:
    """By default Prometheus asks for /metrics, and takes what says that it is the text format."""
    service: Service = start()
    response = service.http.get("/metrics", headers={"accept": "application/openmetrics-text;version=1.0.0,*/*;q=0.1"})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
