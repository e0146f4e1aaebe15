"""Packed units, one file each: the disk tier and quantized copies are stored in this form.

In a checkpoint the tensors of one layer are spread over shards, and not aligned. A packed unit is
one file with the same layout as the unit in memory, so it is read in few large pieces. The index is
written last, and the folder gets its name after that, so a killed packing never leaves a folder
that can be loaded.

The checksums detect damage. They do not show who wrote the files: a program that may write to the
cache's folder can change the weights, as it can in the checkpoint itself.
"""

import fcntl
import logging
import mmap
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from engine.cache_files import (
    INDEX,
    partial_folder,
    remove_stale,
    replace_file,
    sync_folder,
    unit_name,
    write_file,
)
from engine.errors import ModelError, system_reason
from engine.messages import LoadProgress, ReportProgress
from engine.streaming.disk import PIECE_BYTES, UnitFile, direct_is_faster, split_pieces
from engine.streaming.packed_index import digest_of, format_index, parse_index
from engine.streaming.unwritten import UnwrittenUnits
from engine.weights.first_reads import sum_words
from engine.weights.layout import UnitLayout, UnitReader
from engine.weights.open_file import OpenFile

log = logging.getLogger(__name__)

RECHECKED_BYTES = 1 << 20  # bytes that `recheck` reads at a time; it can stop after each


