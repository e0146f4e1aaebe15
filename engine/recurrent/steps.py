"""The recurrences: what rows do to a state, in float32 and in a fixed order of sums.

`engine.compiled.recurrence` is this as compiled code; the functions `..._tensors` have the same
bits. On CUDA, `engine.triton_kernels.recurrence` has another order of sums. What is computed of a
row depends only on the row and on the state before it, so prompts, trees and repeated rows give the
same bits, whatever is computed beside them.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.compiled import recurrence as compiled
from engine.compiled.formulas import TensorOperations, silu
from engine.compiled.recurrence import STATE, SUMS
from engine.compiled.vectors import LANES
from engine.recurrent.order import Taps, Walk
from engine.recurrent.shape import LayerShape, pad_lanes
from engine.triton_kernels import recurrence as gpu

_EPSILON = 1e-6  # in the norm of keys and queries, as in the library


class Inputs(NamedTuple):
    """What rows do to a state, in float32, padded to whole vectors with zeros."""

    query: Tensor  # [rows, key heads, depth]
    key: Tensor  # [rows, key heads, depth]
    value: Tensor  # [rows, heads, width]
    decay: Tensor  # [rows, heads, 1 or depth]
    rate: Tensor | None  # [rows, heads]; None without a correction

    def rows(self, first: int, last: int) -> "Inputs":
        """Return the inputs of the rows `first` to `last` - 1."""
        query, key, value, decay = (part[first:last] for part in self[:4])
        rate = None if self.rate is None else self.rate[first:last]
        return Inputs(query, key, value, decay, rate)

    def followed_by(self, others: "Inputs") -> "Inputs":
        """Return the inputs of these rows and of others of the same layer after them."""
        query, key, value, decay = map(torch.cat, zip(self[:4], others[:4], strict=True))
        if self.rate is None or others.rate is None:
            return Inputs(query, key, value, decay, None)
        return Inputs(query, key, value, decay, torch.cat([self.rate, others.rate]))


class Filter(NamedTuple):
    """The weights of a convolution, in float32, padded to whole vectors with zeros."""

    weight: Tensor  # [taps, channels]
    bias: Tensor  # [channels]

    @classmethod
    def of_layer(cls, weight: Tensor, bias: Tensor | None) -> "Filter":
        """Return a copy of a layer's weight [channels, taps] and bias [channels] as a filter."""
        own = weight.new_zeros(len(weight)) if bias is None else bias
        # The layer gives its weights back: with one tap `contiguous` would return their memory.
        taps = pad_lanes(weight.float().T).clone(memory_format=torch.contiguous_format)
        return cls(taps, pad_lanes(own.float()).clone())


def make_inputs(
    shape: LayerShape, query: Tensor, key: Tensor, value: Tensor, gates: Tensor
) -> Inputs:
    """Return what rows do to a state.

    Args:
        query, key, value: as `LayerShape.split` returns them.
        gates: decays and rates [rows, gates], float32.
    """
    rows = len(gates)
    query, key, value = (pad_lanes(part.float()) for part in (query, key, value))
    if shape.is_normalized:
        query, key = _normalize(torch.cat([query, key], dim=1)).chunk(2, dim=1)
    decay, rate = torch.split(gates, [shape.heads * shape.decays, shape.heads], dim=-1)
    decay = decay.reshape(rows, shape.heads, shape.decays)
    if shape.is_corrected:
        query = query * shape.depth**-0.5
        return Inputs(query, key, value, pad_lanes(decay) if shape.decays > 1 else decay, rate)
    return Inputs(query, key, value * rate[..., None], decay, None)


def convolve(source: Tensor, taps: Taps, filters: Filter, *, is_activated: bool) -> Tensor:
    """Return the convolutions [rows, C] of rows of `source` in its type, computed in float32.

    The bias and the products of the taps are added in ascending order.

    Args:
        source: [n, C].
        is_activated: whether silu follows.
    """
    assert taps.least >= 0 and taps.most < len(source), (taps.most, len(source))
    if gpu.can_walk(source.device):
        places = taps.on(source.device)
        return gpu.convolve(source, places, *filters, is_activated=is_activated)
    padded = pad_lanes(source.float()).contiguous()
    if compiled.can_walk(source.device):
        found = compiled.convolve(padded, taps.places, *filters, is_activated=is_activated)
    else:
        places = taps.on(source.device)
        found = convolve_tensors(padded, places, *filters, is_activated=is_activated)
    return found[:, : source.shape[1]].to(source.dtype)


def walk(states: Tensor, inputs: Inputs, order: Walk) -> Tensor:
    """Return the output [rows, H, width] of rows, each of which changes a state, float32.

    Args:
        states: of a layer, [n, ...], each as `LayerShape.state` says. Those that are targets of the
            order are overwritten.
        order: which rows change which states. Other rows have output zero.
    """
    if compiled.can_walk(states.device):
        own = order.rows, order.sources, order.targets
        return compiled.walk(states, inputs, own, order.num_kept)
    if gpu.can_walk(states.device):
        return gpu.walk(states, inputs, order.on(states.device))
    return walk_tensors(states, inputs, order)


def convolve_tensors(
    source: Tensor, places: Tensor, weight: Tensor, bias: Tensor, *, is_activated: bool
) -> Tensor:
    """Return what `engine.compiled.recurrence.convolve` does."""
    found = bias.expand(len(places), -1).clone()
    for tap, own in enumerate(weight):
        found += own * source[places[:, tap]]
    return silu(TensorOperations(), found) if is_activated else found


def walk_tensors(states: Tensor, inputs: Inputs, order: Walk) -> Tensor:
    """Return what `walk` does, by operations of torch."""
    heads, blocks = states.shape[1:3]
    group = heads // inputs.key.shape[1]
    query, key = (
        part.repeat_interleave(group, dim=1)[:, :, None, :, None]
        for part in (inputs.query, inputs.key)
    )
    value = inputs.value.view(*inputs.value.shape[:2], blocks, LANES)
    decay = inputs.decay[:, :, None, :, None]
    kept: dict[int, Tensor] = {}
    out = torch.zeros_like(value)
    places = (order.rows, order.sources, order.targets)
    for row, source, target in zip(*(own.tolist() for own in places), strict=True):
        state = (kept[source] if source >= 0 else states[STATE - source]) * decay[row]
        added = value[row]
        if inputs.rate is not None:
            added = (added - _sum_rows(state * key[row])) * inputs.rate[row][:, None, None]
        state = state + key[row] * added[:, :, None]
        out[row] = _sum_rows(state * query[row])
        if target >= 0:
            kept[target] = state
        else:
            states[STATE - target] = state
    return out.flatten(2)


def _sum_rows(products: Tensor) -> Tensor:
    """Return the sums [H, blocks, 16] of [H, blocks, depth, 16]: four sums, added in pairs."""
    parts = products.view(*products.shape[:2], -1, SUMS, LANES).unbind(2)
    sums = torch.zeros_like(parts[0])
    for part in parts:
        sums = sums + part
    first, second, third, fourth = sums.unbind(2)
    return (first + second) + (third + fourth)


def _normalize(x: Tensor) -> Tensor:
    """Return vectors [rows, heads, depth] divided by their norm, the same bits for any rows."""
    squares = x * x
    # Halves are added until one value is left: a fixed order with few operations.
    squares = F.pad(squares, (0, (1 << (x.shape[-1] - 1).bit_length()) - x.shape[-1]))
    while (half := squares.shape[-1] // 2) > 0:
        squares = squares[..., :half] + squares[..., half:]
    return x * torch.reciprocal(torch.sqrt(squares + _EPSILON))
