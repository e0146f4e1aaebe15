"""Tests of the official clients of OpenAI and Anthropic with a real server and the demo model."""

import json
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import openai
import pytest
from pydantic import BaseModel

from tests.demo_server import DemoServer
from tests.variations import variations

STORY: Any = [{"role": "user", "content": "Tell me a story."}]
TIME: Any = [{"role": "user", "content": "What time is it in Paris?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
GET_TIME: Any = {"name": "get_time", "description": "The time in a city", "parameters": CITY}
TOOLS: Any = [{"type": "function", "function": GET_TIME}]
RESULT = '{"time": "14:05"}'


class get_time(BaseModel):  # the tool has the name of its class
    """The time in a city"""

    city: str


class Pet(BaseModel):
    """The class into which an answer is parsed."""

    name: Literal["Ada", "Bo"]
    age: int
    friends: list[Literal["fox", "bear"]] | None


@pytest.fixture
def client(served_demo: DemoServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served_demo[1], api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def claude(served_demo: DemoServer) -> Iterator[anthropic.Anthropic]:
    root = served_demo[1].removesuffix("/v1")
    with anthropic.Anthropic(base_url=root, api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, **fields: Any) -> dict[str, Any]:
    """Return the whole answer to a chat, without the parts that differ for each answer."""
    asked: Any = {"model": "demo", "messages": STORY, "max_tokens": 40} | fields
    answer: dict[str, Any] = client.chat.completions.create(**asked).model_dump()
    for name in ("id", "created", "timings"):
        del answer[name]
    del answer["usage"]["prompt_tokens_details"]  # what is cached depends on earlier requests
    for choice in answer["choices"]:
        for call in choice["message"]["tool_calls"] or ():
            del call["id"]
    return answer


SCHEMA = {"name": "pet", "schema": Pet.model_json_schema() | {"additionalProperties": False}}


FIELDS: list[dict[str, Any]] = [
    {"n": 3, "top_p": 0.9},
    {"logprobs": True, "top_logprobs": 5, "stop": [" lived", "fox"]},
    {"response_format": {"type": "json_schema", "json_schema": SCHEMA}, "logprobs": True},
    {"tools": TOOLS, "tool_choice": "required", "n": 2},
    {"extra_body": {"structured_outputs": {"regex": "[a-z]{3,9} [0-9]+"}}, "logprobs": True},
    {"presence_penalty": 1.5, "frequency_penalty": -0.5, "logprobs": True},
    {"extra_body": {"repetition_penalty": 1.3, "top_k": 40, "min_p": 0.05}, "n": 2},
    {"response_format": {"type": "json_object"}, "frequency_penalty": 0.5},
    {"messages": TIME, "tools": TOOLS},
    {"reasoning_effort": "low", "logit_bias": {"100": 20}},
]


@pytest.mark.parametrize("fields", variations(FIELDS, quick=FIELDS[:5]))
def test_speculation_does_not_change_the_answer(
    client: openai.OpenAI, fields: dict[str, Any]
) -> None:
    asked = {"temperature": 1, "seed": 4} | fields
    plain = asked["extra_body"] = {**asked.get("extra_body", {})}
    drafted = ask(client, **asked)
    plain["speculation"] = {"method": "none"}
    assert ask(client, **asked) == drafted


def test_streamed_logprobs_join_to_the_whole(client: openai.OpenAI) -> None:
    fields: Any = {"n": 2, "temperature": 1, "seed": 2, "logprobs": True, "top_logprobs": 1}
    whole = ask(client, **fields)
    streamed: list[list[Any]] = [[], []]
    for chunk in client.chat.completions.create(
        model="demo", messages=STORY, max_tokens=40, stream=True, **fields
    ):
        for choice in chunk.choices:
            if choice.logprobs is not None:
                streamed[choice.index] += choice.model_dump()["logprobs"]["content"]
    assert streamed == [choice["logprobs"]["content"] for choice in whole["choices"]]


def test_an_answer_is_parsed_into_a_class(client: openai.OpenAI) -> None:
    asked: Any = {"model": "demo", "messages": STORY, "temperature": 1, "max_tokens": 80}
    parsed = client.chat.completions.parse(**asked, response_format=Pet).choices[0].message.parsed
    assert isinstance(parsed, Pet)
    with client.chat.completions.stream(**asked, response_format=Pet) as stream:
        kinds = {event.type for event in stream}
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Pet)
    assert {"chunk", "content.delta", "content.done"} <= kinds
    response = client.responses.parse(
        model="demo", input=STORY, temperature=1, max_output_tokens=80, text_format=Pet
    )
    assert isinstance(response.output_parsed, Pet)


def test_the_arguments_of_a_call_are_parsed_into_a_class(client: openai.OpenAI) -> None:
    asked: Any = {"model": "demo", "messages": TIME, "temperature": 0, "max_tokens": 80}
    tools: Any = [openai.pydantic_function_tool(get_time)]
    whole = client.chat.completions.parse(**asked, tools=tools)
    with client.chat.completions.stream(**asked, tools=tools) as stream:
        kinds = {event.type for event in stream}
        streamed = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    for answer in (whole, streamed):
        (call,) = answer.choices[0].message.tool_calls or []
        assert call.function.parsed_arguments == get_time(city="Paris")


def test_completions_are_answered_whole_and_streamed(client: openai.OpenAI) -> None:
    fields: Any = {"model": "demo", "prompt": ["Once", "The sky"], "n": 2, "logprobs": 1, "seed": 1}
    whole = client.completions.create(**fields)
    texts = [""] * 4
    for chunk in client.completions.create(**fields, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert len(set(texts)) == 4
    assert whole.usage is not None
    assert whole.usage.completion_tokens == sum(
        len(choice.logprobs.tokens or ()) for choice in whole.choices if choice.logprobs
    )


def test_responses_are_answered_whole_and_streamed(client: openai.OpenAI) -> None:
    fields: Any = {"model": "demo", "input": STORY, "temperature": 0}
    whole = client.responses.create(**fields)
    assert whole.status == "completed" and whole.output_text.startswith("Once")
    with client.responses.stream(**fields) as stream:
        numbers = [event.sequence_number for event in stream]
        assert stream.get_final_response().output_text == whole.output_text
    assert numbers == list(range(len(numbers)))


def test_a_response_calls_a_tool_and_uses_its_result(client: openai.OpenAI) -> None:
    fields: Any = {"model": "demo", "temperature": 0, "tools": [{"type": "function", **GET_TIME}]}
    asked = client.responses.create(input=TIME, **fields)
    (call,) = asked.output
    assert call.type == "function_call" and json.loads(call.arguments) == {"city": "Paris"}
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": RESULT}
    items = [*TIME, call.model_dump(), result]
    assert "14:05" in client.responses.create(input=items, **fields).output_text


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    assert "demo" in [model.id for model in client.models.list()]
    assert client.models.retrieve("demo").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("none")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "kind", "code", "param"),
    [
        ({"model": "none"}, openai.NotFoundError, "model_not_found", "model"),
        ({"messages": []}, openai.BadRequestError, "empty_array", "messages"),
        ({"max_tokens": 3000}, openai.BadRequestError, "context_length_exceeded", "max_tokens"),
        ({"temperature": 3}, openai.BadRequestError, "invalid_value", "temperature"),
    ],
)
def test_errors_become_the_exceptions_of_openais_client(
    client: openai.OpenAI,
    fields: Any,
    kind: type[openai.APIStatusError],
    code: str,
    param: str,
    stream: bool,
) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(
            **{"model": "demo", "messages": STORY} | fields | {"stream": stream}
        )
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.request_id


def test_messages_are_answered_streamed_and_counted(claude: anthropic.Anthropic) -> None:
    fields: Any = {"model": "demo", "messages": STORY, "max_tokens": 20}
    fields["extra_body"] = {"temperature": 0}
    whole = claude.messages.create(**fields)
    assert whole.stop_reason == "max_tokens" and whole.usage.output_tokens == 20
    with claude.messages.stream(**fields) as stream:
        text = "".join(stream.text_stream)
        assert stream.get_final_text() == text
    assert whole.content[0].type == "text" and whole.content[0].text == text
    counted = claude.messages.count_tokens(model="demo", messages=STORY).input_tokens
    assert counted == whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_message_calls_a_tool_and_uses_its_result(
    claude: anthropic.Anthropic, streamed: bool
) -> None:
    tool = {"name": "get_time", "description": "The time in a city", "input_schema": CITY}
    fields: Any = {"model": "demo", "max_tokens": 80, "tools": [tool]}
    fields["extra_body"] = {"temperature": 0}
    if streamed:
        with claude.messages.stream(messages=TIME, **fields) as stream:
            answer = stream.get_final_message()
    else:
        answer = claude.messages.create(messages=TIME, **fields)
    (use,) = answer.content
    assert use.type == "tool_use" and (use.name, use.input) == ("get_time", {"city": "Paris"})
    assert answer.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": use.id, "content": RESULT}
    turns = [
        *TIME,
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": [result]},
    ]
    (block,) = claude.messages.create(messages=turns, **fields).content
    assert block.type == "text" and "14:05" in block.text


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"model": "none"}, anthropic.NotFoundError),
        ({"messages": []}, anthropic.BadRequestError),
        ({"max_tokens": -2}, anthropic.BadRequestError),
    ],
)
def test_errors_become_the_exceptions_of_anthropics_client(
    claude: anthropic.Anthropic, fields: Any, kind: type[anthropic.APIStatusError]
) -> None:
    with pytest.raises(kind):
        claude.messages.create(**{"model": "demo", "messages": STORY, "max_tokens": 5} | fields)
