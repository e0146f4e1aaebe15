"""The choice of an answer: which step of a script follows a prompt, written in a model's format."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tests.clients.scripted.formats import ModelFormat
from tests.clients.scripted.script import Call, Script, Step

Tools = Mapping[str, Mapping[str, Any]]  # the properties of the schema of each tool, by its name

TOOL = re.compile(r'\{"type": ?"function", ?"function":')


def answer(script: Script, form: ModelFormat, prompt: str) -> str:
    """Return the answer to a prompt, with the mark of its end."""
    step = chosen(script, form, prompt)
    tools = tools_in(prompt)
    if step.calls and not tools:
        step = script.otherwise
    try:
        calls = resolve(step.calls, tools)
    except LookupError as error:
        return form.write(f"The script cannot go on: {error}", "", [])
    return form.write(step.text, step.thought, calls)


def chosen(script: Script, form: ModelFormat, prompt: str) -> Step:
    """Return the step that a prompt has reached."""
    asked = [(prompt.rfind(turn.after), turn) for turn in script.turns if turn.after in prompt]
    if not asked:
        return script.otherwise
    place, turn = max(asked, key=lambda found: found[0])
    results = prompt.count(form.result, place)
    for step in turn.steps:
        if not step.calls or results < len(step.calls):
            return step
        results -= len(step.calls)
    return turn.steps[-1]


def tools_in(prompt: str) -> Tools:
    """Return the tools that a prompt offers."""
    decoder = json.JSONDecoder()
    found: dict[str, Mapping[str, Any]] = {}
    for start in TOOL.finditer(prompt):
        tool, _ = decoder.raw_decode(prompt, start.start())
        function = tool["function"]
        found[function["name"]] = function.get("parameters", {}).get("properties", {})
    return found


def resolve(calls: Sequence[Call], tools: Tools) -> list[tuple[str, dict[str, Any]]]:
    """Return the names and arguments of calls. Raise LookupError if a tool or key is missing."""
    return [(name, arguments) for call in calls for name, arguments in [_resolve(call, tools)]]


def _resolve(call: Call, tools: Tools) -> tuple[str, dict[str, Any]]:
    name = _first(call.tool, tools)
    return name, {_first(key, tools[name]): value for key, value in call.arguments.items()}


def _first(pattern: str, names: Mapping[str, Any]) -> str:
    for name in names:
        if re.fullmatch(pattern, name):
            return name
    raise LookupError(f"none of {', '.join(names)} matches {pattern}")
