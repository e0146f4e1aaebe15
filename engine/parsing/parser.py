"""Parsers of an answer's text, and the pieces that they return."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
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


def clip(pieces: Iterable[Piece], width: int) -> list[Piece]:
    """Return the pieces of the first `width` characters of longer content or reasoning."""
    clipped: list[Piece] = []
    for piece in pieces:
        if piece.width > width:
            return [*clipped, Piece(piece.kind, piece.text[:width], width)]
        width -= piece.width
        clipped.append(piece)
    return clipped


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

    A call in reasoning is a call if the answer ends with it, or if no reasoning comes before it and
    other text follows: the model forgot to close its reasoning. The reasoning is held back from
    where such a call may begin.

    Args:
        first: the parser that reads the answer, for its reasoning.
        new_second: makes the parser that reads the content which `first` finds, for its calls.
    """

    def __init__(self, first: Parser, new_second: Callable[[], Parser]) -> None:
        self._first = first
        self._second = new_second()
        self._new_second = new_second
        self._probe = new_second()  # reads the reasoning
        self._found: list[Piece] = []  # by the probe, from the start of the first call on
        self._text = ""  # the reasoning that is held back
        self._has_reasoned = False  # whether reasoning other than blanks was returned
        self._is_over = False  # whether a call has ended the reasoning

    def feed(self, text: str) -> list[Piece]:
        return list(self._pass_on(self._first.feed(text)))

    def finish(self) -> list[Piece]:
        pieces = [*self._pass_on(self._first.finish())]
        if self._text:
            pieces += self._end_reasoning()
        return [*pieces, *self._second.finish()]

    def _pass_on(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            if piece.kind == "reasoning":
                for character in piece.text:
                    if self._is_over:
                        yield from self._second.feed(character)
                    else:
                        yield from self._read_reasoning(character)
                continue
            yield from self._release()
            if piece.kind == "content":
                yield from self._second.feed(piece.text)
            else:
                yield piece

    def _read_reasoning(self, character: str) -> Iterator[Piece]:
        self._text += character
        pieces = self._probe.feed(character)
        for index, piece in enumerate(pieces):
            if piece.kind != "content":
                self._found.append(piece)
            elif not self._found:
                yield from self._show(piece.text)
            elif not piece.text.strip():
                self._found.append(markup(piece.text))
            elif self._is_call_first():
                self._second, self._text, self._is_over = self._probe, "", True
                yield from [*self._found, *pieces[index:]]
                return
            else:  # it goes on after a call
                yield from self._release()
                return

    def _is_call_first(self) -> bool:
        """Return whether the reasoning consists of calls, since nothing comes before them."""
        return not self._has_reasoned and any(piece.kind == "call" for piece in self._found)

    def _show(self, text: str) -> Iterator[Piece]:
        """Yield the beginning of the reasoning that is held back."""
        self._has_reasoned = self._has_reasoned or bool(text.strip())
        self._text = self._text[len(text) :]
        yield reasoning(text)

    def _release(self) -> Iterator[Piece]:
        """Yield the reasoning that was held back: it does not end with a call."""
        if self._text:
            yield from self._show(self._text)
            self._found, self._probe = [], self._new_second()

    def _end_reasoning(self) -> list[Piece]:
        """Return the pieces of what was held back, where the answer ends in reasoning."""
        found = [*self._found, *self._probe.finish()]
        has_call = any(piece.kind == "call" for piece in found)
        if has_call and any(piece.kind == "content" and piece.text.strip() for piece in found):
            return [reasoning(self._text)]
        return [
            piece._replace(kind="reasoning") if piece.kind == "content" else piece
            for piece in found
        ]
