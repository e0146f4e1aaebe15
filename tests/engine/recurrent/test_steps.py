"""Tests of recurrences: a row's bits depend only on the row and on the rows that it follows."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.granitemoehybrid import modeling_granitemoehybrid as granite
from transformers.models.kimi_linear import modeling_kimi_linear as kimi
from transformers.models.qwen3_next import modeling_qwen3_next as qwen

from engine.compiled.compiler import switched_off
from engine.recurrent.order import Taps, chain_places, chain_walk, find_order
from engine.recurrent.shape import LayerShape
from engine.recurrent.steps import Filter, convolve, make_inputs, walk
from engine.recurrent.visit import Part, Visit
from tests.engine.recurrent.layers import (
    DELTA,
    FIRST,
    KINDS,
    LENGTH,
    MAMBA,
    PARENTS,
    PATH,
    WIDE,
    Layer,
)


def by_passes(layer: Layer, edges: list[int], tile: int = 64, stash: int = 64) -> Tensor:
    """Return the output of a text that is computed in passes which end at these positions."""
    state, parts = layer.pool(stash).open(), []
    assert state is not None
    for start, stop in zip([0, *edges], [*edges, LENGTH], strict=True):
        parts.append(layer.run(state, [*range(start, stop)], tile=tile))
        state.extend(range(stop - start))
    return torch.cat(parts)


@pytest.mark.parametrize(("shape", "dtype"), KINDS)
def test_passes_and_tiles_change_no_bit(shape: LayerShape, dtype: torch.dtype) -> None:
    layer = Layer(shape, dtype)
    want = by_passes(layer, [])
    assert not torch.equal(want[1], want[2])
    for edges in ([1], [2, 3], [63], [64], [65, 66, 130], [*range(1, LENGTH)]):
        assert torch.equal(by_passes(layer, edges), want), edges
    for tile in (1, 3, 50, LENGTH):
        assert torch.equal(by_passes(layer, [70], tile), want), tile
        assert torch.equal(by_passes(layer, [70], tile, stash=LENGTH), want), tile


@pytest.mark.parametrize("tile", [64, 6, 3, 1])
@pytest.mark.parametrize(("shape", "dtype"), KINDS)
def test_a_path_of_a_tree_has_the_bits_of_the_same_text(
    shape: LayerShape, dtype: torch.dtype, tile: int
) -> None:
    layer = Layer(shape, dtype)
    want = by_passes(layer, [])
    state = layer.pool(num_states=2).open()
    assert state is not None
    layer.run(state, [*range(FIRST)])
    state.extend(range(FIRST))
    # Other nodes have the rows of other tokens.
    tokens = [(7 * node) % FIRST for node in range(len(PARENTS))]
    for token, node in enumerate(PATH, FIRST):
        tokens[node] = token
    found = layer.run(state, tokens, [*PARENTS], tile)
    assert torch.equal(found[list(PATH)], want[FIRST : FIRST + len(PATH)])
    state.extend(PATH)
    after = FIRST + len(PATH)
    fork = state.pool.fork(state)  # which repeats the path outside of a pass
    assert fork is not None
    for own in (state, fork):
        assert torch.equal(layer.run(own, [*range(after, LENGTH)]), want[after:])


@pytest.mark.parametrize(("shape", "dtype"), KINDS)
def test_sequences_of_a_tile_change_nothing_of_each_other(
    shape: LayerShape, dtype: torch.dtype
) -> None:
    """A tree, the second tiles of two trees, and rows after which a state is copied."""
    layer = Layer(shape, dtype)
    trees = {"tree": range(10), "tile": range(6, 10), "chain": range(12), "second": range(8, 10)}

    def opened(pool: Any) -> dict[str, Any]:
        """Return sequences of different lengths whose last rows are to be repeated."""
        found: dict[str, Any] = {}
        for number, name in enumerate(trees):
            state = found[name] = pool.open()
            layer.run(state, [*range(20 + number)])
            state.extend(range(20 + number)[: 20 - number])
        for name in ("tile", "second"):  # whose first rows were in an earlier tile
            layer.run(found[name], [*range(40, 50)], [*PARENTS])
        copy = pool.take_slot()
        found["chain"].captures = {found["chain"].length + 5: copy}
        return found

    def visited(states: dict[str, Any]) -> list[Tensor]:
        parts = []
        for name, state in states.items():
            order = None if name == "chain" else find_order(PARENTS, trees[name], shape.taps)
            parts.append(Part(state, state.length, trees[name], order))
        visit, rows = Visit(parts, shape.taps), [40 + row for own in parts for row in own.rows]
        out = visit.convolve(5, layer.rows()[rows])
        if shape.has_state:
            out = visit.scan(5, *shape.split(out), layer.gates()[rows])
        return list(torch.split(out, [len(own.rows) for own in parts]))

    pools = [layer.pool(num_states=5) for _ in range(2)]
    together, single = opened(pools[0]), opened(pools[1])
    found = visited(together)
    want = [visited({name: state})[0] for name, state in single.items()]
    for one, other in zip(found, want, strict=True):
        assert torch.equal(one, other)
    for states in (together, single):
        for name, state in states.items():
            state.extend([0] if name != "chain" else range(12))
            state.replay()
    assert torch.equal(pools[0].layers[5].states, pools[1].layers[5].states)
    assert torch.equal(pools[0].layers[5].windows, pools[1].layers[5].windows)


@pytest.mark.parametrize(("shape", "dtype"), KINDS)
def test_rows_that_are_not_accepted_leave_no_trace(shape: LayerShape, dtype: torch.dtype) -> None:
    layer = Layer(shape, dtype)
    want = by_passes(layer, [])
    state = layer.pool().open()
    assert state is not None
    layer.run(state, [*range(90)])
    state.extend(range(90))
    layer.run(state, [90, 5, 6, 7])
    assert state.is_at(90)  # the pass failed, and is repeated with other rows
    layer.run(state, [90, 91, 3], [-1, 0, 1])
    state.extend([0, 1])
    assert torch.equal(layer.run(state, [*range(92, LENGTH)]), want[92:])


def test_a_state_that_a_failed_pass_has_changed_is_noticed() -> None:
    layer = Layer(DELTA, torch.float32)
    state = layer.pool(stash_rows=4).open()
    assert state is not None and state.is_at(0) and not state.is_at(1)
    layer.run(state, [*range(9)])
    assert not state.is_at(0)  # the rows of a long prompt change the state at once
    state.extend(range(9))
    assert state.is_at(9)
    memory = state.pool.layers[5]
    Visit([Part(state, 9, range(9), None)], 4).convolve(5, layer.rows()[9:18])
    state.extend(range(9))  # but the recurrence has not run
    assert not state.is_at(18) and memory is not None


@pytest.mark.parametrize(("shape", "dtype"), KINDS)
def test_compiled_code_and_torch_give_the_same_bits(shape: LayerShape, dtype: torch.dtype) -> None:
    layer = Layer(shape, dtype)
    outputs = []
    for _ in range(2):
        state = layer.pool().open()
        assert state is not None
        found = [layer.run(state, [*range(70)])]
        state.extend(range(70))
        found.append(layer.run(state, [*range(70, 80)], [*PARENTS]))
        outputs.append([*found, state.pool.layers[5].states, state.pool.layers[5].windows])
        with switched_off():
            state = layer.pool().open()
            assert state is not None
            found = [layer.run(state, [*range(70)])]
            state.extend(range(70))
            found.append(layer.run(state, [*range(70, 80)], [*PARENTS]))
            outputs.append([*found, state.pool.layers[5].states, state.pool.layers[5].windows])
    for compiled, plain in zip(outputs[0], outputs[1], strict=True):
        assert torch.equal(compiled, plain)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("shape", [DELTA, MAMBA], ids=str)
def test_threads_change_no_bit(shape: LayerShape, count: int, threads: None) -> None:
    wide = replace(shape, heads=64, key_heads=1, width=64)
    channels = 2 * wide.depth + 64 * 64
    layer = Layer(replace(wide, channels=channels), torch.float32)
    torch.set_num_threads(1)
    want = by_passes(layer, [])
    torch.set_num_threads(count)
    assert torch.equal(by_passes(layer, []), want)


def library_output(layer: Layer, convolved: Tensor) -> Tensor:
    """Return the output of the library's own function for the rows of the text."""
    shape = layer.shape
    query, key, value = (part[None].float() for part in shape.split(convolved))
    decay, rate = torch.split(layer.gates(), [shape.heads * shape.decays, shape.heads], dim=-1)
    if not shape.is_corrected:
        # With A = -1 the decay is exp(-step), and the step is also the rate.
        step = -decay.log()
        found: Tensor = granite.mamba2_chunk_scan(
            value * (rate / step)[None, ..., None],
            step[None],
            -torch.ones(shape.heads),
            key,
            query,
            chunk_size=32,
        )
        return found[0]
    function: Callable[..., Any] = qwen.torch_chunk_gated_delta_rule
    if shape.decays > 1:
        function, decay = kimi.chunk_kimi_delta_attention, decay.view(-1, shape.heads, shape.decays)
    output, _ = function(
        query, key, value, decay.log()[None], rate[None], use_qk_l2norm_in_kernel=True
    )
    return output[0]  # type: ignore[no-any-return]  # of a function of any family


