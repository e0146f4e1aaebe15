"""The format of DeepSeek V3 and R1: `function`, a mark, a name and an object in a fenced block."""

from dataclasses import replace

from engine.parsing.format import CallSyntax
from engine.parsing.formats import deepseek_v31
from engine.parsing.formats.deepseek_v31 import BEGIN, END, SECTION, SECTION_END, SEPARATOR


def recognises(template: str) -> bool:
    """Return whether a chat template has V3's marks of calls and ```json blocks."""
    return BEGIN in template and "```json" in template


SYNTAX = CallSyntax(
    open=SECTION,
    begin=f"{BEGIN}function{SEPARATOR}%s\n```json\n",
    end=f"\n```{END}",
    separator="\n",
    close=SECTION_END,
    trigger=SECTION,
)
FORMAT = replace(deepseek_v31.FORMAT, recognises=recognises, syntax=SYNTAX)
