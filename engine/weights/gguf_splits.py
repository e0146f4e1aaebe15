"""How the byte-level tokenizers of GGUF files split a text into words.

A file names its split (`tokenizer.ggml.pre`) and not its rules, so only splits of this table are
read; any other would give other ids than the model was trained on.

Source: src/llama-vocab.cpp of llama.cpp, and the tokenizer.json of the models that it names.
"""

from collections.abc import Mapping
from dataclasses import dataclass

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST_SLASH = _REST.replace(r"[\r\n]*|", r"[\r\n/]*|", 1)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_FIRST = r"[^\r\n\p{L}\p{N}]?"
_LLAMA3 = rf"{_CONTRACTIONS}|{_FIRST}\p{{L}}+|\p{{N}}{{1,3}}{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_FIRST}\p{{L}}+|\p{{N}}{_REST}"
_TEKKEN = rf"{_FIRST}{_UPPER}*{_LOWER}+|{_FIRST}{_UPPER}+{_LOWER}*|\p{{N}}{_REST_SLASH}"
_GPT4O = (
    rf"{_FIRST}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_FIRST}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}{_REST_SLASH}"
)


@dataclass(frozen=True)
class Split:
    """How a byte-level tokenizer splits text into words, and what belongs to it.

    Args:
        pattern: the regular expression of the words; None: GPT-2's, which ByteLevel has.
        digits: whether each digit is a word.
        whole: whether a word that is a token is not divided (`ignore_merges`).
        adds_bos: whether a text begins with the beginning token if the file does not say.
        composes: whether characters are composed first (NFC).
    """

    pattern: str | None = None
    digits: bool = False
    whole: bool = False
    adds_bos: bool = False
    composes: bool = False


_LLAMA3_SPLIT = Split(_LLAMA3, whole=True, adds_bos=True)
SPLITS: Mapping[str, Split] = {
    "llama3": _LLAMA3_SPLIT,
    "llama-v3": _LLAMA3_SPLIT,
    "llama-bpe": _LLAMA3_SPLIT,
    "falcon3": _LLAMA3_SPLIT,
    "dbrx": Split(_LLAMA3),  # also Phi 4
    "smaug-bpe": Split(_LLAMA3),
    "qwen2": Split(_QWEN2, composes=True),
    "deepseek-r1-qwen": Split(_QWEN2, composes=True),
    "megrez": Split(_QWEN2, composes=True),
    "tekken": Split(_TEKKEN, whole=True, adds_bos=True),
    "gpt-4o": Split(_GPT4O),
    "llama4": Split(_GPT4O),
    "gpt-2": Split(),
    "granite-docling": Split(),
    "smollm": Split(digits=True),
    "refact": Split(digits=True),  # also Granite 3
    "starcoder": Split(digits=True),
}