@pytest.mark.parametrize("shape", [DELTA, WIDE, MAMBA], ids=str)
def test_outputs_are_those_of_the_library(shape: LayerShape) -> None:
    layer = Layer(shape, torch.float32)
    weight, bias = layer.weight(), layer.bias()
    convolved = qwen.causal_conv1d_fn(layer.rows().T[None], weight, bias, "silu")[0].T
    source = F.pad(layer.rows(), (0, 0, shape.taps - 1, 0))
    taps = Taps(chain_places(LENGTH, shape.taps))
    found = convolve(source, taps, Filter.of_layer(weight, bias), is_activated=True)
    torch.testing.assert_close(found, convolved, rtol=1e-5, atol=1e-5)
    want = library_output(layer, convolved)
    torch.testing.assert_close(by_passes(layer, []), want, rtol=1e-4, atol=1e-4)


def test_values_of_wrong_places_are_refused() -> None:
    layer = Layer(DELTA, torch.float32)
    shape, filters = layer.shape, Filter.of_layer(layer.weight(), None)
    with pytest.raises(AssertionError):
        convolve(layer.rows(), Taps(np.array([[0, 1, 2, LENGTH]])), filters, is_activated=True)
    inputs = make_inputs(shape, *shape.split(layer.rows()), layer.gates())
    states, rows = torch.zeros(1, *shape.state), range(LENGTH)
    order = chain_walk(rows, 0)
    for wrong in (
        chain_walk(rows, 1),
        chain_walk(range(1, LENGTH + 1), 0),
        replace(order, sources=order.sources + 5, targets=order.sources + 4),
        replace(order, sources=order.sources[1:]),
    ):
        with pytest.raises(AssertionError):
            walk(states, inputs, wrong)
