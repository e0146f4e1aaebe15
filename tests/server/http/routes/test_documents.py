"""Documents and search results in POST /v1/messages: texts are taken, other forms named."""

from typing import Any

import httpx
import pytest

from tests.server.fake_engine import FakeEngines

USER: Any = {"role": "user", "content": "hi"}
IMAGE = {"type": "image", "source": {"type": "url", "url": "x"}}
TOOL = {"name": "f", "input_schema": {"type": "object"}}


def user(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


async def message(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post("/v1/messages", json={"max_tokens": 9, **fields})


def prompt_of(engines: FakeEngines) -> str:
    """Return the text of the last prompt; special tokens are left out."""
    return bytes(i for i in engines.engine.requests[-1].prompt if i < 256).decode()


def document(source: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"type": "document", "source": source, **fields}


PDF = document({"type": "base64", "media_type": "application/pdf", "data": "AA=="}, title="a.pdf")
TEXT = document({"type": "text", "media_type": "text/plain", "data": "It rains."}, title="a.txt")
FOUND: dict[str, Any] = {"type": "search_result", "source": "http://a", "title": "A"}
FOUND["content"] = [{"type": "text", "text": "It snows."}]
SHOWN_TEXT = "<document>\nTitle: a.txt\nIt rains.\n</document>"
SHOWN_FOUND = "<search_result>\nTitle: A\nSource: http://a\nIt snows.\n</search_result>"
SAY = {"type": "text", "text": "Read this."}
PARTS = {"type": "content", "content": [{"type": "text", "text": "It "}, IMAGE]}


@pytest.mark.parametrize(
    ("blocks", "prompt"),
    [
        ([SAY, TEXT], f"Read this.\n\n{SHOWN_TEXT}"),
        ([TEXT, SAY, FOUND], f"{SHOWN_TEXT}\n\nRead this.\n\n{SHOWN_FOUND}"),
        ([document({"type": "content", "content": "x"})], "<document>\nx\n</document>"),
        (
            [document({"type": "content", "content": [SAY, SAY]}, context="C", title=None)],
            "<document>\nContext: C\nRead this.Read this.\n</document>",
        ),
    ],
)
async def test_texts_of_documents_are_taken(
    client: httpx.AsyncClient, engines: FakeEngines, blocks: list[Any], prompt: str
) -> None:
    answer = await message(client, **user(*blocks))
    assert answer.status_code == 200, answer.text
    assert f"user:{prompt}" in prompt_of(engines)
    assert "x-understudy-ignored" not in answer.headers


@pytest.mark.parametrize(
    ("blocks", "line", "left_out"),
    [
        ([SAY, TEXT, FOUND], f"Read this.\n{SHOWN_TEXT}\n\n{SHOWN_FOUND}\n", None),
        (
            [PDF],
            "[A document 'a.pdf' was left out here: this model takes text.]",
            "messages[2].content[0].content[0] document",
        ),
        (
            [SAY, document(PARTS)],
            "It \n[An image was left out here: this model takes text.]\n\n</document>",
            "messages[2].content[0].content[1] image in a document",
        ),
        (
            [IMAGE, PDF],
            "[A document 'a.pdf' was left out",
            "image in a tool result, messages[2].content[0].content[1] document",
        ),
    ],
)
async def test_documents_in_results_are_taken_or_named(
    client: httpx.AsyncClient,
    engines: FakeEngines,
    blocks: list[Any],
    line: str,
    left_out: str | None,
) -> None:
    call = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "c", "content": blocks}
    messages = [USER, {"role": "assistant", "content": [call]}, *user(result)["messages"]]
    answer = await message(client, messages=messages, tools=[TOOL])
    assert answer.status_code == 200, answer.text
    assert line in prompt_of(engines)
    assert answer.headers.get("x-understudy-ignored") == left_out


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (user(PDF), "messages.0.content.0.source.type: Documents with a source of type 'base64'"),
        (user(document({"type": "url", "url": "x"})), "messages.0.content.0.source.type"),
        (user(document({"type": "content", "content": [IMAGE]})), "source.content.0.type"),
        (user({"type": "document"}), "messages.0.content.0.source"),
        (user({"type": "search_result", "source": "x", "title": "t"}), "content.0.content"),
    ],
)
async def test_what_is_no_text_is_refused_in_a_message_of_the_user(
    client: httpx.AsyncClient, fields: dict[str, Any], named: str
) -> None:
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        answer = await client.post(path, json={"max_tokens": 9, **fields})
        assert answer.status_code == 400
        assert named in answer.json()["error"]["message"]
