"""A parser of answers that contain tool calls after tags."""

import re
from collections.abc import Collection, Iterator

from engine.parsing.calls import CallObject, CallText, Needs, NotACall, Tools
from engine.parsing.parser import BLANKS, Piece, Reader, content, markup
from engine.parsing.tags import Tags, is_mark

FENCE = "```json"
LONGEST_REST = 512  # characters of a call that broke off, up to the next tag
OBJECT_BEGUN = '{"name":"'
CALL_BEGUN = re.compile(rf"(?:{re.escape(OBJECT_BEGUN)})?(?P<name>[\w.-]*)")


class CallReader(Reader):
    """A parser of answers whose calls come after a tag, or between two tags.

    A call is a JSON object, unless a subclass overrides `_new_call`.

    Args:
        tools: the tools that may be called. Without any, tags and calls are text.
        opens: the tags after which a call may begin.
        starts: the tags that are themselves the beginning of a call.
        closes: the tags that may follow a call; those that do are not shown.
        between: the characters that may come before a call, after a tag or after another call.
        silent: the tags that are never shown.
        at_start: whether the answer may begin with a call that has no tag.
        fenced: whether an object that names a known tool is a call at the start of the answer and
            in a ```json block too. Models that forget their tags write such calls.
    """

    def __init__(
        self,
        tools: Tools,
        *,
        opens: Collection[str] = (),
        starts: Collection[str] = (),
        closes: Collection[str] = (),
        between: str = "[,]",
        silent: Collection[str] = (),
        at_start: bool = False,
        fenced: bool = False,
    ) -> None:
        self._tools = tools
        fences = {FENCE} if fenced else set()
        self._opens = {*opens, *fences} if tools else set()
        self._starts = frozenset(starts if tools else ())
        self._closes = frozenset(closes)
        self._between = frozenset(between)
        self._silent = frozenset(silent)
        self._tags = Tags(*self._opens, *self._starts, *self._closes, *self._silent)
        self._can_begin = bool(tools) and (at_start or fenced)
        self._is_native = at_start  # whether a call without a tag is written as the model should
        self._open = ""  # the tag that the call at hand comes after
        self._held = ""  # tags and blanks: shown if text follows, not if a call does
        self._call: CallText | None = None
        self._call_text = ""  # what was read of the call while it was not certain
        self._is_certain = False  # whether the call that is being read is certain
        self._is_after_call = False  # whether no text has followed the last call
        self._is_broken = False  # whether that call broke off: its rest is no text

    def _new_call(self, begin: str) -> CallText | None:
        """Return a reader of a call that `begin` may begin; None if no call does.

        `begin` is a character or one of the tags `starts`. The reader is fed with the character
        too, but not with the tag.
        """
        return CallObject(self._tools, self._needs()) if begin == "{" else None

    def _needs(self) -> Needs:
        """Return what an object at this place must have to be a call (see `CallObject`)."""
        if self._open == FENCE or not (self._open or self._is_native):
            return "known name"
        return "name" if self._open else "arguments"

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
        """Read a character that belongs to no tag, and yield the pieces that are certain now."""
        if self._call is not None:
            yield from self._read_call(self._call, character)
        else:
            yield from self._read_text(character)

    def _read_text(self, character: str) -> Iterator[Piece]:
        if self._is_broken and len(self._held) < LONGEST_REST:
            self._held += character
            return
        call = self._new_call(character) if self._can_begin else None
        if call is not None:
            self._begin(call)
            for each in character + self._tags.finish():  # tags mean nothing inside a call
                yield from self._read(each)
        elif character in BLANKS:
            self._held += character
        elif self._is_after_call and self._can_begin and character in self._leftovers():
            yield markup(self._held + character)
            self._held = ""
        elif (self._is_after_call or self._can_begin) and character in self._between:
            self._held += character
            self._can_begin = True
        else:
            yield from self._show(character)

    def _leftovers(self) -> str:
        """Return the characters that are left out between a call and the tag that closes it."""
        return "]}`" if self._open == FENCE else "]}"

    def _begin(self, call: CallText) -> None:
        self._call, self._call_text, self._is_certain = call, "", False

    def _read_tag(self, tag: str) -> Iterator[Piece]:
        if self._is_broken:
            yield markup(self._held)
            self._held, self._is_broken = "", False
        call = self._new_call(tag) if tag in self._starts else None
        if call is not None:
            self._held += tag
            self._open = self._open or tag
            self._begin(call)
        elif tag in self._opens:
            self._held += tag
            self._open, self._can_begin = tag, True
        elif tag in self._silent or (self._is_after_call and tag in self._closes):
            yield markup(self._held + tag)
            self._held = ""
            self._can_begin = False
        else:
            yield from self._show(tag)

    def _read_call(self, call: CallText, character: str) -> Iterator[Piece]:
        try:
            pieces = call.feed(character)
        except NotACall:
            yield from self._leave_call(call)
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
            self._call = None
            self._is_after_call = self._can_begin = True

    def _leave_call(self, call: CallText) -> Iterator[Piece]:
        """Stop reading a call that has broken off; if it is not certain, it is text."""
        self._call = None
        if self._is_certain:
            yield from call.end()
            self._is_after_call = self._can_begin = True
            self._is_broken = bool(self._open)
        else:
            yield from self._show(self._call_text)

    def _show(self, text: str) -> Iterator[Piece]:
        yield content(self._held + text)
        self._held = self._open = ""
        self._can_begin = self._is_after_call = self._is_broken = False

    def _end(self) -> Iterator[Piece]:
        tag = self._tags.finish()
        in_section = self._open or self._is_after_call
        if self._call is None and (is_mark(tag) or (tag and in_section)):
            self._held += tag
            self._open = self._open or tag
        else:
            for character in tag:
                yield from self._read_plain(character)
        call, text = self._call, ""
        if call is not None and self._is_certain:
            yield from call.end()
        elif call is not None:
            text = self._call_text
        is_cut = self._open or self._is_after_call or (call and self._is_call_begun(text))
        is_cut = is_cut and not self._is_broken
        self._call, text, self._held = None, self._held + text, ""
        yield markup(text) if is_cut else content(text)

    def _is_call_begun(self, text: str) -> bool:
        """Return whether `text`, with which the answer breaks off, may begin a call."""
        begun = "".join((self._held + text).split()).lstrip("[")
        if len(begun) > 1 and OBJECT_BEGUN.startswith(begun):
            return True
        found = CALL_BEGUN.match(begun)
        assert found is not None, "it matches any text"
        return any(name.startswith(found["name"]) for name in self._tools if found["name"])
