"""Lengths of answers, tokens of prompts, and usage of choices: api.md 6, 9, 11, 17."""

from typing import Any

import httpx
import pytest
from tokenizers.processors import TemplateProcessing

from server.chat.prompt import text_prompts
from server.config.model_file import SamplingSection
from server.text.tokenizer import Tokenizer
from tests.server.conftest import MakeApp, chat, client_of, complete, entry, error_of
from tests.server.fake_engine import EOS, START, FakeEngines, ids_of, load_fake_tokenizer


@pytest.mark.parametrize(
    ("ask", "fields", "param"),
    [
        (chat, {"max_tokens": 0}, "max_tokens"),
        (chat, {"max_completion_tokens": 0}, "max_completion_tokens"),
        (chat, {"max_completion_tokens": -2}, "max_completion_tokens"),
        (complete, {"max_tokens": -2}, "max_tokens"),
    ],
)
async def test_api_11_impossible_limits_are_refused(
    client: httpx.AsyncClient, ask: Any, fields: dict[str, Any], param: str
) -> None:
    assert error_of(await ask(client, **fields), 400)["param"] == param


async def test_api_11_a_chat_continues_until_the_context_is_full(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.answers = lambda k: ids_of("x" * 2000)
    answer = (await chat(client)).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == 1024
    request = engines.engine.requests[0]
    assert request.params.max_tokens == 1024 - len(request.prompt)


@pytest.mark.parametrize(("asked", "got"), [(None, 6), (9, 9), (3, 3)])
async def test_api_11_the_models_limit_is_a_default(
    make_app: MakeApp, engines: FakeEngines, asked: int | None, got: int
) -> None:
    engines.script.answers = lambda k: ids_of("x" * 2000)
    capped = entry("main", sampling=SamplingSection(max_tokens=6))
    async with client_of(make_app(entries=[capped])) as client:
        answer = (await chat(client, max_completion_tokens=asked)).json()
    assert answer["usage"]["completion_tokens"] == got


async def test_api_11_a_completion_of_no_tokens_is_allowed(client: httpx.AsyncClient) -> None:
    choice = (await complete(client, max_tokens=0)).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("", "length")


async def test_api_09_all_prompts_of_a_request_have_the_same_seed(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    answer = (await complete(client, prompt=["a", "b", "c"], n=2, seed=5)).json()
    assert [c["index"] for c in answer["choices"]] == list(range(6))
    assert [(r.n, r.params.seed) for r in engines.engine.requests] == [(2, 5)] * 3


@pytest.mark.parametrize("n", [1, 128])
async def test_api_09_as_many_choices_as_were_asked_for(client: httpx.AsyncClient, n: int) -> None:
    answer = (await chat(client, n=n)).json()
    assert [c["index"] for c in answer["choices"]] == list(range(n))


@pytest.mark.parametrize("n", [0, 129])
async def test_api_09_too_many_choices_are_refused(client: httpx.AsyncClient, n: int) -> None:
    assert error_of(await chat(client, n=n), 400)["param"] == "n"
    assert error_of(await complete(client, best_of=n), 400)["param"] == "best_of"


async def test_api_06_choices_that_are_not_returned_are_counted(
    client: httpx.AsyncClient,
) -> None:
    usage = (await complete(client, prompt=["a", "bc"], n=1, best_of=3)).json()["usage"]
    assert usage["prompt_tokens"] == 3
    assert usage["completion_tokens"] == 2 * 3 * 13
    assert usage["total_tokens"] == 3 + 2 * 3 * 13


async def test_api_06_tokens_after_a_stop_are_not_counted(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.burst = 60
    for fields, counted in (({"stop": "lo"}, 5), ({"max_tokens": 3}, 3), ({}, 13)):
        usage = (await chat(client, **fields)).json()["usage"]
        assert usage["completion_tokens"] == counted


def with_begin_of_sequence() -> Tokenizer:
    tokenizer = load_fake_tokenizer("no-template", None)
    tokenizer.inner.backend_tokenizer.post_processor = TemplateProcessing(
        single="<turn> $A", special_tokens=[("<turn>", START)]
    )
    return tokenizer


async def test_api_17_texts_get_special_tokens_and_ids_are_used_as_given(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    await complete(client)
    info = engines.engine.info
    assert info is not None
    tokenizer = with_begin_of_sequence()
    try:
        assert text_prompts(tokenizer, info, ["hi", [104], ""]) == [
            (START, *ids_of("hi")),
            (104,),
            (START,),
        ]
        assert tokenizer.encode("hi", special=False) == ids_of("hi"), "as a rendered chat is"
    finally:
        tokenizer.inner.backend_tokenizer.post_processor = None


async def test_api_17_a_rendered_chat_gets_no_further_special_tokens(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    tokenizer = with_begin_of_sequence()
    try:
        assert (await chat(client)).status_code == 200
    finally:
        tokenizer.inner.backend_tokenizer.post_processor = None
    rendered = (START, *ids_of("user:hi"), EOS, START, *ids_of("assistant:"))
    assert engines.engine.requests[0].prompt == rendered


async def test_api_17_a_chat_without_a_template_is_an_error_with_advice(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    engines.script.tokenizer_path = "no-template"
    async with client_of(make_app()) as client:
        error = error_of(await chat(client), 400)
        assert error["param"] == "messages"
        assert "/v1/completions" in error["message"] and "chat_template" in error["message"]
        assert (await complete(client)).status_code == 200
