"""A checkpoint on disk: which tensors its safetensors files hold, and positional reads of them.

The container is that of safetensors: 8 bytes of header length, a JSON header, then the data.
Headers are parsed here rather than by the library because several threads read pieces of files
straight into slabs.
"""

import json
import mmap
import os
import struct
import weakref
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.weights.shards import INDEX_NAME, SINGLE_NAME, read_index

MAX_HEADER_BYTES = 100_000_000  # the format's own limit

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: in `file`, `nbytes` bytes from `offset` on."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def part(self, rows: range) -> "StoredTensor":
        """Return where some entries of the first dimension lie."""
        stride = self.nbytes // self.shape[0]
        return replace(
            self,
            shape=(len(rows), *self.shape[1:]),
            offset=self.offset + rows.start * stride,
            nbytes=len(rows) * stride,
        )


class Checkpoint:
    """The tensors of a folder of safetensors files, readable from any thread.

    Opening reads all headers and checks them against the files' sizes, so that a truncated
    download fails at once and not in the middle of a pass. Raises `ModelError`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._descriptors: dict[Path, int] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        with ExitStack() as opened:
            opened.callback(self._descriptors.clear)
            self.tensors: Mapping[str, StoredTensor] = self._read_headers(opened)
            self._finalizer = weakref.finalize(self, opened.pop_all().close)

    def close(self) -> None:
        """Close the files. Tensors that `mapped` returned stay valid."""
        self._finalizer()

    def read(self, stored: StoredTensor, out: Tensor) -> None:
        """Fill `out` (CPU, contiguous, `stored.nbytes` bytes) with the stored bytes."""
        memory = out.view(-1).view(torch.uint8).numpy().data
        assert len(memory) == stored.nbytes, (stored, len(memory))
        read_exactly(self._descriptors[stored.file], memory, stored.offset, stored.file)

    def load(self, stored: StoredTensor) -> Tensor:
        """Return the stored tensor in new memory, with its stored dtype and shape."""
        out = torch.empty(stored.shape, dtype=stored.dtype)
        self.read(stored, out)
        return out

    def mapped(self, stored: StoredTensor) -> Tensor:
        """Return the stored tensor mapped from its file: pages are read when they are touched.

        The mapping is private, so writing to the tensor never changes the file.
        """
        if stored.file not in self._maps:
            descriptor = self._descriptors[stored.file]
            # Not ACCESS_READ: torch warns about memory that is not writable.
            self._maps[stored.file] = mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
        count = torch.Size(stored.shape).numel()
        flat = torch.frombuffer(
            self._maps[stored.file], dtype=stored.dtype, count=count, offset=stored.offset
        )
        return flat.view(stored.shape)

    def _read_headers(self, opened: ExitStack) -> dict[str, StoredTensor]:
        placed = read_index(self.folder)
        names = sorted(set(placed.values())) or [SINGLE_NAME]
        tensors: dict[str, StoredTensor] = {}
        for name in names:
            path = self.folder / name
            if not path.exists():
                raise ModelError(
                    f"{path}: the index names this file, but it is not there. Download it again"
                )
            self._descriptors[path] = open_file(path, opened)
            for stored in _read_header(path, self._descriptors[path]):
                if stored.name in tensors:
                    other = tensors[stored.name].file.name
                    raise ModelError(f"{self.folder}: {stored.name} is in both {other} and {name}")
                tensors[stored.name] = stored
        self._check_index(placed, tensors)
        return tensors

    def _check_index(self, placed: dict[str, str], tensors: dict[str, StoredTensor]) -> None:
        path = self.folder / INDEX_NAME
        for name, file in placed.items():
            if name not in tensors or tensors[name].file.name != file:
                raise ModelError(
                    f"{path} says that {name} is in {file}, but that file does not hold it. "
                    "The files are of different revisions: download the checkpoint again"
                )
        if placed and (strays := sorted(tensors.keys() - placed.keys())):
            raise ModelError(
                f"{path} has no entry for {strays[0]} (and {len(strays) - 1} more), which "
                f"{tensors[strays[0]].file.name} holds. Download the checkpoint again"
            )


def open_file(path: Path, opened: ExitStack, flags: int = 0) -> int:
    """Open a file for reading, to be closed with `opened`. Raises `ModelError`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    except OSError as error:
        raise ModelError(f"{path}: cannot be opened: {error.strerror}") from error
    opened.callback(os.close, descriptor)
    return descriptor


def read_exactly(descriptor: int, memory: memoryview, offset: int, path: Path) -> None:
    """Fill `memory` from `offset` of an open file. Raises `ModelError` when it ends early."""
    done = 0
    while done < len(memory):
        try:
            count = os.preadv(descriptor, [memory[done:]], offset + done)  # at most 2 GiB a call
        except OSError as error:
            raise ModelError(
                f"{path}: read of {len(memory)} bytes at {offset} failed: {error.strerror}"
            ) from error
        if count == 0:
            raise ModelError(
                f"{path}: ends at {offset + done}, but bytes up to {offset + len(memory)} are "
                "expected. The file was truncated: fetch or pack it again"
            )
        done += count


def _read_header(path: Path, descriptor: int) -> list[StoredTensor]:
    size = os.fstat(descriptor).st_size
    if size < 8:
        raise ModelError(f"{path}: {size} bytes are no safetensors file. Download it again")
    (length,) = struct.unpack("<Q", os.pread(descriptor, 8, 0))
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise ModelError(
            f"{path}: corrupt safetensors header (length {length} in a file of {size} bytes). "
            "Download it again"
        )
    raw = bytearray(length)
    read_exactly(descriptor, memoryview(raw), 8, path)
    try:
        header = json.loads(raw)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        tensors = [_parse(path, name, entry, 8 + length) for name, entry in entries.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path}: corrupt safetensors header ({error}). Download it again"
        ) from error
    for stored in tensors:
        if stored.offset + stored.nbytes > size:
            raise ModelError(
                f"{path}: truncated: {stored.name} ends at byte {stored.offset + stored.nbytes}, "
                f"the file at {size}. Download it again"
            )
    return tensors


def _parse(path: Path, name: str, entry: dict[str, Any], data: int) -> StoredTensor:
    """Return what a header entry describes; `data` is where the file's data begins."""
    begin, end = entry["data_offsets"]
    shape = tuple(int(size) for size in entry["shape"])
    if entry["dtype"] not in _DTYPES:
        raise ModelError(f"{path}: {name} has dtype {entry['dtype']}, which is not supported")
    dtype = _DTYPES[entry["dtype"]]
    expected = torch.Size(shape).numel() * dtype.itemsize
    if begin < 0 or end - begin != expected or any(size < 0 for size in shape):
        raise ValueError(f"{name}: bytes {begin}..{end} for {entry['dtype']} {list(shape)}")
    return StoredTensor(name, path, dtype, shape, data + begin, expected)
