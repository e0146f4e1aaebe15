"""The memory of the pages."""

import pytest
import torch

from engine.errors import ModelError
from engine.kv.page_pool import PagePool
from tests.engine.page_traffic import CPU


def test_memory_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"no room for .* tokens of KV.*memory\.device"):
        PagePool(100, 2**32, 8, 128, torch.float32, CPU)
