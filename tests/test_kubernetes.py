"""docker/kubernetes*.yaml: what they say is what Kubernetes takes, and what the service needs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from effort import from_checks_on
from patience import PATIENCE

from service.commands.inspect import examine
from service.settings import Settings
from service.storage.store import Store

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()


def documents(name: str) -> dict[str, dict[str, Any]]:
    """The documents of a file by kind and name."""
    read = yaml.safe_load_all((ROOT / "docker" / name).read_text())
    return {f"{document['kind']} {document['metadata']['name']}": document for document in read}


DOCUMENTS = documents("kubernetes.yaml")
BACKUP = documents("kubernetes-backup.yaml")
(MONITOR,) = documents("kubernetes-monitoring.yaml").values()
SET = DOCUMENTS["StatefulSet logstep"]["spec"]
POD = SET["template"]
(CONTAINER,) = POD["spec"]["containers"]
JOB = BACKUP["CronJob logstep-backup"]["spec"]["jobTemplate"]["spec"]["template"]
(COPIES,) = JOB["spec"]["containers"]


@pytest.fixture(scope="module")
def schemas() -> Any:
    """Kubernetes' schemas; to import them takes five seconds, so only these tests do."""
    import kubernetes_validate

    return kubernetes_validate


@from_checks_on
@pytest.mark.parametrize("version", ["1.29", "1.31", "the latest"])
@pytest.mark.parametrize("name", [*DOCUMENTS, *BACKUP])
def test_it_fits_the_published_schema(schemas: Any, name: str, version: str) -> None:
    version = schemas.latest_version() if version == "the latest" else version
    schemas.validate((DOCUMENTS | BACKUP)[name], version, strict=True)


@from_checks_on
def test_the_check_finds_what_does_not_fit(schemas: Any) -> None:
    service = DOCUMENTS["Service logstep"]
    wrong = {**service, "spec": {**service["spec"], "prots": []}}
    with pytest.raises(schemas.ValidationError):
        schemas.validate(wrong, schemas.latest_version(), strict=True)


def test_there_is_all_of_it_in_one_namespace() -> None:
    kinds = [document["kind"] for document in DOCUMENTS.values()]
    assert kinds == ["StatefulSet", "Service", "Service", "PodDisruptionBudget", "NetworkPolicy"]
    everything = [*DOCUMENTS.values(), *BACKUP.values(), MONITOR]
    assert {document["metadata"]["namespace"] for document in everything} == {"logstep"}


