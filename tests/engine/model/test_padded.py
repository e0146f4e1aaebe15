"""Tests of padded attention: several sequences in one product give what each gives alone."""

from collections.abc import Sequence
from threading import Event

import pytest
import torch
from torch import Tensor, nn

from engine.kv.page_pool import PagePool
from engine.model import padded
from engine.model.attention import Batch, LayerRule, attend
from engine.model.padded import MAX_SEGMENT_ROWS, pad_segments
from engine.model.segment import Segment
from engine.streaming.cpu_link import CpuDevice

HEADS, KV_HEADS, DIM = 4, 2, 8
CPU = torch.device("cpu")


class Layer(nn.Module):
    rule = LayerRule(layer=0)


def segment(
    first: int, slots: Tensor, start: int, scratch: int, count: int, *, chain: bool
) -> Segment:
    """Return rows that see a prefix and some scratch rows: a chain, or a tree of one level."""
    own = slots[: start + scratch + count]
    if chain:
        mask, positions = None, torch.arange(start, start + scratch + count)
    else:
        mask = torch.rand(count, scratch + count) < 0.5
        mask[:, scratch:] = torch.eye(count, dtype=torch.bool)
        positions = torch.cat([torch.arange(start, start + scratch), torch.full((count,), start)])
    return Segment(
        first=first,
        count=count,
        start=start,
        slots=own,
        positions=positions,
        mask=mask,
        cancelled=Event(),
    )


def segments(shapes: Sequence[tuple[int, int, int, bool]]) -> list[Segment]:
    """Return segments of these shapes (start, scratch, count, chain), with distinct slots."""
    order = torch.randperm(1024)
    made: list[Segment] = []
    first = taken = 0
    for start, scratch, count, chain in shapes:
        slots = order[taken : taken + start + scratch + count]
        made.append(
            segment(
                first=first, slots=slots, start=start, scratch=scratch, count=count, chain=chain
            )
        )
        first, taken = first + count, taken + len(slots)
    return made


def attended(rows: Sequence[Segment], inputs: Sequence[Tensor], window: int | None) -> Tensor:
    """Return the attention output [1, T, H, D] of one batch, over a cache of random values."""
    torch.manual_seed(1)
    pool = PagePool(
        num_layers=1,
        num_pages=16,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        dtype=torch.float32,
        device=CpuDevice(),
    )
    pool.write(0, torch.arange(1024), *(torch.randn(1024, KV_HEADS, DIM) for _ in range(2)))
    total = sum(own.count for own in rows)
    batch = Batch(pool, tuple(rows), range(rows[0].first, rows[0].first + total), strict=False)
    assert (batch.padded is None) == (len(rows) == 1)
    own = (tensor[:, :, rows[0].first : rows[0].first + total] for tensor in inputs)
    query, key, value = own
    layer = Layer()
    out, _ = attend(layer, query, key, value, None, 0.3, sliding_window=window, batch=batch)
    return out


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize(
    "shapes",
    [
        [(20, 0, 1, True), (20, 0, 1, True)],
        [(20, 4, 3, False), (31, 0, 1, True), (17, 2, 6, False)],
        [(9, 0, 5, True), (12, 3, 2, True)],  # chains of several rows
        [(0, 0, 4, True), (0, 2, 3, False)],  # nothing stored yet
    ],
)
def test_a_padded_product_equals_separate_products(
    shapes: list[tuple[int, int, int, bool]], window: int | None
) -> None:
    torch.manual_seed(0)
    own = segments(shapes)
    total = sum(part.count for part in own)
    inputs = [torch.randn(1, heads, total, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    together = attended(own, inputs, window)
    alone = torch.cat([attended([part], inputs, window) for part in own], 1)
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize(
    "shapes",
    [
        [(20, 0, 4, True)],
        [(20, 0, MAX_SEGMENT_ROWS + 1, True), (20, 0, 4, True)],
        [(400, 0, 1, True), (4, 0, 1, True), (4, 0, 1, True)],
        [(600, 0, 1, True), (300, 0, 1, True)],  # more slots than are padded
    ],
)
def test_single_long_or_very_unequal_sequences_are_not_padded(
    shapes: list[tuple[int, int, int, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(padded, "MAX_SLOTS", 1200)
    assert pad_segments(segments(shapes)) is None
