"""On a server without keys, foreign web pages reach no route and other clients are answered."""

import logging
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, given, settings, strategies as st
from starlette.datastructures import Headers

from server.errors import ApiError
from server.http.app import find_apis
from server.http.origins import PagePolicy, host_of
from tests.server.conftest import MakeApp, chat, client_of, error_of

MACHINE = "Box.example.org"
PAGE = "https://page.example"
ALLOWED_HOSTS = ("llm.example.com",)
FOREIGN_HOSTS = (
    "",
    " ",
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "llm.example.com.evil.example",
    "xllm.example.com",
    "notlocalhost",
    "localhost..",
    ".localhost",
    "local",
    "other.local",
    "box.local.evil.example",
    "example.org",
    "localhost@evil.example",
    "user:pass@localhost",
    "evil.example#localhost",
    "localhost/evil",
    "localhost:8000:9000",
    "localhost:port",
    "localhost,evil.example",
    "localhost evil.example",
    "2130706433",
    "0x7f000001",
    "0x7f.0.0.1",
    "0177.0.0.1",
    "127.1",
    "127.0.0.256",
    "::1",
    "[::1",
    "[::1]evil.example",
    "[localhost]",
    "[127.0.0.1]",
    "host.docker.internal.evil.example",
    "kubernetes.docker.internal",
    "*",
    "null",
    "evil\u00adlocalhost",
)
OWN_HOSTS = (
    "localhost",
    "localhost:8000",
    "LOCALHOST:8000",
    "localhost.",
    "localhost.:8000",
    "localhost:",
    "app.localhost:8000",
    "127.0.0.1:8000",
    "127.8.9.1",
    "0.0.0.0:8000",
    "192.168.1.20:8000",
    "203.0.113.9",
    "[::1]:8000",
    "[0:0:0:0:0:0:0:1]",
    "[fe80::1%eth0]:8000",
    "[2001:DB8::7]",
    "box",
    "BOX:8000",
    "box.local:8000",
    "box.example.org",
    "host.docker.internal:11434",
    "llm.example.com",
    "LLM.Example.com.:443",
)
FOREIGN_ORIGINS = (
    "",
    "null",
    "NULL",
    "https://evil.example",
    "http://evil.example:8000",
    "http://localhost.evil.example",
    "http://127.0.0.1.evil.example",
    "http://localhost@evil.example",
    "http://evil.example/http://localhost",
    "http://localhost/",
    "http://localhost evil.example",
    "http://localhost, http://evil.example",
    "localhost",
    "//localhost",
    "http:localhost",
    "http://",
    "http://[::1",
    "http://127.1",
    "http://2130706433",
    "http://0177.0.0.1",
    "http://192.168.1.21:8000",
    "ftp://localhost",
    "ws://localhost",
    "file://",
    "file://localhost",
    "data://localhost",
    "application://x",
    "xapp://x",
    "app:x",
    "app://x, https://evil.example",
    "chrome-extension://abcdef",
    "https://page.example:8443",
    "https://sub.page.example",
    "http://page.example",
    "*",
)
OWN_ORIGINS = (
    "http://localhost:3000",
    "http://localhost",
    "HTTP://LOCALHOST:3000",
    "https://localhost:8443",
    "http://app.localhost:3000",
    "http://tauri.localhost",
    "http://127.0.0.1:3000",
    "http://127.0.0.2",
    "http://[::1]:3000",
    "http://[::ffff:127.0.0.1]",
    "app://obsidian.md",
    "app://.",
    "app://",
    "tauri://localhost",
    "vscode-webview://1f8q3k",
    "vscode-file://vscode-app",
    "capacitor://localhost",
    PAGE,
)
FOREIGN_TYPES = (
    "text/plain",
    "text/plain;charset=UTF-8",
    "text/plain; application/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=application/json",
    "application/jsonx",
    "application/json, text/plain",
    "",
    None,
)
JSON_TYPES = ("application/json", "Application/JSON", "application/json; charset=utf-8")
BODY = b'{"messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "input": "hi"}'

Pairs = list[tuple[str, str]]


def policy(**fields: Any) -> PagePolicy:
    given: dict[str, Any] = {
        "allowed_hosts": ALLOWED_HOSTS,
        "cors_origins": (PAGE,),
        "machine": MACHINE,
    }
    return PagePolicy(**(given | fields))


def decide(
    pairs: Sequence[tuple[str, str]],
    method: str = "GET",
    path: str = "/v1/models",
    **fields: Any,
) -> str | None:
    """Return the code of the refusal, None where the request is allowed."""
    raw = [(name.encode(), value.encode("latin-1")) for name, value in pairs]
    refusal = policy(**fields).refusal(method, path, Headers(raw=raw))
    assert refusal is None or (refusal.status == 403 and refusal.code is not None)
    return None if refusal is None else refusal.code


