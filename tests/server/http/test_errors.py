"""Errors in OpenAI's format: bodies, limits, routes, keys and request ids."""

import json
from typing import Any

import httpx
import pytest

from engine.errors import EngineDied, ModelError, PassFailed, QueueFull, RequestError
from tests.server.conftest import MakeApp, chat, client_of, complete, error_of
from tests.server.fake_engine import FakeEngines

USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": None}, "messages", "invalid_type"),
        ({"messages": []}, "messages", "empty_array"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": ["hi"]}, "messages.0", "invalid_type"),
        ({"messages": [{"content": "x"}]}, "messages.0.role", "missing_required_parameter"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages.0.role", "invalid_value"),
        ({"messages": [{"role": 3, "content": "x"}]}, "messages.0.role", "invalid_value"),
        ({"messages": [USER, {"role": "user"}]}, "messages.1.content", None),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content", "invalid_type"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "invalid_type"),
        (
            {"messages": [{"role": "user"}]},
            "messages.0.content",
            "missing_required_parameter",
        ),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "messages.0.tool_call_id",
            "missing_required_parameter",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content.0",
            "unsupported_content",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages.0.content.0.text",
            "missing_required_parameter",
        ),
        ({"temperature": 2.5}, "temperature", "invalid_value"),
        ({"temperature": "1"}, "temperature", "invalid_type"),
        ({"temperature": True}, "temperature", "invalid_type"),
        ({"top_p": -0.1}, "top_p", "invalid_value"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": 129}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_type"),
        ({"n": 1.5}, "n", "invalid_type"),
        ({"n": 1e300}, "n", "invalid_value"),
        ({"stop": ["a"] * 1025}, "stop", "invalid_value"),
        ({"stop": ["a" * 60_000] * 2}, "stop", "invalid_value"),
        ({"stop": 5}, "stop", "invalid_type"),
        ({"stop": [None]}, "stop.0", "invalid_type"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "invalid_value"),
        ({"max_tokens": -2}, "max_tokens", "invalid_value"),
        ({"max_tokens": "5"}, "max_tokens", "invalid_type"),
        ({"max_tokens": True}, "max_tokens", "invalid_type"),
        ({"max_tokens": 2, "min_tokens": 3}, "min_tokens", "invalid_value"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "invalid_value"),
        ({"logprobs": 1}, "logprobs", "invalid_type"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "invalid_value"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "invalid_value"),
        ({"logit_bias": {"9" * 5000: 1}}, ("logit_bias." + "9" * 5000)[:64], "invalid_value"),
        ({"logit_bias": {"259": 1}}, "logit_bias", "invalid_token"),
        ({"stop_token_ids": [259]}, "stop_token_ids", "invalid_token"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream": False, "stream_options": []}, "stream_options", "invalid_type"),
        (
            {"stream": True, "stream_options": {"include_usage": 1}},
            "stream_options.include_usage",
            "invalid_type",
        ),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"prediction": {"type": "content"}}, "prediction.content", "missing_required_parameter"),
        ({"prediction": {"type": "x", "content": ""}}, "prediction.type", "invalid_value"),
        ({"prediction": {"type": "content", "content": 5}}, "prediction.content", "invalid_type"),
        ({"prediction": [None]}, "prediction", "invalid_type"),
        ({"provenance": "yes"}, "provenance", "invalid_type"),
        ({"provenance": 1}, "provenance", "invalid_type"),
        ({"provenance": ["tree"]}, "provenance", "invalid_type"),
        ({"modalities": ["audio"]}, "modalities", "unsupported_parameter"),
        ({"documents": [{"text": "t"}]}, "documents", "unsupported_parameter"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize", None),
        (
            {"chat_template_kwargs": {"conversations": []}},
            "chat_template_kwargs.conversations",
            None,
        ),
        ({"continue_final_message": True}, "continue_final_message", "invalid_value"),
        ({"model": 5}, "model", "invalid_type"),
    ],
)
async def test_the_error_names_a_bad_field(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str, code: str | None
) -> None:
    for stream in (False, True):
        error = error_of(await chat(client, **({"stream": stream} | fields)), 400)
        assert error["param"] == param
        assert error["type"] == "invalid_request_error"
        if code is not None:
            assert error["code"] == code


