"""Sums and norms of rows give what torch's operations give."""

import pytest
import torch

from engine.triton_kernels import hidden_state

pytestmark = pytest.mark.usefixtures("bfloat16_rounded")


@pytest.mark.parametrize("width", [64, 200, 896])
@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_and_norms(width: int, parts: int, offset: float, dtype: torch.dtype) -> None:
    torch.manual_seed(width)
    rows, update = torch.randn(3, width).to(dtype), torch.randn(parts, 3, width)
    weight = torch.randn(width).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    sums = rows.clone()
    hidden_state.add(sums, update)
    want = rows.float() + update.sum(0)
    torch.testing.assert_close(sums.float(), want, rtol=tolerance, atol=tolerance)
    found = rows.clone()
    normal = hidden_state.add_and_normalize(found, update, weight, 1e-6, offset)
    assert torch.equal(found, sums)
    exact = sums.float()
    exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + 1e-6)
    want = exact * (weight.float() + offset)
    torch.testing.assert_close(normal.float(), want, rtol=tolerance, atol=1e-6)
    alone = hidden_state.normalize(sums, weight, 1e-6, offset)
    assert torch.equal(alone, normal) and torch.equal(found, sums)
