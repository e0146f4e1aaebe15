"""The folder that is made for a model in GGUF files, with the files that a checkpoint has.

It is an entry of the cache with config.json, generation_config.json, the tokenizer files and a link
to the weights. Every file is made from metadata that was checked, and is read like those of any
other folder. This module imports no torch, because `understudy pull` uses it too.
"""

import json
import os
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from engine.cache_files import (
    INDEX,
    cache_root,
    folder_name,
    folders,
    key_of,
    partial_folder,
    remove_folder,
    remove_stale,
    write_file,
)
from engine.errors import ModelError, system_reason
from engine.weights.config_file import checked_values
from engine.weights.config_place import CONFIG_NAME, ConfigPlace
from engine.weights.generation_config import GENERATION_CONFIG
from engine.weights.gguf_config import make_config
from engine.weights.gguf_file import Header, TensorInfo, plain_name, read_header, split_paths
from engine.weights.gguf_keys import metadata_names
from engine.weights.gguf_model import Model, shortest
from engine.weights.gguf_rope import LARGEST_TABLE, ROPE_TABLES
from engine.weights.gguf_shapes import check_tensors
from engine.weights.gguf_tokenizer import make_tokenizer
from engine.weights.open_file import OpenFile
from engine.weights.shards import LINK_NAME, has_files, link_text

KEPT_SECONDS = 24 * 3600.0  # a running server may use the tokenizer of a file that was replaced
VERSION = 3  # of what is made from the same metadata
_SAMPLING = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}


def gguf_folder(path: Path) -> Path:
    """Return the folder of the model in a GGUF file, which may be one of several parts.

    The folder is made if the cache does not have it. Raises `ModelError` if the files are not a
    model that can be read.
    """
    path = path.resolve()
    if not path.is_file():  # to open a named pipe would wait for a writer
        raise ModelError(f"{path}: there is no such file")
    paths = split_paths(path)
    link, model = link_text(paths), plain_name(path.name)
    key = f"{model}\n{link}\ngguf {VERSION}"
    folder = cache_root() / folder_name(model, key)
    try:
        if not (folder / INDEX).is_file():
            files = _make_files(paths) | {LINK_NAME: link, INDEX: json.dumps({"key": key})}
            _write_folder(folder, files)
        with suppress(OSError):  # a cache without write permission can still be read
            os.utime(folder / INDEX)  # when the entry was last used
    except OSError as error:
        raise ModelError(
            f"{path}: its configuration cannot be written to {folder.parent}: "
            f"{system_reason(error)}. Set UNDERSTUDY_CACHE to a folder that can be written to"
        ) from error
    return folder


def _make_files(paths: Sequence[Path]) -> dict[str, str]:
    """Return the text of each file that is made from the metadata, by its name."""
    files = [OpenFile(path) for path in paths]
    try:
        headers = [read_header(file) for file in files]
        tensors: dict[str, TensorInfo] = {}
        tables: dict[str, Sequence[float]] = {}
        for file, header in zip(files, headers, strict=True):
            tensors |= {info.name: info for info in header.tensors}
            tables |= _tables(file, header)
    finally:
        for file in files:
            file.close()
    first, metadata = paths[0], headers[0].metadata
    _check_parts(paths, headers, len(tensors))
    model = Model(first, metadata, tensors, tables)
    place = ConfigPlace(first, metadata_names(model.architecture))
    config = checked_values(make_config(model), place)
    check_tensors(model, config)
    tokenizer = make_tokenizer(first, metadata)
    generation: dict[str, Any] = {"eos_token_id": list(tokenizer.eos_ids)}
    for name, ours in _SAMPLING.items():
        if (value := metadata.get(f"general.sampling.{name}")) is not None:
            generation[ours] = shortest(value) if isinstance(value, float) else value
    return {
        CONFIG_NAME: json.dumps(config),
        GENERATION_CONFIG: json.dumps(generation),
        "tokenizer.json": json.dumps(tokenizer.tokenizer, ensure_ascii=False),
        "tokenizer_config.json": json.dumps(tokenizer.config, ensure_ascii=False),
    }


def _check_parts(paths: Sequence[Path], headers: Sequence[Header], tensors: int) -> None:
    """Raise `ModelError` unless the files are all parts of one model, in their order."""
    held = sum(len(header.tensors) for header in headers)
    if held != tensors:
        raise ModelError(f"{paths[0]}: a tensor is in two parts of the model. Download it again")
    for number, (path, header) in enumerate(zip(paths, headers, strict=True)):
        said = [header.metadata.get(f"split.{name}") for name in ("no", "count", "tensors.count")]
        is_alone = len(paths) == 1 and said[1] in (None, 0, 1)
        if not is_alone and said != [number, len(paths), held]:
            part, count, held_by_all = ("an unknown number" if n is None else n for n in said)
            raise ModelError(
                f"{path}: is part {part} of {count} of a model of {held_by_all} tensors, but part "
                f"{number} of {len(paths)} with {held} tensors is expected (counted from 0). Give "
                "the parts of one model their own names again, or download them again"
            )


def _tables(file: OpenFile, header: Header) -> Mapping[str, Sequence[float]]:
    """Return the values of the tensors that belong to the configuration."""
    found = {}
    for info in header.tensors:
        if info.name in ROPE_TABLES:
            if info.type.name != "F32" or info.nbytes > 4 * LARGEST_TABLE:
                raise ModelError(f"{file.path}: {info.name}: at most {LARGEST_TABLE} F32 values")
            raw = bytearray(info.nbytes)
            file.read(memoryview(raw), info.offset)
            found[info.name] = struct.unpack(f"<{len(raw) // 4}f", raw)
    return found


def _remove_dead(root: Path) -> None:
    """Remove the folders whose GGUF files were moved, changed or removed, some time ago.

    They would never be used again, because another path, size or time makes another folder.
    """
    for name in folders(root):
        folder = root / name
        if (folder / LINK_NAME).is_file() and key_of(folder) and not has_files(folder):
            with suppress(OSError):  # another process removes it
                if time.time() - (folder / INDEX).stat().st_mtime > KEPT_SECONDS:
                    remove_folder(folder)


def _write_folder(folder: Path, files: Mapping[str, str]) -> None:
    """Write the files so that the folder has all of them as soon as it exists."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(folder.parent)
    _remove_dead(folder.parent)
    with partial_folder(folder) as partial:
        for name, text in files.items():
            write_file(partial / name, memoryview(text.encode()))
        remove_folder(folder)  # one whose index is missing
        try:
            partial.rename(folder)
        except OSError:
            if not (folder / INDEX).is_file():  # another process has made it meanwhile
                raise
