"""Every list and every free object of a body has a limit, which /openapi.json states."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from server.errors import ApiError
from server.schemas.chat import ChatRequest
from server.schemas.checking import parse_body
from server.schemas.completions import CompletionRequest
from server.schemas.fields import Body
from server.schemas.limits import (
    MAX_CHOICES,
    MAX_IDS,
    MAX_MESSAGES,
    MAX_NAMES,
    MAX_PROMPTS,
    MAX_STOP_IDS,
    MAX_STOPS,
    MAX_TOOLS,
)
from server.schemas.message_bodies import MessagesRequest
from server.schemas.response_bodies import ResponseRequest
from server.schemas.tokens import DetokenizeRequest, TokenizeRequest

USER = {"role": "user", "content": "a"}
PART = {"type": "text", "text": "a"}
TOOL = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
MESSAGES = {"messages": [USER], "max_tokens": 9}
TURN_TOOL = {"name": "f", "input_schema": {}}
ITEM_TOOL = {"type": "function", "name": "f"}


def chat_of(message: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [message]}


LISTS: list[tuple[type[Body], dict[str, Any], str, Any, int]] = [
    # the body, the path of the list in it, an element, the limit of its length
    (ChatRequest, {}, "messages", USER, MAX_MESSAGES),
    (ChatRequest, chat_of(USER), "messages.0.content", PART, MAX_MESSAGES),
    (ChatRequest, chat_of({"role": "assistant"}), "messages.0.tool_calls", CALL, MAX_MESSAGES),
    (ChatRequest, chat_of(USER), "tools", TOOL, MAX_TOOLS),
    (ChatRequest, chat_of(USER), "stop_token_ids", 1, MAX_STOP_IDS),
    (
        ChatRequest,
        {**chat_of(USER), "structured_outputs": {}},
        "structured_outputs.choice",
        "a",
        MAX_CHOICES,
    ),
    (CompletionRequest, {}, "prompt", 1, MAX_IDS),
    (CompletionRequest, {"prompt": [0]}, "prompt.0", 1, MAX_IDS),
    (CompletionRequest, {}, "prompt", "a", MAX_PROMPTS),
    (MessagesRequest, {"max_tokens": 9}, "messages", USER, MAX_MESSAGES),
    (MessagesRequest, MESSAGES, "messages.0.content", PART, MAX_MESSAGES),
    (MessagesRequest, MESSAGES, "system", PART, MAX_MESSAGES),
    (MessagesRequest, MESSAGES, "tools", TURN_TOOL, MAX_TOOLS),
    (MessagesRequest, MESSAGES, "stop_sequences", "a", MAX_STOPS),
    (ResponseRequest, {}, "input", USER, MAX_MESSAGES),
    (ResponseRequest, {"input": [USER]}, "input.0.content", PART, MAX_MESSAGES),
    (ResponseRequest, {"input": "a"}, "tools", ITEM_TOOL, MAX_TOOLS),
    (ResponseRequest, {"input": "a"}, "include", "a", MAX_NAMES),
    (TokenizeRequest, {}, "messages", USER, MAX_MESSAGES),
    (DetokenizeRequest, {}, "tokens", 1, MAX_IDS),
]


def body_with(body: dict[str, Any], path: str, value: Any) -> bytes:
    body = json.loads(json.dumps(body))
    inner: Any = body
    *steps, last = path.split(".")
    for step in steps:
        inner = inner[int(step) if isinstance(inner, list) else step]
    inner[int(last) if isinstance(inner, list) else last] = value
    return json.dumps(body).encode()


@pytest.mark.parametrize(("kind", "body", "path", "element", "most"), LISTS)
def test_a_list_above_its_limit_is_refused_with_the_limit(
    kind: type[Body], body: dict[str, Any], path: str, element: Any, most: int
) -> None:
    with pytest.raises(ApiError, match=f"at most {most} items") as raised:
        parse_body(kind, body_with(body, path, [element] * (most + 1)))
    assert (raised.value.param, raised.value.code) == (path, "invalid_value")


def unbounded(schema: Any, where: str) -> Iterator[str]:
    """Yield the places of lists and free objects without a limit within a schema."""
    if isinstance(schema, list):
        for inner in schema:
            yield from unbounded(inner, where)
    elif isinstance(schema, dict):
        if schema.get("type") == "array" and "maxItems" not in schema:
            yield where
        # the number of values limits a body that allows other fields besides its `properties`
        is_free = schema.get("additionalProperties") and "properties" not in schema
        if is_free and "maxProperties" not in schema:
            yield where
        for key, inner in schema.items():
            yield from unbounded(inner, f"{where}.{key}")


def collect_references(schema: Any, known: dict[str, Any], found: set[str]) -> None:
    """Add the names of all schemas that `schema` refers to, directly or not, to `found`."""
    if isinstance(schema, list):
        for inner in schema:
            collect_references(inner, known, found)
    elif isinstance(schema, dict):
        name = str(schema.get("$ref", "")).rpartition("/")[2]
        if name and name not in found:
            found.add(name)
            collect_references(known[name], known, found)
        for inner in schema.values():
            collect_references(inner, known, found)


async def test_openapi_states_a_limit_for_every_list_and_object_of_a_body(
    client: httpx.AsyncClient,
) -> None:
    document = (await client.get("/openapi.json")).json()
    known = document["components"]["schemas"]
    found: set[str] = set()
    for methods in document["paths"].values():
        for operation in methods.values():
            collect_references(operation.get("requestBody", {}), known, found)
    assert len(found) > 40
    assert [place for name in sorted(found) for place in unbounded(known[name], name)] == []


async def test_long_conversations_and_many_tools_are_served(client: httpx.AsyncClient) -> None:
    tools = [{"type": "function", "function": {"name": f"f{i}"}} for i in range(140)]
    turns = [{"role": role, "content": ""} for role in ("user", "assistant")] * 5000
    for body in ({"messages": [USER], "tools": tools}, {"messages": turns}):
        error = (await client.post("/v1/chat/completions", json=body)).json()["error"]
        assert error["code"] == "context_length_exceeded"  # of the test's small model


async def test_a_prompt_of_too_many_ids_gets_the_error_that_fits(
    client: httpx.AsyncClient,
) -> None:
    for ids, code in ((MAX_IDS, "context_length_exceeded"), (2 * MAX_IDS, "too_many_values")):
        answer = await client.post("/v1/completions", json={"prompt": [5] * ids, "max_tokens": 1})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
