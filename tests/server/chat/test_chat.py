"""Tests of POST /v1/chat/completions: shapes, streams, usage, logprobs."""

from typing import Any

import httpx
import openai
import pytest

from tests.server.conftest import MakeApp, chat, client_of, entry, error_of, events
from tests.server.fake_engine import EOS, FakeEngines, ids_of


async def test_a_whole_answer_has_the_documented_shape(client: httpx.AsyncClient) -> None:
    answer = (await chat(client)).json()
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert isinstance(answer["created"], int)
    assert answer["model"] == "main"
    assert answer["system_fingerprint"] == "fp_fake"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello there.", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    prompt = len(ids_of("user:hi")) + len(ids_of("assistant:")) + 3
    assert answer["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 13,
        "total_tokens": prompt + 13,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


async def test_timings_report_the_drafts_and_the_seed(client: httpx.AsyncClient) -> None:
    timings = (await chat(client, seed=7)).json()["timings"]
    assert timings["seed"] == 7
    assert timings["passes"] == 5 and timings["resumed"] == 0
    assert timings["draft_n"] == 20
    assert timings["draft_n_accepted"] == 8
    assert timings["predicted_per_second"] == pytest.approx(
        1200
    )  # the first token starts the clock
    assert timings["cache_n"] + timings["prompt_n"] == 20


async def test_a_random_seed_is_used_and_reported(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    timings = (await chat(client)).json()["timings"]
    assert timings["seed"] == engines.engine.requests[0].params.seed
    assert (await chat(client)).json()["timings"]["seed"] != timings["seed"]


async def test_seeds_with_the_same_64_bits_are_equal(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    for seed in (-1, 2**64 - 1):
        assert (await chat(client, seed=seed)).status_code == 200
        assert engines.engine.requests[-1].params.seed == 2**64 - 1
    assert error_of(await chat(client, seed=2**64), 400)["param"] == "seed"


async def test_stream_starts_with_the_role_and_ends_with_an_empty_delta(
    client: httpx.AsyncClient,
) -> None:
    response = await chat(client, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(response.text)
    assert done == "[DONE]"
    assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
    assert len({(c["id"], c["created"], c["model"]) for c in chunks}) == 1
    assert not any("usage" in c for c in chunks)
    deltas = [c["choices"][0]["delta"] for c in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert all(list(d) == ["content"] and d["content"] for d in deltas[1:-1])
    assert deltas[-1] == {}
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * (len(chunks) - 1) + [
        "stop"
    ]
    assert "".join(d.get("content", "") for d in deltas) == "Hello there."
    assert "timings" in chunks[-1]


async def test_usage_is_streamed_only_when_asked_for(client: httpx.AsyncClient) -> None:
    options = {"include_usage": True, "unknown": 1}
    response = await chat(client, stream=True, stream_options=options)
    *chunks, last, done = events(response.text)
    assert done == "[DONE]"
    assert last["choices"] == []
    assert last["usage"] == (await chat(client)).json()["usage"]
    assert "timings" in last
    assert all(c["usage"] is None for c in chunks)


async def test_choices_interleave_and_each_has_one_role_and_one_finish(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.answers = lambda k: (*ids_of("abc" * (k + 1)), EOS)
    *chunks, _ = events((await chat(client, stream=True, n=3)).text)
    for k in range(3):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == k]
        assert [c["delta"].get("role") for c in mine].count("assistant") == 1
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == ["stop"]
        assert "".join(c["delta"].get("content", "") for c in mine) == "abc" * (k + 1)
    assert ["timings" in c for c in chunks] == [False] * (len(chunks) - 1) + [True]


async def test_api_06_all_choices_are_counted_and_sorted(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.answers = lambda k: (*ids_of("x" * (3 - k)), EOS)
    answer = (await chat(client, n=3)).json()
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2]
    assert [c["message"]["content"] for c in answer["choices"]] == ["xxx", "xx", "x"]
    assert answer["usage"]["completion_tokens"] == 4 + 3 + 2
    assert answer["usage"]["prompt_tokens"] == 20
    assert engines.engine.requests[0].n == 3


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_a_limit_ends_with_length(client: httpx.AsyncClient, field: str) -> None:
    choice = (await chat(client, **{field: 4})).json()["choices"][0]
    assert choice["message"]["content"] == "Hell"
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize("stop", [" th", ["zzz", " th"]])
async def test_stop_strings_never_appear(client: httpx.AsyncClient, stop: Any) -> None:
    answer = (await chat(client, stop=stop)).json()
    assert answer["choices"][0]["message"]["content"] == "Hello"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == len("Hello th")


async def test_an_empty_answer_is_an_empty_string(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.answers = lambda k: (EOS,)
    choice = (await chat(client)).json()["choices"][0]
    assert choice["message"]["content"] == ""


async def test_api_07_bytes_of_logprobs_join_to_the_text(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.answers = lambda k: (*ids_of("né 🙂 ok"), EOS)
    engines.script.burst = 2
    answer = (await chat(client, logprobs=True, top_logprobs=2)).json()
    logprobs = answer["choices"][0]["logprobs"]
    assert logprobs["refusal"] is None
    joined = b"".join(bytes(e["bytes"]) for e in logprobs["content"])
    assert joined.decode() == answer["choices"][0]["message"]["content"] == "né 🙂 ok"
    assert len(logprobs["content"]) == answer["usage"]["completion_tokens"]
    first = logprobs["content"][0]
    assert first["token"] == "n"
    assert first["logprob"] == -1.0
    assert [t["logprob"] for t in first["top_logprobs"]] == [-0.25, -0.5]
    assert first["top_logprobs"][1]["token"] == "p"


@pytest.mark.parametrize("burst", [1, 2, 5, 60])
@pytest.mark.parametrize("stop", [None, "there", "re."])
async def test_api_07_streamed_logprobs_come_with_their_text(
    client: httpx.AsyncClient, engines: FakeEngines, burst: int, stop: str | None
) -> None:
    engines.script.answers = lambda k: (*ids_of("Hé🙂llo there."), EOS)
    engines.script.burst = burst
    whole = (await chat(client, logprobs=True, stop=stop)).json()["choices"][0]
    *chunks, _ = events((await chat(client, logprobs=True, stop=stop, stream=True)).text)
    entries: list[Any] = []
    text = b""
    for chunk in chunks:
        choice = chunk["choices"][0]
        text += choice["delta"].get("content", "").encode()
        entries += (choice["logprobs"] or {"content": []})["content"]
        assert b"".join(bytes(e["bytes"]) for e in entries) == text
    assert entries == whole["logprobs"]["content"]


async def test_top_logprobs_zero_gives_no_alternatives(client: httpx.AsyncClient) -> None:
    answer = (await chat(client, logprobs=True, top_logprobs=0)).json()
    assert answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


async def test_sampling_fields_reach_the_engine(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40.0,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "presence_penalty": 1,
        "frequency_penalty": -1.5,
        "logit_bias": {"65": 5, "66": -100.0},
        "ignore_eos": True,
        "min_tokens": 2,
        "stop_token_ids": [7],
        "max_tokens": 20.0,
        "stop": "zz",
        "n": 2.0,
    }
    assert (await chat(client, **fields)).status_code == 200
    request = engines.engine.requests[0]
    params = request.params
    assert request.n == 2
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.9, 40, 0.05)
    assert (params.repetition_penalty, params.presence_penalty) == (1.1, 1.0)
    assert params.frequency_penalty == -1.5
    assert params.logit_bias == ((65, 5.0), (66, -100.0))
    assert (params.ignore_eos, params.min_tokens, params.max_tokens) == (True, 2, 20)
    assert (params.stop, params.stop_token_ids) == (("zz",), (7,))


async def test_the_models_own_defaults_count_where_neither_request_nor_file_says_more(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    from server.config.model_file import SamplingSection

    engines.script.sampling = (("temperature", 0.6), ("top_p", 0.9), ("top_k", 20.0))
    sampling = SamplingSection(top_p=0.5)
    async with client_of(make_app(entries=[entry("main", sampling=sampling)])) as client:
        await chat(client, top_k=3)
        await client.post("/v1/completions", json={"prompt": "a", "temperature": 0.1})
    first, second = (request.params for request in engines.engine.requests)
    assert (first.temperature, first.top_p, first.top_k) == (0.6, 0.5, 3)
    assert (second.temperature, second.top_p, second.top_k) == (0.1, 0.5, 20)


async def test_a_field_that_is_null_has_the_models_default(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    from server.config.model_file import SamplingSection

    sampling = SamplingSection(temperature=0.3, top_k=5, max_tokens=6)
    async with client_of(make_app(entries=[entry("main", sampling=sampling)])) as client:
        nulls = dict.fromkeys(
            [
                "temperature",
                "top_p",
                "top_k",
                "seed",
                "stop",
                "n",
                "max_tokens",
                "max_completion_tokens",
                "logprobs",
                "stream",
                "stream_options",
                "top_logprobs",
                "logit_bias",
                "tools",
                "response_format",
                "tool_choice",
            ]
        )
        response = await chat(client, **nulls)
    assert response.status_code == 200
    params = engines.engine.requests[0].params
    assert (params.temperature, params.top_k, params.top_p) == (0.3, 5, 1.0)
    assert params.max_tokens == 6
    assert response.json()["choices"][0]["finish_reason"] == "length"


async def test_top_p_0_chooses_the_most_likely_token(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    await chat(client, top_p=0, top_k=-1)
    params = engines.engine.requests[0].params
    assert (params.top_p, params.top_k) == (1.0, 1)


async def test_unknown_and_unsupported_harmless_fields_are_ignored(
    client: httpx.AsyncClient,
) -> None:
    response = await chat(
        client,
        mirostat=2,
        user="me",
        store=False,
        metadata={"a": "b"},
        tools=[],
        tool_choice="none",
        response_format={"type": "text"},
        modalities=["text"],
        parallel_tool_calls=True,
    )
    assert response.status_code == 200


async def test_the_path_without_v1_works_too(client: httpx.AsyncClient) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    assert (await client.post("/chat/completions", json=body)).status_code == 200
    paths = (await client.get("/openapi.json")).json()["paths"]
    assert "/v1/chat/completions" in paths
    assert "/chat/completions" not in paths


async def test_the_official_client_reads_answers_and_streams(
    openai_client: openai.AsyncOpenAI,
) -> None:
    messages: Any = [{"role": "user", "content": "hi"}]
    answer = await openai_client.chat.completions.create(
        model="main", messages=messages, logprobs=True, top_logprobs=1
    )
    assert answer.choices[0].message.content == "Hello there."
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 13
    assert answer.choices[0].logprobs is not None
    stream = await openai_client.chat.completions.create(
        model="main", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Hello there."
    assert chunks[-1].usage == answer.usage


async def test_the_official_client_gets_typed_errors(openai_client: openai.AsyncOpenAI) -> None:
    messages: Any = [{"role": "user", "content": "hi"}]
    with pytest.raises(openai.BadRequestError) as bad:
        await openai_client.chat.completions.create(model="main", messages=messages, n=0)
    assert bad.value.param == "n"
    with pytest.raises(openai.NotFoundError) as missing:
        await openai_client.chat.completions.create(model="nothing", messages=messages)
    assert missing.value.code == "model_not_found"
    assert missing.value.request_id
