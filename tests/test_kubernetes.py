"""docker/kubernetes.yaml: what it says is what Kubernetes takes, and what the service needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from effort import from_checks_on

from service.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docker/kubernetes.yaml").read_text()
DOCUMENTS: dict[str, dict[str, Any]] = {document["kind"]: document for document in yaml.safe_load_all(TEXT)}
POD = DOCUMENTS["StatefulSet"]["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]


@pytest.fixture(scope="module")
def schemas() -> Any:
    """Kubernetes' schemas; to import them takes five seconds, so only these tests do."""
    import kubernetes_validate

    return kubernetes_validate


@from_checks_on
@pytest.mark.parametrize("version", ["1.29", "1.31", "the latest"])
@pytest.mark.parametrize("kind", DOCUMENTS)
def test_it_fits_the_published_schema(schemas: Any, kind: str, version: str) -> None:
    version = schemas.latest_version() if version == "the latest" else version
    schemas.validate(DOCUMENTS[kind], version, strict=True)


@from_checks_on
def test_the_check_finds_what_does_not_fit(schemas: Any) -> None:
    wrong = {**DOCUMENTS["Service"], "spec": {**DOCUMENTS["Service"]["spec"], "prots": []}}
    with pytest.raises(schemas.ValidationError):
        schemas.validate(wrong, schemas.latest_version(), strict=True)


def test_there_is_all_of_it_in_one_namespace() -> None:
    assert DOCUMENTS.keys() == {"StatefulSet", "Service", "PodDisruptionBudget", "NetworkPolicy"}
    assert {document["metadata"]["namespace"] for document in DOCUMENTS.values()} == {"logstep"}


def test_everything_selects_the_pod() -> None:
    labels = POD["metadata"]["labels"]
    for selector in (
        DOCUMENTS["StatefulSet"]["spec"]["selector"]["matchLabels"],
        DOCUMENTS["Service"]["spec"]["selector"],
        DOCUMENTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        DOCUMENTS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    assert DOCUMENTS["StatefulSet"]["spec"]["serviceName"] == DOCUMENTS["Service"]["metadata"]["name"]


def test_there_is_one_writer_whose_volume_outlives_it() -> None:
    spec = DOCUMENTS["StatefulSet"]["spec"]
    assert spec["replicas"] == 1
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    (mount,) = CONTAINER["volumeMounts"]
    assert mount["name"] == claim["metadata"]["name"]
    assert f"LOGSTEP_DATA={mount['mountPath']}" in (ROOT / "docker/Dockerfile").read_text()
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}


def test_it_has_no_privileges_and_is_who_the_image_says() -> None:
    pod, container = POD["spec"]["securityContext"], CONTAINER["securityContext"]
    uid, gid = re.findall(r"^USER (\d+):(\d+)$", (ROOT / "docker/Dockerfile").read_text(), re.MULTILINE)[0]
    assert (pod["runAsUser"], pod["runAsGroup"], pod["fsGroup"]) == (int(uid), int(gid), int(gid))
    assert pod["runAsNonRoot"] is True
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["readOnlyRootFilesystem"] is True
    assert container["allowPrivilegeEscalation"] is False
    assert container["capabilities"] == {"drop": ["ALL"]}
    assert POD["spec"]["automountServiceAccountToken"] is False


def test_its_settings_are_settings_and_the_token_is_a_secret() -> None:
    assert POD["spec"]["enableServiceLinks"] is False  # its LOGSTEP_PORT=tcp://... would be taken for the setting
    names = {f"LOGSTEP_{name.upper()}" for name in Settings.model_fields}
    values = {}
    for variable in CONTAINER["env"]:
        if variable["name"] == "LOGSTEP_TOKEN":
            assert variable["valueFrom"]["secretKeyRef"].keys() == {"name", "key"}
        else:
            assert variable["name"] in names
            values[variable["name"].removeprefix("LOGSTEP_").lower()] = variable["value"]
    settings = Settings(**values)
    needed = settings.drain_seconds + settings.shutdown_seconds
    assert POD["spec"]["terminationGracePeriodSeconds"] > needed + 5


def test_the_probes_ask_what_each_is_for() -> None:
    paths = {name: CONTAINER[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    # A recovery takes its time: nobody may kill it for that. A drain too: /livez says 200 meanwhile.
    assert paths == {"startup": "/readyz", "liveness": "/livez", "readiness": "/readyz"}
    startup = CONTAINER["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600
    (port,) = CONTAINER["ports"]
    (published,) = DOCUMENTS["Service"]["spec"]["ports"]
    assert published["targetPort"] == port["name"]
    for name in ("startup", "liveness", "readiness"):
        assert CONTAINER[f"{name}Probe"]["httpGet"]["port"] == port["name"]
    assert port["containerPort"] == 8000


def test_it_calls_nobody_and_only_those_who_are_named_call_it() -> None:
    policy = DOCUMENTS["NetworkPolicy"]["spec"]
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
    assert policy["egress"] == []
    (rule,) = policy["ingress"]
    assert all("podSelector" in peer for peer in rule["from"])
    assert [port["port"] for port in rule["ports"]] == ["http"]


def test_memory_is_limited_and_asked_for() -> None:
    assert CONTAINER["resources"]["limits"]["memory"]
    assert CONTAINER["resources"]["requests"].keys() == {"cpu", "memory"}
