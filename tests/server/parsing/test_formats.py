"""Tests of what each parser reads in a text, however the text is cut up."""

import json
from typing import NamedTuple

import pytest
from hypothesis import given, strategies as st

from server.parsing.json_object import JsonObject, NotJson
from server.parsing.parser import Chain, Parser, Piece, merge
from server.parsing.selection import known_formats

NAMES = ("get_time", "add")
PARIS = '{"city": "Paris"}'


class Read(NamedTuple):
    """The parts of an answer that a client sees."""

    content: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    reasoning: str = ""


def new_parser(name: str, before: str = "") -> Parser:
    if name == "think+hermes":
        return Chain(new_parser("think", before), new_parser("hermes"))
    return known_formats()[name].parser(NAMES, before)


def pieces_of(parser: Parser, *texts: str) -> list[Piece]:
    pieces = [piece for text in texts for piece in parser.feed(text)]
    return merge([*pieces, *parser.finish()])


def read(pieces: list[Piece]) -> Read:
    calls: list[tuple[str, str]] = []
    for piece in pieces:
        if piece.kind == "call":
            calls.append((piece.text, ""))
        elif piece.kind == "arguments":
            calls[-1] = (calls[-1][0], calls[-1][1] + piece.text)
    texts = {
        kind: "".join(p.text for p in pieces if p.kind == kind) for kind in ("content", "reasoning")
    }
    return Read(texts["content"], tuple(calls), texts["reasoning"])


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
        Read(calls=(("get_time", '{"city": "Pa'),)),
    ),
    (
        "hermes",
        '<tool_call>{"name": "get_time", "arguments": {"a": 1, b}}',
        Read("b}}", (("get_time", '{"a": 1, '),)),
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
    ("think", " <thin", Read(" <thin")),
    ("think", "So <think>no</think>", Read("So <think>no</think>")),
    ("think", "[THINK]Hm.[/THINK]Yes", Read("Yes", (), "Hm.")),
    (
        "think+hermes",
        f"<think>\n{hermes(*TIME)}\n</think>\n\n{hermes('add', '{}')}",
        Read("", (("add", "{}"),), hermes(*TIME)),
    ),
]

TEXT_AS_IT_IS = [
    ("hermes", text)
    for text in (
        "<tool_call>",
        "<tool_call></tool_call>",
        "a < b <tool_cal",
        hermes("unknown", PARIS),
        hermes("get_time", "[1]"),
        hermes("get_time", '"x"'),
        hermes("get_time", "{city: 1}"),
        '<tool_call>{"name": "get_time", "age": 3}</tool_call>',
        '<tool_call>{"name": "get_time", "name": "add"}</tool_call>',
        '<tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>\n{"name": "get_time", "arguments": ',
        "<tool_call>\n<function=get_time>\n",
        "</tool_call>",
    )
]
TEXT_AS_IT_IS += [
    ("llama3_json", '{"name": "Anna", "parameters": {}}'),
    ("llama3_json", "<|python_tag|>print(1)"),
    ("llama3_json", "{"),
    ("mistral", "[TOOL_CALLS]"),
    ("mistral", "[TOOL_CALLS] [1, 2]"),
    ("mistral", "[TOOL_CALLS]unknown{}"),
    ("mistral", "[TOOL_CALLS]get_time and more"),
    ("mistral", '[a] [{"name": "get_time", "arguments": {}}]'),
    ("harmony", "<|channel|>commentary to=functions.unknown<|message|>{}"),
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
    assert {name for name, _ in read(whole).calls} <= set(NAMES)
    shown = 0
    for piece in whole:  # the shown text is exactly what the model wrote
        if piece.kind in ("content", "reasoning"):
            assert text[shown : shown + piece.width] == piece.text
        shown += piece.width


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=4), st.sampled_from([None, 1]), st.booleans())
def test_every_json_object_is_read_to_its_end(
    value: dict[str, object], indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    reader = JsonObject()
    for character in text:
        assert not reader.complete
        reader.feed(character)
    assert reader.complete
    assert reader.strings == {k: v for k, v in value.items() if isinstance(v, str)}
    arguments = f'{{"name": "add", "arguments": {text}}}'
    assert read(pieces_of(new_parser("generic"), arguments)).calls == (("add", text),)


@given(st.text(st.sampled_from('{}[]",:\\u0aeE+-.1 tfn'), max_size=12))
def test_an_object_that_is_read_to_its_end_is_valid_json(inner: str) -> None:
    reader, text = JsonObject(), "{" + inner
    try:
        for i, character in enumerate(text):
            reader.feed(character)
            if reader.complete:
                text = text[: i + 1]
                break
    except NotJson:
        return
    if reader.complete:
        assert isinstance(json.loads(text), dict)
