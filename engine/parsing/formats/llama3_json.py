"""The format of Llama 3: the whole answer is calls, `{"name": ..., "parameters": {...}}`.

The small models often write calls as `llama_pythonic` does, although they are asked for JSON.
"""

from engine.parsing.calls import Tools
from engine.parsing.format import TOOLS, CallSyntax, Format
from engine.parsing.pythonic import PythonicReader

TAG = "<|python_tag|>"  # some of the models write it first
MARKS = (TAG, "<|python_start|>", "<|python_end|>")
HEADERS = ("<|start_header_id|>", "<|header_start|>")


def recognises(template: str) -> bool:
    """Return whether a chat template has Llama's headers and asks for calls in JSON."""
    has_headers = any(header in template for header in HEADERS)
    return has_headers and '{"name": function name, "parameters"' in template


def parser(tools: Tools, _before: str) -> PythonicReader:
    """Return a parser of one answer, which may begin with a call that has no tag."""
    return PythonicReader(tools, opens=MARKS[:2], closes=MARKS[2:], between="[,];", at_start=True)


SYNTAX = CallSyntax(
    begin='{"name": "%s", "parameters": ', end="}", separator="; ", text_not_begin="{[< \t\r\n"
)
FORMAT = Format(TOOLS, recognises, parser, MARKS, SYNTAX)
