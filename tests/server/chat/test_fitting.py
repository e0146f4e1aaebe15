"""Tests of the error for a chat that does not fit the context: it says what takes the room."""

from typing import Any

import httpx
import pytest

from server.chat import fitting
from tests.server.conftest import MakeApp, chat, client_of, entry, error_of
from tests.server.fake_engine import FakeEngines

# One token for each character: tools take 600 of them, and each message 3 more than its text.
TEMPLATE = (
    "<tool_call>{% for t in tools or [] %}{{ t.function.name + '-' * 299 }}{% endfor %}"
    "{% for m in messages %}{{ m.role[:3] }}{{ m.content }}{% endfor %}"
)
TOOLS = [{"type": "function", "function": {"name": name}} for name in "ab"]
S, U = {"role": "system", "content": "s" * 100}, {"role": "user", "content": "u" * 400}
LARGE = {"role": "user", "content": "u" * 2000}


@pytest.mark.parametrize(
    ("fields", "shares"),
    [
        (
            {"messages": [S, U], "tools": TOOLS},
            "600 of these tokens are the 2 tools, 100 are the system text and 417 are the message.",
        ),
        (
            {"messages": [U], "tools": TOOLS[:1], "max_tokens": 900},
            "300 of these tokens are the tool and 414 are the message.",
        ),
        (
            {"messages": [U, S, U], "max_tokens": 200},
            "100 of these tokens are the system text and 820 are the 2 messages.",
        ),
        ({"messages": [LARGE]}, ""),
        ({"messages": [LARGE], "tools": TOOLS, "tool_choice": "none"}, ""),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_the_error_says_what_takes_the_room(
    make_app: MakeApp, fields: dict[str, Any], shares: str, stream: bool
) -> None:
    async with client_of(make_app(entries=[entry("main", chat_template=TEMPLATE)])) as client:
        error = error_of(await chat(client, stream=stream, **fields), 400)
    limited = "max_tokens" in fields or "max_completion_tokens" in fields
    assert error["code"] == "context_length_exceeded"
    assert error["param"] == ("max_tokens" if limited else "messages")
    assert "maximum context length is 1024" in error["message"]
    assert error["message"].endswith(shares or "Shorten the prompt.")


async def test_an_empty_prompt_has_no_shares(make_app: MakeApp) -> None:
    plain = "{% for m in messages %}{{ m.content }}{% endfor %}"
    messages = [{"role": "user", "content": ""}]
    async with client_of(make_app(entries=[entry("main", chat_template=plain)])) as client:
        error = error_of(await chat(client, messages=messages, max_tokens=5000), 400)
    assert error["code"] == "context_length_exceeded"
    assert error["message"].endswith(
        "(0 in the prompt, 5000 in the completion). Shorten the prompt or lower max_tokens."
    )


async def test_the_other_apis_say_it_too(make_app: MakeApp) -> None:
    tools = [{"name": name, "input_schema": {}} for name in "ab"]
    body = {"system": "s" * 100, "messages": [LARGE], "tools": tools, "max_tokens": 9}
    async with client_of(make_app(entries=[entry("main", chat_template=TEMPLATE)])) as client:
        answer = await client.post("/v1/messages", json=body)
    assert answer.status_code == 400
    assert (
        "600 of these tokens are the 2 tools, 100 are the system text"
        in answer.json()["error"]["message"]
    )


async def test_the_tokens_of_a_large_prompt_are_not_counted(
    client: httpx.AsyncClient, engines: FakeEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "LONGEST_COUNTED", 1500)
    error = error_of(await chat(client, messages=[S, LARGE], tools=TOOLS), 400)
    assert " characters are the 2 tools, 100 are the system text and " in error["message"]
