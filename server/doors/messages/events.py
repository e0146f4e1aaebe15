"""The conversion of a chat's chunks to the events of the Messages API, without any I/O."""

from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json

from server.doors.blocks import (
    Block,
    BlockDelta,
    BlockEvent,
    BlockReader,
    BlockStart,
    BlockStop,
)
from server.doors.messages.errors import message_error
from server.doors.translation import Event
from server.errors import ApiError
from server.schemas.answers import ChatChunk, Usage
from server.schemas.message_answers import MessageAnswer, MessageContent, MessageUsage

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
DELTAS = {  # kind of a block -> type of its deltas, and the field that has the text
    "text": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}


class MessageWriter:
    """A converter of one chat's chunks to events, in the order that Anthropic's clients expect.

    Args:
        request_id: the id of the HTTP request, which errors mention.
    """

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._blocks = BlockReader()
        self._head: ChatChunk | None = None  # the first chunk, with the id and the model

    def write(self, chunk: ChatChunk) -> Iterator[Event]:
        """Yield the events of one chunk; the last ones have the stop reason and the usage."""
        if self._head is None:
            self._head = chunk
            yield {"type": "message_start", "message": self.whole()}
            yield {"type": "ping"}
        for event in self._blocks.feed(chunk):
            yield from _events(event)
        if self._blocks.has_ended:
            message = self.whole()
            delta = {name: message[name] for name in ("stop_reason", "stop_sequence")}
            yield {"type": "message_delta", "delta": delta, "usage": message["usage"]}
            yield {"type": "message_stop"}

    def failure(self, error: ApiError) -> Event:
        """Return the error event, which ends the stream of a failed answer."""
        return message_error(error, self._request_id)

    def whole(self) -> MessageAnswer:
        """Return the answer with all blocks that were written so far."""
        assert self._head is not None, "nothing is written before the first chunk"
        blocks = self._blocks
        has_stop_string = blocks.finish == "stop" and blocks.stop_string is not None
        reason = STOP_REASONS.get(blocks.finish or "")
        return {
            "id": f"msg_{self._head['id'].removeprefix('chatcmpl-')}",
            "type": "message",
            "role": "assistant",
            "model": self._head["model"],
            "content": [_content(block) for block in blocks.all],
            "stop_reason": "stop_sequence" if has_stop_string else reason,
            "stop_sequence": blocks.stop_string if has_stop_string else None,
            "usage": _usage(blocks.usage or self._head.get("usage")),
        }


def ping(status: str) -> Event:
    """Return the event that keeps a stream alive; `status` says what its request waits for."""
    return {"type": "ping", "status": status}


def _events(event: BlockEvent) -> Iterator[Event]:
    index = event.block.index
    match event:
        case BlockStart(block):
            yield {"type": "content_block_start", "index": index, "content_block": _content(block)}
        case BlockDelta(block, piece):
            kind, field = DELTAS[block.kind]
            if piece:
                delta = {"type": kind, field: piece}
                yield {"type": "content_block_delta", "index": index, "delta": delta}
        case BlockStop(block):
            if block.kind == "reasoning":
                delta = {"type": "signature_delta", "signature": ""}
                yield {"type": "content_block_delta", "index": index, "delta": delta}
            yield {"type": "content_block_stop", "index": index}


def _content(block: Block) -> MessageContent:
    match block.kind:
        case "text":
            return {"type": "text", "text": block.text, "citations": None}
        case "reasoning":
            return {"type": "thinking", "thinking": block.text, "signature": ""}
        case "call":
            return {
                "type": "tool_use",
                "id": f"toolu_{block.call_id.removeprefix('call_')}",
                "name": block.name,
                "input": _parse_input(block.text),
            }


def _parse_input(arguments: str) -> dict[str, Any]:
    """Return a call's arguments as an object, even if the token limit has cut them off."""
    parsed = from_json(arguments or "{}", allow_partial=True)
    return parsed if isinstance(parsed, dict) else {}


def _usage(usage: Usage | None) -> MessageUsage:
    """Return the usage in Anthropic's fields, with zeros for what is not known yet."""
    prompt, cached, completion = 0, 0, 0
    if usage is not None:
        prompt, completion = usage["prompt_tokens"], usage["completion_tokens"]
        if "prompt_tokens_details" in usage:
            cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": prompt - cached,
        "output_tokens": completion,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
    }
