"""Packed units, one file each: what the disk tier reads, and how quantized copies are kept.

A checkpoint's tensors of one layer lie scattered over shards, unaligned. Packed, a unit is one
file with the slab's own layout, filled by one large positional read. The index is written last
and the folder renamed after that, so a killed packing leaves nothing that loads.
"""

import fcntl
import json
import mmap
import os
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.messages import ReportProgress
from engine.streaming.disk import PIECE_BYTES, UnitFile, cut, direct_is_faster
from engine.weights.layout import Field, UnitLayout, UnitReader
from engine.weights.safetensors import open_file

LAYOUT_VERSION = 2  # of index.json, slabs and pieces; older entries are packed again
INDEX = "index.json"
PARTIAL = ".partial"  # suffix of a folder that is being packed


class PackedUnits(UnitReader):
    """Reads the units of a packed folder, in pieces.

    The checksum of a piece is compared only when it is first read after opening, so that later
    passes read at the disk's speed (zlib.crc32 does about 2 GB/s a thread, while other threads
    read). While the object lives, it holds a shared lock on the index, so that pruning does not
    remove the folder.

    Raises `ModelError` when the folder is not completely packed or was packed under another key.
    """

    def __init__(self, folder: Path, key: str | None = None) -> None:
        self.folder = folder
        self._opened = ExitStack()
        self._finalizer = weakref.finalize(self, self._opened.close)
        try:
            index = self._open_index()
            self.key: str = index["key"]
            if index["version"] != LAYOUT_VERSION or (key is not None and self.key != key):
                raise ModelError(f"{folder / INDEX}: packed for another model or version")
            self.layouts = [_parse_layout(unit) for unit in index["units"]]
            self._checksums = [list(map(int, unit["crc32"])) for unit in index["units"]]
            self._check()
            units = range(len(self.layouts))
            self._files = [UnitFile(folder / unit_name(unit), self._opened) for unit in units]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.close()
            raise ModelError(f"{folder / INDEX}: corrupt ({error!r}). Remove the folder") from error
        except ModelError:
            self.close()
            raise
        self._verified = [[False] * len(sums) for sums in self._checksums]

    def read(self, index: int, slab: Tensor) -> None:
        """Fill `slab` with unit `index`; any thread may call it."""
        for piece in self.pieces(index):
            self.read_piece(index, piece, slab[piece.start : piece.stop])

    def pieces(self, index: int) -> Sequence[range]:
        return cut(self.layouts[index].nbytes)

    def read_piece(self, index: int, piece: range, memory: Tensor) -> None:
        file, number = self._files[index], piece.start // PIECE_BYTES
        file.read(memory, piece.start)
        if not self._verified[index][number]:
            if zlib.crc32(memory.numpy().data) != self._checksums[index][number]:
                raise ModelError(
                    f"{file.path}: wrong checksum: the file was damaged. Remove {self.folder}; it "
                    "is packed again at the next start"
                )
            self._verified[index][number] = True

    def prepare(self, indices: Sequence[int]) -> None:
        """Read these units directly if that is measured to be faster; takes under a second."""
        files = [self._files[index] for index in indices]
        if direct_is_faster(files):
            for file in files:
                file.use_direct()

    def close(self) -> None:
        """Close the files and release the lock."""
        self._finalizer()

    def _open_index(self) -> dict[str, Any]:
        descriptor = open_file(self.folder / INDEX, self._opened)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with suppress(OSError):  # a cache that only others may write to still serves
            os.utime(self.folder / INDEX)  # when the entry was last used
        with open(descriptor, "rb", closefd=False) as file:
            index = json.load(file)
        if not isinstance(index, dict):
            raise ValueError("no object")
        return index

    def _check(self) -> None:
        for number, layout in enumerate(self.layouts):
            if len(self._checksums[number]) != len(cut(layout.nbytes)):
                raise ValueError(f"{layout.name}: not one checksum for each piece")
            path = self.folder / unit_name(number)
            size = path.stat().st_size if path.is_file() else -1
            if size != layout.nbytes:
                found = f"has {size} bytes" if size >= 0 else "is missing"
                raise ModelError(f"{path}: {found}, expected {layout.nbytes}. Remove {self.folder}")


