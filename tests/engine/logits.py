"""Random logits for tests of choosing tokens."""

import torch
from torch import Tensor


def random_logits(rows: int, vocabulary: int, spread: float = 2.0, seed: int = 0) -> Tensor:
    """Return normally distributed logits [rows, vocabulary] with standard deviation `spread`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocabulary, generator=generator) * spread
