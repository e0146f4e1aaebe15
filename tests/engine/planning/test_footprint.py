"""The bytes that are planned for attention, by each way of computing it, and for CUDA graphs."""

from dataclasses import replace
from typing import Any

import pytest

from engine.kv.page_pool import PAGE
from engine.planning import footprint
from engine.planning.footprint import Demand, activation_bytes, graph_bytes
from engine.planning.memory import Memory
from engine.planning.plan import make_plan
from engine.spec import ModelSpec, TargetSpec
from engine.streaming.page_store import STAGING_BYTES
from tests.engine.planning.test_plan import ALL, DEMAND, LAYER, MIB, NO_DRAFT

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
        # float32 in the order of positions: sums of 130 values for each row, head and chunk of 512
        ({"is_ordered": True}, True, True, 64 * 64 * 28 * 130 * 4 // MIB),
        # sums of 64 chunks of positions for 64 rows of 128 heads, of which as many rows are
        # computed at a time as make 256 MiB
        ({"num_heads": 128, "is_ordered": True}, True, True, 256 - 4 * 64 * 128 * 128 // MIB),
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


def test_the_slots_that_trees_see_are_counted_with_attention_in_order() -> None:
    trees = replace(LONG, draft=replace(NO_DRAFT, scratch_rows=256), is_ordered=True)
    few, many = (
        activation_bytes(trees, 64, 1024, has_own_memory=True, tree_rows=rows)
        for rows in (256, 2048)
    )
    # Whole or sliding attention: slots of one chunk and of the tree, for each row.
    assert many - few == 2 * (2048 - 256) * (512 + 256) * 8
    float64 = replace(trees, is_ordered=False)
    counted = [
        activation_bytes(float64, 64, 1024, has_own_memory=True, tree_rows=rows)
        for rows in (256, 2048)
    ]
    assert counted[0] == counted[1]


def test_the_attention_of_a_draft_model_is_counted_beside_that_of_the_target() -> None:
    drafted = replace(LONG, draft=replace(NO_DRAFT, step_rows=512))
    more = attention(drafted, has_own_memory=True) - attention(LONG, has_own_memory=True)
    own = attention(replace(LONG, strict=False, tile=512), has_own_memory=True)
    assert more == pytest.approx(own, abs=2 * MIB)


@pytest.mark.parametrize(
    ("changes", "mib"),
    [
        # 8,192 keys and values of 2 bytes, their masks, and rows of attention
        ({"item_bytes": 2, "head_dim": 1024}, 32 + 1 + 0.5),
        # the mask of 64 rows in each of 8 heads that share keys, made and kept
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


@pytest.mark.parametrize("has_own_memory", [True, False])
@pytest.mark.parametrize("weight_bytes", [0, LAYER])
def test_graphs_and_workspaces_are_counted_where_a_draft_model_has_them(
    weight_bytes: int, has_own_memory: bool
) -> None:
    workspace = 32 * MIB if has_own_memory else 0
    demand = replace(DEMAND, draft=replace(NO_DRAFT, weight_bytes=weight_bytes))
    memory = Memory(10 * ALL, 100 * ALL, has_own_memory, stream_workspace=workspace)
    found = make_plan(ModelSpec("m", TargetSpec("m")), demand, memory)
    has_graphs = weight_bytes > 0 and has_own_memory
    graphs = graph_bytes(demand, found.num_pages * PAGE) if has_graphs else 0
    assert found.num_pages == 8 * 16
    staging = STAGING_BYTES if has_own_memory else 0
    assert found.other_bytes == staging + graphs + (3 if has_graphs else 1) * workspace
