"""Tests that kernels are compiled for GPUs that this machine does not have."""

import pytest

from tests.kernels.offline import CAPABILITIES, SHARED_MEMORY, compile_offline

TYPES = {"left": "*fp32", "right": "*fp32", "out": "*fp32", "count": "*i64"}


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_resources_of_a_kernel_are_found(capability: int) -> None:
    from tests.kernels import sum_kernel

    found = compile_offline(
        sum_kernel.add_products, capability, TYPES, {"SIZE": 16}, num_warps=1, num_stages=1
    )
    assert 8 < found.registers < 256
    assert found.spilled == 0
    assert 0 < found.shared <= SHARED_MEMORY[capability]
    assert "FFMA" in found.sass and "fma.rn.f32" in found.ptx


def test_numbers_and_other_addresses_choose_no_code() -> None:
    from tests.kernels import sum_kernel

    names = {p.name: p.do_not_specialize for p in sum_kernel.add_products.params}
    assert names == {"left": False, "right": False, "out": False, "count": True, "SIZE": False}
