"""Tests of recurrent layers on CUDA devices in the interpreter."""

import numpy as np
import pytest
import torch

from engine.recurrent.order import chain_walk
from engine.recurrent.shape import LayerShape
from engine.triton_kernels import recurrence
from engine.triton_kernels.recurrence import _find_actions
from tests.kernels.recurrence_checks import (
    CPU,
    DELTA,
    ROWS,
    SHAPES,
    check_bits,
    check_convolution,
    check_rounding,
    inputs_of,
    states_of,
    tree_order,
)

KINDS = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


@KINDS
def test_outputs_and_states_are_those_of_the_cpu_within_rounding(shape: LayerShape) -> None:
    check_rounding(shape, CPU)


@KINDS
def test_a_row_has_the_same_bits_in_a_tree_a_chain_and_alone(shape: LayerShape) -> None:
    check_bits(shape, CPU)


def test_trees_whose_states_are_kept_in_parts_have_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recurrence, "MAX_STATE_BYTES", 1)
    check_bits(DELTA, CPU)


@pytest.mark.usefixtures("bfloat16_rounded")
@pytest.mark.parametrize("is_activated", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [40, 256, 300])
def test_convolutions(channels: int, dtype: torch.dtype, is_activated: bool) -> None:
    check_convolution(channels, dtype, CPU, is_activated=is_activated)


def test_states_are_loaded_and_stored_only_where_registers_do_not_have_them() -> None:
    assert _find_actions([-1] * 4, [-1] * 4, [0, 4]) == [1, 0, 0, 2]
    assert _find_actions([-1, -1, -2], [-1, -1, -2], [0, 2, 3]) == [1, 2, 3]
    order = tree_order().walk(np.arange(10), 0)
    actions = _find_actions(order.sources.tolist(), order.targets.tolist(), [0, 10])
    # A first child that comes next has the state in registers. That of a leaf is not stored.
    assert actions == [3, 2, 3, 3, 3, 1, 3, 0, 1, 1]


@pytest.mark.parametrize(
    ("slot", "rows"), [(3, range(ROWS)), (0, range(1, ROWS + 1))], ids=["state", "row"]
)
def test_places_outside_the_memory_are_refused(slot: int, rows: range) -> None:
    with pytest.raises(AssertionError):
        recurrence.walk(
            states_of(DELTA, CPU), inputs_of(DELTA, CPU), chain_walk(rows, slot).on(CPU)
        )
