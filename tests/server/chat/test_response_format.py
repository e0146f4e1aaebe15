"""Tests of response_format and structured_outputs: their grammars, and what is refused."""

import json
from typing import Any

import httpx
import pytest

from engine.errors import RequestError
from tests.server.conftest import chat, complete, error_of
from tests.server.fake_engine import FakeEngines

OBJECT: dict[str, Any] = {"type": "object"}
TOOL = {"type": "function", "function": {"name": "f"}}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


def chained(links: int) -> dict[str, Any]:
    """Return a schema whose references refer to references, which readers follow recursively."""
    definitions: dict[str, Any] = {f"d{links}": {"type": "null"}}
    for link in range(links):
        definitions[f"d{link}"] = {"properties": {"a": {"$ref": f"#/$defs/d{link + 1}"}}}
    return {"$ref": "#/$defs/d0", "$defs": definitions}


def form(**fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": OBJECT, **fields}}


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"response_format": None}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"structured_outputs": None}, None),
        ({"response_format": {"type": "json_object"}}, '"type": "object"'),
        ({"response_format": form(schema={"type": "null"}, strict=True)}, '"type": "null"'),
        ({"response_format": form(strict=None, description="d", other=3)}, '"type": "object"'),
        ({"response_format": form(schema=chained(300))}, "d300"),
        ({"structured_outputs": {"json": {"type": "null"}}}, '"type": "null"'),
        ({"structured_outputs": {"regex": "a/[b-d]+", "json": None}}, "a"),
        ({"structured_outputs": {"choice": ["yes", 'n"o']}}, "yes"),
        ({"structured_outputs": {"grammar": 'start: "x"'}}, "start"),
        ({"structured_outputs": {"grammar": 'root ::= "x"'}}, "start"),
    ],
)
async def test_api_16_the_engine_gets_the_grammar_of_a_request(
    client: httpx.AsyncClient, engines: FakeEngines, fields: dict[str, Any], part: str | None
) -> None:
    assert (await chat(client, **fields)).status_code == 200
    grammar = engines.engine.requests[-1].params.grammar
    assert (
        (grammar == "") if part is None else (part in grammar and "grammars" in json.loads(grammar))
    )
    if "structured_outputs" in fields:
        assert (await complete(client, **fields)).status_code == 200
        assert engines.engine.requests[-1].params.grammar == grammar


