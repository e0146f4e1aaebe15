"""Int4 weights in groups along the input, which torch's own weight-only kernels multiply.

Each group has a scale and a zero point (bfloat16). On normally distributed weights the relative
error of asymmetric groups of 32 is .078, of symmetric ones .086 to .097, and of asymmetric groups
of 64 .090.
"""

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor, nn

from engine.triton_kernels import int4_product
from engine.triton_kernels.int4_product import Gate
from engine.weights.formats.tensor_cores import has_fast_bfloat16
from engine.weights.formats.weighted import fit_scale_and_zero, group_weights
from engine.weights.layout import TensorSpec

PACKED = ".int4"  # field suffix: uint8 [out, in / 2], the first code of a byte in its high half
SCALES = ".scales_and_zeros"  # field suffix: bfloat16 [in / group, out, 2]
_LEVELS = 16
_CENTRE = 8  # the kernels compute (code - 8) * scale + zero
# Shares of a group's least and largest weight: a fit may begin with levels between these values. On
# a real model these five leave .758 of the error of the whole range alone, 49 of them .730.
_SPANS = ((1.0, 0.9), (0.95, 1.0), (1.0, 0.95), (0.95, 1.07), (0.9, 1.0))
_TINY = 1e-8  # the scale of groups whose weights are all equal
_CHUNK_WEIGHTS = 1 << 22  # weights packed at a time: bounds the 4-byte temporaries
_QUANTIZED_WEIGHTS = 1 << 18  # weights quantized at a time: temporaries fit the CPU's cache
_CPU_ROW_MULTIPLE = 16
_CPU_BLOCK = 64  # the most rows that the CPU's order mixes; blocks are packed independently
_CUDA_ROW_MULTIPLE = 8
_CUDA_INNER_TILES = (8, 4, 2)  # tiles of 16 inputs that one load takes (16, 8, 4 bytes)