class PackedUnits(UnitReader):
    """A reader of the units of a packed folder, in pieces.

    The checksum of a piece is compared when it is first read after opening (zlib.crc32 checks about
    2 GB/s per thread while other threads read), and the sum of its words, at the speed of memory,
    in each later read. `recheck` compares the checksum of what is on the disk. While the object is
    open, it holds a shared lock on the index, so that pruning does not remove the folder.

    Args:
        key: the key that the folder must have been packed with; None: any key.
        source: the reader that the units were packed from. A single unit that is missing or damaged
            is packed from it again. Where that cannot be written, the unit is made from it whenever
            it is read. If it is None, damage is an error.

    The constructor raises `ModelError` if the folder is not completely packed, or was packed from
    another model.
    """

    def __init__(
        self, folder: Path, key: str | None = None, source: UnitReader | None = None
    ) -> None:
        self.folder = folder
        self.num_repaired = 0  # units that were packed again
        self._source = source
        self._repair_lock = threading.Lock()  # held while the files of units are replaced
        self._files: dict[int, UnitFile] = {}  # without units that were missing and unwritten
        self._unwritten = UnwrittenUnits()
        self._index = OpenFile(folder / INDEX, os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(self._index.descriptor, fcntl.LOCK_SH)
            with suppress(OSError):  # a cache without write permission can still be read
                os.utime(folder / INDEX)  # when the entry was last used
            self.key, self.layouts, self._checksums = parse_index(self._index)
            if key is not None and self.key != key:
                raise ModelError(f"{folder / INDEX}: packed for another model or version")
            if source is not None and not source.has_units(self.layouts):
                raise ModelError(f"{folder / INDEX}: packed from a model with other units")
            # By unit and piece: the sum of the words that had the right checksum.
            self._sums: list[list[int | None]] = [[None] * len(own) for own in self._checksums]
            for unit in range(len(self.layouts)):
                self._open_unit(unit)
        except ModelError:
            self.close()
            raise

    def read(self, index: int, buffer: Tensor) -> None:
        """Fill `buffer` with unit `index`. Any thread may call this."""
        for piece in self.pieces(index):
            self.read_piece(index, piece, buffer[piece.start : piece.stop])

    def pieces(self, index: int) -> Sequence[range]:
        return split_pieces(self.layouts[index].nbytes)

    def read_piece(self, index: int, piece: range, memory: Tensor) -> None:
        """Fill `memory` with a piece. If the piece is damaged, pack its unit again first.

        If the unit cannot be written, it is made in memory. Raises `ModelError` if it cannot be
        made, or if that does not help.
        """
        damage = self._read(index, piece, memory)
        if damage is None:
            return
        if self._source is None:
            raise ModelError(
                f"{damage}. Remove {self.folder}; the model is packed again at the next start"
            )
        with self._repair_lock:
            if self._read(index, piece, memory) is None:
                return  # another thread has repaired it
            made = self._unwritten.made(index) if self._unwritten.must_wait(index) else None
            if made is None:
                made = self._pack_again(index, damage)
            if made is not None:
                memory.copy_(made[piece.start : piece.stop])
            elif (still := self._read(index, piece, memory)) is not None:
                raise ModelError(_damaged_again(still))

    def prepare(self, indices: Sequence[int]) -> None:
        """Read these units directly from now on if a measurement, of under 1 s, finds it faster."""
        files = [self._files[index] for index in indices if index in self._files]
        if direct_is_faster(files):
            for file in files:
                file.use_direct()

    def recheck(self, index: int, piece: range, is_wanted: Callable[[], bool]) -> bool:
        """Compare a piece, as it is on the disk, with its checksum; repair its unit if it differs.

        Args:
            is_wanted: called before each `RECHECKED_BYTES`; it returns False to end the check.

        Return False if the check was ended before its result was known. Raises `ModelError` if the
        piece is damaged and cannot be repaired. Then each later read compares the checksum, until
        one is right.
        """
        if (damage := self._unwritten.damage(index)) is not None:
            with self._repair_lock:
                self._repair(index, damage)
            return True
        file, checksum = self._files[index], 0
        memory = _allocate_pages(min(RECHECKED_BYTES, len(piece)))
        try:
            for first in range(piece.start, piece.stop, RECHECKED_BYTES):
                if not is_wanted():
                    return False
                part = memory[: min(RECHECKED_BYTES, piece.stop - first)]
                file.read_stored(part, first)
                checksum = zlib.crc32(part.numpy().data, checksum)
        except ModelError as error:
            damage = str(error)
        number = piece.start // PIECE_BYTES
        if damage is None and checksum != self._checksums[index][number]:
            damage = _wrong_checksum(file)
        if damage is not None:
            with self._repair_lock:
                self._sums[index][number] = None
                self._repair(index, damage)
        return True

    @property
    def digest(self) -> str:
        """Return a hash of the checksums of all units: other bytes have another one."""
        return digest_of(self._checksums)

    def close(self) -> None:
        """Close the files and release the lock."""
        for file in self._files.values():
            file.close()
        self._index.close()

    def _open_unit(self, index: int) -> None:
        """Open the file of a unit; pack the unit again if it is missing or has another size."""
        path, nbytes = self.folder / unit_name(index), self.layouts[index].nbytes
        try:
            size = os.stat(path, follow_symlinks=False).st_size
        except OSError:
            size = -1
        if size != nbytes:
            found = f"has {size} bytes" if size >= 0 else "is missing"
            damage = f"{path}: {found}, expected {nbytes}"
            if self._source is None:
                raise ModelError(f"{damage}. Remove {self.folder}")
            if self._write_again(index, damage) is not None:
                return
        self._files[index] = UnitFile(path)

    def _read(self, index: int, piece: range, memory: Tensor) -> str | None:
        """Read a piece into `memory`. Return a description of its damage, or None if there is none.

        The checksum is compared unless the words have the sum that they had when it was right.
        """
        if (damage := self._unwritten.damage(index)) is not None:
            return damage
        file, number = self._files[index], piece.start // PIECE_BYTES
        try:
            file.read(memory, piece.start)
        except ModelError as error:
            if self._source is None or not self._index.is_open:
                raise
            return str(error)
        found = sum_words(memory.numpy().data)
        if found != self._sums[index][number]:
            if zlib.crc32(memory.numpy().data) != self._checksums[index][number]:
                return _wrong_checksum(file)
            self._sums[index][number] = found
        return None

    def _repair(self, index: int, damage: str) -> None:
        """Replace the file of a unit. Raises `ModelError` if it cannot be written now."""
        if self._unwritten.must_wait(index) or self._pack_again(index, damage) is not None:
            raise ModelError(_cannot_be_written(damage, self._unwritten.reason(index)))

    def _pack_again(self, index: int, damage: str) -> Tensor | None:
        """Replace the file of a unit and check what has reached the disk.

        Reads that are running go on with the old file, which is closed when the last of them ends.
        Return the bytes of the unit if they could not be written.
        """
        if (made := self._write_again(index, damage)) is not None:
            return made
        old, file = self._files.get(index), UnitFile(self.folder / unit_name(index))
        if old is not None and old.is_direct and file.open_direct():
            file.use_direct()
        memory = _allocate_pages(PIECE_BYTES)
        sums: list[int | None] = []
        for piece, checksum in zip(self.pieces(index), self._checksums[index], strict=True):
            part = memory[: len(piece)]
            file.read_stored(part, piece.start)
            if zlib.crc32(part.numpy().data) != checksum:
                raise ModelError(_damaged_again(_wrong_checksum(file)))
            sums.append(sum_words(part.numpy().data))
        self._files[index], self._sums[index] = file, sums
        if self._unwritten.remove(index):
            log.info("%s: written again", file.path)
        return None

    def _write_again(self, index: int, damage: str) -> Tensor | None:
        """Pack a unit from the source again. Return its bytes if they could not be written.

        Raises `ModelError` if they cannot be made or have changed.
        """
        assert self._source is not None, "without a source, damage is an error"
        if self._unwritten.damage(index) is None:
            log.warning("%s. The unit is packed again", damage)
        path, nbytes = self.folder / unit_name(index), self.layouts[index].nbytes
        buffer = _allocate_pages(self._source.layouts[index].nbytes)
        try:
            layout, made = self._source.make(index, buffer)
        except ModelError as error:
            raise ModelError(f"{damage}, and cannot be packed again: {error}") from error
        memory = made.numpy().data
        if layout.nbytes != nbytes or _checksums(memory, nbytes) != self._checksums[index]:
            with suppress(OSError):
                (self.folder / INDEX).unlink()  # the next start packs everything
            raise ModelError(
                f"{damage}, and what the checkpoint holds now is not what was packed. Restart the "
                "server: it packs all of the model again"
            )
        try:
            if not self._unwritten.must_wait(index):
                replace_file(path, memory)
                self.num_repaired += 1
                return None
        except OSError as error:
            reason = system_reason(error)
            if self._unwritten.add(index, damage, reason):
                log.warning(
                    "%s. Each pass makes the unit from the checkpoint, which takes longer, until it"
                    " can be written. Free some space, or let the server write to %s",
                    _cannot_be_written(damage, reason),
                    self.folder,
                )
        self._unwritten.keep(index, made)
        return made


def pack(reader: UnitReader, folder: Path, key: str, progress: ReportProgress) -> PackedUnits:
    """Write every unit of `reader` into `folder`, and return a reader of the folder.

    The folder gets its name only when it is complete. If another process was faster, its result is
    opened.

    Args:
        key: stored in the index; it must be given to open the folder.
        progress: called after each unit, with bytes.

    Raises `ModelError` if the disk is too small or cannot be written, and what the reader raises.
    """
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        remove_stale(folder.parent)
        _check_space(folder.parent, reader.stored_bytes)
        with partial_folder(folder) as partial:
            _write_units(reader, partial, key, progress)
            try:
                os.rename(partial, folder)
            except OSError:
                if not (folder / INDEX).exists():
                    raise
        sync_folder(folder.parent)
    except OSError as error:
        raise ModelError(f"{folder}: cannot be written: {system_reason(error)}") from error
    return PackedUnits(folder, key, reader)


def _write_units(reader: UnitReader, partial: Path, key: str, progress: ReportProgress) -> None:
    """Write all units, and then the index, into the folder `partial`."""
    sizes = [layout.nbytes for layout in reader.layouts]
    buffer = _allocate_pages(max(sizes))
    units: list[tuple[UnitLayout, list[int]]] = []
    done = 0
    for index, size in enumerate(sizes):
        layout, made = reader.make(index, buffer)
        memory = made.numpy().data
        write_file(partial / unit_name(index), memory)
        units.append((layout, _checksums(memory, layout.nbytes)))
        done += size
        progress(LoadProgress("packing", done, sum(sizes)))
    index_text = format_index(key, units)
    sync_folder(partial)
    write_file(partial / INDEX, memoryview(index_text.encode()))
    sync_folder(partial)


def _allocate_pages(nbytes: int) -> Tensor:
    """Return zeroed memory outside of the heap, which would keep the memory when it is freed."""
    return torch.frombuffer(mmap.mmap(-1, max(nbytes, 1)), dtype=torch.uint8)[:nbytes]


def _checksums(memory: memoryview, nbytes: int) -> list[int]:
    """Return the checksums of a unit's pieces."""
    return [zlib.crc32(memory[piece.start : piece.stop]) for piece in split_pieces(nbytes)]


def _wrong_checksum(file: UnitFile) -> str:
    return f"{file.path}: wrong checksum: the file was damaged"


def _cannot_be_written(damage: str, reason: str) -> str:
    return f"{damage}, and cannot be written again: {reason}"


def _damaged_again(damage: str) -> str:
    return (
        f"{damage}, again after it was packed again. The disk or the machine's memory fails: set "
        "UNDERSTUDY_CACHE to another disk"
    )


def _check_space(root: Path, total: int) -> None:
    free = shutil.disk_usage(root).free
    if free < total:
        raise ModelError(
            f"{root}: packing needs {total / 1e9:.2f} GB, {free / 1e9:.2f} GB are free. Free some "
            "space (`understudy prune`) or set UNDERSTUDY_CACHE to a larger disk"
        )
