"""API keys from the environment, the command line and a file that changes; CORS with keys."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from server.config.files import ConfigError
from server.http.auth import ApiKeys, KeyFile, read_keys
from tests.server.conftest import MakeApp, chat, client_of, error_of

ORIGIN = "http://localhost:3000"
PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-os",
}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_keys_come_from_environment_command_line_and_file(tmp_path: Path) -> None:
    assert not read_keys({}, None)
    path = tmp_path / "keys"
    path.write_text("# ours\nalpha\n\n  beta  \n")
    keys = read_keys({"UNDERSTUDY_API_KEY": "gamma"}, path, "delta")
    owners = {keys.find_owner(bearer(key)) for key in ("alpha", "beta", "gamma", "delta")}
    assert len(owners) == 4
    assert None not in owners


@pytest.mark.parametrize(
    ("headers", "known"),
    [
        (bearer("alpha"), True),
        ({"authorization": "bearer alpha"}, True),
        ({"x-api-key": "alpha"}, True),
        ({"authorization": "Basic whatever", "x-api-key": "alpha"}, True),
        ({}, False),
        ({"authorization": ""}, False),
        ({"authorization": "Bearer"}, False),
        ({"authorization": "Bearer "}, False),
        ({"authorization": "alpha"}, False),
        ({"authorization": "Basic alpha"}, False),
        ({"x-api-key": ""}, False),
        (bearer("# ours"), False),
        (bearer("wrong") | {"x-api-key": "alpha"}, False),
    ],
)
def test_a_key_is_found_in_either_header(headers: Mapping[str, str], known: bool) -> None:
    assert (ApiKeys(["alpha"]).find_owner(headers) is not None) == known


def test_keys_themselves_are_not_kept_in_memory() -> None:
    keys = ApiKeys(["secret"])
    assert "secret" not in str(vars(keys)) + str(keys.find_owner(bearer("secret")))


@pytest.mark.parametrize("text", ["", "# nothing\n", "\n \n", None])
def test_a_file_without_keys_is_an_error_at_start(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "keys"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match="cannot be read" if text is None else "holds no key"):
        read_keys({}, path)
    with pytest.raises(ConfigError, match="--api-key"):
        read_keys({}, None, " ")


def test_a_changed_file_applies_at_once_and_a_broken_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    path.write_text("old\n")
    keys = ApiKeys(file=KeyFile(path))

    def known(*names: str) -> list[str]:
        return [name for name in names if keys.find_owner(bearer(name))]

    assert known("old", "newer") == ["old"]
    path.write_text("newer\nthird\n")
    assert known("old", "newer", "third") == ["newer", "third"]
    with caplog.at_level(logging.ERROR, "understudy"):
        path.write_text("")  # as an editor that is about to write leaves it
        assert known("newer") == known("newer") == ["newer"]
        path.write_bytes(b"\xff\xfe")
        assert known("newer") == ["newer"]
        path.unlink()
        assert known("newer") == ["newer"]
    assert len(caplog.records) == 3  # one for each change, not for each request
    assert "newer" not in caplog.text
    assert all(record.getMessage().count(str(path)) == 1 for record in caplog.records)
    (tmp_path / "next").write_text("last\n")
    os.replace(tmp_path / "next", path)
    assert known("newer", "last") == ["last"]


@pytest.mark.parametrize("path", ["/health", "/v1/health"])
async def test_only_health_needs_no_key(make_app: MakeApp, path: str) -> None:
    async with client_of(make_app(keys=("alpha",))) as client:
        assert (await client.get(path)).status_code == 200
        for closed in ("/metrics", "/openapi.json", f"{path}/", f"/x{path}"):
            error_of(await client.get(closed), 401)
        refused = await chat(client)
        assert refused.headers["www-authenticate"] == "Bearer"


async def test_with_keys_no_cors_headers_are_sent_by_default(make_app: MakeApp) -> None:
    async with client_of(make_app(keys=("alpha",)), headers=bearer("alpha")) as client:
        response = await client.options("/v1/chat/completions", headers=PREFLIGHT)
        assert error_of(response, 405)["code"] == "method_not_allowed"
        response = await chat(client)
        assert response.status_code == 200
        assert not [name for name in response.headers if name.startswith("access-control")]


async def test_a_configured_origin_may_send_requests_with_a_key(make_app: MakeApp) -> None:
    async with client_of(make_app(keys=("alpha",), cors_origins=[ORIGIN])) as client:
        preflight = await client.options("/v1/chat/completions", headers=PREFLIGHT)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == ORIGIN
        assert preflight.headers["access-control-allow-private-network"] == "true"
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        assert preflight.headers["x-request-id"]
        client.headers["origin"] = ORIGIN
        refused = await chat(client)
        error_of(refused, 401)
        assert refused.headers["access-control-allow-origin"] == ORIGIN  # the page can read it
        client.headers.update(bearer("alpha"))
        answer = await chat(client)
        assert answer.status_code == 200
        assert "x-request-id" in answer.headers["access-control-expose-headers"]


async def test_other_origins_get_an_error_in_openais_format(make_app: MakeApp) -> None:
    app = make_app(keys=("alpha",), cors_origins=[ORIGIN])
    async with client_of(app, headers=bearer("alpha")) as client:
        other = PREFLIGHT | {"origin": "http://elsewhere.example"}
        response = await client.options("/v1/chat/completions", headers=other)
        assert error_of(response, 400)["code"] == "cors_refused"
        client.headers["origin"] = other["origin"]
        answer = await chat(client)
        assert answer.status_code == 200  # only the key decides
        assert "access-control-allow-origin" not in answer.headers
        # no preflight: an ordinary request
        assert error_of(await client.options("/health"), 405)["code"] == "method_not_allowed"
