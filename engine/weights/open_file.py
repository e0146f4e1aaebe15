"""Files that stay open for positional reads from any thread."""

import os
import weakref
from pathlib import Path

from engine.errors import ModelError, system_reason


class OpenFile:
    """A file that is open for reading.

    If another file later gets its name, the opened file is still the one that is read. Reads after
    `close` raise `ModelError`, because a closed descriptor's number may belong to another file. The
    constructor raises `ModelError` if the file cannot be opened.
    """

    def __init__(self, path: Path, flags: int = 0) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
        except OSError as error:
            raise ModelError(f"{path}: cannot be opened: {system_reason(error)}") from error
        self.path = path
        self._descriptor = descriptor
        self._finalizer = weakref.finalize(self, os.close, descriptor)
        self._opened = self._state()

    @property
    def descriptor(self) -> int:
        """The descriptor, for one system call. Raises `ModelError` after `close`."""
        if not self.is_open:
            raise ModelError(f"{self.path}: read after it was closed")
        return self._descriptor

    @property
    def is_open(self) -> bool:
        """Whether the file has not been closed."""
        return self._finalizer.alive

    @property
    def nbytes(self) -> int:
        """The current size of the file."""
        return os.fstat(self.descriptor).st_size

    def close(self) -> None:
        """Close the file. It may be called again."""
        self._finalizer()

    def check_unchanged(self) -> None:
        """Raise `ModelError` if the file was written to or truncated since it was opened."""
        if self._state() != self._opened:
            raise ModelError(
                f"{self.path}: the file was changed after the model began to load from it. "
                "Restart the server, which then loads the changed file"
            )

    def read(self, memory: memoryview, offset: int) -> None:
        """Fill `memory` from `offset` on. Raises `ModelError` if the file ends early."""
        done = 0
        while done < len(memory):
            try:  # one call reads at most 2 GiB
                count = os.preadv(self.descriptor, [memory[done:]], offset + done)
            except OSError as error:
                raise ModelError(
                    f"{self.path}: read of {len(memory)} bytes at {offset} failed: "
                    f"{system_reason(error)}"
                ) from error
            if count == 0:
                raise ModelError(
                    f"{self.path}: ends at {offset + done}, but bytes up to "
                    f"{offset + len(memory)} are expected. The file was truncated: fetch or pack "
                    "it again"
                )
            done += count

    def evict(self, offset: int, nbytes: int) -> None:
        """Drop a range of bytes from the page cache, as far as no program has mapped them."""
        os.posix_fadvise(self.descriptor, offset, nbytes, os.POSIX_FADV_DONTNEED)

    def _state(self) -> tuple[int, int]:
        """Return the size and the time of the last change."""
        status = os.fstat(self.descriptor)
        return status.st_size, status.st_mtime_ns
