"""Tests of prompts that are shown with log-probabilities, as evaluation harnesses need them."""

from operator import itemgetter
from typing import Any

import httpx
import pytest

from server.chat.echo import Echo
from tests.server.conftest import complete, error_of, events
from tests.server.fake_engine import EOS, START, FakeEngines, ids_of, spelling

LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


async def test_api_08_echo_scores_the_prompt(client: httpx.AsyncClient) -> None:
    choice = (await complete(client, prompt="abc", echo=True, logprobs=1, max_tokens=2)).json()[
        "choices"
    ][0]
    assert choice["text"] == "abcHe"
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["a", "b", "c", "H", "e"]
    assert logprobs["token_logprobs"] == [None, -1.0, -1.0, -1.0, -1.0]
    assert logprobs["top_logprobs"][:2] == [None, {"c": -0.25, "b": -1.0}]
    assert logprobs["text_offset"] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("prompt", ["héy", [1, 2, 3], ["a", [98, 99]], "", [EOS]])
@pytest.mark.parametrize("fields", [{"max_tokens": 0}, {"max_tokens": 1}, {"n": 2}, {"best_of": 2}])
async def test_api_08_each_token_has_an_entry_and_the_first_is_null(
    client: httpx.AsyncClient, engines: FakeEngines, prompt: Any, fields: dict[str, Any]
) -> None:
    answer = (await complete(client, prompt=prompt, echo=True, logprobs=0, **fields)).json()
    sent = [request.prompt for request in engines.engine.requests]
    n = fields.get("n", 1)
    assert [c["index"] for c in answer["choices"]] == list(range(n * len(sent)))
    for choice in answer["choices"]:
        logprobs, ids = choice["logprobs"], sent[choice["index"] // n]
        answered = 0 if fields.get("max_tokens") == 0 else 1 if "max_tokens" in fields else 13
        assert {len(logprobs[name]) for name in LISTS} == {len(ids) + answered}
        nulls = [place for place, own in enumerate(logprobs["token_logprobs"]) if own is None]
        assert nulls == [0]
        assert logprobs["top_logprobs"][0] is None
        assert logprobs["text_offset"] == sorted(logprobs["text_offset"])


async def test_api_08_echo_with_no_new_token_only_scores_the_prompt(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    fields: dict[str, Any] = {"echo": True, "logprobs": 2, "max_tokens": 0}
    answer = (await complete(client, prompt="abc", **fields)).json()
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("abc", "length")
    assert len(choice["logprobs"]["tokens"]) == 3
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["usage"]["prompt_tokens"] == 3
    params = engines.engine.requests[0].params
    assert (params.max_tokens, params.prompt_logprobs) == (0, 2)


@pytest.mark.parametrize("max_tokens", [0, 1, 16])
async def test_api_08_streamed_logprobs_join_to_the_whole(
    client: httpx.AsyncClient, max_tokens: int
) -> None:
    fields: dict[str, Any] = {"echo": True, "logprobs": 2, "max_tokens": max_tokens, "n": 2}
    whole = (await complete(client, prompt=["aé", [7, 8]], **fields)).json()["choices"]
    *chunks, done = events(
        (await complete(client, prompt=["aé", [7, 8]], stream=True, **fields)).text
    )
    assert done == "[DONE]"
    for choice in whole:
        parts = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        for name in LISTS:
            assert [v for p in parts for v in p["logprobs"][name]] == choice["logprobs"][name]
        assert [p["finish_reason"] for p in parts if p["finish_reason"]] == ["length"] or (
            max_tokens == 16
        )


@pytest.mark.parametrize("stream", [False, True])
async def test_api_08_a_prompt_without_text_has_logprobs_too(
    client: httpx.AsyncClient, engines: FakeEngines, stream: bool
) -> None:
    engines.script.burst = 1
    fields: dict[str, Any] = {"prompt": [EOS], "echo": True, "logprobs": 0, "stop": "Hello!"}
    response = await complete(client, stream=stream, **fields)
    chunks = events(response.text)[:-1] if stream else [response.json()]
    scores = [v for c in chunks for v in c["choices"][0]["logprobs"]["token_logprobs"]]
    assert scores == [None] + [-1.0] * 13


async def test_a_prompt_has_logprobs_only_if_it_is_shown(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    assert (await complete(client, logprobs=1)).status_code == 200
    assert (await complete(client, echo=True)).status_code == 200
    assert [r.params.prompt_logprobs for r in engines.engine.requests] == [None, None]


@pytest.mark.parametrize("max_tokens", [0, 1])
async def test_api_08_an_evaluation_harness_reads_log_likelihoods(
    client: httpx.AsyncClient, engines: FakeEngines, max_tokens: int
) -> None:
    """Send and read a batch as `local-completions` of lm-evaluation-harness does."""
    contexts, wanted = ["Q: 1+1? A:", "Q: is it? A:", "x"], [" 2", " yes indeed", "y"]
    prompts = [list(ids_of(c + w)) for c, w in zip(contexts, wanted, strict=True)]
    body = {
        "model": "main",
        "prompt": prompts,
        "temperature": 0,
        "max_tokens": max_tokens,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    response = await client.post("/v1/completions", json=body)
    choices = sorted(response.json()["choices"], key=itemgetter("index"))
    assert len(choices) == len(prompts)
    for choice, context, answer in zip(choices, contexts, wanted, strict=True):
        logprobs = choice["logprobs"]
        part = slice(len(ids_of(context)), -1 if max_tokens else None)
        scores, best = logprobs["token_logprobs"][part], logprobs["top_logprobs"][part]
        assert "".join(logprobs["tokens"][part]) == answer
        assert sum(scores) == -1.0 * len(answer)
        greedy = [score == max(top.values()) for score, top in zip(scores, best, strict=True)]
        assert not any(greedy), "the fake model always gives another token a higher score"
    assert [r.prompt for r in engines.engine.requests] == [tuple(ids) for ids in prompts]


async def test_api_08_a_prompt_too_long_to_be_scored_is_refused(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    fields: dict[str, Any] = {"echo": True, "logprobs": 1}
    assert (await complete(client, prompt=[5] * 1024, max_tokens=0, **fields)).status_code == 200
    for prompt, limit in (([5] * 1025, 0), ([5] * 1024, 1)):
        error = error_of(await complete(client, prompt=prompt, max_tokens=limit, **fields), 400)
        assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("text", "ids", "offsets"),
    [
        ("abc", ids_of("abc"), [0, 1, 2]),
        ("aé🙂b", ids_of("aé🙂b"), [0, 1, 1, 2, 2, 2, 2, 3]),
        ("hi", (START, *ids_of("hi")), [0, 0, 1]),  # added by the tokenizer
        ("<turn>hi", (START, *ids_of("hi")), [0, 6, 7]),  # spelled out by the client
        ("hi", ids_of(" hi"), [0, 0, 1]),  # a first blank that the tokenizer adds
        (" hi", ids_of(" hi"), [0, 1, 2]),
        ("", (EOS,), [0]),
        ("\ufffd", ids_of("é")[:1], [0]),  # ids that end inside a character
    ],
)
def test_offsets_are_positions_in_the_shown_text(
    text: str, ids: tuple[int, ...], offsets: list[int]
) -> None:
    assert Echo(text, ids).offsets(spelling()) == offsets
