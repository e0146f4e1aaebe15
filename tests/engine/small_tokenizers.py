"""Tiny trained tokenizers of the two kinds that causal language models use."""

import json
from functools import cache

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

TEXT = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps; the fox does not.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))  # three",
    "Größe, façade, naïve, señor: accents take two bytes each. Größe! façade!",
    "日本語のテキストも少し。日本語。 Привет, мир! Привет.",
]
SPECIAL = ["<|end|>", "<|start|>"]
ADDED = "<think>"  # an added token that is ordinary text


@cache
def byte_level() -> Tokenizer:
    """Return a tokenizer as GPT-2's: each byte is a printable character, and these are merged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens([AddedToken(ADDED, special=False, normalized=False)])
    return tokenizer


@cache
def sentencepiece() -> Tokenizer:
    """Return a tokenizer as Llama 2's: ▁ for spaces, `<0xNN>` for bytes of unknown characters."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=[*SPECIAL, *bytes_], show_progress=False
    )
    learner.train_from_iterator(TEXT[:2], trainer)
    merges = _merges(learner)
    vocab = learner.get_vocab(with_added_tokens=True)
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    tokenizer.add_tokens([AddedToken(ADDED, special=False, normalized=False)])
    return tokenizer


def id_of(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    assert found is not None, f"{token!r} is not in the vocabulary"
    return int(found)


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    state = json.loads(tokenizer.to_str())
    return [(left, right) for left, right in state["model"]["merges"]]
