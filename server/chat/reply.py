"""The conversion of one choice's tokens to the deltas of a chat message. Pure."""

import secrets
from collections.abc import Iterator
from dataclasses import replace
from itertools import compress

from engine.messages import Tokens
from engine.text.detokenize import TokenBytes
from server.chat.answer_parts import AnswerParts, TokenOffsets
from server.chat.logprobs import PlacedToken, TokenAligner
from server.parsing.parser import Parser, Piece, merge
from server.schemas.answers import Delta


class Reply:
    """A converter of the engine's tokens for one choice to deltas of its message.

    A token belongs to the part of the answer that has its first character. Origins are reported for
    all tokens, log-probabilities only for tokens of the content.

    Args:
        parser: the parser of this choice.
        spelling: the bytes that each token adds to the text.
        logprobs: whether log-probabilities are reported.
        provenance: whether origins are reported.
    """

    def __init__(
        self, parser: Parser, spelling: TokenBytes, *, logprobs: bool, provenance: bool
    ) -> None:
        self._parser = parser
        self._aligner = TokenAligner(spelling) if logprobs or provenance else None
        self._has_provenance = provenance
        self._offsets = TokenOffsets(spelling)
        self._parts = AnswerParts()
        self._unread = ""  # text that the parser holds back
        self._num_calls = 0

    def read(self, tokens: Tokens) -> Iterator[tuple[Delta, list[PlacedToken]]]:
        """Yield the deltas that more tokens give, each with the tokens to report in its chunk."""
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
                num_tokens = sum(p.offset < start for p in placed)
                yield self._delta(piece), placed[:num_tokens]
                placed = placed[num_tokens:]
        if placed:
            yield {"content": ""}, placed

    def finish(self, finish: str) -> str:
        """Return the finish reason of the choice in the API, given the engine's."""
        return "tool_calls" if self._num_calls and finish == "stop" else finish

    @property
    def num_reasoning_tokens(self) -> int:
        """Return the number of tokens so far that are reasoning."""
        return self._offsets.count(self._parts, "reasoning")

    def _place(self, tokens: Tokens) -> list[PlacedToken]:
        if self._aligner is None:
            return []
        placed = map(self._content_of, self._aligner.feed(tokens))
        return [p for p in placed if self._has_provenance or p.logprob is not None]

    def _content_of(self, placed: PlacedToken) -> PlacedToken:
        """Return a token with only its bytes that are content; without its logprob if none are."""
        text = placed.shown.decode(errors="replace")
        offsets = range(placed.offset, placed.offset + (len(text) or 1))
        is_content = [self._parts.kind_at(offset) == "content" for offset in offsets]
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
