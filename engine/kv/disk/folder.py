"""The folder of the blocks of one model: which it has, and which are removed to make room.

The names of the files are the index: they are listed at the start, and again when room is made,
because other processes may write to the folder and remove files from it. A block is used together
with all blocks before it, so the last ones of a prefix are removed first. The bound is one of the
blocks of all models; their least recently used ones are removed, and fewer are kept where the disk
is almost full.

All methods may be called from any thread. Looking blocks up takes no lock and reads nothing.
"""

import json
import logging
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from engine.cache_files import (
    INDEX,
    KV_MARK,
    REPLACING,
    cache_root,
    folder_name,
    folders,
    holds_kv,
    key_of,
    partial_folder,
    write_file,
)
from engine.kv.disk.block import Block, BlockName, Kind
from engine.kv.page_pool import PAGE

log = logging.getLogger(__name__)

RESERVE_SHARE = 0.05  # of the disk that is left free for others,
MOST_RESERVE = 4 << 30  # and at most so many bytes
SLACK_SHARE = 1 / 16  # of the bound, that is freed beyond what is needed,
MOST_SLACK = 256 << 20  # and at most so many bytes
STALE_S = 600.0  # the age at which an unfinished file was left behind by a process that died


@dataclass(slots=True)  # there may be some ten thousands
class _File:
    """The file of a block."""

    name: BlockName
    nbytes: int
    used: float  # when it was last used, in seconds since the epoch


