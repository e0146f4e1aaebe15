"""Tests that the kernels of attention fit the registers and the shared memory of several GPUs."""

from typing import Any

import pytest
import torch

from engine.triton_kernels.attention import CHUNK, Configuration
from tests.kernels.offline import CAPABILITIES, SHARED_MEMORY, Compiled, compile_offline

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
# (dim of keys, dim of values, query heads of a key head)
SHAPES = [
    *((64, 64, 8), (80, 80, 1), (128, 128, 7), (192, 128, 1), (256, 256, 2), (512, 512, 8)),
    (576, 512, 128),  # deepseek_v3
]
INTEGERS = (
    "rows", "query_row", "query_head", "slots_row", "span", "base", "first_chunk", "stored_chunk",
    "reach",
)  # fmt: skip


def types(dtype: torch.dtype) -> dict[str, str]:
    """Return the types of the kernels' arguments for a model of this type."""
    found = dict.fromkeys(("query", "keys", "values", "sinks"), f"*{NAMES[dtype]}")
    found |= dict.fromkeys(("slots", "positions"), "*i64")
    found |= dict.fromkeys(("tops", "totals", "sums", "out"), "*fp32")
    found |= dict.fromkeys(INTEGERS, "i32")
    return found | {"scaling": "fp32", "bound": "fp32"}


def compile_chunks(
    capability: int, shape: tuple[int, int, int], dtype: torch.dtype, **flags: bool
) -> Compiled:
    import triton.language as tl

    from engine.triton_kernels.attention_kernel import attend_chunks

    dim, value_dim, group = shape
    chosen = Configuration.of(dim, value_dim, dtype)
    dots = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
    constants: dict[str, Any] = {
        "KV_HEADS": 4,
        "GROUP": group,
        "DIM": dim,
        "VALUE_DIM": value_dim,
        "KEY_WIDTH": 4 * dim,
        "VALUE_WIDTH": 4 * dim,
        "KEY_PART": chosen.key_part,
        "VALUE_PART": chosen.value_part,
        "CHUNK": CHUNK,
        "IS_CHUNK": flags.get("is_chunk", False),
        "HAS_CAP": flags.get("has_cap", False),
        "DOT": dots[dtype],
        "TERMS": 1 if dtype == torch.float32 else 2,
    }
    return compile_offline(
        attend_chunks,
        capability,
        types(dtype),
        constants,
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
        maxnreg=chosen.maxnreg,
        enable_fp_fusion=False,
    )


CASES: list[tuple[tuple[int, int, int], torch.dtype, dict[str, bool]]] = [
    *((shape, dtype, {}) for shape in SHAPES for dtype in (torch.bfloat16, torch.float32)),
    ((128, 128, 7), torch.float16, {}),
    ((256, 256, 2), torch.bfloat16, {"has_cap": True}),
    ((128, 128, 7), torch.float32, {"has_cap": True}),
    ((128, 128, 5), torch.bfloat16, {"is_chunk": True}),
]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize(("shape", "dtype", "flags"), CASES, ids=str)
def test_nothing_is_spilled_and_shared_memory_is_enough(
    capability: int, shape: tuple[int, int, int], dtype: torch.dtype, flags: dict[str, bool]
) -> None:
    found = compile_chunks(capability, shape, dtype, **flags)
    print(
        f"sm_{capability} {shape} {dtype} {flags}: {found.registers} registers, "
        f"{found.spilled} spilled, {found.shared} bytes of shared memory"
    )
    assert found.spilled == 0
    assert found.shared <= min(SHARED_MEMORY[capability], 99 * 1024)
    # Instructions for tiles of 16 rows; Hopper's for 64 rows would be others for a tree's rows.
    assert ("HMMA.16816" in found.sass) == (dtype != torch.float32)
    assert "GMMA" not in found.sass


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("has_sinks", [False, True])
def test_merging_chunks_spills_nothing(capability: int, has_sinks: bool) -> None:
    from engine.triton_kernels.attention_kernel import merge_chunks

    constants = {
        "HEADS": 8,
        "VALUE_DIM": 512,
        "VALUE_BLOCK": 512,
        "CHUNK": CHUNK,
        "IS_CHUNK": False,
        "HAS_SINKS": has_sinks,
    }
    found = compile_offline(
        merge_chunks,
        capability,
        types(torch.bfloat16),
        constants,
        num_warps=1,
        enable_fp_fusion=False,
    )
    assert found.spilled == 0
    assert found.shared <= 99 * 1024


def test_numbers_and_the_places_of_rows_choose_no_code() -> None:
    from engine.triton_kernels import attention_kernel

    for kernel in (attention_kernel.attend_chunks, attention_kernel.merge_chunks):
        free = {p.name for p in kernel.params if not p.is_constexpr and not p.do_not_specialize}
        assert free <= {"keys", "values", "sums", "out"}