def site(kind: str, mode: str = "no-cors", host: str = "127.0.0.1:8000") -> Pairs:
    return [("host", host), ("sec-fetch-site", kind), ("sec-fetch-mode", mode)]


def body(content_type: str | None, **more: str) -> Pairs:
    pairs = [("host", "localhost"), ("origin", "http://localhost"), *more.items()]
    return pairs if content_type is None else [*pairs, ("content-type", content_type)]


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_foreign_hosts_are_refused_everywhere_but_at_health(host: str) -> None:
    assert decide([("host", host)]) == "host_not_allowed"
    assert decide([("host", host)], path="/health/") == "host_not_allowed"
    assert decide([("host", host)], path="/health") is None
    assert decide([("host", host)], allowed_hosts=("*",)) is None
    # DNS rebinding: for the browser the page has the server's own origin
    rebound = [("host", host), ("origin", f"http://{host}")]
    assert decide(rebound, method="POST") == "host_not_allowed"
    assert decide(rebound, path="/health") == "origin_not_allowed"


@pytest.mark.parametrize("host", OWN_HOSTS)
def test_own_hosts_and_their_pages_pass(host: str) -> None:
    assert decide([("host", host)]) is None
    assert decide([("host", host), ("origin", f"http://{host}")]) is None
    name = host_of(host)
    assert name is not None
    other_port = f"http://[{name}]:9" if ":" in name else f"https://{name}:9"
    assert decide([("host", host), ("origin", other_port)]) is None


def test_a_request_without_host_passes_and_one_with_several_does_not() -> None:
    assert decide([]) is None
    assert decide([("origin", "http://localhost:3000")]) is None
    assert decide([("origin", PAGE.replace("page", "other"))]) == "origin_not_allowed"
    for second in ("localhost", "evil.example"):
        assert decide([("host", "localhost"), ("host", second)]) == "host_not_allowed"
        assert decide([("host", second), ("host", "localhost")]) == "host_not_allowed"


@pytest.mark.parametrize("path", ["/v1/models", "/health"])
@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
def test_foreign_origins_are_refused(origin: str, path: str) -> None:
    for host in OWN_HOSTS:
        assert decide([("host", host), ("origin", origin)], path=path) == "origin_not_allowed"


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "192.168.1.20:8000", "llm.example.com"])
@pytest.mark.parametrize("origin", OWN_ORIGINS)
def test_allowed_origins_pass_whatever_their_site_is(host: str, origin: str) -> None:
    for kind in ("cross-site", "same-site", "same-origin"):
        assert decide([*site(kind, "cors", host), ("origin", origin)]) is None


def test_several_origins_are_refused() -> None:
    for second in ("http://localhost", "https://evil.example"):
        pairs = [("host", "localhost"), ("origin", "http://localhost"), ("origin", second)]
        assert decide(pairs) == "origin_not_allowed"
        assert decide(pairs[::-1]) == "origin_not_allowed"


@pytest.mark.parametrize("origin", ["null", "file://", "chrome-extension://abcdef", "http://a.b"])
def test_a_configured_origin_passes(origin: str) -> None:
    pairs = [("host", "localhost"), ("origin", origin)]
    assert decide(pairs) == "origin_not_allowed"
    assert decide(pairs, cors_origins=(PAGE, origin)) is None
    assert decide(pairs, cors_origins=("*",)) is None


@pytest.mark.parametrize(
    ("pairs", "method", "code"),
    [
        (site("cross-site"), "GET", "cross_site_request"),  # an image, a script
        (site("cross-site"), "HEAD", "cross_site_request"),
        (site("CROSS-SITE"), "GET", "cross_site_request"),
        (site("cross-site", "navigate"), "GET", None),  # a link
        (site("cross-site", "navigate"), "HEAD", None),
        (site("cross-site", "navigate"), "POST", "cross_site_request"),  # a form
        (site("cross-site", "cors"), "GET", "cross_site_request"),
        ([*site("none"), ("sec-fetch-site", "cross-site")], "GET", "cross_site_request"),
        (site("cross-site")[:2], "GET", "cross_site_request"),
        (site("same-site"), "GET", None),
        (site("same-origin"), "GET", None),
        (site("none", "navigate"), "GET", None),  # typed
        ([("sec-fetch-mode", "cors")], "POST", None),  # Node's fetch
    ],
)
def test_a_cross_site_request_without_an_origin_is_refused_unless_a_link(
    pairs: Pairs, method: str, code: str | None
) -> None:
    assert decide(pairs, method) == code
    assert decide(pairs, method, cors_origins=("*",)) is None


