"""Attention over the rows of many sequences, each against its own KV pages.

Registered with transformers' `AttentionInterface`, so every family's own layer calls it. What the
rows are travels in the `batch` keyword argument, never through a global.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.kv.page_pool import PagePool
from engine.model.padded import Padded, pad
from engine.model.resumable import ResumableForward
from engine.model.segment import Segment
from engine.streaming.ring import Idle

ATTENTION = "understudy"
SCORES = 1 << 22  # scores computed at a time: bounds memory for long contexts


@dataclass(frozen=True)
class Batch:
    """The rows of a pass; `rows` narrows it to the tile at hand."""

    pool: PagePool
    segments: tuple[Segment, ...]
    rows: range
    strict: bool
    resumable: ResumableForward | None = None  # of a forward that may be left
    idle: Idle | None = None  # called while the forward waits for weights: see `LayerStream.unit`

    def tile(self, first: int, last: int) -> "Batch":
        if range(first, last) == self.rows:
            return self
        live = tuple(s for s in self.segments if s.first < last and first < s.first + s.count)
        return replace(self, segments=live, rows=range(first, last))

    def alive(self) -> bool:
        return any(not s.cancelled.is_set() for s in self.segments)

    @cached_property
    def padded(self) -> Padded | None:
        """All rows for one attention product; None where each sequence has one of its own.

        Under strict numerics each has: a product's rounding may depend on its shape.
        """
        whole = sum(segment.count for segment in self.segments) == len(self.rows)
        return pad(self.segments) if whole and not self.strict else None

    def parts(self) -> Iterator[tuple[Segment, range]]:
        """The segments of this tile, each with its own rows that lie in it."""
        for segment in self.segments:
            first = max(self.rows.start - segment.first, 0)
            last = min(self.rows.stop - segment.first, segment.count)
            yield segment, range(first, last)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    *,
    batch: Batch,
    **_: Any,
) -> tuple[Tensor, None]:
    """query [1, H, T, D], key and value [1, Hkv, T, D] of a tile of T rows -> [1, T, H, D].

    Keys and values go into the cache first, so that a row sees its ancestors of the same tile.
    Rows that pad the tile belong to no segment and come out as zeros.
    """
    assert attention_mask is None and dropout == 0.0
    layer = int(module.layer_idx)  # type: ignore[arg-type]  # nn.Module types attributes as Tensor
    if softcap is None and s_aux is None and batch.padded is not None:
        mask = batch.padded.mask(sliding_window)
        return _attend_padded(batch, batch.padded, layer, query, key, value, mask, scaling), None
    out = query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])
    for segment, rows in batch.parts():
        before = segment.start + segment.scratch
        tile = slice(
            segment.first + rows.start - batch.rows.start,
            segment.first + rows.stop - batch.rows.start,
        )
        batch.pool.write(
            layer,
            segment.slots[before + rows.start : before + rows.stop],
            key[0, :, tile].transpose(0, 1),
            value[0, :, tile].transpose(0, 1),
        )
        keys, values = batch.pool.read(layer, segment.slots[: before + rows.stop])
        out[0, tile] = _attend_rows(
            query[0, :, tile],
            keys,
            values,
            _visible(segment, rows, sliding_window),
            scaling=scaling,
            softcap=softcap,
            sinks=s_aux,
            strict=batch.strict,
        )
    return out, None


def _attend_padded(
    batch: Batch,
    padded: Padded,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float,
) -> Tensor:
    """query [1, H, T, D], key and value [1, Hkv, T, D] of a whole batch -> [1, T, H, D]."""
    batch.pool.write(layer, padded.own_slots, key[0].transpose(0, 1), value[0].transpose(0, 1))
    count, _, rows, slots = mask.shape
    keys, values = (
        stored.view(count, slots, *stored.shape[1:]).transpose(1, 2)
        for stored in batch.pool.read(layer, padded.slots)
    )
    queries = query[0].transpose(0, 1)[padded.rows].view(count, rows, *query.shape[1::2])
    attended = F.scaled_dot_product_attention(
        queries.transpose(1, 2),
        keys,
        values,
        attn_mask=mask,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended.transpose(1, 2).flatten(0, 1)[padded.places][None]


def _visible(segment: Segment, rows: range, window: int | None) -> Tensor | None:
    """Which keys each row sees, [rows, keys] bool; None: all of them."""
    device = segment.slots.device
    end = segment.scratch + rows.stop
    if segment.mask is not None:
        own = segment.mask[rows.start : rows.stop, :end]
    elif len(rows) == 1:
        own = None
    else:
        row_numbers = torch.arange(rows.start, rows.stop, device=device) + segment.scratch
        own = torch.arange(end, device=device) <= row_numbers[:, None]
    if window is None:
        if own is None:
            return None
        return F.pad(own, (segment.start, 0), value=True)
    prefix = torch.arange(segment.start, device=device)
    positions = torch.cat([prefix, segment.positions[:end]])
    queries = segment.positions[segment.scratch + rows.start : end]
    near = queries[:, None] - positions < window
    return near if own is None else near & F.pad(own, (segment.start, 0), value=True)


def _attend_rows(
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
    """query [H, rows, D], keys and values [n, Hkv, D] -> [rows, H, D].

    Strict numerics compute in float64: sums then agree, whatever their order, to far below the
    model's own precision, so the rounded result does not depend on batch, tree or cache.
    """
    heads, rows, _ = query.shape
    kv_heads = keys.shape[1]
    if not strict and softcap is None and sinks is None:
        attended = F.scaled_dot_product_attention(
            query[None],
            keys.transpose(0, 1)[None],
            values.transpose(0, 1)[None],
            attn_mask=visible,
            scale=scaling,
            enable_gqa=heads != kv_heads,
        )
        return attended[0].transpose(0, 1)
    precision = torch.float64 if strict else torch.float32
    group = heads // kv_heads
    at_once = max(SCORES // (group * rows * len(keys)), 1)
    out = query.new_empty(rows, heads, values.shape[2])
    for first in range(0, kv_heads, at_once):
        kv = slice(first, first + at_once)
        own = slice(first * group, (first + at_once) * group)
        attended = _attend_heads(
            query[own].to(precision),
            keys[:, kv].to(precision),
            values[:, kv].to(precision),
            visible,
            scaling,
            softcap,
            None if sinks is None else sinks[own].to(precision),
        )
        out[:, own] = attended.transpose(0, 1).to(query.dtype)
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
    """query [H, rows, D], keys and values [n, Hkv, D] -> [H, rows, D], all of one precision."""
    heads, rows, _ = query.shape
    kv_heads = keys.shape[1]
    # Heads that share keys sit side by side: [Hkv, H / Hkv * rows, D].
    scores = query.reshape(kv_heads, heads // kv_heads * rows, -1) @ keys.permute(1, 2, 0)
    scores = scores.view(heads, rows, -1) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    if sinks is not None:
        column = sinks[:, None, None].expand(heads, rows, 1)
        weights = torch.cat([scores, column], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = scores.softmax(dim=-1)
    weights = weights.reshape(kv_heads, heads // kv_heads * rows, -1)
    return (weights @ values.transpose(0, 1)).view(heads, rows, -1)
