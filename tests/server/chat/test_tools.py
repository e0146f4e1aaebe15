"""Tests of tools over HTTP: what is refused, what the template gets, and how calls arrive."""

import json
import re
from typing import Any

import httpx
import pytest

from server.schemas.limits import MAX_TOOLS
from tests.server.conftest import MakeApp, chat, client_of, entry, error_of, events
from tests.server.fake_engine import CALLS, EOS, FakeEngines, ids_of

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{name}!",
            "parameters": {"type": "object", "properties": {key: {"type": "string"}}},
        },
    }
    for name, key in (("get_time", "city"), ("add", "a"))
]
TEMPLATE = (
    "{% for t in tools or [] %}<tools>{{ t | tojson }}{% endfor %}"
    "{% for m in messages %}<turn>{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}{% endfor %}"
    "<eos>{% endfor %}{{ '<think>' if enable_thinking else '' }}"
)
CALL = '<tool_call>\n{"name": "get_time", "arguments": {"city": "Paris"}}\n</tool_call>'
SUM = '<tool_call>\n{"name": "add", "arguments": {"a":  "é"}}\n</tool_call>'


@pytest.fixture
async def client(make_app: MakeApp) -> Any:
    entries = [entry("main", chat_template=TEMPLATE)]
    async with client_of(make_app(entries=entries)) as client:
        yield client


def calls_of(message: dict[str, Any]) -> list[tuple[str, str]]:
    calls = message.get("tool_calls", [])
    assert all(c["type"] == "function" and c["id"].startswith("call_") for c in calls)
    assert len({c["id"] for c in calls}) == len(calls)
    return [(c["function"]["name"], c["function"]["arguments"]) for c in calls]


@pytest.mark.parametrize("burst", [1, 3, 200])
async def test_api_15_streamed_calls_join_to_the_whole(
    client: httpx.AsyncClient, engines: FakeEngines, burst: int
) -> None:
    engines.script.burst = burst
    engines.script.answers = lambda k: (*ids_of(f"<think>Hm.</think>\n\n{CALL}\n{SUM}"), EOS)
    whole = (await chat(client, tools=TOOLS)).json()
    message = whole["choices"][0]["message"]
    assert message["content"] is None
    assert message["reasoning_content"] == "Hm."
    assert calls_of(message) == [("get_time", '{"city": "Paris"}'), ("add", '{"a":  "é"}')]
    assert whole["choices"][0]["finish_reason"] == "tool_calls"
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == len("Hm.")

    *chunks, _ = events((await chat(client, tools=TOOLS, stream=True)).text)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert choices[-1]["delta"] == {}
    assert [c["finish_reason"] for c in choices if c["finish_reason"]] == ["tool_calls"]
    deltas = [c for choice in choices for c in choice["delta"].get("tool_calls", [])]
    assert [d["index"] for d in deltas] == sorted(d["index"] for d in deltas)
    for index, (name, arguments) in enumerate(calls_of(message)):
        first, *others = [d for d in deltas if d["index"] == index]
        assert first["id"].startswith("call_")
        assert first["type"] == "function"
        assert first["function"] == {"name": name, "arguments": ""}
        assert all(set(d) == {"index", "function"} for d in others)
        assert "".join(d["function"]["arguments"] for d in others) == arguments
        if burst == 1:
            assert len(others) > 4


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "get_time", "arguments": {city: 1}}</tool_call>',
        '<tool_call>{"title": "get_time"}</tool_call>',
        "<tool_call> is a tag",
    ],
)
async def test_text_that_only_looks_like_a_call_stays_text(
    client: httpx.AsyncClient, engines: FakeEngines, text: str
) -> None:
    engines.script.answers = lambda _choice: (*ids_of(text), EOS)
    choice = (await chat(client, tools=TOOLS)).json()["choices"][0]
    assert choice["message"]["content"] == text
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('<tool_call>{"name": "sub", "arguments": {}}</tool_call>', None, [("sub", "{}")]),
        ('Sure. <tool_call>\n{"name": "get_time", "argu', "Sure.", []),
        ("Sure. <tool_ca", "Sure.", []),
    ],
)
async def test_an_unknown_tool_is_called_and_a_call_cut_off_is_not_shown(
    client: httpx.AsyncClient,
    engines: FakeEngines,
    text: str,
    content: str | None,
    calls: list[tuple[str, str]],
) -> None:
    engines.script.answers = lambda _choice: (*ids_of(text), EOS)
    message = (await chat(client, tools=TOOLS)).json()["choices"][0]["message"]
    assert (message["content"], calls_of(message)) == (content, calls)


