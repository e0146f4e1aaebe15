"""GET /v1/models, /version and HEAD: what clients show people, and what they probe."""

from typing import Any

import httpx
import pytest

from server.config.model_file import ParsersSection, SamplingSection
from tests.server.conftest import MakeApp, chat, client_of, complete, entry, error_of
from tests.server.fake_engine import FakeEngines


async def test_the_loaded_model_is_listed_first_then_the_default(make_app: MakeApp) -> None:
    entries = [entry(name) for name in ("a", "main", "z")]
    async with client_of(make_app(entries=entries)) as client:

        async def listed() -> list[str]:
            return [model["id"] for model in (await client.get("/v1/models")).json()["data"]]

        assert await listed() == ["main", "a", "z"]
        assert (await chat(client, model="z")).status_code == 200
        assert await listed() == ["z", "main", "a"]
        models = (await client.get("/v1/models")).json()["data"]
        assert [model["state"] for model in models] == ["loaded", "unloaded", "unloaded"]
        assert [model.get("max_model_len") for model in models] == [1024, None, None]


@pytest.mark.parametrize(
    ("fields", "more"),
    [
        ({}, {"chat"}),
        ({"chat_template": "<tool_call>{% for m in messages %}{% endfor %}"}, {"chat", "tools"}),
        ({"chat_template": "<think>"}, {"chat", "thinking"}),
        ({"parsers": ParsersSection(tools="hermes", reasoning="think")}, {"tools", "thinking"}),
    ],
)
async def test_the_loaded_model_has_capabilities(
    make_app: MakeApp, engines: FakeEngines, fields: dict[str, Any], more: set[str]
) -> None:
    if "chat" not in more:
        engines.script.tokenizer_path = "no-template"
    async with client_of(make_app(entries=[entry("main", **fields), entry("b")])) as client:
        assert "capabilities" not in (await client.get("/v1/models/main")).json(), "not loaded"
        await complete(client)
        model, other = (await client.get("/v1/models")).json()["data"]
    assert set(model["capabilities"]) == {"completion", "structured_outputs"} | more
    assert "capabilities" not in other


async def test_the_defaults_of_sampling_are_those_of_requests_without_parameters(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    engines.script.sampling = (("temperature", 0.6), ("top_k", 20))
    file = SamplingSection(temperature=0.3, max_tokens=7)
    entries = [entry("main", sampling=file), entry("other")]
    async with client_of(make_app(entries=entries)) as client:
        main, other = (await client.get("/v1/models")).json()["data"]
        assert main["sampling"] == {"temperature": 0.3, "max_tokens": 7}, "as far as it is known"
        assert other["sampling"] == {}
        assert (await chat(client)).status_code == 200
        main = (await client.get("/v1/models/main")).json()
    params = engines.engine.requests[0].params
    found = main["sampling"]
    assert (found["temperature"], found["top_k"], found["max_tokens"]) == (0.3, 20, 7)
    assert (params.temperature, params.top_k, params.max_tokens) == (0.3, 20, 7)
    assert set(found) == set(SamplingSection.model_fields)


@pytest.mark.parametrize("strict", [False, True])
async def test_any_name_has_a_model_unless_names_are_strict(
    make_app: MakeApp, strict: bool
) -> None:
    async with client_of(make_app(strict=strict)) as client:
        answer = await client.get("/v1/models/gpt-4o")
        if strict:
            error_of(answer, 404)
        else:
            assert answer.json()["id"] == "main"


@pytest.mark.parametrize(
    "path", ["/health", "/v1/models", "/v1/models/main", "/version", "/openapi.json", "/metrics"]
)
async def test_head_is_answered_wherever_get_is(client: httpx.AsyncClient, path: str) -> None:
    got, head = await client.get(path), await client.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    assert head.headers["content-type"] == got.headers["content-type"]


async def test_an_unknown_url_tells_which_there_are(client: httpx.AsyncClient) -> None:
    assert (await client.head("/v1/chat/completions")).status_code == 405
    message = error_of(await client.get("/api/tags"), 404)["message"]
    assert "/v1/chat/completions" in message and "/v1/models/{model_id}/load" in message


async def test_timings_are_rounded(client: httpx.AsyncClient) -> None:
    timings = (await chat(client)).json()["timings"]
    floats = [value for value in timings.values() if isinstance(value, float)]
    assert floats and all(value == round(value, 3) for value in floats)
