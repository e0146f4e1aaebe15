"""Tests that attention under fast numerics runs in fused kernels, without a copy of what is stored.

They need only the dependencies of the engine.
"""

# mypy: disallow-untyped-calls=False
# torch declares no types for the choice of attention kernels.

from threading import Event

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from engine.kv.page_pool import PagePool
from engine.model.attention import Batch, LayerRule, attend
from engine.model.segment import Segment
from engine.streaming.cuda_link import CudaDevice

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda", 0)
FUSED = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.FLASH_ATTENTION]
HEADS, KV_HEADS, DIM = 28, 4, 128  # of Qwen2.5 7B
MIB = 1 << 20


class Layer(nn.Module):
    rule = LayerRule(layer=0)


def segment(first: int, start: int, scratch: int, count: int, *, chain: bool) -> Segment:
    total = start + scratch + count
    mask = None
    if not chain:
        mask = torch.rand(count, scratch + count, device=CUDA) < 0.5
        mask[:, scratch:] = torch.eye(count, dtype=torch.bool, device=CUDA)
    return Segment(
        first=first,
        count=count,
        start=start,
        slots=torch.randperm(4096, device=CUDA)[:total],
        positions=torch.arange(start, total, device=CUDA),
        mask=mask,
        cancelled=Event(),
    )


def attended(segments: list[Segment], dtype: torch.dtype, window: int | None) -> Tensor:
    """Return the output of a batch of these segments over a cache of random values."""
    made = torch.Generator(CUDA).manual_seed(1)
    pool = PagePool(
        num_layers=1,
        num_pages=64,
        num_kv_heads=KV_HEADS,
        head_dim=DIM,
        dtype=dtype,
        device=CudaDevice(CUDA),
    )
    for side in (pool.keys, pool.values):
        side.copy_(torch.randn(side.shape, device=CUDA, generator=made))
    rows = sum(own.count for own in segments)
    shapes = [(1, heads, rows, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    query, key, value = (
        torch.randn(shape, device=CUDA, generator=made).to(dtype) for shape in shapes
    )
    batch = Batch(pool, tuple(segments), range(rows), strict=False)
    return attend(Layer(), query, key, value, None, DIM**-0.5, sliding_window=window, batch=batch)[
        0
    ]


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("case", ["root", "tree", "prompt", "trees"])
def test_the_slowest_kernel_is_never_needed(
    case: str, window: int | None, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    segments = {
        "root": [segment(0, 1999, 0, 1, chain=True)],
        "tree": [segment(0, 2000, 30, 6, chain=False)],
        "prompt": [segment(0, 1001, 0, 1024, chain=True)],
        "trees": [segment(6 * n, 1500 + n, 13, 6, chain=False) for n in range(4)],
    }[case]
    with sdpa_kernel([SDPBackend.MATH]):
        want = attended(segments, torch.float32, window)
    with sdpa_kernel(FUSED):  # raises an error if neither takes the arguments
        torch.cuda.reset_peak_memory_stats(CUDA)
        before = torch.cuda.memory_allocated(CUDA)
        got = attended(segments, dtype, window)
        peak = torch.cuda.max_memory_allocated(CUDA) - before
    tolerance = 5e-3 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(got.float(), want, atol=tolerance, rtol=tolerance)
    pool = 2 * 4096 * KV_HEADS * DIM * dtype.itemsize
    assert peak < 6 * pool + 160 * MIB, "scores of all heads would take more"


def test_a_cuda_device_does_not_use_the_attention_of_cudnn() -> None:
    CudaDevice(CUDA)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
