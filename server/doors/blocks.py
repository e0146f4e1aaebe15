"""From a chat's chunks to its blocks: what was thought, what was said, what was called. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from server.schemas.answers import ChatChunk, ChatLogprob, Usage

Kind = Literal["reasoning", "text", "call"]


@dataclass
class Block:
    """One block as far as it is known."""

    index: int  # among the blocks of the answer
    kind: Kind
    call_id: str = ""
    name: str = ""  # of the function called
    text: str = ""  # reasoning, text, or the arguments of a call
    logprobs: list[ChatLogprob] = field(default_factory=list)
    ended: bool = False  # came to its own end, not to a limit

    def grow(self, piece: str, logprobs: Sequence[ChatLogprob]) -> None:
        """Add text that follows, and its log-probabilities."""
        self.text += piece
        self.logprobs += logprobs

    def close(self, *, ended: bool) -> None:
        """Note whether the block came to its own end."""
        self.ended = ended


@dataclass(frozen=True)
class Opened:
    block: Block


@dataclass(frozen=True)
class Grown:
    block: Block
    piece: str
    logprobs: Sequence[ChatLogprob]  # of the piece


@dataclass(frozen=True)
class Closed:
    block: Block


Step = Opened | Grown | Closed


class Blocks:
    """Follows the first choice of a chat; blocks come one after the other."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        self.finish: str | None = None
        self.stop_string: str | None = None  # what ended the text, when a stop string did
        self.usage: Usage | None = None
        self._open: Block | None = None
        self._unplaced: list[ChatLogprob] = []  # of tokens whose text is yet to come

    def feed(self, chunk: ChatChunk) -> Iterator[Step]:
        """What one chunk did to the blocks, in order."""
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk["choices"]:
            delta = choice["delta"]
            if thought := delta.get("reasoning_content"):
                yield from self._grow("reasoning", thought)
            self._unplaced += choice["logprobs"]["content"] if choice["logprobs"] else []
            text, speaks = delta.get("content", ""), self._open and self._open.kind == "text"
            if text or (speaks and self._unplaced):
                logprobs, self._unplaced = self._unplaced, []
                yield from self._grow("text", text, logprobs)
            for call in delta.get("tool_calls", ()):
                function = call["function"]
                if "id" in call:
                    yield from self._begin("call", call["id"], function["name"])
                if piece := function["arguments"]:
                    yield from self._grow("call", piece)
            if choice["finish_reason"] is not None:
                self.finish = choice["finish_reason"]
                reason = choice.get("stop_reason")
                self.stop_string = reason if isinstance(reason, str) else None
                yield from self._close(ended=self.finish != "length")

    def _grow(self, kind: Kind, piece: str, logprobs: Sequence[ChatLogprob] = ()) -> Iterator[Step]:
        block = self._open
        if block is None or block.kind != kind:
            yield from self._begin(kind)
            block = self.all[-1]
        block.grow(piece, logprobs)
        yield Grown(block, piece, logprobs)

    def _begin(self, kind: Kind, call_id: str = "", name: str = "") -> Iterator[Step]:
        yield from self._close()
        self._open = Block(len(self.all), kind, call_id, name)
        self.all.append(self._open)
        yield Opened(self._open)

    def _close(self, *, ended: bool = True) -> Iterator[Step]:
        if self._open is not None:
            block, self._open = self._open, None
            block.close(ended=ended)
            yield Closed(block)
