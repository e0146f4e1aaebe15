"""The texts that the prompt of an accepted body must have, found by the rules of each API.

Every text of the conversation gets a mark of its own, so that its loss is seen even if the text
itself occurs elsewhere.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.fuzz.requests.clients import COUNT, MESSAGES, TEXT

Place = tuple[Any, Any, str]  # a container, a key of it, and the path of its value


@dataclass
class Expected:
    """The texts that the prompt must have, and the names that the header must have, by path."""

    in_prompt: dict[str, str] = field(default_factory=dict)
    in_header: dict[str, str] = field(default_factory=dict)

    def mark(self, inside: Any, key: Any, path: str) -> None:
        """Append a mark to a text that is not blank, and expect it in the prompt."""
        text = inside.get(key) if isinstance(inside, dict) else inside[key]
        if isinstance(text, str) and text.strip():
            mark = f"Qz{len(self.in_prompt):04}"
            inside[key] = f"{text} {mark}"
            self.in_prompt[f"{path}.{key}"] = mark

    def expect(self, name: Any, path: str) -> None:
        """Expect a name in the prompt, which is no text to be marked."""
        if isinstance(name, str) and name.strip():
            self.in_prompt[f"{path}.name"] = name.strip()

    def leave_out(self, part: dict[str, Any], path: str) -> None:
        """Expect a part, which the model is not given, in the header."""
        kind = str(part.get("type"))
        printable = "".join(c if " " <= c <= "~" else "?" for c in kind)
        self.in_header[path] = printable.strip()[:40]

    def fault(self, prompt: str | None, header: str) -> str:
        """Return which text the prompt lacks, or which name the header lacks; "" if neither.

        Args:
            prompt: the prompt; None if it cannot be seen.
            header: the names of what is left out.
        """
        for path, name in self.in_header.items():
            is_named = name in header or f"{path.rpartition('.')[0]} " in header
            if not is_named and not header.endswith(" more"):
                return f"{path} ({name}) is not in the header {header[:200]!r}"
        for path, text in self.in_prompt.items():
            spelled = (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])
            if prompt is not None and not any(spelling in prompt for spelling in spelled):
                return f"{path} ({text[:60]!r}) is not in the prompt {prompt[:1500]!r}"
        return ""


def expected_texts(path: str, body: Any) -> Expected:
    """Mark the texts of a body, and return what its prompt must have if it is accepted."""
    found = Expected()
    if not isinstance(body, dict):
        return found
    if path == TEXT:
        prompts = body.get("prompt")
        if isinstance(prompts, str):
            found.mark(body, "prompt", "")
        elif isinstance(prompts, list):
            for index in range(len(prompts)):
                found.mark(prompts, index, "prompt")
    elif path in (MESSAGES, COUNT):
        _mark_message_body(found, body)
    elif path.startswith("/v1/responses"):
        _mark_response_body(found, body)
    elif path == "/v1/tokenize" and "messages" not in body:
        found.mark(body, "content" if body.get("content") is not None else "prompt", "")
    elif path != "/v1/detokenize":
        _mark_chat(found, body)
    return found


def _objects(container: Any, key: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    value = container.get(key) if isinstance(container, dict) else None
    for index, element in enumerate(value if isinstance(value, list) else ()):
        if isinstance(element, dict):
            yield f"{path}{key}[{index}]", element


# -- chat


def _mark_chat(found: Expected, body: dict[str, Any]) -> None:
    for path, message in _objects(body, "messages", ""):
        role = message.get("role")
        found.mark(message, "content", path)
        for place, part in _objects(message, "content", f"{path}."):
            if part.get("type") == "text":
                found.mark(part, "text", place)
            elif role == "assistant":
                found.mark(part, "refusal", place)
            elif role == "tool":
                found.leave_out(part, place)
        if role in ("user", "system", "developer") and message.get("name") != role:
            found.expect(message.get("name"), path)
        if role == "assistant":
            found.mark(message, "refusal", path)
            for place, call in _objects(message, "tool_calls", f"{path}."):
                if call.get("type") == "custom":
                    _mark_call(found, call.get("custom"), place)
                else:
                    _mark_call(found, call.get("function"), place)
            _mark_call(found, message.get("function_call"), path)
    choice = body.get("tool_choice")
    if choice is None:
        choice = body.get("function_call")
    _mark_tools(found, body, _chosen(choice), "function")
    for path, function in _objects(body, "functions", ""):
        _mark_tool(found, function, path, _chosen(choice))


def _mark_call(found: Expected, function: Any, path: str) -> None:
    if not isinstance(function, dict):
        return
    found.expect(function.get("name"), path)
    found.mark(function, "input", path)
    arguments = function.get("arguments")
    if isinstance(arguments, dict):
        _mark_values(found, arguments, path)
    elif isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            return
        if isinstance(parsed, dict):
            _mark_values(found, parsed, path)
            function["arguments"] = json.dumps(parsed)


def _mark_values(found: Expected, value: Any, path: str) -> None:
    """Mark all texts inside of a call's arguments."""
    for key in [*value] if isinstance(value, dict) else range(len(value)):
        if isinstance(value[key], dict | list):
            _mark_values(found, value[key], f"{path}.{key}")
        else:
            found.mark(value, key, path)


