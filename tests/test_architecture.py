"""Who may import whom, and what nobody does. Read from the syntax trees, so that nothing needs to be run."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from effort import from_checks_on

ROOT = Path(__file__).resolve().parent.parent
CLIENT = ROOT / "logstep.py"
FILES = sorted(path for package in ("core", "service") for path in (ROOT / package).rglob("*.py"))
FILES.append(CLIENT)
IMAGE = [f"docker/{path.name}" for path in (ROOT / "docker").glob("*.py")]
NAMES = [str(path.relative_to(ROOT)) for path in FILES]
OURS = {"core", "service"}


def module_of(path: Path) -> str:
    """`service/storage/store.py` -> `service.storage.store`; a package's `__init__.py` is the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


@cache
def nodes(source: str) -> list[ast.AST]:
    return list(ast.walk(ast.parse(source)))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it: `from service import errors` is `service.errors`."""
    for node in nodes(path.read_text()):
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


def wrong(found: dict[str, set[str]]) -> dict[str, set[str]]:
    """Of what was found in each file, what is not nothing."""
    assert len(found) > 10
    return {name: those for name, those in found.items() if those}


LEVELS = (
    "core, service, service/decode service/storage, service/rows service/learning, service/replica, service/watching, "
    "service/http, service/commands"
)
"""The folders from the ground up; "service" is its own files. Folders of one level do not know each other."""
HEIGHT = {folder: height for height, level in enumerate(LEVELS.split(", ")) for folder in level.split()}


def folder_of(module: str) -> str:
    """`service.storage.store` -> `service/storage`; `service.errors` -> `service`; all of core is `core`."""
    first, _, rest = module.partition(".")
    inner = f"{first}/{top(rest)}"
    return inner if first == "service" and rest and (ROOT / inner).is_dir() else first


def test_the_walk_sees_imports_wherever_they_stand(tmp_path: Path) -> None:
    source = tmp_path / "example.py"
    source.write_text("import a.b\nfrom service import errors\ndef f():\n    from core.learner import Learner\n")
    assert list(imports(source)) == ["a.b", "service.errors", "core.learner"]


def test_core_imports_numpy_numba_the_standard_library_and_itself() -> None:
    allowed = {"core", "numpy", "numba"} | sys.stdlib_module_names
    core = [name for name in NAMES if name.startswith("core/")]
    others = {name: {top(module) for module in imports(ROOT / name)} - allowed for name in core}
    assert wrong(others) == {"core/parity.py": {"river"}}


def test_the_client_imports_httpx_and_the_standard_library_and_all_else_when_it_is_asked_for() -> None:
    program = "import sys, httpx; of_httpx = set(sys.modules); import logstep; "
    program += "print(*(set(sys.modules) - of_httpx))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {top(module) for module in done.stdout.split()} <= {"logstep"} | sys.stdlib_module_names
    libraries = {"numpy", "pandas", "polars", "pyarrow", "river", "sklearn"}
    allowed = {"core", "httpx"} | libraries | sys.stdlib_module_names
    assert {top(module) for module in imports(CLIENT)} <= allowed


def above(name: str) -> set[str]:
    """What a file imports from folders beside and above its own."""
    own = folder_of(module_of(ROOT / name))
    others = {module for module in imports(ROOT / name) if top(module) in OURS and folder_of(module) != own}
    return {module for module in others if HEIGHT[folder_of(module)] >= HEIGHT[own]}


def test_a_file_imports_only_from_its_own_folder_and_those_below() -> None:
    assert wrong({name: above(name) for name in NAMES if name != "logstep.py"}) == {}


def circle_in(imported: dict[str, set[str]]) -> list[str]:
    """The files of a circle of imports, if there is one."""
    try:
        TopologicalSorter(imported).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_file_imports_itself_by_way_of_others() -> None:
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert circle_in({module_of(path): set(imports(path)) & MODULES for path in FILES}) == []


def in_the_map(page: str) -> set[str]:
    """The paths in the map of files: names before two spaces, inside the folder that stands further to the left."""
    found: set[str] = set()
    folders: list[tuple[int, str]] = [(0, "")]
    for line in page.partition("## Where things are\n")[2].partition("\n\n`")[0].splitlines():
        indent = len(line) - len(line.lstrip())
        folders = [folder for folder in folders if folder[0] < indent] or [(0, "")]
        names = re.split(r"\s{2,}", line.strip())[0].split(", ")
        found |= {folders[-1][1] + name for name in names}
        if names[0].endswith("/"):
            folders.append((indent, folders[-1][1] + names[0]))
    return found


def test_the_map_names_every_file_and_no_other() -> None:
    mapped = {path for path in in_the_map((ROOT / "docs/architecture.md").read_text()) if path.endswith(".py")}
    assert mapped == {name for name in NAMES if not name.endswith("__init__.py")}


def test_only_the_store_knows_of_sqlite_on_the_way_of_an_event() -> None:
    knows = {name for name, path in zip(NAMES, FILES, strict=True) if "sqlite3" in map(top, imports(path))}
    assert {"service/storage/store.py", "service/storage/database.py"} <= knows
    knows.discard("service/learning/telemetry.py")  # it tells only the version
    assert not {name for name in knows if name.startswith(("service/http/", "service/decode/", "service/learning/"))}


def test_nothing_imports_what_turns_bytes_into_code() -> None:
    forbidden = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "jsonpickle", "marshal", "shelve"}
    forbidden |= {"multiprocessing", "xmlrpc", "runpy", "code", "codeop"}  # the first two pickle, or their like
    found = {name: {top(module) for module in imports(ROOT / name)} & forbidden for name in NAMES + IMAGE}
    assert wrong(found) == {}


def uses(source: str) -> set[str]:
    """What a source names that turns text or bytes into code, by whatever way: called, passed on, as an attribute."""
    found: set[str] = set()
    for node in nodes(source):
        if isinstance(node, ast.Name):
            found |= {node.id} & {"eval", "exec", "compile", "__import__", "builtins", "__builtins__"}
        elif isinstance(node, ast.Attribute):
            found |= {node.attr} & {"eval", "exec", "import_module", "read_pickle", "to_pickle", "ProcessPoolExecutor"}
        elif isinstance(node, ast.alias):
            found |= {node.name} & {"builtins", "ProcessPoolExecutor"}
        elif isinstance(node, ast.keyword):
            found |= {"allow_pickle"} & {node.arg}  # numpy can read pickles too, if asked
        elif isinstance(node, ast.Constant):
            found |= {node.value} & {"allow_pickle"} if isinstance(node.value, str) else set()
    return found


def test_each_type_error_that_is_ignored_names_its_kind_and_says_why() -> None:
    ignored = re.compile("# type" + r": ignore(?!\[[a-z,-]+\]  # \w)")
    sources = [*FILES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "docs").glob("*.py")]
    lines = (
        (path.name, number, line) for path in sources for number, line in enumerate(path.read_text().splitlines(), 1)
    )
    assert [(name, number) for name, number, line in lines if ignored.search(line)] == []


def test_nothing_uses_eval_or_exec() -> None:
    assert wrong({name: uses((ROOT / name).read_text()) for name in NAMES + IMAGE}) == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("eval('1')", "eval"),
        ("f = exec", "exec"),
        ("import builtins", "builtins"),
        ("pandas.eval('1')", "eval"),
        ("numpy.load(f, allow_pickle=True)", "allow_pickle"),
        ("numpy.load(f, **{'allow_pickle': True})", "allow_pickle"),
        ("from concurrent.futures import ProcessPoolExecutor", "ProcessPoolExecutor"),
    ],
)
def test_the_walk_sees_each_of_them(source: str, found: str) -> None:
    assert uses(source) == {found}


def keywords(source: str) -> set[str]:
    return {node.arg for node in nodes(source) if isinstance(node, ast.keyword) and node.arg}


def test_nothing_asks_numba_for_fast_math() -> None:
    assert wrong({name: keywords((ROOT / name).read_text()) & {"fastmath"} for name in NAMES}) == {}


@from_checks_on
def test_a_process_that_serves_does_not_load_river() -> None:
    program = "import sys, service.http.app, service.http.server; sys.exit('river' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60, check=False).returncode == 0


@from_checks_on
def test_arrow_is_loaded_when_the_first_stream_of_it_comes_and_not_before() -> None:
    program = (
        "import sys, service.http.app, service.http.server, service.decode.pieces; sys.exit('pyarrow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60, check=False).returncode == 0
