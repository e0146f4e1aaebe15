"""Tests of what each parser reads in a text, however the text is cut up."""

import json

import pytest
from hypothesis import given, strategies as st

from engine.parsing.parser import Chain, Parser
from engine.parsing.selection import known_formats
from tests.engine.parsing.readings import Read, pieces_of, read
from tests.engine.parsing.samples import SAMPLES

TOOLS = {"get_time": {"properties": {"city": {"type": "string"}}}, "add": {}}
PARIS = '{"city": "Paris"}'


def new_parser(name: str, before: str = "") -> Parser:
    """Return a parser; in the names of two formats, the first one reads the reasoning."""
    if "+" in name:
        first, second = name.split("+")
        return Chain(new_parser(first, before), lambda: new_parser(second))
    return known_formats()[name].parser(TOOLS, before)


def hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


TIME = ("get_time", PARIS)
ODD = '{ "a":[1, {"b": "}</tool_call>"}] }'
CALL = f'{{"name": "get_time", "parameters": {PARIS}}}'
CHANNEL = "<|start|>assistant<|channel|>"

CASES: list[tuple[str, str, Read]] = [
    ("hermes", "Hello there.\n", Read("Hello there.\n")),
    ("hermes", hermes(*TIME), Read(calls=(TIME,))),
    ("hermes", f"Sure.\n{hermes(*TIME)}\n", Read("Sure.", (TIME,))),
    ("hermes", f"\n\n{hermes(*TIME)}\n{hermes('add', '{}')}", Read("", (TIME, ("add", "{}")))),
    ("hermes", f"{hermes(*TIME)}\n\nBye", Read("\n\nBye", (TIME,))),
    ("hermes", hermes("add", ODD), Read(calls=(("add", ODD),))),
    (
        "hermes",
        f'<tool_call>{{"arguments": {PARIS}, "name": "get_time"}}</tool_call>',
        Read(calls=(TIME,)),
    ),
    ("hermes", '<tool_call>{"name": "get_time"}</tool_call>', Read(calls=(("get_time", "{}"),))),
    ("hermes", f'<tool_call>{{"name": "get_time", "arguments": {PARIS}}}', Read(calls=(TIME,))),
    ("hermes", f'<tool_call>{{"name": "get_time", "arguments": {PARIS}', Read(calls=(TIME,))),
    (
        "hermes",
        '<tool_call>{"name": "get_time", "arguments": {"city": "Pa',
        Read(calls=(("get_time", '{"city": "Pa"}'),)),
    ),
    (
        "hermes",
        '<tool_call>{"name": "get_time", "arguments": {"a": 1, b}}',
        Read("b}}", (("get_time", '{"a": 1}'),)),
    ),
    ("llama3_json", CALL, Read(calls=(TIME,))),
    (
        "llama3_json",
        f'<|python_tag|>{CALL}; {{"name": "add", "parameters": {{}}}}',
        Read(calls=(TIME, ("add", "{}"))),
    ),
    ("llama3_json", f"So: {CALL}", Read(f"So: {CALL}")),
    (
        "mistral",
        f'[TOOL_CALLS] [{CALL}, {{"name": "add", "arguments": {{}}, "id": "abcdefghi"}}]',
        Read(calls=(TIME, ("add", "{}"))),
    ),
    (
        "mistral",
        f"Wait.[TOOL_CALLS]get_time{PARIS}[TOOL_CALLS]add[CALL_ID]abcdefghi[ARGS]{{}}",
        Read("Wait.", (TIME, ("add", "{}"))),
    ),
    (
        "harmony",
        f"<|channel|>analysis<|message|>Hm.<|end|>{CHANNEL}final<|message|>a < b<|return|>",
        Read("a < b", (), "Hm."),
    ),
    (
        "harmony",
        "<|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>commentary "
        f"to=functions.get_time <|constrain|>json<|message|>{PARIS}<|call|>",
        Read("", (TIME,), "A"),
    ),
    (
        "harmony",
        f" to=functions.get_time<|channel|>commentary json<|message|> {PARIS}",
        Read("", (TIME,)),
    ),
    (
        "harmony",
        f"<|channel|>commentary<|message|>I look.<|end|>{CHANNEL}final<|message|>Done",
        Read("I look.Done"),
    ),
    ("harmony", "Plain text.", Read("Plain text.")),
    ("harmony", "Plain text. " * 40, Read("Plain text. " * 40)),
    ("generic", f'{{"name": "get_time", "arguments": {PARIS}}}', Read(calls=(TIME,))),
    ("generic", '{"name": "Anna", "age": 3}', Read('{"name": "Anna", "age": 3}')),
    ("generic", f"Sure. {hermes(*TIME)}", Read("Sure.", (TIME,))),
    ("think", "<think>\nHm, well.\n</think>\n\nYes.", Read("Yes.", (), "Hm, well.")),
    ("think", "<think>\n\n</think>\n\nYes.\n", Read("Yes.\n")),
    ("think", "\n<think>Hm. ", Read("", (), "Hm. ")),
    ("think", "<think>Hm.</think>\n\n</think>\n\nYes.", Read("Yes.", (), "Hm.")),
    ("think", "</think></think> </think>\nYes.</think>", Read("Yes.</think>")),
    ("think", "<think>Hm.</think>\n</thi", Read("", (), "Hm.")),
    ("think", "<think>Hm.</think>\n<", Read("<", (), "Hm.")),
    ("think", "<think>Hm.</think>\n</th>", Read("</th>", (), "Hm.")),
    ("think", "<think>Hm.</think><</think>", Read("<</think>", (), "Hm.")),
    ("think", "[THINK]Hm.[/THINK]</think>Yes", Read("</think>Yes", (), "Hm.")),
    ("think", "Yes.</think>", Read("Yes.</think>")),
    (
        "think+hermes",
        f"<think>Hm.</think>\n</think>\n{hermes(*TIME)}",
        Read("", (TIME,), "Hm."),
    ),
    ("think", " <thin", Read()),
    ("think", " <", Read(" <")),
    ("think", "So <think>no</think>", Read("So <think>no</think>")),
    ("think", "[THINK]Hm.[/THINK]Yes", Read("Yes", (), "Hm.")),
    (
        "think+hermes",
        f"<think>\n{hermes(*TIME)}\n</think>\n\n{hermes('add', '{}')}",
        Read("", (("add", "{}"),), hermes(*TIME)),
    ),
]

