"""A draft's attention gives what torch's operations give."""

from typing import Any

import pytest
import torch
from torch import Tensor

from engine.triton_kernels import draft_attention
from engine.triton_kernels.draft_attention import HeadNorms

pytestmark = pytest.mark.usefixtures("bfloat16_rounded")


def memory(
    kv_heads: int, width: int, dtype: torch.dtype, slots: int = 512
) -> tuple[Tensor, Tensor]:
    torch.manual_seed(width)
    keys, values = torch.randn(2, slots, kv_heads, width).to(dtype)
    return keys, values


def attended(
    queries: Tensor,
    stored: tuple[Tensor, Tensor],
    slots: Tensor,
    mask: Tensor,
    positions: Tensor,
    scale: float,
    window: int | None,
    bound: float | None,
) -> Tensor:
    """Return the attention output in float32, by operations of torch."""
    rows, heads, _ = queries.shape
    keys, values = (
        own[slots].float().repeat_interleave(heads // own.shape[1], 1) for own in stored
    )
    scores = torch.einsum("rhd,khd->hrk", queries.float(), keys) * scale
    if bound is not None:
        scores = torch.tanh(scores / bound) * bound
    if window is not None:
        mask = mask & (positions[-rows:, None] - positions < window)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return torch.einsum("hrk,khd->rhd", weights, values).flatten(1)


@pytest.mark.parametrize(
    ("rows", "heads", "kv_heads", "width", "num_keys", "window", "bound"),
    [
        (1, 4, 4, 64, 65, None, None),
        (6, 14, 2, 64, 262, None, None),  # a group of seven, two parts
        (3, 4, 1, 80, 100, None, 5.0),  # a width that is no power of two
        (20, 8, 2, 32, 130, 40, None),  # a window; more than one tile of lanes
        (2, 2, 2, 16, 2, None, None),  # nothing but the rows themselves
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_attend_to_what_they_see(
    rows: int,
    heads: int,
    kv_heads: int,
    width: int,
    num_keys: int,
    window: int | None,
    bound: float | None,
    dtype: torch.dtype,
) -> None:
    stored = memory(kv_heads, width, dtype)
    queries = torch.randn(rows, heads, width).to(dtype)
    slots, positions = torch.randperm(512)[:num_keys], torch.arange(num_keys)
    mask = torch.rand(rows, num_keys) < 0.6
    mask[:, -rows:] = torch.eye(rows, dtype=torch.bool)
    mask[0, : num_keys - rows] = False  # it sees itself only, so its other parts are empty
    found = draft_attention.attend(
        queries,
        stored,
        slots,
        mask,
        positions,
        scale=width**-0.5,
        window=window,
        bound=bound,
    )
    want = attended(queries, stored, slots, mask, positions, width**-0.5, window, bound)
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(found.float(), want, rtol=tolerance, atol=tolerance)


def test_slots_that_no_row_sees_do_not_matter() -> None:
    keys, values = memory(2, 32, torch.float32)
    keys[100:], values[100:] = torch.inf, torch.nan
    queries, slots = torch.randn(3, 4, 32), torch.arange(90)
    mask = torch.rand(3, 90) < 0.5
    mask[:, -3:] = torch.eye(3, dtype=torch.bool)
    found = draft_attention.attend(
        queries,
        (keys, values),
        slots,
        mask,
        torch.arange(90),
        scale=1.0,
    )
    assert found.isfinite().all()


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("offset", [None, 0.0, 1.0])
@pytest.mark.parametrize("width", [16, 80])
def test_queries_and_keys_are_rotated_and_stored(
    parts: int, offset: float | None, width: int
) -> None:
    rows, heads, kv_heads = 5, 4, 2
    keys, values = memory(kv_heads, width, torch.float32)
    before = keys.clone(), values.clone()
    joined = torch.randn(parts, rows, (heads + 2 * kv_heads) * width)
    cosines, sines = torch.randn(2, rows, width)
    slots = torch.tensor([7, 500, 3, 64, 65])
    norms = None
    if offset is not None:
        weights = torch.randn(2, width).unbind()
        norms = HeadNorms((weights[0], weights[1]), (1e-6, 1e-5), (offset, 0.5))
    queries = draft_attention.rotate_and_store(
        joined, (cosines, sines), norms, slots, (keys, values), heads
    )
    query, key, value = (
        joined.sum(0).view(rows, -1, width).tensor_split((heads, heads + kv_heads), 1)
    )
    if norms is not None:
        query, key = (
            own * torch.rsqrt(own.square().mean(-1, keepdim=True) + epsilon) * (weight + added)
            for own, weight, epsilon, added in zip(
                (query, key), norms.weights, norms.epsilons, norms.offsets, strict=True
            )
        )

    def rotated(own: Tensor) -> Any:
        first, second = own.chunk(2, -1)
        return cosines[:, None] * own + torch.cat([-second, first], -1) * sines[:, None]

    torch.testing.assert_close(queries, rotated(query))
    torch.testing.assert_close(keys[slots], rotated(key))
    torch.testing.assert_close(values[slots], value)
    others = torch.ones(len(keys), dtype=torch.bool)
    others[slots] = False
    assert torch.equal(keys[others], before[0][others])
    assert torch.equal(values[others], before[1][others])
