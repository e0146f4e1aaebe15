"""A tokenizer of likely tokens (unigram) in a GGUF file has the ids of the one it was made from."""

import base64
import json
import re
import struct
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from engine.errors import ModelError
from engine.text.detokenize import TokenBytes
from engine.weights.gguf_charsmap import charsmap_fault
from engine.weights.gguf_tokenizer import make_tokenizer
from tests.engine.small_tokenizers import ADDED, TEXT

PATH = Path("model.gguf")
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
FIRST = {"<unk>": UNKNOWN, "</s>": CONTROL}
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TEXTS = [
    *TEXT,
    "",
    " ",
    "  two  spaces   here  ",
    "unknown: ☃☃ 🎉, ﬁne\tﬁ",
    "\n lines\r\n\n end \n",
    "names of bytes: <0x41> <0x0A>",
    "the fox thefoxthefox jumpsoverthelazydogs, addadd(addreturn",
]
REPLACED = {"\t": " ", "ﬁ": "fi", "é": "e"}


def charsmap() -> bytes:
    """Return the table of `REPLACED`, as sentencepiece compiles it: a double array and texts."""
    units, texts, used = [0] * 256, b"", {0: 0}

    def child(node: int, byte: int) -> int:
        """Return the node after a byte. A node is the place of its unit; it has its own block."""
        base = used.setdefault(node, 0) or len(units)
        if base == len(units):
            units.extend([0] * 256)
            used[node] = base
            units[node] |= (node ^ base) << 10
        units[base ^ byte] |= byte
        return base ^ byte

    for source, target in REPLACED.items():
        node = 0
        for byte in source.encode():
            node = child(node, byte)
        units[child(node, 0)] = 1 << 31 | len(texts)
        units[node] |= 1 << 8  # it has a value
        texts += target.encode() + b"\0"
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + texts


@cache
def vocabulary(has_bytes: bool) -> list[tuple[str, float]]:
    """Return trained tokens with their scores, of which some are single characters."""
    learner = Tokenizer(models.Unigram())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=220, special_tokens=[*FIRST], unk_token="<unk>", show_progress=False
    )
    learner.train_from_iterator([*TEXT[:2] * 3, "names of bytes: <0x41>"], trainer)
    pieces: list[tuple[str, float]] = json.loads(learner.to_str())["model"]["vocab"]
    noise = Random(0)  # no two divisions of a text are equally likely
    pieces = [(token, score - noise.random()) for token, score in pieces if token != "</s>"]
    first, *others = pieces
    found = [first, ("</s>", 0.0), *([(byte, 0.0) for byte in BYTES] if has_bytes else ()), *others]
    return [*found, (ADDED, 0.0)]


def metadata(has_bytes: bool = False, **keys: Any) -> dict[str, Any]:
    """Return the metadata that llama.cpp's converter writes for a vocabulary."""
    pieces = vocabulary(has_bytes)
    kinds = FIRST | {ADDED: USER} | dict.fromkeys(BYTES, BYTE)
    values = {
        "model": "t5",
        "tokens": [token for token, _ in pieces],
        "scores": [score for _, score in pieces],
        "token_type": [kinds.get(token, NORMAL) for token, _ in pieces],
        "unknown_token_id": 0,
        "add_space_prefix": False,
        "remove_extra_whitespaces": False,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (values | keys).items()}


def made(values: dict[str, Any]) -> Tokenizer:
    tokenizer: Tokenizer = Tokenizer.from_str(json.dumps(make_tokenizer(PATH, values).tokenizer))
    return tokenizer


