"""The table of characters that a sentencepiece tokenizer replaces (precompiled_charsmap), checked.

It is a trie of darts-clone, a double array, and the texts that its values are places in. The
library follows the trie without checking it, and would panic over a text in a request.

Source: Builder::DecodePrecompiledCharsMap of sentencepiece and darts.h of darts-clone.
"""

import struct

_VALUE = 1 << 31  # marks a unit that is a place in the texts


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


def _offset(unit: int) -> int:
    return unit >> 10 << ((unit & 1 << 9) >> 6)
