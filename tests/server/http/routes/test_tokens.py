"""The routes /tokenize, /detokenize, /apply-template, and the count of a chat's tokens."""

from typing import Any

import httpx
import pytest

from server.chat import token_calls
from tests.server.conftest import MakeApp, chat, client_of, entry, error_of
from tests.server.fake_engine import CONTEXT, EOS, START, VOCAB, FakeEngines, ids_of

MESSAGES = [{"role": "user", "content": "né"}]
RENDERED = "<turn>user:né<eos><turn>assistant:"


async def post(client: httpx.AsyncClient, path: str, **body: Any) -> Any:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_texts_become_tokens_and_back(client: httpx.AsyncClient, prefix: str) -> None:
    ids = list(ids_of("né"))
    for field in ("content", "prompt"):
        answer = await post(client, f"{prefix}/tokenize", **{field: "né"})
        assert answer == {"tokens": ids, "count": 3, "max_model_len": CONTEXT, "token_strs": None}
    answer = await post(client, f"{prefix}/detokenize", tokens=[*ids, EOS])
    assert answer == {"content": "né<eos>", "prompt": "né<eos>"}
    assert (await post(client, f"{prefix}/detokenize", tokens=[]))["content"] == ""


async def test_tokens_are_returned_as_pieces_on_request(client: httpx.AsyncClient) -> None:
    answer = await post(client, "/tokenize", content="né<eos>", with_pieces=True)
    pieces: list[Any] = ["n", [0xC3], [0xA9], "<eos>"]
    ids = [*ids_of("né"), EOS]
    assert answer["tokens"] == [{"id": i, "piece": p} for i, p in zip(ids, pieces, strict=True)]
    answer = await post(client, "/tokenize", prompt="a b", return_token_strs=True)
    assert answer["token_strs"] == ["a", "Ġ", "b"]


async def test_a_chat_is_rendered_tokenized_and_counted_alike(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    await chat(client, messages=MESSAGES)
    prompt = engines.engine.requests[0].prompt
    answer = await post(client, "/tokenize", messages=MESSAGES, model="main")
    assert tuple(answer["tokens"]) == prompt
    assert prompt[0] == START
    assert (await post(client, "/apply-template", messages=MESSAGES)) == {"prompt": RENDERED}
    counted = await post(client, "/v1/chat/completions/input_tokens", messages=MESSAGES)
    assert counted == {"object": "response.input_tokens", "input_tokens": len(prompt)}
    bare = await post(client, "/tokenize", messages=MESSAGES, add_generation_prompt=False)
    assert bare["count"] < answer["count"]


async def test_a_prompt_above_the_context_length_is_counted(client: httpx.AsyncClient) -> None:
    long = [{"role": "user", "content": "x" * 3000}]
    assert (await post(client, "/v1/chat/completions/input_tokens", messages=long))[
        "input_tokens"
    ] > CONTEXT


@pytest.mark.parametrize(("floor", "longest"), [(100, 8 * CONTEXT), (10_000, 10_000)])
@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/tokenize", "content"),
        ("/tokenize", "prompt"),
        ("/tokenize", "messages"),
        ("/v1/chat/completions/input_tokens", "messages"),
    ],
)
async def test_a_text_that_would_take_much_memory_is_refused_before_it_is_tokenized(
    client: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    param: str,
    floor: int,
    longest: int,
) -> None:
    monkeypatch.setattr(token_calls, "LONGEST_TEXT", floor)
    frame = len(RENDERED.replace("né", "").encode()) if param == "messages" else 0
    for extra, status in ((0, 200), (1, 400)):
        text = "é" + "x" * (longest - frame - 2 + extra)
        content = text if param != "messages" else [{"role": "user", "content": text}]
        answer = await client.post(path, json={"model": "main", param: content})
        assert answer.status_code == status
    error = error_of(answer, 400)
    assert (error["code"], error["param"]) == ("text_too_long", param)
    assert f"{longest + 1} bytes, and at most {longest} " in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": 1}, "content"),
        ("/tokenize", {"content": "a", "prompt": "b"}, "prompt"),
        ("/tokenize", {"content": "a", "add_special": "yes"}, "add_special"),
        ("/tokenize", {"messages": [{"role": "user"}]}, "messages.0.content"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [1]}, "messages.0"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [[True]]}, "tokens.0"),
        ("/detokenize", {"tokens": [1, VOCAB]}, "tokens.1"),
        ("/detokenize", {"tokens": [1, -1]}, "tokens.1"),
        ("/apply-template", {"messages": [{"role": "boss", "content": ""}]}, "messages.0.role"),
        ("/v1/chat/completions/input_tokens", {"messages": {}}, "messages"),
    ],
)
async def test_the_error_names_a_mistake(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], param: str
) -> None:
    assert error_of(await client.post(path, json=body), 400)["param"] == param


async def test_the_error_of_a_template_reaches_the_client(make_app: MakeApp) -> None:
    template = "{{ raise_exception('Secret.') }}"
    async with client_of(make_app(entries=[entry("main", chat_template=template)])) as client:
        body = {"messages": [{"role": "user", "content": "x"}]}
        error = error_of(await client.post("/apply-template", json=body), 400)
    assert error["code"] == "chat_template_error"
    assert "Secret" not in error["message"]


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/apply-template", "/v1/responses"])
async def test_every_route_requires_the_key(make_app: MakeApp, path: str) -> None:
    async with client_of(make_app(keys=("secret",))) as client:
        assert error_of(await client.post(path, json={}), 401)["code"] == "invalid_api_key"
        header = {"authorization": "Bearer secret"}
        error_of(await client.post(path, json={}, headers=header), 400)