def quantize(
    weight: Tensor, pairs: Tensor, scales_and_zeros: Tensor, importance: Tensor | None = None
) -> None:
    """Quantize a float weight [out, in] into the two fields of `packed_tensors`.

    Args:
        importance: the mean square of each input channel [in], by which scale and zero of a group
            are fitted; None: the group's least and largest weight give them.
    """
    out_features, in_features = weight.shape
    num_groups = len(scales_and_zeros)
    weights = None
    if importance is not None:
        weights = group_weights(importance.to(weight.device), in_features // num_groups)
    step = max(1, _QUANTIZED_WEIGHTS // in_features)
    for begin in range(0, out_features, step):
        rows = slice(begin, begin + step)
        grouped = weight[rows].float().view(-1, num_groups, in_features // num_groups)
        low, high = grouped.amin(dim=-1, keepdim=True), grouped.amax(dim=-1, keepdim=True)
        # Scale and zero are rounded first to what is stored, so that the codes fit them.
        scale = ((high - low) / (_LEVELS - 1)).clamp_(min=_TINY).bfloat16()
        zero = (low + _CENTRE * scale.float()).bfloat16()
        if weights is not None:
            starts = [(scale, zero), *_other_spans(low, high)]
            scale, zero = fit_scale_and_zero(grouped, weights, starts, _to_levels)
        levels = _to_levels(grouped, scale.float(), zero.float())
        codes = levels.add_(_CENTRE).flatten(1).byte()
        pairs[rows] = (codes[:, ::2] << 4) | codes[:, 1::2]
        scales_and_zeros[:, rows] = torch.cat([scale, zero], dim=-1).transpose(0, 1)


def _other_spans(low: Tensor, high: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield scales and zeros whose levels span other ranges than from `low` to `high`."""
    for of_low, of_high in _SPANS:
        bottom = low * of_low
        scale = ((high * of_high - bottom) / (_LEVELS - 1)).clamp_(min=_TINY)
        yield scale, bottom + _CENTRE * scale


def _to_levels(values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Return the level of each value, -8 to 7, with which level * scale + zero is nearest."""
    levels = (values - zero).div_(scale)
    return levels.round_().clamp_(-_CENTRE, _LEVELS - 1 - _CENTRE)


def packed_tensors(name: str, shape: tuple[int, ...], group: int) -> dict[str, TensorSpec]:
    """Return the two packed fields of the weight `name` of this shape, the same on any device."""
    out_features, in_features = shape
    return {
        name + PACKED: (torch.uint8, (out_features, in_features // 2)),
        name + SCALES: (torch.bfloat16, (in_features // group, out_features, 2)),
    }


def supports(in_features: int, out_features: int, group: int, device: torch.device | None) -> bool:
    """Return whether the device's kernel supports a weight of this shape.

    Args:
        device: None stands for a CUDA card that this machine may not have, of a recent kind.
    """
    if in_features % group:
        return False
    if device is not None and device.type == "cpu":  # torch has a kernel for each device
        return out_features % _CPU_ROW_MULTIPLE == 0
    if device is not None and not has_fast_bfloat16(device):  # which the kernel needs
        return False
    return out_features % _CUDA_ROW_MULTIPLE == 0 and _inner_tiles(in_features) is not None


class Int4Linear(nn.Module):
    """A linear layer with int4 weights that computes in bfloat16.

    On CUDA a kernel of ours reads the weight as it is stored, once for up to 64 rows. Without
    Triton it is PyTorch's kernel, with a weight in an order of its own: 17 to 32 rows read the
    weight twice, mostly from the second-level cache.
    """

    weight: Tensor
    scales_and_zeros: Tensor
    bias: Tensor | None

    def __init__(self, pairs: Tensor, scales_and_zeros: Tensor, bias: Tensor | None) -> None:
        """Create the layer, with the weight in the order of the device's kernel.

        Args:
            pairs, scales_and_zeros: the fields of `packed_tensors`, on the device.
            bias: [out], on the device; None if there is none.
        """
        super().__init__()
        self.out_features, self.in_features = pairs.shape[0], pairs.shape[1] * 2
        self.group = self.in_features // len(scales_and_zeros)
        has_kernel = self.group in int4_product.GROUPS and int4_product.is_usable(pairs.device)
        self.is_in_row_order = has_kernel  # of the weight, for `int4_product`
        self.register_buffer("weight", pairs if has_kernel else _pack(pairs))
        self.register_buffer("scales_and_zeros", scales_and_zeros)
        self.register_buffer("bias", None if bias is None else bias.detach().to(torch.bfloat16))

    def forward(self, rows: Tensor) -> Tensor:
        """Return the layer's output [..., out] for `rows` [..., in], in the dtype of `rows`."""
        if self.is_in_row_order:
            return self.multiply(rows.reshape(-1, self.in_features)).view(*rows.shape[:-1], -1)
        flat = rows.reshape(-1, self.in_features).to(torch.bfloat16).contiguous()
        if flat.device.type == "cpu":  # torch has another function for the CPU
            kernel = torch._weight_int4pack_mm_for_cpu
        else:
            kernel = torch._weight_int4pack_mm
        result: Tensor = kernel(flat, self.weight, self.group, self.scales_and_zeros)
        if self.bias is not None:
            result = result + self.bias
        return result.view(*rows.shape[:-1], self.out_features).to(rows.dtype)

    def multiply(self, rows: Tensor, gate: Gate | None = None) -> Tensor:
        """Return the output [R, out] for rows [R, in], or [R, out / 2] behind a gate.

        The weight must be in the order of rows.
        """
        return int4_product.multiply(rows, self.weight, self.scales_and_zeros, self.bias, gate=gate)

    def multiply_in_parts(self, rows: Tensor) -> Tensor:
        """Return parts [P, R, out] whose sum is the output for rows [R, in].

        The weight must be in the order of rows.
        """
        return int4_product.multiply_in_parts(rows, self.weight, self.scales_and_zeros, self.bias)


@cache
def cpu_order(rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return where the CPU's kernel keeps the codes of a weight of this shape.

    The tensors have a value for each row: the byte of the code in column 0 (int64), the bytes from
    a column to the next (int64), and by how many bits the code is shifted in its byte (uint8).
    Return None if the kernel's order is of another kind. It is found by packing the numbers of
    codes, a digit of 4 bits at a time.
    """
    found: list[list[Tensor]] = [[], [], []]
    for first in range(0, rows, _CPU_BLOCK):
        block = _block_order(min(_CPU_BLOCK, rows - first), columns)
        if block is None:
            return None
        places, *others = block
        for own, part in zip(found, (places + first * columns // 2, *others), strict=True):
            own.append(part)
    places, steps, shifts = (torch.cat(own) for own in found)
    return places, steps, shifts


@cache
def _block_order(rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor] | None:
    numbers = torch.arange(rows * columns, dtype=torch.int32).view(rows, columns)
    halves = torch.zeros(2, rows * columns // 2, dtype=torch.int64)
    for digit in range(0, 24, 4):
        codes = numbers >> digit & (_LEVELS - 1)
        packed = _pack((codes[:, ::2] << 4 | codes[:, 1::2]).byte()).view(-1).long()
        halves += torch.stack([packed & (_LEVELS - 1), packed >> 4]) << digit
    place = torch.empty(rows * columns, dtype=torch.int64)
    shift = torch.empty(rows * columns, dtype=torch.uint8)
    for half in range(2):
        place[halves[half]] = torch.arange(rows * columns // 2)
        shift[halves[half]] = 4 * half
    place, shift = place.view(rows, columns), shift.view(rows, columns)
    steps = place[:, 1] - place[:, 0]
    expected = place[:, :1] + steps[:, None] * torch.arange(columns)
    if not torch.equal(place, expected) or not bool((shift == shift[:, :1]).all()):
        return None
    return place[:, 0], steps, shift[:, 0].contiguous()


def _inner_tiles(in_features: int) -> int | None:
    """Return how many tiles of 16 inputs one load of the CUDA kernel takes (`innerKTiles`).

    It is the largest number that divides `in_features` evenly; None if none does.
    """
    return next((n for n in _CUDA_INNER_TILES if in_features % (n * 16) == 0), None)


def _unpair(pairs: Tensor) -> Tensor:
    """Return codes [out, in] of pairs [out, in / 2]."""
    return torch.stack([pairs >> 4, pairs & (_LEVELS - 1)], dim=-1).flatten(1)


def _pack(pairs: Tensor) -> Tensor:
    """Return the codes [out, in / 2] in the kernel's own order, which depends on the device."""
    in_features = pairs.shape[1] * 2
    if pairs.device.type == "cpu":  # torch has another order and function for the CPU
        rows = max(_CPU_BLOCK, _CHUNK_WEIGHTS // in_features // _CPU_BLOCK * _CPU_BLOCK)
        convert = torch._convert_weight_to_int4pack_for_cpu
        return torch.cat([convert(_unpair(part).int(), 1) for part in torch.split(pairs, rows)])
    inner_tiles = _inner_tiles(in_features)
    assert inner_tiles is not None, pairs.shape
    # CUDA takes bytes and the CPU integers. In a byte, the first of two codes is the high half.
    return torch._convert_weight_to_int4pack(pairs, inner_tiles)
