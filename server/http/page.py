"""The page at `/`. Its files are built from `web/`, and are sent without a key, compressed.

The names of all files but index.html contain a hash of their content, so browsers keep them.
"""

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.errors import ApiError

FOLDER = Path(__file__).parents[1] / "page"
TYPES: Mapping[str, str] = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Scripts and styles come from files of this server only, so text of a model that became markup by
# mistake could neither run nor fetch anything.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept-Encoding",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
NEVER = "no-store"
FOR_EVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class PageFile:
    """A file of the page, as it is sent."""

    content: bytes
    compressed: bytes
    headers: Mapping[str, str]


def page_routes() -> list[Route]:
    """Return the routes of the page: `/`, and `/page/NAME` for the files that it loads."""
    return [Route("/", _send_index), Route("/page/{name}", _send_file)]


@cache
def read_page() -> Mapping[str, PageFile]:
    """Return all files of the page by name. They are read and compressed once."""
    files = {path.name: _read(path, FOR_EVER) for path in (FOLDER / "files").iterdir()}
    return files | {"index.html": _read(FOLDER / "index.html", NEVER)}


def _read(path: Path, caching: str) -> PageFile:
    content = path.read_bytes()
    headers = {**HEADERS, "Content-Type": TYPES[path.suffix], "Cache-Control": caching}
    return PageFile(content, gzip.compress(content, mtime=0), headers)


def _send_index(request: Request) -> Response:
    return _send(request, read_page()["index.html"])


def _send_file(request: Request) -> Response:
    name = request.path_params["name"]
    file = read_page().get(name) if name != "index.html" else None
    if file is None:
        raise ApiError(
            f"The page has no file {name!r}. If the server was updated, load the page again.",
            code="unknown_url",
            status=404,
        )
    return _send(request, file)


def _send(request: Request, file: PageFile) -> Response:
    accepted = request.headers.get("accept-encoding", "")
    if any(_accepts_gzip(part) for part in accepted.split(",")):
        return Response(file.compressed, headers={**file.headers, "Content-Encoding": "gzip"})
    return Response(file.content, headers=dict(file.headers))


def _accepts_gzip(part: str) -> bool:
    """Return whether one part of an Accept-Encoding header allows gzip."""
    coding, _, quality = part.partition(";")
    refused = quality.replace(" ", "").rstrip("0") in ("q=", "q=0.")
    return coding.strip().lower() in ("gzip", "*") and not refused
