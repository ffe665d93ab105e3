"""The page that people look at, at `/`, and the API's documentation, at `/docs`: the files in dashboard/, as they are.

Nothing on them comes from another host, so they work where there is no internet, and the policy below lets the browser
neither load from elsewhere nor run what stands inside a document: a feature that is named like a script is text.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from fastapi import FastAPI, Request, Response

from service import errors
from service.http.headers import POLICY

FOLDER = Path(__file__).with_name("dashboard")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


class File(NamedTuple):
    """A file of the page, as it is sent."""

    body: bytes
    headers: dict[str, str]


@cache
def files() -> dict[str, File]:
    """Every file that may be asked for, by its path below the folder: no other path leads to the disk."""
    found = (path for path in FOLDER.rglob("*") if path.suffix in _TYPES)
    return {path.relative_to(FOLDER).as_posix(): _read(path) for path in found}


def _read(path: Path) -> File:
    body = path.read_bytes()
    headers = {
        "content-type": _TYPES[path.suffix],
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        # Ask each time whether it is still this one: after an upgrade no old module meets a new one.
        "cache-control": "no-cache",
        "etag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
    }
    return File(body, headers)


def add_page(api: FastAPI) -> None:
    """The routes of the page; the API's document does not list them."""

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
