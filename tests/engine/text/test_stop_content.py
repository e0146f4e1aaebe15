"""Tests of stop strings in answers that are parsed: they count in content only."""

import random
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings, strategies as st

from engine.errors import PassFailed
from engine.messages import AnswerFormat, SamplingParams
from engine.parsing.parser import Parser, PlainText, clip, merge
from engine.parsing.selection import NO_REASONING, formats_of, known_formats
from engine.text.detokenize import Detokenizer, TokenBytes
from engine.text.stop import StopRules
from engine.text.stop_strings import StopStrings
from tests.engine.parsing.readings import TOOLS, Read, read
from tests.engine.parsing.samples import KEY, SAMPLES
from tests.engine.small_tokenizers import SPECIAL, byte_level, id_of

EOS = id_of(byte_level(), SPECIAL[0])
BYTES = TokenBytes(byte_level())
ID_OF = {spelled: token for token, spelled in enumerate(BYTES) if len(spelled) == 1}
CALL = f'<tool_call>\n{{"name": "look_up", "arguments": {KEY}}}\n</tool_call>'
XML = (
    "<tool_call>\n<function=look_up>\n<parameter=key>\ntea\n</parameter>\n</function>\n</tool_call>"
)
ONE = (("look_up", KEY),)
FINAL = "<|channel|>final<|message|>"
THOUGHT = "<|channel|>analysis<|message|>a\n\nb<|end|><|start|>assistant"


def answer_format(
    calls: str, reasoning: str | None = None, before: str = "", tools: Any = TOOLS
) -> AnswerFormat:
    """Return a format; its reasoning is read by the format of calls, or else by `think`."""
    own = calls if "reasoning" in known_formats()[calls].reads else "think"
    return AnswerFormat(calls, reasoning or own, tools, before)


def parser_of(answer: AnswerFormat) -> Parser:
    return formats_of("", answer.calls, answer.reasoning).parser(answer.tools, answer.before)


class Ended(NamedTuple):
    """An answer as a client sees it, why it ended, and the number of its tokens."""

    read: Read
    finish: str | None
    reason: str | int | None
    num_tokens: int


def run(answer: AnswerFormat, text: str, **params: Any) -> Ended:
    """Run the rules over the tokens of `text`, one for each byte; parse what they show."""
    rules = StopRules(
        SamplingParams(**params),
        eos_token_ids=[EOS],
        max_tokens=params.get("max_tokens", 10_000),
        detokenizer=Detokenizer(BYTES),
        answer_format=answer,
    )
    parser = parser_of(answer)
    pieces, shown = [], 0
    for token in [*(ID_OF[bytes([byte])] for byte in text.encode()), EOS]:
        result = rules.push(token)
        pieces += parser.feed(result.text + result.lookahead)
        shown += len(result.text)
        if result.finish is not None:
            break
    pieces += parser.finish()
    seen = read(clip(merge(pieces), shown) if result.lookahead else pieces)
    return Ended(seen, result.finish, result.stop_reason, rules.num_tokens)