@pytest.mark.parametrize("content_type", [*FOREIGN_TYPES, *JSON_TYPES])
def test_bodies_of_pages_must_be_json(content_type: str | None) -> None:
    want = None if content_type in JSON_TYPES else "content_type_not_allowed"
    for length in ({"content-length": "7"}, {"transfer-encoding": "chunked"}):
        assert decide(body(content_type, **length), "POST") == want
        assert decide(body(content_type, **length), "POST", cors_origins=("*",)) == want
    assert decide(body(content_type, **{"content-length": "0"}), "POST") is None
    assert decide(body(content_type), "POST") is None
    without_origin = [p for p in body(content_type, **{"content-length": "7"}) if p[0] != "origin"]
    assert decide(without_origin, "POST") is None  # curl -d
    two = [*body(content_type, **{"content-length": "7"}), ("content-type", "text/plain")]
    assert decide(two, "POST") == "content_type_not_allowed"


@pytest.mark.parametrize(
    ("pairs", "setting"),
    [
        ([("host", "evil\r\n\x1b[31m" + "x" * 9000)], "allowed_hosts"),
        ([("origin", "evil\r\n\x1b[31m" + "x" * 9000)], "cors_origins"),
        (site("cross-site"), "cors_origins"),
        (body("text/plain", **{"content-length": "7"}), "api_key_file"),
    ],
)
def test_a_refusal_is_short_and_names_the_setting(pairs: Pairs, setting: str) -> None:
    raw = [(name.encode(), value.encode()) for name, value in pairs]
    refusal = policy().refusal("POST", "/v1/models", Headers(raw=raw))
    assert isinstance(refusal, ApiError)
    assert setting in refusal.message
    assert len(refusal.message) < 400
    assert refusal.message.isprintable()


def every_route() -> list[tuple[str, str]]:
    """Return method and path of every route, and of some requests that have no route."""
    found = {
        (method, f"{prefix}{route.path}".replace("{model_id:path}", "main"))
        for api in find_apis()
        for prefix in api.prefixes
        for route in api.router.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }
    assert {("POST", "/v1/chat/completions"), ("GET", "/v1/models/main")} <= found
    others = {("GET", "/openapi.json"), ("GET", "/none"), ("OPTIONS", "/v1/chat/completions")}
    return sorted(found | others | {("HEAD", path) for method, path in found if method == "GET"})


PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "x"}


@st.composite
def foreign_heads(draw: st.DrawFn) -> tuple[Pairs, bool]:
    """Return headers with at least one foreign among them, and whether /health may answer."""
    foreign = draw(st.sets(st.sampled_from(["host", "origin", "type", "site"]), min_size=1))
    host = draw(st.sampled_from(FOREIGN_HOSTS if "host" in foreign else OWN_HOSTS))
    pairs = [("host", host)]
    origin: str | None = None
    if "origin" in foreign:
        labels = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=9)
        named = st.builds("{}://{}.{}:{}".format, st.just("http"), labels, labels, st.integers(1))
        origin = draw(st.sampled_from(FOREIGN_ORIGINS) | named)
    elif "type" in foreign:
        origin = draw(st.sampled_from(OWN_ORIGINS))
    elif "site" not in foreign and draw(st.booleans()):
        origin = f"http://{host}"
    if origin is not None:
        pairs.append(("origin", origin))
    kind = draw(st.sampled_from(FOREIGN_TYPES if "type" in foreign else JSON_TYPES))
    if kind is not None:
        pairs.append(("content-type", kind))
    if "site" in foreign:
        pairs.append(("sec-fetch-site", "cross-site"))
    if draw(st.booleans()):
        pairs.extend(PREFLIGHT.items())
    return draw(st.permutations(pairs)), foreign == {"host"} and origin is None


