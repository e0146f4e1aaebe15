"""Tokenizer files that a folder lacks, made of others that it has.

transformers reads a tokenizer.json. Of a tekken.json or a sentencepiece model alone it makes no
tokenizer, or one with other ids, so the file is made here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import ModelError, shown
from engine.files import read_bytes, read_object
from engine.text.sentencepiece_file import FAIRSEQ_FILE, MODEL_FILES, sentencepiece_files
from engine.text.tekken import TEKKEN_FILE, tekken_files
from engine.text.tokenizer_files import CONFIG_FILE, FAST_FILE, LARGEST_VOCABULARY
from engine.weights.config_place import CONFIG_NAME

ADDED_FILE = "added_tokens.json"
TEMPLATE_FILE, OLD_TEMPLATE_FILE = "chat_template.jinja", "chat_template.json"
_OTHER_VOCABULARIES = ("vocab.json", "vocab.txt")  # which transformers reads
_MADE = "tokenizer_class", "add_bos_token", "add_eos_token", "added_tokens_decoder"
_WITHOUT_BOS = ("T5Tokenizer", "T5TokenizerFast")  # classes whose texts have no beginning token
_MOST_GAP = 1 << 12  # ids between the last token of a vocabulary and one that is added

Json = dict[str, Any]


def add_missing_files(files: Path, folder: Path) -> str:
    """Write the tokenizer.json of a folder, if it has none and another vocabulary that is read.

    Return the name of the file that has the vocabulary; "" if there is none, or transformers itself
    reads it.

    A template in chat_template.json becomes a chat_template.jinja, which the library reads.

    Args:
        files: a checked copy of the tokenizer files, to which files are added.
        folder: the folder that they are from, for messages.

    Raises `ModelError` that names the file that cannot be read.
    """
    config = _object(files / CONFIG_FILE)
    template = _object(files / OLD_TEMPLATE_FILE).get("chat_template")
    has_template = (files / TEMPLATE_FILE).exists() or config.get("chat_template")
    if isinstance(template, str) and not has_template:
        (files / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    if (files / FAST_FILE).exists():
        return FAST_FILE
    own_files = (TEKKEN_FILE, *MODEL_FILES)
    name = next((name for name in own_files if (files / name).exists()), "")
    if any((files / other).exists() for other in _OTHER_VOCABULARIES):
        return ""
    if not name:
        if (files / FAIRSEQ_FILE).exists():
            raise ModelError(
                f"{folder / FAIRSEQ_FILE}: not read: models with this file have other ids than it. "
                f"Use a checkpoint of the model that has a {FAST_FILE}"
            )
        return ""
    tokenizer, own = _made_of(name, files, folder, config)
    _add_tokens(tokenizer, files, folder, config)
    kept = {key: value for key, value in config.items() if key not in _MADE}
    _write(files / FAST_FILE, tokenizer)
    _write(files / CONFIG_FILE, own | kept)
    return name


def _made_of(name: str, files: Path, folder: Path, config: Json) -> tuple[Json, Json]:
    """Return the contents of tokenizer.json and tokenizer_config.json, made of the file `name`."""
    if name == TEKKEN_FILE:
        return tekken_files(read_object(files / name, LARGEST_VOCABULARY), folder / name)
    raw = read_bytes(files / name, LARGEST_VOCABULARY)
    flags: Json = {"add_bos_token": False} if config.get("tokenizer_class") in _WITHOUT_BOS else {}
    flags |= {key: config[key] for key in ("add_bos_token", "add_eos_token") if key in config}
    family = str(_object(files / CONFIG_NAME).get("model_type", ""))
    made = sentencepiece_files(raw, folder / name, family, flags)
    return made.tokenizer, made.config


def _add_tokens(tokenizer: Json, files: Path, folder: Path, config: Json) -> None:
    """Add the tokens that other files add to the vocabulary, with the ids that they have there."""
    scored = tokenizer["model"]["vocab"]  # by id with scores, or by text
    is_list = isinstance(scored, list)
    vocabulary = {text: index for index, (text, _) in enumerate(scored)} if is_list else scored
    texts = {index: text for text, index in vocabulary.items()}
    listed = {entry["id"]: entry for entry in tokenizer["added_tokens"]}
    for where, index, entry in _added(files, config):
        text = entry.get("content")
        if not isinstance(text, str) or not text or texts.get(index, text) != text:
            raise ModelError(
                f"{folder / where}: the token {index} is {shown(texts.get(index))} in the "
                f"vocabulary, and {shown(text)} here"
            )
        if vocabulary.setdefault(text, index) != index:
            raise ModelError(
                f"{folder / where}: the token {shown(text)} has the id {vocabulary[text]} in the "
                f"vocabulary, and {index} here"
            )
        texts[index] = text
        flags = {key: bool(entry.get(key, False)) for key in _FLAGS}
        listed[index] = {"id": index, "content": text, **flags}
    tokenizer["added_tokens"] = [listed[index] for index in sorted(listed)]
    if is_list:
        last = max(texts)
        if last - len(scored) > len(listed) + _MOST_GAP:
            raise ModelError(
                f"{folder}: the added token {shown(texts[last])} has the id {last}, and the "
                f"vocabulary {len(scored)} tokens. Give the files of one model"
            )
        lowest = min(score for _, score in scored)
        missing = range(len(scored), last + 1)  # an id without a text gets one that never occurs
        scored += [(texts.get(index, f"\uffff{index}"), lowest) for index in missing]


_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def _added(files: Path, config: Json) -> list[tuple[str, int, Mapping[str, Any]]]:
    """Return the added tokens of all files, each with the name of the file and its id."""
    found: list[tuple[str, int, Mapping[str, Any]]] = []
    for text, index in _object(files / ADDED_FILE).items():
        if type(index) is int:
            found.append((ADDED_FILE, index, {"content": text}))
    decoder = config.get("added_tokens_decoder")
    for key, entry in decoder.items() if isinstance(decoder, dict) else ():
        if key.isascii() and key.isdigit() and isinstance(entry, dict):
            found.append((CONFIG_FILE, int(key), entry))
    return found


def _object(path: Path) -> Json:
    """Return the object in a file, an empty one if there is no file."""
    return read_object(path) if path.exists() else {}


def _write(path: Path, values: Json) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
