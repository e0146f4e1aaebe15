"""Tests of answers that continue the reasoning of the last message."""

from typing import Any

import httpx
import pytest

from engine.parsing.calls import Tools
from engine.parsing.selection import formats_of
from server.chat.prepare import Prepared
from tests.engine.parsing.readings import Read, pieces_of, read
from tests.server.chat.test_thinking import FAMILIES, HEADER, HIDDEN, prepared, shown
from tests.server.chat.test_tools import TEMPLATE, TOOLS
from tests.server.conftest import MakeApp, chat, client_of, entry
from tests.server.fake_engine import EOS, FakeEngines, ids_of

LEFT_OUT = "reasoning of the last message"
USER = {"role": "user", "content": "hi"}
BEGUN = {"role": "assistant", "reasoning_content": "Hm, I"}


def continued(template: str, last: Any = BEGUN, **fields: Any) -> Prepared:
    return prepared(template, messages=[USER, last], **fields)


def prompt_of(made: Prepared) -> str:
    return bytes(token if token < 256 else ord("^") for token in made.prompt).decode()


# The end of the prompt of each family, and how its model ends the thought.
OPENED = {
    "Qwen3": ("assistant:<think>\n", "\n</think>\n\n"),
    "Qwen3.5": ("assistant:<think>\n", "\n</think>\n\n"),
    "GLM": ("assistant:<think>", "</think>\n"),
    "Seed-OSS": ("assistant:<seed:think>", "</seed:think>"),
    "DeepSeek-R1": ("assistant:<think>\n", "\n</think>\n\n"),
    "DeepSeek-V3.1": ("assistant:<think>", "</think>"),
    "SmolLM3": ("assistant:<think>\n", "\n</think>\n\n"),
    "Magistral": ("assistant:[THINK]", "[/THINK]"),
    "Command A": ("assistant:<|START_THINKING|>", "<|END_THINKING|>"),
    "Apriel": ("assistant:Here are my reasoning steps:\n", "\n[BEGIN FINAL RESPONSE]\n"),
    "Gemma 4": ("assistant:<|channel>thought\n", "\n<channel|>"),
    "gpt-oss": (
        "assistant<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    "Solar Open": ("assistant:<|think|>", "<|end|><|begin|>assistant<|content|>"),
    "Muse": ("assistant: to=self<|message|>", "<|eom|><|start|>assistant to=user<|message|>"),
    "Kimi K3": (
        "assistant:<|open|>think<|sep|>",
        "<|close|>think<|sep|><|open|>response<|sep|>",
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_prompt_ends_inside_the_thought(name: str) -> None:
    template, (opening, close) = FAMILIES[name][0], OPENED[name]
    made = continued(template)
    assert made.left_out == []
    assert prompt_of(made).endswith(f"{opening}Hm, I")
    known: tuple[Tools, ...] = ({}, {"look_up": {}})
    for tools in known:
        parser = formats_of(template).parser(tools, made.before)
        answer = pieces_of(parser, f" think.{close}Yes.")
        assert read(answer) == Read("Yes.", (), " think.")
    parser = formats_of(template).parser({}, made.before)
    assert read(pieces_of(parser, " th")) == Read("", (), " th")


@pytest.mark.parametrize("name", FAMILIES)
def test_an_empty_message_begins_an_answer_with_reasoning(name: str) -> None:
    template = FAMILIES[name][0]
    empty = {"role": "assistant", "content": "", "reasoning_content": ""}
    for flags in ({}, {"continue_final_message": True}):
        made = continued(template, empty, **flags)
        without = prepared(template, messages=[USER])
        assert (made.prompt, made.before) == (without.prompt, without.before)
        assert made.left_out == []


def test_blanks_before_the_opening_mark_are_those_of_the_template() -> None:
    template = shown("{{ '\n<think> ' }}", "</think>") + "{% endif %}"
    made = continued(template)
    assert prompt_of(made).endswith("assistant:\n<think> Hm, I")
    answer = pieces_of(formats_of(template).parser({}, made.before), " do.</think>Yes.")
    assert read(answer) == Read("Yes.", (), " do.")


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_begun_counts_in_the_budget(name: str) -> None:
    template, (_, close) = FAMILIES[name][0], OPENED[name]
    made = continued(template, thinking_budget=9).thinking
    assert made is not None
    assert made.tokens == 9 - len("Hm, I")
    assert (made.is_begun, bool(made.begin)) == (True, name == "gpt-oss")
    assert bytes(made.closings[0]).decode() == close


def test_a_grammar_goes_on_within_the_thought() -> None:
    template = FAMILIES["Qwen3"][0]
    fresh = prepared(template, tools=TOOLS, tool_choice="required").grammar
    begun = continued(template, tools=TOOLS, tool_choice="required").grammar
    assert r"<think>" in fresh and "<think>" not in begun and "</think>" in begun


@pytest.mark.parametrize(
    ("last", "thought"),
    [
        ({"reasoning": "Hm"}, "Hm"),
        ({"content": [{"type": "thinking", "thinking": "Hm"}]}, "Hm"),
        ({"content": "", "reasoning_content": " Hm, \n"}, " Hm, \n"),
        ({"content": None, "reasoning_content": "Hm", "tool_calls": []}, "Hm"),
    ],
)
def test_the_fields_that_reasoning_may_be_in(last: Any, thought: str) -> None:
    made = continued(FAMILIES["Qwen3"][0], {"role": "assistant", **last})
    assert prompt_of(made).endswith(f"assistant:<think>\n{thought}")


SWITCHED = HIDDEN + "{{ '<think>' if enable_thinking else '</think>' }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "fields", "end", "left_out"),
    [
        (SWITCHED, {}, "assistant:<think>Hm, I", []),  # reasoning that is begun asks for it
        (SWITCHED, {"enable_thinking": False}, "assistant:</think>", [LEFT_OUT]),
        (SWITCHED, {"reasoning_effort": "none"}, "assistant:</think>", [LEFT_OUT]),
        (HIDDEN + "{% endif %}", {}, "assistant:", [LEFT_OUT]),
        (HIDDEN + "{% endif %}", {"continue_final_message": True}, "assistant:", [LEFT_OUT]),
        (SWITCHED, {"add_generation_prompt": False}, "assistant:<think>Hm, I", []),
    ],
)
def test_where_the_thought_cannot_go_on_it_is_left_out(
    template: str, fields: dict[str, Any], end: str, left_out: list[str]
) -> None:
    made = continued(template, **fields)
    assert (prompt_of(made)[-len(end) :], made.left_out) == (end, left_out)
    assert "hi^" in prompt_of(made) or "hi<eos>" in prompt_of(made)


@pytest.mark.parametrize(
    "flag", [{"add_generation_prompt": True}, {"continue_final_message": False}]
)
def test_a_flag_makes_it_past_reasoning(flag: dict[str, Any]) -> None:
    template = shown("<think>\n", "\n</think>\n\n") + "{% endif %}"
    prompt = prompt_of(continued(template, **flag))
    assert "<think>\nHm, I\n</think>" in prompt and prompt.endswith("assistant:")


def test_a_lone_message_is_continued() -> None:
    made = prepared(FAMILIES["Qwen3"][0], messages=[BEGUN])
    assert prompt_of(made).endswith("assistant:<think>\nHm, I")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [USER, BEGUN]}),
        (
            "/v1/messages",
            {
                "max_tokens": 50,
                "messages": [
                    USER,
                    {
                        "role": "assistant",
                        "content": [{"type": "thinking", "thinking": "Hm, I", "signature": ""}],
                    },
                ],
            },
        ),
        (
            "/v1/responses",
            {
                "input": [
                    USER,
                    {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm, I"}]},
                ]
            },
        ),
    ],
)
async def test_every_door_continues_a_thought(
    make_app: MakeApp, engines: FakeEngines, path: str, body: Any
) -> None:
    engines.script.answers = lambda choice: (*ids_of(" think.</think>Yes."), EOS)
    async with client_of(make_app(entries=[entry("main", chat_template=TEMPLATE)])) as client:
        answer = await client.post(path, json=body)
        assert answer.status_code == 200, answer.text
    prompt = bytes(i for i in engines.engine.requests[-1].prompt if i < 256).decode()
    assert prompt.endswith("<think>Hm, I")
    assert '" think."' in answer.text and '"Yes."' in answer.text
    assert HEADER not in answer.headers


@pytest.mark.parametrize(
    "route", ["/tokenize", "/apply-template", "/v1/chat/completions/input_tokens"]
)
async def test_all_routes_render_the_same_prompt(
    make_app: MakeApp, engines: FakeEngines, route: str
) -> None:
    body = {"messages": [USER, BEGUN]}
    async with client_of(make_app(entries=[entry("main", chat_template=TEMPLATE)])) as client:
        await chat(client, **body)
        prompt = list(engines.engine.requests[-1].prompt)
        found: httpx.Response = await client.post(route, json=body)
    answer = found.json()
    if route == "/apply-template":
        assert answer["prompt"].endswith("<think>Hm, I")
    else:
        assert answer.get("count", answer.get("input_tokens")) == len(prompt)
