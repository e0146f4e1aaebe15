"""Weights coded beside their int4 copies: whether a GPU decodes them faster than they travel.

The int4 code of a weight, which the draft keeps on the device, says in which interval the weight
lies. So only the place in this interval has to travel, in as many bits as the interval has bfloat16
values: about half of 16. The engine does not do this; the figures decide whether it should.
"""

import os
from functools import partial

import torch
from torch import Tensor

from benchmarks.first_gpu_run.lab import CannotRun, Lab, gbps
from benchmarks.first_gpu_run.record import Results
from engine.triton_kernels.compiler import is_installed

SHAPE = (18_944, 3584)
GROUP = 64  # weights that share a scale
GROUPS = 16  # that share a stored start
WARPS = (1, 2, 4, 8)
REACH, END_REACH = 17 / 32, 1.0  # of an interval to both sides of its centre, in steps


def run(lab: Lab, out: Results) -> None:
    """Encode the weights of a layer, and measure their decoding by Triton."""
    weight = lab.random(*lab.choose(SHAPE, (32, 64)), scale=0.02).flatten()
    coded = CodedWeights(weight)
    out["bits_a_weight"] = round(coded.num_bits / weight.numel(), 3)
    if not is_installed():
        raise CannotRun("Triton is not installed; CUDA builds of torch contain it")
    if lab.is_dry and os.environ.get("TRITON_INTERPRET") != "1":
        lab.require_device("Triton needs a CUDA device, or TRITON_INTERPRET=1")
    from benchmarks.first_gpu_run.coded_weights_kernel import decode

    link = lab.link_bandwidth()
    found = torch.empty_like(weight, dtype=torch.int16)
    for warps in lab.choose(WARPS, (4,)):
        decode(coded.fields, found.zero_(), GROUPS, warps)
        wrong = int((found != weight.view(torch.int16)).sum())
        seconds = lab.device_seconds([partial(decode, coded.fields, found, GROUPS, warps)])
        travels = coded.num_bits / 8 / link
        out[f"{warps} warps"] = {
            "gbps": gbps(weight.nbytes, seconds),
            "of_travelling": round(seconds / travels, 3),
            "wrong_weights": wrong,
        }


class CodedWeights:
    """bfloat16 weights as int4 codes, and places in the intervals of these codes.

    The edges of an interval are multiples of scale / 32, exact in float32, plus one addition. So an
    encoder and a decoder agree that fuse the multiplication with the addition, or do not.

    Attributes:
        fields: pairs of codes [weights / 2] uint8, scales and zeros [groups] bfloat16, the places
            as a stream of bits in int32 words, and the first bit of each block of groups, int32.
        num_bits: the bits that travel.
    """

    def __init__(self, weights: Tensor) -> None:
        grouped = weights.float().view(-1, GROUP)
        low, high = grouped.aminmax(dim=1)
        scale = ((high - low) / 15).clamp_(min=1e-8).bfloat16()
        zero = (low + 8 * scale.float()).bfloat16()
        step, offset = scale.float()[:, None], zero.float()[:, None]
        code = ((grouped - offset) / step).round_().add_(8).clamp_(0, 15).to(torch.int32)
        centre = code.float() - 8
        below = torch.where(code == 0, END_REACH, REACH)
        above = torch.where(code == 15, END_REACH, REACH)
        first = _order((centre - below) * step + offset)
        span = _order((centre + above) * step + offset) - first
        place = _order(grouped) - first
        if bool(((place < 0) | (place > span)).any()):
            raise ValueError("a weight lies outside the interval of its code")
        width = ((span.float().view(torch.int32) >> 23) - 126).clamp_(min=0).flatten()
        starts = width.long().cumsum(0) - width
        self.num_bits = int(starts[-1] + width[-1])
        pairs = code.flatten().view(-1, 2)
        packed = ((pairs[:, 0] << 4) | pairs[:, 1]).to(torch.uint8)
        blocks = starts[:: GROUP * GROUPS].int()
        words = _pack_bits(place.flatten().long(), starts, self.num_bits)
        self.fields: tuple[Tensor, ...] = (packed, scale, zero, words, blocks)
        self.num_bits += 32 * len(blocks)


def _pack_bits(values: Tensor, starts: Tensor, num_bits: int) -> Tensor:
    """Return values as a stream of bits, each from its start on, in int32 words and one more."""
    words = torch.zeros(num_bits // 32 + 3, dtype=torch.int64, device=values.device)
    shifted = values << (starts & 31)
    words.index_add_(0, starts >> 5, shifted & 0xFFFFFFFF)
    words.index_add_(0, (starts >> 5) + 1, shifted >> 32)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def _order(values: Tensor) -> Tensor:
    """Return the upper 16 bits of float32 as integers that are ordered as the values are."""
    bits = values.contiguous().view(torch.int32)
    ordered = torch.where(bits < 0, ~bits, bits ^ -(1 << 31))
    return (ordered >> 16) & 0xFFFF
