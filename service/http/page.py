"""Serves the files in watching/dashboard/: the page at `/` and the API's documentation at `/docs`.

They load nothing from another host, so they work without internet. The content security policy forbids other hosts and
inline scripts, so a feature named like a script stays text.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fastapi import FastAPI, Request, Response

from service import errors
from service.http.headers import POLICY

FOLDER = Path(__file__).parents[1] / "watching" / "dashboard"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


class File(NamedTuple):
    """A file of the page, with its reply headers."""

    body: bytes
    headers: dict[str, str]


@cache
def files() -> dict[str, File]:
    """Every file that is served, by its path below the folder. A request cannot read any other file."""
    found = (path for path in FOLDER.rglob("*") if path.suffix in _TYPES)
    return {path.relative_to(FOLDER).as_posix(): _read(path) for path in found}


def _read(path: Path) -> File:
    body = path.read_bytes()
    headers = {
        "content-type": _TYPES[path.suffix],
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        # The browser revalidates each time. Else an old module could meet a new one after an upgrade.
        "cache-control": "no-cache",
        "etag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
    }
    return File(body, headers)


def add_page(api: FastAPI) -> None:
    """Add the routes of the page; openapi.json does not list them."""

    async def index(request: Request) -> Response:
        return _send(request, "index.html")

    async def docs(request: Request) -> Response:
        return _send(request, "docs.html")

    async def file(request: Request, path: str) -> Response:
        return _send(request, path)

    for path, endpoint in (("/", index), ("/docs", docs), ("/dashboard/{path:path}", file)):
        api.add_api_route(path, endpoint, methods=["GET"], include_in_schema=False)


def _send(request: Request, path: str) -> Response:
    found = files().get(path)
    if found is None:
        raise errors.NotFound(path=request.url.path[:100])
    if found.headers["etag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=found.headers)
    return Response(found.body, headers=found.headers)
