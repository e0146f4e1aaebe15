"""Tests of the scripted engine: each format's answers are read by the server as they were meant."""

import json
import urllib.request
from typing import Any

import pytest

from tests.clients.scripted.formats import FORMATS
from tests.clients.scripted.script import Call, Script, Step, Turn
from tests.clients.scripted.server import ScriptedServer

SCHEMA = {
    "type": "object",
    "properties": {"file_path": {"type": "string"}, "n": {"type": "integer"}},
    "required": ["file_path"],
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": name, "parameters": SCHEMA}}
    for name in ("read_file", "write_file")
]
WRITE = Call("write|write_file", {"(file_?)?path": 'a "b".txt', "n": 3})
SCRIPT = Script(
    Turn("Write a poem", Step("I write.", "Hm.", [WRITE]), Step("Written.", "Well.")),
    Turn("Thank you", Step("With pleasure.")),
)


def ask(server: ScriptedServer, model: str, messages: list[Any], **fields: Any) -> Any:
    body = {"model": model, "messages": messages, **fields}
    data = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.url}/chat/completions", data, headers)
    with urllib.request.urlopen(request, timeout=60) as answered:
        return json.load(answered)["choices"][0]


@pytest.mark.parametrize("name", FORMATS)
def test_a_script_is_followed_in_each_format(scripted: ScriptedServer, name: str) -> None:
    model = scripted.play(name, SCRIPT)
    messages: list[Any] = [{"role": "user", "content": "Write a poem."}]
    first = ask(scripted, model, messages, tools=TOOLS)
    (call,) = first["message"]["tool_calls"]
    assert call["function"]["name"] == "write_file"
    assert json.loads(call["function"]["arguments"]) == {"file_path": 'a "b".txt', "n": 3}
    assert first["finish_reason"] == "tool_calls"
    thinks = FORMATS[name].thought is not None
    assert (first["message"].get("reasoning_content") or "") == ("Hm." if thinks else "")
    assert (first["message"]["content"] or "").strip() in ("I write.", "")

    result = {"role": "tool", "tool_call_id": call["id"], "content": "done"}
    messages += [first["message"], result]
    second = ask(scripted, model, messages, tools=TOOLS)
    assert second["message"]["content"] == "Written."

    messages += [second["message"], {"role": "user", "content": "Thank you."}]
    assert ask(scripted, model, messages, tools=TOOLS)["message"]["content"] == "With pleasure."


def test_requests_without_the_tools_or_the_question_are_answered_otherwise(
    scripted: ScriptedServer,
) -> None:
    model = scripted.play("hermes", SCRIPT)
    scripted.forget()
    for text in ("Name this: Write a poem.", "Hello."):
        answer = ask(scripted, model, [{"role": "user", "content": text}])
        assert answer["message"]["content"] == "A title"
    assert [json.loads(r.body)["model"] for r in scripted.requests()] == [model, model]
    assert scripted.failed() == []
