"""Tests of `continue_tokens`: streams that are cut and continued, joined, are the unbroken ones."""

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import pytest

from server.chat.continuing import continued_ids
from server.schemas.chat import ChatRequest
from server.schemas.checking import parse_body
from tests.server.chat.test_tools import CALL, SUM, TEMPLATE, TOOLS
from tests.server.conftest import MakeApp, chat, client_of, complete, entry, error_of
from tests.server.continuing import chunks_of, ids_by_choice, joined, kept
from tests.server.fake_engine import EOS, VOCAB, FakeEngines, ids_of

CUSTOM = {"type": "custom", "custom": {"name": "run"}}
INPUT = '<tool_call>\n{"name": "run", "arguments": {"input": "a \\"b\\" \\u00e9"}}\n</tool_call>'
THOUGHT = "<think>\nHm, é.\n</think>\n\n"
LOGPROBS = {"logprobs": True, "top_logprobs": 1}
SNOW = "A \N{SNOWMAN} and \N{GRINNING FACE}."

# The text of the answer, and the fields of its request.
CHATS: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("Hello there.", {"max_tokens": 99}),
    "logprobs": (SNOW, LOGPROBS),
    "limit": ("Hello there.", {"max_tokens": 7, **LOGPROBS}),
    "stop string": ("Hello there, you.", {"stop": ["there,"], **LOGPROBS}),
    "half a stop string": ("Hello there, you.", {"stop": ["there, your", "zz"], **LOGPROBS}),
    "min_tokens": ("Hello there, you.", {"stop": ["l"], "min_tokens": 6}),
    "n": ("Hello there.", {"n": 3, **LOGPROBS}),
    "reasoning": (f"{THOUGHT}So. \n", LOGPROBS),
    "reasoning and a stop string": (f"{THOUGHT}So é. \n", {"stop": ["é."], **LOGPROBS}),
    "calls": (f"{THOUGHT}I look.\n{CALL}\n{SUM}", {"tools": TOOLS, **LOGPROBS}),
    "no call": ('I say <tool_call>\n{"name": 5} so.', {"tools": TOOLS, **LOGPROBS}),
    "cut call": (CALL, {"tools": TOOLS, "max_tokens": 50}),
    "custom": (INPUT, {"tools": [CUSTOM]}),
    "functions": (CALL, {"functions": [tool["function"] for tool in TOOLS]}),
    "greedy": ("Hello there.", {"temperature": 0, "seed": None}),
}
TEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    "text": (SNOW, {}),
    "logprobs": (SNOW, {"logprobs": 1}),
    "stop string": ("Hello there, you.", {"stop": ["there,"], "logprobs": 0}),
    "half a stop string": ("Hello there, you.", {"stop": ["there, your"], "logprobs": 0}),
    "n": ("Hello there.", {"n": 3}),
    "several prompts": ("Hello there.", {"n": 2, "prompt": ["a", "bc"], "logprobs": 0}),
    "echo": ("Hello there.", {"echo": True, "prompt": "So: "}),
    "echo and logprobs": ("Hello there.", {"echo": True, "prompt": "So: ", "logprobs": 1}),
}
CASES = [(chat, *own) for own in CHATS.values()] + [(complete, *own) for own in TEXTS.values()]
NAMES = [f"chat, {name}" for name in CHATS] + [f"text, {name}" for name in TEXTS]


@pytest.fixture
async def client(make_app: MakeApp) -> Any:
    entries = [entry("main", chat_template=TEMPLATE)]
    async with client_of(make_app(entries=entries)) as client:
        yield client


async def stream(client: httpx.AsyncClient, ask: Any, fields: dict[str, Any]) -> list[Any]:
    options = {"include_usage": True}
    body = {"seed": 5, "max_tokens": 200, "return_token_ids": True, **fields}
    answer = await ask(client, stream=True, stream_options=options, **body)
    assert answer.status_code == 200, answer.text
    return chunks_of(answer.text)


@pytest.mark.parametrize("burst", [1, 3])
@pytest.mark.parametrize(("ask", "text", "fields"), CASES, ids=NAMES)
async def test_streams_that_are_cut_and_continued_join_to_the_unbroken_one(
    client: httpx.AsyncClient, engines: FakeEngines, ask: Any, text: str, fields: Any, burst: int
) -> None:
    engines.script.answers = lambda choice: (*ids_of(text + "!" * choice), EOS)
    engines.script.burst = burst
    whole = await stream(client, ask, fields)
    want = joined(whole)
    for place in range(1, len(whole), 4 if burst == 1 else 1):
        before = kept(whole[:place])
        given = ids_by_choice(before)
        if fields.get("echo") and fields.get("logprobs") is not None and not given:
            continue
        engines.script.burst = 2
        after = await stream(client, ask, {**fields, "continue_tokens": given})
        got = joined([*before, *after])
        assert got == want, (place, given)


