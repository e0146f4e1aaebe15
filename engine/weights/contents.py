"""A digest of all bytes of a model's weight files, equal for every download of the same model.

It is read piece by piece, in idle time, and remembered in the cache by what the file system says of
the files: path, inode, size, and the times of the last changes of content and status. The last one
cannot be set by a program, so a file that was replaced by one of the same size and time is read
again. This module imports no torch.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from engine.cache_files import cache_root, replace_file
from engine.errors import ModelError
from engine.weights.identity import identity_of
from engine.weights.shards import weight_files

PIECE_BYTES = 16 << 20
MEMORY = "weights.json"  # the file of the cache with the digests of earlier readings
MOST_REMEMBERED = 200  # models
LARGEST_MEMORY = 1 << 20  # bytes


class ContentsReader:
    """Reads the weight files of a folder once.

    The constructor raises `OSError` or `ModelError` if they are not those that were loaded.

    Args:
        revision: what `identity_of` returned when they were loaded.

    Attributes:
        num_bytes: of all files.
        num_read: of them those that were read.
    """

    def __init__(self, folder: Path, revision: str) -> None:
        self._folder, self._revision = folder, revision
        self._paths = weight_files(folder)
        self._state = _state(self._paths)
        self._check()
        self.num_bytes = sum(path.stat().st_size for path in self._paths)
        self.num_read = 0

    def recall(self) -> str | None:
        """Return the digest of an earlier reading of the same files; None if there was none."""
        found = _read_memory().get(self._key)
        return found if isinstance(found, str) else None

    def pieces(self) -> Iterator[str | None]:
        """Read one piece at each step; yield None, and the digest at the last step.

        Raise `ModelError` if the files changed meanwhile, and `OSError`.
        """
        digest = hashlib.blake2b(digest_size=20)
        for path in self._paths:
            with open(path, "rb", buffering=0) as file:
                digest.update(os.fstat(file.fileno()).st_size.to_bytes(8, "little"))
                while piece := file.read(PIECE_BYTES):
                    digest.update(piece)
                    self.num_read += len(piece)
                    yield None
        self._check()
        found = digest.hexdigest()
        with suppress(OSError):  # a cache without write permission remembers nothing
            _remember(self._key, found)
        yield found

    def _check(self) -> None:
        """Raise `ModelError` if the files have changed since they were loaded."""
        if identity_of(self._folder) != self._revision or _state(self._paths) != self._state:
            raise ModelError(f"{self._folder}: its files have changed since they were loaded")

    @property
    def _key(self) -> str:
        return hashlib.blake2b(json.dumps(self._state).encode(), digest_size=20).hexdigest()


def _state(paths: list[Path]) -> list[tuple[str, int, int, int, int]]:
    """Return what the file system says of files."""
    found = []
    for path in paths:
        real, status = path.resolve(), path.stat()
        times = (status.st_mtime_ns, status.st_ctime_ns)
        found.append((str(real), status.st_ino, status.st_size, *times))
    return found


def _read_memory() -> dict[str, object]:
    """Return the remembered digests; none if they cannot be read."""
    path = cache_root() / MEMORY
    try:
        if path.stat().st_size > LARGEST_MEMORY:
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _remember(key: str, digest: str) -> None:
    """Add a digest to the memory, whose oldest ones are forgotten."""
    known = {**_read_memory(), key: digest}
    kept = dict(list(known.items())[-MOST_REMEMBERED:])
    root = cache_root()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(root / MEMORY, memoryview(json.dumps(kept).encode()))
