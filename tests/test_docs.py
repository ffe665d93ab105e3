"""The pages in docs/ are true: the generated ones are fresh, links lead somewhere, examples run, all is named."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from harness import Start

from core.rules import RULES
from service import errors
from service.rows.cells import MISSING
from service.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.glob("*.md")])
GENERATED = ("settings.md", "commands.md", "metrics.md", "routes.md", "spec.md")


def page(name: str) -> str:
    return (DOCS / name).read_text()


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """docs/reference.py, which writes pages from the code."""
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_page_is_fresh(reference: ModuleType, name: str) -> None:
    fresh: dict[str, str] = reference.pages()
    assert fresh.keys() == set(GENERATED)
    assert page(name) == fresh[name], "run: python docs/reference.py"


def anchors(path: Path) -> set[str]:
    """What `#...` of a link may name: the headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def test_every_page_is_reached_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for path in DOCS.glob("*.md"):
        assert f"docs/{path.name}" in readme, path.name


def examples(*texts: str) -> list[str]:
    return [example for text in texts for example in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


def test_the_examples_in_python_run(start: Start) -> None:
    service = start()

    def run(example: str) -> None:
        exec(compile(example.replace("localhost:8000", f"localhost:{service.port}"), "docs", "exec"), {})

    of_the_api = examples(page("api.md"), page("architecture.md"))
    assert len(of_the_api) == 2
    for example in of_the_api:
        run(example)
    assert service.get("/models/default")["seq"] == 40
    of_the_client = examples((ROOT / "README.md").read_text(), page("client.md"))
    assert len(of_the_client) == 6
    for example in of_the_client:
        run(example)
    assert service.get("/models/default")["seq"] == 40 + 1 + 1 + 40 + 300 + 500
    assert service.get("/models/visits")["seq"] == 40


def test_every_dependency_is_told_with_what_it_is_for() -> None:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    rows = [line for line in page("contributing.md").splitlines() if line.startswith("| ")]
    told = {name.strip() for row in rows for name in row.split("|")[1].split(",")}
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    for requirement in project["dependencies"] + extras:
        name = re.split(r"[^A-Za-z0-9_.-]", requirement)[0]
        assert name in told | {"logstep"}, requirement


@pytest.mark.parametrize("rule", [*RULES, "auto"])
def test_models_says_when_to_use_each_rule_or_its_defaults(rule: str) -> None:
    assert f"`{rule}`" in page("models.md")


def test_every_word_for_a_missing_cell_is_told() -> None:
    told = re.search(r"A cell of CSV is missing.*?\.", page("api.md"), re.DOTALL)
    assert told is not None
    words = {word.lower() for word in re.findall(r"`([^`]+)`", told[0])}
    assert words == MISSING - {""}
    assert "if it is empty" in told[0]


def test_every_status_is_told() -> None:
    statuses = {error.status for error in vars(errors).values() if isinstance(error, type) and hasattr(error, "status")}
    for status in statuses - {500}:
        assert re.search(rf"^\| .*\b{status}\b.* \|", page("api.md"), re.MULTILINE), status


def budget(what: str) -> int:
    found = re.search(rf"^\| {re.escape(what)}.* \| ([\d,]+) \|$", page("contributing.md"), re.MULTILINE)
    assert found is not None, what
    return int(found[1].replace(",", ""))


def lines(*patterns: str) -> int:
    files = [path for pattern in patterns for path in ROOT.glob(pattern) if "vendor" not in path.parts]
    return sum(len(path.read_text().splitlines()) for path in files)


def test_the_budget_is_as_it_is_told() -> None:
    assert lines("core/**/*.py", "service/**/*.py") <= budget("lines of `core` and `service`")
    assert lines("logstep.py") <= budget("lines of the client")
    assert lines("service/**/*.js", "service/**/*.css", "service/**/*.html") <= budget("lines of the page")
    assert len(Settings.model_fields) == budget("settings")
    assert len(re.findall(r"^\| `[A-Z]+ /[^`]+` ", page("routes.md"), re.MULTILINE)) == budget("public routes")
