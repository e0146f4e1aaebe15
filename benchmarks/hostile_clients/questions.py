"""The requests of well-behaved clients on every route, and the comparison of their answers."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
STARTERS = Path(__file__).parents[2] / "configs" / "demo" / "starters.json"
NUM_TOKENS = 40
VOLATILE = frozenset(  # keys whose values may differ between two answers with the same text
    {"id", "item_id", "call_id", "created", "created_at", "completed_at", "timings", "usage"}
)
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


class BrokenAnswer(Exception):
    """An answer with status 200 that is not complete."""


@dataclass(frozen=True)
class Question:
    """A request whose answer is always the same."""

    name: str
    path: str
    body: dict[str, Any] = field(hash=False)

    @property
    def is_streamed(self) -> bool:
        return bool(self.body.get("stream"))


def list_questions() -> list[Question]:
    """Return the fixed requests, also streamed if the route streams."""
    found = []
    for name, path, body in [*_chats(), *_texts(), *_other_apis()]:
        found.append(Question(name, path, body))
        found.append(Question(f"{name}, streamed", path, {**body, "stream": True}))
    messages = [{"role": "user", "content": "How many tokens?"}]
    found += [
        Question("tokenize", "/tokenize", {"content": "The sky is blue.", "with_pieces": True}),
        Question("count of a chat", f"{CHAT}/input_tokens", {"messages": messages}),
        Question("count of messages", f"{MESSAGES}/count_tokens", {"messages": messages}),
        Question("rendered chat", "/apply-template", {"messages": messages}),
    ]
    return found


Asked = tuple[str, str, dict[str, Any]]


def _chats() -> Iterable[Asked]:
    starters = json.loads(STARTERS.read_text(encoding="utf-8"))
    by_id = {starter["id"]: starter for starter in starters}
    for starter in starters:
        fields = {key: starter[key] for key in ("messages", "tools") if starter.get(key)}
        body = {**fields, "max_tokens": NUM_TOKENS}
        yield f"chat {starter['id']}", CHAT, {**body, "temperature": 0}
        if len(starter["messages"]) == 1:
            yield f"chat {starter['id']}, sampled", CHAT, {**body, "temperature": 0.9, "seed": 7}
    what = {"messages": by_id["what"]["messages"], "max_tokens": NUM_TOKENS}
    tool = {"messages": by_id["tool_call"]["messages"], "tools": by_id["tool_call"]["tools"]}
    sampled = {"temperature": 1.0, "seed": 3}
    yield "chat with logprobs", CHAT, {**what, **sampled, "logprobs": True, "top_logprobs": 5}
    yield "chat of three choices", CHAT, {**what, **sampled, "n": 3}
    yield "chat with penalties", CHAT, {**what, **sampled, "presence_penalty": 1, "top_k": 20}
    yield "chat with a stop string", CHAT, {**what, "temperature": 0, "stop": ["weights", "GPU"]}
    yield "forced tool call", CHAT, {**tool, **sampled, "tool_choice": "required"}
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
    yield "chat in JSON", CHAT, {**what, **sampled, "response_format": schema}


def _texts() -> Iterable[Asked]:
    story = {"prompt": "Once upon a time", "max_tokens": NUM_TOKENS}
    yield "text", TEXT, {**story, "temperature": 0}
    yield "text, sampled", TEXT, {**story, "temperature": 0.8, "seed": 11, "logprobs": 3}
    yield "texts of ids", TEXT, {**story, "prompt": [[50, 60, 70], [80, 90]], "temperature": 0}
    yield "scored text", TEXT, {**story, "max_tokens": 1, "echo": True, "logprobs": 1, "seed": 1}


def _other_apis() -> Iterable[Asked]:
    messages = [{"role": "user", "content": "How does rain form?"}]
    sampled = {"temperature": 0.9, "seed": 5}
    yield "messages", MESSAGES, {"messages": messages, "max_tokens": NUM_TOKENS, **sampled}
    yield "response", RESPONSES, {"input": messages, "max_output_tokens": NUM_TOKENS, **sampled}


def extract_comparable(question: Question, raw: bytes) -> Any:
    """Return the part of an answer that must always be the same. Raises `BrokenAnswer`."""
    try:
        if not question.is_streamed:
            return _without_volatile(json.loads(raw))
        return _join_stream(question.path, _events(raw))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise BrokenAnswer(f"{error!r}: ...{raw[-300:]!r}") from error


def _without_volatile(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_volatile(inner) for key, inner in value.items() if key not in VOLATILE
        }
    return [_without_volatile(inner) for inner in value] if isinstance(value, list) else value


def _events(raw: bytes) -> list[Any]:
    """Return the data of a stream's events."""
    lines = [line[6:] for line in raw.decode().splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def _join_stream(path: str, events: Sequence[Any]) -> Any:
    """Return the content of a stream, joined over its events. Raises `BrokenAnswer`."""
    if path == RESPONSES:
        ends = [event["response"] for event in events if event["type"] in RESPONSE_ENDS]
        if len(ends) != 1:
            raise BrokenAnswer(f"a stream without its end: {events[-1:]}")
        return _without_volatile(ends[0])
    if path == MESSAGES:
        if not events or events[-1]["type"] != "message_stop":
            raise BrokenAnswer(f"a stream without its end: {events[-1:]}")
        return _join_message(events)
    if not events or events[-1] != "[DONE]":
        raise BrokenAnswer(f"a stream without its end: {events[-1:]}")
    return _join_choices(events[:-1])


RESPONSE_ENDS = ("response.completed", "response.incomplete")


def _join_message(events: Sequence[Any]) -> Any:
    """Return the text of each block, and the reason why the message ended."""
    texts: dict[str, str] = {}
    stops = []
    for event in events:
        if event["type"] == "content_block_delta":
            delta = event["delta"]
            for key in delta.keys() - {"type"}:
                name = f"{event['index']} {key}"
                texts[name] = texts.get(name, "") + delta[key]
        elif event["type"] == "message_delta":
            stops.append(event["delta"])
    return {"texts": texts, "stops": stops}


def _join_choices(events: Sequence[Any]) -> Any:
    """Return the texts, log-probabilities and finish reasons of each choice."""
    found: dict[str, Any] = {}
    for event in events:
        for choice in event["choices"]:
            _add_piece(found, str(choice["index"]), choice.get("delta", choice))
            _add_piece(found, f"{choice['index']} logprobs", choice.get("logprobs"))
            if choice.get("finish_reason"):
                found[f"{choice['index']} finish"] = choice["finish_reason"]
    return found


def _add_piece(found: dict[str, Any], name: str, value: Any) -> None:
    """Append a text or list to `found[name]`; each value of an object gets its own name."""
    if isinstance(value, dict):
        for key in value.keys() - VOLATILE - NOT_JOINED:
            _add_piece(found, f"{name} {key}", value[key])
    elif isinstance(value, list) and any(isinstance(x, dict) and "index" in x for x in value):
        for call in value:  # tool calls come in pieces, each with its index
            _add_piece(found, f"{name} {call['index']}", call)
    elif isinstance(value, str | list):
        found[name] = found.get(name, type(value)()) + value


NOT_JOINED = frozenset({"index", "role", "type", "finish_reason", "logprobs"})
