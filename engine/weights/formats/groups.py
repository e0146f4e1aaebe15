"""Reading of weights whose codes share scales in groups: checks, words of codes, tables of values.

`scaled_codes` has the packed form of such weights, and their expansion.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, TypeGuard

import torch
from torch import Tensor

from engine.errors import ModelError, shown
from engine.weights.config_place import ConfigError
from engine.weights.safetensors import Checkpoint, StoredTensor

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
SCALES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, *FP8)
EXPONENTS = (torch.uint8, torch.float8_e8m0fnu)  # of two: the scales of OCP's MX formats
AGAIN = "The checkpoint is damaged or incomplete: download it again"

_PIECE_WEIGHTS = 1 << 22  # read at a time: 4 MB of codes or less
_WORD_BITS = 32
_CPU = torch.device("cpu")

Shape = tuple[int, ...]
Block = tuple[int, int]  # the rows and columns that share a scale


def pieces(rows: int, columns: int, multiple: int = 1) -> Iterator[range]:
    """Yield the ranges of rows to expand at a time; each begins at a multiple of `multiple`."""
    step = max(_PIECE_WEIGHTS // max(columns, 1) // multiple, 1) * multiple
    for start in range(0, rows, step):
        yield range(start, min(start + step, rows))


def as_bytes(numbers: Tensor) -> Tensor:
    """Return the bytes of a matrix of any type, [rows, bytes] uint8."""
    return numbers.reshape(-1).view(torch.uint8).view(len(numbers), -1)


def unpack(words: Tensor, bits: int) -> Tensor:
    """Return the codes in words, the lowest bits first, as uint8.

    Args:
        words: [rows, words] int32, or uint8. Codes of 3 bits may lie in two words; they need whole
            multiples of 3 words of int32.
        bits: 2, 3, 4 or 8 of one code.
    """
    if bits == 3:
        at = torch.arange(words.shape[-1] * _WORD_BITS // bits) * bits
        first = at // _WORD_BITS
        long = words.long()
        low = long[:, first] & ((1 << _WORD_BITS) - 1)
        high = long[:, (first + 1).clamp(max=words.shape[-1] - 1)] << _WORD_BITS
        return ((low | high) >> (at % _WORD_BITS)).bitwise_and_(7).to(torch.uint8)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    codes = (as_bytes(words).unsqueeze(-1) >> shifts).bitwise_and_((1 << bits) - 1)
    return codes.flatten(-2)


@cache
def number_values(dtype: torch.dtype, device: torch.device = _CPU) -> Tensor:
    """Return the value of each byte that is a number of this type, [256, 1] float32."""
    return torch.arange(256, dtype=torch.uint8).view(dtype).float().unsqueeze(1).to(device)


@cache
def packed_values(bits: int, device: torch.device = _CPU) -> Tensor:
    """Return the codes of 2, 4 or 8 bits in each byte, the lowest first, [256, codes] float32."""
    return unpack(torch.arange(256).to(torch.uint8).view(-1, 1), bits).float().to(device)


def part_of(checkpoint: Checkpoint, codes: StoredTensor, name: str) -> StoredTensor:
    """Return the tensor `name`, without which `codes` cannot be expanded."""
    found = checkpoint.tensors.get(name)
    if found is None:
        raise ModelError(f"{codes.file}: {codes.name} has no {name}. {AGAIN}")
    return found


def check_part(
    stored: StoredTensor,
    codes: StoredTensor,
    shapes: Iterable[Shape],
    dtypes: Iterable[torch.dtype],
) -> None:
    """Raise `ModelError` unless a tensor has one of these shapes and types, which `codes` needs."""
    shapes = list(dict.fromkeys(shapes))
    where = f"{stored.file}: {stored.name}"
    if stored.shape not in shapes:
        wanted = " or ".join(str(list(shape)) for shape in shapes) or "another configuration"
        raise ModelError(
            f"{where} has shape {list(stored.shape)}, but {codes.name} {list(codes.shape)} needs "
            f"{wanted}. {AGAIN}, or quantization_config does not belong to it"
        )
    if stored.dtype not in dtypes:
        raise ModelError(f"{where} has dtype {stored.dtype}, which cannot be read. {AGAIN}")


def check_words(codes: StoredTensor) -> None:
    """Raise `ModelError` unless a tensor is a matrix of int32 words."""
    if len(codes.shape) != 2 or codes.dtype != torch.int32 or 0 in codes.shape:
        raise ModelError(
            f"{codes.file}: {codes.name}: a matrix of int32 is expected, found "
            f"{list(codes.shape)} of {codes.dtype}. {AGAIN}"
        )


def group_size(quantization: Mapping[str, Any]) -> int | None:
    """Return how many inputs share a scale by the quantization_config; None for all (-1)."""
    size = quantization.get("group_size")
    if size in (None, -1):
        return None
    if type(size) is not int or size < 1:
        raise ConfigError(
            "quantization_config.group_size",
            f": -1 or at least 1 is expected, found {shown(size)}",
        )
    return size


def is_block(value: object) -> TypeGuard[Sequence[int]]:
    """Return whether a value of a quantization_config is the rows and columns of a block."""
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(type(size) is int and size >= 1 for size in value)
    )


def check_group(where: str, columns: int, size: int) -> None:
    """Raise `ModelError` unless groups of this size divide the columns of a weight."""
    if columns % size:
        raise ModelError(
            f"{where}: group_size {size} of quantization_config does not divide its "
            f"{columns} columns. Use the unquantized checkpoint"
        )


def scale_shapes(shape: Shape, blocks: Iterable[Block]) -> Mapping[Shape, Block]:
    """Return the shapes that the scales of a weight may have, with the block that each one means.

    One scale for a matrix and one for each row are among them always.

    Args:
        shape: [rows, columns] of the weight, or [experts, rows, columns].
        blocks: the blocks that the quantization_config names.
    """
    *lead, rows, columns = shape
    found: dict[Shape, Block] = {}
    for height, width in blocks:
        found[*lead, -(-rows // height), -(-columns // width)] = (height, width)
    whole, row = (max(rows, 1), max(columns, 1)), (1, max(columns, 1))
    for tail, block in (
        ((1, 1), whole),
        ((1,), whole),
        ((), whole),
        ((rows, 1), row),
        ((rows,), row),
    ):
        found.setdefault((*lead, *tail), block)
    return found


def load_groups(checkpoint: Checkpoint, stored: StoredTensor, count: int) -> Tensor:
    """Return the group of each column. Raises `ModelError` unless all are below `count`."""
    groups = checkpoint.load(stored).long()
    low, high = (int(bound) for bound in torch.aminmax(groups))
    if low < 0 or high >= count:
        raise ModelError(
            f"{stored.file}: {stored.name} names groups {low} to {high}, but the scales have "
            f"groups 0 to {count - 1}. {AGAIN}"
        )
    return groups
