"""The whole answer is calls, `{"name": ..., "parameters": {...}}`: Llama 3."""

from collections.abc import Collection

from server.parsing.calls import CallReader
from server.parsing.format import TOOLS, CallSyntax, Format

TAG = "<|python_tag|>"  # some of the models write it first


def recognises(template: str) -> bool:
    return "<|start_header_id|>" in template and '"parameters"' in template


def parser(names: Collection[str], _before: str) -> CallReader:
    return CallReader(names, opens=[TAG], between=";,", at_start=True)


SYNTAX = CallSyntax(
    begin='{"name": "%s", "parameters": ', end="}", separator="; ", text_not_begin="{< \t\r\n"
)
FORMAT = Format(TOOLS, recognises, parser, (TAG,), SYNTAX)