SCHEMA = "response_format.json_schema.schema"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"response_format": []}, "response_format", "invalid_type"),
        ({"response_format": {}}, "response_format.type", "missing_required_parameter"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "missing_required_parameter",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": [None]}},
            "response_format.json_schema",
            "invalid_type",
        ),
        ({"response_format": form(name=None)}, "response_format.json_schema.name", "invalid_type"),
        (
            {"response_format": form(name="a b")},
            "response_format.json_schema.name",
            "invalid_value",
        ),
        ({"response_format": form(strict=1)}, "response_format.json_schema.strict", "invalid_type"),
        ({"response_format": form(schema=None)}, SCHEMA, "missing_required_parameter"),
        ({"response_format": form(schema=[])}, SCHEMA, "invalid_type"),
        ({"response_format": form(schema=True)}, SCHEMA, "invalid_type"),
        ({"response_format": form(schema={"type": "foo"})}, SCHEMA, "invalid_grammar"),
        ({"response_format": form(schema={"type": 3})}, SCHEMA, "invalid_grammar"),
        ({"response_format": form(schema={"$ref": "#/nope"})}, SCHEMA, "invalid_grammar"),
        ({"response_format": form(schema={"pattern": "(a"})}, SCHEMA, "invalid_grammar"),
        ({"response_format": form(schema={"not": {}})}, SCHEMA, "invalid_grammar"),
        ({"response_format": form(schema=nested(70))}, None, "body_too_deep"),
        ({"response_format": form(schema=chained(2500))}, SCHEMA, "invalid_grammar"),
        ({"response_format": form(schema={"enum": ["x" * 999] * 999})}, SCHEMA, "invalid_grammar"),
        ({"structured_outputs": {}}, "structured_outputs", "invalid_value"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs", "invalid_value"),
        ({"structured_outputs": {"json": 3}}, "structured_outputs.json", "invalid_type"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "invalid_grammar"),
        ({"structured_outputs": {"regex": "(?=a)"}}, "structured_outputs.regex", "invalid_grammar"),
        (  # takes 4 s to compile if it is not refused
            {"structured_outputs": {"regex": "(a|b)?" * 25_000}},
            "structured_outputs.regex",
            "invalid_grammar",
        ),
        (  # takes 8 s and 1.3 GB to compile if it is not refused
            {"structured_outputs": {"regex": r"\w?" * 5_000}},
            "structured_outputs.regex",
            "invalid_grammar",
        ),
        (
            {"structured_outputs": {"grammar": "start: <nobody>"}},
            "structured_outputs.grammar",
            "invalid_grammar",
        ),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex", "invalid_value"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "empty_array"),
        ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice.0", "invalid_type"),
        ({"structured_outputs": {"grammar": "?"}}, "structured_outputs.grammar", "invalid_grammar"),
        (
            {"structured_outputs": {"grammar": "start: nobody"}},
            "structured_outputs.grammar",
            "invalid_grammar",
        ),
        (
            {"structured_outputs": {"grammar": "start: " + "(" * 5000}},
            "structured_outputs.grammar",
            "invalid_grammar",
        ),
        (
            {
                "structured_outputs": {"regex": "a"},
                "response_format": {"type": "json_object"},
            },
            "structured_outputs",
            "invalid_value",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_api_16_invalid_formats_are_refused(
    client: httpx.AsyncClient,
    engines: FakeEngines,
    fields: dict[str, Any],
    param: str | None,
    code: str,
    stream: bool,
) -> None:
    error = error_of(await chat(client, stream=stream, **fields), 400)
    assert (error["param"], error["code"]) == (param, code), error["message"]
    assert len(error["message"]) < 900
    assert not any(engine.requests for engine in engines.made)


@pytest.mark.parametrize(
    ("ask", "fields", "param"),
    [
        (chat, {"response_format": {"type": "json_object"}}, "response_format"),
        (chat, {"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        (chat, {"tools": [TOOL], "tool_choice": "required"}, "tools"),
        (complete, {"structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ],
)
async def test_a_grammar_that_only_the_engine_refuses_names_its_field(
    client: httpx.AsyncClient, engines: FakeEngines, ask: Any, fields: dict[str, Any], param: str
) -> None:
    engines.script.error = RequestError("too many expressions", "invalid_grammar")
    assert error_of(await ask(client, **fields), 400)["param"] == param


@pytest.mark.parametrize(
    "regex",
    [
        "(a+)+$",
        "(x+x+)+y",
        "(.*)" * 10 + "b",
        ".*a.{30}",
        "(a|b)*a(a|b){18}",
        "((a{1,100}){1,100}){1,100}",
        "(?:a?){5000}a{5000}",
        "(" * 200 + "a" + ")" * 200,
    ],
)
async def test_a_regex_that_backtracks_exponentially_elsewhere_is_cheap(
    client: httpx.AsyncClient, regex: str
) -> None:
    """llguidance never backtracks, and limits the size of what it builds."""
    assert (await chat(client, structured_outputs={"regex": regex})).status_code == 200


LARK = 'start: "a"'
SCHEMA_TEXT = '{"type": "object"}'


@pytest.mark.parametrize(
    ("field", "value", "way"),
    [
        ("guided_json", {"type": "object"}, "json"),
        ("guided_json", SCHEMA_TEXT, "json"),
        ("json_schema", {"type": "object"}, "json"),
        ("guided_regex", "a+", "regex"),
        ("guided_choice", ["a", "b"], "choice"),
        ("guided_grammar", LARK, "grammar"),
        ("grammar", 'root ::= "a"', "grammar"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_forms_of_other_servers_are_followed(
    client: httpx.AsyncClient, engines: FakeEngines, path: str, field: str, value: Any, way: str
) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi"}

    async def grammar_of(**fields: Any) -> str:
        answer = await client.post(path, json=body | fields)
        assert answer.status_code == 200, answer.text
        return engines.engine.requests[-1].params.grammar

    meant = json.loads(value) if value == SCHEMA_TEXT else value
    grammar = await grammar_of(**{field: value})
    assert grammar and grammar == await grammar_of(structured_outputs={way: meant})
    assert await grammar_of(guided_regex="", guided_choice=[], grammar="", guided_json=None) == ""


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": [1]}, "guided_json"),
        ({"grammar": 5}, "grammar"),
        ({"guided_choice": "a"}, "guided_choice"),
        ({"json_schema": {"type": "foo"}}, "json_schema"),
        ({"grammar": LARK, "guided_regex": "a"}, "grammar"),
        ({"grammar": LARK, "structured_outputs": {"regex": "a"}}, "structured_outputs.regex"),
        ({"grammar": LARK, "response_format": {"type": "json_object"}}, "grammar"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
        ({"reasoning": 5}, "reasoning"),
        ({"thinking": {"type": "maybe"}}, "thinking.type"),
        ({"enable_thinking": "no"}, "enable_thinking"),
    ],
)
async def test_wrong_forms_of_other_servers_are_refused(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    assert error_of(await chat(client, **fields), 400)["param"] == param
