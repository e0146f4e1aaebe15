"""Every format reads what its models write: whole, cut anywhere, broken off, and nearly right."""

import json
import re

import pytest

from engine.parsing.parser import Parser
from engine.parsing.selection import Formats, known_formats
from tests.engine.parsing.readings import TOOLS, Read, pieces_of, read
from tests.engine.parsing.samples import ARGUMENTS, KEY, SAMPLES, Sample

ALL = [pytest.param(name, sample, id=name) for name, sample in SAMPLES.items()]
MARKUP = re.compile(r"[<\[{|｜]\S{2}|>>>|look_up")


def new_parser(name: str, before: str | None = None) -> Parser:
    known = known_formats()
    reads_both = "reasoning" in known[name].reads
    formats = Formats(known[name], known[name] if reads_both else known["think"])
    default = ">>>" if name == "functionary_v32" else ""
    return formats.parser(TOOLS, default if before is None else before)


def reading(name: str, text: str) -> Read:
    pieces = pieces_of(new_parser(name), text)
    assert sum(piece.width for piece in pieces) == len(text)
    return read(pieces)


def test_every_format_of_calls_has_samples() -> None:
    assert {n for n, known in known_formats().items() if "tools" in known.reads} == set(SAMPLES)


@pytest.mark.parametrize(("name", "sample"), ALL)
def test_calls_are_read(name: str, sample: Sample) -> None:
    both = reading(name, sample.two)
    assert (both.content, both.reasoning) == ("", "")
    assert [(called, json.loads(text)) for called, text in both.calls] == [
        ("look_up", ARGUMENTS),
        ("now", {}),
    ]
    assert reading(name, sample.one) == Read("", (("look_up", KEY),))


@pytest.mark.parametrize(("name", "sample"), ALL)
def test_a_name_that_is_no_tool_is_passed_on(name: str, sample: Sample) -> None:
    assert reading(name, sample.unknown) == Read("", (("unknown", KEY),))


@pytest.mark.parametrize(("name", "sample"), ALL)
def test_text_and_reasoning_before_a_call(name: str, sample: Sample) -> None:
    assert reading(name, sample.text).content == "Sure."
    if sample.lead:
        assert reading(name, sample.lead + sample.one) == Read("Sure.", (("look_up", KEY),))
    if sample.thought:
        expected = Read("", (("look_up", KEY),), "Hm.")
        assert reading(name, sample.thought + sample.one) == expected


@pytest.mark.parametrize(("name", "sample"), ALL)
def test_an_answer_without_tools_has_no_calls(name: str, sample: Sample) -> None:
    known = known_formats()[name]
    formats = Formats(known, known if "reasoning" in known.reads else None)
    before = ">>>" if name == "functionary_v32" else ""
    for text in (sample.two, sample.one):
        assert not read(pieces_of(formats.parser({}, before), text)).calls
    if formats.reasoning is not None:
        assert read(pieces_of(formats.parser({}, before), sample.text)).content == "Sure."


@pytest.mark.parametrize(("name", "sample"), ALL)
def test_no_way_of_cutting_matters(name: str, sample: Sample) -> None:
    for text in (sample.two, sample.lead + sample.one, sample.thought + sample.one, sample.text):
        whole = pieces_of(new_parser(name), text)
        assert pieces_of(new_parser(name), *text) == whole
        for size in (2, 7):
            parts = [text[i : i + size] for i in range(0, len(text), size)]
            assert pieces_of(new_parser(name), *parts) == whole


@pytest.mark.parametrize(("name", "sample"), ALL)
def test_an_answer_that_breaks_off_shows_no_markup(name: str, sample: Sample) -> None:
    texts = [(sample.two, 7), (sample.thought + sample.one, 2), (sample.lead + sample.one, 5)]
    for text, step in (*texts, (sample.text, 1)):
        for end in range(0, len(text), step):
            got = reading(name, text[:end])
            assert not MARKUP.search(got.content), (text[:end], got)
            for _, arguments in got.calls:
                assert isinstance(json.loads(arguments), dict), (text[:end], got)


@pytest.mark.parametrize(("name", "sample"), ALL)
def test_a_call_ends_a_thought_that_is_not_closed(name: str, sample: Sample) -> None:
    if not sample.thought or not sample.lead or name in ("harmony", "muse"):
        return  # calls without tags begin an answer, and messages end where the next one begins
    opened = sample.thought[: sample.thought.index("Hm.") + 3]
    assert reading(name, f"{opened}\n{sample.one}") == Read("", (("look_up", KEY),), "Hm.")
    closed = sample.thought.removeprefix(opened)
    quoted = reading(name, f"{opened}\n{sample.one}{closed}{sample.text}")
    if name not in ("apriel", "granite"):  # their text has a thought of its own
        assert quoted.calls == ()


@pytest.mark.parametrize(
    ("name", "begin", "end"),
    [
        ("qwen3_coder", "<parameter=o>", "</parameter>"),
        ("minimax_m3", "]<]minimax[>[<o>", "]<]minimax[>[</o>"),
    ],
)
def test_the_end_of_a_value_inside_its_strings_belongs_to_them(
    name: str, begin: str, end: str
) -> None:
    value = {"y": f'a{end} "{end}b', "z": ["c"]}
    sample = SAMPLES[name].one.replace("key>", "o>").replace("=key", "=o")
    text = sample.replace("tea", json.dumps(value))
    assert begin in text
    assert [json.loads(call[1]) for call in reading(name, text).calls] == [{"o": value}]
