"""The trial of a chat template: it renders sample conversations to find unsupported features."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from server.conversation.features import (
    Feature,
    Message,
    Render,
    Support,
    TemplateRefusal,
    TemplateSupport,
    Tool,
    ToolPlace,
)
from server.conversation.places import RenderWith, placed
from server.conversation.presence import is_whole, marked

_KEY, _VALUE = "probe_key", "ProbeValue"
_DESCRIPTION = "ProbeDescription"
_PROPERTY = {"type": "string", "description": _DESCRIPTION}
_SCHEMA = {"type": "object", "properties": {_KEY: _PROPERTY}, "required": [_KEY]}
_FUNCTION = {"name": "probe_tool", "description": _DESCRIPTION, "parameters": _SCHEMA}
_TOOLS: list[Tool] = [{"type": "function", "function": _FUNCTION}]
_BARE_SCHEMA = {"type": "object", "properties": {_KEY: {}}}
_BARE_TOOLS: tuple[Tool, ...] = tuple(
    {"type": "function", "function": {"name": "probe_tool"} | function}
    for function in (
        {"parameters": _SCHEMA},
        {"description": _DESCRIPTION, "parameters": _BARE_SCHEMA},
        {"description": _DESCRIPTION, "parameters": {"type": "object"}},
    )
)

# The conversations that show whether a template supports a feature, with one letter for each
# message (see `_unmarked`).
_SHAPES: Mapping[Feature, Sequence[str]] = {
    Feature.CALL: ("ucr", "ucrau", "uc"),
    Feature.SYSTEM: ("su", "sucr"),
    Feature.SECOND_SYSTEM: ("ssu",),
    Feature.LATER_SYSTEM: ("suausu", "suasu", "uas", "usau"),
    Feature.OTHERS_FIRST: ("au", "s", "cr"),
    Feature.USERS: ("uu", "uauu"),
    Feature.ASSISTANTS: ("uaau",),
    Feature.EMPTY_USER: ("oau",),
    Feature.EMPTY_ASSISTANT: ("ueu",),
    Feature.NAME: ("nau",),
    Feature.REASONING: ("uhu", "utr"),
    Feature.TWO_CALLS: ("u2rq", "u2rqau"),
    Feature.TEXT_BESIDE_CALL: ("uCr", "uCrau", "uTr", "uTrau"),
    Feature.USER_AFTER_RESULT: ("ucru",),
}


# Conversations with these letters are not tried if the template lacks the feature.
_NEEDED = ((Feature.SYSTEM, "s"), (Feature.CALL, "cCtT2"))


def probe(render: RenderWith, today: str) -> TemplateSupport:
    """Return which features a template supports, with tools and without, and where it takes tools.

    Each `TemplateRefusal` that `render` raises counts as a refused feature. `today`: as `placed`.
    """
    renders = {place: placed(render, place, today) for place in ToolPlace}
    shown = (place for place in ToolPlace if _shows_tools(renders[place]))
    place = next(shown, ToolPlace.ARGUMENT)
    return replace(_probed(renders[place]), tool_place=place)


def _probed(render: Render) -> TemplateSupport:
    """Return which features a template supports, given its tools in the right place."""
    without_tools = _Probe(render, None).support()
    if Feature.TOOLS in (lacks := _lacks_tools(render)):
        # The tools are then written into the messages.
        told = replace(without_tools, lost=without_tools.lost | lacks)
        return TemplateSupport(without_tools, told)
    lacks |= without_tools.refused & {Feature.NO_TOOLS}
    with_tools = _Probe(render, _TOOLS).support()
    return TemplateSupport(without_tools, replace(with_tools, refused=with_tools.refused | lacks))


def _lacks_tools(render: Render) -> Set[Feature]:
    """Return `Feature.TOOLS` or `Feature.BARE_TOOLS` in a set if the template lacks it."""
    if not _shows_tools(render):
        return {Feature.TOOLS}
    if all(_shows(render, [tool], ("probe_tool",)) for tool in _BARE_TOOLS):
        return frozenset()
    return {Feature.BARE_TOOLS}


def _shows_tools(render: Render) -> bool:
    return _shows(render, _TOOLS, ("probe_tool", _KEY))


def _shows(render: Render, tools: Sequence[Tool], texts: Sequence[str]) -> bool:
    try:
        prompt = render(_messages("u", are_texts=False), tools)
    except TemplateRefusal:
        return False
    return all(text in prompt for text in texts)


class _Probe:
    """A trial of one template, either with these tools or without tools."""

    def __init__(self, render: Render, tools: Sequence[Tool] | None) -> None:
        self._render = render
        self._tools = tools
        self._takes_texts = False

    def support(self) -> Support:
        """Render all sample conversations, and return which features are lost or refused."""
        no_tools: Set[Feature] = frozenset()
        if self._tools is None and self._prompt("u") is None:
            self._tools = []
            if self._prompt("u") is None:
                self._tools = None
            else:
                no_tools = {Feature.NO_TOOLS}
        self._takes_texts = not self._takes_arguments()
        if self._takes_texts and not self._takes_arguments():
            self._takes_texts = False
        lost, refused = set[Feature](), set(no_tools)
        for feature, shapes in _SHAPES.items():
            lacking = lost | refused
            for shape in shapes:
                if any(lacks in lacking and set(shape) & set(own) for lacks, own in _NEEDED):
                    continue  # requests with the lacking feature are rewritten in any case
                prompt = self._prompt(shape)
                if prompt is None:
                    refused.add(feature)
                elif not is_whole(self._messages(shape), None, prompt):
                    lost.add(feature)
        for found in (lost, refused):
            if Feature.SYSTEM in found:
                found.add(Feature.LATER_SYSTEM)
        return Support(frozenset(lost), frozenset(refused), self._takes_texts)

    def _takes_arguments(self) -> bool:
        """Return whether a template writes the arguments of a call in a correct form.

        False for objects written in Python's syntax, and for JSON texts quoted a second time.
        """
        try:
            prompt = self._render([*_unmarked("ucr", self._takes_texts)], self._tools)
        except TemplateRefusal:
            return False
        is_python = f"'{_KEY}': '{_VALUE}'" in prompt  # the template expects a JSON text
        is_quoted = f'{{\\"{_KEY}\\": \\"{_VALUE}\\"}}' in prompt  # the template expects an object
        return _KEY in prompt and _VALUE in prompt and not is_python and not is_quoted

    def _prompt(self, shape: str) -> str | None:
        """Return the prompt of a sample conversation, or None if the template refuses it."""
        try:
            return self._render(self._messages(shape), self._tools)
        except TemplateRefusal:
            return None

    def _messages(self, shape: str) -> list[Message]:
        return _messages(shape, are_texts=self._takes_texts)


def _messages(shape: str, *, are_texts: bool) -> list[Message]:
    """Return the sample conversation of a shape, with texts that occur in no template."""
    return marked([*_unmarked(shape, are_texts)])


def _unmarked(shape: str, are_texts: bool) -> Iterator[Message]:
    """Yield the messages of a shape, one for each letter; `marked` replaces their texts."""
    for letter in shape:
        match letter:
            case "s":
                yield {"role": "system", "content": "?"}
            case "u":
                yield {"role": "user", "content": "?"}
            case "o":
                yield {"role": "user", "content": ""}
            case "n":
                yield {"role": "user", "content": "?", "name": "?"}
            case "a":
                yield {"role": "assistant", "content": "?"}
            case "e":
                yield {"role": "assistant", "content": ""}
            case "h":
                yield {"role": "assistant", "content": "?"} | _REASONING
            case "r":
                yield {"role": "tool", "content": "?", "tool_call_id": "probe0001"}
            case "q":
                yield {"role": "tool", "content": "?", "tool_call_id": "probe0002"}
            case _:
                yield _call_message(letter, are_texts)


def _call_message(letter: str, are_texts: bool) -> Message:
    """Return a message with a call (c), also with reasoning (t), text (C) or both (T); or two (2).

    `are_texts` makes the arguments JSON texts instead of objects.
    """
    arguments: Any = f'{{"{_KEY}": "{_VALUE}"}}' if are_texts else {_KEY: _VALUE}
    message: Message = {"role": "assistant", "content": "?" if letter in "CT" else ""}
    if letter in "tT":
        message |= _REASONING
    ids = ("probe0001", "probe0002")[: 2 if letter == "2" else 1]
    function = {"name": "?", "arguments": arguments}
    calls = [{"id": id_, "type": "function", "function": function} for id_ in ids]
    return message | {"tool_calls": calls}


_REASONING = {"reasoning_content": "ProbeThought", "thinking": "ProbeThought"}
