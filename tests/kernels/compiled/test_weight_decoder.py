"""The decoders of coded weights are compiled for GPUs that this machine does not have."""

from typing import Any

import pytest

from engine.triton_kernels import weight_decoder
from tests.kernels.offline import CAPABILITIES, SHARED_MEMORY, compile_offline

CELLS = {
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
EXPONENTS = {"exponents": "*u8", "fractions": "*u8", "table": "*u8", "out": "*i16", "count": "i32"}
ESCAPES = {"places": "*i32", "values": "*i16", "out": "*i16", "count": "i32", "weights": "i32"}
SEGMENT = {"SEGMENT": weight_decoder.SEGMENT}
KERNELS: tuple[tuple[str, dict[str, str], dict[str, Any]], ...] = (
    *(
        ("decode_cells", CELLS, {"GROUP": group, "IS_INT4": True, **SEGMENT})
        for group in (32, 64, 1024)
    ),
    ("decode_cells", CELLS, {"GROUP": 64, "IS_INT4": False, **SEGMENT}),
    ("decode_exponents", EXPONENTS, {"BLOCK": weight_decoder.BLOCK}),
    ("put_escapes", ESCAPES, {"BLOCK": weight_decoder.ESCAPES}),
)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(
    ("name", "types", "constants"),
    KERNELS,
    ids=["-".join([name, *map(str, constants.values())]) for name, _, constants in KERNELS],
)
def test_a_gpu_has_the_registers_and_the_memory(
    name: str, types: dict[str, str], constants: dict[str, Any], capability: int
) -> None:
    from engine.triton_kernels import weight_decoder_kernel

    kernel = getattr(weight_decoder_kernel, name)
    found = compile_offline(kernel, capability, types, constants, num_warps=weight_decoder.WARPS)
    assert found.spilled == 0
    assert found.shared <= SHARED_MEMORY[capability]
