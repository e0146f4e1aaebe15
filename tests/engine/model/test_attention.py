"""Tests of the attention of one sequence: blocks of keys give the softmax over all of them."""

import pytest
import torch

from engine.model import blockwise

HEADS, KV_HEADS, ROWS, KEYS, DIM = 4, 2, 5, 40, 8


@pytest.mark.parametrize("block", [1, 7, 40, 64])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("is_masked", [False, True])
def test_blocks_of_keys_give_the_softmax_of_all(
    block: int,
    has_sinks: bool,
    softcap: float | None,
    is_masked: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blockwise, "KEY_BLOCK", block)
    made = torch.Generator().manual_seed(3)
    query = 9 * torch.randn(HEADS, ROWS, DIM, generator=made, dtype=torch.float64)
    keys, values = torch.randn(2, KEYS, KV_HEADS, DIM, generator=made, dtype=torch.float64)
    sinks = torch.randn(HEADS, generator=made, dtype=torch.float64) if has_sinks else None
    visible = torch.rand(ROWS, KEYS, generator=made) < 0.5 if is_masked else None
    if visible is not None:
        visible[0], visible[0, -1] = False, True  # this row sees no key of the first blocks
        visible[1], visible[1, 0] = False, True
    got = blockwise.attend_blockwise(
        query, keys, values, visible, scaling=0.7, softcap=softcap, sinks=sinks, strict=True
    )
    repeats = HEADS // KV_HEADS
    scores = 0.7 * query @ keys.permute(1, 2, 0).repeat_interleave(repeats, 0)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(HEADS, ROWS, 1)], dim=-1)
    weights = scores.softmax(dim=-1)[..., :KEYS]
    want = weights @ values.transpose(0, 1).repeat_interleave(repeats, 0)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
