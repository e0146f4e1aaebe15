"""Sums of what was first read from a checkpoint, which every later read has to give again.

A checkpoint has no checksums. A bit that flips in a later read, on the way from the disk or in the
page cache, would change an answer without a sign of it.
"""

import logging
from pathlib import Path

import numpy as np

from engine.errors import ModelError
from engine.weights.open_file import OpenFile

log = logging.getLogger(__name__)


def sum_words(memory: memoryview) -> int:
    """Return the sum of bytes as 64-bit words, and of the rest; any flipped bit changes it.

    numpy adds them in the calling thread, and torch's threads stay free for a pass.
    """
    whole = len(memory) // 8 * 8
    words = np.frombuffer(memory[:whole], dtype=np.uint64)
    return int(np.add.reduce(words)) + sum(memory[whole:])


class FirstReads:
    """The sums of the parts of a checkpoint that were read. Any thread may call `read`."""

    def __init__(self) -> None:
        self._sums: dict[tuple[Path, int, int], int] = {}  # by file, offset and bytes

    def read(self, file: OpenFile, memory: memoryview, offset: int) -> None:
        """Fill `memory` from `offset` of a file on, and compare it with the first such read.

        Bytes that differ are read once more, from the disk if possible. Raises `ModelError` if
        they differ again, cannot be read, or were written to since the file was opened.
        """
        file.read(memory, offset)
        file.check_unchanged()
        found = sum_words(memory)
        first = self._sums.setdefault((file.path, offset, len(memory)), found)
        if found == first:
            return
        file.evict(offset, len(memory))
        file.read(memory, offset)
        where = f"{file.path}: {len(memory)} bytes at {offset}"
        if sum_words(memory) != first:
            raise ModelError(
                f"{where} are not what was read at first, although the file was not written to. "
                "The disk or the machine's memory fails: check both, and load the model again"
            )
        log.warning("%s were read wrongly, and rightly when they were read again", where)
