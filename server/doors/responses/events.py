"""From a chat's chunks to the events of the Responses API. Pure."""

from collections.abc import Iterator
from typing import Any

from server.doors.blocks import Block, Blocks, Closed, Grown, Opened, Step
from server.doors.translation import Event
from server.errors import ApiError
from server.schemas.answers import ChatChunk, Usage
from server.schemas.response_answers import (
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

PREFIXES = {"text": "msg", "reasoning": "rs", "call": "fc"}
GROWTH = {
    "text": "response.output_text.delta",
    "reasoning": "response.reasoning_text.delta",
    "call": "response.function_call_arguments.delta",
}


class ResponseWriter:
    """Writes one answer, in the order of events that OpenAI's clients expect.

    Args:
        request: its settings are repeated in the answer.
    """

    def __init__(self, request: ResponseRequest) -> None:
        self._settings = _settings(request)
        self._blocks = Blocks()
        self._head: ChatChunk | None = None  # the first chunk: who answers, and when
        self._number = 0  # of the next event

    def write(self, chunk: ChatChunk) -> Iterator[Event]:
        """The events of one chunk; the last one completes the answer."""
        if self._head is None:
            self._head = chunk
            yield self._event("response.created", response=self._response("in_progress"))
            yield self._event("response.in_progress", response=self._response("in_progress"))
        for step in self._blocks.feed(chunk):
            yield from self._events(step)
        if self._blocks.usage is not None:
            response = self.whole()
            yield self._event(f"response.{response['status']}", response=response)

    def failure(self, error: ApiError) -> Event:
        """An answer that failed; a bare error when it had not begun."""
        if self._head is not None:
            code = "server_error" if error.status >= 500 else "invalid_prompt"
            failed = self._response("failed", {"code": code, "message": error.message})
            return self._event("response.failed", response=failed)
        told = error.body()["error"]
        # beside the fields of the event: OpenAI's own clients raise for "error" alone
        return self._event(
            "error", code=told["code"], message=told["message"], param=told["param"], error=told
        )

    def whole(self) -> Response:
        """The answer that was written."""
        return self._response("incomplete" if self._blocks.finish == "length" else "completed")

    def _event(self, kind: str, **fields: Any) -> Event:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **fields}

    def _events(self, step: Step) -> Iterator[Event]:
        block = step.block
        item_id = self._item_id(block)
        item = {"output_index": block.index}
        part: dict[str, Any] = {"item_id": item_id, "output_index": block.index}
        if block.kind != "call":
            part["content_index"] = 0
        match step:
            case Opened():
                yield self._event(
                    "response.output_item.added", **item, item=_item(block, item_id, "in_progress")
                )
                if block.kind != "call":
                    yield self._event("response.content_part.added", **part, part=_part(block))
            case Grown():
                extra = {"logprobs": step.logprobs} if block.kind == "text" else {}
                yield self._event(GROWTH[block.kind], **part, delta=step.piece, **extra)
            case Closed():
                kind, whole = _done(block)
                yield self._event(kind, **part, **whole)
                if block.kind != "call":
                    yield self._event("response.content_part.done", **part, part=_part(block))
                yield self._event(
                    "response.output_item.done", **item, item=_item(block, item_id, _status(block))
                )

    def _item_id(self, block: Block) -> str:
        return f"{PREFIXES[block.kind]}_{self._hex}{block.index:02x}"

    @property
    def _hex(self) -> str:
        """What tells this answer from others: the same as in the log's name of the chat."""
        assert self._head is not None, "nothing is written before the first chunk"
        return self._head["id"].removeprefix("chatcmpl-")

    def _response(self, status: Status, error: ResponseError | None = None) -> Response:
        assert self._head is not None, "nothing is written before the first chunk"
        blocks = () if status == "in_progress" else self._blocks.all
        usage = self._blocks.usage
        return {
            "id": f"resp_{self._hex}",
            "object": "response",
            "created_at": self._head["created"],
            "status": status,
            "error": error,
            "incomplete_details": {"reason": "max_output_tokens"}
            if status == "incomplete"
            else None,
            "model": self._head["model"],
            "output": [_item(b, self._item_id(b), _status(b)) for b in blocks],
            "usage": None if usage is None else _usage(usage),
            **self._settings,
        }


def _status(block: Block) -> Status:
    return "completed" if block.ended else "incomplete"


def _item(block: Block, item_id: str, status: Status) -> OutputItem:
    """The item of a block; its content is empty while it is in progress."""
    match block.kind:
        case "call":
            return {
                "id": item_id,
                "type": "function_call",
                "status": status,
                "call_id": block.call_id,
                "name": block.name,
                "arguments": block.text,
            }
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
                "content": [] if status == "in_progress" else [_thought(block)],
            }


def _part(block: Block) -> OutputText | ReasoningText:
    return _text(block) if block.kind == "text" else _thought(block)


def _text(block: Block) -> OutputText:
    logprobs = list(block.logprobs)  # of now: an event is written later
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": logprobs}


def _thought(block: Block) -> ReasoningText:
    return {"type": "reasoning_text", "text": block.text}


def _done(block: Block) -> tuple[str, dict[str, Any]]:
    """The event that tells a block's whole text: its type and what it tells."""
    match block.kind:
        case "text":
            told = {"text": block.text, "logprobs": list(block.logprobs)}
            return "response.output_text.done", told
        case "reasoning":
            return "response.reasoning_text.done", {"text": block.text}
        case "call":
            told = {"name": block.name, "arguments": block.text}
            return "response.function_call_arguments.done", told


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
        "tools": [tool.model_dump() for tool in request.tools or ()],
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
