"""Tables with a row for each token of the vocabulary, which stay on the host or in their file."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from engine.model.binder import Binder
from engine.weights.safetensors import StoredRows


class TokenTable:
    """An embedding module of a model whose rows are looked up on the host."""

    def __init__(self, module: Any, stored: StoredRows | None) -> None:
        """Take a module.

        Args:
            stored: reads the rows that a look-up needs; None if the module has its weight.
        """
        self.module = module
        self._stored = stored
        self._binder = Binder(module)

    def look_up(self, tokens: Sequence[int]) -> Tensor:
        """Return the module's rows for tokens, [R, width].

        Tokens beyond the table have row 0: a draft may have fewer tokens than its target, and Gemma
        3n's table of all layers has fewer than its embedding. Raises `ModelError` if its rows are
        read from a file that was changed.
        """
        size: int = self.module.num_embeddings
        indices: Sequence[int] = [token if token < size else 0 for token in tokens]
        if self._stored is not None:
            places: dict[int, int] = {}  # of each token, once, among the rows that are read
            indices = [places.setdefault(token, len(places)) for token in indices]
            self._binder.bind({"weight": self._stored.read(list(places))})
        rows: Tensor = self.module(torch.tensor(indices))
        return rows
