"""Mixture-of-experts layers whose results depend neither on the batch nor on the weight slices.

The grouped product of transformers rounds differently with the number of rows that an expert gets
(in a measurement, 2 of 14 rows were bit-equal). Here each product of an expert has exactly `TILE`
rows, padded if necessary, and the results of a row's experts are added in ascending order.

The experts of a very large layer are streamed in slices, after the rest of the layer.
`DeferredExperts` stores the rows that they have to process.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.model.elementwise import apply_in_blocks
from engine.spec import TILE
from engine.triton_kernels.expert_product import ExpertBlocks, group_places
from engine.weights.formats.linear import ExpertLayers

EXPERTS = "understudy"


@dataclass(frozen=True)
class RoutedRows:
    """Rows and the experts that each is routed to, k per row; -1 means no expert."""

    hidden: Tensor  # [rows, D]
    index: Tensor  # [rows, k]
    weights: Tensor  # [rows, k]


def apply_experts(
    experts: Any,
    hidden: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
    tile: int | None = None,
) -> Tensor:
    """Return the weighted sum of each row's experts, [rows, D].

    Args:
        experts: the fused module of transformers, with `gate_up_proj` [E, 2I, D] and `down_proj`
            [E, D, I], or both transposed, with or without biases. Its own `_apply_gate` is used.
            Without a gate, it has `up_proj` [E, I, D] instead, and `act_fn`. In place of a fused
            weight it may have a layer for each expert.
        hidden: [rows, D].
        top_k_index, top_k_weights: the experts of each row and their weights, [rows, k].
        tile: that of `add_experts`.
    """
    out = torch.zeros_like(hidden)
    routed = RoutedRows(hidden, top_k_index, top_k_weights)
    add_experts(experts, range(experts.num_experts), routed, out, tile)
    return out


def apply_copied_experts(
    experts: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Return the weighted sum of each row's experts, [rows, D], which have layers of their own.

    Where a kernel multiplies with all experts at once, the host does not learn which were chosen.
    Arguments: see `apply_experts`.
    """
    if not _is_grouped(experts):
        return apply_experts(experts, hidden, top_k_index, top_k_weights, tile=TILE)
    blocks = group_places(top_k_index, experts.num_experts)
    if experts.has_gate:
        inner = apply_gate(experts, _multiply_blocks(experts, "gate_up_proj", hidden, blocks))
    else:
        inner = experts.act_fn(_multiply_blocks(experts, "up_proj", hidden, blocks))
    results = _multiply_blocks(experts, "down_proj", inner, blocks)
    weighted = results.view(*top_k_index.shape, -1) * top_k_weights[..., None]
    return weighted.sum(1).to(hidden.dtype)


def add_experts(
    experts: Any, expert_ids: range, routed: RoutedRows, out: Tensor, tile: int | None = None
) -> None:
    """Add the weighted results of some experts to `out`, in ascending order of the experts.

    Args:
        experts: the fused module; its tensors begin with expert `expert_ids.start`.
        expert_ids: the experts whose tensors are loaded.
        routed: the rows of the pass and their experts.
        out: the sums so far, [rows, D].
        tile: the most rows of a product; None: each product has exactly `TILE` rows.
    """
    for expert in sorted(set(routed.index.flatten().tolist()).intersection(expert_ids)):
        rows, place = torch.where(routed.index == expert)
        step = tile or TILE
        for first in range(0, len(rows), step):
            part = rows[first : first + step]
            x = routed.hidden[part]
            if tile is None:
                x = F.pad(x, (0, 0, 0, TILE - len(x)))
            result = _apply_expert(experts, expert - expert_ids.start, x)[: len(part)]
            weight = routed.weights[part, place[first : first + step], None]
            out[part] += (result * weight).to(out.dtype)


