"""Tests that schemas with keywords of wrong types are answered or refused, never a failure."""

import contextlib
from typing import Any

import httpx
import pytest

from engine.parsing.selection import formats_of
from server.chat.answer_grammar import answer_grammar
from server.chat.json_schemas import prepared_schema
from server.chat.tools import tool_use
from server.errors import ApiError
from server.schemas.chat import ChatRequest
from server.schemas.checking import check_object
from tests.server.conftest import chat, error_of

ODD: list[Any] = [[{"a": {}}], "abc", 5, None, {"a": 5}, {"a": {"type": [{}]}}, [{}], 1.5, [None]]
KEYWORDS = (
    *("properties", "required", "type", "additionalProperties", "enum", "items", "anyOf", "allOf"),
    *("$ref", "patternProperties", "minProperties", "dependentSchemas", "propertyNames", "$defs"),
    *("prefixItems", "pattern", "minLength", "format", "not"),
)


@pytest.mark.parametrize("name", ["hermes", "qwen3_coder", "gemma4", "llama_pythonic"])
@pytest.mark.parametrize("keyword", KEYWORDS)
def test_a_malformed_schema_gives_a_grammar_or_a_400(name: str, keyword: str) -> None:
    schemas: list[dict[str, Any]] = []
    for odd in ODD:
        schemas.append({"type": "object", keyword: odd})
        schemas.append({"type": "object", "properties": {"p": {keyword: odd}}})
        schemas.append({"allOf": [{keyword: odd}, {"properties": {"b": {}}}], "minProperties": 1})
    for schema in schemas:
        function = {"name": "f", "parameters": schema}
        tools = [{"type": "function", "function": function}]
        messages = [{"role": "user", "content": "hi"}]
        fields = {"messages": messages, "tools": tools, "tool_choice": "required"}
        with contextlib.suppress(ApiError):
            request = check_object(ChatRequest, fields)
            answer_grammar(request, tool_use(request), formats_of("", name), {}, lambda _: None)


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_null_means_that_a_keyword_is_absent(keyword: str) -> None:
    schema = {"type": "object", "properties": {"a": {keyword: None}}}
    expected = {"type": "object", "properties": {"a": {}}, "additionalProperties": False}
    assert prepared_schema(schema, is_strict=True) == (expected, [])


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"type": "object", "properties": [{"type": "string"}]}, "properties must be an object"),
        ({"properties": {"a": {}}, "required": "a"}, "Expected array for 'required'"),
    ],
)
async def test_the_error_names_the_tool_and_the_keyword(
    client: httpx.AsyncClient, parameters: dict[str, Any], reason: str
) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    error = error_of(await chat(client, tools=tools, tool_choice="required"), 400)
    assert (error["param"], error["code"]) == ("tools.0.function.parameters", "invalid_grammar")
    assert reason in error["message"]
    assert (await chat(client, tools=tools)).status_code == 200
