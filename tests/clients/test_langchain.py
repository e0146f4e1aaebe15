"""Tests with langchain-openai: chat, streams, tools, structured output, completions, responses."""

from typing import Any, Literal

import pytest
from pydantic import BaseModel

from tests.clients.conftest import STORY, TIME, get_time

langchain = pytest.importorskip("langchain_openai")


class Pet(BaseModel):
    """A pet with name and age."""

    name: Literal["Ada", "Bo"]
    age: int


@pytest.fixture(params=[False, True], ids=["chat", "responses"])
def model(url: str, request: pytest.FixtureRequest) -> Any:
    return langchain.ChatOpenAI(
        model="demo",
        base_url=url,
        api_key="none",
        temperature=0,
        max_tokens=160,
        max_retries=0,
        stream_usage=True,  # the default without a base URL
        use_responses_api=request.param,
    )


def joined(chunks: Any) -> Any:
    """Return the sum of a stream's chunks, added by the library."""
    whole = next(chunks)
    for chunk in chunks:
        whole += chunk
    return whole


def test_a_stream_adds_up_to_the_answer(model: Any) -> None:
    answer = model.invoke(STORY)
    streamed = joined(model.stream(STORY))
    assert streamed.text == answer.text != ""
    assert streamed.usage_metadata["output_tokens"] == answer.usage_metadata["output_tokens"] > 0


def test_a_tool_is_called_and_its_result_is_used(model: Any) -> None:
    bound = model.bind_tools([get_time])
    answer = bound.invoke(TIME)
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [
        ("get_time", {"city": "Paris"})
    ]
    assert joined(bound.stream(TIME)).tool_calls[0]["args"] == {"city": "Paris"}
    (call,) = answer.tool_calls
    result = {"role": "tool", "tool_call_id": call["id"], "content": get_time("Paris")}
    turns = [{"role": "user", "content": TIME}, answer, result]
    assert "14:05" in bound.invoke(turns).text


@pytest.mark.parametrize("choice", ["any", "get_time"])
def test_a_call_is_forced(model: Any, choice: str) -> None:
    bound = model.bind_tools([get_time], tool_choice=choice, strict=True, parallel_tool_calls=False)
    (call,) = bound.invoke(STORY).tool_calls
    assert set(call["args"]) == {"city"}


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_is_parsed(model: Any, method: str) -> None:
    assert isinstance(model.with_structured_output(Pet, method=method).invoke(STORY), Pet)


def test_json_without_a_schema_is_parsed(model: Any) -> None:
    # the model chooses the keys
    found = model.with_structured_output(None, method="json_mode").invoke("Write JSON.")
    assert isinstance(found, dict)


def test_a_text_is_continued(url: str) -> None:
    model = langchain.OpenAI(model="demo", base_url=url, api_key="none", temperature=0)
    assert "".join(model.stream("Once")) == model.invoke("Once") != ""
