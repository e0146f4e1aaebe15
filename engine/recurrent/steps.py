"""The recurrences: what rows do to a state, in float32 and in a fixed order of sums.

`engine.compiled.recurrence` is this as compiled code; the functions `..._tensors` have the same
bits. What is computed of a row depends only on the row and on the state before it, so prompts,
trees and repeated rows give the same bits, whatever is computed beside them.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.compiled import recurrence as compiled
from engine.compiled.formulas import TensorOperations, silu
from engine.compiled.recurrence import ROOT, SUMS
from engine.compiled.vectors import LANES
from engine.recurrent.shape import LayerShape, pad_lanes

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


class Filter(NamedTuple):
    """The weights of a convolution, in float32, padded to whole vectors with zeros."""

    weight: Tensor  # [taps, channels]
    bias: Tensor  # [channels]

    @classmethod
    def of_layer(cls, weight: Tensor, bias: Tensor | None) -> "Filter":
        """Return the filter of a layer's weight [channels, taps] and bias [channels]."""
        own = weight.new_zeros(len(weight)) if bias is None else bias
        return cls(pad_lanes(weight.float().T).contiguous(), pad_lanes(own.float()).clone())


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


def convolve(source: Tensor, places: Any, filters: Filter, *, is_activated: bool) -> Tensor:
    """Return the convolutions [rows, C] of rows of `source` in its type, computed in float32.

    The bias and the products of the taps are added in ascending order.

    Args:
        source: [n, C].
        places: the numbers of the rows that each tap sees, [rows, taps] int64, a numpy array.
        is_activated: whether silu follows.
    """
    padded = pad_lanes(source.float()).contiguous()
    function = compiled.convolve if compiled.can_walk(source.device) else convolve_tensors
    found = function(padded, places, *filters, is_activated=is_activated)
    return found[:, : source.shape[1]].to(source.dtype)


def walk(root: Tensor, inputs: Inputs, sources: Any, targets: Any) -> Tensor:
    """Return the output [rows, H, width] of rows, each of which changes a state, float32.

    Args:
        root: the state that the walk begins with, as `LayerShape.state` says; it is overwritten by
            rows whose target is `ROOT`.
        sources, targets: for each row the number of the state that it changes, and of the state
            that is the result: `ROOT`, or one that the walk keeps. They are numpy arrays, int64.
    """
    function = compiled.walk if compiled.can_walk(root.device) else walk_tensors
    return function(root, inputs, sources, targets)


def convolve_tensors(
    source: Tensor, places: Any, weight: Tensor, bias: Tensor, *, is_activated: bool
) -> Tensor:
    """Return what `engine.compiled.recurrence.convolve` does."""
    index = torch.from_numpy(places).to(source.device)
    found = bias.expand(len(index), -1).clone()
    for tap, own in enumerate(weight):
        found += own * source[index[:, tap]]
    return silu(TensorOperations(), found) if is_activated else found


def walk_tensors(root: Tensor, inputs: Inputs, sources: Any, targets: Any) -> Tensor:
    """Return what `engine.compiled.recurrence.walk` does."""
    heads, blocks = root.shape[:2]
    group = heads // inputs.key.shape[1]
    query, key = (
        part.repeat_interleave(group, dim=1)[:, :, None, :, None]
        for part in (inputs.query, inputs.key)
    )
    value = inputs.value.view(*inputs.value.shape[:2], blocks, LANES)
    decay = inputs.decay[:, :, None, :, None]
    states: dict[int, Tensor] = {ROOT: root}
    out = []
    for row, (source, target) in enumerate(zip(sources.tolist(), targets.tolist(), strict=True)):
        state = states[source] * decay[row]
        added = value[row]
        if inputs.rate is not None:
            added = (added - _sum_rows(state * key[row])) * inputs.rate[row][:, None, None]
        state = state + key[row] * added[:, :, None]
        out.append(_sum_rows(state * query[row]))
        if target == ROOT:
            root.copy_(state)
        else:
            states[target] = state
    return torch.stack(out).flatten(2) if out else value.flatten(2)


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