@pytest.mark.parametrize(
    ("path", "part", "param"),
    [
        ("/v1/chat/completions", {"type": "image_url", "image_url": {"url": "x"}}, "content.1"),
        ("/v1/chat/completions", {"type": "input_audio", "input_audio": {}}, "content.1"),
        ("/v1/responses", {"type": "input_image", "image_url": "x"}, "content.1.type"),
        ("/v1/messages", {"type": "image", "source": {"type": "url"}}, "content.1.type"),
    ],
)
async def test_a_request_with_an_image_is_refused_by_the_field(
    client: httpx.AsyncClient, path: str, part: dict[str, Any], param: str
) -> None:
    kind = "input_text" if path == "/v1/responses" else "text"
    key = "input" if path == "/v1/responses" else "messages"
    message = {"role": "user", "content": [{"type": kind, "text": "What is this?"}, part]}
    response = await client.post(path, json={key: [message], "max_tokens": 5})
    assert response.status_code == 400
    error = response.json()["error"]
    assert f"{key}.0.{param}" in f"{error.get('param')} {error['message']}"
    assert f"type '{part['type']}' are not supported" in error["message"]


async def test_the_error_names_a_missing_field(client: httpx.AsyncClient) -> None:
    error = error_of(await client.post("/v1/chat/completions", json={}), 400)
    assert (error["param"], error["code"]) == ("messages", "missing_required_parameter")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"temperature": NaN, "messages": [{"role": "user", "content": "x"}]}',
        b'{"temperature": Infinity, "messages": [{"role": "user", "content": "x"}]}',
        b"[" * 100_000,
        b'{"a":' * 1000,
        b'{"seed": ' + b"9" * 10_000 + b', "messages": [{"role": "user", "content": "x"}]}',
    ],
)
async def test_broken_bodies_are_400(client: httpx.AsyncClient, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        response = await client.post(path, content=body)
        if b"messages" in body and path == "/v1/completions" and response.status_code == 200:
            continue  # `messages` is an unknown field there, which is ignored
        error_of(response, 400)


async def test_the_content_type_does_not_matter(client: httpx.AsyncClient) -> None:
    body = json.dumps({"prompt": "hi"})
    response = await client.post("/v1/completions", content=body, headers={"content-type": "a/b"})
    assert response.status_code == 200


async def test_large_bodies_are_413(make_app: MakeApp) -> None:
    async with client_of(make_app(max_body_bytes=2000)) as client:
        error = error_of(await complete(client, prompt="x" * 2000), 413)
        assert error["code"] == "request_too_large"
        assert "2000" in error["message"]

        async def endless() -> Any:  # no content-length
            while True:
                yield b"x" * 1000

        error_of(await client.post("/v1/completions", content=endless()), 413)


async def test_a_body_parsed_in_a_thread_has_the_same_errors(client: httpx.AsyncClient) -> None:
    error = error_of(await complete(client, prompt="x" * 100_000, n="a"), 400)
    assert error["param"] == "n"


async def test_the_error_of_a_long_prompt_states_the_numbers(client: httpx.AsyncClient) -> None:
    error = error_of(await chat(client, max_tokens=1010), 400)
    assert error["code"] == "context_length_exceeded"
    assert "maximum context length is 1024" in error["message"]
    assert "1030" in error["message"]
    long = [{"role": "user", "content": "x" * 2000}]
    error = error_of(await chat(client, messages=long, stream=True), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert "20" in error["message"]


async def test_an_unknown_model_is_a_404_that_lists_the_known_ones(
    client: httpx.AsyncClient,
) -> None:
    error = error_of(await chat(client, model="nothing"), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "main" in error["message"]
    assert "org/other" in error["message"]


async def test_unknown_names_get_the_default_model_unless_names_are_strict(
    make_app: MakeApp,
) -> None:
    async with client_of(make_app(strict=False)) as client:
        for name in ("gpt-x", None, "", "whatever"):
            assert (await chat(client, model=name)).json()["model"] == "main"
    async with client_of(make_app(default=None)) as client:
        error = error_of(await chat(client), 400)
        assert (error["param"], error["code"]) == ("model", "missing_required_parameter")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/models/unknown/one", 404),
        ("POST", "/v1/chat/completions/", 404),
    ],
)
async def test_wrong_urls_and_methods_are_errors_in_openais_format(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    error_of(await client.request(method, path), status)


@pytest.mark.parametrize("strict", [False, True])
async def test_a_wrong_method_is_refused_on_every_route_with_the_right_ones(
    make_app: MakeApp, strict: bool
) -> None:
    app = make_app(strict=strict)
    paths = {path: {one.upper() for one in item} for path, item in app.openapi()["paths"].items()}
    assert paths["/v1/models/{model_id}/load"] == {"POST"}
    async with client_of(app) as client:
        for path, known in paths.items():
            known |= {"HEAD"} if "GET" in known else set()
            for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} - known:
                for name in ("main", "org/other", "unknown"):
                    answer = await client.request(method, path.replace("{model_id}", name))
                    assert answer.headers["allow"] == ", ".join(sorted(known)), path
                    assert answer.status_code == 405
                    if method != "HEAD":
                        message = answer.json()["error"]["message"]
                        assert message.endswith(f"This URL takes: {answer.headers['allow']}.")


async def test_models_are_listed_and_found_by_ids_with_slashes(client: httpx.AsyncClient) -> None:
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [m["id"] for m in listed["data"]] == ["main", "org/other"]
    assert {"id", "object", "created", "owned_by"} <= set(listed["data"][0])
    assert (await client.get("/v1/models/org/other")).json() == listed["data"][1]
    assert (await client.get("/models/gpt-x")).json()["id"] == "main"


async def test_health_always_answers_and_ready_needs_a_loaded_model(
    client: httpx.AsyncClient,
) -> None:
    assert (await client.get("/health")).json() == {"status": "ok"}
    response = await client.get("/ready")
    assert error_of(response, 503)["code"] == "model_loading"
    assert response.headers["retry-after"]
    await chat(client)
    assert (await client.get("/ready")).status_code == 200


async def test_every_route_but_health_needs_a_key(make_app: MakeApp, engines: FakeEngines) -> None:
    async with client_of(make_app(keys=("alpha", "beta"))) as client:
        for path in ("/v1/models", "/ready", "/openapi.json", "/nowhere", "/v1/chat/completions"):
            for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "alpha"}):
                response = await client.get(path, headers=header)
                error = error_of(response, 401)
                assert error["code"] == "invalid_api_key"
                assert response.headers["www-authenticate"] == "Bearer"
        assert (await client.get("/health")).status_code == 200
        for key in ("alpha", "beta"):
            client.headers["authorization"] = f"Bearer {key}"
            assert (await chat(client)).status_code == 200
    assert len({r.key for r in engines.engine.requests}) == 2
    assert not {r.key for r in engines.engine.requests} & {"alpha", "beta"}


