"""Bodies of clients of the Responses and Messages APIs, with texts of our own."""

from tests.fuzz.requests.parts import EDIT, EPHEMERAL, READ, SHELL, TODO, Body, schema, string

_GRAMMAR = 'start: begin hunk+ end\nbegin: "*** Begin Patch" LF\nhunk: /[^*]+/\nend: "*** End" LF?'

CODEX: Body = {
    "model": "local",
    "instructions": "You are a coding agent in a terminal. Keep going until the task is done.",
    "input": [
        {
            "type": "message",
            "role": "developer",
            "content": [{"type": "input_text", "text": "<permissions>read-only</permissions>"}],
        },
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_text", "text": "# AGENTS.md instructions\nRun the tests."},
                {"type": "input_text", "text": "<environment_context>zsh</environment_context>"},
            ],
        },
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "Fix the failing test."}],
        },
        {
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "**Looking for the test**"}],
            "content": None,
            "encrypted_content": "gAAAAABo",
        },
        {
            "type": "function_call",
            "name": "shell",
            "arguments": '{"command": ["bash", "-lc", "pytest -q"], "workdir": "/repo"}',
            "call_id": "call_shell_1",
        },
        {
            "type": "function_call_output",
            "call_id": "call_shell_1",
            "output": '{"output": "1 failed", "metadata": {"exit_code": 1}}',
        },
        {
            "type": "custom_tool_call",
            "status": "completed",
            "call_id": "call_patch_1",
            "name": "apply_patch",
            "input": "*** Begin Patch\n*** Update File: a.py\n-x = 1\n+x = 2\n*** End Patch",
        },
        {"type": "custom_tool_call_output", "call_id": "call_patch_1", "output": "Success. a.py"},
        {"type": "web_search_call", "status": "completed", "action": {"type": "search"}},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "The test passes now.", "annotations": []}],
            "phase": "final_answer",
        },
        {
            "type": "message",
            "role": "user",
            "content": [{"type": "input_text", "text": "Commit it."}],
        },
    ],
    "tools": [
        {
            "type": "function",
            "name": "shell",
            "description": "Runs a shell command and returns its output.",
            "strict": False,
            "parameters": SHELL | {"additionalProperties": False},
        },
        {
            "type": "custom",
            "name": "apply_patch",
            "description": "Edits files. This is a FREEFORM tool.",
            "format": {"type": "grammar", "syntax": "lark", "definition": _GRAMMAR},
        },
        {"type": "web_search", "external_web_access": False},
        {
            "type": "namespace",
            "name": "mcp__files",
            "description": "Files of a server.",
            "tools": [
                {
                    "type": "function",
                    "name": "read_file",
                    "description": "Reads a file.",
                    "strict": False,
                    "parameters": READ,
                }
            ],
        },
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "0199a213-81c0-7800-8aa1-bbab2a035a53",
    "text": {"verbosity": "medium"},
    "client_metadata": {"x-codex-installation-id": "i"},
}
AGENTS_SDK: Body = {
    "model": "local",
    "input": [
        {"role": "user", "content": "What is the weather in Turin?"},
        {
            "id": "fc_1",
            "type": "function_call",
            "status": "completed",
            "call_id": "call_w",
            "name": "get_weather",
            "arguments": '{"city": "Turin"}',
        },
        {"type": "function_call_output", "call_id": "call_w", "output": "It is 12 degrees."},
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [
                {"type": "output_text", "text": "12 degrees.", "annotations": [], "logprobs": []}
            ],
        },
        {"role": "user", "content": [{"type": "input_text", "text": "And in Rome?"}]},
    ],
    "instructions": "You are a helpful agent.",
    "include": [],
    "tools": [
        {
            "type": "function",
            "name": "get_weather",
            "parameters": schema("city", city={"type": "string", "title": "City"})
            | {"title": "get_weather_args", "additionalProperties": False},
            "strict": True,
            "description": "Returns the weather.",
        },
        {"type": "file_search", "vector_store_ids": ["vs_1"]},
        {"type": "mcp", "server_label": "d", "server_url": "https://example.org/mcp"},
    ],
    "text": {
        "format": {
            "type": "json_schema",
            "name": "final_output",
            "schema": schema("degrees", degrees={"type": "number"})
            | {"additionalProperties": False},
            "strict": True,
        }
    },
    "max_output_tokens": 64,
    "temperature": 0.3,
    "truncation": "disabled",
    "metadata": {"agent": "weather"},
    "stream": False,
}

