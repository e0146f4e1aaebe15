"""Tests of `understudy serve` with the demo model, through OpenAI's official client."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion
from prometheus_client.parser import text_string_to_metric_families

from tests.demo_server import ROOT, DemoServer

STARTERS = json.loads((ROOT / "configs" / "demo" / "starters.json").read_text())
TOOLS: Any = next(starter["tools"] for starter in STARTERS if starter["id"] == "tool_call")
for tool in TOOLS:
    tool["function"]["parameters"]["additionalProperties"] = False
STORY: Any = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture
def client(served_demo: DemoServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served_demo[1], api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, messages: Any = STORY, **fields: Any) -> ChatCompletion:
    asked: Any = {"model": "demo", "temperature": 0, "max_tokens": 40} | fields
    answer: ChatCompletion = client.chat.completions.create(messages=messages, **asked)
    return answer


def text(answer: ChatCompletion) -> str:
    return answer.choices[0].message.content or ""


@pytest.mark.parametrize("starter", STARTERS[:3], ids=lambda starter: str(starter["id"]))
def test_the_starters_of_the_demo_are_answered(
    client: openai.OpenAI, starter: dict[str, Any]
) -> None:
    answer = text(ask(client, starter["messages"], max_tokens=starter["max_tokens"]))
    assert [piece for piece in starter["contains"] if piece not in answer] == []


def test_the_draft_saves_passes(client: openai.OpenAI) -> None:
    timings: Any = ask(client).model_extra
    assert timings["timings"]["passes"] < 20
    assert timings["timings"]["draft_n_accepted"] > 20


def test_a_stream_adds_up_to_the_whole_answer(client: openai.OpenAI) -> None:
    whole = ask(client, temperature=1, seed=11)
    stream = client.chat.completions.create(
        model="demo", messages=STORY, temperature=1, seed=11, max_tokens=40, stream=True
    )
    assert "".join(c.choices[0].delta.content or "" for c in stream) == text(whole)


def test_an_answer_can_be_reproduced_by_its_seed(client: openai.OpenAI) -> None:
    first = ask(client, temperature=1)
    extra: Any = first.model_extra
    assert text(ask(client, temperature=1, seed=extra["timings"]["seed"])) == text(first)


def test_the_first_choice_does_not_depend_on_the_number_of_choices(client: openai.OpenAI) -> None:
    many = ask(client, temperature=1, seed=3, n=3)
    assert many.choices[0].message.content == text(ask(client, temperature=1, seed=3))
    assert len({c.message.content for c in many.choices}) == 3


def test_bytes_of_logprobs_join_to_the_text(client: openai.OpenAI) -> None:
    answer = ask(client, logprobs=True, top_logprobs=2, stop=[" time"])
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    joined = b"".join(bytes(entry.bytes or []) for entry in logprobs.content)
    assert joined.decode() == text(answer)
    assert answer.usage is not None
    assert len(logprobs.content) == answer.usage.completion_tokens


def test_concurrent_requests_get_the_same_answers_as_single_ones(client: openai.OpenAI) -> None:
    alone = [text(ask(client, temperature=1, seed=seed, max_tokens=20)) for seed in range(4)]
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(
            lambda seed: text(ask(client, temperature=1, seed=seed % 4, max_tokens=20)), range(8)
        )
        assert list(answers) == alone * 2


def test_a_client_that_disconnects_does_not_affect_the_others(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="demo", messages=STORY, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    assert text(ask(client)).startswith("Once")


def test_the_context_is_never_exceeded(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is 2048"):
        ask(client, max_tokens=3000)


def test_metrics_report_passes_drafts_and_the_link(
    served_demo: DemoServer, client: openai.OpenAI
) -> None:
    usage = ask(client).usage
    assert usage is not None
    response = httpx.get(served_demo[1].removesuffix("/v1") + "/metrics")
    assert response.status_code == 200
    values = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    demo = ("model", "demo")
    assert values["understudy_model_loaded", demo] == 1
    assert values["understudy_model_loaded", ("model", "demo-plain")] == 0
    assert values["understudy_completion_tokens_total", demo] >= usage.completion_tokens
    for name, *labels in (
        ("pass_seconds_count", demo),
        ("pass_rows_total", demo, ("kind", "tree")),
        ("drafted_rows_total", demo, ("source", "subspec")),
        ("accepted_rows_total", demo, ("source", "subspec")),
        ("draft_seconds_total", demo, ("when", "visible")),
        ("link_bytes_total", demo),
        ("link_limit_bytes_per_second", demo),
        ("kv_pages", demo),
    ):
        assert values[f"understudy_{name}", *sorted(labels)] > 0, name


def test_an_answer_without_a_draft_is_the_same(client: openai.OpenAI) -> None:
    plain = ask(client, extra_body={"speculation": {"method": "none"}})
    extra: Any = plain.model_extra
    assert text(plain) == text(ask(client))
    assert extra["timings"]["draft_n"] == 0


@pytest.mark.slow
def test_the_same_model_without_a_draft_gives_the_same_answers(
    client: openai.OpenAI,
) -> None:
    expected = [text(ask(client)), text(ask(client, temperature=1, seed=2))]
    plain = [
        ask(client, model="demo-plain"),
        ask(client, model="demo-plain", temperature=1, seed=2),
    ]
    assert [text(answer) for answer in plain] == expected
    assert {answer.model for answer in plain} == {"demo-plain"}


def calls(answer: ChatCompletion) -> list[tuple[str, Any]]:
    assert answer.choices[0].finish_reason == "tool_calls"
    found: Any = answer.choices[0].message.tool_calls
    return [(c.function.name, json.loads(c.function.arguments)) for c in found]


@pytest.mark.parametrize(
    ("question", "called", "result", "reply"),
    [
        (
            "What time is it in Paris?",
            ("get_time", {"city": "Paris"}),
            '{"time": "14:05"}',
            "14:05",
        ),
        ("Add 47 and 38.", ("add", {"a": 47, "b": 38}), '{"result": 85}', "85"),
    ],
)
def test_a_tool_is_called_and_its_result_is_used(
    client: openai.OpenAI, question: str, called: Any, result: str, reply: str
) -> None:
    messages: list[Any] = [{"role": "user", "content": question}]
    whole = ask(client, messages, tools=TOOLS, max_tokens=80)
    assert calls(whole) == [called]
    assert whole.choices[0].message.content is None
    with client.chat.completions.stream(
        model="demo", messages=messages, tools=TOOLS, temperature=0, max_tokens=80
    ) as stream:
        streamed = stream.get_final_completion()
    assert calls(streamed) == [called]
    (call,) = whole.choices[0].message.tool_calls or []
    messages.append(whole.choices[0].message.model_dump(exclude_none=True))
    messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    assert reply in text(ask(client, messages, tools=TOOLS))


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"get_time", "add"}),
        ({"type": "function", "function": {"name": "add"}}, {"add"}),
    ],
)
@pytest.mark.parametrize("effort", ["none", "low"])
def test_a_call_is_forced_where_the_model_would_write_text(
    client: openai.OpenAI, choice: Any, names: set[str], effort: Any
) -> None:
    fields = {"tools": TOOLS, "tool_choice": choice, "reasoning_effort": effort}
    fields |= {"temperature": 1, "seed": 5, "max_tokens": 200}
    answer = ask(client, **fields)
    plain = ask(client, **fields, extra_body={"speculation": {"method": "none"}})
    assert calls(plain) == calls(answer)
    ((name, arguments),) = calls(answer)[:1]
    assert name in names
    keys = {"get_time": {"city"}, "add": {"a", "b"}}[name]
    assert set(arguments) == keys


def test_no_tool_is_called_with_tool_choice_none(client: openai.OpenAI) -> None:
    question: Any = [{"role": "user", "content": "What time is it in Paris?"}]
    answer = ask(client, question, tools=TOOLS, tool_choice="none")
    assert answer.choices[0].message.tool_calls is None
    assert text(answer)


def test_reasoning_is_separated_from_content_and_counted(client: openai.OpenAI) -> None:
    question: Any = [{"role": "user", "content": "What is 58 + 27?"}]
    answer = ask(client, question, reasoning_effort="low", max_tokens=96)
    message: Any = answer.choices[0].message
    assert text(answer) == "58 + 27 = 85."
    assert message.reasoning_content.startswith("27 is 20 and 7.")
    assert answer.usage is not None
    details = answer.usage.completion_tokens_details
    assert details is not None
    assert 0 < (details.reasoning_tokens or 0) < answer.usage.completion_tokens
    quiet = ask(client, question, reasoning_effort="none")
    assert not hasattr(quiet.choices[0].message, "reasoning_content")


@pytest.mark.slow
def test_the_demo_with_a_long_context_answers_the_same_without_a_draft(
    client: openai.OpenAI,
) -> None:
    """A short prompt, and one that is longer than the context that the weights were made for."""
    long: Any = [{"role": "user", "content": "Once there was a fox. " * 400}]
    for messages in (STORY, long):
        fields = {"model": "demo-64k", "temperature": 1, "seed": 4, "max_tokens": 24}
        answer = ask(client, messages, **fields)
        plain = ask(client, messages, **fields, extra_body={"speculation": {"method": "none"}})
        assert text(answer) == text(plain) != ""
        extra: Any = answer.model_extra
        assert extra["timings"]["draft_n_accepted"] > 0
    assert answer.usage is not None and answer.usage.prompt_tokens > 2048
    assert text(ask(client, model="demo-64k")).startswith("Once")


def test_a_stop_string_counts_in_the_content_only(client: openai.OpenAI) -> None:
    question = [{"role": "user", "content": "What is 58 + 27?"}]
    asked: Any = {"messages": question, "reasoning_effort": "low", "max_tokens": 96}
    whole: Any = ask(client, **asked).choices[0].message
    stop = next(word for word in whole.content.split() if word in whole.reasoning_content)
    (choice,) = ask(client, **asked, stop=[stop]).choices
    message: Any = choice.message
    assert message.reasoning_content == whole.reasoning_content
    assert message.content == whole.content[: whole.content.index(stop)]
    assert choice.finish_reason == "stop"
