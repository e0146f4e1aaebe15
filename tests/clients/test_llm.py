"""Tests with llm: a chat, a stream, a tool and a schema, over both of its APIs."""

import json
from pathlib import Path

import pytest

from tests.clients.documented import TASK, setup_of
from tests.clients.program import Program, installed
from tests.clients.scripted.script import Call, Script, Step, Turn
from tests.clients.scripted.server import ScriptedServer

POEM = "Roses are red, é 漢."
DOG = {"name": "Rex", "age": 4}
TOOL = """--td --functions '
def clock_in(city: str) -> str:
    "The time in a city"
    return "14:05 in " + city.upper()
'"""
SCRIPT = Script(
    Turn(TASK, Step(POEM, "A poem has lines.")),
    Turn("time in Paris", Step(calls=[Call("clock_in", {"city": "Paris"})]), Step("It is 14:05.")),
    Turn("Invent a dog", Step(json.dumps(DOG))),
    Turn("Once more", Step("Violets are blue.")),
)
PATHS = {"chat": "/v1/chat/completions", "responses": "/v1/responses"}


def llm(server: ScriptedServer, model: str, home: Path, api: str) -> Program:
    """Return llm, set up as its section of docs/clients.md says."""
    setup = setup_of("llm").of(server.origin, model)
    if api == "responses":
        ((path, text),) = setup.files.items()
        setup.files[path] = text + "  responses: true\n"
    return Program(installed("llm", "llm"), setup, home)


@pytest.mark.parametrize(
    ("api", "form"),
    [("chat", "hermes"), ("chat", "qwen3_coder"), ("chat", "harmony"), ("responses", "harmony")],
)
def test_a_chat_a_tool_and_a_schema(
    scripted: ScriptedServer, tmp_path: Path, api: str, form: str
) -> None:
    program = llm(scripted, scripted.play(form, SCRIPT), tmp_path, api)
    for option in ("", "--no-stream", "-s 'Be brief' -o temperature 0.5"):
        assert POEM in program.run(more=option)
    assert "Violets are blue." in program.run("Once more", "-c")
    printed = program.run("What is the time in Paris?", TOOL)
    assert "It is 14:05." in printed and "14:05 in PARIS" in printed
    assert json.loads(program.run("Invent a dog", "--schema 'name, age int'")) == DOG

    asked = [r for r in scripted.requests() if r.method == "POST"]
    assert len(asked) == 7 and {r.path for r in asked} == {PATHS[api]}
    assert scripted.failed() == []
    assert {r.ignored for r in asked} == {""}


@pytest.mark.parametrize("api", PATHS)
def test_the_demo_is_asked(scripted: ScriptedServer, tmp_path: Path, api: str) -> None:
    program = llm(scripted, "demo", tmp_path, api)
    assert "time" in program.run("Tell me a story.", "-o temperature 0 -o max_tokens 40")
    schema = "--schema 'name, age int' -o max_tokens 60"
    assert set(json.loads(program.run("Invent a dog", schema))) == {"name", "age"}
    assert scripted.failed() == []
