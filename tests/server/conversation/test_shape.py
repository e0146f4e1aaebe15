"""Tests of rewritten conversations: no text is lost, whatever a template does not take."""

from typing import Any

from hypothesis import given, settings, strategies as st

from engine.parsing.formats import hermes
from server.conversation.features import Feature, Message
from server.conversation.presence import MOST_RESCANS, is_whole, marked
from server.conversation.shape import shaped

ROLES = st.sampled_from(["system", "user", "assistant", "call", "calls", "tool"])
SYNTAX = hermes.SYNTAX


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


@settings(max_examples=150, deadline=None)
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


@settings(max_examples=100, deadline=None)
@given(st.lists(ROLES, min_size=1, max_size=12))
def test_the_last_form_is_users_and_assistants_in_turn(roles: list[str]) -> None:
    messages = [message(role, number) for number, role in enumerate(roles)]
    written, _ = shaped(messages, [], set(Feature), SYNTAX)
    assert [m["role"] for m in written] == [
        "user" if place % 2 == 0 else "assistant" for place in range(len(written))
    ]
    assert all(set(m) == {"role", "content"} for m in written)


def test_texts_are_found_in_the_order_of_their_role() -> None:
    messages = [message("user", 0), message("system", 1), message("user", 2)]
    assert is_whole(messages, None, "name1 <1> name0 <0> name2 <2>")
    assert not is_whole(messages, None, "name1 <1> name0 <0> name2")
    assert is_whole(marked(messages), None, str(marked(messages)))


def test_the_search_gives_up_on_a_prompt_in_disorder() -> None:
    """Else a long conversation would be searched as often as it has messages."""
    messages: list[Message] = [{"role": "user", "content": f"<{i}>"} for i in range(1000)]
    texts = [m["content"] for m in messages]
    assert is_whole(messages, None, "".join(texts))
    assert is_whole(messages[:MOST_RESCANS], None, "".join(reversed(texts)))
    assert not is_whole(messages, None, "".join(reversed(texts)))
