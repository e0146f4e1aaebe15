"""Which part of an answer its characters and its tokens belong to. Pure."""

import codecs
from bisect import bisect_right
from collections.abc import Iterable

from engine.text.detokenize import TokenBytes
from server.parsing.parser import Kind, Piece


class Parts:
    """The parts of an answer, by the offset of a character."""

    def __init__(self) -> None:
        self.num_characters = 0
        self._starts: list[int] = []
        self._kinds: list[Kind] = []

    def add(self, pieces: Iterable[Piece]) -> None:
        """The pieces that follow."""
        for piece in pieces:
            if piece.width and piece.kind not in self._kinds[-1:]:
                self._starts.append(self.num_characters)
                self._kinds.append(piece.kind)
            self.num_characters += piece.width

    def at(self, offset: int) -> Kind:
        """The part of a character; of one behind the end: the last part."""
        index = bisect_right(self._starts, offset) - 1
        return self._kinds[index] if self._kinds else "content"


class TokenOffsets:
    """Where the tokens of an answer begin: the characters that those before them complete."""

    def __init__(self, spelling: TokenBytes) -> None:
        self._spelling = spelling
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._num_characters = 0
        self._offsets: list[int] = []

    def add(self, ids: Iterable[int]) -> None:
        """The tokens that follow."""
        for token in ids:
            self._offsets.append(self._num_characters)
            self._num_characters += len(self._utf8.decode(self._spelling[token]))

    def count(self, parts: Parts, kind: Kind) -> int:
        """How many tokens begin in parts of this kind."""
        return sum(parts.at(offset) == kind for offset in self._offsets)
