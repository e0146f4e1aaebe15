"""Loading the tokenizer of a model folder."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from engine.errors import ModelError, shown
from engine.files import read_object
from engine.library_call import library_call
from engine.text import check
from engine.text.missing_files import add_missing_files
from engine.text.tokenizer_files import CONFIG_FILE, FAST_FILE, private_copy
from engine.weights.config_place import CONFIG_NAME, config_place
from engine.weights.shards import has_link

SAMPLE = "Hello there, 123"


def read_tokenizer(folder: Path) -> Any:
    """Return the fast tokenizer of transformers for a folder, without running code of the folder.

    Raises `ModelError` if there is none or it cannot be used.
    """
    with private_copy(folder) as files:
        name = add_missing_files(files, folder)
        if name and (fault := check.fault(files / FAST_FILE)) is not None:
            where = str(folder / name)
            if has_link(folder):  # the file was made of the metadata
                where = f"{config_place(folder)}: tokenizer.ggml"
            raise ModelError(f"{where}: cannot be used: {fault}")
        tokenizer = _load(folder, files, name)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ModelError(f"{folder}: its tokenizer has no {FAST_FILE} and cannot be converted")
    return tokenizer


def _load(folder: Path, files: Path, name: str) -> Any:
    """Return the tokenizer of `folder`, read from `files`, a checked copy of its files.

    Where there is a tokenizer.json, its ids are the ids, whatever class the folder names.

    Args:
        name: the file that the tokenizer.json is made of; "" if there is no tokenizer.json.
    """
    values = read_object(files / CONFIG_FILE) if (files / CONFIG_FILE).exists() else {}
    try:
        if all(path.name in (CONFIG_NAME, CONFIG_FILE) for path in files.iterdir()):
            raise ModelError(
                f"{folder}: no tokenizer: neither {FAST_FILE} nor another vocabulary is there. "
                "Copy it from the model that this one was made of"
            )
        with library_call(f"{folder}: {CONFIG_FILE} or {name or FAST_FILE}"):
            # The class that a folder names may replace the file's normalizer and its way to split
            # text (GPT2Tokenizer, Qwen2Tokenizer). The model was not trained on such ids.
            library: Any = PreTrainedTokenizerFast if name else AutoTokenizer
            # Without this option, transformers warns of each large vocabulary of Mistral's models.
            options = {"fix_mistral_regex": False} if name else {}
            tokenizer = library.from_pretrained(files, trust_remote_code=False, **options)
            if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
                backend.encode(SAMPLE)  # fails if the vocabulary lacks its own unknown token
            return tokenizer
    except ModelError as error:
        if values.get("auto_map"):
            raise ModelError(
                f"{folder / CONFIG_FILE}: transformers does not know the tokenizer_class "
                f"{shown(values.get('tokenizer_class'))}, and code of a model repository "
                "(auto_map) is never run. Use a checkpoint whose tokenizer transformers knows"
            ) from error
        raise