@pytest.fixture
def transport(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> httpx.ASGITransport:
    monkeypatch.setattr(logging.getLogger("understudy"), "disabled", True)
    monkeypatch.setattr(socket, "gethostname", lambda: MACHINE)
    app = make_app(allowed_hosts=ALLOWED_HOSTS, cors_origins=[PAGE])
    return httpx.ASGITransport(app, raise_app_exceptions=False)


@settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(head=foreign_heads(), route=st.sampled_from(every_route()))
async def test_no_foreign_request_reaches_a_route(
    transport: httpx.ASGITransport, head: tuple[Pairs, bool], route: tuple[str, str]
) -> None:
    (headers, is_health_open), (method, path) = head, route
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        sent = [(name.encode(), value.encode("latin-1")) for name, value in headers]
        request = client.build_request(method, path, headers=sent, content=BODY)
        response = await client.send(request)
    if is_health_open and path in ("/health", "/v1/health"):
        assert response.status_code in (200, 405)
        return
    assert response.status_code == 403
    assert response.headers["x-request-id"]
    if method != "HEAD":
        error = response.json()["error"]
        shape = {"type", "message"} if path.startswith("/v1/messages") else set(error)
        assert set(error) == shape
        assert any(name in error["message"] for name in ("allowed_hosts", "cors_origins", "keys"))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/metrics", "/none"])
async def test_a_refusal_has_the_format_of_its_api(make_app: MakeApp, path: str) -> None:
    async with client_of(make_app()) as client:
        response = await client.post(path, json={}, headers={"origin": "null"})
        if path == "/v1/messages":
            assert response.status_code == 403
            assert response.json()["error"]["type"] == "permission_error"
        else:
            assert error_of(response, 403)["code"] == "origin_not_allowed"
        assert "access-control-allow-origin" not in response.headers


LEGITIMATE: dict[str, Mapping[str, str]] = {
    "own page": {
        "host": "127.0.0.1:8000",
        "origin": "http://127.0.0.1:8000",
        "sec-fetch-site": "same-origin",
        "sec-fetch-mode": "cors",
    },
    "own page in the network": {
        "host": "192.168.1.20:8000",
        "origin": "http://192.168.1.20:8000",
    },
    "page of another local port": {
        "host": "127.0.0.1:8000",
        "origin": "http://localhost:3000",
        "sec-fetch-site": "cross-site",
        "sec-fetch-mode": "cors",
    },
    "Electron": {
        "host": "localhost:8000",
        "origin": "app://obsidian.md",
        "sec-fetch-site": "cross-site",
        "sec-fetch-mode": "cors",
    },
    "a page behind a proxy": {
        "host": "llm.example.com",
        "origin": "https://llm.example.com",
        "sec-fetch-site": "same-origin",
    },
    "a configured page": {
        "host": "192.168.1.20:8000",
        "origin": PAGE,
    },
}


@pytest.mark.parametrize("who", LEGITIMATE)
async def test_legitimate_pages_are_answered_and_may_read_the_answer(
    make_app: MakeApp, who: str
) -> None:
    headers = LEGITIMATE[who]
    app = make_app(allowed_hosts=ALLOWED_HOSTS, cors_origins=[PAGE])
    async with client_of(app, headers=headers) as client:
        url = "/v1/chat/completions"
        asked = PREFLIGHT | {"access-control-request-private-network": "true"}
        for more in (PREFLIGHT, asked):
            preflight = await client.options(url, headers=more)
            assert preflight.status_code == 200
            assert preflight.headers["access-control-allow-origin"] == headers["origin"]
            assert preflight.headers["access-control-allow-private-network"] == "true"
        answer = await chat(client)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == headers["origin"]
        assert (await client.get("/v1/models")).status_code == 200
        wrong = await client.post(url, content=BODY, headers={"content-type": "text/plain"})
        assert error_of(wrong, 403)["code"] == "content_type_not_allowed"
        assert wrong.headers["access-control-allow-origin"] == headers["origin"]


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "localhost:8000", "user-agent": "curl/8.5.0", "accept": "*/*"},
        {"host": "host.docker.internal:8000", "user-agent": "Python/3.11 aiohttp/3.13"},
        {
            "host": "192.168.1.20:8000",
            "user-agent": "AsyncOpenAI/Python 3.52",
            "x-stainless-os": "Linux",
        },
        {"host": "127.0.0.1:8000", "user-agent": "node", "sec-fetch-mode": "cors"},
        {"host": f"{socket.gethostname()}:8000"},
        {"host": f"{socket.gethostname().partition('.')[0]}.local"},
    ],
    ids=lambda headers: headers["host"],
)
async def test_programs_may_send_any_content_type(
    make_app: MakeApp, headers: Mapping[str, str]
) -> None:
    async with client_of(make_app(), headers=headers) as client:
        assert (await chat(client)).status_code == 200
        for content_type in filter(None, FOREIGN_TYPES):
            response = await client.post(
                "/v1/chat/completions", content=BODY, headers={"content-type": content_type}
            )
            assert response.status_code == 200
        assert (await client.get("/metrics")).status_code == 200


async def test_with_keys_nothing_is_checked(make_app: MakeApp) -> None:
    headers = {"host": "evil.example", "origin": "null", "x-api-key": "alpha"}
    async with client_of(make_app(keys=("alpha",)), headers=headers) as client:
        client.headers["content-type"] = "text/plain"
        answer = await client.post("/v1/chat/completions", content=BODY)
        assert answer.status_code == 200
        assert (await client.get("/metrics", headers=dict(site("cross-site")))).status_code == 200
