"""The device memory of the KV cache, in pages of 64 token slots.

Slot s lies in page s // PAGE, and no page ever moves. This file reads, writes and copies slots;
which sequence owns a page is decided in `engine/kv/cache.py`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.streaming.device import Device
from engine.weights.family import KVShape

PAGE = 64  # token slots of a page


class PagePool:
    """Keys and values of all layers, [L, slots, kv heads, head dim] each.

    All memory is written once at construction, so that memory that was planned is really there.
    Raises `ModelError` when the device refuses it.
    """

    def __init__(
        self,
        num_layers: int,
        num_pages: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: Device,
    ) -> None:
        shape = (2 * num_layers, num_pages * PAGE, num_kv_heads, head_dim)
        try:
            # Zeros, not empty: a masked slot is multiplied by weight zero, and 0 x NaN is NaN.
            self.memory = torch.zeros(shape, dtype=dtype, device=device.torch_device)
        except RuntimeError as error:  # both allocators' refusals
            raise ModelError(
                f"{device} has no room for {num_pages * PAGE} tokens of KV ({error}). "
                "Lower memory.device or context_length."
            ) from error
        self.keys, self.values = self.memory[:num_layers], self.memory[num_layers:]
        self.num_pages = num_pages
        self.device = device

    @classmethod
    def of_shape(
        cls, shape: KVShape, num_pages: int, dtype: torch.dtype, device: Device
    ) -> "PagePool":
        """Make a pool for a model whose KV has this shape."""
        heads, head_dim = shape.num_kv_heads, shape.head_dim
        return cls(shape.num_layers, num_pages, heads, head_dim, dtype, device)

    @property
    def pages(self) -> Tensor:
        """The whole memory as [2 L, pages, values of one page and layer]."""
        return self.memory.view(len(self.memory), self.num_pages, -1)

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [rows, kv heads, head dim] of one layer."""
        self.keys[layer].index_copy_(0, slots, keys)
        self.values[layer].index_copy_(0, slots, values)

    def read(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of one layer at these slots, [rows, kv heads, head dim] each."""
        return self.keys[layer].index_select(0, slots), self.values[layer].index_select(0, slots)

    def copy_page(self, source: int, target: int, count: int) -> None:
        """Copy the first `count` slots of page `source` to page `target`."""
        old, new = source * PAGE, target * PAGE
        self.memory[:, new : new + count] = self.memory[:, old : old + count]

    def copy_rows(self, source_slots: Tensor, pages: Sequence[int], start: int) -> None:
        """Copy slots of the pool to the slots from `start` on of a sequence that has these pages.

        The targets are slices of pages, which cost a sixth of an index over all layers.
        """
        rows = self.memory.index_select(
            1, source_slots.to(self.device.torch_device, non_blocking=True)
        )
        done = 0
        while done < rows.shape[1]:
            number, offset = divmod(start + done, PAGE)
            count = min(PAGE - offset, rows.shape[1] - done)
            target = pages[number] * PAGE + offset
            self.memory[:, target : target + count] = rows[:, done : done + count]
            done += count
