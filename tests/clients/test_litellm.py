"""Tests with litellm: OpenAI's and Anthropic's APIs through one function."""

import os
from typing import Any

import pytest

from tests.clients.conftest import STORY, TIME

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no access to the network
litellm = pytest.importorskip("litellm")

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "get_time", "description": "The time in a city", "parameters": CITY}
TOOLS = [{"type": "function", "function": FUNCTION}]


def ask(url: str, provider: str, question: str, **fields: Any) -> Any:
    base = url.removesuffix("/v1") if provider == "anthropic" else url
    return litellm.completion(
        model=f"{provider}/demo",
        api_base=base,
        api_key="none",
        messages=[{"role": "user", "content": question}],
        max_tokens=60,
        temperature=0,
        **fields,
    )


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm", "anthropic"])
def test_one_function_serves_all_providers(url: str, provider: str) -> None:
    whole = ask(url, provider, STORY).choices[0].message.content
    stream = ask(url, provider, STORY, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole != ""
    (call,) = ask(url, provider, TIME, tools=TOOLS).choices[0].message.tool_calls
    assert call.function.arguments == '{"city": "Paris"}'


def test_errors_are_the_exceptions_of_the_library(url: str) -> None:
    with pytest.raises(litellm.ContextWindowExceededError):
        ask(url, "openai", "word " * 3000)
