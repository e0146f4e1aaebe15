"""The device memory of the KV cache, in pages of 64 token slots.

A slot holds the keys and values of one token in all layers. Slot s is in page s // PAGE, and pages
never move. This file reads, writes and copies slots; `engine/kv/cache.py` decides which sequence
owns a page.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.malloc import discard
from engine.streaming.device import Device
from engine.transfer import upload
from engine.weights.family import KVShape
from engine.weights.layout import PAGE_BYTES

PAGE = 64  # token slots per page


class PagePool:
    """The memory for keys and values of all layers, [L, slots, kv heads, head dim] each.

    The constructor writes all of the memory once, because some systems allocate memory only when it
    is written. It raises `ModelError` if the device has too little.

    Args:
        has_values: whether values have memory of their own; else they are the beginning of the
            keys (latent attention).
    """

    def __init__(
        self,
        num_layers: int,
        num_pages: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: Device,
        *,
        has_values: bool = True,
    ) -> None:
        parts = 2 if has_values else 1
        shape = (parts * num_layers, num_pages * PAGE, num_kv_heads, head_dim)
        try:
            # Zeros, not empty: a masked slot is multiplied by weight zero, and 0 x NaN is NaN.
            nbytes = math.prod(shape) * dtype.itemsize
            memory = torch.zeros(nbytes + PAGE_BYTES, dtype=torch.uint8, device=device.torch_device)
        except RuntimeError as error:  # what the allocators of CPU and CUDA raise
            raise ModelError(
                f"{device} has no room for {num_pages * PAGE} tokens of KV ({error}). "
                "Lower memory.device or context_length."
            ) from error
        first = -memory.data_ptr() % PAGE_BYTES  # so that `give_back` gives back whole pages
        self.memory = memory[first : first + nbytes].view(dtype).view(shape)
        self.keys, self.values = self.memory[:num_layers], self.memory[-num_layers:]
        self.has_values = has_values
        self.num_pages = num_pages
        self.device = device

    @classmethod
    def of_shape(
        cls, shape: KVShape, num_pages: int, dtype: torch.dtype, device: Device
    ) -> "PagePool":
        """Return a new pool of `num_pages` pages for a model whose KV has this shape."""
        heads, head_dim = shape.num_kv_heads, shape.head_dim
        if shape.width is not None:
            heads, head_dim = 1, shape.width
        return cls(
            num_layers=shape.num_layers,
            num_pages=num_pages,
            num_kv_heads=heads,
            head_dim=head_dim,
            dtype=dtype,
            device=device,
            has_values=not shape.is_latent,
        )

    @property
    def pages(self) -> Tensor:
        """A view of the whole memory: of each layer's keys, then values, [.., pages, numbers]."""
        return self.memory.view(len(self.memory), self.num_pages, -1)

    @property
    def page_bytes(self) -> int:
        """The bytes of a page in all layers."""
        return self.memory.nbytes // self.num_pages

    def copy_out(self, page: int) -> Tensor:
        """Return a copy of a page on the host, uint8, in the form of a page in host memory."""
        own = self.pages[:, page].clone(memory_format=torch.contiguous_format)
        return own.cpu().view(-1).view(torch.uint8)

    def copy_in(self, page: int, payload: Tensor) -> None:
        """Fill a page with what `copy_out` returned."""
        pages = self.pages
        pages[:, page].copy_(payload.view(self.memory.dtype).view(len(pages), -1))

    def give_back(self, pages: Sequence[int]) -> None:
        """Give the memory of pages back to the system, where the device computes in RAM.

        The pages hold zeros then, and get memory again when they are written.
        """
        if self.device.own_memory() is not None:
            return
        own = self.pages
        nbytes = own.shape[2] * own.element_size()
        for first, count in _runs(pages):
            for part in own:
                discard(part[first].data_ptr(), count * nbytes)

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Write keys and values of one layer, [rows, kv heads, head dim] each, to these slots.

        Where layers, or keys and values, differ in shape, a slot has one row of the largest width,
        and others fill the beginning of theirs. Values without memory of their own are not written.
        """
        parts = [(self.keys[layer], keys), (self.values[layer], values)]
        for memory, rows in parts if self.has_values else parts[:1]:
            if rows.shape[1:] == memory.shape[1:]:
                memory.index_copy_(0, slots, rows)
            else:
                memory[:, 0, : rows[0].numel()].index_copy_(0, slots, rows.flatten(1))

    def read(
        self,
        layer: int,
        slots: Tensor,
        key_shape: torch.Size | None = None,
        value_shape: torch.Size | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return copies of one layer's keys and values, [slots, kv heads, head dim] each.

        Args:
            key_shape, value_shape: kv heads and head dim, as they were written; None: the pool's.
        """
        keys = self.keys[layer].index_select(0, slots)
        values = self.values[layer].index_select(0, slots) if self.has_values else keys
        return _shaped(keys, key_shape), _shaped(values, value_shape)

    def rows(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return one layer's keys and values of all slots, [slots, width] each, without a copy."""
        keys, values = self.keys[layer].flatten(1), self.values[layer].flatten(1)
        return keys, values

    def copy_page(self, source: int, target: int, count: int) -> None:
        """Copy the first `count` slots of page `source` to page `target`, in all layers."""
        old, new = source * PAGE, target * PAGE
        self.memory[:, new : new + count] = self.memory[:, old : old + count]

    def copy_rows(self, source_slots: Tensor, pages: Sequence[int], start: int) -> None:
        """Copy slots into the pages of a sequence, in all layers.

        The targets are written as slices of pages: indexing them in all layers took six times as
        long.

        Args:
            source_slots: numbers of the slots to copy, [rows] int64.
            pages: the pages of the sequence, in order.
            start: the first slot of the sequence to write; the others follow it.
        """
        rows = self.memory.index_select(1, upload(source_slots, self.device.torch_device))
        done = 0
        while done < rows.shape[1]:
            number, offset = divmod(start + done, PAGE)
            count = min(PAGE - offset, rows.shape[1] - done)
            target = pages[number] * PAGE + offset
            self.memory[:, target : target + count] = rows[:, done : done + count]
            done += count


def _runs(pages: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the first page and the length of each run of neighbours among pages."""
    for _, run in groupby(enumerate(sorted(pages)), key=lambda own: own[1] - own[0]):
        members = [page for _, page in run]
        yield members[0], len(members)


def _shaped(rows: Tensor, shape: torch.Size | None) -> Tensor:
    """Return rows of slots in the shape [slots, *shape], without a copy."""
    if shape is None or rows.shape[1:] == shape:
        return rows
    return rows[:, 0, : shape.numel()].view(len(rows), *shape)
