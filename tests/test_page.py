"""The files of the page and of /docs: how they are served, that the package has all, and the vendored as released."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest
from harness import Service, assert_problem, copy_source

from service.http import page

ROOT = Path(__file__).resolve().parent.parent
VENDOR = page.FOLDER / "vendor"
OWN = sorted(path for path in page.FOLDER.iterdir() if path.suffix in (".html", ".js", ".css", ".svg"))
PATHS = {"/": "index.html", "/docs": "docs.html"}


@pytest.mark.parametrize(("path", "name"), PATHS.items())
def test_the_page_and_the_documentation_are_the_files_in_the_folder(shared: Service, path: str, name: str) -> None:
    response = shared.http.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.content == (page.FOLDER / name).read_bytes()


def test_every_file_is_served_with_its_type_and_the_policy(shared: Service) -> None:
    types = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    for name in page.files():
        response = shared.http.get(f"/dashboard/{name}")
        assert response.content == (page.FOLDER / name).read_bytes()
        assert response.headers["content-type"].partition(";")[0] == types[Path(name).suffix]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert_strict(response)


def assert_strict(response: httpx.Response) -> None:
    """That only this host's files run, and nothing that stands inside a document."""
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy.pop("default-src") == "'none'"
    assert policy.pop("img-src") == "'self' data:"
    own = {"script-src", "style-src", "connect-src"}
    assert policy == dict.fromkeys(own, "'self'") | {
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }


def test_a_file_that_did_not_change_is_not_sent_again(shared: Service) -> None:
    first = shared.http.get("/dashboard/main.js")
    assert first.headers["cache-control"] == "no-cache"
    again = shared.http.get("/dashboard/main.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    changed = shared.http.get("/dashboard/main.js", headers={"if-none-match": '"another"'})
    assert (changed.status_code, changed.content) == (200, first.content)


def test_head_says_how_long_a_file_is_and_sends_nothing(shared: Service) -> None:
    response = shared.http.head("/dashboard/main.js")
    assert response.status_code == 200
    assert int(response.headers["content-length"]) == len((page.FOLDER / "main.js").read_bytes())
    assert response.content == b""


@pytest.mark.parametrize(
    "path",
    [
        "nosuch.js",
        "",
        "..%2fapp.py",
        "%2e%2e/page.py",
        "vendor/..%2f..%2fapp.py",
        "%2fetc%2fhosts",
        "vendor/SHA256SUMS",
    ],
)
def test_no_other_file_of_the_machine_is_reached(shared: Service, path: str) -> None:
    assert_problem(shared.http.get(f"/dashboard/{path}"), 404)


def test_the_page_takes_no_other_method(shared: Service) -> None:
    problem = assert_problem(shared.http.post("/docs"), 405, "/docs does not allow POST")
    assert "GET" in problem["detail"]


def test_nothing_is_asked_of_another_host_and_nothing_stands_inside_a_document() -> None:
    for path in OWN:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")  # a name, not an address
        assert not re.search(r"(https?:)?//[a-z0-9.-]+\.[a-z]{2,}", text), path.name
        assert not re.search(r"(inner|outer|Adjacent)HTML|document\.write|\beval\(|new Function", text), path.name
        if path.suffix == ".html":
            assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)", text), path.name


def test_the_libraries_of_others_are_as_they_were_released() -> None:
    recorded = dict(line.split("  ")[::-1] for line in (VENDOR / "SHA256SUMS").read_text().splitlines())
    files = {path.relative_to(VENDOR).as_posix(): path for path in VENDOR.rglob("*") if path.is_file()}
    del files["SHA256SUMS"]
    assert {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()} == recorded
    for library in {Path(name).parts[0] for name in recorded}:
        assert f"{library}/LICENSE" in recorded
        name, version = library.rsplit("-", 1)
        assert re.search(
            rf"{name}[^|]* {re.escape(version)}", (ROOT / "docs" / "contributing.md").read_text(), re.IGNORECASE
        ), library


def test_a_wheel_has_all_of_the_page(tmp_path: Path) -> None:
    source = tmp_path / "source"
    copy_source(source)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('..'))"
    made = subprocess.run(
        [sys.executable, "-c", build], cwd=source, capture_output=True, text=True, timeout=60, check=False
    )
    assert made.returncode == 0, made.stderr
    with zipfile.ZipFile(tmp_path / made.stdout.split()[-1]) as wheel:
        installed = {name for name in wheel.namelist() if name.startswith("service/watching/dashboard/")}
        for name, file in page.files().items():
            assert wheel.read(f"service/watching/dashboard/{name}") == file.body
    licences = {
        f"service/watching/dashboard/vendor/{path.parent.name}/{path.name}" for path in VENDOR.glob("*/LICENSE*")
    }
    assert len(licences) >= 2
    assert licences <= installed
    assert not [name for name in installed if name.endswith(".png")]
