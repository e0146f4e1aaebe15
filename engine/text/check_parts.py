"""The parts of a tokenizer.json that the installed tokenizers library does not know.

The library's own message for such a part does not name it, and fields of a part that it does not
know are left out without a word. This module is used in the process of `engine.text.check`.
"""

import json
from collections.abc import Iterator
from typing import Any

import tokenizers
from tokenizers import Tokenizer

_REMEDY = (
    f"tokenizers {tokenizers.__version__} is installed. If a newer version wrote the file, install "
    "that: pip install --upgrade tokenizers transformers"
)
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "model")
_KEYS = frozenset({"version", "truncation", "padding", "added_tokens", *_PARTS})
_EMPTY_MODEL = {"type": "BPE", "vocab": {}, "merges": []}
_OLD_FIELDS = frozenset({"add_prefix_space", "str_rep"})  # of Metaspace, in files of old versions
LONGEST = 300  # characters of the library's message


def fault_of_parts(values: object, *, is_read: bool) -> str:
    """Return which part of a tokenizer.json the library does not read whole, or "".

    `is_read`: whether it reads the file as a whole; then only fields may be unknown.
    """
    if not isinstance(values, dict):
        return ""
    for key in values:
        if key not in _KEYS:
            return f"{key[:64]}: no part of the file that is known. {_REMEDY}"
    for key in _PARTS:
        part = values.get(key)
        if isinstance(part, dict) and (reason := _fault(key, part, is_read)):
            return f"{reason}. {_REMEDY}"
    return ""


def _fault(key: str, part: dict[str, Any], is_read: bool) -> str:
    """Return what of a part the library does not know, or ""."""
    alone = part
    if key == "model":  # without its words, of which there are many
        vocabulary: object = [] if isinstance(part.get("vocab"), list) else {}
        alone = part | {"vocab": vocabulary, "merges": []}
        alone |= {"unk_id": None} if "unk_id" in part else {}
    whole = {"added_tokens": [], "model": _EMPTY_MODEL, key: alone}
    try:
        read = json.loads(Tokenizer.from_str(json.dumps(whole)).to_str())[key]
    except BaseException as error:  # the end of this process: also what is no Exception, a panic
        if isinstance(error, MemoryError):
            raise
        if is_read:  # it is read with its words only
            return ""
        types = ", ".join([*dict.fromkeys(_types(part))][:8])
        return f"{key} (type {types or 'missing'}): {str(error)[:LONGEST]}"
    unknown = next(_unknown_fields(alone, read), "")
    return f"{key}: the field {unknown} is not known" if unknown else ""


def _types(part: object) -> Iterator[str]:
    """Yield the names of all types in a part."""
    for value in (
        part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    ):
        yield from _types(value)
    if isinstance(part, dict) and isinstance(part.get("type"), str):
        yield part["type"][:64]


def _unknown_fields(given: object, read: object) -> Iterator[str]:
    """Yield the fields with a value that a part has in the file and not in the library."""
    if isinstance(given, list) and isinstance(read, list):
        for inner, own in zip(given, read, strict=False):
            yield from _unknown_fields(inner, own)
    if not (isinstance(given, dict) and isinstance(read, dict) and "type" in given):
        return
    for field, value in given.items():
        if field in read:
            yield from _unknown_fields(value, read[field])
        elif value and field not in _OLD_FIELDS:
            yield field[:64]
