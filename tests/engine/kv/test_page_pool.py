"""Tests of the device memory of the KV cache."""

import pytest
import torch

from engine.errors import ModelError
from engine.kv.page_pool import PagePool
from engine.weights.family import KVShape
from tests.engine.page_traffic import CPU


def test_too_little_device_memory_is_an_error_that_names_the_setting() -> None:
    with pytest.raises(ModelError, match=r"no room for .* tokens of KV.*memory\.device"):
        PagePool(
            num_layers=100,
            num_pages=2**32,
            num_kv_heads=8,
            head_dim=128,
            dtype=torch.float32,
            device=CPU,
        )


def test_values_may_be_the_beginning_of_keys() -> None:
    shape = KVShape(num_layers=2, num_kv_heads=1, head_dim=6, is_latent=True)
    pool = PagePool.of_shape(shape, 2, torch.float32, CPU)
    assert pool.memory.nbytes == 2 * 64 * shape.bytes_per_token(torch.float32)
    slots, keys = torch.tensor([3, 70]), torch.rand(2, 1, 6)
    pool.write(1, slots, keys, keys[..., :4])
    found, values = pool.read(1, slots, torch.Size([1, 6]), torch.Size([1, 4]))
    assert torch.equal(found, keys) and torch.equal(values, keys[..., :4])
    assert not pool.keys[0].any()
    pool.copy_page(1, 0, 64)
    assert torch.equal(pool.read(1, torch.tensor([6]))[0], keys[1:])


def test_memory_of_pages_that_is_given_back_holds_zeros_and_can_be_written_again() -> None:
    pool = PagePool(2, 7, num_kv_heads=2, head_dim=16, dtype=torch.float32, device=CPU)
    pool.memory.copy_(torch.rand(pool.memory.shape) + 1)
    before = pool.memory.clone()
    pool.give_back([5, 1, 2])
    own, old = pool.pages, before.view(pool.pages.shape)
    for page in range(7):
        want = torch.zeros_like(old[:, page]) if page in (1, 2, 5) else old[:, page]
        assert torch.equal(own[:, page], want), page
    pool.copy_page(0, 5, 64)
    assert torch.equal(pool.pages[:, 5], pool.pages[:, 0])
