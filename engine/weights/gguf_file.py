"""The header of a GGUF file: its metadata and the places of its tensors.

A file may be hostile, so every number of the header is checked before it is used: counts, lengths,
types, sizes and offsets. This module imports no torch, because `understudy pull` uses it too.

Source: the specification of GGUF versions 2 and 3 (ggml/docs/gguf.md).
"""

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import ModelError, shown
from engine.files import POINTER, pointer_error
from engine.weights.open_file import OpenFile

MAGIC = b"GGUF"
AGAIN = "Download the file again"
# A vocabulary of 262,144 tokens with its merges takes 16 MB.
MAX_HEADER_BYTES = 96 << 20
MOST_KEYS = 1 << 12
MOST_TENSORS = 100_000
MOST_ITEMS = 1 << 21  # values of all arrays together; the largest vocabularies have 800,000
LONGEST_NAME = 500  # characters of the name of a key or tensor
LONGEST_STRING = 4 << 20  # bytes; chat templates have up to 100,000
MOST_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32
LARGEST_ALIGNMENT = 1 << 20

_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q"}
_NUMBERS[12] = "d"
_READ_BYTES = 1 << 20
PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")

Metadata = Mapping[str, Any]


@dataclass(frozen=True)
class BlockType:
    """A type of stored values: `nbytes` bytes hold `size` values."""

    name: str
    size: int
    nbytes: int

    @property
    def is_plain(self) -> bool:
        """Whether the values are stored as they are, without scales."""
        return self.size == 1


# By the numbers of enum ggml_type (ggml/include/ggml.h).
TYPES: Mapping[int, BlockType] = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    10: BlockType("Q2_K", 256, 84),
    11: BlockType("Q3_K", 256, 110),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    20: BlockType("IQ4_NL", 32, 18),
    23: BlockType("IQ4_XS", 256, 136),
    30: BlockType("BF16", 1, 2),
    39: BlockType("MXFP4", 32, 17),
}
_OTHER_TYPES = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S",
    22: "IQ2_S", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 40: "NVFP4",
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of a GGUF file: `nbytes` bytes, from `offset` of the file on."""

    name: str
    type: BlockType
    shape: tuple[int, ...]  # as in torch: the values of a row are neighbours
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """The metadata and tensors of one GGUF file."""

    metadata: Metadata
    tensors: tuple[TensorInfo, ...]


def read_header(file: OpenFile) -> Header:
    """Return the header of a GGUF file. Raises `ModelError` that names the file and the place."""
    reader = _Reader(file)
    count, keys = _read_start(reader)
    metadata: dict[str, Any] = {}
    for index in range(keys):
        key = reader.name(f"the name of key {index}")
        if key in metadata:
            raise reader.corrupt(f"the key {shown(key)} is there twice")
        metadata[key] = reader.value(key)
    infos = [_read_info(reader, index) for index in range(count)]
    tensors = _place(reader, infos, _alignment(reader, metadata))
    return Header(metadata, tensors)


def split_paths(path: Path) -> list[Path]:
    """Return the files of the split model that `path` belongs to; only `path` if it is not split.

    Raises `ModelError` if one of them is not there.
    """
    found = PART.search(path.name)
    if found is None:
        return [path]
    count = int(found[2])
    if not 1 <= int(found[1]) <= count <= MOST_PARTS:
        raise ModelError(f"{path}: no part {found[1]} of {found[2]} (at most {MOST_PARTS})")
    paths = [path.with_name(part_name(path.name, number)) for number in range(1, count + 1)]
    for part in paths:
        if not part.is_file():
            raise ModelError(f"{part}: is not there, and {path.name} is part of the same model")
    return paths


MOST_PARTS = 900  # all are open at the same time


def part_name(name: str, number: int) -> str:
    """Return the name of part `number` of a split model, given the name of one part."""
    return PART.sub(rf"-{number:05}-of-\2.gguf", name)


def plain_name(name: str) -> str:
    """Return the name of a model's file without the number of its part and without the suffix."""
    return PART.sub("", name).removesuffix(".gguf")


