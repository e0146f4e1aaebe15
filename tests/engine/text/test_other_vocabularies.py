"""Tests of folders that have a tekken.json or a sentencepiece model instead of a tokenizer.json.

`vocabularies/bpe.model` and `vocabularies/unigram.model` were trained by sentencepiece on the
documentation (700 pieces each); the latter replaces some characters, as a tabulator by a blank. The
ids in `vocabularies/expected.json` are those of sentencepiece for them, and those of mistral-common
for the first tokens of Mistral's own vocabulary.
"""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ModelError
from engine.text.tekken import MOST_BYTES
from engine.text.tokenizer import read_tokenizer
from server.text.tokenizer import load_tokenizer, template_file

PLACE = Path(__file__).parent / "vocabularies"
EXPECTED = json.loads((PLACE / "expected.json").read_text())
MODEL, UNIGRAM = ((PLACE / f"{kind}.model").read_bytes() for kind in ("bpe", "unigram"))
BYTES = [bytes([byte]) for byte in range(256)]


def tekken(**changes: Any) -> dict[str, Any]:
    """Return a tekken.json; a dotted key such as `vocab.3` changes an inner value."""
    known = EXPECTED["tekken"]
    tokens = [*BYTES, *(text.encode("latin-1") for text in known["tokens"])]
    values: dict[str, Any] = {
        "config": {
            "pattern": known["pattern"],
            "num_vocab_tokens": len(tokens),
            "default_vocab_size": len(tokens) + 10,  # the last 20 tokens are not used
            "default_num_special_tokens": 30,
            "version": "v7",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for rank, token in enumerate(tokens)
        ],
        "special_tokens": [
            {"rank": rank, "token_str": text, "is_control": True}
            for rank, text in enumerate(known["special_tokens"])
        ],
    }
    for key, value in changes.items():
        outer, _, inner = key.partition(".")
        if not inner:
            values[outer] = value
        else:
            values[outer][inner if outer == "config" else int(inner)] = value
    return values


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
    return tmp_path


def write(folder: Path, name: str, values: Any) -> None:
    (folder / name).write_text(json.dumps(values))


def test_ids_of_a_tekken_file_are_those_of_mistral_common(folder: Path) -> None:
    write(folder, "tekken.json", tekken())
    found = read_tokenizer(folder)
    for text, ids in EXPECTED["tekken"]["ids"].items():
        assert found.encode(text) == ids, text
        assert found.decode(ids, skip_special_tokens=True) == text
    assert (found.bos_token_id, found.eos_token_id, found.unk_token_id) == (1, 2, 0)
    assert found.encode("[INST]<SPECIAL_25>", add_special_tokens=False) == [3, 25]
    assert found.chat_template is None
    assert len(found) == tekken()["config"]["default_vocab_size"]


def test_the_first_tekken_files_do_not_name_their_special_tokens(folder: Path) -> None:
    values = tekken(**{"config.default_num_special_tokens": None})
    del values["special_tokens"]
    write(folder, "tekken.json", values)
    found = read_tokenizer(folder)
    text = "<unk><s></s>[INST][TOOL_CALLS]<pad>[SYSTEM_PROMPT][TOOL_CONTENT]"
    assert found.encode(text, add_special_tokens=False) == [0, 1, 2, 3, 9, 11, 17, 19]