async def test_a_whole_answer_has_what_comes_after(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.answers = lambda _: (*ids_of(f"{THOUGHT}I look.\n{CALL}\n{SUM}"), EOS)
    ids = list(ids_of(f"{THOUGHT}I look.\n{CALL}\n{SUM}"))
    fields = {"tools": TOOLS, "seed": 5, "return_token_ids": True, "max_tokens": 300}
    unbroken = (await chat(client, **fields)).json()
    place = ids.index(ord("P"))
    answer = (await chat(client, continue_tokens=ids[:place], **fields)).json()
    (choice,) = answer["choices"]
    assert choice["token_ids"] == [*ids[place:], EOS]
    begun, other = choice["message"]["tool_calls"]
    assert (begun["id"], begun["function"]) == ("", {"name": "", "arguments": 'Paris"}'})
    assert other["id"].startswith("call_") and other["function"]["name"] == "add"
    assert choice["finish_reason"] == "tool_calls"
    assert "reasoning_content" not in choice["message"]
    for name in ("completion_tokens", "prompt_tokens", "completion_tokens_details"):
        assert answer["usage"][name] == unbroken["usage"][name]
    assert answer["timings"]["predicted_n"] == len(ids) + 1 - place
    text = (await complete(client, max_tokens=300, seed=5, continue_tokens={"0": ids[:-3]})).json()
    assert text["choices"][0]["text"] == "".join(map(chr, ids[-3:]))


async def test_running_usage_counts_the_whole_answer(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    options = {"continuous_usage_stats": True, "include_usage": True}
    ids = list(ids_of("Hello"))
    answer = await chat(client, stream=True, stream_options=options, seed=1, continue_tokens=ids)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks_of(answer.text)]
    assert counts[0] == 5 and counts[-1] == 13
    text = (await client.get("/metrics")).text
    line = next(own for own in text.splitlines() if own.startswith("understudy_completion_tokens"))
    assert float(line.split()[-1]) == 8, "only what was computed"


async def test_tokens_of_which_all_is_known_end_the_answer(client: httpx.AsyncClient) -> None:
    ids = [*ids_of("Hello there."), EOS]
    chunks = await stream(client, chat, {"continue_tokens": ids})
    (choice,), usage = joined(chunks)[0].values(), joined(chunks)[1]
    assert (choice["content"], choice["ids"], choice["finish_reason"]) == ("", [], "stop")
    assert usage[1] == 13


async def test_provenance_names_tokens_that_were_given(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.answers = lambda _: (*ids_of("ab\N{SNOWMAN}c"), EOS)
    fields = {"provenance": True, "seed": 1, "max_tokens": 20}
    given = list("ab\N{SNOWMAN}".encode())[:3]
    answer = (await chat(client, continue_tokens=given, **fields)).json()
    assert answer["choices"][0]["message"]["content"] == "\N{SNOWMAN}c"
    assert [own["token"] for own in answer["choices"][0]["provenance"]] == [
        "",
        "",
        "\N{SNOWMAN}",
        "c",
        "",
    ]


async def test_the_passes_of_a_continuation_are_its_own(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.answers = lambda _: ids_of("Hello there.")
    fields = {"provenance": "tree", "seed": 1, "max_tokens": 8, "stream": True}
    chunks = chunks_of((await chat(client, continue_tokens=list(ids_of("He")), **fields)).text)
    passes = [own for chunk in chunks for own in chunk["choices"][0]["passes"]]
    assert sum(own["tokens"] for own in passes) == 6


@pytest.mark.parametrize(
    ("ask", "fields", "param", "said"),
    [
        (chat, {"continue_tokens": [72]}, "seed", "timings.seed"),
        (chat, {"continue_tokens": [72], "temperature": 1}, "seed", "above 0"),
        (complete, {"continue_tokens": {"0": [72]}}, "seed", "above 0"),
        (chat, {"continue_tokens": [VOCAB], "seed": 1}, "continue_tokens", "outside the voc"),
        (complete, {"continue_tokens": [2**40], "seed": 1}, "continue_tokens", "outside the voc"),
        (chat, {"continue_tokens": {"1": [72]}, "seed": 1}, "continue_tokens.1", "no choice 1"),
        (chat, {"continue_tokens": [72], "n": 2, "seed": 1}, "continue_tokens", "2 choices"),
        (
            chat,
            {"continue_tokens": [72, 72, 72], "max_tokens": 2, "seed": 1},
            "continue_tokens.0",
            "3 tokens were given, but 2",
        ),
        (
            complete,
            {"continue_tokens": {"0": [72] * 17}, "seed": 1},
            "continue_tokens.0",
            "17 tokens were given, but 16",
        ),
        (complete, {"continue_tokens": [72], "max_tokens": 0, "seed": 1}, "continue_tokens.0", "0"),
        (complete, {"continue_tokens": [72], "best_of": 2, "seed": 1}, "best_of", "its end"),
        (
            complete,
            {"continue_tokens": {"0": [72]}, "echo": True, "logprobs": 0, "n": 2, "seed": 1},
            "echo",
            "choice 1 has none",
        ),
        (chat, {"fingerprint": "us-other"}, "fingerprint", "'fp_fake', not 'us-other'"),
        (chat, {"continue_tokens": {"a": [1]}}, "continue_tokens.a", "indices of choices"),
        (chat, {"continue_tokens": {"0": [-1]}}, "continue_tokens.0.0", "greater than or equal"),
        (chat, {"continue_tokens": {"0": "a"}}, "continue_tokens.0", "valid array"),
        (chat, {"continue_tokens": 5}, "continue_tokens", "should be an object"),
        (chat, {"continue_tokens": [True], "seed": 1}, "continue_tokens.0", "valid integer"),
    ],
)
async def test_what_cannot_be_continued_is_refused(
    client: httpx.AsyncClient, ask: Any, fields: dict[str, Any], param: str, said: str
) -> None:
    for is_streamed in (False, True) if param != "best_of" else (False,):
        error = error_of(await ask(client, stream=is_streamed, **fields), 400)
        assert error["param"] == param
        assert said in error["message"]


async def test_fields_without_tokens_mean_nothing(client: httpx.AsyncClient) -> None:
    nothing: list[Any] = [None, [], {}, {"0": []}]
    for given in nothing:
        answer = await chat(client, continue_tokens=given, fingerprint="fp_fake")
        assert answer.json()["choices"][0]["message"]["content"] == "Hello there."


@pytest.mark.parametrize("field", ["continue_tokens", "fingerprint"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("messages", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}),
        ("responses", {"input": "hi"}),
    ],
)
async def test_the_other_apis_refuse_it(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], field: str
) -> None:
    answer = await client.post(f"/v1/{path}", json={**body, field: {"0": [72]}})
    assert answer.status_code == 400
    assert f"'{field}' is supported on /v1/chat/completions" in answer.json()["error"]["message"]
    assert (await client.post(f"/v1/{path}", json={**body, field: None})).status_code == 200


async def test_a_large_body_is_continued(client: httpx.AsyncClient, engines: FakeEngines) -> None:
    engines.script.context_length = 300_000
    ids = list(ids_of("Hello there.")) * 10_000
    engines.script.answers = lambda _: (*ids, *ids_of("end"), EOS)
    fields: dict[str, Any] = {"seed": 1, "max_tokens": 200_000, "prompt": [72] * 60_000}
    answer = await complete(client, continue_tokens={"0": ids}, **fields)
    assert answer.json()["choices"][0]["text"] == "end"
    assert answer.json()["usage"]["completion_tokens"] == 120_004
    answer = await chat(client, continue_tokens={"0": ids}, seed=1, max_tokens=200_000)
    assert answer.json()["choices"][0]["message"]["content"] == "end"


async def test_an_answer_names_the_engine_that_began_it(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    """The engine may have been restarted before the first token."""
    await chat(client)
    engines.script.gate = asyncio.Event()
    engines.engine.request_started.clear()
    asked = asyncio.create_task(chat(client))
    await engines.engine.request_started.wait()
    assert engines.engine.info is not None
    engines.engine.info = replace(engines.engine.info, fingerprint="us-new")
    engines.script.gate.set()
    assert (await asked).json()["system_fingerprint"] == "us-new"


def test_choices_without_ids_are_left_out() -> None:
    given = b'"n": 3, "continue_tokens": {"2": [1], "0": []}'
    raw = b'{"messages": [{"role": "user", "content": ""}], %b}' % given
    body = parse_body(ChatRequest, raw)
    assert {index: list(ids) for index, ids in continued_ids(body).items()} == {2: [1]}
