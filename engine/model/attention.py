"""Paged attention: the rows of many sequences, each against the KV pages of its own sequence.

`attend` is registered with transformers' `AttentionInterface`, so the layers of every model family
call it. The description of the rows (`Batch`) is passed in the `batch` keyword argument, or set on
the attention module where layers do not pass their arguments on, never in a global.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from engine.compiled.attention import Columns
from engine.kv.page_pool import PagePool
from engine.model.blockwise import attend_blockwise
from engine.model.fused import FoldedMasks, attend_fused
from engine.model.latent import Latent
from engine.model.ordered import attend_in_order, find_keys, is_ordered_on
from engine.model.padded import PaddedBatch, pad_segments
from engine.model.resumable import ResumableForward
from engine.model.segment import Reach, Segment
from engine.recurrent.branch import NodeRows, NodeVisit
from engine.recurrent.order import find_order
from engine.recurrent.states import SequenceState
from engine.recurrent.visit import Part, Visit
from engine.streaming.ring import OnWait
from engine.triton_kernels.attention import Paths

ATTENTION = "understudy"


@dataclass(frozen=True)
class LayerRule:
    """What `attend` has to know of a layer beyond the arguments that transformers passes.

    Args:
        layer: the layer whose keys and values are read.
        is_shared: whether they are those of an earlier layer, and nothing is written.
        chunk: the positions of a chunk, if rows see only their own chunk; else None.
        query_scale: returns the factors [T] of queries at positions [T]; None: there are none.
        latent: for latent attention: what turns queries for heads into queries for latents, and
            latents into values of heads; None for other attention.
    """

    layer: int
    is_shared: bool = False
    chunk: int | None = None
    query_scale: Callable[[Tensor], Tensor] | None = None
    latent: Latent | None = None

    def reach(self, sliding_window: int | None) -> Reach:
        """Return how far back rows see, given the window that transformers passes."""
        return Reach(sliding_window) if self.chunk is None else Reach(self.chunk, is_chunk=True)


@dataclass(frozen=True)
class Batch:
    """The rows of a pass, or of the tile that a layer is running.

    Args:
        pool: the KV cache's memory.
        segments: the rows of each sequence, which may reach beyond this batch's rows.
        rows: the numbers of this batch's rows in the pass.
        strict: whether results must not depend on the other rows (strict numerics).
        resumable: the state of a forward that may be interrupted; None if this one may not.
        on_wait: called while the forward waits for weights (see `LayerStream.unit`).
        layer: the number of the layer that runs, where layers have states.
        masks: made in the first layer that needs them; tiles share them with the whole batch.
    """

    pool: PagePool
    segments: tuple[Segment, ...]
    rows: range
    strict: bool
    resumable: ResumableForward | None = None
    on_wait: OnWait | None = None
    layer: int | None = None
    masks: FoldedMasks = field(default_factory=FoldedMasks, repr=False, compare=False)
    # What rows see, found in the first layer of each reach; tiles share it with the whole batch.
    _keys: dict[tuple[int, range, Reach], Columns | Paths] = field(
        default_factory=dict, repr=False, compare=False
    )
    _visits: dict[tuple[range, int], Visit | NodeVisit] = field(
        default_factory=dict, repr=False, compare=False
    )

    def select_tile(self, first: int, last: int) -> "Batch":
        """Return the batch of rows `first` to `last` - 1, with the segments that have such rows."""
        if range(first, last) == self.rows:
            return self
        segments = tuple(s for s in self.segments if s.first < last and first < s.first + s.count)
        return replace(self, segments=segments, rows=range(first, last))

    def has_live_rows(self) -> bool:
        """Return True unless the clients of all segments have disconnected."""
        return any(not s.cancelled.is_set() for s in self.segments)

    def row_positions(self) -> Tensor:
        """Return the position of each row in its sequence, [T] int64; 0 for rows of no segment.

        It is not kept, since CUDA graphs overwrite the positions of their segment.
        """
        device = self.segments[0].slots.device
        positions = torch.zeros(len(self.rows), dtype=torch.int64, device=device)
        for segment in self.segments:
            rows, tile = self.place(segment)
            own = segment.positions[segment.num_scratch :]
            positions[tile] = own[rows.start : rows.stop]
        return positions

    def place(self, segment: Segment) -> tuple[range, slice]:
        """Return the numbers of a segment's rows that are in this batch, and their place in it."""
        first = max(self.rows.start - segment.first, 0)
        rows = range(first, min(self.rows.stop - segment.first, segment.count))
        offset = segment.first - self.rows.start
        return rows, slice(offset + rows.start, offset + rows.stop)

    def keys(self, segment: Segment, rows: range, reach: Reach) -> Columns | Paths:
        """Return the keys that some rows of a segment see in a layer of this reach."""
        key = segment.first, rows, reach
        if key not in self._keys:
            self._keys[key] = find_keys(segment, rows, reach)
        return self._keys[key]

    def visit(self, taps: int) -> Visit | NodeVisit:
        """Return the rows in recurrent layers whose convolutions have this number of taps."""
        key = self.rows, taps
        if key not in self._visits:
            drafted = [s.state for s in self.segments if isinstance(s.state, NodeRows)]
            if drafted:
                assert len(drafted) == len(self.segments), "steps of a draft run in one tile"
                self._visits[key] = NodeVisit(drafted, taps)
            else:
                parts = [self._part(segment, taps) for segment in self.segments]
                self._visits[key] = Visit(parts, taps)
        return self._visits[key]

    def _part(self, segment: Segment, taps: int) -> Part:
        state, rows = segment.state, self.place(segment)[0]
        assert isinstance(state, SequenceState), "the cache has no states"
        if state.is_stashed(segment.count):
            order = find_order(segment.parents(), rows, taps)
            return Part(state, segment.start, rows, order)
        assert segment.mask is None, "which rows of a tree are accepted is not known yet"
        return Part(state, segment.start, rows, None)

    @cached_property
    def padded(self) -> PaddedBatch | None:
        """The rows padded for one attention product; None if each sequence has its own product.

        Strict numerics need one product per sequence: the rounding of a product may depend on its
        shape.
        """
        whole = sum(segment.count for segment in self.segments) == len(self.rows)
        return pad_segments(self.segments) if whole and not self.strict else None


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
    batch: Batch | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return the attention output [1, T, H, D] of a tile of T rows.

    Keys and values are written to the KV cache first, so that a row can attend to its ancestors in
    the same tile. A layer that shares those of an earlier layer writes none; of `key` and `value`,
    only the shapes are used then. Rows that only pad the tile belong to no segment; their output is
    zero.

    Args:
        query: [1, H, T, D].
        key, value: [1, Hkv, T, D]; what `Latent.join` returns in latent attention.
        sliding_window: a row sees keys at less than this distance in positions; None: all. Chunks
            and shared keys are in the module's `rule`.
        softcap, s_aux: the bound of scores capped by tanh (Gemma 2), and sinks [H] (gpt-oss).
        batch: the rows of the tile, and what they see; None: the one that `set_batch` has set.
    """
    batch = batch or cast(Batch, module.batch)
    assert attention_mask is None and dropout == 0.0, "the family has an attention mask of its own"
    rule = cast(LayerRule, module.rule)
    reach = rule.reach(sliding_window)
    if rule.query_scale is not None:
        query = (query * rule.query_scale(batch.row_positions())[:, None]).to(query.dtype)
    if rule.latent is not None:
        query = rule.latent.absorb(query)
    if softcap is None and s_aux is None and batch.padded is not None:
        group = query.shape[1] // key.shape[1]
        mask = batch.padded.mask(reach, group, query.dtype)
        out = _attend_padded(batch, batch.padded, rule, query, key, value, mask, scaling)
    else:
        out = _attend_by_segments(
            batch, rule, reach, query, key, value, scaling=scaling, softcap=softcap, sinks=s_aux
        )
    return out if rule.latent is None else rule.latent.expand(out), None


def _attend_by_segments(
    batch: Batch,
    rule: LayerRule,
    reach: Reach,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Return the attention output [1, T, H, D], computed for each sequence by itself.

    Args: those of `attend`.
    """
    out = query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])
    shapes = key.shape[1::2], value.shape[1::2]
    for segment in batch.segments:
        rows, tile = batch.place(segment)
        before = segment.start + segment.num_scratch
        own = segment.slots[before + rows.start : before + rows.stop]
        _write(batch.pool, rule, own, key[:, :, tile], value[:, :, tile])
        out[0, tile] = _attend_segment(
            batch,
            segment,
            rows,
            rule.layer,
            reach,
            query[0, :, tile],
            shapes,
            scaling=scaling,
            softcap=softcap,
            sinks=sinks,
        )
    return out


