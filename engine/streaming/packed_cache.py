"""The cache of packed models: where its entries are, how many bytes they take, which go first.

An entry is keyed by what its bytes depend on: the source's identity, the precision, the layout
version. `UNDERSTUDY_CACHE` names the folder; else it is `understudy` in the user's cache folder.
"""

import hashlib
import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ModelError
from engine.messages import ReportProgress
from engine.streaming.packed import (
    INDEX,
    LAYOUT_VERSION,
    PackedUnits,
    lock,
    pack,
    packed_bytes,
    remove_stale,
)
from engine.weights.layout import UnitReader


@dataclass(frozen=True)
class CacheEntry:
    """One packed model."""

    path: Path
    model: str  # the id it was packed for
    nbytes: int
    last_used: float  # seconds since the epoch


def cache_root() -> Path:
    """Return the folder of all entries; it may not exist yet."""
    if own := os.environ.get("UNDERSTUDY_CACHE"):
        return Path(own).expanduser()
    users = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(users).expanduser() / "understudy"


def packed(
    reader: UnitReader, model: str, identity: str, limit: int | None, progress: ReportProgress
) -> PackedUnits:
    """Return the units of `reader` from the cache; pack them first if they are not there.

    `identity` distinguishes source, revision, precision and kind of device. `limit` bounds the
    bytes of all entries: those used least recently are removed. Raises `ModelError` when there is
    not enough room.
    """
    key = _key(model, identity)
    folder = _folder(model, key)
    found = _open(folder, key, reader)
    if found is not None:
        return found
    _make_room(folder.parent, model, packed_bytes(reader), limit)
    return pack(reader, folder, key, progress)


def is_cached(model: str, identity: str) -> bool:
    """Return whether there is an entry; whether it is whole shows when it is opened."""
    return (_folder(model, _key(model, identity)) / INDEX).is_file()


def entries() -> list[CacheEntry]:
    """Return all entries, the least recently used first."""
    found = [_entry(index) for index in cache_root().glob(f"*/{INDEX}")]
    return sorted((entry for entry in found if entry), key=lambda entry: entry.last_used)


def remove(entry: CacheEntry) -> None:
    """Delete an entry. Raises `ModelError` when a running engine reads it."""
    with lock(entry.path / INDEX) as free:
        if not free:
            raise ModelError(f"{entry.path}: in use by a running engine. Stop it first")
        (entry.path / INDEX).unlink(missing_ok=True)  # from here on it is no entry
        shutil.rmtree(entry.path, ignore_errors=True)


def _key(model: str, identity: str) -> str:
    return f"{model}\n{identity}\nlayout {LAYOUT_VERSION}"


def _folder(model: str, key: str) -> Path:
    digest = hashlib.blake2b(key.encode(), digest_size=8).hexdigest()
    return cache_root() / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', model)}-{digest}"


def _open(folder: Path, key: str, reader: UnitReader) -> PackedUnits | None:
    """Return the entry if it is whole and laid out as the reader is; remove it otherwise."""
    with suppress(ModelError):
        units = PackedUnits(folder, key)
        if list(units.layouts) == list(reader.layouts):
            return units
        units.close()
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _make_room(root: Path, model: str, needed: int, limit: int | None) -> None:
    """Remove the least recently used entries, other models' first, until `needed` bytes fit."""
    remove_stale(root)
    if limit is None:
        return
    if needed > limit:
        raise ModelError(
            f"memory.cache: {limit / 1e9:.2f} GB, but packing {model} needs {needed / 1e9:.2f} GB. "
            "Raise the limit"
        )
    kept = sorted(entries(), key=lambda entry: (entry.model == model, entry.last_used))
    used = sum(entry.nbytes for entry in kept)
    for entry in kept:
        if used + needed <= limit:
            return
        with suppress(ModelError):  # in use
            remove(entry)
            used -= entry.nbytes
    if used + needed > limit:
        raise ModelError(
            f"memory.cache: {limit / 1e9:.2f} GB, of which {used / 1e9:.2f} GB are in use by "
            f"running engines; packing {model} needs {needed / 1e9:.2f} GB. Raise the limit"
        )


def _entry(index: Path) -> CacheEntry | None:
    """Return an entry; None if another process removed it or it cannot be read."""
    try:
        key = json.loads(index.read_text(encoding="utf-8"))["key"]
        nbytes = sum(path.stat().st_size for path in index.parent.iterdir())
        return CacheEntry(index.parent, str(key).split("\n")[0], nbytes, index.stat().st_mtime)
    except (OSError, ValueError, KeyError, TypeError):
        return None
