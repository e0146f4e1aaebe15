"""The operations of which fused layers consist, by functions of torch.

In shapes R is the number of rows, D the width of the hidden state, and d that of a head.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.model.attention import Batch, attend


@dataclass(frozen=True)
class NormRule:
    """A norm that divides rows by their root mean square.

    Args:
        weight: the factor of each channel.
        epsilon: is added to the mean square.
        offset: is added to the weight; Gemma's weights are stored without 1.
    """

    weight: Tensor
    epsilon: float
    offset: float = 0.0


@dataclass(frozen=True)
class AttentionRule:
    """What attention does with queries, keys and values of the width `width`, in one layer."""

    layer: int
    num_heads: int
    num_kv_heads: int
    width: int
    scaling: float
    sliding_window: int | None
    softcap: float | None
    query_norm: NormRule | None
    key_norm: NormRule | None


class Operations(Protocol):
    """The operations of a fused layer. Each takes one or two kernel launches on a GPU.

    Tensors of rows are [R, width], contiguous. An update [P, R, D] is the sum of its P parts,
    of which there is one here.
    """

    def norm(self, rows: Tensor, norm: NormRule) -> Tensor:
        """Return normalized rows."""

    def add_norm(self, rows: Tensor, update: Tensor, norm: NormRule) -> Tensor:
        """Add an update to `rows`, in place, and return the normalized sums."""

    def add(self, rows: Tensor, update: Tensor) -> None:
        """Add an update to `rows`, in place."""

    def product(self, layer: nn.Module, rows: Tensor) -> Tensor:
        """Return the output of a linear layer."""

    def update(self, layer: nn.Module, rows: Tensor) -> Tensor:
        """Return the output of a linear layer as an update."""

    def gated_product(self, layer: nn.Module, rows: Tensor, activation: nn.Module) -> Tensor:
        """Return `activation(a) * b` for the two halves a and b of the output of a layer."""

    def attend(
        self,
        module: nn.Module,
        rule: AttentionRule,
        joined: Tensor,
        rotation: tuple[Tensor, Tensor],
        batch: Batch,
    ) -> Tensor:
        """Return the attention output [R, heads * d] of rows; their keys and values are stored.

        Args:
            module: the module that `attend` is called for.
            joined: queries, keys and values of all heads, [P, R, (heads + 2 kv heads) * d], as an
                update.
            rotation: cosines and sines [1, R, d] of the rotary embedding.
            batch: what the rows see.
        """


class TorchOperations:
    """Operations by functions of torch, on any device."""

    def norm(self, rows: Tensor, norm: NormRule) -> Tensor:
        weight = norm.weight + norm.offset if norm.offset else norm.weight
        return F.rms_norm(rows, weight.shape, weight, norm.epsilon)

    def add_norm(self, rows: Tensor, update: Tensor, norm: NormRule) -> Tensor:
        self.add(rows, update)
        return self.norm(rows, norm)

    def add(self, rows: Tensor, update: Tensor) -> None:
        rows.add_(update[0])

    def product(self, layer: nn.Module, rows: Tensor) -> Tensor:
        result: Tensor = layer(rows)
        return result

    def update(self, layer: nn.Module, rows: Tensor) -> Tensor:
        return self.product(layer, rows)[None]

    def gated_product(self, layer: nn.Module, rows: Tensor, activation: nn.Module) -> Tensor:
        gate, up = self.product(layer, rows).chunk(2, dim=-1)
        gated: Tensor = activation(gate)
        return gated.mul_(up)

    def attend(
        self,
        module: nn.Module,
        rule: AttentionRule,
        joined: Tensor,
        rotation: tuple[Tensor, Tensor],
        batch: Batch,
    ) -> Tensor:
        heads = joined[0].view(joined.shape[1], -1, rule.width)
        kv = rule.num_kv_heads
        query, value = heads[:, : rule.num_heads], heads[:, rule.num_heads + kv :]
        if rule.query_norm is not None and rule.key_norm is not None:
            key = heads[:, rule.num_heads : rule.num_heads + kv]
            query = self._rotate(self.norm(query, rule.query_norm), rotation)
            key = self._rotate(self.norm(key, rule.key_norm), rotation)
        else:
            rotated = self._rotate(heads[:, : rule.num_heads + kv], rotation)
            query, key = rotated[:, : rule.num_heads], rotated[:, rule.num_heads :]
        query, key, value = (own.transpose(0, 1)[None] for own in (query, key, value))
        out, _ = attend(
            module,
            query,
            key,
            value,
            None,
            rule.scaling,
            sliding_window=rule.sliding_window,
            softcap=rule.softcap,
            batch=batch,
        )
        return out.view(joined.shape[1], -1)

    @staticmethod
    def _rotate(heads: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Return the rotated heads [R, heads, d]."""
        cos, sin = (own[0, :, None] for own in rotation)
        first, second = heads.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1).mul_(sin)
        return (heads * cos).add_(turned)
