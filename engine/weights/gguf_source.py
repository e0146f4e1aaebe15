"""Finding the GGUF file of a model: by its path, in a folder, or in a repository of the hub."""

import re
from collections.abc import Sequence
from pathlib import Path

from engine.errors import ModelError, shown
from engine.files import find_file, find_folder
from engine.weights.gguf_file import PART, part_name

SUFFIX = ".gguf"
# owner/name:Q4_K_M
_HUB_QUANT = re.compile(r"([\w-][\w.-]*/[\w.-]+):([\w.-]+)")
_QUANTS = re.compile(r"(?:IQ|TQ|Q|BF|F|MXFP)\d[A-Z0-9_]*", re.IGNORECASE)
_PROJECTOR = re.compile(r"(^|[-_.])mmproj", re.IGNORECASE)


def split_source(source: str) -> tuple[str, str] | None:
    """Return repository and quantization of a source like owner/name:Q4_K_M, or None."""
    found = _HUB_QUANT.fullmatch(source)
    return (found[1], found[2]) if found else None


def find_gguf(source: str) -> Path | None:
    """Return the GGUF file that a source names, or the one in the folder that it names.

    Return None if the source is something else, such as a folder of safetensors files. Raises
    `ModelError` if a folder has several models.
    """
    if (file := find_file(source, SUFFIX)) is not None:
        return file
    folder = find_folder(source)
    if folder is None or any(folder.glob("*.safetensors")):
        return None
    names = [path.name for path in folder.glob(f"*{SUFFIX}")]
    if not names:
        return None
    models = list_models(names)
    if len(models) > 1:
        raise ModelError(
            f"{folder}: holds several models: {', '.join(models)}. Give the path of one file"
        )
    if not models:
        raise ModelError(
            f"{folder}: {names[0]} is a projector (mmproj) for images or audio, not a language "
            "model. Give the file of the model itself"
        )
    return folder / models[0]


def list_models(names: Sequence[str]) -> list[str]:
    """Return the sorted names of models: without projectors, and one part of each split model."""
    kept = (name for name in names if name.endswith(SUFFIX))
    kept = (name for name in kept if not _PROJECTOR.search(name.rpartition("/")[2]))
    return sorted({part_name(name, 1) for name in kept})


def choose_files(source: str, quant: str, names: Sequence[str]) -> list[str]:
    """Return the files of a repository for a quantization such as Q4_K_M, the first part first.

    Args:
        source: the repository, for messages.
        quant: its name, in the case of the files or another.
        names: the files of the repository.

    Raises `ModelError` if none or several models have that quantization.
    """
    wanted = re.compile(rf"(?<![A-Z0-9]){re.escape(quant)}(?![A-Z0-9_])", re.IGNORECASE)
    models = list_models(names)
    found = [name for name in models if wanted.search(_tail(name))]
    if len(found) != 1:
        what = f"several files for {quant}" if found else f"no GGUF file for {shown(quant)}"
        known = ", ".join(found or quantizations(models)) or "none"
        raise ModelError(f"{source}: the repository has {what}. It has: {known}")
    part = PART.search(found[0])
    count = int(part[2]) if part else 1
    parts = [part_name(found[0], number) for number in range(1, count + 1)]
    if missing := [name for name in parts if name not in names]:
        raise ModelError(f"{source}: the repository lacks {missing[0]}, a part of the model")
    return parts


def quantizations(models: Sequence[str]) -> list[str]:
    """Return the quantizations that the names of models contain."""
    found = [match for name in models for match in _QUANTS.findall(_tail(name))[-1:]]
    return list(dict.fromkeys(text.upper() for text in found))


def _tail(name: str) -> str:
    """Return the name of a file without its number as a part and without its suffix."""
    return PART.sub("", name).removesuffix(SUFFIX).rpartition("/")[2]
