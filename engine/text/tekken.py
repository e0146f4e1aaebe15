"""The files tokenizer.json and tokenizer_config.json for a tekken.json, Mistral's own vocabulary.

The file has the bytes of each token, the regular expression that splits a text into words, and the
special tokens, whose ids come before all others. Two parts of a word are joined if their bytes,
joined, are a token; the token with the lowest id comes first.

Source: `Tekkenizer` of mistral-common, which gives the same ids.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from engine.errors import ModelError, shown

TEKKEN_FILE = "tekken.json"
MOST_BYTES = 1024  # of a token; the longest published one has 128
MOST_TOKENS = 1 << 20
# Files of the first versions do not name these tokens.
_FIRST_SPECIAL = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]"),
    *("[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    "[TOOL_CONTENT]",
)
_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

Json = dict[str, Any]


def tekken_files(values: Mapping[str, Any], path: Path) -> tuple[Json, Json]:
    """Return the contents of tokenizer.json and tokenizer_config.json.

    Raises `ModelError` that names the file and the key.

    Args:
        values: the content of tekken.json.
        path: the file, for messages.
    """
    config = values.get("config")
    if not isinstance(config, dict):
        raise ModelError(f"{path}: config: an object is expected, found {shown(config)}")
    pattern = config.get("pattern")
    if not isinstance(pattern, str):
        raise ModelError(f"{path}: config.pattern: text is expected, found {shown(pattern)}")
    special = _special_tokens(values.get("special_tokens"), config, path)
    most = _number(config, "default_vocab_size", path)
    ranks = _ranks(values.get("vocab"), path, None if most is None else most - len(special))
    roles = {role: token for role, token in _ROLES.items() if token in special}
    begin = [roles["bos_token"]] if "bos_token" in roles else []
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(index, text) for index, text in enumerate(special)],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": pattern},
                    "behavior": "Isolated",
                    "invert": False,
                },
                _BYTES,
            ],
        },
        "post_processor": _beginning(begin[0], special.index(begin[0])) if begin else None,
        "decoder": _BYTES,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # a word that is a token is not divided
            "vocab": {_spelled(token): rank + len(special) for token, rank in ranks.items()}
            | {text: index for index, text in enumerate(special)},
            "merges": [[_spelled(left), _spelled(right)] for left, right in _merges(ranks)],
        },
    }, {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **roles,
    }


def _special_tokens(given: Any, config: Mapping[str, Any], path: Path) -> list[str]:
    """Return the special tokens by their ids, with the names of those that are reserved."""
    texts: list[str] = list(_FIRST_SPECIAL)
    if given is not None:
        texts = []
        for index, entry in enumerate(given if isinstance(given, list) else [given]):
            text = entry.get("token_str") if isinstance(entry, dict) else None
            if not isinstance(text, str) or entry.get("rank") != index:
                raise ModelError(
                    f"{path}: special_tokens.{index}: a token_str and the rank {index} are "
                    f"expected, found {shown(entry)}"
                )
            texts.append(text)
    number = _number(config, "default_num_special_tokens", path)
    number = len(texts) if number is None else number
    if len(texts) > number or len({*texts}) < len(texts):
        raise ModelError(
            f"{path}: special_tokens: at most {number} different tokens are expected, found "
            f"{len(texts)}"
        )
    return texts + [f"<SPECIAL_{index}>" for index in range(len(texts), number)]


def _number(config: Mapping[str, Any], key: str, path: Path) -> int | None:
    value = config.get(key)
    if value is not None and (type(value) is not int or not 0 <= value <= MOST_TOKENS):
        raise ModelError(
            f"{path}: config.{key}: a number up to {MOST_TOKENS} is expected, found {shown(value)}"
        )
    return value


def _ranks(given: Any, path: Path, most: int | None) -> dict[bytes, int]:
    """Return the first `most` tokens with their ranks, all of them if it is None."""
    if not isinstance(given, list) or not given or len(given) > MOST_TOKENS:
        raise ModelError(f"{path}: vocab: a list of up to {MOST_TOKENS} tokens is expected")
    if most is not None and most < 1:
        raise ModelError(f"{path}: config.default_vocab_size: no token of vocab is in it")
    ranks: dict[bytes, int] = {}
    for index, entry in enumerate(given[:most]):
        text = entry.get("token_bytes") if isinstance(entry, dict) else None
        try:
            token = base64.b64decode(text if isinstance(text, str) else "", validate=True)
        except (binascii.Error, ValueError):
            token = b""
        if not 0 < len(token) <= MOST_BYTES or token in ranks or entry.get("rank") != index:
            raise ModelError(
                f"{path}: vocab.{index}: a new token_bytes of up to {MOST_BYTES} bytes, in "
                f"base64, and the rank {index} are expected, found {shown(entry)}"
            )
        ranks[token] = index
    missing = next((byte for byte in range(256) if bytes([byte]) not in ranks), None)
    if missing is not None:
        raise ModelError(f"{path}: vocab: the byte {missing} is no token, so not every text is one")
    return ranks


def _merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the pairs of tokens that are joined to a token, in the order of its rank."""
    for token in ranks:
        halves = ((token[:at], token[at:]) for at in range(1, len(token)))
        pairs = [pair for pair in halves if pair[0] in ranks and pair[1] in ranks]
        yield from sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def _added_token(index: int, text: str) -> Json:
    return {
        "id": index,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _beginning(token: str, index: int) -> Json:
    """Return what puts the token before a text."""
    begin = {"SpecialToken": {"id": token, "type_id": 0}}

    def text(name: str) -> Json:
        return {"Sequence": {"id": name, "type_id": 0}}

    return {
        "type": "TemplateProcessing",
        "single": [begin, text("A")],
        "pair": [begin, text("A"), text("B")],
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]}},
    }


def _spelled(token: bytes) -> str:
    """Return a token in the printable characters that GPT-2's tokenizer writes for bytes."""
    characters = _characters()
    return "".join([characters[byte] for byte in token])


@cache
def _characters() -> Sequence[str]:
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


_BYTES: Json = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": False,
}
