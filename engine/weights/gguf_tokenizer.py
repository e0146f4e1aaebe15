"""The files tokenizer.json and tokenizer_config.json for the metadata of a GGUF file.

Source: src/llama-vocab.cpp of llama.cpp, and the tokenizer.json of the models that it names.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ModelError, shown
from engine.weights.gguf_charsmap import charsmap_fault, charsmap_normalizers
from engine.weights.gguf_file import Metadata
from engine.weights.gguf_splits import SPLITS, Split

# Values of tokenizer.ggml.token_type.
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_NEVER = 1e3  # less than the lowest score: where the library would find a byte's name in a text
_PADDING = re.compile(r"\[PAD\d+\]")  # a token that the converter adds to fill the embedding
MOST_SPLITS = 1 << 24  # of the pieces of a vocabulary without merges; Gemma's has 2 million
# Tokens that end a turn, which many files do not name as such. llama.cpp knows them by their texts.
_ENDS = frozenset(
    {
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<turn|>",
        "<|tool_response>",  # after which the result of a call is expected
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|return|>",
        "<|call|>",
    }
)
# Special tokens of Gemma 4 that the converter marks as text, so that llama.cpp prints them.
_PRINTED = frozenset(
    {
        "<|channel>",
        "<channel|>",
        "<|tool_call>",
        "<tool_call|>",
        "<|tool_response>",
        "<tool_response|>",
        '<|"|>',
    }
)
_HARMONY_ENDS = frozenset({"<|return|>", "<|call|>"})  # there, <|end|> only ends a part

Json = dict[str, Any]


@dataclass(frozen=True)
class TokenizerFiles:
    """The content of a model's tokenizer files, and the ids of the tokens that end an answer."""

    tokenizer: Json  # of tokenizer.json
    config: Json  # of tokenizer_config.json
    eos_ids: tuple[int, ...]


def make_tokenizer(path: Path, metadata: Metadata) -> TokenizerFiles:
    """Return the tokenizer files. Raises `ModelError` that names the file and the key."""
    vocabulary = _Vocabulary(path, metadata)
    match vocabulary.key("model"):
        case "gpt2":
            tokenizer, adds_bos = _byte_level(vocabulary)
        case "llama" | "gemma4":
            tokenizer, adds_bos = _sentencepiece(vocabulary)
        case "t5":
            tokenizer, adds_bos = _unigram(vocabulary), False
        case other:
            raise ModelError(
                f"{path}: tokenizer.ggml.model {shown(other)} is not read; gpt2, llama, gemma4 and "
                "t5 are. Use the safetensors checkpoint that the file was made of"
            )
    special = {f"{name}_token": vocabulary.token(key) for name, key in _SPECIAL.items()}
    bos = special["bos_token"] if vocabulary.flag("add_bos_token", adds_bos) else None
    eos = special["eos_token"] if vocabulary.flag("add_eos_token", False) else None
    tokenizer |= {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": vocabulary.added_tokens(),
        "post_processor": _post_processor(bos, eos, vocabulary.ids),
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{name: token for name, token in special.items() if token is not None},
    }
    template = metadata.get("tokenizer.chat_template")
    if template is not None:
        if not isinstance(template, str):
            raise ModelError(f"{path}: tokenizer.chat_template: text is expected")
        config["chat_template"] = template
    return TokenizerFiles(tokenizer, config, vocabulary.ends())


_SPECIAL: Mapping[str, str] = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "pad": "padding_token_id",
}


