"""The format of DeepSeek V4: as V3.2, but calls are in `<｜DSML｜tool_calls>`."""

from dataclasses import replace

from engine.parsing.formats import deepseek_v32


def recognises(template: str) -> bool:
    """Return whether a chat template has `｜DSML｜` tags, but no `function_calls` element."""
    return deepseek_v32.MARK in template and "function_calls>" not in template


FORMAT = replace(deepseek_v32.FORMAT, recognises=recognises, syntax=deepseek_v32.syntax_of(1))
