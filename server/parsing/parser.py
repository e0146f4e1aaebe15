"""What a parser makes of an answer's text, and how it is read: one character at a time."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, Protocol

BLANKS = frozenset(" \t\n\r")

Kind = Literal["content", "reasoning", "call", "arguments", "markup"]


class Piece(NamedTuple):
    """Some of an answer: shown as content or reasoning, a call's start (`text` is the name of the
    tool) or more of its arguments; or markup, which is not shown.

    `width` is how many characters of the answer it stands for; over all pieces they add up to the
    answer. Content and reasoning are what the model wrote, character by character.
    """

    kind: Kind
    text: str
    width: int


def content(text: str) -> Piece:
    return Piece("content", text, len(text))


def reasoning(text: str) -> Piece:
    return Piece("reasoning", text, len(text))


def arguments(text: str) -> Piece:
    return Piece("arguments", text, len(text))


def markup(text: str) -> Piece:
    return Piece("markup", "", len(text))


def merge(pieces: Iterable[Piece]) -> list[Piece]:
    """Neighbours of one kind as one piece; nothing that stands for nothing."""
    merged: list[Piece] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        if last is not None and last.kind == piece.kind != "call":
            merged[-1] = Piece(piece.kind, last.text + piece.text, last.width + piece.width)
        elif piece.text or piece.width:
            merged.append(piece)
    return merged


class Parser(Protocol):
    """Reads one answer. What it says does not depend on how the text was cut."""

    def feed(self, text: str) -> list[Piece]:
        """More of the answer: what is certain by now."""

    def finish(self) -> list[Piece]:
        """The answer ends: the rest."""


class Reader(ABC):
    """A parser that sees single characters, so that no cut can matter to it."""

    def feed(self, text: str) -> list[Piece]:
        return [piece for character in text for piece in self._read(character)]

    def finish(self) -> list[Piece]:
        return list(self._end())

    @abstractmethod
    def _read(self, character: str) -> Iterator[Piece]:
        """The pieces that this character makes certain."""

    @abstractmethod
    def _end(self) -> Iterator[Piece]:
        """The pieces of what was held back."""


class PlainText:
    """The parser of answers in which there is nothing to find."""

    def feed(self, text: str) -> list[Piece]:
        return [content(text)] if text else []

    def finish(self) -> list[Piece]:
        return []


class Chain:
    """Reasoning comes first; what is left of the answer goes to the parser of calls."""

    def __init__(self, first: Parser, then: Parser) -> None:
        self._first = first
        self._then = then

    def feed(self, text: str) -> list[Piece]:
        return list(self._pass_on(self._first.feed(text)))

    def finish(self) -> list[Piece]:
        return [*self._pass_on(self._first.finish()), *self._then.finish()]

    def _pass_on(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            if piece.kind == "content":
                yield from self._then.feed(piece.text)
            else:
                yield piece
