"""One tool call while it is being written, and answers with such calls in them."""

from collections.abc import Collection, Iterator
from typing import Protocol

from server.parsing.json_object import JsonObject, NotJson
from server.parsing.parser import BLANKS, Piece, Reader, arguments, content, markup
from server.parsing.tags import Tags

ARGUMENTS = ("arguments", "parameters")
MEMBERS = frozenset({"name", "id", "type", *ARGUMENTS})


class NotACall(Exception):
    """What was read only looked like a call."""


class CallText(Protocol):
    """A call that is fed character by character.

    A call is certain, and its pieces come, from where it has the name of a tool and its arguments
    have begun to be a JSON object. Until then it may still turn out to be text.
    """

    @property
    def complete(self) -> bool:
        """Whether it has ended."""

    def feed(self, character: str) -> list[Piece]:
        """Raises `NotACall` at a character that cannot belong to it."""


class ArgumentsText:
    """The bare arguments of a call whose name stood in a head of `width` characters before."""

    def __init__(self, name: str, width: int) -> None:
        self._name = name
        self._width = width
        self._object = JsonObject()
        self._held = ""  # until the brace is followed by what may follow a brace
        self._begun = False

    @property
    def complete(self) -> bool:
        return self._object.complete

    def feed(self, character: str) -> list[Piece]:
        try:
            self._object.feed(character)
        except NotJson:
            raise NotACall from None
        if self._begun:
            return [arguments(character)]
        self._held += character
        if not is_begun(self._held):
            return []
        self._begun = True
        blanks = len(self._held) - len(self._held.lstrip())
        return [Piece("call", self._name, self._width + blanks), arguments(self._held[blanks:])]


def is_begun(text: str) -> bool:
    """Whether the start of a JSON object is more than its brace."""
    return len(text.strip()) > 1


class CallObject:
    """A call as one object, `{"name": ..., "arguments": {...}}`, in either order."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._object = JsonObject()
        self._num_read = 0
        self._arguments = ""  # those not yet given
        self._begun = False

    @property
    def complete(self) -> bool:
        return self._object.complete

    def feed(self, character: str) -> list[Piece]:
        before = self._object.depth
        try:
            self._object.feed(character)
        except NotJson:
            raise NotACall from None
        inner = max(before, self._object.depth) > 1 and self._object.key in ARGUMENTS
        if self._begun:
            return [arguments(character) if inner else markup(character)]
        self._check(character, inner)
        self._num_read += 1
        if inner:
            self._arguments += character
        name = self._object.strings.get("name")
        if name is None or not (is_begun(self._arguments) or self.complete):
            return []
        self._begun = True
        head = Piece("call", name, self._num_read - len(self._arguments))
        return [
            head,
            arguments(self._arguments) if self._arguments else Piece("arguments", "{}", 0),
        ]

    def _check(self, character: str, inner: bool) -> None:
        """Raise `NotACall` as soon as it is certain that this is none."""
        name = self._object.strings.get("name")
        is_known = name is None or name in self._names
        is_member = self._object.key is None or self._object.key in MEMBERS
        no_object = self._object.key in ARGUMENTS and self._object.in_scalar and not inner
        if inner and not self._arguments and character != "{":
            no_object = True
        if not is_known or not is_member or no_object or (self.complete and name is None):
            raise NotACall


class CallReader(Reader):
    """Reads answers whose calls are JSON objects behind or between tags.

    Args:
        names: of the tools; an object with another name is text.
        opens: tags behind which a call may begin.
        closes: tags behind a call, which are then not shown.
        between: characters between two calls that follow each other without a tag.
        at_start: whether the answer may begin with a call that has no tag.
    """

    def __init__(
        self,
        names: Collection[str],
        *,
        opens: Collection[str],
        closes: Collection[str] = (),
        between: str = "",
        at_start: bool = False,
    ) -> None:
        self._names = names
        self._opens = opens
        self._closes = closes
        self._between = frozenset(between)
        self._tags = Tags(*opens, *closes)
        self._may_begin = at_start
        self._held = ""  # tags and blanks: shown if text follows, not if a call does
        self._call: CallText | None = None
        self._call_text = ""
        self._is_certain = False  # the call at hand is one
        self._after_call = False  # no text has followed the last call

    def _read(self, character: str) -> Iterator[Piece]:
        if self._call is not None:
            yield from self._read_call(self._call, character)
            return
        text, tag = self._tags.feed(character)
        for each in text:
            yield from self._read_plain(each)
        if tag:
            yield from self._read_tag(tag)

    def _read_plain(self, character: str) -> Iterator[Piece]:
        """Read a character that belongs to no tag."""
        if self._call is not None:
            yield from self._read_call(self._call, character)
        else:
            yield from self._read_text(character)

    def _read_text(self, character: str) -> Iterator[Piece]:
        call = self._new_call(character) if self._may_begin else None
        if call is not None:
            self._call, self._call_text, self._is_certain = call, "", False
            self._may_begin = False
            for each in character + self._tags.finish():  # tags mean nothing inside a call
                yield from self._read(each)
        elif character in BLANKS:
            self._held += character
        elif (self._after_call or self._may_begin) and character in self._between:
            self._held += character
            self._may_begin = True
        else:
            yield from self._show(character)

    def _new_call(self, character: str) -> CallText | None:
        """A call that begins with this character."""
        return CallObject(self._names) if character == "{" else None

    def _read_tag(self, tag: str) -> Iterator[Piece]:
        if self._after_call and tag in self._closes:
            yield markup(self._held + tag)
            self._held = ""
        elif tag in self._opens:
            self._held += tag
            self._may_begin = True
        else:
            yield from self._show(tag)

    def _read_call(self, call: CallText, character: str) -> Iterator[Piece]:
        try:
            pieces = call.feed(character)
        except NotACall:
            yield from self._leave_call()
            yield from self._read(character)
            return
        if not self._is_certain:
            self._call_text += character
        if pieces and not self._is_certain:
            self._is_certain = True
            yield markup(self._held)
            self._held = ""
        yield from pieces
        if call.complete:
            self._after_call = True
            self._call = None

    def _leave_call(self) -> Iterator[Piece]:
        """What was taken for a call is text, or goes on as text."""
        text, self._call = self._call_text, None
        if not self._is_certain:
            yield from self._show(text)

    def _show(self, text: str) -> Iterator[Piece]:
        yield content(self._held + text)
        self._held = ""
        self._may_begin = self._after_call = False

    def _end(self) -> Iterator[Piece]:
        waiting = self._tags.finish()
        while waiting:
            character, waiting = waiting[0], waiting[1:]
            yield from self._read_plain(character)
            waiting = self._tags.finish() + waiting
        if self._call is not None:
            yield from self._leave_call()
        yield markup(self._held) if self._after_call else content(self._held)