# Whatever is not quite JSON in a call, or not quite the format: sections of the same kinds.
CASES += [
    ("hermes", hermes(*wrong), Read(calls=(right,)))
    for wrong, right in [
        (("add", '{"a": "x\ny\tz"}'), ("add", '{"a": "x\\ny\\tz"}')),
        (("add", r"""{"a": "\d+ \u12 \' \x"}"""), ("add", r"""{"a": "\\d+ \\u12 ' \\x"}""")),
        (("add", "null"), ("add", "{}")),
        (("add", '""'), ("add", "{}")),
        (("add", json.dumps(PARIS)), ("add", PARIS)),
        (("add", "{'a': None, 'b': [True,],}"), ("add", '{"a": null, "b": [true]}')),
        (("add", '{"a": [1, 2}'), ("add", '{"a": [1, 2]}')),
        (("unknown", PARIS), ("unknown", PARIS)),
    ]
]
FENCED = f'Sure:\n```json\n{{"name": "add", "arguments": {PARIS}}}\n```'
DOUBLED = f'{{{{"name": "add", "arguments": {PARIS}}}}}'
ADD = ("add", PARIS)
SHORT = hermes("add", PARIS).replace("}\n<", "\n<")
BOTH_IN_ONE = hermes("add", PARIS).replace(
    "\n</", f'\n{{"name": "get_time", "arguments": {PARIS}}}\n</'
)
CASES += [
    ("hermes", f"<tool_call>{DOUBLED}</tool_call>", Read(calls=(ADD,))),
    ("hermes", f"<tool_call>{DOUBLED[:-1]}</tool_call>", Read(calls=(ADD,))),
    ("hermes", SHORT, Read(calls=(ADD,))),
    ("hermes", SHORT.replace("}\n<", "\n<"), Read(calls=(ADD,))),
    ("hermes", BOTH_IN_ONE, Read(calls=(ADD, TIME))),
    (
        "hermes",
        f"<tool_call>[{DOUBLED[1:-1]}, {DOUBLED[1:-1]}]</tool_call>",
        Read(calls=(ADD, ADD)),
    ),
    ("hermes", FENCED, Read("Sure:", (ADD,))),
    ("hermes", FENCED.replace("add", "sub"), Read(FENCED.replace("add", "sub"))),
    ("hermes", f'{{"name": "add", "arguments": {PARIS}}}', Read(calls=(ADD,))),
    ("hermes", '{"name": "Anna", "arguments": {}}', Read('{"name": "Anna", "arguments": {}}')),
    ("hermes", "See:\n```json\n[1]\n```", Read("See:\n```json\n[1]\n```")),
    ("phi4_mini", "It is fun", Read("It is fun")),
    ("hermes", "<tool_call>", Read()),
    ("hermes", "a < b <tool_cal", Read("a < b")),
    ("hermes", '<tool_call>\n{"name": "get_time", "arguments": ', Read()),
    ("hermes", '<tool_call>\n{"name": "get_time", "arguments": {', Read()),
    ("llama3_json", '{"name": "Anna", "parameters": {}}', Read(calls=(("Anna", "{}"),))),
    ("llama3_json", '{"name": "Anna"}', Read('{"name": "Anna"}')),
    (
        "llama3_json",
        "[add(a=1), get_time()]",
        Read(calls=(("add", '{"a": 1}'), ("get_time", "{}"))),
    ),
    ("llama3_json", "[see(it)]", Read("[see(it)]")),
    ("llama3_json", '{"name": "get_t', Read()),
    ("mistral", "[TOOL_CALLS]", Read()),
    ("mistral", "[TOOL_CALLS]unknown{}", Read(calls=(("unknown", "{}"),))),
    ("mistral", f"[TOOL_CALLS]add[ARGS] {PARIS}", Read(calls=(ADD,))),
    ("mistral", '[TOOL_CALLS]add[ARGS]{"a": "x\ny"}', Read(calls=(("add", '{"a": "x\\ny"}'),))),
    ("harmony", f"{CHANNEL}commentary to=functions.f<|message|>{{}}", Read(calls=(("f", "{}"),))),
    (
        "harmony",
        "<|channel|>analysis<|message|>hm<|end|><|channel|>final<|message|>Sure<|return|>",
        Read("Sure", (), "hm"),
    ),
    (
        "harmony",
        "<|channel|>commentary to=functions.add <|constrain|>json<|message|><|call|>",
        Read(calls=(("add", "{}"),)),
    ),
    (
        "harmony",
        '<|channel|>commentary to=functions.add<|message|>{"a": "x\ny"}<|call|>',
        Read(calls=(("add", '{"a": "x\\ny"}'),)),
    ),
    ("think+hermes", f"<think>\nhm\n{hermes(*TIME)}", Read("", (TIME,), "hm")),
    ("think+hermes", f"<think>\nhm\n{hermes(*TIME)}\n", Read("", (TIME,), "hm")),
    (
        "think+hermes",
        f"<think>\nhm {hermes(*TIME)} no",
        Read("", (), f"hm {hermes(*TIME)} no"),
    ),
    (
        "qwen3_coder",
        "<function=get_time>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
        Read(calls=(TIME,)),
    ),
    (
        "qwen3_coder",
        "<tool_call>\n<function=get_time>\n<parameter=city>\nParis\n</function>\n</tool_call>",
        Read(calls=(TIME,)),
    ),
    (
        "qwen3_coder",
        "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n</tool_call>\n",
        Read(calls=(("add", '{"a": 1}'),)),
    ),
    ("qwen3_coder", hermes(*TIME), Read(calls=(TIME,))),
    (
        "minicpm5",
        '<function name="add"><param name="a"><![CDATA[5</param>]]></param></function>',
        Read(calls=(("add", '{"a": "5</param>"}'),)),
    ),
    ("glm", hermes(*TIME), Read(calls=(TIME,))),
    ("glm", "<tool_call>no call, but text", Read("<tool_call>no call, but text")),
]

