"""The service as it is installed: by pip, editable after that, and not at all, with PYTHONPATH.

It is started in a folder with a `service` and a `core` of its own, which nothing may run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from effort import from_checks_on
from forked import clean_environment, serve
from harness import PLAIN, copy_source
from patience import eventually

ROOT = Path(__file__).resolve().parent.parent
LISTENS = re.compile(rb"logstep serves http://127\.0\.0\.1:(\d+) ")
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input")
OFFLINE = ("--no-deps", "--no-build-isolation", "--no-index")
"""For pip: what is needed is there."""


class Installation:
    """A virtual environment that sees what this one has installed, but for the project itself; a copy of its source;
    and a folder to start in."""

    def __init__(self, below: Path) -> None:
        venv.create(below / "venv")
        self.bin = below / "venv" / "bin"
        self.packages = next((below / "venv" / "lib").glob("python*")) / "site-packages"
        (self.packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.source = below / "source"
        copy_source(self.source)
        self.folder = below / "folder"
        for name in ("core", "service/commands", "service/learning"):
            (self.folder / name).mkdir(parents=True)
            (self.folder / name / "__init__.py").write_text("raise SystemExit('another core or service was run')\n")

    def python(self, *arguments: str) -> str:
        done = subprocess.run(
            [self.bin / "python", *arguments], cwd=self.folder, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def serving(self, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> Iterator[int]:
        """A service, which is ended; its port."""
        log = self.folder.parent / "log"
        arguments = [*map(str, command), *serve(self.folder.parent / "data")]
        with log.open("wb") as file:
            process = subprocess.Popen(
                arguments, cwd=self.folder, stderr=file, env=clean_environment() | dict(env or {})
            )
        try:
            found = eventually(lambda: LISTENS.search(log.read_bytes()) or process.poll() is not None, log.read_text())
            assert found is not True, log.read_text()
            yield int(found[1])
            process.terminate()
            assert process.wait(60) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()


def is_equal_to_river(port: int) -> bool:
    """Whether a service learns, and says so of the model; a child tells."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, **PLAIN) as client:
        eventually(lambda: client.get("/readyz").status_code == 200, "the service to be ready")
        assert client.post("/learn", json={"x": {"age": 31}, "y": 1}).status_code == 200
        reply = client.get("/models/default/crosscheck")
        assert reply.status_code == 200, reply.text
        equal: bool = reply.json()["equal"]
        return equal


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("installation"))


@from_checks_on
def test_it_runs_from_its_source_with_pythonpath(installation: Installation) -> None:
    command: list[str | Path] = [installation.bin / "python", "-P", "-m", "service.commands.cli"]
    with installation.serving(command, {"PYTHONPATH": str(installation.source)}) as port:
        assert is_equal_to_river(port)


@from_checks_on
def test_it_runs_installed_and_then_editable_and_leaves_nothing_that_hides_the_second(
    installation: Installation,
) -> None:
    installation.python(*PIP, "install", *OFFLINE, str(installation.source))
    with installation.serving([installation.bin / "logstep"]) as port:
        assert is_equal_to_river(port)
    assert list(installation.packages.rglob("*.nb?")) == []  # numba's
    typed = {str(marker.relative_to(installation.packages)) for marker in installation.packages.rglob("py.typed")}
    assert typed == {"core/py.typed", "service/py.typed"}  # so type checkers read their types
    installation.python(*PIP, "install", *OFFLINE, "--editable", str(installation.source))
    assert not (installation.packages / "core").exists()
    where = "import core.rules, service; print(core.rules.__file__, service.__file__)"
    assert installation.python("-P", "-c", where).split() == [
        str(installation.source / "core" / "rules.py"),
        str(installation.source / "service" / "__init__.py"),
    ]
    with installation.serving([installation.bin / "logstep"]) as port:
        assert is_equal_to_river(port)


@from_checks_on
def test_without_the_extra_arrow_it_learns_json_and_says_how_to_read_columns(
    installation: Installation, tmp_path: Path
) -> None:
    (tmp_path / "pyarrow.py").write_text("raise ModuleNotFoundError('as if it were not installed', name='pyarrow')\n")
    sources = os.pathsep.join(map(str, (installation.source, tmp_path)))
    command: list[str | Path] = [installation.bin / "python", "-P", "-m", "service.commands.cli"]
    with installation.serving(command, {"PYTHONPATH": sources}) as port:
        assert is_equal_to_river(port)
        for verb in ("learn", "predict"):
            url = f"http://127.0.0.1:{port}/{verb}"
            headers = {"content-type": "application/vnd.apache.arrow.stream"}
            reply = httpx.post(url, content=b"any", headers=headers, **PLAIN)
            assert reply.status_code == 415
            assert reply.json()["title"] == "Arrow not installed"
            assert "pip install 'logstep[arrow]'" in reply.json()["detail"]


SAMPLE = """
from logstep import Client, RiverClassifier, SklearnClassifier, Learner, Spec, Problem
from typing import assert_type
import logstep
from river import base

client = Client(model="visits")
assert_type(client.learn({"age": 31}, 1), logstep.Learned)
assert_type(client.learn([{"age": 31}], [1]), logstep.LearnedMany)
assert_type(client.predict({"age": 31}).p, float)
assert_type(client.predict([{"age": 31}]), list[logstep.Prediction])
assert_type(SklearnClassifier(client, reset=True).reset, bool)
classifier: base.Classifier = RiverClassifier(client)
"""
WRONG = [
    ('client.learn({"age": 31}, "yes").seq', '"LearnedMany" has no attribute "seq"'),
    ("logstep.Cliet", 'has no attribute "Cliet"'),
    ("client.label(1, 1)", 'incompatible type "int"'),
]


@from_checks_on
def test_a_type_checker_reads_the_clients_types_where_it_is_installed(tmp_path: Path) -> None:
    """It skips a single module, but for the package of stubs that is installed with it."""
    installation = Installation(tmp_path)
    installation.python(*PIP, "install", *OFFLINE, str(installation.source))
    folder = tmp_path / "sample"
    folder.mkdir()
    (folder / "sample.py").write_text(SAMPLE + "\n".join(line for line, _ in WRONG) + "\n")
    command = [str(installation.bin / "python"), "-m", "mypy", "--strict", "sample.py"]
    told = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=280).stdout
    errors = [line for line in told.splitlines() if ": error: " in line]
    first = len(SAMPLE.splitlines()) + 1
    assert len(errors) == len(WRONG), told
    for i, (error, (_, words)) in enumerate(zip(errors, WRONG, strict=True)):
        assert error.startswith(f"sample.py:{first + i}: "), told
        assert words in error


def test_each_child_is_started_in_the_one_way() -> None:
    """That one looks for its code in no current folder."""
    starts = {
        path.relative_to(ROOT).as_posix()
        for package in ("core", "service")
        for path in (ROOT / package).rglob("*.py")
        if "sys.executable" in path.read_text()
    }
    assert starts == {"service/children.py"}
