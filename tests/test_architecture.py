"""Who may import whom, and what nobody does. Read from the syntax trees, so that nothing needs to be run."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(path for package in ("core", "service") for path in (ROOT / package).rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]
OURS = {"core", "service"}


def module_of(path: Path) -> str:
    """`service/store.py` -> `service.store`; a package's `__init__.py` is the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it: `from service import errors` is `service.errors`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}, line {node.lineno}: imports are absolute"
            module = node.module or ""
            for alias in node.names:
                submodule = f"{module}.{alias.name}"
                yield submodule if submodule in MODULES else module


def top(module: str) -> str:
    return module.partition(".")[0]


def of_ours(path: Path) -> set[str]:
    """The project's own modules that a file imports; all of `core` is "core"."""
    ours = {module for module in imports(path) if top(module) in OURS}
    return {"core" if top(module) == "core" else module for module in ours}


def test_the_walk_sees_imports_wherever_they_stand(tmp_path: Path) -> None:
    source = tmp_path / "example.py"
    source.write_text("import a.b\nfrom service import errors\ndef f():\n    from core.learner import Learner\n")
    assert list(imports(source)) == ["a.b", "service.errors", "core.learner"]


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("core/")])
def test_core_imports_numpy_numba_the_standard_library_and_itself(name: str) -> None:
    allowed = {"core", "numpy", "numba"} | sys.stdlib_module_names
    if name == "core/parity.py":
        allowed |= {"river"}
    assert {top(module) for module in imports(ROOT / name)} <= allowed


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("errors", set()),
        ("settings", set()),
        ("wire", {"service.errors", "service.codec"}),
        ("table", {"service.errors", "service.wire"}),
        ("arrow", {"service.errors", "service.wire", "service.table"}),
        ("codec", {"service.errors", "service.wire"}),
        ("series", set()),
        ("log", {"service.errors", "service.codec", "service.series"}),
        ("store", {"service.errors", "service.codec", "service.log", "service.series"}),
        ("model", {"service.log"}),
        ("turn", {f"service.{part}" for part in ("errors", "log", "model", "store", "table", "wire")}),
        ("telemetry", {"service.errors", "service.log", "service.model"}),
        ("sampling", {"service.model", "service.series", "service.telemetry"}),
        ("past", {"service.errors", "service.log", "service.model", "service.series"}),
        ("live", {f"service.{part}" for part in ("engine", "errors", "model", "past", "series", "telemetry")}),
        ("retention", {"service.errors", "service.model", "service.store"}),
        (
            "engine",
            {
                f"service.{part}"
                for part in (
                    "errors",
                    "settings",
                    "log",
                    "store",
                    "model",
                    "retention",
                    "sampling",
                    "series",
                    "table",
                    "telemetry",
                    "turn",
                    "wire",
                )
            },
        ),
    ],
)
def test_each_part_of_the_service_imports_only_what_stands_below_it(name: str, allowed: set[str]) -> None:
    below = allowed | ({"core"} if name not in ("errors", "settings") else set())
    assert of_ours(ROOT / "service" / f"{name}.py") <= below


def test_only_the_store_knows_of_sqlite_on_the_way_of_an_event() -> None:
    knows = {name for name, path in zip(NAMES, FILES, strict=True) if "sqlite3" in map(top, imports(path))}
    assert {"service/store.py", "service/log.py"} <= knows
    way = ("app", "engine", "turn", "model", "retention", "sampling", "hot", "wire", "codec")
    assert not knows & {f"service/{name}.py" for name in way}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_imports_what_turns_bytes_into_code(name: str) -> None:
    forbidden = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    assert not {top(module) for module in imports(ROOT / name)} & forbidden


@pytest.mark.parametrize("name", NAMES)
def test_nothing_calls_eval_or_exec(name: str) -> None:
    calls = [node for node in ast.walk(ast.parse((ROOT / name).read_text())) if isinstance(node, ast.Call)]
    named = {node.func.id for node in calls if isinstance(node.func, ast.Name)}
    assert not named & {"eval", "exec", "compile", "__import__"}
    # numpy can read pickles too, if asked.
    assert not any(keyword.arg == "allow_pickle" for node in calls for keyword in node.keywords)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_asks_numba_for_fast_math(name: str) -> None:
    keywords = [node.arg for node in ast.walk(ast.parse((ROOT / name).read_text())) if isinstance(node, ast.keyword)]
    assert "fastmath" not in keywords


def test_a_process_that_serves_does_not_load_river() -> None:
    program = "import sys, service.app, service.server; sys.exit('river' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60, check=False).returncode == 0


def test_arrow_is_loaded_when_the_first_stream_of_it_comes_and_not_before() -> None:
    program = "import sys, service.app, service.server, service.arrow; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60, check=False).returncode == 0
