"""Readers of single tool calls that arrive one character at a time: the JSON of their arguments."""

import json
import re
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from engine.parsing.json_text import JsonText, NotJson, as_json
from engine.parsing.parser import Piece, markup

Tools = Mapping[str, Mapping[str, Any]]  # the JSON schema of each tool's arguments, by its name

NAME = "name"
ARGUMENTS = ("arguments", "parameters")
OTHERS = ("id", "type")
TOOL_NAME = r"[\w.-]{1,128}"
LONGEST_HEAD = 256  # characters; a longer one is text of a model that does not know the format


class NotACall(Exception):
    """The error raised when what was read so far cannot be a tool call."""


def known_name(name: str, tools: Tools) -> str:
    """Return the name of the tool that `name` means, which may have a namespace before it."""
    last = name.rpartition(".")[2]
    return last if name not in tools and last in tools else name


class CallText(Protocol):
    """A reader of one call, fed character by character.

    The call is certain as soon as the name of a tool and the beginning of its arguments have been
    read: from there on `feed` returns pieces. Before that, what was read may still turn out to be
    text.
    """

    @property
    def complete(self) -> bool:
        """Return whether the call has ended."""

    def feed(self, character: str) -> list[Piece]:
        """Read one more character, and return the pieces that are certain now.

        Raise `NotACall` at a character that cannot belong to the call.
        """

    def end(self) -> list[Piece]:
        """Return what completes the arguments if the answer breaks off in a certain call."""


class ArgumentsText:
    """A reader of the arguments of a call whose name was read before.

    Args:
        name: the tool that is called.
        width: the number of characters before the arguments that belong to the call.
        has_bare_keys: whether the keys of objects may have no quotes.
    """

    def __init__(self, name: str, width: int, *, has_bare_keys: bool = False) -> None:
        self._name = name
        self._width = width
        self._object = JsonText(has_bare_keys=has_bare_keys)
        self._read = ""  # what was read while the call was not certain
        self._written = ""  # what was written meanwhile
        self._is_certain = False

    @property
    def complete(self) -> bool:
        return self._object.is_complete

    def feed(self, character: str) -> list[Piece]:
        if not self._read.strip() and not character.isspace() and character != "{":
            raise NotACall
        try:
            text = self._object.feed(character)
        except NotJson:
            raise NotACall from None
        if self._is_certain:
            return [Piece("arguments", text, len(character))]
        self._read += character
        self._written += text
        if not is_begun(self._read):
            return []
        self._is_certain = True
        blanks = len(self._read) - len(self._read.lstrip())
        return [
            Piece("call", self._name, self._width + blanks),
            Piece("arguments", self._written, len(self._read) - blanks),
        ]

    def end(self) -> list[Piece]:
        return [] if self.complete else [Piece("arguments", self._object.finish(), 0)]


def is_begun(text: str) -> bool:
    """Return whether `text`, the beginning of a JSON object, has more than the opening brace."""
    return len(text.strip()) > 1


class HeadedCall:
    """A reader of a call that is a head, such as a name and a tag, then an object of arguments.

    Args:
        head: matches the head and finds the `name` in it.
        end: the tag after a call; a call that ends without arguments has none.
        begun: matches every beginning of a head; None if only its length is limited.
    """

    def __init__(
        self, head: re.Pattern[str], end: str = "", begun: re.Pattern[str] | None = None
    ) -> None:
        self._pattern = head
        self._end = end
        self._begun = begun
        self._head = ""
        self._arguments: ArgumentsText | None = None
        self._is_empty = False

    @property
    def complete(self) -> bool:
        return self._is_empty or (self._arguments is not None and self._arguments.complete)

    def feed(self, character: str) -> list[Piece]:
        if self._arguments is not None:
            return self._arguments.feed(character)
        if character == "{":
            self._arguments = self._new_arguments(self._name(self._head), len(self._head))
            return self._arguments.feed(character)
        self._head += character
        if self._end and self._head.endswith(self._end):
            name = self._name(self._head.removesuffix(self._end))
            self._is_empty = True
            return [Piece("call", name, len(self._head)), Piece("arguments", "{}", 0)]
        is_begun = self._begun is None or self._begun.fullmatch(self._head) is not None
        if len(self._head) > LONGEST_HEAD or not is_begun:
            raise NotACall
        return []

    def end(self) -> list[Piece]:
        return [] if self._arguments is None else self._arguments.end()

    def _new_arguments(self, name: str, width: int) -> ArgumentsText:
        return ArgumentsText(name, width)

    def _name(self, head: str) -> str:
        found = self._pattern.fullmatch(head)
        if found is None:
            raise NotACall
        return found["name"]


Needs = Literal["name", "arguments", "known name"]


