"""Tests of attention by fused kernels: its results, and the form in which CUDA takes its mask."""

from threading import Event
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.kv.page_pool import PagePool
from engine.model import fused, padded
from engine.model.attention import Batch, LayerRule, attend
from engine.model.decoder import Decoder
from engine.model.fused import FoldedMasks, attend_fused, fold_mask
from engine.model.segment import Reach, Segment
from engine.streaming.cpu_link import CpuDevice
from tests.engine.models import SUBSPEC, checkpoint, load, prompt, request, run

DIM = 8


def visible_of(*shape: int) -> Tensor:
    visible = torch.rand(*shape, generator=torch.Generator().manual_seed(1)) < 0.5
    visible[..., 0] = True
    return visible


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 5, 37), (3, 4, 32)], ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (7, 1)])
@pytest.mark.parametrize("is_masked", [False, True])
def test_folded_heads_give_what_repeated_keys_give(
    heads: int, kv_heads: int, shape: tuple[int, int, int], dtype: torch.dtype, is_masked: bool
) -> None:
    made = torch.Generator().manual_seed(2)
    count, rows, keys = shape
    query = torch.randn(count, rows, heads, DIM, generator=made).to(dtype).transpose(1, 2)
    stored = torch.randn(2, count, keys, kv_heads, DIM, generator=made).to(dtype).transpose(2, 3)
    visible = visible_of(count, 1, rows, keys) if is_masked else None
    group = heads // kv_heads
    mask = None if visible is None else fold_mask(visible, group, dtype)
    got = attend_fused(query, stored[0], stored[1], mask, 0.7)
    repeated = stored.repeat_interleave(group, 2).float()
    scores = 0.7 * query.float() @ repeated[0].transpose(-1, -2)
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    want = scores.softmax(-1) @ repeated[1]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(got.float(), want, rtol=tolerance, atol=tolerance)


class Calls:
    """The products that attention asks PyTorch for, and how often each mask was made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.masks: list[Tensor | None] = []
        self.made = 0
        own, fold = F.scaled_dot_product_attention, fold_mask

        def product(query: Tensor, keys: Tensor, values: Tensor, **named: Any) -> Tensor:
            assert set(named) == {"attn_mask", "scale"}, "neither enable_gqa nor is_causal"
            assert query.shape[1] == keys.shape[1] == values.shape[1]
            self.masks.append(named["attn_mask"])
            return own(query, keys, values, **named)

        def counted(*arguments: Any) -> Tensor:
            self.made += 1
            return fold(*arguments)

        monkeypatch.setattr(F, "scaled_dot_product_attention", product)
        monkeypatch.setattr(fused, "fold_mask", counted)
        monkeypatch.setattr(padded, "fold_mask", counted)

    def check_form(self, dtype: torch.dtype) -> None:
        """Check that the memory-efficient kernel takes each mask without a copy."""
        for mask in self.masks:
            if mask is not None:
                assert mask.dtype == dtype, "another type would be converted in each layer"
                assert mask.stride(-1) == 1
                assert not any(stride % fused.ALIGNED for stride in mask.stride()[:-1])


class Layer(torch.nn.Module):
    rule = LayerRule(layer=0)


def attended(length: int, start: int, window: int | None, group: int = 2) -> Tensor:
    """Return the output of a chain of rows behind a stored prefix, under fast numerics."""
    made, total = torch.Generator().manual_seed(3), start + length
    pool = PagePool(
        num_layers=1,
        num_pages=4,
        num_kv_heads=2,
        head_dim=DIM,
        dtype=torch.float32,
        device=CpuDevice(),
    )
    pool.write(0, torch.arange(256), *torch.randn(2, 256, 2, DIM, generator=made))
    segment = Segment(
        first=0,
        count=length,
        start=start,
        slots=torch.randperm(256, generator=made)[:total],
        positions=torch.arange(start, total),
        mask=None,
        cancelled=Event(),
    )
    query = torch.randn(1, 2 * group, length, DIM, generator=made)
    key, value = torch.randn(2, 1, 2, length, DIM, generator=made)
    batch = Batch(pool, (segment,), range(length), strict=False)
    return attend(Layer(), query, key, value, None, 0.3, sliding_window=window, batch=batch)[0]


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("most", [1, 200, 2000, 1 << 24])
def test_a_long_prompt_is_computed_in_parts_of_bounded_masks(
    monkeypatch: pytest.MonkeyPatch, most: int, window: int | None
) -> None:
    want = attended(40, 13, window)
    calls = Calls(monkeypatch)
    monkeypatch.setattr(fused, "MAX_MASK", most)
    torch.testing.assert_close(attended(40, 13, window), want)
    sizes = [mask.numel() for mask in calls.masks if mask is not None]
    assert max(sizes, default=0) <= max(most, 2 * 53), "a row at least"
    assert (len(calls.masks) > 1) == (most < 40 * 2 * 53)


def test_no_more_masks_are_kept_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "MAX_KEPT", 2 * 4 * 10 + 5)
    segment = Segment(
        first=0,
        count=4,
        start=6,
        slots=torch.arange(10),
        positions=torch.arange(6, 10),
        mask=None,
        cancelled=Event(),
    )
    masks = FoldedMasks()

    def mask(reach: Reach) -> Tensor | None:
        (part,) = masks.parts(segment, range(4), reach, 2, torch.float32)
        return part.mask

    first, second = mask(Reach()), mask(Reach(3))
    assert first is mask(Reach())
    assert second is not mask(Reach(3))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("count", [1, 3], ids="{} requests".format)
def test_masks_are_made_once_for_all_layers(
    monkeypatch: pytest.MonkeyPatch, family: str, count: int
) -> None:
    engine = load(checkpoint(family), SUBSPEC, numerics="fast")
    calls = Calls(monkeypatch)
    made: list[tuple[int, int]] = []
    reaches = {"llama": 1, "gemma3": 2}[family]

    def counted(own: Any) -> Any:
        def forward(decoder: Decoder, tokens: Any, positions: Any, batch: Batch) -> Tensor:
            before = calls.made
            hidden: Tensor = own(decoder, tokens, positions, batch)
            made.append((calls.made - before, reaches * len(batch.segments)))
            return hidden

        return forward

    monkeypatch.setattr(Decoder, "forward", counted(Decoder.forward))
    run(engine, [request(str(n), prompt(20, n), max_tokens=12) for n in range(count)])
    assert len(made) > 5
    assert all(found <= most for found, most in made), made
    assert any(found for found, _ in made)
    calls.check_form(torch.float32)