def _chosen(choice: Any) -> Callable[[str], bool]:
    """Return which tools a choice leaves in the prompt, by name."""
    if choice == "none" or (isinstance(choice, dict) and choice.get("type") == "none"):
        return lambda name: False
    if not isinstance(choice, dict) or choice.get("type") in ("auto", "any"):
        return lambda name: True
    text = json.dumps(choice)
    return lambda name: json.dumps(name) in text


def _mark_tools(
    found: Expected, body: dict[str, Any], is_chosen: Callable[[str], bool], inner: str | None
) -> None:
    """Mark the tools of a body.

    Args:
        inner: the key of a function in its tool, if it is not the tool itself.
    """
    for path, tool in _objects(body, "tools", ""):
        kind = tool.get("type")
        if kind == "namespace":
            _mark_tools(found, tool, is_chosen, inner)
        elif kind in ("function", "custom", None):
            function = tool.get(kind or "function") if inner else tool
            _mark_tool(found, function, path, is_chosen)
        else:
            found.leave_out(tool, path)


def _mark_tool(found: Expected, function: Any, path: str, is_chosen: Callable[[str], bool]) -> None:
    if isinstance(function, dict) and is_chosen(str(function.get("name"))):
        found.expect(function.get("name"), path)
        found.mark(function, "description", path)


# -- the other APIs


def _mark_message_body(found: Expected, body: dict[str, Any]) -> None:
    found.mark(body, "system", "")
    for path, block in _objects(body, "system", ""):
        found.mark(block, "text", path)
    for path, turn in _objects(body, "messages", ""):
        found.mark(turn, "content", path)
        for place, block in _objects(turn, "content", f"{path}."):
            match block.get("type"):
                case "text":
                    found.mark(block, "text", place)
                case "tool_use":
                    found.expect(block.get("name"), place)
                    if isinstance(block.get("input"), dict):
                        _mark_values(found, block["input"], place)
                case "tool_result":
                    found.mark(block, "content", place)
                    _mark_result(found, block, "content", place)
                case "thinking" | "redacted_thinking":
                    pass
                case _:
                    found.leave_out(block, place)
    _mark_tools(found, body, _chosen(body.get("tool_choice")), None)


def _mark_result(found: Expected, inside: dict[str, Any], key: str, path: str) -> None:
    for place, part in _objects(inside, key, f"{path}."):
        if isinstance(part.get("text"), str):
            found.mark(part, "text", place)
        elif "refusal" in part:
            found.mark(part, "refusal", place)
        else:
            found.leave_out(part, place)


def _mark_response_body(found: Expected, body: dict[str, Any]) -> None:
    found.mark(body, "instructions", "")
    found.mark(body, "input", "")
    for path, item in _objects(body, "input", ""):
        match item.get("type"):
            case "message" | None:
                found.mark(item, "content", path)
                _mark_result(found, item, "content", path)
            case "function_call":
                _mark_call(found, item, path)
            case "custom_tool_call":
                found.expect(item.get("name"), path)
                found.mark(item, "input", path)
            case "function_call_output" | "custom_tool_call_output":
                found.mark(item, "output", path)
                _mark_result(found, item, "output", path)
            case "reasoning":
                pass
            case _ if isinstance(item.get("output"), str) and item["output"].strip():
                found.mark(item, "output", path)
            case _:
                found.leave_out(item, path)
    _mark_tools(found, body, _chosen(body.get("tool_choice")), None)
