"""The container: what its files say, and, where an engine works, that the hardened image serves and keeps its events.

`EFFORT=long pytest tests/test_docker.py` builds the image; LOGSTEP_IMAGE=NAME takes one that is there already.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from effort import from_checks_on, only_long
from packaging.requirements import Requirement

from service.brokers import Brokers
from service.commands import cli
from service.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
COMPOSE = (ROOT / "docker/compose.yaml").read_text()
READY_SECONDS = 60.0


# -- what the files say


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with what follows them; continued lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


def last(name: str) -> str:
    return [rest for instruction, rest in instructions() if instruction == name][-1]


def test_the_image_runs_logstep_as_its_first_process() -> None:
    assert json.loads(last("ENTRYPOINT")) == ["logstep"]  # a shell in between would keep SIGTERM to itself
    assert json.loads(last("CMD")) == ["serve"]
    assert "LOGSTEP_HOST=0.0.0.0" in last("ENV")
    assert "LOGSTEP_DATA=/data" in last("ENV")
    assert last("EXPOSE") == "8000"


def test_the_image_does_not_run_as_root() -> None:
    uid, gid = last("USER").split(":")
    assert int(uid) > 0
    assert int(gid) > 0


def test_the_data_folder_has_its_owner_before_it_becomes_a_volume() -> None:
    steps = instructions()
    made = next(i for i, (name, rest) in enumerate(steps) if name == "RUN" and "--owner logstep" in rest)
    assert made < steps.index(("VOLUME", "/data"))


def test_the_health_check_is_the_same_in_both_files() -> None:
    command = last("HEALTHCHECK").partition("CMD ")[2]
    assert f'test: ["CMD", {command[1:]}' in COMPOSE


def test_everything_that_is_copied_is_in_the_build_context() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for name, rest in instructions()
        if name == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert copied == let_in


def test_every_dependency_has_its_version_in_the_image() -> None:
    lines = (ROOT / "docker/requirements.txt").read_text().splitlines()
    pinned = [line.lower().partition(" ")[0].partition("==") for line in lines if re.match(r"[A-Za-z]", line)]
    versions = {name: version for name, _, version in pinned}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for dependency in map(Requirement, project["dependencies"]):
        assert dependency.name in versions, f"{dependency.name} is missing in docker/requirements.txt"
        assert versions[dependency.name] in dependency.specifier


@pytest.mark.parametrize("extra", ["arrow", "kafka"])
def test_every_extra_has_its_version_in_the_image(extra: str) -> None:
    text = (ROOT / f"docker/requirements-{extra}.txt").read_text()
    (wanted,) = map(
        Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra]
    )
    (pinned,) = re.findall(rf"^{wanted.name}==(\S+)", text, re.MULTILINE)
    assert pinned in wanted.specifier
    assert f"docker/requirements-{extra}.txt" in next(rest for step, rest in instructions() if step == "COPY")


@pytest.mark.parametrize(
    "name", ["requirements.txt", "build-requirements.txt", "requirements-arrow.txt", "requirements-kafka.txt"]
)
def test_every_file_that_is_installed_has_a_hash_and_comes_from_nowhere_in_particular(name: str) -> None:
    text = re.sub(r"^#.*\n", "", (ROOT / "docker" / name).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(None, text.splitlines()):
        assert re.fullmatch(r"[A-Za-z0-9._-]+==\S+( ; [^-]+)?(\s+--hash=sha256:[0-9a-f]{64})+", line.strip()), line
    steps = [rest for step, rest in instructions() if step == "RUN" and "install" in rest and "pip" in rest]
    assert all("--require-hashes" in rest or "--no-index" in rest for rest in steps)
    assert len(steps) == 3


@from_checks_on
def test_the_bill_of_what_is_installed_fits_the_schema_of_cyclonedx() -> None:
    validation = pytest.importorskip("cyclonedx.validation.json")
    schema = pytest.importorskip("cyclonedx.schema")
    made = [must(sys.executable, str(ROOT / "docker/sbom.py")) for _ in range(2)]
    assert made[0] == made[1]
    assert validation.JsonStrictValidator(schema.SchemaVersion.V1_6).validate_str(made[0]) is None
    bill = json.loads(made[0])
    assert bill["metadata"]["component"]["name"] == "logstep"
    names = {component["name"] for component in bill["components"]}
    assert {"python", "numpy", "river", "uvicorn"} <= names
    logstep = next(d for d in bill["dependencies"] if d["ref"] == bill["metadata"]["component"]["bom-ref"])
    assert any(reference.startswith("pkg:pypi/river@") for reference in logstep["dependsOn"])


def test_compose_does_not_start_without_a_token() -> None:
    assert re.search(r"^ +LOGSTEP_TOKEN: \$\{LOGSTEP_TOKEN:\?[^}]+\}$", COMPOSE, re.MULTILINE)
    for engine in filter(shutil.which, ("docker", "podman")):
        if run(engine, "compose", "version").returncode == 0:
            config = [
                engine,
                "compose",
                "--env-file",
                "/dev/null",
                "-f",
                str(ROOT / "docker/compose.yaml"),
                "config",
                "--quiet",
            ]
            bare = {name: value for name, value in os.environ.items() if name != "LOGSTEP_TOKEN"}
            refused = subprocess.run(config, env=bare, capture_output=True, text=True, timeout=60, check=False)
            assert refused.returncode != 0
            assert "LOGSTEP_TOKEN" in refused.stderr
            given = {**bare, "LOGSTEP_TOKEN": "x" * 32}
            assert subprocess.run(config, env=given, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(
    "line",
    [
        "context: ..",
        "dockerfile: docker/Dockerfile",
        'ports: ["127.0.0.1:8000:8000"]',
        'volumes: ["data:/data"]',
        "read_only: true",
        "cap_drop: [ALL]",
        'security_opt: ["no-new-privileges:true"]',
        "stop_grace_period: 15s",
        "restart: unless-stopped",
    ],
)
def test_compose_says(line: str) -> None:
    assert line in [each.strip() for each in COMPOSE.splitlines()]


def merged(text: str) -> str:
    """YAML without the key <<, which compose-spec does not know everywhere."""
    return json.dumps(yaml.safe_load(text))


def test_compose_is_what_the_specification_of_compose_has() -> None:
    compose_spec = pytest.importorskip("compose_spec")
    read = compose_spec.PyCompose.from_yaml(merged(COMPOSE))
    replicas = {"node-1", "node-2", "topic", "kafka-1", "kafka-2", "kafka-3"}
    assert set(read.service_names()) == {"logstep", "prometheus", "grafana"} | replicas
    for wrong in ("raed_only: true", "mem_limit: much", "stop_grace_period: soon"):
        key = wrong.partition(":")[0].replace("raed", "read")
        with pytest.raises(ValueError, match=r"services\.logstep"):
            compose_spec.PyCompose.from_yaml(merged(re.sub(rf"{key}: .*", wrong, COMPOSE, count=1)))


def test_no_secret_of_a_read_only_service_comes_from_the_environment() -> None:
    """Compose copies such a secret into the container, and refuses where it cannot."""
    compose = yaml.safe_load(COMPOSE)
    for service in compose["services"].values():
        for secret in service.get("secrets", []):
            assert compose["secrets"][secret].keys() == {"file"} or not service.get("read_only")


def test_git_ignores_what_holds_a_token() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    for path in ("docker/.env", "docker/secrets/metrics-token"):
        assert run("git", "-C", str(ROOT), "check-ignore", path).returncode == 0, path


def test_everything_in_compose_is_there() -> None:
    compose = yaml.safe_load(COMPOSE)
    service = compose["services"]["logstep"]
    assert (ROOT / "docker" / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    volumes = {volume.partition(":")[0] for each in compose["services"].values() for volume in each.get("volumes", [])}
    assert {volume for volume in volumes if not volume.startswith(".")} == set(compose["volumes"])
    assert service["pids_limit"]
    for each in compose["services"].values():
        assert each["mem_limit"]


def test_a_node_of_compose_is_a_service_with_other_settings_ports_and_data() -> None:
    services = yaml.safe_load(COMPOSE)["services"]
    own = {"profiles", "build", "image", "environment", "ports", "volumes", "depends_on"}
    for number in (1, 2):
        node = services[f"node-{number}"]
        assert {key: node[key] for key in node.keys() - own} == {
            key: services["logstep"][key] for key in services["logstep"].keys() - own
        }
        assert node["profiles"] == ["replicas"]
        assert node["ports"] == [f"127.0.0.1:{8000 + number}:8000"]
        assert node["volumes"] == [f"node-{number}:/data"]
        assert node["build"]["args"] == {"EXTRA": "kafka"}
        settings = {name.removeprefix("LOGSTEP_").lower() for name in node["environment"]} - {"token"}
        assert settings <= Settings.model_fields.keys()
        assert node["environment"]["LOGSTEP_KAFKA"] == "kafka-1:9092,kafka-2:9092,kafka-3:9092"
    assert [name for name in services if name.startswith("kafka-") and services[name].get("ports")] == []


def test_the_topic_of_compose_is_made_by_commands_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shell script calls them, with a stand-in for `logstep` and for the wait."""
    topic = yaml.safe_load(COMPOSE)["services"]["topic"]
    (script,) = topic["command"]
    stand_in = 'logstep() { echo "$@" >&2; [ "$2" = create-topic ] && [ "$tries" = 2 ]; }; sleep() { tries=2; }\n'
    done = subprocess.run(
        ["sh", "-c", stand_in + script.replace("$$", "$")],
        env={**os.environ, **topic["environment"]}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    called = done.stderr.splitlines()
    assert [line.split()[1] for line in called] == ["check", "create-topic"] * 2
    monkeypatch.setattr(Brokers, "patience", 0.1)
    assert [cli.main(line.split()) for line in called[:2]] == [1, 1], "there are no such brokers here"


@from_checks_on
def test_a_broker_takes_its_settings_from_compose(tmp_path: Path) -> None:
    """The image makes properties of variables. Kafka itself reads them here, and makes its data folder."""
    from broker import JARS, JAVA, skip_without_broker

    skip_without_broker()
    for number in (1, 2, 3):
        given = yaml.safe_load(COMPOSE)["services"][f"kafka-{number}"]["environment"]
        assert given["KAFKA_NODE_ID"] == number
        assert given["KAFKA_ADVERTISED_LISTENERS"] == f"PLAINTEXT://kafka-{number}:9092"
    ours = {"KAFKA_HEAP_OPTS": None, "KAFKA_LOG_DIRS": tmp_path / "data"}
    lines = [
        f"{name.removeprefix('KAFKA_').lower().replace('_', '.')}={value}"
        for name, value in {**given, **ours}.items()
        if name.startswith("KAFKA_") and value is not None
    ]
    (tmp_path / "server.properties").write_text("\n".join(lines))
    tool = ["java", *JAVA, "-cp", f"{JARS}/*", "kafka.tools.StorageTool", "format"]
    must(*tool, "-t", given["CLUSTER_ID"], "-c", str(tmp_path / "server.properties"))
    assert f"node.id={number}" in (tmp_path / "data" / "meta.properties").read_text()


# -- the image

_ASK = """
import os, sys, urllib.request as r
method, path, body = sys.argv[1:]
headers = {"content-type": "application/json", "authorization": "Bearer " + os.environ["LOGSTEP_TOKEN"]}
request = r.Request("http://127.0.0.1:8000" + path, body.encode() or None, headers)
request.method = method
print(r.urlopen(request, timeout=60).read().decode())
"""
_NOT_FROM_CACHE = """
import json, sys, core
modules = [module for name, module in sys.modules.items() if name.startswith("core.")]
kernels = {kernel for module in modules for kernel in vars(module).values() if hasattr(kernel, "py_func")}
print(json.dumps([len(kernels), [kernel.__name__ for kernel in kernels if not kernel.stats.cache_hits]]))
"""


def run(*command: str, seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)


def must(*command: str, seconds: float = 120.0) -> str:
    done = run(*command, seconds=seconds)
    assert done.returncode == 0, f"{' '.join(command)}: {(done.stdout + done.stderr)[-4000:]}"
    return done.stdout


@dataclass(frozen=True)
class Container:
    """A running container. Requests are made inside it: it has no network."""

    engine: str
    name: str

    def python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run(self.engine, "exec", self.name, "python", *arguments)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.python("-c", _ASK, method, path, "" if body is None else json.dumps(body))
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while self.python("/opt/logstep/healthcheck.py").returncode != 0:
            assert time.monotonic() < deadline, run(self.engine, "logs", self.name)
            time.sleep(0.1)

    def stop(self) -> int:
        must(self.engine, "stop", "-t", "15", self.name)
        return int(must(self.engine, "inspect", "--format", "{{.State.ExitCode}}", self.name))


@contextmanager
def container(engine: str, image: str, volume: str) -> Iterator[Container]:
    """The service with everything taken away that it does not need."""
    name = f"logstep-test-{uuid.uuid4().hex[:12]}"
    hardened = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none"]
    limits = ["--memory=512m", "--pids-limit=128", "--env", f"LOGSTEP_TOKEN={uuid.uuid4().hex}"]
    try:
        must(engine, "run", "--detach", "--name", name, *hardened, *limits, "--volume", f"{volume}:/data", image)
        started = Container(engine, name)
        started.wait_until_ready()
        yield started
    finally:
        run(engine, "rm", "--force", name)


@pytest.fixture(scope="module")
def engine() -> str:
    """A container engine that can run a Python image; without one the tests are skipped and say why."""
    image = os.environ.get("LOGSTEP_IMAGE") or last("ARG").partition("=")[2]
    reason = "neither docker nor podman is installed"
    for name in filter(shutil.which, ("docker", "podman")):
        tried = run(name, "run", "--rm", "--network=none", "--entrypoint=python", image, "-c", "", seconds=600)
        if tried.returncode == 0:
            return name
        why = tried.stderr.strip().rpartition("\n")[2]
        reason = f"{name} cannot run {image}: {why}"
    pytest.skip(reason)


@pytest.fixture(scope="module")
def image(engine: str) -> str:
    if given := os.environ.get("LOGSTEP_IMAGE"):
        return given
    keep_health_check = ["--format=docker"] if engine == "podman" else []
    build = [engine, "build", *keep_health_check, "--file", str(ROOT / "docker/Dockerfile"), "--tag", "logstep:test"]
    must(*build, str(ROOT), seconds=1800)
    return "logstep:test"


@pytest.fixture
def volume(engine: str) -> Iterator[str]:
    name = f"logstep-test-{uuid.uuid4().hex[:12]}"
    must(engine, "volume", "create", name)
    yield name
    run(engine, "volume", "rm", "--force", name)


@only_long
def test_an_event_learned_in_a_hardened_container_is_there_in_the_next(engine: str, image: str, volume: str) -> None:
    event = {"x": {"age": 31, "country": "FR", "vip": True}, "y": 1, "id": "order-77"}
    with container(engine, image, volume) as first:
        learned = first.ask("POST", "/learn", event)
        assert (learned["seq"], learned["duplicate"]) == (1, False)
        before = first.ask("GET", "/models/default")
        assert first.stop() == 0

    with container(engine, image, volume) as second:
        after = second.ask("GET", "/models/default")
        assert (after["seq"], after["sha256"]) == (1, before["sha256"])
        assert second.ask("POST", "/learn", event)["duplicate"] is True
        crosscheck = second.ask("GET", "/models/default/crosscheck")
        assert (crosscheck["max_ulp"], crosscheck["replay_equal"]) == (0, True)
        assert second.stop() == 0


@only_long
def test_the_container_has_no_privileges_and_needs_no_compiler(engine: str, image: str, volume: str) -> None:
    with container(engine, image, volume) as service:
        status = service.python("-c", "print(open('/proc/1/status').read())").stdout
        assert re.search(r"^Uid:\t10001\t10001\t10001\t10001$", status, re.MULTILINE)
        assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
        assert service.python("-c", "open('/opt/logstep/new', 'w')").returncode != 0
        kernels, compiled_again = json.loads(service.python("-c", _NOT_FROM_CACHE).stdout)
        assert kernels > 0
        assert compiled_again == []
        assert "http://0.0.0.0:8000" in "".join(run(engine, "logs", service.name).stderr)
        assert service.stop() == 0
