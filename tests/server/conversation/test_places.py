"""Tests of templates that take their tools elsewhere than in the argument `tools`."""

import json
import re
from typing import Any

import pytest

from server.conversation.features import Feature, ToolPlace
from server.schemas.chat import ChatRequest
from server.schemas.checking import check_object
from tests.server.conversation.prompts import prompt_text
from tests.server.fake_engine import load_fake_tokenizer

# Phi-4-mini takes tools in its system message, FireFunction in an argument beside the date.
SYSTEM_FIELD = (
    "{% for m in messages %}{% if m.role == 'system' and 'tools' in m and m.tools is not none %}"
    "<system>{{ m.content + '<|tool|>' + m.tools + '<|/tool|>' }}"
    "{% else %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"
)
FUNCTIONS = (
    "{{ 'functools[' + functions + ']Today is ' + datetime + '.' }}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments | tojson }})"
    "{% endfor %}{% endfor %}"
)
FUNCTION = {"name": "look_up", "parameters": {"type": "object", "properties": {"key": {}}}}
TOOL = {"type": "function", "function": FUNCTION}
S, U = {"role": "system", "content": "s"}, {"role": "user", "content": "hi"}
DATED = {"chat_template_kwargs": {"datetime": "today"}}


def rendered(chat_template: str, **body: Any) -> str:
    tokenizer = load_fake_tokenizer("fake", chat_template)
    return prompt_text(tokenizer, check_object(ChatRequest, body))


@pytest.mark.parametrize(
    ("messages", "tools", "prompt"),
    [
        ([S, U], [TOOL], f"<system>s<|tool|>{json.dumps([FUNCTION])}<|/tool|><user>hi"),
        ([U], [TOOL], f"<system><|tool|>{json.dumps([FUNCTION])}<|/tool|><user>hi"),
        ([S, U], [], "<system>s<user>hi"),
        ([U], [], "<user>hi"),
    ],
)
def test_tools_in_the_system_message(messages: list[Any], tools: list[Any], prompt: str) -> None:
    assert rendered(SYSTEM_FIELD, messages=messages, tools=tools) == prompt


@pytest.mark.parametrize(
    ("tools", "functions"), [([TOOL], json.dumps([FUNCTION], indent=4)), ([], "")]
)
def test_tools_as_the_argument_functions(tools: list[Any], functions: str) -> None:
    call = {"id": "c", "function": {"name": "look_up", "arguments": '{"key": "v"}'}}
    messages = [S, U, {"role": "assistant", "content": None, "tool_calls": [call]}]
    prompt = rendered(FUNCTIONS, messages=messages, tools=tools, **DATED)
    assert prompt == (
        f'functools[{functions}]Today is today.<system>s<user>hi<assistant>look_up({{"key": "v"}})'
    )


def test_the_date_has_no_time_of_day() -> None:
    prompt = rendered(FUNCTIONS, messages=[U])
    assert re.fullmatch(r"functools\[\]Today is \d{4}-\d\d-\d\d\.<user>hi", prompt)


@pytest.mark.parametrize(
    ("chat_template", "place", "takes_tools"),
    [
        ("{{ tools }}" + SYSTEM_FIELD, ToolPlace.ARGUMENT, True),
        ("{{ messages[0].content }}", ToolPlace.ARGUMENT, False),
        (SYSTEM_FIELD, ToolPlace.SYSTEM_FIELD, True),
        (FUNCTIONS, ToolPlace.FUNCTIONS, True),
    ],
)
def test_the_place_is_found_by_trial(
    chat_template: str, place: ToolPlace, takes_tools: bool
) -> None:
    support = load_fake_tokenizer("fake", chat_template).support
    assert support.tool_place is place
    assert (Feature.TOOLS not in support.with_tools.lacking) == takes_tools
