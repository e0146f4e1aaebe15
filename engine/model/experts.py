"""Mixture-of-experts products that do not depend on the batch, nor on when the experts are there.

The library's grouped product rounds differently with the number of rows an expert gets (probed:
2 of 14 rows bit-equal). Here every expert's product has exactly `TILE` rows, the last ones padded,
and a row adds its experts in ascending order.

The experts of a large layer arrive in slices, behind the layer itself: `DeferredExperts` keeps the
rows they will be needed for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.model.elementwise import apply_in_blocks
from engine.spec import TILE

EXPERTS = "understudy"


@dataclass(frozen=True)
class Routed:
    """Rows and the experts they go to; -1 is no expert."""

    hidden: Tensor  # [rows, D]
    index: Tensor  # [rows, k]
    weights: Tensor  # [rows, k]


def apply_experts(
    experts: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """hidden [rows, D], index and weights [rows, k] -> [rows, D].

    `experts` is the library's fused module: `gate_up_proj` [E, 2I, D] and `down_proj` [E, D, I],
    or both transposed, with or without biases; its own `_apply_gate` is kept.
    """
    out = torch.zeros_like(hidden)
    routed = Routed(hidden, top_k_index, top_k_weights)
    add_experts(experts, range(experts.num_experts), routed, out)
    return out


def add_experts(
    experts: Any, held: range, routed: Routed, out: Tensor, tile: int | None = None
) -> None:
    """Add to `out` [rows, D] what the experts `held` make of their rows, in ascending order.

    The tensors of `experts` begin with expert `held.start`. Without a `tile`, products have exactly
    `TILE` rows; with one, at most `tile`.
    """
    for expert in sorted(set(routed.index.flatten().tolist()).intersection(held)):
        rows, place = torch.where(routed.index == expert)
        step = tile or TILE
        for first in range(0, len(rows), step):
            part = rows[first : first + step]
            x = routed.hidden[part]
            if tile is None:
                x = F.pad(x, (0, 0, 0, TILE - len(x)))
            result = _apply_expert(experts, expert - held.start, x)[: len(part)]
            weight = routed.weights[part, place[first : first + step], None]
            out[part] += (result * weight).to(out.dtype)


class DeferredExperts(nn.Module):
    """Stands where a layer's experts are and gives zeros: their rows wait for them in `routed`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.routed: Routed | None = None
        self._rows = 0
        self._first = 0  # the row of the pass that the next call's rows begin with

    @contextmanager
    def deferring(self, rows: int) -> Iterator[None]:
        """While the layer runs over a pass of so many rows and then over its slices."""
        self._rows = rows
        try:
            yield
        finally:
            self.routed = None

    def begin_tile(self, first: int) -> None:
        """The next call's rows begin with row `first` of the pass."""
        self._first = first

    def forward(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Keep the rows of a tile, as `apply_experts` gets them; zeros like `hidden`."""
        if self.routed is None:
            self.routed = Routed(
                hidden.new_zeros(self._rows, *hidden.shape[1:]),
                top_k_index.new_full((self._rows, *top_k_index.shape[1:]), -1),
                top_k_weights.new_zeros(self._rows, *top_k_weights.shape[1:]),
            )
        tile = slice(self._first, self._first + len(hidden))
        self.routed.hidden[tile] = hidden
        self.routed.index[tile] = top_k_index
        self.routed.weights[tile] = top_k_weights
        return torch.zeros_like(hidden)


def _apply_expert(experts: Any, expert: int, x: Tensor) -> Tensor:
    gate_up = _product(experts, "gate_up_proj", expert, x)
    return _product(experts, "down_proj", expert, apply_gate(experts, gate_up))


def apply_gate(experts: Any, gate_up: Tensor) -> Tensor:
    """gate and up [rows, 2I] -> [rows, I], by the library's own function."""
    if experts.is_concatenated:  # it calls an activation module, which chooses its pieces itself
        return experts._apply_gate(gate_up)  # type: ignore[no-any-return]  # experts is Any
    return apply_in_blocks(experts._apply_gate, gate_up, inputs=2)


def _product(experts: Any, name: str, expert: int, x: Tensor) -> Tensor:
    weight = getattr(experts, name)[expert]
    y = x @ weight if experts.is_transposed else F.linear(x, weight)
    if experts.has_bias:
        y = y + getattr(experts, f"{name}_bias")[expert]
    return y