HERMES, CODER, HARMONY = (answer_format(name) for name in ("hermes", "qwen3_coder", "harmony"))
GENERIC = answer_format("generic", NO_REASONING)
PLAIN = answer_format("hermes", tools={})
OPENED = answer_format("hermes", before="<|im_start|>assistant\n<think>\n", tools={})
CLOSED = answer_format("hermes", before="<think>\nHm.\n</think>\n\nSo", tools={})
# (format, text, stop strings, read, stop string); the answer ends at the mark "¦", or at its end
CASES: list[tuple[AnswerFormat, str, list[str], Read, str | None]] = [
    # reasoning contains no stop string, nor do the tags around it
    (PLAIN, "<think>\na\n\nb\n</think>\n\nc\n\n¦d", ["\n\n"], Read("c", (), "a\n\nb"), "\n\n"),
    (OPENED, "a\n\nb\n</think>\n\nc\n\n¦d", ["\n\n"], Read("c", (), "a\n\nb"), "\n\n"),
    (OPENED, "a\n\nb", ["\n\n"], Read("", (), "a\n\nb"), None),
    (OPENED, "a</think>b", ["</think>", "a"], Read("b", (), "a"), None),
    (CLOSED, " it\n\n¦is", ["\n\n"], Read(" it"), "\n\n"),
    (HARMONY, f"{THOUGHT}{FINAL}c\n\n¦d", ["\n\n"], Read("c", (), "a\n\nb"), "\n\n"),
    (HARMONY, f"{THOUGHT}{FINAL}final¦", ["final"], Read("", (), "a\n\nb"), "final"),
    # calls contain none, whatever their syntax
    (HERMES, f"Sure.\n\n{CALL}", ["\n\n", "{", '"key"'], Read("Sure.", ONE), None),
    (CODER, f"Sure.\n{XML}", ["\n", "tea", "<"], Read("Sure.", ONE), None),
    (HERMES, f"{CALL}\n{CALL}", ["</tool_call>"], Read("", ONE * 2), None),
    (HERMES, f"{CALL}\nSo tea¦.", ["tea"], Read("\nSo ", ONE), "tea"),
    # without tools, their markup is content
    (PLAIN, f"Sure.\n<tool_call>¦{CALL}", ["<tool_call>"], Read("Sure.\n"), "<tool_call>"),
    # what may become markup counts once it is certain that it does not
    (HERMES, "a\n\nb¦", ["\n\n"], Read("a"), "\n\n"),
    (HERMES, "a\n\n", ["\n\n"], Read("a"), "\n\n"),
    (HERMES, "a <tool_b¦", ["<tool"], Read("a "), "<tool"),
    (HERMES, "a <tool_b>¦ c", ["l_b>"], Read("a <too"), "l_b>"),
    (HERMES, "a <tool_", ["<tool"], Read("a"), None),
    (GENERIC, '{"name": "x", "z"¦: 1} END', ['"z"'], Read('{"name": "x", '), '"z"'),
    (GENERIC, '{"name": "x" END¦', [" END"], Read('{"name": "x"'), " END"),
    # each stretch of content is searched on its own
    (HERMES, f"a{CALL}b¦", ["ab", "b"], Read("a", ONE), "b"),
    (HERMES, f"a{CALL}b", ["ab"], Read("ab", ONE), None),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].calls} {case[1][:20]!r}")
def test_a_stop_string_counts_in_content_only(case: Any) -> None:
    answer, marked, stops, expected, stop = case
    text, mark, rest = marked.partition("¦")
    num_tokens = len(text.encode()) + (not mark)  # one more that ends the answer
    assert run(answer, text + rest, stop=tuple(stops)) == (expected, "stop", stop, num_tokens)


def test_the_last_token_of_the_limit_makes_held_back_text_certain() -> None:
    ended = run(HERMES, "a\n\nb", stop=("\n\n",), max_tokens=3)
    assert ended == (Read("a"), "stop", "\n\n", 3)
    assert run(HERMES, "a\n<to", stop=("\n\n",), max_tokens=5) == (Read("a"), "length", None, 5)


def test_a_stop_string_within_min_tokens_does_not_count_when_it_is_certain_later() -> None:
    assert run(HERMES, "a\n\nb\n\nc", stop=("\n\n",), min_tokens=3)[:3] == (
        Read("a\n\nb"),
        "stop",
        "\n\n",
    )
    assert run(HERMES, "a\n\nb", stop=("\n\n",), min_tokens=2).read == Read("a")


def test_stop_tokens_count_in_reasoning_too() -> None:
    ended = run(OPENED, "ab", stop=("x",), stop_token_ids=(ID_OF[b"b"],))
    assert ended == (Read("", (), "a"), "stop", ID_OF[b"b"], 2)


def test_a_token_may_hold_the_end_of_a_thought_and_a_stop_string() -> None:
    scan = StopStrings(["END"], lambda: parser_of(OPENED)).scan
    scanned = scan("END</think>\n\na END b", is_counted=True, is_last=False)
    assert scanned == ("END</think>\n\na ", "END", "END b")


def test_text_is_shown_as_soon_as_its_parser_is_certain() -> None:
    scan = StopStrings(["x"], lambda: parser_of(HERMES)).scan
    shown = {
        "a": "a",
        "<": "",
        "b": "<b",
        "\n": "",
        "<tool_call>": "",
        '{"name": "now", "arguments": {': "",
        '"key"': '\n<tool_call>{"name": "now", "arguments": {"key"',
        ": 1": ": 1",
    }
    for text, expected in shown.items():
        assert scan(text, is_counted=True, is_last=False).shown == expected