class CallObject:
    """A reader of a call that is one object, `{"name": ..., "arguments": {...}}`, in any order.

    Args:
        tools: the tools that may be called.
        needs: what an object must have to be a call: the name of any tool ("name"), arguments too
            if the tool is unknown ("arguments"), or the name of a known tool ("known name").
        name: the key of the tool's name.
        others: the keys of further members that the object may have.
    """

    def __init__(
        self,
        tools: Tools,
        needs: Needs = "name",
        *,
        name: str = NAME,
        others: tuple[str, ...] = OTHERS,
    ) -> None:
        self._tools = tools
        self._needs = needs
        self._name_key = name
        self._members = {name, *ARGUMENTS, *others}
        self._object = JsonText()
        self._arguments: JsonText | None = None
        self._num_read = 0
        self._inner = ""  # the arguments that were read while the call was not certain
        self._written = ""  # the arguments that were written meanwhile
        self._seen: list[str] = []
        self._is_certain = False

    @property
    def complete(self) -> bool:
        return self._object.is_complete

    def feed(self, character: str) -> list[Piece]:
        outer = self._object
        if (
            character == "{"
            and self._arguments is None
            and outer.expects_value
            and outer.depth == 1
            and outer.key in ARGUMENTS
        ):
            self._arguments = JsonText()
        is_inner = self._arguments is not None and not self._arguments.is_complete
        try:
            outer.feed(character)
            text = self._arguments.feed(character) if self._arguments and is_inner else ""
        except NotJson:
            raise NotACall from None
        if self._is_certain:
            return [Piece("arguments", text, 1) if is_inner else markup(character)]
        self._num_read += 1
        if is_inner:
            self._inner += character
            self._written += text
        self._check(is_inner)
        name = self._name()
        if name is None or not self._has_begun(name):
            return []
        self._is_certain = True
        return [
            Piece("call", name, self._num_read - len(self._inner)),
            Piece("arguments", self._written or "{}", len(self._inner)),
        ]

    def end(self) -> list[Piece]:
        if self._arguments is None or self._arguments.is_complete:
            return []
        return [Piece("arguments", self._arguments.finish(), 0)]

    def _name(self) -> str | None:
        """Return the name of the tool if it was read."""
        written = self._object.values.get(self._name_key)
        name = None if written is None else json.loads(written)
        if name is not None and (not isinstance(name, str) or not name):
            raise NotACall
        return name

    def _has_begun(self, name: str) -> bool:
        """Return whether enough was read to be certain that this is a call."""
        self._written = self._written or self._written_arguments()
        is_known = name in self._tools
        if not is_known and self._needs == "known name":
            raise NotACall
        if not is_known and self._needs == "arguments" and self.complete and not self._written:
            raise NotACall
        return is_begun(self._inner) or (bool(self._written) and not self._inner) or self.complete

    def _written_arguments(self) -> str:
        """Return the arguments if the model wrote them as null or as a string with an object.

        Return "" if they were written otherwise or have not been read.
        """
        written = next((self._object.values[k] for k in ARGUMENTS if k in self._object.values), "")
        if written in ("", "null"):
            return "{}" if written else ""
        value = json.loads(written)
        if not isinstance(value, str):
            raise NotACall
        text = as_json(value) if value.strip() else "{}"
        if text is None or not text.startswith("{"):
            raise NotACall
        return text

    def _check(self, is_inner: bool) -> None:
        """Raise `NotACall` if what was read so far cannot be a call."""
        outer = self._object
        if outer.num_keys > len(self._seen):
            assert outer.key is not None
            if outer.key in self._seen or outer.key not in self._members:
                raise NotACall
            self._seen.append(outer.key)
        if outer.depth > 1 and not is_inner and outer.key in (self._name_key, *ARGUMENTS):
            raise NotACall
        if self.complete and self._name_key not in outer.values:
            raise NotACall


class KeyedCall:
    """A reader of a call that is an object with the tool's name as its key, `{"add": {...}}`."""

    def __init__(self) -> None:
        self._head = ""
        self._arguments: ArgumentsText | None = None
        self._is_closed = False

    @property
    def complete(self) -> bool:
        return self._is_closed

    def feed(self, character: str) -> list[Piece]:
        if self._arguments is None:
            if character == "{" and self._head:
                found = re.fullmatch(rf'\{{\s*"(?P<name>{TOOL_NAME})"\s*:\s*', self._head)
                if found is None:
                    raise NotACall
                self._arguments = ArgumentsText(found["name"], len(self._head))
                return self._arguments.feed(character)
            self._head += character
            if len(self._head) > LONGEST_HEAD or not re.match(r'\{\s*("|$)', self._head):
                raise NotACall
            return []
        if not self._arguments.complete:
            return self._arguments.feed(character)
        if character == "}":
            self._is_closed = True
        elif not character.isspace():
            raise NotACall
        return [markup(character)]

    def end(self) -> list[Piece]:
        return [] if self._arguments is None else self._arguments.end()
