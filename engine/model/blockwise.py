"""Attention by plain products, for a block of keys at a time.

It serves what fused kernels cannot: scores with caps and sinks under fast numerics, and strict
numerics on devices without attention in the order of positions.
"""

import torch
from torch import Tensor

MAX_SCORES = 1 << 22  # attention scores computed at a time: limits memory for long contexts
# Keys whose scores are computed at a time, so that they stay in a CPU's cache: with 22,500 keys and
# four heads, a tile takes 55 ms instead of 100.
KEY_BLOCK = 2048


def attend_blockwise(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    visible: Tensor | None,
    *,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
    strict: bool,
) -> Tensor:
    """Return the attention output [H, rows, D] of the rows of one sequence.

    Under strict numerics it is computed in float64, on devices without attention in the order of
    positions. Then sums in different orders differ by far less than the precision of the model, so
    the rounded result does not depend on the batch, the tree or the cache. `query` is
    [H, rows, D], and `keys` and `values` are [n, Hkv, D].
    """
    heads, rows, _ = query.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    precision = torch.float64 if strict else torch.float32
    at_once = max(MAX_SCORES // (group * rows * len(keys)), 1)
    out = query.new_empty(heads, rows, values.shape[2])
    for first in range(0, kv_heads, at_once):
        kv = slice(first, first + at_once)
        own = slice(first * group, (first + at_once) * group)
        out[own] = _attend_heads(
            query[own].to(precision),
            keys[:, kv],
            values[:, kv],
            visible,
            scaling,
            softcap,
            None if sinks is None else sinks[own],
        )
    return out


def _attend_heads(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    visible: Tensor | None,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Return the attention output [H, rows, D], computed in the type of `query`.

    `query` is [H, rows, D], `keys` and `values` are [n, Hkv, D], and `sinks` is [H].
    """
    heads, rows, _ = query.shape
    # Query heads that share keys are in one product: [Hkv, H / Hkv * rows, D].
    grouped = keys.shape[1], heads // keys.shape[1] * rows, -1
    query = (query * scaling).reshape(grouped)
    # The softmax of all keys, from blocks of them: the greatest score so far, and what the sum of
    # the weights and the output are if it stays the greatest (arXiv 1805.02867).
    top = query.new_full((heads, rows, 1), torch.finfo(query.dtype).min)
    total = torch.zeros_like(top)
    if sinks is not None:
        top = sinks[:, None, None].to(query.dtype).expand(heads, rows, 1)
        total = torch.ones_like(top)
    attended = query.new_zeros(heads, rows, values.shape[2])
    for first in range(0, len(keys), KEY_BLOCK):
        block = slice(first, first + KEY_BLOCK)
        scores = query @ keys[block].to(query.dtype).permute(1, 2, 0)
        scores = scores.view(heads, rows, -1)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        if visible is not None:
            scores = scores.masked_fill(~visible[:, block], -torch.inf)
        greatest = torch.maximum(top, scores.amax(dim=-1, keepdim=True))
        weights = scores.sub_(greatest).exp_()
        share = (top - greatest).exp_()
        total = total * share + weights.sum(dim=-1, keepdim=True)
        part = weights.view(grouped) @ values[block].to(query.dtype).transpose(0, 1)
        attended = attended * share + part.view(heads, rows, -1)
        top = greatest
    return attended / total