class Broken(PlainText):
    def feed(self, text: str) -> Any:
        raise KeyError(text)


def _no_parser() -> Parser:
    raise TypeError("no parser")


@pytest.mark.parametrize("new_parser", [Broken, _no_parser])
def test_a_parser_that_fails_is_an_error_of_the_request(new_parser: Any) -> None:
    with pytest.raises(PassFailed, match=r"without 'stop'") as caught:
        StopStrings(["x"], new_parser).scan("a", is_counted=True, is_last=False)
    assert caught.value.code == "answer_unreadable"
    assert StopStrings([], new_parser).scan("a", is_counted=True, is_last=False).shown == "a"


def expected_of(answer: AnswerFormat, text: str, stops: list[str]) -> tuple[Read, str | None]:
    """Return what a client sees of `text` up to the first stop string in a stretch of content."""
    parser = parser_of(answer)
    pieces = merge([*parser.feed(text), *parser.finish()])
    for index, piece in enumerate(pieces):
        found = [
            (start + len(stop), -len(stop), stop)
            for stop in stops
            if piece.kind == "content" and (start := piece.text.find(stop)) >= 0
        ]
        if found:
            end, _, stop = min(found)
            shown = piece._replace(text=piece.text[: end - len(stop)])
            return read([*pieces[:index], shown]), stop
    return read(pieces), None


@st.composite
def answers(draw: st.DrawFn) -> tuple[AnswerFormat, str, list[str], list[int]]:
    """Draw a format, an answer of several of its samples, stop strings in it, and cuts."""
    name = draw(st.sampled_from(sorted(SAMPLES)))
    sample = SAMPLES[name]
    begin = draw(st.sampled_from(["", sample.lead, sample.thought]))
    broken = sample.one[: draw(st.integers(1, 20))] + " b\n"
    parts = [sample.text, sample.one, sample.two, broken, "\n\nMore [x] <to ", '{"name": 3} a\n']
    text = begin + "".join(draw(st.lists(st.sampled_from(parts), min_size=1, max_size=3)))
    text = text[: draw(st.integers(1, len(text)))]
    places = st.tuples(st.integers(0, len(text) - 1), st.integers(1, 6))
    stops = [text[start : start + size] for start, size in draw(st.lists(places, max_size=3))]
    stops += draw(st.lists(st.sampled_from(["\n", "\n\n", "e.", "Mo", " b", "{", "ab"])))
    cuts = draw(st.lists(st.integers(0, len(text)), max_size=12))
    before = ">>>" if name == "functionary_v32" else ""
    tools = draw(st.sampled_from([TOOLS, TOOLS, {}]))
    return answer_format(name, before=before, tools=tools), text, stops, sorted(cuts)


@settings(max_examples=600)
@given(answers())
def test_the_content_is_that_of_the_whole_text_up_to_the_stop_string(
    drawn: tuple[AnswerFormat, str, list[str], list[int]],
) -> None:
    answer, text, stops, cuts = drawn
    search, parser = StopStrings(stops, lambda: parser_of(answer)), parser_of(answer)
    pieces, shown = [], 0
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        scanned = search.scan(text[start:end], is_counted=True, is_last=end == len(text))
        pieces += parser.feed(scanned.shown + scanned.lookahead)
        shown += len(scanned.shown)
        assert text.startswith(scanned.shown, shown - len(scanned.shown))
        if scanned.stop is not None or end == len(text):
            break
    pieces = merge([*pieces, *parser.finish()])
    if scanned.lookahead:
        pieces = clip(pieces, shown)
    assert (read(pieces), scanned.stop) == expected_of(answer, text, stops)


def test_the_names_of_formats_give_the_same_formats() -> None:
    rng = random.Random(1)
    for name, known in known_formats().items():
        other = rng.choice([NO_REASONING, "think"])
        if "tools" in known.reads:
            formats = formats_of("", name, other)
            assert formats.names == (name, other)
            assert formats_of("", *formats.names) == formats
