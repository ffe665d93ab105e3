"""Serves the files in watching/dashboard/: the page at `/` and the API's documentation at `/docs`.

They load nothing from another host, so they work without internet. The content security policy forbids other hosts and
inline scripts, so a feature named like a script stays text.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from fastapi import FastAPI, Request, Response

from service import errors

FOLDER = Path(__file__).parents[1] / "watching" / "dashboard"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content security policy of a page: its own files only, no other host, no inline scripts or styles."""
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}


@cache
def files() -> dict[str, Response]:
    """The reply of every file that is served, by its path below the folder. A request cannot read any other file."""
    found = (path for path in FOLDER.rglob("*") if path.suffix in _TYPES)
    return {path.relative_to(FOLDER).as_posix(): _read(path) for path in found}


def _read(path: Path) -> Response:
    body = path.read_bytes()
    headers = {
        "content-type": _TYPES[path.suffix],
        "content-security-policy": POLICY,
        # The browser revalidates each time. Else an old module could meet a new one after an upgrade.
        "cache-control": "no-cache",
        "etag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
    }
    return Response(body, headers=headers)


def add_page(api: FastAPI) -> None:
    """Add the routes of the page; openapi.json does not list them."""

    @api.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return _answer(request, "index.html")

    @api.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return _answer(request, "docs.html")

    @api.get("/dashboard/{path:path}", include_in_schema=False)
    async def file(request: Request, path: str) -> Response:
        return _answer(request, path)


def _answer(request: Request, path: str) -> Response:
    found = files().get(path)
    if found is None:
        raise errors.NotFound(path=request.url.path[:100])
    if found.headers["etag"] in request.headers.get("if-none-match", ""):
        headers = {name: value for name, value in found.headers.items() if name != "content-length"}
        return Response(status_code=304, headers=headers)
    return found