class KVFolder:
    """The blocks of one model and of all that their values depend on.

    Args:
        model: the model's id.
        identity: names everything that the values of a block depend on, beside its tokens.
        sizes: the bytes of a file of each kind.
        limit: the most bytes of the blocks of all models.
        clock: returns the seconds since the epoch.
    """

    def __init__(
        self,
        model: str,
        identity: str,
        sizes: Mapping[Kind, int],
        limit: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        text = f"{model}\n{KV_MARK}\n{identity}"
        self.path = cache_root() / folder_name(model, text)
        self.key = blake2b(text.encode(), digest_size=16).digest()
        self._text = text
        self._sizes = sizes
        self._limit = limit
        self._clock = clock
        self._files: dict[bytes, _File] = {}
        # How many states and partial pages there are of each number of tokens, by the hash of the
        # tokens before them. Many chats may begin at the same place. Counters are never changed.
        self._rests: dict[bytes, Counter[tuple[Kind, int]]] = {}
        self._lock = threading.Lock()  # of the sums, and of changes of `_rests`
        self._nbytes = self._other_bytes = 0
        self._list(self._other_folders())

    @property
    def nbytes(self) -> int:
        """The bytes of the blocks of all models, as far as they are known."""
        return self._nbytes + self._other_bytes

    def __contains__(self, name: bytes) -> bool:
        """Return whether there is a block with this hash."""
        return name in self._files

    def rest_lengths(self, parent: bytes, kind: Kind) -> list[int]:
        """Return the lengths, in tokens, of the blocks that follow a block, longest first.

        Args:
            parent: the hash of the block that they follow.
            kind: partial pages or states.
        """
        found = [count for own, count in self._rests.get(parent, ()) if own == kind]
        return sorted(found, reverse=True)

    def make_folder(self) -> None:
        """Make the folder, which only its owner may read, if it does not exist. Raises OSError."""
        if (self.path / INDEX).exists():
            return
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with partial_folder(self.path) as partial:
            write_file(partial / INDEX, memoryview(json.dumps({"key": self._text}).encode()))
            try:
                os.rename(partial, self.path)
            except OSError:  # another process was faster
                if not (self.path / INDEX).exists():
                    raise

    def make_room(self, block: Block) -> bool:
        """Remove blocks until there is room for this one. Return False if there is too little.

        Those before it are kept, because it is of no use without them. Raises OSError.
        """
        nbytes = self._sizes[block.kind]
        if self.nbytes + nbytes <= self._allowed():
            return True
        others = self._other_folders()
        self._list(others)
        allowed = self._allowed()
        if self.nbytes + nbytes > allowed:
            slack = min(int(self._limit * SLACK_SHARE), MOST_SLACK)
            self._remove(others, max(allowed - nbytes - slack, 0), self._before(block))
        return self.nbytes + nbytes <= allowed

    def add(self, block: Block) -> None:
        """Note that the file of a block was written."""
        self._forget(block.hash)
        file = _File(block.name, self._sizes[block.kind], self._clock())
        with self._lock:
            self._files[block.hash] = file
            self._nbytes += file.nbytes
            if _is_rest(file.name):
                rests = self._rests.get(block.parent, Counter())
                self._rests[block.parent] = rests + _counted(file.name)

    def touch(self, name: bytes) -> None:
        """Note that a block and those before it are used. Raises OSError."""
        if (file := self._files.get(name)) is not None:
            file.used = self._clock()
            os.utime(self.path / str(file.name), (file.used, file.used))

    def remove(self, name: bytes) -> None:
        """Remove a block, if there is one with this hash."""
        if (file := self._forget(name)) is not None:
            with suppress(OSError):
                (self.path / str(file.name)).unlink()

    def _allowed(self) -> int:
        """Return the bytes that the blocks of all models may take now. Raises OSError."""
        root = next(path for path in self.path.parents if path.exists())
        disk = shutil.disk_usage(root)
        reserve = min(int(disk.total * RESERVE_SHARE), MOST_RESERVE)
        return min(self._limit, self.nbytes + disk.free - reserve)

    def _before(self, block: Block) -> set[bytes]:
        """Return the hashes of the blocks before a block."""
        found, parent = set[bytes](), block.parent
        while parent not in found and (file := self._files.get(parent)) is not None:
            found.add(parent)  # names may form a circle if somebody else made them
            parent = file.name.parent
        return found

    def _other_folders(self) -> list[Path]:
        """Return the folders of blocks of other models and versions."""
        root = self.path.parent
        paths = [root / name for name in folders(root) if name != self.path.name]
        keyed = ((path, key_of(path)) for path in paths)
        return [path for path, key in keyed if key is not None and holds_kv(key)]

    def _list(self, others: Iterable[Path]) -> None:
        """Read the names of all files, and remove those that were not written completely."""
        now = self._clock()
        files, rests, spoiled = dict[bytes, _File](), dict[bytes, Counter[tuple[Kind, int]]](), 0
        for file in _list_files(self.path, now):
            name = file.name
            if file.nbytes != self._sizes[name.kind]:
                with suppress(OSError):
                    (self.path / str(name)).unlink()
                spoiled += 1
                continue
            if (known := self._files.get(name.hash)) is not None:
                file.used = max(file.used, known.used)
            files[name.hash] = file
            if _is_rest(name):
                rests.setdefault(name.parent, Counter())[name.kind, name.count] += 1
        if spoiled:
            log.warning("%s: %d damaged files of idle KV were removed", self.path, spoiled)
        self._other_bytes = sum(file.nbytes for path in others for file in _list_files(path, now))
        with self._lock:  # what another thread looks up meanwhile is found in the old or the new
            self._files, self._rests = files, rests
            self._nbytes = sum(file.nbytes for file in files.values())

    def _remove(self, others: Iterable[Path], most: int, kept: Collection[bytes]) -> None:
        """Remove the least recently used blocks of all models until at most `most` bytes remain."""
        found = [own for own in _by_age(self.path, self._files.values()) if own[3].hash not in kept]
        for path in others:
            found += _by_age(path, _list_files(path, self._clock()))
        for _, _, path, name, nbytes in sorted(found, key=lambda own: own[:2]):
            if self.nbytes <= most:
                return
            if path == self.path:
                self.remove(name.hash)
                continue
            with suppress(OSError):
                (path / str(name)).unlink()
                self._other_bytes -= nbytes

    def _forget(self, name: bytes) -> _File | None:
        with self._lock:
            if (file := self._files.pop(name, None)) is None:
                return None
            self._nbytes -= file.nbytes
            if _is_rest(file.name):
                parent = file.name.parent
                if left := self._rests.pop(parent, Counter()) - _counted(file.name):
                    self._rests[parent] = left
            return file


def _is_rest(name: BlockName) -> bool:
    """Return whether a block is found by the tokens before it, because its own may be few."""
    return name.kind == "state" or name.count < PAGE


def _counted(name: BlockName) -> Counter[tuple[Kind, int]]:
    """Return the kind and the number of tokens of one state or partial page, counted once."""
    return Counter([(name.kind, name.count)])


def _list_files(folder: Path, now: float) -> list[_File]:
    """Return the files of blocks in a folder, and remove those that were left unfinished."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                unfinished = entry.name.endswith(REPLACING)
                name = BlockName.parse(
                    entry.name.rpartition(".")[0].rpartition(".")[0] if unfinished else entry.name
                )
                if name is None:
                    continue
                with suppress(OSError):  # another process has removed it
                    status = entry.stat(follow_symlinks=False)
                    if not unfinished:
                        found.append(_File(name, status.st_size, status.st_mtime))
                    elif now - status.st_mtime > STALE_S:
                        os.unlink(entry.path)
    except OSError:  # there is no such folder
        pass
    return found


def _by_age(folder: Path, files: Iterable[_File]) -> list[tuple[float, int, Path, BlockName, int]]:
    """Return when each block, or one after it, was used, minus its number, its place and bytes.

    In ascending order, no block comes before one that follows it in a prefix.
    """
    listed = sorted(files, key=lambda file: -file.name.number)
    used = {file.name.hash: file.used for file in listed}
    for file in listed:
        parent = file.name.parent
        if parent in used:
            used[parent] = max(used[parent], used[file.name.hash])
    return [
        (used[file.name.hash], -file.name.number, folder, file.name, file.nbytes) for file in listed
    ]