def pack(reader: UnitReader, folder: Path, key: str, progress: ReportProgress) -> PackedUnits:
    """Write every unit of `reader` into `folder` and open it; `key` is stored in the index.

    The folder appears whole or not at all. If another process was faster, its result is opened.
    Raises `ModelError` when the disk is too small, and what the reader raises.
    """
    total = packed_bytes(reader)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(folder.parent)
        _check_space(folder.parent, total)
        with _partial(folder) as partial:
            _write_units(reader, partial, key, total, progress)
            try:
                os.rename(partial, folder)
            except OSError:
                if not (folder / INDEX).exists():
                    raise
        _sync_folder(folder.parent)
    except OSError as error:
        raise ModelError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return PackedUnits(folder, key)


def packed_bytes(reader: UnitReader) -> int:
    """Return the bytes of the files that `pack` writes, without the index."""
    return sum(layout.nbytes for layout in reader.layouts)


def unit_name(index: int) -> str:
    return f"{index:05}.unit"


def remove_stale(root: Path) -> None:
    """Remove what killed processes left behind: partial folders that are not locked."""
    for partial in root.glob(f".*{PARTIAL}"):
        with lock(partial) as free:
            if free:
                shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def lock(path: Path) -> Iterator[bool]:
    """Try to lock a file or folder; give True if it was not locked, or does not exist."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)


@contextmanager
def _partial(folder: Path) -> Iterator[Path]:
    """Make a locked temporary folder beside `folder`; remove it unless it was renamed."""
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    partial = made.with_suffix(made.suffix + PARTIAL)
    with lock(made):  # held before the name says partial, or `remove_stale` might take it
        made.rename(partial)
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _write_units(
    reader: UnitReader, partial: Path, key: str, total: int, progress: ReportProgress
) -> None:
    # Zeros: the gaps between fields are part of the checksum. Not from the heap, which keeps what
    # is freed (engine.malloc).
    pages = mmap.mmap(-1, max(layout.nbytes for layout in reader.layouts))
    slab = torch.frombuffer(pages, dtype=torch.uint8)
    units: list[dict[str, Any]] = []
    done = 0
    for index, layout in enumerate(reader.layouts):
        reader.read(index, slab)
        memory = slab.numpy().data
        _write(partial / unit_name(index), memory[: layout.nbytes])
        sums = [zlib.crc32(memory[piece.start : piece.stop]) for piece in cut(layout.nbytes)]
        units.append({**_format_layout(layout), "crc32": sums})
        done += layout.nbytes
        progress("packing", done, total)
    index_text = json.dumps({"version": LAYOUT_VERSION, "key": key, "units": units})
    _sync_folder(partial)
    _write(partial / INDEX, memoryview(index_text.encode()))
    _sync_folder(partial)


def _write(path: Path, memory: memoryview) -> None:
    with open(path, "wb") as file:
        file.write(memory)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_space(root: Path, total: int) -> None:
    free = shutil.disk_usage(root).free
    if free < total:
        raise ModelError(
            f"{root}: packing needs {total / 1e9:.2f} GB, {free / 1e9:.2f} GB are free. Free some "
            "space (`understudy prune`) or set UNDERSTUDY_CACHE to a larger disk"
        )


def _format_layout(layout: UnitLayout) -> dict[str, Any]:
    fields = [
        [field.name, str(field.dtype).removeprefix("torch."), list(field.shape), field.offset]
        for field in layout.fields
    ]
    return {"name": layout.name, "nbytes": layout.nbytes, "fields": fields}


def _parse_layout(unit: dict[str, Any]) -> UnitLayout:
    fields = tuple(
        Field(name, getattr(torch, dtype), tuple(shape), offset)
        for name, dtype, shape, offset in unit["fields"]
    )
    return UnitLayout(unit["name"], fields, unit["nbytes"])
