"""Opening a checkpoint of any container: safetensors or GGUF."""

import re
from pathlib import Path

from engine.weights.gguf_checkpoint import GgufCheckpoint
from engine.weights.safetensors import Checkpoint
from engine.weights.shards import has_link

_LAYER = re.compile(r"(?:\.|^blk\.)(\d+)\.")


def open_checkpoint(folder: Path) -> Checkpoint:
    """Return the checkpoint of a folder. Raises `ModelError` if there is none or it is wrong."""
    return GgufCheckpoint(folder) if has_link(folder) else Checkpoint(folder)


def num_layers(folder: Path) -> int:
    """Return the number of layers of a checkpoint: of different first numbers in tensor names."""
    checkpoint = open_checkpoint(folder)
    checkpoint.close()
    numbers = (_LAYER.search(name) for name in checkpoint.tensors)
    return len({number[1] for number in numbers if number is not None})
