"""Tests of TLS: the files and their errors, their change, commands that talk to such a server.

The certificates in tls/ are valid for a hundred years, but for one that has expired.
"""

import argparse
import asyncio
import logging
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn

from server.cli import main
from server.cli.arguments import build_parsers
from server.cli.remote import RemoteError, choose_url, connect_to
from server.cli.serve import bind, http_config, local_url
from server.cli.servers import announced
from server.config.files import ConfigError
from server.config.settings import load_settings
from server.http.certificate import Certificate, read_certificate
from tests.server.conftest import MakeApp, chat, serving
from tests.server.fake_engine import FakeEngines

FILES = Path(__file__).parent / "tls"
GOOD, KEY = FILES / "good.pem", FILES / "good.key"


@pytest.mark.parametrize(
    ("cert", "key", "words"),
    [
        ("none.pem", "good.key", "tls_cert: {}/none.pem cannot be read: No such file"),
        ("good.pem", "none.key", "tls_key: {}/none.key cannot be read: No such file"),
        ("good.pem", "other.key", "tls_key: the key in {}/other.key is not that of the first"),
        ("good.pem", "encrypted.key", "tls_key: the key in {}/encrypted.key is encrypted"),
        ("good.pem", "good.pem", "tls_key: {}/good.pem holds no key"),
        ("good.key", "good.key", "tls_cert: {}/good.key holds no certificate"),
        ("expired.pem", "good.key", "tls_cert: the certificate in {}/expired.pem has expired"),
    ],
)
def test_files_that_cannot_be_used_are_refused_by_name(cert: str, key: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_certificate(FILES / cert, FILES / key)
    assert str(caught.value).startswith(words.format(FILES))


def test_a_file_that_may_not_be_read_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ConfigError, match=r"tls_cert: .*good\.pem cannot be read: Permission"):
        read_certificate(GOOD, KEY)


def test_a_key_needs_a_certificate_and_may_be_in_its_file(tmp_path: Path) -> None:
    assert read_certificate(None, None) is None
    with pytest.raises(ConfigError, match="tls_key is set without tls_cert"):
        read_certificate(None, KEY)
    both = tmp_path / "both.pem"
    both.write_bytes(GOOD.read_bytes() + KEY.read_bytes())
    assert read_certificate(both, None) is not None


def test_paths_in_the_settings_are_relative_to_their_file(tmp_path: Path) -> None:
    (tmp_path / "understudy.yaml").write_text("tls_cert: cert.pem\ntls_key: /key.pem")
    settings = load_settings([tmp_path], {}, {})
    assert (settings.tls_cert, settings.tls_key) == (tmp_path / "cert.pem", Path("/key.pem"))
    settings = load_settings([tmp_path], {"UNDERSTUDY_TLS_CERT": "mine.pem"}, {"tls_key": "k"})
    assert (settings.tls_cert, settings.tls_key) == (Path("mine.pem"), Path("k"))


def test_serve_refuses_files_that_cannot_be_used(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    options = ["--tls-cert", str(GOOD), "--tls-key", str(FILES / "other.key")]
    assert main.main(["serve", "demo", "--port", "0", *options]) == 1
    assert "error: tls_key: the key in" in capsys.readouterr().err


@asynccontextmanager
async def tls_server(
    make_app: MakeApp, certificate: Certificate, **settings: object
) -> AsyncIterator[str]:
    """Run a server that speaks TLS on a free port, and yield its URL."""
    app = make_app(tls_cert=GOOD, **settings)
    with bind("127.0.0.1", 0) as listener:
        server = uvicorn.Server(http_config(app, certificate=certificate))
        task = asyncio.create_task(server._serve([listener]))
        while not server.started:
            await asyncio.sleep(0)
        try:
            yield local_url(listener, is_tls=True)
        finally:
            server.should_exit = True
            await task


def client_of(url: str, cert: Path) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=url, timeout=None, verify=ssl.create_default_context(cafile=cert)
    )


