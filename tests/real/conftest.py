"""Fixtures of `make test-real`: a published model, and the greedy text of transformers for it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.real.model import gguf_file, make_short_model, read_model, read_tokenizer, render
from benchmarks.real.prompts import PROMPTS

TOKENS = 48  # of each answer at most
PROMPT = {kind: prompts[0] for kind, prompts in PROMPTS.items()}


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Return the tokenizer of the GGUF file, as transformers reads it."""
    return read_tokenizer()


@pytest.fixture(scope="session")
def chats(tokenizer: Any) -> dict[str, tuple[int, ...]]:
    """Return the token ids of one chat for each kind of text."""
    return {kind: tuple(render(tokenizer, text)) for kind, text in PROMPT.items()}


@pytest.fixture(scope="session")
def expected(chats: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the library's greedy answers, of the weights that the package gguf expands."""
    model: Any = read_model()
    answers: dict[str, tuple[int, ...]] = {}
    for kind, prompt in chats.items():
        with torch.inference_mode():
            ids = model.generate(torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False)
        answers[kind] = tuple(ids[0, len(prompt) :].tolist())
    return answers


@pytest.fixture(scope="session")
def short_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the model's first layers, a draft model of the same vocabulary."""
    return make_short_model(tmp_path_factory.mktemp("models") / "short")


@pytest.fixture(scope="session")
def model_file() -> Path:
    """Return the path of the GGUF file."""
    return gguf_file()
