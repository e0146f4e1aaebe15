"""Tests of rewritten conversations: no text is lost, whatever a template does not take."""

import html
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from engine.parsing.formats import hermes
from server.conversation.features import Feature, Message
from server.conversation.presence import MOST_SCANS, is_whole, marked
from server.conversation.shape import shaped

ROLES = st.sampled_from(["system", "user", "assistant", "call", "calls", "tool"])
SYNTAX = hermes.SYNTAX
WRITERS: list[Callable[[str], str]] = [str, json.dumps, html.escape]


def message(role: str, number: int) -> Message:
    if role == "tool":
        return {"role": role, "content": f"<{number}>", "tool_call_id": f"call{number % 3}"}
    if role not in ("call", "calls"):
        return {"role": role, "content": f"<{number}>", "name": f"name{number}"}
    calls: list[dict[str, Any]] = [
        {"id": f"call{i}", "function": {"name": f"tool{number}_{i}", "arguments": {"k": f"v{i}"}}}
        for i in range(2 if role == "calls" else 1)
    ]
    return {"role": "assistant", "content": f"<{number}>", "tool_calls": calls}


@settings(max_examples=150)
@given(st.lists(ROLES, min_size=1, max_size=12), st.sets(st.sampled_from(Feature)))
def test_every_text_is_kept(roles: list[str], lacking: set[Feature]) -> None:
    messages = [message(role, number) for number, role in enumerate(roles)]
    before = repr(messages)
    written, _ = shaped(messages, [], lacking, SYNTAX)
    assert repr(messages) == before
    for number, given_message in enumerate(messages):
        assert repr(written).count(f"<{number}>") == 1
        for call in given_message.get("tool_calls", ()):
            assert repr(written).count(call["function"]["name"]) == 1


@settings(max_examples=100)
@given(st.lists(ROLES, min_size=1, max_size=12))
def test_the_last_form_is_users_and_assistants_in_turn(roles: list[str]) -> None:
    messages = [message(role, number) for number, role in enumerate(roles)]
    written, _ = shaped(messages, [], set(Feature), SYNTAX)
    assert [m["role"] for m in written] == [
        "user" if place % 2 == 0 else "assistant" for place in range(len(written))
    ]
    assert all(set(m) == {"role", "content"} for m in written)


def test_a_system_keeps_its_name_where_tools_are_told_in_words() -> None:
    system = {"role": "system", "name": "host", "content": "Be kind."}
    user = {"role": "user", "content": "hi"}
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {}}}
    messages, _ = shaped([system, user], [tool], {Feature.TOOLS, Feature.NAME}, SYNTAX)
    assert messages[0]["content"].startswith("host: Be kind.\n\nYou may call")
    messages, _ = shaped([system, user], [tool], {Feature.TOOLS}, SYNTAX)
    assert messages[0]["name"] == "host"
    assert messages[1] == user


def test_texts_are_found_in_the_order_of_their_role() -> None:
    messages = [message("user", 0), message("system", 1), message("user", 2)]
    assert is_whole(messages, None, "name1 <1> name0 <0> name2 <2>")
    assert not is_whole(messages, None, "name1 <1> name0 <0> name2")
    assert is_whole(marked(messages), None, str(marked(messages)))


class ReadPrompt(str):
    """A prompt that counts the characters that searches read."""

    num_read = 0

    def find(self, text: str, start: int = 0) -> int:  # type: ignore[override]  # as it is called
        found = super().find(text, start)
        self.num_read += (len(self) if found < 0 else found) - start
        return found


def texts_of(number: int) -> Message:
    text = f'<{number}>\n"{number}é"'
    function = {"name": f"write{number}", "arguments": {"path": "a", "text": text}}
    return {"role": "assistant", "content": text, "tool_calls": [{"function": function}]}


@pytest.mark.parametrize("content", WRITERS, ids=lambda writer: writer.__name__)
@pytest.mark.parametrize("argument", WRITERS, ids=lambda writer: writer.__name__)
def test_the_search_reads_a_prompt_a_few_times(
    content: Callable[[str], str], argument: Callable[[str], str]
) -> None:
    """However many texts are escaped: else long conversations would take time squared."""
    messages = [texts_of(number) for number in range(400)]
    written = [
        f"{content(m['content'])}write{i} a {argument(m['content'])}"
        for i, m in enumerate(messages)
    ]
    prompt = ReadPrompt("".join(written))
    assert is_whole(messages, None, prompt)
    assert prompt.num_read < 8 * len(prompt)


def test_the_search_gives_up_on_a_prompt_in_disorder() -> None:
    """Else a long conversation would be searched as often as it has messages."""
    messages: list[Message] = [{"role": "user", "content": f"<{i}>"} for i in range(1000)]
    texts = [m["content"] for m in messages]
    assert is_whole(messages, None, "".join(texts))
    assert is_whole(messages[:MOST_SCANS], None, "".join(reversed(texts)))
    prompt = ReadPrompt("".join(reversed(texts)))
    assert not is_whole(messages, None, prompt)
    assert prompt.num_read < 4 * MOST_SCANS * len(prompt)
