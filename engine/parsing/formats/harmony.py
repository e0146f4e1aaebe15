"""The format of gpt_oss: messages in channels, `<|channel|>analysis<|message|>...<|end|>`.

The analysis channel is reasoning. The final channel is content, and so is a message to the user in
the commentary channel. A message to `functions.NAME` is a call. One to anything else, such as the
tools that the model was trained with, is a call if its body is an object, and reasoning if not.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from engine.parsing.calls import TOOL_NAME, ArgumentsText, NotACall, Tools
from engine.parsing.format import BOTH, CallSyntax, Format, Thought
from engine.parsing.parser import BLANKS, Piece, Reader, content, markup, reasoning
from engine.parsing.tags import Tags, is_mark
from engine.parsing.thoughts import begun_thought

START, CHANNEL, CONSTRAIN, MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>")
OPEN = f"{CHANNEL}analysis{MESSAGE}"  # the head of a message of reasoning
RECIPIENT = re.compile(rf"to=(?P<namespace>functions\.)?(?P<name>{TOOL_NAME})")
READERS = ("user", "assistant", "all")  # recipients of messages that are no calls
ANALYSIS = re.compile(r"<\|channel\|>\s*analysis")
HEAD_BEGUN = re.compile(r"\s*(<\||(t|to|to=.*|assistant.*)?$)")
LONGEST_HEAD = 256  # characters; a longer head is text of a model that does not use the format


class HarmonyReader(Reader):
    """A parser of messages, each a head and a body.

    Args:
        tools: the tools that may be called.
        head: the head of the message whose body the answer continues; "": it begins inside a head.
    """

    def __init__(self, tools: Tools, head: str = "") -> None:
        self._tools = tools
        self._tags = Tags(START, CHANNEL, MESSAGE, *ENDS)
        self._head: str | None = ""  # what was read of a head; None outside of heads
        self._show = content  # makes the pieces of the body that is being read
        self._call: ArgumentsText | None = None
        self._called = ""  # the tool of a call that is not certain yet
        self._uncertain = ""  # head and body of that call
        self._is_foreign = False  # whether its recipient is no function
        if head:
            list(self._open(head))  # its pieces belong to the text before the answer

    def _read(self, character: str) -> Iterator[Piece]:
        text, tag = self._tags.feed(character)
        for each in text:
            yield from self._read_text(each)
        if tag == MESSAGE and self._head is not None:
            yield from self._open(self._head + tag)
        elif tag == CHANNEL and self._head is not None:
            self._head += tag
        elif tag:
            yield from self._close()
            self._head = tag if tag in (START, CHANNEL) else None
            if self._head is None:
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
        """Begin the body of a message after its head, and yield the piece that covers the head."""
        recipient = RECIPIENT.search(head)
        if recipient is not None and recipient["name"] in READERS:
            recipient = None
        self._head = None
        self._is_foreign = recipient is not None and not recipient["namespace"]
        self._show = reasoning if ANALYSIS.search(head) or self._is_foreign else content
        if recipient is not None and self._tools:
            self._called = recipient["name"]
            self._call, self._uncertain = ArgumentsText(self._called, len(head)), head
        elif recipient is None or self._is_foreign:
            yield markup(head)
        else:
            yield content(head)

    def _read_call(self, call: ArgumentsText, character: str) -> Iterator[Piece]:
        if call.complete and character in BLANKS:
            yield markup(character)
            return
        try:
            if call.complete:
                raise NotACall
            pieces = call.feed(character)
        except NotACall:
            yield from self._leave_call(call)
            yield self._show(character)
            return
        self._uncertain += character
        if pieces:
            self._uncertain = self._called = ""
        yield from pieces

    def _leave_call(self, call: ArgumentsText) -> Iterator[Piece]:
        """Stop reading a call. Complete its arguments if it is certain, else show it as text."""
        uncertain, self._uncertain = self._uncertain, ""
        is_certain, self._called = not self._called, ""
        self._call = None
        if is_certain:
            yield from call.end()
            self._show = content
        elif self._is_foreign:
            head, message, body = uncertain.partition(MESSAGE)
            yield from [markup(head + message), reasoning(body)]
        else:
            yield content(uncertain)
            self._show = content

    def _close(self) -> Iterator[Piece]:
        """End a head or body. An empty body of a call means that the call has no arguments."""
        head, self._head = self._head or "", None
        yield markup(head) if CHANNEL in head or START in head else content(head)
        if self._call is not None and self._uncertain.rstrip().endswith(MESSAGE):
            yield Piece("call", self._called, len(self._uncertain))
            yield Piece("arguments", "{}", 0)
        elif self._call is not None:
            yield from self._leave_call(self._call)
        self._call, self._uncertain, self._called, self._show = None, "", "", content

    def _end(self) -> Iterator[Piece]:
        mark = self._tags.finish()
        head, self._head = self._head or "", None
        is_cut = is_mark(mark) or HEAD_BEGUN.match(head) is not None
        if head:
            yield markup(head + mark) if is_cut else content(head + mark)
        elif is_cut:
            yield markup(mark)
        else:
            for character in mark:
                yield from self._read_text(character)
        if self._call is not None and self._called:  # cut off before it is certain
            yield markup(self._uncertain)
            self._call = None
        yield from self._close()


def recognises(template: str) -> bool:
    """Return whether a chat template contains `<|channel|>` and `<|message|>`."""
    return CHANNEL in template and MESSAGE in template


def parser(tools: Tools, before: str) -> HarmonyReader:
    """Return a parser of one answer, which finds both its calls and its reasoning."""
    return HarmonyReader(tools, OPEN if before.startswith(OPEN) else "")


def thought(before: str, _template: str) -> Thought:
    """Return the marks around the analysis message of an answer."""
    close = f"{ENDS[0]}{START}assistant"
    found = Thought(OPEN, close, end=ENDS[0], repeats=True)
    if not before.startswith(OPEN):
        return found
    return replace(found, begin="", opened=OPEN, begun=begun_thought(OPEN, before))


SYNTAX = CallSyntax(
    begin=f"{CHANNEL}commentary to=functions.%s {CONSTRAIN}json{MESSAGE}",
    end="",  # the mark after a call ends the answer: it is an end-of-sequence token
    separator=None,
    text_begin=f"{CHANNEL}final{MESSAGE}",
)
MARKS = (START, CHANNEL, CONSTRAIN, MESSAGE, *ENDS)
FORMAT = Format(BOTH, recognises, parser, MARKS, SYNTAX, thought)
