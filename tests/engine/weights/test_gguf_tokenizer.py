"""The tokenizer of a GGUF file has the ids of the tokenizer that the file was made from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from engine.errors import ModelError
from engine.text.tokenizer import read_tokenizer
from engine.weights.gguf_tokenizer import make_tokenizer
from engine.weights.shards import LINK_NAME
from tests.engine.small_tokenizers import ADDED, SPECIAL, TEXT, byte_level, sentencepiece

PATH = Path("model.gguf")
TEXTS = [
    *TEXT,
    "",
    " ",
    "It's 2020202, I'LL  say:\n\n  x\t=  [1,2,3]; // ok\r\n",
    "camelCase HTMLParser ǅ Ünï e\u0301",
    f"<|start|>user\nhello{ADDED}  there<|end|>\n next",
    "unknown: ☃ 🎉",
]
NORMAL, CONTROL, USER = 1, 3, 4


def metadata(tokenizer: Tokenizer, kind: str, **keys: Any) -> dict[str, Any]:
    """Return the metadata that llama.cpp's converter writes for a tokenizer."""
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    added = {str(t.content): t for t in tokenizer.get_added_tokens_decoder().values()}
    tokens = sorted(vocab, key=lambda token: vocab[token])
    kinds = [
        (CONTROL if added[token].special else USER) if token in added else NORMAL
        for token in tokens
    ]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": kind,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    }


def made(values: Mapping[str, Any]) -> Tokenizer:
    tokenizer: Tokenizer = Tokenizer.from_str(json.dumps(make_tokenizer(PATH, values).tokenizer))
    return tokenizer


def split(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Return a split of text as the tokenizer.json of the models have it."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), WORDS])


@pytest.mark.parametrize(
    ("pre", "words", "normalizer"),
    [
        ("gpt-2", WORDS, None),
        ("smollm", DIGITS, None),
        ("refact", DIGITS, None),
        ("llama-bpe", split(LLAMA3), None),
        ("dbrx", split(LLAMA3), None),
        ("qwen2", split(LLAMA3.replace("{1,3}", "")), normalizers.NFC()),
        ("tekken", split(TEKKEN), None),
        ("gpt-4o", split(GPT4O), None),
    ],
)
def test_a_byte_level_tokenizer_keeps_its_ids(pre: str, words: Any, normalizer: Any) -> None:
    original = Tokenizer.from_str(byte_level().to_str())
    original.pre_tokenizer = words
    if normalizer is not None:
        original.normalizer = normalizer
    found = made(metadata(original, "gpt2", pre=pre, add_bos_token=False))
    for text in TEXTS:
        assert found.encode(text).ids == original.encode(text).ids, text
        assert found.decode(found.encode(text).ids) == original.decode(original.encode(text).ids)


def test_a_word_that_is_a_token_stays_whole_where_the_split_says_so() -> None:
    original = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, []))
    for pre, ids in [("llama-bpe", [2]), ("gpt-2", [0, 1])]:
        found = made(metadata(original, "gpt2", pre=pre, add_bos_token=False))
        assert found.encode("ab").ids == ids


def test_gemma4_has_merges_and_special_tokens_that_the_converter_marks_as_text() -> None:
    original = Tokenizer.from_str(sentencepiece().to_str())
    names = ["<turn|>", "<|tool_response>", "<|channel>"]
    original.add_special_tokens([AddedToken(name, special=True) for name in names])
    values = metadata(original, "gemma4", add_space_prefix=False, add_bos_token=False)
    places = [original_tokens(values).index(name) for name in names]
    for place in places[1:]:
        values["tokenizer.ggml.token_type"][place] = USER
    files = make_tokenizer(PATH, {"general.architecture": "gemma4", **values})
    found = made({"general.architecture": "gemma4", **values})
    for text in (*TEXTS, "<|channel>thought\n\n\n done<turn|>"):
        assert found.encode(text).ids == original.encode(text).ids, text
    special = {token["id"] for token in files.tokenizer["added_tokens"] if token["special"]}
    assert special >= set(places) and set(files.eos_ids) >= set(places[:2])
    assert places[2] not in files.eos_ids


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("has_merges", [True, False])
def test_a_sentencepiece_tokenizer_keeps_its_ids(prefix: bool, has_merges: bool) -> None:
    original = Tokenizer.from_str(sentencepiece().to_str())
    spaces = normalizers.Replace(" ", "▁")
    first = [normalizers.Prepend("▁")] if prefix else []
    original.normalizer = normalizers.Sequence([*first, spaces])
    values = metadata(original, "llama", add_space_prefix=prefix, add_bos_token=False)
    merged = values["tokenizer.ggml.merges"]
    if not has_merges:
        # As in sentencepiece, a piece that was merged earlier has the higher score.
        pieces = ["".join(pair.split(" ")) for pair in merged]
        scores = [-float(pieces.index(t)) if t in pieces else -1e9 for t in original_tokens(values)]
        values |= {"tokenizer.ggml.scores": scores, "tokenizer.ggml.merges": None}
    found = made(values)
    for text in TEXTS:
        assert found.encode(text).ids == original.encode(text).ids, text


def original_tokens(values: Mapping[str, Any]) -> list[str]:
    tokens: list[str] = values["tokenizer.ggml.tokens"]
    return tokens


