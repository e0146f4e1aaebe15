"""The conversion of a chat's chunks to the events of the Responses API, without any I/O."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from server.doors.blocks import (
    Block,
    BlockDelta,
    BlockEvent,
    BlockReader,
    BlockStart,
    BlockStop,
)
from server.doors.responses.tools import ToolNames
from server.doors.translation import Event
from server.errors import ApiError
from server.schemas.answers import ChatChunk, Usage
from server.schemas.response_answers import (
    OutputCall,
    OutputCustomCall,
    OutputItem,
    OutputText,
    ReasoningText,
    Response,
    ResponseError,
    ResponseUsage,
    Settings,
    Status,
)
from server.schemas.response_bodies import ResponseRequest
from server.schemas.tools import HostedTool

PREFIXES = {"text": "msg", "reasoning": "rs", "call": "fc"}  # the beginnings of item ids
CUSTOM_PREFIX = "ctc"
DELTAS = {  # kind of a block -> type of the events that append to it
    "text": "response.output_text.delta",
    "reasoning": "response.reasoning_text.delta",
    "call": "response.function_call_arguments.delta",
}
CUSTOM_DELTA = "response.custom_tool_call_input.delta"


@dataclass(frozen=True)
class Head:
    """What identifies an answer: the random part of its ids, its time in seconds, its model."""

    random_id: str
    created: int
    model: str


class ResponseWriter:
    """A converter of one chat's chunks to events, in the order that OpenAI's clients expect.

    Args:
        request: the request, whose settings the answer repeats.
        head: the properties of the answer that are known before its first chunk.
    """

    def __init__(self, request: ResponseRequest, head: Head) -> None:
        self._head = head
        self._settings = _settings(request)
        self._names = ToolNames(request.tools or ())
        self._blocks = BlockReader()
        self._has_begun = False  # whether `response.created` was written
        self._has_chunks = False
        self._next_number = 0  # the sequence number of the next event

    def write(self, chunk: ChatChunk) -> Iterator[Event]:
        """Yield the events of one chunk; the last event of a stream has the whole answer."""
        self._has_chunks = True
        if not self._has_begun:
            yield self._begin()
            yield self._progress()
        for event in self._blocks.feed(chunk):
            yield from self._events(event)
        if self._blocks.has_ended:
            response = self.whole()
            yield self._event(f"response.{response['status']}", response=response)

    def keepalive(self, status: str) -> Event:
        """Return an event that keeps a stream alive; `status` says what its request waits for.

        Codex does not count comments, and OpenAI's clients refuse any event before the first one.
        """
        event = self._progress() if self._has_begun else self._begin()
        return {**event, "status": status}

    def failure(self, error: ApiError) -> Event:
        """Return the event of a failed answer, or of a bare error if no chunk was written."""
        if self._has_chunks:
            code = "server_error" if error.status >= 500 else "invalid_prompt"
            failed = self._response("failed", {"code": code, "message": error.message})
            return self._event("response.failed", response=failed)
        inner = error.body()["error"]
        # `error` repeats the event's fields, since OpenAI's clients raise for that key only.
        return self._event(
            "error", code=inner["code"], message=inner["message"], param=inner["param"], error=inner
        )

    def whole(self) -> Response:
        """Return the whole answer, with all blocks that were written."""
        return self._response("incomplete" if self._blocks.finish == "length" else "completed")

    def _begin(self) -> Event:
        self._has_begun = True
        return self._event("response.created", response=self._response("in_progress"))

    def _progress(self) -> Event:
        return self._event("response.in_progress", response=self._response("in_progress"))

    def _event(self, kind: str, **fields: Any) -> Event:
        self._next_number += 1
        return {"type": kind, "sequence_number": self._next_number - 1, **fields}

    def _events(self, event: BlockEvent) -> Iterator[Event]:
        block = event.block
        item_id = self._item_id(block)
        item = {"output_index": block.index}
        part: dict[str, Any] = {"item_id": item_id, "output_index": block.index}
        if block.kind != "call":
            part["content_index"] = 0
        match event:
            case BlockStart():
                yield self._event(
                    "response.output_item.added", **item, item=self._item(block, "in_progress")
                )
                if block.kind != "call":
                    yield self._event("response.content_part.added", **part, part=_part(block))
            case BlockDelta():
                extra = {"logprobs": event.logprobs} if block.kind == "text" else {}
                kind = CUSTOM_DELTA if block.is_custom else DELTAS[block.kind]
                yield self._event(kind, **part, delta=event.piece, **extra)
            case BlockStop():
                kind, whole = self._done_event(block)
                yield self._event(kind, **part, **whole)
                if block.kind != "call":
                    yield self._event("response.content_part.done", **part, part=_part(block))
                yield self._event(
                    "response.output_item.done", **item, item=self._item(block, _status(block))
                )

    def _item(self, block: Block, status: Status) -> OutputItem:
        """Return the item of a block, without content while it is in progress."""
        item_id = self._item_id(block)
        match block.kind:
            case "call":
                return self._call(block, item_id, status)
            case "text":
                return {
                    "id": item_id,
                    "type": "message",
                    "status": status,
                    "role": "assistant",
                    "content": [] if status == "in_progress" else [_text(block)],
                }
            case "reasoning":
                return {
                    "id": item_id,
                    "type": "reasoning",
                    "status": status,
                    "summary": [],
                    "content": [] if status == "in_progress" else [_reasoning(block)],
                }

    def _call(self, block: Block, item_id: str, status: Status) -> OutputCall | OutputCustomCall:
        namespace, name = self._names.own(block.name)
        call: OutputCall | OutputCustomCall
        if block.is_custom:
            call = {
                "id": item_id,
                "type": "custom_tool_call",
                "status": status,
                "call_id": block.call_id,
                "name": name,
                "input": block.text,
            }
        else:
            call = {
                "id": item_id,
                "type": "function_call",
                "status": status,
                "call_id": block.call_id,
                "name": name,
                "arguments": block.text,
            }
        if namespace is not None:
            call["namespace"] = namespace
        return call

    def _done_event(self, block: Block) -> tuple[str, dict[str, Any]]:
        """Return the type and the fields of the event with the whole text of a finished block."""
        match block.kind:
            case "text":
                fields = {"text": block.text, "logprobs": list(block.logprobs)}
                return "response.output_text.done", fields
            case "reasoning":
                return "response.reasoning_text.done", {"text": block.text}
            case "call" if block.is_custom:
                return "response.custom_tool_call_input.done", {"input": block.text}
            case "call":
                fields = {"name": self._names.own(block.name)[1], "arguments": block.text}
                return "response.function_call_arguments.done", fields

    def _item_id(self, block: Block) -> str:
        prefix = CUSTOM_PREFIX if block.is_custom else PREFIXES[block.kind]
        return f"{prefix}_{self._head.random_id}{block.index:02x}"

    def _response(self, status: Status, error: ResponseError | None = None) -> Response:
        blocks = () if status == "in_progress" else self._blocks.all
        usage = self._blocks.usage
        return {
            "id": f"resp_{self._head.random_id}",
            "object": "response",
            "created_at": self._head.created,
            "status": status,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"}
            if status == "incomplete"
            else None,
            "model": self._head.model,
            "output": [self._item(block, _status(block)) for block in blocks],
            "usage": None if usage is None else _usage(usage),
            **self._settings,
        }


def _status(block: Block) -> Status:
    return "completed" if block.is_complete else "incomplete"


def _part(block: Block) -> OutputText | ReasoningText:
    return _text(block) if block.kind == "text" else _reasoning(block)


def _text(block: Block) -> OutputText:
    logprobs = list(block.logprobs)  # a copy, since the block may grow before the event is sent
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": logprobs}


def _reasoning(block: Block) -> ReasoningText:
    return {"type": "reasoning_text", "text": block.text}


def _usage(usage: Usage) -> ResponseUsage:
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    reasoning = usage["completion_tokens_details"]["reasoning_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": usage["total_tokens"],
    }


def _settings(request: ResponseRequest) -> Settings:
    text = {"format": {"type": "text"}}
    if request.text is not None and request.text.format is not None:
        text["format"] = request.text.format.model_dump(exclude_none=True, by_alias=True)
    choice = request.tool_choice or "auto"
    effort = request.reasoning.effort if request.reasoning is not None else None
    return {
        "instructions": request.instructions,
        "tools": [
            tool.model_dump()
            for tool in request.tools or ()
            if not isinstance(tool, HostedTool)  # hosted tools are not used by this server
        ],
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "text": text,
        "reasoning": {"effort": effort, "summary": None},
        "max_output_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_logprobs": request.top_logprobs or 0,
        "metadata": request.metadata or {},
        "user": request.user,
        "truncation": "disabled",
        "background": False,
        "store": False,
        "previous_response_id": None,
        "service_tier": "default",
    }
