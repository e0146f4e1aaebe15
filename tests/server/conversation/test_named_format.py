"""Tests that tools are described in the format of calls that a model's file names."""

import json
from typing import Any

import pytest

from engine.parsing.selection import format_names, formats_of
from server.config.model_file import ParsersSection
from server.schemas.chat import ChatRequest
from server.schemas.checking import check_object
from tests.engine.parsing.readings import TOOLS, pieces_of, read
from tests.server.conftest import MakeApp, chat, client_of, entry
from tests.server.conversation.prompts import prompt_text
from tests.server.fake_engine import FakeEngines, load_fake_tokenizer

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": TOOLS["look_up"]}}
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "tools": [TOOL]}


@pytest.mark.parametrize("name", format_names("tools"))
def test_the_described_call_is_read_as_one(name: str) -> None:
    tokenizer = load_fake_tokenizer("fake", PLAIN)
    prompt = prompt_text(tokenizer, check_object(ChatRequest, BODY), name)
    described = prompt.partition("as a JSON object:\n")[2].removesuffix("<user>hi")
    call = described.replace("NAME", "look_up").replace("{...}", '{"key": "tea"}')
    before = ">>>" if name == "functionary_v32" else ""  # all prompts of this family end so
    found = read(pieces_of(formats_of(PLAIN, name).parser(TOOLS, before), call))
    assert [name for name, _ in found.calls] == ["look_up"], described
    assert json.loads(found.calls[0][1]) == {"key": "tea"}


@pytest.mark.parametrize("name", ["mistral", "granite"])
async def test_all_routes_use_the_format_of_the_models_file(
    make_app: MakeApp, engines: FakeEngines, name: str
) -> None:
    named = entry("main", chat_template=PLAIN, parsers=ParsersSection(tools=name))
    async with client_of(make_app(entries=[named])) as client:
        assert (await chat(client, **BODY)).status_code == 200
        prompt = list(engines.engine.requests[-1].prompt)
        text = (await client.post("/apply-template", json=BODY)).json()["prompt"]
        tokenized = (await client.post("/tokenize", json=BODY)).json()
        counted = (await client.post("/v1/chat/completions/input_tokens", json=BODY)).json()
    syntax = formats_of(PLAIN, name).tools.syntax
    assert syntax is not None and syntax.open + syntax.begin.partition("%s")[0] in text
    assert tokenized["tokens"] == prompt
    assert counted["input_tokens"] == len(prompt)


def test_a_named_format_needs_no_recognised_template() -> None:
    own = "{% for t in tools or [] %}{{ t.function.name }}!{% endfor %}" + PLAIN
    request = check_object(ChatRequest, BODY)
    tokenizer = load_fake_tokenizer("fake", own)
    assert prompt_text(tokenizer, request, "mistral") == "look_up!<user>hi"
    assert "NAME" in prompt_text(tokenizer, request, None)
