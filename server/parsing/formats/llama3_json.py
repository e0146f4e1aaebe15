"""The format of Llama 3: an answer is text or only calls, `{"name": ..., "parameters": {...}}`."""

from collections.abc import Collection

from server.parsing.calls import CallReader
from server.parsing.format import TOOLS, CallSyntax, Format

TAG = "<|python_tag|>"  # some of the models write it before the first call


def recognises(template: str) -> bool:
    """Return whether a chat template has the headers of Llama 3 and writes calls as JSON."""
    return "<|start_header_id|>" in template and '"parameters"' in template


def parser(names: Collection[str], _before: str) -> CallReader:
    """Return a parser of one answer, which may begin with a call that has no tag."""
    return CallReader(names, opens=[TAG], between=";,", at_start=True)


SYNTAX = CallSyntax(
    begin='{"name": "%s", "parameters": ', end="}", separator="; ", text_not_begin="{< \t\r\n"
)
FORMAT = Format(TOOLS, recognises, parser, (TAG,), SYNTAX)
