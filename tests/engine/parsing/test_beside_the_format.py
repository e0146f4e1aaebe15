"""Answers slightly beside their format are read as they are meant, however they are cut up."""

import json

import pytest

from engine.parsing.parser import Parser
from engine.parsing.selection import Formats, formats_of, known_formats
from tests.engine.parsing.readings import TOOLS, Read, pieces_of, read

KEY = '{"key": "tea"}'
TEA = ("look_up", KEY)
NOW = ("now", "{}")
HERMES = f'<tool_call>\n{{"name": "look_up", "arguments": {KEY}}}\n</tool_call>'
THINKING = "<|im_start|>assistant\n<think>\n"
R1 = "<｜User｜>Hi<｜Assistant｜>"
FINAL = "<|start|>assistant<|channel|>final<|message|>"
TO_USER = "<|start|>assistant to=user<|message|>"
INVOKE = '<atem:function_calls>\n<atem:invoke name="{}">\n'
M3 = "]<]minimax[>["
M3_ITEMS = f"{M3}<item>a{M3}</item>{M3}<item>b{M3}</item>"
M3_LIST = f'{M3}<invoke name="look_up">{M3}<a>{M3_ITEMS}{M3}</a>{M3}</invoke>'
QUOTED_CALL = INVOKE.format("look_up") + "</atem:invoke>\n</atem:function_calls>"


def new_parser(name: str, before: str) -> Parser:
    """Return a parser of calls and reasoning; `name` may name a format of reasoning, after `+`."""
    known = known_formats()
    tools, _, thoughts = name.partition("+")
    reasoning = known[tools] if "reasoning" in known[tools].reads else known[thoughts or "think"]
    return Formats(known[tools], reasoning).parser(TOOLS, before)


