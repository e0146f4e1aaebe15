"""The format of reasoning in tags at the start of an answer, such as `<think>...</think>`."""

from collections.abc import Collection, Iterator

from server.parsing.format import REASONING, Format, Thought
from server.parsing.parser import BLANKS, Piece, Reader, content, markup, reasoning
from server.parsing.tags import Tags

PAIRS = {
    "<think>": "</think>",  # DeepSeek-R1, Qwen3, and most
    "[THINK]": "[/THINK]",  # Magistral
    "<seed:think>": "</seed:think>",
    "<|START_THINKING|>": "<|END_THINKING|>",  # Command A
}


class ThinkReader(Reader):
    """A parser that reads as reasoning what is between the tags, without the blanks around it.

    Args:
        before: the text that the answer continues. A prompt may end with the opening tag; the
            beginning of an answer may start with it.
    """

    def __init__(self, before: str) -> None:
        self._close: Tags | None = None  # the search for the closing tag, after the opening one
        self._held = ""  # blanks, and at the start what may become the opening tag
        self._has_reasoned = False  # whether reasoning other than blanks was read
        self._is_over = False  # whether the reasoning has ended: what follows is content
        self._has_answered = False  # whether content other than blanks was read
        opened = find_open_tag(before)
        if opened:
            self._close = Tags(PAIRS[opened])

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
        if text in PAIRS:
            yield markup(self._held)
            self._held, self._close = "", Tags(PAIRS[text])
        elif not any(tag.startswith(text) for tag in PAIRS):
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
            yield content(self._held)
            return
        for each in self._close.finish():
            yield from self._read_reasoning(each)
        yield reasoning(self._held)


def recognises(template: str) -> bool:
    """Return whether a chat template writes one of the opening tags."""
    return any(tag in template for tag in PAIRS)


def parser(_names: Collection[str], before: str) -> ThinkReader:
    """Return a parser of one answer that continues `before`."""
    return ThinkReader(before)


def find_open_tag(before: str) -> str:
    """Return the tag that the text which an answer continues has left open; "" for none."""
    for opened, close in PAIRS.items():
        unclosed = before.lstrip().startswith(opened) and close not in before
        if unclosed or before.rstrip().endswith(opened):
            return opened
    return ""


def thought(before: str, template: str) -> Thought | None:
    """Return the tags around the reasoning of an answer; None if `before` ends with reasoning.

    They are the tags that `before` has left open, or else those in the chat template, or else
    `<think>`.
    """
    if before.rstrip().endswith(tuple(PAIRS.values())):
        return None
    opened = find_open_tag(before)
    tag = opened or next((tag for tag in PAIRS if tag in template), "<think>")
    return Thought("" if opened else tag, PAIRS[tag])


MARKS = (*PAIRS, *PAIRS.values())
FORMAT = Format(REASONING, recognises, parser, MARKS, thought=thought)
