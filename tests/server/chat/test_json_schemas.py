"""Tables of what grammars of JSON schemas take, and of the keywords that are dropped."""

import json
from typing import Any

import httpx
import pytest
from llguidance import LLTokenizer

from server.chat.grammars import json_grammar
from server.chat.json_schemas import prepared_schema
from tests.server.chat.test_grammars import DEMO, accepts
from tests.server.conftest import chat, complete, error_of

TEXT = {"type": "string"}


def schema_of(*names: str, required: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    properties = dict.fromkeys(names, TEXT)
    return {"type": "object", "properties": properties, "required": [*required], **more}


A, B = schema_of("a", required=("a",)), schema_of("b", required=("b",))
CLOSED = {"additionalProperties": False}
BASE = {"$defs": {"Base": A}}
REFERENCE = {"$ref": "#/$defs/Base"}


@pytest.fixture(scope="module")
def tokenizer() -> LLTokenizer:
    return LLTokenizer(DEMO.read_text())


@pytest.mark.parametrize(
    ("schema", "taken", "refused"),
    [
        (A, {"a": "x"}, {"a": "x", "z": "x"}),
        (schema_of("a", additionalProperties=True), {"z": 1}, None),
        (schema_of("a", additionalProperties=TEXT), {"a": "x", "z": "x"}, {"z": 1}),
        ({"type": "object"}, {"z": 1}, None),
        (schema_of(), {}, {"z": 1}),
        (schema_of(additionalProperties=True), {"z": 1}, None),
        (schema_of(required=("b",)), {"b": 1}, None),
        # what closing would make unsatisfiable stays open
        (schema_of("a", required=("b",)), {"b": 1}, None),
        # objects within objects
        ({"type": "array", "items": A}, [{"a": "x"}], [{"a": "x", "z": "x"}]),
        (
            {"type": "object", "properties": {"o": A}},
            {"o": {"a": "x"}},
            {"o": {"a": "x", "z": "x"}},
        ),
        # parts of one object
        ({"allOf": [A, B]}, {"a": "x", "b": "x"}, {"a": "x", "b": "x", "z": "x"}),
        ({"allOf": [{**A, **CLOSED}, {**B, **CLOSED}]}, {"a": "x", "b": "x"}, {"a": "x"}),
        ({**B, **CLOSED, "allOf": [A]}, {"b": "x", "a": "x"}, {"b": "x"}),
        ({**B, "anyOf": [A, schema_of("c", required=("c",))]}, {"b": "x", "c": "x"}, {"b": "x"}),
        ({"anyOf": [A, B]}, {"b": "x"}, {"b": "x", "a": "x"}),
        ({"oneOf": [A, schema_of("a", "b", required=("a",))]}, {"a": "x", "b": "x"}, {"b": "x"}),
        (
            {"allOf": [A, B], "unevaluatedProperties": False},
            {"a": "x", "b": "x"},
            {"a": "x", "b": "x", "z": "x"},
        ),
        # a definition that is a part here and a whole there
        ({**BASE, "allOf": [REFERENCE, B]}, {"a": "x", "b": "x"}, {"b": "x"}),
        (
            {
                **BASE,
                "type": "object",
                "properties": {"o": REFERENCE, "p": {"allOf": [REFERENCE, B]}},
                "required": ["o", "p"],
            },
            {"o": {"a": "x"}, "p": {"a": "x", "b": "x"}},
            {"o": {"a": "x", "b": "x"}, "p": {"a": "x", "b": "x"}},
        ),
        (
            {
                "$defs": {
                    "Node": {
                        "type": "object",
                        "properties": {"v": TEXT, "next": {"allOf": [{"$ref": "#/$defs/Node"}]}},
                        "required": ["v"],
                    }
                },
                "$ref": "#/$defs/Node",
            },
            {"v": "x", "next": {"v": "y"}},
            {"v": "x", "z": 1},
        ),
        # what says nothing, or means nothing
        (schema_of("a", propertyNames={"type": "string"}), {"a": "x"}, {"z": "x"}),
        ({"type": "string", "format": "of-the-house"}, "x", 1),
        (schema_of("a", additionalProperties={"not": {}}), {"a": "x"}, {"z": "x"}),
        (
            {"type": "object", "properties": {"a": TEXT, "b": {"not": {}}}},
            {"a": "x"},
            {"a": "x", "b": "x"},
        ),
        ({"oneOf": [TEXT, {"type": "string", "maxLength": 2}]}, "xyz", 1),
    ],
)
@pytest.mark.parametrize("is_strict", [False, True])
def test_objects_are_closed_after_their_parts_are_merged(
    tokenizer: LLTokenizer, schema: Any, taken: Any, refused: Any, is_strict: bool
) -> None:
    before = json.dumps(schema)
    grammar = json_grammar(schema, is_strict=is_strict)
    assert accepts(tokenizer, grammar, json.dumps(taken))
    if refused is not None:
        assert not accepts(tokenizer, grammar, json.dumps(refused))
    assert json.dumps(schema) == before
    assert prepared_schema(schema, is_strict=is_strict)[1] == []


DROPPED: list[tuple[dict[str, Any], str]] = [
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"type": "array", "contains": TEXT, "minContains": 2}, "contains"),
    ({"type": "string", "not": {"const": "x"}}, "not"),
    ({"if": A, "then": B, "else": A}, "if"),
    ({"type": "string", "pattern": "^(?!x)"}, "pattern"),
    ({"type": "string", "pattern": r"(x)\1"}, "pattern"),
    ({"type": "object", "patternProperties": {"^(?=x)": TEXT}}, "patternProperties"),
    ({"type": "object", "propertyNames": {"pattern": "^x"}}, "propertyNames"),
    ({**schema_of("a", "b"), "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    (schema_of("a", "b", minProperties=2), "minProperties"),
]


@pytest.mark.parametrize(("schema", "keyword"), DROPPED)
async def test_what_a_grammar_cannot_say_is_dropped_unless_it_is_strict(
    client: httpx.AsyncClient, schema: dict[str, Any], keyword: str
) -> None:
    outer = {"type": "object", "properties": {"o": schema}}
    for strict in (None, False, True):
        asked = {"name": "n", "schema": outer, "strict": strict}
        form = {"type": "json_schema", "json_schema": asked}
        function = {"name": "f", "parameters": outer, "strict": strict}
        tool = {"type": "function", "function": function}
        for fields in (
            {"response_format": form},
            {"tools": [tool], "tool_choice": "required"},
        ):
            answer = await chat(client, **fields)
            if strict:
                error = error_of(answer, 400)
                assert error["code"] == "invalid_grammar"
                assert error["param"].split(".")[0] in fields
            else:
                assert answer.status_code == 200, answer.text
                assert answer.headers["x-understudy-ignored"] == keyword
    answer = await complete(client, guided_json=schema)
    assert answer.headers["x-understudy-ignored"] == keyword


def test_patterns_that_only_look_like_look_around_are_kept() -> None:
    for pattern in (r"\(\?=x", r"\\(a|b)", r"[0-9]{1,2}", r"(?:a)(?i:b)", r"\\1"):
        schema = {"type": "string", "pattern": pattern}
        prepared, dropped = prepared_schema(schema, is_strict=False)
        assert (prepared, dropped) == (schema, [])
