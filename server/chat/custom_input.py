"""The input of a custom tool, read from the arguments of its call while they arrive. Pure."""

import json
import re

from server.schemas.tools import CUSTOM_INPUT

_BEGIN = re.compile(rf'\s*\{{\s*"{CUSTOM_INPUT}"\s*:\s*"')
# Whole characters of a JSON string. A surrogate pair is one character, so a first half waits.
_TEXT = re.compile(
    r'(?:[^"\\]|\\["\\/bfnrt]|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}'
    r"|\\u(?![dD][89abAB])[0-9a-fA-F]{4})*"
)


class InputReader:
    """A reader of arguments `{"input": "..."}`, which gives the text as far as it is known.

    Arguments of another form are given as they are at their end: the tool says what is wrong.
    """

    def __init__(self) -> None:
        self._arguments = ""  # without what was given
        self._is_begun = False
        self._is_ended = False

    def feed(self, piece: str) -> str:
        """Return the text that more of the arguments adds."""
        if self._is_ended:
            return ""
        self._arguments += piece
        if not self._is_begun:
            begin = _BEGIN.match(self._arguments)
            if begin is None:
                return ""
            self._is_begun, self._arguments = True, self._arguments[begin.end() :]
        text = _TEXT.match(self._arguments)
        assert text is not None, "the pattern matches an empty text"
        self._arguments = self._arguments[text.end() :]
        self._is_ended = self._arguments.startswith('"')
        return str(json.loads(f'"{text[0]}"', strict=False))

    def finish(self) -> str:
        """Return what is left at the end of the arguments."""
        if self._is_begun:
            return ""
        try:
            value = json.loads(self._arguments, strict=False)
        except ValueError:
            return self._arguments
        text = value.get(CUSTOM_INPUT) if isinstance(value, dict) else None
        return text if isinstance(text, str) else self._arguments