_CLAUDE_TOOLS: list[Body] = [
    {
        "name": "Bash",
        "description": "Runs a command in a shell that persists.",
        "input_schema": schema("command", command=string("The command."))
        | {
            "additionalProperties": False,
            "$schema": "https://json-schema.org/draft/2020-12/schema",
        },
    },
    {"name": "Edit", "description": "Replaces text in a file.", "input_schema": EDIT},
    {"name": "TodoWrite", "description": "Writes the list of tasks.", "input_schema": TODO},
    {
        "name": "mcp__ide__getDiagnostics",
        "description": "Returns diagnostics.",
        "input_schema": schema(uri={"type": "string", "format": "uri"}),
        "eager_input_streaming": True,
    },
    {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
]
CLAUDE_CODE: Body = {
    "model": "local",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>\nNo todos yet.\n</system-reminder>\n"},
                {"type": "text", "text": "Rename the option.", **EPHEMERAL},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "First find it.", "signature": "EqoBCkgI"},
                {"type": "text", "text": "I look for the option."},
                {
                    "type": "tool_use",
                    "id": "toolu_1",
                    "name": "Bash",
                    "input": {"command": "rg -n option", "description": "Search"},
                },
                {
                    "type": "tool_use",
                    "id": "toolu_2",
                    "name": "TodoWrite",
                    "input": {"todos": [{"content": "Rename it", "status": "pending"}]},
                },
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "tool_use_id": "toolu_2",
                    "type": "tool_result",
                    "content": "Todos have been modified.",
                },
                {
                    "tool_use_id": "toolu_1",
                    "type": "tool_result",
                    "content": [
                        {"type": "text", "text": "a.py:3: option = 1"},
                        {
                            "type": "image",
                            "source": {"type": "base64", "media_type": "image/png", "data": "iVB"},
                        },
                    ],
                    "is_error": False,
                },
                {
                    "type": "text",
                    "text": "<system-reminder>\nThe plan changed.\n</system-reminder>",
                },
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "Found it.", **EPHEMERAL}]},
        {"role": "system", "content": "A file was changed by the user."},
        {"role": "user", "content": "Go on."},
    ],
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1"},
        {"type": "text", "text": "You are a command-line agent.", **EPHEMERAL},
        {"type": "text", "text": "The working directory is /repo.\nToday is Friday.", **EPHEMERAL},
    ],
    "tools": _CLAUDE_TOOLS,
    "metadata": {"user_id": "user_0_account__session_1"},
    "max_tokens": 32000,
    "thinking": {"type": "adaptive"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "medium"},
    "stream": True,
}
CLAUDE_TITLE: Body = {
    "model": "local",
    "max_tokens": 512,
    "messages": [
        {"role": "user", "content": "Analyze whether this message begins a new topic."},
        {"role": "assistant", "content": [{"type": "text", "text": "{"}]},
    ],
    "system": "Write a title of two or three words.",
    "temperature": 0,
    "stop_sequences": ["</title>"],
    "metadata": {"user_id": "u"},
    "stream": False,
}
CLAUDE_HOSTED: Body = {
    "model": "local",
    "max_tokens": 1024,
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "What is new?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "redacted_thinking", "data": "EmwK"},
                {
                    "type": "server_tool_use",
                    "id": "srvtoolu_1",
                    "name": "web_search",
                    "input": {"query": "news"},
                },
                {
                    "type": "web_search_tool_result",
                    "tool_use_id": "srvtoolu_1",
                    "content": [{"type": "web_search_result", "title": "News", "url": "u"}],
                },
                {"type": "text", "text": "Nothing is new.", "citations": None},
            ],
        },
        {"role": "user", "content": [{"type": "text", "text": "Thank you."}]},
    ],
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "tools": [{"type": "web_search_20250305", "name": "web_search"}, _CLAUDE_TOOLS[0]],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
}
