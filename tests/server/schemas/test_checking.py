"""The `param` of an error names the place of the mistake in a nested body."""

import json
from typing import Any

import pytest

from server.errors import ApiError
from server.schemas.chat import ChatRequest
from server.schemas.checking import parse_body
from server.schemas.completions import CompletionRequest
from server.schemas.fields import Body
from server.schemas.message_bodies import MessagesRequest
from server.schemas.response_bodies import ResponseRequest

MISSING = "missing_required_parameter"
USER = {"role": "user", "content": "hi"}
RIGHT: dict[type[Body], dict[str, Any]] = {
    ChatRequest: {"messages": [USER]},
    CompletionRequest: {"prompt": "hi"},
    ResponseRequest: {"input": "hi"},
    MessagesRequest: {"messages": [USER], "max_tokens": 9},
}


def refusal(kind: type[Body], raw: bytes) -> tuple[str | None, str | None]:
    """Return the `param` and the `code` of the error that a body raises."""
    with pytest.raises(ApiError) as raised:
        parse_body(kind, raw)
    assert raised.value.status == 400
    assert len(raised.value.message) < 600
    return raised.value.param, raised.value.code


def function(**fields: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "f", **fields}}]


def allowed(tools: Any) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": tools}}


def nested(levels: int) -> dict[str, Any]:
    return {"a": nested(levels - 1)} if levels else {}


CHAT: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": {}}, "tools", "invalid_type"),
    ({"tools": [{}]}, "tools.0.type", MISSING),
    ({"tools": [[]]}, "tools.0", "invalid_type"),
    ({"tools": function(name="a b")}, "tools.0.function.name", "invalid_value"),
    ({"tools": function(name=3, function={})}, "tools.0.function.name", "invalid_type"),
    ({"tools": function(parameters=[])}, "tools.0.function.parameters", "invalid_type"),
    ({"tools": function(parameters=nested(80))}, "tools.0.function.parameters", "invalid_value"),
    ({"tool_choice": "some"}, "tool_choice", "invalid_value"),
    ({"tool_choice": {"named": 3}}, "tool_choice.type", MISSING),
    ({"tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name", MISSING),
    ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools", MISSING),
    ({"tool_choice": allowed([])}, "tool_choice.allowed_tools.tools", "empty_array"),
    ({"tool_choice": allowed([{}])}, "tool_choice.allowed_tools.tools.0.type", MISSING),
    ({"tool_choice": allowed([3])}, "tool_choice.allowed_tools.tools.0", "invalid_type"),
    ({"messages": [[]]}, "messages.0", "invalid_type"),
    ({"messages": [USER, {"role": ["user"]}]}, "messages.1.role", "invalid_value"),
    ({"messages": [{**USER, "content": [{"text": "a"}]}]}, "messages.0.content.0.type", MISSING),
    (
        {"messages": [{**USER, "content": [{"type": 3}]}]},
        "messages.0.content.0.type",
        "invalid_value",
    ),
    ({"messages": [{**USER, "content": {"str": 1}}]}, "messages.0.content", "invalid_type"),
    (
        {"messages": [{"role": "user", "user": {"content": 3}, "content": 3}]},
        "messages.0.content",
        "invalid_type",
    ),
    (
        {"messages": [{"role": "assistant", "assistant": [], "tool_calls": [{"id": "c"}]}]},
        "messages.0.tool_calls.0.function",
        MISSING,
    ),
    ({"stop": {"list": ["a"]}}, "stop", "invalid_type"),
    ({"stop": ["a"] * 100_000}, "stop", "invalid_value"),
    ({"stop": ["a", "x" * 1_000_000]}, "stop.1", "invalid_value"),
    ({"stream": True, "stream_options": []}, "stream_options", "invalid_type"),
    ({"logit_bias": []}, "logit_bias", "invalid_type"),
    ({"logit_bias": {"5": True}}, "logit_bias.5", "invalid_type"),
    ({"logit_bias": {"5": 10**400}}, "logit_bias.5", "invalid_value"),
    ({"seed": 10**400}, "seed", "invalid_value"),
    (
        {"response_format": {"type": "json_schema", "json_schema": [None]}},
        "response_format.json_schema",
        "invalid_type",
    ),
    ({"function_call": 3}, "function_call", "invalid_type"),
]


@pytest.mark.parametrize(("fields", "param", "code"), CHAT)
def test_the_error_names_the_mistake_of_a_chat(
    fields: dict[str, Any], param: str, code: str
) -> None:
    found = refusal(ChatRequest, json.dumps(RIGHT[ChatRequest] | fields).encode())
    assert found == (param, code)


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        (CompletionRequest, {"prompt": [[True]]}, "prompt.0.0"),
        (CompletionRequest, {"prompt": [1, True]}, "prompt.1"),
        (CompletionRequest, {"prompt": [[1], ["a"]]}, "prompt.1.0"),
        (CompletionRequest, {"prompt": ["a", 1]}, "prompt.1"),
        (CompletionRequest, {"prompt": {"text": "a"}}, "prompt"),
        (CompletionRequest, {"prompt": [{}]}, "prompt.0"),
        (ResponseRequest, {"input": [{}]}, "input.0.type"),
        (ResponseRequest, {"input": {"text": "a"}}, "input"),
        (ResponseRequest, {"input": [{"role": "user", "message": {}}]}, "input.0.content"),
        (
            ResponseRequest,
            {"input": [{**USER, "content": [{"type": "refusal", "refusal": 3}]}]},
            "input.0.content.0.refusal",
        ),
        (ResponseRequest, {"text": {"format": {"type": "xml"}}}, "text.format.type"),
        (MessagesRequest, {"system": {"blocks": 3}}, "system"),
        (
            MessagesRequest,
            {"messages": [{**USER, "content": [{"type": "tool_result"}]}]},
            "messages.0.content.0.tool_use_id",
        ),
    ],
)
def test_the_error_names_the_mistake_of_other_bodies(
    kind: type[Body], fields: dict[str, Any], param: str
) -> None:
    assert refusal(kind, json.dumps(RIGHT[kind] | fields).encode())[0] == param


@pytest.mark.parametrize(
    ("raw", "param", "code"),
    [
        (b'{"prompt": "\xff"}', None, "invalid_json"),
        (b'{"prompt": "\\ud800"}', None, "invalid_json"),
        (b'{"temperature": NaN}', "temperature", "invalid_value"),
        (b'{"temperature": 1e999}', "temperature", "invalid_value"),
        (b'{"n": 1, "n": "a"}', "n", "invalid_type"),
        (b'{"n": ' + b"[" * 5000, None, "invalid_json"),
        (b"[]", None, "invalid_type"),
        (b"", None, "invalid_json"),
    ],
)
def test_bytes_that_are_not_valid_json_are_refused(
    raw: bytes, param: str | None, code: str
) -> None:
    assert refusal(CompletionRequest, raw) == (param, code)
