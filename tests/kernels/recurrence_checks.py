"""Checks of recurrences on CUDA devices, for the interpreter and for a GPU."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from engine.recurrent.order import Order, Taps, Walk, chain_places, chain_walk, find_order
from engine.recurrent.shape import LayerShape, pad_lanes
from engine.recurrent.steps import (
    Filter,
    Inputs,
    convolve_tensors,
    make_inputs,
    walk_tensors,
)
from engine.triton_kernels import recurrence

CPU = torch.device("cpu")
DELTA = LayerShape(
    channels=2 * 2 * 32 + 4 * 16,
    taps=4,
    is_activated=True,
    heads=4,
    key_heads=2,
    depth=32,
    width=16,
    is_corrected=True,
    is_normalized=True,
)
WIDE = replace(DELTA, channels=3 * 4 * 20, key_heads=4, depth=20, width=20, decays=20)
MAMBA = LayerShape(
    channels=6 * 24 + 2 * 3 * 16,
    taps=4,
    is_activated=True,
    heads=6,
    key_heads=3,
    depth=16,
    width=24,
)
SHAPES = {"delta": DELTA, "wide": WIDE, "mamba": MAMBA}
# The parent of each node of a tree. The path has the same rows as the chain.
PARENTS = (-1, 0, 0, 1, 2, 2, 4, 6, 6, 3)
PATH = (0, 2, 4, 6, 7)
ROWS = len(PARENTS) + len(PATH)
STATES = 3  # of a layer: those of the tree's and the chain's sequence, and one that is copied to


def random(seed: int, *size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def inputs_of(shape: LayerShape, device: torch.device) -> Inputs:
    """Return the inputs of the tree's rows, then those of the chain's."""
    rows, gates = random(1, ROWS, shape.channels), random(2, ROWS, shape.num_gates).sigmoid()
    for place, node in enumerate(PATH, len(PARENTS)):
        rows[place], gates[place] = rows[node], gates[node]
    found = make_inputs(shape, *shape.split(rows), gates)
    return Inputs(*(None if x is None else x.to(device) for x in found))  # type: ignore[arg-type]  # None is the rate


def tree_order() -> Order:
    return find_order(PARENTS, range(len(PARENTS)), 4)


def states_of(shape: LayerShape, device: torch.device) -> Tensor:
    """Return states that are equal for the tree and the chain; what is padding is zero."""
    heads, blocks, _, lanes = shape.state
    state = random(3, shape.heads, shape.depth, shape.width)
    state = F.pad(state, (0, blocks * lanes - shape.width, 0, shape.state[2] - shape.depth))
    state = state.view(heads, shape.state[2], blocks, lanes).transpose(1, 2)
    return state.expand(STATES, *shape.state).contiguous().to(device)


def both_walks(copies: bool = False) -> Walk:
    """Return the walk of the tree, which changes no state, and of the chain, which does."""
    rows = np.arange(len(PARENTS))
    chain = chain_walk(range(len(PARENTS), ROWS), 1, [(3, 2)] if copies else [])
    return Walk.join([tree_order().walk(rows, 0), chain])


def check_rounding(shape: LayerShape, device: torch.device) -> None:
    """Check outputs and states against the operations of torch, within rounding."""
    inputs, order = inputs_of(shape, CPU), both_walks(copies=True)
    states = states_of(shape, CPU)
    want = walk_tensors(states, inputs, order)
    found_states = states_of(shape, device)
    found = recurrence.walk(found_states, inputs_of(shape, device), order.on(device))
    # Sums are added in another order; each of the rows before a row may differ by a rounding.
    torch.testing.assert_close(found.cpu(), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found_states.cpu(), states, rtol=1e-5, atol=1e-5)
    assert torch.equal(found_states[0].cpu(), states_of(shape, CPU)[0])


def check_bits(shape: LayerShape, device: torch.device) -> None:
    """Check that a row has the same bits in a tree and in a chain, beside others and alone."""
    inputs, states = inputs_of(shape, device), states_of(shape, device)
    found = recurrence.walk(states, inputs, both_walks().on(device))
    assert torch.equal(found[list(PATH)], found[len(PARENTS) :])
    alone = states_of(shape, device)
    for row in range(len(PARENTS), ROWS):
        out = recurrence.walk(alone, inputs, chain_walk(range(row, row + 1), 1).on(device))
        assert torch.equal(out[row], found[row]), row
    assert torch.equal(alone, states)
    copied = states_of(shape, device)
    recurrence.walk(copied, inputs, both_walks(copies=True).on(device))
    assert torch.equal(copied[:2], states[:2])
    three = chain_walk(range(len(PARENTS), len(PARENTS) + 3), 2)
    recurrence.walk(states, inputs, three.on(device))
    assert torch.equal(copied[2], states[2])


def check_convolution(
    channels: int, dtype: torch.dtype, device: torch.device, *, is_activated: bool
) -> None:
    """Check convolutions against the operations of torch."""
    source = random(4, 12, channels).to(dtype)
    filters = Filter.of_layer(random(5, channels, 4), random(6, channels))
    taps = Taps(np.concatenate([chain_places(5, 4), chain_places(9, 4)[::-1]]))
    want = convolve_tensors(
        pad_lanes(source.float()), taps.on(CPU), *filters, is_activated=is_activated
    )[:, :channels].to(dtype)
    moved = (part.to(device) for part in filters)
    found = recurrence.convolve(
        source.to(device), taps.on(device), *moved, is_activated=is_activated
    ).cpu()
    if is_activated:  # another exponential
        torch.testing.assert_close(found, want)
    else:
        assert torch.equal(found, want)
