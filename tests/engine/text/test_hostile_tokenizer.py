"""Tokenizer files and templates that were made to harm are refused by name, within bounds."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import models

from engine.errors import ModelError
from engine.text import check
from engine.text.detokenize import TokenBytes
from engine.text.template import check_template
from engine.text.tokenizer import read_tokenizer
from tests.engine.models import add_tokenizer


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    add_tokenizer(tmp_path)
    return tmp_path


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DIGITS = {"type": "Digits", "individual_digits": True}
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": {"type": "BPE", "vocab": {"a": 4 * 10**9}, "merges": []}}, "out of range"),
        ({"model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}, "is empty"),
        ({"model": {"type": "Unknown"}}, "untagged enum|unknown variant|did not match"),
        ({"model": None}, "cannot be used"),
        ({"version": "9.0"}, "Unknown tokenizer version"),
        ({"pre_tokenizer": {**SPLIT, "pattern": {"Regex": "(" * 3000}}}, "cannot be used"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "////"}}, "cannot be"),
        ({"added_tokens": [{"id": -1, "content": "a"}]}, "cannot be used"),
    ],
)
def test_a_tokenizer_json_that_is_none_is_refused(
    changes: dict[str, Any], reason: str, folder: Path
) -> None:
    change(folder / "tokenizer.json", **changes)
    with pytest.raises(ModelError, match=rf"tokenizer\.json: .*({reason})"):
        read_tokenizer(folder)


NEWER = r"tokenizers [\d.]+ is installed\. If a newer version wrote the file, install that"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": {"type": "SuperBPE", "vocab": {"a": 0}}}, r"model \(type SuperBPE\): "),
        ({"pre_tokenizer": {"type": "Words"}}, r"pre_tokenizer \(type Words\): "),
        (
            {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "X"}]}},
            r"normalizer \(type NFC, X, Sequence\): ",
        ),
        ({"decoder": {"type": "New"}}, r"decoder \(type New\): "),
        ({"post_processor": {"type": "New"}}, r"post_processor \(type New\): "),
        ({"pre_tokenizer": {**SPLIT, "behavior": "New", "pattern": {"String": "a"}}}, "`New`"),
        ({"chunking": {"size": 3}}, "chunking: no part of the file"),
        ({"normalizer": {"type": "NFC", "level": 2}}, "normalizer: the field level is not known"),
        (
            {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [DIGITS | {"x": 1}]}},
            "pre_tokenizer: the field x is not known",
        ),
    ],
)
def test_what_a_newer_library_wrote_is_named(
    changes: dict[str, Any], reason: str, folder: Path
) -> None:
    change(folder / "tokenizer.json", **changes)
    with pytest.raises(ModelError, match=rf"tokenizer\.json: cannot be used: .*{reason}.*{NEWER}"):
        read_tokenizer(folder)


def test_a_new_field_of_the_model_is_named(folder: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    change(folder / "tokenizer.json", model=model | {"whole_words": True})
    with pytest.raises(ModelError, match="model: the field whole_words is not known"):
        read_tokenizer(folder)
    change(folder / "tokenizer.json", model=model | {"whole_words": False})
    read_tokenizer(folder)  # what is turned off changes nothing


def test_fields_of_older_libraries_are_read_over(folder: Path) -> None:
    words = {"type": "Metaspace", "replacement": "▁", "str_rep": "▁", "add_prefix_space": True}
    change(folder / "tokenizer.json", pre_tokenizer=words)
    read_tokenizer(folder)


@pytest.mark.parametrize(
    "model",
    [
        models.Unigram([("a", 0.0), ("b", -1.0)], unk_id=0),
        models.WordPiece({"[UNK]": 0, "Hello": 1}, unk_token="[UNK]"),
        models.WordLevel({"[UNK]": 0, "Hello": 1}, unk_token="[UNK]"),
    ],
)
def test_every_type_of_model_is_read_whole(model: models.Model, folder: Path) -> None:
    change(folder / "tokenizer.json", model=json.loads(model.__getstate__()), added_tokens=[])
    assert check.fault(folder / "tokenizer.json") is None


def test_what_takes_too_much_memory_ends_its_own_process_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "MEMORY", 64 << 20)
    assert check.fault(folder / "tokenizer.json") is None
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text[:-1] + ', "x": [' + "[]," * 1_000_000 + "[]]}")
    with pytest.raises(ModelError, match=r"tokenizer\.json: cannot be used: .* 64 MiB"):
        read_tokenizer(folder)


def test_what_takes_too_long_is_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "SECONDS", 0.0)
    assert check.fault(folder / "tokenizer.json") == "it was not read within 0 seconds"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer_config.json", "{", r"tokenizer_config\.json: not valid JSON"),
        ("tokenizer_config.json", '{"a": [' + "[" * 100, r"tokenizer_config\.json: n"),
        ("tokenizer_config.json", '{"extra_ids": 1000000000}', "extra_ids: 1000000000 is out"),
        (
            "tokenizer_config.json",
            json.dumps({"added_tokens_decoder": [{}] * 40_000}),
            "added_tokens_decoder: 40000 tokens",
        ),
        ("tokenizer_config.json", '{"tokenizer_class": []}', r"tokenizer_config\.json"),
        ("special_tokens_map.json", "[]", r"special_tokens_map\.json: a JSON object"),
        ("chat_template.jinja", b"\xff", r"chat_template\.jinja: not UTF-8"),
        ("chat_template.jinja", None, r"chat_template\.jinja: a folder, not a file"),
        ("tokenizer.json", b"\xff", r"tokenizer\.json: not UTF-8"),
        ("tokenizer.json", None, r"tokenizer\.json: a folder, not a file"),
        ("config.json", "[]", r"config\.json: a JSON object"),
    ],
)
def test_another_file_that_is_none_is_named(
    name: str, content: str | bytes | None, reason: str, folder: Path
) -> None:
    (folder / name).unlink(missing_ok=True)
    if content is None:
        (folder / name).mkdir()
    else:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ModelError, match=reason):
        read_tokenizer(folder)


def test_a_tokenizer_that_cannot_encode_is_refused(folder: Path) -> None:
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "<unk>"}
    change(folder / "tokenizer.json", model=model)
    with pytest.raises(ModelError, match=r"tokenizer\.json: cannot be used: .*UNK"):
        read_tokenizer(folder)


def test_byte_order_marks_and_trailing_commas_are_read_over(folder: Path) -> None:
    expected = read_tokenizer(folder).get_vocab()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("\ufeff" + (folder / name).read_text(), encoding="utf-8")
    text = (folder / "tokenizer_config.json").read_text(encoding="utf-8").rstrip()
    (folder / "tokenizer_config.json").write_text(text[:-1] + ",}", encoding="utf-8")
    assert read_tokenizer(folder).get_vocab() == expected


def test_a_folder_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer: neither tokenizer\.json nor"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(("old", "new"), [("", "x"), ("a", "a" * 1000)])
def test_a_decoder_that_makes_texts_endless_is_refused(old: str, new: str, folder: Path) -> None:
    replace = {"type": "Replace", "pattern": {"String": old}, "content": new}
    change(folder / "tokenizer.json", decoder=replace)
    with pytest.raises(ModelError, match=r"tokenizer\.json: decoder Replace .* without bounds"):
        TokenBytes(read_tokenizer(folder).backend_tokenizer)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{% for", "line 1: "),
        ("\n\n{% endif %}", "line 3: "),
        ("{{" + "(" * 5000, "nested too deeply"),
        ("{{ '\\x' }}", "escape"),
        ("{{ 9" + "9" * 5000 + " }}", "digits"),
    ],
)
def test_a_text_that_is_no_template_is_told_with_its_line(text: str, reason: str) -> None:
    with pytest.raises(ModelError, match=f"^here: not a Jinja template: .*{reason}"):
        check_template(text, "here")


def test_templates_are_parsed_and_not_run() -> None:
    check_template("{% generation %}{% for x in y %}{% break %}{% endfor %}{% endgeneration %}", "")
    check_template("{{ 1 / 0 }}{{ 'a' * 10 ** 12 }}{{ 10 ** 10 ** 10 }}{{ raise_exception() }}", "")
