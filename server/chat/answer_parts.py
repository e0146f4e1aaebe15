"""The parts of an answer to which its characters and its tokens belong. Pure."""

import codecs
from bisect import bisect_right
from collections.abc import Iterable

from engine.parsing.parser import Kind, Piece
from engine.text.detokenize import TokenBytes


class AnswerParts:
    """The kinds of an answer's parts, found by the offset of a character."""

    def __init__(self) -> None:
        self.num_characters = 0
        self._starts: list[int] = []
        self._kinds: list[Kind] = []

    def add(self, pieces: Iterable[Piece]) -> None:
        """Append the parts that follow."""
        for piece in pieces:
            if piece.width and piece.kind not in self._kinds[-1:]:
                self._starts.append(self.num_characters)
                self._kinds.append(piece.kind)
            self.num_characters += piece.width

    def kind_at(self, offset: int) -> Kind:
        """Return the kind of the part that has the character at `offset`.

        After the end of the answer it is the kind of the last part.
        """
        index = bisect_right(self._starts, offset) - 1
        return self._kinds[index] if self._kinds else "content"


class TokenOffsets:
    """The offsets at which an answer's tokens begin, in characters.

    A token begins after the characters that the tokens before it complete.
    """

    def __init__(self, spelling: TokenBytes) -> None:
        self._spelling = spelling
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._num_characters = 0
        self._offsets: list[int] = []

    def add(self, ids: Iterable[int]) -> None:
        """Append the tokens that follow."""
        for token in ids:
            self._offsets.append(self._num_characters)
            self._num_characters += len(self._utf8.decode(self._spelling[token]))

    def count(self, parts: AnswerParts, kind: Kind) -> int:
        """Return the number of tokens that begin in parts of this kind."""
        return sum(parts.kind_at(offset) == kind for offset in self._offsets)