def test_words_that_are_tokens_are_not_divided(folder: Path) -> None:
    """A token need not be the result of joining others."""
    tokens = [*BYTES, b"ab", b"abcdxyz"]
    entries = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode()}
        for rank, token in enumerate(tokens)
    ]
    changes: dict[str, Any] = {"config.default_vocab_size": None, "vocab": entries}
    write(folder, "tekken.json", tekken(**changes))
    found = read_tokenizer(folder)
    assert found.encode("abcdxyz ab", add_special_tokens=False)[0] == 30 + 257
    assert found.encode("abcdxy", add_special_tokens=False)[0] == 30 + 256


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"config": []}, "config: an object"),
        ({"config.pattern": None}, "config.pattern: text"),
        ({"config.pattern": "(" * 3000}, "cannot be used: pre_tokenizer"),
        ({"config.default_vocab_size": -1}, "config.default_vocab_size: a number"),
        ({"config.default_vocab_size": 30}, "config.default_vocab_size: no token"),
        ({"config.default_num_special_tokens": 10**9}, "config.default_num_special_tokens: a nu"),
        ({"config.default_num_special_tokens": 5}, "special_tokens: at most 5"),
        ({"special_tokens": {}}, "special_tokens.0: "),
        ({"special_tokens.2": {"rank": 3, "token_str": "</s>"}}, "special_tokens.2: .*rank 2"),
        ({"special_tokens.2": {"rank": 2, "token_str": "<s>"}}, "special_tokens: .*different"),
        ({"vocab": None}, "vocab: a list"),
        ({"vocab": []}, "vocab: a list"),
        ({"vocab": tekken()["vocab"][:255]}, "vocab: the byte 255 is no token"),
        ({"vocab.3": "a"}, "vocab.3: "),
        ({"vocab.3": {"rank": 3, "token_bytes": "*"}}, "vocab.3: "),
        ({"vocab.3": {"rank": 3, "token_bytes": ""}}, "vocab.3: "),
        ({"vocab.3": {"rank": 3, "token_bytes": "AA=="}}, "vocab.3: a new token_bytes"),
        ({"vocab.3": {"rank": 4, "token_bytes": "Aw=="}}, "vocab.3: .*rank 3"),
        ({"vocab.300": {"rank": 300, "token_bytes": "A" * 4 * MOST_BYTES}}, "vocab.300: "),
    ],
)
def test_a_tekken_file_that_is_none_is_refused(
    changes: dict[str, Any], reason: str, folder: Path
) -> None:
    write(folder, "tekken.json", tekken(**changes))
    with pytest.raises(ModelError, match=rf"{folder.name}/tekken\.json: {reason}"):
        read_tokenizer(folder)


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model"])
@pytest.mark.parametrize("named", [None, "LlamaTokenizer", "AClassOfNoLibrary"])
def test_ids_of_a_sentencepiece_model_are_those_of_its_library(
    folder: Path, name: str, named: str | None
) -> None:
    (folder / name).write_bytes(MODEL)
    if named is not None:
        write(folder, "tokenizer_config.json", {"tokenizer_class": named, "chat_template": "hi"})
    found = read_tokenizer(folder)
    for text, ids in EXPECTED["sentencepiece"]["ids"].items():
        if "<think>" not in text:  # the library puts no blank before the text after such a token
            assert found.encode(text, add_special_tokens=False) == ids, text
            assert found.decode(ids) == text
            assert found.encode(text) == [1, *ids]
    assert (found.bos_token, found.eos_token, found.unk_token) == ("<s>", "</s>", "<unk>")
    assert found.chat_template == (None if named is None else "hi")
    control, own = (found.convert_tokens_to_ids(text) for text in ("[INST]", "<think>"))
    assert found.encode("[INST]<think>", add_special_tokens=False) == [control, own]
    assert found.decode([control, own], skip_special_tokens=True) == "<think>"


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model"])
def test_ids_of_a_model_of_likely_tokens_are_those_of_its_library(folder: Path, name: str) -> None:
    (folder / name).write_bytes(UNIGRAM)
    found = read_tokenizer(folder)
    for text, ids in EXPECTED["unigram"]["ids"].items():
        assert found.encode(text, add_special_tokens=False) == ids, text
        assert found.decode(ids) == EXPECTED["unigram"]["texts"][text]
        assert found.encode(text) == [1, *ids]
    assert (found.bos_token, found.eos_token, found.unk_token) == ("<s>", "</s>", "<unk>")
    control, own = (found.convert_tokens_to_ids(text) for text in ("[INST]", "<think>"))
    assert found.encode("[INST]<think>", add_special_tokens=False) == [control, own]


def test_a_class_whose_texts_have_no_beginning_token_adds_none(folder: Path) -> None:
    (folder / "spiece.model").write_bytes(UNIGRAM)
    for values, first in (({}, []), ({"add_bos_token": True}, [1])):
        write(folder, "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", **values})
        assert read_tokenizer(folder).encode("a") == [*first, *EXPECTED["unigram"]["ids"]["a"]]


