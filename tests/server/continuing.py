"""The joining of streams that are cut and go on, as a client would do it."""

import json
from collections.abc import Sequence
from typing import Any

Chunk = dict[str, Any]


def chunks_of(text: str) -> list[Chunk]:
    """Return the chunks of a whole stream, which must have ended well."""
    data = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    assert data and data[-1] == "[DONE]", text[-400:]
    return [json.loads(own) for own in data[:-1]]


def ids_by_choice(chunks: Sequence[Chunk]) -> dict[str, list[int]]:
    """Return `continue_tokens` for a client that has these chunks."""
    ids: dict[str, list[int]] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        ids.setdefault(str(choice["index"]), []).extend(choice["token_ids"])
    return ids


def kept(chunks: Sequence[Chunk]) -> list[Chunk]:
    """Return the chunks that a client keeps: of each choice those up to the last one with ids."""
    last = {
        choice["index"]: place
        for place, chunk in enumerate(chunks)
        for choice in chunk["choices"]
        if choice["token_ids"]
    }
    return [
        chunk
        for place, chunk in enumerate(chunks)
        if all(place <= last.get(choice["index"], -1) for choice in chunk["choices"])
    ]


def joined(chunks: Sequence[Chunk]) -> tuple[dict[int, Any], Any]:
    """Return all that the chunks say of each choice, joined, and the usage."""
    choices: dict[int, dict[str, Any]] = {}
    usage: Any = None
    for chunk in chunks:
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            _add(choices.setdefault(choice["index"], {"calls": {}, "scores": {}}), choice)
    return choices, None if usage is None else _counts(usage)


def _counts(usage: Any) -> tuple[int, int, int]:
    details = usage.get("completion_tokens_details") or {}
    reasoning = details.get("reasoning_tokens", 0)
    return usage["prompt_tokens"], usage["completion_tokens"], reasoning


def _add(whole: dict[str, Any], choice: dict[str, Any]) -> None:
    parts = choice.get("delta", {}) | {"text": choice.get("text")}
    for name in ("content", "reasoning_content", "text"):
        whole[name] = whole.get(name, "") + (parts.get(name) or "")
    for call in parts.get("tool_calls", ()):
        own = whole["calls"].setdefault(call["index"], {"name": "", "text": ""})
        body = call.get("function") or call["custom"]
        own["name"] += body.get("name", "")
        own["text"] += body.get("arguments", "") + body.get("input", "")
    for name, entries in (choice.get("logprobs") or {}).items():
        whole["scores"].setdefault(name, []).extend(entries or ())
    for name in ("finish_reason", "stop_reason"):
        whole[name] = choice.get(name) or whole.get(name)
    whole.setdefault("ids", []).extend(choice["token_ids"])
