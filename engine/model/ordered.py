"""Attention in the order of positions: the one of strict numerics, in float32.

A row sees exactly one token at each position up to its own: the stored prefix, then its path in the
tree. So what it computes can be put in an order that has nothing to do with where keys are stored
or what else is computed. Positions are taken in blocks of 64, block b from position 64 b on, in
ascending order. A block is computed like this:

1. A score is the sum of the products of query and key over the head dim, in ascending order, then
   multiplied by the scale, then capped.
2. The weights are exp(score - the greatest score up to this block). What was summed up before is
   multiplied by exp(the greatest score before - the greatest score now).
3. The weights, and the values times the weights, are summed up in ascending order of positions,
   and these sums are added to those of the earlier blocks.

Products are rounded before they are added. Keys that a row does not see have weight 0, which
changes nothing: so the keys of a tree can be computed together, each row with a mask. A sink is the
greatest score before the first block, with weight 1.

`engine.compiled.attention` is this as compiled code for the CPU; `_attend_tensors` has the same
bits. `engine.triton_kernels.attention` is it for CUDA devices, with another order within a block
and with chunks of blocks, both at fixed positions.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from engine.compiled import attention as compiled
from engine.compiled.attention import BLOCK, Columns
from engine.compiled.formulas import NOTHING, TensorOperations, cap, weight
from engine.model.segment import Reach, Segment
from engine.triton_kernels import attention as gpu
from engine.triton_kernels.attention import CHUNK, Paths


def is_ordered_on(device: torch.device) -> bool:
    """Return whether strict numerics use this attention on a device; else they use float64."""
    return device.type == "cpu" or gpu.can_attend(device)


def find_keys(segment: Segment, rows: range, reach: Reach) -> Columns | Paths:
    """Return the keys that some rows of a segment see in a layer of this reach."""
    if segment.slots.device.type == "cpu":
        return find_columns(segment, rows, reach)
    return find_paths(segment, rows, reach)


def find_paths(segment: Segment, rows: range, reach: Reach) -> Paths:
    """Return the keys that some rows of a segment see, for a CUDA device.

    The host does not wait for the device here, so that it does not know the rows' positions.
    """
    first, end = segment.num_scratch + rows.start, segment.num_scratch + rows.stop
    start, own, base = segment.start, None, 0
    least = start
    if segment.mask is None:
        # A chain: the number of a slot is its position.
        least += first
    else:
        base = start // CHUNK * CHUNK
        width = start + end - base  # no node is deeper than the number of the nodes before it
        own = segment.slots.new_zeros(len(rows), width + 1)
        own[:, : start - base] = segment.slots[base:start]
        # Slots that a row does not see are written to the column after the last.
        seen = segment.mask[rows.start : rows.stop, :end]
        places = torch.where(seen, segment.positions[:end] - base, width)
        own.scatter_(1, places, segment.slots[start : start + end].expand(len(rows), -1))
    return Paths(
        positions=segment.positions[first:end],
        least=least,
        end=start + end,
        shared=segment.slots[: start + end],
        own=own,
        base=base,
        reach=reach.size,
        is_chunk=reach.is_chunk,
    )


def find_columns(segment: Segment, rows: range, reach: Reach) -> Columns:
    """Return the keys that some rows of a segment see in a layer of this reach."""
    end = segment.num_scratch + rows.stop
    queries = segment.positions[segment.num_scratch + rows.start : end].numpy()
    low = np.zeros_like(queries)
    if reach.size is not None:
        low = queries // reach.size * reach.size if reach.is_chunk else queries - reach.size + 1
        low = np.maximum(low, 0)
    slots = segment.slots[: segment.start + end].numpy()
    if segment.mask is None:
        # A chain: the number of a slot is its position.
        others, visible = np.empty(0, np.int64), np.empty((len(rows), 0), np.bool_)
        return Columns(slots, low, queries, others, others, visible)
    positions = segment.positions[:end].numpy()
    order = np.argsort(positions, kind="stable")
    visible = segment.mask[rows.start : rows.stop, :end].numpy()[:, order]
    visible &= positions[order] >= low[:, None]
    return Columns(
        prefix=slots[: segment.start],
        low=low,
        high=np.full_like(queries, segment.start - 1),
        others=slots[segment.start :][order],
        positions=positions[order],
        visible=np.ascontiguousarray(visible),
    )


def attend_in_order(
    query: Tensor,
    memory: Sequence[Tensor],
    shapes: Sequence[torch.Size],
    columns: Columns | Paths,
    *,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Return the attention output [rows, H, value dim], float32.

    Args: those of `compiled.attention.attend`; `columns` is what `find_keys` returned.
    """
    if isinstance(columns, Paths):
        return gpu.attend(
            query, memory, shapes, columns, scaling=scaling, softcap=softcap, sinks=sinks
        )
    function = compiled.attend if compiled.can_attend(query) else _attend_tensors
    return function(query, memory, shapes, columns, scaling=scaling, softcap=softcap, sinks=sinks)


def _attend_tensors(
    query: Tensor,
    memory: Sequence[Tensor],
    shapes: Sequence[torch.Size],
    columns: Columns,
    *,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    rows, heads, _ = query.shape
    kv_heads, group = shapes[0][0], heads // shapes[0][0]
    slots = torch.from_numpy(np.concatenate([columns.prefix, columns.others]))
    keys, values = (
        part[slots, : shape.numel()].float().view(-1, *shape)
        for part, shape in zip(memory, shapes, strict=True)
    )
    number = np.arange(len(columns.prefix))
    positions = np.concatenate([number, columns.positions])
    in_prefix = (columns.low[:, None] <= number) & (number <= columns.high[:, None])
    visible = torch.from_numpy(np.concatenate([in_prefix, columns.visible], axis=1))
    lanes = query.float().view(rows, kv_heads, group, -1).permute(1, 2, 0, 3)
    top = torch.full((kv_heads, group, rows), NOTHING)
    total, sums = torch.zeros_like(top), torch.zeros(*top.shape, shapes[1][1])
    if sinks is not None:
        top[:] = sinks.float().view(kv_heads, group, 1)
        total += 1
    operations = TensorOperations()
    edges = np.searchsorted(positions, np.arange(0, positions.max() + 1 + BLOCK, BLOCK))
    for first, last in pairwise(edges):
        score = torch.zeros(*top.shape, last - first)
        for d in range(lanes.shape[-1]):
            score += lanes[..., d : d + 1] * keys[first:last, :, d].T[:, None, None]
        score = score.masked_fill_(~visible[:, first:last], NOTHING) * scaling
        if softcap is not None:
            score = cap(operations, score, softcap)
        peak = torch.maximum(top, score.amax(-1))
        weights, decay = (
            weight(operations, score, peak[..., None]),
            weight(operations, top, peak),
        )
        added, part = torch.zeros_like(total), torch.zeros_like(sums)
        for key in range(last - first):
            added += weights[..., key]
            part += weights[..., key, None] * values[first + key][:, None, None]
        total, sums, top = total * decay + added, sums * decay[..., None] + part, peak
    return (sums / total[..., None]).permute(2, 0, 1, 3).reshape(rows, heads, -1)
