"""Valid and random bodies of all routes, and checks of the answers to them."""

import copy
from collections.abc import Iterator
from typing import Any

import httpx
from hypothesis import strategies as st

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "get_time", "description": "d", "parameters": SCHEMA, "strict": True}
NAMED = {"type": "function", "function": {"name": "get_time"}}
CALL = {"id": "c", "type": "function", "function": {"name": "get_time", "arguments": "{}"}}
GENERATION = {
    "stream": False,
    "seed": 1,
    "temperature": 0.5,
    "top_p": 0.9,
    "logit_bias": {"5": 1},
    "stop": ["zz", "yy"],
    "speculation": {"method": "ngram", "max_rows": 4},
    "provenance": True,
    "top_k": 5,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "min_tokens": 1,
    "stop_token_ids": [7],
}
CHAT = {
    **GENERATION,
    "messages": [
        {"role": "system", "content": "s", "name": "n"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning": "r"},
        {"role": "tool", "content": "t", "tool_call_id": "c"},
    ],
    "stream": True,
    "stream_options": {"include_usage": True},
    "n": 2,
    "max_tokens": 4,
    "logprobs": True,
    "top_logprobs": 2,
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}},
    "parallel_tool_calls": False,
    "reasoning_effort": "low",
    "thinking_budget": 8,
    "chat_template_kwargs": {"shout": "!"},
    "prediction": {"type": "content", "content": [{"type": "text", "text": "Hello"}]},
}
FORMED = {
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 4,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
    },
}
COMPLETION = {
    **GENERATION,
    "prompt": [[104, 105], "hi"],
    "max_tokens": 4,
    "n": 1,
    "best_of": 2,
    "echo": True,
    "logprobs": 1,
    "structured_outputs": {"regex": "a[bc]+"},
}
RESPONSE = {
    "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}]},
        {"type": "function_call", "call_id": "c", "name": "get_time", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "o"},
    ],
    "instructions": "i",
    "tools": [{"type": "function", **FUNCTION}],
    "tool_choice": {"type": "function", "name": "get_time"},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}},
    "reasoning": {"effort": "low", "max_tokens": 8},
    "max_output_tokens": 4,
    "top_logprobs": 1,
    "include": ["message.output_text.logprobs"],
    "metadata": {"a": "b"},
}
MESSAGE = {
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "t", "signature": ""},
                {"type": "tool_use", "id": "c", "name": "get_time", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "c",
                    "content": [{"type": "text", "text": "o"}],
                }
            ],
        },
    ],
    "system": [{"type": "text", "text": "s"}],
    "tools": [{"name": "get_time", "description": "d", "input_schema": SCHEMA}],
    "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": SCHEMA}},
    "max_tokens": 4,
    "stop_sequences": ["zz"],
    "stream": True,
}
RIGHT: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", FORMED),
    ("/v1/completions", COMPLETION),
    ("/v1/responses", RESPONSE),
    ("/v1/messages", MESSAGE),
    ("/v1/messages/count_tokens", MESSAGE),
    ("/v1/responses/input_tokens", RESPONSE),
    ("/v1/chat/completions/input_tokens", CHAT),
    ("/v1/apply-template", CHAT),
    ("/v1/tokenize", {"content": "hi", "with_pieces": True, "return_token_strs": True}),
    ("/v1/tokenize", {**CHAT, "stream": False, "stream_options": None}),
    ("/v1/detokenize", {"tokens": [104, 105]}),
]

WORDS = (
    *("user", "assistant", "system", "tool", "function", "developer", "text", "image_url"),
    *("json_schema", "json_object", "allowed_tools", "required", "auto", "none", "any", "message"),
    *("tool_use", "tool_result", "thinking", "reasoning", "function_call", "content", "role"),
    *("function_call_output", "input_text", "refusal", "get_time", "main", "str", "list", "type"),
)
NUMBERS = (0, 1, -1, 1.0, 1.5, 2**31, 2**63, 2**64, 10**30, 1e300, -1e-300)
# without surrogates, which JSON cannot have, and without the dots that separate steps of a `param`
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters=".")
TEXTS = st.text(CHARACTERS, max_size=8) | st.sampled_from(WORDS)
JSON = st.recursive(
    st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def wrong_bodies(draw: st.DrawFn) -> tuple[str, Any]:
    """Return a route, and either any JSON or a valid body with some values changed."""
    path, right = draw(st.sampled_from(RIGHT))
    if draw(st.integers(0, 4)) == 0:
        return path, draw(JSON)
    body = copy.deepcopy(right)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(body))
        if not places:
            break
        inside, key = places[draw(st.integers(0, len(places) - 1))]
        _change(draw, inside, key)
    return path, body


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the container and the key or index of every value inside `node`."""
    keys = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in keys:
        yield node, key
        yield from _places(node[key])


def _change(draw: st.DrawFn, inside: Any, key: Any) -> None:
    match draw(st.sampled_from(["replace", "retag", "delete", "duplicate", "wrap"])):
        case "replace":
            inside[key] = draw(JSON)
        case "retag":
            inside[key] = draw(st.sampled_from(WORDS))
        case "delete":
            del inside[key]
        case "duplicate":
            twin = copy.deepcopy(inside[key])
            if isinstance(inside, list):
                inside.insert(key, twin)
            else:
                inside[draw(st.sampled_from(WORDS))] = twin
        case _:
            inside[key] = [inside[key]]


def check(path: str, body: Any, answer: httpx.Response) -> None:
    """Check that a refusal has the shape of its API, and that its `param` exists in the body."""
    assert answer.headers["x-request-id"]
    if answer.status_code == 200:
        assert "server_error" not in answer.text and "api_error" not in answer.text
        return
    assert answer.status_code in (400, 404), answer.text
    answered = answer.json()
    error = answered["error"]
    assert isinstance(error["message"], str) and 0 < len(error["message"]) < 2000
    if path.startswith("/v1/messages"):
        assert set(answered) == {"type", "error", "request_id"}
        assert set(error) == {"type", "message"}
        return
    assert set(answered) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    if isinstance(body, dict):
        _check_place(error["param"], body)


def _check_place(param: str | None, body: Any) -> None:
    """Check all steps of `param` but the last, which may name the field that is missing."""
    assert param is not None
    for step in param.split(".")[:-1]:
        body = body[int(step)] if isinstance(body, list) else body[step]
    assert isinstance(body, dict | list), param
