"""The threads that write blocks of KV to the disk and read them, and what they have done.

Nothing that goes wrong here fails a request: a block that cannot be written is left out, and the
tokens of one that cannot be read are computed.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from queue import SimpleQueue

import torch
from torch import Tensor

from engine.errors import system_reason
from engine.kv.disk.block import Block
from engine.kv.disk.block_file import DamagedBlock, read_block, write_block
from engine.kv.disk.folder import KVFolder
from engine.kv_disk_stats import KVDiskStats

log = logging.getLogger(__name__)

QUEUED_BYTES = 32 << 20  # that wait to be written, unless one block is larger,
QUEUED_BLOCKS = 16  # and at most so many blocks
READERS = 2
STALL_S = 5.0  # after which a read counts as one that will not end,
SLOWEST = 10_000_000  # and a second more for so many bytes
RETRY_S = 60.0  # for which nothing is written after an error,
FULL_S = 10.0  # or after no room was found
JOIN_S = 0.5  # for a thread to end: it may wait for a disk for ever

Deliver = Callable[[Tensor | None], None]  # called in a reading thread; None: it cannot be read


@dataclass(frozen=True)
class _Read:
    """A block to read."""

    block: Block
    nbytes: int
    is_wanted: Callable[[], bool]
    deliver: Deliver


class DiskStore:
    """The blocks of one model on disk.

    Args:
        folder: which blocks there are.
    """

    def __init__(self, folder: KVFolder) -> None:
        self.folder = folder
        self._changed = threading.Condition()  # holds for all that follows
        self._counts = KVDiskStats(folder.nbytes, 0, 0, 0, 0, 0)
        self._reported = replace(self._counts, nbytes=-1)  # the first report is always made
        self._queued: dict[bytes, int] = {}  # the bytes of blocks to write, by their hashes
        self._late: dict[int, float] = {}  # reads under way: when each is late, by its thread
        self._writes: SimpleQueue[tuple[Block, Tensor] | bytes | None] = SimpleQueue()
        self._reads: SimpleQueue[_Read | None] = SimpleQueue()
        self._retry_at = 0.0
        self._threads = [threading.Thread(target=self._write_all, name="kv writer", daemon=True)]
        self._threads += [
            threading.Thread(target=self._read_all, name=f"kv reader {number}", daemon=True)
            for number in range(READERS)
        ]
        for thread in self._threads:
            thread.start()

    def __contains__(self, name: bytes) -> bool:
        """Return whether the block with this hash is on the disk, or is queued to be written."""
        return name in self.folder or name in self._queued

    def has_room(self, nbytes: int) -> bool:
        """Return whether the queue of writes has room for a block of `nbytes` bytes."""
        with self._changed:
            if not self._queued:
                return True
            is_short = len(self._queued) < QUEUED_BLOCKS
            return is_short and sum(self._queued.values()) + nbytes <= QUEUED_BYTES

    @property
    def is_writing(self) -> bool:
        """Whether blocks are waiting to be written."""
        return bool(self._queued)

    @property
    def is_refusing(self) -> bool:
        """Whether nothing is written for a while, because of an error or a full disk."""
        return time.monotonic() < self._retry_at

    @property
    def is_stalled(self) -> bool:
        """Whether a read of the disk is so late that callers should compute the tokens instead."""
        now = time.monotonic()
        with self._changed:
            return any(now > late for late in self._late.values())

    def write(self, block: Block, payload: Tensor) -> None:
        """Queue a block to be written. `payload` is uint8 on the host, and changes no more."""
        with self._changed:
            self._queued[block.hash] = payload.nbytes
        self._writes.put((block, payload))

    def drop(self) -> None:
        """Count a block that was not queued."""
        self._count(dropped=1)

    def touch(self, name: bytes) -> None:
        """Note that the block with this hash, if there is one, and those before it are used."""
        if name in self.folder:
            self._writes.put(name)

    def read(
        self, block: Block, nbytes: int, is_wanted: Callable[[], bool], deliver: Deliver
    ) -> None:
        """Read a block in the background and deliver its bytes, unless it is not wanted by then."""
        self._reads.put(_Read(block, nbytes, is_wanted, deliver))

    def count_hit(self, tokens: int) -> None:
        """Count a prompt whose first `tokens` tokens have their KV from the disk."""
        self._count(hits=1, tokens=tokens)

    def wait(self, seconds: float, is_over: Callable[[], bool]) -> None:
        """Wait until `is_over`, which is asked after each read and each write, or for `seconds`."""
        with self._changed:
            self._changed.wait_for(is_over, timeout=seconds)

    def flush(self, seconds: float) -> None:
        """Wait until all blocks that are queued were written, at most for `seconds`."""
        self.wait(seconds, lambda: not self._queued)

    def take_report(self) -> KVDiskStats | None:
        """Return the figures since the last report; None if nothing has changed."""
        nbytes = self.folder.nbytes
        with self._changed:
            counts = replace(self._counts, nbytes=nbytes)
            if counts == self._reported:
                return None
            before, self._reported = asdict(self._reported), counts
        changes = {name: value - before[name] for name, value in asdict(counts).items()}
        return KVDiskStats(**{**changes, "nbytes": nbytes})

    def close(self) -> None:
        """End the threads. What is queued and not written is lost. It may be called again."""
        self._retry_at = float("inf")
        self._writes.put(None)
        for _ in range(READERS):
            self._reads.put(None)
        for thread in self._threads:
            thread.join(JOIN_S)

    def _count(self, **counts: int) -> None:
        with self._changed:
            now = asdict(self._counts)
            self._counts = KVDiskStats(**{n: now[n] + counts.get(n, 0) for n in now})

    # -- the writing thread

    def _write_all(self) -> None:
        # Its priority is that of the process: on a busy machine, a thread of a lower one waits for
        # a processor while it holds the interpreter's lock (passes took 1.8 times as long).
        while (job := self._writes.get()) is not None:
            if isinstance(job, bytes):
                with suppress(OSError):
                    self.folder.touch(job)
                continue
            block, payload = job
            written = self._write(block, payload)
            self._count(written=written, dropped=int(not written))
            with self._changed:
                self._queued.pop(block.hash, None)
                self._changed.notify_all()

    def _write(self, block: Block, payload: Tensor) -> int:
        """Write a block, and return the bytes of its file; 0 if it could not be written."""
        if self.is_refusing:
            return 0
        folder = self.folder
        try:
            folder.make_folder()
            if not folder.make_room(block):
                self._retry_at = time.monotonic() + FULL_S
                return 0
            written = write_block(folder.path, folder.key, block, payload)
        except OSError as error:
            self._retry_at = time.monotonic() + RETRY_S
            log.warning(
                "%s: idle KV cannot be written: %s. It is tried again after %.0f s",
                folder.path,
                system_reason(error),
                RETRY_S,
            )
            return 0
        folder.add(block)
        return written

    # -- the reading threads

    def _read_all(self) -> None:
        own = threading.get_native_id()
        while (read := self._reads.get()) is not None:
            if not read.is_wanted():
                continue
            with self._changed:
                self._late[own] = time.monotonic() + STALL_S + read.nbytes / SLOWEST
            payload = self._read(read.block, read.nbytes)
            with self._changed:
                del self._late[own]
                read.deliver(payload)
                self._changed.notify_all()

    def _read(self, block: Block, nbytes: int) -> Tensor | None:
        folder, path = self.folder, self.folder.path / str(block.name)
        payload = torch.empty(nbytes, dtype=torch.uint8)
        try:
            read_block(folder.path, folder.key, block, payload)
        except FileNotFoundError:  # another process has removed it to make room
            folder.remove(block.hash)
        except (OSError, DamagedBlock) as error:
            reason = system_reason(error)
            log.warning("%s: %s. The file is removed and its tokens are computed", path, reason)
            folder.remove(block.hash)
            self._count(damaged=int(isinstance(error, DamagedBlock)))
        else:
            return payload
        return None
