"""Tests of copies of KV pages between the device and pinned host memory, with random delays.

They need only the dependencies of the engine.
"""

# mypy: disallow-untyped-calls=False
# torch.cuda declares no types for streams and events.

import gc
import random

import pytest
import torch

from engine.kv.cache import KVCache
from engine.kv.page_pool import PAGE, PagePool
from engine.kv.page_table import PageTable
from engine.streaming import page_store
from engine.streaming.cuda_link import CudaDevice
from tests.engine.page_traffic import Traffic, check_pages, count_wrong, run_prompt, small_cache

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda", 0)
GPU = CudaDevice(CUDA)
CYCLES = 2_000_000  # about a millisecond


def late(cycles: int = CYCLES) -> None:
    """Delay all later work on the compute stream by `cycles` clock cycles."""
    torch.cuda._sleep(cycles)


@pytest.mark.parametrize("staged", [1, 3, 64], ids="{} staged".format)
@pytest.mark.parametrize("host_pages", [3, 40])
@pytest.mark.parametrize("seed", range(3))
def test_stored_pages_keep_their_content_in_any_history(
    monkeypatch: pytest.MonkeyPatch, seed: int, host_pages: int, staged: int
) -> None:
    page_bytes = small_cache(1, device=GPU).pool.memory.nbytes
    monkeypatch.setattr(page_store, "STAGING_BYTES", staged * page_bytes)
    cache = small_cache(16, host_pages, GPU)
    traffic, rng = Traffic(cache, seed), random.Random(seed)
    for step in range(120):
        late(rng.choice([0, 0, CYCLES // 10, CYCLES]))
        traffic.step()
        if step % 10 == 0:
            traffic.queue_all_checks()
    traffic.check()  # the host waits here for the first time
    traffic.finish_all()
    check_pages(cache, [])
    cache.release()


def test_a_drafting_stream_sees_the_restored_pages() -> None:
    cache = small_cache(6, 20, GPU)
    tokens = [7] * (4 * PAGE + 1)
    table = cache.open(tokens)
    assert run_prompt(cache, table, tokens)
    cache.publish(table, tokens)
    cache.close(table)
    other = cache.open([1])
    assert cache.reserve(other, 6 * PAGE)
    cache.close(other)
    assert cache.num_host_pages == 4
    late()
    table = cache.open(tokens)
    assert table.length == 4 * PAGE
    with torch.cuda.stream(torch.cuda.Stream(CUDA)):
        bad = count_wrong(cache, table, tokens)
    torch.cuda.synchronize(CUDA)
    assert int(bad) == 0
    assert cache.is_ready(table)
    cache.release()


def test_moving_pages_out_or_in_does_not_make_the_host_wait() -> None:
    cache = small_cache(4, 8, GPU)
    tokens = [3] * (3 * PAGE + 1)
    table = cache.open(tokens)
    assert run_prompt(cache, table, tokens)
    cache.publish(table, tokens)
    slept = torch.cuda.Event()
    torch.cuda.synchronize(CUDA)
    late(2000 * CYCLES)
    slept.record()
    cache.close(table)
    other = cache.open([1])
    assert cache.reserve(other, 4 * PAGE)  # moves pages to the host
    cache.close(other)
    table = cache.open(tokens)  # moves them to the device
    assert table.length == 3 * PAGE and not cache.is_ready(table)
    cache.slots(table)
    assert not slept.query(), "the host waited for the device"
    assert int(count_wrong(cache, table, tokens)) == 0
    assert cache.is_ready(table)
    cache.release()


def test_pages_of_the_size_of_a_7b_model_keep_every_bit() -> None:
    """At the layers and heads of a 7B model, staging has room for only a part of the pages."""
    cache = KVCache(
        PagePool(
            num_layers=28,
            num_pages=24,
            num_kv_heads=4,
            head_dim=128,
            dtype=torch.bfloat16,
            device=GPU,
        ),
        host_pages=48,
    )
    filled = PageTable()
    tokens = list(range(20 * PAGE + 1))
    assert cache.reserve(filled, len(tokens))
    generator = torch.Generator(CUDA).manual_seed(1)
    for side in (cache.pool.keys, cache.pool.values):
        side.copy_(torch.randn(side.shape, device=CUDA, generator=generator))
    slots = cache.slots(filled)[: 20 * PAGE]
    keys, values = cache.pool.keys[:, slots].clone(), cache.pool.values[:, slots].clone()
    cache.append_rows(filled, range(len(tokens)))
    cache.publish(filled, tokens)
    cache.close(filled)
    other = cache.open([1])
    assert cache.reserve(other, 24 * PAGE)
    cache.pool.keys[:, cache.slots(other)] = 0.0  # another sequence owns the pages now
    cache.pool.values[:, cache.slots(other)] = 0.0
    cache.close(other)
    assert cache.num_host_pages == 20
    table = cache.open(tokens)
    slots = cache.slots(table)[: 20 * PAGE]
    assert table.length == 20 * PAGE
    assert torch.equal(cache.pool.keys[:, slots], keys)
    assert torch.equal(cache.pool.values[:, slots], values)
    cache.release()


def test_a_released_cache_frees_its_device_memory() -> None:
    torch.cuda.synchronize(CUDA)
    before = torch.cuda.memory_allocated(CUDA)
    cache = small_cache(8, 100, GPU)
    traffic = Traffic(cache, seed=9)
    for _ in range(60):
        traffic.step()
    traffic.check()
    cache.release()
    cache.release()
    del cache, traffic
    gc.collect()  # the traffic refers to its own methods, a reference cycle
    torch.cuda.synchronize(CUDA)
    assert torch.cuda.memory_allocated(CUDA) == before
