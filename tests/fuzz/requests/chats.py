"""Bodies of clients of the chat and text completions, with texts of our own."""

from tests.fuzz.requests.parts import EDIT, EPHEMERAL, READ, Body, call, function, schema, string

_AGENT_CALLS: list[Body] = [
    {"role": "system", "content": "You are opencode, a coding agent."},
    {"role": "user", "content": [{"type": "text", "text": "List the files."}]},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "The user wants a list.",
        "tool_calls": [call("call_0", "list", '{"path":"."}'), call("call_1", "read", "")],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "No such file"},
    {"role": "tool", "tool_call_id": "call_0", "content": "a.py\nb.py"},
    {"role": "assistant", "content": "There are two files."},
    {"role": "user", "content": "Delete b.py."},
]
OPENCODE: Body = {
    "model": "local",
    "max_tokens": 32000,
    "temperature": 0.55,
    "top_p": 1,
    "messages": _AGENT_CALLS,
    "tools": [
        function("list", "Lists a folder.", schema(path=string("The folder."))),
        function("read", "Reads a file.", READ | {"$schema": "http://json-schema.org/x"}),
        function("edit", "Edits a file.", EDIT | {"additionalProperties": False}),
    ],
    "tool_choice": "auto",
    "stream": True,
    "stream_options": {"include_usage": True},
}
CONTINUE: Body = {
    "model": "local",
    "messages": [
        {"role": "system", "content": "<important_rules>You are in agent mode.</important_rules>"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "```python a.py\nx = 1\n```\n"},
                {"type": "text", "text": "Explain this."},
            ],
        },
        {"role": "assistant", "content": " ", "tool_calls": [call("tool_a", "grep", '{"q":"x"}')]},
        {"role": "tool", "content": "a.py", "tool_call_id": "tool_a"},
    ],
    "tools": [function("grep", "Searches files.", schema("q", q={"type": "string"}))],
    "parallel_tool_calls": False,
    "max_tokens": 4096,
    "stream": True,
    "stop": None,
}
AIDER: Body = {
    "model": "local",
    "messages": [
        {"role": "system", "content": "Act as an expert developer. Use SEARCH/REPLACE blocks."},
        {"role": "user", "content": "Change get_factorial() to use math.factorial"},
        {"role": "assistant", "content": "```\n<<<<<<< SEARCH\n=======\n>>>>>>> REPLACE\n```"},
        {"role": "user", "content": "I switched to a new code base."},
        {"role": "assistant", "content": "Ok."},
        {"role": "user", "content": "Here are summaries of some files:\n\na.py:\n⋮\n│def f()"},
        {"role": "assistant", "content": "Ok, I won't try and edit those files."},
        {"role": "user", "content": "Make f fast.\n\nPrompt reminder: only SEARCH/REPLACE."},
    ],
    "temperature": 0,
    "stream": True,
}
OPEN_WEBUI: Body = {
    "stream": True,
    "model": "local",
    "messages": [
        {"role": "system", "content": "The user's name is Ada."},
        {"role": "user", "content": "Write a poem."},
        {"role": "assistant", "content": '<details type="reasoning">\n> Hm\n</details>\nRoses'},
    ],
    "params": {},
    "tool_servers": [],
    "features": {"web_search": False, "code_interpreter": False},
    "variables": {"{{USER_NAME}}": "Ada"},
    "model_item": {"id": "local", "object": "model"},
    "session_id": "s",
    "chat_id": "c",
    "id": "m",
    "background_tasks": {"title_generation": True},
    "stream_options": {"include_usage": True},
    "metadata": {"files": None},
}
OPEN_WEBUI_TITLE: Body = {
    "model": "local",
    "messages": [{"role": "user", "content": '### Task:\nGenerate a title as JSON: {"title": }'}],
    "stream": False,
    "max_completion_tokens": 1000,
    "metadata": {"task": "title_generation"},
}
LANGCHAIN: Body = {
    "model": "local",
    "messages": [
        {"role": "system", "content": "You answer with a structure."},
        {"role": "user", "name": "example_user", "content": "What is 317253 x 128472?"},
        {
            "role": "assistant",
            "name": "example_assistant",
            "content": None,
            "tool_calls": [
                {
                    "type": "function",
                    "id": "1",
                    "function": {"name": "multiply", "arguments": '{"a": 317253, "b": 128472}'},
                }
            ],
        },
        {"role": "tool", "content": "16505054784", "tool_call_id": "1"},
        {"role": "assistant", "name": "example_assistant", "content": "It is 16505054784."},
        {"role": "user", "content": "And plus four?"},
    ],
    "n": 1,
    "temperature": 0.7,
    "tools": [
        function(
            "multiply",
            "Multiplies two numbers.",
            schema("a", "b", a={"type": "integer"}, b={"type": "integer"}),
            strict=True,
        )
    ],
    "tool_choice": {"type": "function", "function": {"name": "multiply"}},
    "stream": False,
}
LITELLM: Body = {
    "model": "local",
    "messages": [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief.", **EPHEMERAL}]},
        {"role": "user", "content": "Which is larger, 9.11 or 9.9?"},
        {
            "role": "assistant",
            "content": "9.9",
            "thinking_blocks": [{"type": "thinking", "thinking": "Compare.", "signature": "s"}],
            "reasoning_content": "Compare.",
            "provider_specific_fields": {"refusal": None},
            "function_call": None,
            "tool_calls": None,
        },
        {"role": "user", "content": "Why?"},
    ],
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "Answer",
            "schema": schema("why", why={"title": "Why", "type": "string"})
            | {"$defs": {"Unit": {"enum": ["m", "s"]}}, "title": "Answer"},
            "strict": True,
        },
    },
    "reasoning_effort": "low",
    "logprobs": True,
    "top_logprobs": 3,
    "seed": 42,
    "user": "u",
    "extra_body": {},
}
AI_SDK: Body = {
    "model": "local",
    "temperature": 0,
    "messages": [
        {"role": "user", "content": "What is the weather?"},
        {
            "role": "assistant",
            "content": "I look it up.",
            "tool_calls": [
                {
                    "id": "abc",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"location":"London\\n"}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "abc", "content": '{"temperature":18}'},
        {"role": "assistant", "content": "", "reasoning": "Done."},
        {"role": "user", "content": [{"type": "text", "text": "In Fahrenheit?"}]},
    ],
    "tools": [
        function(
            "weather",
            "",
            schema("location", location={"type": "string"})
            | {"additionalProperties": False, "$schema": "http://json-schema.org/draft-07/schema#"},
        )
    ],
    "tool_choice": "required",
    "stream": True,
}
CLINE: Body = {
    "model": "local",
    "messages": [
        {"role": "system", "content": "You are Cline. Tools are written in XML tags."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<task>\nAdd a test\n</task>"},
                {"type": "text", "text": "<environment_details>\n# Tabs\n</environment_details>"},
            ],
        },
        {"role": "assistant", "content": "<read_file>\n<path>a.py</path>\n</read_file>"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "[read_file for 'a.py'] Result:"},
                {"type": "text", "text": "x = 1"},
            ],
        },
    ],
    "temperature": 0,
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_completion_tokens": -1,
}
LLM: Body = {
    "model": "local",
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "Ten names for a pet pelican"},
        {"role": "assistant", "content": "Percy"},
        {"role": "user", "content": "more"},
    ],
    "stream": True,
    "stream_options": {"include_usage": True},
}
OLD_FUNCTIONS: Body = {
    "model": "local",
    "messages": [
        {"role": "user", "content": "Read a.py"},
        {
            "role": "assistant",
            "content": None,
            "function_call": {"name": "read", "arguments": '{"path": "a.py"}'},
        },
        {"role": "function", "name": "read", "content": "x = 1"},
        {"role": "user", "content": "And b.py"},
    ],
    "functions": [{"name": "read", "description": "Reads.", "parameters": READ}],
    "function_call": "auto",
}
REFUSALS: Body = {
    "model": "local",
    "messages": [
        {"role": "user", "content": "Tell me a secret."},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "No."}]},
                {"type": "refusal", "refusal": "I cannot do that."},
            ],
            "refusal": None,
        },
        {"role": "assistant", "content": None, "refusal": "Sorry, no.", "annotations": []},
        {"role": "user", "content": "A joke then."},
    ],
    "chat_template_kwargs": {"enable_thinking": False},
    "guided_json": '{"type": "object", "properties": {"joke": {"type": "string"}}}',
}
HOSTED: Body = {
    "model": "local",
    "messages": [
        {"role": "user", "content": "Take a screenshot."},
        {
            "role": "assistant",
            "content": "I do.",
            "refusal": "",
            "name": "first",
            "tool_calls": [
                call("c1", "screenshot", "{}"),
                {"id": "c2", "type": "custom", "custom": {"name": "note", "input": "Taken."}},
            ],
        },
        {
            "role": "tool",
            "tool_call_id": "c1",
            "name": "screenshot",
            "content": [
                {"type": "text", "text": "It shows a page."},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVB"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "Noted."}]},
        {"role": "assistant", "name": "second", "content": [{"type": "text", "text": "Done."}]},
        {"role": "system", "name": "host", "content": "The user is in a hurry."},
        {"role": "user", "name": "Ada", "content": "What is on it?"},
    ],
    "tools": [
        {"type": "web_search_preview", "search_context_size": "low"},
        function("screenshot", "Takes a screenshot.", schema()),
        {
            "type": "custom",
            "custom": {
                "name": "note",
                "description": "Writes a note.",
                "format": {
                    "type": "grammar",
                    "grammar": {"syntax": "lark", "definition": 'start: "x"'},
                },
            },
        },
    ],
    "tool_choice": {
        "type": "allowed_tools",
        "allowed_tools": {
            "mode": "auto",
            "tools": [
                {"type": "function", "function": {"name": "screenshot"}},
                {"type": "custom", "custom": {"name": "note"}},
            ],
        },
    },
}
HARNESS: Body = {
    "model": "local",
    "prompt": ["Question: 2+2?\nAnswer:", [72, 105]],
    "max_tokens": 4,
    "logprobs": 1,
    "echo": True,
    "seed": 1234,
    "stop": ["\n\n"],
    "temperature": 0,
}
FILL: Body = {
    "model": "local",
    "prompt": "<|fim_prefix|>def f(<|fim_suffix|>):<|fim_middle|>",
    "max_tokens": 64,
    "temperature": 0.01,
    "stop": ["<|endoftext|>", "\n\n", "/src/"],
    "stream": True,
}