@pytest.mark.parametrize("has_bytes", [True, False])
@pytest.mark.parametrize("trims", [True, False])
@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("replaces", [True, False])
def test_a_text_has_the_ids_of_the_original(
    replaces: bool, prefix: bool, trims: bool, has_bytes: bool
) -> None:
    table: dict[str, Any] = {"precompiled_charsmap": [*charsmap()]} if replaces else {}
    found = made(
        metadata(has_bytes, add_space_prefix=prefix, remove_extra_whitespaces=trims, **table)
    )
    pieces = vocabulary(has_bytes)
    if has_bytes:  # sentencepiece finds the names of bytes in no text
        pieces = [(token, -1e3 if token in BYTES else score) for token, score in pieces]
    original = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=has_bytes))
    original.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    for text in TEXTS:
        changed = text
        if replaces:
            for source, target in REPLACED.items():
                changed = changed.replace(source, target)
        if trims:
            changed = re.sub(" +", " ", changed.strip(" "))
        if prefix and changed:
            changed = f" {changed}"
        assert found.encode(text).ids == original.encode(changed).ids, text
    if replaces:  # our small table is one of sentencepiece
        encoded = base64.b64encode(charsmap()).decode()
        state = {"type": "Precompiled", "precompiled_charsmap": encoded}
        assert (
            json.loads(made(metadata(False, **table)).to_str())["normalizer"]["normalizers"][0]
            == state
        )
        normalizer: Any = normalizers.Precompiled(charsmap())
        assert normalizer.normalize_str("a\tﬁé") == "a fie"


def test_tokens_have_the_text_of_the_answer() -> None:
    tokenizer = made(metadata(has_bytes=True, add_space_prefix=True))
    spelled = TokenBytes(tokenizer)
    for text in (*TEXT, "☃ the fox"):
        ids = tokenizer.encode(text).ids
        assert b"".join(spelled[token] for token in ids).decode() == f" {text}"
        assert tokenizer.decode(ids) == text


def test_added_tokens_are_found_whole_and_tokens_that_fill_the_embedding_never() -> None:
    values = metadata()
    size = len(values["tokenizer.ggml.tokens"])
    for key, item in (("tokens", f"[PAD{size}]"), ("scores", -1e4), ("token_type", UNUSED)):
        values[f"tokenizer.ggml.{key}"] = [*values[f"tokenizer.ggml.{key}"], item]
    found, before = made(values), made(metadata())
    text = f"the{ADDED}fox [PAD{size}]</s>"
    assert found.encode(text).ids == before.encode(text).ids
    assert {1, size - 1} <= set(found.encode(text).ids) < set(range(size))
    scores = [score for _, score in json.loads(found.to_str())["model"]["vocab"]]
    assert min(scores) > -100, "the cost of an unknown character follows from the lowest score"


def test_the_unknown_token_may_be_known_by_its_type() -> None:
    found = made(metadata(unknown_token_id=None))
    assert found.encode("☃").ids == [0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": None}, "scores: .* numbers is expected"),
        ({"scores": [0.0]}, "scores: .* numbers is expected"),
        ({"scores": [float("nan")] * len(vocabulary(False))}, "scores: finite numbers is exp"),
        ({"unknown_token_id": 1 << 20}, "unknown_token_id: an id below"),
        ({"unknown_token_id": None, "token_type": None}, "unknown_token_id: an id below"),
        ({"remove_extra_whitespaces": 1}, "remove_extra_whitespaces: true or false"),
        ({"precompiled_charsmap": "abc"}, "precompiled_charsmap: a list is expected"),
        ({"precompiled_charsmap": [256]}, "precompiled_charsmap: a list of bytes is expected"),
        ({"precompiled_charsmap": [1]}, r"precompiled_charsmap: a table .*it has no length"),
    ],
)
def test_wrong_values_are_refused_by_file_and_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=f"model.gguf: tokenizer.ggml.{message}"):
        make_tokenizer(PATH, metadata(**changes))


def _unit(index: int, value: int) -> bytes:
    """Return the table with another unit of its trie."""
    raw = bytearray(charsmap())
    raw[4 + 4 * index : 8 + 4 * index] = struct.pack("<I", value)
    return bytes(raw)


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (charsmap(), None),
        (b"", "no length"),
        (struct.pack("<I", 0), "its trie has 0 bytes"),
        (struct.pack("<I", 1000) + bytes(2000), "its trie has 1000 bytes"),
        (charsmap()[:2000], "its trie has"),
        (charsmap() + b"\xff", "no UTF-8"),
        (_unit(0, 1 << 30), "unit 0 of its trie leads out of it"),
        (_unit(70, 1 << 31 | 999), "unit 70 of its trie is a place outside of its texts"),
    ],
)
def test_a_table_that_leads_out_of_itself_is_refused(raw: bytes, fault: str | None) -> None:
    found = charsmap_fault(raw)
    assert found == fault if fault is None else found is not None and fault in found
