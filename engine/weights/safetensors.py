"""A checkpoint on disk: the tensors of its safetensors files, and positional reads of them.

A safetensors file has 8 bytes with the length of the header, a JSON header, and then the data. The
header is parsed here and not by the library, because several threads read pieces of the files
directly into the memory of units.
"""

import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from engine.errors import ModelError, shown
from engine.files import POINTER, parse_object, pointer_error
from engine.weights.first_reads import FirstReads
from engine.weights.open_file import OpenFile
from engine.weights.shards import AGAIN, INDEX_NAME, SINGLE_NAME, read_index

# The format allows 100 MB, for which Python would take gigabytes. 100,000 tensors take 15 MB.
MAX_HEADER_BYTES = 25_000_000
LONGEST_NAME = 500  # characters; transformers matches its patterns against every name

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class StoredTensor:
    """The place of a stored tensor: `nbytes` bytes of `file`, from `offset` on."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def part(self, rows: range) -> "StoredTensor":
        """Return the place of some entries of the first dimension."""
        stride = self.nbytes // self.shape[0]
        return replace(
            self,
            shape=(len(rows), *self.shape[1:]),
            offset=self.offset + rows.start * stride,
            nbytes=len(rows) * stride,
        )


class Checkpoint:
    """The tensors of a folder of safetensors files. Any thread may read them.

    The constructor reads all headers and checks them against the files' sizes, so that a truncated
    download fails before the first pass. It raises `ModelError` if the files are not a checkpoint.
    """

    remedy = "config.json does not belong to this checkpoint"  # ends errors about its tensors

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[Path, OpenFile] = {}
        self._first_reads = FirstReads()
        self.tensors: Mapping[str, StoredTensor] = self._read_headers()

    def close(self) -> None:
        """Close the files. Later reads raise `ModelError`."""
        for file in self._files.values():
            file.close()

    def stored_name(self, name: str) -> str:
        """Return the name in the files of a tensor of the model, for messages."""
        return name

    def read(self, stored: StoredTensor, out: Tensor) -> None:
        """Fill `out` (CPU, contiguous, `stored.nbytes` bytes) with the stored bytes.

        Raises `ModelError` if the file was changed since it was opened, or gives other bytes than
        at the first read.
        """
        memory = out.view(-1).view(torch.uint8).numpy().data
        assert len(memory) == stored.nbytes, (stored, len(memory))
        file = self._files[stored.file]
        self._first_reads.read(file, memory, stored.offset)

    def load(self, stored: StoredTensor) -> Tensor:
        """Return the stored tensor in new memory, with its stored dtype and shape."""
        out = torch.empty(stored.shape, dtype=stored.dtype)
        self.read(stored, out)
        return out

    def read_rows(self, stored: StoredTensor, rows: Sequence[int]) -> Tensor:
        """Return some rows of a stored matrix, [len(rows), columns]. Raises as `read` does."""
        count, columns = stored.shape
        if not all(0 <= row < count for row in rows):
            raise IndexError(f"{stored.name} has {count} rows, but {list(rows)} are requested")
        out = torch.empty(len(rows), columns, dtype=stored.dtype)
        memory, stride = out.view(-1).view(torch.uint8).numpy().data, stored.nbytes // count
        file = self._files[stored.file]
        for place, row in enumerate(rows):
            part = memory[place * stride : (place + 1) * stride]
            file.read(part, stored.offset + row * stride)
        file.check_unchanged()
        return out

    def _read_headers(self) -> dict[str, StoredTensor]:
        """Open all files of the checkpoint and return their tensors by name."""
        placed = read_index(self.folder)
        names = sorted(set(placed.values())) or [SINGLE_NAME]
        tensors: dict[str, StoredTensor] = {}
        for name in names:
            path = self.folder / name
            if not os.path.isfile(path):  # to open a named pipe would wait for a writer
                raise ModelError(
                    f"{path}: the index names this file, but it is not there. Download it again"
                )
            self._files[path] = OpenFile(path)
            for stored in _read_header(self._files[path]):
                # A tensor that the index leaves out, or places in another file, is not read.
                if not placed or placed.get(stored.name) == name:
                    tensors[stored.name] = stored
        for tensor, file in placed.items():
            if tensor not in tensors:
                raise ModelError(
                    f"{self.folder / INDEX_NAME} says that {tensor} is in {file}, but that file "
                    "does not hold it. The files are of different revisions: download the "
                    "checkpoint again"
                )
        return tensors


class StoredRows:
    """A matrix whose rows are read from the file when they are needed, such as the embedding.

    The file is not mapped into memory. Reading a mapped file that was truncated would end the
    process (SIGBUS), and one that was overwritten would give other weights without an error.
    """

    def __init__(self, checkpoint: Checkpoint, stored: StoredTensor) -> None:
        self._checkpoint = checkpoint
        self._stored = stored

    def load(self) -> Tensor:
        """Return the whole matrix in new memory. Raises `ModelError` as `read` does."""
        return self._checkpoint.load(self._stored)

    def read(self, rows: Sequence[int]) -> Tensor:
        """Return some rows in new memory, [len(rows), columns].

        Raises `ModelError` if the file was changed since it was opened.
        """
        return self._checkpoint.read_rows(self._stored, rows)


OtherTensor = Tensor | StoredRows  # a tensor outside of layers and head


def _read_header(file: OpenFile) -> list[StoredTensor]:
    """Return the tensors of a safetensors file. Raises `ModelError` if its header is wrong."""
    path, size = file.path, file.nbytes
    if size < 8:
        raise ModelError(f"{path}: {size} bytes are not a safetensors file. Download it again")
    prefix = bytearray(8)
    file.read(memoryview(prefix), 0)
    if POINTER.encode().startswith(prefix):
        raise pointer_error(path)
    (length,) = struct.unpack("<Q", prefix)
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise ModelError(
            f"{path}: corrupt safetensors header (length {length} in a file of {size} bytes). "
            "Download it again"
        )
    raw = bytearray(length)
    file.read(memoryview(raw), 8)
    header = parse_object(
        _text(raw, path), f"{path}: corrupt safetensors header", unique=True, remedy=AGAIN
    )
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    tensors = [_parse(path, name, entry, 8 + length) for name, entry in entries.items()]
    end = 8 + length
    for stored in sorted(tensors, key=lambda stored: (stored.offset, stored.nbytes)):
        if stored.offset + stored.nbytes > size:
            raise ModelError(
                f"{path}: truncated: {stored.name} ends at byte {stored.offset + stored.nbytes}, "
                f"the file at {size}. Download it again"
            )
        if stored.nbytes and stored.offset < end:
            raise _corrupt(path, stored.name, "shares its bytes with another tensor")
        end = max(end, stored.offset + stored.nbytes)
    return tensors


def _text(raw: bytearray, path: Path) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(
            f"{path}: corrupt safetensors header (not UTF-8). Download it again"
        ) from error


def _parse(path: Path, name: str, entry: object, data: int) -> StoredTensor:
    """Return the tensor that a header entry describes. `data` is the offset of the file's data."""
    if len(name) > LONGEST_NAME:
        raise _corrupt(path, shown(name), f"a name of {len(name)} characters")
    if not isinstance(entry, dict):
        raise _corrupt(path, name, f"an object is expected, found {shown(entry)}")
    shape, offsets, kind = (entry.get(key) for key in ("shape", "data_offsets", "dtype"))
    if not _are_sizes(shape):
        raise _corrupt(path, name, f"shape: {shown(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _corrupt(path, name, f"data_offsets: {shown(offsets)}")
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise ModelError(f"{path}: {name} has dtype {shown(kind)}, which is not supported")
    dtype, (begin, end) = _DTYPES[kind], offsets
    expected = math.prod(shape) * dtype.itemsize
    if end - begin != expected:
        raise _corrupt(path, name, f"bytes {begin}..{end} for {kind} {shown(shape)}")
    return StoredTensor(name, path, dtype, tuple(shape), data + begin, expected)


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in value
    )


def _corrupt(path: Path, name: str, what: str) -> ModelError:
    return ModelError(f"{path}: corrupt safetensors header ({name}: {what}). Download it again")
