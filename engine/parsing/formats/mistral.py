"""The format of Mistral: after `[TOOL_CALLS]`, an array of objects or a name and its arguments."""

import hashlib
import re

from engine.parsing.call_reader import CallReader
from engine.parsing.calls import TOOL_NAME, CallText, HeadedCall, Tools
from engine.parsing.format import TOOLS, CallSyntax, Format

TAG = "[TOOL_CALLS]"
CALL_ID, ARGUMENTS = "[CALL_ID]", "[ARGS]"
HEAD = re.compile(rf"(?P<name>{TOOL_NAME})\s*(\[CALL_ID\]\s*[a-zA-Z0-9]*\s*)?(\[ARGS\])?\s*")
HEAD_BEGUN = re.compile(r"[\w.-]*\s*(\[[\w\[\]\s]*)?")
CALL_ID_FORM = re.compile(r"[a-zA-Z0-9]{9}")


class MistralReader(CallReader):
    """A parser of calls in an array of objects, or as a name and its arguments."""

    def _new_call(self, begin: str) -> CallText | None:
        if re.match(r"[\w.-]", begin):
            return HeadedCall(HEAD, begun=HEAD_BEGUN)
        return super()._new_call(begin)


def recognises(template: str) -> bool:
    """Return whether a chat template contains `[TOOL_CALLS]`, which comes before calls."""
    return TAG in template


def parser(tools: Tools, _before: str) -> MistralReader:
    """Return a parser of one answer."""
    return MistralReader(tools, opens=[TAG])


def call_id(given: str) -> str:
    """Return the id of a call in a form that Mistral's chat templates accept.

    They refuse every id that is not nine letters and digits: for these, return a hash of the id.
    """
    if CALL_ID_FORM.fullmatch(given):
        return given
    return hashlib.sha256(given.encode()).hexdigest()[:9]


SYNTAX = CallSyntax(
    open=f"{TAG} [",
    begin='{"name": "%s", "arguments": ',
    end="}",
    separator=", ",
    close="]",
    trigger=TAG,
)
FORMAT = Format(TOOLS, recognises, parser, (TAG, CALL_ID, ARGUMENTS), SYNTAX, call_id=call_id)
