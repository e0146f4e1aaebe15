"""What the server cannot run is left out and named; the rest of the request is answered."""

import json
import logging
from typing import Any

import httpx
import pytest

from tests.server.chat.test_tools import TEMPLATE
from tests.server.conftest import MakeApp, chat, client_of, entry, error_of, events
from tests.server.fake_engine import EOS, FakeEngines, ids_of

HEADER = "x-understudy-ignored"
SCHEMA = {"type": "object", "properties": {"key": {"type": "string"}}}
CHAT_TOOL = {"type": "function", "function": {"name": "look_up", "parameters": SCHEMA}}
RESPONSE_TOOL = {"type": "function", "name": "look_up", "parameters": SCHEMA}
MESSAGE_TOOL = {"name": "look_up", "input_schema": SCHEMA}
PATCH = {"type": "custom", "name": "apply_patch", "description": "d"}
IMAGE = {"type": "image", "source": {"type": "base64", "data": "x"}}
LINE = "An image was left out"


@pytest.fixture
async def client(make_app: MakeApp) -> Any:
    entries = [entry("main", chat_template=TEMPLATE)]
    async with client_of(make_app(entries=entries)) as client:
        yield client


def prompt_of(engines: FakeEngines) -> str:
    return bytes(i for i in engines.engine.requests[-1].prompt if i < 256).decode()


def body_of(path: str, **fields: Any) -> dict[str, Any]:
    """Return a body for one of the three APIs that says "hi", with more fields."""
    own: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
    if path == "/v1/messages":
        own["max_tokens"] = 50
    return ({"input": "hi"} if path == "/v1/responses" else own) | fields


def result_in_messages(*blocks: Any) -> dict[str, Any]:
    call = {"type": "tool_use", "id": "c", "name": "look_up", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "c", "content": [*blocks]}
    turns = [("user", "hi"), ("assistant", [call]), ("user", [result])]
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def result_in_chat(content: Any) -> dict[str, Any]:
    call = {"id": "c", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    return {
        "messages": [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": content},
        ]
    }


def items(*more: dict[str, Any]) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": "hi"}, *more]}


@pytest.mark.parametrize(
    ("path", "fields", "named", "in_prompt"),
    [
        (
            "/v1/responses",
            {"tools": [RESPONSE_TOOL, {"type": "web_search", "external_web_access": True}]},
            "tools[1] web_search",
            "look_up",
        ),
        (
            "/v1/responses",
            {
                "tools": [
                    {"type": "local_shell"},
                    {"type": "image_generation", "output_format": "png"},
                    RESPONSE_TOOL,
                ]
            },
            "tools[0] local_shell, tools[1] image_generation",
            "look_up",
        ),
        (
            "/v1/responses",
            {
                "tools": [{"type": "mcp", "server_label": "s"}, RESPONSE_TOOL],
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "mcp"}, {"type": "function", "name": "look_up"}],
                },
            },
            "tools[0] mcp",
            "look_up",
        ),
        ("/v1/chat/completions", {"web_search_options": {}}, "web_search_options", "hi"),
        (
            "/v1/messages",
            {"mcp_servers": [{"type": "url", "url": "u", "name": "n"}]},
            "mcp_servers",
            "hi",
        ),
        (
            "/v1/responses",
            {"tools": [{"type": "namespace", "name": "n", "tools": [RESPONSE_TOOL]}]},
            None,
            "look_up",
        ),
        ("/v1/responses", {"tools": [PATCH]}, None, "apply_patch"),
        (
            "/v1/responses",
            {
                "tools": [
                    PATCH
                    | {"format": {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'}}
                ]
            },
            "tools[0].format",
            "start:",
        ),
        (
            "/v1/responses",
            items({"type": "web_search_call", "id": "w", "status": "completed"}),
            "input[1] web_search_call",
            "hi",
        ),
        (
            "/v1/responses",
            items({"type": "mcp_call", "name": "m", "arguments": "{}", "output": "it rains"}),
            None,
            "it rains",
        ),
        (
            "/v1/responses",
            items({"type": "reasoning", "summary": [], "content": None, "encrypted_content": "x"}),
            None,
            "hi",
        ),
        (
            "/v1/responses",
            items(
                {"type": "custom_tool_call", "call_id": "c", "name": "apply_patch", "input": "p\n"},
                {"type": "custom_tool_call_output", "call_id": "c", "output": "done"},
            ),
            None,
            '{"input": "p\\n"}',
        ),
        (
            "/v1/responses",
            items(
                {"type": "function_call", "call_id": "c", "name": "look_up", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c"}
                | {"output": [{"type": "input_image", "image_url": "data:x"}]},
            ),
            "input_image in a tool result",
            LINE,
        ),
        (
            "/v1/responses",
            items({"type": "additional_tools", "role": "developer", "tools": [RESPONSE_TOOL]}),
            None,
            "look_up",
        ),
        (
            "/v1/responses",
            items(
                {"type": "tool_search_output", "call_id": None}
                | {"tools": [{"type": "namespace", "name": "n", "tools": [RESPONSE_TOOL]}]}
            )
            | {"tools": [PATCH, {"type": "tool_search", "execution": "client"}]},
            "tools[1] tool_search",
            "look_up",
        ),
        (
            "/v1/responses",
            items(
                {"type": "tool_search_output", "tools": None},
                {"type": "additional_tools", "tools": [{"type": "web_search"}, {"type": "mcp"}]},
            )
            | {"tools": [RESPONSE_TOOL, {"type": "mcp"}]},
            "tools[1] mcp, tools[2] web_search",
            "look_up",
        ),
        (
            "/v1/messages",
            {"tools": [MESSAGE_TOOL, {"type": "web_search_20250305", "name": "web_search"}]},
            "tools[1] web_search_20250305",
            "look_up",
        ),
        (
            "/v1/messages",
            result_in_messages({"type": "text", "text": "seen"}, IMAGE),
            "image in a tool result",
            LINE,
        ),
        (
            "/v1/messages",
            result_in_messages({"type": "tool_reference", "tool_name": "look_up"}),
            None,
            "[The tool look_up can be called now.]",
        ),
        (
            "/v1/messages",
            {
                "messages": [
                    {"role": "user", "content": "hi"},
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "server_tool_use", "id": "s", "name": "web_search"},
                            {"type": "text", "text": "It rains."},
                        ],
                    },
                    {"role": "user", "content": "and?"},
                ]
            },
            "messages[1].content[0] server_tool_use",
            "It rains.",
        ),
        (
            "/v1/chat/completions",
            {"tools": [{"type": "web_search_preview"}, CHAT_TOOL]},
            "tools[0] web_search_preview",
            "look_up",
        ),
        (
            "/v1/chat/completions",
            result_in_chat([{"type": "image_url", "image_url": {"url": "x"}}]),
            "image_url in a tool result",
            LINE,
        ),
    ],
)
async def test_what_cannot_be_run_is_left_out_and_named(
    client: httpx.AsyncClient,
    engines: FakeEngines,
    caplog: pytest.LogCaptureFixture,
    path: str,
    fields: dict[str, Any],
    named: str | None,
    in_prompt: str,
) -> None:
    with caplog.at_level(logging.INFO, "understudy"):
        answer = await client.post(path, json=body_of(path, **fields))
    assert answer.status_code == 200, answer.text
    assert answer.headers.get(HEADER) == named
    assert in_prompt in prompt_of(engines)
    lines = [line for line in caplog.messages if "left out of the request" in line]
    assert [line.rpartition(": ")[2] for line in lines] == ([] if named is None else [named])


