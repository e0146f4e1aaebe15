"""Checkpoints of compressed-tensors (llm-compressor).

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
from transformers import PreTrainedModel

from engine.errors import ModelError, shown
from engine.weights.config_place import ConfigError
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
    is_block,
    load_groups,
    part_of,
    scale_shapes,
    unpack,
)
from engine.weights.formats.scaled_codes import OF_NUMBERS, Form, ScaledLayout
from engine.weights.formats.scaled_plans import is_part_of, matches, names_of, plan_scaled
from engine.weights.formats.scaled_sources import (
    ScaledWeight,
    load_grid,
    number_source,
    write_zeros,
)
from engine.weights.layout import Fields
from engine.weights.safetensors import Checkpoint, StoredTensor
from engine.weights.sources import Source
from engine.weights.stored_format import QuantizationConfig, Shape, StoredFormat, unsupported

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
_OF_FLOATS = ("float-quantized", "mxfp8-quantized")
_PAIR = 2  # E2M1 values in a byte
_PATTERN = "re:"  # begins patterns among names of modules


@dataclass(frozen=True)
class _Scheme:
    """How a group of modules stores its weights (`config_groups.*.weights`)."""

    bits: int
    is_symmetric: bool
    block: Block | None  # rows and columns that share a scale; None: all, or all of a row
    stored: str  # the name of its format
    weights: Mapping[str, Any]
    targets: tuple[str, ...]  # names of modules and of classes, and patterns

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


def plan(model: PreTrainedModel, quantization: QuantizationConfig) -> dict[str, Fields]:
    """Return the packed fields of the linear weights and experts.

    config.json does not tell the type of the scales of integers and FP8, which is that of the model
    in nearly all checkpoints: the type in which it computes is taken. Old versions stored zeros in
    a byte each. Some patterns of modules are not tried (see `scaled_plans.matches`).
    """
    schemes, ignored = _schemes(quantization), names_of(quantization, "ignore")
    own_type = getattr(model.config, "dtype", None) or torch.float32

    def layout_of(module: str, shape: Shape) -> ScaledLayout | None:
        if any(_is_target(name, module) for name in ignored):
            return None
        for targets in (_is_target, lambda name, _: name == "Linear"):
            for scheme in schemes:
                if any(targets(name, module) for name in scheme.targets):
                    return _planned(scheme, shape, own_type)
        return None

    return plan_scaled(model, layout_of)


def _is_target(name: str, module: str) -> bool:
    """Return whether a name or a pattern in a list of modules means a module."""
    if name.startswith(_PATTERN):
        return matches(name.removeprefix(_PATTERN), module)
    return is_part_of(module, [name])


def _planned(scheme: _Scheme, shape: Shape, own_type: torch.dtype) -> ScaledLayout | None:
    """Return the fields of a weight, where the scales of a model have usually this type."""
    weights, stored = scheme.weights, scheme.stored
    if stored == "mixed-precision":  # of a group that does not name its own
        has_words = weights.get("type") != "float" and scheme.bits < 8
        stored = "pack-quantized" if has_words else "naive-quantized"
    zeros, has_order = not scheme.is_symmetric, False
    if stored == "pack-quantized":
        codes, has_order = f"uint{scheme.bits}", weights.get("actorder") in ("group", True)
    elif stored.endswith("fp4-pack-quantized"):
        codes, zeros = "e2m1", False
    else:
        is_float = weights.get("type") == "float" or stored in _OF_FLOATS
        codes = "e4m3" if is_float else "int8"
    form = Form(codes, zeros, has_order, has_divisor=stored == "nvfp4-pack-quantized")
    if len(shape) > 2 and codes not in OF_NUMBERS.values():
        return None
    is_whole = weights.get("strategy") == "tensor"
    block = scheme.block or (shape[-2] if is_whole else 1, shape[-1])
    scales = torch.float8_e4m3fn if form.has_divisor else own_type
    if stored.startswith("mx"):
        scales = torch.float8_e8m0fnu
    return ScaledLayout(form, shape, block, scales, torch.int8 if codes == "int8" else None)


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
    return number_source(checkpoint, codes, scales, zeros, block)


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

    @property
    def layout(self) -> ScaledLayout:
        """The fields of the weight."""
        form = Form(f"uint{self.bits}", self.zeros is not None, self.groups is not None)
        zeros = None
        if self.zeros is not None and self.zeros.dtype != torch.int32:
            zeros = self.zeros.dtype
        return ScaledLayout(form, self.shape, self.block, self.scales.dtype, zeros)

    def read_codes(self, rows: range, out: Tensor) -> None:
        """Read the codes of some rows."""
        stored = self.codes.part(rows)
        if stored.nbytes == out.nbytes:
            self.checkpoint.read(stored, out)
        else:  # the last word of a row is not full
            out.copy_(as_bytes(self.checkpoint.load(stored))[:, : out.shape[1]])

    def read_others(self, *out: Tensor) -> None:
        """Read the scales, the zeros and the group of each column."""
        scales, *others = out
        layout = self.layout
        scales.copy_(layout.spread(load_grid(self.checkpoint, self.scales)))
        if self.zeros is not None:
            stored = load_grid(self.checkpoint, self.zeros)
            if stored.dtype != torch.int32:  # the zeros are less by the offset of the codes
                others[0].copy_(layout.spread(stored))
            else:
                count = -(-self.shape[0] // self.block[0])
                codes = unpack(stored.T.contiguous(), self.bits).T[:count]
                write_zeros(layout.spread(codes), self.bits, others[0])
        if self.groups is not None:
            others[-1].copy_(load_groups(self.checkpoint, self.groups, layout.grid[1]))


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
    return ScaledWeight(made.layout, made.read_codes, made.read_others, parts).source()


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
    parts = (codes, scales, *([divisor] if divisor is not None else []))
    form = Form("e2m1", has_divisor=divisor is not None)
    layout = ScaledLayout(form, shape, shapes[scales.shape], scales.dtype)

    def read_codes(rows: range, out: Tensor) -> None:
        checkpoint.read(codes.part(rows), out)

    def read_others(own: Tensor, *others: Tensor) -> None:
        own.copy_(layout.spread(load_grid(checkpoint, scales)))
        for one in others:
            one.copy_(checkpoint.load(parts[-1]).view(one.shape))

    return ScaledWeight(layout, read_codes, read_others, parts).source()


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
        is_symmetric = weights.get("symmetric", True) is not False
        targets = tuple(names_of(group, "targets"))
        found.append(_Scheme(int(bits), is_symmetric, block, stored, weights, targets))
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
        raise ConfigError(
            f"quantization_config.{path}{key}", f": an object is expected, found {shown(found)}"
        )
    return found


FORMAT = StoredFormat(title="compressed-tensors", detect=detect, find=find, plan=plan)
