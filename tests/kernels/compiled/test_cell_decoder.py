"""The decoder of coded weights is compiled for GPUs that this machine does not have."""

import pytest

from engine.triton_kernels import cell_decoder
from tests.kernels.offline import CAPABILITIES, SHARED_MEMORY, compile_offline

TYPES = {
    "pairs": "*u8",
    "scales": "*i32",
    "ends": "*fp32",
    "words": "*i32",
    "starts": "*i32",
    "out": "*i16",
    "before": "i32",
    "copy_rows": "i32",
    "columns": "i32",
    "num_words": "i32",
}


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("is_int4", [True, False])
def test_a_gpu_has_the_registers_and_the_memory(capability: int, is_int4: bool) -> None:
    from engine.triton_kernels.cell_decoder_kernel import decode_cells

    constants = {"GROUP": 64, "IS_INT4": is_int4, "SEGMENT": cell_decoder.SEGMENT}
    found = compile_offline(
        decode_cells, capability, TYPES, constants, num_warps=cell_decoder.WARPS
    )
    assert found.spilled == 0
    assert found.shared <= SHARED_MEMORY[capability]