class _Reader:
    """A reader of the values of a header, which reads the file in growing pieces."""

    def __init__(self, file: OpenFile) -> None:
        self.file = file
        self.size = file.nbytes
        self.position = 0
        self._memory = b""
        self._items = 0  # values of arrays so far

    def corrupt(self, what: str) -> ModelError:
        """Return the error for a header that is wrong."""
        return ModelError(f"{self.file.path}: corrupt GGUF header ({what}). {AGAIN}")

    def unpack(self, form: str, what: str) -> tuple[Any, ...]:
        """Return the next numbers, in the form of `struct`."""
        nbytes = struct.calcsize(f"<{form}")
        begin = self._take(nbytes, what)
        return struct.unpack_from(f"<{form}", self._memory, begin)

    def text(self, what: str, most: int = LONGEST_STRING) -> str:
        """Return the next string of at most `most` bytes."""
        (length,) = self.unpack("Q", what)
        if length > most:
            raise self.corrupt(f"{what} has {length} bytes; {most} are the most")
        begin = self._take(length, what)
        try:
            return self._memory[begin : begin + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.corrupt(f"{what} is not UTF-8") from error

    def name(self, what: str) -> str:
        """Return the next string, the name of a key or a tensor."""
        return self.text(what, LONGEST_NAME)

    def value(self, key: str) -> Any:
        """Return the value of a key."""
        what = f"the value of {shown(key)}"
        (kind,) = self.unpack("I", what)
        if kind == _STRING:
            return self.text(what)
        if kind == _ARRAY:
            return self._array(what)
        return self._numbers(kind, 1, what)[0]

    def _array(self, what: str) -> list[Any]:
        kind, count = self.unpack("IQ", what)
        self._items += count
        if self._items > MOST_ITEMS:
            raise self.corrupt(f"{what} has {count} values; arrays may have {MOST_ITEMS} in all")
        if kind != _STRING:
            return self._numbers(kind, count, what)
        return [self.text(f"{what}[{index}]") for index in range(count)]

    def _numbers(self, kind: int, count: int, what: str) -> list[Any]:
        if kind not in _NUMBERS:  # also an array of arrays
            raise self.corrupt(f"{what} has type {kind}, which is not supported")
        found = self.unpack(f"{count}{_NUMBERS[kind]}", what)
        return [bool(value) for value in found] if kind == _BOOL else list(found)

    def _take(self, nbytes: int, what: str) -> int:
        """Return the place of the next bytes in `_memory`, after reading them."""
        begin, end = self.position, self.position + nbytes
        if end > min(self.size, MAX_HEADER_BYTES):
            why = "ends" if end > self.size else f"has more than {MAX_HEADER_BYTES} bytes of header"
            raise ModelError(f"{self.file.path}: the file {why} in {what}. {AGAIN}")
        if end > len(self._memory):
            wanted = max(end, 2 * len(self._memory), _READ_BYTES)
            more = bytearray(min(wanted, self.size) - len(self._memory))
            self.file.read(memoryview(more), len(self._memory))
            self._memory += more
        self.position = end
        return begin


def _read_start(reader: _Reader) -> tuple[int, int]:
    """Return the number of tensors and of keys."""
    path = reader.file.path
    magic = bytes(reader.unpack("4s", "its first bytes")[0])
    if POINTER.encode().startswith(magic):
        raise pointer_error(path)
    if magic != MAGIC:
        raise ModelError(f"{path}: not a GGUF file. {AGAIN}")
    (version,) = reader.unpack("I", "the version")
    if version not in (2, 3):
        big = version in (2 << 24, 3 << 24)
        what = "a big-endian GGUF file" if big else f"GGUF version {version}"
        raise ModelError(f"{path}: {what} is not read. Convert the model again with llama.cpp")
    count, keys = reader.unpack("QQ", "the counts")
    for number, most, what in ((keys, MOST_KEYS, "keys"), (count, MOST_TENSORS, "tensors")):
        if number > most:
            raise reader.corrupt(f"{number} {what}; {most} are the most")
    return count, keys


def _alignment(reader: _Reader, metadata: Metadata) -> int:
    """Return the number of bytes at whose multiples tensors begin."""
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or not 1 <= value <= LARGEST_ALIGNMENT or value & (value - 1):
        raise reader.corrupt(f"general.alignment is {shown(value)}, no power of two")
    return value


def _read_info(reader: _Reader, index: int) -> tuple[str, BlockType, tuple[int, ...], int]:
    """Return name, type, shape and relative offset of the next tensor."""
    name = reader.name(f"the name of tensor {index}")
    what = f"tensor {shown(name)}"
    (dimensions,) = reader.unpack("I", what)
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise reader.corrupt(f"{what} has {dimensions} dimensions; {MOST_DIMENSIONS} are the most")
    *sizes, kind, offset = reader.unpack(f"{dimensions}QIQ", what)
    if (type_ := TYPES.get(kind)) is None:
        known = ", ".join(known.name for known in TYPES.values())
        found = f"{reader.file.path}: {name} has type {_OTHER_TYPES.get(kind, f'number {kind}')}"
        if kind not in _OTHER_TYPES:
            raise ModelError(f"{found}, which is not known. {AGAIN}, or use one of {known}")
        raise ModelError(f"{found}, which is not read. Use a file with weights of {known}")
    if not all(sizes) or sizes[0] % type_.size:
        raise reader.corrupt(f"{what} has shape {sizes} of type {type_.name}")
    return name, type_, tuple(reversed(sizes)), offset


def _place(
    reader: _Reader, infos: list[tuple[str, BlockType, tuple[int, ...], int]], alignment: int
) -> tuple[TensorInfo, ...]:
    """Return the tensors with their places in the file, after checking that they do not overlap."""
    data = -(-reader.position // alignment) * alignment
    tensors = []
    for name, type_, shape, offset in infos:
        if offset % alignment:
            raise reader.corrupt(f"tensor {shown(name)} begins at {offset}, not aligned")
        nbytes = math.prod(shape) // type_.size * type_.nbytes
        if data + offset + nbytes > reader.size:
            raise ModelError(
                f"{reader.file.path}: truncated: {name} ends at byte {data + offset + nbytes}, the "
                f"file at {reader.size}. {AGAIN}"
            )
        tensors.append(TensorInfo(name, type_, shape, data + offset, nbytes))
    end = data
    for info in sorted(tensors, key=lambda info: info.offset):
        if info.offset < end:
            raise reader.corrupt(f"tensor {shown(info.name)} shares its bytes with another")
        end = info.offset + info.nbytes
    if len({info.name for info in tensors}) < len(tensors):
        raise reader.corrupt("two tensors have the same name")
    return tuple(tensors)
