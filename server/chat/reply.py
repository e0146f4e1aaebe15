"""The conversion of one choice's tokens to the deltas of a chat message. Pure."""

import secrets
from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import compress

from engine.messages import Tokens
from engine.parsing.parser import Parser, Piece, clip, merge
from engine.text.detokenize import TokenBytes
from server.chat.answer_parts import AnswerParts, TokenOffsets
from server.chat.custom_input import InputReader
from server.chat.logprobs import PlacedToken, TokenAligner
from server.schemas.answers import CallDelta, Delta


class Reply:
    """A converter of the engine's tokens for one choice to deltas of its message.

    A token belongs to the part of the answer that has its first character. Origins are reported for
    all tokens, log-probabilities only for tokens of the content.

    Args:
        parser: the parser of this choice.
        spelling: the bytes that each token adds to the text.
        custom_names: the names of the tools whose calls have a text instead of arguments.
        logprobs: whether log-probabilities are reported.
        provenance: whether origins are reported.
    """

    def __init__(
        self,
        parser: Parser,
        spelling: TokenBytes,
        *,
        custom_names: Collection[str] = (),
        logprobs: bool,
        provenance: bool,
    ) -> None:
        self._parser = parser
        self._aligner = TokenAligner(spelling) if logprobs or provenance else None
        self._has_provenance = provenance
        self._offsets = TokenOffsets(spelling)
        self._parts = AnswerParts()
        self._unread = ""  # text that the parser holds back
        self._num_calls = 0
        self._custom_names = custom_names
        self._input: InputReader | None = None  # of the last call, if it is a custom tool's

    def read(self, tokens: Tokens) -> Iterator[tuple[Delta, list[PlacedToken]]]:
        """Yield the deltas that more tokens give, each with the tokens to report in its chunk."""
        pieces = self._parser.feed(tokens.text + tokens.lookahead)
        if tokens.finish is not None:
            pieces += self._parser.finish()
        if tokens.lookahead:
            pieces = clip(pieces, len(self._unread) + len(tokens.text))
        self._offsets.add(tokens.ids)
        start = self._parts.num_characters
        self._parts.add(pieces)
        end = self._parts.num_characters
        text = self._unread + tokens.text
        read, self._unread = text[: end - start], text[end - start :]
        placed = self._place(replace(tokens, text=read))
        for piece in merge(pieces):
            start += piece.width
            if piece.kind == "call":
                yield from self._end_of_input()
            delta = self._delta(piece) if piece.text else {}
            if delta:
                num_tokens = sum(p.offset < start for p in placed)
                yield delta, placed[:num_tokens]
                placed = placed[num_tokens:]
        if tokens.finish is not None:
            yield from self._end_of_input()
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
        """Return the delta of a piece, empty if nothing of it is shown yet."""
        match piece.kind:
            case "content":
                return {"content": piece.text}
            case "reasoning":
                return {"reasoning_content": piece.text}
            case "call":
                return self._first_delta(piece.text)
            case "arguments" if self._input is not None:
                return self._input_delta(self._input.feed(piece.text))
            case "arguments":
                index = self._num_calls - 1
                return {"tool_calls": [{"index": index, "function": {"arguments": piece.text}}]}
            case "markup":
                return {}

    def _first_delta(self, name: str) -> Delta:
        """Return the first delta of a new call."""
        self._num_calls += 1
        call: CallDelta = {
            "index": self._num_calls - 1,
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
        }
        if name in self._custom_names:
            self._input = InputReader()
            call |= {"type": "custom", "custom": {"name": name, "input": ""}}
        else:
            self._input = None
            call["function"] = {"name": name, "arguments": ""}
        return {"tool_calls": [call]}

    def _input_delta(self, text: str) -> Delta:
        if not text:
            return {}
        return {"tool_calls": [{"index": self._num_calls - 1, "custom": {"input": text}}]}

    def _end_of_input(self) -> Iterator[tuple[Delta, list[PlacedToken]]]:
        """Yield what is left of the input of a custom tool at the end of its call."""
        if self._input is not None:
            delta = self._input_delta(self._input.finish())
            self._input = None
            if delta:
                yield delta, []
