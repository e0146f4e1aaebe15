"""POST /v1/completions: prompts in all forms, echo, logprobs, best_of and streams."""

from typing import Any

import httpx
import openai
import pytest

from tests.server.conftest import complete, error_of, events
from tests.server.fake_engine import EOS, FakeEngines, ids_of


async def test_a_whole_answer_has_the_documented_shape(client: httpx.AsyncClient) -> None:
    answer = (await complete(client)).json()
    assert answer["id"].startswith("cmpl-")
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [
        {"index": 0, "text": "Hello there.", "logprobs": None, "finish_reason": "stop"}
    ]
    assert answer["usage"]["prompt_tokens"] == 2


async def test_api_11_the_default_limit_is_16_tokens(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.answers = lambda k: ids_of("x" * 100)
    choice = (await complete(client)).json()["choices"][0]
    assert choice["text"] == "x" * 16
    assert choice["finish_reason"] == "length"


async def test_api_11_the_fitting_limit_shrinks_at_the_end_of_the_context(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.context_length = 10
    engines.script.answers = lambda k: ids_of("x" * 100)
    assert (await complete(client, prompt="12345678")).json()["choices"][0]["text"] == "xx"
    error = error_of(await complete(client, prompt="12345678", max_tokens=3), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "max_tokens")
    error = error_of(await complete(client, prompt="1234567890"), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")


@pytest.mark.parametrize(
    ("prompt", "sent"),
    [
        ("hi", [ids_of("hi")]),
        ("", [(EOS,)]),  # this tokenizer has no begin-of-sequence
        (None, [(EOS,)]),
        ([104, 105.0], [(104, 105)]),
        (["a", "bc"], [ids_of("a"), ids_of("bc")]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
        (["a", [1]], [ids_of("a"), (1,)]),
    ],
)
async def test_api_17_prompts_of_every_form_are_accepted(
    client: httpx.AsyncClient, engines: FakeEngines, prompt: Any, sent: list[tuple[int, ...]]
) -> None:
    answer = (await complete(client, prompt=prompt)).json()
    assert [r.prompt for r in engines.engine.requests] == sent
    assert [c["index"] for c in answer["choices"]] == list(range(len(sent)))
    assert answer["usage"]["prompt_tokens"] == sum(len(ids) for ids in sent)


@pytest.mark.parametrize(
    ("prompt", "param", "code"),
    [
        ([], "prompt", "empty_array"),
        ([[]], "prompt.0", "empty_array"),
        ([True], "prompt.0", "invalid_type"),
        ([1, "a"], "prompt.1", "invalid_type"),
        (["a", 1], "prompt.1", "invalid_type"),
        ([1.5], "prompt.0", "invalid_type"),
        ([-1], "prompt.0", "invalid_value"),
        ([259], "prompt", "invalid_value"),
        ([None], "prompt.0", "invalid_type"),
        ({}, "prompt", "invalid_type"),
        (7, "prompt", "invalid_type"),
        ([[1], [300]], "prompt", "invalid_value"),
    ],
)
async def test_api_17_the_error_names_an_impossible_prompt(
    client: httpx.AsyncClient, prompt: Any, param: str, code: str
) -> None:
    error = error_of(await complete(client, prompt=prompt), 400)
    assert (error["param"], error["code"]) == (param, code)


async def test_api_09_index_is_prompt_times_n_plus_choice(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.answers = lambda k: (*ids_of(f"c{k}"), EOS)
    answer = (await complete(client, prompt=["a", "b"], n=2, echo=True)).json()
    texts = {c["index"]: c["text"] for c in answer["choices"]}
    assert texts == {0: "ac0", 1: "ac1", 2: "bc0", 3: "bc1"}
    assert answer["usage"]["prompt_tokens"] == 2
    assert answer["usage"]["completion_tokens"] == 12


async def test_a_stream_of_several_prompts_finishes_each_once(client: httpx.AsyncClient) -> None:
    response = await complete(
        client, prompt=["a", "b", "c"], stream=True, stream_options={"include_usage": True}
    )
    *chunks, last, done = events(response.text)
    assert done == "[DONE]"
    assert {c["object"] for c in (*chunks, last)} == {"text_completion"}
    finishes = [(c["choices"][0]["index"], c["choices"][0]["finish_reason"]) for c in chunks]
    assert sorted(f for f in finishes if f[1]) == [(0, "stop"), (1, "stop"), (2, "stop")]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 39
    assert "timings" in last


async def test_echo_comes_first_also_in_streams(client: httpx.AsyncClient) -> None:
    assert (await complete(client, echo=True)).json()["choices"][0]["text"] == "hiHello there."
    *chunks, _ = events((await complete(client, echo=True, stream=True)).text)
    assert "".join(c["choices"][0]["text"] for c in chunks) == "hiHello there."
    ids = await complete(client, prompt=[72, 105], echo=True, max_tokens=1)
    assert ids.json()["choices"][0]["text"] == "HiH"


async def test_api_11_max_tokens_zero_sends_nothing_to_the_engine(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    answer = (await complete(client, max_tokens=0, echo=True, n=2, best_of=3)).json()
    assert [c["text"] for c in answer["choices"]] == ["hi", "hi"]
    assert {c["finish_reason"] for c in answer["choices"]} == {"length"}
    assert answer["usage"]["prompt_tokens"] == 2
    assert answer["usage"]["completion_tokens"] == 0
    assert engines.engine.requests == []
    engines.script.context_length = 8
    error = error_of(await complete(client, prompt="x" * 2000, max_tokens=0), 400)
    assert error["code"] == "context_length_exceeded"


async def test_api_08_logprobs_are_four_lists_of_equal_length(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.answers = lambda k: (*ids_of("aé🙂b"), EOS)
    logprobs = (await complete(client, logprobs=2)).json()["choices"][0]["logprobs"]
    assert {len(v) for v in logprobs.values()} == {9}
    assert logprobs["text_offset"] == [0, 1, 1, 2, 2, 2, 2, 3, 4]
    assert logprobs["tokens"][0] == "a"
    assert logprobs["tokens"][-1] == "<eos>"
    assert logprobs["tokens"][1:3] == ["bytes:\\xc3", "bytes:\\xa9"]
    assert logprobs["token_logprobs"] == [-1.0] * 9
    assert logprobs["top_logprobs"][0] == {"b": -0.25, "c": -0.5, "a": -1.0}


async def test_api_08_streamed_logprobs_add_up(client: httpx.AsyncClient) -> None:
    whole = (await complete(client, logprobs=0)).json()["choices"][0]["logprobs"]
    *chunks, _ = events((await complete(client, logprobs=0, stream=True)).text)
    for key, values in whole.items():
        assert [v for c in chunks for v in c["choices"][0]["logprobs"][key]] == values


async def test_api_09_best_of_returns_the_most_probable_and_counts_all(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.answers = lambda k: (*ids_of(f"choice {k}"), EOS)  # later ones are better
    answer = (await complete(client, n=2, best_of=4)).json()
    assert [c["text"] for c in answer["choices"]] == ["choice 3", "choice 2"]
    assert [c["index"] for c in answer["choices"]] == [0, 1]
    assert answer["choices"][0]["logprobs"] is None
    assert answer["usage"]["completion_tokens"] == 4 * 9
    assert answer["usage"]["prompt_tokens"] == 2


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"suffix": "end"}, "suffix"),
        ({"prompt": ["a"] * 2049}, "prompt"),
    ],
)
async def test_unsupported_combinations_of_fields_are_refused(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    assert error_of(await complete(client, **fields), 400)["param"] == param


async def test_one_refused_prompt_ends_the_others_of_its_request(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.max_queue = 2
    error = error_of(await complete(client, prompt=["a", "b", "c"]), 503)
    assert error["code"] == "queue_full"
    assert engines.engine.num_outstanding == 0


async def test_the_official_client_completes_and_streams(
    openai_client: openai.AsyncOpenAI,
) -> None:
    answer = await openai_client.completions.create(model="main", prompt=["a", "b"], logprobs=1)
    assert [c.text for c in answer.choices] == ["Hello there.", "Hello there."]
    assert answer.choices[0].logprobs is not None
    stream = await openai_client.completions.create(model="main", prompt="a", stream=True)
    assert "".join([c.choices[0].text async for c in stream]) == "Hello there."
