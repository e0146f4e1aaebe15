"""The product with int4 weights is compiled for GPUs that this machine does not have."""

import pytest

from engine.triton_kernels import int4_product
from tests.kernels.offline import CAPABILITIES, SHARED_MEMORY, compile_offline

TYPES = {
    "rows": "*bf16",
    "pairs": "*u8",
    "scales": "*i32",
    "bias": "*bf16",
    "num_rows": "i32",
    "outputs": "i32",
    "groups": "i32",
    "part_blocks": "i32",
}


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    ("tile", "gate", "out"),
    [(16, 0, "*bf16"), (64, 0, "*fp32"), (32, 1, "*bf16"), (64, 1, "*bf16"), (64, 2, "*bf16")],
)
def test_a_gpu_has_the_registers_and_the_memory(
    capability: int, tile: int, gate: int, out: str
) -> None:
    import triton.language as tl

    from engine.triton_kernels.int4_product_kernel import multiply_int4

    inputs, warps = int4_product.tiling(tile, is_gated=gate > 0)
    constants = {
        "GROUP": 32,
        "HAS_BIAS": True,
        "GATE": gate,
        "ROWS": tile,
        "OUTPUTS": int4_product.OUTPUTS,
        "INPUTS": inputs,
        "DOT": tl.bfloat16,
    }
    found = compile_offline(
        multiply_int4,
        capability,
        TYPES | {"out": out},
        constants,
        num_warps=warps,
        num_stages=int4_product.STAGES,
    )
    assert found.spilled == 0
    assert found.shared <= SHARED_MEMORY[capability]
    assert "cp.async" in found.ptx, "weights are not loaded ahead"
