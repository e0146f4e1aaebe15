"""From a chat's chunks to the events of the Messages API. Pure."""

from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json

from server.doors.blocks import Block, Blocks, Closed, Grown, Opened, Step
from server.doors.messages.errors import message_error
from server.doors.translation import Event
from server.errors import ApiError
from server.schemas.answers import ChatChunk, Usage
from server.schemas.message_answers import MessageAnswer, MessageContent, MessageUsage

STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
GROWTH = {
    "text": ("text_delta", "text"),
    "reasoning": ("thinking_delta", "thinking"),
    "call": ("input_json_delta", "partial_json"),
}


class MessageWriter:
    """Writes one answer, in the order of events that Anthropic's clients expect.

    Args:
        request_id: told in errors.
    """

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._blocks = Blocks()
        self._head: ChatChunk | None = None  # the first chunk: who answers

    def write(self, chunk: ChatChunk) -> Iterator[Event]:
        """The events of one chunk; the last ones tell why the answer ended, and its cost."""
        if self._head is None:
            self._head = chunk
            yield {"type": "message_start", "message": self.whole()}
            yield {"type": "ping"}
        for step in self._blocks.feed(chunk):
            yield from _events(step)
        if self._blocks.usage is not None:
            message = self.whole()
            delta = {name: message[name] for name in ("stop_reason", "stop_sequence")}
            yield {"type": "message_delta", "delta": delta, "usage": message["usage"]}
            yield {"type": "message_stop"}

    def failure(self, error: ApiError) -> Event:
        """The event of a failed answer."""
        return message_error(error, self._request_id)

    def whole(self) -> MessageAnswer:
        """The answer as far as it was written."""
        assert self._head is not None, "nothing is written before the first chunk"
        blocks = self._blocks
        stopped = blocks.finish == "stop" and blocks.stop_string is not None
        return {
            "id": f"msg_{self._head['id'].removeprefix('chatcmpl-')}",
            "type": "message",
            "role": "assistant",
            "model": self._head["model"],
            "content": [_content(block) for block in blocks.all],
            "stop_reason": "stop_sequence" if stopped else STOP_REASONS.get(blocks.finish or ""),
            "stop_sequence": blocks.stop_string if stopped else None,
            "usage": _usage(blocks.usage),
        }


def _events(step: Step) -> Iterator[Event]:
    index = step.block.index
    match step:
        case Opened(block):
            yield {"type": "content_block_start", "index": index, "content_block": _content(block)}
        case Grown(block, piece):
            kind, field = GROWTH[block.kind]
            if piece:
                delta = {"type": kind, field: piece}
                yield {"type": "content_block_delta", "index": index, "delta": delta}
        case Closed(block):
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
                "input": _input(block.text),
            }


def _input(arguments: str) -> dict[str, Any]:
    """The object of a call's arguments, also of those that a limit cut."""
    given = from_json(arguments or "{}", allow_partial=True)
    return given if isinstance(given, dict) else {}


def _usage(usage: Usage | None) -> MessageUsage:
    """Zeros at the beginning: what a prompt cost becomes known at the end."""
    prompt, cached, answered = 0, 0, 0
    if usage is not None:
        prompt, answered = usage["prompt_tokens"], usage["completion_tokens"]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": prompt - cached,
        "output_tokens": answered,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
    }
