"""Int4 weights in groups along the input, multiplied by torch's own weight-only kernels.

Each group has a scale and a zero point (bfloat16): asymmetric groups of 32 have a relative error
of .078 on normal weights, symmetric ones .086 to .097, asymmetric groups of 64 .090.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

_LEVELS = 16
_CENTRE = 8  # the kernels compute (code - 8) * scale + zero
_TINY = 1e-8  # a scale for groups whose weights are all equal
_CHUNK_WEIGHTS = 1 << 22  # quantized at once: bounds the float32 temporaries
_CPU_ROW_MULTIPLE = 16
_CUDA_ROW_MULTIPLE = 8
_CUDA_CAPABILITY = (8, 0)  # the kernel needs bfloat16 tensor cores
_CUDA_INNER_TILES = (8, 4, 2)  # the CUDA kernel's tiles of 16 inputs; the widest that fits


@dataclass(frozen=True)
class Int4Codes:
    """A quantized weight [out, in]: codes 0..15, and each group's scale and zero point."""

    codes: Tensor  # [out, in] uint8
    scales_and_zeros: Tensor  # [in / group, out, 2] bfloat16, as the kernels want it
    group: int

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The weight the kernels multiply with, [out, in]."""
        scale, zero = self.scales_and_zeros.float().unbind(-1)  # [in / group, out]
        grouped = self.codes.float().view(self.codes.shape[0], -1, self.group) - _CENTRE
        dense = grouped * scale.T.unsqueeze(-1) + zero.T.unsqueeze(-1)
        return dense.view(self.codes.shape).to(dtype)


def quantize(weight: Tensor, group: int) -> Int4Codes:
    """Quantize a float weight [out, in], in a multiple of `group`, on the weight's device."""
    out_features, in_features = weight.shape
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    shape = (in_features // group, out_features, 2)
    scales_and_zeros = torch.empty(shape, dtype=torch.bfloat16, device=weight.device)
    step = max(1, _CHUNK_WEIGHTS // in_features)
    for begin in range(0, out_features, step):
        rows = slice(begin, begin + step)
        grouped = weight[rows].float().view(-1, in_features // group, group)
        low, high = grouped.aminmax(dim=-1)
        # rounded to what is stored first, so that the codes fit the stored scale
        scale = ((high - low) / (_LEVELS - 1)).clamp_(min=_TINY).bfloat16()
        zero = (low + _CENTRE * scale.float()).bfloat16()
        levels = (grouped - zero.float().unsqueeze(-1)) / scale.float().unsqueeze(-1)
        codes[rows] = levels.round_().add_(_CENTRE).clamp_(0, _LEVELS - 1).flatten(1).byte()
        scales_and_zeros[:, rows] = torch.stack([scale, zero], dim=-1).transpose(0, 1)
    return Int4Codes(codes, scales_and_zeros, group)


def supports(in_features: int, out_features: int, group: int, device: torch.device) -> bool:
    """Whether the device's kernel takes a weight of this shape."""
    if in_features % group:
        return False
    if device.type == "cpu":
        return out_features % _CPU_ROW_MULTIPLE == 0
    if torch.cuda.get_device_capability(device) < _CUDA_CAPABILITY:
        return False
    return out_features % _CUDA_ROW_MULTIPLE == 0 and _inner_tiles(in_features) is not None


class Int4Linear(nn.Module):
    """A linear layer over int4 weights; activations are bfloat16 inside."""

    weight: Tensor
    scales_and_zeros: Tensor
    bias: Tensor | None

    def __init__(self, quantized: Int4Codes, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = quantized.codes.shape
        self.group = quantized.group
        self.register_buffer("weight", _pack(quantized.codes))
        self.register_buffer("scales_and_zeros", quantized.scales_and_zeros)
        self.register_buffer("bias", None if bias is None else bias.detach().to(torch.bfloat16))

    def forward(self, rows: Tensor) -> Tensor:
        """[..., in] -> [..., out] in the dtype of `rows`."""
        flat = rows.reshape(-1, self.in_features).to(torch.bfloat16).contiguous()
        if flat.device.type == "cpu":
            kernel = torch._weight_int4pack_mm_for_cpu
        else:
            kernel = torch._weight_int4pack_mm
        result: Tensor = kernel(flat, self.weight, self.group, self.scales_and_zeros)
        if self.bias is not None:
            result = result + self.bias
        return result.view(*rows.shape[:-1], self.out_features).to(rows.dtype)


def packed_nbytes(in_features: int, out_features: int, group: int) -> int:
    """Bytes of one quantized weight on the device, without its bias."""
    return out_features * in_features // 2 + out_features * (in_features // group) * 2 * 2


def _inner_tiles(in_features: int) -> int | None:
    return next((n for n in _CUDA_INNER_TILES if in_features % (n * 16) == 0), None)


def _pack(codes: Tensor) -> Tensor:
    """The kernel's own order of the codes [out, in]; it differs between devices."""
    if codes.device.type == "cpu":
        return torch._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    inner_tiles = _inner_tiles(codes.shape[1])
    assert inner_tiles is not None, codes.shape
    pairs = (codes[:, ::2] << 4) | codes[:, 1::2]  # [out, in / 2], the first in the high half
    return torch._convert_weight_to_int4pack(pairs.contiguous(), inner_tiles)
