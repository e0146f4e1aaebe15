"""A checkpoint on disk: which tensors its safetensors files hold, and positional reads of them.

The container is that of safetensors: 8 bytes of header length, a JSON header, then the data.
Headers are parsed here rather than by the library because several threads read pieces of files
straight into slabs.
"""

import math
import os
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from engine.errors import ModelError, shown
from engine.files import POINTER, parse_object, pointer_error
from engine.weights.open_file import OpenFile
from engine.weights.shards import AGAIN, INDEX_NAME, SINGLE_NAME, read_index

# The format allows 100 MB, for which Python would take gigabytes. 100,000 tensors take 15 MB.
MAX_HEADER_BYTES = 25_000_000
LONGEST_NAME = 500  # characters; the library's patterns are tried on every name

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
        self._files: dict[Path, OpenFile] = {}
        self.tensors: Mapping[str, StoredTensor] = self._read_headers()

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()

    def read(self, stored: StoredTensor, out: Tensor) -> None:
        """Fill `out` (CPU, contiguous, `stored.nbytes` bytes) with the stored bytes.

        Raises `ModelError` if the file was changed since it was opened.
        """
        memory = out.view(-1).view(torch.uint8).numpy().data
        assert len(memory) == stored.nbytes, (stored, len(memory))
        file = self._files[stored.file]
        file.read(memory, stored.offset)
        file.check_unchanged()

    def load(self, stored: StoredTensor) -> Tensor:
        """Return the stored tensor in new memory, with its stored dtype and shape."""
        out = torch.empty(stored.shape, dtype=stored.dtype)
        self.read(stored, out)
        return out

    def read_rows(self, stored: StoredTensor, rows: Sequence[int]) -> Tensor:
        """Return some rows of a stored matrix, [len(rows), columns]; raises as `read` does."""
        count, columns = stored.shape
        if not all(0 <= row < count for row in rows):
            raise IndexError(f"{stored.name} has {count} rows, asked for {list(rows)}")
        out = torch.empty(len(rows), columns, dtype=stored.dtype)
        memory, stride = out.view(-1).view(torch.uint8).numpy().data, stored.nbytes // count
        file = self._files[stored.file]
        for place, row in enumerate(rows):
            part = memory[place * stride : (place + 1) * stride]
            file.read(part, stored.offset + row * stride)
        file.check_unchanged()
        return out

    def _read_headers(self) -> dict[str, StoredTensor]:
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


def num_layers(folder: Path) -> int:
    """Return how many layers the tensors of a checkpoint are of, by their names' first number."""
    checkpoint = Checkpoint(folder)
    checkpoint.close()
    numbers = (re.search(r"\.(\d+)\.", name) for name in checkpoint.tensors)
    return len({number[1] for number in numbers if number is not None})


class StoredRows:
    """A matrix whose rows stay in their file until they are needed, as the embedding's do.

    It is not mapped: touching the pages of a mapped file that was cut off ends the process
    (SIGBUS), and those of one that was overwritten are other weights.
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


OtherTensor = Tensor | StoredRows  # a tensor outside layers and head


def _read_header(file: OpenFile) -> list[StoredTensor]:
    path, size = file.path, file.nbytes
    if size < 8:
        raise ModelError(f"{path}: {size} bytes are no safetensors file. Download it again")
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
    """Return what a header entry describes; `data` is where the file's data begins."""
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