TEXT_AS_IT_IS = [
    ("hermes", text)
    for text in (
        "<tool_call></tool_call>",
        hermes("get_time", "[1]"),
        hermes("get_time", '"x"'),
        hermes("get_time", "{city: 1}"),
        '<tool_call>{"name": "get_time", "age": 3}</tool_call>',
        '<tool_call>{"name": "get_time", "name": "add"}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        "<tool_call>\n<function=get_time>\n",
        "</tool_call>",
    )
]
TEXT_AS_IT_IS += [
    ("llama3_json", "<|python_tag|>print(1)"),
    ("llama3_json", "{"),
    ("mistral", "[TOOL_CALLS] [1, 2]"),
    ("mistral", "[TOOL_CALLS]get_time and more"),
    ("mistral", '[a] [{"name": "get_time", "arguments": {}}]'),
    ("harmony", "<|channel|>commentary to=functions.add<|message|>{1"),
]
CASES += [(name, text, Read(text)) for name, text in TEXT_AS_IT_IS]


@pytest.mark.parametrize(("name", "text", "expected"), CASES)
def test_parsers_split_an_answer_into_its_parts(name: str, text: str, expected: Read) -> None:
    pieces = pieces_of(new_parser(name), text)
    assert read(pieces) == expected
    assert sum(piece.width for piece in pieces) == len(text)


