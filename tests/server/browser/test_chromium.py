"""What pages in a real browser send to a server without keys, and what of it reaches a route."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from fastapi import FastAPI, Request
from starlette.responses import FileResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.server.conftest import MakeApp, serving

pytestmark = pytest.mark.slow

PAGE = Path(__file__).with_name("page.html")
PATIENCE_S = 30
FOREIGN = "evil.example"  # in this browser every name leads to this machine
READ = {"json": "chat.completion", "key": "chat.completion", "get": "list"}


class Recorder:
    """ASGI middleware that notes which attempts were answered, and with which status."""

    def __init__(self, app: ASGIApp, statuses: dict[str, int]) -> None:
        self._app = app
        self._statuses = statuses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        (by,) = parse_qs(scope.get("query_string", b"").decode()).get("by", [""])

        async def noting(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.accept"):
                self._statuses[by] = message.get("status", 101)
            await send(message)

        await self._app(scope, receive, noting if by else send)


def page_app(results: asyncio.Future[dict[str, str]]) -> FastAPI:
    """Return the site of the page, which reports there what its attempts came to."""
    app = FastAPI()

    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(PAGE)

    @app.post("/results")
    async def report(request: Request) -> Response:
        results.set_result(await request.json())
        return Response()

    return app


@asynccontextmanager
async def browsing(url: str, profile: Path) -> AsyncIterator[None]:
    """Have Chromium open a page; for it every name is this machine."""
    program = shutil.which("chromium")
    assert program is not None, "chromium is not installed"
    browser = await asyncio.create_subprocess_exec(
        *(program, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update"),
        f"--user-data-dir={profile}",
        "--host-resolver-rules=MAP * 127.0.0.1",
        url,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        browser.terminate()
        await browser.wait()


async def visit(
    app: FastAPI, page_host: str, server_host: str, profile: Path
) -> tuple[dict[str, str], dict[str, int]]:
    """Open a page of `page_host` that tries to use the app as `server_host`.

    Returns what the page saw of each of its attempts, and the statuses of those that arrived.
    """
    statuses: dict[str, int] = {}
    app.add_middleware(Recorder, statuses=statuses)
    seen: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()
    async with serving(app) as server, serving(page_app(seen)) as site:
        target = quote(f"http://{server_host}:{urlsplit(server).port}", safe="")
        address = f"http://{page_host}:{urlsplit(site).port}/?target={target}"
        async with browsing(address, profile):
            return await asyncio.wait_for(seen, PATIENCE_S), statuses


@pytest.mark.parametrize("server_host", ["127.0.0.1", "localhost", FOREIGN])
async def test_a_foreign_page_reaches_no_route(
    server_host: str, make_app: MakeApp, tmp_path: Path
) -> None:
    seen, statuses = await visit(make_app(), FOREIGN, server_host, tmp_path)
    assert len(seen) > 10 and statuses
    assert set(statuses.values()) == {403}, statuses
    assert not {name for name in READ if seen[name] == READ[name]}


@pytest.mark.parametrize(
    ("page_host", "server_host"),
    [("127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1"), ("localhost", "localhost")],
)
async def test_a_page_of_this_machine_is_answered(
    page_host: str, server_host: str, make_app: MakeApp, tmp_path: Path
) -> None:
    seen, statuses = await visit(make_app(), page_host, server_host, tmp_path)
    assert {name: seen[name] for name in READ} == READ
    assert statuses["text"] == 403, "a body with an Origin must say that it is JSON"


async def test_a_page_that_the_settings_name_is_answered(make_app: MakeApp, tmp_path: Path) -> None:
    seen, _ = await visit(make_app(cors_origins=("*",)), FOREIGN, "localhost", tmp_path)
    assert {name: seen[name] for name in READ} == READ
