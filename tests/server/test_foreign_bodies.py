"""Tests of the bodies that chat pages, agents and evaluation tools send, field by field."""

from typing import Any

import httpx
import pytest

from server.schemas.chat import ChatRequest
from tests.server.conftest import chat, complete

USER = {"role": "user", "content": "hi"}

# a schema as agents of editors send it: metadata, unions, null, nesting, references
EDIT = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {
        "path": {"type": "string", "minLength": 1},
        "mode": {"anyOf": [{"enum": ["add", "replace"]}, {"type": "null"}], "default": None},
        "line": {"type": ["integer", "null"], "exclusiveMaximum": 10000},
        "edits": {
            "type": "array",
            "items": {"$ref": "#/$defs/edit"},
        },
        "when": {"type": "string", "format": "date-time"},
        "anything": {},
    },
    "required": ["path", "mode", "line", "edits", "when", "anything"],
    "additionalProperties": False,
    "$defs": {"edit": {"type": "object", "properties": {"old": {"type": "string"}}}},
}

CHATS: dict[str, dict[str, Any]] = {
    "open_webui": {
        "params": {},
        "tool_servers": [],
        "features": {"image_generation": False, "web_search": False},
        "variables": {"{{USER_NAME}}": "Ada"},
        "model_item": {"id": "main", "object": "model"},
        "session_id": "s",
        "chat_id": "c",
        "id": "m",
        "background_tasks": {"title_generation": True},
        "metadata": {"user_id": "u", "files": [None]},
        "options": {},
    },
    "librechat": {
        "user": "u",
        "messages": [{"role": "system", "name": "instructions", "content": "be kind"}, USER],
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "top_p": 1,
        "stop": None,
    },
    "agents": {
        "tools": [
            {
                "type": "function",
                "function": {"name": "edit", "parameters": EDIT, "strict": False},
                "cache_control": {"type": "ephemeral"},
            }
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "x", "cache_control": {}}]},
            USER,
            {
                "role": "assistant",
                "content": "",
                "refusal": None,
                "annotations": [],
                "audio": None,
                "function_call": None,
                "tool_calls": [
                    {
                        "id": "c",
                        "type": "function",
                        "index": 0,
                        "function": {"name": "edit", "arguments": ""},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c", "name": "edit", "content": ""},
        ],
    },
    "strict_agents": {
        "tools": [
            {"type": "function", "function": {"name": "e", "parameters": EDIT, "strict": True}}
        ]
    },
    "openai_of_today": {
        "max_tokens": None,
        "max_completion_tokens": 5,
        "messages": [{"role": "developer", "content": [{"type": "text", "text": "x"}]}, USER],
        "reasoning_effort": "low",
        "verbosity": "low",
        "service_tier": "auto",
        "store": True,
        "metadata": {"a": "b"},
        "modalities": ["text"],
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "safety_identifier": "s",
        "logit_bias": {"5": 1},
    },
    "every_field_null": dict.fromkeys(ChatRequest.model_fields.keys() - {"messages"}),
    "vllm": {
        "top_k": -1,
        "min_p": 0,
        "repetition_penalty": 1,
        "length_penalty": 1,
        "stop_token_ids": [],
        "include_stop_str_in_output": False,
        "skip_special_tokens": True,
        "guided_json": None,
        "best_of": 1,
        "prompt_logprobs": None,
        "chat_template": None,
        "documents": None,
        "priority": 0,
    },
}

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"a": [1]}}}

# what other local servers take, and what clients therefore send
CHATS |= {
    "choice_without_tools": {"tool_choice": "auto"},
    "no_choice_without_tools": {"tool_choice": "none", "tools": []},
    "no_calls": {"messages": [USER, {"role": "assistant", "content": "a", "tool_calls": []}, USER]},
    "nothing_said": {"messages": [USER, {"role": "assistant"}, USER]},
    "empty_results": {
        "messages": [
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c", "content": None},
            {"role": "tool", "tool_call_id": "c", "content": []},
        ]
    },
    "empty_contents": {"messages": [{"role": "system", "content": None}, {**USER, "content": []}]},
    "options_of_streams": {"stream": False, "stream_options": {"include_usage": True}},
    "no_logprobs": {"top_logprobs": 0},
    "most_effort": {"reasoning_effort": "max"},
    "many_tools": {
        "tools": [{"type": "function", "function": {"name": f"s.f{i}"}} for i in range(1500)],
        "tool_choice": "none",
    },
    "long_names": {"tools": [{"type": "function", "function": {"name": "x" * 128}}]},
}

SILLYTAVERN = {
    "max_new_tokens": 8,
    "max_tokens": 8,
    "min_tokens": 0,
    "top_k": 0,
    "top_a": 0,
    "typical_p": 1,
    "typical": 1,
    "tfs": 1,
    "tfs_z": 1,
    "min_p": 0.05,
    "rep_pen": 1.1,
    "repetition_penalty": 1.1,
    "repetition_penalty_range": 0,
    "mirostat_mode": 0,
    "dry_sequence_breakers": '["\\n"]',
    "banned_strings": [],
    "custom_token_bans": "",
    "samplers": ["top_k"],
    "sampler_seed": -1,
    "seed": -1,
    "truncation_length": 8192,
    "ban_eos_token": False,
    "ignore_eos": False,
    "skip_special_tokens": True,
    "add_bos_token": True,
    "stop": ["\nUser:", "\n***"],
    "stopping_strings": ["\nUser:"],
    "negative_prompt": "",
    "grammar_string": "",
    "json_schema": {},
    "n_predict": 8,
    "logprobs": None,
    "n": 1,
    "best_of": 1,
}
HARNESS = {"prompt": [[7, 8, 9]], "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}


@pytest.mark.parametrize("fields", CHATS.values(), ids=CHATS)
async def test_chats_as_other_programs_send_them_are_answered(
    client: httpx.AsyncClient, fields: dict[str, Any]
) -> None:
    answer = await chat(client, **fields)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("fields", [SILLYTAVERN, HARNESS], ids=["sillytavern", "lm_eval"])
async def test_completions_as_other_programs_send_them_are_answered(
    client: httpx.AsyncClient, fields: dict[str, Any]
) -> None:
    answer = await complete(client, **fields)
    assert answer.status_code == 200, answer.text
