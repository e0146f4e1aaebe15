"""One test for each numbered point of the API contract that the front end alone decides.

Points 7 to 9, 11 and 15 to 19 have their tests with the modules that they test.
"""

import asyncio
from typing import Any

import httpx
import pytest

from tests.server.conftest import chat, complete, error_of, events
from tests.server.fake_engine import CONTEXT, FakeEngines

USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize("stream", [False, True])
async def test_api_01_errors_have_one_shape_before_the_first_byte(
    client: httpx.AsyncClient, stream: bool
) -> None:
    error = error_of(await chat(client, stream=stream, n="x"), 400)
    assert (error["param"], error["code"]) == ("n", "invalid_type")
    error = error_of(await chat(client, stream=stream, model="none"), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")


async def test_api_02_ids_and_objects_are_those_of_openai(client: httpx.AsyncClient) -> None:
    for ask, prefix, whole, piece in (
        (chat, "chatcmpl-", "chat.completion", "chat.completion.chunk"),
        (complete, "cmpl-", "text_completion", "text_completion"),
    ):
        answer = (await ask(client)).json()
        assert answer["id"].startswith(prefix) and answer["object"] == whole
        *chunks, _ = events((await ask(client, stream=True)).text)
        assert len({(c["id"], c["created"], c["model"]) for c in chunks}) == 1
        assert {c["object"] for c in chunks} == {piece}


async def test_api_03_a_chat_choice_has_all_its_fields(client: httpx.AsyncClient) -> None:
    choice = (await chat(client)).json()["choices"][0]
    assert {"index", "finish_reason", "message", "logprobs"} <= set(choice)
    assert choice["logprobs"] is None and choice["finish_reason"] == "stop"
    message = choice["message"]
    assert (message["role"], message["content"]) == ("assistant", "Hello there.")
    assert message["refusal"] is None
    cut = (await chat(client, max_tokens=2)).json()["choices"][0]
    assert cut["finish_reason"] == "length"


async def test_api_04_a_stream_has_its_chunks_in_order(client: httpx.AsyncClient) -> None:
    *chunks, done = events((await chat(client, stream=True)).text)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert done == "[DONE]"
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert not any("role" in choice["delta"] for choice in choices[1:])
    assert choices[-1]["delta"] == {} and choices[-1]["finish_reason"] == "stop"
    assert [c["finish_reason"] for c in choices[:-1]] == [None] * (len(choices) - 1)


async def test_api_05_a_stream_has_the_usage_if_asked_for(client: httpx.AsyncClient) -> None:
    options = {"include_usage": True, "unknown": 1}
    *chunks, last, _ = events((await chat(client, stream=True, stream_options=options)).text)
    assert last["choices"] == [] and last["usage"]["total_tokens"] > 0
    assert all(chunk["usage"] is None for chunk in chunks)
    assert not any("usage" in c for c in events((await chat(client, stream=True)).text)[:-1])
    assert (await chat(client, stream_options=options)).json()["usage"] == last["usage"]


@pytest.mark.parametrize("ask", [chat, complete])
async def test_api_05_every_chunk_has_the_usage_so_far_if_asked_for(
    client: httpx.AsyncClient, ask: Any
) -> None:
    whole = (await ask(client, n=2)).json()["usage"]
    cached = whole["prompt_tokens_details"]
    for include in (False, True):
        options = {"continuous_usage_stats": True, "include_usage": include}
        *chunks, _ = events((await ask(client, stream=True, n=2, stream_options=options)).text)
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == sorted(counts) and 0 < counts[0] < counts[-1]
        assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {whole["prompt_tokens"]}
        assert all(c["usage"]["total_tokens"] for c in chunks)
        assert all(c["usage"]["prompt_tokens_details"] == cached for c in chunks)
        assert chunks[-1]["usage"] == whole and "timings" in chunks[-1]
        assert (chunks[-1]["choices"] == []) == include
    assert (await ask(client, stream_options=options)).json()["usage"]


async def test_api_06_usage_counts_all_choices(client: httpx.AsyncClient) -> None:
    one = (await chat(client)).json()["usage"]
    two = (await chat(client, n=2)).json()["usage"]
    assert two["completion_tokens"] == 2 * one["completion_tokens"]
    assert two["prompt_tokens"] == one["prompt_tokens"]
    assert "cached_tokens" in one["prompt_tokens_details"]
    assert "reasoning_tokens" in one["completion_tokens_details"]


async def test_api_10_a_stop_string_ends_the_answer(client: httpx.AsyncClient) -> None:
    for stop in ("there", ["zzz", "there"]):
        answer = (await chat(client, stop=stop)).json()["choices"][0]
        assert (answer["message"]["content"], answer["finish_reason"]) == ("Hello ", "stop")
    many = [f"x{i}" for i in range(1023)]
    none: list[Any] = [None, "", [], [""], list("xyzab")]
    for stop in (*none, many):
        answer = (await chat(client, stop=stop)).json()["choices"][0]
        assert answer["message"]["content"] == "Hello there.", stop
    answer = (await chat(client, stop=[*many, "there"])).json()["choices"][0]
    assert (answer["message"]["content"], answer["stop_reason"]) == ("Hello ", "there")


async def test_api_11_limits(client: httpx.AsyncClient, engines: FakeEngines) -> None:
    async def limit_of(path: str, **fields: Any) -> int | None:
        answer = await client.post(path, json=fields)
        assert answer.status_code == 200, answer.text
        return engines.engine.requests[-1].params.max_tokens

    def room() -> int:
        return CONTEXT - len(engines.engine.requests[-1].prompt)

    chats, messages = {"messages": [USER]}, {"messages": [USER]}
    path = "/v1/chat/completions"
    # Without a limit of its own, an answer has the default of the model's file, which is longer.
    assert await limit_of(path, **chats, max_tokens=-1, max_completion_tokens=-1.0) == room()
    assert await limit_of(path, **chats, max_tokens=5, max_completion_tokens=7) == 7
    assert await limit_of("/v1/completions", prompt="a", max_tokens=-1) == 16
    for path, name, body in (
        ("/v1/messages", "max_tokens", messages),
        ("/v1/responses", "max_output_tokens", {"input": "hi"}),
    ):
        assert await limit_of(path, **body, **{name: -1}) == room()
        assert await limit_of(path, **body, **{name: 7}) == 7
        assert await limit_of(path, **body, **{name: 32_000}) == room()


@pytest.mark.parametrize(
    ("field", "good", "wrong"),
    [
        ("temperature", [0, 2, 1.0, None], [-0.1, 2.1, "1"]),
        ("top_p", [0, 1, None], [-0.1, 1.1]),
        ("presence_penalty", [-2, 2, None], [-2.1, 2.1]),
        ("logit_bias", [{"5": 100}, None], [{"5": 101}, {"x": 1}, []]),
        ("n", [1, 1.0, None], [0, 129, 1.5, True]),
        ("top_k", [0, 5, None], [-2, "5"]),
        ("seed", [0, -1, 2**64 - 1, None], [2**64, 0.5]),
    ],
)
async def test_api_12_values_outside_their_range_are_refused(
    client: httpx.AsyncClient, field: str, good: list[Any], wrong: list[Any]
) -> None:
    for value in good:
        assert (await chat(client, **{field: value})).status_code == 200, value
    for value in wrong:
        param = error_of(await chat(client, **{field: value}), 400)["param"]
        assert param is not None and param.startswith(field)


async def test_api_13_invalid_messages_are_refused(client: httpx.AsyncClient) -> None:
    parts = {"role": "developer", "content": [{"type": "text", "text": "be brief"}]}
    assert (await chat(client, messages=[parts, USER])).status_code == 200
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    bad: list[Any] = [[], [[]], [{"role": "boss"}], [image], [{"role": "tool", "content": "x"}]]
    for wrong in bad:
        param = error_of(await chat(client, messages=wrong), 400)["param"]
        assert param is not None and param.startswith("messages")


async def test_api_14_unknown_fields_are_ignored(client: httpx.AsyncClient) -> None:
    message = {**USER, "unknown": [1]}
    assert (await chat(client, messages=[message], unknown={"a": None})).status_code == 200
    assert (await complete(client, unknown=1)).status_code == 200


async def test_api_20_the_fingerprint_is_that_of_the_engine(client: httpx.AsyncClient) -> None:
    assert (await chat(client)).json()["system_fingerprint"] == "fp_fake"


async def test_api_21_a_client_that_leaves_frees_its_request(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.queue = asyncio.Event()
    asking = asyncio.create_task(chat(client))
    while not engines.made:
        await asyncio.sleep(0)
    await engines.engine.request_started.wait()
    asking.cancel()
    await engines.engine.request_closed.wait()
    assert not engines.engine.running
