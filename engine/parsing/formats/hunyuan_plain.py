"""The format of Hunyuan 3's models whose tags have no suffix; see `hunyuan.py`."""

from dataclasses import replace

from engine.parsing.formats import hunyuan


def recognises(template: str) -> bool:
    """Return whether a chat template contains `<tool_sep` and `<arg_key`, but no suffix."""
    has_tags = hunyuan.SEPARATOR in template and "<arg_key" in template
    return has_tags and hunyuan.SUFFIX not in template


FORMAT = replace(hunyuan.format_of(""), recognises=recognises)
