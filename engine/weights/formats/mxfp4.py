"""MXFP4 experts (gpt-oss): 4-bit values in blocks of 32 that share a power of two.

They are expanded to dense tensors when they are read.

Source: OCP Microscaling Formats specification v1.0, section 5.3 (E2M1 elements, E8M0 scales).
"""

from functools import cache

import torch
from torch import Tensor

from engine.compiled import byte_codes
from engine.compiled.filling import can_fill
from engine.errors import ModelError
from engine.weights.safetensors import Checkpoint, StoredTensor
from engine.weights.sources import Source
from engine.weights.stored_format import QuantizationConfig, StoredFormat

_BLOCKS, _SCALES = "_blocks", "_scales"  # suffixes of the two stored tensors
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_EXPONENT_BIAS = 127


@cache
def pair_values() -> Tensor:
    """Return the two values of each byte, the low half first, [256, 2] float32."""
    return torch.tensor([(E2M1[byte & 15], E2M1[byte >> 4]) for byte in range(256)])


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
    low_high = pair_values().to(out.dtype)
    for expert in range(
        blocks.shape[0]
    ):  # one at a time, since the index tensor is eight times as large
        pairs = low_high[blocks[expert].long()]  # [out, G, bytes, 2]
        values = pairs.flatten(-2)  # [out, G, 2 * bytes]
        exponents = scales[expert].to(torch.int32).sub_(_EXPONENT_BIAS).unsqueeze(-1)
        torch.ldexp(values, exponents, out=values)
        out[expert].copy_(values.flatten(-2).T)


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
    return Source(
        shape=expanded_shape(blocks.shape),
        fill=lambda out: expand(checkpoint.load(blocks), checkpoint.load(scales), out),
        parts=(blocks, scales),
        experts=lambda held: _source(checkpoint, blocks.part(held), scales.part(held)),
    )


FORMAT = StoredFormat(
    title="mxfp4",
    detect=lambda quantization: quantization["quant_method"] == "mxfp4",
    find=find,
    expanded="MXFP4 experts",
)
