"""The product with int4 weights of experts is compiled for GPUs that this machine does not have."""

import pytest

from engine.triton_kernels import expert_product, int4_product
from tests.kernels.offline import CAPABILITIES, SHARED_MEMORY, compile_offline

TYPES = {
    "rows": "*bf16",
    "pairs": "*u8",
    "scales": "*i32",
    "bias": "*bf16",
    "out": "*bf16",
    "experts": "*i32",
    "places": "*i32",
    "row_places": "i32",
    "outputs": "i32",
    "groups": "i32",
}


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_gpu_has_the_registers_and_the_memory(capability: int) -> None:
    import triton.language as tl

    from engine.triton_kernels.int4_product_kernel import multiply_int4_of_experts

    inputs, warps = int4_product.tiling(expert_product.ROWS, is_gated=False)
    constants = {
        "GROUP": 32,
        "HAS_BIAS": True,
        "ROWS": expert_product.ROWS,
        "OUTPUTS": int4_product.OUTPUTS,
        "INPUTS": inputs,
        "DOT": tl.bfloat16,
    }
    found = compile_offline(
        multiply_int4_of_experts,
        capability,
        TYPES,
        constants,
        num_warps=warps,
        num_stages=int4_product.STAGES,
    )
    assert found.spilled == 0
    assert found.shared <= SHARED_MEMORY[capability]
    assert "cp.async" in found.ptx, "weights are not loaded ahead"
