"""Recurrent layers with random weights, which run rows of a random text."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.recurrent.order import find_order
from engine.recurrent.shape import LayerShape
from engine.recurrent.states import StatePool
from engine.recurrent.visit import Part, Visit

LENGTH = 150  # tokens of a text
FIRST = 120  # the position of a tree's root
# The parent of each node. The path 0, 2, 4, 6, 7 has the tokens of the text.
PARENTS = (-1, 0, 0, 1, 2, 2, 4, 6, 6, 3)
PATH = (0, 2, 4, 6, 7)

DELTA = LayerShape(
    channels=2 * 2 * 32 + 4 * 16,
    taps=4,
    is_activated=True,
    heads=4,
    key_heads=2,
    depth=32,
    width=16,
    is_corrected=True,
    is_normalized=True,
)
WIDE = replace(DELTA, channels=3 * 4 * 20, key_heads=4, depth=20, width=20, decays=20)
MAMBA = LayerShape(
    channels=6 * 24 + 2 * 3 * 16,
    taps=4,
    is_activated=True,
    heads=6,
    key_heads=3,
    depth=16,
    width=24,
)
CONVOLUTION = LayerShape(channels=40, taps=3, is_activated=False)
SHAPES = {"delta": DELTA, "wide": WIDE, "mamba": MAMBA, "convolution": CONVOLUTION}
BFLOAT16 = pytest.param(DELTA, torch.bfloat16, id="delta-bfloat16")
KINDS = [*(pytest.param(s, torch.float32, id=name) for name, s in SHAPES.items()), BFLOAT16]


@dataclass(frozen=True)
class Layer:
    """A layer with random weights, and what it makes of the tokens of a random text."""

    shape: LayerShape
    dtype: torch.dtype

    def random(self, seed: int, *size: int) -> Tensor:
        return torch.randn(*size, generator=torch.Generator().manual_seed(seed))

    def weight(self) -> Tensor:
        return self.random(1, self.shape.channels, self.shape.taps).to(self.dtype)

    def bias(self) -> Tensor | None:
        if self.shape.is_corrected:
            return None
        return self.random(2, self.shape.channels).to(self.dtype)

    def rows(self) -> Tensor:
        return self.random(3, LENGTH, self.shape.channels).to(self.dtype)

    def gates(self) -> Tensor:
        return self.random(4, LENGTH, self.shape.num_gates).sigmoid()

    def pool(self, stash_rows: int = 64, num_states: int = 1) -> StatePool:
        return StatePool(
            {5: self.shape},
            num_states=num_states,
            num_stashes=num_states,
            stash_rows=stash_rows,
            dtype=self.dtype,
            device=torch.device("cpu"),
        )

    def run(
        self,
        state: Any,
        tokens: list[int],
        parents: list[int] | None = None,
        tile: int = 64,
    ) -> Tensor:
        """Return what a pass over some tokens of the text gives, in tiles."""
        memory, out = state.pool.layers[5], []
        memory.set_filter(self.weight(), self.bias())
        for first in range(0, len(tokens), tile):
            own = range(first, min(first + tile, len(tokens)))
            places = tokens[own.start : own.stop]
            tree = parents or [*range(-1, len(tokens) - 1)]
            is_stashed = state.is_stashed(len(tokens))
            order = find_order(tree, own, self.shape.taps) if is_stashed else None
            visit = Visit([Part(state, state.length, own, order)], self.shape.taps)
            convolved = visit.convolve(5, self.rows()[places])
            if self.shape.has_state:
                out.append(visit.scan(5, *self.shape.split(convolved), self.gates()[places]))
            else:
                out.append(convolved)
        return torch.cat(out)
