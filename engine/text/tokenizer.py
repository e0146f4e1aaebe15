"""The tokenizer of a model folder."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from engine.errors import ModelError


def read_tokenizer(folder: Path) -> Any:
    """The library's tokenizer, a fast one. Raises `ModelError`."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(f"{folder} has no tokenizer that can be used: {error}") from error
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ModelError(f"{folder}: its tokenizer has no tokenizer.json and cannot be converted")
    return tokenizer