@pytest.mark.parametrize(
    ("path", "tools"),
    [
        ("/v1/messages/count_tokens", [MESSAGE_TOOL, {"type": "web_search", "name": "w"}]),
        ("/v1/responses/input_tokens", [RESPONSE_TOOL, {"type": "web_search"}]),
        ("/v1/chat/completions/input_tokens", [CHAT_TOOL, {"type": "web_search"}]),
        ("/v1/apply-template", [CHAT_TOOL, {"type": "web_search"}]),
        ("/v1/tokenize", [CHAT_TOOL, {"type": "web_search"}]),
    ],
)
async def test_counts_leave_out_the_same(
    client: httpx.AsyncClient, path: str, tools: list[Any]
) -> None:
    own = "/v1/responses" if "responses" in path else path
    answer = await client.post(path, json=body_of(own, tools=tools))
    assert answer.status_code == 200, answer.text
    assert answer.headers[HEADER] == "tools[1] web_search"


async def test_a_large_body_names_what_is_left_out_too(client: httpx.AsyncClient) -> None:
    fields = body_of("/v1/messages", system="s" * 500, tools=[{"type": "mcp", "x": "y" * 70000}])
    answer = await client.post("/v1/messages", json=fields)
    assert answer.status_code == 200, answer.text
    assert answer.headers[HEADER] == "tools[0] mcp"


async def test_names_of_clients_cannot_break_the_header(client: httpx.AsyncClient) -> None:
    tools = [{"type": f"a\r\nb: é,{i}" + "x" * 5000} for i in range(500)]
    value = (await chat(client, tools=tools)).headers[HEADER]
    assert value.startswith("tools[0] a??b: ??0xxx") and "more" in value[-20:]
    assert len(value) < 3000


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (
            "/v1/responses",
            {"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}},
            "tool_choice.type",
        ),
        (
            "/v1/responses",
            {"tools": [{"type": "web_search"}], "tool_choice": "required"},
            "tool_choice",
        ),
        (
            "/v1/responses",
            items()
            | {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input.0.content.0.type",
        ),
        (
            "/v1/chat/completions",
            {"tools": [{"type": "web_search"}], "tool_choice": "required"},
            "tool_choice",
        ),
    ],
)
async def test_what_would_change_the_answer_is_refused(
    client: httpx.AsyncClient, path: str, fields: dict[str, Any], param: str
) -> None:
    assert error_of(await client.post(path, json=body_of(path, **fields)), 400)["param"] == param


