"""A private copy of a model folder's tokenizer files, checked, for the library to read.

The library follows every link, opens pipes and devices, and takes no byte order mark. It gets a
folder that holds nothing but what was checked here.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from json import dumps
from pathlib import Path
from typing import Any

from engine.errors import ModelError, shown
from engine.files import (
    POINTER,
    pointer_error,
    read_bytes,
    read_object,
    read_text,
    temporary_folder,
)
from engine.weights.config_file import read_config_values
from engine.weights.config_place import CONFIG_NAME
from engine.weights.family import write_config

CONFIG_FILE = "tokenizer_config.json"
FAST_FILE = "tokenizer.json"
LARGEST_VOCABULARY = 64 << 20  # bytes of a file; the largest published one has 34 MB
MOST_ADDED = 1 << 15  # tokens; the library looks at all of them for each
MOST_IDS = 1 << 24

_OBJECTS = frozenset(
    {CONFIG_FILE, "special_tokens_map.json", "added_tokens.json", "chat_template.json"}
)
_TEXTS = frozenset(
    {FAST_FILE, "vocab.json", "tekken.json", "chat_template.jinja", "merges.txt", "vocab.txt"}
)
_TEMPLATES = "additional_chat_templates"
_BINARIES = re.compile(r"\.(model|tiktoken|spm|codes|bpe|vocab)$")


@contextmanager
def private_copy(folder: Path) -> Iterator[Path]:
    """Copy the tokenizer files to a folder that exists until the end of the block.

    Raises `ModelError` that names the file and what is wrong with it.
    """
    with temporary_folder("tokenizer") as copy:
        for path in sorted(folder.iterdir()):
            if path.name in _OBJECTS:
                values = read_object(path)
                _check_values(values, path)
                (copy / path.name).write_text(dumps(values))
            elif path.name in _TEXTS:
                text = read_text(path, LARGEST_VOCABULARY)
                (copy / path.name).write_text(text, encoding="utf-8")
            elif _BINARIES.search(path.name):
                raw = read_bytes(path, LARGEST_VOCABULARY)
                if raw.startswith(POINTER.encode()):
                    raise pointer_error(path)
                (copy / path.name).write_bytes(raw)
            elif path.name == CONFIG_NAME:
                write_config(read_config_values(folder), copy)
            elif path.name == _TEMPLATES and path.is_dir():
                (copy / _TEMPLATES).mkdir()
                for template in path.glob("*.jinja"):
                    (copy / _TEMPLATES / template.name).write_text(
                        read_text(template), encoding="utf-8"
                    )
        yield copy


def _check_values(values: dict[str, Any], path: Path) -> None:
    """Raise `ModelError` if there are more tokens or larger numbers than any tokenizer has.

    A class of another type than text is an error too.
    """
    named = values.get("tokenizer_class")
    if not isinstance(named, str | None):
        raise ModelError(f"{path}: tokenizer_class: text is expected, found {shown(named)}")
    for key in ("added_tokens_decoder", "added_tokens"):
        added = values.get(key)
        if isinstance(added, dict | list) and len(added) > MOST_ADDED:
            raise ModelError(f"{path}: {key}: {len(added)} tokens; {MOST_ADDED} are the most")
    for key, value in values.items():
        if isinstance(value, int) and not key.endswith("length") and abs(value) > MOST_IDS:
            raise ModelError(f"{path}: {key}: {shown(value)} is out of range (at most {MOST_IDS})")
    if path.name == "added_tokens.json" and len(values) > MOST_ADDED:
        raise ModelError(f"{path}: {len(values)} tokens; {MOST_ADDED} are the most")
