"""Layers with random keys and values, and segments of a text and of a tree, to test attention."""

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.compiled.attention import BLOCK, Columns
from engine.model.ordered import attend_in_order
from engine.model.segment import Reach, Segment

LENGTH = 150  # tokens of a text: two whole blocks and a part
FIRST = 120  # the position of a tree's root
# The parent of each node. The path 0, 2, 4, 6, 7 has the tokens of the text.
PARENTS = (-1, 0, 0, 1, 2, 2, 4, 6, 6, 3)
PATH = (0, 2, 4, 6, 7)
WINDOWS = [Reach(), Reach(3), Reach(70), Reach(BLOCK), Reach(50, is_chunk=True)]


@dataclass(frozen=True)
class Layer:
    """The shapes and options of a layer, and random queries, keys and values of LENGTH tokens."""

    kv_heads: int = 2
    group: int = 2
    dim: int = 16
    value_dim: int = 16
    dtype: torch.dtype = torch.float32
    softcap: float | None = None
    has_sinks: bool = False
    length: int = LENGTH

    @property
    def shapes(self) -> tuple[torch.Size, torch.Size]:
        return torch.Size((self.kv_heads, self.dim)), torch.Size((self.kv_heads, self.value_dim))

    def _random(self, seed: int, *shape: int) -> Tensor:
        made = torch.Generator().manual_seed(seed)
        return (2 * torch.randn(*shape, generator=made)).to(self.dtype)

    def queries(self) -> Tensor:
        return self._random(1, self.length, self.kv_heads * self.group, self.dim)

    def memory(self) -> tuple[Tensor, Tensor]:
        """Return keys and values of as many slots as tokens; a slot is wider than it has to be."""
        width = self.kv_heads * max(self.dim, self.value_dim) + 3
        return self._random(2, self.length, width), self._random(3, self.length, width)

    def attend(self, query: Tensor, memory: Sequence[Tensor], columns: Columns) -> Tensor:
        return attend_in_order(query, memory, self.shapes, columns, **self.options())

    def options(self) -> dict[str, Any]:
        """Return the arguments of attention that are options of the layer."""
        sinks = self._random(4, self.kv_heads * self.group) if self.has_sinks else None
        return {"scaling": self.dim**-0.5, "softcap": self.softcap, "sinks": sinks}


def chain(start: int, stop: int, slots: Tensor | None = None) -> Segment:
    """Return the rows `start` to `stop` - 1 of a text."""
    own = torch.arange(stop) if slots is None else slots[:stop]
    return Segment(0, stop - start, start, own, torch.arange(start, stop), None, Event())


def tree(slots: Tensor, first: int = FIRST) -> Segment:
    """Return the rows of a tree from a position on."""
    mask, depths = torch.eye(len(PARENTS), dtype=torch.bool), [0] * len(PARENTS)
    for node, parent in enumerate(PARENTS[1:], 1):
        mask[node] |= mask[parent]
        depths[node] = depths[parent] + 1
    return Segment(0, len(PARENTS), first, slots, torch.tensor(depths) + first, mask, Event())


def softmax(layer: Layer, query: Tensor, memory: Sequence[Tensor], seen: Columns) -> Tensor:
    """Return the attention output of a layer without a cap and sinks, by float64."""
    places = np.concatenate([seen.prefix, seen.others])
    number = np.arange(len(seen.prefix))
    low, high = seen.low[:, None], seen.high[:, None]
    visible = np.concatenate([(low <= number) & (number <= high), seen.visible], axis=1)
    keys, values = (
        part[places, : shape.numel()].double().view(-1, *shape).repeat_interleave(layer.group, 1)
        for part, shape in zip(memory, layer.shapes, strict=True)
    )
    scores = torch.einsum("rhd,nhd->hrn", query.double(), keys) * layer.dim**-0.5
    if layer.softcap is not None:
        scores = torch.tanh(scores / layer.softcap) * layer.softcap
    scores = scores.masked_fill(~torch.from_numpy(visible), -torch.inf)
    if layer.has_sinks:
        sinks = layer._random(4, len(scores)).double()[:, None, None]
        scores = torch.cat([scores, sinks.expand(-1, len(query), 1)], dim=-1)
    return torch.einsum("hrn,nhd->rhd", scores.softmax(-1)[..., : len(places)], values)
