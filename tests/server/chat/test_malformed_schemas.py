"""Schemas whose keywords have values of a wrong type: errors name them where calls are forced."""

import itertools
from typing import Any

import httpx
import pytest

from engine.parsing.selection import Formats, known_formats
from engine.parsing.values import kinds_of, parameter_schema
from server.chat.answer_grammar import calls_grammar
from server.chat.grammars import json_grammar
from server.chat.json_schemas import prepared_schema
from server.chat.malformed_schemas import is_well_formed
from server.chat.tools import ToolUse
from server.schemas.tools import Function, Tool
from tests.server.conftest import chat, error_of

KEYWORDS = (
    *("type", "properties", "required", "additionalProperties", "patternProperties", "$defs"),
    *("allOf", "anyOf", "oneOf", "not", "if", "then", "dependentSchemas", "enum", "items"),
    *("prefixItems", "minItems", "minLength", "maxLength", "pattern", "format", "multipleOf"),
    *("minProperties", "$ref", "uniqueItems", "contains", "propertyNames", "$schema"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, 0, 1.5, "", "(", [], [None], ["a"], [{}], [[]], {}, {"a": None}, {"a": []}),
    *([{"type": 1}], {"a": {"type": {}}}, {"properties": []}, {"a": {"required": [[]]}}),
)
RAW, WHOLE = "qwen3_coder", "hermes"  # arguments written one by one, and as one object


def schemas_with(keyword: str, value: Any) -> list[dict[str, Any]]:
    """Return schemas of objects that have a keyword themselves, in a part, or in a property."""
    inner = {keyword: value}
    return [
        {"type": "object", "properties": {"a": {"type": "string"}}} | inner,
        {"type": "object", "properties": {"a": inner}},
        {"type": "object", "allOf": [inner, {"properties": {"b": {}}}]},
    ]


@pytest.mark.parametrize("name", [RAW, WHOLE])
@pytest.mark.parametrize("keyword", KEYWORDS)
def test_no_value_of_a_keyword_breaks_the_grammars(name: str, keyword: str) -> None:
    formats = Formats(known_formats()[name], None)
    for value, place in itertools.product(VALUES, range(3)):
        schema = schemas_with(keyword, value)[place]
        function = Function.model_construct(name="f", parameters=schema, strict=place == 0)
        use = ToolUse((Tool.model_construct(function=function),), is_required=True)
        assert calls_grammar(use, formats, {})
        assert json_grammar(schema)
        kinds_of(parameter_schema(schema, "a"), schema)


@pytest.mark.parametrize("keyword", [key for key in KEYWORDS if not is_well_formed({key: 1.5})])
def test_null_means_that_a_keyword_is_absent(keyword: str) -> None:
    schema = {"type": "object", "properties": {"a": {keyword: None}}}
    expected = {"type": "object", "properties": {"a": {}}, "additionalProperties": False}
    assert prepared_schema(schema, is_strict=True) == (expected, [])


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"type": "object", "properties": [{"type": "string"}]}, "properties must be an object"),
        ({"properties": {"a": {"format": ["date"]}}}, "Expected string for 'format'"),
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
