"""Tests of the example of a tool-call format in the docstring of `engine/parsing/format.py`."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.parsing import format as example, formats
from engine.parsing.parser import merge
from engine.parsing.selection import format_names, formats_of, known_formats
from server.config.registry import ModelEntry, read_entry
from tests.examples import added, example_in, write_files
from tests.server.conftest import MakeApp, chat, client_of, entry, events
from tests.server.fake_engine import EOS, TEMPLATE, FakeEngines, ids_of

CALLS = (("get_time", '{"city": "Paris"}'), ("add", '{"a": [1, "]"]}'))
ANSWER = (
    'Sure. <|calls|>[{"name": "get_time", "arguments": {"city": "Paris"}}, '
    '{"name": "add", "arguments": {"a": [1, "]"]}}]'
)
TAGGED = TEMPLATE + "{# answers: <|calls|> #}"
TOOLS = [{"type": "function", "function": {"name": name}} for name, _ in CALLS]


@pytest.fixture(autouse=True)
def marked(tmp_path: Path) -> Iterator[None]:
    """Add the file of the example to the formats while a test runs."""
    known_formats.cache_clear()
    write_files(tmp_path, {"engine/parsing/formats/marked.py": example_in(example.__doc__)})
    with added(tmp_path, formats):
        yield
    known_formats.cache_clear()


def model_file(folder: Path, text: str) -> ModelEntry:
    write_files(folder, {"models/it.yaml": text})
    return read_entry(folder / "models" / "it.yaml", "it")


def test_the_format_has_the_name_of_its_file() -> None:
    assert "marked" in format_names("tools")
    assert "marked" not in format_names("reasoning")


def test_the_format_is_recognised_by_a_chat_template() -> None:
    assert formats_of(TAGGED).tools is known_formats()["marked"]
    assert formats_of(TEMPLATE).tools is not known_formats()["marked"]


def test_a_model_file_can_name_the_format(tmp_path: Path) -> None:
    named = model_file(tmp_path, "target: {source: a/b}\nparsers: {tools: marked}\n")
    assert formats_of(TEMPLATE, named.parsers.tools).tools is known_formats()["marked"]


@pytest.mark.parametrize("size", range(1, len(ANSWER) + 1))
def test_the_parser_reads_an_answer_in_pieces_of_any_size(size: int) -> None:
    parser = formats_of(TAGGED).parser({name: {} for name, _ in CALLS}, before="")
    pieces = [p for i in range(0, len(ANSWER), size) for p in parser.feed(ANSWER[i : i + size])]
    found = [(p.kind, p.text) for p in merge([*pieces, *parser.finish()]) if p.kind != "markup"]
    calls = [[("call", name), ("arguments", arguments)] for name, arguments in CALLS]
    assert found == [("content", "Sure."), *calls[0], *calls[1]]


def test_the_parser_reads_calls_in_the_syntax_that_a_grammar_forces() -> None:
    form = known_formats()["marked"]
    assert form.syntax is not None
    for name, arguments in CALLS:
        parser = form.parser({name: {}}, "")
        syntax = form.syntax
        call = syntax.begin.replace("%s", name) + arguments + syntax.end
        pieces = parser.feed(syntax.open + call + syntax.close)
        found = [(p.kind, p.text) for p in merge([*pieces, *parser.finish()])]
        assert [piece for piece in found if piece[0] != "markup"] == [
            ("call", name),
            ("arguments", arguments),
        ]


@pytest.mark.parametrize("burst", [1, 2, 7, len(ANSWER)])
async def test_a_served_answer_has_the_calls_of_the_format(
    make_app: MakeApp, engines: FakeEngines, burst: int
) -> None:
    engines.script.burst = burst
    engines.script.answers = lambda _choice: (*ids_of(ANSWER), EOS)
    app = make_app(entries=[entry("main", chat_template=TAGGED)])
    async with client_of(app) as client:
        whole, streamed = await asyncio.gather(
            chat(client, tools=TOOLS), chat(client, tools=TOOLS, stream=True)
        )
    message = whole.json()["choices"][0]["message"]
    assert message["content"] == "Sure."
    functions = [call["function"] for call in message["tool_calls"]]
    assert tuple((f["name"], f["arguments"]) for f in functions) == CALLS
    *chunks, done = events(streamed.text)
    assert done == "[DONE]"
    deltas = [d for c in chunks for d in c["choices"][0]["delta"].get("tool_calls", [])]
    for index, (_, arguments) in enumerate(CALLS):
        pieces = [d["function"]["arguments"] for d in deltas if d["index"] == index]
        assert "".join(pieces) == arguments
