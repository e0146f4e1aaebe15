"""The product with int4 weights gives the product with the dense weights, within one rounding."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.triton_kernels import int4_product
from tests.engine import int4_codes

pytestmark = pytest.mark.usefixtures("bfloat16_rounded")
ROUNDING = 2**-8  # of bfloat16


def case(rows: int, inputs: int, outputs: int, group: int) -> tuple[Tensor, int4_codes.Int4Codes]:
    torch.manual_seed(rows + inputs)
    return torch.randn(rows, inputs).bfloat16(), int4_codes.quantize(
        torch.randn(outputs, inputs) * inputs**-0.5, group
    )


def dense(codes: int4_codes.Int4Codes) -> Tensor:
    """Return the weight, rounded to the type of the product."""
    return codes.dense().bfloat16().float()


def assert_near(found: Tensor, want: Tensor) -> None:
    """Assert that values are equal within one rounding of the largest ones that were summed up."""
    torch.testing.assert_close(found.float(), want, rtol=ROUNDING, atol=2e-4)


@pytest.mark.parametrize("group", int4_product.GROUPS)
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [
        (1, 128, 64),
        (3, 192, 72),  # edges in both dimensions of the weight
        (16, 64, 8),  # less than a block
        (17, 320, 136),
        (33, 128, 64),
        (64, 1216, 24),  # in parts, the last of which is shorter
        (70, 128, 64),  # more than one tile
    ],
)
def test_products(rows: int, inputs: int, outputs: int, group: int) -> None:
    values, codes = case(rows, inputs, outputs, group)
    bias = torch.randn(outputs).bfloat16()
    want = values.float() @ dense(codes).T
    for own in (None, bias):
        found = int4_product.multiply(
            values,
            codes.pairs,
            codes.scales_and_zeros,
            own,
        )
        assert found.dtype == torch.bfloat16
        assert_near(found, want if own is None else want + own.float())
    parts = int4_product.multiply_in_parts(
        values,
        codes.pairs,
        codes.scales_and_zeros,
        bias,
    )
    assert len(parts) == int4_product.num_parts(*codes.pairs.shape)
    assert_near(parts.sum(0), want + bias.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_of_other_types_are_rounded_as_those_of_the_other_kernels(dtype: torch.dtype) -> None:
    values, codes = case(5, 128, 64, 32)
    values = values.to(dtype) * 1.001
    found = int4_product.multiply(
        values,
        codes.pairs,
        codes.scales_and_zeros,
    )
    assert found.dtype == dtype
    assert_near(found, values.bfloat16().float() @ dense(codes).T)


@pytest.mark.parametrize("gate", ["silu", "gelu_tanh"])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(2, 192, 48), (40, 128, 272)])
def test_gated_products(gate: int4_product.Gate, rows: int, inputs: int, outputs: int) -> None:
    values, codes = case(rows, inputs, outputs, 32)
    bias = torch.randn(outputs).bfloat16()
    first, second = (values.float() @ dense(codes).T + bias.float()).chunk(2, dim=-1)
    activated = F.silu(first) if gate == "silu" else F.gelu(first, approximate="tanh")
    found = int4_product.multiply(
        values,
        codes.pairs,
        codes.scales_and_zeros,
        bias,
        gate=gate,
    )
    assert_near(found, activated * second)


def test_few_outputs_are_summed_in_parts_none_of_which_is_empty() -> None:
    for outputs, inputs in [(3584, 18944), (3584, 3584), (64, 1152), (4608, 3584), (8, 65536)]:
        parts = int4_product.num_parts(outputs, inputs // 2)
        blocks = -(-inputs // 128)
        assert 1 < parts <= 8 and (parts - 1) * -(-blocks // parts) < blocks
    assert int4_product.num_parts(37888, 1792) == int4_product.num_parts(64, 128) == 1
