"""Tests of recurrent layers on a CUDA device."""

import pytest
import torch

from engine.recurrent.shape import LayerShape
from engine.triton_kernels.recurrence import can_walk
from tests.kernels.recurrence_checks import SHAPES, check_bits, check_convolution, check_rounding

CUDA = torch.device("cuda", 0)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or not can_walk(CUDA), reason="needs CUDA and Triton"
    ),
]
KINDS = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@KINDS
def test_outputs_and_states_are_those_of_the_cpu_within_rounding(shape: LayerShape) -> None:
    check_rounding(shape, CUDA)


@KINDS
def test_a_row_has_the_same_bits_in_a_tree_a_chain_and_alone(shape: LayerShape) -> None:
    check_bits(shape, CUDA)


@pytest.mark.parametrize("is_activated", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [40, 10240])
def test_convolutions(channels: int, dtype: torch.dtype, is_activated: bool) -> None:
    check_convolution(channels, dtype, CUDA, is_activated=is_activated)
