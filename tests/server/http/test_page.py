"""The page at /: its files, their size, what they may load, and who may read them."""

import gzip
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from server.http.page import FOLDER, POLICY, read_page
from tests.server.conftest import MakeApp, client_of, error_of

ROOT = Path(__file__).parents[3]
FIRST_LOAD = 60_000  # compressed bytes of what the page loads before it is asked for anything
WHOLE_PAGE = 200_000
# Names of XML vocabularies, which nothing fetches.
NAMESPACES = ("http://www.w3.org/",)
ADDRESS = re.compile(r"(?:https?:|wss?:|[\"'(=]\s*)//[A-Za-z0-9.-]+\.[a-z]{2,}[^\s\"'`)]*")
LOADED = re.compile(r'(?:src|href)="([^"]+)"')


def first_files() -> list[str]:
    """Return the names of the files that index.html loads."""
    return [Path(path).name for path in LOADED.findall(index())]


def index() -> str:
    return (FOLDER / "index.html").read_text()


def policy(headers: Mapping[str, str]) -> dict[str, str]:
    parts = [part.strip().partition(" ") for part in headers["content-security-policy"].split(";")]
    return {name: value for name, _, value in parts}


def test_the_index_loads_files_of_the_page_only() -> None:
    names = first_files()
    assert len(names) >= 3
    assert all(f'"page/{name}"' in index() for name in names)
    assert set(names) <= read_page().keys()


def test_the_page_is_small() -> None:
    sizes = {name: len(file.compressed) for name, file in read_page().items()}
    assert sum(sizes[name] for name in [*first_files(), "index.html"]) <= FIRST_LOAD
    assert sum(sizes.values()) <= WHOLE_PAGE


def test_no_file_names_another_host() -> None:
    found = {
        address
        for file in read_page().values()
        for address in ADDRESS.findall(file.content.decode())
        if not address.startswith(NAMESPACES)
    }
    assert not found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('fetch("https://cdn.example/a.js")', True),
        ("url(//cdn.example/a.woff2)", True),
        ('x="//cdn.example/a"', True),
        ("a=b//2", False),
        ('"page/main.js"', False),
    ],
)
def test_addresses_of_hosts_are_recognised(text: str, found: bool) -> None:
    assert bool(ADDRESS.search(text)) is found


def test_the_index_has_no_script_and_no_style_of_its_own() -> None:
    assert re.findall(r"<script(?![^>]*\bsrc=)", index()) == []
    assert "<style" not in index()
    assert " style=" not in index()


@pytest.mark.parametrize("file", ["web/package.json", "web/package-lock.json", "web/.npmrc"])
def test_the_sources_of_packages_are_not_named(file: str) -> None:
    assert "://" not in (ROOT / file).read_text()


def test_every_package_in_the_lock_file_has_a_checksum() -> None:
    packages = json.loads((ROOT / "web/package-lock.json").read_text())["packages"]
    assert all("integrity" in entry for path, entry in packages.items() if path)


def test_git_has_every_file_that_is_served() -> None:
    """The wheel has the files that git does not ignore."""
    paths = [str(FOLDER / "index.html"), *(str(FOLDER / "files" / name) for name in first_files())]
    command = ["git", "check-ignore", "--no-index", *paths]
    ignored = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ignored.stdout == ""


@pytest.mark.parametrize("keys", [(), ("secret",)])
async def test_the_page_needs_no_key(keys: tuple[str, ...], make_app: MakeApp) -> None:
    async with client_of(make_app(keys=keys)) as client:
        answer = await client.get("/")
        files = [await client.get(f"/page/{name}") for name in first_files()]
        others = [await client.get(path) for path in ("/page", "/page/a/b", "/v1/models")]
    assert answer.status_code == 200
    assert answer.text == index()
    assert [file.status_code for file in files] == [200] * len(files)
    refused = [other.status_code for other in others]
    assert refused == ([401] * 3 if keys else [404, 404, 200])


@pytest.mark.parametrize("path", ["/", "/page/{name}"])
async def test_headers_of_the_page(path: str, client: httpx.AsyncClient) -> None:
    name = next(name for name in first_files() if name.endswith(".js"))
    answer = await client.get(path.format(name=name))
    rules = policy(answer.headers)
    assert answer.headers["content-security-policy"] == POLICY
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert rules["form-action"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert "unsafe" not in POLICY and "data:" not in POLICY
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    caching = answer.headers["cache-control"]
    assert caching == ("no-store" if path == "/" else "public, max-age=31536000, immutable")


@pytest.mark.parametrize(
    ("accepted", "compressed"),
    [
        ("gzip, deflate, br", True),
        ("GZIP;q=0.5", True),
        ("*", True),
        ("gzip;q=0", False),
        ("gzip; q=0.0", False),
        ("identity", False),
        ("br", False),
        ("", False),
    ],
)
async def test_files_are_compressed_where_the_client_allows_it(
    accepted: str, compressed: bool, client: httpx.AsyncClient
) -> None:
    async with client.stream("GET", "/", headers={"accept-encoding": accepted}) as answer:
        body = b"".join([piece async for piece in answer.aiter_raw()])
    assert (answer.headers.get("content-encoding") == "gzip") is compressed
    assert "Accept-Encoding" in answer.headers["vary"]
    assert (gzip.decompress(body) if compressed else body).decode() == index()


async def test_streams_are_never_compressed(client: httpx.AsyncClient) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    headers = {"accept-encoding": "gzip"}
    answer = await client.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "content-encoding" not in answer.headers


@pytest.mark.parametrize("name", ["main.js", "index.html", "..", "%2e%2e%2fstate.py", ""])
async def test_there_are_no_other_files(name: str, client: httpx.AsyncClient) -> None:
    answer = await client.get(f"/page/{name}")
    assert answer.status_code == (200 if name == ".." else 404)


async def test_head_is_answered_without_a_body(client: httpx.AsyncClient) -> None:
    answer = await client.head("/")
    assert answer.status_code == 200
    assert answer.content == b""


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-fetch-site": "none", "sec-fetch-mode": "navigate"}, 200),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),  # a link to it
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"host": "evil.example"}, 403),
        ({"origin": "https://evil.example"}, 403),
    ],
)
async def test_foreign_pages_may_only_link_to_it(
    headers: dict[str, str], status: int, client: httpx.AsyncClient
) -> None:
    answer = await client.get("/", headers=headers)
    assert answer.status_code == status
    if status == 403:
        assert error_of(answer, 403)["code"]
