"""Which safetensors files a checkpoint consists of: its index, or the one file without one."""

import json
import os
from pathlib import Path

from engine.errors import ModelError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


def read_index(folder: Path) -> dict[str, str]:
    """Return the name of the file that holds each tensor; empty for one file without an index.

    Raises `ModelError` when the folder has neither an index nor that file, or a broken index.
    """
    path = folder / INDEX_NAME
    if not path.exists():
        if (folder / SINGLE_NAME).exists():
            return {}
        raise ModelError(
            f"{folder}: neither {SINGLE_NAME} nor {INDEX_NAME} is there. Only safetensors "
            "checkpoints are read: convert other formats with save_pretrained"
        )
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: corrupt ({error!r}). Download it again") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{path}: corrupt (weight_map is empty or no object). Download it again")
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or file in ("", ".", "..") or os.path.basename(file) != file:
            raise ModelError(
                f"{path}: corrupt ({tensor} is said to be in {file!r}, not a file name). "
                "Download it again"
            )
    return dict(weight_map)


def has_weights(folder: Path) -> bool:
    """Return whether all files of the checkpoint are there. Raises `ModelError` as `read_index`."""
    if not (folder / INDEX_NAME).exists() and not any(folder.glob("*.safetensors")):
        return False
    names = set(read_index(folder).values()) or {SINGLE_NAME}
    return all((folder / name).is_file() for name in names)
