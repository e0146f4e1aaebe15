"""Attention by PyTorch's fused kernels: the query heads that share a key head become rows of it.

On CUDA, PyTorch computes a product with a mask and fewer key heads than query heads
(`enable_gqa`) by its slowest way: it repeats keys and values for each query head and stores all
scores. With the heads of a group folded into the rows there are as many query heads as key heads,
and a mask does not hinder the memory-efficient kernel. That kernel adds the mask to the scores. It
takes a mask as it is in the type of the queries, with rows that begin at aligned addresses; any
other it would convert again in each layer. So a mask is made in that form, once for all layers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.model.segment import Reach, Segment

ALIGNED = 16  # elements: rows of a mask begin at multiples of this
# Elements of the mask of one product, which bounds the rows of a long prompt that are computed at a
# time; and of all masks that a pass keeps for its other layers. Larger ones are made again in each
# layer, in which their product takes much longer than that.
MAX_MASK = 1 << 24
MAX_KEPT = 1 << 24

_Key = tuple[int, range, Reach, int, torch.dtype]


@dataclass(frozen=True)
class RowsWithMask:
    """Some rows of a segment, and their mask as `fold_mask` returns it; None: they see all keys."""

    rows: range
    mask: Tensor | None


@dataclass
class FoldedMasks:
    """The masks of a pass or of a draft step, kept from its first layer on."""

    _kept: dict[_Key, RowsWithMask] = field(default_factory=dict)
    _num_kept: int = 0  # elements

    def parts(
        self, segment: Segment, rows: range, reach: Reach, group: int, dtype: torch.dtype
    ) -> Iterator[RowsWithMask]:
        """Yield some rows of a segment in parts whose masks are not too large.

        Args:
            group: query heads that share a key head.
            dtype: the type of the queries.
        """
        keys = segment.start + segment.num_scratch + rows.stop
        step = max(MAX_MASK // (group * keys), 1)
        for first in range(rows.start, rows.stop, step):
            part = range(first, min(first + step, rows.stop))
            key = segment.first, part, reach, group, dtype
            made = self._kept.get(key)
            if made is None:
                visible = segment.visible_keys(part, reach)
                mask = None if visible is None else fold_mask(visible, group, dtype)
                made = RowsWithMask(part, mask)
                size = 0 if mask is None else mask.numel()
                if self._num_kept + size <= MAX_KEPT:
                    self._kept[key] = made
                    self._num_kept += size
            yield made


def fold_mask(visible: Tensor, group: int, dtype: torch.dtype) -> Tensor:
    """Return a mask that is added to the scores of folded rows, [..., group * rows, keys].

    Args:
        visible: which keys each row sees, [..., rows, keys] bool.
        group: query heads that share a key head.
        dtype: the type of the queries.
    """
    *others, rows, keys = visible.shape
    width = -(-keys // ALIGNED) * ALIGNED
    mask = torch.zeros(*others, group, rows, width, dtype=dtype, device=visible.device)
    mask = mask[..., :keys].masked_fill_(~visible.unsqueeze(-3), -torch.inf)
    return mask.flatten(-3, -2)


def attend_fused(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float
) -> Tensor:
    """Return the attention output [B, H, rows, D].

    Args:
        query: [B, H, rows, D].
        keys, values: [B, Hkv, n, D].
        mask: what `fold_mask` returned, [B, 1, H / Hkv * rows, n], or without the first
            dimensions if it is the same in all of them; None: all rows see all keys.
    """
    count, heads, rows, _ = query.shape
    kv_heads = keys.shape[1]
    folded = query.reshape(count, kv_heads, heads // kv_heads * rows, -1)
    out = F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scaling)
    return out.reshape(count, heads, rows, -1)
