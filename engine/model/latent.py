"""Latent attention: the KV cache has one latent vector of each token, which all heads share.

In DeepSeek-V2 (arXiv 2405.04434, section 2.1) and its successors, keys and values of all heads are
products of a token's latent vector, beside a rotated part of the key that heads share. The
modules of the library compute these products for each token, in their method `expand_kv`, before
they call attention. Here the same matrix is applied on the other side: queries are multiplied with
its part for keys, and what they attend to with its part for values. So attention has one key head,
whose keys are latents with their rotated part, and whose values are the latents.

The two orders differ by rounding. Both products of a tile take as long as `expand_kv`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Latent:
    """The products of the latents of one layer.

    Args:
        projection: the linear layer whose weight [H * (plain + value), rank] makes, for each head,
            the plain part of its key and its value.
        plain: the width of the part of queries and keys that is not rotated.
    """

    projection: nn.Module
    plain: int

    def join(self, latents: Tensor, rotated: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys [1, 1, T, rank + R] and values [1, 1, T, rank] for attention.

        It replaces the library's `expand_kv`.

        Args:
            latents: [1, 1, T, rank].
            rotated: the rotated part of the keys, [1, 1, T, R].
        """
        return torch.cat([latents, rotated], dim=-1), latents

    def absorb(self, query: Tensor) -> Tensor:
        """Return the queries for latents [1, H, T, rank + R] of queries [1, H, T, plain + R]."""
        keys, _ = self._parts(query.shape[1])
        plain, rotated = query[0, ..., : self.plain], query[0, ..., self.plain :]
        return torch.cat([plain @ keys, rotated], dim=-1)[None]

    def expand(self, attended: Tensor) -> Tensor:
        """Return the values [1, T, H, value] for the latents [1, T, H, rank] of attention."""
        _, values = self._parts(attended.shape[2])
        return (attended[0].transpose(0, 1) @ values.mT).transpose(0, 1)[None]

    def _parts(self, heads: int) -> tuple[Tensor, Tensor]:
        """Return the matrices of keys [H, plain, rank] and of values [H, value, rank]."""
        weight: Any = self.projection.weight
        whole = weight.view(heads, -1, weight.shape[1])
        return whole[:, : self.plain], whole[:, self.plain :]


def find_latent(module: Any) -> Latent | None:
    """Return the products of an attention module's latents; None if it has none."""
    if not hasattr(module, "expand_kv"):
        return None
    return Latent(module.kv_b_proj, module.qk_nope_head_dim)


def latent_projections(part: nn.Module) -> frozenset[nn.Module]:
    """Return the linear layers in a part of a model that are never called: only their weight is."""
    found = map(find_latent, part.modules())
    return frozenset(latent.projection for latent in found if latent is not None)
