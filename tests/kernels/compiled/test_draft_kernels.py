"""The kernels of a draft's layers are compiled for GPUs that this machine does not have."""

import pytest

from engine.triton_kernels import draft_attention, hidden_state
from tests.kernels.offline import CAPABILITIES, SHARED_MEMORY, Compiled, compile_offline

FLOATS = ("scale", "bound", "query_epsilon", "query_offset", "key_epsilon", "key_offset")
TYPES = {
    **dict.fromkeys(("queries", "keys", "values", "rows", "weight", "out"), "*bf16"),
    **dict.fromkeys(("cosines", "sines", "query_weight", "key_weight"), "*bf16"),
    **dict.fromkeys(("joined", "update", "tops", "totals", "sums"), "*fp32"),
    **dict.fromkeys(("slots", "positions"), "*i64"),
    **dict.fromkeys((*FLOATS, "epsilon", "offset"), "fp32"),
    **dict.fromkeys(("num_rows", "num_parts", "num_heads", "num_kv_heads", "num_keys"), "i32"),
    **dict.fromkeys(("width", "part_keys", "window", "lanes"), "i32"),
    "mask": "*u8",
}


def assert_fits(found: Compiled, capability: int) -> None:
    assert found.spilled == 0
    assert found.shared <= SHARED_MEMORY[capability]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    ("lanes", "width", "has_all"),
    [
        (16, 64, False),
        (64, 64, True),
        (32, 128, False),
        (64, 128, True),
        (32, 256, True),
        (64, 80, False),
    ],
)
def test_attention(capability: int, lanes: int, width: int, has_all: bool) -> None:
    import triton.language as tl

    from engine.triton_kernels.draft_attention_kernel import attend_to_slots

    constants = {
        "GROUP": 7,
        "HAS_WINDOW": has_all,
        "HAS_BOUND": has_all,
        "LANES": lanes,
        "BLOCK": draft_attention.BLOCK,
        "WIDTH": width,
        "CHANNELS": draft_attention.power_above(width),
        "DOT": tl.bfloat16,
    }
    options = draft_attention.options(lanes, width)
    assert_fits(
        compile_offline(attend_to_slots, capability, TYPES, constants, **options), capability
    )


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_small_kernels(capability: int) -> None:
    from engine.triton_kernels.draft_attention_kernel import join_parts, rotate_and_store
    from engine.triton_kernels.hidden_state_kernel import update_rows
    from engine.triton_kernels.int4_product_kernel import add_parts

    heads = {"WIDTH": 128, "CHANNELS": 128}
    assert_fits(compile_offline(join_parts, capability, TYPES, heads, num_warps=1), capability)
    rotated = {"HAS_NORMS": True, "HALF": 64}
    found = compile_offline(rotate_and_store, capability, TYPES, rotated, num_warps=1)
    assert_fits(found, capability)
    types = {"parts": "*fp32", "out": "*bf16", "size": "i32", "num_parts": "i32"}
    assert_fits(compile_offline(add_parts, capability, types, {"BLOCK": 1024}), capability)
    for width in (896, 3584, hidden_state.WIDEST):
        options = hidden_state.options(width)
        constants = {"HAS_UPDATE": True, "HAS_NORM": True, "WIDTH": options.pop("WIDTH")}
        found = compile_offline(update_rows, capability, TYPES, constants, **options)
        assert_fits(found, capability)
