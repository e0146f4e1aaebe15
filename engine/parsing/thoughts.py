"""A parser of reasoning between two tags at the start of an answer."""

from collections.abc import Iterator, Mapping

from engine.parsing.parser import BLANKS, Piece, Reader, content, markup, reasoning
from engine.parsing.tags import Tags, is_mark

Pairs = Mapping[str, str]  # the closing tag of each opening tag


class ThinkReader(Reader):
    """A parser of reasoning between two tags; blanks around the reasoning are left out.

    Args:
        pairs: the closing tag of each opening tag.
        before: the text that the answer continues. A prompt may end with the opening tag; the
            beginning of an answer may start with it.
    """

    def __init__(self, pairs: Pairs, before: str) -> None:
        self._pairs = pairs
        self._close: Tags | None = None  # the search for the closing tag, after the opening one
        self._held = ""  # blanks, and at the start what may become the opening tag
        self._has_reasoned = False  # whether reasoning other than blanks was read
        self._is_over = False  # whether the reasoning has ended: what follows is content
        self._has_answered = False  # whether content other than blanks was read
        opened = find_open_tag(pairs, before)
        if opened:
            self._close = Tags(pairs[opened])

    def _read(self, character: str) -> Iterator[Piece]:
        if self._is_over:
            yield from self._read_answer(character)
        elif self._close is None:
            yield from self._look_for_start(character)
        else:
            text, closed = self._close.feed(character)
            for each in text:
                yield from self._read_reasoning(each)
            if closed:
                yield markup(self._held + closed)
                self._held = ""
                self._is_over = True

    def _look_for_start(self, character: str) -> Iterator[Piece]:
        self._held += character
        text = self._held.lstrip()
        if text in self._pairs:
            yield markup(self._held)
            self._held, self._close = "", Tags(self._pairs[text])
        elif not any(tag.startswith(text) for tag in self._pairs):
            yield content(self._held)
            self._held, self._is_over, self._has_answered = "", True, True

    def _read_reasoning(self, character: str) -> Iterator[Piece]:
        if character not in BLANKS:
            yield reasoning(self._held + character)
            self._held, self._has_reasoned = "", True
        elif self._has_reasoned:
            self._held += character
        else:
            yield markup(character)

    def _read_answer(self, character: str) -> Iterator[Piece]:
        self._has_answered = self._has_answered or character not in BLANKS
        yield content(character) if self._has_answered else markup(character)

    def _end(self) -> Iterator[Piece]:
        if self._close is None:
            is_cut = is_mark(self._held.lstrip()) and not self._is_over
            yield markup(self._held) if is_cut else content(self._held)
            return
        for each in self._close.finish():
            yield from self._read_reasoning(each)
        yield reasoning(self._held)


def find_open_tag(pairs: Pairs, before: str) -> str:
    """Return the opening tag of reasoning that has begun but not ended in `before`, else ""."""
    for opened, close in pairs.items():
        unclosed = before.lstrip().startswith(opened) and close not in before
        if unclosed or before.rstrip().endswith(opened):
            return opened
    return ""
