"""Tests that a tokenizer gives the ids of tokenizer.json, whatever class a folder names."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from engine.text.tokenizer import read_tokenizer

TEXT = "2020202 hello  you\t<|end|> 123"
MERGES = [("2", "0"), ("20", "2"), ("20", "20"), ("Ġ", "h"), ("h", "e"), ("l", "l")]


def write_folder(folder: Path, model_type: str, tokenizer_class: str | None) -> Tokenizer:
    """Write a folder whose tokenizer splits numbers into runs of three digits, and return it."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for left, right in MERGES:
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, MERGES, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(r"\p{N}{1,3}|[^\s\p{N}]+|\s+"), "isolated")
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, by_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>"), AddedToken("<s>")])
    start = [("<s>", tokenizer.token_to_id("<s>"))]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, start)
    tokenizer.save(str(folder / "tokenizer.json"))
    values = {"tokenizer_class": tokenizer_class, "eos_token": "<|end|>", "chat_template": "hi"}
    named = {key: value for key, value in values.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return tokenizer


@pytest.mark.parametrize(
    ("model_type", "tokenizer_class"),
    [
        ("llama", "GPT2Tokenizer"),
        ("llama", "LlamaTokenizer"),
        ("llama", None),
        ("qwen2", "PreTrainedTokenizerFast"),
        ("qwen2", "Qwen2Tokenizer"),
        ("qwen3", "Qwen2TokenizerFast"),
        ("gemma2", "GemmaTokenizer"),
        ("mistral", "LlamaTokenizerFast"),
        ("phi3", "CodeGenTokenizer"),
        ("llama", "AClassOfNoLibrary"),
    ],
)
def test_ids_are_those_of_the_file(
    model_type: str, tokenizer_class: str | None, tmp_path: Path
) -> None:
    file = write_folder(tmp_path, model_type, tokenizer_class)
    found = read_tokenizer(tmp_path)
    assert found.encode(TEXT) == file.encode(TEXT).ids
    whole = file.encode(TEXT, add_special_tokens=False).ids
    assert found.encode(TEXT, add_special_tokens=False) == whole
    assert found.decode(whole) == TEXT
    assert found.eos_token_id == file.token_to_id("<|end|>")
    assert found.chat_template == "hi"
