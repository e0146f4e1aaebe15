"""The format of gpt_oss: messages in channels, `<|channel|>analysis<|message|>...<|end|>`.

The analysis channel is reasoning. The final channel is content, and so is a message to the user in
the commentary channel. A message to `functions.NAME` is a call.
"""

import re
from collections.abc import Collection, Iterator

from server.parsing.calls import ArgumentsText, NotACall
from server.parsing.format import BOTH, CallSyntax, Format, Thought
from server.parsing.parser import BLANKS, Piece, Reader, content, markup, reasoning
from server.parsing.tags import Tags

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
RECIPIENT = re.compile(r"to=functions\.([a-zA-Z0-9_-]{1,64})")
ANALYSIS = re.compile(r"<\|channel\|>\s*analysis")
LONGEST_HEAD = 256  # characters; a longer head is text of a model that does not use the format


class HarmonyReader(Reader):
    """A parser that reads heads and bodies of messages in turn; an answer begins inside a head."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._tags = Tags(START, MESSAGE, *ENDS)
        self._head: str | None = ""  # what was read of a head; None outside of heads
        self._show = content  # makes the pieces of the body that is being read
        self._call: ArgumentsText | None = None
        self._uncertain = ""  # head and body of a call that is not certain yet

    def _read(self, character: str) -> Iterator[Piece]:
        text, tag = self._tags.feed(character)
        for each in text:
            yield from self._read_text(each)
        if tag == MESSAGE and self._head is not None:
            yield from self._open(self._head + tag)
        elif tag:
            yield from self._close()
            self._head = tag if tag == START else None
            if tag != START:
                yield markup(tag)

    def _read_text(self, character: str) -> Iterator[Piece]:
        if self._head is not None:
            self._head += character
            if len(self._head) > LONGEST_HEAD:
                yield from self._close()
        elif self._call is None:
            yield self._show(character)
        else:
            yield from self._read_call(self._call, character)

    def _open(self, head: str) -> Iterator[Piece]:
        """Begin the body of the message that has the head `head`, and yield the head's piece."""
        recipient = RECIPIENT.search(head)
        self._head = None
        if recipient is not None and recipient[1] in self._names:
            self._call, self._uncertain = ArgumentsText(recipient[1], len(head)), head
            return
        self._show = reasoning if ANALYSIS.search(head) else content
        yield markup(head) if recipient is None else content(head)

    def _read_call(self, call: ArgumentsText, character: str) -> Iterator[Piece]:
        if call.complete and character in BLANKS:
            yield markup(character)
            return
        try:
            if call.complete:
                raise NotACall
            pieces = call.feed(character)
        except NotACall:
            yield from self._close()
            yield content(character)
            return
        self._uncertain = "" if pieces else self._uncertain + character
        yield from pieces

    def _close(self) -> Iterator[Piece]:
        """End a head or body, and yield as content what became neither a message nor a call."""
        head, self._head = self._head or "", None
        yield markup(head) if CHANNEL in head or START in head else content(head)
        yield content(self._uncertain)
        self._call, self._uncertain, self._show = None, "", content

    def _end(self) -> Iterator[Piece]:
        for character in self._tags.finish():
            yield from self._read_text(character)
        yield from self._close()


def recognises(template: str) -> bool:
    """Return whether a chat template writes messages in channels."""
    return CHANNEL in template and MESSAGE in template


def parser(names: Collection[str], _before: str) -> HarmonyReader:
    """Return a parser of one answer, for its calls and its reasoning."""
    return HarmonyReader(names)


def thought(_before: str, _template: str) -> Thought:
    """Return the marks around the analysis message of an answer."""
    return Thought(f"{CHANNEL}analysis{MESSAGE}", f"{ENDS[0]}{START}assistant")


SYNTAX = CallSyntax(
    begin=f"{CHANNEL}commentary to=functions.%s {CONSTRAIN}json{MESSAGE}",
    end="",  # the mark after a call ends the answer: it is an end-of-sequence token
    separator=None,
    text_begin=f"{CHANNEL}final{MESSAGE}",
)
MARKS = (START, CHANNEL, CONSTRAIN, MESSAGE, *ENDS)
FORMAT = Format(BOTH, recognises, parser, MARKS, SYNTAX, thought)
