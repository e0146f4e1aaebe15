"""The conversion of a chat's chunks to blocks of reasoning, text and calls, without any I/O."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from server.schemas.answers import CallDelta, ChatChunk, ChatLogprob, Usage

Kind = Literal["reasoning", "text", "call"]


@dataclass
class Block:
    """A consecutive part of an answer that is all of one kind, as far as it has arrived."""

    index: int  # the position among the blocks of the answer
    kind: Kind
    call_id: str = ""
    name: str = ""  # the name of the called tool
    is_custom: bool = False  # whether the tool takes a text instead of arguments
    text: str = ""  # the reasoning, the text, or the arguments or input of the call
    logprobs: list[ChatLogprob] = field(default_factory=list)
    is_complete: bool = False  # whether the block has ended, and not by the token limit

    def append(self, piece: str, logprobs: Sequence[ChatLogprob]) -> None:
        """Append a piece of text and the log-probabilities of its tokens."""
        self.text += piece
        self.logprobs += logprobs

    def close(self, *, is_complete: bool) -> None:
        """Record, when the block ends, whether it is complete."""
        self.is_complete = is_complete


@dataclass(frozen=True)
class BlockStart:
    """The event that a block begins; it has no text yet."""

    block: Block


@dataclass(frozen=True)
class BlockDelta:
    """The event that text was appended to a block."""

    block: Block
    piece: str
    logprobs: Sequence[ChatLogprob]  # of the piece


@dataclass(frozen=True)
class BlockStop:
    """The event that a block has ended."""

    block: Block


BlockEvent = BlockStart | BlockDelta | BlockStop


class BlockReader:
    """A reader of a chat's chunks, which collects the blocks of the chat's only choice.

    Attributes:
        all: the blocks so far, in order.
        finish: the finish reason, once it has arrived.
        stop_string: the stop string that ended the text, if one did.
        usage: the latest usage; None if none has arrived.
        has_ended: whether the last chunk has arrived, which has the whole usage and no choices.
    """

    def __init__(self) -> None:
        self.all: list[Block] = []
        self.finish: str | None = None
        self.stop_string: str | None = None
        self.usage: Usage | None = None
        self.has_ended = False
        self._open: Block | None = None
        self._unplaced: list[ChatLogprob] = []  # of tokens whose text has not arrived yet

    def feed(self, chunk: ChatChunk) -> Iterator[BlockEvent]:
        """Add one chunk, and yield the events for the changes of the blocks, in order."""
        self.usage = chunk.get("usage") or self.usage
        self.has_ended = not chunk["choices"]
        for choice in chunk["choices"]:
            delta = choice["delta"]
            if reasoning := delta.get("reasoning_content"):
                yield from self._append("reasoning", reasoning)
            self._unplaced += choice["logprobs"]["content"] if choice["logprobs"] else []
            text, is_text = delta.get("content") or "", self._open and self._open.kind == "text"
            if text or (is_text and self._unplaced):
                logprobs, self._unplaced = self._unplaced, []
                yield from self._append("text", text, logprobs)
            for call in delta.get("tool_calls", ()):
                is_custom = "custom" in call
                name, piece = _name_and_text(call)
                if "id" in call:
                    yield from self._begin("call", call["id"], name, is_custom=is_custom)
                if piece:
                    yield from self._append("call", piece)
            if choice["finish_reason"] is not None:
                self.finish = choice["finish_reason"]
                reason = choice.get("stop_reason")
                self.stop_string = reason if isinstance(reason, str) else None
                yield from self._close(is_complete=self.finish != "length")

    def _append(
        self, kind: Kind, piece: str, logprobs: Sequence[ChatLogprob] = ()
    ) -> Iterator[BlockEvent]:
        """Append `piece` to the open block if it is of this kind, else to a new block."""
        block = self._open
        if block is None or block.kind != kind:
            yield from self._begin(kind)
            block = self.all[-1]
        block.append(piece, logprobs)
        yield BlockDelta(block, piece, logprobs)

    def _begin(
        self, kind: Kind, call_id: str = "", name: str = "", *, is_custom: bool = False
    ) -> Iterator[BlockEvent]:
        yield from self._close()
        self._open = Block(len(self.all), kind, call_id, name, is_custom)
        self.all.append(self._open)
        yield BlockStart(self._open)

    def _close(self, *, is_complete: bool = True) -> Iterator[BlockEvent]:
        if self._open is not None:
            block, self._open = self._open, None
            block.close(is_complete=is_complete)
            yield BlockStop(block)


def _name_and_text(call: CallDelta) -> tuple[str, str]:
    """Return the tool's name in a delta of a call, which only the first one has, and its text."""
    if "custom" in call:
        return call["custom"].get("name", ""), call["custom"]["input"]
    return call["function"].get("name", ""), call["function"]["arguments"]