async def test_keys_may_be_any_text_in_utf8(make_app: MakeApp) -> None:
    async with client_of(make_app(keys=("schlüssel",))) as client:
        for given, status in (("schlüssel", 200), ("schlussel", 401)):
            header = {b"authorization": f"Bearer {given}".encode()}
            assert (await client.get("/v1/models", headers=header)).status_code == status


async def test_a_valid_request_id_is_kept_and_another_replaced(client: httpx.AsyncClient) -> None:
    kept = await client.get("/health", headers={"x-request-id": "abc-123"})
    assert kept.headers["x-request-id"] == "abc-123"
    for bad in ("a b", "x" * 200, "ä".encode().decode("latin-1"), ""):
        response = await client.get("/health", headers=[(b"x-request-id", bad.encode("latin-1"))])
        assert response.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (QueueFull("full"), 503, "queue_full"),
        (EngineDied("gone"), 503, "engine_died"),
        (EngineDied("slow", "engine_stalled"), 503, "engine_stalled"),
        (RequestError("too odd", "odd", "prompt"), 400, "odd"),
        (PassFailed("bad disk", "weights_unreadable"), 500, "weights_unreadable"),
        (ModelError("broken"), 500, "model_load_failed"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_engine_failures_before_the_first_byte_are_json(
    client: httpx.AsyncClient,
    engines: FakeEngines,
    failure: Any,
    status: int,
    code: str,
    stream: bool,
) -> None:
    engines.script.refuse = failure
    response = await chat(client, stream=stream)
    error = error_of(response, status)
    assert error["code"] == code
    assert ("retry-after" in response.headers) == (status == 503)
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")


async def test_an_unexpected_exception_is_a_500_without_details(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.error = RuntimeError("secret detail")
    response = await chat(client)
    error = error_of(response, 500)
    assert error["code"] == "internal_error"
    assert "secret" not in response.text
    assert response.headers["x-request-id"] in error["message"]
    assert response.headers["connection"] == "close"
