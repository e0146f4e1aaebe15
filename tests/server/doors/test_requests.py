"""Tests, as tables, of the translation between other APIs and a chat, without a server."""

from typing import Any

import pytest

from server.doors.blocks import Block, BlockDelta, BlockReader, BlockStart, BlockStop
from server.doors.messages import request as message_request
from server.doors.responses import request as response_request
from server.doors.translation import chat_request, named
from server.errors import ApiError
from server.schemas.checking import check_object
from server.schemas.message_bodies import MessagesRequest
from server.schemas.response_bodies import ResponseRequest
from tests.server.chunks import THINK_SAY_CALL, chunk, logprob

USER = {"role": "user", "content": "hi"}


def function(name: str, arguments: str = "{}", call_id: str = "c") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def from_responses(**fields: Any) -> dict[str, Any]:
    return response_request.chat_fields(check_object(ResponseRequest, fields))


def from_messages(**fields: Any) -> dict[str, Any]:
    body = check_object(MessagesRequest, {"max_tokens": 9, **fields})
    return message_request.chat_fields(body)


@pytest.mark.parametrize(
    ("input_", "messages"),
    [
        ("hi", [USER]),
        ([USER], [USER]),
        (
            [{"type": "message", **USER}, {"type": None, **USER}],
            [{"role": "user", "content": "hi\n\nhi"}],
        ),
        (
            [
                {"role": "developer", "content": [{"type": "input_text", "text": "a"}]},
                {"role": "system", "content": "b"},
                USER,
            ],
            [{"role": "system", "content": "a\n\nb"}, USER],
        ),
        (
            [
                USER,
                {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": None}
                | {"content": [{"type": "reasoning_text", "text": "Hm"}]},
                {
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "Let me see.", "annotations": []}],
                },
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call", "call_id": "d", "name": "g", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "1"},
                {
                    "type": "function_call_output",
                    "call_id": "d",
                    "output": [{"type": "input_text", "text": "2"}],
                },
            ],
            [
                USER,
                {
                    "role": "assistant",
                    "reasoning_content": "Hm",
                    "content": "Let me see.",
                    "tool_calls": [function("f"), function("g", call_id="d")],
                },
                {"role": "tool", "tool_call_id": "c", "content": "1"},
                {"role": "tool", "tool_call_id": "d", "content": "2"},
            ],
        ),
        (
            [
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}]},
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
                {"type": "reasoning", "summary": []},
            ],
            [{"role": "assistant", "reasoning_content": "s", "content": "no"}],
        ),
        (
            [{"type": "reasoning", "summary": []}],
            [{"role": "assistant", "reasoning_content": "", "content": ""}],
        ),
    ],
)
def test_items_of_the_responses_api_become_messages(
    input_: Any, messages: list[dict[str, Any]]
) -> None:
    assert from_responses(input=input_)["messages"] == messages


@pytest.mark.parametrize(
    ("fields", "chat"),
    [
        ({}, {"stream_options": None, "tools": None, "logprobs": None, "response_format": None}),
        ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
        ({"max_output_tokens": 5}, {"max_completion_tokens": 5}),
        ({"temperature": 0.5, "top_p": 0.9, "seed": 3}, {"temperature": 0.5, "top_p": 0.9}),
        ({"reasoning": {"effort": "low"}}, {"reasoning_effort": "low"}),
        ({"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": True}),
        ({"parallel_tool_calls": False}, {"parallel_tool_calls": False}),
        ({"tool_choice": "required"}, {"tool_choice": "required"}),
        ({"tool_choice": "auto"}, {"tool_choice": "auto"}),
        (
            {"tool_choice": {"type": "function", "name": "f"}},
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        ),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "f"}],
                }
            },
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {
                        "mode": "auto",
                        "tools": [{"type": "function", "function": {"name": "f"}}],
                    },
                }
            },
        ),
        (
            {"tools": [{"type": "function", "name": "f", "parameters": {}, "strict": True}]},
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "f", "parameters": {}} | {"strict": True},
                    }
                ]
            },
        ),
        ({"text": {"format": {"type": "text"}}}, {"response_format": {"type": "text"}}),
        (
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "null"}}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"type": "null"}},
                }
            },
        ),
    ],
)
def test_settings_of_the_responses_api_become_fields_of_a_chat(
    fields: dict[str, Any], chat: dict[str, Any]
) -> None:
    made = from_responses(input="hi", **fields)
    assert {name: made[name] for name in chat} == chat