def apply_moe(moe: Any, hidden: Tensor, *, is_padded: bool = True) -> tuple[Tensor, Tensor]:
    """Return what a mixture of experts of Llama 4 returns: rows [R, D] and router logits [R, E].

    Its own code runs each row through each expert, with an input of zeros where the expert is not
    chosen. The results of these are zeros, so they are left out.

    Args:
        moe: the module, whose experts get rows that are multiplied with their scores.
        hidden: [..., D]; R is the number of its rows.
        is_padded: whether each product of an expert has exactly `TILE` rows.
    """
    hidden = hidden.reshape(-1, moe.hidden_dim)
    scores, logits = moe.router(hidden)
    out = moe.shared_expert(hidden)
    if _is_grouped(moe.experts):
        index = logits.topk(moe.top_k, dim=-1).indices
        rows = (hidden[:, None] * scores.gather(-1, index)[..., None]).flatten(0, 1)
        blocks = group_places(index, moe.num_experts)
        gate, up = _multiply_blocks(moe.experts, "gate_up_proj", rows, blocks).chunk(2, dim=-1)
        inner = up * moe.experts.act_fn(gate)
        results = _multiply_blocks(moe.experts, "down_proj", inner, blocks)
        return out + results.view(*index.shape, -1).sum(1), logits
    chosen: dict[int, list[int]] = defaultdict(list)  # the rows of each expert
    for row, expert in scores.nonzero().tolist():
        chosen[expert].append(row)
    for expert in sorted(chosen):
        for part in torch.split(torch.tensor(chosen[expert], device=out.device), TILE):
            x = hidden[part] * scores[part, expert, None]
            x = F.pad(x, (0, 0, 0, TILE - len(x) if is_padded else 0))
            gate, up = _multiply(moe.experts, "gate_up_proj", expert, x).chunk(2, dim=-1)
            inner = up * moe.experts.act_fn(gate)
            result = _multiply(moe.experts, "down_proj", expert, inner)
            out[part] += result[: len(part)]
    return out, logits


class DeferredExperts(nn.Module):
    """A replacement for a layer's experts that returns zeros and stores the rows in `routed`.

    `add_experts` computes the results later, when the weights of the experts have been loaded.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.routed: RoutedRows | None = None
        self._rows = 0
        self._first = 0  # the pass's row that the next call begins with

    @contextmanager
    def defer_rows(self, rows: int) -> Iterator[None]:
        """Store the rows of a pass with `rows` rows until the end of the block.

        The layer and then the slices of its experts run within the block.
        """
        self._rows = rows
        try:
            yield
        finally:
            self.routed = None

    def begin_tile(self, first: int) -> None:
        """Set the number, within the pass, of the first row of the next `forward` call."""
        self._first = first

    def forward(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Store the rows of a tile and return zeros [rows, D]. Arguments: see `apply_experts`."""
        if self.routed is None:
            self.routed = RoutedRows(
                hidden.new_zeros(self._rows, *hidden.shape[1:]),
                top_k_index.new_full((self._rows, *top_k_index.shape[1:]), -1),
                top_k_weights.new_zeros(self._rows, *top_k_weights.shape[1:]),
            )
        tile = slice(self._first, self._first + len(hidden))
        self.routed.hidden[tile] = hidden
        self.routed.index[tile] = top_k_index
        self.routed.weights[tile] = top_k_weights
        return torch.zeros_like(hidden)


def defer_experts(layer: nn.Module, path: str) -> DeferredExperts:
    """Replace the experts at `path` in a layer by `DeferredExperts`, and return these."""
    experts = DeferredExperts(layer.get_submodule(path))
    layer.set_submodule(path, experts)
    return experts


def _apply_expert(experts: Any, expert: int, x: Tensor) -> Tensor:
    if experts.has_gate:
        inner = apply_gate(experts, _multiply(experts, "gate_up_proj", expert, x))
    else:
        inner = experts.act_fn(_multiply(experts, "up_proj", expert, x))
    return _multiply(experts, "down_proj", expert, inner)


def apply_gate(experts: Any, gate_up: Tensor) -> Tensor:
    """Return the gated activation [rows, I] of gate and up projections [rows, 2I].

    It is computed by the module's own `_apply_gate`.
    """
    if experts.is_concatenated:  # its activation module runs in whole blocks
        return experts._apply_gate(gate_up)  # type: ignore[no-any-return]  # experts is Any
    return apply_in_blocks(experts._apply_gate, gate_up, inputs=2)


def _is_grouped(experts: Any) -> bool:
    """Return whether one kernel multiplies with a fused weight of all experts."""
    names = [name for name in ("gate_up_proj", "up_proj", "down_proj") if hasattr(experts, name)]
    found = [getattr(experts, name) for name in names]
    return all(isinstance(own, ExpertLayers) and own.is_grouped for own in found)


def _multiply_blocks(experts: Any, name: str, rows: Tensor, blocks: ExpertBlocks) -> Tensor:
    bias = getattr(experts, f"{name}_bias") if experts.has_bias else None
    layers: ExpertLayers = getattr(experts, name)
    return layers.multiply(rows, bias, blocks)


def _multiply(experts: Any, name: str, expert: int, x: Tensor) -> Tensor:
    weight = getattr(experts, name)[expert]
    y: Tensor
    if isinstance(weight, nn.Module):
        y = weight(x)
    else:
        y = x @ weight if experts.is_transposed else F.linear(x, weight)
    if experts.has_bias:
        y = y + getattr(experts, f"{name}_bias")[expert]
    return y
