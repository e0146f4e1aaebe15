"""Parsers of an answer's text, and the pieces that they return."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, Protocol

BLANKS = frozenset(" \t\n\r")

Kind = Literal["content", "reasoning", "call", "arguments", "markup"]


class Piece(NamedTuple):
    """A stretch of an answer, and what it is.

    Args:
        kind: content or reasoning, which are shown character by character as the model wrote them;
            the start of a call; arguments of the latest call; or markup, which is not shown.
        text: the text to show, the name of the called tool, or more of its arguments.
        width: the number of characters of the answer that this piece covers. The widths of all
            pieces add up to the length of the answer.
    """

    kind: Kind
    text: str
    width: int


def content(text: str) -> Piece:
    """Return `text` as a piece of content."""
    return Piece("content", text, len(text))


def reasoning(text: str) -> Piece:
    """Return `text` as a piece of reasoning."""
    return Piece("reasoning", text, len(text))


def arguments(text: str) -> Piece:
    """Return `text` as a piece of the latest call's arguments."""
    return Piece("arguments", text, len(text))


def markup(text: str) -> Piece:
    """Return a piece that covers `text` without showing it."""
    return Piece("markup", "", len(text))


def merge(pieces: Iterable[Piece]) -> list[Piece]:
    """Return `pieces` with neighbours of the same kind joined and empty pieces left out."""
    merged: list[Piece] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        if last is not None and last.kind == piece.kind != "call":
            merged[-1] = Piece(piece.kind, last.text + piece.text, last.width + piece.width)
        elif piece.text or piece.width:
            merged.append(piece)
    return merged


class Parser(Protocol):
    """A parser of one answer, whose merged pieces do not depend on how the text is cut up."""

    def feed(self, text: str) -> list[Piece]:
        """Read more of the answer, and return the pieces that are certain now."""

    def finish(self) -> list[Piece]:
        """Return the remaining pieces, at the end of the answer."""


class Reader(ABC):
    """A parser that reads single characters, so that it cannot matter how the text is cut up."""

    def feed(self, text: str) -> list[Piece]:
        return [piece for character in text for piece in self._read(character)]

    def finish(self) -> list[Piece]:
        return list(self._end())

    @abstractmethod
    def _read(self, character: str) -> Iterator[Piece]:
        """Yield the pieces that `character` makes certain."""

    @abstractmethod
    def _end(self) -> Iterator[Piece]:
        """Yield the pieces of what was held back, at the end of the answer."""


class PlainText:
    """A parser of answers that are content only."""

    def feed(self, text: str) -> list[Piece]:
        return [content(text)] if text else []

    def finish(self) -> list[Piece]:
        return []


class Chain:
    """A parser that runs two after each other: the second one reads the content of the first.

    Args:
        first: the parser that reads the answer, usually for its reasoning.
        then: the parser that reads the content which `first` finds, usually for its calls.
    """

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
