"""Tests of draft trees in recurrent layers: updates of ancestors give what states of nodes give."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from engine.recurrent.branch import NodeRows, NodeVisit
from engine.recurrent.nodes import NodeMemory
from engine.recurrent.shape import LayerShape
from engine.recurrent.states import SequenceState
from tests.engine.recurrent.layers import (
    BFLOAT16,
    DELTA,
    FIRST,
    MAMBA,
    PARENTS,
    SHAPES,
    WIDE,
    Layer,
)

TOKENS = [(7 * node) % FIRST for node in range(len(PARENTS))]
# The nodes of each step of the draft.
STEPS = {
    "level by level": [[0], [1, 2], [3, 4, 5], [6, 9], [7, 8]],
    "at once": [[*range(len(PARENTS))]],
    "mixed": [[0, 2], [1, 4, 6], [3, 5, 8, 9], [7]],
}
KINDS = [pytest.param(shape, torch.float32, 2e-5, id=name) for name, shape in SHAPES.items()]
KINDS += [pytest.param(*BFLOAT16.values, 0.005, id="delta-bfloat16")]


class Tree:
    """A draft tree over the states of a sequence, whose nodes have the slots 100, 101, ..."""

    def __init__(self, layer: Layer, state: SequenceState, num_nodes: int = len(PARENTS)) -> None:
        self.layer, self.state = layer, state
        self.nodes = NodeMemory({5: layer.shape}, num_nodes, layer.dtype, torch.device("cpu"))
        self.ran: list[int] = []

    def run(self, nodes: Sequence[int], root: int = 0) -> Tensor:
        """Return what a step over some nodes gives; nodes above `root` are in the state."""
        paths = [[one for one in _path(node) if one >= root] for node in nodes]
        earlier = [node for node in self.ran if any(node in path for path in paths)]
        every = [*earlier, *nodes]
        mask = torch.tensor([[node in path for node in every] for path in paths])
        for node in nodes:
            self.nodes.take(100 + node)
        self.ran += nodes
        before, slots = ([100 + node for node in part] for part in (earlier, nodes))
        rows = NodeRows(self.state, self.nodes, before, slots, mask)
        visit = NodeVisit([rows], self.layer.shape.taps)
        tokens, layer = [TOKENS[node] for node in nodes], self.layer
        convolved = visit.convolve(5, layer.rows()[tokens])
        if not layer.shape.has_state:
            return convolved
        return visit.scan(5, *layer.shape.split(convolved), layer.gates()[tokens])


def _path(node: int) -> list[int]:
    path = []
    while node >= 0:
        path.append(node)
        node = PARENTS[node]
    return path[::-1]


def begin(layer: Layer) -> SequenceState:
    """Return the state of a sequence after some tokens, whose last rows are repeated by then."""
    state = layer.pool().open()
    assert state is not None
    layer.run(state, [*range(FIRST - 3)])
    state.extend(range(FIRST - 3))
    layer.run(state, [*range(FIRST - 3, FIRST)])
    state.extend(range(3))
    assert not state.is_caught_up(FIRST)
    state.replay()
    assert state.is_caught_up(FIRST)
    return state


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS.keys())
@pytest.mark.parametrize(("shape", "dtype", "most"), KINDS)
def test_nodes_give_what_states_of_nodes_give(
    shape: LayerShape, dtype: torch.dtype, most: float, steps: list[list[int]]
) -> None:
    layer = Layer(shape, dtype)
    state = begin(layer)
    memory = state.pool.layers[5]
    before = memory.states.clone(), memory.windows.clone()
    tree = Tree(layer, state)
    found = torch.cat([tree.run(nodes) for nodes in steps])
    assert torch.equal(memory.states, before[0]) and torch.equal(memory.windows, before[1])
    want = layer.run(state, TOKENS, [*PARENTS])[tree.ran]
    torch.testing.assert_close(found, want, rtol=most, atol=most)
    assert float((want[0] - want[1]).abs().max()) > 20 * most


@pytest.mark.parametrize(("shape", "dtype", "most"), KINDS)
def test_nodes_below_a_new_root_go_on_after_its_ancestors_are_accepted(
    shape: LayerShape, dtype: torch.dtype, most: float
) -> None:
    layer = Layer(shape, dtype)
    state = begin(layer)
    want = layer.run(state, TOKENS, [*PARENTS])
    tree = Tree(layer, state)
    tree.run([0, 1, 2])
    tree.run([4, 5])
    layer.run(state, TOKENS, [*PARENTS])
    state.extend([0, 2])
    state.replay()
    tree.nodes.move_root([100 + node for node in tree.ran], 102)
    tree.nodes.give_back([100, 101, 102, 105])
    tree.ran = [4]
    found = torch.cat([tree.run([6], root=4), tree.run([7, 8], root=4)])
    torch.testing.assert_close(found, want[[6, 7, 8]], rtol=most, atol=most)
    assert tree.nodes.num_free == len(PARENTS) - 4


class Forgetful(Layer):
    """A layer of which some heads forget all earlier rows."""

    def gates(self) -> Tensor:
        gates = super().gates()
        gates[:, ::3] = 0.0
        return gates


@pytest.mark.parametrize("shape", [DELTA, WIDE, MAMBA], ids=str)
def test_a_row_may_forget_all_that_is_before_it(shape: LayerShape) -> None:
    layer = Forgetful(shape, torch.float32)
    state = begin(layer)
    tree = Tree(layer, state)
    found = torch.cat([tree.run([0, 1, 2]), tree.run([3, 4])])
    want = layer.run(state, TOKENS, [*PARENTS])[[0, 1, 2, 3, 4]]
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
