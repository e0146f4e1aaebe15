"""The type in which a target computes: that of its stored weights, unless something names another.

Weights are rounded to another type only if config.json or the user's settings name that type.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from engine.weights.checkpoints import open_checkpoint
from engine.weights.gguf_checkpoint import BlockTensor
from engine.weights.shards import has_weights

# The types in which a target can compute, by their names in settings.
COMPUTED = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


def computed_dtype(wanted: str | None, config: Any, folder: Path) -> torch.dtype:
    """Return the type in which a target computes.

    It is `wanted`, a name of `COMPUTED`; else the `dtype` of config.json; else the type of the
    stored weights. float64 becomes float32, and bfloat16 stands for 8-bit types and where nothing
    is known.
    """
    if wanted is not None:
        return COMPUTED[wanted]
    named: torch.dtype | None = config.dtype or stored_dtype(folder)
    if named == torch.float64:
        return torch.float32
    return named if named is not None and named in COMPUTED.values() else torch.bfloat16


def stored_dtype(folder: Path) -> torch.dtype | None:
    """Return the floating-point type of most bytes of a checkpoint.

    8-bit types do not count, since their values need scales. Return None if no tensor counts, if
    tensors are stored in blocks, or if the folder has no checkpoint.
    """
    if not has_weights(folder):
        return None
    checkpoint = open_checkpoint(folder)
    checkpoint.close()
    if any(isinstance(stored, BlockTensor) for stored in checkpoint.tensors.values()):
        return None
    sizes: Counter[torch.dtype] = Counter()
    for stored in checkpoint.tensors.values():
        if stored.dtype.is_floating_point and stored.dtype.itemsize > 1:
            sizes[stored.dtype] += stored.nbytes
    return sizes.most_common(1)[0][0] if sizes else None
