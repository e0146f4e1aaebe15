"""Tests of the device memory of the KV cache."""

import pytest
import torch

from engine.errors import ModelError
from engine.kv.page_pool import PagePool
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
