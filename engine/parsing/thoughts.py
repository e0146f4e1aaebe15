"""A parser of reasoning between two tags at the start of an answer."""

from collections.abc import Iterator, Mapping

from engine.parsing.parser import BLANKS, Piece, Reader, content, markup, reasoning
from engine.parsing.tags import Tags, is_mark

Pairs = Mapping[str, str]  # the closing tag of each opening tag


class ThinkReader(Reader):
    """A parser of reasoning between two tags; blanks around the reasoning are left out.

    An answer may repeat the opening tag that its prompt ends with, and may begin with the closing
    tag alone. A closing tag is left out if only blanks are between it and the one before: a model
    whose reasoning was closed for it may close it once more.

    Args:
        pairs: the closing tag of each opening tag.
        before: the text that the answer continues. A prompt may end with the opening tag; the
            beginning of an answer may start with it.
        opened: the opening tag of the reasoning with which the answer begins, if `before` does not
            show it; "" if the answer may also begin without reasoning.
    """

    def __init__(self, pairs: Pairs, before: str, opened: str = "") -> None:
        self._opened = find_open_tag(pairs, before) or opened
        self._pairs = {self._opened: pairs[self._opened]} if self._opened else pairs
        self._close: Tags | None = None  # the search for the closing tag, after the opening one
        self._repeat: Tags | None = None  # the search for it once more, until the content begins
        self._held = ""  # blanks, and at the start what may become a tag
        self._start = ""  # what may become a tag at the start, without the blanks before it
        # whether reasoning other than blanks was read, or is in `before`
        self._has_reasoned = bool(begun_thought(self._opened, before).strip())
        self._is_over = False  # whether the reasoning has ended: what follows is content

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
                self._end_reasoning(closed)

    def _look_for_start(self, character: str) -> Iterator[Piece]:
        self._held += character
        if character.isspace() and not self._start:
            return
        self._start += character
        text, closes = self._start, self._pairs.values()
        if text in self._pairs or text in closes:
            yield markup(self._held)
            self._held = ""
            if text in closes:
                self._end_reasoning(text)
            else:
                self._close = Tags(self._pairs[text])
        elif not any(tag.startswith(text) for tag in (*self._pairs, *closes)):
            held, self._held = self._held, ""
            if self._opened:
                self._close = Tags(self._pairs[self._opened])
                for each in held:
                    yield from self._read(each)
            else:
                yield content(held)
                self._is_over = True

    def _read_reasoning(self, character: str) -> Iterator[Piece]:
        if character not in BLANKS:
            yield reasoning(self._held + character)
            self._held, self._has_reasoned = "", True
        elif self._has_reasoned:
            self._held += character
        else:
            yield markup(character)

    def _end_reasoning(self, tag: str) -> None:
        self._is_over, self._repeat = True, Tags(tag)

    def _read_answer(self, character: str) -> Iterator[Piece]:
        if self._repeat is None:
            yield content(character)
            return
        text, closed = self._repeat.feed(character)
        if text and text not in BLANKS:
            yield content(text + self._repeat.finish())
            self._repeat = None
        elif text or closed:
            yield markup(text + closed)

    def _end(self) -> Iterator[Piece]:
        if self._repeat is not None:
            held = self._repeat.finish()
            yield markup(held) if is_mark(held) else content(held)
            return
        if self._close is None:
            is_shown = not self._opened and not is_mark(self._start)
            yield content(self._held) if is_shown else markup(self._held)
            return
        tag = self._close.finish()
        if is_mark(tag):
            yield markup(self._held + tag)
            return
        for each in tag:
            yield from self._read_reasoning(each)
        yield reasoning(self._held)


def begun_thought(opened: str, before: str) -> str:
    """Return the reasoning in `before`, if it is an answer that begins with the tag `opened`."""
    answer = before.lstrip()
    return answer.removeprefix(opened) if opened and answer.startswith(opened) else ""


def find_open_tag(pairs: Pairs, before: str) -> str:
    """Return the opening tag of reasoning that has begun but not ended in `before`, else ""."""
    for opened, close in pairs.items():
        unclosed = before.lstrip().startswith(opened) and close not in before
        if unclosed or before.rstrip().endswith(opened):
            return opened
    return ""