async def test_a_changed_certificate_is_used_and_connections_go_on(
    make_app: MakeApp,
    engines: FakeEngines,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    shutil.copy(GOOD, cert)
    shutil.copy(KEY, key)
    engines.script.pause = asyncio.Event()
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    other, other_key = FILES / "other.pem", FILES / "other.key"
    async with tls_server(make_app, Certificate(cert, key)) as url, client_of(url, GOOD) as old:
        async with old.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.aiter_lines()
            await anext(lines)
            shutil.copy(other, cert)  # the key is not there yet
            with caplog.at_level(logging.INFO, "understudy"):
                async with client_of(url, GOOD) as between:
                    assert (await between.get("/health")).status_code == 200
                assert "not that of the first certificate" in caplog.text
                shutil.copy(other_key, key)
                async with client_of(url, other) as new:
                    assert (await new.get("/health")).status_code == 200
                assert "is used from now on" in caplog.text
            engines.script.pause.set()
            assert "data: [DONE]" in [line async for line in lines]
        assert (await old.get("/health")).status_code == 200, "its connection is kept"
        async with client_of(url, GOOD) as late:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await late.get("/health")


async def test_pages_must_come_by_tls_as_well(make_app: MakeApp) -> None:
    async with tls_server(make_app, Certificate(GOOD, KEY)) as url, client_of(url, GOOD) as client:
        own = httpx.URL(url)
        for origin, status in (
            (f"https://{socket.gethostname()}", 200),
            (f"http://{socket.gethostname()}", 403),
            ("http://localhost:3000", 200),
            ("https://evil.example", 403),
        ):
            headers = {"origin": origin, "host": f"{socket.gethostname()}:{own.port}"}
            response = await client.get("/v1/models", headers=headers)
            assert response.status_code == status, origin
        foreign = await client.get("/v1/models", headers={"host": "evil.example"})
        assert foreign.status_code == 403
        assert "strict-transport-security" not in foreign.headers
        assert (await chat(client)).status_code == 200


async def test_plain_http_and_bad_requests_end_quietly(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    async with tls_server(make_app, Certificate(GOOD, KEY)) as url:
        port = httpx.URL(url).port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"HTTP" not in await reader.read()
        writer.close()
        context = ssl.create_default_context(cafile=GOOD)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(b"GET / HTTP/9\x00\r\n\r\n")
        assert b"400 Bad Request" in await reader.readuntil(b"}}")
        writer.close()
    assert "Traceback" not in caplog.text


async def test_commands_trust_the_server_of_this_machine_and_what_is_named(
    make_app: MakeApp, tmp_path: Path
) -> None:
    env = {"XDG_STATE_HOME": str(tmp_path)}
    args = main_args(["ps"])
    async with tls_server(make_app, Certificate(GOOD, KEY)) as url:
        with announced(url, env, GOOD):
            assert choose_url(None, env) == url
            await asyncio.to_thread(check, url, args, env)
        with pytest.raises(RemoteError, match=r"is not trusted .*--ca or UNDERSTUDY_CA"):
            await asyncio.to_thread(check, url, args, env)
        await asyncio.to_thread(check, url, main_args(["ps", "--ca", str(GOOD)]), env)
        await asyncio.to_thread(check, url, args, {**env, "UNDERSTUDY_CA": str(GOOD)})
        with pytest.raises(RemoteError, match="holds no certificates"):
            check(url, main_args(["ps", "--ca", str(KEY)]), env)
        plain = url.replace("https", "http")
        with pytest.raises(RemoteError, match="use https:// instead"):
            await asyncio.to_thread(check, plain, args, env)


async def test_a_server_without_tls_is_named_as_such(make_app: MakeApp, tmp_path: Path) -> None:
    env = {"XDG_STATE_HOME": str(tmp_path)}
    async with serving(make_app()) as url:
        with pytest.raises(RemoteError, match="try http://"):
            await asyncio.to_thread(check, url.replace("http", "https"), main_args(["ps"]), env)


def main_args(argv: list[str]) -> argparse.Namespace:
    return build_parsers().parse(argv)


def check(url: str, args: argparse.Namespace, env: dict[str, str]) -> None:
    with connect_to(url, args, env) as remote:
        remote.check_health()
