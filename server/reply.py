"""One choice of a chat: from the engine's tokens to the deltas of its message. Pure."""

import secrets
from collections.abc import Iterator
from dataclasses import replace
from itertools import compress

from engine.detokenize import TokenBytes
from engine.messages import Tokens
from server.logprobs import LogprobAligner, PlacedLogprob
from server.parsing.pieces import Parser, Piece, merge
from server.parts import Parts, TokenOffsets
from server.schemas.answers import Delta


class Reply:
    """Reads what the engine emits for one choice.

    A token belongs to the part of the answer in which its first character lies; log-probabilities
    are those of the content's tokens.
    """

    def __init__(self, parser: Parser, tokens: TokenBytes, *, logprobs: bool) -> None:
        self._parser = parser
        self._aligner = LogprobAligner(tokens) if logprobs else None
        self._offsets = TokenOffsets(tokens)
        self._parts = Parts()
        self._unread = ""  # text that the parser holds back
        self._num_calls = 0

    def read(self, tokens: Tokens) -> Iterator[tuple[Delta, list[PlacedLogprob]]]:
        """The deltas that more tokens give, and the log-probabilities that ride with each."""
        pieces = self._parser.feed(tokens.text)
        if tokens.finish is not None:
            pieces += self._parser.finish()
        self._offsets.add(tokens.ids)
        start = self._parts.num_characters
        self._parts.add(pieces)
        end = self._parts.num_characters
        text = self._unread + tokens.text
        read, self._unread = text[: end - start], text[end - start :]
        placed = self._place(replace(tokens, text=read))
        for piece in merge(pieces):
            start += piece.width
            riding = 0
            if piece.kind == "content":
                riding = sum(p.offset < start for p in placed)
            if piece.kind != "markup":
                yield self._delta(piece), placed[:riding]
            placed = placed[riding:]
        if placed:
            yield {"content": ""}, placed

    def finish(self, finish: str) -> str:
        """The finish reason of a choice that the engine ended like this."""
        return "tool_calls" if self._num_calls and finish == "stop" else finish

    @property
    def num_reasoning_tokens(self) -> int:
        """Of all tokens so far."""
        return self._offsets.count(self._parts, "reasoning")

    def _place(self, tokens: Tokens) -> list[PlacedLogprob]:
        if self._aligner is None:
            return []
        placed = [self._content_of(placed) for placed in self._aligner.feed(tokens)]
        return [p for p in placed if p is not None]

    def _content_of(self, placed: PlacedLogprob) -> PlacedLogprob | None:
        """A token with those of its bytes that are content; None where it is something else."""
        text = placed.shown.decode(errors="replace")
        is_content = [self._parts.at(placed.offset + i) == "content" for i in range(len(text) or 1)]
        if all(is_content):
            return placed
        kept = "".join(compress(text, is_content))
        return replace(placed, shown=kept.encode()) if kept else None

    def _delta(self, piece: Piece) -> Delta:
        if piece.kind == "content":
            return {"content": piece.text}
        if piece.kind == "reasoning":
            return {"reasoning_content": piece.text}
        if piece.kind == "arguments":
            index = self._num_calls - 1
            return {"tool_calls": [{"index": index, "function": {"arguments": piece.text}}]}
        self._num_calls += 1
        return {
            "tool_calls": [
                {
                    "index": self._num_calls - 1,
                    "id": f"call_{secrets.token_hex(12)}",
                    "type": "function",
                    "function": {"name": piece.text, "arguments": ""},
                }
            ]
        }
