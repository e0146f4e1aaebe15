"""The weight files of a checkpoint: listed in its index, a single file, or GGUF files elsewhere."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from engine.cache_files import cache_root
from engine.errors import ModelError, shown
from engine.files import exists, parse_object, read_object, read_text

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
AGAIN = "Download it again"
LARGEST_INDEX = 32 << 20  # bytes; the index of a model with 140,000 tensors has 14 MB
MOST_FILES = 900  # all are open at the same time; the largest published models have 200


def read_index(folder: Path) -> dict[str, str]:
    """Return the file name of each tensor; empty if the checkpoint is one file without an index.

    Raises `ModelError` if the folder has neither an index nor that file, or if the index is broken.
    """
    path = folder / INDEX_NAME
    if not path.exists():
        if (folder / SINGLE_NAME).exists():
            return {}
        raise ModelError(
            f"{folder}: neither {SINGLE_NAME} nor {INDEX_NAME} is there. {advice(folder)}"
        )
    index = parse_object(
        read_text(path, LARGEST_INDEX), f"{path}: corrupt", unique=True, remedy=AGAIN
    )
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{path}: corrupt (weight_map is empty or no object). Download it again")
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or not _is_file_name(file):
            raise ModelError(
                f"{path}: corrupt ({shown(tensor)} is said to be in {shown(file)}, not a file "
                "name). Download it again"
            )
    if (count := len(set(weight_map.values()))) > MOST_FILES:
        raise ModelError(f"{path}: corrupt ({count} files; {MOST_FILES} are the most)")
    return dict(weight_map)


def _is_file_name(text: str) -> bool:
    return text not in ("", ".", "..") and os.path.basename(text) == text and len(text) < 256


_ONLY = "Only safetensors and GGUF weights are read"


def advice(folder: Path) -> str:
    """Return advice for a folder without a safetensors checkpoint, given the files in it."""
    return other_weights(folder) or f"{_ONLY}: convert other formats with save_pretrained"


def other_weights(folder: Path) -> str:
    """Return which weights a folder holds that are not read, and what to do; "" for none."""
    for pattern, found, remedy in _OTHERS:
        if any(folder.glob(pattern)):
            return f"{_ONLY} and the folder holds {found}: {remedy}"
    return ""


# Other files of model folders: a pattern of their names, what they are, and what to do.
_OTHERS = (
    (
        "adapter_config.json",
        "a LoRA adapter, not a whole model",
        "merge it into its base model (merge_and_unload and save_pretrained of peft) and give that "
        "folder",
    ),
    (
        "consolidated*.safetensors",
        "Mistral's own format (consolidated.safetensors)",
        "use the files of the same repository that transformers reads (model*.safetensors and "
        "config.json)",
    ),
    (
        "*.bin",
        "PyTorch files (*.bin), which may hold code",
        "convert them with save_pretrained, or use a revision with safetensors",
    ),
    (
        "*.pth",
        "Meta's own format (*.pth), which may hold code",
        "use the checkpoint of the same model that transformers reads (model*.safetensors and "
        "config.json)",
    ),
    ("*.onnx", "an ONNX model", "use the safetensors checkpoint that it was made of"),
)


# The link of the folder that is made for a model in GGUF files: it names these files.
LINK_NAME = "gguf.json"


def has_link(folder: Path) -> bool:
    """Return whether the weights of a folder are GGUF files elsewhere.

    Only folders of the cache are trusted to name files elsewhere: other folders may be hostile.
    """
    return exists(folder / LINK_NAME) and folder.parent.resolve() == cache_root().resolve()


def link_text(paths: Sequence[Path]) -> str:
    """Return the text of a link to these files as they are now."""
    return json.dumps({"files": [[str(path), *_state(path)] for path in paths]})


def read_link(folder: Path) -> list[Path]:
    """Return the GGUF files of a folder. Raises `ModelError` if one of them was changed."""
    where, files = folder / LINK_NAME, read_object(folder / LINK_NAME).get("files")
    if not isinstance(files, list) or not files:
        raise ModelError(f"{where}: corrupt. Remove its folder, which is made again")
    for path, *state in files:
        if not os.path.isfile(path) or _state(Path(path)) != state:
            raise ModelError(f"{path}: was changed or removed. Load the model again")
    return [Path(path) for path, *_ in files]


def has_files(folder: Path) -> bool:
    """Return whether the GGUF files of a folder are there, as they were when it was made."""
    try:
        return bool(read_link(folder))
    except (ModelError, OSError, TypeError, ValueError):  # the link itself may be damaged
        return False


def _state(path: Path) -> list[int]:
    """Return the size of a file and the time of its last change."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def weight_files(folder: Path) -> list[Path]:
    """Return the existing weight files of a checkpoint."""
    paths = read_link(folder) if has_link(folder) else sorted(folder.glob("*.safetensors"))
    return [path for path in paths if os.path.isfile(path)]


def has_weights(folder: Path) -> bool:
    """Return whether all files of a checkpoint exist. Raises `ModelError` as `read_index` does."""
    if has_link(folder):
        return bool(read_link(folder))
    if not (folder / INDEX_NAME).exists() and not any(folder.glob("*.safetensors")):
        return False
    names = set(read_index(folder).values()) or {SINGLE_NAME}
    return all(os.path.isfile(folder / name) for name in names)
