"""The check that a rendered prompt contains all texts of its conversation."""

import html
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from server.conversation.features import Message, Tool

END_OF_THOUGHT = "</think>"  # templates remove past reasoning, up to this tag, from the content
MOST_SCANS = 64  # how often failed searches may read the whole prompt; bounds the time


def is_whole(messages: Sequence[Message], tools: Sequence[Tool] | None, prompt: str) -> bool:
    """Return whether a prompt contains all texts of a conversation.

    The texts are the contents, the names of users, calls and tools, and strings in the arguments of
    calls. Templates trim and escape texts, and move system messages, but the texts of one role stay
    in order. Reasoning is not searched, because templates drop that of past turns.
    """
    finder = _Finder(prompt)
    return all(finder.has(text, order) for text, order in _texts(messages, tools or ()))


def marked(messages: Sequence[Message]) -> list[Message]:
    """Return a conversation of the same shape, with texts that occur in no template.

    The prompt of this conversation shows whether a template supports the shape. The real texts may
    not show it: a short text is in most prompts by chance, and some templates change texts.
    """
    return [_marked(message, number) for number, message in enumerate(messages)]


def _marked(message: Message, number: int) -> Message:
    other = dict(message)
    if message.get("content"):
        other["content"] = f"content-{number}-mark"
    if message.get("name"):
        other["name"] = f"name_{number}_mark"
    if "tool_calls" in message:
        other["tool_calls"] = [
            call | {"function": _marked_call(call["function"], f"call_{number}_{place}_mark")}
            for place, call in enumerate(message["tool_calls"])
        ]
    return other


def _marked_call(function: Mapping[str, Any], mark: str) -> dict[str, Any]:
    if not isinstance(function["arguments"], dict):
        return {**function, "name": mark}
    return {**function, "name": mark, "arguments": {"key": f"argument_of_{mark}"}}


def _texts(messages: Sequence[Message], tools: Sequence[Tool]) -> Iterator[tuple[str, str]]:
    """Yield the texts that a prompt must contain, each with the name of its sequence.

    The texts of one sequence, such as those of one role, are in the prompt in the same order.
    """
    for tool in tools:
        yield tool["function"]["name"], "tools"
    for message in messages:
        role, content = message["role"], message["content"] or ""
        if role == "assistant":
            content = content.rpartition(END_OF_THOUGHT)[2]
        yield content, role
        if role != "tool":
            yield message.get("name", ""), "names"
        for call in message.get("tool_calls", ()):
            function = call["function"]
            yield function["name"], "calls"
            if isinstance(function["arguments"], dict):
                yield from ((text, "calls") for text in _strings(function["arguments"]))


def _strings(arguments: Mapping[str, Any]) -> Iterator[str]:
    return (value for value in arguments.values() if isinstance(value, str))


class _Finder:
    """A search through a prompt, which proceeds forwards in each sequence of texts."""

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt
        self._places: dict[str, int] = {}  # for each sequence, the end of its last found text
        self._spellings: dict[str, _Spelling] = {}  # and the spelling of that text
        self._budget = MOST_SCANS * len(prompt)

    def has(self, text: str, order: str) -> bool:
        """Return whether the prompt contains a text of the sequence `order`.

        The search begins after the last found text of the sequence. If it fails, the prompt is
        searched from its beginning. Such searches may read the prompt `MOST_SCANS` times in all;
        then no text is searched any more, and the others count as missing.
        """
        text = text.strip()
        place = self._places.get(order, 0)
        first = self._spellings.get(order, _as_it_is)
        others = (spelling for spelling in _SPELLINGS if spelling is not first)
        tried: list[str] = []
        for spelling in (first, *others):
            written = spelling(text)
            if written in tried:
                continue
            tried.append(written)
            found = self._prompt.find(written, place)
            if found >= 0:
                self._places[order], self._spellings[order] = found + len(written), spelling
                return True
            self._budget -= len(self._prompt) - place
        return any(self._is_anywhere(written) for written in tried)

    def _is_anywhere(self, written: str) -> bool:
        if self._budget < 0:
            return False
        found = self._prompt.find(written)
        self._budget -= len(self._prompt) if found < 0 else found
        return found >= 0


# The ways in which templates write a text.
_Spelling = Callable[[str], str]


def _as_it_is(text: str) -> str:
    return text


def _as_json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _as_ascii_json(text: str) -> str:
    return json.dumps(text)[1:-1]


_SPELLINGS: tuple[_Spelling, ...] = (_as_it_is, _as_json, _as_ascii_json, html.escape)
