"""Weights quantized to int4, and the dense weights that the kernels multiply with."""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.weights.formats import int4


@dataclass(frozen=True)
class Int4Codes:
    """A quantized weight [out, in]: codes 0..15, and each group's scale and zero point."""

    pairs: Tensor  # [out, in / 2] uint8, two codes to a byte, the first in its high half
    scales_and_zeros: Tensor  # [in / group, out, 2] bfloat16

    @property
    def codes(self) -> Tensor:
        """Return the codes [out, in], uint8, one to a byte."""
        return torch.stack([self.pairs >> 4, self.pairs & 15], dim=-1).flatten(1)

    def dense(self) -> Tensor:
        """Return the weight that the kernels multiply with, [out, in] float32."""
        scale, zero = self.scales_and_zeros.float().unbind(-1)  # [in / group, out]
        codes = self.codes
        grouped = codes.float().view(len(codes), len(scale), -1) - 8
        dense = grouped * scale.T.unsqueeze(-1) + zero.T.unsqueeze(-1)
        return dense.view(codes.shape)


def quantize(weight: Tensor, group: int, importance: Tensor | None = None) -> Int4Codes:
    """Quantize a float weight [out, in], in a multiple of `group`, on the weight's device."""
    specs = int4.packed_tensors("", tuple(weight.shape), group).values()
    pairs, scales = (
        torch.empty(shape, dtype=dtype, device=weight.device) for dtype, shape in specs
    )
    int4.quantize(weight, pairs, scales, importance)
    return Int4Codes(pairs, scales)