def test_gemma_has_spaces_as_tokens_and_merges_in_the_order_of_the_ids() -> None:
    tokens = ["<pad>", "<bos>", "a", "b", "▁", "  ", "ab", "▁a", "ba"]
    kinds = [CONTROL, CONTROL, NORMAL, NORMAL, NORMAL, USER, NORMAL, NORMAL, NORMAL]
    values = {
        "general.architecture": "gemma3",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.bos_token_id": 1,
    }
    found = made(values)
    assert found.encode("aba").ids == [1, 6, 2]  # "ab" comes before "ba"
    assert found.encode("  ab").ids == [1, 5, 6]
    assert found.decode([5, 6]) == "  ab"


def test_a_beginning_token_is_added_as_the_file_says() -> None:
    tokens = metadata(byte_level(), "gpt2", pre="gpt-2", bos_token_id=1, eos_token_id=0)
    plain = byte_level().encode("fox").ids
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({}, plain),
        ({"add_bos_token": True}, [1, *plain]),
        ({"pre": "llama-bpe"}, [1, *plain]),
        ({"pre": "llama-bpe", "add_bos_token": False, "add_eos_token": True}, [*plain, 0]),
    ]
    for keys, ids in cases:
        values = tokens | {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
        assert made(values).encode("fox").ids == ids


def test_special_tokens_of_phi3_take_the_white_space_after_them() -> None:
    values = metadata(sentencepiece(), "llama", add_bos_token=False, add_space_prefix=False)
    strict = made(values).encode("<|start|>\nThe").ids
    phi = made(values | {"general.name": "Phi 3 Mini"}).encode("<|start|>\nThe").ids
    assert phi == strict
    phi = made(values | {"general.name": "Phi-3-Mini"}).encode("<|start|>\nThe").ids
    assert phi == made(values).encode("<|start|>The").ids != strict


@pytest.mark.parametrize(
    ("names", "keys", "ends"),
    [
        (["a", "<|im_end|>", "<|endoftext|>"], {"eos_token_id": 0}, (0, 1, 2)),
        (["<|return|>", "<|call|>", "<|end|>"], {"eos_token_id": 0}, (0, 1)),
        (["a", "<|end|>"], {"eot_token_id": 0}, (0, 1)),
        (["a", "b"], {"eos_token_id": 1, "eom_token_id": 0}, (0, 1)),
        (["a", "b"], {}, ()),
    ],
)
def test_tokens_that_end_a_turn_are_known_by_their_key_or_text(
    names: list[str], keys: dict[str, int], ends: tuple[int, ...]
) -> None:
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.token_type": [CONTROL] * len(names),
        **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    }
    assert make_tokenizer(PATH, values).eos_ids == ends


def test_tokens_that_only_fill_the_embedding_are_left_out() -> None:
    values = metadata(byte_level(), "gpt2", pre="gpt-2")
    size = len(values["tokenizer.ggml.tokens"])
    values["tokenizer.ggml.tokens"] += [f"[PAD{size}]", "kept"]
    values["tokenizer.ggml.token_type"] += [5, NORMAL]
    found = made(values)
    assert found.token_to_id("kept") == size + 1 and found.token_to_id(f"[PAD{size}]") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "rwkv"}, "tokenizer.ggml.model 'rwkv' is not read"),
        ({"pre": "unheard-of"}, "tokenizer.ggml.pre 'unheard-of' is not known.*gpt-2"),
        ({"pre": None}, "tokenizer.ggml.pre None is not known"),
        ({"tokens": None}, "tokenizer.ggml.tokens: a list of texts is expected"),
        ({"tokens": [1]}, "tokenizer.ggml.tokens: a list is expected"),
        ({"tokens": "abc"}, "tokenizer.ggml.tokens: a list is expected"),
        ({"token_type": [1]}, "tokenizer.ggml.token_type: .* integers is expected"),
        ({"merges": [7]}, "tokenizer.ggml.merges: a list is expected"),
        ({"bos_token_id": 10**9}, "tokenizer.ggml.bos_token_id: an id below"),
        ({"eos_token_id": -1}, "tokenizer.ggml.eos_token_id: an id below"),
        ({"add_bos_token": 1}, "tokenizer.ggml.add_bos_token: true or false"),
        ({"model": "llama", "merges": None}, "tokenizer.ggml.scores: .* numbers is expected"),
    ],
)
def test_wrong_values_are_refused_by_file_and_key(changes: dict[str, Any], message: str) -> None:
    values = metadata(byte_level(), "gpt2", pre="gpt-2")
    values |= {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with pytest.raises(ModelError, match=f"model.gguf: {message}"):
        make_tokenizer(PATH, values)


def test_a_vocabulary_that_takes_long_to_divide_is_refused() -> None:
    values = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["x" * (3 << 20) + str(i) for i in range(8)],
        "tokenizer.ggml.scores": [0.0] * 8,
    }
    with pytest.raises(ModelError, match="at most 16777216 characters"):
        make_tokenizer(PATH, values)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "mistral", "gemma2", "phi3", "gpt_oss"])
def test_the_library_loads_these_ids_for_every_family(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path.parent))
    files = make_tokenizer(PATH, metadata(byte_level(), "gpt2", pre="smollm", eos_token_id=0))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    (tmp_path / LINK_NAME).write_text("{}")
    (tmp_path / "tokenizer.json").write_text(json.dumps(files.tokenizer))
    config = {**files.config, "chat_template": "{{ messages }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = read_tokenizer(tmp_path)
    wanted = Tokenizer.from_str(json.dumps(files.tokenizer))
    for text in TEXTS:
        assert loaded(text)["input_ids"] == wanted.encode(text).ids, text
    assert loaded.chat_template == "{{ messages }}" and loaded.eos_token == SPECIAL[0]