@pytest.mark.parametrize("model", [MODEL, UNIGRAM])
def test_other_files_add_tokens_and_name_what_begins_a_text(folder: Path, model: bytes) -> None:
    (folder / "tokenizer.model").write_bytes(model)
    write(folder, "added_tokens.json", {"<|extra|>": 703})
    flags = {"content": "<|im_end|>", "special": True, "normalized": False}
    added = {"700": flags, "2": {"content": "</s>", "special": True}}
    values = {"added_tokens_decoder": added, "eos_token": "<|im_end|>", "add_bos_token": False}
    write(folder, "tokenizer_config.json", values)
    found = read_tokenizer(folder)
    assert found.encode("<|im_end|><|extra|></s>") == [700, 703, 2]
    assert (found.eos_token, found.eos_token_id) == ("<|im_end|>", 700)
    assert found.decode([700, 703], skip_special_tokens=True) == "<|extra|>"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("added_tokens.json", {"<|new|>": 5}),
        ("added_tokens.json", {"</s>": 900}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"5": {"content": "<|new|>"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"900": {"content": 3}}}),
    ],
)
@pytest.mark.parametrize("model", [MODEL, UNIGRAM])
def test_files_that_disagree_about_a_token_are_refused(
    folder: Path, name: str, values: dict[str, Any], model: bytes
) -> None:
    (folder / "tokenizer.model").write_bytes(model)
    write(folder, name, values)
    with pytest.raises(ModelError, match=rf"{folder.name}/{name}: the token "):
        read_tokenizer(folder)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "no sentencepiece model"),
        (b"hello", "no sentencepiece model"),
        (b"aGVsbG8= 0\nd29ybGQ= 1\n", "a tiktoken vocabulary"),
        (b"\n\xff", "no sentencepiece model: "),
        (b"\n" + b"\xff" * 12, "no sentencepiece model: .*10 bytes"),
        (MODEL + b"\n\x03\x0a\x01\xff", "no sentencepiece model: .*utf-8"),
        (MODEL[:5000], "no sentencepiece model: its trainer_spec is missing"),
        (MODEL[:5003], "no sentencepiece model: .* left"),
        (MODEL + b"\x0b", "no sentencepiece model: .*wire type 3"),
        (b"\n\x00" * (2**20 + 1), "no sentencepiece model: .*more than 1048576 fields"),
        (MODEL + b"\x12\x02\x18\x03", "its type is words"),
        (MODEL + b"\x12\x02\x18\x09", "its type is 9"),
        (MODEL + b"\x1a\x03\x12\x01x", "its normalizer replaces characters"),
        (MODEL + b"\x1a\x00", "its normalizer removes blanks"),
        (MODEL + b"\x1a\x04\x20\x00\x28\x00", "it does not write a blank"),
        (UNIGRAM + b"\x1a\x02\x28\x00", "it does not write a blank"),
        (UNIGRAM + b"\x1a\x03\x12\x01x", r"\(precompiled_charsmap\) is damaged: it has no length"),
        (UNIGRAM + b"\n\x08\n\x01a\x15\x00\x00\xc0\x7f", "piece 700 has the score nan"),
    ],
)
def test_a_sentencepiece_model_that_is_not_read_is_refused(
    raw: bytes, reason: str, folder: Path
) -> None:
    (folder / "tokenizer.model").write_bytes(raw)
    with pytest.raises(ModelError, match=rf"{folder.name}/tokenizer\.model: .*{reason}") as refused:
        read_tokenizer(folder)
    assert "has a tokenizer.json" in str(refused.value)


def test_a_file_with_other_ids_than_its_models_is_refused(folder: Path) -> None:
    (folder / "sentencepiece.bpe.model").write_bytes(MODEL)
    with pytest.raises(ModelError, match=r"sentencepiece\.bpe\.model: not read: .* other ids"):
        read_tokenizer(folder)


def test_an_added_token_far_behind_a_list_of_tokens_is_refused(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(UNIGRAM)
    write(folder, "added_tokens.json", {"<|extra|>": 1 << 20})
    with pytest.raises(ModelError, match=r"'<|extra|>' has the id 1048576, .* 700 tokens"):
        read_tokenizer(folder)


@pytest.mark.parametrize("name", ["tokenizer.model", "tekken.json"])
def test_a_pointer_of_git_lfs_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ModelError, match=rf"{folder.name}/{name}: a Git LFS pointer"):
        read_tokenizer(folder)


def test_a_tokenizer_json_comes_first(folder: Path) -> None:
    write(folder, "tekken.json", tekken())
    whole = read_tokenizer(folder)
    (folder / "tokenizer.model").write_bytes(MODEL)
    assert read_tokenizer(folder).encode("Hello") == whole.encode("Hello")
    whole.backend_tokenizer.add_tokens(["Hello"])
    whole.backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tekken.json").write_text("{}")
    assert read_tokenizer(folder).encode("Hello") == [1, len(whole) - 1]


@pytest.mark.parametrize("name", ["chat_template.json", "chat_template.jinja"])
def test_the_template_may_be_in_a_file_of_its_own(folder: Path, name: str) -> None:
    write(folder, "tekken.json", tekken())
    template = "{{ bos_token }}{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}"
    text = json.dumps({"chat_template": template}) if name.endswith("json") else template
    (folder / name).write_text(text)
    tokenizer = load_tokenizer(str(folder), None)
    assert tokenizer.template == template
    assert template_file(str(folder), None) == str(folder / name)
