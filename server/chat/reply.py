"""One choice of a chat: from the engine's tokens to the deltas of its message. Pure."""

import secrets
from collections.abc import Iterator
from dataclasses import replace
from itertools import compress

from engine.messages import Tokens
from engine.text.detokenize import TokenBytes
from server.chat.answer_parts import Parts, TokenOffsets
from server.chat.logprobs import PlacedToken, TokenAligner
from server.parsing.parser import Parser, Piece, merge
from server.schemas.answers import Delta


class Reply:
    """Reads what the engine emits for one choice.

    A token belongs to the part of the answer in which its first character lies. The origins of all
    tokens are told, but the log-probabilities of the content's alone.
    """

    def __init__(
        self, parser: Parser, spelling: TokenBytes, *, logprobs: bool, provenance: bool
    ) -> None:
        self._parser = parser
        self._aligner = TokenAligner(spelling) if logprobs or provenance else None
        self._tells_all = provenance
        self._offsets = TokenOffsets(spelling)
        self._parts = Parts()
        self._unread = ""  # text that the parser holds back
        self._num_calls = 0

    def read(self, tokens: Tokens) -> Iterator[tuple[Delta, list[PlacedToken]]]:
        """The deltas that more tokens give, and the tokens that ride with each."""
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
            if piece.text:  # markup has none
                riding = sum(p.offset < start for p in placed)
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

    def _place(self, tokens: Tokens) -> list[PlacedToken]:
        if self._aligner is None:
            return []
        placed = map(self._content_of, self._aligner.feed(tokens))
        return [p for p in placed if self._tells_all or p.logprob is not None]

    def _content_of(self, placed: PlacedToken) -> PlacedToken:
        """A token with those of its bytes that are content; without logprob where none are."""
        text = placed.shown.decode(errors="replace")
        is_content = [self._parts.at(placed.offset + i) == "content" for i in range(len(text) or 1)]
        if all(is_content):
            return placed
        kept = "".join(compress(text, is_content))
        return replace(placed, shown=kept.encode(), logprob=placed.logprob if kept else None)

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
