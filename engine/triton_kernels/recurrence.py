"""Recurrences and short convolutions of the rows of a tile, on a CUDA device.

`engine.recurrent.steps` says what is computed. Sums over the rows of a state have another order
here than on the CPU, which is fixed too: the one of a reduction by Triton.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.transfer import upload_all
from engine.triton_kernels.compiler import can_run

LANES = 16  # columns of a state that are together in memory
MAX_STATE_BYTES = 32 << 20  # bytes of states that a launch keeps for the nodes of trees
_CHANNELS = 256  # of a program of the convolution
_STATE = -1  # the number of the first state of a layer; those from 0 on are kept by a launch


@cache
def can_walk(device: torch.device) -> bool:
    """Return whether the kernels run on a device. The log says once why they do not."""
    return device.type == "cuda" and can_run(
        device, "recurrent layers are computed row by row", lambda: _try(device)
    )


def _try(device: torch.device) -> None:
    """Compute a row of a small layer."""
    number = np.zeros(1, np.int64)
    order = DeviceWalk(number, number - 1, number - 1, np.array([0, 1]), 0, device)
    x = torch.ones(1, 1, LANES, device=device)
    walk(torch.ones(1, 1, 1, LANES, LANES, device=device), (x, x, x, x[..., :1], None), order)
    convolve(x[0], order.tensors[0][None], x[0], x[0, 0], is_activated=True)
    torch.cuda.synchronize(device)


class DeviceWalk:
    """The order of a walk on the device, with what each row loads and stores.

    Args:
        rows, sources, targets, starts, num_kept: of an `engine.recurrent.order.Walk`.
    """

    def __init__(
        self, rows: Any, sources: Any, targets: Any, starts: Any, num_kept: int, device: Any
    ) -> None:
        self.num_sequences, self.num_kept = len(starts) - 1, num_kept
        self.most = int(rows.max(initial=-1)) + 1  # rows that there have to be
        self.least_state = int(min(sources.min(initial=0), targets.min(initial=0)))
        assert int(max(sources.max(initial=-1), targets.max(initial=-1))) < num_kept or not len(
            rows
        )
        actions = _find_actions(sources.tolist(), targets.tolist(), starts.tolist())
        values = [rows, sources, targets, np.array(actions, np.int64), starts]
        self.tensors = upload_all([torch.from_numpy(own) for own in values], device)


def _find_actions(sources: list[int], targets: list[int], starts: list[int]) -> list[int]:
    """Return whether each row loads its state (1) and whether it stores the result (2)."""
    actions = [0] * len(sources)
    for begin, end in pairwise(starts):
        writers: dict[int, int] = {}  # the last row that has each state as its target
        for row in range(begin, end):
            if row == begin or sources[row] != targets[row - 1]:
                actions[row] |= 1
                if (writer := writers.get(sources[row])) is not None:
                    actions[writer] |= 2
            writers[targets[row]] = row
        for target, row in writers.items():
            if target < 0:  # a state of the layer is its last target's
                actions[row] |= 2
    return actions


def walk(
    states: Tensor, inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None], order: DeviceWalk
) -> Tensor:
    """Return the output [rows, H, width] of rows, each of which changes a state.

    Args:
        states, inputs: those of `engine.recurrent.steps.walk`.
    """
    from engine.triton_kernels.recurrence_kernel import walk_rows

    query, key, value, decay, rate = (None if x is None else x.contiguous() for x in inputs)
    assert query is not None and key is not None and value is not None and decay is not None
    _, heads, width = value.shape
    depth = states.shape[3]
    _check(states, (query, key, value, decay, rate), order)
    out, items = torch.zeros_like(value), heads * width // LANES
    size = max(order.num_sequences * order.num_kept, 1) * depth * LANES
    step = min(max(MAX_STATE_BYTES // (4 * size), 1), items)
    kept = value.new_empty(step * size)
    with _on(states):
        for first in range(0, items, step):
            walk_rows[min(step, items - first), order.num_sequences](
                states, kept, query, key, value, decay, decay if rate is None else rate, out,
                *order.tensors, first, order.num_kept,
                HEADS=heads, KEY_HEADS=key.shape[1], DEPTH=depth, WIDTH=width,
                IS_WIDE=decay.shape[2] > 1, IS_CORRECTED=rate is not None, **options(depth),
            )  # fmt: skip
    return out


def options(depth: int) -> dict[str, Any]:
    """Return how the kernel is compiled for states with this number of rows."""
    part = 1 << (depth - 1).bit_length()
    warps = min(max(part // 32, 1), 8)
    return {"PART": part, "num_warps": warps, "num_stages": 1, "enable_fp_fusion": False}


def convolve(
    source: Tensor, places: Tensor, weight: Tensor, bias: Tensor, *, is_activated: bool
) -> Tensor:
    """Return the convolutions [rows, C] of rows of `source`, in its type.

    Args:
        source, is_activated: those of `engine.recurrent.steps.convolve`.
        places: its places on the device, which have been checked.
        weight, bias: of an `engine.recurrent.steps.Filter`.
    """
    from engine.triton_kernels.recurrence_kernel import convolve_rows

    source = source.contiguous()
    (rows, taps), channels = places.shape, source.shape[1]
    assert weight.shape[0] == taps and weight.shape[1] >= channels, weight.shape
    assert weight.is_contiguous() and bias.shape == weight.shape[1:], bias.shape
    out = source.new_empty(rows, channels)
    if not rows:
        return out
    with _on(source):
        convolve_rows[rows, -(-channels // _CHANNELS)](
            source, places, weight, bias, out, channels, weight.shape[1],
            TAPS=taps, PART=_CHANNELS, IS_ACTIVATED=is_activated, num_warps=4, num_stages=1,
            enable_fp_fusion=False,
        )  # fmt: skip
    return out


def _check(states: Tensor, inputs: tuple[Tensor | None, ...], order: DeviceWalk) -> None:
    """Check sizes: kernels with wrong ones would read and write other memory."""
    query, key, value, decay, rate = inputs
    assert query is not None and key is not None and value is not None and decay is not None
    rows, heads, width = value.shape
    depth = states.shape[3]
    assert states.shape[1:] == (heads, width // LANES, depth, LANES), states.shape
    assert states.is_contiguous() and states.dtype == torch.float32, states.dtype
    assert query.shape == key.shape == (rows, key.shape[1], depth), (query.shape, key.shape)
    assert width % LANES == 0 and heads % key.shape[1] == 0, (heads, width)
    assert decay.shape in ((rows, heads, 1), (rows, heads, depth)), decay.shape
    assert rate is None or rate.shape == (rows, heads), rate
    assert order.most <= rows, order.most
    assert order.least_state > _STATE - len(states), order.least_state


def _on(tensor: Tensor) -> AbstractContextManager[None]:
    """Return a context in which kernels are launched on the tensor's device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
