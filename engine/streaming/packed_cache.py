"""The cache of packed models: its folder, its entries, and which are removed to make room.

The key of an entry names all that its bytes depend on: the source's identity, the precision and the
layout version. Only the owner can read the entries. A program that may write to the folder can
replace the weights, with valid checksums, so the folder must be as trusted as the checkpoint.
"""

import logging
import os
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from engine.cache_files import (
    INDEX,
    MODEL_FILES,
    cache_root,
    folder_name,
    folders,
    holds_kv,
    key_of,
    lock,
    remove_folder,
    remove_stale,
    unit_name,
)
from engine.errors import ModelError
from engine.messages import ReportProgress
from engine.streaming.packed import PackedUnits, pack
from engine.streaming.packed_index import LAYOUT_VERSION, digest_of, parse_index
from engine.weights.layout import UnitReader
from engine.weights.open_file import OpenFile
from engine.weights.shards import has_files

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheEntry:
    """One packed model in the cache, or something else that is kept for a model."""

    path: Path
    model: str  # the model id that it was packed for
    nbytes: int
    last_used: float  # seconds since the epoch
    is_packed: bool = True  # False: configuration and tokenizer of GGUF files, or idle KV
    is_usable: bool = True  # False: its GGUF files were moved, changed or removed
    holds_kv: bool = False  # idle KV of prompts and answers


def open_or_pack(
    reader: UnitReader, model: str, identity: str, limit: int | None, progress: ReportProgress
) -> PackedUnits:
    """Return the units of `reader` from the cache. Pack them first if they are not in the cache.

    Args:
        model: the model id.
        identity: distinguishes source, revision, precision and type of device.
        limit: the most bytes of all entries; the least recently used ones are removed to keep it.
        progress: called with the progress of packing.

    Raises `ModelError` if there is too little room.
    """
    key = _key(model, identity)
    folder = _folder(model, key)
    found = _open(folder, key, reader)
    if found is not None:
        return found
    _make_room(folder.parent, model, reader.stored_bytes, limit)
    return pack(reader, folder, key, progress)


def find_digest(model: str, identity: str) -> str | None:
    """Return the digest of an entry (`PackedUnits.digest`), or None if it is not complete.

    Only its index and the sizes of its files are read, so damage inside a file is not noticed.
    """
    key = _key(model, identity)
    folder = _folder(model, key)
    try:
        with closing(OpenFile(folder / INDEX, os.O_NOFOLLOW | os.O_NONBLOCK)) as index:
            found, layouts, checksums = parse_index(index)
        sizes = [(folder / unit_name(unit)).lstat().st_size for unit in range(len(layouts))]
    except (OSError, ModelError):
        return None
    is_complete = found == key and sizes == [layout.nbytes for layout in layouts]
    return digest_of(checksums) if is_complete else None


def entries() -> list[CacheEntry]:
    """Return all entries, the least recently used one first."""
    root = cache_root()
    found = [_entry(root / name) for name in folders(root)]
    return sorted((entry for entry in found if entry), key=lambda entry: entry.last_used)


def remove(entry: CacheEntry) -> None:
    """Remove an entry, but no file of another program.

    Raises `ModelError` if a running engine uses it. Idle KV is removed even then: the engine
    computes what it does not find.
    """
    with lock(entry.path / INDEX) as free:
        if not free:
            raise ModelError(f"{entry.path}: in use by a running engine. Unload its model first")
        remove_folder(entry.path)


def remove_leftovers() -> None:
    """Remove the partial folders of packings that were killed."""
    remove_stale(cache_root())


def _key(model: str, identity: str) -> str:
    return f"{model}\n{identity}\nlayout {LAYOUT_VERSION}"


def _folder(model: str, key: str) -> Path:
    return cache_root() / folder_name(model, key)


def _open(folder: Path, key: str, reader: UnitReader) -> PackedUnits | None:
    """Return the entry if it can be used; remove it otherwise."""
    if not folder.exists():
        return None
    try:
        return PackedUnits(folder, key, reader)
    except ModelError as error:
        log.warning("%s. All units are packed again", error)
    remove_folder(folder)
    return None


def _make_room(root: Path, model: str, needed: int, limit: int | None) -> None:
    """Remove the least recently used entries until `needed` bytes fit.

    Entries of other models are removed before entries of `model`. Raises `ModelError` if the bytes
    cannot fit within `limit`.
    """
    remove_stale(root)
    if limit is None:
        return
    if needed > limit:
        raise ModelError(
            f"memory.cache: {limit / 1e9:.2f} GB, but packing {model} needs {needed / 1e9:.2f} GB. "
            "Raise the limit"
        )
    packed = [entry for entry in entries() if entry.is_packed]
    kept = sorted(packed, key=lambda entry: (entry.model == model, entry.last_used))
    used = sum(entry.nbytes for entry in kept)
    for entry in kept:
        if used + needed <= limit:
            return
        with suppress(ModelError):  # the entry is in use
            remove(entry)
            used -= entry.nbytes
    if used + needed > limit:
        raise ModelError(
            f"memory.cache: {limit / 1e9:.2f} GB, of which {used / 1e9:.2f} GB are in use by "
            f"running engines; packing {model} needs {needed / 1e9:.2f} GB. Raise the limit"
        )


def _entry(folder: Path) -> CacheEntry | None:
    """Return an entry, or None if the folder is not a packed model or is being removed."""
    if (key := key_of(folder)) is None:
        return None
    try:
        nbytes = sum(path.lstat().st_size for path in folder.iterdir())
        used = (folder / INDEX).stat().st_mtime
    except OSError:  # it is being removed
        return None
    model = key.split("\n")[0]
    if holds_kv(key):
        return CacheEntry(folder, model, nbytes, used, is_packed=False, holds_kv=True)
    is_packed = not (folder / MODEL_FILES[0]).exists()
    is_usable = is_packed or has_files(folder)
    return CacheEntry(folder, model, nbytes, used, is_packed, is_usable)
