"""Tests of the prompts that chats are rendered to."""

from typing import Any

import httpx
import pytest

from server.text.tokenizer import Tokenizer
from tests.server.conftest import MakeApp, chat, client_of, entry, error_of
from tests.server.fake_engine import EOS, START, FakeEngines


def rendered(engines: FakeEngines) -> str:
    special = {EOS: "<eos>", START: "<turn>"}
    return "".join(special.get(t) or chr(t) for t in engines.engine.requests[-1].prompt)


async def test_messages_of_all_roles_are_rendered(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    """The template has no tools, so calls and results are written as text."""
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": "be kind"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        },
        {"role": "assistant", "content": None, "refusal": "no"},
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
            ],
        },
        {"role": "tool", "content": "7", "tool_call_id": "1"},
    ]
    assert (await chat(client, messages=messages)).status_code == 200
    assert rendered(engines) == (
        "<turn>system:be kind<eos><turn>user:ab<eos><turn>assistant:no<eos>"
        '<turn>assistant:<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call><eos>'
        "<turn>user:<tool_response>\n7\n</tool_response><eos><turn>assistant:"
    )


async def test_refusals_and_old_function_calls_are_rendered(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    refusal = [{"type": "text", "text": "I am sorry. "}, {"type": "refusal", "refusal": "No."}]
    messages: list[dict[str, Any]] = [
        {"role": "assistant", "content": refusal, "refusal": "Never."},
        {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "7"},
    ]
    assert (await chat(client, messages=messages)).status_code == 200
    assert rendered(engines) == (
        "<turn>assistant:I am sorry. No.\n\nNever.<eos>"
        '<turn>assistant:<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call><eos>'
        "<turn>user:<tool_response>\n7\n</tool_response><eos><turn>assistant:"
    )


async def test_template_arguments_reach_the_template(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    await chat(client, chat_template_kwargs={"shout": "!"}, add_generation_prompt=False)
    assert rendered(engines) == "<turn>user:hi!<eos>"


async def test_api_17_a_last_assistant_message_is_continued(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well"}]
    await chat(client, messages=messages, continue_final_message=True)
    assert rendered(engines) == "<turn>user:hi<eos><turn>assistant:Well"
    await chat(client, messages=messages, add_generation_prompt=True)
    assert rendered(engines).endswith("Well<eos><turn>assistant:")


EMPTY: list[dict[str, Any]] = [
    {},
    {"content": None},
    {"content": ""},
    {"content": []},
    {"content": [{"type": "text", "text": ""}]},
    {"content": "", "reasoning_content": ""},
    {"reasoning": "", "refusal": "", "tool_calls": []},
    {"content": [{"type": "thinking", "thinking": ""}]},
]


@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize(
    ("flags", "ending"),
    [
        ({}, "hi<eos><turn>assistant:"),
        ({"continue_final_message": True}, "hi<eos><turn>assistant:"),
        (
            {"continue_final_message": True, "add_generation_prompt": False},
            "hi<eos><turn>assistant:",
        ),
        ({"add_generation_prompt": False}, "hi<eos><turn>assistant:"),
        ({"add_generation_prompt": True}, "hi<eos><turn>assistant:<eos><turn>assistant:"),
        ({"continue_final_message": False}, "hi<eos><turn>assistant:<eos><turn>assistant:"),
    ],
)
async def test_the_answer_to_an_empty_last_message_begins_as_without_it(
    client: httpx.AsyncClient,
    engines: FakeEngines,
    flags: dict[str, Any],
    ending: str,
    empty: dict[str, Any],
) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", **empty}]
    assert (await chat(client, messages=messages, **flags)).status_code == 200
    assert rendered(engines) == f"<turn>user:{ending}"


async def test_an_empty_message_alone_is_continued_when_asked(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    messages = [{"role": "assistant", "content": ""}]
    assert (await chat(client, messages=messages, continue_final_message=True)).status_code == 200
    assert rendered(engines) == "<turn>assistant:"


async def test_continuing_excludes_a_generation_prompt(client: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well"}]
    error = error_of(
        await chat(
            client, messages=messages, continue_final_message=True, add_generation_prompt=True
        ),
        400,
    )
    assert error["param"] == "add_generation_prompt"


@pytest.mark.parametrize("path", ["chat/completions", "tokenize", "apply-template"])
async def test_half_an_emoji_in_arguments_is_replaced(client: httpx.AsyncClient, path: str) -> None:
    """The JSON of a body cannot have it, but the JSON text of the arguments can."""
    arguments = '{"key": "ab\\ud83d", "\\udc00": "\\ud83d\\ude00"}'
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "7", "tool_call_id": "1"},
    ]
    answer = await client.post(f"/v1/{path}", json={"messages": messages})
    assert answer.status_code == 200, answer.text
    if path == "apply-template":
        assert '{"key": "ab\ufffd", "\ufffd": "\U0001f600"}' in answer.json()["prompt"]


async def test_an_error_of_the_template_is_a_400_in_our_words(make_app: MakeApp) -> None:
    template = "{% if messages | length > 1 %}{{ raise_exception('Secret.') }}{% endif %}hi"
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x"}] * 2
    async with client_of(make_app(entries=[entry("main", chat_template=template)])) as client:
        assert (await chat(client)).status_code == 200
        error = error_of(await chat(client, messages=messages, stream=True), 400)
    assert error["code"] == "chat_template_error"
    assert "Secret" not in error["message"]
    assert "two user messages in a row" in error["message"]


async def test_arguments_that_break_the_template_are_a_400(client: httpx.AsyncClient) -> None:
    messages = [{"role": "user", "content": "hi"}]
    error = error_of(await chat(client, messages=messages, chat_template_kwargs={"self": 1}), 400)
    assert error["param"] == "chat_template_kwargs.self"


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
async def test_a_prompt_of_megabytes_is_refused_without_being_tokenized(
    client: httpx.AsyncClient, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a prompt that is too long was tokenized")

    monkeypatch.setattr(Tokenizer, "encode", never)
    text = "word " * 1_000_000
    messages = [{"role": "user", "content": text}]
    response = await client.post(f"/v1/{path}", json={"prompt": text, "messages": messages})
    error = error_of(response, 400)
    assert error["code"] == "context_length_exceeded"
    assert "maximum context length is 1024" in error["message"]


async def test_arguments_of_calls_may_be_broken_json(client: httpx.AsyncClient) -> None:
    for arguments in ("{", "[" * 5000, "9" * 5000):
        function = {"name": "f", "arguments": arguments}
        calls = [{"id": "call_1", "type": "function", "function": function}]
        messages = [{"role": "assistant", "tool_calls": calls}]
        assert (await chat(client, messages=messages, max_tokens=1)).status_code in (200, 400)


@pytest.mark.parametrize(
    ("fields", "is_continued"),
    [
        ({}, True),
        ({"add_generation_prompt": True}, False),
        ({"add_generation_prompt": False}, True),
        ({"continue_final_message": False}, False),
    ],
)
async def test_a_last_message_of_the_assistant_is_continued_without_flags(
    client: httpx.AsyncClient, engines: FakeEngines, fields: dict[str, Any], is_continued: bool
) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Once upon"}]
    assert (await chat(client, messages=messages, **fields)).status_code == 200
    assert rendered(engines).endswith("assistant:Once upon") is is_continued