async def test_the_template_gets_exactly_the_tools_that_may_be_called(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    def names_in_prompt() -> list[str]:
        prompt = bytes(t for t in engines.engine.requests[-1].prompt if t < 256).decode()
        pieces = prompt.split("user:")[0].split("<tools>")[1:]
        return [json.loads(piece)["function"]["name"] for piece in pieces]

    named = {"type": "function", "function": {"name": "add"}}
    allowed = {
        "type": "allowed_tools",
        "allowed_tools": {
            "mode": "auto",
            "tools": [{"type": "function", "function": {"name": "add"}}],
        },
    }
    for choice, names in (
        (None, ["get_time", "add"]),
        ("auto", ["get_time", "add"]),
        ("none", []),
        (named, ["add"]),
        (allowed, ["add"]),
    ):
        assert (await chat(client, tools=TOOLS, tool_choice=choice)).status_code == 200
        assert names_in_prompt() == names


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f"} | function}


def named(*names: str) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name}} for name in names]


def allowed(mode: str, *names: str) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": named(*names)}}


BROKEN = {"a": {"type": "string", "pattern": "("}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": "x"}, "tools"),
        ({"tools": [None]}, "tools.0"),
        ({"tools": [{}]}, "tools.0.type"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools.0.custom.name"),
        (
            {"tools": [{"type": "namespace", "tools": [{"type": "namespace"}]}]},
            "tools.0.tools.0.type",
        ),
        ({"tools": [{"type": "mcp"}], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [{"type": "function", "function": []}]}, "tools.0.function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name"),
        ({"tools": [*TOOLS, tool(name="a b")]}, "tools.2.function.name"),
        ({"tools": [tool(name="a\n")]}, "tools.0.function.name"),
        ({"tools": [tool(name="x" * 129)]}, "tools.0.function.name"),
        ({"tools": [tool(name=1)]}, "tools.0.function.name"),
        ({"tools": [tool(description=1)]}, "tools.0.function.description"),
        ({"tools": [tool(parameters=[])]}, "tools.0.function.parameters"),
        ({"tools": [tool(parameters={"type": "string"})]}, "tools.0.function.parameters.type"),
        ({"tools": [tool(strict="yes")]}, "tools.0.function.strict"),
        ({"tools": [tool()] * (MAX_TOOLS + 1)}, "tools"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": 1}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": []}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {}}, "tool_choice.type"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tools": TOOLS, "tool_choice": named("sub")[0]}, "tool_choice.function.name"),
        ({"tools": TOOLS, "tool_choice": allowed("all", "add")}, "tool_choice.allowed_tools.mode"),
        ({"tools": TOOLS, "tool_choice": allowed("auto")}, "tool_choice.allowed_tools.tools"),
        (
            {"tools": TOOLS, "tool_choice": allowed("auto", "add", "sub")},
            "tool_choice.allowed_tools.tools.1.function.name",
        ),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": named("add")[0]}, "tool_choice"),
        ({"tools": TOOLS, "parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"functions": [{"name": "f g"}]}, "functions.0.name"),
        ({"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "function_call.name"),
        ({"functions": [{"name": "f"}], "function_call": "required"}, "function_call"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        (
            {"tools": [*TOOLS, tool(parameters={"properties": BROKEN}, strict=True)]},
            "tools.2.function.parameters",
        ),
        (
            {
                "tools": [tool(parameters={"properties": {"a": {"type": "foo"}}})],
                "tool_choice": "required",
            },
            "tools.0.function.parameters",
        ),
    ],
)
async def test_api_15_invalid_tools_are_refused_with_their_field(
    client: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    assert error_of(await chat(client, **fields), 400)["param"] == param


async def test_tools_become_text_for_a_template_without_tools(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    engines.script.context_length = 4096
    engines.script.answers = lambda k: (*ids_of('{"name": "add", "arguments": {"a": "1"}}'), EOS)
    user = {"role": "user", "content": "hi"}
    async with client_of(make_app()) as client:
        choice = (await chat(client, tools=TOOLS)).json()["choices"][0]
        assert calls_of(choice["message"]) == [("add", '{"a": "1"}')]
        message = choice["message"]
        result = {"role": "tool", "content": "2", "tool_call_id": message["tool_calls"][0]["id"]}
        system = {"role": "system", "content": "Be kind."}
        await chat(client, tools=TOOLS, messages=[system, user, message, result, result])
    prompt = bytes(t for t in engines.engine.requests[-1].prompt if t < 256).decode()
    assert prompt.startswith("system:Be kind.\n\nYou may call these functions:\n{")
    called = '<tool_call>\n{"name": "add", "arguments": {"a": "1"}}\n</tool_call>'
    response = "<tool_response>\n2\n</tool_response>"
    assert f"user:hiassistant:{called}user:{response}\n{response}assistant:" in prompt


async def test_a_template_with_a_format_that_is_not_known_gets_the_tools_in_words(
    make_app: MakeApp, engines: FakeEngines, caplog: pytest.LogCaptureFixture
) -> None:
    engines.script.context_length = 4096
    template = TEMPLATE.replace("<tool_call>", "<calling>")
    async with client_of(make_app(entries=[entry("main", chat_template=template)])) as client:
        assert (await chat(client, tools=TOOLS)).status_code == 200
        assert (await chat(client, tools=TOOLS)).status_code == 200
    prompt = bytes(t for t in engines.engine.requests[-1].prompt if t < 256).decode()
    assert "<tools>" not in prompt
    assert "system:You may call these functions:" in prompt
    warnings = [r.getMessage() for r in caplog.records if "no known format" in r.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].startswith("main: ")
    assert "qwen3_coder" in warnings[0]


async def test_tools_in_words_ask_for_the_format_that_is_read(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    """As with DeepSeek R1, whose template writes calls but no tools."""
    engines.script.context_length = 4096
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{# <TOOLCALL> #}"
    answer = '<TOOLCALL>[{"name": "add", "arguments": {"a": "1"}}]</TOOLCALL>'
    engines.script.answers = lambda k: (*ids_of(answer), EOS)
    async with client_of(make_app(entries=[entry("main", chat_template=template)])) as client:
        choice = (await chat(client, tools=TOOLS)).json()["choices"][0]
    assert calls_of(choice["message"]) == [("add", '{"a": "1"}')]
    prompt = bytes(t for t in engines.engine.requests[-1].prompt if t < 256).decode()
    assert '<TOOLCALL>[{"name": "NAME", "arguments": {...}}]</TOOLCALL>' in prompt


async def test_a_mark_that_is_a_special_token_is_parsed(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    """Mistral's tokenizers have such marks, and the templates require ids of nine characters."""
    template = TEMPLATE.replace("c.function", "c").replace("<tool_call>", "[TOOL_CALLS]")
    engines.script.answers = lambda k: (*ids_of("So."), CALLS, *ids_of('add{"a": "1"}'), EOS)
    async with client_of(make_app(entries=[entry("main", chat_template=template)])) as client:
        answer = (await chat(client, tools=TOOLS, stop=["x"], logprobs=True)).json()
        (choice,) = answer["choices"]
        assert choice["message"]["content"] == "So."
        assert calls_of(choice["message"]) == [("add", '{"a": "1"}')]
        assert [e["token"] for e in choice["logprobs"]["content"]] == ["S", "o", "."]
        assert answer["usage"]["completion_tokens"] == len('So.[add{"a": "1"}.')
        (plain,) = (await chat(client)).json()["choices"]
        assert plain["message"]["content"] == 'So.add{"a": "1"}'
        messages = [{"role": "user", "content": "hi"}, choice["message"]]
        await chat(client, tools=TOOLS, messages=messages)
    prompt = bytes(t for t in engines.engine.requests[-1].prompt if t < 256).decode()
    assert re.search(r'"id": "[a-z0-9]{9}"', prompt)


async def test_each_choice_has_its_own_parser(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.burst = 7
    engines.script.answers = lambda k: (*ids_of((CALL, "No.", f"{SUM}\n{CALL}")[k]), EOS)
    choices = (await chat(client, tools=TOOLS, n=3)).json()["choices"]
    assert [len(c["message"].get("tool_calls", [])) for c in choices] == [1, 0, 2]
    assert [c["message"]["content"] for c in choices] == [None, "No.", None]
    assert [c["finish_reason"] for c in choices] == ["tool_calls", "stop", "tool_calls"]


async def test_a_call_that_the_token_limit_cuts_off_ends_with_length(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    engines.script.answers = lambda k: (*ids_of(CALL), EOS)
    limit = len('<tool_call>\n{"name": "get_time", "arguments": {"city": "Pa')
    (choice,) = (await chat(client, tools=TOOLS, max_tokens=limit)).json()["choices"]
    assert calls_of(choice["message"]) == [("get_time", '{"city": "Pa"}')]
    assert choice["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("fields", "is_open"),
    [
        ({}, False),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "minimal"}, True),
        ({"reasoning": {"effort": "none"}}, False),
        ({"reasoning": {"effort": "high"}}, True),
        ({"reasoning": {"enabled": False}}, False),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, True),
        ({"thinking": False}, False),
        ({"enable_thinking": True}, True),
        ({"reasoning_effort": "xhigh"}, True),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
        ({"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}}, False),
    ],
)
async def test_api_19_effort_decides_whether_the_prompt_opens_reasoning(
    client: httpx.AsyncClient, engines: FakeEngines, fields: dict[str, Any], is_open: bool
) -> None:
    engines.script.answers = lambda k: (*ids_of("Hm.</think>\nYes"), EOS)
    message = (await chat(client, **fields)).json()["choices"][0]["message"]
    if is_open:
        assert (message["content"], message["reasoning_content"]) == ("Yes", "Hm.")
    else:
        assert message["content"] == "Hm.</think>\nYes"
        assert "reasoning_content" not in message


async def test_api_19_reasoning_in_the_history_reaches_the_template(
    make_app: MakeApp, engines: FakeEngines
) -> None:
    template = "{% for m in messages %}[{{ m.reasoning_content }}|{{ m.content }}]{% endfor %}"
    async with client_of(make_app(entries=[entry("main", chat_template=template)])) as client:
        for field in ("reasoning", "reasoning_content"):
            assistant = {"role": "assistant", "content": "Yes", field: "Hm."}
            user = {"role": "user", "content": "hi"}
            assert (await chat(client, messages=[user, assistant, user])).status_code == 200
            prompt = bytes(engines.engine.requests[-1].prompt).decode()
            assert "[Hm.|Yes]" in prompt


async def test_a_result_must_have_a_call(client: httpx.AsyncClient) -> None:
    user = {"role": "user", "content": "hi"}
    result = {"role": "tool", "content": "14:05", "tool_call_id": "call_1"}
    function = {"name": "get_time", "arguments": "{}"}
    called = {"role": "assistant", "tool_calls": [{"id": "call_1", "function": function}]}
    error = error_of(await chat(client, messages=[user, result]), 400)
    assert error["param"] == "messages.1.tool_call_id"
    assert (await chat(client, messages=[user, called, result])).status_code == 200


@pytest.mark.parametrize("asked", [{}, {"function_call": {"name": "get_time"}}])
async def test_functions_are_answered_in_their_own_form(
    client: httpx.AsyncClient, engines: FakeEngines, asked: dict[str, Any]
) -> None:
    engines.script.answers = lambda choice: (*ids_of(CALL), EOS)
    fields = {"functions": [tool["function"] for tool in TOOLS], **asked}
    whole = (await chat(client, **fields)).json()["choices"][0]
    called = {"name": "get_time", "arguments": '{"city": "Paris"}'}
    assert whole["message"]["function_call"] == called
    assert "tool_calls" not in whole["message"] and whole["message"]["content"] is None
    assert whole["finish_reason"] == "function_call"
    *chunks, _ = events((await chat(client, stream=True, **fields)).text)
    pieces = [chunk["choices"][0]["delta"].get("function_call", {}) for chunk in chunks]
    assert "".join(piece.get("name", "") for piece in pieces) == "get_time"
    assert "".join(piece.get("arguments", "") for piece in pieces) == called["arguments"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "function_call"
    grammar = engines.engine.requests[-1].params.grammar.replace("additionalProperties", "")
    assert "get_time" in grammar  # an answer has one call at most
    assert ("add" in grammar) is not bool(asked)


async def test_arguments_may_be_an_object(client: httpx.AsyncClient, engines: FakeEngines) -> None:
    function = {"name": "add", "arguments": {"a": "é"}}
    call = {"id": "c", "type": "function", "function": function}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    assert (await chat(client, messages=messages)).status_code == 200
    prompt = bytes(i for i in engines.engine.requests[-1].prompt if i < 256).decode()
    assert '"arguments": {"a": "é"}' in prompt


async def test_the_first_delta_of_a_forced_call_has_no_content(client: httpx.AsyncClient) -> None:
    for fields, content in (({"tool_choice": "required"}, None), ({}, "")):
        *chunks, _ = events((await chat(client, tools=TOOLS, stream=True, **fields)).text)
        first = chunks[0]["choices"][0]["delta"]
        assert first == {"role": "assistant", "content": content}
