"""Tests that the kernels of recurrent layers fit registers and shared memory of several GPUs."""

from typing import Any

import pytest

from engine.triton_kernels.recurrence import options
from tests.kernels.offline import CAPABILITIES, compile_offline

# (heads, key heads, depth, width, decays for each row, delta rule) of Qwen3.5 27B, Kimi Linear,
# Granite 4 H, Falcon H1, and one that no power of two divides
SHAPES = [
    (48, 16, 128, 128, False, True),
    (32, 32, 128, 128, True, True),
    (128, 1, 128, 64, False, False),
    (24, 1, 256, 64, False, False),
    (30, 30, 96, 192, False, True),
]


def types(dtype: str) -> dict[str, str]:
    names = ("states", "kept", "query", "key", "value", "decay", "rate", "weight", "bias")
    found = dict.fromkeys(names, "*fp32") | dict.fromkeys(("source", "out"), f"*{dtype}")
    numbers = ("rows", "sources", "targets", "actions", "starts", "places")
    found |= dict.fromkeys(numbers, "*i64")
    return found | dict.fromkeys(("first_item", "num_kept", "channels", "weight_row"), "i32")


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_walks_spill_nothing(capability: int, shape: tuple[Any, ...]) -> None:
    from engine.triton_kernels.recurrence_kernel import walk_rows

    heads, key_heads, depth, width, is_wide, is_corrected = shape
    own = options(depth)
    constants = {
        "HEADS": heads,
        "KEY_HEADS": key_heads,
        "DEPTH": depth,
        "WIDTH": width,
        "PART": own.pop("PART"),
        "IS_WIDE": is_wide,
        "IS_CORRECTED": is_corrected,
    }
    found = compile_offline(walk_rows, capability, types("fp32"), constants, **own)
    print(
        f"sm_{capability} {shape}: {found.registers} registers, {found.spilled} spilled, "
        f"{found.shared} bytes of shared memory"
    )
    assert found.spilled == 0
    assert found.shared <= 99 * 1024


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_convolutions_spill_nothing(capability: int, dtype: str) -> None:
    from engine.triton_kernels.recurrence_kernel import convolve_rows

    found = compile_offline(
        convolve_rows,
        capability,
        types(dtype),
        {"TAPS": 4, "PART": 256, "IS_ACTIVATED": True},
        num_warps=4,
        num_stages=1,
        enable_fp_fusion=False,
    )
    assert found.spilled == 0
    assert found.shared <= 99 * 1024


def test_numbers_and_the_places_of_rows_choose_no_code() -> None:
    from engine.triton_kernels import recurrence_kernel

    for kernel in (recurrence_kernel.walk_rows, recurrence_kernel.convolve_rows):
        free = {p.name for p in kernel.params if not p.is_constexpr and not p.do_not_specialize}
        assert free <= {"states", "kept", "out"}
