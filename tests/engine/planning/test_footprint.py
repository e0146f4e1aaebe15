"""The bytes of CUDA graphs, by what a model's sizes add to them."""

from dataclasses import replace
from typing import Any

import pytest

from engine.planning.footprint import graph_bytes
from tests.engine.planning.test_plan import DEMAND, MIB


@pytest.mark.parametrize(
    ("changes", "mib"),
    [
        # 8,192 keys and values of 2 bytes, gathered and copied, and masks of 2 bytes
        ({"item_bytes": 2, "head_dim": 1024}, 64 + 1),
        # the mask of 64 rows in each of 8 heads that share keys, twice
        ({"num_heads": 8}, 2 * 7 * 64 * 8192 / MIB),
        # logits of 64 rows in two types, and of 16, 32 and 64 rows
        ({"vocab_size": 1 << 18}, (64 * (1 + 4) + 112) * (1 << 18) / MIB),
        ({"hidden_size": 1 << 14}, (64 * 12 + 6 * 112) * (1 << 14) / MIB),
        ({"widest": 1 << 14}, 64 * 4 * (1 << 14) / MIB),
    ],
)
def test_the_bytes_of_graphs(changes: dict[str, Any], mib: float) -> None:
    base, found = (
        graph_bytes(demand, 8192) / MIB for demand in (DEMAND, replace(DEMAND, **changes))
    )
    assert 72 < base < 100, "18 graphs of 4 MiB, their inputs and the largest step"
    assert found - base == pytest.approx(mib, rel=0.02)