@pytest.mark.parametrize(
    ("turns", "messages"),
    [
        ([USER], [USER]),
        ([USER, USER], [{"role": "user", "content": "hi\n\nhi"}]),
        (
            [{"role": "user", "content": [{"type": "text", "text": t} for t in ("a", "b")]}],
            [{"role": "user", "content": "ab"}],
        ),
        (
            [
                USER,
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Hm", "signature": ""},
                        {"type": "redacted_thinking", "data": "x"},
                        {"type": "text", "text": "Let me see."},
                        {"type": "tool_use", "id": "c", "name": "f", "input": {"a": "é"}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "c", "content": "1"},
                        {"type": "tool_result", "tool_use_id": "d"},
                        {"type": "text", "text": "and?", "cache_control": {"type": "ephemeral"}},
                    ],
                },
            ],
            [
                USER,
                {
                    "role": "assistant",
                    "reasoning_content": "Hm",
                    "content": "Let me see.",
                    "tool_calls": [function("f", '{"a": "é"}')],
                },
                {"role": "tool", "tool_call_id": "c", "content": "1"},
                {"role": "tool", "tool_call_id": "d", "content": ""},
                {"role": "user", "content": "and?"},
            ],
        ),
        (
            [{"role": "system", "content": [{"type": "text", "text": "s"}]}, USER],
            [{"role": "system", "content": "s"}, USER],
        ),
        ([{"role": "assistant", "content": []}], [{"role": "assistant", "content": ""}]),
    ],
)
def test_turns_of_the_messages_api_become_messages(
    turns: Any, messages: list[dict[str, Any]]
) -> None:
    assert from_messages(messages=turns)["messages"] == messages


@pytest.mark.parametrize(
    ("fields", "chat"),
    [
        ({}, {"max_completion_tokens": 9, "continue_final_message": False, "stop": None}),
        ({"stop_sequences": ["a"]}, {"stop": ["a"]}),
        ({"stop_sequences": []}, {"stop": []}),
        ({"temperature": 1, "top_k": 4, "top_p": 0.5}, {"temperature": 1, "top_k": 4}),
        ({"tool_choice": {"type": "any"}}, {"tool_choice": "required"}),
        ({"tool_choice": {"type": "none"}}, {"tool_choice": "none", "parallel_tool_calls": None}),
        (
            {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
            {"tool_choice": "auto", "parallel_tool_calls": False},
        ),
        (
            {"tool_choice": {"type": "tool", "name": "f"}},
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        ),
        (
            {"tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}]},
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {
                            "name": "f",
                            "description": "d",
                            "parameters": {"type": "object"},
                        },
                    }
                ]
            },
        ),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 1024}},
            {
                "chat_template_kwargs": {"enable_thinking": True, "thinking": True},
                "thinking_budget": 1024,
            },
        ),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 0}},
            {
                "chat_template_kwargs": {"enable_thinking": False, "thinking": False},
                "thinking_budget": 0,
            },
        ),
        (
            {"thinking": {"type": "enabled", "budget_tokens": -1}},
            {
                "chat_template_kwargs": {"enable_thinking": True, "thinking": True},
                "thinking_budget": None,
            },
        ),
        ({"thinking": {"type": "disabled", "budget_tokens": 9}}, {"thinking_budget": None}),
        (
            {"thinking": {"type": "disabled"}},
            {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}},
        ),
        ({"thinking": {"type": "adaptive"}}, {"chat_template_kwargs": None}),
        (
            {
                "output_config": {
                    "effort": "max",
                    "format": {"type": "json_schema", "schema": {"type": "null"}},
                }
            },
            {
                "reasoning_effort": "max",
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "null"}, "strict": True},
                },
            },
        ),
        (
            {"output_format": {"type": "json_schema", "schema": {"type": "null"}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "null"}, "strict": True},
                },
            },
        ),
    ],
)
def test_settings_of_the_messages_api_become_fields_of_a_chat(
    fields: dict[str, Any], chat: dict[str, Any]
) -> None:
    made = from_messages(messages=[USER], system="s", **fields)
    assert made["messages"] == [{"role": "system", "content": "s"}, USER]
    assert {name: made[name] for name in chat} == chat


