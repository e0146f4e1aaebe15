"""What identifies the files of a model: digests that change when they do.

This module imports no torch.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from engine.cache_files import INDEX
from engine.errors import ModelError, system_reason
from engine.files import read_bytes
from engine.weights.config_place import CONFIG_NAME
from engine.weights.shards import LINK_NAME, has_link, weight_files

_TEXT_SUFFIXES = (".json", ".jinja", ".model", ".txt")
_SNAPSHOT = re.compile(r"snapshots/([0-9a-f]{40})$")
_LARGEST_TEXT = 64 << 20  # bytes


def identity_of(folder: Path) -> str:
    """Return a digest of config.json and of the name, size and change time of each weight file.

    For a hub snapshot the commit precedes the digest. It does not suffice, because the files of a
    snapshot can be overwritten.
    """
    digest = hashlib.blake2b(read_bytes(folder / CONFIG_NAME), digest_size=20)
    for path in weight_files(folder):
        try:
            status = path.stat()
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {system_reason(error)}") from error
        digest.update(f"\0{path.name}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    commit = _SNAPSHOT.search(folder.as_posix())
    return f"{commit[1]}-{digest.hexdigest()}" if commit else digest.hexdigest()


def text_digest(folder: Path) -> str:
    """Return a digest of the text files: tokenizer, chat template and configuration.

    Like the weights, they determine the text of an answer.
    """
    return _text_digest(folder, left_out=())


def portable_text(folder: Path) -> str:
    """Return a digest of the text files that is equal on all machines with the same model."""
    return _text_digest(folder, left_out=(INDEX, LINK_NAME) if has_link(folder) else ())


def _text_digest(folder: Path, left_out: Sequence[str]) -> str:
    digest = hashlib.blake2b(digest_size=20)
    try:
        found = [(path, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    except OSError as error:  # a file was removed meanwhile, or the disk fails
        raise ModelError(f"{folder}: cannot be read: {system_reason(error)}") from error
    for path, status in found:
        if path.suffix in _TEXT_SUFFIXES and path.name not in left_out:
            digest.update(f"\0{path.name}\0{status.st_size}\0".encode())
            if status.st_size <= _LARGEST_TEXT:
                digest.update(read_bytes(path))
            else:  # no file that is read
                digest.update(f"{status.st_mtime_ns}".encode())
    return digest.hexdigest()