@pytest.mark.parametrize(("name", "text", "expected"), CASES)
def test_single_characters_are_read_like_the_whole_text(
    name: str, text: str, expected: Read
) -> None:
    assert pieces_of(new_parser(name), *text) == pieces_of(new_parser(name), text)


FRAGMENTS = sorted(
    {mark for known in known_formats().values() for mark in known.special_tokens}
    | {'{"name": "get_time"', '"arguments": ', '"parameters"', "{", "}", "[", "]", ", ", "; ", '"'}
    | {
        PARIS,
        "\n",
        " ",
        "get_time",
        "final",
        "analysis",
        "commentary",
        " to=functions.add",
        "\\u00",
    }
    | {text for _, text, _ in CASES}
    | {text for sample in SAMPLES.values() for text in sample}
)


@given(
    name=st.sampled_from([*known_formats(), "think+hermes"]),
    before=st.sampled_from(["", "<|im_start|>assistant\n<think>\n"]),
    fragments=st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=8),
    data=st.data(),
)
def test_the_result_does_not_depend_on_how_the_text_is_cut_up(
    name: str, before: str, fragments: list[str], data: st.DataObject
) -> None:
    text = "".join(fragments)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6).map(sorted))
    whole = pieces_of(new_parser(name, before), text)
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert pieces_of(new_parser(name, before), *parts) == whole
    assert sum(piece.width for piece in whole) == len(text)
    for _, arguments in read(whole).calls:
        assert isinstance(json.loads(arguments), dict)
    shown = 0
    for piece in whole:  # the shown text is exactly what the model wrote
        if piece.kind in ("content", "reasoning"):
            assert text[shown : shown + piece.width] == piece.text
        shown += piece.width