def test_a_last_turn_of_the_assistant_is_continued() -> None:
    contents: tuple[Any, ...] = ("Once", "", [])
    for content in contents:  # an empty one is left out of the chat
        turn = {"role": "assistant", "content": content}
        assert from_messages(messages=[USER, turn])["continue_final_message"] is True
    call = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
    for blocks in ([call], [{"type": "text", "text": "a"}, call]):
        turn = {"role": "assistant", "content": blocks}
        assert from_messages(messages=[USER, turn])["continue_final_message"] is False


@pytest.mark.parametrize(
    ("names", "param", "renamed"),
    [
        (response_request.NAMES, "messages", "input"),
        (response_request.NAMES, "messages.3.content", "input"),
        (response_request.NAMES, "max_completion_tokens", "max_output_tokens"),
        (response_request.NAMES, "tools.1.function.name", "tools.1.name"),
        (response_request.NAMES, "tools.1.type", "tools.1.type"),
        (response_request.NAMES, "response_format.json_schema.schema", "text.format.schema"),
        (response_request.NAMES, "response_format.type", "text.format.type"),
        (response_request.NAMES, "tool_choice.function.name", "tool_choice.name"),
        (
            response_request.NAMES,
            "tool_choice.allowed_tools.tools.0.function.name",
            "tool_choice.tools.0.name",
        ),
        (response_request.NAMES, "temperature", "temperature"),
        (message_request.NAMES, "tools.0.function.parameters.type", "tools.0.input_schema.type"),
        (message_request.NAMES, "tools.0.function.name", "tools.0.name"),
        (message_request.NAMES, "stop.1", "stop_sequences.1"),
        (message_request.NAMES, "stop_token_ids", "stop_token_ids"),
        (message_request.NAMES, "messages.1.content", "messages"),
    ],
)
def test_errors_of_a_chat_name_the_parameter_of_the_door(
    names: Any, param: str, renamed: str
) -> None:
    with pytest.raises(ApiError) as caught, named(names):
        raise ApiError(f"Invalid value for '{param}'.", code="invalid_value", param=param)
    assert caught.value.param == renamed
    assert caught.value.message == f"Invalid value for '{renamed}'."


def test_an_invalid_chat_names_the_parameter_of_the_door() -> None:
    with pytest.raises(ApiError) as caught:
        chat_request({"messages": [USER], "stop": ["a"] * 1025}, message_request.NAMES)
    assert caught.value.param == "stop_sequences"


def test_blocks_start_grow_and_stop_one_after_the_other() -> None:
    blocks = BlockReader()
    events = [event for piece in THINK_SAY_CALL for event in blocks.feed(piece)]
    shape = [
        (type(e).__name__, e.block.index, e.piece if isinstance(e, BlockDelta) else "")
        for e in events
    ]
    assert shape == [
        ("BlockStart", 0, ""),
        ("BlockDelta", 0, "Hm"),
        ("BlockDelta", 0, "m."),
        ("BlockStop", 0, ""),
        ("BlockStart", 1, ""),
        ("BlockDelta", 1, "Let me"),
        ("BlockDelta", 1, " see."),
        ("BlockStop", 1, ""),
        ("BlockStart", 2, ""),
        ("BlockDelta", 2, '{"zone": '),
        ("BlockDelta", 2, '"UTC"}'),
        ("BlockStop", 2, ""),
        ("BlockStart", 3, ""),
        ("BlockDelta", 3, "{}"),
        ("BlockStop", 3, ""),
    ]
    assert [(b.kind, b.name, b.text, b.is_complete) for b in blocks.all] == [
        ("reasoning", "", "Hmm.", True),
        ("text", "", "Let me see.", True),
        ("call", "time", '{"zone": "UTC"}', True),
        ("call", "now", "{}", True),
    ]


def test_logprobs_wait_for_their_text() -> None:
    blocks = BlockReader()
    first, second, last = logprob("a"), logprob("b"), logprob("c")
    assert list(blocks.feed(chunk({"content": ""}, logprobs=[first]))) == []
    events = list(blocks.feed(chunk({"content": "ab"}, logprobs=[second])))
    events += blocks.feed(chunk({"content": ""}, logprobs=[last]))
    block = Block(0, "text", text="ab", logprobs=[first, second, last])
    assert events == [
        BlockStart(block),
        BlockDelta(block, "ab", [first, second]),
        BlockDelta(block, "", [last]),
    ]
    assert list(blocks.feed(chunk({}, "length"))) == [BlockStop(block)]
    assert not block.is_complete