async def test_thinking_parts_are_reasoning(make_app: MakeApp, engines: FakeEngines) -> None:
    template = "{% for m in messages %}{{ m.reasoning_content }}|{{ m.content }};{% endfor %}"
    parts = [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "said"}]
    messages = [{"role": "assistant", "content": parts}, {"role": "user", "content": "hi"}]
    async with client_of(make_app(entries=[entry("main", chat_template=template)])) as client:
        assert (await chat(client, messages=messages)).status_code == 200
    assert prompt_of(engines) == "t|said;|hi;"


TEXT = '*** "Begin" \\ Patch\n\té😀\n'
PATCH_CALL = (
    '<tool_call>\n{"name": "apply_patch", "arguments": '
    + json.dumps({"input": TEXT})
    + "}\n</tool_call>"
)


@pytest.mark.parametrize("burst", [1, 3, 200])
@pytest.mark.parametrize("namespace", [None, "n"])
async def test_a_custom_tool_is_answered_with_its_text(
    client: httpx.AsyncClient, engines: FakeEngines, burst: int, namespace: str | None
) -> None:
    engines.script.burst = burst
    engines.script.answers = lambda choice: (*ids_of(PATCH_CALL), EOS)
    tools: list[Any] = [PATCH]
    if namespace is not None:
        tools = [{"type": "namespace", "name": namespace, "tools": [PATCH]}]
    body = body_of("/v1/responses", tools=tools)
    (item,) = (await client.post("/v1/responses", json=body)).json()["output"]
    assert item["type"] == "custom_tool_call" and item["id"].startswith("ctc_")
    assert (item["name"], item["input"]) == ("apply_patch", TEXT)
    assert item.get("namespace") == namespace
    seen = events((await client.post("/v1/responses", json=body | {"stream": True})).text)
    kind = "response.custom_tool_call_input"
    assert "".join(e["delta"] for e in seen if e["type"] == f"{kind}.delta") == TEXT
    assert [e["input"] for e in seen if e["type"] == f"{kind}.done"] == [TEXT]
    last = seen[-1]["response"]["output"]
    assert [(i["name"], i["input"]) for i in last] == [("apply_patch", TEXT)]


@pytest.mark.parametrize("size", [1, 70_000])
async def test_the_tools_of_items_are_offered_besides_the_others(
    client: httpx.AsyncClient, engines: FakeEngines, size: int
) -> None:
    engines.script.answers = lambda choice: (*ids_of(PATCH_CALL), EOS)
    namespace = {"type": "namespace", "name": "n", "tools": [PATCH, RESPONSE_TOOL]}
    item = {"type": "additional_tools", "tools": [RESPONSE_TOOL, namespace]}
    fields = {"tools": [RESPONSE_TOOL], "metadata": {"m": "x" * size}}
    body = body_of("/v1/responses", **items(item, item), **fields)
    answer = (await client.post("/v1/responses", json=body)).json()
    assert [tool["name"] for tool in answer["tools"]] == ["look_up", "n"]
    (call,) = answer["output"]
    assert (call["type"], call["namespace"], call["input"]) == ("custom_tool_call", "n", TEXT)
    assert prompt_of(engines).count('"apply_patch"') == 1


async def test_a_custom_tool_of_a_chat_is_answered_with_its_text(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.answers = lambda choice: (*ids_of(PATCH_CALL), EOS)
    tools = [{"type": "custom", "custom": {"name": "apply_patch"}}]
    choice = {"type": "custom", "custom": {"name": "apply_patch"}}
    answer = (await chat(client, tools=tools, tool_choice=choice)).json()
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert call["type"] == "custom"
    assert call["custom"] == {"name": "apply_patch", "input": TEXT}
    history = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "done"},
    ]
    assert (await chat(client, tools=tools, messages=history)).status_code == 200
    assert json.dumps({"input": TEXT}, ensure_ascii=False)[:20] in prompt_of(engines)


async def test_tools_of_one_name_in_two_namespaces_are_told_apart(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    call = '<tool_call>\n{"name": "b.look_up", "arguments": {"key": "tea"}}\n</tool_call>'
    engines.script.answers = lambda choice: (*ids_of(call), EOS)
    tools = [{"type": "namespace", "name": n, "tools": [RESPONSE_TOOL]} for n in ("a", "b")]
    body = body_of("/v1/responses", tools=tools)
    (item,) = (await client.post("/v1/responses", json=body)).json()["output"]
    assert (item["namespace"], item["name"]) == ("b", "look_up")
    again = items(item, {"type": "function_call_output", "call_id": item["call_id"], "output": "x"})
    assert (await client.post("/v1/responses", json=body | again)).status_code == 200
    assert '"b.look_up"' in prompt_of(engines)
