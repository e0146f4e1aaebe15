"""Readers of tool calls that arrive one character at a time, and of answers that contain them."""

from collections.abc import Collection, Iterator
from typing import Protocol

from server.parsing.json_object import JsonObject, NotJson
from server.parsing.parser import BLANKS, Piece, Reader, arguments, content, markup
from server.parsing.tags import Tags

ARGUMENTS = ("arguments", "parameters")
MEMBERS = frozenset({"name", "id", "type", *ARGUMENTS})


class NotACall(Exception):
    """The error raised when what was read so far cannot be a tool call."""


class CallText(Protocol):
    """A reader of one call, fed character by character.

    The call is certain as soon as the name of a tool and the beginning of a JSON object of
    arguments have been read: from there on `feed` returns pieces. Before that, what was read may
    still turn out to be text.
    """

    @property
    def complete(self) -> bool:
        """Return whether the call has ended."""

    def feed(self, character: str) -> list[Piece]:
        """Return the pieces that `character` makes certain.

        Raise `NotACall` at a character that cannot belong to the call.
        """


class ArgumentsText:
    """A reader of the arguments of a call whose name was read before.

    Args:
        name: the tool that is called.
        width: the number of characters before the arguments that belong to the call.
    """

    def __init__(self, name: str, width: int) -> None:
        self._name = name
        self._width = width
        self._object = JsonObject()
        self._held = ""  # what was read while the call was not certain
        self._is_certain = False

    @property
    def complete(self) -> bool:
        return self._object.complete

    def feed(self, character: str) -> list[Piece]:
        try:
            self._object.feed(character)
        except NotJson:
            raise NotACall from None
        if self._is_certain:
            return [arguments(character)]
        self._held += character
        if not is_begun(self._held):
            return []
        self._is_certain = True
        blanks = len(self._held) - len(self._held.lstrip())
        return [Piece("call", self._name, self._width + blanks), arguments(self._held[blanks:])]


def is_begun(text: str) -> bool:
    """Return whether `text`, the beginning of a JSON object, has more than the opening brace."""
    return len(text.strip()) > 1


class CallObject:
    """A reader of a call that is one object, `{"name": ..., "arguments": {...}}`, in any order."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._object = JsonObject()
        self._num_read = 0
        self._arguments = ""  # what was read of them while the call was not certain
        self._is_certain = False

    @property
    def complete(self) -> bool:
        return self._object.complete

    def feed(self, character: str) -> list[Piece]:
        before = self._object.depth
        try:
            self._object.feed(character)
        except NotJson:
            raise NotACall from None
        is_inner = max(before, self._object.depth) > 1 and self._object.key in ARGUMENTS
        if self._is_certain:
            return [arguments(character) if is_inner else markup(character)]
        self._check(character, is_inner)
        self._num_read += 1
        if is_inner:
            self._arguments += character
        name = self._object.strings.get("name")
        if name is None or not (is_begun(self._arguments) or self.complete):
            return []
        self._is_certain = True
        head = Piece("call", name, self._num_read - len(self._arguments))
        return [
            head,
            arguments(self._arguments) if self._arguments else Piece("arguments", "{}", 0),
        ]

    def _check(self, character: str, is_inner: bool) -> None:
        """Raise `NotACall` if what was read up to `character` cannot be a call.

        Args:
            character: the latest character, which `self._object` has already read.
            is_inner: whether it belongs to the object of arguments.
        """
        name = self._object.strings.get("name")
        is_known = name is None or name in self._names
        is_member = self._object.key is None or self._object.key in MEMBERS
        is_no_object = self._object.key in ARGUMENTS and self._object.in_scalar and not is_inner
        if is_inner and not self._arguments and character != "{":
            is_no_object = True
        if not is_known or not is_member or is_no_object or (self.complete and name is None):
            raise NotACall


class CallReader(Reader):
    """A parser of answers whose calls are JSON objects after a tag, or between two tags.

    Args:
        names: the names of the tools; an object with another name is text.
        opens: the tags after which a call may begin.
        closes: the tags that may follow a call; those that do are not shown.
        between: the characters that may come before a call, after a tag or after another call.
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
        self._can_begin = at_start  # whether the next character may begin a call
        self._held = ""  # tags and blanks: shown if text follows, not if a call does
        self._call: CallText | None = None
        self._call_text = ""  # what was read of the call while it was not certain
        self._is_certain = False  # whether the call that is being read is certain
        self._is_after_call = False  # whether no text has followed the last call

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
        """Yield the pieces that a character makes certain which belongs to no tag."""
        if self._call is not None:
            yield from self._read_call(self._call, character)
        else:
            yield from self._read_text(character)

    def _read_text(self, character: str) -> Iterator[Piece]:
        call = self._new_call(character) if self._can_begin else None
        if call is not None:
            self._call, self._call_text, self._is_certain = call, "", False
            self._can_begin = False
            for each in character + self._tags.finish():  # tags mean nothing inside a call
                yield from self._read(each)
        elif character in BLANKS:
            self._held += character
        elif (self._is_after_call or self._can_begin) and character in self._between:
            self._held += character
            self._can_begin = True
        else:
            yield from self._show(character)

    def _new_call(self, character: str) -> CallText | None:
        """Return a reader of a call that may begin with `character`; None if no call does."""
        return CallObject(self._names) if character == "{" else None

    def _read_tag(self, tag: str) -> Iterator[Piece]:
        if self._is_after_call and tag in self._closes:
            yield markup(self._held + tag)
            self._held = ""
        elif tag in self._opens:
            self._held += tag
            self._can_begin = True
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
            self._is_after_call = True
            self._call = None

    def _leave_call(self) -> Iterator[Piece]:
        """Stop reading the current call, and yield it as text unless it was certain already."""
        text, self._call = self._call_text, None
        if not self._is_certain:
            yield from self._show(text)

    def _show(self, text: str) -> Iterator[Piece]:
        yield content(self._held + text)
        self._held = ""
        self._can_begin = self._is_after_call = False

    def _end(self) -> Iterator[Piece]:
        waiting = self._tags.finish()
        while waiting:
            character, waiting = waiting[0], waiting[1:]
            yield from self._read_plain(character)
            waiting = self._tags.finish() + waiting
        if self._call is not None:
            yield from self._leave_call()
        yield markup(self._held) if self._is_after_call else content(self._held)
