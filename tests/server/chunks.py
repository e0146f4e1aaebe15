"""Chunks of a chat written by hand, for tests without a model."""

from typing import Any, cast

from server.schemas.answers import ChatChunk, ChatLogprob

USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 5,
    "total_tokens": 12,
    "prompt_tokens_details": {"cached_tokens": 3},
    "completion_tokens_details": {
        "reasoning_tokens": 2,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}


def chunk(
    delta: dict[str, Any] | None = None,
    finish: str | None = None,
    *,
    logprobs: list[ChatLogprob] | None = None,
    **fields: Any,
) -> ChatChunk:
    """Return one chunk of a stream; `fields` are added to its choice."""
    entries = {"content": logprobs, "refusal": None} if logprobs else None
    choice = {"index": 0, "delta": delta or {}, "logprobs": entries, "finish_reason": finish}
    return _event([choice | fields])


def _event(choices: list[Any], **fields: Any) -> ChatChunk:
    head = {
        "id": "chatcmpl-abc",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "main",
        "system_fingerprint": "fp",
    }
    return cast(ChatChunk, head | {"choices": choices} | fields)


def call(arguments: str, index: int = 0, **identity: str) -> dict[str, Any]:
    """Return a delta of a tool call; the first delta of a call has `id` and `name`."""
    function: dict[str, Any] = {"arguments": arguments}
    piece: dict[str, Any] = {"index": index, "function": function}
    if identity:
        function["name"] = identity["name"]
        piece |= {"id": identity["id"], "type": "function"}
    return {"tool_calls": [piece]}


def stream(*middle: ChatChunk, finish: str = "stop", **fields: Any) -> list[ChatChunk]:
    """Return a whole stream: the first chunk, `middle`, the finish and the usage."""
    return [
        chunk({"role": "assistant", "content": ""}),
        *middle,
        chunk({}, finish, **fields),
        _event([], usage=USAGE),
    ]


def logprob(text: str) -> ChatLogprob:
    return {"token": text, "logprob": -1.0, "bytes": list(text.encode()), "top_logprobs": []}


THINK_SAY_CALL = stream(
    chunk({"reasoning_content": "Hm"}),
    chunk({"reasoning_content": "m."}),
    chunk({"content": "Let me"}),
    chunk({"content": " see."}),
    chunk(call("", id="call_1", name="time")),
    chunk(call('{"zone": ')),
    chunk(call('"UTC"}')),
    chunk(call("", 1, id="call_2", name="now")),
    chunk(call("{}", 1)),
    finish="tool_calls",
)
