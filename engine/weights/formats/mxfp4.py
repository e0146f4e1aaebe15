"""MXFP4 experts (gpt-oss): 4-bit values in blocks of 32 that share a power of two.

They stay packed as they are stored, or are expanded when they are read.

Source: OCP Microscaling Formats specification v1.0, section 5.3 (E2M1 elements, E8M0 scales).
"""

from functools import cache, partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.compiled import byte_codes
from engine.compiled.filling import can_fill
from engine.errors import ModelError
from engine.weights.layout import Fields
from engine.weights.packing import values_at_once
from engine.weights.safetensors import Checkpoint, StoredTensor
from engine.weights.sources import Source
from engine.weights.stored_format import Packing, QuantizationConfig, StoredFormat

_BLOCKS, _SCALES = "_blocks", "_scales"  # suffixes of the two stored tensors
_PACKED = (".mxfp4_blocks", ".mxfp4_scales")  # suffixes of the two packed fields
_BYTES, _VALUES = 16, 32  # of a block
_EXPERTS = (".experts.gate_up_proj", ".experts.down_proj")
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_EXPONENT_BIAS = 127
_CPU = torch.device("cpu")


@cache
def pair_values(dtype: torch.dtype = torch.float32, device: torch.device = _CPU) -> Tensor:
    """Return the two values of each byte, the low half first, [256, 2]."""
    pairs = [(E2M1[byte & 15], E2M1[byte >> 4]) for byte in range(256)]
    return torch.tensor(pairs, dtype=dtype, device=device)


def expanded_shape(blocks: tuple[int, ...]) -> tuple[int, ...]:
    """Return the dense shape of blocks [E, out, G, bytes]: [E, G * 2 * bytes, out]."""
    experts, rows, groups, count = blocks
    return experts, groups * count * 2, rows


def expand(blocks: Tensor, scales: Tensor, out: Tensor) -> None:
    """Expand stored experts to the same bits as transformers does.

    Args:
        blocks: [E, out, G, bytes] uint8, with the first value of a byte in its low half.
        scales: [E, out, G] uint8.
        out: [E, in, out] of the wanted dtype, transposed as in the gpt-oss of transformers.
    """
    if can_fill(out):
        _expand_compiled(blocks, scales, out)
        return
    table = pair_values(out.dtype, out.device)
    for codes, exponents, dense in zip(blocks, scales, out, strict=True):
        step = max(1, values_at_once(out.device) // len(dense))
        for own, powers, rows in zip(
            *(torch.split(tensor, step) for tensor in (codes, exponents, dense.T)), strict=True
        ):
            pairs = table.index_select(0, own.flatten().int())  # [rows * G * bytes, 2]
            values = pairs.view(*powers.shape, -1)  # [rows, G, 2 * bytes]
            shifts = powers.to(torch.int32).sub_(_EXPONENT_BIAS).unsqueeze(-1)
            rows.copy_(torch.ldexp(values, shifts, out=values).flatten(1))


def packed_fields(shape: tuple[int, ...]) -> Fields:
    """Return the packed fields of experts of this dense shape [E, in, out]."""
    experts, columns, rows = shape
    groups, rest = divmod(columns, _VALUES)
    fields = ((experts, rows, groups, _BYTES), (experts, rows, groups))
    return {} if rest else {s: (torch.uint8, f) for s, f in zip(_PACKED, fields, strict=True)}


def plan(model: PreTrainedModel, quantization: QuantizationConfig) -> dict[str, Fields]:
    """Return the packed fields of all experts, from config.json alone."""
    experts = {n: p for n, p in model.named_parameters() if p.dim() == 3 and n.endswith(_EXPERTS)}
    return {name: packed_fields(tuple(parameter.shape)) for name, parameter in experts.items()}


def _expand_compiled(blocks: Tensor, scales: Tensor, out: Tensor) -> None:
    _, _, groups, nbytes = blocks.shape
    group = torch.arange(groups, dtype=torch.int32).repeat_interleave(nbytes * 2)
    for codes, exponents, dense in zip(blocks, scales, out, strict=True):
        # Half of each power with twice each value, because the largest power is no float32.
        powers = torch.pow(2.0, exponents.to(torch.int32).sub_(_EXPONENT_BIAS + 1))
        zeros = torch.zeros_like(powers)
        byte_codes.expand(codes.flatten(1), pair_values() * 2, powers, zeros, group, dense.T)


def find(checkpoint: Checkpoint, quantization: QuantizationConfig) -> dict[str, Source]:
    """Return the sources of the experts that have blocks."""
    found = {}
    for name in [name for name in checkpoint.tensors if name.endswith(_BLOCKS)]:
        dense = name.removesuffix(_BLOCKS)
        blocks, scales = checkpoint.tensors[name], checkpoint.tensors.get(dense + _SCALES)
        if scales is None or scales.shape != blocks.shape[:-1]:
            raise ModelError(f"{blocks.file}: {name} has no {dense}{_SCALES} of its shape")
        if len(blocks.shape) != 4 or {blocks.dtype, scales.dtype} != {torch.uint8}:
            raise ModelError(
                f"{blocks.file}: {name}: blocks of experts are expected, found {blocks.shape}"
            )
        found[dense] = _source(checkpoint, blocks, scales)
    return found


def _source(checkpoint: Checkpoint, blocks: StoredTensor, scales: StoredTensor) -> Source:
    shape = expanded_shape(blocks.shape)
    return Source(
        shape=shape,
        fill=partial(_fill, checkpoint, blocks, scales),
        parts=(blocks, scales),
        packed=packed_fields(shape) if blocks.shape[-1] == _BYTES else {},
        experts=lambda held: _source(checkpoint, blocks.part(held), scales.part(held)),
    )


def _fill(checkpoint: Checkpoint, blocks: StoredTensor, scales: StoredTensor, *out: Tensor) -> None:
    """Write experts into their two packed fields, or into one dense tensor."""
    if len(out) == len(_PACKED):
        checkpoint.read(blocks, out[0])
        checkpoint.read(scales, out[1])
    else:
        expand(checkpoint.load(blocks), checkpoint.load(scales), out[0])


FORMAT = StoredFormat(
    title="mxfp4",
    detect=lambda quantization: quantization["quant_method"] == "mxfp4",
    find=find,
    plan=plan,
)
PACKINGS = (Packing(title="MXFP4", suffixes=_PACKED, dense_shape=expanded_shape, expand=expand),)
