"""The tokenizer of a model folder."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from engine.errors import ModelError
from engine.weights.family import repository_code


def read_tokenizer(folder: Path) -> Any:
    """Return the library's fast tokenizer. Code of the folder is never run.

    Raises `ModelError` if there is none.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if (name := repository_code(folder / "tokenizer_config.json")) is not None:
            raise ModelError(
                f"{folder}/tokenizer_config.json: transformers does not know the tokenizer_class "
                f"{name!r}, and code of a model repository (auto_map) is never run. Use a "
                "checkpoint whose tokenizer transformers knows"
            ) from error
        raise ModelError(f"{folder} has no tokenizer that can be used: {error}") from error
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ModelError(f"{folder}: its tokenizer has no tokenizer.json and cannot be converted")
    return tokenizer