def test_everything_selects_the_pod() -> None:
    labels = POD["metadata"]["labels"]
    for selector in (
        SET["selector"]["matchLabels"],
        DOCUMENTS["Service logstep"]["spec"]["selector"],
        DOCUMENTS["Service logstep-headless"]["spec"]["selector"],
        DOCUMENTS["PodDisruptionBudget logstep"]["spec"]["selector"]["matchLabels"],
        DOCUMENTS["NetworkPolicy logstep"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
        assert not selector.items() <= JOB["metadata"]["labels"].items()  # nobody takes a backup for the service
    assert DOCUMENTS[f"Service {SET['serviceName']}"]["spec"]["clusterIP"] == "None"


def test_the_image_is_the_one_that_the_build_above_it_makes() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    image = f"logstep:{version}"
    assert f"docker build -f docker/Dockerfile -t {image} ." in (ROOT / "docker/kubernetes.yaml").read_text()
    for container in (CONTAINER, COPIES):
        assert (container["image"], container["imagePullPolicy"]) == (image, "IfNotPresent")


def test_there_is_one_writer_whose_volume_outlives_it() -> None:
    assert SET["replicas"] == 1
    (claim,) = SET["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    (mount,) = CONTAINER["volumeMounts"]
    assert mount["name"] == claim["metadata"]["name"]
    assert f"LOGSTEP_DATA={mount['mountPath']}" in DOCKERFILE
    assert SET["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}


def test_it_has_no_privileges_and_is_who_the_image_says() -> None:
    uid, gid = re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)[0]
    for template, container in ((POD, CONTAINER), (JOB, COPIES)):
        pod, contained = template["spec"]["securityContext"], container["securityContext"]
        assert (pod["runAsUser"], pod["runAsGroup"], pod["fsGroup"]) == (int(uid), int(gid), int(gid))
        assert pod["runAsNonRoot"] is True
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert contained["readOnlyRootFilesystem"] is True
        assert contained["allowPrivilegeEscalation"] is False
        assert contained["capabilities"] == {"drop": ["ALL"]}
        assert template["spec"]["automountServiceAccountToken"] is False
        assert container["resources"]["limits"]["memory"]


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
    (published,) = DOCUMENTS["Service logstep"]["spec"]["ports"]
    assert published["targetPort"] == port["name"]
    for name in ("startup", "liveness", "readiness"):
        assert CONTAINER[f"{name}Probe"]["httpGet"]["port"] == port["name"]
    assert port["containerPort"] == 8000
    assert CONTAINER["readinessProbe"]["failureThreshold"] == 3  # one late answer is no outage


def test_it_calls_nobody_and_only_those_who_are_named_call_it() -> None:
    policy = DOCUMENTS["NetworkPolicy logstep"]["spec"]
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
    assert policy["egress"] == []
    (rule,) = policy["ingress"]
    assert all("podSelector" in peer for peer in rule["from"])
    assert [port["port"] for port in rule["ports"]] == ["http"]


def test_memory_is_limited_and_asked_for() -> None:
    assert CONTAINER["resources"]["limits"]["memory"]
    assert CONTAINER["resources"]["requests"].keys() == {"cpu", "memory"}


# -- backups and monitoring


def test_a_backup_reads_the_volume_of_the_service_on_its_node_and_writes_to_another() -> None:
    (claim,) = SET["volumeClaimTemplates"]
    volumes = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in JOB["spec"]["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in COPIES["volumeMounts"]}
    assert volumes == {"data": f"{claim['metadata']['name']}-logstep-0", "backup": "logstep-backup"}
    assert "PersistentVolumeClaim logstep-backup" in BACKUP
    assert mounts == {"data": "/data", "backup": "/backup"}
    (near,) = JOB["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert near["labelSelector"]["matchLabels"].items() <= POD["metadata"]["labels"].items()
    assert near["topologyKey"] == "kubernetes.io/hostname"
    policy = BACKUP["NetworkPolicy logstep-backup"]["spec"]
    assert policy["podSelector"]["matchLabels"] == JOB["metadata"]["labels"]
    assert (policy["ingress"], policy["egress"]) == ([], [])


@from_checks_on
def test_what_the_backup_runs_makes_one_and_drops_those_older_than_a_fortnight(tmp_path: Path) -> None:
    data, backups = tmp_path / "data", tmp_path / "backups"
    data.mkdir()
    Store(data).close()
    for name, days in (("logstep-old", 20), ("logstep-recent", 5), ("another-old", 20)):
        (backups / name).mkdir(parents=True)
        os.utime(backups / name, (time.time() - days * 86_400,) * 2)
    (script,) = COPIES["args"]
    for mounted, folder in (("/data", data), ("/backup", backups)):
        script = re.sub(rf"(?<![\w/]){mounted}\b", str(folder), script)
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run([*COPIES["command"], script], env=os.environ | path, check=True, timeout=2 * PATIENCE)
    made = {folder.name for folder in backups.iterdir()} - {"another-old", "logstep-recent"}
    (name,) = made
    assert re.fullmatch(r"logstep-\d{4}-\d\d-\d\d-\d{6}", name)
    assert examine(backups / name).wrong == []


def test_the_monitor_scrapes_the_service_with_a_token_of_its_own() -> None:
    """No published schema has it: the Prometheus operator brings it."""
    (endpoint,) = MONITOR["spec"]["endpoints"]
    service = DOCUMENTS["Service logstep"]
    assert MONITOR["spec"]["selector"]["matchLabels"] == service["metadata"]["labels"]
    assert "labels" not in DOCUMENTS["Service logstep-headless"]["metadata"]  # else each sample would come twice
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert endpoint["path"] == "/metrics"
    assert endpoint["authorization"]["credentials"] == {"name": "logstep-metrics", "key": "token"}
