"""The table of characters that a sentencepiece tokenizer replaces (precompiled_charsmap), checked.

It is a trie of darts-clone, a double array, and the texts that its values are places in. The
library follows the trie without checking it, and would panic over a text in a request.

Source: Builder::DecodePrecompiledCharsMap of sentencepiece and darts.h of darts-clone.
"""

import base64
import struct
from typing import Any

_VALUE = 1 << 31  # marks a unit that is a place in the texts
_END = "\r\n"  # of a line
_HAS_VALUE = 1 << 8  # marks a unit whose text ends there


def charsmap_fault(raw: bytes) -> str | None:
    """Return what is wrong with a table, or None if no text can lead out of it."""
    if len(raw) < 4:
        return "it has no length"
    (size,) = struct.unpack_from("<I", raw)
    if size % 1024 or not 0 < size <= len(raw) - 4:  # blocks of 256 units
        return f"its trie has {size} bytes, and {len(raw) - 4} follow"
    texts = raw[4 + size :]
    try:
        texts.decode()
    except UnicodeDecodeError:
        return "its texts are no UTF-8"
    units = struct.unpack_from(f"<{size // 4}I", raw, 4)
    for index, unit in enumerate(units):
        if unit & _VALUE:
            place = unit & ~_VALUE
            if place >= len(texts) or texts[place] & 0xC0 == 0x80:  # within a character
                return f"unit {index} of its trie is a place outside of its texts"
            continue
        if (index ^ _offset(unit)) | 0xFF >= len(units):  # of any byte that may follow
            return f"unit {index} of its trie leads out of it"
    return None


def charsmap_normalizers(raw: bytes) -> list[dict[str, Any]]:
    """Return the normalizers of a tokenizer.json for a table that has no fault.

    The library takes the two characters of an end of line for one, and would replace both by what
    the first becomes.
    """
    encoded = base64.b64encode(raw).decode()
    found: dict[str, Any] = {"type": "Precompiled", "precompiled_charsmap": encoded}
    end = "".join(_replaced(raw, char) for char in _END)
    before = {"type": "Replace", "pattern": {"String": _END}, "content": end}
    return [found] if end == _END else [before, found]


def _replaced(raw: bytes, char: str) -> str:
    """Return what a table makes of a character: itself if the table does not have it."""
    (size,) = struct.unpack_from("<I", raw)
    units = struct.unpack_from(f"<{size // 4}I", raw, 4)
    node, unit = _offset(units[0]), 0
    for byte in char.encode():
        node ^= byte
        unit = units[node]
        if unit & (_VALUE | 0xFF) != byte:
            return char
        node ^= _offset(unit)
    if not unit & _HAS_VALUE:
        return char
    place = 4 + size + (units[node] & ~_VALUE)
    return raw[place:].partition(b"\0")[0].decode()


def _offset(unit: int) -> int:
    return unit >> 10 << ((unit & 1 << 9) >> 6)
