"""The format of Mistral: after `[TOOL_CALLS]`, an array of objects or a name and its arguments."""

import hashlib
import re
import string
from collections.abc import Collection

from server.parsing.calls import ArgumentsText, CallReader, CallText, NotACall
from server.parsing.format import TOOLS, CallSyntax, Format
from server.parsing.parser import Piece

TAG = "[TOOL_CALLS]"
CALL_ID, ARGUMENTS = "[CALL_ID]", "[ARGS]"
HEAD = re.compile(r"([a-zA-Z0-9_-]{1,64})(\[CALL_ID\][a-zA-Z0-9]*)?(\[ARGS\])?")
CALL_ID_FORM = re.compile(r"[a-zA-Z0-9]{9}")
HEAD_CHARACTERS = frozenset(string.ascii_letters + string.digits + "_-[]")


class NamedCall:
    """A reader of `name{...}`, where `[CALL_ID]...` and `[ARGS]` may come before the arguments."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._head = ""
        self._arguments: ArgumentsText | None = None

    @property
    def complete(self) -> bool:
        return self._arguments is not None and self._arguments.complete

    def feed(self, character: str) -> list[Piece]:
        if self._arguments is not None:
            return self._arguments.feed(character)
        if character in HEAD_CHARACTERS:
            self._head += character
            return []
        head = HEAD.fullmatch(self._head) if character == "{" else None
        if head is None or head[1] not in self._names:
            raise NotACall
        self._arguments = ArgumentsText(head[1], len(self._head))
        return self._arguments.feed(character)


class MistralReader(CallReader):
    """A parser that reads both ways to write calls."""

    def _new_call(self, character: str) -> CallText | None:
        if character in HEAD_CHARACTERS - self._between:
            return NamedCall(self._names)
        return super()._new_call(character)


def recognises(template: str) -> bool:
    """Return whether a chat template writes the tag of calls."""
    return TAG in template


def parser(names: Collection[str], _before: str) -> MistralReader:
    """Return a parser of one answer."""
    return MistralReader(names, opens=[TAG], between="[,]")


def call_id(given: str) -> str:
    """Return `given`, or a hash of it where Mistral's chat templates would refuse it.

    They refuse every id that is not nine letters and digits.
    """
    if CALL_ID_FORM.fullmatch(given):
        return given
    return hashlib.sha256(given.encode()).hexdigest()[:9]


SYNTAX = CallSyntax(
    begin=f'{TAG} [{{"name": "%s", "arguments": ', end="}]", separator=None, trigger=TAG
)
FORMAT = Format(TOOLS, recognises, parser, (TAG, CALL_ID, ARGUMENTS), SYNTAX, call_id=call_id)