# The name of the format, the text before the answer, the answer, and what it means.
THOUGHTS: list[tuple[str, str, str, Read]] = [
    # The model repeats the tag that its prompt ends with, or closes what was never opened.
    ("hermes", THINKING, "<think>\nHm.\n</think>\n\nYes.", Read("Yes.", (), "Hm.")),
    ("hermes", THINKING, "\n <think> </think>Yes.", Read("Yes.")),
    ("hermes", THINKING, "</think>\n\nYes.", Read("Yes.")),
    ("hermes", THINKING, "<b> is bold.</think>Yes.", Read("Yes.", (), "<b> is bold.")),
    ("hermes", THINKING, "<thi", Read()),
    ("hermes", THINKING, "Hm.\n</thi", Read("", (), "Hm.")),
    ("hermes", "", "</think>\n\nYes.", Read("Yes.")),
    ("hermes", "", f"</think>{HERMES}", Read("", (TEA,))),
    ("hermes", "", "</thi", Read()),
    ("hermes", "", "</b>", Read("</b>")),
    ("minimax_m3", "", "</mm:think>Yes.", Read("Yes.")),
    # R1's first templates do not open the reasoning, with which each answer begins.
    ("deepseek_v3+deepseek_r1", R1, "Hm.\n</think>\n\nYes.", Read("Yes.", (), "Hm.")),
    ("deepseek_v3+deepseek_r1", R1, "<think>\nHm.\n</think>\n\nYes.", Read("Yes.", (), "Hm.")),
    ("deepseek_v3+deepseek_r1", R1, "</think>Yes.", Read("Yes.")),
    ("deepseek_v3+deepseek_r1", R1, "Hm. ", Read("", (), "Hm. ")),
    ("deepseek_v3+deepseek_r1", "The answer", " is 4.", Read(" is 4.")),
    # A call at the beginning ends reasoning that the prompt has opened.
    ("hermes", THINKING, f"{HERMES}\nI have asked.", Read("\nI have asked.", (TEA,))),
    ("hermes", THINKING, f"{HERMES}\nAsked.</think>!", Read("\nAsked.!", (TEA,))),
    ("hermes", THINKING, f"Say {HERMES} now.</think>A", Read("A", (), f"Say {HERMES} now.")),
    (
        "gemma4",
        "",
        "<|channel>thought\nHm.<channel|>One.<|channel>thought\nOh.<channel|>Two.<channel|>",
        Read("One.Two.", (), "Hm.\nOh."),
    ),
    ("gemma4", "", "<|channel><|channel>thought\n<channel|>Yes.", Read("Yes.")),
    ("gemma4", "", "Yes.<|channel>thought", Read("Yes.")),
    (
        "granite",
        "",
        "Here is my thought process:\nHm.\nHere is my response:\nYes.",
        Read("Yes.", (), "Hm."),
    ),
]
HARMONY: list[tuple[str, str, str, Read]] = [
    # Messages to tools that the model knows from its training, and names without a namespace.
    (
        "harmony",
        "",
        "<|channel|>commentary to=python<|message|>print(1)<|call|>",
        Read("", (), "print(1)"),
    ),
    (
        "harmony",
        "",
        f" to=python<|channel|>analysis<|message|>{{1}}<|end|>{FINAL}Yes.",
        Read("Yes.", (), "{1}"),
    ),
    (
        "harmony",
        "",
        f"<|channel|>commentary to=look_up <|constrain|>json<|message|>{KEY}<|call|>",
        Read("", (TEA,)),
    ),
    (
        "harmony",
        "",
        f"<|channel|>commentary to=browser.search<|message|>{KEY}<|call|>",
        Read("", (("browser.search", KEY),)),
    ),
    ("harmony", "", "<|channel|>final to=user<|message|>Yes.", Read("Yes.")),
]
MESSAGES: list[tuple[str, str, str, Read]] = [
    # A message to the user can only quote a call.
    ("muse", "", f" to=user<|message|>So:\n{QUOTED_CALL}", Read(f"So:\n{QUOTED_CALL}")),
    (
        "muse",
        "",
        f" to=now.now<|message|>{QUOTED_CALL.replace('look_up', 'now.now')}<|eom|>{TO_USER}Yes.",
        Read("Yes.", (NOW,)),
    ),
]
CALLS: list[tuple[str, str, str, Read]] = [
    ("granite", "", f'<tool_call>[{{"name": "look_up", "arguments": {KEY}}}]', Read("", (TEA,))),
    (
        "deepseek_v3",
        "",
        f"<｜tool▁calls▁begin｜>function<｜tool▁sep｜>look_up\n```json\n{KEY}\n```<｜tool▁calls▁end｜>",
        Read("", (TEA,)),
    ),
    (
        "deepseek_v32",
        "",
        '<｜DSML｜function_calls>\n<｜DSML｜invoke name="now"/>\n</｜DSML｜function_calls>',
        Read("", (NOW,)),
    ),
    (
        "minimax_m3",
        "",
        M3_LIST,
        Read("", (("look_up", '{"a": ["a", "b"]}'),)),
    ),
]
KIMI = "<|tool_call_begin|>functions.{}:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
SECTION = "<|tool_calls_section_begin|>{}<|tool_calls_section_end|>"
# A call that breaks off, with the rest of its text up to the next mark; and marks alone.
BROKEN = KIMI.format("look_up", '{"key": "tea", "n": tru!}')
CALLS += [
    ("kimi_k2", "", SECTION.format(BROKEN + KIMI.format("now", "{}")), Read("", (TEA, NOW))),
    ("kimi_k2", "", f"{SECTION.format(BROKEN)} Yes.", Read(" Yes.", (TEA,))),
    ("kimi_k2", "", "Yes.<|tool_call_argument_begin|><|tool_calls_section_end|>", Read("Yes.")),
    ("deepseek_v31", "", "Yes.<｜tool▁calls▁end｜>", Read("Yes.")),
    ("hermes", "", HERMES.replace("}}", ", n}}"), Read("", (TEA,))),
    ("hermes", "", HERMES.replace("}}\n</tool_call>", ", n: 1"), Read("n: 1", (TEA,))),
]
DSML = (
    '<｜DSML｜invoke name="look_up">\n<｜DSML｜parameter {}</｜DSML｜parameter>\n</｜DSML｜invoke>'
)
PARAM = '<function name="look_up"><param{}</param></function>'
ARGUMENTS = [
    # Models put all arguments into one that the tool does not have.
    ("deepseek_v32", DSML.format(f'name="arguments" string="false">{KEY}'), {"key": "tea"}),
    ("deepseek_v32", DSML.format(f'name="input" string="true">{KEY}'), {"key": "tea"}),
    ("deepseek_v32", DSML.format('name="input" string="false">{}'), {}),
    ("deepseek_v32", DSML.format('name="input" string="true">tea'), {"input": "tea"}),
    ("deepseek_v32", DSML.format('name="o" string="false">{"y": "z"}'), {"o": {"y": "z"}}),
    # A value for which the schema allows only a string is one, whatever the tag says.
    ("deepseek_v32", DSML.format('name="key" string="false">null'), {"key": "null"}),
    ("deepseek_v32", DSML.format('name="u" string="false">null'), {"u": None}),
    ("deepseek_v32", DSML.format('name="x" string="false">5'), {"x": 5}),
    ("minicpm5", PARAM.format(">tea"), {}),
    ("minicpm5", PARAM.format('>tea</param><param name="n">5'), {"n": 5}),
    (
        "minicpm5",
        PARAM.format(' name="properties">{"key": "a"}</param><param name="n">5'),
        {"key": "a", "n": 5},
    ),
    # An argument without a value is left out.
    ("glm", "<tool_call>look_up\n<arg_key>key</arg_key></tool_call>", {}),
    (
        "glm",
        "<tool_call>look_up<arg_key>key</arg_key><arg_key>n</arg_key><arg_value>5</arg_value>",
        {"n": 5},
    ),
    # JSON that is escaped once more than it should be.
    ("minicpm5", PARAM.format(r' name="l">[\"a\", \"b\\n\"]'), {"l": ["a", "b\n"]}),
]
CASES = [*THOUGHTS, *HARMONY, *MESSAGES, *CALLS]