def _attend_segment(
    batch: Batch,
    segment: Segment,
    rows: range,
    layer: int,
    reach: Reach,
    query: Tensor,
    shapes: tuple[torch.Size, torch.Size],
    *,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Return the attention output [rows, H, D] of some rows of a segment, whose keys are written.

    Args:
        layer: whose keys and values are read.
        query: [H, rows, D].
        shapes: kv heads and dim of keys and of values.
        scaling, softcap, sinks: as in `attend`.
    """
    if batch.strict and is_ordered_on(query.device):
        memory, found = batch.pool.rows(layer), batch.keys(segment, rows, reach)
        return attend_in_order(
            query.transpose(0, 1),
            memory,
            shapes,
            found,
            scaling=scaling,
            softcap=softcap,
            sinks=sinks,
        )
    seen = segment.slots[: segment.start + segment.num_scratch + rows.stop]
    keys, values = batch.pool.read(layer, seen, *shapes)
    if not batch.strict and softcap is None and sinks is None:
        return _attend_in_parts(batch, segment, rows, reach, query, (keys, values), scaling)
    visible = segment.visible_keys(rows, reach)
    return attend_blockwise(
        query,
        keys,
        values,
        visible,
        scaling=scaling,
        softcap=softcap,
        sinks=sinks,
        strict=batch.strict,
    ).transpose(0, 1)


def _attend_in_parts(
    batch: Batch,
    segment: Segment,
    rows: range,
    reach: Reach,
    query: Tensor,
    stored: tuple[Tensor, Tensor],
    scaling: float,
) -> Tensor:
    """Return the attention output [rows, H, D] of fused kernels, for some rows at a time.

    `query` is [H, rows, D]; `stored` are the keys and values [n, Hkv, D] of all slots up to the
    last of these rows.
    """
    keys, values = (part.transpose(0, 1)[None] for part in stored)
    group = query.shape[0] // keys.shape[1]
    out = []
    for part in batch.masks.parts(segment, rows, reach, group, query.dtype):
        own = slice(part.rows.start - rows.start, part.rows.stop - rows.start)
        seen = keys.shape[2] - (rows.stop - part.rows.stop)
        attended = attend_fused(
            query[None, :, own], keys[:, :, :seen], values[:, :, :seen], part.mask, scaling
        )
        out.append(attended[0].transpose(0, 1))
    return torch.cat(out) if len(out) > 1 else out[0]


def _write(pool: PagePool, rule: LayerRule, slots: Tensor, key: Tensor, value: Tensor) -> None:
    """Write keys and values [1, Hkv, n, D] to n slots, unless the layer shares those of another."""
    if not rule.is_shared:
        pool.write(rule.layer, slots, key[0].transpose(0, 1), value[0].transpose(0, 1))


def _attend_padded(
    batch: Batch,
    padded: PaddedBatch,
    rule: LayerRule,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float,
) -> Tensor:
    """Return the attention output [1, T, H, D] of a whole batch, computed by one product.

    `query` is [1, H, T, D], `key` and `value` are [1, Hkv, T, D], and `mask` is what
    `PaddedBatch.mask` returns.
    """
    _write(batch.pool, rule, padded.own_slots, key, value)
    count, rows, slots = padded.visible.shape
    keys, values = (
        stored.reshape(count, slots, *stored.shape[1:]).transpose(1, 2)
        for stored in batch.pool.read(rule.layer, padded.slots, key.shape[1::2], value.shape[1::2])
    )
    queries = query[0].transpose(0, 1)[padded.rows].view(count, rows, *query.shape[1::2])
    attended = attend_fused(queries.transpose(1, 2), keys, values, mask, scaling)
    return attended.transpose(1, 2).flatten(0, 1)[padded.places][None]
