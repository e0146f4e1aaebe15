"""Reading units from a disk: in pieces, by several threads, directly or through the page cache.

The file of a unit consists of whole pages. So direct reads (O_DIRECT) can fill a slot without a
copy and without evicting other pages from memory. Where the page cache is faster, it is used.
"""

import logging
import mmap
import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.streaming.workers import Workers
from engine.timing import time_runs
from engine.weights.layout import PAGE_BYTES
from engine.weights.open_file import OpenFile

logger = logging.getLogger(__name__)

PIECE_BYTES = 8 * 2**20  # bytes of one read, and of one checksum of a packed unit
READERS = 4  # threads that read from the disk
STAGING_BYTES = 1 << 30  # of the staging buffers of one link at most, unless one needs more
MIN_MEASURED_BYTES = 64 * 2**20  # reading fewer bytes is not worth a measurement
TRIAL_S = 0.3  # seconds after which no round of the measurement begins
TRIAL_ROUNDS = 4
TRIAL_PIECES = 2  # pieces that each thread reads in a round
# Direct reads are used from this share of the cached speed on: they take a tenth of the CPU time,
# and no memory.
MIN_DIRECT_SPEED = 0.75


def split_pieces(nbytes: int) -> list[range]:
    """Return the byte ranges of pieces of `PIECE_BYTES`, at least one; the last may be shorter."""
    firsts = range(0, max(nbytes, 1), PIECE_BYTES)
    return [range(first, min(first + PIECE_BYTES, nbytes)) for first in firsts]