@pytest.mark.parametrize(("name", "before", "text", "expected"), CASES)
def test_the_meaning_is_read(name: str, before: str, text: str, expected: Read) -> None:
    pieces = pieces_of(new_parser(name, before), text)
    assert read(pieces) == expected
    assert sum(piece.width for piece in pieces) == len(text)
    assert pieces_of(new_parser(name, before), *text) == pieces


@pytest.mark.parametrize(("name", "text", "expected"), ARGUMENTS)
def test_arguments_are_read(name: str, text: str, expected: dict[str, object]) -> None:
    pieces = pieces_of(new_parser(name, ""), text)
    assert pieces_of(new_parser(name, ""), *text) == pieces
    ((called, arguments),) = read(pieces).calls
    assert (called, json.loads(arguments)) == ("look_up", expected)


def test_text_after_a_call_in_reasoning_is_shown_once() -> None:
    answer = f"Hm. {HERMES} more"
    pieces = pieces_of(new_parser("hermes", THINKING), answer, "</think>")
    assert read(pieces).reasoning == answer
    assert sum(piece.width for piece in pieces) == len(answer) + len("</think>")


def test_templates_that_only_close_reasoning_are_recognised() -> None:
    stripped = "{{ message.content.split('</think>')[-1] }}"
    known = known_formats()
    assert formats_of(stripped).reasoning is known["think"]
    assert formats_of(f"<｜Assistant｜>{stripped}").reasoning is known["deepseek_r1"]
    assert formats_of(f"<｜Assistant｜><think>\n{stripped}").reasoning is known["think"]