class _Vocabulary:
    """The tokens of a file and their types."""

    def __init__(self, path: Path, metadata: Metadata) -> None:
        self._path = path
        self._metadata = metadata
        self.tokens: list[str] = self._list("tokens", str)
        if not self.tokens:
            raise self._wrong("tokens", "a list of texts")
        self.kinds: list[int] = self._list("token_type", int) or [_NORMAL] * len(self.tokens)
        if len(self.kinds) != len(self.tokens):
            raise self._wrong("token_type", f"{len(self.tokens)} integers")
        self.is_gemma = str(metadata.get("general.architecture", "")).startswith("gemma")
        if self.is_gemma:  # its tokens of several spaces are written with spaces
            self.tokens = ["▁" * len(t) if t and not t.strip(" ") else t for t in self.tokens]
        if self.key("model") == "gemma4":
            pairs = zip(self.tokens, self.kinds, strict=True)
            self.kinds = [_CONTROL if token in _PRINTED else kind for token, kind in pairs]
        self.ids: dict[str, int] = {}
        for index, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True)):
            if kind != _UNUSED or not _PADDING.fullmatch(token):
                self.ids.setdefault(token, index)

    def key(self, name: str) -> Any:
        """Return the value of a key of the tokenizer."""
        return self._metadata.get(f"tokenizer.ggml.{name}")

    def flag(self, name: str, default: bool) -> bool:
        """Return the value of a key that is true or false."""
        value = self.key(name)
        if not isinstance(value, bool | None):
            raise self._wrong(name, "true or false")
        return default if value is None else value

    def token(self, name: str) -> str | None:
        """Return the token whose id a key has; None if there is none."""
        value = self.key(name)
        if value is None:
            return None
        if type(value) is not int or not 0 <= value < len(self.tokens):
            raise self._wrong(name, f"an id below {len(self.tokens)}")
        return self.tokens[value]

    def merges(self) -> list[list[str]]:
        """Return the pairs of tokens that are joined, the first ones first."""
        pairs = []
        for text in self._list("merges", str):
            left, _, right = text[1:].partition(" ")  # a token may begin with a space
            pairs.append([text[:1] + left, right])
        return pairs

    def derived_merges(self) -> list[list[str]]:
        """Return the merges that the scores of a sentencepiece vocabulary imply.

        Those with the highest score are the first. Gemma's scores do not have the order of its
        merges, which is that of the ids.
        """
        ranks = range(len(self.tokens))
        scores = [-float(rank) for rank in ranks] if self.is_gemma else self._scores()
        parts = {t: i for t, i in self.ids.items() if self.kinds[i] in (_NORMAL, _USER)}
        if sum(map(len, parts)) > MOST_SPLITS:
            raise self._wrong("tokens", f"at most {MOST_SPLITS} characters")
        found: list[tuple[float, int, int, int, int]] = []
        for token, index in parts.items():
            for at in range(1, len(token)):
                left = parts.get(token[:at])
                if left is not None and (right := parts.get(token[at:])) is not None:
                    found.append((-scores[index], -at, at - len(token), left, right))
        found.sort()
        return [[self.tokens[left], self.tokens[right]] for *_, left, right in found]

    def scored(self) -> list[tuple[str, float]]:
        """Return each token with the logarithm of its probability, by id."""
        scores = self._scores()
        if not all(map(math.isfinite, scores)):
            raise self._wrong("scores", "finite numbers")
        # The library derives from the lowest score what an unknown character costs.
        kinds = zip(scores, self.kinds, strict=True)
        lowest = min((score for score, kind in kinds if kind == _NORMAL), default=0.0)
        found = []
        for token, score, kind in zip(self.tokens, scores, self.kinds, strict=True):
            known = token if token in self.ids else f"\uffff{token}"  # it fills the embedding
            found.append((known, lowest - _NEVER if kind == _BYTE else max(score, lowest)))
        return found

    def unknown(self) -> int:
        """Return the id of the token for characters that no other token has."""
        if self.token("unknown_token_id") is not None:
            return int(self.key("unknown_token_id"))
        if _UNKNOWN not in self.kinds:
            raise self._wrong("unknown_token_id", f"an id below {len(self.tokens)}")
        return self.kinds.index(_UNKNOWN)

    def charsmap(self) -> bytes | None:
        """Return the table of replaced characters; None if the file has none."""
        value = self.key("precompiled_charsmap")
        if value is None:
            return None
        items = self._list("precompiled_charsmap", int)
        if not all(-128 <= item < 256 for item in items):  # some writers have signed bytes
            raise self._wrong("precompiled_charsmap", "a list of bytes")
        raw = bytes(item & 255 for item in items)
        if (fault := charsmap_fault(raw)) is not None:
            raise self._wrong("precompiled_charsmap", f"a table of characters ({fault})")
        return raw

    def added_tokens(self) -> list[Json]:
        """Return the tokens that are found in a text before it is split."""
        name = str(self._metadata.get("general.name", "")).lower()
        # The file does not say that tokens of Phi-3 take the white space after them.
        strips = ("phi-3" in name or "phi3" in name) and self.key("model") == "llama"
        found = []
        for token, index in self.ids.items():
            kind = self.kinds[index]
            if kind in (_UNKNOWN, _CONTROL, _USER):
                takes = strips and kind != _USER and token not in ("<unk>", "<s>", "<|endoftext|>")
                found.append(
                    {
                        "id": index,
                        "content": token,
                        "single_word": False,
                        "lstrip": False,
                        "rstrip": takes,
                        "normalized": False,
                        "special": kind != _USER,
                    }
                )
        return found

    def ends(self) -> tuple[int, ...]:
        """Return the ids of the tokens that end an answer."""
        texts = {self.token(f"{name}_token_id") for name in ("eos", "eot", "eom")}
        known = {t for t in _ENDS if self.kinds[self.ids.get(t, 0)] == _CONTROL and t in self.ids}
        if known >= _HARMONY_ENDS:
            known.discard("<|end|>")
        return tuple(sorted(self.ids[text] for text in texts | known if text in self.ids))

    def _scores(self) -> list[float]:
        """Return the score of each token."""
        scores: list[float] = self._list("scores", int | float)
        if len(scores) != len(self.tokens):
            raise self._wrong("scores", f"{len(self.tokens)} numbers")
        return scores

    def _list(self, name: str, kind: Any) -> list[Any]:
        """Return the list of a key, empty if there is none. Raises `ModelError` if it is wrong."""
        value = self.key(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            raise self._wrong(name, "a list")
        return value

    def _wrong(self, name: str, expected: str) -> ModelError:
        found = shown(self.key(name))
        return ModelError(
            f"{self._path}: tokenizer.ggml.{name}: {expected} is expected, not {found}"
        )

    def split(self) -> Split:
        """Return how text is split. Raises `ModelError` if that is not known."""
        name = self.key("pre")
        if (found := SPLITS.get(name)) is None:
            raise ModelError(
                f"{self._path}: tokenizer.ggml.pre {shown(name)} is not known, so the tokens of a "
                f"text are not; {', '.join(SPLITS)} are. Use a newer GGUF file of the model, or "
                "its safetensors checkpoint"
            )
        return found


def _byte_level(vocabulary: _Vocabulary) -> tuple[Json, bool]:
    """Return the parts of a tokenizer of byte pairs, and whether it adds a beginning token."""
    split = vocabulary.split()
    words: list[Json] = []
    if split.digits:
        words.append({"type": "Digits", "individual_digits": True})
    if split.pattern is not None:
        pattern = {"Regex": split.pattern}
        words.append({"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False})
    words.append(_bytes(use_regex=split.pattern is None))
    return {
        "normalizer": {"type": "NFC"} if split.composes else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": words},
        "decoder": _bytes(use_regex=True),
        "model": _pairs(vocabulary, vocabulary.merges(), ignore_merges=split.whole),
    }, split.adds_bos


def _bytes(use_regex: bool) -> Json:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _sentencepiece(vocabulary: _Vocabulary) -> tuple[Json, bool]:
    """Return the parts of a tokenizer as Llama 2's; it adds a beginning token."""
    merges = vocabulary.merges() or vocabulary.derived_merges()
    model = _pairs(vocabulary, merges, byte_fallback=True, fuse_unk=True)
    model["unk_token"] = vocabulary.token("unknown_token_id")
    return _spaced(model, vocabulary.flag("add_space_prefix", True)), True


def _unigram(vocabulary: _Vocabulary) -> Json:
    """Return the parts of a tokenizer that finds the most likely tokens, as T5's does."""
    charsmap = vocabulary.charsmap()
    changes: list[Json] = [] if charsmap is None else charsmap_normalizers(charsmap)
    if vocabulary.flag("remove_extra_whitespaces", False):
        for pattern, content in ((r"\A +| +\z", ""), (" {2,}", " ")):
            changes.append({"type": "Replace", "pattern": {"Regex": pattern}, "content": content})
    model = {
        "type": "Unigram",
        "unk_id": vocabulary.unknown(),
        "vocab": vocabulary.scored(),
        "byte_fallback": all(f"<0x{byte:02X}>" in vocabulary.ids for byte in range(256)),
    }
    return _spaced(model, vocabulary.flag("add_space_prefix", False), changes)


def _spaced(model: Json, has_prefix: bool, changes: Sequence[Json] = ()) -> Json:
    """Return the parts of a tokenizer whose tokens have ▁ for spaces.

    Args:
        has_prefix: whether a text begins with ▁.
        changes: what is done to a text before.
    """
    spaces: Json = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    first: list[Json] = [{"type": "Prepend", "prepend": "▁"}] if has_prefix else []
    back: Json = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip: Json = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    last = [strip] if has_prefix else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*changes, *first, spaces]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *last],
        },
        "model": model,
    }


def _pairs(vocabulary: _Vocabulary, merges: Sequence[Sequence[str]], **options: bool) -> Json:
    """Return a model of merged pairs. Added tokens belong to it, so that they keep their ids."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **options,
        "vocab": vocabulary.ids,
        "merges": merges,
    }


def _post_processor(bos: str | None, eos: str | None, ids: Mapping[str, int]) -> Json | None:
    """Return what adds the beginning and the ending token to a text; None if nothing does."""
    added = [token for token in (bos, eos) if token is not None]
    if not added:
        return None

    def around(name: str, kind: int) -> list[Json]:
        parts: list[Json] = [{"Sequence": {"id": name, "type_id": kind}}]
        if bos is not None:
            parts.insert(0, {"SpecialToken": {"id": bos, "type_id": kind}})
        if eos is not None:
            parts.append({"SpecialToken": {"id": eos, "type_id": kind}})
        return parts

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {
            token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in added
        },
    }
