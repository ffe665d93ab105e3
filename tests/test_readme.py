"""The README says what the code does: every setting, route, command, part of a spec, status and dependency is in it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import Start

from core.rules import RULES
from core.spec import Spec
from service import errors
from service.commands import cli
from service.http.app import Service
from service.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def rows(heading: str) -> dict[str, list[str]]:
    """The first table under a heading: its first column, without backticks, and the others."""
    section = README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    table = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]
    return {row[0].replace("`", ""): row[1:] for row in cells}


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_is_told_with_its_default(name: str) -> None:
    told = rows("Settings")[f"--{name.replace('_', '-')}"]
    assert told[0] == str(Settings.model_fields[name].default)


def test_no_setting_is_told_that_does_not_exist() -> None:
    told = {flag for flag in rows("Settings") if flag.startswith("--")}
    assert told == {f"--{name.replace('_', '-')}" for name in Settings.model_fields}


def test_every_route_is_told_and_no_other(tmp_path: Path) -> None:
    document = Service(Settings(data=tmp_path)).api.openapi()
    routes = {f"{method.upper()} {path}" for path, operations in document["paths"].items() for method in operations}
    told = {route for row in rows("Routes") for route in row.split(", ") if " /" in route}
    assert told - {"GET /", "GET /docs", "GET /openapi.json"} == routes


def test_every_metric_is_told_and_no_other(tmp_path: Path) -> None:
    told = {name.partition("{")[0] for row in rows("Metrics") for name in row.split(", ") if "_" in name}
    assert told == set(Service(Settings(data=tmp_path)).engine.telemetry.names())


def test_every_field_of_a_spec_is_told() -> None:
    section = README.split("\n## Models\n", 1)[1].split("\n## ", 1)[0]
    for field in dataclasses.fields(Spec):
        assert f"`{field.name}`" in section, field.name


@pytest.mark.parametrize("rule", [*RULES, "auto"])
def test_every_rule_is_told(rule: str) -> None:
    assert f"`{rule}`" in README


def test_every_command_is_told() -> None:
    commands = next(
        action.choices for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    told = " ".join(rows("Commands"))
    for command in commands:
        assert f"logstep {command}" in told, command


def test_every_status_is_told() -> None:
    section = README.split("\n## Routes\n", 1)[1].split("\n## ", 1)[0]
    statuses = {error.status for error in vars(errors).values() if isinstance(error, type) and hasattr(error, "status")}
    for status in statuses - {500}:
        assert re.search(rf"\b{status}\b", section), status


def test_every_dependency_is_told() -> None:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    told = {name for row in rows("What it stands on") for name in row.split(", ")}
    for requirement in project["dependencies"] + project["optional-dependencies"]["dev"]:
        assert re.split(r"[^A-Za-z0-9_-]", requirement)[0] in told, requirement


def test_every_file_of_the_packages_is_told() -> None:
    for path in [*ROOT.glob("core/*.py"), *ROOT.glob("service/*.py")]:
        if path.name != "__init__.py":
            assert path.name in README, path


def examples() -> list[tuple[str, str]]:
    """Each block of shell that calls curl, with the block of JSON after it."""
    found = re.findall(r"```sh\n([^`]*?curl[^`]*?)```\n(?:```json\n([^`]*?)```)?", README)
    return [(shell, replies) for shell, replies in found]


def test_its_curl_lines_work_when_pasted_and_reply_what_it_says(start: Start) -> None:
    service = start()
    for shell, replies in examples():
        pasted = shell.replace("localhost:8000", f"localhost:{service.port}")
        pasted = "\n".join(line for line in pasted.splitlines() if not line.startswith(".venv/"))
        done = subprocess.run(["bash", "-c", pasted], capture_output=True, text=True, timeout=60, check=True)
        got = re.findall(r"\{.*?\}(?=\{\"|\s|$)", done.stdout)
        assert got, shell
        for text in got:
            assert "status" not in json.loads(text), (shell, text)
        for told, real in zip(replies.splitlines(), got, strict=False):
            told_pattern = re.escape(told).replace(r"\.\.\.", ".*")
            assert re.fullmatch(told_pattern, real), (told, real)


def test_its_set_up_is_two_lines_that_name_what_exists() -> None:
    lines = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert len(lines) == 2
    for line in lines:
        for part in line.split(" && "):
            assert shlex.split(part)[0] in ("python3", ".venv/bin/pip", ".venv/bin/logstep", ".venv/bin/pytest")


def test_its_examples_in_python_run(start: Start) -> None:
    service = start()
    arrow, learner = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for example in (arrow.replace("localhost:8000", f"localhost:{service.port}"), learner):
        exec(compile(example, "README.md", "exec"), {})
    assert service.get("/models/default")["seq"] == 40
