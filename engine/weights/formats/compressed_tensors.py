"""Checkpoints of compressed-tensors (llm-compressor), expanded when they are read.

Its formats are distinguished by their tensors; one checkpoint may have several:

- `weight` as int8 or FP8 with `weight_scale` (int-, float- and naive-quantized, mxfp8);
- `weight_packed` of int32: integers of few bits, stored with an offset (pack-quantized);
- `weight_packed` of uint8: pairs of E2M1 values (nvfp4- and mxfp4-pack-quantized).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.errors import ModelError, shown
from engine.weights.formats.groups import (
    AGAIN,
    EXPONENTS,
    FP8,
    SCALES,
    Block,
    as_bytes,
    check_group,
    check_part,
    check_words,
    dequantize,
    is_block,
    load_groups,
    load_scales,
    packed_values,
    part_of,
    pieces,
    scale_shapes,
    scaled_source,
    unpack,
)
from engine.weights.formats.mxfp4 import pair_values
from engine.weights.safetensors import Checkpoint, StoredTensor
from engine.weights.sources import Source
from engine.weights.stored_format import QuantizationConfig, StoredFormat, unsupported

_PACKED = "_packed"
_WORD_BITS = 32
_BITS = (2, 4, 8)  # codes of other sizes are packed in two ways, which nothing tells apart
_FORMATS = frozenset(
    {
        "float-quantized",
        "int-quantized",
        "mixed-precision",
        "mxfp4-pack-quantized",
        "mxfp8-quantized",
        "naive-quantized",
        "nvfp4-pack-quantized",
        "pack-quantized",
    }
)
_BLOCK_KEYS = ("strategy", "group_size", "block_structure")
_PAIR = 2  # E2M1 values in a byte


@dataclass(frozen=True)
class _Scheme:
    """How a group of modules stores its weights (`config_groups.*.weights`)."""

    bits: int
    is_symmetric: bool
    block: Block | None  # rows and columns that share a scale; None: all, or all of a row

    @property
    def group_size(self) -> int | None:
        """The columns that share a scale; None if blocks have several rows or there are none."""
        return self.block[1] if self.block and self.block[0] == 1 else None


def detect(quantization: QuantizationConfig) -> bool:
    """Return whether compressed-tensors made it. Raises `ModelError` for a variant of it."""
    if quantization["quant_method"] != "compressed-tensors":
        return False
    for key in ("transform_config", "sparsity_config"):
        value = quantization.get(key)
        if value and not (isinstance(value, Mapping) and value.get("format") == "dense"):
            raise unsupported(quantization, f"with {key}")
    _schemes(quantization)
    return True


def find(checkpoint: Checkpoint, quantization: QuantizationConfig) -> dict[str, Source]:
    """Return the sources of the weights that are stored as codes."""
    schemes = _schemes(quantization)
    found = {}
    for name, codes in checkpoint.tensors.items():
        if name.endswith(_PACKED):
            weight = name.removesuffix(_PACKED)
            make = _pairs if codes.dtype == torch.uint8 else _words
            found[weight] = make(checkpoint, codes, weight, schemes)
        elif codes.dtype in (torch.int8, *FP8) and name.endswith("weight"):
            found[name] = _numbers(checkpoint, codes, schemes)
    return found


def _numbers(checkpoint: Checkpoint, codes: StoredTensor, schemes: Sequence[_Scheme]) -> Source:
    """Return the source of a weight whose codes are stored as numbers of 8 bits."""
    if len(codes.shape) not in (2, 3):
        raise ModelError(f"{codes.file}: {codes.name}: a matrix is expected. {AGAIN}")
    scales = part_of(checkpoint, codes, f"{codes.name}_scale")
    shapes = _scale_shapes(codes, codes.shape, schemes)
    check_part(scales, codes, shapes, (*SCALES, *EXPONENTS))
    block = shapes[scales.shape]
    zeros = checkpoint.tensors.get(f"{codes.name}_zero_point")
    if zeros is not None:
        check_part(zeros, codes, _of_block(shapes, block), (torch.int8, *SCALES))
    elif schemes and not any(scheme.is_symmetric for scheme in schemes):
        part_of(checkpoint, codes, f"{codes.name}_zero_point")
    return scaled_source(checkpoint, codes, scales, zeros, block)


@dataclass(frozen=True)
class _Words:
    """A weight [rows, columns] whose codes are packed into int32 words."""

    checkpoint: Checkpoint
    codes: StoredTensor
    scales: StoredTensor
    zeros: StoredTensor | None
    groups: StoredTensor | None  # the group of each column; None: columns are in order
    shape: tuple[int, int]
    bits: int
    block: Block

    def fill(self, out: Tensor) -> None:
        """Expand the weight into `out`."""
        rows, columns = self.shape
        height, width = self.block
        grid = (-(-rows // height), -(-columns // width))
        scales = load_scales(self.checkpoint, self.scales).view(grid)
        zeros, group = self._zeros(grid), self._groups(grid[1])
        for piece in pieces(rows, columns):
            line = torch.arange(piece.start, piece.stop) // height
            codes = as_bytes(self.checkpoint.load(self.codes.part(piece)))
            own_scales, own_zeros = scales.index_select(0, line), zeros.index_select(0, line)
            own, values = out[piece.start : piece.stop], packed_values(self.bits)
            dequantize(codes, values, own_scales, own_zeros, group, own)

    def _zeros(self, grid: tuple[int, int]) -> Tensor:
        """Return the stored codes that stand for zero, as float32 of the shape `grid`.

        Packed ones have the offset of the codes, and others do not.
        """
        offset = float(1 << (self.bits - 1))
        if self.zeros is None:
            return torch.full(grid, offset)
        stored = self.checkpoint.load(self.zeros)
        if stored.dtype != torch.int32:
            return stored.float().view(grid) + offset
        return unpack(stored.T.contiguous(), self.bits).T[: grid[0]].float()

    def _groups(self, count: int) -> Tensor:
        """Return the group of each column. Raises `ModelError` if the stored ones are wrong."""
        if self.groups is None:
            return torch.arange(self.shape[1]) // self.block[1]
        return load_groups(self.checkpoint, self.groups, count)


def _words(
    checkpoint: Checkpoint, codes: StoredTensor, weight: str, schemes: Sequence[_Scheme]
) -> Source:
    """Return the source of a weight whose codes are packed into int32 words."""
    check_words(codes)
    shape, own = _shape_and_schemes(checkpoint, codes, weight, schemes)
    rows, columns, bits = *shape, own[0].bits
    scales = part_of(checkpoint, codes, f"{weight}_scale")
    shapes = _scale_shapes(codes, shape, own)
    check_part(scales, codes, shapes, SCALES)
    block = shapes[scales.shape]
    zeros = checkpoint.tensors.get(f"{weight}_zero_point")
    if zeros is not None and zeros.dtype == torch.int32:
        height = -(-rows // block[0])
        packed = (-(-height * bits // _WORD_BITS), -(-columns // block[1]))
        check_part(zeros, codes, [packed], (torch.int32,))
    elif zeros is not None:
        check_part(zeros, codes, _of_block(shapes, block), (torch.int8,))
    elif not any(scheme.is_symmetric for scheme in own):
        part_of(checkpoint, codes, f"{weight}_zero_point")
    groups = checkpoint.tensors.get(f"{weight}_g_idx")
    if groups is not None:
        check_part(groups, codes, [(columns,)], (torch.int32, torch.int64))
    made = _Words(checkpoint, codes, scales, zeros, groups, shape, bits, block)
    others = (scales, zeros, groups, checkpoint.tensors.get(f"{weight}_shape"))
    parts = (codes, *(part for part in others if part is not None))
    return Source(shape=shape, fill=made.fill, parts=parts)


def _shape_and_schemes(
    checkpoint: Checkpoint, codes: StoredTensor, weight: str, schemes: Sequence[_Scheme]
) -> tuple[tuple[int, int], Sequence[_Scheme]]:
    """Return the dense shape of packed codes, and the schemes that fit it, all of equal bits."""
    stored = part_of(checkpoint, codes, f"{weight}_shape")
    check_part(stored, codes, [(2,)], (torch.int64, torch.int32))
    rows, columns = (int(size) for size in checkpoint.load(stored))
    fits = [s for s in schemes if -(-columns * s.bits // _WORD_BITS) == codes.shape[1]]
    if rows != codes.shape[0] or len({scheme.bits for scheme in fits}) != 1:
        raise ModelError(
            f"{stored.file}: {stored.name} says [{rows}, {columns}], but {codes.name} is "
            f"{list(codes.shape)}, which does not fit one num_bits of quantization_config "
            f"({shown(sorted({scheme.bits for scheme in schemes}))}). {AGAIN}"
        )
    return (rows, columns), fits


@dataclass(frozen=True)
class _Pairs:
    """A weight [rows, columns] of E2M1 values, two in a byte with the first one in its low half."""

    checkpoint: Checkpoint
    codes: StoredTensor
    scales: StoredTensor
    divisor: StoredTensor | None  # of all scales (weight_global_scale)
    block: Block

    def fill(self, out: Tensor) -> None:
        """Expand the weight into `out`."""
        rows, columns = out.shape
        height, width = self.block
        grid = (-(-rows // height), -(-columns // width))
        scales = load_scales(self.checkpoint, self.scales).view(grid)
        if self.divisor is not None:
            scales = scales / load_scales(self.checkpoint, self.divisor).view(1, 1)
        group = torch.arange(columns) // width
        for piece in pieces(rows, columns):
            line = torch.arange(piece.start, piece.stop) // height
            codes = self.checkpoint.load(self.codes.part(piece))
            own = out[piece.start : piece.stop]
            dequantize(codes, pair_values(), scales.index_select(0, line), None, group, own)


def _pairs(
    checkpoint: Checkpoint, codes: StoredTensor, weight: str, schemes: Sequence[_Scheme]
) -> Source:
    """Return the source of a weight of packed E2M1 values."""
    if len(codes.shape) != 2 or 0 in codes.shape:
        raise ModelError(f"{codes.file}: {codes.name}: a matrix is expected. {AGAIN}")
    shape = (codes.shape[0], codes.shape[1] * _PAIR)
    scales = part_of(checkpoint, codes, f"{weight}_scale")
    shapes = _scale_shapes(codes, shape, schemes)
    check_part(scales, codes, shapes, (*SCALES, *EXPONENTS))
    divisor = None
    if scales.dtype in FP8:  # nvfp4; the exponents of mxfp4 need no other scale
        divisor = part_of(checkpoint, codes, f"{weight}_global_scale")
        check_part(divisor, codes, [(1,), ()], SCALES)
    made = _Pairs(checkpoint, codes, scales, divisor, shapes[scales.shape])
    parts = (codes, scales, *([divisor] if divisor is not None else []))
    return Source(shape=shape, fill=made.fill, parts=parts)


def _scale_shapes(
    codes: StoredTensor, shape: tuple[int, ...], schemes: Sequence[_Scheme]
) -> Mapping[tuple[int, ...], Block]:
    """Return the shapes that the scales of a weight may have, with their blocks."""
    sizes = [scheme.group_size for scheme in schemes]
    fit = [s for s in schemes if s.group_size is None or shape[-1] % s.group_size == 0]
    if not fit and sizes and sizes[0] is not None:
        check_group(f"{codes.file}: {codes.name}", shape[-1], sizes[0])
    return scale_shapes(shape, [scheme.block for scheme in fit if scheme.block is not None])


def _of_block(shapes: Mapping[tuple[int, ...], Block], block: Block) -> list[tuple[int, ...]]:
    """Return the shapes that mean this block."""
    return [shape for shape, own in shapes.items() if own == block]


def _schemes(quantization: QuantizationConfig) -> list[_Scheme]:
    """Return the schemes of all groups of modules whose weights are quantized.

    Raises `ModelError` for one that cannot be read.
    """
    found = []
    for name, group in _object(quantization, "config_groups", "").items():
        path = f"config_groups.{name}"
        if not isinstance(group, Mapping):
            raise unsupported(quantization, f"with {shown(path)}: {shown(group)}")
        weights = _object(group, "weights", f"{path}.")
        if not weights:
            continue
        stored = group.get("format") or quantization.get("format")
        if not isinstance(stored, str) or stored not in _FORMATS:
            raise unsupported(quantization, f"of format {shown(stored)}")
        if (bits := weights.get("num_bits", 8)) not in _BITS:
            raise unsupported(quantization, f"with num_bits {shown(bits)}")
        block = _block(quantization, weights)
        found.append(_Scheme(int(bits), weights.get("symmetric", True) is not False, block))
    return found


def _block(quantization: QuantizationConfig, weights: Mapping[str, Any]) -> Block | None:
    """Return the block that shares a scale; None for a whole weight or a whole row."""
    size, blocks = weights.get("group_size"), weights.get("block_structure")
    strategy = weights.get("strategy") or ("tensor" if size in (None, -1) else "group")
    if strategy in ("tensor", "channel") or (strategy == "group" and size == -1):
        return None
    block = blocks if strategy == "block" else [1, size]
    if strategy not in ("group", "tensor_group", "block") or not is_block(block):
        named = ", ".join(f"{key} {shown(weights.get(key))}" for key in _BLOCK_KEYS)
        raise unsupported(quantization, f"with {named}")
    return block[0], block[1]


def _object(values: Mapping[str, Any], key: str, path: str) -> Mapping[str, Any]:
    """Return the object of a key; empty if it is null or missing."""
    found = values.get(key) or {}
    if not isinstance(found, Mapping):
        raise ModelError(
            f"config.json: quantization_config.{shown(path + key)}: an object is expected, found "
            f"{shown(found)}"
        )
    return found


FORMAT = StoredFormat(
    title="compressed-tensors", detect=detect, find=find, expanded="compressed-tensors weights"
)
