"""The bytes that are planned for attention: each way of computing it takes its own."""

from dataclasses import replace
from typing import Any

import pytest

from engine.planning import footprint
from engine.planning.footprint import Demand, activation_bytes
from tests.engine.planning.test_plan import DEMAND, MIB, NO_DRAFT

# A model of 28 heads in groups of 7, of which 32,768 tokens are stored, in bfloat16.
LONG = replace(
    DEMAND,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
    item_bytes=2,
    context_length=32_768,
    hidden_size=1,
)


def attention(demand: Demand, *, has_own_memory: bool) -> int:
    """Return the planned bytes of attention over the whole context, without other activations."""

    def activations(context: int) -> int:
        own = replace(demand, context_length=context)
        return activation_bytes(own, 64, context, has_own_memory=has_own_memory)

    return activations(LONG.context_length) - activations(1)


STORED = 2 * 32_768 * 4 * 128 * 2  # bytes of keys and values of one layer


@pytest.mark.parametrize(
    ("changes", "has_own_memory", "is_compiled", "mib"),
    [
        # float64: scores of 2,048 keys of 448 rows, three times, beside copied keys and values
        ({}, True, True, STORED // MIB + 3 * 8 * 448 * 2048 // MIB + 4),
        ({}, False, True, 0),  # compiled code reads keys and values where they are stored
        ({}, False, False, 3 * STORED // MIB + 2),  # copied, then expanded to float32
        # one mask that is made and all that are kept, and booleans
        ({"strict": False, "tile": 1024}, True, True, STORED // MIB + 2 * 32 + 7),
        ({"strict": False, "tile": 64}, True, True, STORED // MIB + 2 * 28 + 6),
        # scores of 2,048 keys of 7,168 rows in float32, three times
        (
            {"strict": False, "tile": 1024, "has_plain_softmax": False},
            True,
            True,
            STORED // MIB + 3 * 4 * 7168 * 2048 // MIB + 64,
        ),
    ],
)
def test_attention_is_counted_as_it_is_computed(
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    has_own_memory: bool,
    is_compiled: bool,
    mib: int,
) -> None:
    monkeypatch.setattr(footprint, "is_available", lambda: is_compiled)
    found = attention(replace(LONG, **changes), has_own_memory=has_own_memory)
    assert found / MIB == pytest.approx(mib, abs=2)


def test_the_attention_of_a_draft_model_is_counted_beside_that_of_the_target() -> None:
    drafted = replace(LONG, draft=replace(NO_DRAFT, step_rows=512))
    more = attention(drafted, has_own_memory=True) - attention(LONG, has_own_memory=True)
    own = attention(replace(LONG, strict=False, tile=512), has_own_memory=True)
    assert more == pytest.approx(own, abs=2 * MIB)