def num_staging_buffers(largest: int, count: int) -> int:
    """Return how many staging buffers a link has for `count` pieces of at most `largest` bytes.

    Each thread fills one buffer while another one is copied from. Where a whole unit is one piece,
    each thread has only one, and there are fewer threads if buffers are large.
    """
    most = 2 * READERS
    if largest > PIECE_BYTES:
        most = min(READERS, max(STAGING_BYTES // largest, 1))
    return min(most, count)


class UnitFile:
    """An open file of whole pages that any thread may read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cached = OpenFile(path, os.O_NOFOLLOW)
        self._direct: OpenFile | None = None
        self.is_direct = False  # whether aligned reads bypass the page cache

    @property
    def nbytes(self) -> int:
        """The size of the file."""
        return self._cached.nbytes

    def open_direct(self) -> bool:
        """Open the file for direct reads too. Return False if the file system refuses that."""
        if self._direct is None and hasattr(os, "O_DIRECT"):
            with suppress(ModelError):  # tmpfs, some overlays
                self._direct = OpenFile(self.path, os.O_DIRECT | os.O_NOFOLLOW)
        return self._direct is not None

    def use_direct(self) -> None:
        """Bypass the page cache from now on."""
        self.is_direct = True

    def read(self, memory: Tensor, offset: int, *, direct: bool | None = None) -> None:
        """Fill `memory` (uint8) with the file's bytes from `offset` on.

        Args:
            direct: whether to bypass the page cache, if addresses allow it; None: as `is_direct`.

        Raises `ModelError`, which names the file, if it cannot be read.
        """
        flat = memory.numpy().data
        aligned = (memory.data_ptr() | offset | len(flat)) % PAGE_BYTES == 0
        direct = self.is_direct if direct is None else direct
        done = self._read_direct(flat, offset) if direct and aligned else 0
        self._cached.read(flat[done:], offset + done)

    def read_stored(self, memory: Tensor, offset: int) -> None:
        """Fill `memory` (whole pages) from the disk rather than from the page cache, if possible.

        Bytes that were written and have not reached the disk are written first. Raises
        `ModelError` as `read` does.
        """
        if not self.open_direct():
            self.evict(range(offset, offset + len(memory)))
        self.read(memory, offset, direct=True)

    def close(self) -> None:
        """Close the file. Later reads raise `ModelError`. It may be called again."""
        self._cached.close()
        if self._direct is not None:
            self._direct.close()

    def is_cached(self) -> bool:
        """Return whether the middle page of the file is in the page cache, without reading it."""
        page = bytearray(PAGE_BYTES)
        middle = self.nbytes // 2 // PAGE_BYTES * PAGE_BYTES
        try:
            return os.preadv(self._cached.descriptor, [page], middle, os.RWF_NOWAIT) == PAGE_BYTES
        except OSError:  # it is not cached, or the file system does not support this flag
            return False

    def evict(self, piece: range) -> None:
        """Drop a range of bytes from the page cache."""
        self._cached.evict(piece.start, len(piece))

    def _read_direct(self, flat: memoryview, offset: int) -> int:
        """Fill the start of `flat` by direct reads, and return how many bytes were read.

        After an error the caller reads the rest through the page cache, which raises the error.
        """
        done = 0
        while self._direct is not None and done < len(flat) and done % PAGE_BYTES == 0:
            try:
                count = os.preadv(self._direct.descriptor, [flat[done:]], offset + done)
            except OSError:
                break
            if count == 0:
                break
            done += count
        return done


def direct_is_faster(files: Sequence[UnitFile]) -> bool:
    """Return whether reading these files again and again is faster without the page cache.

    If all of them are in the cache, they fit in memory, and the cache is faster. Otherwise uncached
    pieces are read both ways in turn, by as many threads as in a pass. The fastest rounds are
    compared, because other programs can only slow a disk down. This takes about `TRIAL_S` seconds.
    """
    files = [file for file in files if file.nbytes]
    if sum(file.nbytes for file in files) < MIN_MEASURED_BYTES:
        return False
    if not all(file.open_direct() for file in files) or all(file.is_cached() for file in files):
        return False
    places = [(file, piece) for file in files for piece in split_pieces(file.nbytes)]
    count = READERS * TRIAL_PIECES
    memory = torch.frombuffer(mmap.mmap(-1, READERS * PIECE_BYTES), dtype=torch.uint8)
    memory.fill_(1)  # the first touch of a page is not part of reading
    paces: dict[bool, list[float]] = {True: [], False: []}
    with closing(Workers("weights-trial", READERS)) as workers:
        began = time.perf_counter()
        for number in range(TRIAL_ROUNDS):
            for direct in (True, False):  # pieces in the order of a pass
                first = (2 * number + direct) * (len(places) - count) // (2 * TRIAL_ROUNDS)
                run = places[first : first + count]
                paces[direct].append(_trial(run, memory, workers, direct=direct))
            if time.perf_counter() - began > TRIAL_S:
                break
    directly, cached = max(paces[True]), max(paces[False])
    logger.info("Disk: %.2f GB/s directly, %.2f GB/s through the page cache", directly, cached)
    return directly >= MIN_DIRECT_SPEED * cached


def read_gbps(file: UnitFile) -> float:
    """Return the speed of reading some pieces of a file by all threads, in 1e9 bytes a second.

    It is that of the page cache if the file is there, else that of the disk.
    """
    pieces = split_pieces(file.nbytes)
    count = min(READERS * TRIAL_PIECES, len(pieces))
    places = [(file, pieces[number * len(pieces) // count]) for number in range(count)]
    memory = torch.frombuffer(mmap.mmap(-1, READERS * PIECE_BYTES), dtype=torch.uint8)
    memory.fill_(1)  # the first touch of a page is not part of reading
    is_cached = file.is_cached()
    with closing(Workers("weights-trial", READERS)) as workers:
        return _trial(
            places,
            memory,
            workers,
            direct=not is_cached and file.open_direct(),
            evicts=not is_cached,
        )


def _trial(
    places: Sequence[tuple[UnitFile, range]],
    memory: Tensor,
    workers: Workers,
    *,
    direct: bool,
    evicts: bool = True,
) -> float:
    """Return the speed, in GB/s, of reading these pieces of files by all threads together.

    Args:
        evicts: whether the pieces are dropped from the page cache before.
    """
    jobs: list[Callable[[], None]] = []
    for number, (file, piece) in enumerate(places):
        if evicts:
            file.evict(piece)
        part = memory[number % READERS * PIECE_BYTES :][: len(piece)]
        jobs.append(partial(file.read, part, piece.start, direct=direct))
    (seconds,) = time_runs(lambda: workers.submit(*jobs).result(), 1)
    return sum(len(piece) for _, piece in places) / seconds / 1e9
